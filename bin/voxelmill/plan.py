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

from voxelmill.errors import UsageError
from voxelmill.files import read_json, write_json
from voxelmill.image import Box, ImageInfo
from voxelmill.model.config import ModelConfig
from voxelmill.model.resample import Resampling, resampled_length, resamplings

Index = tuple[int, int, int]

SLAB = 32
"""Thickest segment on the network's first axis: what bounds the rolling buffer of a prediction."""

TASK_SECONDS = 1800.0
"""A task takes tiles until its estimate reaches this."""

BYTES_PER_SUM = 8
TORCH_BYTES = 700_000_000
"""Resident memory of a process that has imported torch and nothing more."""

MACS_PER_SECOND = {"cpu": 40e9, "cuda": 20e12}
"""Multiply-accumulates per second (CPU: per thread) that the time estimate assumes."""


@dataclass(frozen=True)
class Options:
    """What the user may choose about the prediction of a sample.

    ``tile_size`` is in source voxels (z, y, x), None for the largest tiles that ``memory_budget`` (bytes of one task)
    and the time of a task allow. ``shard_size`` is in voxels.
    """

    step_size: float = 0.5
    mirroring: bool = True
    device: str = "cpu"
    engine: str = "float32"
    threads: int = 2
    batch: int = 1
    memory_budget: int = 4_000_000_000
    tile_size: tuple[int, int, int] | None = None
    shard_size: int = 256


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
    segments: tuple[Segment, Segment, Segment]

    @property
    def name(self) -> str:
        return "_".join(map(str, self.index))

    @property
    def box(self) -> Box:
        """Source voxels, network axis order."""
        return tuple((s.start, s.stop) for s in self.segments)  # type: ignore[return-value]

    @property
    def footprint(self) -> Box:
        """Network voxels."""
        return tuple(s.footprint for s in self.segments)  # type: ignore[return-value]

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
    """Contents of ``<sample>.plan.json``.

    ``normalization`` holds, per channel, the scheme's name and the numbers it needs; ``mirror_axes`` are spatial
    axes of the network that test-time mirroring flips.
    """

    sample: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    unit: str
    shard: tuple[int, int, int]
    axes: tuple[Axis, Axis, Axis]
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

    @property
    def label_dtype(self) -> str:
        """uint8 where all values are below 255, which marks voxels that were never written."""
        return "uint8" if max(self.values, default=0) < 255 else "uint16"

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
        """Number of a block or tile: its position in z, y, x order of the network's axes."""
        return int(np.ravel_multi_index(index, tuple(len(axis.blocks) - 1 for axis in self.axes)))

    def windows(self, tile: Index) -> int:
        return math.prod(b - a for a, b in (axis.tiles[i] for axis, i in zip(self.axes, tile, strict=True)))

    def reach(self, tile: Index) -> Box:
        """Network voxels that a tile touches."""
        return tuple(axis.reach(i) for axis, i in zip(self.axes, tile, strict=True))  # type: ignore[return-value]

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
        return tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(cell.footprint, self.reach(tile), strict=True))  # type: ignore[return-value]

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

    def block_name(self, block: Index) -> str:
        return f"{self.sample}.b{self.number(block)}.zarr"

    def shards_of(self, block: Index) -> Iterator[Index]:
        """Shards of a block, network axis order."""
        ranges = []
        for axis, i in zip(self.axes, block, strict=True):
            first, last = np.searchsorted(axis.shards, axis.blocks[i : i + 2])
            ranges.append(range(first, last))
        yield from itertools.product(*ranges)

    def shard_box(self, shard: Index) -> Box:
        """Source voxels of a shard, network axis order."""
        return tuple((axis.shards[i], axis.shards[i + 1]) for axis, i in zip(self.axes, shard, strict=True))  # type: ignore[return-value]

    def to_source_box(self, box: Box) -> Box:
        """Box in network axis order and direction -> the same voxels as z, y, x."""
        result: list[tuple[int, int]] = [(0, 0)] * 3
        for axis, (start, stop) in zip(self.axes, box, strict=True):
            result[axis.source] = (axis.size - stop, axis.size - start) if axis.flipped else (start, stop)
        return tuple(result)  # type: ignore[return-value]

    def to_source(self, array: np.ndarray) -> np.ndarray:
        """Array in network axis order and direction -> view as z, y, x."""
        array = array[tuple(slice(None, None, -1 if axis.flipped else 1) for axis in self.axes)]
        return array.transpose(np.argsort([axis.source for axis in self.axes]))

    def to_network(self, array: np.ndarray) -> np.ndarray:
        """Array (z, y, x) -> view in network axis order and direction."""
        array = array.transpose([axis.source for axis in self.axes])
        return array[tuple(slice(None, None, -1 if axis.flipped else 1) for axis in self.axes)]

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

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
        sequences = ("shape", "spacing", "shard", "patch_size", "values", "normalization", "mirror_axes", "folds")
        order = value["regions_class_order"]
        return cls(
            **{
                **value,
                "axes": axes,
                "regions_class_order": None if order is None else tuple(order),
                **{name: tuple(value[name]) for name in sequences},
            }
        )


