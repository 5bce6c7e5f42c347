"""What the user wants an image to become."""

from __future__ import annotations

import re
from dataclasses import dataclass

from voxelmill.convert.thickness import Thickness, parse_thickness
from voxelmill.errors import UsageError
from voxelmill.formats.spacing import Triple, checked, micrometres_per

TARGET = re.compile(r"([0-9.eE+-]+)(?:[,;]([0-9.eE+-]+)[,;]([0-9.eE+-]+))? ?(nm|um|mm|m)?")

PAIRS = ("LR", "PA", "IS")


@dataclass(frozen=True)
class Request:
    """What is asked for all images of a run; a samplesheet's cells are in its rows.

    Attributes
    ----------
    format : str
        A name of `voxelmill.formats.writing.FORMATS`.
    target_spacing : str or None
        Voxel size to resample to, ``z,y,x`` or one number, in micrometres or with a unit behind it.
    order : str
        ``0``, ``1``, ``3`` or ``area``: how images are resampled.
    label_resampling : str
        ``majority`` or ``nearest``.
    orientation : str or None
        Sides that the axes x, y, z point to, such as ``RAS``.
    repair_header : str or None
        ``qform`` or ``sform``: the one to trust.
    align_labels : bool
        Bring labels and image to one grid by their positions.
    border_core : str or None
        Thickness of the border, in voxels or with a unit behind it: instances become border-core labels.
    """

    format: str = "ome-zarr"
    target_spacing: str | None = None
    order: str = "1"
    label_resampling: str = "majority"
    orientation: str | None = None
    repair_header: str | None = None
    align_labels: bool = False
    border_core: str | None = None

    @property
    def target(self) -> Triple | None:
        """The spacing to resample to in micrometres along z, y, x."""
        return None if self.target_spacing is None else parse_target(self.target_spacing)

    @property
    def thickness(self) -> Thickness | None:
        """How thick the borders of instances become."""
        return None if self.border_core is None else parse_thickness(self.border_core)

    @property
    def codes(self) -> str | None:
        """The orientation in capitals."""
        return None if self.orientation is None else parse_orientation(self.orientation)


def parse_target(text: str) -> Triple:
    """``8,8,8nm``, ``0.5`` -> micrometres along z, y, x."""
    match = TARGET.fullmatch(text.strip())
    try:
        numbers = [float(part) for part in match.groups()[:3] if part] if match else []
    except ValueError:
        numbers = []
    if match is None or not numbers:
        raise UsageError(
            f"--target_spacing {text!r}", expected="z,y,x or one number in um, or with nm, um or mm behind: 8,8,8nm"
        )
    factor = micrometres_per(match[4] or "um") or 1.0
    lengths = numbers * 3 if len(numbers) == 1 else numbers
    return checked([length * factor for length in lengths], origin="--target_spacing")


def parse_orientation(text: str) -> str:
    """Three letters, one of each pair of sides."""
    codes = text.upper()
    pairs = [next((pair for pair in PAIRS if code in pair), code) for code in codes]
    if sorted(pairs) != sorted(PAIRS):
        raise UsageError(
            f"--orientation {text!r}",
            expected="three letters for the sides that x, y and z point to: L or R, A or P, S or I, such as RAS or LPS",
        )
    return codes
