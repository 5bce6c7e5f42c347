"""Chunked arrays: which chunks are there, and how large one may be."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from voxelmill.errors import BadDataError

MAX_CHUNK = 2 << 30


@dataclass(frozen=True)
class MissingChunks(Sequence[str]):
    """Names of the chunks of an array that are not there, in grid order.

    They are made when asked for: metadata of a few bytes can declare more of them than any list holds.
    """

    grid: tuple[int, ...]
    present: frozenset[tuple[int, ...]]
    prefix: str
    separator: str

    def __len__(self) -> int:
        return min(prod(self.grid) - len(self.present), sys.maxsize)

    def __iter__(self) -> Iterator[str]:
        for index in np.ndindex(self.grid):
            if index not in self.present:
                yield self.prefix + self.separator.join(map(str, index))

    def __getitem__(self, at: Any) -> Any:
        last = at.stop if isinstance(at, slice) else at + 1
        return list(itertools.islice(self, last))[at]


def check_chunk(chunk: Sequence[int], dtype: np.dtype, path: Path) -> None:
    """Refuse chunks that take too much memory: one is decoded whole, however little of it is wanted."""
    if prod(chunk) * dtype.itemsize > MAX_CHUNK:
        raise BadDataError(
            f"the chunks of {' x '.join(map(str, chunk))} voxels have to be decoded whole",
            file=path,
            expected=f"chunks of at most {MAX_CHUNK} bytes",
        )


NONE_MISSING = MissingChunks((), frozenset({()}), "", "")
"""For arrays without chunks."""
