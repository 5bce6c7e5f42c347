"""How thick the borders of border-core labels are: voxels, or a length."""

from __future__ import annotations

import re
from dataclasses import dataclass

from voxelmill.errors import BadDataError, UsageError
from voxelmill.formats.spacing import Triple, micrometres_per

THICKNESS = re.compile(r"(\d*\.?\d+) ?(nm|um|mm)?")


@dataclass(frozen=True)
class Thickness:
    """How thick a border is.

    Attributes
    ----------
    length : float
    unit : str or None
        ``nm``, ``um`` or ``mm``; None for voxels.
    """

    length: float
    unit: str | None = None

    def __str__(self) -> str:
        return f"{self.length:g} {self.unit or ('voxel' if self.length == 1 else 'voxels')}"

    def lengths(self, spacing: Triple | None) -> tuple[float, Triple]:
        """The thickness, and the voxel size in the same unit.

        Raises
        ------
        BadDataError
            For a length and labels without physical size.
        """
        if self.unit is None:
            return self.length, (1.0, 1.0, 1.0)
        if spacing is None:
            raise BadDataError(
                f"a border of {self} for labels without physical size",
                expected="labels with a voxel size, or a number of voxels",
                remedy="give the voxel size with --spacing, or --border_core as a number without a unit",
            )
        return self.length * (micrometres_per(self.unit) or 1.0), spacing


def parse_thickness(text: str) -> Thickness:
    """``3``, ``1.5um`` -> a thickness.

    Raises
    ------
    UsageError
        Where the text is something else, or zero.
    """
    match = THICKNESS.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise UsageError(
            f"--border_core {text!r}", expected="a number of voxels such as 3, or a length with nm, um or mm: 1.5um"
        )
    return Thickness(float(match[1]), match[2])
