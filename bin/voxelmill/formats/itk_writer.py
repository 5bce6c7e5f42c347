"""Images and labels as ITK's own formats, compressed: MetaImage (zlib) and NRRD (gzip), with direction and origin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from voxelmill.formats.deflate import JoinedStream, raw_piece
from voxelmill.formats.metaimage import open_metaimage
from voxelmill.formats.nrrd import open_nrrd
from voxelmill.formats.planes import Description, Piece, PlaneWriter, verify_tail
from voxelmill.formats.world import LPS

MET_TYPES = {
    "int8": "MET_CHAR", "uint8": "MET_UCHAR", "int16": "MET_SHORT", "uint16": "MET_USHORT", "int32": "MET_INT",
    "uint32": "MET_UINT", "int64": "MET_LONG_LONG", "uint64": "MET_ULONG_LONG", "float32": "MET_FLOAT",
    "float64": "MET_DOUBLE",
}  # fmt: skip
NRRD_TYPES = {
    "int8": "int8", "uint8": "uint8", "int16": "int16", "uint16": "uint16", "int32": "int32", "uint32": "uint32",
    "int64": "int64", "uint64": "uint64", "float32": "float", "float64": "double",
}  # fmt: skip

SIZE_DIGITS = 20
"""The header says how long the compressed voxels are, and is written before them."""


class ItkWriter(PlaneWriter):
    """One MetaImage or NRRD file; the channels of a voxel lie together.

    Parameters
    ----------
    path : Path
    what : Description
    nrrd : bool
        NRRD, else MetaImage.
    """

    def __init__(self, path: Path, what: Description, *, nrrd: bool):
        super().__init__(path, what, interleaved=True)
        self._nrrd = nrrd
        self._file = open(path, "wb")  # noqa: SIM115
        self._start = self._file.write(nrrd_header(what) if nrrd else metaimage_header(what, 0))
        self._stream = JoinedStream(self._file, gzip=nrrd)

    def encode(self, values: np.ndarray) -> Piece:
        return raw_piece(self.bytes_of(values), adler=not self._nrrd)

    def write(self, pieces: Iterator[Piece]) -> None:
        for piece in pieces:
            self._stream.put(piece)

    def close(self) -> None:
        super().close()
        if self._file.closed:
            return
        with self._file:
            self._stream.finish()
            if not self._nrrd:
                self._file.seek(0)
                self._file.write(metaimage_header(self.what, self._stream.size))

    def verify(self) -> None:
        verify_tail(self.path, self._start + self._stream.size, self._stream.tail)
        with open_nrrd(self.path) if self._nrrd else open_metaimage(self.path) as source:
            self.compare(source.shape, source.dtype)


def metaimage_header(what: Description, size: int) -> bytes:
    """MetaImage's lines; the same length for every size of the compressed voxels."""
    fields = {"ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False"}
    fields |= {"CompressedData": "True", "CompressedDataSize": f"{size:0{SIZE_DIGITS}d}"}
    if what.spacing is not None:
        steps, position = placement(what)
        sizes = np.linalg.norm(steps, axis=0)
        fields["TransformMatrix"] = text((steps / sizes).T.ravel())
        fields |= {"Offset": text(position), "CenterOfRotation": "0 0 0", "ElementSpacing": text(sizes)}
        fields["DistanceUnits"] = "mm"
    fields["DimSize"] = " ".join(map(str, reversed(what.shape[1:])))
    if what.shape[0] > 1:
        fields["ElementNumberOfChannels"] = str(what.shape[0])
    fields |= {"ElementType": MET_TYPES[what.dtype.name], "ElementDataFile": "LOCAL"}
    return "".join(f"{key} = {value}\n" for key, value in fields.items()).encode()


def nrrd_header(what: Description) -> bytes:
    """NRRD's lines, with the empty one behind them."""
    channels = what.shape[0]
    sizes = [*([channels] if channels > 1 else []), *reversed(what.shape[1:])]
    kind = ["RGB-color" if what.rgb and channels == 3 else "vector"] if channels > 1 else []
    lines = ["NRRD0005", f"type: {NRRD_TYPES[what.dtype.name]}", f"dimension: {len(sizes)}"]
    if what.spacing is not None:
        lines += ["space: left-posterior-superior"]
    lines += [f"sizes: {' '.join(map(str, sizes))}"]
    if what.spacing is not None:
        steps, position = placement(what)
        vectors = [f"({','.join(map(repr, column.tolist()))})" for column in steps.T]
        lines += [f"space directions: {' '.join([*(['none'] if kind else []), *vectors])}"]
    lines += [f"kinds: {' '.join([*kind, 'domain', 'domain', 'domain'])}", "endian: little", "encoding: gzip"]
    if what.spacing is not None:
        lines += ['space units: "mm" "mm" "mm"', f"space origin: ({','.join(map(repr, position.tolist()))})"]
    return "\n".join([*lines, "", ""]).encode()


def placement(what: Description) -> tuple[np.ndarray, np.ndarray]:
    """Where voxels lie in ITK's world, which counts to the left, to the back and up, in millimetres.

    Returns
    -------
    numpy.ndarray
        3 x 3: a column per voxel axis x, y, z.
    numpy.ndarray
        Centre of the first voxel.
    """
    if what.affine is not None:
        # Zeros stay zeros without a sign, so that headers of unturned images read well.
        turned = np.diag(LPS) @ what.affine[:3] + 0.0
        return turned[:, :3], turned[:, 3]
    assert what.spacing is not None
    steps = np.diag([s / 1e3 for s in reversed(what.spacing)])
    return steps, np.array([o / 1e3 for o in reversed(what.origin)])


def text(values: Iterable[float]) -> str:
    return " ".join(repr(float(value)) for value in values)
