#!/usr/bin/env python3
"""Make the objects of every sample of a batch from the components of its blocks."""

from pathlib import Path

import click

from voxelmill.task import task


@click.command()
@click.option("--batch", required=True)
@click.option("--connectivity", type=click.Choice(["6", "18", "26"]), default="26")
@click.option("--components-of", type=click.Choice(["class", "foreground"]), default="class")
@click.option("--min-object-voxels", default=0, help="Drop objects of fewer voxels.")
@click.option("--min-object-volume", default=0.0, help="Drop objects of less volume, in cubic micrometres.")
@click.option("--min-object-fraction", default=0.0, help="Drop objects of less than this part of the mean volume.")
@click.option("--border-objects", type=click.Choice(["measure", "keep", "drop"]), default="measure")
@click.option("--memory-budget", default=4_000_000_000, help="Bytes of host memory that one task may use.")
def main(
    batch: str,
    connectivity: str,
    components_of: str,
    min_object_voxels: int,
    min_object_volume: float,
    min_object_fraction: float,
    border_objects: str,
    memory_budget: int,
) -> None:
    with task("link_objects", batch) as record:
        from voxelmill.objects.components import Joining
        from voxelmill.objects.link import Filters, link_batch

        joining = Joining(int(connectivity), components_of)
        filters = Filters(min_object_voxels, min_object_volume, min_object_fraction, border_objects)
        link_batch(batch, Path(), joining, filters, memory_budget, record)


if __name__ == "__main__":
    main()
