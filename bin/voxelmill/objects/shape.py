"""Shape of objects at full resolution: surface or perimeter, diameter, axes, and what touches them.

All that is read off the voxels are whole numbers: how often each of the 256 possible cubes of eight voxels occurs, sums
of positions, faces shared with others. Numbers of the parts of an object add up, so that an object may be read in tiles
and has the very same measures.

Sources
-------
Surface: T. Lewiner, H. Lopes, A. W. Vieira, G. Tavares, "Efficient implementation of marching cubes' cases with
topological guarantees", Journal of Graphics Tools 8 (2003) 1-15, as ``skimage.measure.marching_cubes`` has it.
Sphericity: H. Wadell, Journal of Geology 43 (1935) 250-280. Axes: those of ``skimage.measure.regionprops``; elongation
and flatness: those of ITK's ``ShapeLabelObject`` (G. Lehmann, Insight Journal 2007).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from voxelmill.objects.thinning import compiled

CASES = 256
PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
"""Axes whose products of positions are summed, in this order."""

CONTACTS = 64
"""Room for the ids of others that an object touches, until more is needed."""

RECENT = 16
"""So many others that an object touched last are not written down again."""

ROUNDING = 1e-12
"""A variance below this share of the largest one is 0 but for rounding."""

LARGE = 2.0**62
"""Products of voxels and sums of products from which on 64 bits may be too few."""

CORNERS = np.array(list(itertools.product((0, 1), repeat=3)))
"""Corner k of a cube of eight voxels; bit k of its case is set where the voxel is of the object."""


@dataclass(frozen=True)
class Counts:
    """What is counted of n objects, or of a part of one; positions are relative to a corner.

    Attributes
    ----------
    voxels : (n,) int64
    first : (n, 3) int64
        Sums of positions (z, y, x).
    second : (n, 6) int64 or object
        Sums of products of positions, in the order of `PAIRS`; Python's whole numbers where int64 may be too small.
    cubes : (n, 256) int64
        Cubes of eight voxels by their case; 0 for those without a voxel of the object.
    faces : (n, 3) int64
        Faces across the axes z, y, x that are shared with voxels of other objects.
    starts : (n + 1,) int64
    others : (starts[-1],) int64
        Ids of the other objects, ascending: those of object k lie at ``starts[k]`` to ``starts[k + 1]``.
    """

    voxels: np.ndarray
    first: np.ndarray
    second: np.ndarray
    cubes: np.ndarray
    faces: np.ndarray
    starts: np.ndarray
    others: np.ndarray


def count(labels: np.ndarray, ids: np.ndarray, boxes: np.ndarray, ends: np.ndarray | None = None) -> Counts:
    """Count the voxels of objects in labels that were read together.

    Parameters
    ----------
    labels : (z, y, x) unsigned integers
        With a margin of one voxel around every box, except where the image ends: there background follows.
    ids : (n,) int64
    boxes : (n, 3, 2) int64
        In ``labels``; half-open. Positions count from their first corners.
    ends : (n, 3) bool, optional
        Whether the object ends with its box on each axis, so that the last cubes belong to it. All, unless a box is
        a tile of the object's box.
    """
    n = len(ids)
    last = np.ones((n, 3), bool) if ends is None else ends
    labels, numbers = np.ascontiguousarray(labels), ids.astype(labels.dtype)
    room = CONTACTS * (n + 1)
    while True:
        voxels, first, second = (np.zeros((n, *sides), np.int64) for sides in ((), (3,), (len(PAIRS),)))
        cubes, faces, starts = np.zeros((n, CASES), np.int64), np.zeros((n, 3), np.int64), np.zeros(n + 1, np.int64)
        others = np.empty(room, labels.dtype)
        wanted = _count(
            labels, numbers, boxes.astype(np.int64), last, voxels, first, second, cubes, faces, starts, others
        )
        if wanted <= room:
            # where the object is not, some are passed over and some are not
            cubes[:, 0] = 0
            starts, neighbours = distinct(starts, others[:wanted].astype(np.int64))
            return Counts(voxels, first, second, cubes, faces, starts, neighbours)
        room = wanted


def concatenate(counts: Sequence[Counts]) -> Counts:
    """Counts of many objects, from those of some at a time; at least one."""
    sizes = np.concatenate([[0], *(np.diff(part.starts) for part in counts)])
    names = ("voxels", "first", "second", "cubes", "faces")
    fields = {name: np.concatenate([getattr(part, name) for part in counts]) for name in names}
    return Counts(**fields, starts=np.cumsum(sizes), others=np.concatenate([part.others for part in counts]))


def distinct(starts: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different values of every object, ascending: of object k those at ``starts[k]`` to ``starts[k + 1]``.

    Returns
    -------
    starts, values : ndarray
    """
    owner = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    order = np.lexsort((values, owner))
    owner, values = owner[order], values[order]
    kept = np.ones(len(values), bool)
    kept[1:] = (values[1:] != values[:-1]) | (owner[1:] != owner[:-1])
    return np.searchsorted(owner[kept], np.arange(len(starts))), values[kept]


