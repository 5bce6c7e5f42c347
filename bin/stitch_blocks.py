#!/usr/bin/env python3
"""Stitch one group of blocks of a batch from the pieces in the working folder."""

from pathlib import Path

import click

from voxelmill.task import task


@click.command()
@click.option("--batch", required=True)
@click.option("--group", required=True, type=int)
def main(batch: str, group: int) -> None:
    with task("stitch_blocks", batch, str(group)) as record:
        from voxelmill.stitch import stitch_group

        stitch_group(batch, group, Path(), record)


if __name__ == "__main__":
    main()
