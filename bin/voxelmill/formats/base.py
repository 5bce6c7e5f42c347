"""What every image reader offers."""

from __future__ import annotations

import errno
import io
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from voxelmill.errors import BadDataError, InputMissingError, UsageError, VoxelmillError
from voxelmill.formats.chunks import NONE_MISSING, MissingChunks
from voxelmill.formats.spacing import Triple
from voxelmill.image import Box

ACCEPTED = ("b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8")
"""Kinds of voxel that can be read. 64-bit integers are read as they are: whether a float32 can hold their values
is seen when they are imported."""

KNOWN_AXES = "tczyx"

BAND = 16 << 20

COPY_AGAIN = "copy the file again from its origin and compare the checksums"

MAX_INFLATION = 1000
SMALL = 64 << 20
"""Declared bytes below which any compression ratio is harmless."""


class Handle(Protocol):
    """What is needed of an open file."""

    def seek(self, position: int, /) -> object: ...

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Selection:
    """Which part of a file is the image, where the file holds more than one volume or does not name its axes.

    Attributes
    ----------
    axes : str or None
        One letter out of ``tczyx`` per axis of the file, slowest first; overrules what the file says.
    series : int or None
        Image in a file with several, from 0.
    timepoint : int or None
        Of a time series, from 0.
    level : int or None
        Resolution level, 0 the finest.
    dataset : str or None
        Path of the array inside an HDF5 file.
    """

    axes: str | None = None
    series: int | None = None
    timepoint: int | None = None
    level: int | None = None
    dataset: str | None = None


NO_CHOICE = Selection()
"""For files that hold one volume and say how it lies."""


@dataclass(frozen=True)
class InPlace:
    """Where the voxels lie in an image that need not be copied.

    Attributes
    ----------
    path : str
        Array inside the store; empty where the store is the array.
    axes : str
        One letter out of ``tczyx`` per axis of the array.
    timepoint : int
        Index on the ``t`` axis, 0 where there is none.
    """

    path: str
    axes: str
    timepoint: int


