"""What the writers of label files share: planes that are written one after another out of encoded rows.

Label files hold whole planes, stores hold chunks of 64 planes. So the rows of many planes are encoded as they come out
of the store, wait as compressed pieces in a `Spool`, and are written plane by plane: no chunk is decoded twice, and no
plane is ever held.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from voxelmill.errors import WriteFailedError

LEVEL = 4
"""zlib's level: labels take two thirds of level 1 for a third more time; level 6 takes three times as long."""

STRIP_ROWS = 64
STRIP_BYTES = 256 << 10
SPOOL_BYTES = 64 << 20


@dataclass(frozen=True)
class Piece:
    """Encoded rows of one plane.

    Attributes
    ----------
    data : bytes
    length : int
        Bytes before they were encoded.
    crc : int
        CRC-32 of those bytes, 0 where the format needs none.
    """

    data: bytes
    length: int
    crc: int = 0


class PlaneWriter(ABC):
    """A file that gets its planes (y, x) in the order of z.

    Attributes
    ----------
    path : Path
    shape : tuple of int
        z, y, x.
    dtype : numpy.dtype
        Little-endian.
    rows : int
        Rows in a piece: a power of two, at most 64.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str):
        self.path = path
        self.shape = shape
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.rows = piece_rows(shape[2] * self.dtype.itemsize)

    @abstractmethod
    def encode(self, rows: np.ndarray) -> Piece:
        """Compress rows (y, x) of one plane; the result depends on nothing else."""

    @abstractmethod
    def write(self, pieces: Iterator[Piece]) -> None:
        """Write the next plane out of its pieces, in the order of y."""

    @abstractmethod
    def close(self) -> None:
        """Write what comes after the last plane."""

    @abstractmethod
    def verify(self) -> None:
        """Open the closed file again; WriteFailedError where it does not hold what was written."""

    def __enter__(self) -> PlaneWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def piece_rows(row_bytes: int) -> int:
    """Rows of a piece: the largest power of two, up to 64, that stays within 256 KiB.

    Small pieces keep an empty plane below the ratio of a thousand at which readers suspect a decompression bomb.
    """
    rows = STRIP_ROWS
    while rows > 1 and rows * row_bytes > STRIP_BYTES:
        rows //= 2
    return rows


class Spool:
    """Pieces of some planes, kept in a temporary file where they are many, and given back plane by plane.

    Parameters
    ----------
    planes : int
    folder : Path
        Where the temporary file lies.
    """

    def __init__(self, planes: int, folder: Path):
        self._file = tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=str(folder))  # noqa: SIM115
        self._index: list[list[tuple[int, int, int, int]]] = [[] for _ in range(planes)]

    def add(self, plane: int, piece: Piece) -> None:
        """Keep the next piece of a plane."""
        self._index[plane].append((self._file.tell(), len(piece.data), piece.length, piece.crc))
        self._file.write(piece.data)

    def pieces(self, plane: int) -> Iterator[Piece]:
        """The pieces of a plane in the order in which they came."""
        for offset, size, length, crc in self._index[plane]:
            self._file.seek(offset)
            yield Piece(self._file.read(size), length, crc)

    def close(self) -> None:
        self._file.close()


def not_as_written(path: Path, found: str, expected: str) -> WriteFailedError:
    return WriteFailedError(
        f"the file that was just written holds {found}",
        file=path,
        expected=expected,
        remedy="check the disk of the work folder, then run again with -resume",
    )
