"""LABEL_BLOCKS: the connected components of every shard, what is known of each, and which of them touch.

Nothing is joined here. A shard has its own components, numbered in the order of their first voxels, and one row of
numbers for each; LINK_OBJECTS joins rows in the order of the shards. Because the grid of shards belongs to the image
and not to the blocks, the cut into blocks changes no byte of the result.

Two components of neighbouring shards touch where voxels on the shards' faces are neighbours, so that faces are all that
is kept of a shard. What the two shards share may be a face, an edge or a corner.

Sources: components inside a shard are those of cc3d (W. Silversmith, connected-components-3d); moments of parts are
joined by the rule of Chan, Golub and LeVeque (1979).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cc3d
import numpy as np
import zarr

from voxelmill.archive import ArchiveWriter, create_archive
from voxelmill.errors import TemporaryError
from voxelmill.grid import LabelGrid
from voxelmill.image import Box, StoredImage, slices, staged_image
from voxelmill.rows import BlockRow, read_rows
from voxelmill.store import CHUNK
from voxelmill.task import Task

CLASS, FOREGROUND = "class", "foreground"
"""What may be joined: voxels of one class, or all voxels that are not background."""

STEPS = {6: 1, 18: 2, 26: 3}
"""Connectivity -> axes on which two neighbouring voxels may differ."""

BACKWARD = tuple(d for d in itertools.product((-1, 0, 1), repeat=3) if d < (0, 0, 0))
"""The 13 neighbours of a shard that come before it."""

Reader = Callable[[int, Box], np.ndarray]
"""(channel, box) -> raw values (z, y, x)."""

Faces = dict[tuple[int, int], np.ndarray]
"""(axis, side) -> components on that face of a shard; side 0 is the lower one. Faces of background are left out."""


@dataclass(frozen=True)
class Joining:
    """Which voxels belong together: ``connectivity`` 6, 18 or 26, among voxels of one class or all foreground."""

    connectivity: Literal[6, 18, 26] = 26
    components_of: str = CLASS


@dataclass(frozen=True)
class Labelling:
    """Components of one shard.

    Attributes
    ----------
    components : ndarray, (z, y, x)
        0 is background, then 1 to ``count``; uint16 or uint32.
    count : int
    ids : ndarray of int64, (count,)
        Ids of the components where the labels are ids, else empty.
    """

    components: np.ndarray
    count: int
    ids: np.ndarray


def row_type(channels: int, grid: LabelGrid, joining: Joining) -> np.dtype:
    """What is kept of a component, 80 bytes, 32 more for each channel, 8 more for each class where classes are joined.

    ``start``, ``stop`` (half-open box), ``sums`` (of coordinates) and ``first`` (smallest index in z, y, x order) are
    of the whole sample; ``total``, ``squares`` (of deviations from the mean), ``low`` and ``high`` of raw values.
    """
    classes = len(grid.values) if mixes_classes(grid, joining) else 0
    return np.dtype(
        [
            ("class_value", "<i8"),
            ("class_voxels", "<i8", (classes,)),
            ("id", "<i8"),
            ("voxels", "<i8"),
            ("start", "<i4", (3,)),
            ("stop", "<i4", (3,)),
            ("sums", "<i8", (3,)),
            ("first", "<i8"),
            ("total", "<f8", (channels,)),
            ("squares", "<f8", (channels,)),
            ("low", "<f8", (channels,)),
            ("high", "<f8", (channels,)),
        ]
    )


def mixes_classes(grid: LabelGrid, joining: Joining) -> bool:
    """Whether a component may hold voxels of several classes."""
    return not grid.has_ids and joining.components_of == FOREGROUND and len(grid.values) > 1


def label_shard(labels: np.ndarray, grid: LabelGrid, joining: Joining) -> Labelling:
    """Components of a shard's labels (z, y, x), as many bytes per voxel as their number needs."""
    if grid.has_ids:
        return label_ids(labels)
    by_class = joining.components_of == CLASS and len(grid.values) > 1
    mask = labels if by_class else labels != 0
    if sorted(labels.shape)[1] == 1:
        # cc3d 4.1.1 allows for too few components in a line of voxels, and raises; with a second line it does not.
        mask = np.pad(mask, [(0, 0), (0, 1), (0, 0)] if labels.shape[1] == 1 else [(0, 0), (0, 0), (0, 1)])
    components, count = cc3d.connected_components(
        mask, connectivity=joining.connectivity, binary_image=not by_class, return_N=True
    )
    components = components[tuple(slice(n) for n in labels.shape)]
    return Labelling(np.ascontiguousarray(components), int(count), np.empty(0, np.int64))


