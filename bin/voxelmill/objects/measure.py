"""MEASURE_OBJECTS: skeleton, lengths, thickness and profile of every object of a task.

Objects are taken in the order of their ids, a window of them at a time. Those of a window that lie near each other are
cut out of one read of the labels and of the image. An object whose box is too large for the memory budget is measured
on a grid of half, a quarter, ... of the resolution.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from voxelmill.files import atomic_path
from voxelmill.grid import LabelGrid
from voxelmill.image import Box, StoredImage, cut_box, slices, staged_image
from voxelmill.objects.skeleton import Traced, paths
from voxelmill.objects.thinning import Skeleton, skeletonize
from voxelmill.rows import MeasureRow, read_rows
from voxelmill.store import CHUNK, damaged_labels, read_labels
from voxelmill.task import Task

WINDOW = 4096
"""Objects whose skeletons are held and measured together."""

READ_BYTES = 2**28
"""What one read of labels and image may take, unless a single object needs more."""

READ_COST = 2**20
"""What a read costs on top of what it decodes, in decoded bytes that take as long."""

PROGRAM_BYTES = 600_000_000
"""What a task takes before it holds any object."""

BYTES_PER_OBJECT_VOXEL = 24
"""Thinning holds the places of an object's voxels three times."""

TILE = 4 * CHUNK
"""Side of what is read at once of an object that is measured at lower resolution; rounded up to whole coarse voxels."""

SECONDS_BETWEEN_LINES = 15.0


@dataclass(frozen=True)
class Objects:
    """Rows of ``<sample>.linked.parquet`` that are to be measured, in the order of their ids.

    Attributes
    ----------
    ids : (n,) int64
    boxes : (n, 3, 2) int64
        Half-open, z, y, x.
    voxels : (n,) int64
    """

    ids: np.ndarray
    boxes: np.ndarray
    voxels: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, chosen: slice | np.ndarray) -> Objects:
        return Objects(self.ids[chosen], self.boxes[chosen], self.voxels[chosen])


@dataclass(frozen=True)
class Source:
    """Where the voxels of a sample's objects come from.

    Attributes
    ----------
    grid : LabelGrid
    labels : zarr.Array
        Instance labels (z, y, x).
    image : StoredImage
    length : str
        The path that profiles follow: ``longest_path`` or ``longest_branch``.
    """

    grid: LabelGrid
    labels: zarr.Array
    image: StoredImage
    length: str

    @property
    def channels(self) -> int:
        return len(self.image.info.array.channels)

    @property
    def flat(self) -> tuple[bool, ...]:
        """Axes of a single plane, unless all are."""
        return tuple(n == 1 < max(self.grid.shape) for n in self.grid.shape)

    def spacing(self, factor: int) -> tuple[float, ...]:
        """Of a grid so many times coarser than the labels; a single plane stays one."""
        return tuple(s if flat else s * factor for s, flat in zip(self.grid.spacing, self.flat, strict=True))

    @property
    def bytes_per_voxel(self) -> int:
        """Of labels and one channel of the image."""
        return int(self.labels.dtype.itemsize + np.dtype(self.image.info.dtype).itemsize)

    def read_labels(self, box: Box) -> np.ndarray:
        return read_labels(self.labels, box, self.grid.sample)


@dataclass(frozen=True)
class Crop:
    """What is known of one object once its voxels have been read.

    Attributes
    ----------
    skeleton : Skeleton
        Voxels are indices in the object's box.
    values : (channels, n) float64
        Raw values of the image at the skeleton's voxels.
    """

    skeleton: Skeleton
    values: np.ndarray


class Progress:
    """Lines in the task's log: objects done, speed, time left."""

    def __init__(self, objects: int):
        self.objects, self.done = objects, 0
        self.started = self.shown = time.monotonic()

    def advance(self, objects: int) -> None:
        self.done += objects
        now = time.monotonic()
        if now - self.shown > SECONDS_BETWEEN_LINES or self.done == self.objects:
            self.shown = now
            speed = self.done / max(now - self.started, 1e-3)
            print(
                f"{self.done} of {self.objects} objects, {speed:.0f} objects/s, "
                f"{(self.objects - self.done) / speed:.0f} s left",
                file=sys.stderr,
                flush=True,
            )


