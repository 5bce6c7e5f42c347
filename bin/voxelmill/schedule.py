"""PLAN_TILES: the plans of a batch, the tables of its tasks, and the forecast before any voxel is read."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from voxelmill.errors import UsageError
from voxelmill.grid import shard_shape
from voxelmill.image import ImageInfo
from voxelmill.model.config import ModelConfig
from voxelmill.model.package import load_config
from voxelmill.needs import Need, needs_of
from voxelmill.plan import Plan
from voxelmill.planning import Options, blank_image, halvings, make_plan
from voxelmill.probabilities import MEMBER_TYPE, STORED_BYTES
from voxelmill.rows import BlockRow, TileRow, write_rows
from voxelmill.task import Task

IMAGE_BYTES = 2
"""Of a voxel in the stored image, where its type is not known yet."""

LAYERS, EXPORTS = 2, 3
"""Label images of a sample: classes and objects in the store; raw, binary and instances among the exported files."""


def schedule(plans: list[Plan], task_seconds: float) -> tuple[list[TileRow], list[BlockRow]]:
    """Tiles into tasks of about ``task_seconds`` by the estimate, and blocks into groups that are stitched together.

    A sample of its own is stitched block by block, as soon as a block's pieces are there; the blocks of many small
    samples are stitched in one go.
    """
    tiles, task, seconds = [], 0, 0.0
    for plan in plans:
        for index in plan.tiles:
            estimate = plan.windows(index) * plan.window_seconds
            if seconds and seconds + estimate > task_seconds:
                task, seconds = task + 1, 0.0
            seconds += estimate
            tiles.append(
                TileRow(
                    sample=plan.sample,
                    tile=plan.number(index),
                    task=task,
                    windows=plan.windows(index),
                    memory_bytes=plan.memory_bytes,
                    threads=plan.threads,
                    seconds=math.ceil(estimate),
                )
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


def tile_shape(text: str | None) -> tuple[int, ...] | None:
    """``--tile_size``: one number or three (z, y, x), in voxels."""
    if text is None:
        return None
    sides = [int(side) for side in text.split(",")]
    return (sides[0],) * 3 if len(sides) == 1 else tuple(sides)


def estimate(config: ModelConfig, shape: tuple[int, ...], spacing: tuple[float, ...], options: Options) -> Estimate:
    """What a sample will take, before any voxel is read: as if its non-zero box were the whole image.

    Parameters
    ----------
    config : ModelConfig
    shape, spacing : tuple
        z, y, x; spacing in micrometres, or None-like ones where the image has no physical unit.
    options : Options
    """
    image = blank_image(config, shape, spacing)
    plan = likely_plan(config, image, options)
    sent = traffic(plan)
    voxels = image.voxels
    # a voxel that one tile finishes passes through its piece, every voxel through its block
    likely = plan.heads * (sent["finished"] + voxels)
    return Estimate(
        windows=plan.n_windows,
        tiles=len(plan.tiles),
        seconds=plan.n_windows * plan.window_seconds,
        memory_bytes=plan.memory_bytes,
        work_bytes=IMAGE_BYTES * voxels * len(config.channel_names)
        + 6 * sent["sums"]
        + label_work(voxels, options.id_layers)
        + probability_bytes(likely, plan.probabilities),
        output_bytes=label_output(voxels) + probability_bytes(plan.heads * voxels, plan.probabilities),
        needs=needs_of(shape, len(config.channel_names), plan.shard),
    )


def likely_plan(config: ModelConfig, image: ImageInfo, options: Options) -> Plan:
    """The plan before a GPU was probed, whose memory only the probe can judge.

    The guess of what network and batch take of it may be too high: a smaller batch is planned with first, and then a
    network that takes nothing. What does not even fit beside such a one fits in no way.

    Raises
    ------
    UsageError
        See :func:`voxelmill.planning.make_plan`; of the guess for one window.
    """
    if options.device != "cuda":
        return make_plan(config, image, options)
    *larger, single = (replace(options, batch=batch) for batch in halvings(options.batch))
    for guess in (*larger, single, replace(single, gpu_network_bytes=0)):
        with contextlib.suppress(UsageError):
            return make_plan(config, image, guess)
    return make_plan(config, image, single)


def estimate_together(
    every: Sequence[Estimate], config: ModelConfig, shape: tuple[int, ...], options: Options
) -> Estimate:
    """What a sample will take with all models that are averaged.

    Parameters
    ----------
    every : sequence of Estimate
        Of each model, as it keeps its probabilities in `MEMBER_TYPE`.
    config : ModelConfig
        Of the first model; channels and heads are those of all.
    shape : tuple
        z, y, x.
    options : Options
        What the user chose, in which type the mean is kept for one.
    """
    alone = estimate_given(shape, config.channels, options)
    mean = probability_bytes(config.heads * math.prod(shape), options.probabilities)
    return Estimate(
        windows=sum(one.windows for one in every),
        tiles=sum(one.tiles for one in every),
        seconds=sum(one.seconds for one in every),
        memory_bytes=max(one.memory_bytes for one in every),
        # the image, the labels and the exported files are there once
        work_bytes=alone.work_bytes + mean + sum(one.work_bytes - alone.work_bytes for one in every),
        output_bytes=alone.output_bytes + mean,
        needs=alone.needs,
    )


def probability_bytes(values: int, dtype: str | None) -> int:
    """Bytes of so many probabilities in a file."""
    return 0 if dtype is None else int(values * STORED_BYTES[dtype])


def estimate_given(shape: tuple[int, ...], channels: int, options: Options) -> Estimate:
    """What a sample will take whose labels are given: no windows; its tasks are cut to the memory of one."""
    voxels = math.prod(shape)
    return Estimate(
        windows=0,
        tiles=0,
        seconds=0.0,
        memory_bytes=options.memory_budget,
        work_bytes=IMAGE_BYTES * voxels * channels + label_work(voxels, options.id_layers),
        output_bytes=label_output(voxels),
        needs=needs_of(shape, channels, shard_shape(shape, options.shard_size)),
    )


def label_work(voxels: int, id_layers: int) -> int:
    """Bytes of the label blocks, those of ids, the store that takes them up and the exported files."""
    return (LAYERS + id_layers) * voxels // 4 + label_output(voxels)


def label_output(voxels: int) -> int:
    """Bytes of the label store and the exported files: eight voxels of labels shrink to a byte."""
    return (LAYERS + EXPORTS) * voxels // 8


@dataclass(frozen=True)
class Estimate:
    """Forecast of one sample; bytes of the work folder assume 16-bit voxels and sums that shrink to six bytes.

    ``needs`` are those of its tasks by process; without them the sample is one task that needs what the forecast says.
    """

    windows: int
    tiles: int
    seconds: float
    memory_bytes: int
    work_bytes: int
    output_bytes: int
    needs: dict[str, Need] = field(default_factory=dict)


def plan_batch(
    batch: str,
    package: Path,
    images: Sequence[Path],
    options: Options,
    out: Path,
    record: Task,
    member: int = 0,
) -> None:
    """Plan every sample of a batch and write the tables of its tasks.

    Parameters
    ----------
    batch : str
    package : Path
    images : sequence of Path
        ``<sample>.image.json``.
    options : Options
    out : Path
        Gets ``<sample>/<sample>.plan.json``, ``<sample>/<sample>.grid.json``, ``<batch>/<batch>.tiles.csv`` and
        ``<batch>/<batch>.blocks.csv``.
    record : Task
    member : int
        Number of the model, from 1, where several are averaged, which need probabilities as they need them.
    """
    config = load_config(package)
    if member:
        options = replace(options, probabilities=MEMBER_TYPE)
    plans = []
    for path in sorted(images):
        image = ImageInfo.load(path)
        plan = replace(make_plan(config, image, options), member=member)
        plan.grid.save(out / plan.sample / f"{plan.sample}.grid.json")
        path = out / plan.sample / Plan.file_name(plan.sample, member)
        plan.save(path)
        record.output(path)
        plans.append(plan)
        for warning in intensity_warnings(config, image):
            record.warn(warning, sample=plan.sample)
        record.counts[plan.sample] = {"windows": plan.n_windows, "tiles": len(plan.tiles), **traffic(plan)}
    tiles, blocks = schedule(plans, options.task_seconds)
    write_rows(out / batch / f"{batch}.tiles.csv", TileRow, tiles)
    write_rows(out / batch / f"{batch}.blocks.csv", BlockRow, blocks)


def intensity_warnings(config: ModelConfig, image: ImageInfo) -> list[str]:
    """Where the values of a channel are far from those that the model was trained on.

    The model knows its training foreground only; an image is far from it where its own range (0.5th to 99.5th
    percentile) does not meet that of the foreground, or ends at less than a fifth or more than five times of it.
    """
    warnings = []
    for channel, statistics in enumerate(image.statistics):
        known = config.intensity_properties.get(str(channel), {})
        low, high = known.get("percentile_00_5"), known.get("percentile_99_5")
        own_low, own_high = statistics.percentiles["percentile_00_5"], statistics.percentiles["percentile_99_5"]
        if low is None or high is None:
            continue
        far = own_high > 5 * high or own_high < high / 5 if high > 0 else False
        if own_high < low or own_low > high or far:
            warnings.append(
                f"channel {channel} ({config.channel_names[channel]}) ranges from {own_low:.4g} to {own_high:.4g}; the "
                f"objects the model was trained on range from {low:.4g} to {high:.4g}: check channel and intensity"
            )
    return warnings
