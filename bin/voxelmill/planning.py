"""How a plan is made: nnU-Net's grid on the sample's axes, blocks that fit memory and time, and what a task needs.

Source of the window grid: ``compute_steps_for_sliding_window`` and ``pad_nd_image`` of nnU-Net 2.8.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from voxelmill.errors import UsageError
from voxelmill.grid import block_cuts, shard_cuts, shard_shape
from voxelmill.image import ArrayLocation, ChannelStatistics, ImageInfo
from voxelmill.model.config import ModelConfig
from voxelmill.model.resample import resampled_length, resamplings
from voxelmill.plan import Axis, Index, Plan

SLAB = 32
"""Thickest segment on the network's first axis: what bounds the rolling buffer of a prediction."""

BYTES_PER_SUM = 8
MEMORY_MARGIN = 1.25
TORCH_BYTES = 700_000_000
"""Resident memory of a process that has imported torch and nothing more."""

TORCH_CUDA_BYTES = 2_500_000_000
"""The same of a process that also runs a network on a GPU: driver, kernels and cuDNN. Assumed, not measured; a task
that needs more is tried again with twice the memory."""

CUDA_CONTEXT_BYTES = 600_000_000
"""What a process takes of the GPU's memory before its first tensor. Assumed, not measured."""

BYTES_PER_LOGIT = 4 + 3 * 8
"""Of a logit on its way into the sums: itself, in double precision, weighted, and as fixed-point number."""

SECONDS_PER_MAC = {"cpu": 1 / 70e9, "cuda": 1 / 20e12}
SECONDS_PER_VALUE = {"cpu": 7e-9, "cuda": 5e-12}
"""What the time estimate assumes (CPU: of one thread): multiply-accumulates, and values that pass a layer."""

Affine = Sequence[Sequence[float]] | np.ndarray
"""Voxel index (x, y, z) to world, 4 x 4."""

REORIENTING_READERS = ("NibabelIOWithReorient", "SimpleITKIOWithReorient")


@dataclass(frozen=True)
class Options:
    """What the user may choose about the prediction of a sample.

    ``tile_size`` is in source voxels (z, y, x), None for the largest tiles that ``memory_budget`` (bytes of one task),
    ``gpu_memory_budget`` (the same of a GPU) and ``task_seconds`` (by the estimate) allow. ``shard_size`` is in voxels.
    ``probabilities`` is the type in which probabilities are kept, None for labels alone. ``id_layers`` are written
    besides the labels to separate objects. ``gpu_network_bytes`` is what network and batch were found to take of the
    GPU, None for an estimate; ``sums`` is ``host`` where the GPU has no room for the sums.
    """

    step_size: float = 0.5
    mirroring: bool = True
    device: str = "cpu"
    engine: str = "float32"
    threads: int = 2
    batch: int = 1
    memory_budget: int = 4_000_000_000
    task_seconds: float = 1800.0
    tile_size: tuple[int, ...] | None = None
    shard_size: int = 256
    probabilities: str | None = None
    id_layers: int = 0
    gpu_memory_budget: int = 8_000_000_000
    gpu_network_bytes: int | None = None
    sums: str = "device"


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


def make_plan(config: ModelConfig, image: ImageInfo, options: Options) -> Plan:
    """Plan of one sample.

    Raises
    ------
    ModelMismatchError
        Where the model resamples in a way that cannot be done block by block.
    UsageError
        Where not even the smallest tile fits into ``memory_budget`` and ``gpu_memory_budget``.
    """
    shard = shard_shape(image.shape, options.shard_size)
    orientation = Orientation.of(config, image.affine, image.flip)
    axes = network_axes(config, image, orientation, shard, options.step_size)
    mirror_axes = config.mirror_axes if options.mirroring else ()
    plan = Plan(
        sample=image.sample,
        shape=image.shape,
        spacing=image.spacing,
        unit=image.unit,
        origin=image.origin,
        shard=shard,
        axes=axes,
        patch_size=config.patch_size,
        heads=config.heads,
        regions_class_order=config.regions_class_order,
        values=config.foreground_values,
        label_names=label_names(config),
        normalization=normalization_of(config, image),
        mirror_axes=mirror_axes,
        folds=config.folds,
        step_size=options.step_size,
        device=options.device,
        engine=options.engine,
        threads=options.threads,
        batch=options.batch,
        memory_bytes=0,
        window_seconds=0.0,
        probabilities=options.probabilities,
    )
    passes = len(plan.folds) * 2 ** len(mirror_axes)
    threads = options.threads if options.device == "cpu" else 1
    plan = replace(plan, window_seconds=passes * forward_seconds(config, options.device) / threads)
    # the sums go where there is room for them; no bit of the labels depends on it
    places = ("device", "host") if options.device == "cuda" and options.sums == "device" else (options.sums,)
    tried = []
    for place in places:
        tiled, needed = with_tiles(replace(plan, sums=place), config, options)
        if needed.fits(options):
            return replace(tiled, memory_bytes=int(needed.host), gpu_memory_bytes=int(needed.gpu))
        tried.append((tiled, needed))
    # of the best place is told what it lacks: where that is room on the GPU, the host is not to blame
    tiled, needed = tried[0]
    if needed.host > options.memory_budget:
        raise too_large(tiled, options, "memory", needed.host, options.memory_budget)
    raise too_large(tiled, options, "GPU memory", needed.gpu, options.gpu_memory_budget)


