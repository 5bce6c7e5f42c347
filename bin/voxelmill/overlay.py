"""Whether labels that are given lie over their image: one shape, one orientation, one spacing, integers."""

from __future__ import annotations

from collections.abc import Sequence

from nibabel.orientations import aff2axcodes

from voxelmill.errors import BadDataError, Faults
from voxelmill.fit import (
    DIFFERENT,
    CheckOptions,
    Fit,
    choose_box,
    extent_of,
    named_channels,
    ratio,
    resolve_spacing,
    shown_spacing,
)
from voxelmill.formats import ImageSource
from voxelmill.formats.spacing import Triple
from voxelmill.image import Box
from voxelmill.samplesheet import Row, printable
from voxelmill.schedule import estimate_given

PREVIEW = 256
"""Voxels of a preview on each axis; with a model it is two of its windows."""


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
    warnings: list[str] = []
    channels: tuple[int, ...] = ()
    with faults.collect():
        channels = named_channels(images, row.get("channel") or options.channel)
    spacing, unit, origin = (1.0, 1.0, 1.0), "pixel", ""
    with faults.collect():
        spacing, unit, origin, told = resolve_spacing(row, options, images)
        warnings += told
    box: Box | None = None
    with faults.collect():
        box, told = choose_box(first.shape[1:], options, (PREVIEW,) * 3)
        warnings += told
    name = printable(row.files[-1][1])
    for refuse in (refuse_type, refuse_shape, refuse_orientation):
        with faults.collect(name):
            refuse(first, labels)
    faults.raise_found()
    return Fit(
        channels=channels,
        spacing=spacing,
        unit=unit,
        origin=origin,
        box=box,
        flip="none",
        intensity="none",
        estimate=estimate_given(extent_of(first, box), len(channels), options.plan),
        warnings=(*warnings, *compare_label_spacing(spacing, unit, labels)),
    )


def refuse_type(_image: ImageSource, labels: ImageSource) -> None:
    """Raise BadDataError unless labels are whole numbers by their type."""
    if labels.dtype.kind not in "biu":
        raise BadDataError(
            f"the labels are {labels.dtype}",
            expected="integers",
            remedy="convert them to the smallest unsigned integer that holds them, such as uint8 or uint16",
        )


def refuse_shape(image: ImageSource, labels: ImageSource) -> None:
    """Raise BadDataError unless labels have one channel and the image's voxels."""
    if labels.shape[0] != 1:
        raise BadDataError(
            f"the labels have {labels.shape[0]} channels, axes {labels.axes.upper()}",
            expected="one channel, in which a voxel's value is its class or its object",
        )
    if labels.shape[1:] != image.shape[1:]:
        raise BadDataError(
            f"the labels are {shown_shape(labels)} (z, y, x), the image is {shown_shape(image)}",
            expected="labels on the voxels of the image",
            remedy="export the labels in the image's size; name the axes in the column axes if they were mixed up",
        )


def shown_shape(source: ImageSource) -> str:
    return " x ".join(map(str, source.shape[1:]))


def refuse_orientation(image: ImageSource, labels: ImageSource) -> None:
    """Raise BadDataError where the voxel axes of two NIfTI files point to different sides of the body."""
    if image.affine is None or labels.affine is None:
        return
    here, there = ("".join(code or "?" for code in aff2axcodes(source.affine)) for source in (labels, image))
    if here != there:
        raise BadDataError(
            f"the axes of the labels run {here}, those of the image {there} (x, y, z)",
            expected="labels whose voxels lie as those of the image",
            remedy="reorient one of both, for instance with fslreorient2std or nibabel's as_reoriented",
        )


def compare_label_spacing(spacing: Triple, unit: str, labels: ImageSource) -> list[str]:
    """A warning where the labels' file gives another spacing than the one that is used."""
    if unit == "pixel" or labels.spacing is None or ratio(spacing, labels.spacing) <= DIFFERENT:
        return []
    return [f"the labels' file gives {shown_spacing(labels.spacing)}, used is {shown_spacing(spacing)}"]