def add(parts: Sequence[Counts], corners: np.ndarray) -> Counts:
    """Put the parts of one object together.

    Parameters
    ----------
    parts : sequence of Counts
        At least one, of one object each.
    corners : (n, 3) int64
        First corners of the parts, relative to that of the object.
    """
    # products of positions of an object that is large enough may not fit into 64 bits
    voxels = np.array([int(part.voxels[0]) for part in parts], object)
    first = np.array([part.first[0].tolist() for part in parts], object)
    second = np.array([part.second[0].tolist() for part in parts], object)
    shift = corners.astype(object)
    for k, (i, j) in enumerate(PAIRS):
        second[:, k] += shift[:, i] * first[:, j] + shift[:, j] * first[:, i] + shift[:, i] * shift[:, j] * voxels
    first += shift * voxels[:, None]
    others = np.unique(np.concatenate([part.others for part in parts]))
    return Counts(
        np.array([voxels.sum()], np.int64),
        first.sum(axis=0)[None],
        second.sum(axis=0)[None],
        np.sum([part.cubes for part in parts], axis=0),
        np.sum([part.faces for part in parts], axis=0),
        np.array([0, len(others)]),
        others,
    )


def measures_of(counts: Counts, spacing: Sequence[float], plane: int | None) -> dict[str, np.ndarray]:
    """Measures of objects.

    Parameters
    ----------
    counts : Counts
    spacing : (3,) float
    plane : int or None
        The axis on which the image has a single plane; None for a volume.

    Returns
    -------
    dict
        Name -> (n,). Of a volume:

        ``equivalent_diameter``
            Of the ball of equal volume.
        ``surface``
            Area of the surface by marching cubes at the level 0.5, with a border of background: equal to
            ``skimage.measure.mesh_surface_area`` of ``marching_cubes``. Steps of the voxels make it too large: by 8 to
            9 % for a large ball.
        ``sphericity``
            Surface of the ball of equal volume, divided by the surface: 0.92 for a large ball, as its surface is too
            large; above 1 for less than about 20 voxels, whose corners the surface cuts off.
        ``axis_1``, ``axis_2``, ``axis_3``
            Full lengths of the axes of the ellipsoid with the same second moments, longest first. Voxels count as
            points at their centres, as in scikit-image and ITK: an object of one layer has an axis of length 0.
        ``elongation``, ``flatness``
            ``axis_1 / axis_2`` and ``axis_2 / axis_3``; NaN where the divisor is 0.
        ``neighbours``, ``contact_area``
            Other objects, of any class, that share a face of a voxel with it, and the area of these faces.

        Of a plane: ``perimeter`` (length of the contour halfway between pixels, by marching squares as
        ``skimage.measure.find_contours`` has it; 5 % too long for a large disc), ``circularity`` (perimeter of the disc
        of equal area, divided by the perimeter, squared), ``equivalent_diameter`` (of that disc), ``axis_1`` and
        ``axis_2`` of the ellipse, ``elongation``, ``neighbours`` and ``contact_length``.
    """
    sides = np.asarray(spacing, np.float64)
    axes = [axis for axis in range(3) if axis != plane]
    size = counts.voxels * np.prod(sides[axes])
    variances = np.linalg.eigvalsh(covariance(counts, sides)[:, axes][:, :, axes])[:, ::-1]
    variances = np.where(variances > ROUNDING * variances[:, :1], variances, 0.0)
    lengths = 2 * np.sqrt((len(axes) + 2) * variances)
    found = {f"axis_{k + 1}": lengths[:, k] for k in range(len(axes))}
    found["elongation"] = _ratio(lengths[:, 0], lengths[:, 1])
    found["neighbours"] = np.diff(counts.starts)
    if plane is None:
        found["equivalent_diameter"] = np.cbrt(6 * size / np.pi)
        found["surface"] = _dot(counts.cubes, areas(sides))
        found["sphericity"] = np.pi * found["equivalent_diameter"] ** 2 / found["surface"]
        found["flatness"] = _ratio(lengths[:, 1], lengths[:, 2])
        found["contact_area"] = _dot(counts.faces, np.prod(sides) / sides)
    else:
        found["equivalent_diameter"] = np.sqrt(4 * size / np.pi)
        found["perimeter"] = _dot(counts.cubes, outlines(sides, plane))
        found["circularity"] = 4 * np.pi * size / found["perimeter"] ** 2
        # a face across the one axis of the plane is as long as a pixel along the other
        found["contact_length"] = _dot(counts.faces[:, axes], sides[axes[::-1]])
    return found


