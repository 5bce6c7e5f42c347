"""Images and labels on other voxels, box by box and with the same bits for every box.

The outer corner of the first voxel stays where it is. A new voxel ``o`` covers ``[o * ratio, (o + 1) * ratio)`` of the
old ones, with ``ratio`` the new length over the old one, so the spacing that was asked for is the one that is written.
The last new voxel may reach beyond the image's end, or stop short of it, by less than half its length; beyond the end
the last plane goes on. Where the lengths divide, these are the positions of scikit-image's ``resize``, of
``scipy.ndimage.zoom(grid_mode=True)`` and of nnU-Net. Ratios are fractions of integers: which voxels a new one touches
is never a question of rounding.
"""

from __future__ import annotations

import functools
import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from scipy.ndimage import spline_filter1d

from voxelmill.convert.geometry import Geometry, regrid
from voxelmill.convert.views import View, view
from voxelmill.errors import BadDataError
from voxelmill.formats.base import ImageSource
from voxelmill.formats.spacing import Triple, triple
from voxelmill.image import Box, cut_box
from voxelmill.model.resample import Resampling, interpolate
from voxelmill.reader import BRICK, HALO

NEAREST, LINEAR, CUBIC, AREA, MAJORITY = "nearest", "linear", "cubic", "area", "majority"
ORDERS = {"0": NEAREST, "1": LINEAR, "3": CUBIC, "area": AREA}

DENOMINATORS = 10**6
DRIFT = 1e-3
"""Old voxels by which a ratio that is rounded to a simple fraction may be off at the image's end."""

STEP_VOXELS = 8_000_000
"""Old voxels that are held at once, as 64-bit numbers."""

STEP_VOTES = 4_000_000
"""Pairs of an old and a new voxel that are counted at once, in about 40 bytes each."""


