"""Archives: files between tasks that hold many named arrays, each compressed, in one zip file.

The zip keeps a checksum of every member, so that a damaged archive is an error and never a wrong label. A prediction's
pieces are archives, and so are the tables of a block's components.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numcodecs import Blosc
from numpy.typing import DTypeLike

from voxelmill.errors import TemporaryError
from voxelmill.files import atomic_path

EPOCH = (1980, 1, 1, 0, 0, 0)


class ArchiveWriter:
    """Adds arrays to an archive; see :func:`create_archive`."""

    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive

    def add(self, name: str, array: np.ndarray) -> None:
        """Add an array; a member holds at most 2 GB."""
        # sums and ids share their high bytes: grouping bytes of equal weight saves about a quarter
        packed = Blosc("zstd", clevel=1, shuffle=Blosc.SHUFFLE).encode(np.ascontiguousarray(array))
        # a fixed date: the same voxels are the same bytes
        self._archive.writestr(zipfile.ZipInfo(name, EPOCH), packed)


@contextmanager
def create_archive(path: Path) -> Iterator[ArchiveWriter]:
    """Write an archive; the file appears when the block ends without error."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        yield ArchiveWriter(archive)


class Archive:
    """Reads the arrays of an archive.

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

    def read(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        try:
            array = np.frombuffer(Blosc().decode(self._archive.read(name)), dtype)
        except (KeyError, OSError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
            raise self._unreadable(f"{name}: {error}") from error
        if array.size != math.prod(shape):
            raise self._unreadable(f"{name} has {array.size} values instead of {math.prod(shape)}")
        return array.reshape(shape)

    def close(self) -> None:
        self._archive.close()

    def _unreadable(self, why: str) -> TemporaryError:
        return TemporaryError(
            f"a file between two tasks is missing or damaged: {why}",
            file=self.path,
            remedy="run again with -resume; if it stays, delete the task's work folder that wrote the file",
        )
