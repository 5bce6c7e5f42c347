#!/usr/bin/env python3
"""Compare the labels of one batch with their truth; samples.json comes on standard input."""

import json
import sys
from pathlib import Path

import click

from voxelmill.task import task


@click.command()
@click.option("--batch", required=True)
@click.option("--images", required=True, type=click.Path(path_type=Path), help="Folder <n>/<file> of staged files.")
@click.option("--ignore-label", type=int, help="Value of the truth whose voxels count nowhere.")
@click.option("--memory-budget", default=4_000_000_000)
def main(batch: str, images: Path, ignore_label: int | None, memory_budget: int) -> None:
    with task("evaluate_labels", batch) as record:
        from voxelmill.evaluation.evaluate import evaluate_batch

        entries = json.load(sys.stdin)
        evaluate_batch(entries, images, Path(), record, ignore=ignore_label, memory_budget=memory_budget)


if __name__ == "__main__":
    main()
