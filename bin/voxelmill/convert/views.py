"""Images that are other images seen in another way: some channels, a box, another geometry, turned axes.

A view reads what it needs of its source when a box of it is asked for. Views of views compose.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from voxelmill.convert.geometry import Geometry, regrid
from voxelmill.errors import BadDataError
from voxelmill.formats.base import ImageSource, all_named
from voxelmill.formats.spacing import Triple
from voxelmill.image import Box

SECONDS_BETWEEN_LINES = 15.0


@dataclass(kw_only=True)
class View(ImageSource):
    """An image that is computed out of another one, box by box."""

    source: ImageSource = field(repr=False)

    def close(self) -> None:
        self.source.close()


Made = TypeVar("Made", bound=View)


def view(kind: type[Made], source: ImageSource, geometry: Geometry | None = None, **changes: Any) -> Made:
    """A view of a kind, with everything that is not changed as its source has it."""
    same = {one.name: getattr(source, one.name) for one in fields(ImageSource)}
    where = {} if geometry is None else {one.name: getattr(geometry, one.name) for one in fields(Geometry)}
    return kind(**{**same, **where, "in_place": None, **changes, "source": source})


@dataclass(kw_only=True)
class Picked(View):
    """Some channels of an image, or those of several files, in an order."""

    places: tuple[tuple[ImageSource, int], ...] = field(repr=False)

    def _read(self, channel: int, box: Box) -> np.ndarray:
        source, index = self.places[channel]
        return source.read(index, box).astype(self.dtype, copy=False)

    def close(self) -> None:
        for source, _ in self.places:
            source.close()


def pick(sources: Sequence[ImageSource], channels: Sequence[int]) -> ImageSource:
    """Channels of one file, or the only channel of each of several files.

    Parameters
    ----------
    sources : sequence of ImageSource
        Of one shape and spacing.
    channels : sequence of int
        Indices into the channels of a single file; of several files each is one.
    """
    first = sources[0]
    if len(sources) == 1 and list(channels) == list(range(first.shape[0])):
        return first
    places = tuple((first, index) for index in channels) if len(sources) == 1 else tuple((s, 0) for s in sources)
    named = [s.channel_names[i] if s.channel_names else "" for s, i in places]
    return view(
        Picked,
        first,
        shape=(len(places), *first.shape[1:]),
        dtype=np.result_type(*(source.dtype for source, _ in places)),
        channel_names=all_named(named, len(places)),
        rgb=first.rgb and len(sources) == 1 and list(channels) == [0, 1, 2],
        places=places,
    )


@dataclass(kw_only=True)
class Described(View):
    """The same voxels under another description."""

    def _read(self, channel: int, box: Box) -> np.ndarray:
        return self.source.read(channel, box)


def describe(source: ImageSource, geometry: Geometry) -> ImageSource:
    """The same voxels at another place or of another size."""
    return view(Described, source, geometry)


def without_size(source: ImageSource) -> ImageSource:
    """The same voxels without physical size."""
    return view(Described, source, Geometry(None, (0.0, 0.0, 0.0), None, ()), spacing_origin="")


@dataclass(kw_only=True)
class Cropped(View):
    """A box of an image."""

    start: tuple[int, ...]

    def _read(self, channel: int, box: Box) -> np.ndarray:
        return self.source.read(channel, tuple((a + s, b + s) for (a, b), s in zip(box, self.start, strict=True)))


def crop(source: ImageSource, box: Box) -> ImageSource:
    """A box (z, y, x) of an image, where it lies in space."""
    start = tuple(first for first, _ in box)
    shape = tuple(stop - first for first, stop in box)
    if shape == source.shape[1:]:
        return source
    return view(
        Cropped,
        source,
        regrid(Geometry.of(source), start, (1.0, 1.0, 1.0)),
        shape=(source.shape[0], *shape),
        start=start,
    )


@dataclass(kw_only=True)
class Turned(View):
    """An image with its axes permuted and flipped.

    Attributes
    ----------
    order : tuple of int
        The source's axis behind each of z, y, x.
    flipped : tuple of bool
        Which of them run backwards.
    """

    order: tuple[int, ...]
    flipped: tuple[bool, ...]

    def _read(self, channel: int, box: Box) -> np.ndarray:
        inside: list[tuple[int, int]] = [(0, 0)] * 3
        for (start, stop), axis, flipped in zip(box, self.order, self.flipped, strict=True):
            length = self.source.shape[1 + axis]
            inside[axis] = (length - stop, length - start) if flipped else (start, stop)
        steps = tuple(slice(None, None, -1 if flipped else 1) for flipped in self.flipped)
        return self.source.read(channel, tuple(inside)).transpose(self.order)[steps]


def reorient(source: ImageSource, codes: str) -> ImageSource:
    """An image whose axes x, y, z point to given sides of the body; every voxel stays where it is in space.

    Parameters
    ----------
    source : ImageSource
    codes : str
        Such as ``RAS``: x to the right, y to the front, z up (the side that an axis points to, as in NiBabel and
        ITK-SNAP).

    Raises
    ------
    BadDataError
        Where the image has no affine, or one with axes that cannot be told apart.
    """
    if source.affine is None:
        raise BadDataError(
            f"the {source.format} image does not say how it lies in the body",
            expected="an image with an affine for --orientation: NIfTI, MHA or NRRD",
            remedy="leave out --orientation, or put such an image in",
        )
    now = io_orientation(source.affine)
    if np.isnan(now).any():
        raise BadDataError(f"the affine is degenerate: {np.round(source.affine[:3], 6).tolist()}")
    change = ornt_transform(now, axcodes2ornt(tuple(codes)))
    # NiBabel counts x, y, z: row i says where the file's axis i goes and whether it turns round.
    order, flipped = [0, 0, 0], [False] * 3
    for axis, (goes, turn) in enumerate(change):
        order[2 - int(goes)] = 2 - axis
        flipped[2 - int(goes)] = turn < 0
    if order == [0, 1, 2] and not any(flipped):
        return source
    matrix = inv_ornt_aff(change, source.shape[:0:-1])
    geometry = Geometry.of(source).with_matrices(lambda affine: affine @ matrix)

    def along(values: Triple) -> Triple:
        z, y, x = (values[axis] for axis in order)
        return z, y, x

    return view(
        Turned,
        source,
        geometry,
        spacing=None if source.spacing is None else along(source.spacing),
        # The affine says where the image lies; a position along the file's own axes has no meaning for turned ones.
        origin=(0.0, 0.0, 0.0),
        shape=(source.shape[0], *(source.shape[1 + axis] for axis in order)),
        chunk=tuple(source.chunk[axis] for axis in order),
        order=tuple(order),
        flipped=tuple(flipped),
    )


@dataclass(kw_only=True)
class Watched(View):
    """An image that tells on the log how far its reading has come."""

    what: str
    voxels: int = 0
    started: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)

    def _read(self, channel: int, box: Box) -> np.ndarray:
        data = self.source.read(channel, box)
        self.voxels += data.size
        now = time.monotonic()
        if now - self.told > SECONDS_BETWEEN_LINES:
            self.told = now
            print(self.line(now - self.started), file=sys.stderr, flush=True)
        return data

    def line(self, seconds: float) -> str:
        """Voxels done and left, and the time that these will take."""
        total = int(np.prod(self.shape, dtype=np.int64))
        speed = self.voxels / seconds
        left = max(0, total - self.voxels)
        return (
            f"{self.what}: {self.voxels / 1e6:.0f} of {total / 1e6:.0f} million voxels, {speed / 1e6:.1f} per second, "
            f"{left / speed:.0f} s left"
        )


def watch(source: ImageSource, what: str) -> Watched:
    """The image, with lines about its progress every quarter of a minute."""
    return view(Watched, source, what=what)
