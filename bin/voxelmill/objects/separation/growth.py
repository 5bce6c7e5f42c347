"""Markers grow into what is not assigned yet, by steps to the 26 neighbours, and so does what lies beyond a window.

A voxel takes the marker that is the fewest steps away, the largest of equally near ones. Because the unknown is larger
than every marker, a voxel that it could reach as early as a marker becomes unknown; all others are what they are in the
whole volume, for a path from beyond the window is longer than theirs.
"""

from __future__ import annotations

import itertools

import numpy as np

from voxelmill.objects.thinning import compiled

BACKGROUND, UNASSIGNED = 0, 1
"""States of a voxel besides the markers, which are 2 and larger."""

UNKNOWN = np.iinfo(np.int64).max
"""Marker of what lies beyond a window, larger than all others."""

FAR = np.iinfo(np.int32).max
"""Steps to a voxel that no marker has reached."""

BEFORE = np.array([step for step in itertools.product((-1, 0, 1), repeat=3) if step < (0, 0, 0)])
"""The 13 neighbours of a voxel that come before it in z, y, x order."""


def grow(ids: np.ndarray) -> int:
    """Assign every voxel that a marker can reach, in place.

    Parameters
    ----------
    ids : ndarray of a signed integer type, (z, y, x), contiguous
        `BACKGROUND`, `UNASSIGNED` or a marker; the outermost voxels on every side must not be `UNASSIGNED`. Those that
        no marker reaches stay `UNASSIGNED`.

    Returns
    -------
    int
        Steps to the farthest voxel.

    Notes
    -----
    Besides the array, memory holds 8 bytes for each unassigned voxel.
    """
    steps = _flat(BEFORE, ids.shape)
    return int(_grow(ids.reshape(-1), np.concatenate([steps, -steps])))


def relax(ids: np.ndarray, distances: np.ndarray) -> bool:
    """As :func:`grow` where some voxels know a distance already, which may still be too long.

    Parameters
    ----------
    ids : ndarray of int64, (z, y, x), contiguous
        Changed in place, but for the outermost voxels.
    distances : ndarray of int32, (z, y, x), contiguous
        Steps to the marker in `ids`, `FAR` where it is none; 0 at voxels that keep their marker. Changed with `ids`.

    Returns
    -------
    bool
        Whether any voxel changed.

    Notes
    -----
    (fewer steps, larger marker) is a total order of which each voxel takes the best it is offered: the result depends
    neither on the order of the voxels nor, where it is called for parts of a volume in turn, on that of the parts.
    """
    return bool(_relax(ids, distances, _flat(BEFORE, ids.shape)))


def _flat(steps: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return steps @ np.array([shape[1] * shape[2], shape[2], 1])


@compiled
def _grow(ids: np.ndarray, steps: np.ndarray) -> int:
    count = 0
    for v in range(ids.size):
        if ids[v] == UNASSIGNED:
            count += 1
    queue = np.empty(count, np.int64)
    end = 0
    # a voxel that is claimed in this step holds the negative of its marker until all of the step are known
    for v in range(ids.size):
        if ids[v] == UNASSIGNED:
            best = ids[v]
            for k in range(steps.size):
                found = ids[v + steps[k]]
                if found > best:
                    best = found
            if best > UNASSIGNED:
                ids[v] = -best
                queue[end] = v
                end += 1
    begin, distance = 0, 0
    while begin < end:
        distance += 1
        last = end
        for i in range(begin, last):
            ids[queue[i]] = -ids[queue[i]]
        if end == count:
            break
        for i in range(begin, last):
            v = queue[i]
            marker = ids[v]
            for k in range(steps.size):
                u = v + steps[k]
                found = ids[u]
                if found == UNASSIGNED:
                    ids[u] = -marker
                    queue[end] = u
                    end += 1
                elif found < 0 and found > -marker:
                    ids[u] = -marker
        begin = last
    return distance


@compiled
def _relax(ids: np.ndarray, distances: np.ndarray, before: np.ndarray) -> bool:
    height, width = ids.shape[1:]
    id_of, far = ids.reshape(-1), distances.reshape(-1)
    first = (height + 1) * width + 1
    changed, again = False, True
    while again:
        again = False
        for direction in (1, -1):
            for i in range(ids.size - 2 * first):
                v = first + i if direction == 1 else ids.size - 1 - first - i
                y, x = v // width % height, v % width
                if id_of[v] == BACKGROUND or far[v] == 0 or y in (0, height - 1) or x in (0, width - 1):
                    continue
                for k in range(before.size):
                    u = v + direction * before[k]
                    if id_of[u] > UNASSIGNED and far[u] < far[v]:
                        nearer = far[u] + 1
                        if nearer < far[v] or id_of[u] > id_of[v]:
                            far[v] = nearer
                            id_of[v] = id_of[u]
                            again = True
        changed = changed or again
    return changed