def label_ids(labels: np.ndarray) -> Labelling:
    """Labels that are ids: every id of the shard is one component, whether its voxels touch or not."""
    starts, lengths = runs(labels)
    ids, number = np.unique(labels.ravel()[starts], return_inverse=True)
    with_background = bool(ids.size and ids[0] == 0)
    small = (number + (not with_background)).astype(np.uint16 if len(ids) < 65535 else np.uint32)
    ids = ids[1:] if with_background else ids
    return Labelling(np.repeat(small, lengths).reshape(labels.shape), len(ids), ids.astype(np.int64))


def runs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs of equal labels along the last axis, background included -> flat index of the first voxel, length."""
    begins = np.empty(labels.shape, bool)
    begins[..., 0] = True
    np.not_equal(labels[..., 1:], labels[..., :-1], out=begins[..., 1:])
    starts = np.flatnonzero(begins)
    return starts, np.diff(starts, append=labels.size)


def measure_shard(
    labels: np.ndarray,
    labelling: Labelling,
    box: Box,
    grid: LabelGrid,
    joining: Joining,
    read: Reader,
    channels: int,
) -> np.ndarray:
    """The row of every component of a shard.

    Geometry is counted over runs of voxels in exact integers. The image is read 64 planes at a time, and only in the
    box of their foreground; beside the shard, memory holds 64 planes of one channel and 40 bytes for each of their
    foreground voxels.

    Parameters
    ----------
    labels : ndarray, (z, y, x)
        The shard as it was given.
    labelling : Labelling
        Its components.
    box : Box
        Where the shard lies in the sample.
    grid : LabelGrid
    joining : Joining
    read : callable
        Gives raw values of the image.
    channels : int
        Of the image; 0 leaves intensities out.

    Returns
    -------
    ndarray of `row_type`, (count,)
    """
    rows = np.zeros(labelling.count, row_type(channels, grid, joining))
    rows["start"], rows["stop"] = np.iinfo(np.int32).max, 0
    rows["first"] = np.iinfo(np.int64).max
    rows["low"], rows["high"] = np.inf, -np.inf
    if labelling.ids.size:
        rows["id"] = labelling.ids
    origin = [start for start, _ in box]
    for plane in range(0, len(labels), CHUNK):
        slab = labels[plane : plane + CHUNK]
        starts, lengths = runs(slab)
        values = slab.ravel()[starts]
        inside = np.flatnonzero(values != 0)
        if not len(inside):
            continue
        starts, lengths, values = starts[inside], lengths[inside], values[inside]
        owner = labelling.components[plane : plane + CHUNK].ravel()[starts].astype(np.intp) - 1
        corner = [origin[0] + plane, *origin[1:]]
        first = positions(starts, slab.shape, corner)
        count_geometry(rows, owner, first, lengths, grid.shape)
        count_classes(rows, owner, values, lengths, grid)
        if channels:
            inner = tuple(
                (int(a.min()), int(b.max()))
                for a, b in zip(first, (first[0] + 1, first[1] + 1, first[2] + lengths), strict=True)
            )
            found = slab[tuple(slice(a - c, b - c) for (a, b), c in zip(inner, corner, strict=True))] != 0
            for channel in range(channels):
                measure_values(rows, channel, owner, lengths, read(channel, inner)[found])
    return rows


def positions(starts: np.ndarray, shape: tuple[int, ...], corner: list[int]) -> list[np.ndarray]:
    """Flat indices into an array of ``shape`` that begins at ``corner`` -> z, y, x."""
    z, rest = np.divmod(starts, shape[1] * shape[2])
    y, x = np.divmod(rest, shape[2])
    return [z + corner[0], y + corner[1], x + corner[2]]


def count_geometry(
    rows: np.ndarray, owner: np.ndarray, first: list[np.ndarray], lengths: np.ndarray, shape: tuple[int, ...]
) -> None:
    """Add runs to the rows' voxels, boxes, sums of coordinates and first voxels.

    Sums of one slab stay far below 2**53, so that the doubles in which `bincount` adds are exact.
    """
    z, y, x = first
    rows["voxels"] += exact_sums(owner, lengths, len(rows))
    rows["sums"][:, 0] += exact_sums(owner, lengths * z, len(rows))
    rows["sums"][:, 1] += exact_sums(owner, lengths * y, len(rows))
    rows["sums"][:, 2] += exact_sums(owner, lengths * x + lengths * (lengths - 1) // 2, len(rows))
    # of the rows' own types: ufunc.at is slow where it has to convert
    for axis, begin, end in ((0, z, z + 1), (1, y, y + 1), (2, x, x + lengths)):
        np.minimum.at(rows["start"][:, axis], owner, begin.astype(np.int32))
        np.maximum.at(rows["stop"][:, axis], owner, end.astype(np.int32))
    np.minimum.at(rows["first"], owner, (z * shape[1] + y) * shape[2] + x)


def exact_sums(owner: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(owner, weights, count).astype(np.int64)


def count_classes(
    rows: np.ndarray, owner: np.ndarray, values: np.ndarray, lengths: np.ndarray, grid: LabelGrid
) -> None:
    """Set the rows' classes, or count the voxels of each class where a component may hold several."""
    if rows["class_voxels"].shape[1]:
        place = np.searchsorted(sorted(grid.values), values)
        for i in range(len(grid.values)):
            rows["class_voxels"][:, i] += exact_sums(owner[place == i], lengths[place == i], len(rows))
    elif grid.has_ids:
        rows["class_value"] = grid.class_of(rows["id"])
    else:
        rows["class_value"][owner] = values


