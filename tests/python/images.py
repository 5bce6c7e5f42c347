"""What tests of readers share: small images, all voxels of one, boxes of every kind."""

from __future__ import annotations

import numpy as np

from voxelmill.formats.base import ImageSource


def whole(source: ImageSource) -> np.ndarray:
    """All voxels, channels first."""
    box = tuple((0, n) for n in source.shape[1:])
    return np.stack([source.read(channel, box) for channel in range(source.shape[0])])


def assert_boxes_equal(source: ImageSource, data: np.ndarray) -> None:
    """Boxes of every kind (edges, one voxel, none) equal slices of the whole, in any order."""
    rng = np.random.default_rng(1)
    for _ in range(12):
        ends = [sorted(rng.integers(0, n + 1, 2)) for n in data.shape[1:]]
        channel = int(rng.integers(data.shape[0]))
        box = tuple((int(a), int(b)) for a, b in ends)
        part = source.read(channel, box)
        np.testing.assert_array_equal(part, data[channel][tuple(slice(a, b) for a, b in box)])
        assert part.dtype == source.dtype and part.dtype.isnative


def noise(shape: tuple[int, ...], dtype: str = "u2") -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 120, shape)
    return (values > 60) if dtype == "b1" else values.astype(dtype)
