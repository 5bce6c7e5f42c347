#!/usr/bin/env python3
"""Convert the images of one batch and the labels given with them; samples.json comes on standard input."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from voxelmill.task import task


@click.command()
@click.option("--batch", required=True)
@click.option("--images", required=True, type=click.Path(path_type=Path), help="Folder <n>/<file> of staged files.")
@click.option("--format", default="ome-zarr")
@click.option("--target-spacing")
@click.option("--order", default="1", type=click.Choice(["0", "1", "3", "area"]))
@click.option("--label-resampling", default="majority", type=click.Choice(["majority", "nearest"]))
@click.option("--orientation")
@click.option("--repair-header", type=click.Choice(["qform", "sform"]))
@click.option("--align-labels", is_flag=True)
@click.option("--border-core", help="Thickness of the border that instances get: 3, 1.5um.")
@click.option("--memory-budget", default=4_000_000_000)
def main(batch: str, images: Path, memory_budget: int, **values: Any) -> None:
    with task("convert_images", batch) as record:
        from voxelmill.convert.conversion import convert_batch
        from voxelmill.convert.request import Request

        entries = json.load(sys.stdin)
        convert_batch(entries, images, Request(**values), Path(), record, memory_budget=memory_budget)


if __name__ == "__main__":
    main()
