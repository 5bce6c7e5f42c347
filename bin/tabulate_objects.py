#!/usr/bin/env python3
"""Tables, charts and pictures of the objects of every sample of a batch."""

from pathlib import Path

import click

from voxelmill.task import task


@click.command()
@click.option("--batch", required=True)
@click.option("--samples", required=True, help="Ids of the batch's samples, separated by commas, in its order.")
@click.option("--length", default="longest_path", type=click.Choice(["longest_path", "longest_branch"]))
@click.option("--measure", default="skeleton,shape", help="What was measured, joined by commas.")
def main(batch: str, samples: str, length: str, measure: str) -> None:
    with task("tabulate_objects", batch) as record:
        from voxelmill.objects.columns import parse_measures
        from voxelmill.objects.tabulate import tabulate_batch

        tabulate_batch(samples.split(","), length, Path(), record, parse_measures(measure))


if __name__ == "__main__":
    main()
