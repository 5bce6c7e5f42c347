#!/usr/bin/env python3
"""Measure the objects of one task of a batch."""

from pathlib import Path

import click

from voxelmill.task import task


@click.command()
@click.option("--batch", required=True)
@click.option("--task", "number", required=True, type=int)
@click.option("--samples", required=True, help="Ids joined by commas, in the order of the label stores.")
@click.option("--length", default="longest_path", type=click.Choice(["longest_path", "longest_branch"]))
@click.option("--measure", default="skeleton,shape", help="What is measured, joined by commas.")
@click.option("--memory-budget", type=int, default=4_000_000_000, help="Bytes.")
def main(batch: str, number: int, samples: str, length: str, measure: str, memory_budget: int) -> None:
    with task("measure_objects", batch, str(number)) as record:
        from voxelmill.objects.columns import parse_measures
        from voxelmill.objects.measure import measure_task

        measures = parse_measures(measure)
        measure_task(batch, number, samples.split(","), Path(), length, memory_budget, record, measures)


if __name__ == "__main__":
    main()
