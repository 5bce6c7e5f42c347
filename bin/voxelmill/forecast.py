"""What a run will take: batches of small samples, disk, and the table that the user sees first."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voxelmill.errors import VoxelmillError, WriteFailedError, several

SMALL_VOXELS = 2**21
BATCH_SAMPLES = 64
BATCH_VOXELS = 2**26

SUMS = ("windows", "seconds", "work_bytes", "output_bytes")
FIGURES = (*SUMS, "memory_bytes", "needs")
"""What is kept of a sample's estimate; a run has the sums, and the largest memory."""


@dataclass(frozen=True)
class Checked:
    """Outcome of the check.

    Attributes
    ----------
    samples : list of dict
        Entries of ``samples.json``.
    skipped : list of dict
        Id and error of the rows that were left out.
    estimates : dict
        Sample -> windows, seconds, work_bytes, output_bytes, memory_bytes, and the needs of its tasks by process.
    faults : tuple of VoxelmillError
        Why rows were left out.
    """

    samples: list[dict[str, Any]]
    skipped: list[dict[str, str]]
    estimates: dict[str, dict[str, Any]]
    faults: tuple[VoxelmillError, ...] = field(default=(), compare=False)

    @property
    def total(self) -> dict[str, float]:
        """Figures of the whole run: sums, and the largest memory of a task."""
        every = self.estimates.values()
        total = {name: sum(one[name] for one in every) for name in SUMS}
        return total | {"memory_bytes": max(one["memory_bytes"] for one in every)}


def extent(entry: Mapping[str, Any]) -> tuple[int, int, int]:
    """Voxels along z, y, x that a sample will be worked on."""
    box = entry["box"] or [(0, n) for n in entry["shape"][1:]]
    z, y, x = (stop - start for start, stop in box)
    return z, y, x


def name_batches(entries: Sequence[dict[str, Any]], *, separate: bool) -> None:
    """Put small samples into shared batches, in the order of the sheet; every other sample is a batch of its own.

    All samples of a batch start at the same stage. Samples that may be skipped are kept apart: a batch fails as a
    whole.
    """
    batches: list[list[dict[str, Any]]] = []
    last: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        entry["batch"] = entry["id"]
        voxels = math.prod(extent(entry))
        if separate or entry["in_place"] or voxels >= SMALL_VOXELS:
            continue
        batch = last.get(entry["start"], [])
        held = sum(math.prod(extent(other)) for other in batch)
        if not batch or len(batch) == BATCH_SAMPLES or held + voxels > BATCH_VOXELS:
            batch = last[entry["start"]] = []
            batches.append(batch)
        batch.append(entry)
    ids = {entry["id"].lower() for entry in entries}
    names = (name for number in range(1, 2 * len(entries) + 2) if (name := f"batch{number}") not in ids)
    for batch in batches:
        if len(batch) > 1:
            name = next(names)
            for entry in batch:
                entry["batch"] = name


def check_disk(folder: Path, needed: float) -> None:
    """Refuse work that the disk of the work folder cannot hold."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise WriteFailedError(
            f"the work folder needs {shown_bytes(needed)}, the disk has {shown_bytes(free)} free",
            file=folder,
            remedy="put the work folder on a larger disk (-work-dir), free space, or start with --box",
        )


def table(result: Checked) -> str:
    """The estimate, one sample a line, and the whole run below; then what is wrong with samples that are left out."""
    rows: list[tuple[str, ...]] = [("sample", "z, y, x", "spacing", "windows", "time", "memory", "work", "output")]
    for entry in result.samples:
        spacing = "pixel" if entry["unit"] == "pixel" else " ".join(f"{length:.4g}" for length in entry["spacing"])
        rows.append((entry["id"], " ".join(map(str, extent(entry))), spacing, *shown(result.estimates[entry["id"]])))
    if len(result.samples) > 1:
        rows.append((f"all {len(result.samples)}", "", "", *shown(result.total)))
    if not result.total["windows"]:
        # Nothing is predicted.
        rows = [(*row[:3], *row[4:]) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if result.faults:
        lines += ["", "left out (--on_bad_sample skip):", "", str(several(result.faults))]
    return "\n".join(lines)


def shown(figures: Mapping[str, float]) -> tuple[str, str, str, str, str]:
    """Cells of the table."""
    sizes = [shown_bytes(figures[name]) for name in ("memory_bytes", "work_bytes", "output_bytes")]
    return f"{figures['windows']:.0f}", shown_time(figures["seconds"]), sizes[0], sizes[1], sizes[2]


def shown_bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def shown_time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
