"""Pieces: what a tile sends to a block, one compressed array per cell in a zip file.

The zip keeps a checksum of every member, so that a damaged piece is an error and never a wrong label.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numcodecs import Blosc

from voxelmill.errors import TemporaryError
from voxelmill.files import atomic_path

EPOCH = (1980, 1, 1, 0, 0, 0)


class PieceWriter:
    """Adds arrays to a piece; see :func:`create_piece`."""

    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive

    def add(self, cell: str, array: np.ndarray) -> None:
        # sums share their high bytes: grouping bytes of equal weight saves about a quarter
        packed = Blosc("zstd", clevel=1, shuffle=Blosc.SHUFFLE).encode(np.ascontiguousarray(array))
        # a fixed date: the same voxels are the same bytes
        self._archive.writestr(zipfile.ZipInfo(cell, EPOCH), packed)


@contextmanager
def create_piece(path: Path) -> Iterator[PieceWriter]:
    """Write a piece; the file appears when the block ends without error."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        yield PieceWriter(archive)


class Piece:
    """Reads the arrays of a piece.

    Raises
    ------
    TemporaryError
        Where the file is absent, damaged or lacks the array: on shared storage it may become visible later.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        try:
            self._archive = zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile) as error:
            raise self._unreadable(str(error)) from error

    def read(self, cell: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        try:
            array = np.frombuffer(Blosc().decode(self._archive.read(cell)), dtype)
        except (KeyError, OSError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
            raise self._unreadable(f"cell {cell}: {error}") from error
        if array.size != math.prod(shape):
            raise self._unreadable(f"cell {cell} has {array.size} values instead of {math.prod(shape)}")
        return array.reshape(shape)

    def close(self) -> None:
        self._archive.close()

    def _unreadable(self, why: str) -> TemporaryError:
        return TemporaryError(
            f"a piece of the prediction is missing or damaged: {why}",
            file=self.path,
            remedy="run again with -resume; if it stays, delete the task's work folder that wrote the piece",
        )
