"""Which of a TIFF's images is meant, and what its axes are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tifffile

from voxelmill.errors import BadDataError
from voxelmill.formats.base import Selection, bad_axes, check_axes, turned
from voxelmill.formats.spacing import Spacing, Triple, from_imagej, from_zeiss

LISTED = 8

ALPHA = (1, 2)
"""Kinds of ExtraSamples that are opacity and no signal."""

PAGE_AXES = {"Z": "z", "Y": "y", "X": "x", "S": "cz"}
"""What the axes of a page can be: samples are channels, or planes of a stack that was saved as colours."""


@dataclass(frozen=True)
class Axes:
    """How a series lies.

    Attributes
    ----------
    names : str
        Letters out of ``tczyx``.
    rgb : bool
        The channels are red, green, blue.
    time : int
        Index on the time axis.
    opaque : int
        Channels at the end that are opacity.
    """

    names: str
    rgb: bool
    time: int
    opaque: int


def choose_series(
    every: Sequence[tifffile.TiffPageSeries], selection: Selection, differing: str | None, path: Path
) -> tuple[int, tifffile.TiffPageSeries, list[str]]:
    """Number of the chosen image, the image at the chosen level, warnings.

    Parameters
    ----------
    every : sequence of TiffPageSeries
    selection : Selection
    differing : str or None
        Where the file has several images only because its pages differ: the first page that does.
    path : Path

    Raises
    ------
    BadDataError
        Where there are several and none is chosen, or the chosen one or its level is not there.
    """
    number = selection.series or 0
    if (selection.series is None and len(every) > 1) or not 0 <= number < len(every):
        what = f"there is no image {number}, " if selection.series is not None else ""
        why = f"{differing}: " if differing else ""
        raise BadDataError(
            f"{what}{why}the file holds {_listed(every)}",
            file=path,
            expected="one image, or the number of one",
            remedy="choose one with --series or the column series; a row per image segments them all",
        )
    series = every[number]
    level = selection.level or 0
    if not 0 <= level < len(series.levels):
        sizes = "; ".join(f"{i} ({' x '.join(map(str, one.shape))})" for i, one in enumerate(series.levels[:LISTED]))
        raise BadDataError(
            f"there is no resolution level {level}", file=path, expected=f"one of {len(series.levels)} levels: {sizes}"
        )
    warnings = []
    guessed = len(series.levels) > 1 and series.kind == "generic" and not series.levels[1].keyframe.is_subifd
    if guessed and selection.level is None:
        warnings.append(
            f"{differing}: taken as {len(series.levels)} resolutions of one image, of which the finest is read"
        )
    return number, series.levels[level], warnings


def _listed(every: Sequence[tifffile.TiffPageSeries]) -> str:
    rows = []
    for number, series in enumerate(every[:LISTED]):
        shape = " x ".join(map(str, series.shape))
        named = f"{' '.join(series.name.split())[:40]!r}, " if series.name else ""
        rows.append(f"{number} ({named}{series.axes} {shape} {series.dtype})")
    more = f" and {len(every) - LISTED} more" if len(every) > LISTED else ""
    return f"{len(every)} image{'s' * (len(every) > 1)}: {', '.join(rows)}{more}"


def series_axes(series: tifffile.TiffPageSeries, path: Path, selection: Selection) -> Axes:
    """Axes of a series.

    One axis without a name is z; axes without a name and of length one mean nothing.
    """
    key = series.keyframe
    axes = selection.axes
    shape = tuple(series.shape)
    own = _named_axes(series)
    rgb = "S" in key.axes and key.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
    if axes is not None:
        names = axes.lower()
    else:
        names = (own.replace("S", "C") if "C" not in own else own).lower()
        unnamed = [i for i, axis in enumerate(names) if axis in "qi"]
        letters = list(names)
        for i in sorted(unnamed, key=lambda i: -shape[i]):
            free = "z" if shape[i] > 1 else "zct"
            letters[i] = next((letter for letter in free if letter not in letters), "?")
        names = "".join(letters) if "?" not in letters else own
    if len(names) != len(shape):
        raise bad_axes(path, names if axes is not None else own, shape)
    time = check_axes(path, names, shape, selection.timepoint)
    page = names[len(names) - len(key.shape) :]
    opaque = 0
    if pages_are_planes(series):
        if not all(letter in PAGE_AXES.get(axis, "") for axis, letter in zip(key.axes, page, strict=True)):
            raise bad_axes(path, names, shape)
        if sample_axis(names, key) == "c" and len(key.extrasamples) < key.samplesperpixel:
            opaque = sum(int(kind) in ALPHA for kind in key.extrasamples)
    channels = dict(zip(names, shape, strict=True)).get("c", 1)
    return Axes(names, rgb and channels - opaque == 3, time, opaque)


def _named_axes(series: tifffile.TiffPageSeries) -> str:
    """The axes that the file names, Q for others: tifffile guesses from the lengths where a file says nothing."""
    key = series.keyframe
    described = json.loads(key.shaped_description or "{}") if series.kind == "shaped" else {}
    if series.kind != "shaped" or "axes" in described:
        return str(series.axes)
    page = str(key.axes) if pages_are_planes(series) else "YX"
    return page.rjust(len(series.shape), "Q")


def sample_axis(names: str, key: Any) -> str:
    """The axis that the samples of each pixel are, empty where a pixel has one."""
    page = names[len(names) - len(key.shape) :]
    return page[key.axes.index("S")] if "S" in key.axes else ""


def pages_are_planes(series: tifffile.TiffPageSeries) -> bool:
    """The last axes of the series are those of its pages; tifffile writes an image one voxel wide in another form."""
    page = tuple(series.keyframe.shape)
    return tuple(series.shape[len(series.shape) - len(page) :]) == page


def value_warnings(key: Any, opaque: int) -> list[str]:
    """What a viewer would do to the plane and this reader does not."""
    warnings = turned(key.tags.valueof(274))
    if key.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        warnings.append("the file shows 0 as white (MinIsWhite): the values are read as they are stored")
    if key.photometric == tifffile.PHOTOMETRIC.PALETTE:
        warnings.append("the file has a colour table: the values are read as they are stored, not their colours")
    if opaque:
        warnings.append("the last channel is opacity (alpha): it is left out")
    return warnings


def header_spacing(tif: tifffile.TiffFile, key: Any, planes: int, path: Path) -> Spacing:
    """Voxel size without OME-XML: ImageJ's calibration, Zeiss scaling lines; never the printing resolution."""
    if not tif.is_imagej:
        return from_zeiss(str(key.description), planes, path)
    metadata = tif.imagej_metadata or {}
    tags = tif.pages.first.tags
    resolution = {axis: tags[code].value for axis, code in (("x", 282), ("y", 283)) if code in tags}
    found = from_imagej(metadata, resolution, planes, path)
    if found.value is not None:
        return found
    zeiss = from_zeiss(str(metadata.get("Info", "")), planes, path)
    return zeiss if zeiss.value is not None else Spacing(None, "", found.warnings + zeiss.warnings)


def at_level(spacing: Triple, finest: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Triple, Triple]:
    """Voxel size and position of the first voxel of a coarser level, whose voxels are blocks of the finest's.

    ``finest`` and ``shape`` are the lengths along z, y, x of the finest and of this level.
    """
    factors = [a / b for a, b in zip(finest, shape, strict=True)]
    z, y, x = (length * factor for length, factor in zip(spacing, factors, strict=True))
    first = [(factor - 1) / 2 * length for length, factor in zip(spacing, factors, strict=True)]
    return (z, y, x), (first[0], first[1], first[2])
