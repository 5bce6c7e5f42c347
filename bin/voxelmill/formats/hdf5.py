"""HDF5: one array of the file, read in boxes of its chunks.

A file can name other files (external links, external storage, virtual datasets): these are refused, and so are filters
that are loaded from outside the HDF5 library. HDF5 keeps no checksum unless its writer asked for the filter fletcher32:
a changed byte in a dataset without it or another compression's own checksum cannot be seen. Chunks that were never
written read as the fill value, so they are counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from voxelmill.errors import BadDataError, RefusedError
from voxelmill.formats.base import (
    ACCEPTED,
    COPY_AGAIN,
    NO_CHOICE,
    ImageSource,
    Selection,
    accepted_dtype,
    all_named,
    check_axes,
    shape_czyx,
    truncated,
    unreadable,
)
from voxelmill.formats.chunks import MissingChunks, check_chunk
from voxelmill.formats.spacing import Spacing, Triple, from_axes
from voxelmill.image import Box, read_axes

CACHE = 16 << 20
SHOWN = 8
MAX_LINKS = 16
MAX_MEMBERS = 100_000

FILTERS = {
    h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_SZIP,
    h5py.h5z.FILTER_NBIT, h5py.h5z.FILTER_SCALEOFFSET, h5py.h5z.FILTER_LZF,
}  # fmt: skip


@dataclass(kw_only=True)
class Hdf5Source(ImageSource):
    """A volume in an HDF5 file; see :class:`ImageSource`."""

    file: h5py.File = field(repr=False)
    dataset: h5py.Dataset = field(repr=False)

    def _read(self, channel: int, box: Box) -> np.ndarray:
        try:
            data = read_axes(self.dataset, self.axes, channel, self.timepoint, box)
        except OSError as error:
            # h5py raises OSError for a filter that fails too
            raise unreadable(self.path, error) from error
        return data.astype(self.dtype, copy=False)

    def missing_chunks(self) -> MissingChunks:
        """Chunks that were never written, or that no filter has changed and whose size is not that of their voxels."""
        shape, name = self.dataset.shape, f"{self.dataset.name} "
        if self.dataset.chunks is None:
            written = self.dataset.id.get_storage_size() > 0
            return MissingChunks((1,) * len(shape), frozenset({(0,) * len(shape)} if written else ()), name, ",")
        chunks = self.dataset.chunks
        grid = tuple(-(-length // size) for length, size in zip(shape, chunks, strict=True))
        listed: dict[tuple[int, ...], Any] = {}
        self.dataset.id.chunk_iter(lambda info: listed.update({tuple(map(int, info.chunk_offset)): info}))
        filters = (1 << self.dataset.id.get_create_plist().get_nfilters()) - 1
        plain = prod(chunks) * self.dataset.dtype.itemsize
        present = set()
        for place, info in listed.items():
            index = tuple(at // size for at, size in zip(place, chunks, strict=True))
            if any(i >= n for i, n in zip(index, grid, strict=True)):
                continue
            unfiltered = info.filter_mask & filters == filters
            if info.size == plain or not unfiltered:
                present.add(index)
        return MissingChunks(grid, frozenset(present), name, ",")

    def close(self) -> None:
        self.file.close()


def open_hdf5(path: Path, selection: Selection = NO_CHOICE) -> Hdf5Source:
    """Open one array of an HDF5 file.

    Parameters
    ----------
    path : Path
    selection : Selection
        ``dataset``: path of the array inside the file; without it the file must hold one array that can be an image.
        ``axes``: one letter out of ``tczyx`` per axis; without it ilastik's ``axistags`` or HDF5's dimension labels,
        else y, x of two axes and z, y, x of three. ``timepoint``.

    Raises
    ------
    BadDataError
        Where the file is damaged, or no array, or several and no choice, can be the image.
    RefusedError
        Where the array would be read from other files, or by a filter from outside the library.
    """
    try:
        file = h5py.File(path, "r", locking=False, rdcc_nbytes=CACHE)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        return _open(path, file, selection)
    except BaseException as error:
        file.close()
        if isinstance(error, (OSError, RuntimeError, KeyError, TypeError, ValueError)):
            raise unreadable(path, error) from error
        raise


def _open(path: Path, file: h5py.File, selection: Selection) -> Hdf5Source:
    dataset = chosen(path, file, selection.dataset)
    refuse_foreign(path, dataset)
    shape = tuple(int(length) for length in dataset.shape)
    names = selection.axes.lower() if selection.axes else axes_of(dataset)
    time = check_axes(path, names, shape, selection.timepoint)
    stored = dataset.chunks or ((1,) * (len(shape) - 1) + shape[-1:])
    if dataset.chunks:
        check_chunk(stored, dataset.dtype, path)
    place = dataset.id.get_offset()
    size = path.stat().st_size
    if dataset.chunks is None and place is not None and place + dataset.id.get_storage_size() > size:
        raise truncated(path, place + dataset.id.get_storage_size(), size)
    held, needed = dataset.id.get_storage_size(), prod(shape) * dataset.dtype.itemsize
    if dataset.chunks is None and held not in (0, needed):
        raise BadDataError(
            f"the array's shape {shape} and type need {needed} bytes, the file keeps {held} for it",
            file=path,
            remedy=COPY_AGAIN,
        )
    lengths = shape_czyx(names, shape)
    spacing = read_spacing(dataset, lengths[1], path)
    return Hdf5Source(
        path=path,
        format="HDF5",
        shape=lengths,
        dtype=accepted_dtype(dataset.dtype, path),
        spacing=spacing.value,
        spacing_origin=spacing.origin,
        warnings=list(spacing.warnings),
        axes=names,
        origin=read_origin(dataset) if spacing.value else (0.0, 0.0, 0.0),
        channel_names=read_channels(dataset, lengths[0]),
        chunk=shape_czyx(names, stored)[1:],
        timepoint=time,
        file=file,
        dataset=dataset,
    )


# The array


def chosen(path: Path, file: h5py.File, name: str | None) -> h5py.Dataset:
    """The array that is named, or the only one that can be an image."""
    if name is not None:
        return follow(path, file, name)
    found = list(candidates(path, file))
    if len(found) == 1:
        return found[0]
    listed = "; ".join(f"{one.name} ({' x '.join(map(str, one.shape))}, {one.dtype})" for one in found[:SHOWN])
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    raise BadDataError(
        f"the file holds {len(found)} arrays that can be an image: {listed}{more}" if found else "no array is an image",
        file=path,
        expected="one array of two to five axes with numbers",
        remedy="choose one with --dataset or the column dataset, such as " + (found[0].name if found else "/volume"),
    )


def candidates(path: Path, group: h5py.Group) -> Iterator[h5py.Dataset]:
    """Arrays of two to five axes with numbers that lie in the file itself, in the order of their names."""
    waiting: list[h5py.Group] = [group]
    seen = set()
    while waiting:
        here = waiting.pop()
        for name in sorted(here, reverse=True):
            if not isinstance(here.get(name, getlink=True), h5py.HardLink):
                continue
            member = here[name]
            if member.id in seen:
                continue
            seen.add(member.id)
            if len(seen) > MAX_MEMBERS:
                raise BadDataError(f"more than {MAX_MEMBERS} members", file=path, remedy="choose one with --dataset")
            if isinstance(member, h5py.Group):
                waiting.append(member)
            elif is_image(member):
                yield member


def is_image(member: Any) -> bool:
    """Whether it is an array that could be an image."""
    if not isinstance(member, h5py.Dataset) or member.shape is None or not 2 <= len(member.shape) <= 5:
        return False
    return member.dtype.str[1:] in ACCEPTED and min(member.shape) > 0


def follow(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    """An array by its path; a link on the way that leaves the file is refused before it is opened."""
    here: Any = file
    parts, links = [part for part in reversed(name.split("/")) if part], 0
    while parts:
        part = parts.pop()
        link = here.get(part, getlink=True) if isinstance(here, h5py.Group) else None
        if isinstance(link, h5py.ExternalLink):
            raise RefusedError(
                f"{name!r} leads to another file, {link.filename!r}",
                file=path,
                expected="an array that lies in the file itself",
                remedy="name the other file as the image, or copy the array into this one",
            )
        if isinstance(link, h5py.SoftLink):
            links += 1
            if link.path.startswith("/"):
                here = file
            parts += [step for step in reversed(link.path.split("/")) if step and step != "."]
            if links > MAX_LINKS:
                raise BadDataError(f"{name!r} leads in a circle", file=path)
        elif isinstance(link, h5py.HardLink):
            here = here[part]
        else:
            here = None
            break
    if isinstance(here, h5py.Dataset) and here.shape is not None:
        return here
    what = f"{name!r} is a group" if isinstance(here, h5py.Group) else f"there is no array {name!r}"
    there = [one.name for one in candidates(path, here if isinstance(here, h5py.Group) else file)][:SHOWN]
    raise BadDataError(what, file=path, expected=f"one of {', '.join(there)}" if there else "a file with an image")


def refuse_foreign(path: Path, dataset: h5py.Dataset) -> None:
    """Raise RefusedError where voxels come from other files, or through a filter from outside the library."""
    if dataset.is_virtual or dataset.external:
        raise RefusedError(
            f"the voxels of {dataset.name} lie in other files",
            file=path,
            expected="an array that lies in the file itself",
            remedy="write the array into one file, for instance with h5repack",
        )
    properties = dataset.id.get_create_plist()
    for index in range(properties.get_nfilters()):
        code, _, _, name = properties.get_filter(index)
        if code not in FILTERS or not h5py.h5z.filter_avail(code):
            raise RefusedError(
                f"the chunks of {dataset.name} use the filter {code} ({name.decode('ascii', 'replace')[:60]})",
                file=path,
                expected="gzip, lzf, szip, shuffle or fletcher32",
                remedy="write the array again with gzip, for instance with h5repack -f GZIP=1",
            )


# What its attributes say


def axes_of(dataset: h5py.Dataset) -> str:
    """Letters of the axes by ilastik's tags or HDF5's labels, else the usual ones of two and three axes."""
    count = len(dataset.shape)
    for names in (tagged_axes(dataset), [dimension.label for dimension in dataset.dims]):
        if len(names) == count and all(len(name) == 1 for name in names):
            return "".join(names).lower()
    return {2: "yx", 3: "zyx"}.get(count, "")


def tagged_axes(dataset: h5py.Dataset) -> list[str]:
    """Keys of the attribute ``axistags``, as vigra and ilastik write it; none where it is not there."""
    text = dataset.attrs.get("axistags")
    try:
        tags = json.loads(text) if isinstance(text, str | bytes) else {}
        return [str(axis["key"]) for axis in tags.get("axes", [])]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def read_spacing(dataset: h5py.Dataset, planes: int, path: Path) -> Spacing:
    """Spacing by the attribute ``element_size_um``: z, y, x or y, x."""
    found = dataset.attrs.get("element_size_um")
    if found is None:
        return Spacing()
    sizes = np.asarray(found)
    if sizes.dtype.kind not in "iuf" or sizes.ndim != 1 or sizes.size not in (2, 3):
        return Spacing(warnings=(f"element_size_um is {str(found)[:60]}, not three lengths: it is not used",))
    known: dict[str, float | None] = dict(zip("xyz", map(float, sizes[::-1]), strict=False))
    if planes == 1 and not (math.isfinite(known.get("z") or 0.0) and (known.get("z") or 0.0) > 0):
        known.pop("z", None)
    return from_axes(known, planes, "element_size_um", path)


def read_origin(dataset: h5py.Dataset) -> Triple:
    """Position of the first voxel by the attribute ``origin_um`` (z, y, x), zero without it."""
    found = np.asarray(dataset.attrs.get("origin_um", 0.0))
    if found.dtype.kind not in "iuf" or found.shape != (3,) or not np.isfinite(found).all():
        return 0.0, 0.0, 0.0
    z, y, x = map(float, found)
    return z, y, x


def read_channels(dataset: h5py.Dataset, count: int) -> tuple[str, ...]:
    """Names by the attribute ``channel_names``, none unless there is one for every channel."""
    found = np.atleast_1d(np.asarray(dataset.attrs.get("channel_names", ())))
    return all_named([n.decode("utf-8", "replace") if isinstance(n, bytes) else n for n in found.tolist()], count)