@dataclass(frozen=True)
class Axis(Resampling):
    """How one axis is resampled: `Resampling` with positions that are exact for any ratio and start.

    Attributes
    ----------
    kind : str
        ``nearest``, ``linear``, ``cubic``, or ``area`` for weights by the overlap of new and old voxels.
    n_out, n_in : int
    ratio : Fraction
        Length of a new voxel in old ones.
    start : Fraction
        Where the first new voxel begins, in old voxels from the outer corner of the first.
    """

    n_out: int = 1
    n_in: int = 1
    ratio: Fraction = Fraction(1)
    start: Fraction = Fraction(0)

    def edges(self, voxels: np.ndarray) -> tuple[np.ndarray, int]:
        """Numerators of where voxels begin, and their denominator."""
        unit = np.lcm(self.ratio.denominator, self.start.denominator)
        return voxels * int(self.ratio * int(unit)) + int(self.start * int(unit)), int(unit)

    @property
    def coarser(self) -> Fraction:
        """The ratio, one where new voxels are smaller."""
        return max(self.ratio, Fraction(1))

    @property
    def touched(self) -> int:
        """Old voxels that a new one touches at most."""
        whole = self.ratio.denominator == self.start.denominator == 1
        return math.ceil(self.ratio) + (not whole)

    def coordinates(self, voxels: np.ndarray, n_out: int, n_in: int) -> np.ndarray:
        first, unit = self.edges(voxels)
        last, _ = self.edges(voxels + 1)
        return (first + last - unit) / (2 * unit)

    def weigh(self, voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions inside the axis and weights, both of the shape (taps, n); those of ``area`` are integers."""
        if self.kind != AREA:
            return self.taps(voxels, self.n_out, self.n_in)
        (first, unit), (last, _) = self.edges(voxels), self.edges(voxels + 1)
        first, last = (np.clip(edge, 0, self.n_in * unit) for edge in (first, last))
        positions = first // unit + np.arange(self.touched)[:, None]
        weights = np.minimum(last, (positions + 1) * unit) - np.maximum(first, positions * unit)
        # What is not touched is not looked at either: it could be NaN.
        return np.where(weights > 0, positions, positions[0]), np.maximum(weights, 0)


def new_axis(kind: str, n_in: int, old: float, new: float) -> Axis:
    """The axis of an image at another spacing."""
    ratio = exact_ratio(new, old, n_in)
    return Axis(kind, False, max(1, round(n_in / ratio)), n_in, ratio)


def exact_ratio(new: float, old: float, n_in: int) -> Fraction:
    """``new / old`` as a fraction: a simple one where that moves no voxel of the image by a thousandth."""
    ratio = Fraction(new / old)
    simple = ratio.limit_denominator(DENOMINATORS)
    drift = abs(simple - ratio) / ratio * n_in if simple else 1
    return simple if drift <= DRIFT else ratio.limit_denominator(DENOMINATORS * 1000)


@dataclass(kw_only=True)
class Stepped(View):
    """An image on other voxels, computed in parts that fit into memory."""

    grid: tuple[Axis, ...] = field(repr=False)

    def _read(self, channel: int, box: Box) -> np.ndarray:
        out = np.empty([stop - start for start, stop in box], self.dtype)
        for part in cut_box(box, step_side(box, [axis.coarser for axis in self.grid], STEP_VOXELS)):
            at = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(part, box, strict=True))
            taps = [axis.weigh(np.arange(*pair)) for axis, pair in zip(self.grid, part, strict=True)]
            inside = tuple((int(positions.min()), int(positions.max()) + 1) for positions, _ in taps)
            rows = [positions - start for (positions, _), (start, _) in zip(taps, inside, strict=True)]
            out[at] = self._part(self.source.read(channel, inside), rows, [weights for _, weights in taps])
        return out

    @abstractmethod
    def _part(self, raw: np.ndarray, rows: list[np.ndarray], weights: list[np.ndarray]) -> np.ndarray:
        """New voxels out of old ones.

        Parameters
        ----------
        raw : numpy.ndarray
            Old voxels z, y, x.
        rows, weights : list of numpy.ndarray
            Along each axis the indices into ``raw`` and the weights of what a new voxel touches, (taps, new voxels).
        """


@dataclass(kw_only=True)
class Resampled(Stepped):
    """An image on other voxels, by interpolation or by the mean of the voxels underneath."""

    def _part(self, raw: np.ndarray, rows: list[np.ndarray], weights: list[np.ndarray]) -> np.ndarray:
        if all(axis.kind == NEAREST for axis in self.grid):
            return raw[np.ix_(*(row[0] for row in rows))]
        values = raw.astype(np.float64)
        for i, (row, own) in enumerate(zip(rows, weights, strict=True)):
            total = own.sum(axis=0) if self.grid[i].kind == AREA else 1.0
            values = interpolate(values, i, row, own / total)
        return as_dtype(values, self.dtype)


def step_side(box: Box, factors: Sequence[Fraction | int], limit: int) -> tuple[int, ...]:
    """Sides of the parts of a box that fit into memory: whole rows and few planes where that is possible.

    Parameters
    ----------
    box : Box
    factors : sequence of number
        What is held per new voxel along each axis.
    limit : int
        What may be held at once.
    """
    sides = [stop - start for start, stop in box]
    for i in range(3):
        held = math.prod(n * float(factor) for n, factor in zip(sides, factors, strict=True))
        if held <= limit:
            break
        sides[i] = max(1, int(sides[i] * limit / held))
    return tuple(sides)


def as_dtype(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Numbers in an image's type: to the nearest integer, halves to the even one, clipped to the type's range."""
    if dtype.kind == "f":
        return values.astype(dtype)
    rounded = np.rint(values)
    if dtype.kind == "b":
        return rounded > 0
    limits = np.iinfo(dtype)
    # 2**63 and 2**64 are floats, the largest integers below them are not.
    top = float(limits.max) if dtype.itemsize < 8 else np.nextafter(float(limits.max), 0)
    return np.clip(rounded, float(limits.min), top).astype(dtype)


@dataclass(kw_only=True)
class Splined(View):
    """An image on other voxels by cubic B-splines.

    The spline's prefilter has no exact local form, so it is computed in bricks of a fixed lattice with a halo: a voxel
    has the same bits whichever box asks for it.
    """

    grid: tuple[Axis, ...] = field(repr=False)
    bricks: dict[tuple[int, ...], np.ndarray] = field(repr=False, default_factory=dict)

    @property
    def side(self) -> tuple[int, ...]:
        """New voxels of a brick."""
        return tuple(max(1, int(BRICK / axis.coarser)) for axis in self.grid)

    def _read(self, channel: int, box: Box) -> np.ndarray:
        side = self.side
        out = np.empty([stop - start for start, stop in box], self.dtype)
        wanted = itertools.product(*(range(a // s, -(-b // s)) for (a, b), s in zip(box, side, strict=True)))
        kept = {}
        for at in wanted:
            key = (channel, *at)
            brick = self.bricks[key] if key in self.bricks else self._brick(channel, at)
            ends = [(i * s, i * s + n) for i, s, n in zip(at, side, brick.shape, strict=True)]
            common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, ends, strict=True)]
            here = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(common, box, strict=True))
            there = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(common, ends, strict=True))
            out[here] = brick[there]
            kept[key] = brick
        # Reads that follow each other share bricks: those of the last one stay.
        self.bricks = kept
        return out

    def _brick(self, channel: int, at: tuple[int, ...]) -> np.ndarray:
        voxels = [
            np.arange(i * s, min((i + 1) * s, axis.n_out)) for i, s, axis in zip(at, self.side, self.grid, strict=True)
        ]
        taps = [axis.weigh(v) for axis, v in zip(self.grid, voxels, strict=True)]
        halos = [HALO if axis.kind == CUBIC else 0 for axis in self.grid]
        wide = [(int(p.min()) - halo, int(p.max()) + 1 + halo) for (p, _), halo in zip(taps, halos, strict=True)]
        inside = tuple(
            (min(max(a, 0), n - 1), max(min(b, n), 1)) for (a, b), n in zip(wide, self.source.shape[1:], strict=True)
        )
        edges = [(c - a, b - d) for (a, b), (c, d) in zip(wide, inside, strict=True)]
        values = np.pad(self.source.read(channel, inside).astype(np.float64), edges, mode="edge")
        for i, axis in enumerate(self.grid):
            if axis.kind == CUBIC:
                values = spline_filter1d(values, 3, axis=i, mode="mirror")
        for i, ((positions, weights), (start, _)) in enumerate(zip(taps, wide, strict=True)):
            values = interpolate(values, i, positions - start, weights)
        return as_dtype(values, self.dtype)


