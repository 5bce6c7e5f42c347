#!/usr/bin/env python3
"""Write the tiles of a batch's samples as TIFF."""

from pathlib import Path

import click

from voxelmill.task import task


@click.command()
@click.option("--batch", required=True)
@click.option("--memory-budget", type=int, default=4_000_000_000, help="Bytes.")
def main(batch: str, memory_budget: int) -> None:
    with task("save_patches", batch) as record:
        from voxelmill.patches import save_batch

        save_batch(Path(), memory_budget, record)


if __name__ == "__main__":
    main()
