#!/usr/bin/env python3
"""What a run evaluated: tables, report and checksums; fails if a sample of samples.json did not arrive."""

from datetime import UTC, datetime
from pathlib import Path

import click

from voxelmill.task import task

PATH = click.Path(path_type=Path)


@click.command()
@click.option("--samples", type=PATH, required=True, help="samples.json of CHECK_INPUT.")
@click.option("--results", type=PATH, required=True, help="Folder of what all samples and their tasks left.")
@click.option("--params", type=PATH, help="Params, their defaults, command, revision and profile.")
@click.option("--on-bad-sample", default="stop", type=click.Choice(["stop", "skip"]))
def main(samples: Path, results: Path, params: Path | None, on_bad_sample: str) -> None:
    with task("list_evaluated", "list_evaluated") as record:
        from voxelmill.evaluation.listing import list_evaluated

        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        for path in list_evaluated(samples, results, params, on_bad_sample == "skip", Path(), now):
            record.output(path)


if __name__ == "__main__":
    main()
