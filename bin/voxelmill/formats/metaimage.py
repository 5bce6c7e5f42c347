"""MetaImage in one file (.mha), compressed with zlib or not.

The header is lines of ``key = value``, the last of which says where the voxels are. A pair of .mhd and .raw is refused:
tasks are given one file. Uncompressed voxels have no checksum, so only a changed length can be seen; zlib's is compared
when the last voxel has been read.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np

from voxelmill.errors import BadDataError
from voxelmill.formats.base import NO_CHOICE, Selection, accepted_dtype, check_axes, shape_czyx, truncated
from voxelmill.formats.spacing import Spacing, from_axes
from voxelmill.formats.streams import (
    ZLIB,
    StreamSource,
    check_ratio,
    check_size,
    left_over,
    refuse_layout,
    stream_chunk,
)
from voxelmill.formats.world import LPS, to_ras

MAX_HEADER = 1 << 20

TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
"""MetaImage's long has four bytes on every machine."""

UNITS = {"um": 1.0, "mm": 1e3, "cm": 1e4}

DATA = "ElementDataFile"


def open_metaimage(path: Path, selection: Selection = NO_CHOICE) -> StreamSource:
    """Open a MetaImage file.

    Parameters
    ----------
    path : Path
    selection : Selection
        ``axes``: one letter out of ``tczyx`` per axis of the array as it lies in the file, slowest first; without it a
        fourth axis is time, and several values per voxel are channels. ``timepoint``.

    Raises
    ------
    BadDataError
        Where the header is damaged, its voxels are in another file, or it declares more or less than the file holds.
    """
    fields, start = read_header(path)
    try:
        return _open(path, fields, start, selection)
    except (ValueError, KeyError, OverflowError) as error:
        text = f"{error} is absent" if isinstance(error, KeyError) else str(error)
        raise BadDataError(f"the MetaImage header is damaged: {text[:200]}", file=path) from error


def _open(path: Path, fields: dict[str, str], start: int, selection: Selection) -> StreamSource:
    if fields[DATA].upper() != "LOCAL":
        raise BadDataError(
            f"a MetaImage header whose voxels are in another file, {fields[DATA][:80]!r}",
            file=path,
            expected="header and voxels in one file",
            remedy="save the image as .mha",
        )
    sizes = tuple(int(part) for part in fields["DimSize"].split())
    if len(sizes) != int(fields["NDims"]):
        raise ValueError(f"{len(sizes)} lengths for {fields['NDims']} dimensions")
    channels = int(fields.get("ElementNumberOfChannels", "1"))
    stored = element_type(fields, path)
    names, lengths, time = file_axes(sizes, channels, selection, path)
    needed = prod(lengths) * stored.itemsize
    bits = ZLIB if flag(fields, "CompressedData") else None
    skip = int(fields.get("HeaderSize", "0"))
    if skip == -1 and bits is None:
        start = max(start, path.stat().st_size - needed)
    elif skip > 0:
        start = skip
    if bits is None:
        check_size(path, start + needed, None, exact=True)
    elif "CompressedDataSize" in fields:
        check_ratio(path, needed)
        end, size = start + int(fields["CompressedDataSize"]), path.stat().st_size
        if end > size:
            raise truncated(path, end, size)
        if end < size:
            raise left_over(path, str(size - end))
    else:
        check_size(path, needed, bits, start, exact=True)
    spacing, affine, origin = placement(fields, sizes, path)
    return StreamSource(
        path=path,
        format="MetaImage",
        shape=shape_czyx(names, lengths),
        dtype=accepted_dtype(stored, path),
        spacing=spacing.value,
        spacing_origin=spacing.origin,
        affine=affine,
        warnings=list(spacing.warnings),
        axes=names,
        origin=origin,
        chunk=stream_chunk(lengths, names, bits is not None),
        timepoint=time,
        stored=stored,
        lengths=lengths,
        offset=start if bits is None else 0,
        bits=bits,
        start=start,
        exact=True,
    )


