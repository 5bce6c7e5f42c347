"""Labels and image that lie on different voxels of one space -> one grid."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from voxelmill.convert.geometry import Geometry
from voxelmill.convert.resampling import NEAREST, Axis, exact_ratio, labels_on
from voxelmill.convert.views import crop, describe
from voxelmill.errors import BadDataError
from voxelmill.formats.base import ImageSource

TOLERANCE = 0.01
"""Voxels of the image by which the labels' first edge may miss one of its voxels' edges."""


def align(image: ImageSource, labels: ImageSource, how: str) -> tuple[ImageSource, ImageSource, list[str]]:
    """The part of an image that labels cover, and the labels on its voxels.

    All is decided by positions in space: an image voxel is kept where its whole extent lies inside that of the labels.

    Parameters
    ----------
    image, labels : ImageSource
        With spacing and position, or with affines.
    how : str
        ``majority`` or ``nearest``.

    Returns
    -------
    image, labels : ImageSource
        Of one shape.
    told : list of str
        What was left out.

    Raises
    ------
    BadDataError
        Where one has no position, their axes are not parallel, the labels begin beside the edges of the image's voxels,
        or they do not overlap.
    """
    scales, shifts = label_voxels(image, labels)
    grid, box, outside = [], [], []
    for axis, n_image, n_labels, scale, shift in zip(
        "zyx", image.shape[1:], labels.shape[1:], scales, shifts, strict=True
    ):
        edge = shift + 0.5 - scale / 2
        begin = round(edge)
        if abs(edge - begin) > TOLERANCE:
            raise BadDataError(
                f"along {axis} the labels begin {edge - begin:+.3g} voxels beside a voxel of the image; "
                f"image: {places(image)}; labels: {places(labels)}",
                expected=f"the labels' first edge on an edge between voxels of the image, within {TOLERANCE:g} voxels",
                remedy="correct the position in the header of one of the two; NGFF's translation is the centre of the "
                "first voxel",
            )
        ratio = exact_ratio(1.0, scale, n_labels)
        end = begin + n_labels / ratio
        first, last = max(begin, 0), min(int(end + Fraction(TOLERANCE)), n_image)
        if first >= last:
            raise BadDataError(
                f"along {axis} the labels cover voxels {begin} to {float(end):g} of the image, which has {n_image}",
                expected="labels that cover a part of the image",
                remedy="check that both are of one sample, and the positions in their headers",
            )
        if begin < 0 or end > n_image:
            outside.append(axis)
        grid.append(Axis(NEAREST, False, last - first, n_labels, ratio, (first - begin) * ratio))
        box.append((first, last))
    part = crop(image, tuple(box))
    return (
        part,
        describe(labels_on(labels, tuple(grid), how), Geometry.of(part)),
        [f"the labels reach beyond the image along {', '.join(outside)}: that part is left out"] if outside else [],
    )


def label_voxels(image: ImageSource, labels: ImageSource) -> tuple[list[float], list[float]]:
    """Length of the labels' voxels, and where the centre of the first lies, in voxels of the image along z, y, x."""
    if image.affine is not None and labels.affine is not None:
        matrix = np.linalg.inv(image.affine) @ labels.affine
        linear = matrix[:3, :3]
        away = np.abs(linear - np.diag(np.diag(linear))) * np.array(labels.shape[:0:-1])
        if away.max() > TOLERANCE or not (np.diag(linear) > 0).all():
            raise BadDataError(
                f"the axes of labels and image are not parallel: one to the other is {np.round(linear, 4).tolist()}",
                remedy="bring both to one orientation first, with --orientation",
            )
        return [float(s) for s in np.diag(linear)[::-1]], [float(t) for t in matrix[2::-1, 3]]
    if (image.affine is None) != (labels.affine is None):
        without = "image" if image.affine is None else "labels"
        raise BadDataError(
            f"labels and image do not lie in one space: only the {without} does not say how it lies in the body",
            expected="two medical files, or two files without an orientation",
            remedy="convert one of both to the format of the other first",
        )
    for source, what in ((image, "image"), (labels, "labels")):
        if source.spacing is None:
            raise BadDataError(
                f"the {what} have no physical size" if what == "labels" else "the image has no physical size",
                expected="a voxel size and a position in both files for --align_labels",
                remedy="give them on one grid, or write them as OME-Zarr with scale and translation",
            )
    sizes = list(zip(image.spacing or (), labels.spacing or (), strict=True))
    return (
        [own / size for size, own in sizes],
        [(b - a) / size for a, b, (size, _) in zip(image.origin, labels.origin, sizes, strict=True)],
    )


def places(source: ImageSource) -> str:
    """Spacing and position for a message."""
    spacing = " x ".join(f"{size:g}" for size in source.spacing or ())
    return f"spacing {spacing} um, first voxel at {', '.join(f'{at:g}' for at in source.origin)} um (z, y, x)"
