#!/usr/bin/env python3
"""Decide which cores every sample of a batch has, from the cores and regions of its blocks."""

from pathlib import Path

import click

from voxelmill.task import task


@click.command()
@click.option("--batch", required=True)
def main(batch: str) -> None:
    with task("link_cores", batch) as record:
        from voxelmill.objects.separation.marks import link_cores_batch

        link_cores_batch(Path(), record)


if __name__ == "__main__":
    main()
