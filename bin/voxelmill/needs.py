"""What the tasks of a sample need, by process, from figures that are known before any voxel is read.

Nextflow asks for it (``functions/resources.nf``); what is wrong here costs a task a second attempt with twice as much.
Predictions have the figures of their plan, and tasks whose memory goes with the number of objects those of their files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

MEGA = 1_000_000
MARGIN = 1.25
LEAST = 1000 * MEGA
"""Asked for by any task: the libraries take half of it, and more on a node with a hundred cores."""

STEP = 100 * MEGA

SUM_BYTES = 8


@dataclass(frozen=True)
class Need:
    """Bytes of host memory that a task asks for, and seconds that it is expected to take."""

    memory: int
    seconds: float


@dataclass(frozen=True)
class Size:
    """What the needs of a sample depend on.

    Attributes
    ----------
    shape : tuple of int
        Voxels (z, y, x).
    channels, heads : int
        Channels of the image; output channels of the network, 0 for given labels.
    shard, block : int
        Voxels of the largest shard and of the largest block.
    cell : int
        Voxels of the largest cell that is stitched, on the grid of the image or of the network; 0 for given labels.
    memory_budget : int
        Bytes.
    """

    shape: tuple[int, ...]
    channels: int
    heads: int
    shard: int
    block: int
    cell: int
    memory_budget: int

    @property
    def voxels(self) -> int:
        return math.prod(self.shape)

    @property
    def plane(self) -> int:
        return self.shape[1] * self.shape[2]


def needs_of(size: Size) -> dict[str, Need]:
    """Needs of a sample's tasks by process, those included that this run may not have.

    Memory is a base (interpreter, libraries, compiled code, buffers of a fixed size) and bytes per voxel that is held;
    the peaks that they were read from are those of the tables in ``benchmarks/README.md`` (256³ shards: sparse tubes,
    and touching particles of seven voxels, which are 1,400 components per megavoxel); the tests have them too. Seconds
    are CPU seconds of the same runs, rounded up.
    """
    voxels, plane, shard, block = size.voxels, size.plane, size.shard, size.block

    def budgeted(wanted: float) -> int:
        """Of tasks that are told the budget and keep to it; what is wanted holds the whole sample."""
        return asked(min(size.memory_budget / MARGIN, wanted))

    return {
        # steps of fixed sizes, 256 MB of labels, 256 MB of decoded pieces; a plane that is one strip is decoded alone
        "import_image": Need(asked(650 * MEGA + 6 * plane * max(1, size.channels)), 1e-7 * voxels * size.channels),
        "stitch_blocks": Need(
            asked(150 * MEGA + 6 * shard + 4 * SUM_BYTES * size.cell * size.heads), 1e-7 * block * max(1, size.heads)
        ),
        "average_models": Need(asked(150 * MEGA + 16 * shard), 2e-7 * voxels * size.heads),
        "compose_probabilities": Need(asked(150 * MEGA + 8 * shard), 1e-7 * voxels * size.heads),
        "postprocess_labels": Need(asked(300 * MEGA + 24 * shard), 2e-7 * voxels),
        "gather_blocks": Need(asked(300 * MEGA), 1e-8 * voxels),
        "mark_cores": Need(asked(300 * MEGA + 24 * shard), 4e-7 * block),
        "separate_objects": Need(
            asked(max(500 * MEGA + 24 * shard, min(size.memory_budget / MARGIN, 500 * MEGA + 64 * voxels))),
            2e-6 * block,
        ),
        "label_blocks": Need(asked(250 * MEGA + 24 * shard), 2e-7 * block),
        "relabel_blocks": Need(asked(250 * MEGA + 24 * shard), 2e-7 * block),
        "compose_store": Need(asked(150 * MEGA + 10 * shard), 3e-8 * voxels),
        # 64 rows of 64 planes, and what outlines take for the box of an object
        "export_labels": Need(
            budgeted(200 * MEGA + 64 * 64 * 16 * size.shape[2] + 32 * min(plane, voxels // 2)), 1e-7 * voxels
        ),
        "save_patches": Need(budgeted(300 * MEGA + 8 * voxels * size.channels), 1e-7 * voxels * size.channels),
    }


def asked(wanted: float) -> int:
    """Bytes to ask for: with a margin, in whole steps, and never less than `LEAST`."""
    return max(LEAST, math.ceil(MARGIN * wanted / STEP) * STEP)


def most_of(every: Iterable[dict[str, Need]]) -> dict[str, Need]:
    """The largest needs by process of several models, each of which has tasks of its own."""
    merged: dict[str, Need] = {}
    for needs in every:
        for process, need in needs.items():
            other = merged.get(process, need)
            merged[process] = Need(max(need.memory, other.memory), max(need.seconds, other.seconds))
    return merged
