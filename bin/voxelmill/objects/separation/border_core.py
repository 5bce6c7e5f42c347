"""Objects from labels of their cores and borders: every border voxel goes to the core that is the fewest steps away.

Steps go to the 26 neighbours inside a region of core and border; of equally near cores the one that comes last in
z, y, x order of the first voxels takes it. A region without a core is one object.

Source: ``border_core2instance`` of ParticleSeg3D (K. Gotkowski et al. 2024), which dilates the cores of each region
again and again by 3x3x3 voxels: that is the same.
"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import cc3d
import numpy as np
from numpy.typing import DTypeLike

from voxelmill.errors import TemporaryError
from voxelmill.grid import LabelGrid
from voxelmill.image import Box, cut_box, slices, whole
from voxelmill.objects.separation.cores import count_cores, too_small
from voxelmill.objects.separation.gather import describe
from voxelmill.objects.separation.growth import BACKGROUND, FAR, UNASSIGNED, UNKNOWN, grow, relax
from voxelmill.objects.separation.marks import Markers
from voxelmill.objects.separation.windows import UNDECIDED, inside, overlap, sides, widen
from voxelmill.objects.thinning import compiled

HALO = 8
"""Borders are a few voxels thick; whatever is thicker is looked at again."""

BYTES_PER_VOXEL = 20
"""Of a window: ids, and for each voxel without a marker its place in a queue: up to 16 as measured."""

DISK_BYTES_PER_VOXEL = 40
"""Of a part of a window whose ids and distances are on disk: both twice, and the marks."""

SMALLEST_PART = 16
"""Voxels along a side of such a part, however little memory there is."""


@dataclass(frozen=True)
class BorderCore:
    """Implements `windows.DiskMethod`.

    Attributes
    ----------
    grid : LabelGrid
    read : callable
        Gives the marks (z, y, x) of a box of the sample.
    markers : Markers
    scratch : Path
        Folder for what does not fit into memory: 12 bytes per voxel of a window.
    """

    grid: LabelGrid
    read: Callable[[Box], np.ndarray]
    markers: Markers
    scratch: Path
    halo: int = HALO
    bytes_per_voxel: int = BYTES_PER_VOXEL

    def flood(self, window: Box) -> np.ndarray:
        """Ids (int64, z y x) of a box of the sample; `UNDECIDED` where what lies beyond may be nearer."""
        if all(len(self.markers.table(self.grid.shard_index(shard))) == 1 for shard in shards_in(self.grid, window)):
            return np.zeros(sides(window), np.int64)
        padded = self._padded(window)
        grow(padded)
        ids = padded[1:-1, 1:-1, 1:-1]
        hide_unknown(ids)
        return ids

    def _padded(self, window: Box) -> np.ndarray:
        """States of a window with one voxel more on every side: unknown inside of the sample, else background."""
        frame = tuple((start - 1, stop + 1) for start, stop in window)
        padded = np.zeros(sides(frame), np.int64)
        padded[slices(inside(widen(window, 1, self.grid.shape), frame))] = UNKNOWN
        self._write_states(padded[1:-1, 1:-1, 1:-1], window)
        return padded

    def _write_states(self, states: np.ndarray, box: Box) -> None:
        """Put markers, `UNASSIGNED` and `BACKGROUND` of a box of the sample into an array of its shape."""
        for shard in shards_in(self.grid, box):
            part = overlap(shard, box)
            target = states[slices(inside(part, box))]
            table = self.markers.table(self.grid.shard_index(shard))
            if len(table) == 1:
                target[...] = BACKGROUND
                continue
            try:
                for plane, marks in zip(target, self.read(part), strict=True):
                    plane[...] = table[marks]
            except IndexError as error:
                raise TemporaryError(
                    f"marks and markers of {describe(shard)} do not belong together",
                    sample=self.grid.sample,
                    remedy="run again with -resume; if it stays, delete the work folder of LINK_CORES",
                ) from error

    def flood_on_disk(self, window: Box, box: Box, limit: int) -> np.ndarray:
        """As :meth:`flood` for a box inside a window, in parts that fit into ``limit`` bytes.

        Ids and distances of the window are on disk. A part is relaxed with one voxel of its neighbours around it, again
        whenever a neighbour has changed, until nothing changes.
        """
        shape = sides(window)
        side = max(SMALLEST_PART, int((limit / DISK_BYTES_PER_VOXEL) ** (1 / 3)) - 2)
        parts = {tuple(start // side for start, _ in part): part for part in cut_box(whole(shape), (side,) * 3)}
        with (
            tempfile.TemporaryFile(dir=self.scratch) as id_file,
            tempfile.TemporaryFile(dir=self.scratch) as distance_file,
        ):
            ids, distances = on_disk(id_file, np.int64, shape), on_disk(distance_file, np.int32, shape)
            corner = [start for start, _ in window]
            for part in parts.values():
                at = tuple((a + c, b + c) for (a, b), c in zip(part, corner, strict=True))
                states = np.empty(sides(part), np.int64)
                self._write_states(states, at)
                ids[slices(part)] = states
                distances[slices(part)] = np.where(states > UNASSIGNED, 0, FAR)
            waiting = set(parts)
            while waiting:
                # there and back, so that what has far to go is not held up at every part
                for index in [*sorted(waiting), *sorted(waiting, reverse=True)]:
                    if index in waiting:
                        waiting.discard(index)
                        if self._relax_part(ids, distances, parts[index], window):
                            waiting |= {other for other in neighbours_of(index) if other in parts}
            found = np.array(ids[slices(inside(box, window))])
        hide_unknown(found)
        return found

    def _relax_part(self, ids: np.ndarray, distances: np.ndarray, part: Box, window: Box) -> bool:
        """Relax a part of a window that is on disk -> whether it changed."""
        frame = tuple((start - 1, stop + 1) for start, stop in part)
        known = widen(part, 1, ids.shape)
        in_sample = overlap(frame, inside(whole(self.grid.shape), window))
        my_ids, my_distances = np.zeros(sides(frame), np.int64), np.zeros(sides(frame), np.int32)
        my_ids[slices(inside(in_sample, frame))] = UNKNOWN
        my_ids[slices(inside(known, frame))] = ids[slices(known)]
        my_distances[slices(inside(known, frame))] = distances[slices(known)]
        changed = relax(my_ids, my_distances)
        if changed:
            ids[slices(part)] = my_ids[1:-1, 1:-1, 1:-1]
            distances[slices(part)] = my_distances[1:-1, 1:-1, 1:-1]
        return changed


def on_disk(file: IO[bytes], dtype: DTypeLike, shape: tuple[int, ...]) -> np.ndarray:
    """An array in a file. Its space is taken now, so that a full disk is an error and not the end of the process."""
    os.posix_fallocate(file.fileno(), 0, math.prod(shape) * np.dtype(dtype).itemsize)
    return np.memmap(file, dtype, "r+", shape=shape)


def shards_in(grid: LabelGrid, box: Box) -> Iterator[Box]:
    """Boxes of the shards that a box of the sample reaches into."""
    starts = (range(start // side * side, stop, side) for (start, stop), side in zip(box, grid.shard, strict=True))
    for corner in itertools.product(*starts):
        yield tuple((a, min(a + side, n)) for a, side, n in zip(corner, grid.shard, grid.shape, strict=True))


def neighbours_of(index: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The 26 positions of a grid around one, whether they exist or not."""
    for step in itertools.product((-1, 0, 1), repeat=3):
        if any(step):
            yield tuple(i + s for i, s in zip(index, step, strict=True))