def measure_task(
    batch: str, number: int, samples: Sequence[str], folder: Path, length: str, memory_budget: int, record: Task
) -> None:
    """Measure the objects of one task.

    Parameters
    ----------
    batch : str
    number : int
        Task in ``<batch>.measures.csv``.
    samples : sequence of str
        Of the batch, in the order of the label stores ``labels/1``, ``labels/2``, ...
    folder : Path
        Holds the table, ``<sample>.linked.parquet``, ``<sample>.grid.json``, ``<sample>.image.json``, ``stores/`` and
        ``labels/``; gets ``<sample>/<sample>.m<task>.measures.parquet``.
    length : str
        The path that profiles follow: ``longest_path`` or ``longest_branch``.
    memory_budget : int
        Bytes that the task may use.
    record : Task
    """
    rows = [row for row in read_rows(folder / f"{batch}.measures.csv", MeasureRow) if row.task == number]
    found = [read_objects(folder / f"{row.sample}.linked.parquet", row.first, row.last) for row in rows]
    compile_loops()
    progress = Progress(sum(map(len, found)))
    for row, objects in zip(rows, found, strict=True):
        source = open_source(row.sample, samples.index(row.sample) + 1, folder, length)
        record.counts[row.sample] = {"objects": len(objects), "skeleton_empty": 0, "reduced_resolution": 0}
        out = folder / row.sample / f"{row.sample}.m{number}.measures.parquet"
        with atomic_path(out) as path, pq.ParquetWriter(path, measures_schema(source.channels)) as writer:
            for start in range(0, len(objects), WINDOW):
                table = measure_window(source, objects[start : start + WINDOW], memory_budget, progress)
                writer.write_table(table)
                counts = record.counts[row.sample]
                counts["skeleton_empty"] += int(np.count_nonzero(table["skeleton_empty"].to_numpy()))
                counts["reduced_resolution"] += int(np.count_nonzero(table["length_resolution"].to_numpy() > 1))


def read_objects(path: Path, first: int, last: int) -> Objects:
    """Rows [first, last) of a table of linked objects, without those that are not to be measured."""
    bounds = [f"{axis}_{bound}" for axis in "zyx" for bound in ("start", "stop")]
    columns = ["id", "voxels", *bounds, "measured"]
    tables = []
    with pq.ParquetFile(path) as file:
        begin = 0
        for group in range(file.num_row_groups):
            end = begin + file.metadata.row_group(group).num_rows
            if begin < last and end > first:
                table = file.read_row_group(group, columns=columns)
                tables.append(table.slice(max(first - begin, 0), min(last, end) - max(first, begin)))
            begin = end
        table = pa.concat_tables(tables) if tables else file.schema_arrow.empty_table().select(columns)
    table = table.filter(table["measured"])
    boxes = np.stack([table[name].to_numpy() for name in bounds], axis=1).reshape(-1, 3, 2)
    return Objects(table["id"].to_numpy(), boxes, table["voxels"].to_numpy())


def open_source(sample: str, position: int, folder: Path, length: str) -> Source:
    """The grid, the labels and the image of a sample in a task's folder."""
    labels = folder / "labels" / str(position) / "labels.ome.zarr"
    return Source(
        LabelGrid.load(folder / f"{sample}.grid.json"),
        zarr.open_array(str(labels), path="instances/0", mode="r"),
        staged_image(sample, folder),
        length,
    )


