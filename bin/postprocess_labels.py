#!/usr/bin/env python3
"""Apply a model's post-processing to the blocks of labels in the working folder."""

from pathlib import Path

import click

from voxelmill.task import task


@click.command()
@click.option("--batch", required=True)
@click.option("--package", required=True, type=click.Path(path_type=Path))
@click.option("--steps", required=True, help="model, or a postprocessing.json of nnU-Net.")
def main(batch: str, package: Path, steps: str) -> None:
    with task("postprocess_labels", batch) as record:
        from voxelmill.postprocessing import postprocess_batch

        postprocess_batch(steps, package, Path(), record)


if __name__ == "__main__":
    main()
