"""How many voxels each pair of a predicted and a true label shares: the table from which all scores of overlap follow.

It is filled box by box. Memory grows with the number of pairs that occur (about 150 bytes each), never with the
largest label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxelmill.evaluation.reading import Part
from voxelmill.objects.thinning import compiled

EMPTY = -1


@dataclass(frozen=True)
class Overlaps:
    """Pairs of labels that occur, in the order of truth, then prediction; 0 is background.

    Attributes
    ----------
    truth, predicted : (n,) int64
    voxels : (n,) int64
        That have both labels.
    boxes : (n, 6) int32
        Where they lie: z start, z stop, y start, y stop, x start, x stop.
    ignored : int
        Voxels that count nowhere, and are in no pair.
    """

    truth: np.ndarray
    predicted: np.ndarray
    voxels: np.ndarray
    boxes: np.ndarray
    ignored: int


class OverlapCounter:
    """Counts pairs over any number of boxes; their order and size do not matter.

    Pairs are looked up once per run of equal voxels along x, in a table with open addressing that holds row numbers.

    Parameters
    ----------
    ignore : int or None
        Value of the truth whose voxels count nowhere.
    """

    def __init__(self, ignore: int | None):
        self._ignore = ignore
        self._ignored = 0
        self._used = 0
        self._rows = (np.empty((0, 3), np.int64), np.empty((0, 6), np.int32))
        self._slots = np.empty(0, np.int64)

    def add(self, part: Part) -> None:
        """Count the voxels of a box."""
        bounds = np.array(part.inside)
        first = np.array([start for start, _ in part.box])
        lines, done = int((bounds[1] - bounds[0]) * (bounds[3] - bounds[2])), 0
        while done < lines:
            self._make_room(int(bounds[5] - bounds[4]))
            ignoring, value = self._ignore is not None, self._ignore or 0
            done, self._used, ignored = _count_lines(
                part.predicted, part.truth, bounds, first, ignoring, value, done, self._used, *self._rows, self._slots
            )
            self._ignored += ignored

    def _make_room(self, pairs: int) -> None:
        """Have room for so many pairs more, with at least half of the slots empty."""
        pairs_now, boxes_now = self._rows
        needed = self._used + pairs
        if needed <= len(pairs_now):
            return
        size = max(2 * len(pairs_now), needed, 1 << 12)
        grown = (np.empty((size, 3), np.int64), np.empty((size, 6), np.int32))
        grown[0][: self._used], grown[1][: self._used] = pairs_now[: self._used], boxes_now[: self._used]
        self._rows = grown
        self._slots = np.full(1 << (2 * size - 1).bit_length(), EMPTY, np.int64)
        _fill_slots(grown[0], self._used, self._slots)

    def result(self) -> Overlaps:
        pairs, boxes = (rows[: self._used] for rows in self._rows)
        order = np.lexsort((pairs[:, 0], pairs[:, 1]))
        return Overlaps(pairs[order, 1], pairs[order, 0], pairs[order, 2], boxes[order], self._ignored)


@compiled
def _slot_of(predicted: int, truth: int, pairs: np.ndarray, slots: np.ndarray) -> Any:
    """Where a pair is, or the empty slot where it is to be."""
    mixed = np.uint64(predicted) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(truth) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    last = slots.size - 1
    at = np.int64(mixed & np.uint64(last))
    while slots[at] >= 0 and (pairs[slots[at], 0] != predicted or pairs[slots[at], 1] != truth):
        at = (at + 1) & last
    return at


@compiled
def _fill_slots(pairs: np.ndarray, used: int, slots: np.ndarray) -> None:
    for row in range(used):
        slots[_slot_of(pairs[row, 0], pairs[row, 1], pairs, slots)] = row


@compiled
def _count_lines(
    predicted: np.ndarray,
    truth: np.ndarray,
    bounds: np.ndarray,
    first: np.ndarray,
    ignoring: bool,
    ignore: int,
    done: int,
    used: int,
    pairs: np.ndarray,
    boxes: np.ndarray,
    slots: np.ndarray,
) -> tuple[int, int, int]:
    """Count lines along x until there may be no room for the next -> lines done, rows used, voxels ignored."""
    z0, z1, y0, y1, x0, x1 = bounds
    rows = y1 - y0
    ignored = 0
    while done < (z1 - z0) * rows and used + (x1 - x0) <= len(pairs):
        z, y = z0 + done // rows, y0 + done % rows
        at_z, at_y = first[0] + z - z0, first[1] + y - y0
        x = x0
        while x < x1:
            p, t = predicted[z, y, x], truth[z, y, x]
            start = x
            x += 1
            if ignoring and t == ignore:
                while x < x1 and truth[z, y, x] == ignore:
                    x += 1
                ignored += x - start
                continue
            while x < x1 and predicted[z, y, x] == p and truth[z, y, x] == t:
                x += 1
            left, right = first[2] + start - x0, first[2] + x - x0
            slot = _slot_of(p, t, pairs, slots)
            row = slots[slot]
            if row < 0:
                row = used
                used += 1
                slots[slot] = row
                pairs[row, 0], pairs[row, 1], pairs[row, 2] = p, t, 0
                boxes[row, 0], boxes[row, 1] = at_z, at_z + 1
                boxes[row, 2], boxes[row, 3] = at_y, at_y + 1
                boxes[row, 4], boxes[row, 5] = left, right
            pairs[row, 2] += x - start
            boxes[row, 0], boxes[row, 1] = min(boxes[row, 0], at_z), max(boxes[row, 1], at_z + 1)
            boxes[row, 2], boxes[row, 3] = min(boxes[row, 2], at_y), max(boxes[row, 3], at_y + 1)
            boxes[row, 4], boxes[row, 5] = min(boxes[row, 4], left), max(boxes[row, 5], right)
        done += 1
    return done, used, ignored


class WrongCounter:
    """Counts right and wrong voxels of classes in the cells of a coarse grid, to find the worst places.

    Parameters
    ----------
    shape : sequence of int
        Of the volume.
    side : sequence of int
        Of a cell.
    ignore : int or None
    """

    def __init__(self, shape: Sequence[int], side: Sequence[int], ignore: int | None):
        self._shape, self._side, self._ignore = tuple(shape), np.array(side), ignore
        cells = tuple(-(-n // s) for n, s in zip(shape, side, strict=True))
        self._counts = np.zeros((*cells, 2), np.int64)

    def add(self, part: Part) -> None:
        """Count the voxels of a box."""
        first = np.array([start for start, _ in part.box])
        ignoring, value = self._ignore is not None, self._ignore or 0
        _count_wrong(
            part.predicted, part.truth, np.array(part.inside), first, ignoring, value, self._side, self._counts
        )

    def worst(self, count: int) -> list[tuple[tuple[tuple[int, int], ...], int, float]]:
        """Box, wrong voxels and share of right ones among those with a class, of the cells with most wrong voxels."""
        right, wrong = (self._counts[..., i].ravel() for i in range(2))
        found = []
        # equal cells in z, y, x order
        for cell in np.argsort(-wrong, kind="stable")[:count]:
            if wrong[cell]:
                at = np.unravel_index(cell, self._counts.shape[:3])
                box = tuple(
                    (int(i * s), int(min((i + 1) * s, n))) for i, s, n in zip(at, self._side, self._shape, strict=True)
                )
                found.append((box, int(wrong[cell]), int(right[cell]) / int(right[cell] + wrong[cell])))
        return found


@compiled
def _count_wrong(
    predicted: np.ndarray,
    truth: np.ndarray,
    bounds: np.ndarray,
    first: np.ndarray,
    ignoring: bool,
    ignore: int,
    side: np.ndarray,
    counts: np.ndarray,
) -> None:
    z0, z1, y0, y1, x0, x1 = bounds
    for z in range(z0, z1):
        for y in range(y0, y1):
            cells = counts[(first[0] + z - z0) // side[0], (first[1] + y - y0) // side[1]]
            for x in range(x0, x1):
                p, t = predicted[z, y, x], truth[z, y, x]
                if (p != 0 or t != 0) and not (ignoring and t == ignore):
                    cells[(first[2] + x - x0) // side[2], 1 if p != t else 0] += 1
