#!/usr/bin/env python3
"""Stitch one group of blocks of a batch from the pieces in the working folder."""

from pathlib import Path

import click

from voxelmill.task import task


@click.command()
@click.option("--batch", required=True)
@click.option("--group", required=True, type=int)
@click.option("--member", default=0, help="Number of the model, from 1, where several are averaged.")
def main(batch: str, group: int, member: int) -> None:
    with task("stitch_blocks", batch, f"m{member}.{group}" if member else str(group)) as record:
        from voxelmill.stitch import stitch_group

        stitch_group(batch, group, Path(), record, member)


if __name__ == "__main__":
    main()
