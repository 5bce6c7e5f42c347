#!/usr/bin/env python3
"""Store and measure the images of one batch; their entries of samples.json come on standard input."""

import json
import sys
from pathlib import Path

import click

from voxelmill.task import task


@click.command()
@click.option("--batch", required=True)
@click.option("--images", required=True, type=click.Path(path_type=Path), help="Folder <n>/<file> of staged images.")
def main(batch: str, images: Path) -> None:
    with task("import_image", batch) as record:
        from voxelmill.importing import import_batch

        import_batch(json.load(sys.stdin), images, Path(), record)


if __name__ == "__main__":
    main()
