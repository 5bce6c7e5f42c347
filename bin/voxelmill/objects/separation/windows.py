"""SEPARATE_OBJECTS: ids of objects that touch, shard by shard, each from a window around it that is wide enough.

A window beyond which the sample goes on cannot tell everything: voxels that what lies there may decide over are left
undecided and looked at again in a wider window around them alone, until none is left. So the ids are those of the
whole volume, whatever the shards, the blocks and the memory.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from voxelmill.errors import UsageError, VoxelmillError
from voxelmill.files import write_json
from voxelmill.grid import LabelGrid
from voxelmill.image import Box, cut_box, slices, whole
from voxelmill.store import create_array
from voxelmill.task import Progress

UNDECIDED = -1
"""Stands for an id that a window does not tell."""

CELL_HALOS = 4
"""What is left undecided is cut into cells of so many halos, to see where it lies apart."""


class Method(Protocol):
    """A way to tell objects apart. It knows the sample's shape, so that it knows where a window ends before the sample.

    Attributes
    ----------
    halo : int
        Voxels around a shard to begin with.
    bytes_per_voxel : int
        Of a window, at the peak, with the ids.
    """

    @property
    def halo(self) -> int: ...

    @property
    def bytes_per_voxel(self) -> int: ...

    def flood(self, window: Box) -> np.ndarray:
        """Ids (int64, z y x) of a box of the sample: 0 background, `UNDECIDED` where the window is too small."""


@runtime_checkable
class DiskMethod(Method, Protocol):
    """A method that can do without memory for a whole window."""

    def flood_on_disk(self, window: Box, box: Box, limit: int) -> np.ndarray:
        """As :meth:`Method.flood` for a box inside a window, with at most ``limit`` bytes of memory."""


def widen(box: Box, halo: int, shape: tuple[int, ...]) -> Box:
    """A box with ``halo`` voxels more on every side, as far as the sample reaches."""
    return tuple((max(0, a - halo), min(n, b + halo)) for (a, b), n in zip(box, shape, strict=True))


def sides(box: Box) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in box)


def inside(box: Box, outer: Box) -> Box:
    """A box counted from the first voxel of another."""
    return tuple((start - first, stop - first) for (start, stop), (first, _) in zip(box, outer, strict=True))


def overlap(first: Box, second: Box) -> Box:
    """What two boxes share; a side may be empty."""
    return tuple((max(a, c), max(min(b, d), a, c)) for (a, b), (c, d) in zip(first, second, strict=True))


def bounding_box(mask: np.ndarray, corner: Box) -> Box | None:
    """The box of what is set in a mask that begins at a corner of the sample; None where nothing is."""
    found = []
    for axis, (start, _) in enumerate(corner):
        along = np.flatnonzero(mask.any(axis=tuple(i for i in range(3) if i != axis)))
        if not len(along):
            return None
        found.append((start + int(along[0]), start + int(along[-1]) + 1))
    return tuple(found)


def boxes_of(mask: np.ndarray, corner: Box, halo: int, shape: tuple[int, ...]) -> list[Box]:
    """Boxes of what is set in a mask: one, or several where the windows around them are smaller together."""
    box = bounding_box(mask, corner)
    if box is None:
        return []
    cells = cut_box(box, (CELL_HALOS * halo,) * 3)
    found = [bounding_box(mask[slices(inside(cell, corner))], cell) for cell in cells]
    apart = [cell for cell in found if cell]
    windows = [sides(widen(cell, halo, shape)) for cell in apart]
    return apart if sum(map(math.prod, windows)) < math.prod(sides(widen(box, halo, shape))) else [box]


def halves(box: Box) -> list[Box]:
    """A box cut in two across its longest side."""
    lengths = sides(box)
    longest = lengths.index(max(lengths))
    return cut_box(box, [-(-n // 2) if axis == longest else n for axis, n in enumerate(lengths)])


def separate_box(method: Method, box: Box, shape: tuple[int, ...], limit: int) -> np.ndarray:
    """Ids of a box of the sample.

    Parameters
    ----------
    method : Method
    box : Box
    shape : tuple of int
        Of the sample.
    limit : int
        Bytes that a window may need. One that needs more is cut, but into parts that are no shorter than their halo:
        where even those need more, the method works on disk, if it can.

    Returns
    -------
    ndarray of int64, (z, y, x)

    Raises
    ------
    UsageError
        Where a window needs more memory and the method cannot work on disk.
    """
    ids = np.full(sides(box), UNDECIDED, np.int64)
    parts = [(box, method.halo)]
    while parts:
        part, halo = parts.pop()
        window = widen(part, halo, shape)
        least = tuple(min(n, min(side, halo) + 2 * halo) for side, n in zip(sides(part), sides(window), strict=True))
        if math.prod(sides(window)) * method.bytes_per_voxel <= limit:
            found = method.flood(window)[slices(inside(part, window))]
        elif math.prod(least) * method.bytes_per_voxel <= limit:
            parts += [(half, halo) for half in halves(part)]
            continue
        elif isinstance(method, DiskMethod):
            found = method.flood_on_disk(window, part, limit)
        else:
            raise too_large(least, window, math.prod(least) * method.bytes_per_voxel, limit)
        ids[slices(inside(part, box))] = found
        left = boxes_of(found == UNDECIDED, part, 2 * halo, shape)
        if left and window == whole(shape):
            raise RuntimeError(f"voxels are undecided in the whole volume, within {left[0]}")
        parts += [(box_left, 2 * halo) for box_left in left]
    return ids


def too_large(least: tuple[int, ...], window: Box, needed: int, limit: int) -> UsageError:
    """What to say where a window of the ``least`` sides inside ``window`` does not fit into memory."""
    where, size = "x".join(f"{start}-{stop}" for start, stop in window), "x".join(map(str, least))
    return UsageError(
        f"objects that touch in {where} (z, y, x) cannot be told apart with less than {size} voxels at a time, "
        f"which need {needed / 1e9:.1f} GB",
        expected=f"at most {limit / 1e9:.1f} GB",
        remedy=f"give --memory_budget at least {needed / 1e9 + 1:.1f} GB",
    )


def separate_block(
    method: Method, grid: LabelGrid, block: int, out: Path, limit: int, progress: Progress
) -> dict[int, int]:
    """Write the ids of a block, shard by shard.

    Memory holds the ids of a shard twice and a window.

    Parameters
    ----------
    method : Method
    grid : LabelGrid
        Of the ids.
    block : int
    out : Path
        Folder to make: an array ``0`` of ids and ``counts.json``, voxels of the background and of every class.
    limit : int
        Bytes that a window may need.
    progress : Progress
        Of shards.

    Returns
    -------
    dict
        Voxels of the background (0) and of every class.
    """
    array = create_array(out / "0", grid.shape, grid.dtype, grid.shard, "zyx")
    classes = np.zeros(len(grid.values), np.int64)
    total = 0
    for box in grid.shards_of(block):
        try:
            ids = separate_box(method, box, grid.shape, limit)
        except VoxelmillError as error:
            error.sample = error.sample or grid.sample
            raise
        progress.advance(1)
        array[slices(box)] = ids.view(np.uint64).astype(grid.dtype, copy=False)
        total += ids.size
        for plane in ids:
            classes += np.bincount((plane[plane > 0] - 1) % len(classes), minlength=len(classes))
    voxels = {0: total - int(classes.sum())} | {value: int(n) for value, n in zip(grid.values, classes, strict=True)}
    write_json(out / "counts.json", {str(value): n for value, n in voxels.items() if n})
    return voxels
