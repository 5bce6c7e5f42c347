"""Which columns the measures of an object have: decided here, once, for all that write, join or show them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pyarrow as pa

from voxelmill.errors import UsageError

SKELETON, SHAPE = "skeleton", "shape"
MEASURES = (SKELETON, SHAPE)
"""What can be measured: lengths, thickness and profiles along the skeleton; surface, axes and neighbours of the whole
object."""


@dataclass(frozen=True)
class Column:
    """One measure of an object: its name without a unit, its type, and the power of a length that it is."""

    name: str
    type: pa.DataType
    power: int = 0

    def unit(self, end: str) -> str:
        """Of its numbers, where lengths have the unit ``end``; empty for a plain number."""
        return "" if not self.power else end if self.power == 1 else f"{end}{self.power}"

    def title(self, end: str) -> str:
        """Its name in the tables, with the unit."""
        return f"{self.name}_{self.unit(end)}" if self.power else self.name


OF_SKELETON = (
    Column("longest_path", pa.float64(), 1),
    Column("longest_branch", pa.float64(), 1),
    Column("branches", pa.int32()),
    Column("tortuosity", pa.float64()),
    Column("mean_thickness", pa.float64(), 1),
    Column("skeleton_voxels", pa.int64()),
    Column("skeleton_empty", pa.bool_()),
    Column("length_resolution", pa.int32()),
)
OF_VOLUME = (
    Column("equivalent_diameter", pa.float64(), 1),
    Column("surface", pa.float64(), 2),
    Column("sphericity", pa.float64()),
    *(Column(f"axis_{k}", pa.float64(), 1) for k in (1, 2, 3)),
    Column("elongation", pa.float64()),
    Column("flatness", pa.float64()),
    Column("neighbours", pa.int32()),
    Column("contact_area", pa.float64(), 2),
)
OF_PLANE = (
    Column("equivalent_diameter", pa.float64(), 1),
    Column("perimeter", pa.float64(), 1),
    Column("circularity", pa.float64()),
    *(Column(f"axis_{k}", pa.float64(), 1) for k in (1, 2)),
    Column("elongation", pa.float64()),
    Column("neighbours", pa.int32()),
    Column("contact_length", pa.float64(), 1),
)
"""An object in an image of one plane has a perimeter and no surface."""


def columns_of(measures: Collection[str], plane: bool) -> tuple[Column, ...]:
    """Columns of the measures that were asked for.

    Parameters
    ----------
    measures : collection of str
        Of `MEASURES`.
    plane : bool
        Whether the image has a single plane.
    """
    shape = OF_PLANE if plane else OF_VOLUME
    return (*(OF_SKELETON if SKELETON in measures else ()), *(shape if SHAPE in measures else ()))


def plane_axis(shape: Sequence[int]) -> int | None:
    """The axis on which an image has a single plane; None for a volume, and for a single voxel."""
    return shape.index(1) if 1 in shape and max(shape) > 1 else None


def parse_measures(text: str) -> tuple[str, ...]:
    """``--measure``: one or more of `MEASURES`, joined by commas, in any order.

    Raises
    ------
    UsageError
    """
    wanted = {part.strip() for part in text.split(",")}
    if not wanted <= set(MEASURES):
        raise UsageError(
            f"--measure {text}: {', '.join(sorted(wanted - set(MEASURES))) or 'nothing'} is unknown",
            expected=f"{' or '.join(MEASURES)}, or both with a comma",
        )
    return tuple(name for name in MEASURES if name in wanted)
