"""Images and labels as NIfTI: ``.nii.gz`` as one gzip stream written plane by plane, ``.nii`` in place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from voxelmill.formats.base import NO_CHOICE
from voxelmill.formats.deflate import JoinedStream, raw_piece
from voxelmill.formats.nifti import open_nifti
from voxelmill.formats.planes import Description, Key, Piece, PlaneWriter, verify_tail

MAX_NIFTI1 = 32767
"""NIfTI-1 counts voxels along an axis in signed 16-bit numbers."""

VECTOR, LABEL = "vector", "label"

Forms = tuple[tuple[int, np.ndarray], tuple[int, np.ndarray]]

TURN = 1e-5
"""How far from a rotation the axes may be for ``qform``, which has no shears."""


class NiftiWriter(PlaneWriter):
    """One NIfTI file; channels are its fifth axis."""

    by_channel = True

    def __init__(self, path: Path, what: Description, *, compressed: bool = True):
        super().__init__(path, what)
        self._file = open(path, "wb")  # noqa: SIM115
        self._offset, head = header(what)
        self._stream: JoinedStream | None = None
        self._first = 0
        self._tail = b""
        if compressed:
            self._stream = JoinedStream(self._file, gzip=True)
            self._stream.put(raw_piece(head))
        else:
            self._file.write(head)

    def begin(self, channels: tuple[int, ...], planes: tuple[int, int]) -> None:  # type: ignore[override]
        super().begin(channels, planes)
        self._first = channels[0] * self.what.shape[1] + planes[0]

    def encode(self, values: np.ndarray) -> Piece:
        data = self.bytes_of(values)
        return Piece(data, len(data)) if self._stream is None else raw_piece(data)

    def accept(self, key: Key, piece: Piece) -> None:
        if self._stream is not None:
            super().accept(key, piece)
            return
        row = self.what.shape[3] * self.dtype.itemsize
        self._file.seek(self._offset + ((self._first + key[0]) * self.what.shape[2] + key[1]) * row)
        self._file.write(piece.data)
        self._tail = piece.data

    def write(self, pieces: Iterator[Piece]) -> None:
        if self._stream is not None:
            for piece in pieces:
                self._stream.put(piece)

    def close(self) -> None:
        super().close()
        if not self._file.closed:
            with self._file:
                if self._stream is not None:
                    self._stream.finish()

    def verify(self) -> None:
        size, tail = whole_file(self._stream, self._offset, self.what, self._tail)
        verify_tail(self.path, size, tail)
        with open_nifti(self.path, NO_CHOICE) as source:
            self.compare(source.shape, source.dtype)


def whole_file(stream: JoinedStream | None, offset: int, what: Description, tail: bytes) -> tuple[int, bytes]:
    """Bytes that a file must have, and those that it must end with."""
    if stream is not None:
        return stream.size, stream.tail
    return offset + int(np.prod(what.shape, dtype=np.int64)) * what.dtype.itemsize, tail


def file_shape(what: Description) -> tuple[int, ...]:
    """Lengths along x, y, z, and of several channels time and channel."""
    volume = tuple(reversed(what.shape[1:]))
    return volume if what.shape[0] == 1 else (*volume, 1, what.shape[0])


def header(what: Description) -> tuple[int, bytes]:
    """Bytes up to the first voxel, and those bytes; NIfTI-2 where an axis is longer than NIfTI-1 can say."""
    kind, offset = (nib.Nifti2Header, 544) if max(what.shape) > MAX_NIFTI1 else (nib.Nifti1Header, 352)
    made = kind(endianness="<")
    made.set_data_dtype(what.dtype)
    made.set_data_shape(file_shape(what))
    made.set_slope_inter(1, 0)
    made["vox_offset"] = offset
    forms, sizes = orientation(what)
    made["pixdim"][1:4] = sizes[::-1]
    if what.spacing is not None:
        made.set_xyzt_units("mm")
    if what.labels:
        made.set_intent(LABEL)
    elif what.shape[0] > 1:
        made.set_intent(VECTOR)
    (qform, turned), (sform, affine) = forms
    if qform:
        made.set_qform(turned, qform)
    if sform:
        made.set_sform(affine, sform)
    return offset, bytes(made.binaryblock) + bytes(offset - made.sizeof_hdr)


def orientation(what: Description) -> tuple[Forms, tuple[float, ...]]:
    """``qform`` and ``sform``, and the voxel size in millimetres along z, y, x for readers that look at neither.

    Those of a NIfTI input are kept as they are. Another format's affine becomes both, or ``sform`` alone where it is no
    rotation. For an image without orientation its axes are those of the space.
    """
    if what.affine is None:
        affine = np.diag([*(s / 1e3 for s in reversed(what.spacing or (1e3,) * 3)), 1.0])
        affine[:3, 3] = [o / 1e3 for o in reversed(what.origin)]
        if what.spacing is None:
            affine[:3, 3] = 0
        return ((1, affine), (1, affine)), tuple(affine.diagonal()[2::-1])
    sizes = np.linalg.norm(what.affine[:3, :3], axis=0)
    if what.forms:
        (qform, turned), (sform, stretched) = what.forms
        return ((qform, turned), (sform, stretched)), tuple(map(float, sizes[::-1]))
    axes = what.affine[:3, :3] / sizes
    rotation = np.allclose(axes.T @ axes, np.eye(3), atol=TURN)
    return ((int(rotation), what.affine), (1, what.affine)), tuple(map(float, sizes[::-1]))
