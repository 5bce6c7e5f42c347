"""Files whose header has no voxel size that can be one, opened with the size that the user gives."""

from __future__ import annotations

from pathlib import Path

from voxelmill.errors import BadDataError
from voxelmill.fit import CheckOptions, parse_spacing
from voxelmill.formats import identify, open_image
from voxelmill.formats.base import ImageSource, Selection
from voxelmill.formats.identify import NIFTI, NIFTI_GZ
from voxelmill.formats.nifti import open_nifti
from voxelmill.formats.spacing import Triple
from voxelmill.samplesheet import Row


def given_spacing(row: Row, options: CheckOptions) -> Triple | None:
    """Micrometres along z, y, x out of the sheet or the param; None without one, or where it is told later as wrong."""
    text = row.get("spacing") or options.spacing
    unit = row.get("unit") or options.unit or "um"
    if text is None or "pixel" in (text, unit):
        return None
    try:
        return parse_spacing(text, unit, "")
    except BadDataError:
        return None


def open_given(path: Path, selection: Selection, spacing: Triple | None) -> ImageSource:
    """Open an image; a NIfTI whose own voxel sizes are zero, negative or NaN with the given one.

    Parameters
    ----------
    path : Path
    selection : Selection
    spacing : tuple of float or None
        Micrometres along z, y, x.

    Raises
    ------
    VoxelmillError
        As `open_image`.
    """
    try:
        return open_image(path, selection)
    except BadDataError:
        if spacing is None or identify(path) not in (NIFTI, NIFTI_GZ):
            raise
    source = open_nifti(path, selection, spacing)
    source.warnings.append("the header's voxel sizes are none; the one that is given takes their place")
    return source
