"""The list of what a run publishes, with the digest of every file: ``outputs.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from voxelmill.report.collect import Run

FORMAT = 1
KINDS = {
    "report.html": "report",
    "report/*.html": "report",
    "params.json": "params",
    "check/samples.json": "samples",
    "check/estimate.json": "estimate",
    "*/labels.ome.zarr": "labels",
    "*/*.labels.json": "class_volumes",
}
"""Pattern of a path in the tasks' records -> kind. What fits none stays in the work folder."""

PLAN = {"*/*.plan.json": "plan"}
"""Published as well where the run ends with the plan."""

RUN = "pipeline_info"
"""Folder of what belongs to the run; the tasks have it in their working folder or in ``check``."""


def outputs_list(run: Run, own: Mapping[str, str]) -> dict[str, Any]:
    """Value of ``outputs.json``: published files and folders in the order of their paths.

    Each has its kind, its sample (None where it belongs to the run), its path relative to the results' folder and its
    SHA-256 (of a folder: see `voxelmill.files.sha256_tree`).

    Parameters
    ----------
    run : Run
        The tasks' records name their outputs.
    own : mapping
        Path -> SHA-256 of what the report's task publishes itself.
    """
    kinds = {**KINDS, **PLAN} if run.planned_only else KINDS
    samples = {sample.name for sample in run.samples}
    rows = []
    for outputs in (own, *(record["outputs"] for record in run.records)):
        for name, digest in outputs.items():
            path = PurePosixPath(name)
            kind = next((kind for pattern, kind in kinds.items() if path.match(pattern)), None)
            if kind is not None:
                sample = path.parts[0] if path.parts[0] in samples else None
                rows.append({"kind": kind, "sample": sample, "path": published(path), "sha256": digest})
    return {"format": FORMAT, "outputs": sorted(rows, key=lambda row: str(row["path"]))}


def published(path: PurePosixPath) -> str:
    """Path relative to the results' folder."""
    of_run = path.parts[0] in ("check", "params.json")
    return str(PurePosixPath(RUN, path.name) if of_run else path)
