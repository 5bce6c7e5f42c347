"""What a core is: the labels of cores and borders, what is counted of a core, and when it is too small to be one.

Source: ``border_core2instance`` of ParticleSeg3D (K. Gotkowski et al. 2024): a core becomes border where at least 95 %
of its voxels are at most one voxel away from what is not core, and none is three or more. There what lies outside of a
region's bounding box counts for nothing, here only what lies outside of the sample: the two differ where core without
border is at a face of that box.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from voxelmill.errors import UsageError
from voxelmill.grid import LabelGrid
from voxelmill.image import Box
from voxelmill.objects.thinning import compiled

HALO = 2
"""Voxels around a part of a volume that decide whether a voxel of it lies deep in a core."""

CORE = np.dtype([("voxels", "<i8"), ("thin", "<i8"), ("deep", "<i8"), ("first", "<i8")])
"""What is counted of a core: voxels; those next to what is not core; whether any is three voxels or more away from it;
the smallest index in z, y, x order of the sample."""

WITHIN_3 = np.array(
    [step for step in itertools.product(range(-HALO, HALO + 1), repeat=3) if 0 < np.dot(step, step) < 9]
)
"""Steps to all voxels that are less than three away."""


def find_label(names: Mapping[str, str], wanted: str) -> int:
    """The value of a label that a user gave by name or number.

    Parameters
    ----------
    names : mapping
        Value as text -> name, with ``0`` for the background.
    wanted : str
        A name, in small or capital letters, or a value. A name goes before a value of the same text.

    Raises
    ------
    UsageError
        Where no label, or the background, has that name or value.
    """
    values = {name.casefold(): int(value) for value, name in names.items()}
    found = values.get(wanted.casefold(), int(wanted) if wanted in names else 0)
    if found == 0:
        known = ", ".join(f"{name} ({value})" for value, name in names.items() if value != "0")
        raise UsageError(
            f"there is no label {wanted!r}",
            expected=f"one of: {known}" if known else "a label besides the background",
            remedy="name the labels of cores and borders, or give their numbers, with --core_label and --border_label",
        )
    return found


def label_values(grid: LabelGrid, wanted: Sequence[str]) -> tuple[int, ...]:
    """Values of labels in a sample.

    A number need not occur: a label image knows only of the labels that it holds.

    Raises
    ------
    UsageError
        Where a name is unknown to a sample that has labels, or two labels are the same.
    """
    if not grid.reached:
        return tuple(range(1, len(wanted) + 1))
    known = {**{text: f"class {text}" for text in wanted if text.isdecimal() and int(text)}, **grid.label_names}
    try:
        values = tuple(find_label(known, text) for text in wanted)
        if len(set(values)) < len(values):
            raise UsageError(
                f"{' and '.join(wanted)} are the same label",
                remedy="give cores and borders labels of their own with --core_label and --border_label",
            )
    except UsageError as error:
        error.sample = grid.sample
        raise
    return values


def count_cores(
    mask: np.ndarray, cores: np.ndarray, count: int, window: Box, box: Box, shape: Sequence[int]
) -> np.ndarray:
    """Count what decides over the cores of a part of a volume.

    Parameters
    ----------
    mask : ndarray of bool, (z, y, x)
        Where ``window`` is core: ``box`` and `HALO` voxels more on every side, but for what lies outside of the sample,
        which counts for nothing.
    cores : ndarray of an integer type, (z, y, x)
        Number of the core that each voxel of ``box`` lies in, from 1; 0 is none.
    count : int
        Of the cores.
    window, box : Box
        In the sample.
    shape : sequence of int
        Of the sample.

    Returns
    -------
    ndarray of `CORE`, (count,)
    """
    counts = np.zeros((count, 4), np.int64)
    offset = np.array([a - b for (a, _), (b, _) in zip(box, window, strict=True)])
    origin = np.array([a for a, _ in box])
    _count(mask, cores, offset, origin, np.array(shape), WITHIN_3, counts)
    return np.ascontiguousarray(counts).view(CORE).reshape(count)


@compiled
def _count(
    mask: np.ndarray,
    cores: np.ndarray,
    offset: np.ndarray,
    origin: np.ndarray,
    shape: np.ndarray,
    within: np.ndarray,
    counts: np.ndarray,
) -> None:
    depth, height, width = mask.shape
    for i in range(cores.shape[0]):
        for j in range(cores.shape[1]):
            for k in range(cores.shape[2]):
                core = cores[i, j, k]
                if core == 0:
                    continue
                core -= 1
                if counts[core, 0] == 0:
                    counts[core, 3] = ((origin[0] + i) * shape[1] + origin[1] + j) * shape[2] + origin[2] + k
                counts[core, 0] += 1
                z, y, x = i + offset[0], j + offset[1], k + offset[2]
                if (
                    (z > 0 and not mask[z - 1, y, x])
                    or (z + 1 < depth and not mask[z + 1, y, x])
                    or (y > 0 and not mask[z, y - 1, x])
                    or (y + 1 < height and not mask[z, y + 1, x])
                    or (x > 0 and not mask[z, y, x - 1])
                    or (x + 1 < width and not mask[z, y, x + 1])
                ):
                    counts[core, 1] += 1
                elif counts[core, 2] == 0:
                    deep = True
                    for n in range(within.shape[0]):
                        a, b, c = z + within[n, 0], y + within[n, 1], x + within[n, 2]
                        if 0 <= a < depth and 0 <= b < height and 0 <= c < width and not mask[a, b, c]:
                            deep = False
                            break
                    if deep:
                        counts[core, 2] = 1


def too_small(cores: np.ndarray) -> np.ndarray:
    """Which cores (rows of `CORE`, of the whole sample) are none -> bool."""
    return (cores["deep"] == 0) & (20 * cores["thin"] >= 19 * cores["voxels"])
