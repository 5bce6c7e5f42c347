"""Images and labels as a folder of TIFF files, one per plane."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from voxelmill.formats.planes import Description, Piece, PlaneWriter, not_as_written
from voxelmill.formats.tiff_writer import TiffWriter, imagej_carries, is_colour

LEAST_DIGITS = 4


class SlicesWriter(PlaneWriter):
    """A folder ``<name>_z0000.tif``, ``<name>_z0001.tif``...: as many digits as keep names in the order of z."""

    def __init__(self, path: Path, what: Description):
        channels, self._depth, height, width = what.shape
        self._plane = replace(what, shape=(channels, 1, height, width))
        self._imagej = imagej_carries(self._plane) and (channels == 1 or is_colour(what, True))
        super().__init__(path, what, interleaved=is_colour(what, self._imagej))
        path.mkdir()
        self._writer = self._open(0)
        self._next = 0

    def _open(self, z: int) -> TiffWriter:
        digits = max(LEAST_DIGITS, len(str(self._depth - 1)))
        name = f"{self.what.name or 'image'}_z{z:0{digits}d}"
        return TiffWriter(self.path / f"{name}.tif", replace(self._plane, name=name), imagej=self._imagej, ranged=False)

    def encode(self, values: np.ndarray) -> Piece:
        return self._writer.encode(values)

    def write(self, pieces: Iterator[Piece]) -> None:
        if self._next:
            self._writer = self._open(self._next)
        with self._writer:
            self._writer.write(pieces)
        self._writer.verify()
        self._next += 1

    def close(self) -> None:
        super().close()
        self._writer.close()

    def verify(self) -> None:
        found = sum(1 for _ in self.path.iterdir())
        if found != self._depth:
            raise not_as_written(self.path, f"{found} files", f"{self._depth}")
