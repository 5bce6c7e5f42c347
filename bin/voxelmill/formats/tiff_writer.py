"""Images and labels as TIFF: deflate-compressed strips, one page per plane, streamed.

Two flavours. ImageJ's is what Fiji opens with its calibration, knows three types and ends at 2 GiB; OME-TIFF is for
everything else, as BigTIFF where offsets of 32 bits could run out. Deflate is what all of their readers decode. Dates,
the writer's version and random identifiers are left out: the same image gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from pathlib import Path
from threading import Lock
from xml.sax.saxutils import quoteattr

import numpy as np
import tifffile

from voxelmill.formats.deflate import zlib_piece
from voxelmill.formats.planes import Description, Piece, PlaneWriter, not_as_written

LIMIT = 1 << 31
"""Raw bytes from which a file is an OME BigTIFF: half of what offsets of 32 bits reach, because compressed strips may
be longer than what they hold, and ImageJ itself counts in signed numbers."""

DEFLATE = 8
IMAGEJ_TYPES = ("uint8", "uint16", "float32")
OME_TYPES = {
    "uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "int8": "int8", "int16": "int16", "int32": "int32",
    "float32": "float", "float64": "double",
}  # fmt: skip
OME_SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""What XML cannot say."""


def imagej_carries(what: Description) -> bool:
    """Whether an image can be one that ImageJ itself opens."""
    return what.dtype.name in IMAGEJ_TYPES and raw_bytes(what) < LIMIT


def raw_bytes(what: Description) -> int:
    return prod(what.shape) * what.dtype.itemsize


def is_colour(what: Description, imagej: bool) -> bool:
    """Whether the three channels are written as one page of coloured pixels."""
    types = ("uint8",) if imagej else ("uint8", "uint16")
    return what.rgb and what.shape[0] == 3 and what.dtype.name in types


class TiffWriter(PlaneWriter):
    """One TIFF file.

    Parameters
    ----------
    path : Path
    what : Description
        Of a type of `OME_TYPES`.
    imagej : bool or None
        The flavour; None for ImageJ's where it can carry the image.
    ranged : bool
        ImageJ is told the range to show.
    """

    def __init__(self, path: Path, what: Description, *, imagej: bool | None = None, ranged: bool = True):
        self.imagej = imagej_carries(what) if imagej is None else imagej
        super().__init__(path, what, interleaved=is_colour(what, self.imagej))
        self._writer = tifffile.TiffWriter(
            path, bigtiff=raw_bytes(what) >= LIMIT, byteorder="<", ome=False, shaped=False
        )
        self._resolution = None if what.spacing is None else (1 / what.spacing[2], 1 / what.spacing[1])
        self._ranged = ranged
        self._ranges = self.imagej and ranged and what.largest is None and (what.labels or what.dtype.name != "uint8")
        self._lowest, self._highest = np.inf, -np.inf
        self._lock = Lock()
        self._first: bytes | None = self._description()
        self._last = b""

    def _description(self) -> bytes:
        shown = self._range() if self._ranged else None
        text = imagej_description(self.what, shown) if self.imagej else ome_description(self.what)
        return text.encode("ascii", "xmlcharrefreplace")

    def _range(self) -> tuple[float, float]:
        if self.what.largest is not None:
            return 0, self.what.largest
        if not self._ranges:
            return 0, 255
        if self._highest < self._lowest:
            return 0, 0
        return min(0, self._lowest) if self.what.labels else self._lowest, self._highest

    def encode(self, values: np.ndarray) -> Piece:
        if self._ranges:
            finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
            if finite.size:
                lowest, highest = float(finite.min()), float(finite.max())
                with self._lock:
                    self._lowest, self._highest = min(self._lowest, lowest), max(self._highest, highest)
        return zlib_piece(self.bytes_of(values), self.what.labels)

    def write(self, pieces: Iterator[Piece]) -> None:
        colour = (self.samples,) if self.interleaved else ()
        # Without `metadata` tifffile adds no description of its own; only the first page has one.
        self._writer.write(
            self._strips(pieces),
            shape=(*self.what.shape[2:], *colour),
            dtype=self.dtype,
            compression=DEFLATE,
            rowsperstrip=self.rows,
            photometric="rgb" if colour else "minisblack",
            planarconfig="contig" if colour else None,
            resolution=self._resolution,
            resolutionunit=1,
            description=self._first,
            metadata=None,
            contiguous=False,
            software=False,
        )
        self._first = None

    def _strips(self, pieces: Iterator[Piece]) -> Iterator[bytes]:
        for piece in pieces:
            self._last = piece.data
            yield piece.data

    def close(self) -> None:
        super().close()
        self._writer.close()
        if self._ranges and self._first is None:
            # The text has one length for all ranges, so that this changes some digits in place.
            with tifffile.TiffFile(self.path, mode="r+") as tif:
                tif.pages.first.tags["ImageDescription"].overwrite(self._description())

    def verify(self) -> None:
        size = self.path.stat().st_size
        channels, planes, *plane = self.what.shape
        shape = (*plane, self.samples) if self.interleaved else tuple(plane)
        expected = planes if self.interleaved else planes * channels
        with tifffile.TiffFile(self.path) as tif:
            first, last = tif.pages.first, tif.pages[-1]
            tif.filehandle.seek(last.dataoffsets[-1])
            whole = tif.filehandle.read(last.databytecounts[-1]) == self._last
            if (
                len(tif.pages) != expected
                or {first.shape, last.shape} != {shape}
                or first.dtype != self.dtype
                or not whole
            ):
                raise not_as_written(
                    self.path,
                    f"{len(tif.pages)} pages of {first.shape} of {first.dtype} in {size} bytes"
                    + ("" if whole else ", the last strip damaged"),
                    f"{expected} pages of {shape} of {self.dtype}",
                )


