"""MEASURE_OBJECTS: skeleton, lengths, thickness, profile and shape of every object of a task.

Objects are taken in the order of their ids, a window of them at a time. Those of a window that lie near each other are
cut out of one read of the labels and of the image. An object whose box is too large for the memory budget is read tile
by tile: its shape is that at full resolution, its skeleton that on a grid of half, a quarter, ... of the resolution.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from voxelmill.files import atomic_path
from voxelmill.grid import LabelGrid
from voxelmill.image import Box, StoredImage, cut_box, slices, staged_image
from voxelmill.objects.columns import MEASURES, SHAPE, SKELETON, columns_of, plane_axis
from voxelmill.objects.shape import Counts, add, concatenate, count, measures_of
from voxelmill.objects.skeleton import Traced, paths
from voxelmill.objects.thinning import Skeleton, skeletonize
from voxelmill.rows import MeasureRow, read_rows
from voxelmill.store import CHUNK, damaged_labels, read_labels
from voxelmill.task import Progress, Task

WINDOW = 4096
"""Objects whose skeletons and counts are held and measured together."""

READ_BYTES = 2**28
"""What one read of labels and image may take, unless a single object needs more."""

NEAR = 32
"""Voxels of rows and planes that are looked at one after another."""

READ_COST = 2**20
"""What a read costs on top of what it decodes, in decoded bytes that take as long."""

PROGRAM_BYTES = 600_000_000
"""What a task takes before it holds any object."""

BYTES_PER_OBJECT_VOXEL = 24
"""Thinning holds the places of an object's voxels three times."""

TILE = 4 * CHUNK
"""Side of what is read at once of an object that is read tile by tile; rounded up to whole coarse voxels."""


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
    measures : tuple of str
        What is measured.
    """

    grid: LabelGrid
    labels: zarr.Array
    image: StoredImage
    length: str
    measures: tuple[str, ...]

    @property
    def channels(self) -> int:
        return len(self.image.info.array.channels)

    @property
    def flat(self) -> tuple[bool, ...]:
        """Axes of a single plane, unless all are."""
        return tuple(n == 1 < max(self.grid.shape) for n in self.grid.shape)

    @property
    def plane(self) -> int | None:
        return plane_axis(self.grid.shape)

    @property
    def schema(self) -> pa.Schema:
        return measures_schema(self.channels, self.measures, self.plane is not None)

    def spacing(self, factor: int) -> tuple[float, ...]:
        """Of a grid so many times coarser than the labels; a single plane stays one."""
        return tuple(s if flat else s * factor for s, flat in zip(self.grid.spacing, self.flat, strict=True))

    @property
    def bytes_per_voxel(self) -> int:
        """Of labels, and for skeletons of one channel of the image."""
        return int(self.labels.dtype.itemsize) + (self._image_bytes if SKELETON in self.measures else 0)

    @property
    def _image_bytes(self) -> int:
        return int(np.dtype(self.image.info.dtype).itemsize)

    @property
    def arrays(self) -> list[tuple[np.ndarray, int]]:
        """Sides of a chunk, and bytes per voxel, of what is read."""
        labels = (np.array(self.labels.chunks), int(self.labels.dtype.itemsize))
        if SKELETON not in self.measures:
            return [labels]
        return [labels, (np.array(self.image.chunks), self._image_bytes * self.channels)]

    def with_margin(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (n, 3, 2) with all voxels that touch theirs, where these are looked at."""
        if SHAPE not in self.measures:
            return boxes
        return np.stack([np.maximum(boxes[..., 0] - 1, 0), np.minimum(boxes[..., 1] + 1, self.grid.shape)], axis=-1)

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


