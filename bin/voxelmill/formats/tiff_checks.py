"""What is wrong with a TIFF that tifffile would read all the same.

tifffile forgives much that would end in a wrong volume: pages that are not there, pages that differ, headers that
declare what the file cannot hold.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import tifffile

from voxelmill.errors import BadDataError
from voxelmill.formats.base import COPY_AGAIN, check_inflation, truncated, unreadable

JPEG = {6, 7, 33007, 34892}
JPEG_2000 = {33003, 33004, 33005, 34712}
COMPRESSIONS = (
    {1, 2, 3, 4, 5, 8, 32773, 32946, 34887, 34925, 34926, 34927, 34933, 50000, 50001, 50002, 52546} | JPEG | JPEG_2000
)
COMPRESSION_NAMES = "none, CCITT fax, LZW, deflate, packbits, zstd, LZMA, LERC, PNG, WebP, JPEG, JPEG 2000 or JPEG XL"

DESCRIPTION, TEXT_TYPES = 270, (1, 2, 7)
"""The tag of OME-XML and ImageJ's text, and the types of one byte that it is written in."""

FORMATS = {"ome": "OME-TIFF", "imagej": "ImageJ TIFF", "shaped": "TIFF", "uniform": "TIFF", "generic": "TIFF"}


@dataclass(frozen=True)
class Page:
    """What must be the same for the pages of an image; ``layout`` stands for how the pixels are stored."""

    shape: tuple[int, ...]
    dtype: str
    layout: int

    def __str__(self) -> str:
        return f"{' x '.join(map(str, self.shape))} {self.dtype}"


def open_checked(path: Path) -> tuple[tifffile.TiffFile, list[Page]]:
    """Open a file and look at every header of its main chain.

    Raises
    ------
    BadDataError
        Where the file is cut, is no TIFF or declares more than it can hold.
    """
    size = path.stat().st_size
    with open(path, "rb") as handle:
        count = sum(1 for _ in ifd_offsets(handle, path, size))
    try:
        # OME-XML is read here; Micro-Manager's and NDTiff's own indices name files of their own choice.
        tif = tifffile.TiffFile(path, is_ome=False, is_mmstack=False, is_ndtiff=False, _multifile=False)
    except Exception as error:
        raise unreadable(path, error) from error
    try:
        check_page(tif.pages.first, path)
        pages = look_at_pages(tif, path, size)
        if len(pages) != count:
            raise planes_missing(path, "TIFF", count, len(pages))
    except BaseException:
        tif.close()
        raise
    return tif, pages


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
        if not seen:
            check_description(handle.read(after - offset - count_size), entry, order, path, size)
        seen.add(offset)
        yield offset
        handle.seek(after)
        (offset,) = struct.unpack(order + offset_format, handle.read(offset_size))
    if not seen:
        raise BadDataError("the TIFF file has no page", file=path)


def check_description(entries: bytes, entry: int, order: str, path: Path, size: int) -> None:
    """Refuse a description that goes on behind the file's end: tifffile would read the image without it."""
    count_format, inline = ("Q", 8) if entry == 20 else ("I", 4)
    for start in range(0, len(entries), entry):
        tag, kind, count = struct.unpack_from(f"{order}HH{count_format}", entries, start)
        if tag == DESCRIPTION and kind in TEXT_TYPES and count > inline:
            (place,) = struct.unpack_from(order + count_format, entries, start + entry - inline)
            if place + count > size:
                raise truncated(path, place + count, size)


def check_page(page: Any, path: Path) -> None:
    """Refuse pixels of no known type, and compressions that are not known to be safe."""
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
            expected=COMPRESSION_NAMES,
            remedy="save the image again with one of these",
        )


def look_at_pages(tif: tifffile.TiffFile, path: Path, size: int) -> list[Page]:
    """All pages of the main chain.

    Raises
    ------
    BadDataError
        Where they declare more than the file can hold.
    """
    tif.pages.useframes = False
    pages: list[Page] = []
    declared = stored = 0
    known: dict[Page, Page] = {}
    each: Iterable[Any] = tif.pages
    for page in each:
        shape, kind = tuple(page.shape), str(page.dtype)
        this = Page(shape, kind, page.hash)
        pages.append(known.setdefault(this, this))
        if page.dtype is not None:
            packed = int(page.compression) == 1
            bits = prod(page.shaped) * (page.bitspersample if packed else page.dtype.itemsize * 8)
            declared += bits // 8
            stored += bits // 8 if packed else 0
    if stored > size:
        raise truncated(path, stored, size)
    check_inflation(path, declared, f"{len(pages)} pages, ")
    return pages


def differing_page(pages: list[Page]) -> str | None:
    """The first page that is not like page 1, in words."""
    return next(
        (f"page {number} is {page}, page 1 is {pages[0]}" for number, page in enumerate(pages, 1)
         if (page.shape, page.dtype) != (pages[0].shape, pages[0].dtype)),
        None,
    )  # fmt: skip