def imagej_description(what: Description, shown: tuple[float, float] | None) -> str:
    """ImageJ's text: number of planes, distance between them, unit of all lengths, display range.

    ImageJ leaves out a distance of one unit and other readers then do not know it, so it is always written.
    """
    channels, planes = what.shape[:2]
    colour = is_colour(what, True)
    lines = ["ImageJ=1.53t", f"images={planes if colour else planes * channels}"]
    if channels > 1 and not colour:
        lines += [f"channels={channels}"]
    if planes > 1:
        lines += [f"slices={planes}"]
    if channels > 1 and not colour:
        lines += ["hyperstack=true", "mode=composite" if channels <= 7 else "mode=grayscale"]
    if what.spacing is not None:
        lines += ["unit=micron", f"spacing={float(what.spacing[0])!r}"]
    lines += [
        "loop=false",
        *(f"{name}={_limit(value, what)}" for name, value in zip(("min", "max"), shown or (), strict=False)),
    ]
    return "\n".join([*lines, ""])


def _limit(value: float, what: Description) -> str:
    """A number whose length does not depend on it."""
    return f"{value:+.9e}" if what.dtype.kind == "f" else f"{int(value):05d}.0"


def ome_description(what: Description) -> str:
    """OME-XML (2016-06) of one volume. It has no UUID: the schema asks for none, and a random one is never the same."""
    channels, planes, height, width = what.shape
    sizes = "".join(f' Size{a}="{n}"' for a, n in zip("XYZCT", (width, height, planes, channels, 1), strict=True))
    lengths = ""
    if what.spacing is not None:
        lengths = "".join(
            f' PhysicalSize{axis}="{float(length)!r}" PhysicalSize{axis}Unit="&#181;m"'
            for axis, length in zip("XYZ", reversed(what.spacing), strict=True)
        )
    samples = channels if is_colour(what, False) else 1
    names = what.channel_names if samples == 1 else ()
    described = "".join(
        f'<Channel ID="Channel:0:{c}"{_name(names[c]) if names else ""} SamplesPerPixel="{samples}"/>'
        for c in range(channels // samples)
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{OME_SCHEMA}" '
        f'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:schemaLocation="{OME_SCHEMA} {OME_SCHEMA}/ome.xsd">'
        f'<Image ID="Image:0"{_name(what.name)}>'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="{OME_TYPES[what.dtype.name]}"{sizes}{lengths} '
        f'BigEndian="false">{described}<TiffData IFD="0" PlaneCount="{planes * channels // samples}"/>'
        "</Pixels></Image></OME>"
    )


def _name(text: str) -> str:
    return f" Name={quoteattr(CONTROL.sub('', text))}"
