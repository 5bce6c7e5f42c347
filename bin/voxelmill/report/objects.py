"""What a sample's objects are, and how samples and groups compare: the tables' summaries as the report reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from voxelmill.report.text import readable

UNITS = {"um": "µm", "pixel": "px"}
"""Units of a grid -> what is printed."""

DROPPED = {
    "below_min_voxels": "with fewer voxels than asked for",
    "below_min_volume": "with a smaller volume than asked for",
    "below_mean_fraction": "smaller than the asked share of the mean volume",
    "touches_border": "at the border of the image",
}
"""Why an object was left out; keys of ``dropped``."""

GALLERY = {"largest": "Largest", "median": "Median", "smallest": "Smallest", "most_branched": "Most branched"}
"""Keys of the gallery -> captions."""

BAND = 0.05
"""How far a seam's ratio may be from 1 without a second look."""


@dataclass(frozen=True)
class Quantity:
    """Distribution of one measure over a sample's objects; a number is None where it has no meaning.

    ``edges`` and ``counts`` are a histogram: one more edge than counts.
    """

    name: str
    label: str
    unit: str
    n: int
    mean: float | None
    sd: float | None
    min: float | None
    p5: float | None
    p25: float | None
    median: float | None
    p75: float | None
    p95: float | None
    max: float | None
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def scale(self) -> tuple[float, str]:
        """Factor and unit in which its numbers are printed."""
        return readable(self.unit, max(abs(self.median or 0), abs(self.mean or 0)))


@dataclass(frozen=True)
class ObjectClass:
    """Objects of one class, and their voxels."""

    value: int
    name: str
    objects: int
    voxels: int


@dataclass(frozen=True)
class Specimen:
    """An object of the gallery; ``volume``, ``length`` and ``diameter`` (of the ball or disc of equal size) in the
    sample's unit, None where it was not measured."""

    key: str
    id: int
    class_name: str
    voxels: int
    volume: float | None
    length: float | None
    branches: int | None
    diameter: float | None = None


@dataclass(frozen=True)
class ObjectTable:
    """Contents of ``<sample>.objects.json``.

    Attributes
    ----------
    unit : str
        ``µm`` or ``px``.
    length : str or None
        What is called length: ``longest_path`` or ``longest_branch``; None where no skeletons were measured.
    components : int
        Connected parts before any was dropped.
    objects, measured : int
        What is in the labels, and how many of them were measured.
    dropped, dropped_voxels : mapping
        Reason (key of `DROPPED`) -> objects, and their voxels.
    skeleton_empty, reduced_resolution : int
        Measured objects without a skeleton, and those measured on a coarser grid.
    classes : tuple of ObjectClass
    quantities : tuple of Quantity
    gallery : tuple of Specimen
    sizes : mapping or None
        ``d10``, ``d50`` and ``d90``: diameters below which that percentage of the volume lies. None where no shapes
        were measured.
    """

    unit: str
    length: str | None
    components: int
    objects: int
    measured: int
    dropped: Mapping[str, int]
    dropped_voxels: Mapping[str, int]
    skeleton_empty: int
    reduced_resolution: int
    classes: tuple[ObjectClass, ...]
    quantities: tuple[Quantity, ...]
    gallery: tuple[Specimen, ...]
    sizes: Mapping[str, float] | None = None

    @property
    def unmeasured(self) -> int:
        """Objects that are in the labels but, being at the border, not measured."""
        return self.objects - self.measured

    @property
    def measured_length(self) -> Quantity | None:
        return self.quantity("Length")

    @property
    def diameter(self) -> Quantity | None:
        return self.quantity("Equivalent diameter")

    @property
    def plane(self) -> bool:
        """Whether shapes are those of an image of one plane."""
        return self.quantity("Perimeter") is not None

    def quantity(self, label: str) -> Quantity | None:
        return next((quantity for quantity in self.quantities if quantity.label == label), None)

    def of_class(self, value: int, name: str) -> ObjectClass | None:
        """Objects of a class of the labels; None where objects have classes of their own, made of cores and borders."""
        return next((row for row in self.classes if (row.value, row.name) == (value, name)), None)


