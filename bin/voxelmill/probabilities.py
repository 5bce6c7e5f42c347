"""Probabilities as integers: what softmax or sigmoid makes of logits, in equal steps from 0 to 1.

A probability is ``value / largest_step``, rounded to the nearest step: 254 steps in 8 bits, 65,534 in 16. The largest
integer of the type is left free; in a store it marks what was never written. The logits of a voxel do not depend on
how a volume is cut, and here every voxel takes the same operations of NumPy on contiguous arrays, whichever process
finishes it: integers are the same for any partition.
"""

from __future__ import annotations

import functools
import operator

import numpy as np

from voxelmill.plan import Cell

MEMBER_TYPE = "uint16"
"""Type in which the models that are averaged keep their probabilities."""

STORED_BYTES = {"uint8": 0.4, "uint16": 1.5}
"""What a probability takes on disk with its share of the pyramid; measured on a trained model: 0.32 and 1.26."""

BAND = 2**16
"""Voxels that are worked on at once, which bounds the memory of the steps between."""


def largest_step(dtype: str) -> int:
    """The integer that stands for a probability of 1."""
    return int(np.iinfo(dtype).max) - 1


def probability_member(cell: Cell) -> str:
    """Name of a finished cell's probabilities in its piece."""
    return f"{cell.name}.probabilities"


def quantised(logits: np.ndarray, regions: bool, dtype: str) -> np.ndarray:
    """Probabilities of every head.

    Parameters
    ----------
    logits : ndarray of float64, shape (heads, ...)
    regions : bool
        Each head is a region of its own (sigmoid); otherwise heads are classes that exclude each other (softmax).
    dtype : str
        ``uint8`` or ``uint16``.

    Returns
    -------
    ndarray of ``dtype``, shape of ``logits``
    """
    flat = logits.reshape(len(logits), -1)
    result = np.empty(flat.shape, dtype)
    for start in range(0, flat.shape[1], BAND):
        part = flat[:, start : start + BAND].copy()
        likely = sigmoid(part) if regions else softmax(part)
        likely *= largest_step(dtype)
        likely += 0.5
        result[:, start : start + BAND] = likely
    return result.reshape(logits.shape)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the first axis, in place."""
    logits -= logits.max(axis=0)
    np.exp(logits, out=logits)
    # head by head: NumPy's own sum groups its terms by the shape of the array
    logits /= functools.reduce(operator.add, logits)
    return logits


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Of every value, in place."""
    np.negative(logits, out=logits)
    with np.errstate(over="ignore"):
        np.exp(logits, out=logits)
    logits += 1
    return np.reciprocal(logits, out=logits)


def background(head: int, regions: bool, dtype: str) -> int:
    """Value of a head where no window reaches: nnU-Net's background for certain, and no region."""
    return largest_step(dtype) if head == 0 and not regions else 0
