"""Are the borders of blocks visible in the labels? What a figure of the report says about every sample."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr
from scipy.special import stdtrit

from voxelmill.image import cut_box, slices
from voxelmill.store import CHUNK

AXES = "zyx"


def seam_ratios(array: zarr.Array, cuts: Sequence[Sequence[int]], shard: Sequence[int]) -> list[dict[str, Any]]:
    """How often the label changes between the two planes at a border of blocks, beside the same inside the blocks.

    Every border is compared with the middles of the two blocks that meet there. Where labels do not depend on the
    blocks the ratio is one, but for chance; broken objects or a shift at the borders raise it.

    Two planes are read at a time, shard by shard.

    Parameters
    ----------
    array : zarr.Array
        Labels (z, y, x).
    cuts : sequence of sequences of int
        Borders of the blocks on every axis, from 0 to the axis' size.
    shard : sequence of int
        Voxels of a shard along z, y, x.

    Returns
    -------
    list of dict
        Per axis ``axis`` (``z``, ``y``, ``x``), ``cuts`` (borders between blocks), ``rate`` and ``reference`` (changes
        per voxel at them and half a block away), and ``ratio``; each None where there is no border, the ratio also
        where nothing changes inside the blocks. ``chance`` is how far from one the ratio is by chance in 99 of 100
        cases, from the planes inside the blocks; None where these are less than three.
    """
    return [seam_ratio(array, axis, borders, shard) for axis, borders in enumerate(cuts)]


def seam_ratio(array: zarr.Array, axis: int, borders: Sequence[int], shard: Sequence[int]) -> dict[str, Any]:
    """As `seam_ratios`, of one axis."""
    side = min(CHUNK, shard[axis])
    between = [middle(start, stop, side) for start, stop in itertools.pairwise(borders)]
    inner = borders[1:-1]
    seen = {plane: changes(array, axis, plane, shard) for plane in sorted({*inner, *(between if inner else [])})}
    at = sum(seen[plane] for plane in inner)
    beside = sum(seen[a] + seen[b] for a, b in itertools.pairwise(between)) / 2
    area = int(np.prod(array.shape, dtype=np.int64)) // array.shape[axis]
    voxels = area * len(inner)
    return {
        "axis": AXES[axis],
        "cuts": len(inner),
        "rate": at / voxels if voxels else None,
        "reference": beside / voxels if voxels else None,
        "ratio": at / beside if beside else None,
        "chance": chance([seen[plane] for plane in between], len(inner)) if beside else None,
    }


def chance(inside: Sequence[int], n_borders: int) -> float | None:
    """Half width of the 99 % interval of a ratio of means over borders and over planes inside the blocks (Student)."""
    if len(inside) < 3:
        return None
    error = np.std(inside, ddof=1) / np.mean(inside) * np.sqrt(1 / n_borders + 1 / len(inside))
    return float(stdtrit(len(inside) - 1, 0.995) * error)


def middle(start: int, stop: int, side: int) -> int:
    """A plane near the middle of a block that is no border of a chunk, since shards are stitched one by one."""
    plane = (start + stop) // 2
    return max(1, plane if plane % side else min(plane + side // 2, stop - 1))


def changes(array: zarr.Array, axis: int, plane: int, shard: Sequence[int]) -> int:
    """Voxels of a plane whose label differs from that of their neighbour on the plane before."""
    box = tuple((plane - 1, plane + 1) if i == axis else (0, n) for i, n in enumerate(array.shape))
    side = [2 if i == axis else s for i, s in enumerate(shard)]
    total = 0
    for part in cut_box(box, side):
        before, after = np.moveaxis(np.asarray(array[slices(part)]), axis, 0)
        total += int(np.count_nonzero(before != after))
    return total
