"""Whether labels that are given lie over their image: one shape, one orientation, one spacing, integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voxelmill.errors import BadDataError, Faults
from voxelmill.fit import (
    DIFFERENT,
    CheckOptions,
    Fit,
    chosen_of,
    extent_of,
    ratio,
    resolve_spacing,
    shown_spacing,
)
from voxelmill.formats import ImageSource
from voxelmill.formats.spacing import Triple
from voxelmill.formats.world import orientation
from voxelmill.samplesheet import Row, printable
from voxelmill.schedule import estimate_given

MAX_SHIFT = 0.501
"""Voxels between the first voxels of image and labels; half a one is a convention, of corners instead of centres."""


@dataclass(frozen=True)
class Role:
    """What a file is called in a message: its noun, and the verbs and the genitive that go with it."""

    noun: str
    be: str
    have: str
    whose: str


IMAGE = Role("image", "is", "has", "image's")
LABELS = Role("labels", "are", "have", "labels'")
TRUTH = Role("truth", "is", "has", "truth's")


def fit_labels(row: Row, files: Sequence[ImageSource], options: CheckOptions, faults: Faults) -> Fit:
    """Compare a sample's image with the labels that come with it. No model takes part.

    Parameters
    ----------
    row : Row
    files : sequence of ImageSource
        One file with all channels, or one per channel; then the labels.
    options : CheckOptions
        The flip and the intensity rule are those of a network's input, and have no meaning here.
    faults : Faults
        Collects what is wrong; it is raised at the end.
    """
    *images, labels = files
    first = images[0]
    chosen = chosen_of(row, images, options, resolve_spacing, faults)
    name = printable(row.files[-1][1])
    for refuse in (refuse_type, refuse_shape, refuse_orientation, refuse_position):
        with faults.collect(name):
            refuse(first, labels)
    faults.raise_found()
    told = [*compare_label_spacing(chosen.spacing, chosen.unit, labels), *compare_origins(first, labels)]
    estimate = estimate_given(extent_of(first, chosen.box), len(chosen.channels), options.plan)
    return chosen.fit(estimate, [*chosen.warnings, *told])


def refuse_type(_image: ImageSource, labels: ImageSource) -> None:
    """As `refuse_kind`, of labels that come with an image."""
    refuse_kind(labels, LABELS)


def refuse_kind(labels: ImageSource, role: Role) -> None:
    """Raise BadDataError unless labels are whole numbers by their type, in a format that keeps them."""
    if labels.format == "JPEG":
        raise BadDataError(
            f"the {role.noun} {role.be} a JPEG, whose values are not those that were drawn",
            expected="labels in a format without loss",
            remedy="export the labels as PNG or TIFF",
        )
    if labels.dtype.kind not in "biu":
        raise BadDataError(
            f"the {role.noun} {role.be} {labels.dtype}",
            expected="integers",
            remedy="convert them to the smallest unsigned integer that holds them, such as uint8 or uint16",
        )


def refuse_shape(image: ImageSource, labels: ImageSource, role: Role = LABELS, under: Role = IMAGE) -> None:
    """Raise BadDataError unless labels have one channel and the image's voxels."""
    if labels.shape[0] != 1:
        raise BadDataError(
            f"the {role.noun} {role.have} {labels.shape[0]} channels, axes {labels.axes.upper()}",
            expected="one channel, in which a voxel's value is its class or its object",
        )
    if labels.shape[1:] != image.shape[1:]:
        raise BadDataError(
            f"the {role.noun} {role.be} {shown_shape(labels)} (z, y, x), "
            f"the {under.noun} {under.be} {shown_shape(image)}",
            expected=f"{role.noun} on the voxels of the {under.noun}",
            remedy=f"export the {role.noun} in the {under.whose} size; name the axes in the column axes if they were "
            "mixed up",
        )


def shown_shape(source: ImageSource) -> str:
    return " x ".join(map(str, source.shape[1:]))


def refuse_orientation(image: ImageSource, labels: ImageSource, role: Role = LABELS, under: Role = IMAGE) -> None:
    """Raise BadDataError where the voxel axes of two medical files point to different sides of the body."""
    here, there = orientation(labels.affine), orientation(image.affine)
    if here and there and here != there:
        raise BadDataError(
            f"the axes of the {role.noun} run {here}, those of the {under.noun} {there} (x, y, z)",
            expected=f"{role.noun} whose voxels lie as those of the {under.noun}",
            remedy="reorient one of both, for instance with fslreorient2std or nibabel's as_reoriented",
        )


def refuse_position(image: ImageSource, labels: ImageSource, role: Role = LABELS, under: Role = IMAGE) -> None:
    """Raise BadDataError where both files say where their first voxel is, and that is not the same place."""
    apart = voxels_apart(image, labels)
    if apart is None or max(map(abs, apart)) <= MAX_SHIFT or orientation(image.affine) != orientation(labels.affine):
        return
    shown = ", ".join(f"{axis} {value:+.2f}" for axis, value in zip("zyx", apart, strict=True))
    raise BadDataError(
        f"the {role.whose} first voxel lies elsewhere than the {under.whose}, by {shown} voxels; "
        f"{shown_places(image, labels)}",
        expected=f"a first voxel within half a voxel of the {under.whose}",
        remedy=f"crop or resample the {role.noun} to the {under.whose} grid, or correct the origin in the header that "
        "is wrong",
    )


def voxels_apart(image: ImageSource, labels: ImageSource) -> tuple[float, float, float] | None:
    """How far from the image's first voxel that of the labels lies along z, y, x; None where a file does not say."""
    if any(source.forms and not any(code for code, _ in source.forms) for source in (image, labels)):
        return None
    if image.affine is not None and labels.affine is not None:
        x, y, z = np.linalg.solve(image.affine[:3, :3], labels.affine[:3, 3] - image.affine[:3, 3])
        return float(z), float(y), float(x)
    if image.affine is not None or labels.affine is not None or image.spacing is None:
        return None
    if not (any(image.origin) and any(labels.origin)):
        return None
    z, y, x = ((b - a) / step for a, b, step in zip(image.origin, labels.origin, image.spacing, strict=True))
    return z, y, x


def shown_places(image: ImageSource, labels: ImageSource) -> str:
    """Both positions as the files have them."""
    if image.affine is not None and labels.affine is not None:
        here, there, unit = tuple(labels.affine[:3, 3]), tuple(image.affine[:3, 3]), "mm (x, y, z)"
    else:
        here, there, unit = labels.origin, image.origin, "um (z, y, x)"
    one, other = (", ".join(f"{value:g}" for value in place) for place in (here, there))
    return f"{one} here, {other} there, {unit}"


def compare_origins(image: ImageSource, labels: ImageSource) -> list[str]:
    """A warning where one of two files says where its first voxel is and the other does not."""
    if image.affine is not None or labels.affine is not None or any(image.origin) == any(labels.origin):
        return []
    return [f"only one file gives its first voxel's position, labels and image: {shown_places(image, labels)}"]


def compare_label_spacing(spacing: Triple, unit: str, labels: ImageSource, role: Role = LABELS) -> list[str]:
    """A warning where the labels' file gives another spacing than the one that is used."""
    if unit == "pixel" or labels.spacing is None or ratio(spacing, labels.spacing) <= DIFFERENT:
        return []
    return [f"the {role.whose} file gives {shown_spacing(labels.spacing)}, used is {shown_spacing(spacing)}"]
