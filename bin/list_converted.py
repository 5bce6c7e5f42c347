#!/usr/bin/env python3
"""What a run converted: samplesheet, table and checksums; fails if a sample of samples.json did not arrive."""

from pathlib import Path

import click

from voxelmill.task import task

PATH = click.Path(path_type=Path)


@click.command()
@click.option("--samples", type=PATH, required=True, help="samples.json of CHECK_INPUT.")
@click.option("--results", type=PATH, required=True, help="Folder of all <sample>.converted.json and records.")
@click.option("--on-bad-sample", default="stop", type=click.Choice(["stop", "skip"]))
def main(samples: Path, results: Path, on_bad_sample: str) -> None:
    with task("list_converted", "list_converted") as record:
        from voxelmill.convert.listing import list_converted

        for path in list_converted(samples, results, on_bad_sample == "skip", Path()):
            record.output(path)


if __name__ == "__main__":
    main()
