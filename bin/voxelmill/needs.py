"""What the tasks of a sample need, by process, from figures that are known before any voxel is read.

Nextflow asks for it (``functions/resources.nf``); what is wrong here costs a task a second attempt with twice as much.
Predictions have the figures of their plan, and tasks whose memory goes with the number of objects those of their files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MEGA = 1_000_000
MARGIN = 1.25
LEAST = 1000 * MEGA
"""Asked for by any task: the libraries take half of it, and more on a node with a hundred cores."""

STEP = 100 * MEGA

SUM_BYTES = 8

HEADS, CELL, BLOCK = 8, 2**21, 10**10
"""Of a large model and its plan: output channels, voxels that are stitched at once, voxels of a block."""


@dataclass(frozen=True)
class Need:
    """Bytes of host memory that a task asks for, and seconds that it is expected to take."""

    memory: int
    seconds: float


def needs_of(shape: Sequence[int], channels: int, shard_shape: Sequence[int]) -> dict[str, Need]:
    """Needs of a sample's tasks by process, those included that this run may not have.

    They travel with the sample through the whole run and are part of what ``-resume`` compares. So they depend on the
    image and its shards alone: a run that goes on with another budget, model or number of threads repeats no import.

    Memory is a base (interpreter, libraries, compiled code, buffers of a fixed size) and bytes per voxel that is held;
    the peaks that they were read from are those of the tables in ``benchmarks/README.md`` (256³ shards: sparse tubes,
    and touching particles of seven voxels, which are 1,400 components per megavoxel); the tests have them too. Seconds
    are CPU seconds of the same runs, rounded up.

    Parameters
    ----------
    shape : sequence of int
        Voxels (z, y, x).
    channels : int
        Of the image.
    shard_shape : sequence of int
        Voxels (z, y, x).
    """
    voxels, plane = math.prod(shape), shape[1] * shape[2]
    shard = math.prod(map(min, shape, shard_shape))
    block = min(voxels, BLOCK)
    return {
        # steps of fixed sizes, 256 MB of labels, 256 MB of decoded pieces; a plane that is one strip is decoded alone
        "import_image": Need(asked(650 * MEGA + 6 * plane * max(1, channels)), 1e-7 * voxels * channels),
        "stitch_blocks": Need(asked(150 * MEGA + 6 * shard + 4 * SUM_BYTES * HEADS * min(shard, CELL)), 1e-6 * block),
        "average_models": Need(asked(150 * MEGA + 16 * shard), 2e-7 * HEADS * voxels),
        "compose_probabilities": Need(asked(150 * MEGA + 8 * shard), 1e-7 * HEADS * voxels),
        "postprocess_labels": Need(asked(300 * MEGA + 24 * shard), 2e-7 * voxels),
        "gather_blocks": Need(asked(300 * MEGA), 1e-8 * voxels),
        "mark_cores": Need(asked(300 * MEGA + 24 * shard), 4e-7 * block),
        "label_blocks": Need(asked(250 * MEGA + 24 * shard), 2e-7 * block),
        "relabel_blocks": Need(asked(250 * MEGA + 24 * shard), 2e-7 * block),
        "compose_store": Need(asked(150 * MEGA + 10 * shard), 3e-8 * voxels),
        # These are told --memory_budget and keep to it: what they would take without one.
        "separate_objects": Need(asked(500 * MEGA + 64 * voxels), 2e-6 * block),
        # 64 rows of 64 planes, and what outlines take for the box of an object
        "export_labels": Need(
            asked(200 * MEGA + 64 * 64 * 16 * shape[2] + 32 * min(plane, voxels // 2)), 1e-7 * voxels
        ),
        "save_patches": Need(asked(300 * MEGA + 8 * voxels * channels), 1e-7 * voxels * channels),
    }


def asked(wanted: float) -> int:
    """Bytes to ask for: with a margin, in whole steps, and never less than `LEAST`."""
    return max(LEAST, math.ceil(MARGIN * wanted / STEP) * STEP)
