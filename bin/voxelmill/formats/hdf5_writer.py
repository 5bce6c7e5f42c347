"""Images and labels as HDF5: one chunked dataset, compressed outside the library, in threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import imagecodecs
import numpy as np
from numcodecs import Fletcher32, Shuffle

from voxelmill.formats.deflate import level_of
from voxelmill.formats.planes import Description, ImageWriter, Key, Piece, Spool, not_as_written
from voxelmill.image import Box, cut_box, whole

DATASET = "image"
CHUNK = (8, 64, 256)
"""Voxels along z, y, x: whole rows of chunks come in the bands of the other writers."""


class Hdf5Writer(ImageWriter):
    """One HDF5 file: dataset ``/image`` with the attribute ``element_size_um`` (z, y, x) and named dimensions."""

    def __init__(self, path: Path, what: Description):
        super().__init__(path, what)
        self._chunk = tuple(min(c, n) for c, n in zip(CHUNK, what.shape[1:], strict=True))
        self.depth, self.rows = self._chunk[:2]
        self._level = level_of(what.labels)
        self._spool: Spool | None = None
        self._shuffle = Shuffle(self.dtype.itemsize)
        channels = [what.shape[0]] if what.shape[0] > 1 else []
        self._file = h5py.File(path, "w", libver=("earliest", "v110"))
        try:
            self._data = self._file.create_dataset(
                DATASET,
                shape=(*channels, *what.shape[1:]),
                dtype=self.dtype,
                chunks=(*([1] if channels else []), *self._chunk),
                compression="gzip",
                compression_opts=self._level,
                shuffle=True,
                fletcher32=True,
            )
            self._describe("czyx" if channels else "zyx")
        except BaseException:
            self._file.close()
            raise

    def _describe(self, axes: str) -> None:
        for index, axis in enumerate(axes):
            self._data.dims[index].label = axis
        if self.what.spacing is not None:
            self._data.attrs["element_size_um"] = np.array(self.what.spacing, np.float64)
            if any(self.what.origin):
                self._data.attrs["origin_um"] = np.array(self.what.origin, np.float64)
        if self.what.channel_names:
            self._data.attrs["channel_names"] = [str(name) for name in self.what.channel_names]

    def begin(self, channels: Sequence[int], planes: tuple[int, int]) -> None:
        layers = -(-(planes[1] - planes[0]) // self.depth)
        self._first, self._channels = planes[0], len(channels)
        self._spool = Spool(layers * self._channels, self.path.parent)
        self._keys: list[list[Key]] = [[] for _ in range(self._spool.planes)]

    def cut(self, channels: Sequence[int], box: Box, values: Sequence[np.ndarray]) -> Iterator[tuple[Key, np.ndarray]]:
        for channel, array in zip(channels, values, strict=True):
            for at in cut_box(whole(array.shape), self._chunk):
                key = (channel, *(start + first for (start, _), (first, _) in zip(box, at, strict=True)))
                yield key, array[tuple(slice(*pair) for pair in at)]

    def encode(self, values: np.ndarray) -> Piece:
        chunk = np.zeros(self._chunk, self.dtype)
        chunk[tuple(slice(0, n) for n in values.shape)] = values
        shuffled = bytes(self._shuffle.encode(chunk))
        packed = imagecodecs.deflate_encode(shuffled, level=self._level)
        return Piece(bytes(Fletcher32().encode(packed)), chunk.nbytes)

    def accept(self, key: Key, piece: Piece) -> None:
        plane = (key[1] - self._first) // self.depth * self._channels + key[0]
        assert self._spool is not None
        self._keys[plane].append(key)
        self._spool.add(plane, piece)

    def flush(self) -> None:
        assert self._spool is not None
        # Layer after layer, whatever slabs they came in: the chunks' order in the file is always the same.
        for plane, keys in enumerate(self._keys):
            for key, piece in zip(keys, self._spool.pieces(plane), strict=True):
                self._data.id.write_direct_chunk(key if self._data.ndim == 4 else key[1:], piece.data)
        self._spool.close()

    def close(self) -> None:
        if self._spool is not None:
            self._spool.close()
        self._file.close()

    def verify(self) -> None:
        try:
            with h5py.File(self.path, "r") as file:
                found, dtype = file[DATASET].shape, file[DATASET].dtype
                file[DATASET][tuple(slice(n - 1, n) for n in found)]
        except OSError as error:
            raise not_as_written(self.path, f"what cannot be read: {error}", "an HDF5 file") from error
        self.compare(found if len(found) == 4 else (1, *found), dtype)
