"""NIfTI-1 and NIfTI-2 in one file, compressed or not, read plane by plane.

nibabel interprets the header; it repairs voxel sizes that are zero or negative, so these are looked at before.
A compressed file is read as a stream; its checksum is compared when its last voxel has been read.
"""

from __future__ import annotations

import math
from math import prod
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from voxelmill.errors import BadDataError
from voxelmill.formats.base import (
    NO_CHOICE,
    Selection,
    accepted_dtype,
    check_axes,
    shape_czyx,
    truncated,
    unreadable,
)
from voxelmill.formats.spacing import Spacing, Triple, from_axes
from voxelmill.formats.streams import (
    DECODER_ERROR,
    GZIP,
    StreamSource,
    check_size,
    open_stream,
    refuse_layout,
    stream_chunk,
)
from voxelmill.formats.world import first_voxel

UNITS = {0: (1e3, "NIfTI, unit unknown read as mm"), 1: (1e6, "NIfTI"), 2: (1e3, "NIfTI"), 3: (1.0, "NIfTI")}
"""Micrometres in the unit that the header's code stands for."""


def open_nifti(path: Path, selection: Selection = NO_CHOICE, mended: Triple | None = None) -> StreamSource:
    """Open a NIfTI file.

    Parameters
    ----------
    path : Path
    selection : Selection
        ``axes``: one letter out of ``tczyx`` per axis of the array as it lies in the file, slowest first (x last), axes
        of length one after the third left out; without it a fourth axis is time and a fifth the channels.
        ``timepoint``.
    mended : tuple of float or None
        Micrometres along z, y, x that take the place of the header's voxel sizes.

    Raises
    ------
    BadDataError
        Where the header is damaged, has voxel sizes that are none, or announces more than the file holds.
    """
    raw, bits = read_header(path)
    try:
        if mended is not None:
            raw["pixdim"][1:4] = [size / header_unit(raw) for size in mended[::-1]]
        sizes = np.asarray(raw["pixdim"], np.float64)
        shape = tuple(int(n) for n in raw.get_data_shape())
        spacing, factor = read_spacing(sizes, shape, int(raw["xyzt_units"]) & 7, path)
        header = type(raw)(raw.binaryblock, check=True)
        stored = header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
        affine = np.asarray(header.get_best_affine(), np.float64)
        forms = orientation_forms(header)
        offset = int(header.get_data_offset())
    except (HeaderDataError, ValueError) as error:
        raise unreadable(path, error) from error
    names, lengths, time = file_axes(shape, selection, path)
    dtype = accepted_dtype(stored, path)
    scaling = None if slope is None or (slope, intercept) == (1, 0) else (float(slope), float(intercept or 0.0))
    check_size(path, offset + prod(lengths) * stored.itemsize, bits)
    origin = first_voxel(affine[:3, :3], affine[:3, 3], factor)
    for matrix in (affine, *(form for _, form in forms)):
        matrix[:3] *= factor / 1e3
    return StreamSource(
        path=path,
        format="NIfTI",
        shape=shape_czyx(names, lengths),
        dtype=np.dtype(np.float64) if scaling else dtype,
        spacing=spacing.value,
        spacing_origin=spacing.origin,
        affine=affine,
        forms=forms,
        warnings=list(spacing.warnings),
        axes=names,
        origin=origin,
        chunk=stream_chunk(lengths, names, bits is not None),
        timepoint=time,
        bits=bits,
        stored=stored,
        offset=offset,
        lengths=lengths,
        scaling=scaling,
    )


def read_header(path: Path) -> tuple[nib.Nifti1Header, int | None]:
    """The header as it is, which nibabel would mend, and how the file is compressed.

    Raises
    ------
    BadDataError
        Where the file ends inside it or cannot be decoded.
    """
    with open(path, "rb") as handle:
        bits = GZIP if handle.read(2) == b"\x1f\x8b" else None
    try:
        with open_stream(path, bits) as stream:
            head = stream.read(540)
    except (DECODER_ERROR, EOFError) as error:
        raise unreadable(path, error) from error
    kind, length = (nib.Nifti2Header, 540) if head[4:7] == b"n+2" else (nib.Nifti1Header, 348)
    if len(head) < length:
        raise truncated(path, length, len(head))
    try:
        return kind(head[:length], check=False), bits
    except (HeaderDataError, ValueError) as error:
        raise unreadable(path, error) from error


def header_unit(header: nib.Nifti1Header) -> float:
    """Micrometres in the header's unit of length, millimetres where it has none that is known."""
    return UNITS.get(int(header["xyzt_units"]) & 7, UNITS[0])[0]


def orientation_forms(header: nib.Nifti1Header) -> tuple[tuple[int, np.ndarray], ...]:
    """Code and affine of ``qform`` and ``sform``, in the header's unit; an affine that is not set is the identity."""
    found = []
    for read in (header.get_qform, header.get_sform):
        matrix, code = read(coded=True)
        found.append((int(code), np.eye(4) if matrix is None else np.array(matrix, np.float64)))
    return tuple(found)


def file_axes(shape: tuple[int, ...], selection: Selection, path: Path) -> tuple[str, tuple[int, ...], int]:
    """Axis letters and lengths as the voxels lie in the file, slowest first, and the index on the time axis."""
    axes = selection.axes
    padded = shape + (1,) * (3 - len(shape))
    kept = [i for i, length in enumerate(padded) if i < 3 or length > 1]
    lengths = tuple(padded[i] for i in reversed(kept))
    default = "".join("xyztc"[i] if i < 5 else "?" for i in reversed(kept))
    names = default if axes is None else axes.lower()
    if axes is not None and len(axes) == 2 and padded[2] == 1 and len(kept) == 3:
        names = "z" + names
    time = check_axes(path, names, lengths, selection.timepoint)
    refuse_layout(path, names, lengths)
    return names, lengths, time


def read_spacing(sizes: np.ndarray, shape: tuple[int, ...], unit: int, path: Path) -> tuple[Spacing, float]:
    """Spacing out of the raw ``pixdim`` field, and micrometres per unit of the header.

    The size along an axis of length one says nothing, so it may be absent (zero or not finite).
    """
    if unit not in UNITS:
        raise BadDataError(f"the NIfTI header has the unit code {unit} for lengths", file=path, expected="0 to 3")
    factor, origin = UNITS[unit]
    planes = shape[2] if len(shape) > 2 else 1
    lengths: dict[str, float | None] = {
        axis: float(size) * factor for axis, size in zip("xyz", sizes[1:4], strict=True)
    }
    z = lengths["z"]
    if planes == 1 and z is not None and not (math.isfinite(z) and z > 0):
        lengths["z"] = None
    return from_axes(lengths, planes, origin, path), factor
