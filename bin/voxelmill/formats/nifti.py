"""NIfTI-1 and NIfTI-2 in one file, compressed or not, read plane by plane.

nibabel interprets the header; it repairs voxel sizes that are zero or negative, so these are looked at before.
A compressed file is read as a stream; its checksum is compared when its last voxel has been read.
"""

from __future__ import annotations

import io
import math
import zlib
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from voxelmill.errors import BadDataError
from voxelmill.formats.base import (
    NO_CHOICE,
    ImageSource,
    Selection,
    accepted_dtype,
    bad_axes,
    check_axes,
    read_rows,
    shape_czyx,
    truncated,
    unreadable,
)
from voxelmill.formats.spacing import Spacing, from_axes
from voxelmill.image import Box

GZIP = 31
"""zlib's number for a gzip stream with the largest window."""

PIECE = 1 << 16
SPAN = 4 << 20
STATES = 256

MAX_DEFLATE = 1032
"""Deflate cannot make more bytes than this out of one."""

UNITS = {0: (1e3, "NIfTI, unit unknown read as mm"), 1: (1e6, "NIfTI"), 2: (1e3, "NIfTI"), 3: (1.0, "NIfTI")}
"""Micrometres in the unit that the header's code stands for."""


@dataclass(kw_only=True)
class NiftiSource(ImageSource):
    """A volume in a NIfTI file; see :class:`ImageSource`. The file's first axis is x, its third z."""

    compressed: bool = field(repr=False)
    stored: np.dtype = field(repr=False)
    offset: int = field(repr=False)
    lengths: tuple[int, ...] = field(repr=False)
    scaling: tuple[float, float] | None = field(repr=False)
    handles: dict[int, BinaryIO | GzipReader] = field(repr=False, default_factory=dict)

    def _read(self, channel: int, box: Box) -> np.ndarray:
        (z0, z1), rows, columns = box
        handle = self._handle(channel)
        raw = np.empty([stop - start for start, stop in box], self.stored.newbyteorder("="))
        row = np.empty((self.shape[3], 1), self.stored)
        plane = self.shape[2] * row.nbytes
        for z in range(z0, z1):
            read_rows(handle, self.offset + self._plane(channel, z) * plane, rows, columns, row, raw[z - z0])
        if self.compressed and handle.tell() == self.offset + prod(self.lengths) * self.stored.itemsize:
            # Only at its end does a gzip stream compare checksum and length.
            while handle.read(1 << 20):
                pass
        if self.scaling is None:
            return raw
        slope, intercept = self.scaling
        return raw * np.float64(slope) + np.float64(intercept)

    def _plane(self, channel: int, z: int) -> int:
        """Number of a plane in the file."""
        number = 0
        for axis, length in zip(self.axes[:-2], self.lengths[:-2], strict=True):
            number = number * length + {"c": channel, "z": z, "t": self.timepoint}[axis]
        return number

    def _handle(self, channel: int) -> BinaryIO | GzipReader:
        """One stream per channel: channels that are read in turn would send a single stream back each time."""
        if channel not in self.handles:
            self.handles[channel] = open_stream(self.path, self.compressed)
        return self.handles[channel]

    def close(self) -> None:
        for handle in self.handles.values():
            handle.close()
        self.handles.clear()