def window_starts(length: int, patch: int, step_size: float) -> tuple[int, ...]:
    """First network voxel of every window on an axis of ``length`` voxels.

    nnU-Net pads the volume to at least one patch (the smaller half below) and spreads the windows evenly, at most
    ``patch * step_size`` apart, rounding half to even.
    """
    padded = max(length, patch)
    below = (padded - length) // 2
    n = math.ceil((padded - patch) / (patch * step_size)) + 1
    stride = (padded - patch) / (n - 1) if n > 1 else 0.0
    return tuple(int(np.round(stride * i)) - below for i in range(n))


def shard_shape(shape: tuple[int, int, int], size: int) -> tuple[int, int, int]:
    """Shard of the output (z, y, x): a cube, or for a single plane a square of eight times its side."""
    return (1, 8 * size, 8 * size) if shape[0] == 1 else (size, size, size)


def shard_cuts(size: int, shard: int, flipped: bool) -> tuple[int, ...]:
    cuts = [*range(0, size, shard), size]
    return tuple(size - cut for cut in reversed(cuts)) if flipped else tuple(cuts)


def block_cuts(shards: tuple[int, ...], target: float, thinnest: float) -> tuple[int, ...]:
    """Join whole shards into blocks of ``target`` voxels or more; a remainder below ``thinnest`` joins its neighbour."""
    cuts = [0]
    for cut in shards[1:]:
        if cut - cuts[-1] >= target:
            cuts.append(cut)
    if cuts[-1] != shards[-1]:
        if shards[-1] - cuts[-1] < thinnest and len(cuts) > 1:
            cuts.pop()
        cuts.append(shards[-1])
    return tuple(cuts)


def make_plan(config: ModelConfig, image: ImageInfo, options: Options, orientation: Orientation | None = None) -> Plan:
    """Plan of one sample.

    Raises
    ------
    ModelMismatchError
        Where the model resamples in a way that cannot be done block by block.
    UsageError
        Where not even the smallest tile fits into ``memory_budget``.
    """
    shard = shard_shape(image.shape, options.shard_size)
    axes = network_axes(config, image, orientation or Orientation.of(config, image), shard, options.step_size)
    patch_size = config.patch_size
    mirror_axes = tuple(config.mirror_axes or ()) if options.mirroring else ()
    values = tuple(config.foreground_values)
    plan = Plan(
        sample=image.sample,
        shape=image.shape,
        spacing=image.spacing,
        unit=image.unit,
        shard=shard,
        axes=axes,
        patch_size=tuple(patch_size),
        heads=config.heads,
        regions_class_order=None if config.regions_class_order is None else tuple(config.regions_class_order),
        values=values,
        label_names=label_names(config),
        normalization=normalization_of(config, image),
        mirror_axes=mirror_axes,
        folds=tuple(config.folds),
        step_size=options.step_size,
        device=options.device,
        engine=options.engine,
        threads=options.threads,
        batch=options.batch,
        memory_bytes=0,
        window_seconds=0.0,
    )
    passes = len(plan.folds) * 2 ** len(mirror_axes)
    rate = MACS_PER_SECOND[options.device] * (options.threads if options.device == "cpu" else 1)
    plan = replace(plan, window_seconds=passes * multiply_accumulates(config) / rate)
    network_bytes = network_memory(config, options.batch)
    targets = tile_targets(plan, options, network_bytes)
    plan = with_blocks(plan, targets)
    needed = network_bytes + buffer_memory(plan, len(config.channel_names))
    if options.tile_size is None and needed > options.memory_budget:
        raise UsageError(
            f"the smallest tile needs {needed / 1e9:.1f} GB of memory in one task",
            sample=image.sample,
            expected=f"at most --memory_budget {options.memory_budget / 1e9:.1f} GB",
            remedy=f"raise --memory_budget to {math.ceil(needed / 1e8) / 10} GB or more",
        )
    return replace(plan, memory_bytes=max(int(1.25 * needed), 1_500_000_000))


