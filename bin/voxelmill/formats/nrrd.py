"""NRRD in one file (.nrrd), raw or compressed with gzip.

pynrrd reads the fields of the header; what they mean is decided here. Raw voxels have no checksum, so only a changed
length can be seen; gzip's is compared when the last voxel has been read.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import nrrd
import numpy as np

from voxelmill.errors import BadDataError
from voxelmill.formats.base import NO_CHOICE, Selection, accepted_dtype, bad_axes, check_axes, shape_czyx
from voxelmill.formats.spacing import Spacing, Triple, from_axes, micrometres_per
from voxelmill.formats.streams import GZIP, StreamSource, check_size, refuse_layout, stream_chunk
from voxelmill.formats.world import LPS, to_ras

MAX_HEADER = 1 << 20

SPACES = {
    "right-anterior-superior": (1.0, 1.0, 1.0), "ras": (1.0, 1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0, 1.0), "las": (-1.0, 1.0, 1.0),
    "left-posterior-superior": LPS, "lps": LPS,
}  # fmt: skip
"""Signs that turn a space into right, anterior, superior. Any other is taken for the last, as by ITK."""

COLOURS = {"rgb-color": 3, "rgba-color": 4}
CHANNELS = {"list", "vector", "point", "covariant-vector", "normal", "scalar", "none", "stub", *COLOURS} | {
    f"{count}-{what}" for count in (2, 3, 4) for what in ("vector", "color", "gradient", "normal", "value")
}


def open_nrrd(path: Path, selection: Selection = NO_CHOICE) -> StreamSource:
    """Open an NRRD file.

    Parameters
    ----------
    path : Path
    selection : Selection
        ``axes``: one letter out of ``tczyx`` per axis of the array as it lies in the file, slowest first (NRRD's header
        has them the other way round), axes of length one that are not in space left out; without it the kinds of the
        axes decide. ``timepoint``.

    Raises
    ------
    BadDataError
        Where the header is damaged, its voxels are in another file or written in a way that is not read, or it
        declares more or less than the file holds.
    """
    header, start = read_header(path)
    try:
        return _open(path, header, start, selection)
    except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
        text = f"{error} is absent" if isinstance(error, KeyError) else str(error)
        raise BadDataError(f"the NRRD header is damaged: {text[:200]}", file=path) from error


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Fields of the header, and the byte behind it."""
    with open(path, "rb") as handle:
        head = handle.read(MAX_HEADER)
    ends = [at + len(mark) for mark in (b"\n\n", b"\r\n\r\n") if (at := head.find(mark)) >= 0]
    # A header without voxels may end with the file.
    if not ends and (b"data file" not in head and b"datafile" not in head):
        raise BadDataError("the NRRD header is damaged or cut", file=path, expected="an empty line at its end")
    end = min(ends, default=len(head))
    try:
        # A list of lines: pynrrd would take a single text for the name of a file.
        header = nrrd.read_header(head[:end].decode("ascii", "replace").splitlines())
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise BadDataError(f"the NRRD header is damaged: {text}", file=path) from error
    return dict(header), end


def _open(path: Path, header: dict[str, Any], start: int, selection: Selection) -> StreamSource:
    refuse_elsewhere(header, path)
    sizes = tuple(int(size) for size in header["sizes"])
    if len(sizes) != header["dimension"] or min(sizes) < 0:
        raise ValueError(f"dimension {header['dimension']}, sizes {sizes}")
    stored = element_type(header, path)
    kinds = axis_kinds(header, len(sizes))
    names, lengths, time = file_axes(sizes, kinds, selection, path)
    bits = compression(header, path)
    begin = start if bits is None else 0
    check_size(path, begin + prod(sizes) * stored.itemsize, bits, start, exact=True)
    spatial = [axis for axis, kind in enumerate(kinds) if kind == "space"]
    spacing, affine, origin = placement(header, spatial, sizes, path)
    colours = [COLOURS[kind] for kind in named(header, "kinds", len(sizes)) if kind in COLOURS]
    shape = shape_czyx(names, lengths)
    return StreamSource(
        path=path,
        format="NRRD",
        shape=shape,
        dtype=accepted_dtype(stored, path),
        spacing=spacing.value,
        spacing_origin=spacing.origin,
        affine=affine,
        warnings=list(spacing.warnings),
        rgb=bool(colours) and shape[0] == 3,
        axes=names,
        origin=origin,
        chunk=stream_chunk(lengths, names, bits is not None),
        timepoint=time,
        stored=stored,
        lengths=lengths,
        offset=begin,
        bits=bits,
        start=start,
        exact=True,
    )


def refuse_elsewhere(header: dict[str, Any], path: Path) -> None:
    """Raise BadDataError where the voxels are in another file or behind something else."""
    if any(name in header for name in ("data file", "datafile")):
        raise BadDataError(
            "an NRRD header whose voxels are in another file",
            file=path,
            expected="header and voxels in one file",
            remedy="save the image as .nrrd",
        )
    for name in ("line skip", "lineskip", "byte skip", "byteskip"):
        if header.get(name, 0) != 0:
            raise BadDataError(
                f"an NRRD header with {name} {header[name]}",
                file=path,
                expected="voxels right behind the header",
                remedy="save the image again as .nrrd",
            )


