"""Small pictures of a volume that streams past: maximum projections and middle slices, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from voxelmill.files import atomic_path
from voxelmill.image import Box

AXES = "zyx"
PICTURES = tuple(f"{kind}_{axis}" for kind in ("max", "mid") for axis in AXES)
"""Keys of a picture file: ``max_z`` is the projection along z, with axes y and x; ``mid_z`` the slice at its middle."""

OBJECTS = "objects_"
"""In front of such a key: ids of objects, whose outlines part them where they touch."""


class PictureBuilder:
    """Collects the pictures of a volume from blocks that come in any order.

    Memory is that of the pictures, whatever the volume's size. Every voxel is to be given once; where none is given the
    projections keep the smallest value of the dtype (0 for unsigned labels) and the slices keep 0.

    Parameters
    ----------
    shape_zyx : tuple of int
        Voxels on z, y, x.
    channels : int
    dtype : np.dtype
        Of the volume; the pictures keep it. NaN loses against any number in a projection.
    size : int
        Pictures have at most so many pixels on a side. Each axis of the volume is reduced by the smallest integer
        factor that does: projections by the maximum of a cell, slices by its first voxel.
    """

    def __init__(self, shape_zyx: tuple[int, ...], channels: int, dtype: np.dtype, size: int = 1024):
        self.shape = shape_zyx
        self.factors = tuple(-(-n // size) for n in shape_zyx)
        self._fmax = np.fmax if np.dtype(dtype).kind == "f" else np.maximum
        cells = [-(-n // f) for n, f in zip(shape_zyx, self.factors, strict=True)]
        lowest = -np.inf if np.dtype(dtype).kind == "f" else _lowest(np.dtype(dtype))
        self._pictures = {}
        for axis in range(3):
            shape = (channels, *(n for other, n in enumerate(cells) if other != axis))
            self._pictures[f"max_{AXES[axis]}"] = np.full(shape, lowest, dtype)
            self._pictures[f"mid_{AXES[axis]}"] = np.zeros(shape, dtype)

    def update(self, box: Box, data: np.ndarray, channel: int = 0) -> None:
        """Add the voxels of one block.

        Parameters
        ----------
        box : Box
            Where the block lies in the volume.
        data : np.ndarray
            Its voxels (z, y, x).
        channel : int
        """
        for axis in range(3):
            plane = [other for other in range(3) if other != axis]
            self._project(axis, plane, box, data, channel)
            middle = self.shape[axis] // 2 - box[axis][0]
            if 0 <= middle < data.shape[axis]:
                self._cut(axis, plane, box, data.take(middle, axis), channel)

    def _project(self, axis: int, plane: list[int], box: Box, data: np.ndarray, channel: int) -> None:
        reduced = self._fmax.reduce(data, axis=axis)
        target: list[slice] = []
        for position, other in enumerate(plane):
            (start, stop), factor = box[other], self.factors[other]
            first, last = start // factor, (stop - 1) // factor + 1
            edges = np.maximum(np.arange(first, last) * factor, start) - start
            reduced = self._fmax.reduceat(reduced, edges, axis=position)
            target.append(slice(first, last))
        picture = self._pictures[f"max_{AXES[axis]}"][channel][tuple(target)]
        self._fmax(picture, reduced, out=picture)

    def _cut(self, axis: int, plane: list[int], box: Box, cut: np.ndarray, channel: int) -> None:
        source, target = [], []
        for other in plane:
            (start, stop), factor = box[other], self.factors[other]
            first, last = -(-start // factor), (stop - 1) // factor + 1
            source.append(slice(first * factor - start, None, factor))
            target.append(slice(first, last))
        self._pictures[f"mid_{AXES[axis]}"][channel][tuple(target)] = cut[tuple(source)]

    def arrays(self) -> dict[str, np.ndarray]:
        """All of `PICTURES`, each (channels, height, width) with the two remaining axes in z, y, x order."""
        return dict(self._pictures)


def stretch(arrays: Mapping[str, np.ndarray], low: float = 0.5, high: float = 99.8) -> dict[str, np.ndarray]:
    """Grey values for a screen: percentiles of each channel become 0 and 255.

    Projections are brighter than slices and are stretched by their own percentiles.

    Parameters
    ----------
    arrays : mapping
        Result of `PictureBuilder.arrays`.
    low, high : float
        Percentiles (0-100) of the finite pixels.

    Returns
    -------
    dict
        The pictures as uint8 of the same shapes and ``limits``, float64 (channels, 2, 2): the values shown as black and
        as white, of the slices ``[:, 0]`` and of the projections ``[:, 1]``.
    """
    channels = len(arrays["mid_z"])
    limits = np.zeros((channels, 2, 2))
    stretched = {name: np.zeros(arrays[name].shape, np.uint8) for name in PICTURES}
    for row, kind in enumerate(("mid", "max")):
        names = [f"{kind}_{axis}" for axis in AXES]
        for channel in range(channels):
            pixels = np.concatenate([arrays[name][channel].ravel() for name in names]).astype(np.float64)
            pixels = pixels[np.isfinite(pixels)]
            black, white = np.percentile(pixels, (low, high)) if pixels.size else (0.0, 0.0)
            limits[channel, row] = black, white
            for name in names:
                grey = (arrays[name][channel].astype(np.float64) - black) * (255 / ((white - black) or 1.0))
                stretched[name][channel] = np.clip(np.nan_to_num(grey), 0, 255).round().astype(np.uint8)
    return {**stretched, "limits": limits}


def save_pictures(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write pictures as a compressed ``.npz``, whole or not at all."""
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(handle, allow_pickle=False, **arrays)


def _lowest(dtype: np.dtype) -> int:
    return 0 if dtype.kind == "b" else int(np.iinfo(dtype).min)
