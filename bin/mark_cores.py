#!/usr/bin/env python3
"""Find the cores and regions of one group of blocks."""

from pathlib import Path

import click

from voxelmill.task import task


@click.command()
@click.option("--batch", required=True)
@click.option("--group", required=True, type=int)
@click.option("--core-label", default="core", help="Name or number of the label of cores.")
@click.option("--border-label", default="border", help="Name or number of the label of borders.")
def main(batch: str, group: int, core_label: str, border_label: str) -> None:
    with task("mark_cores", batch, str(group)) as record:
        from voxelmill.objects.separation.marks import mark_group

        mark_group(batch, group, Path(), (core_label, border_label), record)


if __name__ == "__main__":
    main()
