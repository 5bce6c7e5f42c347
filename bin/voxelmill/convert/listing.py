"""What a run converted: a samplesheet for the next run, a table of what was done, checksums of every file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from voxelmill.errors import TemporaryError
from voxelmill.files import read_json, sha256_file, write_bytes
from voxelmill.report.outputs import CHECKSUMS, RUN, Checksum, checksum_lines
from voxelmill.samplesheet import plain_cell

SHEET, TABLE = "samples.csv", "converted.csv"

COLUMNS = (
    "sample", "what", "source", "target", "shape_czyx", "dtype", "spacing_um_zyx", "origin_um_zyx", "changes",
    "source_sha256", "target_sha256",
)  # fmt: skip


def list_converted(samples: Path, results: Path, skip_bad: bool, out: Path) -> list[Path]:
    """Write the lists of a run.

    Parameters
    ----------
    samples : Path
        ``samples.json`` of CHECK_INPUT.
    results : Path
        Folder of all ``<sample>.converted.json`` and records ``<batch>.convert_images.json``.
    skip_bad : bool
        Samples that failed are left out instead of missed.
    out : Path
        Gets ``samples.csv``, ``converted.csv`` and ``outputs.sha256``.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    TemporaryError
        Where a sample did not arrive.
    """
    order = [entry["id"] for entry in read_json(samples)["samples"]]
    done = {name: results / f"{name}.converted.json" for name in order}
    missing = [name for name, path in done.items() if not path.exists()]
    if missing and not (skip_bad and len(missing) < len(order)):
        raise TemporaryError(
            f"{len(missing)} of {len(order)} samples did not arrive, the first is {missing[0]}",
            remedy="run again with -resume",
        )
    converted = [read_json(path) for name, path in done.items() if name not in missing]
    write_bytes(out / SHEET, sheet(converted).encode())
    write_bytes(out / TABLE, table(converted).encode())
    records = [read_json(path) for path in sorted(results.glob("*.convert_images.json"))]
    files = {name: Checksum(**value) for record in records for name, value in record["files"].items()}
    published = {one["sample"] for one in converted}
    files = {name: value for name, value in files.items() if PurePosixPath(name).parts[0] in published}
    for path in (out / SHEET, out / TABLE):
        files[path.name] = Checksum(sha256_file(path), path.stat().st_size)
    files[f"{RUN}/{samples.name}"] = Checksum(sha256_file(samples), samples.stat().st_size)
    checksums = out / PurePosixPath(CHECKSUMS).name
    write_bytes(checksums, checksum_lines(dict(sorted(files.items()))).encode())
    return [out / SHEET, out / TABLE, checksums]


def sheet(converted: Iterable[Mapping[str, Any]]) -> str:
    """A samplesheet whose paths start at the results' folder; spacing only where the file does not state it."""
    rows = []
    for one in converted:
        row = {"sample": one["sample"], "group": one["group"] or ""}
        for file in one["written"]:
            column = "image" if file["what"] == "image" else one["labels_kind"]
            row[column] = f"{one['sample']}/{file['file']}"
        image = one["written"][0]
        if not image["stated"]:
            row["spacing"] = ";".join(map(repr, image["spacing"])) if image["spacing"] else ""
            row["unit"] = "um" if image["spacing"] else "pixel"
        rows.append(row)
    used = {column for row in rows for column, value in row.items() if value}
    columns = ["sample", "image", "semantic", "instances", "spacing", "unit", "group"]
    return as_csv([column for column in columns if column in used], rows)


def table(converted: Iterable[Mapping[str, Any]]) -> str:
    """One line per file that was written."""
    rows = []
    for one in converted:
        count = len(one["source"]) - (one["labels_kind"] is not None)
        for file in one["written"]:
            part = slice(0, count) if file["what"] == "image" else slice(count, None)
            rows.append(
                {
                    "sample": one["sample"],
                    "what": file["what"],
                    "source": ";".join(one["source"][part]),
                    "target": f"{one['sample']}/{file['file']}",
                    "shape_czyx": " ".join(map(str, file["shape"])),
                    "dtype": file["dtype"],
                    "spacing_um_zyx": " ".join(map(repr, file["spacing"] or [])),
                    "origin_um_zyx": " ".join(map(repr, file["origin"])) if file["spacing"] else "",
                    "changes": "; ".join(one["changes"]),
                    "source_sha256": ";".join(one["source_sha256"][part]),
                    "target_sha256": file["sha256"],
                }
            )
    return as_csv(COLUMNS, rows)


def as_csv(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> str:
    """CSV in which no cell begins like a formula, but for numbers and paths of ours."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n", restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {name: plain_cell(value) if name in ("source", "group") else value for name, value in row.items()}
        )
    return text.getvalue()
