#!/usr/bin/env python3
"""Write the instance labels of one group of blocks."""

from pathlib import Path

import click

from voxelmill.task import task


@click.command()
@click.option("--batch", required=True)
@click.option("--group", required=True, type=int)
@click.option("--connectivity", type=click.Choice(["6", "18", "26"]), default="26")
@click.option("--components-of", type=click.Choice(["class", "foreground"]), default="class")
def main(batch: str, group: int, connectivity: str, components_of: str) -> None:
    with task("relabel_blocks", batch, str(group)) as record:
        from voxelmill.objects.components import Joining
        from voxelmill.objects.relabel import relabel_group

        relabel_group(batch, group, Path(), Joining(int(connectivity), components_of), record)


if __name__ == "__main__":
    main()