def with_tiles(plan: Plan, config: ModelConfig, options: Options) -> tuple[Plan, Memory]:
    """The plan with the largest tiles that the options allow, and what a task then takes."""
    fixed = fixed_memory(config, options)
    tiled = with_blocks(plan, tile_targets(plan, options, fixed))
    return tiled, memory_need(tiled, fixed, probability_memory(tiled))


def too_large(plan: Plan, options: Options, what: str, needed: float, budget: int) -> UsageError:
    """What is said where not even the smallest tile fits a budget."""
    kind = "smallest tile" if options.tile_size is None else "tile of --tile_size"
    name = "--memory_budget" if what == "memory" else "--gpu_memory_budget"
    return UsageError(
        f"the {kind} needs {needed / 1e9:.1f} GB of {what} in one task",
        sample=plan.sample,
        expected=f"at most {name}, which is {budget / 1e9:.1f} GB",
        remedy=f"raise {name} to {math.ceil(needed / 1e8) / 10} GB, or choose a smaller --tile_size",
    )


def halvings(batch: int) -> Iterator[int]:
    """A batch, half of it, and so on down to one window."""
    while batch > 1:
        yield batch
        batch //= 2
    yield 1


def blank_image(config: ModelConfig, shape: tuple[int, ...], spacing: tuple[float, ...], unit: str = "um") -> ImageInfo:
    """An image of this shape and spacing (z, y, x) of which nothing else is known, to plan with."""
    nothing = ChannelStatistics(0.0, 1.0, 0.0, 1.0, {}, (([0.0], [1.0]),) * 3)
    return ImageInfo(
        sample="estimate",
        shape=shape,
        dtype="uint16",
        spacing=spacing,
        unit=unit,
        spacing_origin="",
        format="",
        files=(),
        array=ArrayLocation("0", "czyx", ()),
        intensity=(),
        flip="",
        nonzero_box=tuple((0, n) for n in shape),
        statistics=(nothing,) * config.channels,
        content_sha256="",
    )


@dataclass(frozen=True)
class Memory:
    """Bytes of a task: of the machine, and of its GPU (0 without one)."""

    host: float
    gpu: float = 0.0

    def fits(self, options: Options) -> bool:
        return self.host <= options.memory_budget and self.gpu <= options.gpu_memory_budget


@dataclass(frozen=True)
class Orientation:
    """Network axis ``i`` is source axis ``axes[i]`` (z, y, x), run backwards where ``flips[i]``."""

    axes: Index
    flips: tuple[bool, ...]

    @classmethod
    def of(cls, config: ModelConfig, affine: Affine | None, flip: str = "") -> Orientation:
        """The reader's reorientation, then the user's flip, then the model's transposition."""
        axes: tuple[int, ...] = (0, 1, 2)
        flips: tuple[bool, ...] = (False, False, False)
        if config.reader in REORIENTING_READERS and affine is not None:
            axes, flips = ras_orientation(affine)
        flipped = [mirrored != ("zyx"[axis] in flip) for axis, mirrored in zip(axes, flips, strict=True)]
        forward = config.transpose_forward
        return cls(tuple(axes[i] for i in forward), tuple(flipped[i] for i in forward))


