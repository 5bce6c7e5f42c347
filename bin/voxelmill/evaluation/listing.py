"""What a run evaluated: tables of all samples, a report, checksums of every file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from voxelmill.errors import TemporaryError
from voxelmill.evaluation.page import Page, render_page
from voxelmill.evaluation.scores import (
    CLASS_MEASURES,
    SURFACE_MEASURES,
    Scores,
    object_measures,
    summary,
)
from voxelmill.files import read_json, sha256_file, write_bytes, write_json
from voxelmill.report.outputs import CHECKSUMS, RUN, Checksum, checksum_lines
from voxelmill.samplesheet import plain_cell

TABLE, NUMBERS, REPORT = "evaluation.csv", "evaluation.json", "report.html"

EVALUATION, PICTURES, RECORD = ".evaluation.json", ".worst.npz", ".evaluate_labels.json"
"""Endings of what a sample or its task leaves."""

PUBLISHED = ("*/*.evaluation.json", "*/*.matches.csv", "*/*.matches.parquet")

FIRST_COLUMNS = (
    "sample", "group", "kind", "of", "class", "name", "truth_voxels", "predicted_voxels", "overlap_voxels",
    *CLASS_MEASURES, *(f"surface_{name}" for name in SURFACE_MEASURES), "surface_tolerance", "unit", "truth_objects",
    "predicted_objects",
)  # fmt: skip


def list_evaluated(
    samples: Path, results: Path, params: Path | None, skip_bad: bool, out: Path, generated: str
) -> list[Path]:
    """Write the lists and the report of a run.

    Parameters
    ----------
    samples : Path
        ``samples.json`` of CHECK_INPUT.
    results : Path
        Folder of all ``<sample>.evaluation.json``, ``<sample>.worst.npz`` and records
        ``<batch>.evaluate_labels.json``.
    params : Path or None
        JSON of the run's ``params``, their ``defaults``, ``command``, ``revision`` and ``profile``.
    skip_bad : bool
        Samples that failed are left out instead of missed.
    out : Path
        Gets ``evaluation.csv``, ``evaluation.json``, ``report.html`` and ``outputs.sha256``.
    generated : str
        Date and time to print.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    TemporaryError
        Where a sample did not arrive.
    """
    listed = read_json(samples)
    order = [entry["id"] for entry in listed["samples"]]
    missing = [name for name in order if not (results / f"{name}{EVALUATION}").exists()]
    if missing and not (skip_bad and len(missing) < len(order)):
        raise TemporaryError(
            f"{len(missing)} of {len(order)} samples did not arrive, the first is {missing[0]}",
            remedy="run again with -resume",
        )
    evaluated = [read_json(results / f"{name}{EVALUATION}") for name in order if name not in missing]
    records = [read_json(path) for path in sorted(results.glob(f"*{RECORD}"))]
    failed = {one["id"]: one["error"] for one in listed.get("skipped", [])}
    failed |= dict.fromkeys(
        missing, "EVALUATE_LABELS failed; its log is in the folder that pipeline_info/trace.txt names"
    )
    write_bytes(out / TABLE, table(evaluated).encode())
    write_json(out / NUMBERS, {"samples": evaluated, "summary": summary(evaluated), "missing": sorted(failed)})
    pictures = {name: path for name in order if (path := results / f"{name}{PICTURES}").exists()}
    page = Page.of(evaluated, pictures, failed, records, read_json(params) if params else {}, generated)
    write_bytes(out / REPORT, render_page(page).encode())
    own = [out / name for name in (TABLE, NUMBERS, REPORT)]
    files = published(records, {one["sample"] for one in evaluated})
    files |= {path.name: Checksum(sha256_file(path), path.stat().st_size) for path in own}
    files[f"{RUN}/{samples.name}"] = Checksum(sha256_file(samples), samples.stat().st_size)
    checksums = out / PurePosixPath(CHECKSUMS).name
    write_bytes(checksums, checksum_lines(dict(sorted(files.items()))).encode())
    return [*own, checksums]


def published(records: Iterable[Mapping[str, Any]], samples: set[str]) -> dict[str, Checksum]:
    """Checksums of what the tasks of these samples publish."""
    return {
        name: Checksum(**value)
        for record in records
        for name, value in record["files"].items()
        if PurePosixPath(name).parts[0] in samples and any(PurePosixPath(name).match(p) for p in PUBLISHED)
    }


def table(evaluated: Sequence[Scores]) -> str:
    """CSV with a line per sample and class, and one for the objects of a sample; an empty cell is no number."""
    rows = [row for one in evaluated for row in rows_of(one)]
    columns = list(dict.fromkeys([*FIRST_COLUMNS, *(name for row in rows for name in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: plain_cell(v) if k in ("group", "name") else v for k, v in row.items() if v is not None})
    return text.getvalue()


def rows_of(one: Scores) -> Iterator[dict[str, Any]]:
    """Lines of a sample."""
    common = {"sample": one["sample"], "group": one["group"], "kind": one["kind"]}
    for row in one["classes"]:
        surface = {f"surface_{name}": value for name, value in (row["surface"] or {}).items()}
        unit = {"unit": one["unit"]} if surface else {}
        names = ("name", "truth_voxels", "predicted_voxels", "overlap_voxels", *CLASS_MEASURES)
        yield common | {"of": "class", "class": row["value"]} | {name: row[name] for name in names} | surface | unit
    if objects := one["objects"]:
        counts = {"truth_objects": objects["truth"], "predicted_objects": objects["predicted"]}
        yield common | {"of": "objects"} | counts | dict(object_measures(objects))
