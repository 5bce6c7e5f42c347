"""Two label volumes of one shape, read side by side in boxes of whole chunks: neither is ever held."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from voxelmill.errors import BadDataError
from voxelmill.formats.base import ImageSource
from voxelmill.image import Box, cut_box, whole

BOX_VOXELS = 1 << 24
"""Voxels of a box where memory allows: more are not faster."""

VOXEL_BYTES = 192
"""What a voxel of a box takes at most: both labels as they are read and as int64, those of the box that is read ahead,
and every second voxel a surface."""

LARGEST = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Part:
    """A box of both volumes, with a margin of one voxel wherever the volume goes on.

    Attributes
    ----------
    box : Box
        What is counted, in voxels of the sample.
    margin : tuple of int
        Voxels along z, y, x before the box's first.
    predicted, truth : (z, y, x) int64
        Box and margins, contiguous.
    """

    box: Box
    margin: tuple[int, int, int]
    predicted: np.ndarray
    truth: np.ndarray

    @property
    def inside(self) -> tuple[int, ...]:
        """First and last voxels of the box in the arrays: z0, z1, y0, y1, x0, x1."""
        return tuple(
            bound
            for (start, stop), margin in zip(self.box, self.margin, strict=True)
            for bound in (margin, margin + stop - start)
        )


def read_parts(
    predicted: ImageSource, truth: ImageSource, ignore: int | None, voxels: int = BOX_VOXELS
) -> Iterator[Part]:
    """All of two volumes; while one box is worked on, the next is read.

    Parameters
    ----------
    predicted, truth : ImageSource
        Of one shape, one channel each.
    ignore : int or None
        The truth's value for voxels that count nowhere; it alone may be negative.
    voxels : int
        Of a box, unless a single row has more.

    Raises
    ------
    BadDataError
        Where a label is negative, or too large for a signed number of 64 bits.
    """
    shape = truth.shape[1:]

    def read(box: Box) -> Part:
        around = tuple((max(0, a - 1), min(n, b + 1)) for (a, b), n in zip(box, shape, strict=True))
        z, y, x = (a - c for (a, _), (c, _) in zip(box, around, strict=True))
        return Part(
            box,
            (z, y, x),
            labels_of(predicted, around, None),
            labels_of(truth, around, ignore),
        )

    # One thread reads both, so that no reader is used by two.
    with ThreadPoolExecutor(1) as pool:
        ahead: Future[Part] | None = None
        for box in reading_boxes(shape, (predicted.chunk, truth.chunk), voxels):
            previous, ahead = ahead, pool.submit(read, box)
            if previous is not None:
                yield previous.result()
        if ahead is not None:
            yield ahead.result()


def labels_of(source: ImageSource, box: Box, ignore: int | None) -> np.ndarray:
    """Labels of a box as int64; see `read_parts`."""
    labels = source.read(0, box)
    if labels.size and labels.dtype.kind == "u" and labels.dtype.itemsize == 8 and labels.max() > LARGEST:
        raise bad_label(source, int(labels.max()))
    signed = labels.dtype.kind == "i"
    labels = np.ascontiguousarray(labels, dtype=np.int64)
    if signed and labels.size:
        negative = labels[labels < 0]
        wrong = negative if ignore is None else negative[negative != ignore]
        if wrong.size:
            raise bad_label(source, int(wrong.min()))
    return labels


def bad_label(source: ImageSource, value: int) -> BadDataError:
    return BadDataError(
        f"the label {value}",
        file=source.path.name,
        expected=f"whole numbers from 0, the background, to {LARGEST}",
        remedy="number the labels from 1; --ignore_label for a value of the truth whose voxels count nowhere",
    )


def reading_boxes(shape: Sequence[int], chunks: Sequence[Sequence[int]], voxels: int) -> list[Box]:
    """Boxes that fill a volume in z, y, x order, of whole chunks of all files where these are small enough.

    Parameters
    ----------
    shape : sequence of int
        z, y, x.
    chunks : sequence of sequence of int
        Of each file.
    voxels : int
        A box has no more of them. Rows are cut last: a box is as wide as the volume where its chunks allow.
    """
    side = []
    for n, lengths in zip(shape, zip(*chunks, strict=True), strict=True):
        common = math.lcm(*lengths)
        side.append(min(n, common if common <= 4 * max(lengths) else max(lengths)))
    for axis in range(3):
        others = math.prod(side) // side[axis]
        if side[axis] * others > voxels:
            side[axis] = max(1, voxels // others)
    for axis in (2, 1, 0):
        others = math.prod(side) // side[axis]
        times = max(1, voxels // (others * side[axis]))
        side[axis] = min(shape[axis], side[axis] * times)
    return cut_box(whole(shape), side)
