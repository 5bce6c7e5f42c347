"""Where voxels lie: spacing, position and affines of an image, and how a change of its grid or header moves them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np

from voxelmill.errors import BadDataError
from voxelmill.formats.base import ImageSource
from voxelmill.formats.spacing import Triple, checked, triple
from voxelmill.formats.world import first_voxel

Forms = tuple[tuple[int, np.ndarray], ...]

MICROMETRES = 1e3
"""In a millimetre, the unit of affines."""


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of an image lie.

    Attributes
    ----------
    spacing : tuple of float or None
        Micrometres along z, y, x.
    origin : tuple of float
        Centre of the first voxel along z, y, x in micrometres.
    affine : numpy.ndarray or None
        4 x 4, voxel index (x, y, z) to millimetres, where the file has one.
    forms : tuple of (int, numpy.ndarray)
        Codes and affines of ``qform`` and ``sform``; NIfTI only.
    """

    spacing: Triple | None
    origin: Triple
    affine: np.ndarray | None
    forms: Forms

    @classmethod
    def of(cls, source: ImageSource) -> Geometry:
        return cls(source.spacing, source.origin, source.affine, source.forms)

    def with_matrices(self, change: Callable[[np.ndarray], np.ndarray]) -> Geometry:
        """The same change of all affines."""
        return replace(
            self,
            affine=None if self.affine is None else change(self.affine),
            forms=tuple((code, change(form)) for code, form in self.forms),
        )


def regrid(geometry: Geometry, start: Sequence[float], scale: Sequence[float]) -> Geometry:
    """The geometry of other voxels in the same space.

    Parameters
    ----------
    geometry : Geometry
    start : sequence of float
        Where the centre of the first new voxel lies in old voxel indices, along z, y, x.
    scale : sequence of float
        Length of a new voxel in old ones, along z, y, x.
    """
    matrix = np.diag([*map(float, scale[::-1]), 1.0])
    matrix[:3, 3] = start[::-1]
    moved = geometry.with_matrices(lambda affine: affine @ matrix)
    if geometry.spacing is None:
        return moved
    return replace(
        moved,
        spacing=triple(size * factor for size, factor in zip(geometry.spacing, scale, strict=True)),
        origin=triple(
            first + at * size for first, at, size in zip(geometry.origin, start, geometry.spacing, strict=True)
        ),
    )


def respaced(geometry: Geometry, spacing: Triple) -> Geometry:
    """Voxels of another size; the centre of the first stays where it is and the axes point as before."""

    def change(affine: np.ndarray) -> np.ndarray:
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        if not sizes.all():
            raise BadDataError("the affine has an axis without length", remedy="repair it with --repair_header")
        result = affine.copy()
        result[:3, :3] *= np.array(spacing[::-1]) / MICROMETRES / sizes
        return result

    return replace(geometry.with_matrices(change), spacing=spacing)


def rescaled(geometry: Geometry, factor: float) -> Geometry:
    """All lengths times a factor: the header's numbers are meant in another unit."""

    def change(affine: np.ndarray) -> np.ndarray:
        result = affine.copy()
        result[:3] *= factor
        return result

    spacing = geometry.spacing
    return replace(
        geometry.with_matrices(change),
        spacing=None if spacing is None else triple(size * factor for size in spacing),
        origin=triple(at * factor for at in geometry.origin),
    )


def repaired(geometry: Geometry, keep: str) -> Geometry:
    """One of the two forms of a NIfTI header in both places.

    ``qform`` holds a rotation, voxel sizes and a side only; out of an ``sform`` with shears it gets the nearest of
    these, as NiBabel makes it.

    Parameters
    ----------
    geometry : Geometry
    keep : str
        ``qform`` or ``sform``: the one to trust.

    Raises
    ------
    BadDataError
        Where the header has none, or the one to trust is not set or no affine.
    """
    if len(geometry.forms) != 2:
        raise BadDataError("the header has no qform and no sform", expected="a NIfTI image for --repair_header")
    code, affine = geometry.forms[("qform", "sform").index(keep)]
    if code == 0:
        raise BadDataError(
            f"the {keep} of the header is not set (code 0)",
            remedy=f"use --repair_header {'sform' if keep == 'qform' else 'qform'}",
        )
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise BadDataError(f"the {keep} of the header is no affine: {np.round(affine[:3], 6).tolist()}")
    header = nib.Nifti1Header()
    header.set_qform(affine, code, strip_shears=True)
    rigid = np.asarray(header.get_qform(), np.float64) if keep == "sform" else affine
    sizes = np.linalg.norm(affine[:3, :3], axis=0) * MICROMETRES
    return replace(
        geometry,
        spacing=checked([float(size) for size in sizes[::-1]], origin=keep),
        origin=first_voxel(affine[:3, :3], affine[:3, 3], MICROMETRES),
        affine=affine,
        forms=((code, rigid), (code, affine)),
    )


def disagree(forms: Forms, shape: Sequence[int]) -> bool:
    """Whether qform and sform are both set and put a corner of the image (z, y, x) at places half a voxel apart."""
    if len(forms) != 2 or not all(code for code, _ in forms):
        return False
    (_, one), (_, other) = forms
    ends = np.array([[i, j, k, 1] for i in (0, shape[2] - 1) for j in (0, shape[1] - 1) for k in (0, shape[0] - 1)])
    distance = np.linalg.norm((ends @ (one - other).T)[:, :3], axis=1).max()
    return bool(distance > 0.5 * np.linalg.norm(other[:3, :3], axis=0).min())