@dataclass(frozen=True)
class Seam:
    """Changes of the labels across the planes where blocks meet on one axis, beside those half a block away.

    ``rate`` and ``reference`` are shares of the voxel pairs whose labels differ; ``ratio`` is None where none do.
    ``chance`` is how far from 1 it may be by chance, None where too few planes tell.
    """

    axis: str
    cuts: int
    rate: float | None
    reference: float | None
    ratio: float | None
    chance: float | None

    @property
    def visible(self) -> bool:
        """Whether blocks can be seen in the labels."""
        return self.ratio is not None and self.chance is not None and abs(self.ratio - 1) > max(BAND, self.chance)

    @property
    def undecided(self) -> bool:
        """Whether the ratio is far from 1 and nothing tells whether by chance."""
        return self.ratio is not None and self.chance is None and abs(self.ratio - 1) > BAND


@dataclass(frozen=True)
class Group:
    """Samples of one group, and the mean, SD and median of what is compared, over their objects."""

    name: str
    samples: tuple[str, ...]
    objects: int
    measured: int
    mean: float | None
    sd: float | None
    median: float | None


@dataclass(frozen=True)
class Compared:
    """One sample beside the others: mean and median of what is compared, and the mean volume."""

    id: str
    group: str | None
    objects: int
    measured: int
    mean: float | None
    median: float | None
    volume_mean: float | None


@dataclass(frozen=True)
class SignificanceTest:
    """A statistical test; ``effect`` holds what the test says of the size of a difference, by name."""

    name: str
    of: str
    statistic: float | None
    p: float | None
    effect: Mapping[str, Any]
    note: str


@dataclass(frozen=True)
class Cohort:
    """Contents of ``cohort.json``; ``unit`` is ``µm`` or ``px``, ``length`` what is compared: a length, or
    ``equivalent_diameter``."""

    length: str
    unit: str
    groups: tuple[Group, ...]
    samples: tuple[Compared, ...]
    test: SignificanceTest | None
    note: str


def object_table(value: Mapping[str, Any]) -> ObjectTable:
    """``<sample>.objects.json`` as `ObjectTable`."""
    known = {name: value[name] for name in (f.name for f in fields(ObjectTable)) if name in value}
    return ObjectTable(
        **known
        | {
            "unit": _unit(value["unit"]),
            "classes": tuple(ObjectClass(c["value"], c["name"], c["objects"], c["voxels"]) for c in value["classes"]),
            "quantities": tuple(_quantity(row) for row in value["quantities"]),
            "gallery": tuple(_shown(row) for row in value["gallery"] if row["key"] in GALLERY),
        }
    )


def seams(rows: Iterable[Mapping[str, Any]]) -> tuple[Seam, ...]:
    """``seams`` of a ``labels.json``."""
    return tuple(
        Seam(row["axis"], row["cuts"], row["rate"], row["reference"], row["ratio"], row["chance"]) for row in rows
    )


def cohort(value: Mapping[str, Any]) -> Cohort:
    """``cohort.json`` as `Cohort`."""
    test = value.get("test")
    return Cohort(
        length=value["length"],
        unit=_unit(value["unit"]),
        groups=tuple(_of(Group, row | {"samples": tuple(row["samples"])}) for row in value["groups"]),
        samples=tuple(_of(Compared, row) for row in value["samples"]),
        test=_of(SignificanceTest, test | {"effect": test.get("effect") or {}}) if test else None,
        note=value.get("note") or "",
    )


def _unit(unit: str) -> str:
    return UNITS.get(unit, unit)


def _of(kind: type, row: Mapping[str, Any]) -> Any:
    """A dataclass from the keys of a row that it knows."""
    return kind(**{field.name: row.get(field.name) for field in fields(kind)})


def _quantity(row: Mapping[str, Any]) -> Quantity:
    return _of(Quantity, {**row, "edges": tuple(row["edges"]), "counts": tuple(row["counts"])})


def _shown(row: Mapping[str, Any]) -> Specimen:
    return _of(Specimen, {**row, "class_name": row["class"]})
