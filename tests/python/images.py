"""What tests of images share: small images, an image source over an array, all voxels of one, boxes of every kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxelmill.formats.base import ImageSource
from voxelmill.image import Box, slices, whole


@dataclass(kw_only=True)
class ArraySource(ImageSource):
    """Channels, z, y, x of an array."""

    array: np.ndarray

    def _read(self, channel: int, box: Box) -> np.ndarray:
        return self.array[(channel, *slices(box))]


def source_of(array: np.ndarray, **known: Any) -> ArraySource:
    """A source of an array (z, y, x or channels, z, y, x) with a spacing of one micrometre unless told."""
    array = array if array.ndim == 4 else array[None]
    known = {"spacing": (1.0, 1.0, 1.0), "axes": "czyx", "path": Path("array"), "format": "array", **known}
    return ArraySource(shape=array.shape, dtype=array.dtype, array=array, **known)


def all_of(source: ImageSource) -> np.ndarray:
    """Channels, z, y, x in one array."""
    return np.stack([source.read(channel, whole(source.shape[1:])) for channel in range(source.shape[0])])


def assert_boxes_equal(source: ImageSource, data: np.ndarray) -> None:
    """Boxes of every kind (edges, one voxel, none) equal slices of the whole, in any order."""
    rng = np.random.default_rng(1)
    for _ in range(12):
        ends = [sorted(rng.integers(0, n + 1, 2)) for n in data.shape[1:]]
        channel = int(rng.integers(data.shape[0]))
        box = tuple((int(a), int(b)) for a, b in ends)
        part = source.read(channel, box)
        np.testing.assert_array_equal(part, data[channel][slices(box)])
        assert part.dtype == source.dtype and part.dtype.isnative


def noise(shape: tuple[int, ...], dtype: str = "u2") -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 120, shape)
    return (values > 60) if dtype == "b1" else values.astype(dtype)