def compression(header: dict[str, Any], path: Path) -> int | None:
    """How the voxels are compressed; BadDataError where it cannot be read."""
    encoding = header["encoding"].lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise BadDataError(
            f"NRRD voxels with the encoding {encoding[:40]}",
            file=path,
            expected="raw or gzip",
            remedy="save the image again with the encoding gzip",
        )
    return None if encoding == "raw" else GZIP


def element_type(header: dict[str, Any], path: Path) -> np.dtype:
    """Type of the stored voxels; BadDataError where it is none of an image."""
    name = header["type"]
    code = nrrd.reader._TYPEMAP_NRRD2NUMPY.get(name)
    if code is None or code == "V":
        raise BadDataError(f"voxels of type {name[:40]}", file=path, expected="an integer or a float")
    dtype = np.dtype(code)
    order = header.get("endian", "").lower()
    if dtype.itemsize > 1 and order not in ("little", "big"):
        raise ValueError(f"the byte order is {order[:20]!r}")
    return dtype.newbyteorder(">" if order == "big" else "<")


def named(header: dict[str, Any], key: str, count: int) -> list[str]:
    """One lower-case word per axis, empty ones where the header does not have them."""
    words = [str(word).lower() for word in header.get(key, [])]
    if words and len(words) != count:
        raise ValueError(f"{len(words)} {key} for {count} axes")
    return words or [""] * count


def axis_kinds(header: dict[str, Any], count: int) -> list[str]:
    """What each axis is, fastest first: ``space``, ``t``, ``c`` or ``?``."""
    kinds = named(header, "kinds", count)
    directions = header.get("space directions")
    found = []
    for axis, kind in enumerate(kinds):
        if directions is not None:
            inside = not np.isnan(np.asarray(directions, np.float64)[axis]).all()
        else:
            inside = kind in ("", "???", "domain", "space")
        is_time = kind == "time"
        found.append("t" if is_time else "space" if inside else "c" if kind in CHANNELS else "?")
    return found


def file_axes(
    sizes: tuple[int, ...], kinds: Sequence[str], selection: Selection, path: Path
) -> tuple[str, tuple[int, ...], int]:
    """Axis letters and lengths as the voxels lie in the file, slowest first, and the index on the time axis."""
    kept = [axis for axis, size in enumerate(sizes) if kinds[axis] == "space" or size > 1]
    lengths = tuple(sizes[axis] for axis in reversed(kept))
    letters = itertools.chain("xyz", itertools.repeat("?"))
    words = [next(letters) if kinds[axis] == "space" else kinds[axis] for axis in kept]
    names = selection.axes.lower() if selection.axes else "".join(reversed(words))
    time = check_axes(path, names, lengths, selection.timepoint)
    refuse_layout(path, names, lengths)
    return names, lengths, time


def placement(
    header: dict[str, Any], spatial: list[int], sizes: tuple[int, ...], path: Path
) -> tuple[Spacing, np.ndarray | None, Triple]:
    """Spacing, affine and the first voxel's position along z, y, x (micrometres).

    Without directions in space the lengths are those of ``spacings``, and there is no affine. Lengths without a unit
    are millimetres, as ITK has it.
    """
    nowhere = (0.0, 0.0, 0.0)
    if not 2 <= len(spatial) <= 3:
        return Spacing(), None, nowhere
    planes = sizes[spatial[2]] if len(spatial) == 3 else 1
    directions = header.get("space directions")
    units = header.get("space units") if directions is not None else header.get("units")
    if directions is None and units is not None:
        units = [units[axis] for axis in spatial]
    told = {str(unit).strip() for unit in units or []} - {"", "???"}
    factors = {unit: micrometres_per(unit) for unit in told}
    strange = sorted(unit for unit, value in factors.items() if value is None)
    if strange or len(set(factors.values())) > 1:
        text = f"NRRD has voxel sizes in {', '.join(map(repr, sorted(told)))}: they are not used"
        return Spacing(warnings=(text,)), None, nowhere
    factor = next((value for value in factors.values() if value is not None), 1e3)
    name = "NRRD" if told else "NRRD, unit unknown read as mm"
    if directions is None:
        steps_along = header.get("spacings")
        if steps_along is None:
            return Spacing(), None, nowhere
        lengths = [float(steps_along[axis]) for axis in spatial]
        known = {a: v * factor for a, v in zip("xyz", lengths, strict=False) if not np.isnan(v)}
        return from_axes(known, planes, name, path), None, nowhere
    vectors = np.asarray(directions, np.float64)[spatial]
    count = vectors.shape[1]
    if not len(spatial) <= count <= 3:
        raise bad_axes(path, "", sizes)
    norms = np.linalg.norm(vectors, axis=1)
    spacing = from_axes({a: v * factor for a, v in zip("xyz", norms, strict=False)}, planes, name, path)
    if spacing.value is None:
        return spacing, None, nowhere
    steps, at = np.eye(3) * (spacing.value[0] / factor), np.zeros(3)
    steps[:count, : len(spatial)] = vectors.T
    if len(spatial) == 2 and count == 3:
        steps[:, 2] = np.cross(vectors[0], vectors[1]) / (norms[0] * norms[1]) * (spacing.value[0] / factor)
    at[:count] = np.asarray(header.get("space origin", np.zeros(count)), np.float64)
    space = str(header.get("space", "")).lower().removesuffix("-time")
    return spacing, *to_ras(steps, at, SPACES.get(space, LPS), factor, path)
