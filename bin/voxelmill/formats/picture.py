"""PNG and JPEG: one plane, grey or coloured, decoded whole.

PNG has checksums, which its decoder compares. JPEG has none: that the file is complete is seen by its end mark, a
changed byte in between is not. The resolution that such files carry is that of a print or a screen, never a voxel size.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import ExifTags, Image

from voxelmill.errors import BadDataError
from voxelmill.formats.base import (
    NO_CHOICE,
    ImageSource,
    Selection,
    accepted_dtype,
    check_axes,
    check_inflation,
    truncated,
    turned,
    unreadable,
)
from voxelmill.image import Box

MAX_CHUNKS = 1 << 20

GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6
"""PNG's numbers."""

CHANNELS = {GREY: 1, COLOUR: 3, GREY_ALPHA: 2, COLOUR_ALPHA: 4}

FRAMES = {0xC0 + n for n in range(16)} - {0xC4, 0xC8, 0xCC}
ALONE = {0x01, *range(0xD0, 0xD8)}
END, SCAN, APP1 = 0xD9, 0xDA, 0xE1
EXIF, MAX_EXIF = b"Exif\0\0", 1 << 20
NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Inside a scan a byte FF is followed by a zero, or is a restart."""


@dataclass(kw_only=True)
class PictureSource(ImageSource):
    """A picture of one plane; it is decoded when its first voxel is wanted; see :class:`ImageSource`."""

    decode: Callable[[bytes], np.ndarray] = field(repr=False)
    samples: int = field(repr=False)
    plane: np.ndarray | None = field(repr=False, default=None)

    def _read(self, channel: int, box: Box) -> np.ndarray:
        if self.plane is None:
            shape = (*self.shape[2:], self.samples)
            plane = self.decode(self.path.read_bytes())
            if plane.size != np.prod(shape):
                raise ValueError(f"decoded is {plane.shape}, declared {shape}")
            self.plane = plane.reshape(shape)
        _, rows, columns = box
        part = self.plane[slice(*rows), slice(*columns), channel]
        # PNG's decoder makes 0 and 255 of one bit
        return (part > 0 if self.dtype == bool else part)[None].astype(self.dtype)

    def close(self) -> None:
        self.plane = None


def open_png(path: Path, selection: Selection = NO_CHOICE) -> PictureSource:
    """Open a PNG file: 1, 8 or 16 bits, grey or colours; transparency is left out, with a warning.

    Raises
    ------
    BadDataError
        Where it is cut, has a palette, two or four bits or several frames, or declares a plane that cannot be in it.
    """
    width, height, bits, kind, transparent, exif = read_png(path)
    what = {PALETTE: "a palette of colours"}.get(kind, f"{bits} bits per value" if bits in (2, 4) else "")
    if what:
        raise BadDataError(
            f"a PNG with {what}",
            file=path,
            expected="values of 1, 8 or 16 bits, grey or RGB",
            remedy="save labels as grey values of 8 or 16 bits, a coloured image as RGB",
        )
    samples = CHANNELS[kind] + (transparent and kind in (GREY, COLOUR))
    warnings = exif_warnings(exif)
    if samples in (2, 4):
        warnings.append("the transparency (alpha) of the PNG is left out")
    dtype = np.dtype(bool if bits == 1 else "u2" if bits == 16 else "u1")
    return _picture(path, "PNG", (height, width), samples, dtype, warnings, imagecodecs.png_decode, selection)


def open_jpeg(path: Path, selection: Selection = NO_CHOICE) -> PictureSource:
    """Open a JPEG file with grey values or colours; that its values are not those of the camera is a warning.

    Raises
    ------
    BadDataError
        Where its end mark is missing, it has neither one nor three channels of 8 bits, or declares too large a plane.
    """
    width, height, bits, samples, exif = read_jpeg(path)
    if bits != 8 or samples not in (1, 3):
        raise BadDataError(
            f"a JPEG with {samples} channels of {bits} bits",
            file=path,
            expected="grey or RGB of 8 bits",
            remedy="save the image as PNG or TIFF",
        )
    warnings = ["JPEG is lossy: its values differ from those that were recorded, most of all at edges"]
    warnings += exif_warnings(exif)
    return _picture(
        path, "JPEG", (height, width), samples, np.dtype("u1"), warnings, imagecodecs.jpeg8_decode, selection
    )


def _picture(
    path: Path,
    name: str,
    lengths: tuple[int, int],
    samples: int,
    dtype: np.dtype,
    warnings: list[str],
    decode: Callable[[bytes], np.ndarray],
    selection: Selection,
) -> PictureSource:
    check_inflation(path, math.prod(lengths) * samples * dtype.itemsize, f"{lengths[0]} x {lengths[1]} pixels, ")
    channels = samples - (samples in (2, 4))
    axes = "yxc" if channels > 1 else "yx"
    given = selection.axes.lower() if selection.axes else axes
    time = check_axes(path, given, (*lengths, channels)[: len(axes)], selection.timepoint)
    if given != axes:
        raise BadDataError(f"the axes are given as {given.upper()}", file=path, expected=f"{axes.upper()} in a {name}")
    return PictureSource(
        path=path,
        format=name,
        shape=(channels, 1, *lengths),
        dtype=accepted_dtype(dtype, path),
        warnings=warnings,
        rgb=channels == 3,
        axes=axes,
        chunk=(1, *lengths),
        timepoint=time,
        decode=decode,
        samples=samples,
    )


def exif_warnings(exif: bytes) -> list[str]:
    """What a camera says of its picture that changes how a viewer shows it; damaged words say nothing."""
    try:
        found = Image.Exif()
        found.load(exif)
        return turned(found.get(ExifTags.Base.Orientation))
    except Exception:
        return []


def read_png(path: Path) -> tuple[int, int, int, int, bool, bytes]:
    """Width, height, bits, kind of colour, whether a colour stands for transparency, and EXIF.

    Every part of the file must be there up to its end mark.
    """
    size = path.stat().st_size
    transparent, exif = False, b""
    with open(path, "rb") as handle:
        start = handle.read(33)
        if len(start) < 33:
            raise truncated(path, 33, size)
        if start[8:16] != b"\0\0\0\x0dIHDR" or zlib.crc32(start[12:29]) != int.from_bytes(start[29:33], "big"):
            raise unreadable(path, ValueError("the header's checksum is wrong"))
        position = 33
        for _ in range(MAX_CHUNKS):
            head = handle.read(8)
            position += 12 + int.from_bytes(head[:4], "big")
            if len(head) < 8 or position > size:
                raise truncated(path, position, size)
            if head[4:] == b"IEND":
                break
            if head[4:] == b"acTL":
                raise BadDataError("a PNG with several frames", file=path, expected="one plane")
            transparent |= head[4:] == b"tRNS"
            if head[4:] == b"eXIf":
                exif = handle.read(min(MAX_EXIF, int.from_bytes(head[:4], "big")))
            handle.seek(position)
        else:
            raise unreadable(path, ValueError(f"more than {MAX_CHUNKS} parts"))
    width, height = (int.from_bytes(start[at : at + 4], "big") for at in (16, 20))
    if start[25] not in (*CHANNELS, PALETTE) or start[24] not in (1, 2, 4, 8, 16):
        raise unreadable(path, ValueError(f"colour type {start[25]} of {start[24]} bits"))
    return width, height, start[24], start[25], transparent, exif


def read_jpeg(path: Path) -> tuple[int, int, int, int, bytes]:
    """Width, height, bits, channels and EXIF; BadDataError where the file ends before its end mark."""
    size = path.stat().st_size
    frame: tuple[int, int, int, int] | None = None
    exif = b""
    with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        position = 2
        while True:
            while data[position : position + 2] == b"\xff\xff":
                position += 1
            mark = data[position : position + 2]
            if len(mark) < 2:
                raise truncated(path, position + 2, size)
            if mark[0] != 0xFF:
                raise unreadable(path, ValueError(f"no marker at byte {position}"))
            if mark[1] == END:
                break
            position += 2
            if mark[1] in ALONE:
                continue
            length = int.from_bytes(data[position : position + 2], "big")
            if length < 2 or position + length > size:
                raise truncated(path, position + max(length, 2), size)
            if mark[1] in FRAMES and length >= 8:
                bits, height, width, channels = struct.unpack(">BHHB", data[position + 2 : position + 8])
                frame = width, height, bits, channels
            if mark[1] == APP1 and data[position + 2 : position + 2 + len(EXIF)] == EXIF:
                exif = data[position + 2 : position + length]
            position += length
            if mark[1] == SCAN:
                found = NEXT_MARKER.search(data, position)
                if found is None:
                    raise truncated(path, size + 2, size)
                position = found.start()
    if frame is None:
        raise unreadable(path, ValueError("no frame"))
    return *frame, exif
