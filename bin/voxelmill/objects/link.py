"""LINK_OBJECTS: components of shards become objects of the sample, are measured, filtered and numbered.

Rows of components come in the order of the shards (z, y, x), whatever blocks they were found in, and everything here
follows that order: the same voxels give the same bytes under any cut into blocks. Objects are numbered by their first
voxel in z, y, x order, as cc3d numbers the components of a whole volume.

Memory grows with the number of components of shards, not with the volume: see :class:`Parts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from voxelmill.archive import Archive, create_archive
from voxelmill.errors import UsageError
from voxelmill.files import atomic_path, write_json
from voxelmill.grid import INSTANCES, LabelGrid
from voxelmill.image import ImageInfo
from voxelmill.objects.components import (
    Joining,
    common_face,
    contact,
    mixes_classes,
    neighbours,
    opposite,
    outer_faces,
    row_type,
    touching,
)
from voxelmill.rows import MeasureRow, write_rows
from voxelmill.task import Task

MEASURE, KEEP, DROP = "measure", "keep", "drop"
"""What becomes of objects at the border of the volume: like all others; in the labels but not measured; removed."""

REASONS = ("below_min_voxels", "below_min_volume", "below_mean_fraction", "touches_border")
"""Why an object is dropped; one that has several reasons is counted under the first."""

BOX_VOXELS_PER_TASK = 2**31
OBJECTS_PER_TASK = 50_000
"""What one task of MEASURE_OBJECTS takes: voxels of its objects' boxes, and objects."""

READING_BYTES, BOX_BYTES = 1_000_000_000, 40
"""Memory of such a task: libraries, compiled code and a read of 256 MB (356 to 654 MB were measured); and for a voxel
of its largest object's box labels, image, masks and the voxels to be thinned."""

ROWS_PER_GROUP = 65_536
"""Rows of a table that are encoded in memory at a time."""

OPEN_ARCHIVES = 64
KEPT_FACES = 256
ROUNDING = 1e-9
"""A volume is a product of decimal fractions: an object this share below the limit still has it."""


@dataclass(frozen=True)
class Filters:
    """Objects to keep: of at least ``min_voxels``, ``min_volume`` (cubic micrometres) and ``min_mean_fraction`` of the
    mean volume of all objects of the sample; and what to do at the border."""

    min_voxels: int = 0
    min_volume: float = 0.0
    min_mean_fraction: float = 0.0
    border: str = MEASURE


@dataclass(frozen=True)
class Part:
    """A shard that has components: where it lies on the grid of shards, its block, its place there, its rows."""

    index: tuple[int, ...]
    block: int
    place: int
    count: int
    offset: int


