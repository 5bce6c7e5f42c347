"""Labels as TIFF: deflate-compressed strips, one page per plane, streamed.

Two flavours. ImageJ's is what Fiji opens with its calibration, and ends at 16 bits and 2 GiB; everything else is
OME-TIFF, as BigTIFF where offsets of 32 bits could run out. Dates, the writer's version and random identifiers are left
out: the same labels give the same bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import tifffile

from voxelmill.errors import BadDataError
from voxelmill.formats.planes import LEVEL, Piece, PlaneWriter, not_as_written

LIMIT = 1 << 31
"""Raw bytes from which a file is an OME BigTIFF: half of what offsets of 32 bits reach, because compressed strips may
be longer than what they hold, and ImageJ itself counts in signed numbers."""

DEFLATE = 8
OME_TYPES = {"uint8": "uint8", "uint16": "uint16", "uint32": "uint32"}
OME_SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


class TiffWriter(PlaneWriter):
    """One TIFF file of labels.

    Parameters
    ----------
    path : Path
    shape : tuple of int
        z, y, x.
    dtype : str
        ``uint8``, ``uint16`` or ``uint32``; TIFF readers know no wider integers.
    spacing : tuple of float or None
        Micrometres along z, y, x; None for an image without physical size.
    name : str
        Of the image inside OME-XML.
    largest : int or None
        End of ImageJ's display range; None for the largest value that was written. Without a range ImageJ takes that of
        the first plane, which is often empty.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        dtype: str,
        spacing: Sequence[float] | None,
        name: str,
        largest: int | None,
    ):
        super().__init__(path, shape, dtype)
        if dtype not in OME_TYPES:
            raise BadDataError(f"labels of type {dtype}", file=path, expected="at most 32 bits in a TIFF file")
        size = prod(shape) * self.dtype.itemsize
        self.imagej = self.dtype.itemsize <= 2 and size < LIMIT
        self._writer = tifffile.TiffWriter(path, bigtiff=size >= LIMIT, byteorder="<", ome=False, shaped=False)
        self._resolution = None if spacing is None else (1 / spacing[2], 1 / spacing[1])
        self._spacing, self._largest, self._found = spacing, largest, 0
        self._first: str | None = (
            imagej_description(shape, spacing, largest or 0)
            if self.imagej
            else ome_description(name, shape, dtype, spacing)
        )

    def encode(self, rows: np.ndarray) -> Piece:
        if self._largest is None:
            self._found = max(self._found, int(rows.max()))
        return Piece(zlib.compress(rows.astype(self.dtype, copy=False).tobytes(), LEVEL), rows.size)

    def write(self, pieces: Iterator[Piece]) -> None:
        # Without `metadata` tifffile adds no description of its own; only the first page has one.
        self._writer.write(
            (piece.data for piece in pieces),
            shape=self.shape[1:],
            dtype=self.dtype,
            compression=DEFLATE,
            rowsperstrip=self.rows,
            photometric="minisblack",
            resolution=self._resolution,
            resolutionunit=1,
            description=self._first,
            metadata=None,
            contiguous=False,
            software=False,
        )
        self._first = None

    def close(self) -> None:
        self._writer.close()
        if self.imagej and self._largest is None and self._first is None:
            # The text has one length for all ranges, so that this changes some digits in place.
            with tifffile.TiffFile(self.path, mode="r+") as tif:
                text = imagej_description(self.shape, self._spacing, self._found)
                tif.pages.first.tags["ImageDescription"].overwrite(text)

    def verify(self) -> None:
        size = self.path.stat().st_size
        with tifffile.TiffFile(self.path) as tif:
            first, last = tif.pages.first, tif.pages[-1]
            found = (len(tif.pages), *first.shape)
            end = max((a + b for a, b in zip(last.dataoffsets, last.databytecounts, strict=True)), default=0)
            if found != self.shape or first.dtype != self.dtype or end > size:
                raise not_as_written(
                    self.path,
                    f"{found} of {first.dtype} in {size} bytes",
                    f"{self.shape} of {self.dtype} up to byte {end}",
                )


def imagej_description(shape: Sequence[int], spacing: Sequence[float] | None, largest: int) -> str:
    """ImageJ's text: number of planes, distance between them, unit of all lengths, display range.

    ImageJ leaves out a distance of one unit and other readers then do not know it, so it is always written.
    """
    lines = ["ImageJ=1.53t", f"images={shape[0]}"]
    if shape[0] > 1:
        lines += [f"slices={shape[0]}"]
    if spacing is not None:
        lines += ["unit=micron", f"spacing={float(spacing[0])!r}"]
    lines += ["loop=false", "min=0.0", f"max={largest:05d}.0"]
    return "\n".join([*lines, ""])


def ome_description(name: str, shape: Sequence[int], dtype: str, spacing: Sequence[float] | None) -> str:
    """OME-XML (2016-06) of one volume. It has no UUID: the schema asks for none, and a random one is never the same."""
    sizes = "".join(f' Size{axis}="{n}"' for axis, n in zip("XYZCT", (*reversed(shape), 1, 1), strict=True))
    lengths = ""
    if spacing is not None:
        lengths = "".join(
            f' PhysicalSize{axis}="{float(length)!r}" PhysicalSize{axis}Unit="&#181;m"'
            for axis, length in zip("XYZ", reversed(spacing), strict=True)
        )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{OME_SCHEMA}" '
        f'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:schemaLocation="{OME_SCHEMA} {OME_SCHEMA}/ome.xsd">'
        f'<Image ID="Image:0" Name={quoteattr(name)}>'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="{OME_TYPES[dtype]}"{sizes}{lengths} BigEndian="false">'
        f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/><TiffData IFD="0" PlaneCount="{shape[0]}"/>'
        "</Pixels></Image></OME>"
    )