def check_alike(series: tifffile.TiffPageSeries, pages: dict[tuple[Path, int], Page], path: Path) -> None:
    """Refuse pages of an image that differ in shape, type or the way in which they are stored, naming the first.

    Parameters
    ----------
    series : TiffPageSeries
    pages : dict
        By file and number, as :func:`look_at_pages` found them. Those of the levels of a pyramid are not in the chain.
    path : Path
    """
    key = series.keyframe
    expected = Page(tuple(key.shape), str(key.dtype), key.hash)
    # Of a level in one piece tifffile has the first header only, and gives the main chain's for the others.
    alone = key.is_subifd and contiguous(series) is not None
    taken: set[tuple[Path, int]] = set()
    for page in [key] if alone else series:
        if page is None:
            continue
        file = Path(page.parent.filehandle.path)
        if page.is_subifd:
            found = _at(page)
            number = f"{page.treeindex[0] + 1}, level {page.treeindex[-1]},"
        else:
            found = pages[file, page.index]
            number = str(page.index + 1)
            if (file, page.index) in taken:
                raise BadDataError(
                    f"page {number} stands for two planes in the file's description",
                    file=file,
                    expected="a page for every plane",
                    remedy=COPY_AGAIN,
                )
            taken.add((file, page.index))
        if found == expected:
            continue
        same = (found.shape, found.dtype) == (expected.shape, expected.dtype)
        how = f"page {number} is {found}, the first is {expected}"
        raise BadDataError(
            f"page {number} is stored in another way than the first (strips, tiles or compression)" if same else how,
            file=file,
            expected="pages of one shape and type in an image",
            remedy="save the image again" if same else "save each image to a file of its own",
        )


def _at(frame: Any) -> Page:
    """The header of a page of a pyramid, of which tifffile reads only where its pixels are."""
    handle = frame.parent.filehandle
    handle.seek(frame.offset)
    page = tifffile.TiffPage(frame.parent, frame.treeindex)
    return Page(tuple(page.shape), str(page.dtype), page.hash)


def check_planes(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, pages: int, every: int, path: Path) -> None:
    """Refuse a file with fewer or more planes than its description says.

    Parameters
    ----------
    tif : TiffFile
    series : TiffPageSeries
    pages : int
        In the file.
    every : int
        Number of images.
    path : Path
    """
    if series.kind not in FORMATS:
        raise BadDataError(
            f"this flavour of TIFF ({series.kind}) cannot be read",
            file=path,
            expected="TIFF, OME-TIFF or ImageJ TIFF",
            remedy="save the image as OME-TIFF, for example with Fiji",
        )
    declared = prod(series.shape)
    plane = max(1, prod(series.keyframe.shape))
    # tifffile falls back to the pages where the file is shorter than what ImageJ or its own description says.
    plain = series.kind in ("uniform", "generic") and every == 1
    if series.kind == "imagej" or (plain and tif.is_imagej):
        described = int((tif.imagej_metadata or {}).get("images", 1))
        planes = max(1, declared // plane)
        if described != planes:
            raise planes_missing(path, "ImageJ", described, planes)
    elif series.kind == "shaped" or (plain and tif.is_shaped):
        text = series.keyframe.shaped_description or "{}"
        described = prod(json.loads(text).get("shape", series.shape))
        if described != declared:
            raise planes_missing(path, "tifffile", described // plane, declared // plane)
    elif plain and len(series.levels) == 1 and len(series) != pages:
        raise planes_missing(path, "TIFF", pages, len(series))


def planes_missing(path: Path, who: str, described: int, found: int) -> BadDataError:
    return BadDataError(
        f"the {who} header describes {described} planes, the file holds {found}: it is truncated or damaged",
        file=path,
        remedy=COPY_AGAIN,
    )


def check_extents(every: Iterable[tifffile.TiffPageSeries], path: Path) -> None:
    """Refuse a file that ends before the last strip or tile of any of its images."""
    for series in every:
        for level in series.levels:
            check_extent(level, path)


def check_extent(series: tifffile.TiffPageSeries, path: Path) -> None:
    """Refuse files that end before the last strip or tile of an image."""
    start = contiguous(series)
    needed: dict[Path, int] = {}
    if start is not None:
        needed[path] = start + prod(series.shape) * series.dtype.itemsize
    else:
        segments = prod(series.keyframe.chunked)
        for number, page in enumerate(series.pages, 1):
            if page is None or len(page.dataoffsets) < segments or len(page.databytecounts) < segments:
                raise BadDataError(f"page {number} has no data for some of its strips or tiles", file=path)
            ends = (offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False))
            file = path if not series.is_multifile else Path(page.parent.filehandle.path)
            needed[file] = max(needed.get(file, 0), *ends)
    for file, end in needed.items():
        size = file.stat().st_size
        if end > size:
            raise truncated(file, end, size)


def contiguous(series: tifffile.TiffPageSeries) -> int | None:
    """First byte of an image that lies in one piece without compression."""
    return None if series.is_multifile else series.dataoffset