class Parts:
    """What LABEL_BLOCKS found in the blocks of a sample.

    Memory grows by about 300 bytes per component of a shard without intensities, and by about 100 more per channel: the
    rows themselves (80 bytes, and 32 per channel), rows of objects, columns of the table, and 16 bytes for each pair of
    components that touch. Faces are read two at a time.

    Parameters
    ----------
    grid : LabelGrid
    folder : Path
        Holds ``<sample>.b<block>.<ending>`` of every reached block.
    joining : Joining
    ending : str
    row_type : dtype
        Of a component's row.

    Raises
    ------
    TemporaryError
        Here or later: a block's file is missing, damaged or belongs to another grid.
    """

    def __init__(self, grid: LabelGrid, folder: Path, joining: Joining, ending: str, row_type: np.dtype):
        self.grid, self.joining, self.row_type = grid, joining, row_type
        self._folder, self._ending = folder, ending
        self._open = lru_cache(OPEN_ARCHIVES)(lambda block: Archive(self._path(block)))
        self._face = lru_cache(KEPT_FACES)(self._read_face)
        self.shards = {block: self._read_shards(block) for block in grid.reached}
        boxes = {block: grid.shards_of(block) for block in grid.reached}
        found = sorted(
            (grid.shard_index(boxes[block][place]), block, place)
            for block, shards in self.shards.items()
            for place in map(int, np.flatnonzero(shards[:, 0]))
        )
        self.parts: list[Part] = []
        offset = 0
        for index, block, place in found:
            count = int(self.shards[block][place, 0])
            self.parts.append(Part(index, block, place, count, offset))
            offset += count
        self.components = offset
        self.by_index = {part.index: part for part in self.parts}
        self.boxes = boxes

    def _path(self, block: int) -> Path:
        return self._folder / f"{self.grid.sample}.b{block}.{self._ending}"

    def _read_shards(self, block: int) -> np.ndarray:
        return self._open(block).read("shards", (len(self.grid.shards_of(block)), 8), np.int64)

    def rows(self) -> np.ndarray:
        """Rows of all components, in the order of the shards."""
        rows = np.empty(self.components, self.row_type)
        for part in self.parts:
            rows[part.offset : part.offset + part.count] = self._open(part.block).read(
                f"rows.{part.place}", (part.count,), self.row_type
            )
        return rows

    def pairs(self, classes: np.ndarray) -> np.ndarray:
        """Pairs of rows whose components touch -> int64 (n, 2); ``classes`` of both must be equal."""
        if self.grid.has_ids:
            return np.empty((0, 2), np.int64)
        found = [np.empty((0, 2), np.int64), *self._pairs_in_blocks()]
        for pairs in self._pairs_across():
            found.append(pairs[classes[pairs[:, 0]] == classes[pairs[:, 1]]])
        return np.concatenate(found)

    def _pairs_in_blocks(self) -> Iterator[np.ndarray]:
        for block, members in self.of_block().items():
            row_of = np.concatenate([np.arange(part.offset, part.offset + part.count) for part in members])
            for part in members:
                n = int(self.shards[block][part.place, 1])
                if n:
                    yield row_of[self._open(block).read(f"pairs.{part.place}", (n, 2), np.int64)]

    def of_block(self) -> dict[int, list[Part]]:
        """Shards that have components, by block, in the order in which the block was labelled."""
        members: dict[int, list[Part]] = {}
        for part in sorted(self.parts, key=lambda part: part.place):
            members.setdefault(part.block, []).append(part)
        return members

    def _pairs_across(self) -> Iterator[np.ndarray]:
        """Pairs of components in shards of different blocks."""
        for part in self.parts:
            if not outer_faces(self.grid, part.block, self.boxes[part.block][part.place]):
                continue
            for direction, index in neighbours(part.index):
                other = self.by_index.get(index)
                if other is None or other.block == part.block:
                    continue
                blocks = zip(self.grid.index(part.block), self.grid.index(other.block), strict=True)
                # blocks are a grid: where they differ on an axis, the faces on that axis are outer ones of both
                axis = next(i for i, (mine, its) in enumerate(blocks) if mine != its)
                mine = self._face(part, *common_face(direction, axis))
                theirs = self._face(other, *common_face(opposite(direction), axis))
                if mine is None or theirs is None:
                    continue
                pairs = touching(
                    contact(mine, axis, direction),
                    contact(theirs, axis, opposite(direction)),
                    self.joining.connectivity,
                )
                yield pairs - 1 + [part.offset, other.offset]

    def _read_face(self, part: Part, axis: int, side: int) -> np.ndarray | None:
        """A face of a shard, None where it is background."""
        itemsize = int(self.shards[part.block][part.place, 2 + 2 * axis + side])
        if not itemsize:
            return None
        box = self.boxes[part.block][part.place]
        shape = tuple(stop - start for i, (start, stop) in enumerate(box) if i != axis)
        return self._open(part.block).read(f"face.{part.place}.{axis}.{side}", shape, f"<u{itemsize}")


def join(n: int, pairs: np.ndarray) -> tuple[np.ndarray, int]:
    """Number of the object of every row, in the order of the objects' first rows, and how many objects there are.

    Only rows that touch another take part in the search; the others are objects of one row.

    Parameters
    ----------
    n : int
        Rows.
    pairs : ndarray of int64, (m, 2)
    """
    root = np.arange(n)
    if len(pairs):
        nodes, place = np.unique(pairs, return_inverse=True)
        place = place.reshape(pairs.shape)
        edges = coo_array((np.ones(len(pairs), bool), (place[:, 0], place[:, 1])), shape=(len(nodes),) * 2)
        count, label = connected_components(edges, directed=False)
        first = np.full(count, n)
        np.minimum.at(first, label, nodes)
        root[nodes] = first[label]
    number = np.cumsum(root == np.arange(n)) - 1
    return number[root], int(number[-1]) + 1 if n else 0


