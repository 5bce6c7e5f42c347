"""Voxels that follow each other in one stream of bytes, compressed or not: what NIfTI, MetaImage and NRRD share.

A compressed stream is read forward; its checksum is compared when its last voxel has been read.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from zlib_ng import zlib_ng

from voxelmill.errors import BadDataError
from voxelmill.formats.base import COPY_AGAIN, ImageSource, bad_axes, read_rows, truncated, unreadable
from voxelmill.image import Box

GZIP = 31
"""zlib's number for a gzip stream with the largest window."""

ZLIB = 15
"""zlib's number for a stream of its own with the largest window."""

DECODER_ERROR: type[Exception] = zlib_ng.error  # type: ignore[assignment]
"""What zlib-ng raises for data that are no deflate stream, or not those of the checksum."""

PIECE = 1 << 16
DECODED = 1 << 18
SPAN = 4 << 20
STATES = 256

MAX_DEFLATE = 1032
"""Deflate cannot make more bytes than this out of one."""


@dataclass(kw_only=True)
class StreamSource(ImageSource):
    """A volume whose voxels lie in one stream, x before y, the channel before both or after; see :class:`ImageSource`.

    Attributes
    ----------
    stored : numpy.dtype
        As the voxels lie in the file.
    lengths : tuple of int
        Of ``axes``, slowest first.
    offset : int
        Byte of the first voxel, counted in what the stream holds.
    bits : int or None
        ``GZIP`` or ``ZLIB`` where the stream is compressed.
    start : int
        Byte of the file where the stream begins.
    scaling : (float, float) or None
        Slope and intercept from stored to true values.
    exact : bool
        Nothing may follow the last voxel.
    """

    stored: np.dtype = field(repr=False)
    lengths: tuple[int, ...] = field(repr=False)
    offset: int = field(repr=False)
    bits: int | None = field(repr=False, default=None)
    start: int = field(repr=False, default=0)
    scaling: tuple[float, float] | None = field(repr=False, default=None)
    exact: bool = field(repr=False, default=False)
    handles: dict[int, BinaryIO | InflateReader] = field(repr=False, default_factory=dict)

    def _read(self, channel: int, box: Box) -> np.ndarray:
        (z0, z1), rows, columns = box
        handle = self._handle(channel)
        raw = np.empty([stop - start for start, stop in box], self.stored.newbyteorder("="))
        interleaved = self.axes.endswith("c")
        row = np.empty((self.shape[3], self.shape[0] if interleaved else 1), self.stored)
        plane = self.shape[2] * row.nbytes
        sample = channel if interleaved else 0
        for z in range(z0, z1):
            start = self.offset + self._plane(channel, z) * plane
            read_rows(handle, start, rows, columns, row, raw[z - z0], sample)
        if self.bits is not None and handle.tell() == self.offset + prod(self.lengths) * self.stored.itemsize:
            # Only at its end does the stream compare checksum and length.
            while behind := handle.read(1 << 20):
                if self.exact:
                    raise left_over(self.path, f"at least {len(behind)}")
        if self.scaling is None:
            return raw
        slope, intercept = self.scaling
        return raw * np.float64(slope) + np.float64(intercept)

    def _plane(self, channel: int, z: int) -> int:
        """Number of a plane in the stream."""
        number = 0
        for axis, length in zip(self.axes, self.lengths, strict=True):
            if axis == "y":
                break
            number = number * length + {"c": channel, "z": z, "t": self.timepoint}[axis]
        return number

    def _handle(self, channel: int) -> BinaryIO | InflateReader:
        """One stream per channel: channels that are read in turn would send a single stream back each time."""
        if channel not in self.handles:
            self.handles[channel] = open_stream(self.path, self.bits, self.start)
        return self.handles[channel]

    def close(self) -> None:
        for handle in self.handles.values():
            handle.close()
        self.handles.clear()


