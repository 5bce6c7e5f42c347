#!/usr/bin/env python3
"""Tell objects that touch apart in one group of blocks."""

from pathlib import Path

import click

from voxelmill.task import task


@click.command()
@click.option("--batch", required=True)
@click.option("--group", required=True, type=int)
@click.option("--method", type=click.Choice(["border_core", "watershed"]), required=True)
@click.option("--seed-distance", default=5.0, help="Of watershed: voxels within which an object has one seed.")
@click.option("--components-of", type=click.Choice(["class", "foreground"]), default="class")
@click.option("--memory-budget", default=4_000_000_000, help="Bytes of host memory that one task may use.")
def main(batch: str, group: int, method: str, seed_distance: float, components_of: str, memory_budget: int) -> None:
    with task("separate_objects", batch, str(group)) as record:
        from voxelmill.objects.separation.separate import separate_group

        separate_group(
            batch,
            group,
            Path(),
            method,
            record,
            memory_budget=memory_budget,
            seed_distance=seed_distance,
            components_of=components_of,
        )


if __name__ == "__main__":
    main()
