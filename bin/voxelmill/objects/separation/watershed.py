"""Objects of one class that touch, cut where they are thinnest: a watershed of the distance to what surrounds them.

The height of a voxel is the sum of the squared distances of the 27 voxels around it to the nearest voxel outside their
class, in whole numbers; single distances would put a seed on every bump of the surface. Voxels are in one total order:
the greater height first, then the smaller place in z, y, x order. The result is that of scikit-image's watershed of
this order on the whole volume, for any cut into windows.

No two voxels are equal, so that nothing depends on how long a voxel has waited in the queue. Call the bottleneck of a
voxel the last voxel in the order that its best way from a seed must cross. Flooding gives a voxel the label of the
neighbour whose bottleneck comes first, and neighbours with the same bottleneck have the same label; so labels follow
from best ways alone.

A window knows a part of this. Voxels that it cannot be sure of, because what lies beyond its faces could change their
height or make seeds of them, become markers of one label, UNDECIDED. Seen from the window their height is the true one
or greater, so that they come too early and never too late in the order, and all ways from beyond lead through them.
What a seed of the window reaches before them all the same, it reaches first in the whole volume.

Sources: F. Meyer, "Topographic distance and watershed lines", Signal Processing 38 (1994) 113-125; scikit-image,
``skimage.segmentation.watershed``; seeds as in ``skimage.feature.peak_local_max``, but with one seed for a plateau.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

from voxelmill.grid import LabelGrid
from voxelmill.image import Box, slices, whole
from voxelmill.objects.components import CLASS, FOREGROUND
from voxelmill.objects.separation.windows import UNDECIDED, bounding_box, widen
from voxelmill.objects.thinning import compiled

SEED_DISTANCE = 5.0
"""Voxels of the finest axis; a third of a particle's diameter is a good choice."""

UNIT = 1024
"""Weight of a step along the finest axis, before common factors are taken out: how finely ratios are told apart."""

Sides = tuple[tuple[bool, bool], ...]
"""For each axis, whether something unknown lies beyond the lower and the upper face."""


