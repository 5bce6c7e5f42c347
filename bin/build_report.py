#!/usr/bin/env python3
"""BUILD_REPORT: one HTML file about a run, lists and checksums of what it publishes, and where that comes from."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from voxelmill.files import read_json, write_bytes
from voxelmill.report.collect import collect_run
from voxelmill.report.provenance import write_lists
from voxelmill.report.render import render_report
from voxelmill.task import task

FILE = click.Path(path_type=Path)


@click.command()
@click.option("--samples", type=FILE, required=True, help="samples.json of CHECK_INPUT.")
@click.option("--estimate", type=FILE, required=True, help="estimate.json of CHECK_INPUT.")
@click.option("--params", type=FILE, required=True, help="Params, their defaults, command, revision and profile.")
@click.option("--package", "packages", type=FILE, multiple=True, help="A packed model; none where labels were given.")
@click.argument("staged", nargs=-1, type=FILE)
def main(samples: Path, estimate: Path, params: Path, packages: tuple[Path, ...], staged: tuple[Path, ...]) -> None:
    """STAGED: what all samples left for the report and all task records, or folders of them."""
    with task("build_report", "build_report") as record:
        run = collect_run(samples, estimate, params, next(iter(packages), None), staged, packages[1:])
        ended = datetime.now(UTC)
        own = {"params.json": params}
        for path, html in render_report(run, ended.strftime("%Y-%m-%d %H:%M UTC")):
            own[path] = Path(path)
            write_bytes(own[path], html.encode())
            record.output(own[path])
        nextflow = read_json(params).get("nextflow")
        write_lists(run, own, Path(), ended=ended.isoformat(timespec="seconds"), nextflow=nextflow)


if __name__ == "__main__":
    main()
