"""A folder of slices: one plane per file, in the order of the numbers in their names.

Nothing in a folder says that a slice is lost, so names and headers are compared: what does not fit is an error, what
may be missing is a warning.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from voxelmill.errors import BadDataError, InputMissingError, UsageError
from voxelmill.formats.base import ImageSource, Selection, bad_axes, truncated
from voxelmill.formats.handles import Handles, Workers
from voxelmill.formats.identify import JPEG, PNG, TIFF, identify
from voxelmill.formats.picture import open_jpeg, open_png
from voxelmill.formats.spacing import Triple
from voxelmill.formats.tiff import open_tiff
from voxelmill.formats.tiff_checks import check_page, open_checked
from voxelmill.formats.tiff_set import COMPANION, describes_set, open_set
from voxelmill.formats.tiff_source import TiffSource
from voxelmill.image import Box

LEFT_OUT = {"thumbs.db", "desktop.ini", "ehthumbs.db"}
KEPT = 8
"""Files that stay open."""

LISTED = 8
PICTURES: dict[str, Callable[[Path, Selection], ImageSource]] = {PNG: open_png, JPEG: open_jpeg}


@dataclass(frozen=True)
class Plane:
    """A file, and its first voxel where the plane lies in it as it is; None where it has to be decoded."""

    path: Path
    start: int | None


@dataclass(kw_only=True)
class SlicesSource(ImageSource):
    """A volume of one file per plane; see :class:`ImageSource`."""

    planes: list[Plane] = field(repr=False)
    stored: np.dtype = field(repr=False)
    handles: Handles = field(repr=False, default_factory=Handles)
    workers: Workers = field(repr=False, default_factory=Workers)
    opened: OrderedDict[Path, ImageSource] = field(repr=False, default_factory=OrderedDict)
    lock: Lock = field(repr=False, default_factory=Lock)

    def _read(self, channel: int, box: Box) -> np.ndarray:
        (z0, z1), rows, columns = box
        out = np.empty([stop - start for start, stop in box], self.dtype)

        def read(z: int) -> None:
            plane = self.planes[z]
            if plane.start is None:
                out[z - z0] = self._open(plane.path).read(channel, ((0, 1), rows, columns))[0]
            else:
                self._raw(plane.path, plane.start, rows, columns, out[z - z0])

        job = (rows[1] - rows[0]) * self.shape[3] * self.dtype.itemsize
        self.workers.run(read, range(z0, z1), self._trim, job, KEPT)
        return out

    def _raw(self, path: Path, start: int, rows: tuple[int, int], columns: tuple[int, int], out: np.ndarray) -> None:
        """Rows of an uncompressed plane of one channel."""
        width = self.shape[3]
        offset = start + rows[0] * width * self.stored.itemsize
        if columns == (0, width):
            self.handles.fill(path, offset, out)
            if not self.stored.isnative:
                out.byteswap(inplace=True)
            return
        count = (rows[1] - rows[0]) * width
        pixels = self.handles.scratch(path, offset, count * self.stored.itemsize).view(self.stored)
        out[:] = pixels.reshape(-1, width)[:, slice(*columns)]

    def _open(self, path: Path) -> ImageSource:
        with self.lock:
            found = self.opened.get(path)
            if found is not None:
                self.opened.move_to_end(path)
        if found is None:
            found = _open_plane(path)
            with self.lock:
                self.opened[path] = found
        return found

    def _trim(self) -> None:
        self.handles.trim()
        while len(self.opened) > KEPT:
            self.opened.popitem(last=False)[1].close()

    def close(self) -> None:
        self.workers.close()
        self.handles.close()
        while self.opened:
            self.opened.popitem()[1].close()


def open_folder(path: Path, selection: Selection) -> ImageSource:
    """Open a folder of slices, or of the files of one OME-TIFF.

    Parameters
    ----------
    path : Path
    selection : Selection
        ``series``, ``timepoint`` and ``level`` are for an OME-TIFF only.

    Raises
    ------
    BadDataError
        Where a file is no slice, is not like the first, or the names do not say the order.
    """
    files = slice_files(path)
    tiffs = [file for file in files if identify(file) == TIFF]
    if tiffs and describes_set(tiffs[0]):
        return open_set(path, [tiffs[0], *(file for file in files if file != tiffs[0])], selection)
    for name in ("series", "timepoint", "level"):
        if (value := getattr(selection, name)) is not None:
            raise UsageError(
                f"{name} {value} is chosen, and a folder of slices has none",
                file=path,
                remedy=f"leave --{name} and the column {name} empty for this image",
            )
    companions = [file.name for file in files if file.name.endswith(COMPANION)]
    if companions:
        raise BadDataError(
            f"the folder holds {companions[0]}, of which its TIFF files do not speak",
            file=path,
            remedy="move the companion file away to read the files as slices",
        )
    ordered, warnings = natural_order(files, path)
    return _open_slices(path, ordered, selection, warnings)


def slice_files(folder: Path) -> list[Path]:
    """All files of a folder but those that operating systems leave there."""
    found = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.name.lower() in LEFT_OUT:
            continue
        if not entry.is_file():
            raise BadDataError(
                f"the folder holds {entry.name!r}, which is no slice",
                file=folder,
                expected="one file per plane and nothing else, or a Zarr image",
                remedy="move it away, or name one of the files as the image",
            )
        found.append(entry)
    if not found:
        raise InputMissingError("the folder is empty", file=folder, expected="one file per plane")
    return found


def natural_order(files: Sequence[Path], folder: Path) -> tuple[list[Path], list[str]]:
    """Files by the number in their names, which must be alike but for it; warnings of numbers that are missing.

    Several numbers may count (a time beside an index) as long as all of them say the same order.

    Raises
    ------
    BadDataError
        Where names differ in more than numbers, no number is different in each, or two orders are possible.
    """
    split = {file: re.split(r"([0-9]+)", file.name) for file in files}
    first = files[0]
    pattern = [text.lower() for text in split[first][::2]]
    for file in files:
        if [text.lower() for text in split[file][::2]] != pattern:
            raise BadDataError(
                f"the names {first.name!r} and {file.name!r} differ in more than numbers",
                file=folder,
                expected="one file per plane, with names such as image_z0001.tif",
                remedy="move files that are no slices of this image away, or rename them",
            )
    numbers = {file: [int(text) for text in split[file][1::2]] for file in files}
    if len(files) == 1:
        return list(files), []
    places = range(len(pattern) - 1)
    different = [i for i in places if len({numbers[file][i] for file in files}) == len(files)]
    if not different:
        raise _same_number(files, numbers, folder)
    orders = [sorted(files, key=lambda file, i=i: numbers[file][i]) for i in different]  # type: ignore[misc]
    for order in orders[1:]:
        if order != orders[0]:
            raise BadDataError(
                f"two numbers in the names say different orders: {orders[0][0].name!r} or {order[0].name!r} first",
                file=folder,
                expected="one number that counts the planes",
                remedy="rename the files",
            )
    warnings = min((_gaps([numbers[file][i] for file in orders[0]]) for i in different), key=len)
    return orders[0], warnings


def _same_number(files: Sequence[Path], numbers: dict[Path, list[int]], folder: Path) -> BadDataError:
    seen: dict[tuple[int, ...], Path] = {}
    for file in files:
        twin = seen.setdefault(tuple(numbers[file]), file)
        if twin != file:
            return BadDataError(
                f"the names {twin.name!r} and {file.name!r} have the same number",
                file=folder,
                expected="a number of its own for each plane",
                remedy="remove the copy or rename it",
            )
    return BadDataError(
        f"in the names, such as {files[0].name!r} and {files[-1].name!r}, no number is different for each plane",
        file=folder,
        expected="one number that counts the planes",
        remedy="several channels or time points: put each into a folder of its own, or make one OME-TIFF of them",
    )


def _gaps(numbers: Sequence[int]) -> list[str]:
    """Warnings of numbers that are missing between ascending ones, and of steps above one."""
    steps = [after - before for before, after in pairwise(numbers)]
    step = math.gcd(*steps)
    missing = (numbers[-1] - numbers[0]) // step + 1 - len(numbers)
    warnings = [f"the numbers of the slices run in steps of {step}"] if step > 1 else []
    if missing:
        lost = _lost(numbers, step)
        shown = ", ".join(str(number) for number, _ in zip(lost, range(LISTED), strict=False))
        more = f" and {missing - LISTED} more" if missing > LISTED else ""
        warnings.append(
            f"between the slices {numbers[0]} and {numbers[-1]} there is no {shown}{more}: if slices were lost, the "
            "volume is too short and sheared there"
        )
    return warnings


def _lost(numbers: Sequence[int], step: int) -> Iterator[int]:
    for before, after in pairwise(numbers):
        yield from range(before + step, after, step)


def _open_plane(path: Path) -> ImageSource:
    """Open one file; what it lacks to be a plane is an error."""
    kind = identify(path)
    if kind == TIFF:
        source: ImageSource = open_tiff(path, Selection())
        if isinstance(source, TiffSource):
            source.workers.count = 1
    else:
        if kind not in PICTURES:
            raise BadDataError(
                f"a file in a folder of slices that is no slice: it holds {kind}",
                file=path,
                expected="TIFF, PNG or JPEG files and nothing else",
                remedy="move it away",
            )
        source = PICTURES[kind](path, Selection())
    if source.shape[1] != 1:
        source.close()
        raise BadDataError(
            f"a file in a folder of slices that holds {source.shape[1]} planes",
            file=path,
            expected="one plane per file",
            remedy="name the file itself as the image, or cut it into planes",
        )
    return source


def _open_slices(folder: Path, files: Sequence[Path], selection: Selection, warnings: list[str]) -> SlicesSource:
    with _open_plane(files[0]) as first:
        likeness = _Likeness(first, files[0])
        planes = [likeness.plane(file) for file in files]
    axes = "z" + first.axes.replace("z", "").replace("t", "")
    shape = (first.shape[0], len(files), *first.shape[2:])
    if selection.axes is not None and selection.axes.lower() != axes:
        raise bad_axes(folder, selection.axes, tuple(dict(zip("czyx", shape, strict=True))[axis] for axis in axes))
    spacing, origin, told = _spacing(first, len(files))
    return SlicesSource(
        path=folder,
        format=f"folder of {first.format} slices",
        shape=(shape[0], shape[1], shape[2], shape[3]),
        dtype=first.dtype,
        spacing=spacing,
        spacing_origin=origin,
        warnings=[*warnings, *told, *first.warnings, *likeness.warnings],
        rgb=first.rgb,
        axes=axes,
        channel_names=first.channel_names,
        chunk=(1, *first.chunk[1:]),
        planes=planes,
        stored=likeness.stored,
    )


def _spacing(first: ImageSource, planes: int) -> tuple[Triple | None, str, list[str]]:
    """Spacing of the stack: the depth is known only where a file says it."""
    if first.spacing is None or planes == 1 or not first.spacing_origin.endswith(", z as y"):
        return first.spacing, first.spacing_origin, []
    _, y, x = first.spacing
    text = f"{first.spacing_origin.removesuffix(', z as y')} gives the voxel size of y, x ({y:g}, {x:g}) but not of z"
    return None, "", [f"{text}: it is not used"]


class _Likeness:
    """Compares each file of a folder with the first; a TIFF is parsed once, and only its header."""

    def __init__(self, first: ImageSource, path: Path):
        self.first, self.path = first, path
        self.key: Any = first.tif.pages.first if isinstance(first, TiffSource) else None
        little = isinstance(first, TiffSource) and first.tif.byteorder == "<"
        self.stored = first.dtype.newbyteorder("<" if little else ">")
        self.warnings: list[str] = []

    def plane(self, path: Path) -> Plane:
        if self.key is not None and identify(path) == TIFF:
            tif, pages = open_checked(path)
            with tif:
                page: Any = tif.pages.first
                check_page(page, path)
                # The same description: of the same kind, with the same voxel size.
                if len(pages) == 1 and _told(page) == _told(self.key) and page.hash == self.key.hash:
                    return Plane(path, self._start(page, path))
        with _open_plane(path) as source:
            self._compare(source, path)
        return Plane(path, None)

    def _start(self, page: Any, path: Path) -> int | None:
        size = path.stat().st_size
        counts = page.databytecounts
        ends = [offset + count for offset, count in zip(page.dataoffsets, counts, strict=False)]
        if len(ends) < math.prod(page.chunked) or not all(counts):
            raise BadDataError("the page has no data for some of its strips or tiles", file=path)
        needed = page.dataoffsets[0] + page.nbytes if page.is_final else max(ends)
        if needed > size:
            raise truncated(path, needed, size)
        return int(page.dataoffsets[0]) if page.is_final and page.samplesperpixel == 1 else None

    def _compare(self, source: ImageSource, path: Path) -> None:
        one, other = self.first, source
        for what, a, b in (
            ("channels", one.shape[0], other.shape[0]),
            ("shape", one.shape[2:], other.shape[2:]),
            ("type", one.dtype, other.dtype),
        ):
            if a != b:
                raise BadDataError(
                    f"the slices differ in {what}: {self.path.name} has {_words(a)}, {path.name} {_words(b)}",
                    file=path,
                    expected="slices of one shape, type and number of channels",
                    remedy="remove what is no slice of this image",
                )
        if one.spacing != other.spacing and not self.warnings:
            self.warnings.append(
                f"the slices differ in voxel size: {self.path.name} says {_lengths(one)}, {path.name} {_lengths(other)}"
            )
        self.warnings += [
            f"{path.name}: {text}"
            for text in other.warnings
            if text not in one.warnings and len(self.warnings) < LISTED
        ]
        if one.rgb != other.rgb:
            raise BadDataError(f"only one of {self.path.name} and {path.name} is in colour", file=path)


def _told(page: Any) -> tuple[Any, ...]:
    return (page.description, *(page.tags[code].value if code in page.tags else None for code in (282, 283, 296)))


def _words(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _lengths(source: ImageSource) -> str:
    return "nothing" if source.spacing is None else ", ".join(f"{length:g}" for length in source.spacing)
