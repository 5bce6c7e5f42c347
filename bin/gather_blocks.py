#!/usr/bin/env python3
"""Make the blocks of every sample of a batch readable as one array."""

from pathlib import Path

import click

from voxelmill.task import task


@click.command()
@click.option("--batch", required=True)
@click.option("--method", type=click.Choice(["border_core", "watershed"]), required=True)
@click.option("--core-label", default="core", help="Name or number of the label of cores.")
@click.option("--border-label", default="border", help="Name or number of the label of borders.")
def main(batch: str, method: str, core_label: str, border_label: str) -> None:
    with task("gather_blocks", batch) as record:
        from voxelmill.objects.separation.gather import gather_batch

        gather_batch(Path(), method, (core_label, border_label), record)


if __name__ == "__main__":
    main()
