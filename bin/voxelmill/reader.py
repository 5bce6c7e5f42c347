"""The image as the network sees it: oriented, intensity-scaled, normalised, resampled and padded, box by box."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.ndimage import spline_filter1d

from voxelmill.image import Box, StoredImage
from voxelmill.model.normalise import normalise
from voxelmill.model.resample import interpolate
from voxelmill.plan import Plan

BRICK = 96
"""Side of the fixed bricks in which a resampled image is computed, in network voxels."""

HALO = 16
"""Source voxels around a brick for the cubic's prefilter, whose response falls by 0.27 per voxel: 7e-10 at 16."""


class NetworkImage:
    """Reads boxes of the network grid of one sample.

    The spline prefilter has no exact local form. Resampled images are therefore computed in bricks of a fixed lattice:
    a voxel has the same bits whichever tile asks for it.
    """

    def __init__(self, plan: Plan, image: StoredImage):
        self.plan = plan
        self.image = image
        self._resampled = any(axis.data.kind != "same" for axis in plan.axes)
        self._bricks: dict[tuple[int, ...], np.ndarray] = {}

    def read(self, box: Box) -> np.ndarray:
        """Normalised values, zero where nnU-Net pads.

        Parameters
        ----------
        box : Box
            Network voxels, network axis order; may reach beyond the grid.

        Returns
        -------
        ndarray of float32, shape (channels, *box)
        """
        plan = self.plan
        inside = tuple((max(a, 0), min(b, axis.length)) for (a, b), axis in zip(box, plan.axes, strict=True))
        result = np.zeros((len(plan.normalization), *(b - a for a, b in box)), np.float32)
        place = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(inside, box, strict=True))
        result[(slice(None), *place)] = self._bricked(inside) if self._resampled else self._normalised(inside)
        return result

    def _normalised(self, box: Box) -> np.ndarray:
        """Values on the cropped source grid, network axis order -> float32 (channels, *box)."""
        plan = self.plan
        oriented = tuple((a + axis.crop[0], b + axis.crop[0]) for (a, b), axis in zip(box, plan.axes, strict=True))
        source = plan.to_source_box(oriented)
        return np.stack(
            [
                normalise(plan.to_network(self.image.values(channel, source)), scheme)
                for channel, scheme in enumerate(plan.normalization)
            ]
        )

    def _bricked(self, box: Box) -> np.ndarray:
        wanted = list(itertools.product(*(range(a // BRICK, -(-b // BRICK)) for a, b in box)))
        # neighbouring reads share bricks: keep those of the last read, no more
        self._bricks = {at: self._bricks[at] if at in self._bricks else self._brick(at) for at in wanted}
        result = np.empty((len(self.plan.normalization), *(b - a for a, b in box)), np.float32)
        for at, brick in self._bricks.items():
            common = [
                (max(a, i * BRICK), min(b, (i + 1) * BRICK, axis.length))
                for (a, b), i, axis in zip(box, at, self.plan.axes, strict=True)
            ]
            here = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(common, box, strict=True))
            there = tuple(slice(a - i * BRICK, b - i * BRICK) for (a, b), i in zip(common, at, strict=True))
            result[(slice(None), *here)] = brick[(slice(None), *there)]
        return result

    def _brick(self, at: tuple[int, ...]) -> np.ndarray:
        """One brick of the resampled image -> float32 (channels, z, y, x of the network)."""
        axes = self.plan.axes
        voxels = [np.arange(i * BRICK, min((i + 1) * BRICK, a.length)) for i, a in zip(at, axes, strict=True)]
        taps = [a.data.taps(v, a.length, a.cropped) for a, v in zip(axes, voxels, strict=True)]
        wide = []
        for axis, (positions, _) in zip(axes, taps, strict=True):
            halo = HALO if axis.data.kind == "cubic" else 0
            wide.append((int(positions.min()) - halo, int(positions.max()) + 1 + halo))
        inside = tuple((max(a, 0), min(b, axis.cropped)) for (a, b), axis in zip(wide, axes, strict=True))
        # beyond its end the cropped image repeats its last plane, as scipy's zoom does in mode "nearest"
        edges = [(c - a, b - d) for (a, b), (c, d) in zip(wide, inside, strict=True)]
        values = np.pad(self._normalised(inside).astype(np.float64), [(0, 0), *edges], mode="edge")
        order = sorted(range(3), key=lambda i: axes[i].data.kind == "cubic")
        for i in order:
            if axes[i].data.kind == "cubic":
                values = spline_filter1d(values, 3, axis=i + 1, mode="mirror")
        for i in order:
            positions, weights = taps[i]
            values = interpolate(values, i + 1, positions - wide[i][0], weights)
        if any(axis.data.kind == "cubic" for axis in axes):
            for channel, result in enumerate(values):
                self._clip(result, channel, taps)
        return values.astype(np.float32)

    def _clip(self, values: np.ndarray, channel: int, taps: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Clip the cubic's overshoot to the extrema of what nnU-Net resamples at once: the volume, or one plane."""
        scheme, statistics = self.plan.normalization[channel], self.image.info.statistics[channel]
        apart = next((i for i, axis in enumerate(self.plan.axes) if axis.data.planes), None)
        if apart is None:
            low, high = np.array([statistics.minimum]), np.array([statistics.maximum])
        else:
            axis = self.plan.axes[apart]
            nearest = taps[apart][0][0]
            if axis.flipped:
                nearest = axis.cropped - 1 - nearest
            low, high = (np.array(planes)[nearest] for planes in statistics.planes[axis.source])
        shape = [1, 1, 1]
        shape[apart or 0] = -1
        low, high = (normalise(v.astype(np.float32), scheme).astype(np.float64).reshape(shape) for v in (low, high))
        np.clip(values, low, high, out=values)
