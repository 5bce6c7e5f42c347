"""Voxels of a TIFF: its strips and tiles, decoded by a few threads, or its rows as they lie in the file."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import tifffile

from voxelmill.errors import BadDataError
from voxelmill.formats.base import ImageSource
from voxelmill.formats.codestreams import too_many_pixels
from voxelmill.formats.handles import Handles, Workers
from voxelmill.formats.tiff_checks import JPEG, contiguous
from voxelmill.formats.tiff_series import pages_are_planes, sample_axis
from voxelmill.image import Box, slices

CACHED = 64 << 20
ROWS = 1 << 20
"""Bytes of an uncompressed plane that one thread reads at once."""

PIECE = 4 << 20
"""Bytes of whole planes that one thread reads at once."""

NARROW = 3
"""A box of less than one part in so many of a row is narrow: its neighbours' rows are kept with its own."""

Range = tuple[int, int]


@dataclass(kw_only=True)
class TiffSource(ImageSource):
    """A volume in one TIFF file, or in several that describe one another; see :class:`ImageSource`."""

    tif: tifffile.TiffFile = field(repr=False)
    series: tifffile.TiffPageSeries = field(repr=False)
    leading: str = field(repr=False)
    channels: int = field(repr=False)
    handles: Handles = field(repr=False, default_factory=Handles)
    workers: Workers = field(repr=False, default_factory=Workers)
    cache: OrderedDict[tuple[int, int], np.ndarray] = field(repr=False, default_factory=OrderedDict)
    cached: int = field(repr=False, default=0)
    lock: Lock = field(repr=False, default_factory=Lock)
    rows: tuple[tuple[int, Range, Range], np.ndarray] | None = field(repr=False, default=None)

    def _read(self, channel: int, box: Box) -> np.ndarray:
        depths, rows, columns = box
        if not pages_are_planes(self.series):
            return self._whole()[channel][slices(box)]
        width = self.shape[3]
        if not self.uncompressed or columns == (0, width):
            return self._fill(channel, box, np.empty([stop - start for start, stop in box], self.dtype))
        # Rows are read as a whole; the boxes beside a narrow one are in them.
        shape = (depths[1] - depths[0], rows[1] - rows[0], width)
        at = (channel, depths, rows)
        narrow = NARROW * (columns[1] - columns[0]) <= width
        if not narrow or prod(shape) * self.dtype.itemsize > CACHED:
            return self._fill(channel, box, np.empty([stop - start for start, stop in box], self.dtype))
        if self.rows is None or self.rows[0] != at:
            block = np.empty(shape, self.dtype) if self.rows is None or self.rows[1].shape != shape else self.rows[1]
            self.rows = None
            self.rows = (at, self._fill(channel, (depths, rows, (0, width)), block))
        return self.rows[1][:, :, slice(*columns)].copy()

    def _fill(self, channel: int, box: Box, out: np.ndarray) -> np.ndarray:
        (z0, z1), rows, columns = box
        if self._in_one_piece(box):
            self._fill_piece(self._page_number(channel, z0), out)
            return out
        samples = sample_axis(self.axes, self.series.keyframe)
        depths: list[tuple[int, int, Range, np.ndarray]] = [
            (
                self._page_number(channel, z),
                {"c": channel, "z": z}.get(samples, 0),
                (0, 1),
                out[z - z0 : z - z0 + 1],
            )
            for z in range(z0, z1)
        ]
        if "z" in self.axes and "z" not in (*self.leading, samples):
            depths = [(self._page_number(channel, 0), channel if samples else 0, (z0, z1), out)]
        jobs = itertools.chain.from_iterable(
            self._jobs(number, sample, (within, rows, columns), part) for number, sample, within, part in depths
        )
        key = self.series.keyframe
        held = prod(key.chunks) * self.dtype.itemsize
        if self.uncompressed:
            held = min(ROWS, (rows[1] - rows[0]) * key.imagewidth * key.shaped[4] * self.dtype.itemsize)
        self.workers.run(lambda job: job(), jobs, self.handles.trim, held)
        return out

    def _in_one_piece(self, box: Box) -> bool:
        """Whole planes that follow one another in the file without a gap."""
        planes = self.shape[2] * self.shape[3] == prod(self.series.keyframe.shape)
        whole = box[1:] == ((0, self.shape[2]), (0, self.shape[3]))
        return contiguous(self.series) is not None and planes and whole and self.leading.endswith("z")

    def _fill_piece(self, number: int, out: np.ndarray) -> None:
        stored = self._stored
        start = (contiguous(self.series) or 0) + number * self.series.keyframe.nbytes
        flat = out.reshape(-1)
        length = PIECE // stored.itemsize

        def read(first: int) -> None:
            part = flat[first : first + length]
            self.handles.fill(self.path, start + first * stored.itemsize, part)
            if not stored.isnative:
                part.byteswap(inplace=True)

        self.workers.run(read, range(0, flat.size, length), self.handles.trim, PIECE)

    @property
    def _stored(self) -> np.dtype:
        return self.dtype.newbyteorder("<" if self.tif.byteorder == "<" else ">")

    def _whole(self) -> np.ndarray:
        """Channels, z, y, x of a small image that tifffile has to put together."""
        data = self.series.asarray().astype(self.dtype, copy=False)
        data = data.transpose([self.axes.index(axis) for axis in "tczyx" if axis in self.axes])
        return data.reshape(-1, self.channels, *self.shape[1:])[self.timepoint]

    @property
    def uncompressed(self) -> bool:
        """Most pages lie in the file in one piece, as they are."""
        return contiguous(self.series) is not None or self.series.keyframe.is_final

    def _page_number(self, channel: int, z: int) -> int:
        at = {"c": channel, "z": z, "t": self.timepoint}
        lengths = self.series.shape[: len(self.leading)]
        number = 0
        for axis, length in zip(self.leading, lengths, strict=True):
            number = number * length + at[axis]
        return number

    def _jobs(self, number: int, sample: int, wanted: tuple[Range, Range, Range], out: np.ndarray) -> Iterator[Any]:
        """What fills ``out`` with part of one page (usually one plane): depth, rows, columns."""
        key = self.series.keyframe
        offset = contiguous(self.series)
        path = self.path
        if offset is not None:
            yield from self._raw(path, offset + number * key.nbytes, sample, wanted, out)
            return
        page: Any = self.series.pages[number]
        if self.series.is_multifile:
            path = Path(page.parent.filehandle.path)
        if key.is_final and _is_contiguous(page):
            yield from self._raw(path, page.dataoffsets[0], sample, wanted, out)
            return
        separate, contig = (sample, 0) if key.shaped[0] > 1 else (0, sample)
        for index in _segments(key, separate, wanted):
            yield lambda index=index: self._decode(path, (number, index), page, contig, wanted, out)

    def _decode(
        self, path: Path, at: tuple[int, int], page: Any, contig: int, wanted: Sequence[Range], out: np.ndarray
    ) -> None:
        """Put one strip or tile into its place."""
        data, corner = self._segment(path, at, page, wanted)
        overlap = [
            (max(a, start), min(b, start + n)) for (a, b), start, n in zip(wanted, corner, data.shape[:3], strict=True)
        ]
        target = tuple(slice(a - lo, b - lo) for (a, b), (lo, _) in zip(overlap, wanted, strict=True))
        source = tuple(slice(a - start, b - start) for (a, b), start in zip(overlap, corner, strict=True))
        out[target] = data[source[0], source[1], source[2], contig]

    def _segment(
        self, path: Path, at: tuple[int, int], page: Any, wanted: Sequence[Range]
    ) -> tuple[np.ndarray, tuple[int, ...]]:
        """One decoded strip or tile (depth, rows, columns, samples) and its corner in the page.

        It is kept where the box does not need all of it: a neighbour will.
        """
        key = self.series.keyframe
        number, index = at
        tables = {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader} if key.compression in JPEG else {}
        with self.lock:
            known = self.cache.get(at)
            if known is not None:
                self.cache.move_to_end(at)
        if known is not None:
            return known, key.decode(None, index, **tables)[1][1:4]
        size = page.databytecounts[index]
        if not size:
            raise BadDataError(f"strip or tile {index} of page {number + 1} holds no data", file=path)
        encoded = self.handles.read(path, page.dataoffsets[index], size)
        declared = too_many_pixels(int(key.compression), encoded, prod(key.chunks))
        if declared is not None:
            raise BadDataError(
                f"strip or tile {index} of page {number + 1} declares {declared[0]} x {declared[1]} pixels for itself",
                file=path,
                expected=f"at most {prod(key.chunks)}",
                remedy="do not use this file; ask where it comes from",
            )
        decoded, corner, _ = key.decode(encoded, index, **tables)
        data = np.asarray(decoded)
        starts = corner[1:4]
        inside = (
            a <= start and start + n <= b for (a, b), start, n in zip(wanted, starts, data.shape[:3], strict=True)
        )
        if data.shape[3] > 1 or not all(inside):
            with self.lock:
                if at not in self.cache:
                    self.cache[at] = data
                    self.cached += data.nbytes
                while self.cached > CACHED and len(self.cache) > 1:
                    self.cached -= self.cache.popitem(last=False)[1].nbytes
        return data, starts

    def _raw(
        self, path: Path, offset: int, sample: int, wanted: tuple[Range, Range, Range], out: np.ndarray
    ) -> Iterator[Any]:
        """Part of a page that lies uncompressed in one piece at ``offset``, in bands of whole rows."""
        separate, depth, length, width, contig = self.series.keyframe.shaped
        plane, sample = (sample, 0) if separate > 1 else (0, sample)
        stored = self._stored
        row_bytes = width * contig * stored.itemsize
        depths, (y0, y1), (x0, x1) = wanted
        direct = contig == 1 and (x0, x1) == (0, width)
        band = max(1, ROWS // row_bytes)

        def read(z: int, first: int, last: int) -> None:
            start = offset + ((plane * depth + z) * length + first) * row_bytes
            target = out[z - depths[0], first - y0 : last - y0]
            if direct:
                self.handles.fill(path, start, target)
                if not stored.isnative:
                    target.byteswap(inplace=True)
                return
            pixels = self.handles.scratch(path, start, (last - first) * row_bytes).view(stored)
            target[:] = pixels.reshape(last - first, width, contig)[:, x0:x1, sample]

        for z in range(*depths):
            for first in range(y0, y1, band):
                yield lambda z=z, first=first: read(z, first, min(y1, first + band))

    def close(self) -> None:
        self.workers.close()
        self.cache.clear()
        self.cached = 0
        self.rows = None
        self.handles.close()
        self.tif.close()


def _is_contiguous(page: Any) -> bool:
    offsets, counts = page.dataoffsets, page.databytecounts
    ends = (offset + count for offset, count in zip(offsets, counts, strict=True))
    return all(end == start for end, start in zip(ends, offsets[1:], strict=False))


def _segments(key: tifffile.TiffPage, separate: int, wanted: tuple[Range, Range, Range]) -> Iterator[int]:
    """Indices of the strips or tiles of a page that touch a box (depth, rows, columns)."""
    _, depth, length, width, _ = key.shaped
    strip = (1, min(key.rowsperstrip, length), width)
    size = (key.tiledepth, key.tilelength, key.tilewidth) if key.is_tiled else strip
    grid = [-(-n // s) for n, s in zip((depth, length, width), size, strict=True)]
    ranges = [range(a // s, -(-b // s)) if b > a else range(0) for (a, b), s in zip(wanted, size, strict=True)]
    for d, y, x in itertools.product(*ranges):
        yield ((separate * grid[0] + d) * grid[1] + y) * grid[2] + x
