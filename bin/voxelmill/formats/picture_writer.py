"""Single planes as PNG (streamed) and as JPEG."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np

from voxelmill.formats.deflate import JoinedStream, raw_piece
from voxelmill.formats.planes import Description, Piece, PlaneWriter, not_as_written, verify_tail

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, COLOUR = 0, 2
PLAIN, LEFT = 0, 1
"""PNG's filters: as it is, and the difference to the pixel on the left."""

QUALITY = 95


class PngWriter(PlaneWriter):
    """One PNG file, grey or red, green, blue, of 8 or 16 bits."""

    def __init__(self, path: Path, what: Description):
        super().__init__(path, what, interleaved=True)
        self.dtype = np.dtype(what.dtype).newbyteorder(">")
        self._file = open(path, "wb")  # noqa: SIM115
        height, width = what.shape[2:]
        colour = COLOUR if self.samples == 3 else GREY
        head = (width, height)
        self._file.write(SIGNATURE)
        self._chunk(
            b"IHDR", b"".join(n.to_bytes(4, "big") for n in head) + bytes([8 * self.dtype.itemsize, colour, 0, 0, 0])
        )
        self._stream = JoinedStream(_Chunks(self), gzip=False)  # type: ignore[arg-type]

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self._file.write(len(data).to_bytes(4, "big") + kind + data)
        self._file.write(zlib.crc32(data, zlib.crc32(kind)).to_bytes(4, "big"))

    def encode(self, values: np.ndarray) -> Piece:
        rows = np.frombuffer(self.bytes_of(values), np.uint8).reshape(len(values), -1)
        filtered = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
        filtered[:, 0] = PLAIN if self.what.labels else LEFT
        filtered[:, 1:] = rows
        if not self.what.labels:
            pixel = self.dtype.itemsize * self.samples
            filtered[:, 1 + pixel :] -= rows[:, :-pixel]
        return raw_piece(filtered.tobytes(), adler=True)

    def write(self, pieces: Iterator[Piece]) -> None:
        for piece in pieces:
            self._stream.put(piece)

    def close(self) -> None:
        super().close()
        if not self._file.closed:
            with self._file:
                self._stream.finish()
                self._chunk(b"IEND", b"")
                self._size = self._file.tell()

    def verify(self) -> None:
        verify_tail(self.path, self._size, b"\0\0\0\0IEND\xaeB`\x82")
        with open(self.path, "rb") as handle:
            head = handle.read(24)
        found = int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")
        if found != self.what.shape[2:]:
            raise not_as_written(self.path, f"{found} pixels", f"{self.what.shape[2:]}")


class _Chunks:
    """The file as the compressed stream sees it: all that is written becomes a chunk of its own."""

    def __init__(self, writer: PngWriter):
        self._writer = writer

    def write(self, data: bytes) -> int:
        self._writer._chunk(b"IDAT", data)
        return len(data)


class JpegWriter(PlaneWriter):
    """One JPEG file, grey or red, green, blue, of 8 bits: lossy, and encoded as a whole."""

    def __init__(self, path: Path, what: Description):
        super().__init__(path, what, interleaved=True)
        self.rows = what.shape[2]
        self._size = 0

    def encode(self, values: np.ndarray) -> Piece:
        pixels = np.ascontiguousarray(values if self.samples == 3 else values[..., 0])
        return Piece(bytes(imagecodecs.jpeg8_encode(pixels, level=QUALITY, subsampling="444")), pixels.nbytes)

    def write(self, pieces: Iterator[Piece]) -> None:
        (piece,) = pieces
        self._size = self.path.write_bytes(piece.data)

    def verify(self) -> None:
        verify_tail(self.path, self._size, b"\xff\xd9")
