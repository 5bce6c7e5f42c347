"""The list of what a run publishes, with the digest of every file: ``outputs.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from voxelmill.report.collect import Run

FORMAT = 1
KINDS = {"labels.ome.zarr": "labels", ".labels.json": "class_volumes", "estimate.json": "estimate"}
"""Ending of a published path -> its kind. Everything else in the task records stays in the work folder."""

PLAN = {".plan.json": "plan"}
"""Published as well where the run ends with the plan."""


def outputs_list(run: Run, pages: Mapping[str, str]) -> dict[str, Any]:
    """Value of ``outputs.json``: published files and folders in the order of their paths.

    Each has its kind, its sample (None where it belongs to the run), its path relative to the results' folder and its
    SHA-256 (of a folder: see `voxelmill.files.sha256_tree`).

    Parameters
    ----------
    run : Run
        The tasks' records name their outputs.
    pages : mapping
        Path -> SHA-256 of the report's own pages.
    """
    kinds = {**KINDS, **PLAN} if run.planned_only else KINDS
    samples = {sample.name for sample in run.samples}
    rows: dict[str, tuple[str, str | None, str]] = {path: ("report", None, digest) for path, digest in pages.items()}
    for record in run.records:
        for path, digest in record["outputs"].items():
            kind = next((kind for ending, kind in kinds.items() if path.endswith(ending)), None)
            if kind is not None:
                folder = PurePosixPath(path).parts[0]
                rows[path] = (kind, folder if folder in samples else None, digest)
    return {
        "format": FORMAT,
        "outputs": [
            {"kind": kind, "sample": sample, "path": path, "sha256": digest}
            for path, (kind, sample, digest) in sorted(rows.items())
        ],
    }
