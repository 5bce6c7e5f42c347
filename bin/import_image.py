#!/usr/bin/env python3
"""Store and measure the images of one batch and the labels given with them; samples.json comes on standard input."""

import json
import sys
from pathlib import Path

import click

from voxelmill.task import task


@click.command()
@click.option("--batch", required=True)
@click.option("--images", required=True, type=click.Path(path_type=Path), help="Folder <n>/<file> of staged files.")
@click.option("--shard-size", default=256)
def main(batch: str, images: Path, shard_size: int) -> None:
    with task("import_image", batch) as record:
        from voxelmill.given import import_given
        from voxelmill.importing import import_batch

        entries = json.load(sys.stdin)
        import_batch(entries, images, Path(), record)
        import_given(batch, entries, images, shard_size, Path(), record)


if __name__ == "__main__":
    main()
