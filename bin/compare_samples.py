#!/usr/bin/env python3
"""The objects of all samples in one table, and the comparison of groups of samples."""

from pathlib import Path

import click

from voxelmill.task import task

PATH = click.Path(path_type=Path)


@click.command()
@click.option("--samples", type=PATH, required=True, help="samples.json of CHECK_INPUT.")
@click.option("--tables", type=PATH, required=True, help="Folder of all <sample>.objects.parquet and .json.")
@click.option("--length", default="longest_path", type=click.Choice(["longest_path", "longest_branch"]))
@click.option("--on-bad-sample", default="stop", type=click.Choice(["stop", "skip"]))
def main(samples: Path, tables: Path, length: str, on_bad_sample: str) -> None:
    with task("compare_samples", "compare_samples") as record:
        from voxelmill.objects.cohort import compare_samples

        compare_samples(samples, tables, length, on_bad_sample == "skip", Path(), record)


if __name__ == "__main__":
    main()
