"""An image source over an array, for what works on any image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxelmill.formats.base import ImageSource
from voxelmill.image import Box, slices


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
    box = tuple((0, n) for n in source.shape[1:])
    return np.stack([source.read(channel, box) for channel in range(source.shape[0])])
