"""Deflate streams that are made in pieces.

The rows of a plane are compressed on their own, each piece ending on a byte, so that they can be encoded in another
order than they are written in; together they are one ordinary stream. Its checksum is put together from those of the
pieces.
"""

from __future__ import annotations

from functools import cache
from typing import IO

import imagecodecs
from zlib_ng import zlib_ng

from voxelmill.formats.planes import Piece

LEVEL = 4
"""zlib-ng's level: images take two thirds of level 1 for three quarters more time, labels half; more gains nothing."""

LABEL_LEVEL, IMAGE_LEVEL = 4, 1
"""Of libdeflate and HDF5's zlib, where noise gains nothing from a longer look for repetitions."""

GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
"""Deflate, no name, no time, unknown system."""

ZLIB_HEADER = b"\x78\x01"

FINAL = b"\x03\0"
"""An empty last block of deflate."""

POLYNOMIAL = 0xEDB88320
ADLER = 65521


def level_of(labels: bool) -> int:
    return LABEL_LEVEL if labels else IMAGE_LEVEL


def zlib_piece(data: bytes, labels: bool) -> Piece:
    """A zlib stream of its own."""
    return Piece(bytes(imagecodecs.deflate_encode(data, level=level_of(labels))), len(data))


def raw_piece(data: bytes, *, adler: bool = False) -> Piece:
    """Blocks of a deflate stream that end on a byte and refer to nothing before them, with the data's checksum."""
    encoder = zlib_ng.compressobj(LEVEL, zlib_ng.DEFLATED, -zlib_ng.MAX_WBITS)
    body = encoder.compress(data) + encoder.flush(zlib_ng.Z_SYNC_FLUSH)
    return Piece(body, len(data), zlib_ng.adler32(data) if adler else zlib_ng.crc32(data))


class JoinedStream:
    """One gzip or zlib stream that is made of the pieces of `raw_piece`.

    Parameters
    ----------
    file : file
        Open for writing, where the stream begins.
    gzip : bool
        With CRC-32 and a length at its end; else zlib, with Adler-32.
    """

    def __init__(self, file: IO[bytes], *, gzip: bool):
        self._file, self._gzip = file, gzip
        self._check, self._length = (0, 0) if gzip else (1, 0)
        self.tail = b""
        self.size = file.write(GZIP_HEADER if gzip else ZLIB_HEADER)

    def put(self, piece: Piece) -> None:
        self.size += self._file.write(piece.data)
        combine = crc32_combine if self._gzip else adler32_combine
        self._check = combine(self._check, piece.crc, piece.length)
        self._length += piece.length
        self.tail = piece.data

    def finish(self) -> None:
        end = FINAL
        if self._gzip:
            end += self._check.to_bytes(4, "little") + (self._length % 2**32).to_bytes(4, "little")
        else:
            end += self._check.to_bytes(4, "big")
        self.size += self._file.write(end)
        self.tail += end


def adler32_combine(first: int, second: int, length: int) -> int:
    """Adler-32 of two strings put together, from theirs and the length of the second."""
    low1, high1, low2, high2 = first & 0xFFFF, first >> 16, second & 0xFFFF, second >> 16
    low = (low1 + low2 - 1) % ADLER
    high = (high1 + high2 + length * (low1 - 1)) % ADLER
    return high << 16 | low


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
