#!/usr/bin/env python3
"""Predict the tiles of one task of a batch."""

from pathlib import Path

import click

from voxelmill.task import task


@click.command()
@click.option("--batch", required=True)
@click.option("--task", "number", required=True, type=int)
@click.option("--package", required=True, type=click.Path(path_type=Path))
def main(batch: str, number: int, package: Path) -> None:
    with task("predict_tiles", batch, str(number)) as record:
        from voxelmill.predict import predict_task

        predict_task(batch, number, package, Path(), record)


if __name__ == "__main__":
    main()
