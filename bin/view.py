#!/usr/bin/env python3
"""Open a sample's image and labels in napari."""

import importlib
import sys
from pathlib import Path

import click

from voxelmill.task import exit_codes


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--image", "images", multiple=True, type=click.Path(path_type=Path), help="Again for each channel's file."
)
def main(folder: Path, images: tuple[Path, ...]) -> None:
    """FOLDER: <outdir>/<sample> of a run."""
    with exit_codes():
        from voxelmill.view import import_napari, layers, show

        found, notes = layers(folder, images)
        for note in notes:
            print(f"note:     {note}", file=sys.stderr)
        napari = import_napari(importlib.import_module)
        show(found, folder.resolve().name, napari)
        napari.run()


if __name__ == "__main__":
    main()
