#!/usr/bin/env python3
"""Compose the stores of probabilities of one batch from the blocks in the working folder."""

from pathlib import Path

import click

from voxelmill.task import task


@click.command()
@click.option("--batch", required=True)
def main(batch: str) -> None:
    with task("compose_probabilities", batch) as record:
        from voxelmill.probability_store import compose_batch

        compose_batch(Path(), record)


if __name__ == "__main__":
    main()