class InflateReader:
    """The contents of a gzip or zlib stream, read forward.

    Decoder states are kept on the way, at most ``STATES`` at equal distances, so that going back (to the first plane
    of a slab, for its next band of rows) starts from the nearest and not from the beginning of the file. zlib compares
    the checksum (and of gzip the length) at the end of the stream.

    Parameters
    ----------
    path : Path
    bits : int
        ``GZIP`` or ``ZLIB``.
    start : int
        Byte of the file where the stream begins.
    """

    def __init__(self, path: Path, bits: int = GZIP, start: int = 0):
        self._file = open(path, "rb")  # noqa: SIM115
        self._file.seek(start)
        self._bits = bits
        decoder: Any = zlib_ng.decompressobj(bits)
        self._decoder = decoder
        self._pending = b""
        self._position = 0
        self._span = SPAN
        self._states = [(0, start, b"", decoder.copy())]

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
            if not self._decode(min(DECODED, position - self._position)):
                raise EOFError("the file ends before its last voxel")

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; fewer at the end only."""
        parts = []
        while size > 0 and (data := self._decode(min(DECODED, size))):
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> InflateReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decode(self, limit: int) -> bytes:
        """Some bytes, none at the end."""
        while True:
            if self._decoder.eof and self._bits != GZIP:
                return b""
            if self._decoder.eof:
                # Another member may follow, as block-wise compressors write them; zeros between members are padding.
                rest = self._decoder.unused_data.lstrip(b"\0")
                while not rest:
                    encoded = self._file.read(PIECE)
                    if not encoded:
                        return b""
                    rest = encoded.lstrip(b"\0")
                self._decoder, self._pending = zlib_ng.decompressobj(self._bits), rest
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


def open_stream(path: Path, bits: int | None, start: int = 0) -> BinaryIO | InflateReader:
    """The stream that begins at a byte of a file; one that is not compressed begins with the file."""
    return open(path, "rb") if bits is None else InflateReader(path, bits, start)


def refuse_layout(path: Path, axes: str, lengths: tuple[int, ...]) -> None:
    """Raise BadDataError unless x is the fastest axis, or the fastest after the channel, and y comes next."""
    if not axes.endswith(("yx", "yxc")):
        raise bad_axes(path, axes, lengths)


def stream_chunk(lengths: tuple[int, ...], axes: str, compressed: bool) -> tuple[int, int, int]:
    """What is best read at once: planes of a compressed stream, rows of another."""
    at = dict(zip(axes, lengths, strict=True))
    return (1, at["y"] if compressed else 1, at["x"])


def left_over(path: Path, count: str) -> BadDataError:
    return BadDataError(
        f"the file holds more than its header declares: {count} bytes follow the last voxel",
        file=path,
        remedy=COPY_AGAIN,
    )


def check_size(path: Path, needed: int, bits: int | None, start: int = 0, *, exact: bool = False) -> None:
    """Refuse a file that ends before its last voxel.

    The last four bytes of a gzip file are the length of what it holds. Where they do not fit, the file is cut, or was
    written in several parts, or has something behind the voxels: then it is read once to know. So is a zlib
    stream, which does not tell its length.

    Parameters
    ----------
    path : Path
    needed : int
        Bytes of the contents up to the end of the last voxel.
    bits, start
        As those of :class:`StreamSource`.
    exact : bool
        Refuse a file that goes on behind its last voxel too.
    """
    size = path.stat().st_size
    if bits is None:
        held = size
    else:
        check_ratio(path, needed)
        if bits == GZIP and last_length(path) == needed % 2**32:
            return
        held = decoded_length(path, bits, start)
    if held < needed:
        raise truncated(path, needed, held)
    if exact and held > needed:
        raise left_over(path, str(held - needed))


def check_ratio(path: Path, needed: int) -> None:
    """Refuse a header that declares more than deflate can have put into the file."""
    size = path.stat().st_size
    if needed > MAX_DEFLATE * size:
        raise BadDataError(
            f"the header declares {needed} bytes of voxels in a compressed file of {size} bytes",
            file=path,
            remedy=COPY_AGAIN,
        )


def last_length(path: Path) -> int:
    """The length that a gzip file tells of its last member."""
    with open(path, "rb") as handle:
        handle.seek(-4, io.SEEK_END)
        return int.from_bytes(handle.read(4), "little")


def decoded_length(path: Path, bits: int, start: int) -> int:
    """Bytes that a compressed stream holds; it is read for that."""
    held = 0
    try:
        with open_stream(path, bits, start) as stream:
            while data := stream.read(1 << 20):
                held += len(data)
    except EOFError as error:
        raise BadDataError(
            "the compressed file is truncated: it ends inside its data", file=path, remedy=COPY_AGAIN
        ) from error
    except DECODER_ERROR as error:
        raise unreadable(path, error) from error
    return held