def compile_loops() -> None:
    """Compile the loops of thinning before the first object, and say how long it took."""
    start = time.monotonic()
    skeletonize(np.ones((1, 1, 1), dtype=bool), (1.0, 1.0, 1.0))
    print(f"loops compiled in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)


def measures_schema(channels: int) -> pa.Schema:
    """Columns of ``<sample>.m<task>.measures.parquet``; lengths in the unit of the grid's spacing."""
    return pa.schema(
        [
            pa.field("id", pa.int64(), False),
            ("longest_path", pa.float64()),
            ("longest_branch", pa.float64()),
            ("branches", pa.int32()),
            ("tortuosity", pa.float64()),
            ("mean_thickness", pa.float64()),
            ("skeleton_voxels", pa.int64()),
            ("skeleton_empty", pa.bool_()),
            ("length_resolution", pa.int32()),
            ("profile_distance", pa.list_(pa.float64())),
            *((f"profile_{axis}", pa.list_(pa.int32())) for axis in "zyx"),
            *((f"profile_c{c}", pa.list_(pa.float64())) for c in range(channels)),
        ]
    )


def measure_window(source: Source, objects: Objects, memory_budget: int, progress: Progress) -> pa.Table:
    """Measures of a window of objects, in their order."""
    limit = max(memory_budget - PROGRAM_BYTES, memory_budget // 4)
    factors = np.array(
        [coarseness(box, n, source, limit) for box, n in zip(objects.boxes, objects.voxels, strict=True)]
    )
    fine = objects[factors == 1]
    tables = []
    if len(fine):
        crops = read_crops(source, fine, min(READ_BYTES, limit // 2), progress)
        tables.append(fine_measures(source, fine, crops))
    for k in np.flatnonzero(factors > 1):
        tables.append(coarse_measures(source, objects[k : k + 1], int(factors[k])))
        progress.advance(1)
    table = pa.concat_tables(tables)
    return table.take(pa.array(np.argsort(table["id"].to_numpy()))).combine_chunks()


def coarseness(box: np.ndarray, voxels: int, source: Source, limit: int) -> int:
    """How much coarser than the labels an object is measured: the smallest power of two that fits the limit.

    Parameters
    ----------
    box : (3, 2) int64
    voxels : int
    source : Source
    limit : int
        Bytes.
    """
    sides = box[:, 1] - box[:, 0]
    for factor in itertools.accumulate(itertools.repeat(2), int.__mul__, initial=1):
        cells = int(np.prod(-(-sides // factor)))
        # the mask, the same with a border, and at full resolution what it is cut from
        used = (
            cells * (2 + (source.bytes_per_voxel if factor == 1 else 0)) + min(voxels, cells) * BYTES_PER_OBJECT_VOXEL
        )
        if used <= limit or cells == 1:
            return factor
    raise AssertionError


def read_crops(source: Source, objects: Objects, limit: int, progress: Progress) -> list[Crop]:
    """Thin every object and read the image at its skeleton, with as few reads as possible.

    Raises
    ------
    TemporaryError
        Where the labels do not hold what the table of objects says.
    """
    crops: list[Crop | None] = [None] * len(objects)
    sizes = [
        (np.array(source.labels.chunks), source.labels.dtype.itemsize),
        (np.array(source.image.chunks), np.dtype(source.image.info.dtype).itemsize * source.channels),
    ]
    for bounds, members in shared_reads(objects.boxes, sizes, limit):
        box, corner = as_box(bounds), bounds[:, 0]
        labels = source.read_labels(box)
        skeletons = []
        for k in members:
            mask = labels[slices(objects.boxes[k] - corner[:, None])] == int(objects.ids[k])
            check_voxels(source.grid.sample, objects, k, int(np.count_nonzero(mask)))
            skeletons.append(skeletonize(mask, source.grid.spacing, source.flat))
        del labels
        values = [np.empty((source.channels, len(skeleton.voxels))) for skeleton in skeletons]
        for channel in range(source.channels):
            image = source.image.read(channel, box)
            for k, skeleton, found in zip(members, skeletons, values, strict=True):
                found[channel] = image[tuple((skeleton.voxels + (objects.boxes[k, :, 0] - corner)).T)]
        for k, skeleton, found in zip(members, skeletons, values, strict=True):
            crops[k] = Crop(skeleton, found)
        progress.advance(len(members))
    return [crop for crop in crops if crop is not None]


def shared_reads(
    boxes: np.ndarray, arrays: Sequence[tuple[np.ndarray, int]], limit: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Group boxes so that one read serves several.

    Cubes of space are halved again and again. The boxes that begin in a cube are read together where that costs no more
    than to read the groups in its parts, and stays within the limit. What a read costs are the chunks that it decodes.

    Parameters
    ----------
    boxes : (n, 3, 2) int64
        At least one.
    arrays : sequence of (sides of a chunk, bytes per voxel)
        What is read.
    limit : int
        Bytes of one read.

    Returns
    -------
    list of (bounds, members)
        (3, 2) int64, and rows of ``boxes``.
    """

    def cost_of(box: np.ndarray) -> int:
        return sum(
            READ_COST + int(np.prod((-(-box[:, 1] // chunk) - box[:, 0] // chunk) * chunk)) * size
            for chunk, size in arrays
        )

    def group(members: np.ndarray, side: int) -> tuple[int, list[tuple[np.ndarray, np.ndarray]]]:
        box = np.stack([boxes[members, :, 0].min(axis=0), boxes[members, :, 1].max(axis=0)], axis=1)
        together = cost_of(box)
        if len(members) == 1:
            return together, [(box, members)]
        cell = np.arange(len(members)) if side < CHUNK else cells_of(boxes[members, :, 0] // side)
        parts = [group(members[cell == k], side // 2) for k in range(cell.max() + 1)]
        apart = sum(cost for cost, _ in parts)
        if together <= apart and int(np.prod(box[:, 1] - box[:, 0])) * sum(size for _, size in arrays) <= limit:
            return together, [(box, members)]
        return apart, [found for _, groups in parts for found in groups]

    side = 1 << int(boxes.max()).bit_length()
    return group(np.arange(len(boxes)), side)[1]


def cells_of(corners: np.ndarray) -> np.ndarray:
    """Number of the cell of every corner (n, 3), counted over those that occur."""
    return np.unique(corners, axis=0, return_inverse=True)[1].reshape(-1)


def as_box(bounds: np.ndarray) -> Box:
    return tuple((int(start), int(stop)) for start, stop in bounds)


def check_voxels(sample: str, objects: Objects, k: int, found: int) -> None:
    if found != objects.voxels[k]:
        raise damaged_labels(
            sample, f"object {objects.ids[k]} has {found} voxels in the labels and {objects.voxels[k]} in the table"
        )


def fine_measures(source: Source, objects: Objects, crops: Sequence[Crop]) -> pa.Table:
    """Table of objects that were measured on the labels' own grid."""
    skeletons = [crop.skeleton for crop in crops]
    voxels = np.concatenate([s.voxels + box[:, 0] for s, box in zip(skeletons, objects.boxes, strict=True)])
    values = np.concatenate([crop.values for crop in crops], axis=1)
    return shape_table(source, objects.ids, skeletons, 1, lambda at: (voxels[at], values[:, at]))


def shape_table(
    source: Source,
    ids: np.ndarray,
    skeletons: Sequence[Skeleton],
    factor: int,
    profile: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> pa.Table:
    """Columns of `measures_schema`.

    Parameters
    ----------
    source : Source
    ids : (n,) int64
    skeletons : sequence of Skeleton
    factor : int
        How much coarser than the labels the skeletons' grid is.
    profile : callable
        Rows of all skeletons' voxels -> voxels (m, 3) of the sample, and raw values (channels, m).
    """
    found = paths(skeletons, source.spacing(factor), source.flat)
    followed: Traced = getattr(found, source.length)
    sizes = np.array([len(skeleton.voxels) for skeleton in skeletons])
    starts = np.cumsum(sizes) - sizes
    thickness = 2 * np.add.reduceat(np.concatenate([s.distances for s in skeletons]), starts) / sizes
    with np.errstate(invalid="ignore"):
        tortuosity = np.where(found.straight > 0, np.maximum(found.longest_path.length / found.straight, 1.0), 1.0)
    voxels, values = profile(followed.points)
    offsets = pa.array(followed.starts, pa.int32())

    def lists(flat_values: np.ndarray, kind: pa.DataType) -> pa.Array:
        return pa.ListArray.from_arrays(offsets, pa.array(flat_values, kind))

    columns = [
        ids,
        found.longest_path.length,
        found.longest_branch.length,
        found.branches,
        tortuosity,
        thickness,
        sizes,
        np.array([skeleton.empty for skeleton in skeletons]),
        np.full(len(ids), factor),
        lists(followed.along, pa.float64()),
        *(lists(axis, pa.int32()) for axis in voxels.T),
        *(lists(channel, pa.float64()) for channel in values),
    ]
    schema = measures_schema(len(values))
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def coarse_measures(source: Source, one: Objects, factor: int) -> pa.Table:
    """Table of one object that is measured on a coarser grid.

    The grid begins at the object's box; a coarse voxel belongs to the object if any of its voxels does. Lengths are
    those of the coarse grid. The profile is read at the object's voxel that is nearest to the centre of each coarse
    voxel on the path, the first in raster order of equally near ones.
    """
    box = one.boxes[0]
    sides = box[:, 1] - box[:, 0]
    coarse = np.zeros(-(-sides // factor), dtype=bool)
    step = -(-TILE // factor) * factor
    count = 0
    for tile in cut_box(as_box(box), (step,) * 3):
        mask = source.read_labels(tile) == int(one.ids[0])
        count += int(np.count_nonzero(mask))
        corner = (np.array(tile)[:, 0] - box[:, 0]) // factor
        pooled = pool(mask, factor)
        coarse[tuple(slice(c, c + n) for c, n in zip(corner, pooled.shape, strict=True))] = pooled
    check_voxels(source.grid.sample, one, 0, count)
    skeleton = skeletonize(coarse, source.spacing(factor), source.flat)
    del coarse

    def profile(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return coarse_profile(source, int(one.ids[0]), box, factor, skeleton.voxels[points])

    return shape_table(source, one.ids, [skeleton], factor, profile)


def pool(mask: np.ndarray, factor: int) -> np.ndarray:
    """Whether any voxel of each cube of ``factor`` voxels is set; cubes at the end may be cut off."""
    for axis in range(3):
        mask = np.logical_or.reduceat(mask, np.arange(0, mask.shape[axis], factor), axis=axis)
    return mask


def coarse_profile(
    source: Source, number: int, box: np.ndarray, factor: int, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The object's voxels nearest to the centres of coarse voxels, and the image there.

    Parameters
    ----------
    source : Source
    number : int
        The object's id.
    box : (3, 2) int64
    factor : int
    points : (n, 3) int64
        Coarse voxels, each of which has a voxel of the object.

    Returns
    -------
    voxels : (n, 3) int64
    values : (channels, n) float64
    """
    voxels = np.empty_like(points)
    values = np.empty((source.channels, len(points)))
    per_tile = -(-TILE // factor)
    tiles, member = np.unique(points // per_tile, axis=0, return_inverse=True)
    for k in range(len(tiles)):
        here = np.flatnonzero(member == k)
        low = box[:, 0] + points[here].min(axis=0) * factor
        high = np.minimum(box[:, 0] + (points[here].max(axis=0) + 1) * factor, box[:, 1])
        area = as_box(np.stack([low, high], axis=1))
        mask = source.read_labels(area) == number
        for i in here:
            corner = box[:, 0] + points[i] * factor - low
            cube = np.argwhere(mask[tuple(slice(c, c + factor) for c in corner)])
            way = (cube - (factor - 1) / 2) * source.grid.spacing
            voxels[i] = low + corner + cube[np.argmin(np.square(way).sum(axis=1))]
        for channel in range(source.channels):
            values[channel, here] = source.image.read(channel, area)[tuple((voxels[here] - low).T)]
    return voxels, values
