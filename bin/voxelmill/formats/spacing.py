"""Voxel sizes: from whatever a file says, in whatever unit, to micrometres along z, y, x.

A physical size that a file does not state is never taken as one. Two lengths out of three are no spacing either.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from voxelmill.errors import BadDataError

Triple = tuple[float, float, float]

MAX_RATIO = 1000.0

_METRES = {
    "quetta": 30, "ronna": 27, "yotta": 24, "zetta": 21, "exa": 18, "peta": 15, "tera": 12, "giga": 9, "mega": 6,
    "kilo": 3, "hecto": 2, "deca": 1, "deka": 1, "": 0, "deci": -1, "centi": -2, "milli": -3, "micro": -6, "nano": -9,
    "pico": -12, "femto": -15, "atto": -18, "zepto": -21, "yocto": -24,
}  # fmt: skip
_SYMBOLS = {"km": 3, "m": 0, "dm": -1, "cm": -2, "mm": -3, "um": -6, "nm": -9, "pm": -12, "fm": -15, "am": -18}
_OTHER = {
    "micron": 1.0, "microns": 1.0, "angstrom": 1e-4, "ångström": 1e-4, "å": 1e-4, "inch": 25400.0, "inches": 25400.0,
    "in": 25400.0, "foot": 304800.0, "ft": 304800.0, "yard": 914400.0, "yd": 914400.0, "mile": 1609344000.0,
    "mi": 1609344000.0, "thou": 25.4, "mil": 25.4, "li": 25400.0 / 12, "line": 25400.0 / 12, "pt": 25400.0 / 72,
}  # fmt: skip

_ZEISS = re.compile(r"AcquisitionBlock\|AcquisitionModeSetup\|Scaling([XYZ])[^=\n]*=\s*(\S+)")


@dataclass(frozen=True)
class Spacing:
    """What a file says about its voxel size.

    Attributes
    ----------
    value : tuple of float or None
        Micrometres along z, y, x; None where the file does not say it for every axis that needs it.
    origin : str
        Where it was found, such as ``"OME-XML"``; empty without a value.
    warnings : tuple of str
        Why a size that is partly there was not used.
    """

    value: Triple | None = None
    origin: str = ""
    warnings: tuple[str, ...] = ()


def triple(values: Iterable[float]) -> Triple:
    """Three numbers along z, y, x."""
    z, y, x = values
    return float(z), float(y), float(x)


def micrometres_per(unit: str) -> float | None:
    """Micrometres in one ``unit`` (symbol or English name, any spelling of micro), None where it is no length."""
    name = unit.strip().replace("\\u00B5", "µ").replace("\\u00b5", "µ")
    # Å and K-like compatibility signs aside, the two code points for micro are what files really mix.
    name = name.replace("\u00b5", "u").replace("\u03bc", "u").replace("\u212b", "å")
    if name in _SYMBOLS:
        return 10.0 ** (_SYMBOLS[name] + 6)
    name = name.lower()
    if name in _OTHER:
        return _OTHER[name]
    if name in _SYMBOLS:
        return 10.0 ** (_SYMBOLS[name] + 6)
    match = re.fullmatch(r"(\w*?)(?:meter|metre)s?", name)
    if match and match[1] in _METRES:
        return 10.0 ** (_METRES[match[1]] + 6)
    return None


def checked(spacing: Sequence[float], *, file: str | Path | None = None, origin: str = "") -> Triple:
    """Three lengths along z, y, x, or an error where they cannot be voxel sizes.

    Raises
    ------
    BadDataError
        Where one is not finite or not above zero, or the largest is more than a thousand times the smallest.
    """
    lengths = tuple(float(length) for length in spacing)
    where = f" from {origin}" if origin else ""
    shown = ", ".join(f"{axis} {length:g}" for axis, length in zip("zyx", lengths, strict=True))
    remedy = "correct the file's header (a program that wrote zero, negative or NaN sizes lost the calibration)"
    if not all(math.isfinite(length) and length > 0 for length in lengths):
        raise BadDataError(
            f"the voxel spacing{where} is {shown}", file=file, expected="three finite lengths above zero", remedy=remedy
        )
    if max(lengths) > MAX_RATIO * min(lengths):
        raise BadDataError(
            f"the voxel spacing{where} is {shown} micrometres: one axis is more than {MAX_RATIO:g} times another",
            file=file,
            expected="lengths in the same unit on all axes",
            remedy=remedy,
        )
    return lengths[0], lengths[1], lengths[2]


def from_axes(sizes: Mapping[str, float | None], planes: int, origin: str, file: str | Path | None = None) -> Spacing:
    """Spacing from lengths by axis letter (micrometres), of which some may be missing.

    A single plane needs no z: it takes the length of y, and the origin says so.
    """
    known = {axis: size for axis, size in sizes.items() if size is not None}
    if not known:
        return Spacing()
    if planes == 1 and "z" not in known and {"y", "x"} <= known.keys():
        known["z"] = known["y"]
        origin = f"{origin}, z as y"
    lacking = [axis for axis in "zyx" if axis not in known]
    if lacking:
        given = ", ".join(axis for axis in "zyx" if axis in known)
        text = f"{origin} gives the voxel size of {given} but not of {', '.join(lacking)}: it is not used"
        return Spacing(warnings=(text,))
    return Spacing(checked([known[axis] for axis in "zyx"], file=file, origin=origin), origin)


def from_lengths(
    sizes: Mapping[str, tuple[float, str]], planes: int, origin: str, file: str | Path | None = None
) -> Spacing:
    """Spacing from (length, unit) by axis letter; a unit that is no length makes that axis unknown, with a warning."""
    factors = {axis: micrometres_per(unit) for axis, (_, unit) in sizes.items()}
    strange = sorted({sizes[axis][1] for axis, factor in factors.items() if factor is None})
    lengths = {axis: sizes[axis][0] * factor for axis, factor in factors.items() if factor is not None}
    found = from_axes(lengths, planes, origin, file)
    if not strange:
        return found
    text = f"{origin} has a voxel size in {', '.join(map(repr, strange))}, which is no length"
    return Spacing(found.value, found.origin, (text, *found.warnings))


def from_imagej(
    metadata: Mapping[str, object],
    resolution: Mapping[str, tuple[int, int]],
    planes: int,
    file: str | Path | None = None,
) -> Spacing:
    """ImageJ's calibration: x and y in the resolution tags (voxels per unit), z and the unit in the description.

    ``resolution`` holds the rational tags by axis letter. Without a unit ImageJ means pixels. ImageJ leaves out a
    depth of exactly one unit; other programs leave it out because they do not know it, so it counts as absent.
    """
    unit = str(metadata.get("unit", "")).strip().strip('"')
    factor = micrometres_per(unit)
    if factor is None:
        return Spacing()
    sizes: dict[str, float | None] = {
        axis: denominator / numerator * factor if numerator else None
        for axis, (numerator, denominator) in resolution.items()
    }
    if "spacing" in metadata:
        # Some programs write a negative depth for stacks that were acquired downwards.
        sizes["z"] = abs(float(str(metadata["spacing"]))) * factor
    found = from_axes(sizes, planes, "ImageJ", file)
    if found.warnings and "z" not in sizes:
        return Spacing(warnings=(f"{found.warnings[0]} (ImageJ leaves out a depth of exactly 1 {unit})",))
    return found


def from_zeiss(text: str, planes: int, file: str | Path | None = None) -> Spacing:
    """Zeiss ``Scaling`` lines in metres, as ImageJ keeps them in its ``Info`` text."""
    sizes: dict[str, float | None] = {
        match[1].lower(): float(match[2]) * 1e6 for match in _ZEISS.finditer(text) if _is_number(match[2])
    }
    return from_axes(sizes, planes, "Zeiss Scaling", file)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
