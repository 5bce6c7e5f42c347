"""TIFF, BigTIFF, OME-TIFF and ImageJ TIFF, read strip by strip or tile by tile.

tifffile parses the headers and decodes the segments. It forgives much that would end in a wrong volume (pages that
are not there, metadata that contradict the pixels, other files of a set), so what it was told and what it found are
compared here.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from xml.etree.ElementTree import Element, ParseError

import numpy as np
import tifffile
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from voxelmill.errors import BadDataError, InputMissingError, RefusedError
from voxelmill.formats.base import (
    ImageSource,
    Selection,
    accepted_dtype,
    bad_axes,
    check_axes,
    read_rows,
    shape_czyx,
    truncated,
    unreadable,
)
from voxelmill.formats.spacing import Spacing, from_imagej, from_lengths, from_zeiss
from voxelmill.image import Box, slices

MAX_XML = 64 << 20
MAX_INFLATION = 1000
SMALL = 64 << 20
"""Declared bytes below which any compression ratio is harmless."""

CACHED = 64 << 20

JPEG = {6, 7, 33007, 34892}
COMPRESSIONS = {1, 5, 8, 32773, 32946, 34712, 33003, 33004, 33005, 34925, 50000} | JPEG

FORMATS = {"ome": "OME-TIFF", "imagej": "ImageJ TIFF", "shaped": "TIFF", "uniform": "TIFF", "generic": "TIFF"}

OME_TYPES = {
    "bit": ("b1", "u1"), "int8": ("i1",), "int16": ("i2",), "int32": ("i4",), "uint8": ("u1",), "uint16": ("u2",),
    "uint32": ("u4",), "float": ("f4",), "double": ("f8",),
}  # fmt: skip


@dataclass(kw_only=True)
class TiffSource(ImageSource):
    """A volume in one TIFF file; see :class:`ImageSource`."""

    tif: tifffile.TiffFile = field(repr=False)
    series: tifffile.TiffPageSeries = field(repr=False)
    leading: str = field(repr=False)
    handle: BinaryIO = field(repr=False)
    cache: OrderedDict[tuple[int, int], np.ndarray] = field(repr=False, default_factory=OrderedDict)
    cached: int = field(repr=False, default=0)

    def _read(self, channel: int, box: Box) -> np.ndarray:
        (z0, z1), rows, columns = box
        if not _pages_are_planes(self.series):
            data = self.series.asarray().astype(self.dtype, copy=False)
            data = data.transpose([self.axes.index(axis) for axis in "tczyx" if axis in self.axes])
            return data.reshape(-1, *self.shape)[self.timepoint, channel][slices(box)]
        sample = channel if self._samples else 0
        if "z" not in self.leading and "z" in self.axes:
            return self._page_box(self._page_number(channel, 0), sample, (z0, z1), rows, columns)
        out = np.empty([stop - start for start, stop in box], self.dtype)
        for z in range(z0, z1):
            out[z - z0] = self._page_box(self._page_number(channel, z), sample, (0, 1), rows, columns)[0]
        return out

    @property
    def _samples(self) -> bool:
        """The channels are the samples of each pixel, not pages."""
        return "c" in self.axes and "c" not in self.leading

    def _page_number(self, channel: int, z: int) -> int:
        at = {"c": channel, "z": z, "t": self.timepoint}
        lengths = self.series.shape[: len(self.leading)]
        number = 0
        for axis, length in zip(self.leading, lengths, strict=True):
            number = number * length + at[axis]
        return number

    def _page_box(self, number: int, sample: int, depths: tuple, rows: tuple, columns: tuple) -> np.ndarray:
        """Part of one page (usually one plane) -> depth, rows, columns; ``sample`` is the index in the pixel."""
        key = self.series.keyframe
        contiguous = self.series.dataoffset
        if contiguous is not None:
            return self._raw(contiguous + number * key.nbytes, sample, depths, rows, columns)
        page: Any = self.series.pages[number]
        if key.is_final and _is_contiguous(page):
            return self._raw(page.dataoffsets[0], sample, depths, rows, columns)
        out = np.empty([stop - start for start, stop in (depths, rows, columns)], self.dtype)
        separate, contig = (sample, 0) if key.shaped[0] > 1 else (0, sample)
        wanted = (depths, rows, columns)
        for index in _segments(key, separate, wanted):
            data, corner = self._segment(number, page, index)
            overlap = [
                (max(a, start), min(b, start + n))
                for (a, b), start, n in zip(wanted, corner, data.shape[:3], strict=True)
            ]
            target = tuple(slice(a - lo, b - lo) for (a, b), (lo, _) in zip(overlap, wanted, strict=True))
            source = tuple(slice(a - start, b - start) for (a, b), start in zip(overlap, corner, strict=True))
            out[target] = data[source[0], source[1], source[2], contig]
        return out

    def _raw(self, offset: int, sample: int, depths: tuple, rows: tuple, columns: tuple) -> np.ndarray:
        """Part of a page that lies uncompressed in one piece at ``offset``, read in bands of whole rows."""
        key = self.series.keyframe
        separate, depth, length, width, contig = key.shaped
        plane, sample = (sample, 0) if separate > 1 else (0, sample)
        stored = self.dtype.newbyteorder("<" if self.tif.byteorder == "<" else ">")
        out = np.empty([stop - start for start, stop in (depths, rows, columns)], self.dtype)
        row_bytes = width * contig * stored.itemsize
        for z in range(*depths):
            start = offset + (plane * depth + z) * length * row_bytes
            read_rows(self.handle, start, rows, columns, np.empty((width, contig), stored), out[z - depths[0]], sample)
        return out

    def _segment(self, number: int, page: Any, index: int) -> tuple[np.ndarray, tuple[int, int, int]]:
        """One decoded strip or tile (depth, rows, columns, samples) and its corner in the page."""
        key = self.series.keyframe
        tables = {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader} if key.compression in JPEG else {}
        cached = self.cache.get((number, index))
        if cached is not None:
            self.cache.move_to_end((number, index))
            return cached, key.decode(None, index, **tables)[1][1:4]
        size = page.databytecounts[index]
        if not size:
            raise BadDataError(f"strip or tile {index} of page {number + 1} holds no data", file=self.path)
        self.handle.seek(page.dataoffsets[index])
        encoded = self.handle.read(size)
        if len(encoded) < size:
            raise truncated(self.path, page.dataoffsets[index] + size, self.path.stat().st_size)
        decoded, corner, _ = key.decode(encoded, index, **tables)
        data = np.asarray(decoded)
        self.cache[number, index] = data
        self.cached += data.nbytes
        while self.cached > CACHED and len(self.cache) > 1:
            self.cached -= self.cache.popitem(last=False)[1].nbytes
        return data, corner[1:4]

    def close(self) -> None:
        self.cache.clear()
        self.handle.close()
        self.tif.close()


def open_tiff(path: Path, selection: Selection) -> TiffSource:
    """Open a TIFF of any flavour that holds one image.

    Parameters
    ----------
    path : Path
    selection : Selection
        ``axes`` overrules the file's own: one letter out of ``tczyx`` for each that has a length above one;
        ``timepoint``.

    Raises
    ------
    BadDataError
        Where the file is cut, declares more than it can hold, has pages that differ or metadata that contradict them.
    InputMissingError
        Where the file belongs to a set of which a file is missing.
    RefusedError
        Where its metadata point outside its folder.
    """
    size = path.stat().st_size
    with open(path, "rb") as handle:
        count = sum(1 for _ in ifd_offsets(handle, path, size))
    try:
        tif = tifffile.TiffFile(path, _multifile=False)
    except Exception as error:
        raise unreadable(path, error) from error
    try:
        return _open(tif, path, size, count, selection)
    except BaseException:
        tif.close()
        raise


def _open(tif: tifffile.TiffFile, path: Path, size: int, count: int, selection: Selection) -> TiffSource:
    first = tif.pages.first
    check_first_page(first, path, size, count)
    xml = read_ome_xml(first.description, path)
    if xml is not None:
        check_set(xml, path)
    check_pages(tif, path)
    try:
        every = tif.series
        series = every[0]
        pages = list(series.pages)
    except Exception as error:
        raise unreadable(path, error) from error
    if xml is not None:
        check_ome(xml, every, count, path)
    check_series(tif, every, count, path)
    check_extent(series, pages, path, size)
    names, rgb, time = series_axes(series, path, selection)
    shape = tuple(series.shape)
    if not _pages_are_planes(series) and series.size * series.dtype.itemsize > SMALL:
        raise bad_axes(path, names, shape)
    found = read_spacing(tif, xml, dict(zip(names, shape, strict=True)).get("z", 1), path)
    return TiffSource(
        path=path,
        format=FORMATS[series.kind],
        shape=shape_czyx(names, shape),
        dtype=accepted_dtype(np.dtype(series.dtype), path),
        spacing=found.value,
        spacing_origin=found.origin,
        warnings=list(found.warnings),
        rgb=rgb,
        axes=names,
        channel_names=ome_channel_names(xml),
        chunk=_chunk(series.keyframe, series.dataoffset is not None),
        timepoint=time,
        tif=tif,
        series=series,
        leading=names[: len(names) - len(series.keyframe.shape)],
        handle=open(path, "rb"),
    )


def _chunk(key: tifffile.TiffPage, contiguous: bool) -> tuple[int, int, int]:
    """What has to be decoded at once, along z, y, x."""
    if contiguous or key.is_final:
        return 1, 1, key.imagewidth
    if key.is_tiled:
        return key.tiledepth, key.tilelength, key.tilewidth
    return 1, min(key.rowsperstrip, key.imagelength), key.imagewidth


def _is_contiguous(page: Any) -> bool:
    offsets, counts = page.dataoffsets, page.databytecounts
    ends = (offset + count for offset, count in zip(offsets, counts, strict=True))
    return all(end == start for end, start in zip(ends, offsets[1:], strict=False))


def _segments(key: tifffile.TiffPage, separate: int, wanted: tuple) -> Iterator[int]:
    """Indices of the strips or tiles of a page that touch a box (depth, rows, columns)."""
    _, depth, length, width, _ = key.shaped
    strip = (1, min(key.rowsperstrip, length), width)
    size = (key.tiledepth, key.tilelength, key.tilewidth) if key.is_tiled else strip
    grid = [-(-n // s) for n, s in zip((depth, length, width), size, strict=True)]
    ranges = [range(a // s, -(-b // s)) if b > a else range(0) for (a, b), s in zip(wanted, size, strict=True)]
    for d, y, x in itertools.product(*ranges):
        yield ((separate * grid[0] + d) * grid[1] + y) * grid[2] + x


def ifd_offsets(handle: BinaryIO, path: Path, size: int) -> Iterator[int]:
    """Positions of the page headers, following the chain to its end.

    A chain that leaves the file or returns to itself is an error: tifffile would end the stack there.
    """
    head = handle.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    count_format, entry, offset_format = ("Q", 20, "Q") if big else ("H", 12, "I")
    count_size, offset_size = struct.calcsize(order + count_format), struct.calcsize(order + offset_format)
    if len(head) < 16:
        raise truncated(path, 16, size)
    (offset,) = struct.unpack_from(order + offset_format, head, 8 if big else 4)
    seen: set[int] = set()
    while offset:
        handle.seek(offset)
        raw = handle.read(count_size) if offset < size else b""
        if len(raw) < count_size:
            raise truncated(path, offset + count_size, size)
        (entries,) = struct.unpack(order + count_format, raw)
        after = offset + count_size + entries * entry
        if after + offset_size > size:
            raise truncated(path, after + offset_size, size)
        if offset in seen:
            raise BadDataError(f"the pages form a loop at byte {offset}", file=path)
        seen.add(offset)
        yield offset
        handle.seek(after)
        (offset,) = struct.unpack(order + offset_format, handle.read(offset_size))
    if not seen:
        raise BadDataError("the TIFF file has no page", file=path)


def check_first_page(page: tifffile.TiffPage, path: Path, size: int, count: int) -> None:
    """Refuse a page whose declared size the file cannot hold, or whose compression is not known to be safe."""
    if page.dtype is None or not page.shape:
        raise BadDataError(
            f"the pixels have {page.bitspersample} bits in sample format {page.sampleformat}, which is no known type",
            file=path,
        )
    if int(page.compression) not in COMPRESSIONS:
        name = getattr(page.compression, "name", page.compression)
        raise BadDataError(
            f"the compression {name} is not accepted",
            file=path,
            expected="none, LZW, deflate, packbits, zstd, LZMA, JPEG or JPEG 2000",
            remedy="save the image again with one of these",
        )
    bits = page.bitspersample if page.compression == 1 else page.dtype.itemsize * 8
    declared = prod(page.shaped) * bits // 8 * count
    if page.compression == 1 and declared > size:
        raise truncated(path, declared, size)
    if declared > SMALL and declared > MAX_INFLATION * size:
        raise BadDataError(
            f"the header declares {declared} bytes of pixels in a file of {size} bytes",
            file=path,
            expected=f"at most {MAX_INFLATION} times the file's size",
            remedy="save the image again without compression if it really is that empty",
        )


def check_pages(tif: tifffile.TiffFile, path: Path) -> None:
    """Refuse pages that differ in shape or type, naming the first."""
    first = tif.pages.first
    tif.pages.useframes = False
    for number, page in enumerate(tif.pages, 1):
        if (page.shape, page.dtype) != (first.shape, first.dtype):
            raise BadDataError(
                f"page {number} is {_shown(page)}, page 1 is {_shown(first)}",
                file=path,
                expected="pages of one shape and type",
                remedy="remove previews and other resolutions, or save each image to a file of its own",
            )


def _shown(page: Any) -> str:
    return f"{' x '.join(map(str, page.shape))} {page.dtype}"


def check_series(tif: tifffile.TiffFile, every: list[tifffile.TiffPageSeries], count: int, path: Path) -> None:
    """Refuse a file with several images, and one with fewer or more planes than its description says."""
    series = every[0]
    if series.kind not in FORMATS:
        raise BadDataError(
            f"this flavour of TIFF ({series.kind}) cannot be read",
            file=path,
            expected="TIFF, OME-TIFF or ImageJ TIFF",
            remedy="save the image as OME-TIFF, for example with Fiji",
        )
    if len(every) > 1:
        raise several_images(path, len(every))
    declared = prod(series.shape)
    if tif.is_imagej:
        described = int((tif.imagej_metadata or {}).get("images", 1))
        planes = max(1, declared // max(1, prod(series.keyframe.shape)))
        if described != planes:
            raise _planes_missing(path, "ImageJ", described, planes)
    elif tif.is_shaped:
        described = prod(json.loads(tif.pages.first.shaped_description or "{}").get("shape", series.shape))
        if described != declared:
            page = prod(series.keyframe.shape)
            raise _planes_missing(path, "tifffile", described // page, declared // page)
    if series.kind in ("uniform", "generic") and len(series) != count:
        raise _planes_missing(path, "TIFF", count, len(series))


def _planes_missing(path: Path, who: str, described: int, found: int) -> BadDataError:
    return BadDataError(
        f"the {who} header describes {described} planes, the file holds {found}: it is truncated or damaged",
        file=path,
        remedy="copy the file again from its origin and compare the checksums",
    )


def check_extent(series: tifffile.TiffPageSeries, pages: list[Any], path: Path, size: int) -> None:
    """Refuse a file that ends before its last strip or tile."""
    if series.dataoffset is not None:
        needed = series.dataoffset + prod(series.shape) * series.dtype.itemsize
    else:
        segments = _segment_count(series.keyframe)
        needed = 0
        for number, page in enumerate(pages, 1):
            if page is None or len(page.dataoffsets) < segments or len(page.databytecounts) < segments:
                raise BadDataError(f"page {number} has no data for some of its strips or tiles", file=path)
            ends = (offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False))
            needed = max(needed, *ends, 0)
    if needed > size:
        raise truncated(path, needed, size)


def _segment_count(key: tifffile.TiffPage) -> int:
    return prod(key.chunked)


def series_axes(series: tifffile.TiffPageSeries, path: Path, selection: Selection) -> tuple[str, bool, int]:
    """Axes of a series in letters out of ``tczyx``, whether its samples are red, green and blue, and the time index.

    One axis without a name is z; axes without a name and of length one mean nothing.
    """
    key = series.keyframe
    axes = selection.axes
    shape = tuple(series.shape)
    own = _named_axes(series)
    rgb = "S" in key.axes and key.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
    if axes is not None:
        names = axes.lower()
    else:
        names = (own.replace("S", "C") if "C" not in own else own).lower()
        unnamed = [i for i, axis in enumerate(names) if axis in "qi"]
        letters = list(names)
        for i in sorted(unnamed, key=lambda i: -shape[i]):
            free = "z" if shape[i] > 1 else "zct"
            letters[i] = next((letter for letter in free if letter not in letters), "?")
        names = "".join(letters) if "?" not in letters else own
    if len(names) != len(shape):
        raise bad_axes(path, names if axes is not None else own, shape)
    time = check_axes(path, names, shape, selection.timepoint)
    page = names[len(names) - len(key.shape) :]
    if _pages_are_planes(series) and page.replace("c", "").replace("z", "") != "yx":
        raise bad_axes(path, names, shape)
    return names, rgb, time


def _named_axes(series: tifffile.TiffPageSeries) -> str:
    """The axes that the file names, Q for others: tifffile guesses from the lengths where a file says nothing."""
    key = series.keyframe
    described = json.loads(key.shaped_description or "{}") if series.kind == "shaped" else {}
    if series.kind != "shaped" or "axes" in described:
        return series.axes
    page = key.axes if _pages_are_planes(series) else "YX"
    return page.rjust(len(series.shape), "Q")


def _pages_are_planes(series: tifffile.TiffPageSeries) -> bool:
    """The last axes of the series are those of its pages; tifffile writes an image one voxel wide in another form."""
    page = tuple(series.keyframe.shape)
    return tuple(series.shape[len(series.shape) - len(page) :]) == page


# OME-XML


def read_ome_xml(description: str, path: Path) -> Element | None:
    """The OME-XML of a page's description, None where it is something else.

    Document types and entities are refused: the only use they have here is an attack.
    """
    start = description[:4096]
    if "<OME" not in start and ":OME" not in start:
        return None
    if len(description) > MAX_XML:
        raise BadDataError(f"the OME-XML has {len(description)} characters", file=path, expected=f"at most {MAX_XML}")
    try:
        # Bytes that are no UTF-8 reach us as Latin-1; encoding again would hide them from the parser.
        return ElementTree.fromstring(description.encode(), forbid_dtd=True)
    except DefusedXmlException as error:
        raise BadDataError(
            f"the OME-XML declares a document type or entities ({type(error).__name__})",
            file=path,
            remedy="do not use this file; ask where it comes from",
        ) from error
    except (ParseError, ValueError) as error:
        raise BadDataError(
            f"the OME-XML is damaged: {error}", file=path, remedy="save the image as OME-TIFF again"
        ) from error


def _local(element: Element) -> str:
    return element.tag.rpartition("}")[2]


def _children(element: Element, name: str) -> list[Element]:
    return [child for child in element if _local(child) == name]


def check_set(xml: Element, path: Path) -> None:
    """Refuse a file that is one of a set; no other file is ever opened."""
    own = xml.get("UUID")
    others = [element.get("MetadataFile", "") for element in _children(xml, "BinaryOnly")]
    uuids = [element for element in xml.iter() if _local(element) == "UUID"]
    # A file that was renamed still has its own identifier.
    others += [element.get("FileName", "") for element in uuids if own is None or element.text != own]
    others = sorted({name for name in others if name and name != path.name})
    for name in others:
        pure = PurePosixPath(name.replace("\\", "/"))
        if len(pure.parts) != 1 or pure.name == ".." or ":" in name:
            raise RefusedError(
                f"the OME-XML names the file {name!r}, which is outside the image's folder",
                file=path,
                remedy="do not use this file; ask where it comes from",
            )
    if not others:
        return
    folders = {path.parent, path.resolve().parent}
    missing = [name for name in others if not any((folder / name).exists() for folder in folders)]
    if missing:
        raise InputMissingError(
            f"the image is a set of {len(others) + 1} files; missing: {', '.join(missing[:5])}",
            file=path,
            expected="an OME-TIFF that holds the whole image",
            remedy="put the missing files back and merge the set into one OME-TIFF, for example with Fiji",
        )
    raise BadDataError(
        f"the image is a set of {len(others) + 1} files, another is {others[0]}",
        file=path,
        expected="an OME-TIFF that holds the whole image",
        remedy="merge the set into one OME-TIFF first, for example with Fiji",
    )


def several_images(path: Path, number: int) -> BadDataError:
    return BadDataError(
        f"the file holds {number} images",
        file=path,
        expected="one image in a file",
        remedy="save each image to a file of its own",
    )


def check_ome(xml: Element, every: list[tifffile.TiffPageSeries], count: int, path: Path) -> None:
    """Refuse OME-XML that contradicts the pixels."""
    images = [pixels for image in _children(xml, "Image") for pixels in _children(image, "Pixels")]
    if len(images) > 1:
        raise several_images(path, len(images))
    if not images:
        raise _contradiction(path, "the OME-XML describes no image")
    pixels, key = images[0], every[0].keyframe
    try:
        sizes = {axis: int(pixels.get(f"Size{axis}", "")) for axis in "XYZCT"}
    except ValueError as error:
        raise _contradiction(path, "the OME-XML has no sizes") from error
    shown = " x ".join(f"{axis} {sizes[axis]}" for axis in "TCZYX")
    if (sizes["X"], sizes["Y"]) != (key.imagewidth, key.imagelength):
        raise _contradiction(path, f"the OME-XML says {shown}, the pages are Y {key.imagelength} x X {key.imagewidth}")
    planes = sizes["Z"] * sizes["C"] * sizes["T"]
    held = count * key.samplesperpixel * key.imagedepth
    if planes > held:
        raise _contradiction(path, f"the OME-XML says {shown}, which is {planes} planes; the file holds {held}")
    kind = pixels.get("Type", "")
    if kind in OME_TYPES and np.dtype(key.dtype).str[1:] not in OME_TYPES[kind]:
        raise _contradiction(path, f"the OME-XML says {kind}, the pixels are {key.dtype}")
    series = every[0]
    if series.kind != "ome" or any(page is None for page in series.pages):
        raise _contradiction(path, f"the OME-XML says {shown}, but its planes do not map to the file's {count} pages")


def _contradiction(path: Path, found: str) -> BadDataError:
    return BadDataError(
        f"{found}: the metadata contradict the pixels",
        file=path,
        remedy="save the image again as OME-TIFF, or remove the wrong ImageDescription",
    )


def _pixels(xml: Element) -> Element:
    return next(pixels for image in _children(xml, "Image") for pixels in _children(image, "Pixels"))


def ome_channel_names(xml: Element | None) -> tuple[str, ...]:
    """Names of the channels, where each has one."""
    if xml is None:
        return ()
    names = [channel.get("Name", "") for channel in _children(_pixels(xml), "Channel")]
    return tuple(names) if all(names) else ()


# Spacing


def read_spacing(tif: tifffile.TiffFile, xml: Element | None, planes: int, path: Path) -> Spacing:
    """Voxel size of a TIFF: OME-XML, ImageJ's calibration, Zeiss scaling lines; never the printing resolution."""
    if xml is not None:
        pixels = _pixels(xml)
        lengths = {
            axis.lower(): (float(pixels.get(f"PhysicalSize{axis}", "")), pixels.get(f"PhysicalSize{axis}Unit", "µm"))
            for axis in "XYZ"
            if pixels.get(f"PhysicalSize{axis}")
        }
        return from_lengths(lengths, planes, "OME-XML", path)
    if not tif.is_imagej:
        return from_zeiss(tif.pages.first.description, planes, path)
    metadata = tif.imagej_metadata or {}
    tags = tif.pages.first.tags
    resolution = {axis: tags[code].value for axis, code in (("x", 282), ("y", 283)) if code in tags}
    found = from_imagej(metadata, resolution, planes, path)
    if found.value is not None:
        return found
    zeiss = from_zeiss(str(metadata.get("Info", "")), planes, path)
    return zeiss if zeiss.value is not None else Spacing(None, "", found.warnings + zeiss.warnings)
