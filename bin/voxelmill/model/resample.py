"""nnU-Net's built-in resampling, axis by axis, so that any box of the result can be computed alone.

Output voxel ``o`` of an axis samples the input at ``(o + 0.5) * n_in / n_out - 0.5`` (scikit-image's ``resize``,
torch's ``interpolate`` and nnU-Net's own out-of-plane step agree on this). Every value is a short sum over *taps*:
input positions and weights that depend on the global lengths alone. A box therefore gets the same bits wherever it is
cut.

Sources: ``default_resampling.py`` and ``resample_torch.py`` of nnU-Net 2.8.1; cubic B-spline weights as in
P. Thevenaz, T. Blu, M. Unser, "Interpolation revisited", IEEE TMI 19(7), 2000.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxelmill.errors import ModelMismatchError
from voxelmill.model.config import ModelConfig

ANISOTROPY_THRESHOLD = 3.0
KINDS = {0: "nearest", 1: "linear", 3: "cubic"}


@dataclass(frozen=True)
class Resampling:
    """How one axis is resampled: ``same``, ``nearest``, ``linear`` or ``cubic``.

    ``planes`` marks the axis that nnU-Net treats apart in anisotropic images; overshoot of the cubic in the other two
    is then clipped plane by plane instead of over the volume.
    """

    kind: str
    planes: bool = False

    def coordinates(self, voxels: np.ndarray, n_out: int, n_in: int) -> np.ndarray:
        return (voxels + 0.5) * (n_in / n_out) - 0.5

    def footprint(self, voxels: np.ndarray, n_out: int, n_in: int) -> tuple[np.ndarray, np.ndarray]:
        """Interval [low, high) of input positions that each output voxel needs, without the cubic's prefilter."""
        positions, _ = self.taps(voxels, n_out, n_in)
        return positions.min(axis=0), positions.max(axis=0) + 1

    def taps(self, voxels: np.ndarray, n_out: int, n_in: int) -> tuple[np.ndarray, np.ndarray]:
        """Input positions and weights of output voxels.

        Parameters
        ----------
        voxels : ndarray of int, shape (n,)
            Output voxels.
        n_out, n_in : int
            Lengths of the whole axis.

        Returns
        -------
        positions : ndarray of int, shape (taps, n)
            Inside the axis, except for ``cubic``, whose taps may lie outside.
        weights : ndarray of float64, shape (taps, n)
        """
        if self.kind == "same":
            return voxels[None], np.ones((1, len(voxels)))
        at = self.coordinates(voxels, n_out, n_in)
        if self.kind == "nearest":
            return np.clip(np.floor(at + 0.5).astype(int), 0, n_in - 1)[None], np.ones((1, len(voxels)))
        if self.kind == "linear":
            at = np.clip(at, 0, n_in - 1)
            low = np.floor(at).astype(int)
            fraction = at - low
            return np.stack([low, np.minimum(low + 1, n_in - 1)]), np.stack([1 - fraction, fraction])
        low = np.floor(at).astype(int)
        t = at - low
        weights = [(1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3]
        return low + np.arange(-1, 3)[:, None], np.stack(weights) / 6


def interpolate(
    array: Any, axis: int, positions: np.ndarray, weights: np.ndarray, asarray: Callable[[np.ndarray], Any] = np.asarray
) -> Any:
    """Weighted sum of taps along one axis.

    The sum runs over the taps in order, element by element, so that a voxel's bits do not depend on what else is
    computed with it.

    Parameters
    ----------
    array : ndarray or torch.Tensor of float64
    axis : int
    positions, weights : ndarray, shape (taps, n)
        As from :meth:`Resampling.taps`, positions counted from the start of ``array``.
    asarray : callable
        Makes of a NumPy array what ``array`` is.
    """
    before = (slice(None),) * axis
    shape = (-1, *(1,) * (array.ndim - axis - 1))
    terms = (
        array[(*before, asarray(at))] * asarray(weight.reshape(shape))
        for at, weight in zip(positions, weights, strict=True)
    )
    return functools.reduce(operator.add, terms)


def resampled_length(length: int, spacing: float, target: float) -> int:
    """Voxels of an axis after resampling, rounded as nnU-Net's ``compute_new_shape`` does."""
    return max(1, round(spacing / target * length))


def separate_axis(force: bool | None, current: Sequence[float], new: Sequence[float]) -> int | None:
    """The axis that nnU-Net resamples apart from the other two, or None (``determine_do_sep_z_and_axis``)."""

    def lowest(spacing: Sequence[float]) -> list[int]:
        return [i for i, value in enumerate(spacing) if max(spacing) / value == 1]

    def anisotropic(spacing: Sequence[float]) -> bool:
        return max(spacing) / min(spacing) > ANISOTROPY_THRESHOLD

    if force is False:
        return None
    if force is True or anisotropic(current):
        axes = lowest(current)
    elif anisotropic(new):
        axes = lowest(new)
    else:
        return None
    return axes[0] if len(axes) == 1 else None


def resamplings(
    config: ModelConfig, shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]
) -> tuple[tuple[Resampling, ...], tuple[Resampling, ...]]:
    """Resampling of the image to the model's grid and of the logits back, per network axis.

    Parameters
    ----------
    config : ModelConfig
    shape : sequence of int
        Cropped source, network axis order.
    spacing, target : sequence of float
        Of the source and of the model, in one unit.
    """
    data = axis_kinds(config.resampling_data, 3, spacing, target)
    logits = axis_kinds(config.resampling_probabilities, 1, target, spacing)
    if any(kind.kind == "cubic" for kind in logits):
        raise ModelMismatchError(
            "the model resamples its logits with a cubic spline, which needs the whole volume at once",
            expected="resampling_fn_probabilities of order 0 or 1",
            remedy="use nnU-Net's default plans, or set order 1 in the model's plans.json",
        )
    if config.resampling_data["name"] == "no_resampling_hack":
        lengths = list(shape)
    else:
        lengths = [resampled_length(n, a, b) for n, a, b in zip(shape, spacing, target, strict=True)]

    def where_needed(kinds: tuple[Resampling, ...]) -> tuple[Resampling, ...]:
        return tuple(
            Resampling("same" if n == m else kind.kind, kind.planes)
            for kind, n, m in zip(kinds, shape, lengths, strict=True)
        )

    return where_needed(data), where_needed(logits)


def axis_kinds(
    function: dict[str, Any], default_order: int, current: Sequence[float], new: Sequence[float]
) -> tuple[Resampling, ...]:
    """What a resampling function of nnU-Net does to each axis."""
    name, kwargs = function["name"], function["kwargs"]
    if name == "no_resampling_hack":
        return (Resampling("same"),) * 3
    if name == "resample_torch_fornnunet":
        in_plane, out_of_plane, force = "linear", "nearest", kwargs.get("force_separate_z")
    else:
        orders = kwargs.get("order", default_order), kwargs.get("order_z", 0)
        if orders[0] not in KINDS or orders[1] not in (0, 1):
            raise ModelMismatchError(
                f"the model resamples with spline orders {orders[0]} and {orders[1]} (out of plane)",
                expected="order 0, 1 or 3, and 0 or 1 out of plane",
                remedy="use nnU-Net's default plans",
            )
        in_plane, out_of_plane, force = KINDS[orders[0]], KINDS[orders[1]], kwargs.get("force_separate_z", False)
    apart = separate_axis(force, current, new)
    return tuple(Resampling(out_of_plane, True) if i == apart else Resampling(in_plane) for i in range(3))
