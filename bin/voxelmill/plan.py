"""The plan of one sample: nnU-Net's global window grid and its partition into blocks, tiles and pieces.

Arithmetic only, and deterministic. Everything that later tasks must agree on is decided here, per axis, because every
region of the plan is a product of intervals:

* the *network grid* is the source grid transposed, flipped, cropped to its non-zero box and resampled to the model's
  spacing; *windows* lie on it exactly as nnU-Net lays them over the whole volume;
* *shards* and *blocks* cut the source grid; a *tile* is the set of windows whose centres map into one block;
* a *segment* is an interval of source voxels that the same tiles reach, inside one shard; the product of three
  segments is a *cell*. A cell that one tile alone reaches is finished by that tile; to any other cell each tile that
  reaches it sends its partial sums. A *piece* is the file with all that one tile sends to one block.

Source of the window grid: ``compute_steps_for_sliding_window`` and ``pad_nd_image`` of nnU-Net 2.8.1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from voxelmill.files import read_json, write_json
from voxelmill.grid import PREDICTED, LabelGrid, label_dtype
from voxelmill.image import Box
from voxelmill.model.resample import Resampling

Index = tuple[int, ...]


@dataclass(frozen=True)
class Segment:
    """Source voxels [start, stop) of one shard that tiles ``first``..``last`` (inclusive) of this axis reach.

    ``footprint`` is the interval of the network grid that their values are interpolated from.
    """

    start: int
    stop: int
    shard: int
    block: int
    first: int
    last: int
    footprint: tuple[int, int]


@dataclass(frozen=True)
class Axis:
    """One axis of the network, first to last as the network sees them.

    Attributes
    ----------
    source : int
        Source axis: 0 is z, 1 is y, 2 is x.
    flipped : bool
        Whether it runs against the source axis. All positions here are counted along the network's direction.
    size : int
        Voxels of the source.
    crop : (int, int)
        Non-zero box, in source voxels.
    length, patch : int
        Voxels of the network grid, and of one window.
    starts : tuple of int
        First network voxel of every window; negative where nnU-Net pads the volume to one patch.
    data, logits : Resampling
        How the image comes to the network grid and how the logits come back.
    shards, blocks : tuple of int
        Cuts of the source, from 0 to ``size``; blocks are whole shards.
    slab : int or None
        Thickest segment.
    """

    source: int
    flipped: bool
    size: int
    crop: tuple[int, int]
    length: int
    patch: int
    starts: tuple[int, ...]
    data: Resampling
    logits: Resampling
    shards: tuple[int, ...]
    blocks: tuple[int, ...]
    slab: int | None

    @cached_property
    def tiles(self) -> tuple[tuple[int, int], ...]:
        """Windows [first, last) of every block's tile; empty where no window centre falls into the block."""
        centres = (np.array(self.starts) + self.patch / 2) * (self.cropped / self.length) + self.crop[0]
        centres = np.clip(centres, self.crop[0], self.crop[1] - 0.5)
        cuts = np.searchsorted(centres, self.blocks)
        return tuple((int(a), int(b)) for a, b in itertools.pairwise(cuts))

    @property
    def cropped(self) -> int:
        return self.crop[1] - self.crop[0]

    def reach(self, tile: int) -> tuple[int, int]:
        """Network voxels that the windows of a tile touch."""
        first, last = self.tiles[tile]
        return max(0, self.starts[first]), min(self.length, self.starts[last - 1] + self.patch)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """Segments of the cropped source, in order."""
        voxels = np.arange(self.crop[0], self.crop[1])
        low, high = self.logits.footprint(voxels - self.crop[0], self.cropped, self.length)
        busy = np.array([i for i, (a, b) in enumerate(self.tiles) if b > a])
        reach = np.array([self.reach(i) for i in busy])
        first = np.searchsorted(reach[:, 1], low, side="right")
        last = np.searchsorted(reach[:, 0], high - 1, side="right") - 1
        shard = np.searchsorted(self.shards, voxels, side="right") - 1
        key = np.stack([shard, first, last])
        if self.slab is not None:
            key = np.concatenate([key, [(voxels - np.array(self.shards)[shard]) // self.slab]])
        changes = np.flatnonzero((np.diff(key) != 0).any(axis=0)) + 1
        bounds = [0, *changes.tolist(), len(voxels)]
        return tuple(
            Segment(
                start=int(voxels[a]),
                stop=int(voxels[b - 1]) + 1,
                shard=int(shard[a]),
                block=int(np.searchsorted(self.blocks, voxels[a], side="right") - 1),
                first=int(busy[first[a]]),
                last=int(busy[last[a]]),
                footprint=(int(low[a]), int(high[b - 1])),
            )
            for a, b in itertools.pairwise(bounds)
        )


@dataclass(frozen=True)
class Cell:
    """Product of three segments (network axis order)."""

    index: Index
    segments: tuple[Segment, ...]

    @property
    def name(self) -> str:
        return "_".join(map(str, self.index))

    @property
    def box(self) -> Box:
        """Source voxels, network axis order."""
        return tuple((s.start, s.stop) for s in self.segments)

    @property
    def footprint(self) -> Box:
        """Network voxels."""
        return tuple(s.footprint for s in self.segments)

    @property
    def tiles(self) -> list[Index]:
        """Tiles that reach the cell."""
        return list(itertools.product(*(range(s.first, s.last + 1) for s in self.segments)))

    @property
    def finished(self) -> bool:
        """Whether one tile alone reaches the cell."""
        return all(s.first == s.last for s in self.segments)


@dataclass(frozen=True)
class Plan:
    """Contents of ``<sample>.plan.json``, or ``<sample>.m<member>.plan.json``.

    ``normalization`` holds, per channel, the scheme's name and the numbers it needs; ``mirror_axes`` are spatial
    axes of the network that test-time mirroring flips. ``probabilities`` is the type in which the probabilities of the
    heads are kept (``uint8`` or ``uint16``), None where only labels are wanted. ``member`` is the model's number, from
    1, where several are averaged, else 0. ``sums`` is where the sums of logits lie: ``device``, where the network runs,
    or ``host``; their bits are the same. ``gpu_memory_bytes`` is what a task needs of the GPU's memory, 0 on the CPU.
    """

    sample: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    unit: str
    origin: tuple[float, ...]
    shard: tuple[int, ...]
    axes: tuple[Axis, ...]
    patch_size: tuple[int, ...]
    heads: int
    regions_class_order: tuple[int, ...] | None
    values: tuple[int, ...]
    label_names: dict[str, str]
    normalization: tuple[dict[str, Any], ...]
    mirror_axes: tuple[int, ...]
    folds: tuple[str, ...]
    step_size: float
    device: str
    engine: str
    threads: int
    batch: int
    memory_bytes: int
    window_seconds: float
    probabilities: str | None = None
    member: int = 0
    sums: str = "device"
    gpu_memory_bytes: int = 0

    @property
    def label_dtype(self) -> str:
        return label_dtype(max(self.values, default=0))

    @property
    def head_names(self) -> tuple[str, ...]:
        """Class or region of every output channel of the network."""
        values = range(self.heads) if self.regions_class_order is None else self.regions_class_order
        return tuple(self.label_names[str(value)] for value in values)

    @property
    def n_windows(self) -> int:
        return math.prod(len(axis.starts) for axis in self.axes)

    @property
    def needs_weights(self) -> bool:
        """Whether labels depend on the scale of the logits; an argmax on the network's own grid does not."""
        return self.regions_class_order is not None or any(a.logits.kind != "same" for a in self.axes)

    @cached_property
    def tiles(self) -> tuple[Index, ...]:
        """Tiles that have windows, in order of their block."""
        return tuple(
            index
            for index in itertools.product(*(range(len(axis.tiles)) for axis in self.axes))
            if all(b > a for a, b in (axis.tiles[i] for axis, i in zip(self.axes, index, strict=True)))
        )

    def number(self, index: Index) -> int:
        """Number of a block or tile: its position in z, y, x order, whatever the order of the network's axes."""
        return self.grid.number(self._source_index(index))

    def block(self, number: int) -> Index:
        """Inverse of :meth:`number`."""
        source = self.grid.index(number)
        found = (source[axis.source] for axis in self.axes)
        return tuple(len(axis.blocks) - 2 - i if axis.flipped else i for axis, i in zip(self.axes, found, strict=True))

    def _source_index(self, index: Index) -> Index:
        """Position of a block along z, y, x, counted from the source's first voxel."""
        found = [0, 0, 0]
        for axis, i in zip(self.axes, index, strict=True):
            found[axis.source] = len(axis.blocks) - 2 - i if axis.flipped else i
        return tuple(found)

    def windows(self, tile: Index) -> int:
        return math.prod(b - a for a, b in (axis.tiles[i] for axis, i in zip(self.axes, tile, strict=True)))

    def reach(self, tile: Index) -> Box:
        """Network voxels that a tile touches."""
        return tuple(axis.reach(i) for axis, i in zip(self.axes, tile, strict=True))

    def cells(
        self, *, block: Index | None = None, shard: Index | None = None, tile: Index | None = None
    ) -> Iterator[Cell]:
        """Cells of a block, of a shard, or that a tile reaches; in order of the network's axes."""
        chosen = []
        for i, axis in enumerate(self.axes):
            chosen.append(
                [
                    (k, s)
                    for k, s in enumerate(axis.segments)
                    if (block is None or s.block == block[i])
                    and (shard is None or s.shard == shard[i])
                    and (tile is None or s.first <= tile[i] <= s.last)
                ]
            )
        for (i, a), (j, b), (k, c) in itertools.product(*chosen):
            yield Cell((i, j, k), (a, b, c))

    def shared(self, cell: Cell, tile: Index) -> Box:
        """Network voxels of a cell's footprint that a tile's windows touch."""
        return tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(cell.footprint, self.reach(tile), strict=True))

    @cached_property
    def pieces(self) -> dict[Index, list[Index]]:
        """For every reached block the tiles that send it a piece."""
        touched: list[dict[int, list[int]]] = []
        for axis in self.axes:
            tiles: dict[int, set[int]] = {}
            for s in axis.segments:
                tiles.setdefault(s.block, set()).update(range(s.first, s.last + 1))
            touched.append({block: sorted(found) for block, found in tiles.items()})
        return {
            block: list(itertools.product(*(axis[i] for axis, i in zip(touched, block, strict=True))))
            for block in itertools.product(*touched)
        }

    def piece_name(self, tile: Index, block: Index) -> str:
        return f"{self.sample}.t{self.number(tile)}.b{self.number(block)}.piece"

    def shards_of(self, block: Index) -> Iterator[Index]:
        """Shards of a block, network axis order."""
        ranges = []
        for axis, i in zip(self.axes, block, strict=True):
            first, last = np.searchsorted(axis.shards, axis.blocks[i : i + 2])
            ranges.append(range(first, last))
        yield from itertools.product(*ranges)

    def shard_box(self, shard: Index) -> Box:
        """Source voxels of a shard, network axis order."""
        return tuple((axis.shards[i], axis.shards[i + 1]) for axis, i in zip(self.axes, shard, strict=True))

    def to_source_box(self, box: Box) -> Box:
        """Box in network axis order and direction -> the same voxels as z, y, x."""
        result: list[tuple[int, int]] = [(0, 0)] * 3
        for axis, (start, stop) in zip(self.axes, box, strict=True):
            result[axis.source] = (axis.size - stop, axis.size - start) if axis.flipped else (start, stop)
        return tuple(result)

    def to_source(self, array: np.ndarray) -> np.ndarray:
        """Array in network axis order and direction -> view as z, y, x."""
        array = array[tuple(slice(None, None, -1 if axis.flipped else 1) for axis in self.axes)]
        return array.transpose(np.argsort([axis.source for axis in self.axes]))

    def to_network(self, array: np.ndarray) -> np.ndarray:
        """Array (z, y, x) -> view in network axis order and direction."""
        array = array.transpose([axis.source for axis in self.axes])
        return array[tuple(slice(None, None, -1 if axis.flipped else 1) for axis in self.axes)]

    @cached_property
    def grid(self) -> LabelGrid:
        """The grid of the labels, in z, y, x."""
        cuts: list[tuple[int, ...]] = [()] * 3
        for axis in self.axes:
            cuts[axis.source] = tuple(axis.size - c for c in reversed(axis.blocks)) if axis.flipped else axis.blocks
        grid = LabelGrid(
            sample=self.sample,
            shape=self.shape,
            spacing=self.spacing,
            origin=self.origin,
            unit=self.unit,
            shard=self.shard,
            cuts=tuple(cuts),
            reached=(),
            values=self.values,
            label_names=self.label_names,
            windows=self.n_windows,
            kind=PREDICTED,
            dtype=self.label_dtype,
        )
        return replace(grid, reached=tuple(sorted(grid.number(self._source_index(block)) for block in self.pieces)))

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    @staticmethod
    def file_name(sample: str, member: int = 0) -> str:
        """Name of a plan's file; of the models that are averaged each has its own."""
        return f"{sample}{f'.m{member}' if member else ''}.plan.json"

    @classmethod
    def load(cls, path: Path) -> Plan:
        value = read_json(path)
        axes = tuple(
            Axis(
                **{
                    **axis,
                    **{name: tuple(axis[name]) for name in ("crop", "starts", "shards", "blocks")},
                    **{name: Resampling(**axis[name]) for name in ("data", "logits")},
                }
            )
            for axis in value["axes"]
        )
        sequences = (
            "shape",
            "spacing",
            "origin",
            "shard",
            "patch_size",
            "values",
            "normalization",
            "mirror_axes",
            "folds",
        )
        order = value["regions_class_order"]
        return cls(
            **{
                **value,
                "axes": axes,
                "regions_class_order": None if order is None else tuple(order),
                **{name: tuple(value[name]) for name in sequences},
            }
        )
