"""Skeletons of objects: thinning, one object at a time. Axis order z, y, x.

Source: T.-C. Lee, R. L. Kashyap, C.-N. Chu, "Building skeleton models via 3-D medial surface/axis thinning algorithms",
CVGIP: Graphical Models and Image Processing 56 (1994) 462-478, in the reading of scikit-image 0.26,
``skimage.morphology.skeletonize(method="lee")`` (after Skeletonize3D of I. Arganda-Carreras), to which it is equal
voxel for voxel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numba
import numpy as np

Function = TypeVar("Function", bound=Callable)

NEIGHBOURS = np.array([step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)])
"""Steps to the 26 neighbours in raster order; a neighbourhood is an integer whose bit k is the k-th of them."""

DIRECTIONS = np.array([(0, -1, 0), (0, 1, 0), (0, 0, 1), (0, 0, -1), (1, 0, 0), (-1, 0, 0)])
"""The sides from which thinning peels, in the order of scikit-image; an image of one plane is peeled from four."""


def compiled(function: Function) -> Function:
    """Compile to machine code at the first call."""
    machine_code: Any = numba.njit(nogil=True, error_model="numpy")(function)
    return machine_code


@dataclass(frozen=True)
class Skeleton:
    """The skeleton of one object.

    Attributes
    ----------
    voxels : (n, 3) int64
        Indices in the object's mask, in raster order; at least one.
    distances : (n,) float64
        From each of them to the nearest voxel outside the object, centre to centre, in the unit of the spacing.
    empty : bool
        Whether thinning left nothing, so that the voxel nearest to the centroid stands in.
    """

    voxels: np.ndarray
    distances: np.ndarray
    empty: bool


def skeletonize(mask: np.ndarray, spacing: Sequence[float], flat: Sequence[bool] = (False, False, False)) -> Skeleton:
    """Thin one object to its skeleton.

    Parameters
    ----------
    mask : (z, y, x) bool
        The object's box; at least one voxel is set. What lies outside is background.
    spacing : (3,) float
    flat : (3,) bool
        Axes on which the image has a single plane: there is no distance to the background along them.

    Returns
    -------
    Skeleton
        Its voxels equal those of ``skimage.morphology.skeletonize(mask, method="lee")``, its distances those of
        ``scipy.ndimage.distance_transform_edt(mask, sampling=spacing)`` with a border of background around the mask.
        Thinning can leave nothing of thick bars with even sides (scikit-image#3757); then it is the voxel of the object
        that is nearest to its centroid, the first in raster order of equally near ones.
    """
    image = np.zeros([n + 2 for n in mask.shape], dtype=np.uint8)
    image[1:-1, 1:-1, 1:-1] = mask
    strides = np.array([image.shape[1] * image.shape[2], image.shape[2], 1])
    voxels = image.reshape(-1)
    found = np.flatnonzero(voxels.view(bool))
    directions = DIRECTIONS[: 4 if mask.shape[0] == 1 else 6] @ strides
    kept = _thin(voxels, found, NEIGHBOURS @ strides, directions, _euler_table(), _octants())
    empty = not len(kept)
    if empty:
        kept = _nearest_to_centroid(found, image.shape, spacing)
    indices = np.stack(np.unravel_index(kept, image.shape), axis=1)
    sides = np.where(flat, np.inf, np.asarray(spacing, dtype=np.float64))
    positions = indices * np.where(flat, 0.0, sides)
    return Skeleton(indices - 1, _distances(voxels, kept, positions, strides, sides), empty)


@cache
def _octants() -> np.ndarray:
    """The eight 2x2x2 cubes around a voxel, without it: (8,) int64 sets of neighbours."""
    cubes = (
        np.sum(1 << np.flatnonzero(((NEIGHBOURS == 0) | (corner == NEIGHBOURS)).all(axis=1)))
        for corner in itertools.product((-1, 1), repeat=3)
    )
    return np.array(list(cubes), dtype=np.int64)


@cache
def _euler_table() -> np.ndarray:
    """Eight times what a voxel adds to the Euler number in one half (four octants) of its neighbourhood.

    Index: the nine neighbours of an outer plane, then the eight of the middle plane, one bit each in raster order. In
    an octant the voxel brings a corner, three halves of edges, three quarters of faces and an eighth of its volume; a
    part that another voxel has too adds nothing. The sum over all octants is column delta G26 of table 2 of Lee et al.

    Returns
    -------
    (2**17,) int8
    """
    sets = np.arange(1 << 17)
    middle = [(y, x) for z, y, x in NEIGHBOURS.tolist() if z == 0]

    def outer(y: int, x: int) -> np.ndarray:
        return (sets >> (3 * (y + 1) + x + 1)) & 1

    def inner(y: int, x: int) -> np.ndarray:
        return (sets >> (9 + middle.index((y, x)))) & 1

    def absent(*neighbours: np.ndarray) -> np.ndarray:
        return 1 - np.bitwise_or.reduce(neighbours)

    total = np.zeros(sets.shape, dtype=np.int64)
    for y, x in itertools.product((-1, 1), repeat=2):
        faces = outer(0, 0), inner(y, 0), inner(0, x)
        edges = inner(y, x), outer(0, x), outer(y, 0)
        total += 8 * absent(*faces, *edges, outer(y, x)) - 1
        total += sum(2 * absent(face) for face in faces)
        for k, edge in enumerate(edges):
            total -= 4 * absent(edge, *(face for j, face in enumerate(faces) if j != k))
    return total.astype(np.int8)


@compiled
def _neighbourhood(image: np.ndarray, at: int, neighbours: np.ndarray) -> int:
    """Set of the neighbours that are 1."""
    found = 0
    for k in range(26):
        # an unsigned index is not looked at for counting from the end
        if image[np.uint64(at + neighbours[k])] == 1:
            found |= 1 << k
    return found


@compiled
def _is_simple(found: int, octants: np.ndarray) -> bool:
    """Whether the neighbours are connected without the voxel: those of one octant always are."""
    reached = found & -found
    while reached != found:
        before = reached
        for k in range(8):
            if reached & octants[k]:
                reached |= found & octants[k]
        if reached == before:
            return False
    return True


@compiled
def _thin(
    image: np.ndarray,
    voxels: np.ndarray,
    neighbours: np.ndarray,
    directions: np.ndarray,
    euler: np.ndarray,
    octants: np.ndarray,
) -> np.ndarray:
    """Peel until nothing changes.

    Parameters
    ----------
    image : (n,) uint8
        0 background, 1 object, with a border of background. Voxels that are taken away become 2.
    voxels : (m,) int64
        Where the object is, in raster order.
    neighbours, directions : int64
        Steps in `image`.
    euler, octants : arrays
        See `_euler_table` and `_octants`.

    Returns
    -------
    (k,) int64
        Where the skeleton is, in raster order.
    """
    left = voxels.copy()
    waiting = np.empty_like(voxels)
    n, unchanged = left.size, 0
    while unchanged < directions.size:
        unchanged = 0
        for direction in directions:
            kept = candidates = 0
            for i in range(n):
                at = left[i]
                if image[at] != 1:
                    continue
                left[kept] = at
                kept += 1
                if image[np.uint64(at + direction)] == 1:
                    continue
                found = _neighbourhood(image, at, neighbours)
                # the end of a line has one neighbour
                if found & (found - 1) == 0:
                    continue
                middle = (found >> 9 & 255) << 9
                if euler[found & 511 | middle] + euler[found >> 17 | middle] == 0 and _is_simple(found, octants):
                    waiting[candidates] = at
                    candidates += 1
            n = kept
            changed = False
            for i in range(candidates):
                # what went before it may have made it matter
                if _is_simple(_neighbourhood(image, waiting[i], neighbours), octants):
                    image[waiting[i]] = 2
                    changed = True
            if not changed:
                unchanged += 1
    return left[:n]


@compiled
def _distances(
    image: np.ndarray, voxels: np.ndarray, positions: np.ndarray, strides: np.ndarray, sides: np.ndarray
) -> np.ndarray:
    """Distance from voxels of an object to the nearest background voxel.

    Lines along x are searched outwards from each voxel while they can hold a nearer one. Distances of near voxels
    differ by less than the way between them, which tells how far the search need not look. The border of background
    ends every search before it leaves the image.

    Parameters
    ----------
    image : (n,) uint8
        0 background, with a border of it.
    voxels : (m,) int64
        Places in `image`.
    positions : (m, 3) float64
        In the unit of the spacing.
    strides : (3,) int64
    sides : (3,) float64
        Spacing; infinite on an axis without distances.

    Returns
    -------
    (m,) float64
    """
    distances = np.empty(voxels.size)
    for i in range(voxels.size):
        at, low = voxels[i], 0.0
        for j in range(max(0, i - 16), i):
            way = 0.0
            for axis in range(3):
                way += (positions[i, axis] - positions[j, axis]) ** 2
            low = max(low, distances[j] - np.sqrt(way))
        low = (low * (1 - 1e-9)) ** 2
        best = np.inf
        z, over_z = 0, 0.0
        while over_z < best:
            y, over_y = 0, over_z
            while over_y < best:
                x = 0 if over_y >= low else int(np.sqrt(low - over_y) / sides[2])
                over_x = over_y + (x * sides[2]) ** 2 if x else over_y
                while over_x < best:
                    for corner in range(8):
                        place = at + (z if corner & 4 else -z) * strides[0]
                        place += (y if corner & 2 else -y) * strides[1] + (x if corner & 1 else -x)
                        if image[np.uint64(place)] == 0:
                            best = over_x
                    x += 1
                    over_x = over_y + (x * sides[2]) ** 2
                y += 1
                over_y = over_z + (y * sides[1]) ** 2
            z += 1
            over_z = (z * sides[0]) ** 2
        distances[i] = np.sqrt(best)
    return distances


def _nearest_to_centroid(found: np.ndarray, shape: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
    """(1,) place of the voxel nearest to the centroid."""
    places = np.stack(np.unravel_index(found, shape), axis=1) * np.asarray(spacing)
    return found[[np.argmin(np.square(places - places.mean(axis=0)).sum(axis=1))]]