@dataclass(frozen=True)
class Metric:
    """Distances on a grid, as whole numbers.

    Attributes
    ----------
    weights : (3,) int
        A step of n voxels along an axis has the squared length ``weight * n**2``.
    reach : (3,) int
        Voxels on both sides of a seed among which there is no other in the same piece of the mask.
    """

    weights: tuple[int, ...]
    reach: tuple[int, ...]

    @classmethod
    def of(cls, shape: Sequence[int], spacing: Sequence[float], seed_distance: float) -> Metric:
        """Metric of a sample of `shape` voxels; an axis with a single plane has no say in which axis is the finest.

        `seed_distance` is in voxels of the finest axis. A seed's reach is at least one voxel.
        """
        extended = [size for n, size in zip(shape, spacing, strict=True) if n > 1]
        finest = min(extended or spacing)
        weights = [
            round((size / finest) ** 2 * UNIT) if n > 1 else UNIT for n, size in zip(shape, spacing, strict=True)
        ]
        common = math.gcd(*weights)
        return cls(
            tuple(weight // common for weight in weights),
            tuple(
                max(1, round(seed_distance * finest / size)) if n > 1 else 0
                for n, size in zip(shape, spacing, strict=True)
            ),
        )


@dataclass(frozen=True)
class Watershed:
    """How objects that touch are separated in windows of a sample.

    Attributes
    ----------
    read : callable
        Box of the sample -> labels (z, y, x).
    grid : LabelGrid
        Of the labels: shape, spacing and classes.
    components_of : str
        ``class``: every class is flooded for itself; ``foreground``: all of them together, and an object has the class
        of its seed.
    seed_distance : float
        Between two seeds at least, in voxels of the finest axis.
    halo : int
        Voxels to begin with on every side.
    """

    read: Callable[[Box], np.ndarray]
    grid: LabelGrid
    components_of: str = CLASS
    seed_distance: float = SEED_DISTANCE
    halo: int = 32

    bytes_per_voxel: ClassVar[int] = 64
    """Of a window, everything together: 36 to 41 as measured, more where most of it waits in the queue at once."""

    def flood(self, window: Box) -> np.ndarray:
        """Ids (int64, z y x) of a window (a box of the sample): 0 background, UNDECIDED where the window is too small.

        An id is ``place of the seed in z, y, x order * number of classes + place of its class + 1``.
        """
        metric = Metric.of(self.grid.shape, self.grid.spacing, self.seed_distance)
        return flood_labels(self.read(window), window, self.grid.shape, self.grid.values, metric, self.components_of)


def watershed_instances(
    labels: np.ndarray,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    seed_distance: float = SEED_DISTANCE,
    components_of: str = CLASS,
) -> np.ndarray:
    """Separate the objects of a whole array.

    Parameters
    ----------
    labels : (z, y, x) of integers or bool
        0 is background; every other value is a class.
    spacing : (3,) float
        Voxel size, in any unit.
    seed_distance : float
        Between two seeds at least, in voxels of the finest axis. Objects are cut into more pieces where it is smaller.
    components_of : str
        ``class``: objects are of one class; ``foreground``: classes do not matter.

    Returns
    -------
    (z, y, x) int64
        1 to the number of objects, in the order of their first voxels; 0 is background.
    """
    labels = np.asarray(labels).view(np.uint8) if labels.dtype == bool else labels
    values = tuple(int(value) for value in np.unique(labels) if value)
    if not values:
        return np.zeros(labels.shape, np.int64)
    metric = Metric.of(labels.shape, spacing, seed_distance)
    ids = flood_labels(labels, whole(labels.shape), labels.shape, values, metric, components_of)
    found, first, number = np.unique(ids, return_index=True, return_inverse=True)
    order = np.argsort(np.where(found == 0, -1, first))
    new = np.empty(len(found), np.int64)
    new[order] = np.arange(len(found)) + (found[0] != 0)
    return new[number].reshape(labels.shape)


def flood_labels(
    labels: np.ndarray,
    window: Box,
    shape: Sequence[int],
    values: Sequence[int],
    metric: Metric,
    components_of: str = CLASS,
) -> np.ndarray:
    """Ids of a window, as :meth:`Watershed.flood` gives them.

    Parameters
    ----------
    labels : (z, y, x)
        Of the window.
    window : Box
        Where it lies in the sample.
    shape : (3,) int
        Of the sample.
    values : sequence of int
        The classes, in the order in which ids count them.
    metric : Metric
    components_of : str

    Returns
    -------
    (z, y, x) int64
    """
    ids = np.zeros(labels.shape, np.int64)
    for value in values if components_of != FOREGROUND else [None]:
        mask = labels != 0 if value is None else labels == value
        found = bounding_box(mask, whole(mask.shape))
        if found is None:
            continue
        # outside of it nothing is nearer to a voxel of the mask than its own rim
        box = widen(found, 1, mask.shape)
        mask = np.ascontiguousarray(mask[slices(box)])
        numbers, seeds = flood_mask(mask, unknown_sides(box, window, shape), metric)
        classes = labels[slices(box)].ravel()[seeds]
        corner = [inner[0] + outer[0] for inner, outer in zip(box, window, strict=True)]
        table = np.empty(len(seeds) + 2, np.int64)
        table[0], table[-1] = 0, UNDECIDED
        table[1:-1] = places(seeds, mask.shape, corner, shape) * len(values) + position_of(classes, values) + 1
        np.copyto(ids[slices(box)], table[numbers], where=mask)
    return ids


def unknown_sides(box: Box, window: Box, shape: Sequence[int]) -> Sides:
    """Faces of a box in a window that are faces of the window, but not of the sample."""
    return tuple(
        (inner[0] == 0 and outer[0] > 0, inner[1] == outer[1] - outer[0] and outer[1] < size)
        for inner, outer, size in zip(box, window, shape, strict=True)
    )


def places(flat: np.ndarray, shape: Sequence[int], corner: Sequence[int], sample: Sequence[int]) -> np.ndarray:
    """Flat indices into an array of `shape` at `corner` -> flat indices (int64) into the sample."""
    index = np.unravel_index(flat, tuple(shape))
    z, y, x = (axis.astype(np.int64) + start for axis, start in zip(index, corner, strict=True))
    return (z * sample[1] + y) * sample[2] + x


def position_of(classes: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Where each class stands among the values."""
    order = np.argsort(values)
    return order[np.searchsorted(np.asarray(values), classes, sorter=order)]


def flood_mask(mask: np.ndarray, unknown: Sides, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """Flood one mask from its seeds.

    Parameters
    ----------
    mask : (z, y, x) bool, C-contiguous
    unknown : Sides
    metric : Metric

    Returns
    -------
    numbers : (z, y, x) int32
        1 to the number of seeds, 0 outside the mask, UNDECIDED.
    seeds : (n,) int64
        Flat indices of the seeds, ascending.
    """
    if mask.all() and any(itertools.chain(*unknown)):
        return np.full(mask.shape, UNDECIDED, np.int32), np.empty(0, np.int64)
    heights, sure = heights_of(mask, unknown, metric.weights)
    values = heights[mask]
    del heights
    order = in_order(values, mask)
    del values
    rank = np.full(mask.shape, -1, order.dtype)
    rank.ravel()[order] = np.arange(len(order), dtype=order.dtype)
    del order
    markers, seeds = find_seeds(rank, sure, metric.reach)
    markers[mask & ~sure] = UNDECIDED
    del sure
    return watershed(rank, markers, connectivity=np.ones((3, 3, 3)), mask=mask), seeds


def heights_of(mask: np.ndarray, unknown: Sides, weights: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the squared distances of the 27 voxels around every voxel, where faces of the sample repeat.

    Parameters
    ----------
    mask : (z, y, x) bool
        Something is outside it, or no side is unknown.
    unknown : Sides
    weights : (3,) int

    Returns
    -------
    heights : (z, y, x) int64
    sure : (z, y, x) bool
        Voxels of the mask whose height is that in the whole sample. That of others may be less; those at unknown sides
        have the greatest of all, because nothing is known of their neighbours.
    """
    heights = squared_distances(mask, weights)
    doubtful = mask & ~near(heights, unknown, weights)
    for axis in range(3):
        ndimage.convolve1d(heights, [1, 1, 1], axis=axis, output=heights, mode="nearest")
    greatest = heights.max() + 1
    if any(itertools.chain(*unknown)):
        doubtful = ndimage.maximum_filter(doubtful, size=3, mode="nearest")
        for axis, sides in enumerate(unknown):
            for face, there in zip((0, -1), sides, strict=True):
                if there:
                    np.moveaxis(heights, axis, 0)[face] = greatest
                    np.moveaxis(doubtful, axis, 0)[face] = True
    return heights, mask & ~doubtful


def squared_distances(mask: np.ndarray, weights: Sequence[int]) -> np.ndarray:
    """Exact squared distance (int64) of every voxel to the nearest one outside the mask; 0 if there is none.

    Distances come from the indices of the nearest voxel, so that they are whole numbers and equal ones are equal.
    """
    if mask.all():
        return np.zeros(mask.shape, np.int64)
    nearest = ndimage.distance_transform_edt(
        mask, sampling=np.sqrt(np.array(weights, float)), return_distances=False, return_indices=True
    )
    squares = np.empty(mask.shape, np.int64)
    places = np.ogrid[:1, : mask.shape[1], : mask.shape[2]]
    for plane in range(len(mask)):
        places[0][:] = plane
        steps = (nearest[axis, plane : plane + 1] - places[axis] for axis in range(3))
        squares[plane] = sum(weight * step**2 for weight, step in zip(weights, steps, strict=True))
    return squares


def near(squares: np.ndarray, unknown: Sides, weights: Sequence[int]) -> np.ndarray:
    """Where the nearest voxel is not farther away than anything beyond the unknown sides, so that it is the nearest."""
    found = np.ones(squares.shape, bool)
    for axis, (weight, (lower, upper)) in enumerate(zip(weights, unknown, strict=True)):
        steps = np.arange(1, squares.shape[axis] + 1, dtype=np.int64)
        for there, distance in ((lower, steps), (upper, steps[::-1])):
            if there:
                found &= squares <= (weight * distance**2).reshape([-1 if i == axis else 1 for i in range(3)])
    return found


def in_order(heights: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Flat indices of the voxels of a mask, the highest first; int32, or int64 in arrays of 2**31 voxels and more.

    `heights` are those of the voxels of the mask, in their order.
    """
    depths = heights.max() - heights
    # as few bits as possible: they are sorted the faster
    depths = depths.astype(np.min_scalar_type(int(depths.max())))
    kind = np.int32 if mask.size < 2**31 else np.int64
    order = np.argsort(depths, kind="stable").astype(kind)
    del depths
    return np.flatnonzero(mask).astype(kind)[order]


def find_seeds(rank: np.ndarray, sure: np.ndarray, reach: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Voxels that come first in their piece of the box around them.

    The piece are the voxels of the mask inside the box that are connected to the voxel (26 neighbours) inside the box.
    The first voxel of a component of the mask is always a seed.

    Parameters
    ----------
    rank : (z, y, x) of int
        -1 outside the mask.
    sure : (z, y, x) bool
        Voxels whose rank is that in the whole sample, and all of whose neighbours are here. Others may come too early.
    reach : (3,) int
        Half sides of the box.

    Returns
    -------
    markers : (z, y, x) int32
        1 to the number of seeds; UNDECIDED for a voxel that may be one; else 0.
    seeds : (n,) int64
        Flat indices of the seeds, ascending.
    """
    markers = np.zeros(rank.shape, np.int32)
    _mark_seeds(rank, sure, np.array(reach, np.int64), markers)
    seeds = np.flatnonzero(markers > 0)
    markers.ravel()[seeds] = np.arange(1, len(seeds) + 1)
    return markers, seeds


@compiled
def _beaten(rank: np.ndarray, sure: np.ndarray, z: int, y: int, x: int) -> bool:
    """Whether a neighbour surely comes before the voxel."""
    mine = rank[z, y, x]
    for k in range(max(z - 1, 0), min(z + 2, rank.shape[0])):
        for j in range(max(y - 1, 0), min(y + 2, rank.shape[1])):
            for i in range(max(x - 1, 0), min(x + 2, rank.shape[2])):
                if sure[k, j, i] and rank[k, j, i] < mine:
                    return True
    return False


@compiled
def _judge(
    rank: np.ndarray,
    sure: np.ndarray,
    reach: np.ndarray,
    z: int,
    y: int,
    x: int,
    queue: np.ndarray,
    seen: np.ndarray,
) -> int:
    """1 for a seed, 0 for none, -1 if voxels that are not sure decide."""
    mine = rank[z, y, x]
    z0, z1 = max(z - reach[0], 0), min(z + reach[0] + 1, rank.shape[0])
    y0, y1 = max(y - reach[1], 0), min(y + reach[1] + 1, rank.shape[1])
    x0, x1 = max(x - reach[2], 0), min(x + reach[2] + 1, rank.shape[2])
    # most seeds have no rival in all of the box: then it need not be walked through
    rivals = False
    for k in range(z0, z1):
        for j in range(y0, y1):
            for i in range(x0, x1):
                if rank[k, j, i] >= 0 and (rank[k, j, i] < mine or not sure[k, j, i]):
                    rivals = True
    if not rivals:
        return 1
    seen[:] = False
    seen[z - z0, y - y0, x - x0] = True
    queue[0, 0], queue[0, 1], queue[0, 2] = z, y, x
    done, end, verdict = 0, 1, 1
    while done < end:
        a, b, c = queue[done]
        done += 1
        for k in range(max(a - 1, z0), min(a + 2, z1)):
            for j in range(max(b - 1, y0), min(b + 2, y1)):
                for i in range(max(c - 1, x0), min(c + 2, x1)):
                    if rank[k, j, i] < 0 or seen[k - z0, j - y0, i - x0]:
                        continue
                    if not sure[k, j, i]:
                        verdict = -1
                    elif rank[k, j, i] < mine:
                        return 0
                    seen[k - z0, j - y0, i - x0] = True
                    queue[end, 0], queue[end, 1], queue[end, 2] = k, j, i
                    end += 1
    return verdict


@compiled
def _mark_seeds(rank: np.ndarray, sure: np.ndarray, reach: np.ndarray, markers: np.ndarray) -> None:
    """Verdict of every voxel; voxels that are not sure stay as they are."""
    size = (2 * reach[0] + 1) * (2 * reach[1] + 1) * (2 * reach[2] + 1)
    queue = np.empty((size, 3), np.int64)
    seen = np.empty((2 * reach[0] + 1, 2 * reach[1] + 1, 2 * reach[2] + 1), np.bool_)
    for z in range(rank.shape[0]):
        for y in range(rank.shape[1]):
            for x in range(rank.shape[2]):
                if sure[z, y, x] and not _beaten(rank, sure, z, y, x):
                    markers[z, y, x] = _judge(rank, sure, reach, z, y, x, queue, seen)