@compiled
def hide_unknown(ids: np.ndarray) -> None:
    """Replace what no marker, or the unknown, has reached by `UNDECIDED`, in place."""
    for z in range(ids.shape[0]):
        for y in range(ids.shape[1]):
            for x in range(ids.shape[2]):
                if ids[z, y, x] == UNASSIGNED or ids[z, y, x] == UNKNOWN:
                    ids[z, y, x] = UNDECIDED


def border_core_instances(labels: np.ndarray, core: int = 1, border: int = 2) -> np.ndarray:
    """Objects of a whole array of labels in memory.

    Besides labels and objects, memory holds 2 bytes per voxel, what cc3d needs and 8 bytes for each voxel of border.

    Parameters
    ----------
    labels : ndarray of an integer type, (z, y, x)
        Values other than the two labels are background.
    core, border : int
        Values of the labels.

    Returns
    -------
    ndarray of int32, (z, y, x)
        1 to N in the order of the objects' first voxels, 0 in the background: what the pipeline makes of the same
        labels in blocks.
    """
    mask = labels == core
    # a rim of background: growth needs one, and cc3d 4.1.1 fails on a line of voxels without one
    padded, count = cc3d.connected_components(
        np.pad(mask, 1), connectivity=6, binary_image=True, return_N=True, out_dtype=np.uint32
    )
    ids = padded.view(np.int32)
    inner = ids[1:-1, 1:-1, 1:-1]
    small = too_small(count_cores(mask, inner, count, whole(labels.shape), whole(labels.shape), labels.shape))
    states = np.zeros(count + 1, np.int32)
    states[1:] = np.where(small, UNASSIGNED, np.arange(2, count + 2))
    place_markers(inner, states, np.equal(labels, border, out=mask))
    grow(ids)
    if (inner == UNASSIGNED).any():
        alone = cc3d.connected_components(ids == UNASSIGNED, connectivity=26, binary_image=True)
        np.copyto(ids, alone.astype(np.int32) + np.int32(count + 1), where=alone > 0)
        count += int(alone.max())
    instances = np.empty(labels.shape, np.int32)
    number_by_first_voxel(inner, np.zeros(count + 2, np.int32), instances)
    return instances


@compiled
def place_markers(ids: np.ndarray, states: np.ndarray, border: np.ndarray) -> None:
    """Numbers of cores -> states; border without a core -> `UNASSIGNED`; in place."""
    for z in range(ids.shape[0]):
        for y in range(ids.shape[1]):
            for x in range(ids.shape[2]):
                ids[z, y, x] = UNASSIGNED if border[z, y, x] else states[ids[z, y, x]]


@compiled
def number_by_first_voxel(ids: np.ndarray, numbers: np.ndarray, numbered: np.ndarray) -> None:
    """Number ids anew from 1 in the order in which they are met; ``numbers`` is a table of zeros for them."""
    count = 0
    for z in range(ids.shape[0]):
        for y in range(ids.shape[1]):
            for x in range(ids.shape[2]):
                old = ids[z, y, x]
                if old != BACKGROUND and numbers[old] == 0:
                    count += 1
                    numbers[old] = count
                numbered[z, y, x] = numbers[old]
