#!/usr/bin/env python3
"""BUILD_REPORT: one HTML file about a run, and the list of what it publishes."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from voxelmill.files import sha256_file, write_bytes, write_json
from voxelmill.report.collect import collect_run
from voxelmill.report.outputs import outputs_list
from voxelmill.report.render import render_report
from voxelmill.task import task

FILE = click.Path(path_type=Path)


@click.command()
@click.option("--samples", type=FILE, required=True, help="samples.json of CHECK_INPUT.")
@click.option("--estimate", type=FILE, required=True, help="estimate.json of CHECK_INPUT.")
@click.option("--params", type=FILE, required=True, help="Params, their defaults, command, revision and profile.")
@click.option("--package", type=FILE, required=True, help="The packed model.")
@click.argument("staged", nargs=-1, type=FILE)
def main(samples: Path, estimate: Path, params: Path, package: Path, staged: tuple[Path, ...]) -> None:
    """STAGED: image.json, labels.json, pictures and task records of all samples, or folders of them."""
    with task("build_report", "build_report") as record:
        run = collect_run(samples, estimate, params, package, staged)
        pages = render_report(run, datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
        for path, html in pages.items():
            write_bytes(Path(path), html.encode())
            record.output(Path(path))
        own = {**record.outputs, "params.json": sha256_file(params)}
        write_json(Path("outputs.json"), outputs_list(run, own))


if __name__ == "__main__":
    main()