def read_header(path: Path) -> tuple[dict[str, str], int]:
    """Fields of the header, and the byte behind it."""
    with open(path, "rb") as handle:
        head = handle.read(MAX_HEADER)
    fields: dict[str, str] = {}
    start = 0
    while DATA not in fields:
        end = head.find(b"\n", start)
        key, equals, value = head[start : max(end, start)].decode("latin-1").partition("=")
        if end < 0 or (key.strip() and not equals):
            raise BadDataError("the MetaImage header is damaged or cut", file=path, expected=f"lines up to {DATA}")
        if key.strip() in fields:
            raise BadDataError(f"the MetaImage header has {key.strip()!r} twice", file=path)
        fields[key.strip()] = value.strip()
        start = end + 1
    return fields, start


def lengths_of(text: str, count: int) -> tuple[float, ...]:
    """So many numbers, or ValueError."""
    found = tuple(float(part) for part in text.split())
    if len(found) != count:
        raise ValueError(f"{count} numbers were expected where {text[:80]!r} stands")
    return found


def flag(fields: dict[str, str], key: str) -> bool:
    """Whether a field is true; False without it."""
    text = fields.get(key, "False").lower()
    if text not in ("true", "false", "1", "0"):
        raise ValueError(f"{key} is {text[:20]!r}")
    return text in ("true", "1")


def element_type(fields: dict[str, str], path: Path) -> np.dtype:
    """Type of the stored voxels; BadDataError where it is none of an image."""
    name = fields["ElementType"]
    if name not in TYPES or not flag({"BinaryData": "True", **fields}, "BinaryData"):
        what = f"voxels of type {name[:40]}" if name not in TYPES else "voxels written as text"
        raise BadDataError(what, file=path, expected=f"binary data of type {', '.join(TYPES)}")
    high_first = flag(fields, "BinaryDataByteOrderMSB") or flag(fields, "ElementByteOrderMSB")
    return np.dtype(TYPES[name]).newbyteorder(">" if high_first else "<")


def file_axes(
    sizes: tuple[int, ...], channels: int, selection: Selection, path: Path
) -> tuple[str, tuple[int, ...], int]:
    """Axis letters and lengths as the voxels lie in the file, slowest first, and the index on the time axis."""
    if min(sizes) < 0 or channels < 1:
        raise ValueError(f"the lengths are {sizes}, with {channels} values per voxel")
    lengths = (*reversed(sizes), *([channels] if channels > 1 else []))
    default = {2: "yx", 3: "zyx", 4: "tzyx"}.get(len(sizes), "?") + ("c" if channels > 1 else "")
    names = selection.axes.lower() if selection.axes else default
    time = check_axes(path, names, lengths, selection.timepoint)
    refuse_layout(path, names, lengths)
    return names, lengths, time


def placement(
    fields: dict[str, str], sizes: tuple[int, ...], path: Path
) -> tuple[Spacing, np.ndarray | None, tuple[float, float, float]]:
    """Spacing, affine, and the first voxel's position along z, y, x (micrometres).

    Lengths without a unit are millimetres, as ITK has it. A row of the file's matrix is the direction of a voxel axis.
    """
    count = len(sizes)
    unit = fields.get("DistanceUnits", "?")
    factor, known = UNITS.get(unit, 1e3), unit in UNITS
    text = fields.get("ElementSpacing", fields.get("ElementSize"))
    if text is None:
        return Spacing(), None, (0.0, 0.0, 0.0)
    step = lengths_of(text, count)
    lengths: dict[str, float | None] = {axis: value * factor for axis, value in zip("xyz", step, strict=False)}
    planes = sizes[2] if count > 2 else 1
    spacing = from_axes(lengths, planes, "MetaImage" if known else "MetaImage, unit unknown read as mm", path)
    if spacing.value is None:
        return spacing, None, (0.0, 0.0, 0.0)
    matrix, position = np.eye(count), np.zeros(count)
    for key in ("TransformMatrix", "Orientation", "Rotation"):
        if key in fields:
            matrix = np.array(lengths_of(fields[key], count * count)).reshape(count, count)
            break
    for key in ("Offset", "Position", "Origin"):
        if key in fields:
            position = np.array(lengths_of(fields[key], count))
            break
    steps, at = np.eye(3), np.zeros(3)
    used = min(count, 3)
    steps[:used, :used] = matrix.T[:used, :used]
    at[:used] = position[:used]
    steps = steps * (np.array(spacing.value[::-1]) / factor)
    return spacing, *to_ras(steps, at, LPS, factor, path)