def ras_orientation(affine: Affine) -> tuple[Index, tuple[bool, ...]]:
    """How a NIfTI volume stored as (z, y, x) = (k, j, i) becomes RAS, as nnU-Net's reorienting readers give it."""
    from nibabel.orientations import io_orientation

    # row i of the orientation: voxel axis i (x, y, z) goes to world axis orientation[i, 0], in direction [i, 1]
    orientation = io_orientation(np.array(affine))
    axes, flips = [], []
    for world in (2, 1, 0):
        voxel = int(np.flatnonzero(orientation[:, 0] == world)[0])
        axes.append(2 - voxel)
        flips.append(bool(orientation[voxel, 1] < 0))
    return tuple(axes), tuple(flips)


def network_axes(
    config: ModelConfig,
    image: ImageInfo,
    orientation: Orientation,
    shard: tuple[int, ...],
    step_size: float,
) -> tuple[Axis, ...]:
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
    return tuple(axes)


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
        values = {name: config.labels[name] for name in regions}
        named = {str(v[0] if isinstance(v, list) else v): name for name, v in values.items()}
    else:
        named = {str(v): name for v, name in zip(config.regions_class_order, regions, strict=True)}
    return {"0": "background", **named}


def forward_seconds(config: ModelConfig, device: str) -> float:
    """Estimate of one forward pass of one window, from the U-Net's stages; on the CPU of one thread."""
    kwargs = config.architecture["kwargs"]
    features, stages = kwargs["features_per_stage"], kwargs["n_stages"]
    blocks = kwargs.get("n_blocks_per_stage", 1)
    encoder = per_stage(kwargs.get("n_conv_per_stage"), stages) or [2 * n for n in per_stage(blocks, stages)]
    decoder = per_stage(kwargs.get("n_conv_per_stage_decoder", 2), stages - 1)
    kernels, strides = per_stage(kwargs["kernel_sizes"], stages), per_stage(kwargs["strides"], stages)
    voxels, macs, values = float(math.prod(config.patch_size)), 0.0, 0.0
    for i in range(stages):
        voxels /= volume(strides[i], config.dimensions)
        inputs = features[i - 1] if i else config.channels
        products = features[i] * (inputs + features[i] * (encoder[i] - 1))
        layers = encoder[i]
        if i < stages - 1:
            products += features[i] ** 2 * (decoder[i] + 1)
            layers += decoder[i] + 1
        macs += voxels * volume(kernels[i], config.dimensions) * products
        values += voxels * features[i] * layers
    return macs * SECONDS_PER_MAC[device] + values * SECONDS_PER_VALUE[device]


def per_stage(value: Any, stages: int) -> list[Any]:
    """An argument that plans give once, or once per stage."""
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value] * stages


def volume(sides: Any, dimensions: int) -> int:
    """Of a kernel or stride that is given once or per axis."""
    return math.prod(sides) if isinstance(sides, list | tuple) else sides**dimensions


def network_memory(config: ModelConfig, batch: int) -> int:
    """Bytes of torch, weights and activations; an estimate: eight maps of the widest full-resolution stage."""
    kwargs = config.architecture["kwargs"]
    activations = 8 * 4 * kwargs["features_per_stage"][0] * math.prod(config.patch_size) * batch
    return TORCH_BYTES + activations + weights_memory(config) * len(config.folds)


def weights_memory(config: ModelConfig) -> int:
    """Bytes of the weights of one fold; an estimate."""
    return sum(27 * 4 * 4 * f * f for f in config.architecture["kwargs"]["features_per_stage"])


def gpu_network_memory(config: ModelConfig, batch: int) -> int:
    """Bytes of a GPU for the same, and for the logits of a batch; an estimate, where nothing was measured."""
    logits = config.heads * math.prod(config.patch_size) * batch * BYTES_PER_LOGIT
    return CUDA_CONTEXT_BYTES + network_memory(config, batch) - TORCH_BYTES + logits


def fixed_memory(config: ModelConfig, options: Options) -> Memory:
    """What a task takes whatever its tile: torch, network and activations, on the machine that runs them."""
    if options.device == "cpu":
        return Memory(network_memory(config, options.batch))
    measured = options.gpu_network_bytes
    gpu = gpu_network_memory(config, options.batch) if measured is None else measured
    # a fold passes through the host as file and as tensors
    return Memory(TORCH_CUDA_BYTES + 2 * weights_memory(config), gpu)


