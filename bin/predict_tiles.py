#!/usr/bin/env python3
"""Predict the tiles of one task of a batch."""

from pathlib import Path

import click

from voxelmill.task import task


@click.command()
@click.option("--batch", required=True)
@click.option("--task", "number", required=True, type=int)
@click.option("--member", default=0, help="Number of the model, from 1, where several are averaged.")
@click.option("--package", required=True, type=click.Path(path_type=Path))
def main(batch: str, number: int, member: int, package: Path) -> None:
    with task("predict_tiles", batch, f"m{member}.{number}" if member else str(number)) as record:
        from voxelmill.device import require_planned_gpu

        # before torch is imported, which can take long
        require_planned_gpu(Path())
        from voxelmill.predict import predict_task

        predict_task(batch, number, package, Path(), record, member)


if __name__ == "__main__":
    main()