def measure_task(
    batch: str,
    number: int,
    samples: Sequence[str],
    folder: Path,
    length: str,
    memory_budget: int,
    record: Task,
    measures: tuple[str, ...] = MEASURES,
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
    measures : tuple of str
        What is measured: some of `MEASURES`.
    """
    rows = [row for row in read_rows(folder / f"{batch}.measures.csv", MeasureRow) if row.task == number]
    found = [read_objects(folder / f"{row.sample}.linked.parquet", row.first, row.last) for row in rows]
    sources = [open_source(row.sample, samples.index(row.sample) + 1, folder, length, measures) for row in rows]
    compile_loops(measures, {source.labels.dtype.name for source in sources})
    progress = Progress(sum(map(len, found)), "objects")
    for row, objects, source in zip(rows, found, sources, strict=True):
        record.counts[row.sample] = {"objects": len(objects), "skeleton_empty": 0, "reduced_resolution": 0}
        out = folder / row.sample / f"{row.sample}.m{number}.measures.parquet"
        with atomic_path(out) as path, pq.ParquetWriter(path, source.schema) as writer:
            for start in range(0, len(objects), WINDOW):
                table = measure_window(source, objects[start : start + WINDOW], memory_budget, progress)
                writer.write_table(table)
                if SKELETON in measures:
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


def open_source(sample: str, position: int, folder: Path, length: str, measures: tuple[str, ...]) -> Source:
    """The grid, the labels and the image of a sample in a task's folder."""
    labels = folder / "labels" / str(position) / "labels.ome.zarr"
    return Source(
        LabelGrid.load(folder / f"{sample}.grid.json"),
        zarr.open_array(str(labels), path="instances/0", mode="r"),
        staged_image(sample, folder),
        length,
        measures,
    )


def compile_loops(measures: Collection[str] = MEASURES, dtypes: Collection[str] = ("uint16",)) -> None:
    """Compile the loops before the first object, those over labels for their types, and say how long it took."""
    start = time.monotonic()
    if SKELETON in measures:
        skeletonize(np.ones((1, 1, 1), dtype=bool), (1.0, 1.0, 1.0))
    if SHAPE in measures:
        for dtype in sorted(dtypes):
            count(np.ones((1, 1, 1), dtype), np.ones(1, np.int64), np.array([[[0, 1]] * 3]))
    print(f"loops compiled in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)


def measures_schema(channels: int, measures: Collection[str] = MEASURES, plane: bool = False) -> pa.Schema:
    """Columns of ``<sample>.m<task>.measures.parquet``; lengths in the unit of the grid's spacing."""
    profiles = (
        ("profile_distance", pa.list_(pa.float64())),
        *((f"profile_{axis}", pa.list_(pa.int32())) for axis in "zyx"),
        *((f"profile_c{c}", pa.list_(pa.float64())) for c in range(channels)),
    )
    return pa.schema(
        [
            pa.field("id", pa.int64(), False),
            *((column.name, column.type) for column in columns_of(measures, plane)),
            *(profiles if SKELETON in measures else ()),
        ]
    )


def measure_window(source: Source, objects: Objects, memory_budget: int, progress: Progress) -> pa.Table:
    """Measures of a window of objects, in their order."""
    limit = max(memory_budget - PROGRAM_BYTES, memory_budget // 4)
    factors = coarseness(objects, source, limit)
    fine = objects[factors == 1]
    tables = []
    if len(fine):
        tables.append(fine_measures(source, fine, min(READ_BYTES, limit // 2), progress))
    for k in np.flatnonzero(factors > 1):
        tables.append(coarse_measures(source, objects[k : k + 1], int(factors[k])))
        progress.advance(1)
    table = pa.concat_tables(tables)
    return table.take(pa.array(np.argsort(table["id"].to_numpy()))).combine_chunks()


def coarseness(objects: Objects, source: Source, limit: int) -> np.ndarray:
    """How much coarser than the labels the skeletons' grids are: the smallest powers of two that fit the limit.

    Above 1 an object is read tile by tile. One without a skeleton needs no grid and gets 1 or 2.

    Parameters
    ----------
    objects : Objects
    source : Source
    limit : int
        Bytes.

    Returns
    -------
    (n,) int64
    """
    sides = objects.boxes[:, :, 1] - objects.boxes[:, :, 0]
    factors = np.ones(len(objects), np.int64)
    left = np.arange(len(objects))
    thinned = SKELETON in source.measures
    while left.size:
        cells = np.prod(-(-sides[left] // factors[left, None]), axis=1)
        fine = factors[left] == 1
        # the mask, the same with a border, and at full resolution what it is cut from
        used = cells * (np.where(fine, source.bytes_per_voxel, 0) + (2 if thinned else 1))
        if thinned:
            used += np.minimum(objects.voxels[left], cells) * BYTES_PER_OBJECT_VOXEL
        left = left[(used > limit) & (cells > 1) & (fine | thinned)]
        factors[left] *= 2
    return factors


def fine_measures(source: Source, objects: Objects, limit: int, progress: Progress) -> pa.Table:
    """Table of objects that are measured on the labels' own grid, with as few reads as possible.

    Raises
    ------
    TemporaryError
        Where the labels do not hold what the table of objects says.
    """
    crops: dict[int, Crop] = {}
    read, counts = [], []
    for bounds, members in shared_reads(source.with_margin(objects.boxes), source.arrays, limit):
        labels = source.read_labels(as_box(bounds))
        members = members[by_place(objects.boxes[members, :, 0])]
        some = objects[members]
        inside = some.boxes - bounds[:, :1]
        if SHAPE in source.measures:
            read.append(members)
            counts.append(count(labels, some.ids, inside))
            check_voxels(source.grid.sample, some, counts[-1].voxels)
        if SKELETON in source.measures:
            crops.update(zip(members.tolist(), read_crops(source, some, labels, bounds), strict=True))
        del labels
        progress.advance(len(members))
    columns: dict[str, Any] = {"id": objects.ids}
    if SKELETON in source.measures:
        ordered = [crops[k] for k in range(len(objects))]
        skeletons = [crop.skeleton for crop in ordered]
        voxels = np.concatenate([s.voxels + box[:, 0] for s, box in zip(skeletons, objects.boxes, strict=True)])
        values = np.concatenate([crop.values for crop in ordered], axis=1)
        columns |= skeleton_columns(source, skeletons, 1, lambda at: (voxels[at], values[:, at]))
    if SHAPE in source.measures:
        order = np.argsort(np.concatenate(read))
        columns |= {name: column[order] for name, column in shape_columns(source, concatenate(counts)).items()}
    return table_of(source, columns)


def read_crops(source: Source, objects: Objects, labels: np.ndarray, bounds: np.ndarray) -> list[Crop]:
    """Thin objects and read the image at their skeletons.

    Parameters
    ----------
    source : Source
    objects : Objects
    labels : (z, y, x) unsigned integers
        Of a box that holds theirs.
    bounds : (3, 2) int64
        That box.
    """
    skeletons = []
    found = np.empty(len(objects), np.int64)
    for k, box in enumerate(objects.boxes - bounds[:, :1]):
        mask = labels[slices(box)] == int(objects.ids[k])
        found[k] = np.count_nonzero(mask)
        check_voxels(source.grid.sample, objects[k : k + 1], found[k : k + 1])
        skeletons.append(skeletonize(mask, source.grid.spacing, source.flat))
    values = [np.empty((source.channels, len(skeleton.voxels))) for skeleton in skeletons]
    for channel in range(source.channels):
        image = source.image.read(channel, as_box(bounds))
        for skeleton, box, of in zip(skeletons, objects.boxes, values, strict=True):
            of[channel] = image[tuple((skeleton.voxels + (box[:, 0] - bounds[:, 0])).T)]
    return [Crop(skeleton, of) for skeleton, of in zip(skeletons, values, strict=True)]


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

    def cost_of(some: np.ndarray) -> np.ndarray:
        return sum(
            READ_COST + np.prod((-(-some[:, :, 1] // chunk) - some[:, :, 0] // chunk) * chunk, axis=1) * size
            for chunk, size in arrays
        )

    alone = cost_of(boxes)
    bytes_per_voxel = sum(size for _, size in arrays)

    def group(members: np.ndarray, side: int) -> tuple[int, list[tuple[np.ndarray, np.ndarray]]]:
        if len(members) == 1:
            return int(alone[members[0]]), [(boxes[members[0]], members)]
        box = np.stack([boxes[members, :, 0].min(axis=0), boxes[members, :, 1].max(axis=0)], axis=1)
        together = int(cost_of(box[None])[0])
        fits = int(np.prod(box[:, 1] - box[:, 0])) * bytes_per_voxel <= limit
        if side < CHUNK:
            apart = int(alone[members].sum())
            if together <= apart and fits:
                return together, [(box, members)]
            return apart, [(boxes[k], members[i : i + 1]) for i, k in enumerate(members)]
        cell = cells_of(boxes[members, :, 0] // side)
        parts = [group(members[cell == k], side // 2) for k in range(cell.max() + 1)]
        apart = sum(cost for cost, _ in parts)
        if together <= apart and fits:
            return together, [(box, members)]
        return apart, [found for _, groups in parts for found in groups]

    side = 1 << int(boxes.max()).bit_length()
    return group(np.arange(len(boxes)), side)[1]


def by_place(corners: np.ndarray) -> np.ndarray:
    """Order of corners (n, 3) in which those that follow each other are near: their voxels are still in the cache."""
    z, y, x = corners.T
    return np.lexsort((x, y // NEAR, z // NEAR))


def cells_of(corners: np.ndarray) -> np.ndarray:
    """Number of the cell of every corner (n, 3), counted over those that occur."""
    return np.unique(corners, axis=0, return_inverse=True)[1].reshape(-1)


def as_box(bounds: np.ndarray) -> Box:
    return tuple((int(start), int(stop)) for start, stop in bounds)


def check_voxels(sample: str, objects: Objects, found: np.ndarray) -> None:
    """Compare the voxels (n,) that were found with those of the table."""
    for k in np.flatnonzero(found != objects.voxels)[:1]:
        raise damaged_labels(
            sample, f"object {objects.ids[k]} has {found[k]} voxels in the labels and {objects.voxels[k]} in the table"
        )


def shape_columns(source: Source, counts: Counts) -> dict[str, np.ndarray]:
    """Columns of the shape of counted objects, in their order."""
    return measures_of(counts, source.grid.spacing, source.plane)


def table_of(source: Source, columns: Mapping[str, Any]) -> pa.Table:
    """Columns by name in the order of the schema; what is NaN becomes null."""
    arrays = [pa.array(columns[field.name], field.type, from_pandas=True) for field in source.schema]
    return pa.table(arrays, schema=source.schema)


def skeleton_columns(
    source: Source,
    skeletons: Sequence[Skeleton],
    factor: int,
    profile: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> dict[str, Any]:
    """Columns of skeletons: measures, and profiles.

    Parameters
    ----------
    source : Source
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

    return {
        "longest_path": found.longest_path.length,
        "longest_branch": found.longest_branch.length,
        "branches": found.branches,
        "tortuosity": tortuosity,
        "mean_thickness": thickness,
        "skeleton_voxels": sizes,
        "skeleton_empty": np.array([skeleton.empty for skeleton in skeletons]),
        "length_resolution": np.full(len(skeletons), factor),
        "profile_distance": lists(followed.along, pa.float64()),
        **{f"profile_{axis}": lists(along, pa.int32()) for axis, along in zip("zyx", voxels.T, strict=True)},
        **{f"profile_c{c}": lists(channel, pa.float64()) for c, channel in enumerate(values)},
    }


def coarse_measures(source: Source, one: Objects, factor: int) -> pa.Table:
    """Table of one object that is read tile by tile.

    Its skeleton is that of a coarser grid, which begins at the object's box; a coarse voxel belongs to the object if
    any of its voxels does. Lengths are those of the coarse grid. The profile is read at the object's voxel that is
    nearest to the centre of each coarse voxel on the path, the first in raster order of equally near ones. Its shape is
    counted at full resolution.
    """
    box = one.boxes[0]
    thinned = SKELETON in source.measures
    coarse = np.zeros(-(-(box[:, 1] - box[:, 0]) // factor) if thinned else 0, dtype=bool)
    step = -(-TILE // factor) * factor
    corners, parts, found = [], [], 0
    for bounds in map(np.array, cut_box(as_box(box), (step,) * 3)):
        area = source.with_margin(bounds)
        labels = source.read_labels(as_box(area))
        inside = bounds - area[:, :1]
        mask = labels[slices(inside)] == int(one.ids[0])
        found += int(np.count_nonzero(mask))
        corner = bounds[:, 0] - box[:, 0]
        if thinned:
            pooled = pool(mask, factor)
            coarse[tuple(slice(c, c + n) for c, n in zip(corner // factor, pooled.shape, strict=True))] = pooled
        del mask
        if SHAPE in source.measures:
            corners.append(corner)
            parts.append(count(labels, one.ids, inside[None], (bounds[:, 1] == box[:, 1])[None]))
    check_voxels(source.grid.sample, one, np.array([found]))
    columns: dict[str, Any] = {"id": one.ids}
    if thinned:
        skeleton = skeletonize(coarse, source.spacing(factor), source.flat)
        del coarse

        def profile(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return coarse_profile(source, int(one.ids[0]), box, factor, skeleton.voxels[points])

        columns |= skeleton_columns(source, [skeleton], factor, profile)
    if SHAPE in source.measures:
        columns |= shape_columns(source, add(parts, np.array(corners)))
    return table_of(source, columns)


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