@dataclass(kw_only=True)
class Voted(Stepped):
    """Labels on larger voxels: the label with the largest part of each, the smallest of those with equal parts."""

    def _part(self, raw: np.ndarray, rows: list[np.ndarray], weights: list[np.ndarray]) -> np.ndarray:
        if raw.min() == raw.max():
            return np.full([row.shape[1] for row in rows], raw.flat[0])
        lowest = highest = raw
        for i, own in enumerate(rows):
            lowest = functools.reduce(np.minimum, (lowest.take(row, i) for row in own))
            highest = functools.reduce(np.maximum, (highest.take(row, i) for row in own))
        # Most voxels lie inside one label; votes are counted where they do not.
        mixed = np.nonzero(lowest != highest)
        shares = [own.astype(np.int64) for own in weights]
        votes = list(itertools.product(*(range(len(row)) for row in rows)))
        step = max(1, STEP_VOTES // len(votes))
        for first in range(0, len(mixed[0]), step):
            at = tuple(axis[first : first + step] for axis in mixed)
            labels = np.stack([raw[tuple(r[k][i] for r, k, i in zip(rows, vote, at, strict=True))] for vote in votes])
            parts = np.stack([math.prod(s[k][i] for s, k, i in zip(shares, vote, at, strict=True)) for vote in votes])
            lowest[at] = vote_of(labels, parts)
        return lowest


def vote_of(labels: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """The label with the largest sum of parts along the first axis, the smallest of equals."""
    order = np.argsort(labels, axis=0, kind="stable")
    labels, parts = np.take_along_axis(labels, order, 0), np.take_along_axis(parts, order, 0)
    best, held = labels[0], parts[0].copy()
    running = parts[0]
    for k in range(1, len(labels)):
        running = np.where(labels[k] == labels[k - 1], running, 0) + parts[k]
        better = running > held
        best, held = np.where(better, labels[k], best), np.where(better, running, held)
    return best


def resample(source: ImageSource, target: Triple, order: str) -> ImageSource:
    """An image at another spacing.

    Parameters
    ----------
    source : ImageSource
    target : tuple of float
        Micrometres along z, y, x; an axis of one voxel keeps its size.
    order : str
        ``0``, ``1`` or ``3``: values at the new voxels' centres, of the nearest voxel, by linear interpolation or by
        cubic B-splines, without a filter before. ``area``: along axes whose voxels get larger the mean of the voxels
        underneath, weighted by overlap; linear along the others.

    Raises
    ------
    BadDataError
        Where the image has no physical size.
    """
    kind = ORDERS[order]
    sizes = physical(source)
    grid = []
    for n, old, new in zip(source.shape[1:], sizes, target, strict=True):
        finer = LINEAR if kind == AREA and new <= old else kind
        grid.append(new_axis(finer, n, old, new) if n > 1 and new != old else Axis(NEAREST, n_out=n, n_in=n))
    if all(axis.ratio == 1 for axis in grid):
        return source
    return on_grid(Splined if kind == CUBIC else Resampled, source, tuple(grid), target)


def resample_labels(source: ImageSource, target: Triple, how: str) -> ImageSource:
    """Labels at another spacing, by ``majority`` or ``nearest``; finer voxels take the label that they lie in."""
    grid = []
    for n, old, new in zip(source.shape[1:], physical(source), target, strict=True):
        axis = new_axis(NEAREST, n, old, new) if n > 1 and new != old else Axis(NEAREST, n_out=n, n_in=n)
        grid.append(axis)
    if all(axis.ratio == 1 for axis in grid):
        return source
    return labels_on(source, tuple(grid), how, target)


def labels_on(source: ImageSource, grid: tuple[Axis, ...], how: str, spacing: Triple | None = None) -> ImageSource:
    """Labels on a grid whose axes may begin anywhere."""
    if how == MAJORITY:
        grid = tuple(
            Axis(AREA if axis.ratio > 1 else NEAREST, False, axis.n_out, axis.n_in, axis.ratio, axis.start)
            for axis in grid
        )
    kind: type[Stepped] = Voted if any(axis.kind == AREA for axis in grid) else Resampled
    return on_grid(kind, source, grid, spacing)


def on_grid(
    kind: type[Stepped | Splined], source: ImageSource, grid: tuple[Axis, ...], spacing: Triple | None
) -> ImageSource:
    """A view on new voxels, with the geometry that belongs to them."""
    scale = [float(axis.ratio) for axis in grid]
    start = [float(axis.start + (axis.ratio - 1) / 2) for axis in grid]
    geometry = regrid(Geometry.of(source), start, scale)
    if spacing is not None and geometry.spacing is not None:
        # The length that was asked for, not a product that is off in its last digit.
        exact = (
            new if axis.ratio != 1 else old for new, old, axis in zip(spacing, geometry.spacing, grid, strict=True)
        )
        geometry = Geometry(triple(exact), geometry.origin, geometry.affine, geometry.forms)
    chunk = tuple(max(1, min(axis.n_out, int(n / axis.ratio))) for n, axis in zip(source.chunk, grid, strict=True))
    return view(kind, source, geometry, shape=(source.shape[0], *(axis.n_out for axis in grid)), chunk=chunk, grid=grid)


def physical(source: ImageSource) -> Triple:
    if source.spacing is None:
        raise BadDataError(
            "the image has no physical size, so no target spacing can be reached",
            remedy="give its voxel size with --spacing and --unit, or in the columns spacing and unit",
        )
    return source.spacing
