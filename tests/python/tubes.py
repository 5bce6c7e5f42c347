"""Tubes of known length, alone or many in one volume, and the files of a task: for tests and benchmark of the objects.

Lengths are in units of the spacing (z, y, x). A tube is all voxels whose centre is within its radius of the centre
line, so that it ends in half a ball; its length is that of the centre line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import ndimage

from voxelmill.grid import LabelGrid
from voxelmill.image import ArrayLocation, ImageInfo, Intensity, cut_box, slices, whole
from voxelmill.phantom import Curve, Tube, draw
from voxelmill.store import create_array, create_label_levels, write_label_shard

STEP = 0.5
TURN = 0.06
SMOOTHNESS = 6.0
SIDE_BRANCH = 14.0


@dataclass(frozen=True)
class Drawn:
    """One tube in its own box.

    Attributes
    ----------
    mask : (z, y, x) bool
        With a margin of background of at least one voxel.
    length : float
        Of the centre line, without side branches.
    """

    mask: np.ndarray
    length: float


def tube(
    rng: np.random.Generator,
    length: float,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    *,
    radius: float = 3.0,
    curved: bool = True,
    branch: bool = False,
) -> Drawn:
    """A tube in a random direction.

    Parameters
    ----------
    rng : numpy.random.Generator
    length, radius : float
    spacing : (3,) float
    curved : bool
        Whether it turns on its way; straight else.
    branch : bool
        Whether a branch of 14 units and two thirds of the radius leaves its middle by 40 to 90 degrees.
    """
    trunk = centre_line(rng, length, curved)
    lines = [trunk]
    if branch:
        middle = len(trunk) // 2
        tangent = _unit(trunk[middle + 1] - trunk[middle - 1])
        sideways = _unit(np.cross(tangent, rng.normal(size=3)))
        angle = math.radians(rng.uniform(40, 90))
        heading = math.cos(angle) * tangent + math.sin(angle) * sideways
        lines.append(trunk[middle] + np.arange(0, SIDE_BRANCH, STEP)[:, None] * heading)
    sides = np.asarray(spacing, dtype=np.float64)
    points = np.concatenate(lines)
    corner = points.min(axis=0) - radius - (1 + rng.random(3)) * sides
    shape = np.ceil((points.max(axis=0) + radius + sides - corner) / sides).astype(int) + 1
    curves = tuple(
        Curve(line - corner, np.full(len(line), r), np.ones(len(line)))
        for line, r in zip(lines, (radius, 2 * radius / 3), strict=False)
    )
    instances, _ = draw([Tube(1, curves)], tuple(shape), sides)
    return Drawn(instances > 0, curves[0].length_um)


def centre_line(rng: np.random.Generator, length: float, curved: bool) -> np.ndarray:
    """Points (n, 3) from the origin in a random direction, half a unit apart."""
    steps = round(length / STEP)
    headings = np.repeat(_unit(rng.normal(size=3))[None], steps, axis=0)
    if curved:
        turns = ndimage.gaussian_filter1d(rng.normal(size=(steps, 3)), SMOOTHNESS / STEP, axis=0, mode="nearest")
        headings = _unit(headings + TURN * STEP * np.cumsum(turns / turns.std(), axis=0))
    return np.concatenate([np.zeros((1, 3)), STEP * np.cumsum(headings, axis=0)])


def volume(tubes: Sequence[Drawn], dtype: str = "uint16") -> np.ndarray:
    """Tubes side by side in one volume of labels (z, y, x); tube k has the label k + 1.

    They fill rows along x, and rows fill layers, thinner ones first.
    """
    side = math.ceil(sum(drawn.mask.size for drawn in tubes) ** (1 / 3))
    shapes = np.array([drawn.mask.shape for drawn in tubes])
    corners = np.empty_like(shapes)
    z = y = x = row = layer = 0
    for k in np.lexsort((shapes[:, 1], shapes[:, 0] // 8)):
        depth, height, width = shapes[k]
        if x and x + width > side:
            y, x, row = y + row, 0, 0
        if y and y + height > side:
            z, y, x, row, layer = z + layer, 0, 0, 0, 0
        corners[k] = z, y, x
        x, row, layer = x + width, max(row, height), max(layer, depth)
    labels = np.zeros((corners + shapes).max(axis=0), dtype=dtype)
    for k, drawn in enumerate(tubes):
        labels[tuple(map(slice, corners[k], corners[k] + shapes[k]))][drawn.mask] = k + 1
    return labels


def stage(
    folder: Path,
    sample: str,
    labels: np.ndarray,
    image: np.ndarray,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    *,
    unit: str = "um",
    shard: Sequence[int] = (64, 64, 64),
    position: int = 1,
    unmeasured: Sequence[int] = (),
) -> pa.Table:
    """Write what a task of MEASURE_OBJECTS finds of one sample.

    Parameters
    ----------
    folder : Path
    sample : str
    labels : (z, y, x) unsigned integers
        Instances.
    image : (c, z, y, x)
    spacing : (3,) float
    unit : str
    shard : (3,) int
    position : int
        Of the sample's label store in the batch, from 1.
    unmeasured : sequence of int
        Ids of objects that are kept but not to be measured.

    Returns
    -------
    pyarrow.Table
        The linked objects, without columns that are not read.
    """
    shape = labels.shape
    grid = LabelGrid(
        sample=sample, shape=shape, spacing=tuple(spacing), origin=(0.0, 0.0, 0.0), unit=unit, shard=tuple(shard),
        cuts=tuple((0, n) for n in shape), reached=(0,), values=(1,), label_names={"0": "background", "1": "tube"},
        windows=0, kind="instances", dtype=labels.dtype.name,
    )  # fmt: skip
    info = ImageInfo(
        sample=sample, shape=shape, dtype=image.dtype.name, spacing=tuple(spacing), unit=unit, spacing_origin="",
        format="TIFF", files=(f"{sample}.tif",), array=ArrayLocation("0", "czyx", tuple(range(len(image)))),
        intensity=(Intensity(),) * len(image), flip="none", nonzero_box=whole(shape), statistics=(),
        content_sha256="c" * 64,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    grid.save(folder / f"{sample}.grid.json")
    info.save(folder / f"{sample}.image.json")
    store = folder / "stores" / f"{sample}.image.zarr" / "0"
    create_array(store, image.shape, image.dtype.name, (1, *shard), "czyx")[:] = image
    levels = create_label_levels(
        folder / "labels" / str(position) / "labels.ome.zarr" / "instances", shape, shard, labels.dtype.name
    )
    for box in cut_box(whole(shape), shard):
        write_label_shard(levels, box, labels[slices(box)])
    counts = np.bincount(labels.ravel())
    rows = [
        {"id": k + 1, "voxels": int(counts[k + 1]), "measured": k + 1 not in unmeasured}
        | {f"{axis}_start": int(at.start) for axis, at in zip("zyx", place, strict=True)}
        | {f"{axis}_stop": int(at.stop) for axis, at in zip("zyx", place, strict=True)}
        for k, place in enumerate(ndimage.find_objects(labels))
        if place is not None
    ]
    bounds = [(f"{axis}_{bound}", pa.int64()) for axis in "zyx" for bound in ("start", "stop")]
    table = pa.Table.from_pylist(
        rows, pa.schema([("id", pa.int64()), ("voxels", pa.int64()), *bounds, ("measured", pa.bool_())])
    )
    pq.write_table(table, folder / f"{sample}.linked.parquet", row_group_size=512)
    return table


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
