"""Whether labels can be compared with their truth: seen from headers, before anything is counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from voxelmill.errors import Faults
from voxelmill.fit import CheckOptions, Fit, chosen_of, extent_of, resolve_spacing
from voxelmill.formats import ImageSource
from voxelmill.formats.spacing import Triple
from voxelmill.overlay import (
    IMAGE,
    LABELS,
    TRUTH,
    compare_label_spacing,
    refuse_kind,
    refuse_orientation,
    refuse_position,
    refuse_shape,
)
from voxelmill.samplesheet import Row, printable
from voxelmill.schedule import Estimate

VOXELS_PER_SECOND = 5_000_000
"""Voxels of both label images that are decoded, counted and searched for surfaces."""

PROCESS_BYTES, VOXEL_BYTES = 200_000_000, 40
"""A process that has read nothing yet, and what a voxel of a small image takes in all arrays that exist at once."""

SURFACE_BYTES = 2
"""Of the points of both surfaces on disk, per voxel: labels of which a tenth of the voxels are surface have as many."""

OUTPUT_BYTES = 2_000_000
"""Tables of the objects, numbers and pictures of a sample."""


def fit_evaluation(row: Row, files: Sequence[ImageSource], options: CheckOptions, faults: Faults) -> Fit:
    """Compare a sample's labels with the truth, and with the image where there is one.

    Parameters
    ----------
    row : Row
    files : sequence of ImageSource
        The images, if any; then the labels; then the truth.
    options : CheckOptions
    faults : Faults
        Collects what is wrong; it is raised at the end.
    """
    *images, labels, truth = files
    if not images:
        # a choice among the channels of an image
        row = replace(row, values={name: value for name, value in row.values.items() if name != "channel"})
        options = replace(options, channel=None)

    def spacing_rule(
        row: Row, options: CheckOptions, _images: Sequence[ImageSource]
    ) -> tuple[Triple, str, str, list[str]]:
        return choose_spacing(row, options, files)

    chosen = chosen_of(row, images or [labels], options, spacing_rule, faults)
    here, there = (printable(name) for _, name in row.files[-2:])
    with faults.collect(here):
        refuse_kind(labels, LABELS)
    with faults.collect(there):
        refuse_kind(truth, TRUTH)
    if images:
        for refuse in (refuse_shape, refuse_orientation, refuse_position):
            with faults.collect(here):
                refuse(images[0], labels, LABELS, IMAGE)
    for refuse in (refuse_shape, refuse_orientation, refuse_position):
        with faults.collect(there):
            refuse(labels, truth, TRUTH, LABELS)
    faults.raise_found()
    ignore = options.evaluate.ignore if options.evaluate else None
    told = [
        *compare_label_spacing(chosen.spacing, chosen.unit, labels, LABELS),
        *compare_label_spacing(chosen.spacing, chosen.unit, truth, TRUTH),
        *unheld(ignore, truth.dtype),
    ]
    size = math.prod(extent_of(labels, chosen.box))
    return chosen.fit(estimate_evaluation(size, options.plan.memory_budget), [*chosen.warnings, *told])


def choose_spacing(
    row: Row, options: CheckOptions, sources: Sequence[ImageSource]
) -> tuple[Triple, str, str, list[str]]:
    """Spacing (z, y, x), unit, origin and warnings: the sheet's, the param's, or that of the first file with one.

    Labels without any physical size are compared all the same: only distances need one.
    """
    text = row.get("spacing") or options.spacing
    if text is None and (row.get("unit") or options.unit) != "pixel" and not any(s.spacing for s in sources):
        return (1.0, 1.0, 1.0), "pixel", "", ["no file gives a voxel size: distances are in voxels"]
    return resolve_spacing(row, options, sources)


def unheld(ignore: int | None, dtype: np.dtype) -> list[str]:
    """A warning where the truth's type cannot hold the value that is to be ignored."""
    limits = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    if ignore is None or limits[0] <= ignore <= limits[1]:
        return []
    return [f"the truth is {dtype} and holds no ignore label {ignore}: every voxel counts"]


def estimate_evaluation(voxels: int, memory_budget: int) -> Estimate:
    """What an evaluation of so many voxels will take."""
    return Estimate(
        windows=0,
        tiles=0,
        seconds=2 * voxels / VOXELS_PER_SECOND,
        memory_bytes=min(memory_budget, PROCESS_BYTES + VOXEL_BYTES * voxels),
        work_bytes=SURFACE_BYTES * voxels + OUTPUT_BYTES,
        output_bytes=OUTPUT_BYTES,
    )
