"""The lists of what a run publishes: ``outputs.json``, with their kind, and the checksum of every file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    "*/probabilities.ome.zarr": "probabilities",
    "*/patches/*.tif": "patch",
    "*/patches/*.json": "patch",
    "*/*.labels.json": "class_volumes",
    "*/*.label_raw.*": "label_raw",
    "*/*.label_binary.*": "label_binary",
    "*/*.label_instances.*": "label_instances",
    "*/*.label_outlines.*": "label_outlines",
    "*/*.objects.csv": "objects",
    "*/*.objects.parquet": "objects",
    "*/*.profiles.parquet": "profiles",
    "*/*.axons.json": "axons",
    "*/*.lengths.png": "chart",
    "*/*.lengths.svg": "chart",
    "*/*.sizes.png": "chart",
    "*/*.sizes.svg": "chart",
    "objects.csv": "cohort_objects",
    "objects.parquet": "cohort_objects",
    "lengths_by_group.png": "cohort_chart",
    "lengths_by_group.svg": "cohort_chart",
    "sizes_by_group.png": "cohort_chart",
    "sizes_by_group.svg": "cohort_chart",
}
"""Pattern of a path in the tasks' records -> kind. What fits none stays in the work folder."""

PLAN = {"*/*.plan.json": "plan"}
"""Published as well where the run ends with the plan."""

RUN = "pipeline_info"
"""Folder of what belongs to the run; the tasks have it in their working folder or in ``check``."""

CHECKSUMS = f"{RUN}/outputs.sha256"


@dataclass(frozen=True)
class Checksum:
    """SHA-256 (hex) and size of a published file."""

    sha256: str
    bytes: int


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
    samples = {sample.name for sample in run.samples}
    rows = []
    for outputs in (own, *(record["outputs"] for record in run.records)):
        for name, digest in outputs.items():
            path = PurePosixPath(name)
            kind = kind_of(path, run.planned_only)
            if kind is not None:
                sample = path.parts[0] if path.parts[0] in samples else None
                rows.append({"kind": kind, "sample": sample, "path": published(path), "sha256": digest})
    return {"format": FORMAT, "outputs": sorted(rows, key=lambda row: str(row["path"]))}


def kind_of(path: PurePosixPath, planned_only: bool) -> str | None:
    """Kind of a path in the tasks' records; None for what is not published."""
    kinds = {**KINDS, **PLAN} if planned_only else KINDS
    return next((kind for pattern, kind in kinds.items() if path.match(pattern)), None)


def published_files(run: Run, own: Mapping[str, Checksum]) -> dict[str, Checksum]:
    """Checksum of every published file, also of those inside stores, by its path relative to the results' folder.

    Parameters
    ----------
    run : Run
        Each of the tasks' records has the files of its outputs.
    own : mapping
        Path -> checksum of what the report's task publishes itself.
    """
    found = {published(PurePosixPath(name)): checksum for name, checksum in own.items()}
    for record in run.records:
        roots = {PurePosixPath(name) for name in record["outputs"]}
        roots = {root for root in roots if kind_of(root, run.planned_only) is not None}
        for name, value in record.get("files", {}).items():
            path = PurePosixPath(name)
            if not roots.isdisjoint((path, *path.parents)):
                found[published(path)] = Checksum(value["sha256"], value["bytes"])
    return dict(sorted(found.items()))


def checksum_lines(files: Mapping[str, Checksum]) -> str:
    """What ``sha256sum --check`` reads in the results' folder."""
    return "".join(f"{checksum.sha256}  {path}\n" for path, checksum in files.items())


def published(path: PurePosixPath) -> str:
    """Path relative to the results' folder."""
    of_run = path.parts[0] in ("check", "params.json")
    return str(PurePosixPath(RUN, path.name) if of_run else path)
