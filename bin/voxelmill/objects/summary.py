"""What is said about a sample's objects as a whole: counts, percentiles, histograms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from voxelmill.grid import LabelGrid
from voxelmill.objects.tables import stream, suffix

BINS = 50
"""Most bins of a histogram."""

PERCENTILES = {"min": 0, "p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95, "max": 100}


@dataclass(frozen=True)
class Measured:
    """Columns of a sample's measured objects, in the order of their ids; lengths in micrometres, or voxels.

    A length, thickness or tortuosity that an object lacks is NaN.
    """

    id: np.ndarray
    voxels: np.ndarray
    volume: np.ndarray
    length: np.ndarray
    mean_thickness: np.ndarray
    tortuosity: np.ndarray
    branches: np.ndarray
    skeleton_empty: np.ndarray
    length_resolution: np.ndarray


def columns(length: str, unit: str) -> dict[str, str]:
    """Attribute of `Measured` -> column of the objects' table."""
    end = suffix(unit)
    return {
        "id": "id",
        "voxels": "voxels",
        "volume": f"volume_{end}3",
        "length": f"{length}_{end}",
        "mean_thickness": f"mean_thickness_{end}",
        "tortuosity": "tortuosity",
        "branches": "branches",
        "skeleton_empty": "skeleton_empty",
        "length_resolution": "length_resolution",
    }


def read_measured(objects: Path, length: str, unit: str) -> Measured:
    """The measured objects of ``<sample>.objects.parquet``."""
    names = columns(length, unit)
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for table in stream([objects], [*names.values(), "measured"]):
        rows = table.filter(table["measured"])
        for name, column in names.items():
            values = rows[column]
            found[name].append(
                (pc.fill_null(values, np.nan) if pa.types.is_floating(values.type) else values).to_numpy()
            )
    return Measured(**{name: np.concatenate(found.pop(name) or [np.empty(0, np.int64)]) for name in names})


def summarise(
    grid: LabelGrid, linked: Mapping[str, Any], objects: Path, measured: Measured, length: str
) -> dict[str, Any]:
    """Contents of ``<sample>.objects.json`` without the gallery.

    Quantities are those of the measured objects.

    Parameters
    ----------
    grid : LabelGrid
    linked : mapping
        Contents of ``<sample>.linked.json``.
    objects : Path
        ``<sample>.objects.parquet``
    measured : Measured
    length : str
        ``longest_path`` or ``longest_branch``.
    """
    unit = "px" if grid.unit == "pixel" else "µm"
    names = columns(length, grid.unit)
    shown = {
        "length": ("Length", unit),
        "volume": ("Volume", f"{unit}³"),
        "mean_thickness": ("Mean thickness", unit),
        "tortuosity": ("Tortuosity", ""),
        "branches": ("Branches", ""),
    }
    quantities = []
    for name, (label, of) in shown.items():
        values = getattr(measured, name)
        values = values[np.isfinite(values)]
        if values.size:
            quantities.append({"name": names[name], "label": label, "unit": of, **describe(values)})
    summary = {
        "sample": grid.sample,
        "unit": grid.unit,
        "length": length,
        "objects": linked["objects"],
        "measured": int(measured.id.size),
        "components": linked["components"],
        "dropped": linked["dropped"],
        "dropped_voxels": linked["dropped_voxels"],
        "skeleton_empty": int(np.count_nonzero(measured.skeleton_empty)),
        "reduced_resolution": int(np.count_nonzero(measured.length_resolution > 1)),
        "classes": count_classes(grid, objects),
        "quantities": quantities,
    }
    return summary | {"warnings": warnings(summary)}


def describe(values: np.ndarray) -> dict[str, Any]:
    """Number, mean, population standard deviation, percentiles (linear interpolation) and histogram of finite values.

    Whole numbers get bins around whole numbers, other values Freedman's and Diaconis' or Sturges' bins, whichever are
    more, both at most `BINS`.
    """
    values = values.astype(np.int64) if values.dtype.kind in "iu" else values
    low, high = values.min(), values.max()
    if values.dtype.kind == "i":
        step = -(-int(high - low + 1) // BINS)
        edges = np.arange(low, high + step + 1, step)[: -(-int(high - low + 1) // step) + 1] - 0.5
    elif high - low <= 1e-9 * max(abs(low), abs(high)):
        # equal but for rounding: one bin around them
        room = 0.05 * abs(low) or 0.5
        edges = np.array([low - room, high + room])
    else:
        edges = np.linspace(low, high, 1 + int(np.clip(_bins(values), 1, BINS)))
    counts, _ = np.histogram(values, edges)
    percentiles = np.percentile(values, list(PERCENTILES.values())).tolist()
    return {
        "n": int(values.size),
        "mean": float(values.mean()),
        "sd": float(values.std()),
        **dict(zip(PERCENTILES, percentiles, strict=True)),
        "edges": edges.tolist(),
        "counts": counts.tolist(),
    }


def _bins(values: np.ndarray) -> float:
    """NumPy's rule ``auto``, as a number: its edges need not fit into memory where one value lies far off."""
    n, spread = values.size, float(np.subtract(*np.percentile(values, (75, 25))))
    sturges = np.log2(n) + 1
    return float(np.ceil(max(sturges, np.ptp(values) / (2 * spread / n ** (1 / 3)) if spread else 0)))


def count_classes(grid: LabelGrid, objects: Path) -> list[dict[str, Any]]:
    """Objects and their voxels of every class."""
    number: Counter[str] = Counter()
    voxels: Counter[str] = Counter()
    for table in stream([objects], ["class", "voxels"]):
        sums = table.group_by("class").aggregate([("voxels", "sum"), ("voxels", "count")])
        for row in sums.to_pylist():
            number[row["class"]] += row["voxels_count"]
            voxels[row["class"]] += row["voxels_sum"]
    names = {value: grid.label_names[str(value)] for value in grid.values}
    return [{"value": v, "name": name, "objects": number[name], "voxels": voxels[name]} for v, name in names.items()]


def warnings(summary: Mapping[str, Any]) -> list[str]:
    """What a reader must know before using the numbers."""
    objects, measured = summary["objects"], summary["measured"]
    told = []
    if objects and not measured:
        told.append(f"none of the {objects} objects is measured: all touch the border of the image")
    if summary["skeleton_empty"]:
        told.append(
            f"{summary['skeleton_empty']} of {measured} measured objects have no skeleton: they count as length 0"
        )
    if summary["reduced_resolution"]:
        told.append(
            f"{summary['reduced_resolution']} of {measured} measured objects are so large that their lengths were "
            "taken at a lower resolution"
        )
    return told
