"""Statistics of an image that streams past: what nnU-Net takes from the whole volume, exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from voxelmill.image import Box, ChannelStatistics, Intensity

SAMPLES = 2**18
"""Voxels of a channel, on a regular lattice, that the percentiles are taken from."""

SLAB = 4
"""Planes that are measured at once; the measuring needs some twenty bytes per voxel of them."""


def percentile8(histogram: np.ndarray) -> Intensity:
    """The 8-bit scaling that ``ais_segmentation`` trains and predicts with.

    Only where the maximum exceeds 255: from the minimum to the 97.5th percentile (at least 255) onto 256 steps.
    """
    values = np.flatnonzero(histogram)
    if not len(values) or values[-1] <= 255:
        return Intensity("percentile8")
    rank = 0.975 * (int(histogram.sum()) - 1)
    high = max(255, int(np.searchsorted(np.cumsum(histogram), rank)))
    low = int(values[0])
    return Intensity("percentile8", float(low), 256 / (high - low + 1))


class Measurement:
    """Statistics of one channel that are known only when all voxels have passed.

    nnU-Net crops to the non-zero box first, and that box is known last. Everything is therefore kept for non-zero
    voxels, plane by plane; the zeros inside the box are added in the end.
    """

    def __init__(self, shape: Sequence[int]):
        self.shape = tuple(shape)
        self.count = [np.zeros(n, np.int64) for n in shape]
        self.low = [np.full(n, np.inf) for n in shape]
        self.high = [np.full(n, -np.inf) for n in shape]
        self.total = 0.0
        self.squares = 0.0
        self.step = max(1, int(np.ceil((np.prod(shape, dtype=float) / SAMPLES) ** (1 / 3))))
        self.samples: list[tuple[Box, np.ndarray]] = []

    def update(self, box: Box, values: np.ndarray) -> None:
        """Add float32 values (z, y, x) of a box."""
        (start, _), *plane = box
        for first in range(0, len(values), SLAB):
            slab = values[first : first + SLAB]
            self._add(((start + first, start + first + len(slab)), *plane), slab)

    def _add(self, box: Box, values: np.ndarray) -> None:
        nonzero = values != 0
        low = np.where(nonzero, values, np.float32(np.inf))
        high = np.where(nonzero, values, np.float32(-np.inf))
        for axis, (start, stop) in enumerate(box):
            others = tuple(a for a in range(3) if a != axis)
            at = slice(start, stop)
            self.count[axis][at] += nonzero.sum(axis=others)
            np.minimum(self.low[axis][at], low.min(axis=others, initial=np.inf), out=self.low[axis][at])
            np.maximum(self.high[axis][at], high.max(axis=others, initial=-np.inf), out=self.high[axis][at])
        wide = values.astype(np.float64)
        self.total += float(wide.sum())
        self.squares += float(np.vdot(wide, wide))
        first = tuple(-(-start // self.step) * self.step for start, _ in box)
        lattice = tuple(slice(f - start, None, self.step) for f, (start, _) in zip(first, box, strict=True))
        at_lattice = tuple((f, stop) for f, (_, stop) in zip(first, box, strict=True))
        self.samples.append((at_lattice, values[lattice].copy()))

    def statistics(self, box: Box) -> ChannelStatistics:
        """Statistics inside the non-zero box."""
        voxels = int(np.prod([stop - start for start, stop in box], dtype=np.int64))
        mean = self.total / voxels
        variance = max(0.0, self.squares / voxels - mean * mean)
        planes = []
        for axis, (start, stop) in enumerate(box):
            at = slice(start, stop)
            has_zero = self.count[axis][at] < voxels // (stop - start)
            low = np.where(has_zero, np.minimum(self.low[axis][at], 0), self.low[axis][at])
            high = np.where(has_zero, np.maximum(self.high[axis][at], 0), self.high[axis][at])
            planes.append((low.tolist(), high.tolist()))
        inside = np.concatenate([self._inside(at, values, box) for at, values in self.samples])
        if not inside.size:
            inside = np.zeros(1, np.float32)
        wanted = {"percentile_00_5": 0.5, "median": 50.0, "percentile_99_5": 99.5}
        return ChannelStatistics(
            mean=mean,
            std=float(np.sqrt(variance)),
            minimum=min(planes[0][0]),
            maximum=max(planes[0][1]),
            percentiles={name: float(np.percentile(inside, p)) for name, p in wanted.items()},
            planes=tuple(planes),
        )

    def _inside(self, at: Box, values: np.ndarray, box: Box) -> np.ndarray:
        """Lattice samples that lie in the box, flat."""
        keep = []
        for (first, _), n, (start, stop) in zip(at, values.shape, box, strict=True):
            positions = first + self.step * np.arange(n)
            keep.append((positions >= start) & (positions < stop))
        return values[np.ix_(*keep)].ravel()


def nonzero_box(measured: Sequence[Measurement], shape: Sequence[int]) -> Box:
    """Bounding box of voxels that are not zero in some channel; the whole image where all are zero.

    Filling holes, which nnU-Net does first, cannot change a bounding box.
    """
    box = []
    for axis, size in enumerate(shape):
        planes = np.flatnonzero(sum(m.count[axis] for m in measured))
        box.append((int(planes[0]), int(planes[-1]) + 1) if len(planes) else (0, size))
    return tuple(box)