@dataclass(frozen=True)
class Orientation:
    """Network axis ``i`` is source axis ``axes[i]`` (z, y, x), run backwards where ``flips[i]``."""

    axes: Index
    flips: tuple[bool, bool, bool]

    @classmethod
    def of(cls, config: ModelConfig, image: ImageInfo) -> Orientation:
        """The reader's reorientation, then the user's flip, then the model's transposition."""
        axes, flips = (0, 1, 2), (False, False, False)
        if config.reader == "NibabelIOWithReorient" and image.affine is not None:
            axes, flips = ras_orientation(image.affine)
        flipped = [flip != ("zyx"[axis] in image.flip) for axis, flip in zip(axes, flips, strict=True)]
        forward = config.transpose_forward
        return cls(tuple(axes[i] for i in forward), tuple(flipped[i] for i in forward))  # type: ignore[arg-type]


def ras_orientation(affine: tuple[tuple[float, ...], ...]) -> tuple[Index, tuple[bool, bool, bool]]:
    """How a NIfTI volume stored as (z, y, x) = (k, j, i) becomes RAS, as nnU-Net's NibabelIOWithReorient reads it."""
    from nibabel.orientations import io_orientation

    # row i of the orientation: voxel axis i (x, y, z) goes to world axis orientation[i, 0], in direction [i, 1]
    orientation = io_orientation(np.array(affine))
    axes, flips = [], []
    for world in (2, 1, 0):
        voxel = int(np.flatnonzero(orientation[:, 0] == world)[0])
        axes.append(2 - voxel)
        flips.append(bool(orientation[voxel, 1] < 0))
    return tuple(axes), tuple(flips)  # type: ignore[return-value]


def network_axes(
    config: ModelConfig,
    image: ImageInfo,
    orientation: Orientation,
    shard: tuple[int, int, int],
    step_size: float,
) -> tuple[Axis, Axis, Axis]:
    """The three axes, each shard a block of its own."""
    patch = (1, *config.patch_size) if len(config.patch_size) == 2 else tuple(config.patch_size)
    crops = []
    for source, flipped in zip(orientation.axes, orientation.flips, strict=True):
        start, stop = image.nonzero_box[source]
        size = image.shape[source]
        crops.append((size - stop, size - start) if flipped else (start, stop))
    cropped = [stop - start for start, stop in crops]
    spacing, target = spacings(config, image, orientation)
    data, logits = resamplings(config, cropped, spacing, target)
    axes = []
    for i, (source, flipped) in enumerate(zip(orientation.axes, orientation.flips, strict=True)):
        length = cropped[i] if data[i].kind == "same" else resampled_length(cropped[i], spacing[i], target[i])
        size = image.shape[source]
        cuts = shard_cuts(size, shard[source], flipped)
        planes = i == 0 and len(config.patch_size) == 2
        axes.append(
            Axis(
                source=source,
                flipped=flipped,
                size=size,
                crop=crops[i],
                length=length,
                patch=patch[i],
                starts=tuple(range(length)) if planes else window_starts(length, patch[i], step_size),
                data=data[i],
                logits=logits[i],
                shards=cuts,
                blocks=cuts,
                slab=SLAB if i == 0 else None,
            )
        )
    return tuple(axes)  # type: ignore[return-value]