def merge(rows: np.ndarray, owner: np.ndarray, count: int) -> np.ndarray:
    """Rows of one object each, from rows of its components; ``owner`` is the object of every row.

    Sums of intensities are added in the order of the rows; squares are joined around the object's mean.
    """
    order = np.argsort(owner, kind="stable")
    begins = np.searchsorted(owner[order], np.arange(count))
    merged = np.zeros(count, rows.dtype)
    if not count:
        return merged
    for name in ("class_voxels", "voxels", "sums"):
        if rows[name].size:
            merged[name] = np.add.reduceat(rows[name][order], begins)
    for name in ("start", "first", "low"):
        if rows[name].size:
            merged[name] = np.minimum.reduceat(rows[name][order], begins)
    for name in ("stop", "high"):
        if rows[name].size:
            merged[name] = np.maximum.reduceat(rows[name][order], begins)
    for name in ("class_value", "id"):
        merged[name] = rows[name][order[begins]]
    for channel in range(rows["total"].shape[1]):
        total = np.bincount(owner, rows["total"][:, channel], count)
        shift = rows["total"][:, channel] / rows["voxels"] - (total / merged["voxels"])[owner]
        merged["total"][:, channel] = total
        merged["squares"][:, channel] = np.bincount(
            owner, rows["squares"][:, channel] + rows["voxels"] * shift**2, count
        )
    return merged


