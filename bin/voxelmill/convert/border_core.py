"""Border-core labels out of instance labels: the inside of every object as one class, its rim as another.

A network that learns them finds objects that touch, because no two cores do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from voxelmill.convert.resampling import step_side
from voxelmill.convert.thickness import Thickness
from voxelmill.convert.views import View, view
from voxelmill.errors import UsageError
from voxelmill.formats.base import ImageSource
from voxelmill.formats.spacing import Triple
from voxelmill.image import Box, cut_box
from voxelmill.objects.thinning import compiled

BACKGROUND, CORE, BORDER = 0, 1, 2
NAMES = {CORE: "core", BORDER: "border"}

ROUNDING = 1e-6
"""Part by which a length may exceed the thickness and still be it: three voxels of 0.1 um are 0.3 um."""

WIDEST = 255
"""Voxels of the greatest thickness along any axis."""

STEP_VOXELS = 4_000_000
"""Voxels that are labelled at once: of 64-bit instances, in about 20 bytes each."""


def border_core_labels(
    instances: np.ndarray, thickness: float = 3, spacing: Sequence[float] | None = None
) -> np.ndarray:
    """Core and border of every instance.

    A voxel of an instance is core if every voxel of the array that lies within the thickness, centre to centre,
    belongs to the same instance. Outside of the array is nothing. For a thickness of 3 voxels this is the erosion of
    each instance by a ball of radius 3, as ParticleSeg3D makes the labels of its training data. Distances are compared
    with the thickness once per offset and not once per voxel, so that any part of an array gets the same labels.

    Parameters
    ----------
    instances : (z, y, x) array of integers
        0 is background.
    thickness : float
        In voxels, or in the unit of the spacing.
    spacing : sequence of float, optional
        Voxel size along z, y, x.

    Returns
    -------
    (z, y, x) uint8 numpy.ndarray
        0 background, 1 core, 2 border.

    Raises
    ------
    UsageError
        For a thickness of less than a voxel, or of more than 255 along an axis; for an array that is not one of
        integers with three axes.
    """
    if instances.ndim != 3 or instances.dtype.kind not in "biu":
        raise UsageError(f"instances of shape {instances.shape}, {instances.dtype}", expected="integers along z, y, x")
    widths = footprint(thickness, (1.0, 1.0, 1.0) if spacing is None else spacing)
    # One layout and byte order per type, so that machine code is made once for it.
    instances = np.asarray(instances, instances.dtype.newbyteorder("="), order="C")
    labels = np.empty(instances.shape, np.uint8)
    radii = np.array(widths.shape) // 2
    steps = np.argwhere(widths >= 0)
    # Near rows first: where a voxel is border, it is found early.
    steps = steps[np.argsort(((steps - radii) ** 2).sum(axis=1), kind="stable")]
    rows = np.column_stack([steps - radii, widths[tuple(steps.T)]]).astype(np.int64)
    mark(instances, same_along_x(instances, int(widths.max())), rows, labels)
    return labels


def footprint(thickness: float, spacing: Sequence[float]) -> np.ndarray:
    """The ball of a thickness, as rows of voxels along x.

    Parameters
    ----------
    thickness : float
        In the unit of the spacing.
    spacing : sequence of float
        Along z, y, x.

    Returns
    -------
    (2 rz + 1, 2 ry + 1) int64 numpy.ndarray
        Voxels that a row reaches to either side of its middle; -1 where the ball has none. The middle is the centre.
    """
    if not thickness > 0:
        raise UsageError(f"a border of thickness {thickness}", expected="more than 0")
    limit = thickness * (1 + ROUNDING)
    reach = [math.floor(limit / size) for size in spacing]
    if not any(reach):
        raise UsageError(
            f"a border of {thickness:g} with voxels of {' x '.join(f'{size:g}' for size in spacing)}",
            expected="at least the length of a voxel, for there to be a border",
            remedy="give a greater --border_core",
        )
    if max(reach) > WIDEST:
        raise UsageError(
            f"a border of {max(reach)} voxels", expected=f"at most {WIDEST}", remedy="give a smaller --border_core"
        )
    rz, ry, rx = (np.arange(-r, r + 1) * size for r, size in zip(reach, spacing, strict=True))
    left = limit**2 - rz[:, None, None] ** 2 - ry[None, :, None] ** 2
    inside: np.ndarray = (rx**2 <= left).sum(axis=2, dtype=np.int64)
    return np.where(inside > 0, inside // 2, -1)


def reach_of(thickness: float, spacing: Sequence[float]) -> tuple[int, int, int]:
    """Voxels around a box that decide about its labels, along z, y, x."""
    widths = footprint(thickness, spacing)
    return widths.shape[0] // 2, widths.shape[1] // 2, int(widths.max())


@compiled
def same_along_x(instances: np.ndarray, widest: int) -> np.ndarray:
    """How far to either side along x all voxels have the label of this one, at most `widest`.

    Beyond the array there is nothing that differs.
    """
    out = np.empty(instances.shape, np.uint8)
    nz, ny, nx = instances.shape
    for z in range(nz):
        for y in range(ny):
            run = widest
            for x in range(nx):
                run = 0 if x and instances[z, y, x] != instances[z, y, x - 1] else min(run + 1, widest)
                out[z, y, x] = run
            run = widest
            for x in range(nx - 1, -1, -1):
                run = 0 if x < nx - 1 and instances[z, y, x] != instances[z, y, x + 1] else min(run + 1, widest)
                out[z, y, x] = min(out[z, y, x], run)
    return out


@compiled
def mark(instances: np.ndarray, same: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> None:
    """Write core and border.

    Parameters
    ----------
    instances : (z, y, x) array of integers
    same : (z, y, x) uint8
        Of `same_along_x`.
    rows : (n, 3) int64
        Steps along z and y and how far the ball reaches there along x.
    labels : (z, y, x) uint8
        Is written.
    """
    nz, ny, nx = instances.shape
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                own = instances[z, y, x]
                label = 0
                if own != 0:
                    label = 1
                    for k in range(len(rows)):
                        other_z, other_y = z + rows[k, 0], y + rows[k, 1]
                        if (
                            0 <= other_z < nz
                            and 0 <= other_y < ny
                            and (instances[other_z, other_y, x] != own or same[other_z, other_y, x] < rows[k, 2])
                        ):
                            label = 2
                            break
                labels[z, y, x] = label


def ids_in(instances: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """The ids in an array, or in a part of it, sorted and without 0."""
    flat = (instances if where is None else np.where(where, instances, 0)).reshape(-1)
    # One voxel of each run: sorting all of them would take longer than marking them.
    first = np.concatenate([flat[:1], flat[1:][flat[1:] != flat[:-1]]])
    ids = np.unique(first)
    return ids[ids != 0]


@dataclass
class Ids:
    """A set of ids that is added to often: one sorted array, and what is not merged into it yet."""

    merged: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    waiting: list[np.ndarray] = field(default_factory=list)

    def add(self, ids: np.ndarray) -> None:
        self.waiting.append(ids)
        if sum(map(len, self.waiting)) > max(len(self.merged), 100_000):
            self.all()

    def all(self) -> np.ndarray:
        """Everything that was added, sorted."""
        self.merged = union([self.merged, *self.waiting] if len(self.merged) else self.waiting)
        self.waiting = []
        return self.merged


def union(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """Sorted values of all arrays."""
    arrays = list(arrays)
    return np.unique(np.concatenate(arrays)) if arrays else np.empty(0, np.int64)


@dataclass(kw_only=True)
class BorderCore(View):
    """Instance labels as border-core labels.

    Attributes
    ----------
    thickness : float
        In the unit of `lengths`.
    lengths : tuple of float
        Voxel size along z, y, x.
    """

    thickness: float
    lengths: Triple
    seen: Ids = field(default_factory=Ids, repr=False)
    cores: Ids = field(default_factory=Ids, repr=False)

    def _read(self, channel: int, box: Box) -> np.ndarray:
        out = np.empty([stop - start for start, stop in box], self.dtype)
        for part in cut_box(box, step_side(box, (1, 1, 1), STEP_VOXELS)):
            at = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(part, box, strict=True))
            out[at] = self._part(channel, part)
        return out

    def _part(self, channel: int, box: Box) -> np.ndarray:
        """Labels of a box that fits into memory."""
        reach = reach_of(self.thickness, self.lengths)
        window = tuple(
            (max(0, start - r), min(n, stop + r))
            for (start, stop), r, n in zip(box, reach, self.shape[1:], strict=True)
        )
        instances = self.source.read(channel, window)
        labels = border_core_labels(instances, self.thickness, self.lengths)
        inside = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(box, window, strict=True))
        instances, labels = instances[inside], labels[inside]
        self.seen.add(ids_in(instances))
        self.cores.add(ids_in(instances, labels == CORE))
        return labels

    def without_core(self) -> tuple[int, int]:
        """How many of the instances that were read so far have no core, and how many there are."""
        seen = self.seen.all()
        return len(np.setdiff1d(seen, self.cores.all(), assume_unique=True)), len(seen)


def border_core(labels: ImageSource, thickness: Thickness) -> BorderCore:
    """Instance labels as border-core labels, box by box and with the same labels for every box.

    Parameters
    ----------
    labels : ImageSource
        Instances.
    thickness : Thickness

    Raises
    ------
    BadDataError
        For a length and labels without physical size.
    """
    length, sizes = thickness.lengths(labels.spacing)
    reach_of(length, sizes)
    return view(BorderCore, labels, dtype=np.dtype(np.uint8), thickness=length, lengths=sizes, label_names=NAMES)
