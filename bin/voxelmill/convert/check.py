"""Whether a sample can become what is asked for: seen from headers, before anything is converted."""

from __future__ import annotations

import math
from collections.abc import Sequence

from voxelmill.convert.border_core import STEP_VOXELS, BorderCore
from voxelmill.convert.changes import UNIT, Changed, Spec, change
from voxelmill.convert.request import Request
from voxelmill.errors import BadDataError, Faults
from voxelmill.fit import (
    DIFFERENT,
    CheckOptions,
    Fit,
    chosen_of,
    parse_spacing,
    ratio,
    shown_spacing,
)
from voxelmill.formats import ImageSource
from voxelmill.formats.nifti import header_unit, read_header
from voxelmill.formats.spacing import Triple, checked, micrometres_per
from voxelmill.formats.writing import losses, refuse, written_dtype
from voxelmill.overlay import (
    compare_label_spacing,
    refuse_orientation,
    refuse_position,
    refuse_shape,
    refuse_type,
)
from voxelmill.samplesheet import Row, printable
from voxelmill.schedule import Estimate

BYTES_PER_SECOND = 50_000_000
"""Voxels that are read, changed, compressed and verified."""

PROCESS_BYTES, COPIES = 120_000_000, 4
"""A process that has read nothing yet, and arrays of a small image's size that exist at once."""

COMPILER_BYTES, LABELLED_BYTES = 130_000_000, 20
"""What makes machine code, and what a voxel takes while it becomes core or border."""

MILLIMETRES = ("MetaImage", "NRRD")
"""Formats whose lengths are in millimetres by convention."""


def fit_conversion(
    request: Request, row: Row, files: Sequence[ImageSource], options: CheckOptions, faults: Faults
) -> Fit:
    """Put together what a sample will become, and ask whether the format can carry it.

    Parameters
    ----------
    request : Request
    row : Row
    files : sequence of ImageSource
        One file with all channels, or one per channel; then the labels where the row has some.
    options : CheckOptions
    faults : Faults
        Collects what is wrong; it is raised at the end.
    """
    images = list(files[: len(row.names)])
    labels = files[len(images)] if row.labels is not None else None
    chosen = chosen_of(row, images, options, choose_spacing, faults)
    warnings = list(chosen.warnings)
    if labels is not None:
        refusals = [refuse_type] if request.align_labels else [refuse_type, refuse_other_grid]
        for one in refusals:
            with faults.collect(printable(row.files[-1][1])):
                one(images[0], labels)
        if not request.align_labels:
            warnings += compare_label_spacing(chosen.spacing, chosen.unit, labels)
    if request.border_core is not None:
        with faults.collect():
            refuse_other_labels(row)
    faults.raise_found()
    changed: Changed | None = None
    with faults.collect():
        spec = Spec(chosen.channels, chosen.spacing, chosen.unit, chosen.origin, chosen.box)
        changed = change(images, labels, request, spec)
        refuse(changed.image, request.format)
    if changed is not None and changed.labels is not None:
        with faults.collect(printable(row.files[-1][1])):
            refuse(changed.labels, request.format, labels=True)
    faults.raise_found()
    assert changed is not None
    lost = losses(changed.image, request.format)
    if lost:
        warnings.append(f"{request.format} does not keep {', '.join(lost)}")
    return chosen.fit(estimate_conversion(changed, options.plan.memory_budget), [*warnings, *changed.warnings])


def refuse_other_grid(image: ImageSource, labels: ImageSource) -> None:
    """Raise BadDataError unless labels lie on the image's voxels."""
    for one in (refuse_shape, refuse_orientation, refuse_position):
        try:
            one(image, labels)
        except BadDataError as error:
            if labels.shape[0] == 1 and one is not refuse_orientation:
                error.remedy = "pass --align_labels if both files say where they lie in space; else " + str(
                    error.remedy
                )
            raise


def refuse_other_labels(row: Row) -> None:
    """Raise BadDataError unless a row has instances, of which cores and borders can be made."""
    if row.labels is None or row.labels.kind != "instances":
        raise BadDataError(
            "the row has no labels" if row.labels is None else f"the row has {row.labels.kind} labels",
            expected="instances, of which --border_core makes cores and borders",
            remedy="name the image of the objects' ids in the column instances, or leave out --border_core",
        )


def estimate_conversion(changed: Changed, memory_budget: int) -> Estimate:
    """What a conversion will take; nothing is counted on compression."""
    written = [source for source in (changed.image, changed.labels) if source is not None]
    size = sum(math.prod(source.shape) * written_dtype(source.dtype).itemsize for source in written)
    memory = PROCESS_BYTES + COPIES * size
    if isinstance(changed.labels, BorderCore):
        memory += COMPILER_BYTES + LABELLED_BYTES * min(math.prod(changed.labels.shape), STEP_VOXELS)
    return Estimate(
        windows=0,
        tiles=0,
        seconds=size / BYTES_PER_SECOND,
        memory_bytes=min(memory_budget, memory),
        work_bytes=size,
        output_bytes=size,
    )


def choose_spacing(
    row: Row, options: CheckOptions, sources: Sequence[ImageSource]
) -> tuple[Triple, str, str, list[str]]:
    """Spacing (z, y, x), unit, origin and warnings.

    A spacing out of the sheet or the param replaces the file's. A unit alone means the file's own numbers in another
    unit. An image may stay without physical size.
    """
    text, origin = row.get("spacing"), "samplesheet"
    if text is None:
        text, origin = options.spacing, "--spacing"
    unit = row.get("unit") or options.unit
    file = next((source for source in sources if source.spacing is not None), None)
    if text == "pixel" or (text is None and unit == "pixel"):
        return (1.0, 1.0, 1.0), "pixel", "no physical size", []
    if text is not None:
        if unit == "pixel":
            raise BadDataError(f"spacing {printable(text)} with unit pixel", expected="one or the other")
        spacing = parse_spacing(text, unit or "um", origin)
        told = []
        if file is not None and ratio(spacing, file.spacing or spacing) > DIFFERENT:
            told = [
                f"{origin} gives {shown_spacing(spacing)}, the file {shown_spacing(file.spacing)}: the first is written"
            ]
        return spacing, "um", origin, told
    if file is None or file.spacing is None:
        return (1.0, 1.0, 1.0), "pixel", "", ["the file gives no voxel size: the output has none either"]
    if unit is None:
        return file.spacing, "um", file.spacing_origin, []
    factor = (micrometres_per(unit) or 1.0) / file_unit(file)
    z, y, x = file.spacing
    spacing = checked([z * factor, y * factor, x * factor], origin="--unit")
    return spacing, "um", UNIT if factor != 1.0 else file.spacing_origin, []


def file_unit(source: ImageSource) -> float:
    """Micrometres in the unit of a medical file's lengths.

    Raises
    ------
    BadDataError
        For other formats: their units belong to single numbers.
    """
    if source.format.startswith(MILLIMETRES):
        return 1e3
    if source.format != "NIfTI":
        raise BadDataError(
            f"a unit without a spacing for {source.format}",
            expected="NIfTI, MHA or NRRD, whose numbers may be meant in another unit",
            remedy="give the voxel size as well: --spacing z,y,x or the column spacing",
        )
    return header_unit(read_header(source.path)[0])
