#!/usr/bin/env python3
"""Average the probabilities that several models gave to the samples of a batch."""

from pathlib import Path

import click

from voxelmill.task import task


@click.command()
@click.option("--batch", required=True)
@click.option("--members", required=True, type=int, help="How many models there are.")
@click.option("--save-probabilities", type=click.Choice(["uint8", "uint16"]))
def main(batch: str, members: int, save_probabilities: str | None) -> None:
    with task("average_models", batch) as record:
        from voxelmill.average import average_batch

        average_batch(Path(), members, save_probabilities, record)


if __name__ == "__main__":
    main()