def covariance(counts: Counts, sides: np.ndarray) -> np.ndarray:
    """Covariances of the positions of objects' voxels: (n, 3, 3) float64.

    Differences are taken of whole numbers: of an object that is very long they are far smaller than what they are of.
    """
    n = counts.voxels.astype(np.float64)
    found = np.empty((len(n), 3, 3))
    large = n * counts.second.max(axis=1, initial=0).astype(np.float64) >= LARGE
    for kind, rows in ((np.int64, ~large), (object, large)):
        voxels, first, second = (whole[rows].astype(kind) for whole in (counts.voxels, counts.first, counts.second))
        for k, (i, j) in enumerate(PAIRS):
            spread = (voxels * second[:, k] - first[:, i] * first[:, j]).astype(np.float64)
            found[rows, i, j] = found[rows, j, i] = spread / n[rows] ** 2 * (sides[i] * sides[j])
    return found


def areas(sides: np.ndarray) -> np.ndarray:
    """Area of the surface in a cube of eight voxels of each case: (256,) float64."""
    cases, triangles = _triangles()
    corners = triangles * sides
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return np.bincount(cases, np.linalg.norm(normals, axis=1) / 2, CASES)


def outlines(sides: np.ndarray, plane: int) -> np.ndarray:
    """Length of the contour of the one plane in a cube of eight voxels of each case: (256,) float64.

    Cubes that begin before the plane have its four pixels; those that begin in it have them too and do not count.
    """
    axes = [axis for axis in range(3) if axis != plane]
    high, wide = sides[axes]
    bits = (np.arange(CASES)[:, None] >> np.arange(8)) & 1
    of_plane = CORNERS[:, plane] == 1
    pixels = np.zeros((CASES, 2, 2), np.int64)
    for corner, here in zip(CORNERS[of_plane], bits.T[of_plane], strict=True):
        pixels[:, corner[axes[0]], corner[axes[1]]] = here
    set_pixels = pixels.sum(axis=(1, 2))
    diagonal = pixels[:, 0, 0] == pixels[:, 1, 1]
    length = np.zeros(CASES)
    length[(set_pixels == 1) | (set_pixels == 3)] = np.hypot(high, wide) / 2
    length[(set_pixels == 2) & diagonal] = np.hypot(high, wide)
    row = pixels[:, 0, 0] == pixels[:, 0, 1]
    length[(set_pixels == 2) & ~diagonal & row] = wide
    length[(set_pixels == 2) & ~diagonal & ~row] = high
    length[bits[:, ~of_plane].any(axis=1)] = 0
    return length


@cache
def _triangles() -> tuple[np.ndarray, np.ndarray]:
    """Triangles of all cases: the case of each (t,), and its corners (t, 3, 3) in voxels."""
    from skimage.measure import marching_cubes

    cases, triangles = [], []
    for case in range(1, CASES - 1):
        cube = np.zeros((2, 2, 2))
        cube[tuple(CORNERS[(case >> np.arange(8)) & 1 == 1].T)] = 1
        points, faces, _, _ = marching_cubes(cube, 0.5)
        triangles.append(points.astype(np.float64)[faces])
        cases.append(np.full(len(faces), case))
    return np.concatenate(cases), np.concatenate(triangles)


def _ratio(values: np.ndarray, divisors: np.ndarray) -> np.ndarray:
    """NaN where the divisor is 0."""
    return np.divide(values, divisors, out=np.full(len(values), np.nan), where=divisors > 0)