def spacings(
    config: ModelConfig, image: ImageInfo, orientation: Orientation
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Spacing of the image and of the model on the network's axes, in the model's unit.

    A model or an image without physical unit takes the image as it is.
    """
    per_unit = {"mm": 1000.0, "um": 1.0}
    if config.spacing_unit not in per_unit or image.unit == "pixel":
        return (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)
    own = tuple(image.spacing[axis] / per_unit[config.spacing_unit] for axis in orientation.axes)
    target = tuple(config.spacing)
    return own, (own[0], *target) if len(target) == 2 else target


def normalization_of(config: ModelConfig, image: ImageInfo) -> tuple[dict[str, Any], ...]:
    """Name and constants of every channel's normalisation; global statistics come from the image."""
    result = []
    for channel, name in enumerate(config.normalization):
        statistics = image.statistics[channel]
        scheme: dict[str, Any] = {"name": name, "minimum": statistics.minimum, "maximum": statistics.maximum}
        if name == "ZScoreNormalization":
            scheme |= {"mean": statistics.mean, "std": statistics.std}
        if name == "CTNormalization":
            known = config.intensity_properties[str(channel)]
            scheme |= {key: known[key] for key in ("mean", "std", "percentile_00_5", "percentile_99_5")}
        result.append(scheme)
    return tuple(result)


def label_names(config: ModelConfig) -> dict[str, str]:
    """Label value as text -> class name. A region's value bears the region's name."""
    regions = [name for name, value in config.labels.items() if value not in (0, [0]) and name != "ignore"]
    if config.regions_class_order is None:
        named = {str(config.labels[name]): name for name in regions}
    else:
        named = {str(v): name for v, name in zip(config.regions_class_order, regions, strict=True)}
    return {"0": "background", **named}


def multiply_accumulates(config: ModelConfig) -> float:
    """Multiply-accumulates of one forward pass, from the U-Net's stages; an estimate."""
    kwargs = config.architecture["kwargs"]
    features = kwargs["features_per_stage"]
    stages = kwargs["n_stages"]
    convolutions = kwargs.get("n_conv_per_stage") or [2 * n for n in kwargs.get("n_blocks_per_stage", [2] * stages)]
    decoder = kwargs.get("n_conv_per_stage_decoder", [2] * (stages - 1))
    if isinstance(convolutions, int):
        convolutions = [convolutions] * stages
    if isinstance(decoder, int):
        decoder = [decoder] * (stages - 1)
    voxels, total = float(math.prod(config.patch_size)), 0.0
    for i in range(stages):
        voxels /= math.prod(kwargs["strides"][i]) if isinstance(kwargs["strides"][i], list) else 1
        kernel = math.prod(kwargs["kernel_sizes"][i]) if isinstance(kwargs["kernel_sizes"][i], list) else 27
        below = features[i - 1] if i else len(config.channel_names)
        total += voxels * kernel * features[i] * (below + features[i] * (convolutions[i] - 1))
        if i < stages - 1:
            total += voxels * kernel * features[i] * features[i] * (decoder[i] + 1)
    return total


def network_memory(config: ModelConfig, batch: int) -> int:
    """Bytes of torch, weights and activations; an estimate: eight maps of the widest full-resolution stage."""
    kwargs = config.architecture["kwargs"]
    activations = 8 * 4 * kwargs["features_per_stage"][0] * math.prod(config.patch_size) * batch
    parameters = sum(27 * 4 * 4 * f * f for f in kwargs["features_per_stage"])
    return TORCH_BYTES + activations + parameters * len(config.folds)


def buffer_memory(plan: Plan, channels: int) -> int:
    """Bytes of the rolling buffers of the widest tile: sums and image, both moved once per row of windows."""
    first, *others = plan.axes
    cross = math.prod(max(b - a for a, b in map(axis.reach, busy(axis))) for axis in others)
    stride = int(max(np.diff(first.starts), default=0))
    sums = first.patch + stride + math.ceil(SLAB * first.length / first.cropped) + 2
    image = first.patch + stride + 64
    return 2 * cross * (sums * plan.heads * BYTES_PER_SUM + image * channels * 4)


def busy(axis: Axis) -> list[int]:
    return [i for i, (a, b) in enumerate(axis.tiles) if b > a]


def with_blocks(plan: Plan, targets: tuple[float, float, float]) -> Plan:
    """The plan with shards joined into blocks of at least ``targets`` source voxels (network axis order)."""
    axes = []
    for axis, target in zip(plan.axes, targets, strict=True):
        thinnest = axis.patch * axis.cropped / axis.length
        axes.append(replace(axis, blocks=block_cuts(axis.shards, max(target, thinnest), thinnest)))
    return replace(plan, axes=tuple(axes))  # type: ignore[arg-type]


def tile_targets(plan: Plan, options: Options, network_bytes: int) -> tuple[float, float, float]:
    """Size of a tile in source voxels, network axis order.

    Without a wish of the user: the whole volume, halved across the second and third axis until the buffers fit the
    memory, then along the first until a tile fits the time of a task. Tiles stay long along the first axis, where the
    rolling buffer makes length free.
    """
    if options.tile_size is not None:
        wish = [options.tile_size[axis.source] for axis in plan.axes]
        shards = [plan.shard[axis.source] for axis in plan.axes]
        return tuple(max(1, round(w / s)) * s for w, s in zip(wish, shards, strict=True))  # type: ignore[return-value]
    targets = [float(axis.size) for axis in plan.axes]
    smallest = [float(plan.shard[axis.source]) for axis in plan.axes]
    room = options.memory_budget / 1.25 - network_bytes

    def halve(candidates: tuple[int, ...]) -> bool:
        possible = [i for i in candidates if targets[i] > smallest[i]]
        if possible:
            longest = max(possible, key=lambda i: targets[i] / plan.axes[i].patch)
            targets[longest] = max(smallest[longest], targets[longest] / 2)
        return bool(possible)

    def tiled() -> Plan:
        return with_blocks(plan, tuple(targets))  # type: ignore[arg-type]

    while buffer_memory(tiled(), len(plan.normalization)) > room and halve((1, 2)):
        pass
    while largest_tile_seconds(tiled()) > TASK_SECONDS and halve((0,)):
        pass
    return tuple(targets)  # type: ignore[return-value]


def largest_tile_seconds(plan: Plan) -> float:
    return math.prod(max(b - a for a, b in axis.tiles) for axis in plan.axes) * plan.window_seconds


@dataclass(frozen=True)
class TileRow:
    """One line of ``<batch>.tiles.csv``."""

    sample: str
    tile: int
    task: int
    windows: int
    memory_bytes: int
    threads: int


@dataclass(frozen=True)
class BlockRow:
    """One line of ``<batch>.blocks.csv``: a block, the group it is stitched in, and that group's number of pieces."""

    sample: str
    block: int
    group: int
    n_pieces: int


def schedule(plans: list[Plan]) -> tuple[list[TileRow], list[BlockRow]]:
    """Tiles into tasks of about ``TASK_SECONDS``, and blocks into groups that are stitched together.

    A sample of its own is stitched block by block, as soon as a block's pieces are there; the blocks of many small
    samples are stitched in one go.
    """
    tiles, task, seconds = [], 0, 0.0
    for plan in plans:
        for index in plan.tiles:
            estimate = plan.windows(index) * plan.window_seconds
            if seconds and seconds + estimate > TASK_SECONDS:
                task, seconds = task + 1, 0.0
            seconds += estimate
            tiles.append(
                TileRow(plan.sample, plan.number(index), task, plan.windows(index), plan.memory_bytes, plan.threads)
            )
    total = sum(len(senders) for plan in plans for senders in plan.pieces.values())
    together = len(plans) > 1
    blocks = [
        BlockRow(plan.sample, plan.number(b), 0 if together else plan.number(b), total if together else len(senders))
        for plan in plans
        for b, senders in plan.pieces.items()
    ]
    return tiles, blocks


def traffic(plan: Plan) -> dict[str, int]:
    """Voxels that are finished by one tile, and voxels of partial sums that tiles send (network axis order)."""
    alone = math.prod(sum(s.stop - s.start for s in a.segments if s.first == s.last) for a in plan.axes)
    sent = math.prod(
        sum((s.footprint[1] - s.footprint[0]) * (s.last - s.first + 1) for s in a.segments) for a in plan.axes
    )
    return {"finished": alone, "sums": max(0, sent - alone) * plan.heads}