@dataclass(kw_only=True)
class ImageSource(ABC):
    """An image that was opened: its header is known, its voxels are read box by box.

    Attributes
    ----------
    path : Path
        The file or folder.
    format : str
        Such as ``"OME-TIFF"``.
    shape : tuple of int
        Channels, z, y, x; an image of one plane has z = 1.
    dtype : numpy.dtype
        In native byte order.
    spacing : tuple of float or None
        Micrometres along z, y, x; None where the file does not say.
    spacing_origin : str
        Where in the file the spacing was found.
    affine : numpy.ndarray or None
        4 x 4, voxel index (x, y, z) to millimetres (right, anterior, superior), float64; NIfTI, MetaImage and NRRD.
    forms : tuple of (int, numpy.ndarray)
        Codes and affines of ``qform`` and ``sform``, as ``affine``; NIfTI only. A code of 0 means: not set.
    in_place : InPlace or None
        For Zarr only, and there where its chunks need no rearranging.
    warnings : list of str
    rgb : bool
        The channels are red, green, blue.
    axes : str
        The axes as the file has them, slowest first.
    origin : tuple of float
        Centre of the first voxel along z, y, x in micrometres, in the file's own space; zero where the file does not
        say, or where its axes are turned in that space.
    channel_names : tuple of str
        One for every channel, empty where the file does not say.
    chunk : tuple of int
        What must be decoded at once, along z, y, x: boxes made of whole chunks read each byte once.
    timepoint : int
        Index on the file's ``t`` axis, 0 where there is none.
    label_names : dict of int to str
        Names of a label image's values, empty where the file does not say.
    """

    path: Path
    format: str
    shape: tuple[int, int, int, int]
    dtype: np.dtype
    spacing: Triple | None = None
    spacing_origin: str = ""
    affine: np.ndarray | None = None
    forms: tuple[tuple[int, np.ndarray], ...] = ()
    in_place: InPlace | None = None
    warnings: list[str] = field(default_factory=list)
    rgb: bool = False
    axes: str = ""
    origin: Triple = (0.0, 0.0, 0.0)
    channel_names: tuple[str, ...] = ()
    chunk: tuple[int, int, int] = (1, 1, 1)
    timepoint: int = 0
    label_names: dict[int, str] = field(default_factory=dict)

    def read(self, channel: int, box: Box) -> np.ndarray:
        """Voxels of one channel in a box.

        Memory is bounded by the box and one strip, tile or chunk of the file. Boxes of ascending z are fastest;
        for a compressed NIfTI they are the only fast order.

        Parameters
        ----------
        channel : int
        box : Box
            Half-open (start, stop) along z, y, x, inside the image.

        Returns
        -------
        numpy.ndarray
            z, y, x in the source's dtype.

        Raises
        ------
        BadDataError
            Where the file is cut or cannot be decoded.
        """
        inside = all(0 <= start <= stop <= size for (start, stop), size in zip(box, self.shape[1:], strict=True))
        if not inside or not 0 <= channel < self.shape[0]:
            raise UsageError(f"channel {channel}, box {box} is outside the image of shape {self.shape}", file=self.path)
        if any(start == stop for start, stop in box):
            return np.empty([stop - start for start, stop in box], self.dtype)
        with damage_told(self.path, "the voxels cannot be decoded, the file is truncated or damaged"):
            return self._read(channel, box)

    def missing_chunks(self) -> MissingChunks:
        """Chunks that were never written or were lost: they read as the fill value, without a word."""
        return NONE_MISSING

    @abstractmethod
    def _read(self, channel: int, box: Box) -> np.ndarray: ...

    def close(self) -> None:  # noqa: B027
        """Let go of open files, where the format keeps any."""

    def __enter__(self) -> ImageSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_rows(
    handle: Handle,
    start: int,
    rows: tuple[int, int],
    columns: tuple[int, int],
    row: np.ndarray,
    out: np.ndarray,
    sample: int = 0,
) -> None:
    """Read a rectangle of an uncompressed plane in bands of whole rows, so that little more than it is in memory.

    Parameters
    ----------
    handle : file
    start : int
        Byte of the plane's first voxel.
    rows, columns : tuple of int
        Half-open ranges.
    row : numpy.ndarray
        An array of the shape (columns, samples) and the type of a stored row; its contents are of no use.
    out : numpy.ndarray
        Rows, columns; filled.
    sample : int
        Which of the samples.

    Raises
    ------
    EOFError
        Where the file ends first.
    """
    if isinstance(handle, io.BufferedIOBase) and out.shape[1:] == row.shape[:1] and row.shape[1] == 1:
        # Whole rows of one channel lie in the file as they will lie in memory.
        handle.seek(start + rows[0] * row.nbytes)
        stored = out.view(row.dtype)
        if handle.readinto(stored.reshape(-1).view(np.uint8).data) < out.nbytes:
            raise EOFError("the file ends before its last voxel")
        if not row.dtype.isnative:
            out[...] = stored.byteswap().view(out.dtype)
        return
    band = max(1, BAND // row.nbytes)
    for y in range(rows[0], rows[1], band):
        count = min(band, rows[1] - y)
        handle.seek(start + y * row.nbytes)
        data = handle.read(count * row.nbytes)
        if len(data) < count * row.nbytes:
            raise EOFError("the file ends before its last voxel")
        pixels = np.frombuffer(data, row.dtype).reshape(count, *row.shape)
        out[y - rows[0] : y - rows[0] + count] = pixels[:, slice(*columns), sample]


@contextmanager
def damage_told(path: Path, found: str) -> Iterator[None]:
    """Turn what parsers and decoders raise, which is whatever their library knows, into BadDataError.

    The operating system's own errors go through, but for those of a place that no file has and of what may not be read.
    """
    try:
        yield
    except (VoxelmillError, MemoryError):
        raise
    except Exception as error:
        # Rust's libraries have the number in their text.
        told = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
        if number in (errno.EACCES, errno.EPERM):
            raise InputMissingError(
                "no permission to read a part of the image", file=path, remedy="ask its owner for read access"
            ) from error
        if number in (None, errno.EINVAL, errno.EOVERFLOW):
            raise unreadable(path, error, found) from error
        if isinstance(error, OSError):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def truncated(path: Path, needed: int, size: int) -> BadDataError:
    return BadDataError(
        f"the file is truncated: its header needs {needed} bytes, the file has {size}",
        file=path,
        remedy=COPY_AGAIN,
    )


def check_inflation(path: Path, declared: int, found: str) -> None:
    """Refuse a file of few bytes that declares so many that decoding it would fill the memory."""
    size = path.stat().st_size
    if declared > max(SMALL, MAX_INFLATION * size):
        raise BadDataError(
            f"the header declares {found}{declared} bytes of pixels in a file of {size} bytes",
            file=path,
            expected=f"at most {MAX_INFLATION} times the file's size",
            remedy="save the image again without compression if it really is that empty",
        )


def turned(orientation: object) -> list[str]:
    """A warning where TIFF's or EXIF's tag asks viewers to turn a plane: voxels stay where the file has them."""
    if orientation not in range(2, 9):
        return []
    return [
        f"the file asks viewers to turn or mirror it (orientation {orientation}): it is read as it is stored, so check "
        "that labels and other channels lie in the same way"
    ]


def all_named(names: Sequence[Any], channels: int) -> tuple[str, ...]:
    """Names of the channels, none unless every channel has one."""
    named = len(names) == channels and all(isinstance(name, str) and name for name in names)
    return tuple(names) if named else ()


def unreadable(
    path: Path, error: BaseException, found: str = "the voxels cannot be decoded, the file is truncated or damaged"
) -> BadDataError:
    """The error for data that a library refuses."""
    text = " ".join(str(error).split())[:300]
    return BadDataError(
        f"{found} ({type(error).__name__}: {text})",
        file=path,
        remedy=COPY_AGAIN,
    )


def accepted_dtype(dtype: np.dtype, path: Path) -> np.dtype:
    """The type in native byte order, or an error where it is no image type."""
    if dtype.str[1:] not in ACCEPTED:
        raise BadDataError(
            f"voxels of type {dtype}",
            file=path,
            expected="bool, an integer of 8 to 64 bits or a float of 16 to 64 bits",
            remedy="convert the image to one of these types",
        )
    return dtype.newbyteorder("=")


def bad_axes(path: Path, found: str, shape: tuple[int, ...]) -> BadDataError:
    """The error for axes that nobody can guess."""
    return BadDataError(
        f"the axes are {found.upper() or 'unknown'} with lengths {' x '.join(map(str, shape))}",
        file=path,
        expected="z, y, x with an optional channel axis and an optional time axis",
        remedy="name the axes with --axes or in the samplesheet's column axes, such as zcyx",
    )


def check_axes(path: Path, axes: str, shape: tuple[int, ...], timepoint: int | None = None) -> int:
    """Refuse axes that are not a volume: unknown or repeated letters, no y or x, several time points and no choice.

    Returns
    -------
    int
        Index on the time axis.
    """
    if not (len(axes) == len(shape) and len(set(axes)) == len(axes) and set("yx") <= set(axes) <= set(KNOWN_AXES)):
        raise bad_axes(path, axes, shape)
    if min(shape) < 1:
        raise BadDataError(f"the image has no voxels: its shape is {shape}", file=path)
    times = dict(zip(axes, shape, strict=True)).get("t", 1)
    if timepoint is None and times > 1:
        raise BadDataError(
            f"a time series: axes {axes.upper()}, {times} time points",
            file=path,
            expected="one time point",
            remedy=f"choose one with --timepoint or the column timepoint, 0 to {times - 1}; a row per time point "
            "segments them all",
        )
    if not 0 <= (timepoint or 0) < times:
        raise BadDataError(
            f"there is no time point {timepoint}", file=path, expected=f"0 to {times - 1}, axes {axes.upper()}"
        )
    return timepoint or 0


def shape_czyx(axes: str, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Lengths of c, z, y, x out of axes in any order; one where an axis is absent."""
    lengths = dict(zip(axes, shape, strict=True))
    return lengths.get("c", 1), lengths.get("z", 1), lengths["y"], lengths["x"]