def _dot(counts: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Sums of a table's numbers (k,) over counts (n, k); an object has the same bytes in any company."""
    return np.add.reduce(counts * table, axis=1)


@compiled
def _count(
    labels: np.ndarray,
    ids: np.ndarray,
    boxes: np.ndarray,
    last: np.ndarray,
    voxels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    cubes: np.ndarray,
    faces: np.ndarray,
    starts: np.ndarray,
    others: np.ndarray,
) -> int:
    """Add to the fields of `Counts`, which are 0; see `count`.

    Ids of other objects may come more than once, in any order.

    Returns
    -------
    int
        Room that ``others`` must have; what found none is left out.
    """
    n = ids.size
    used = 0
    places = labels.reshape(-1)
    stride_z, stride_y = labels.shape[1] * labels.shape[2], labels.shape[2]
    steps = np.zeros(6, np.int64)
    for k in range(n):
        number = ids[k]
        z0, y0, x0 = boxes[k, 0, 0], boxes[k, 1, 0], boxes[k, 2, 0]
        depth, height, width = boxes[k, 0, 1] - z0, boxes[k, 1, 1] - y0, boxes[k, 2, 1] - x0
        # the object alone, with a border; and where each of its rows begins and ends
        rows = (depth + 2) * (height + 2)
        mask = np.zeros(rows * (width + 2), np.uint8)
        low, high = np.empty(rows, np.int64), np.empty(rows, np.int64)
        low[:], high[:] = width + 2, -1
        low_x, high_x = max(-1, -x0), min(width + 1, labels.shape[2] - x0)
        latest = number
        for z in range(max(-1, -z0), min(depth + 1, labels.shape[0] - z0)):
            # a step that would leave the labels stays on the object's own voxel
            steps[0] = -stride_z if z0 + z > 0 else 0
            steps[1] = stride_z if z0 + z + 1 < labels.shape[0] else 0
            for y in range(max(-1, -y0), min(height + 1, labels.shape[1] - y0)):
                steps[2] = -stride_y if y0 + y > 0 else 0
                steps[3] = stride_y if y0 + y + 1 < labels.shape[1] else 0
                line = (z + 1) * (height + 2) + y + 1
                inside = 0 <= z < depth and 0 <= y < height
                start = (z0 + z) * stride_z + (y0 + y) * stride_y + x0
                # without a branch the processor looks at many voxels at once
                hits = 0
                for at in range(start + low_x, start + high_x):
                    # an unsigned index is not looked at for counting from the end
                    hits |= places[np.uint64(at)] == number
                if not hits:
                    continue
                in_line = sum_x = sum_xx = 0
                for x in range(low_x, high_x):
                    at = start + x
                    if places[np.uint64(at)] != number:
                        continue
                    mask[np.uint64(line * (width + 2) + x + 1)] = 1
                    if high[line] < 0:
                        low[line] = x + 1
                    high[line] = x + 1
                    if not inside or x < 0 or x >= width:
                        continue
                    in_line += 1
                    sum_x += x
                    sum_xx += x * x
                    steps[4] = -1 if x0 + x > 0 else 0
                    steps[5] = 1 if x0 + x + 1 < labels.shape[2] else 0
                    for side in range(6):
                        other = places[np.uint64(at + steps[side])]
                        if other == number or other == 0:
                            continue
                        faces[k, side >> 1] += 1
                        # most faces in a row are shared with the same object, most of the rest with one of a few
                        if other != latest:
                            latest = other
                            known = False
                            for i in range(max(starts[k], used - RECENT), min(used, others.size)):
                                known |= others[i] == other
                            if not known:
                                if used < others.size:
                                    others[used] = other
                                used += 1
                voxels[k] += in_line
                first[k, 0] += z * in_line
                first[k, 1] += y * in_line
                first[k, 2] += sum_x
                second[k, 0] += z * z * in_line
                second[k, 1] += y * y * in_line
                second[k, 2] += sum_xx
                second[k, 3] += z * y * in_line
                second[k, 4] += z * sum_x
                second[k, 5] += y * sum_x
        starts[k + 1] = used
        cubes_x = width + (1 if last[k, 2] else 0)
        for z in range(depth + (1 if last[k, 0] else 0)):
            for y in range(height + (1 if last[k, 1] else 0)):
                line = z * (height + 2) + y
                below = line + height + 2
                left = min(low[line], low[line + 1], low[below], low[below + 1])
                right = max(high[line], high[line + 1], high[below], high[below + 1])
                a, b = line * (width + 2), (line + 1) * (width + 2)
                c, d = below * (width + 2), (below + 1) * (width + 2)
                x = max(left - 1, 0)
                before = _pillar(mask, a + x, b + x, c + x, d + x)
                while x < cubes_x and x <= right:
                    x += 1
                    behind = _pillar(mask, a + x, b + x, c + x, d + x)
                    cubes[k, np.uint64(before | behind << 1)] += 1
                    before = behind
    return used


@compiled
def _pillar(mask: np.ndarray, a: int, b: int, c: int, d: int) -> int:
    """Four voxels at one x, on the bits of a case where x is the first of a cube."""
    return int(
        np.int64(mask[np.uint64(a)])
        | np.int64(mask[np.uint64(b)]) << 2
        | np.int64(mask[np.uint64(c)]) << 4
        | np.int64(mask[np.uint64(d)]) << 6
    )