def measure_values(rows: np.ndarray, channel: int, owner: np.ndarray, lengths: np.ndarray, values: np.ndarray) -> None:
    """Add the raw values of a slab's foreground, in z, y, x order, to the rows' totals, squares and extrema."""
    ends = np.cumsum(lengths)
    begins = ends - lengths
    np.minimum.at(rows["low"][:, channel], owner, np.minimum.reduceat(values, begins).astype(np.float64))
    np.maximum.at(rows["high"][:, channel], owner, np.maximum.reduceat(values, begins).astype(np.float64))
    values = values.astype(np.float64)
    n = np.bincount(owner, lengths, len(rows))
    total = np.bincount(owner, np.add.reduceat(values, begins), len(rows))
    here = np.flatnonzero(n)
    mean = np.zeros(len(rows))
    mean[here] = total[here] / n[here]
    values -= np.repeat(mean[owner], lengths)
    values *= values
    squares = np.bincount(owner, np.add.reduceat(values, begins), len(rows))
    # join with the slabs before (Chan's rule); rows["voxels"] holds this slab already
    before = rows["voxels"][here] - n[here]
    shift = np.zeros(len(here))
    known = before > 0
    shift[known] = rows["total"][here[known], channel] / before[known] - mean[here[known]]
    rows["squares"][here, channel] += squares[here] + shift**2 * before * n[here] / rows["voxels"][here]
    rows["total"][here, channel] += total[here]


def faces_of(components: np.ndarray) -> Faces:
    """The faces of a shard that hold foreground."""
    faces = {(axis, side): components.take(-side, axis) for axis in range(3) for side in (0, 1)}
    return {key: face for key, face in faces.items() if face.any()}


def common_face(direction: tuple[int, ...], axis: int) -> tuple[int, int]:
    """The face of a shard, orthogonal to ``axis``, that its neighbour in ``direction`` touches."""
    return axis, int(direction[axis] > 0)


def contact(face: np.ndarray, axis: int, direction: tuple[int, ...]) -> np.ndarray:
    """The part of a face that touches the neighbour in ``direction``: all of it, an edge or a corner."""
    others = [step for i, step in enumerate(direction) if i != axis]
    return face[tuple(slice(None) if step == 0 else (-1 if step > 0 else 0) for step in others)]