class GzipReader:
    """The contents of a gzip file, read forward.

    Decoder states are kept on the way, at most ``STATES`` at equal distances, so that going back (to the first plane
    of a slab, for its next band of rows) starts from the nearest and not from the beginning of the file. zlib compares
    the checksum and the length at the end of the stream.
    """

    def __init__(self, path: Path):
        self._file = open(path, "rb")  # noqa: SIM115
        self._decoder = zlib.decompressobj(GZIP)
        self._pending = b""
        self._position = 0
        self._span = SPAN
        self._states = [(0, 0, b"", self._decoder.copy())]

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        """Go to a position; EOFError where the contents end first."""
        nearest = next(state for state in reversed(self._states) if state[0] <= position)
        if position < self._position or nearest[0] > self._position:
            self._position, start, self._pending, decoder = nearest
            self._file.seek(start)
            self._decoder = decoder.copy()
        while self._position < position:
            if not self._decode(min(PIECE, position - self._position)):
                raise EOFError("the file ends before its last voxel")

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; fewer at the end only."""
        parts = []
        while size > 0 and (data := self._decode(min(PIECE, size))):
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> GzipReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decode(self, limit: int) -> bytes:
        """Some bytes, none at the end."""
        while True:
            if self._decoder.eof:
                # Another member may follow, as block-wise compressors write them; zeros between members are padding.
                rest = self._decoder.unused_data.lstrip(b"\0")
                while not rest:
                    encoded = self._file.read(PIECE)
                    if not encoded:
                        return b""
                    rest = encoded.lstrip(b"\0")
                self._decoder, self._pending = zlib.decompressobj(GZIP), rest
            encoded = self._decoder.unconsumed_tail or self._pending or self._file.read(PIECE)
            if not encoded:
                raise EOFError("the compressed data end before their end mark")
            self._pending = b""
            data = self._decoder.decompress(encoded, limit)
            if data:
                self._position += len(data)
                self._remember()
                return data

    def _remember(self) -> None:
        if self._position < self._states[-1][0] + self._span or self._decoder.eof:
            return
        self._states.append((self._position, self._file.tell(), self._pending, self._decoder.copy()))
        if len(self._states) > STATES:
            self._states = self._states[::2]
            self._span *= 2


def open_stream(path: Path, compressed: bool) -> BinaryIO | GzipReader:
    return GzipReader(path) if compressed else open(path, "rb")


def open_nifti(path: Path, selection: Selection = NO_CHOICE) -> NiftiSource:
    """Open a NIfTI file.

    Parameters
    ----------
    path : Path
    selection : Selection
        ``axes``: one letter out of ``tczyx`` per axis of the array as it lies in the file, slowest first (x last), axes
        of length one after the third left out; without it a fourth axis is time and a fifth the channels.
        ``timepoint``.

    Raises
    ------
    BadDataError
        Where the header is damaged, has voxel sizes that are none, or announces more than the file holds.
    """
    with open(path, "rb") as handle:
        compressed = handle.read(2) == b"\x1f\x8b"
    try:
        with open_stream(path, compressed) as stream:
            head = stream.read(540)
    except (zlib.error, EOFError) as error:
        raise unreadable(path, error) from error
    two = head[4:7] == b"n+2"
    kind, length = (nib.Nifti2Header, 540) if two else (nib.Nifti1Header, 348)
    if len(head) < length:
        raise truncated(path, length, len(head))
    try:
        raw = kind(head[:length], check=False)
        sizes = np.asarray(raw["pixdim"], np.float64)
        shape = tuple(int(n) for n in raw.get_data_shape())
        spacing, factor = read_spacing(sizes, shape, int(raw["xyzt_units"]) & 7, path)
        header = kind(head[:length], check=True)
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
    check_size(path, offset + prod(lengths) * stored.itemsize, compressed)
    for matrix in (affine, *(form for _, form in forms)):
        matrix[:3] *= factor / 1e3
    return NiftiSource(
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
        chunk=(1, lengths[-2], lengths[-1]) if compressed else (1, 1, lengths[-1]),
        timepoint=time,
        compressed=compressed,
        stored=stored,
        offset=offset,
        lengths=lengths,
        scaling=scaling,
    )


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
    if not names.endswith("yx"):
        raise bad_axes(path, names, lengths)
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


def check_size(path: Path, needed: int, compressed: bool) -> None:
    """Refuse a file that ends before its last voxel.

    The last four bytes of a gzip file are the length of what it holds. Where they do not fit, the file is cut, or was
    written in several parts, or has something behind the voxels: then it is read once to know.
    """
    size = path.stat().st_size
    if not compressed:
        if needed > size:
            raise truncated(path, needed, size)
        return
    if needed > MAX_DEFLATE * size:
        raise BadDataError(
            f"the header declares {needed} bytes of voxels in a compressed file of {size} bytes",
            file=path,
            remedy="copy the file again from its origin and compare the checksums",
        )
    with open(path, "rb") as handle:
        handle.seek(-4, io.SEEK_END)
        if int.from_bytes(handle.read(4), "little") == needed % 2**32:
            return
    held = 0
    try:
        with open_stream(path, True) as stream:
            while data := stream.read(1 << 20):
                held += len(data)
    except EOFError as error:
        raise BadDataError(
            "the compressed file is truncated: it ends inside its data",
            file=path,
            remedy="copy the file again from its origin and compare the checksums",
        ) from error
    except zlib.error as error:
        raise unreadable(path, error) from error
    if held < needed:
        raise truncated(path, needed, held)
