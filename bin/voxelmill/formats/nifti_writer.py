"""Labels as ``.nii.gz``: one gzip stream, written plane by plane.

The rows of a plane are compressed on their own, each piece ending on a byte, so that they can be encoded in another
order than they are written in; together they are one ordinary gzip member. Its checksum is put together from those of
the pieces.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np

from voxelmill.formats.nifti import open_nifti
from voxelmill.formats.planes import LEVEL, Piece, PlaneWriter, not_as_written

MAX_NIFTI1 = 32767
"""NIfTI-1 counts voxels along an axis in signed 16-bit numbers."""

HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
"""gzip: deflate, no name, no time, unknown system."""

FINAL = b"\x03\0"
"""An empty last block of deflate."""

POLYNOMIAL = 0xEDB88320

Forms = tuple[tuple[int, np.ndarray], tuple[int, np.ndarray]]


class NiftiWriter(PlaneWriter):
    """One compressed NIfTI file of labels.

    Parameters
    ----------
    path : Path
    shape : tuple of int
        z, y, x.
    dtype : str
        Any unsigned integer.
    forms : tuple of (int, numpy.ndarray)
        Codes and affines (voxel x, y, z to millimetres) of ``qform`` and ``sform``; a code of 0 leaves one out.
    sizes : sequence of float
        Millimetres along z, y, x, for readers that look at neither.
    physical : bool
        False for an image without physical size: the header's unit is then unknown.
    """

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: str, forms: Forms, sizes: Sequence[float], physical: bool
    ):
        super().__init__(path, shape, dtype)
        self._file = open(path, "wb")  # noqa: SIM115
        self._crc = self._length = 0
        head = header(shape, self.dtype, forms, sizes, physical)
        self._file.write(HEADER)
        self._put(deflate(head))

    def encode(self, rows: np.ndarray) -> Piece:
        return deflate(rows.astype(self.dtype, copy=False).tobytes())

    def write(self, pieces: Iterator[Piece]) -> None:
        for piece in pieces:
            self._put(piece)

    def _put(self, piece: Piece) -> None:
        self._file.write(piece.data)
        self._crc = crc32_combine(self._crc, piece.crc, piece.length)
        self._length += piece.length

    def close(self) -> None:
        if not self._file.closed:
            with self._file:
                self._file.write(FINAL + self._crc.to_bytes(4, "little") + (self._length % 2**32).to_bytes(4, "little"))

    def verify(self) -> None:
        with open_nifti(self.path) as source:
            if source.shape != (1, *self.shape) or source.dtype != self.dtype:
                raise not_as_written(
                    self.path,
                    f"{source.shape[1:]} of {source.dtype}",
                    f"{self.shape} of {self.dtype.newbyteorder('=')}",
                )


def header(shape: Sequence[int], dtype: np.dtype, forms: Forms, sizes: Sequence[float], physical: bool) -> bytes:
    """Header of a NIfTI file up to its first voxel; NIfTI-2 where an axis is longer than NIfTI-1 can say."""
    kind, offset = (nib.Nifti2Header, 544) if max(shape) > MAX_NIFTI1 else (nib.Nifti1Header, 352)
    made = kind(endianness="<")
    made.set_data_dtype(dtype)
    made.set_data_shape(tuple(reversed(shape)))
    made.set_slope_inter(1, 0)
    made["vox_offset"] = offset
    made["pixdim"][1:4] = sizes[::-1]
    if physical:
        made.set_xyzt_units("mm")
    (qform, turned), (sform, affine) = forms
    if qform:
        made.set_qform(turned, qform)
    if sform:
        made.set_sform(affine, sform)
    return bytes(made.binaryblock) + bytes(offset - made.sizeof_hdr)


def deflate(data: bytes) -> Piece:
    """Blocks of a deflate stream that end on a byte and refer to nothing before them."""
    encoder = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return Piece(encoder.compress(data) + encoder.flush(zlib.Z_SYNC_FLUSH), len(data), zlib.crc32(data))


def crc32_combine(first: int, second: int, length: int) -> int:
    """CRC-32 of two strings put together, from theirs and the length of the second.

    Source: ``crc32_combine`` of zlib 1.2.12: multiplication by x^(8 length) modulo the polynomial.
    """
    return _multiply(_power(8 * length), first) ^ second


@cache
def _power(exponent: int) -> int:
    """x^exponent modulo the polynomial; bits reversed, so that 2^31 is one."""
    result, square = 1 << 31, 1 << 30
    while exponent:
        if exponent & 1:
            result = _multiply(square, result)
        square = _multiply(square, square)
        exponent >>= 1
    return result


def _multiply(a: int, b: int) -> int:
    """Product of two polynomials over GF(2), bits reversed."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (POLYNOMIAL if b & 1 else 0)
    return product
