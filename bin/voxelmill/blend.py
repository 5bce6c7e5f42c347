"""Blending of windows: weights, order-free sums, and the step from sums to labels.

:func:`finish` serves the interior of a tile (torch tensors, in PREDICT_TILES) and the shell between tiles (NumPy
arrays, in STITCH_BLOCKS) and gives both the same bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from voxelmill.image import Box
from voxelmill.model.resample import interpolate
from voxelmill.plan import Cell, Plan
from voxelmill.probabilities import quantised

FIXED_POINT = 2.0**40
"""Scale of the 64-bit sums of weighted logits; integers add up the same in any order."""

REGION_THRESHOLD = 1.5 * 2.0**-24 + 2.0**-48
"""A region is where its logit lies above this: nnU-Net's ``sigmoid(logit) > 0.5`` in float32, rounding included."""


@lru_cache(maxsize=2)
def gaussian_weights(patch_size: tuple[int, ...]) -> np.ndarray:
    """nnU-Net's importance map of a window: float16 values up to 10, none of them zero, given as float64.

    Source: ``compute_gaussian`` of nnU-Net 2.8.1 (sigma an eighth of the patch).
    """
    impulse = np.zeros(patch_size)
    impulse[tuple(n // 2 for n in patch_size)] = 1
    weights = gaussian_filter(impulse, [n / 8 for n in patch_size], 0, mode="constant", cval=0)
    weights = (weights / (weights.max() / 10)).astype(np.float16)
    weights[weights == 0] = weights[weights > 0].min()
    return weights.astype(np.float64)


def window_weights(plan: Plan) -> np.ndarray:
    """Weights of one window with three axes; a 2d window is one plane."""
    weights = gaussian_weights(plan.patch_size)
    return weights.reshape(tuple(axis.patch for axis in plan.axes))


def summed_weights(plan: Plan, box: Box) -> np.ndarray:
    """Sum of the weights of all windows of the volume in a box of the network grid, float64.

    float16 values are multiples of 2**-24, so that the sum is exact in any order.
    """
    weights = window_weights(plan)
    total = np.zeros(tuple(stop - start for start, stop in box))
    covering = [
        [s for s in axis.starts if s < stop and s + axis.patch > start]
        for axis, (start, stop) in zip(plan.axes, box, strict=True)
    ]
    for window in itertools.product(*covering):
        common = [
            (max(s, start), min(s + axis.patch, stop))
            for s, axis, (start, stop) in zip(window, plan.axes, box, strict=True)
        ]
        here = tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(common, box, strict=True))
        there = tuple(slice(a - s, b - s) for (a, b), s in zip(common, window, strict=True))
        total[here] += weights[there]
    return total


def finish(
    sums: Any, plan: Plan, cell: Cell, asarray: Callable[[np.ndarray], Any] = np.asarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Labels of a cell, and its probabilities where the plan wants them.

    Labels do not depend on whether probabilities are wanted: they are told apart by the logits themselves.

    Parameters
    ----------
    sums : ndarray or torch.Tensor of int64, shape (heads, *footprint)
        Fixed-point sums of all windows and folds over the cell's footprint, network axis order.
    plan : Plan
    cell : Cell
    asarray : callable
        Makes of a NumPy array what ``sums`` is.

    Returns
    -------
    labels : ndarray of the plan's label type, shape of ``cell.box``
    probabilities : ndarray of the plan's type, shape (heads, *cell.box), or None
        See :func:`voxelmill.probabilities.quantised`.
    """
    needed = plan.needs_weights or plan.probabilities is not None
    logits = cell_logits(sums, plan, cell, asarray) if needed else None
    labels = told_apart(logits, plan) if plan.needs_weights else sums.argmax(0)
    probabilities = None
    if plan.probabilities is not None:
        probabilities = quantised(as_numpy(logits), plan.regions_class_order is not None, plan.probabilities)
    return as_numpy(labels).astype(plan.label_dtype), probabilities


def cell_logits(sums: Any, plan: Plan, cell: Cell, asarray: Callable[[np.ndarray], Any]) -> Any:
    """Mean logits on the source grid, float64 (heads, *cell.box)."""
    logits = sums / asarray(summed_weights(plan, cell.footprint) * (len(plan.folds) * FIXED_POINT))
    for number, (axis, segment) in enumerate(zip(plan.axes, cell.segments, strict=True), start=1):
        if axis.logits.kind != "same":
            voxels = np.arange(segment.start, segment.stop) - axis.crop[0]
            positions, weights = axis.logits.taps(voxels, axis.cropped, axis.length)
            logits = interpolate(logits, number, positions - segment.footprint[0], weights, asarray)
    return logits


def told_apart(logits: Any, plan: Plan) -> Any:
    """Labels by nnU-Net's rules: the largest logit, or every region's value where the region is likelier than not."""
    if plan.regions_class_order is None:
        return logits.argmax(0)
    labels = (logits[0] > 0) * 0
    for logit, value in zip(logits, plan.regions_class_order, strict=True):
        labels[logit > REGION_THRESHOLD] = value
    return labels


def as_numpy(array: Any) -> np.ndarray:
    """The same values as NumPy array, wherever they lie."""
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()
