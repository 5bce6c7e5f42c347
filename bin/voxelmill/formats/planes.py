"""What the writers share: an image that comes in bands of rows and is written in the order of its file.

Files hold whole planes, stores hold chunks of many planes. So the rows of many planes are encoded as they come out of
the source, wait as compressed pieces in a `Spool`, and are written plane by plane: no chunk is decoded twice, and no
plane is ever held. A piece depends on its own voxels alone, so the file has the same bytes however it was cut.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from voxelmill.errors import WriteFailedError
from voxelmill.formats.spacing import Triple
from voxelmill.image import Box

STRIP_ROWS = 64
STRIP_BYTES = 256 << 10
SPOOL_BYTES = 64 << 20

Key = tuple[int, ...]
"""Which piece: of a writer of planes (plane among those that wait, first row)."""


@dataclass(frozen=True, eq=False)
class Description:
    """What a file is told about its image.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Channels, z, y, x.
    dtype : numpy.dtype
        As it is written.
    spacing : tuple of float or None
        Micrometres along z, y, x; None for an image without physical size.
    origin : tuple of float
        Position of the first voxel along z, y, x in micrometres.
    affine : numpy.ndarray or None
        4 x 4, voxel x, y, z to RAS+ millimetres.
    forms : tuple of (int, numpy.ndarray)
        Codes and affines of NIfTI's ``qform`` and ``sform``.
    channel_names : tuple of str
        Empty where they have none.
    rgb : bool
        The channels are red, green, blue.
    labels : bool
        The values are names, not intensities.
    largest : int or None
        End of the range that viewers show; None for the largest value.
    """

    name: str
    shape: tuple[int, int, int, int]
    dtype: np.dtype
    spacing: Triple | None = None
    origin: Triple = (0.0, 0.0, 0.0)
    affine: np.ndarray | None = None
    forms: tuple[tuple[int, np.ndarray], ...] = ()
    channel_names: tuple[str, ...] = ()
    rgb: bool = False
    labels: bool = False
    largest: int | None = None


@dataclass(frozen=True)
class Piece:
    """Encoded voxels.

    Attributes
    ----------
    data : bytes
    length : int
        Bytes before they were encoded.
    crc : int
        Checksum of those bytes, 0 where the format needs none.
    """

    data: bytes
    length: int
    crc: int = 0


class ImageWriter(ABC):
    """A file or folder that gets an image in bands: slabs of planes, and in a slab bands of rows.

    Attributes
    ----------
    path : Path
    what : Description
    dtype : numpy.dtype
        Little-endian.
    rows, depth : int
        Rows and planes that must come together: bands begin at multiples of these.
    by_channel : bool
        The file has all planes of a channel before those of the next; else each band comes with all its channels.
    interleaved : bool
        The channels of a voxel lie together.
    """

    rows = 1
    depth = 1
    by_channel = False
    interleaved = False

    def __init__(self, path: Path, what: Description):
        self.path = path
        self.what = what
        self.dtype = np.dtype(what.dtype).newbyteorder("<")

    @abstractmethod
    def begin(self, channels: Sequence[int], planes: tuple[int, int]) -> None:
        """A slab begins: these channels of these planes (half-open)."""

    @abstractmethod
    def cut(self, channels: Sequence[int], box: Box, values: Sequence[np.ndarray]) -> Iterator[tuple[Key, np.ndarray]]:
        """Pieces of a band that can be encoded on their own; ``values`` has an array (z, y, x) per channel."""

    @abstractmethod
    def encode(self, values: np.ndarray) -> Piece:
        """Encode the voxels of a piece, in a thread of its own; the result depends on nothing else."""

    @abstractmethod
    def accept(self, key: Key, piece: Piece) -> None:
        """Take an encoded piece, in the order in which `cut` gave them."""

    @abstractmethod
    def flush(self) -> None:
        """The slab is complete."""

    @abstractmethod
    def close(self) -> None:
        """Write what comes after the last plane, and let go of what is open; also called after an error."""

    @abstractmethod
    def verify(self) -> None:
        """Open the closed file again; WriteFailedError where it does not hold what was written."""

    def compare(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """WriteFailedError where the file that was opened again has another shape or type."""
        if shape != self.what.shape or dtype != self.dtype:
            expected = f"{self.what.shape} of {self.dtype.newbyteorder('=')}"
            raise not_as_written(self.path, f"{shape} of {dtype}", expected)

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PlaneWriter(ImageWriter):
    """A file that is written plane by plane, z after z; of each z all channels, unless `by_channel`."""

    def __init__(self, path: Path, what: Description, *, interleaved: bool = False):
        super().__init__(path, what)
        self.interleaved = interleaved
        self.samples = what.shape[0] if interleaved else 1
        self.rows = piece_rows(what.shape[3] * self.dtype.itemsize * self.samples)
        self._spool: Spool | None = None
        self._layers = 1
        self._planes = (0, 0)

    def begin(self, channels: Sequence[int], planes: tuple[int, int]) -> None:
        self._layers = 1 if self.interleaved else len(channels)
        self._planes = planes
        self._spool = Spool(self._layers * (planes[1] - planes[0]), self.path.parent)

    def cut(self, channels: Sequence[int], box: Box, values: Sequence[np.ndarray]) -> Iterator[tuple[Key, np.ndarray]]:
        arrays = values
        if self.interleaved:
            arrays = [np.stack(list(values), axis=-1) if len(values) > 1 else values[0][..., None]]
        for z in range(box[0][1] - box[0][0]):
            for layer, array in enumerate(arrays):
                plane = (box[0][0] - self._planes[0] + z) * self._layers + layer
                for y in range(0, array.shape[1], self.rows):
                    yield (plane, box[1][0] + y), array[z, y : y + self.rows]

    def accept(self, key: Key, piece: Piece) -> None:
        assert self._spool is not None
        self._spool.add(key[0], piece)

    def flush(self) -> None:
        assert self._spool is not None
        for plane in range(self._spool.planes):
            self.write(self._spool.pieces(plane))
        self._spool.close()

    @abstractmethod
    def write(self, pieces: Iterator[Piece]) -> None:
        """Write the next plane out of its pieces, in the order of y."""

    def bytes_of(self, values: np.ndarray) -> bytes:
        """Voxels as they lie in the file."""
        return values.astype(self.dtype, copy=False).tobytes()

    def close(self) -> None:
        if self._spool is not None:
            self._spool.close()


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
        self.planes = planes
        self._file = tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=str(folder))  # noqa: SIM115
        self._index: list[list[tuple[int, int, int, int]]] = [[] for _ in range(planes)]
        self._end = 0

    def add(self, plane: int, piece: Piece) -> None:
        """Keep the next piece of a plane."""
        self._index[plane].append((self._end, len(piece.data), piece.length, piece.crc))
        self._end += len(piece.data)
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


def verify_tail(path: Path, size: int, tail: bytes) -> None:
    """WriteFailedError where a file has another length, or another end."""
    found = path.stat().st_size
    with open(path, "rb") as handle:
        handle.seek(max(0, found - len(tail)))
        if found != size or handle.read() != tail:
            raise not_as_written(path, f"{found} bytes" if found != size else "another end", f"{size} bytes")
