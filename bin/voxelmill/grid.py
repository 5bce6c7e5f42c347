"""The grid on which the labels of one sample are kept: shards, and the blocks of shards that tasks work on.

Axis order z, y, x everywhere. What comes before (windows, tiles, the network's axes) is the business of `plan`; all
that comes after the semantic labels needs this grid alone, whether labels were predicted or given.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from voxelmill.files import read_json, write_json
from voxelmill.image import Box, cut_box, whole

PREDICTED, SEMANTIC, INSTANCES, SEPARATED = "predicted", "semantic", "instances", "separated"
"""Where the labels come from: the network, a label image or an instance image of the user, or the separation of objects
that touch. The last two hold an id at every voxel of an object."""


@dataclass(frozen=True)
class LabelGrid:
    """Contents of ``<sample>.grid.json``.

    Attributes
    ----------
    sample : str
    shape : tuple of int
        Voxels.
    spacing, origin : tuple of float
        Voxel size and position of the first voxel, in micrometres, or in voxels where `unit` is ``pixel``.
    unit : str
        ``um`` or ``pixel``.
    shard : tuple of int
        Voxels of a shard; those at the end of an axis are cut off.
    cuts : tuple of tuple of int
        Borders of the blocks on every axis, from 0 to the axis' size.
    reached : tuple of int
        Numbers of the blocks that have files. All others are background.
    values : tuple of int
        Classes, without the background; of given instances one class for all. See `class_of` for separated objects.
    label_names : dict
        Value as text -> name of the class; ``0`` is the background.
    windows : int
        Windows of the network's grid; 0 for given labels.
    kind : str
        ``predicted``, ``semantic`` or ``instances`` for given labels, ``separated`` for ids of objects that touch.
    dtype : str
        Of the blocks' arrays. Its largest value marks voxels that were never written, and is never a label.
    """

    sample: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    unit: str
    shard: tuple[int, ...]
    cuts: tuple[tuple[int, ...], ...]
    reached: tuple[int, ...]
    values: tuple[int, ...]
    label_names: dict[str, str]
    windows: int
    kind: str
    dtype: str

    @property
    def voxels(self) -> int:
        return math.prod(self.shape)

    @property
    def has_ids(self) -> bool:
        """Whether a voxel holds the id of its object, and not its class."""
        return self.kind in (INSTANCES, SEPARATED)

    def class_of(self, ids: np.ndarray) -> np.ndarray:
        """Class of objects by their ids: ids of one class are equal modulo the number of classes."""
        return np.array(self.values)[(ids - 1) % len(self.values)]

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks along every axis."""
        return tuple(len(cuts) - 1 for cuts in self.cuts)

    def number(self, index: Sequence[int]) -> int:
        """Number of the block at a position of the grid of blocks, counted in z, y, x order."""
        return int(np.ravel_multi_index(tuple(index), self.blocks))

    def index(self, number: int) -> tuple[int, ...]:
        """Inverse of :meth:`number`."""
        return tuple(map(int, np.unravel_index(number, self.blocks)))

    def block_box(self, number: int) -> Box:
        return tuple((cuts[i], cuts[i + 1]) for cuts, i in zip(self.cuts, self.index(number), strict=True))

    def block_name(self, number: int) -> str:
        """Folder of a block's labels."""
        return f"{self.sample}.b{number}.zarr"

    def shards_of(self, number: int) -> list[Box]:
        """Boxes of a block's shards, in z, y, x order."""
        return cut_box(self.block_box(number), self.shard)

    def shard_boxes(self) -> list[Box]:
        """Boxes of all shards, in z, y, x order."""
        return cut_box(whole(self.shape), self.shard)

    def shard_index(self, box: Box) -> tuple[int, ...]:
        """Position of a shard on the grid of all shards."""
        return tuple(start // side for (start, _), side in zip(box, self.shard, strict=True))

    def block_of(self, box: Box) -> int:
        """Number of the block that a shard lies in."""
        return self.number(
            [bisect.bisect_right(cuts, start) - 1 for cuts, (start, _) in zip(self.cuts, box, strict=True)]
        )

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> LabelGrid:
        value = read_json(path)
        flat = ("shape", "spacing", "origin", "shard", "reached", "values")
        return cls(
            **{**value, **{name: tuple(value[name]) for name in flat}, "cuts": tuple(tuple(c) for c in value["cuts"])}
        )


def shard_shape(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Shard of the output (z, y, x): a cube, or for a single plane a square of eight times its side."""
    return (1, 8 * size, 8 * size) if shape[0] == 1 else (size, size, size)


def shard_cuts(size: int, shard: int, flipped: bool) -> tuple[int, ...]:
    """Borders of the shards on an axis, from 0 to its size; counted from its end where it is flipped."""
    cuts = [*range(0, size, shard), size]
    return tuple(size - cut for cut in reversed(cuts)) if flipped else tuple(cuts)


def block_cuts(shards: tuple[int, ...], target: float, thinnest: float) -> tuple[int, ...]:
    """Join whole shards into blocks of ``target`` voxels; a remainder below ``thinnest`` joins its neighbour."""
    cuts = [0]
    for cut in shards[1:]:
        if cut - cuts[-1] >= target:
            cuts.append(cut)
    if cuts[-1] != shards[-1]:
        if shards[-1] - cuts[-1] < thinnest and len(cuts) > 1:
            cuts.pop()
        cuts.append(shards[-1])
    return tuple(cuts)


def label_dtype(largest: int) -> str:
    """The smallest unsigned type that holds labels up to ``largest`` and, beyond them, its own largest value."""
    return next(name for name in ("uint8", "uint16", "uint32", "uint64") if largest < np.iinfo(name).max)