def touching(first: np.ndarray, second: np.ndarray, connectivity: int) -> np.ndarray:
    """Pairs of components of two shards whose voxels are neighbours.

    Parameters
    ----------
    first, second : ndarray
        What the shards show each other: faces (two axes), edges (one) or corners (none), of one shape; 0 is background.
    connectivity : int

    Returns
    -------
    ndarray of int64, (n, 2)
        Unique pairs, sorted.
    """
    # voxels of two shards differ already on the axes that the shards differ on
    steps_left = STEPS[connectivity] - (3 - first.ndim)
    found = []
    for offset in itertools.product((-1, 0, 1), repeat=first.ndim):
        if sum(map(abs, offset)) > steps_left:
            continue
        a = first[tuple(slice(max(0, -step), n - max(0, step)) for step, n in zip(offset, first.shape, strict=True))]
        b = second[tuple(slice(max(0, step), n - max(0, -step)) for step, n in zip(offset, first.shape, strict=True))]
        both = (a != 0) & (b != 0)
        if both.any():
            found.append(np.unique(a[both].astype(np.uint64) << np.uint64(32) | b[both].astype(np.uint64)))
    pairs = np.unique(np.concatenate(found)) if found else np.empty(0, np.uint64)
    return np.stack([pairs >> np.uint64(32), pairs & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int64)


def neighbours(index: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(direction, index) of the shards that come before one, whether they exist or not."""
    for direction in BACKWARD:
        yield direction, tuple(i + step for i, step in zip(index, direction, strict=True))


def opposite(direction: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-step for step in direction)


@dataclass(frozen=True)
class Kept:
    """What is kept of a shard while its neighbours come: components before it in the block, faces, classes."""

    offset: int
    faces: Faces
    classes: np.ndarray


class Layer:
    """Components of a block's shards in an archive: how many, which of them touch, and the block's outer faces.

    Shards are added in their order. Memory holds the faces of two layers of shards.

    Parameters
    ----------
    grid : LabelGrid
    block : int
    joining : Joining
    archive : ArchiveWriter
        Gets ``shards`` (components, pairs, bytes per voxel of each kept face or 0), and for each shard that was added
        ``pairs.<i>`` (numbers in the block, from 0) and ``face.<i>.<axis>.<side>``.
    """

    def __init__(self, grid: LabelGrid, block: int, joining: Joining, archive: ArchiveWriter):
        self.grid, self.block, self.joining, self._archive = grid, block, joining, archive
        self.boxes = grid.shards_of(block)
        self.components = 0
        self._kept: dict[tuple[int, ...], Kept] = {}
        self._shards = np.zeros((len(self.boxes), 8), np.int64)

    @property
    def pairs(self) -> int:
        return int(self._shards[:, 1].sum())

    def add(self, place: int, found: Labelling, classes: np.ndarray) -> None:
        """Add the components of a shard, by its place in the block; only those of one class can be joined."""
        self._shards[place, 0] = found.count
        if not self.grid.has_ids:
            self._add_contacts(place, Kept(self.components, faces_of(found.components), classes))
        self.components += found.count

    def _add_contacts(self, place: int, this: Kept) -> None:
        box = self.boxes[place]
        at = self.grid.shard_index(box)
        self._kept = {key: value for key, value in self._kept.items() if key[0] >= at[0] - 1}
        pairs = pairs_with(this, at, self._kept, self.joining)
        if len(pairs):
            self._archive.add(f"pairs.{place}", pairs)
            self._shards[place, 1] = len(pairs)
        for axis, side in outer_faces(self.grid, self.block, box):
            if (axis, side) in this.faces:
                self._archive.add(f"face.{place}.{axis}.{side}", this.faces[axis, side])
                self._shards[place, 2 + 2 * axis + side] = this.faces[axis, side].itemsize
        self._kept[at] = this

    def finish(self) -> None:
        self._archive.add("shards", self._shards)


def label_block(
    grid: LabelGrid,
    block: int,
    folder: Path,
    joining: Joining,
    out: Path,
    read: Reader,
    channels: int,
) -> dict[str, int]:
    """Label the labels of ``folder``, ``<sample>.b<block>.zarr``; see :func:`label_shards`."""
    return label_shards(grid, block, open_block(grid, folder), joining, out, read, channels)


def label_shards(
    grid: LabelGrid,
    block: int,
    labels_of: Callable[[Box], np.ndarray],
    joining: Joining,
    out: Path,
    read: Reader,
    channels: int,
) -> dict[str, int]:
    """Label the shards of a block, one after the other.

    Memory holds one shard, its components (2 or 4 bytes per voxel, and about as much again inside cc3d) and rows, and
    the faces of two layers of shards: about 16 bytes per voxel of a shard as measured, whatever the block. The archive
    holds the rows and the outer faces.

    Parameters
    ----------
    grid : LabelGrid
    block : int
    labels_of : callable
        Gives the labels (z, y, x) of a shard.
    joining : Joining
    out : Path
        Archive to write: what `Layer` has, and ``rows.<i>`` for each shard that has components.
    read : callable
        Gives raw values of the image.
    channels : int
        Of the image; 0 leaves intensities out.

    Returns
    -------
    dict
        ``shards``, ``components`` (of shards) and ``pairs``.

    Raises
    ------
    TemporaryError
        Where a shard of the labels is missing or damaged.
    """
    with create_archive(out) as archive:
        layer = Layer(grid, block, joining, archive)
        for place, box in enumerate(layer.boxes):
            labels = labels_of(box)
            if labels.any():
                labelling = label_shard(labels, grid, joining)
                rows = measure_shard(labels, labelling, box, grid, joining, read, channels)
                archive.add(f"rows.{place}", rows)
                layer.add(place, labelling, rows["class_value"].copy())
        layer.finish()
    return {"shards": len(layer.boxes), "components": layer.components, "pairs": layer.pairs}


def pairs_with(this: Kept, at: tuple[int, ...], kept: dict[tuple[int, ...], Kept], joining: Joining) -> np.ndarray:
    """Pairs of a shard's components with those of the shards before it, as numbers in the block from 0."""
    found = [np.empty((0, 2), np.int64)]
    for direction, index in neighbours(at):
        other = kept.get(index)
        if other is None:
            continue
        axis = next(i for i, step in enumerate(direction) if step)
        mine = this.faces.get(common_face(direction, axis))
        theirs = other.faces.get(common_face(opposite(direction), axis))
        if mine is None or theirs is None:
            continue
        pairs = touching(
            contact(mine, axis, direction), contact(theirs, axis, opposite(direction)), joining.connectivity
        )
        pairs = pairs[this.classes[pairs[:, 0] - 1] == other.classes[pairs[:, 1] - 1]]
        found.append(pairs - 1 + [this.offset, other.offset])
    return np.concatenate(found)


def outer_faces(grid: LabelGrid, block: int, box: Box) -> list[tuple[int, int]]:
    """(axis, side) of a shard's faces that lie on the outside of its block, but not on that of the sample."""
    return [
        (axis, side)
        for axis, (shard, whole, size) in enumerate(zip(box, grid.block_box(block), grid.shape, strict=True))
        for side in (0, 1)
        if shard[side] == whole[side] and shard[side] not in (0, size)
    ]


def open_block(grid: LabelGrid, folder: Path) -> Callable[[Box], np.ndarray]:
    """A function that reads a shard (z, y, x) of a block's labels, and fails where it was never written.

    Raises
    ------
    TemporaryError
        Here or on a read: the block did not arrive, or a shard is missing or damaged.
    """

    def lost(found: str) -> TemporaryError:
        return TemporaryError(
            f"labels of a block are incomplete: {found}",
            sample=grid.sample,
            file=folder,
            remedy="run again with -resume; if it stays, delete the task's work folder that wrote the block",
        )

    try:
        array = zarr.open_array(str(folder), path="0", mode="r")
    except (OSError, ValueError) as error:
        raise lost("it did not arrive") from error

    def read(box: Box) -> np.ndarray:
        where = "x".join(f"{start}-{stop}" for start, stop in box)
        try:
            labels = np.asarray(array[slices(box)])
        except (OSError, RuntimeError, ValueError) as error:
            raise lost(f"shard {where} cannot be read: {error}") from error
        if labels.max() == array.fill_value:
            raise lost(f"shard {where} was not written")
        return labels

    return read


def label_group(batch: str, group: int, folder: Path, joining: Joining, record: Task) -> None:
    """Label the blocks of one group.

    Parameters
    ----------
    batch : str
    group : int
    folder : Path
        Holds ``<batch>.blocks.csv``, ``<sample>.grid.json``, ``<sample>.image.json``, ``stores/`` and the blocks; gets
        ``<sample>/<sample>.b<block>.components``.
    joining : Joining
    record : Task
    """
    rows = [row for row in read_rows(folder / f"{batch}.blocks.csv", BlockRow) if row.group == group]
    for sample in dict.fromkeys(row.sample for row in rows):
        grid = LabelGrid.load(folder / f"{sample}.grid.json")
        image: StoredImage = staged_image(sample, folder)
        record.counts[sample] = {"blocks": 0, "shards": 0, "components": 0, "pairs": 0}
        for row in rows:
            if row.sample == sample:
                counts = label_block(
                    grid,
                    row.block,
                    folder / grid.block_name(row.block),
                    joining,
                    folder / sample / f"{sample}.b{row.block}.components",
                    image.read,
                    len(image.info.array.channels),
                )
                for name, n in {"blocks": 1, **counts}.items():
                    record.counts[sample][name] += n
