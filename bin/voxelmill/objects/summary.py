"""What is said about a sample's objects as a whole: counts, percentiles, histograms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from voxelmill.grid import LabelGrid
from voxelmill.objects.columns import MEASURES, SKELETON, Column, columns_of, plane_axis
from voxelmill.objects.tables import stream, suffix

BINS = 50
"""Most bins of a histogram."""

POWERS = ("", "", "²", "³")
DIAMETER = "equivalent_diameter"
LABELS = {
    "volume": "Volume",
    "mean_thickness": "Mean thickness",
    "tortuosity": "Tortuosity",
    "branches": "Branches",
    DIAMETER: "Equivalent diameter",
    "surface": "Surface",
    "perimeter": "Perimeter",
    "sphericity": "Sphericity",
    "circularity": "Circularity",
    "axis_1": "First axis",
    "axis_2": "Second axis",
    "axis_3": "Third axis",
    "elongation": "Elongation",
    "flatness": "Flatness",
    "neighbours": "Neighbours",
    "contact_area": "Contact area",
    "contact_length": "Contact length",
}
"""Columns that are summed up beside the length, in their order, and what they are called."""

PERCENTILES = {"min": 0, "p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95, "max": 100}


@dataclass(frozen=True)
class Measured:
    """What is held of a sample's measured objects, in the order of their ids; lengths in micrometres, or voxels.

    Attributes
    ----------
    id, voxels : (n,) int64
    length : (n,) float64
        NaN where an object has none.
    branches : (n,) int32
        0 where no skeletons were measured.
    diameter : (n,) float64
        Of the ball, or disc, of equal volume; NaN where no shapes were measured.
    """

    id: np.ndarray
    voxels: np.ndarray
    length: np.ndarray
    branches: np.ndarray
    diameter: np.ndarray


def read_measured(objects: Path, length: str, unit: str) -> Measured:
    """The measured objects of ``<sample>.objects.parquet``."""
    end = suffix(unit)
    found = [
        read_column(objects, name) for name in ("id", "voxels", f"{length}_{end}", "branches", f"{DIAMETER}_{end}")
    ]
    numbers, voxels, lengths, branches, diameters = found
    assert numbers is not None and voxels is not None
    none = np.full(numbers.size, np.nan)
    return Measured(
        numbers,
        voxels,
        none if lengths is None else lengths,
        np.zeros(numbers.size, np.int32) if branches is None else branches,
        none if diameters is None else diameters,
    )


def read_column(objects: Path, name: str) -> np.ndarray | None:
    """A column of the measured objects of ``<sample>.objects.parquet``, null as NaN; None where there is none."""
    if name not in pq.read_schema(objects).names:
        return None
    found = []
    for table in stream([objects], [name, "measured"]):
        values = table.filter(table["measured"])[name]
        found.append((pc.fill_null(values, np.nan) if pa.types.is_floating(values.type) else values).to_numpy())
    return np.concatenate(found or [np.empty(0, np.int64)])


def size_of(diameters: np.ndarray, power: int) -> dict[str, float] | None:
    """D10, D50 and D90: the diameters below which 10, 50 and 90 % of the volume lie, an object lying at its diameter.

    Parameters
    ----------
    diameters : (n,) float64
        Of balls, or discs, of equal volume; those that are NaN do not count.
    power : int
        3 for volumes, 2 for the areas of an image of one plane.
    """
    ordered = np.sort(diameters[np.isfinite(diameters)])
    if not ordered.size:
        return None
    share = np.cumsum((ordered / ordered[-1]) ** power)
    places = np.searchsorted(share, np.array([0.1, 0.5, 0.9]) * share[-1])
    return dict(zip(("d10", "d50", "d90"), ordered[places].tolist(), strict=True))


def summarise(
    grid: LabelGrid,
    linked: Mapping[str, Any],
    objects: Path,
    measured: Measured,
    length: str,
    measures: Sequence[str] = MEASURES,
) -> dict[str, Any]:
    """Contents of ``<sample>.objects.json`` without the gallery.

    Quantities are those of the measured objects. What belongs to measures that were not taken is None, or 0.

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
    measures : sequence of str
        What was measured.
    """
    plane = plane_axis(grid.shape) is not None
    unit = "px" if grid.unit == "pixel" else "µm"
    quantities = []
    for label, column in quantities_of(length, measures, plane):
        name = column.title(suffix(grid.unit))
        values = read_column(objects, name)
        values = np.empty(0) if values is None else values[np.isfinite(values)]
        if values.size:
            of = f"{unit}{POWERS[column.power]}" if column.power else ""
            quantities.append({"name": name, "label": label, "unit": of, **describe(values)})
    empty, resolution = (read_column(objects, name) for name in ("skeleton_empty", "length_resolution"))
    summary = {
        "sample": grid.sample,
        "unit": grid.unit,
        "measures": list(measures),
        "length": length if SKELETON in measures else None,
        "objects": linked["objects"],
        "measured": int(measured.id.size),
        "components": linked["components"],
        "dropped": linked["dropped"],
        "dropped_voxels": linked["dropped_voxels"],
        "skeleton_empty": 0 if empty is None else int(np.count_nonzero(empty)),
        "reduced_resolution": 0 if resolution is None else int(np.count_nonzero(resolution > 1)),
        "classes": count_classes(grid, objects),
        "sizes": size_of(measured.diameter, 2 if plane else 3),
        "quantities": quantities,
    }
    return summary | {"warnings": warnings(summary)}


def quantities_of(length: str, measures: Sequence[str], plane: bool) -> list[tuple[str, Column]]:
    """Labels and columns of the quantities that are summed up, in their order."""
    columns = {column.name: column for column in (Column("volume", pa.float64(), 3), *columns_of(measures, plane))}
    labels = {length: "Length", **LABELS}
    return [(label, columns[name]) for name, label in labels.items() if name in columns]


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
        edges = np.linspace(low, high, 1 + int(np.clip(bins(values), 1, BINS)))
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


def bins(values: np.ndarray) -> float:
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