def memory_need(plan: Plan, fixed: Memory, cell: int) -> Memory:
    """What a task takes with the plan's widest tile, and ``cell`` bytes for the probabilities of a cell."""
    image, sums = image_memory(plan), sums_memory(plan)
    if plan.device == "cpu":
        return Memory(MEMORY_MARGIN * (fixed.host + image + sums) + cell)
    if plan.sums == "host":
        return Memory(fixed.host + MEMORY_MARGIN * (image + sums) + cell, fixed.gpu)
    return Memory(fixed.host + MEMORY_MARGIN * image + cell, fixed.gpu + MEMORY_MARGIN * (sums + cell_memory(plan)))


def widest(plan: Plan) -> tuple[int, int]:
    """Network voxels across the widest tile, and the most planes between two rows of windows."""
    first, *others = plan.axes
    cross = math.prod(max(b - a for a, b in map(axis.reach, busy(axis))) for axis in others)
    return cross, int(max(np.diff(first.starts), default=0))


def sums_memory(plan: Plan) -> int:
    """Bytes of the rolling buffer of sums of the widest tile, which is moved once per row of windows."""
    first = plan.axes[0]
    cross, stride = widest(plan)
    planes = first.patch + stride + math.ceil(SLAB * first.length / first.cropped) + 2
    return 2 * cross * planes * plan.heads * BYTES_PER_SUM


def image_memory(plan: Plan) -> int:
    """Bytes of the rolling buffer of the image, which is moved like the sums."""
    cross, stride = widest(plan)
    return 2 * cross * (plan.axes[0].patch + stride + 64) * len(plan.normalization) * 4


def cell_memory(plan: Plan) -> int:
    """Bytes of one cell on its way to labels: its logits, and what they are interpolated from and with."""
    if not plan.needs_weights and plan.probabilities is None:
        return 0
    sides = (max(max(s.stop - s.start, s.footprint[1] - s.footprint[0]) for s in axis.segments) for axis in plan.axes)
    return 3 * math.prod(sides) * plan.heads * BYTES_PER_SUM


def probability_memory(plan: Plan) -> int:
    """Bytes of one cell on its way to probabilities: its sums as logits, a copy in bands, and the integers."""
    if plan.probabilities is None:
        return 0
    cell = math.prod(max(s.stop - s.start for s in axis.segments) for axis in plan.axes)
    return cell * plan.heads * (2 * BYTES_PER_SUM + np.dtype(plan.probabilities).itemsize)


def busy(axis: Axis) -> list[int]:
    return [i for i, (a, b) in enumerate(axis.tiles) if b > a]


def with_blocks(plan: Plan, targets: tuple[float, ...]) -> Plan:
    """The plan with shards joined into blocks of at least ``targets`` source voxels (network axis order)."""
    axes = []
    for axis, target in zip(plan.axes, targets, strict=True):
        thinnest = axis.patch * axis.cropped / axis.length
        axes.append(replace(axis, blocks=block_cuts(axis.shards, max(target, thinnest), thinnest)))
    return replace(plan, axes=tuple(axes))


def tile_targets(plan: Plan, options: Options, fixed: Memory) -> tuple[float, ...]:
    """Size of a tile in source voxels, network axis order.

    Without a wish of the user: the whole volume, halved across the second and third axis until the buffers fit the
    memory, then along the first until a tile fits the time of a task. Tiles stay long along the first axis, where the
    rolling buffer makes length free.
    """
    if options.tile_size is not None:
        wish = [options.tile_size[axis.source] for axis in plan.axes]
        shards = [plan.shard[axis.source] for axis in plan.axes]
        return tuple(max(1, round(w / s)) * s for w, s in zip(wish, shards, strict=True))
    targets = [float(axis.size) for axis in plan.axes]
    smallest = [float(plan.shard[axis.source]) for axis in plan.axes]
    cell = probability_memory(plan)

    def halve(candidates: tuple[int, ...]) -> bool:
        possible = [i for i in candidates if targets[i] > smallest[i]]
        if possible:
            longest = max(possible, key=lambda i: targets[i] / plan.axes[i].patch)
            targets[longest] = max(smallest[longest], targets[longest] / 2)
        return bool(possible)

    def tiled() -> Plan:
        return with_blocks(plan, tuple(targets))

    while not memory_need(tiled(), fixed, cell).fits(options) and halve((1, 2)):
        pass
    while largest_tile_seconds(tiled()) > options.task_seconds and halve((0,)):
        pass
    return tuple(targets)


def largest_tile_seconds(plan: Plan) -> float:
    return math.prod(max(b - a for a, b in axis.tiles) for axis in plan.axes) * plan.window_seconds
