"""Where the voxels of medical formats lie in the world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nibabel.orientations import aff2axcodes

from voxelmill.errors import BadDataError
from voxelmill.formats.spacing import Triple

LPS = (-1.0, -1.0, 1.0)
"""What turns left, posterior, superior into NIfTI's right, anterior, superior."""


def orientation(affine: np.ndarray | None) -> str:
    """Sides of the body that the voxel axes x, y, z run to, such as ``RAS``; empty without an affine."""
    return "" if affine is None else "".join(code or "?" for code in aff2axcodes(affine))


def to_ras(
    steps: np.ndarray, position: np.ndarray, signs: tuple[float, float, float], factor: float, path: Path
) -> tuple[np.ndarray, Triple]:
    """Affine, and the first voxel's position along z, y, x.

    Parameters
    ----------
    steps : numpy.ndarray
        3 x 3, one column per voxel axis (x, y, z): how far and where one voxel leads in the file's world.
    position : numpy.ndarray
        Centre of the first voxel in the file's world (x, y, z).
    signs : tuple of float
        From the file's world to right, anterior, superior.
    factor : float
        Micrometres in the file's unit.
    path : Path

    Returns
    -------
    numpy.ndarray
        4 x 4, voxel index (x, y, z) to millimetres, right, anterior, superior.
    tuple of float
        See `first_voxel`.

    Raises
    ------
    BadDataError
        Where the directions are no directions.
    """
    affine = np.eye(4)
    affine[:3, :3] = np.array(signs)[:, None] * steps * (factor / 1e3)
    affine[:3, 3] = np.array(signs) * position * (factor / 1e3)
    lengths = np.linalg.norm(steps, axis=0)
    volume = abs(np.linalg.det(steps / lengths)) if np.isfinite(affine).all() and (lengths > 0).all() else 0.0
    if volume < 1e-3:
        raise BadDataError(
            f"the directions of the voxel axes are {steps.T.round(6).tolist()}, the position {position.tolist()}",
            file=path,
            expected="three finite directions, none in the plane of the others",
            remedy="correct the file's header",
        )
    return affine, first_voxel(steps, position, factor)


def first_voxel(steps: np.ndarray, position: np.ndarray, factor: float) -> Triple:
    """Position of the first voxel along z, y, x in micrometres, out of what `to_ras` takes.

    Zero unless the voxel axes are the file's own axes: a turned image has no position along z, y and x.
    """
    along = np.array_equal(steps, np.diag(np.abs(np.diag(steps)))) and np.isfinite(position).all()
    z, y, x = (float(value) * factor for value in position[::-1]) if along else (0.0, 0.0, 0.0)
    return z, y, x