def touches_border(objects: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Whether an object's box touches a face of the volume; an axis with a single plane does not count."""
    touches = np.zeros(len(objects), bool)
    for axis, size in enumerate(shape):
        if size > 1:
            touches |= (objects["start"][:, axis] == 0) | (objects["stop"][:, axis] == size)
    return touches


def drop(objects: np.ndarray, touches: np.ndarray, voxel_volume: float, filters: Filters) -> dict[str, np.ndarray]:
    """Reason -> which objects are dropped for it, each for the first that holds; the mean is that of all objects."""
    mean = float(objects["voxels"].mean()) if len(objects) else 0.0
    reasons = {
        "below_min_voxels": objects["voxels"] < filters.min_voxels,
        "below_min_volume": objects["voxels"] * voxel_volume < filters.min_volume * (1 - ROUNDING),
        "below_mean_fraction": objects["voxels"] < filters.min_mean_fraction * mean * (1 - ROUNDING),
        "touches_border": touches if filters.border == DROP else np.zeros_like(touches),
    }
    kept = np.ones(len(objects), bool)
    dropped = {}
    for name in REASONS:
        dropped[name] = reasons[name] & kept
        kept &= ~reasons[name]
    return dropped


def number_objects(objects: np.ndarray, kept: np.ndarray, given: bool) -> np.ndarray:
    """Id of every object: 1 to N by first voxel, or the given ones; 0 for those that are dropped."""
    if given:
        return np.where(kept, objects["id"], 0)
    ids = np.zeros(len(objects), np.int64)
    places = np.flatnonzero(kept)
    ids[places[np.argsort(objects["first"][places])]] = np.arange(1, len(places) + 1)
    return ids


def id_type(largest: int) -> str:
    """uint16, uint32 or uint64: the smallest that holds the ids and, beyond them, its own largest value."""
    return next(name for name in ("uint16", "uint32", "uint64") if largest < np.iinfo(name).max)


def table_of(objects: np.ndarray, ids: np.ndarray, touches: np.ndarray, measured: np.ndarray) -> pa.Table:
    """The columns of ``<sample>.linked.parquet`` for objects that are kept, in the order of their ids."""
    order = np.flatnonzero(ids)
    order = order[np.argsort(ids[order])]
    voxels = objects["voxels"][order]
    columns: dict[str, np.ndarray] = {"id": ids[order], "class_value": objects["class_value"][order].astype(np.int32)}
    columns["voxels"] = voxels
    for axis, name in enumerate("zyx"):
        columns[f"{name}_start"] = objects["start"][order, axis].astype(np.int64)
        columns[f"{name}_stop"] = objects["stop"][order, axis].astype(np.int64)
    for axis, name in enumerate("zyx"):
        columns[f"centroid_{name}"] = objects["sums"][order, axis] / voxels
    columns["touches_border"] = touches[order]
    columns["measured"] = measured[order]
    for channel in range(objects["total"].shape[1]):
        columns[f"mean_c{channel}"] = objects["total"][order, channel] / voxels
        columns[f"min_c{channel}"] = objects["low"][order, channel]
        columns[f"max_c{channel}"] = objects["high"][order, channel]
        columns[f"sd_c{channel}"] = np.sqrt(objects["squares"][order, channel] / voxels)
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def link_sample(
    grid: LabelGrid, folder: Path, joining: Joining, filters: Filters, channels: int, out: Path
) -> tuple[dict[str, Any], np.ndarray]:
    """Link the components of one sample.

    Parameters
    ----------
    grid : LabelGrid
    folder : Path
        Holds ``<sample>.b<block>.components`` of every reached block.
    joining : Joining
        As LABEL_BLOCKS had it.
    filters : Filters
    channels : int
        Of the image.
    out : Path
        Gets ``<sample>.b<block>.lut`` of every reached block, ``<sample>.linked.parquet`` and ``<sample>.linked.json``.

    Returns
    -------
    dict
        What ``<sample>.linked.json`` holds.
    ndarray of int64
        Box voxels of every object of the table, 0 where it is not to be measured.

    Raises
    ------
    UsageError
        Where a least volume is asked for and the sample has no physical voxel size.
    TemporaryError
        Where the file of a block is missing or damaged.
    """
    if filters.min_volume > 0 and grid.unit == "pixel":
        raise UsageError(
            "--min_object_volume is in cubic micrometres, and the sample has no voxel size",
            sample=grid.sample,
            remedy="give the sample's spacing, or use --min_object_voxels",
        )
    parts = Parts(grid, folder, joining, "components", row_type(channels, grid, joining))
    rows = parts.rows()
    owner, count = objects_of(parts, rows)
    objects = merge(rows, owner, count)
    voxels_of_row = rows["voxels"].copy()
    del rows
    if mixes_classes(grid, joining):
        # the class that most of an object's voxels have, the smallest of equals
        objects["class_value"] = np.array(sorted(grid.values))[objects["class_voxels"].argmax(axis=1)]
    touches = touches_border(objects, grid.shape)
    dropped = drop(objects, touches, float(np.prod(grid.spacing)), filters)
    kept = ~np.logical_or.reduce(list(dropped.values()))
    ids = number_objects(objects, kept, grid.kind == INSTANCES)
    summary = {
        "sample": grid.sample,
        "kind": grid.kind,
        "components": count,
        "objects": int(kept.sum()),
        "dtype": id_type(int(ids.max(initial=0))),
        "connectivity": joining.connectivity,
        "components_of": joining.components_of,
        "dropped": {name: int(which.sum()) for name, which in dropped.items()},
        "dropped_voxels": {name: int(objects["voxels"][which].sum()) for name, which in dropped.items()},
    }
    write_tables(parts, ids[owner].astype(summary["dtype"]), voxels_of_row, out)
    measured = kept & ~touches if filters.border == KEEP else kept
    table = table_of(objects, ids, touches, measured)
    with atomic_path(out / f"{grid.sample}.linked.parquet") as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=ROWS_PER_GROUP)
    write_json(out / f"{grid.sample}.linked.json", summary)
    return summary, box_voxels(table)


