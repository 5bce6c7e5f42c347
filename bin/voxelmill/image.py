"""What is known of a sample's image once it has been imported, and how to read it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from voxelmill.errors import BadDataError
from voxelmill.files import read_json, write_json

Box = tuple[tuple[int, int], ...]
"""Half-open (start, stop) on the three axes."""


Matrix = tuple[tuple[float, ...], ...]
"""Rows."""


def as_matrix(rows: Iterable[Iterable[float]]) -> Matrix:
    return tuple(tuple(map(float, row)) for row in rows)


def slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in box)


def whole(shape: Sequence[int]) -> Box:
    """The box of all voxels."""
    return tuple((0, n) for n in shape)


def cut_box(box: Box, side: Sequence[int]) -> list[Box]:
    """Boxes of at most ``side`` voxels that fill a box, in z, y, x order."""
    starts = itertools.product(*(range(start, stop, s) for (start, stop), s in zip(box, side, strict=True)))
    return [tuple((a, min(a + s, stop)) for a, s, (_, stop) in zip(at, side, box, strict=True)) for at in starts]


@dataclass(frozen=True)
class ArrayLocation:
    """Where the voxels of a sample lie inside its store.

    Attributes
    ----------
    path : str
        Array inside the store, such as ``"0"``.
    axes : str
        One letter per axis of that array out of ``tczyx``.
    channels : tuple of int
        Indices on the ``c`` axis, in the model's order; ``(0,)`` where there is no such axis.
    offset : tuple of int
        First voxel of the sample in the array (z, y, x); not zero where ``--box`` cuts an image that is read in place.
    timepoint : int
        Index on the ``t`` axis.
    """

    path: str
    axes: str
    channels: tuple[int, ...]
    offset: tuple[int, ...] = (0, 0, 0)
    timepoint: int = 0


@dataclass(frozen=True)
class Intensity:
    """A point-wise change of the raw values before the network: ``clip(trunc((v - low) * scale + 0.5), 0, 255)``.

    ``scale`` is None where the values go to the network as they are.
    """

    rule: str = "none"
    low: float = 0.0
    scale: float | None = None

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """Raw values of any dtype -> float32."""
        if self.scale is None:
            return raw.astype(np.float32)
        scaled = np.trunc((raw.astype(np.float64) - self.low) * self.scale + 0.5)
        return np.clip(scaled, 0, 255).astype(np.float32)


@dataclass(frozen=True)
class ChannelStatistics:
    """Statistics of one channel, after the intensity rule, inside the non-zero box (float64).

    ``planes[axis]`` is a pair of lists: smallest and largest value of every plane along that axis (z, y, x) of the box.
    """

    mean: float
    std: float
    minimum: float
    maximum: float
    percentiles: dict[str, float]
    planes: tuple[tuple[list[float], list[float]], ...]


@dataclass(frozen=True)
class ImageInfo:
    """Contents of ``<sample>.image.json``. Axis order z, y, x; lengths in micrometres unless ``unit`` is ``pixel``.

    ``origin`` is the position of the first voxel, in the frame of the input, and ``first`` its index there: not zero
    where a box was cut out.
    ``affine`` (4 x 4, voxel x, y, z of the file to millimetres) and ``forms`` (code and affine of ``qform`` and
    ``sform``) are those of a NIfTI input and know nothing of the box.
    """

    sample: str
    shape: tuple[int, ...]
    dtype: str
    spacing: tuple[float, ...]
    unit: str
    spacing_origin: str
    format: str
    files: tuple[str, ...]
    array: ArrayLocation
    intensity: tuple[Intensity, ...]
    flip: str
    nonzero_box: Box
    statistics: tuple[ChannelStatistics, ...]
    content_sha256: str
    affine: Matrix | None = None
    forms: tuple[tuple[int, Matrix], ...] = ()
    origin: tuple[float, ...] = (0.0, 0.0, 0.0)
    first: tuple[int, ...] = (0, 0, 0)
    warnings: tuple[str, ...] = field(default=())

    @property
    def voxels(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> ImageInfo:
        return cls.from_dict(read_json(path))

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> ImageInfo:
        location = value["array"]
        return cls(
            **{
                **value,
                "shape": tuple(value["shape"]),
                "spacing": tuple(value["spacing"]),
                "origin": tuple(value["origin"]),
                "first": tuple(value.get("first", (0, 0, 0))),
                "files": tuple(value["files"]),
                "warnings": tuple(value["warnings"]),
                "array": ArrayLocation(
                    **{**location, "channels": tuple(location["channels"]), "offset": tuple(location["offset"])}
                ),
                "intensity": tuple(Intensity(**rule) for rule in value["intensity"]),
                "nonzero_box": tuple(tuple(pair) for pair in value["nonzero_box"]),
                "statistics": tuple(
                    ChannelStatistics(**{**s, "planes": tuple(tuple(axis) for axis in s["planes"])})
                    for s in value["statistics"]
                ),
                "affine": None if value["affine"] is None else as_matrix(value["affine"]),
                "forms": tuple((code, as_matrix(rows)) for code, rows in value["forms"]),
            }
        )


def read_axes(array: Any, axes: str, channel: int, timepoint: int, box: Box) -> np.ndarray:
    """A box of one channel out of an array of Zarr or HDF5, whose axes are letters out of ``tczyx`` -> z, y, x."""
    at = {"c": slice(channel, channel + 1), "t": slice(timepoint, timepoint + 1)}
    at |= {axis: slice(*pair) for axis, pair in zip("zyx", box, strict=True)}
    data = np.asarray(array[tuple(at[axis] for axis in axes)])
    order = [axes.index(axis) for axis in "tczyx" if axis in axes]
    return data.transpose(order).reshape(tuple(stop - start for start, stop in box))


class StoredImage:
    """The raw voxels of a sample, read box by box from its store.

    Parameters
    ----------
    store : Path
        OME-Zarr folder: the imported one, or the user's own where it is read in place.
    info : ImageInfo
    """

    def __init__(self, store: Path, info: ImageInfo):
        self.info = info
        self._store = store
        self._array = zarr.open_array(str(store), path=info.array.path, mode="r")

    @property
    def chunks(self) -> tuple[int, ...]:
        """Voxels (z, y, x) that are decoded together."""
        sides = dict(zip(self.info.array.axes, self._array.chunks, strict=True))
        return tuple(sides.get(axis, 1) for axis in "zyx")

    def read(self, channel: int, box: Box) -> np.ndarray:
        """Raw values of one channel (index in the model's order) in a box -> array (z, y, x) of the store's dtype."""
        where = self.info.array
        inside = tuple((a + o, b + o) for (a, b), o in zip(box, where.offset, strict=True))
        try:
            return read_axes(self._array, where.axes, where.channels[channel], where.timepoint, inside)
        except (OSError, RuntimeError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise BadDataError(
                f"a chunk of the image cannot be decoded: {error}",
                sample=self.info.sample,
                file=self._store,
                remedy="copy the image again; if it is Voxelmill's own copy, delete its task's work folder and -resume",
            ) from error

    def values(self, channel: int, box: Box) -> np.ndarray:
        """As :meth:`read`, after the intensity rule -> float32."""
        return self.info.intensity[channel](self.read(channel, box))


def staged_image(sample: str, folder: Path) -> StoredImage:
    """A sample's image in a task's folder: ``<sample>.image.json`` there, the voxels in ``stores/``.

    An image that is read in place has no store of its own name; it is then the only one.
    """
    stores = folder / "stores"
    imported = stores / f"{sample}.image.zarr"
    store = imported if imported.exists() else next(stores.iterdir())
    return StoredImage(store, ImageInfo.load(folder / f"{sample}.image.json"))