def objects_of(parts: Parts, rows: np.ndarray) -> tuple[np.ndarray, int]:
    """Object of every row, and their number: rows that touch are joined, or those that share an id."""
    if parts.grid.has_ids:
        ids, owner = np.unique(rows["id"], return_inverse=True)
        return owner, len(ids)
    return join(len(rows), parts.pairs(rows["class_value"]))


def write_tables(parts: Parts, id_of_row: np.ndarray, voxels_of_row: np.ndarray, out: Path) -> None:
    """Per block and shard: how many components and voxels of objects it has, and where it has any the id of each."""
    of_block = parts.of_block()
    for block, shards in parts.shards.items():
        counts = np.zeros((len(shards), 2), np.int64)
        counts[:, 0] = shards[:, 0]
        with create_archive(out / f"{parts.grid.sample}.b{block}.lut") as archive:
            for part in of_block.get(block, []):
                rows = slice(part.offset, part.offset + part.count)
                ids = id_of_row[rows]
                counts[part.place, 1] = voxels_of_row[rows][ids > 0].sum()
                archive.add(f"ids.{part.place}", np.concatenate([np.zeros(1, ids.dtype), ids]))
            archive.add("shards", counts)


def box_voxels(table: pa.Table) -> np.ndarray:
    voxels = table["measured"].to_numpy().astype(np.int64)
    for axis in "zyx":
        voxels *= table[f"{axis}_stop"].to_numpy() - table[f"{axis}_start"].to_numpy()
    return voxels


def pack(samples: Sequence[tuple[str, np.ndarray]], memory_bytes: int) -> list[MeasureRow]:
    """Objects into tasks, in order, by the voxels of their boxes and by their number.

    Parameters
    ----------
    samples : sequence of (sample, ndarray)
        Box voxels of each row of the sample's table, 0 where it is not to be measured.
    memory_bytes : int
        What a task may use. It asks for less where the boxes of its objects are small.
    """
    rows: list[MeasureRow] = []
    task = objects = voxels = 0
    for sample, boxes in samples:
        ends = np.cumsum(boxes)
        first = 0
        while first < len(boxes) and ends[-1]:
            before = int(ends[first - 1]) if first else 0
            by_voxels = int(np.searchsorted(ends, before + BOX_VOXELS_PER_TASK - voxels, side="right"))
            last = min(by_voxels, first + OBJECTS_PER_TASK - objects, len(boxes))
            if last <= first and objects:
                task, objects, voxels = task + 1, 0, 0
                continue
            last = max(last, first + 1)
            held = READING_BYTES + BOX_BYTES * int(boxes[first:last].max())
            rows.append(MeasureRow(sample, task, first, last, min(memory_bytes, held)))
            objects, voxels = objects + last - first, voxels + int(ends[last - 1]) - before
            first = last
        if not rows or rows[-1].sample != sample:
            rows.append(MeasureRow(sample, task, 0, 0, min(memory_bytes, READING_BYTES)))
    return rows


def link_batch(batch: str, folder: Path, joining: Joining, filters: Filters, memory_bytes: int, record: Task) -> None:
    """Link the samples of a batch and share out what is to be measured.

    Parameters
    ----------
    batch : str
    folder : Path
        Holds ``<sample>.grid.json``, ``<sample>.image.json`` and the blocks' files; gets a folder per sample, and
        ``<batch>/<batch>.measures.csv``.
    joining : Joining
    filters : Filters
    memory_bytes : int
        What one task of MEASURE_OBJECTS may use.
    record : Task
    """
    boxes = []
    for path in sorted(folder.glob("*.grid.json")):
        grid = LabelGrid.load(path)
        channels = len(ImageInfo.load(folder / f"{grid.sample}.image.json").array.channels)
        summary, voxels = link_sample(grid, folder, joining, filters, channels, folder / grid.sample)
        boxes.append((grid.sample, voxels))
        record.counts[grid.sample] = {name: summary[name] for name in ("components", "objects")} | summary["dropped"]
        if summary["components"] and not summary["objects"]:
            record.warn(f"all {summary['components']} objects were dropped by the filters", sample=grid.sample)
    write_rows(folder / batch / f"{batch}.measures.csv", MeasureRow, pack(boxes, memory_bytes))
