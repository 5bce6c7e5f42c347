"""SEPARATE_OBJECTS: the blocks of a group, by the method that the user chose."""

from __future__ import annotations

import math
from pathlib import Path

from voxelmill.grid import LabelGrid
from voxelmill.objects.components import CLASS
from voxelmill.objects.separation.border_core import BorderCore
from voxelmill.objects.separation.gather import BORDER_CORE, Gathered
from voxelmill.objects.separation.marks import Markers
from voxelmill.objects.separation.windows import Method, separate_block
from voxelmill.rows import BlockRow, read_rows
from voxelmill.task import Progress, Task

BASE_BYTES = 500_000_000
"""What Python, its libraries and compiled code take of a task's memory."""


def open_method(grid: LabelGrid, method: str, folder: Path, seed_distance: float, components_of: str) -> Method:
    """A method and what it needs of a sample, staged in a folder: see `separate_group`."""
    if method == BORDER_CORE:
        marks = Gathered(folder / f"{grid.sample}.marks.zarr")
        return BorderCore(grid, marks.read, Markers(grid, folder / f"{grid.sample}.markers"), folder)
    # it brings scikit-image along, which the other method does without
    from voxelmill.objects.separation.watershed import Watershed

    labels = Gathered(folder / f"{grid.sample}.gathered.zarr")
    return Watershed(labels.read, grid, components_of, seed_distance)


def window_bytes(grid: LabelGrid, memory_budget: int) -> int:
    """What a window may need of a task's memory, beside the program and two copies of a shard's ids."""
    return max(memory_budget - BASE_BYTES - 16 * math.prod(grid.shard), memory_budget // 4)


def separate_group(
    batch: str,
    group: int,
    folder: Path,
    method: str,
    record: Task,
    *,
    memory_budget: int,
    seed_distance: float = 5.0,
    components_of: str = CLASS,
) -> None:
    """Write the ids of the blocks of one group.

    Parameters
    ----------
    batch : str
    group : int
    folder : Path
        Holds ``<batch>.blocks.csv``, ``<sample>.grid.json`` (of the ids), and for border_core ``<sample>.marks.zarr``
        and ``<sample>.markers``, for watershed ``<sample>.gathered.zarr``; each sample's folder in it gets
        ``<sample>.b<block>.zarr``.
    method : str
        `gather.BORDER_CORE` or `gather.WATERSHED`.
    record : Task
    memory_budget : int
        Bytes that the task may use.
    seed_distance, components_of
        Of `watershed.Watershed`.
    """
    rows = [row for row in read_rows(folder / f"{batch}.blocks.csv", BlockRow) if row.group == group]
    grids = {row.sample: LabelGrid.load(folder / f"{row.sample}.grid.json") for row in rows}
    progress = Progress(sum(len(grids[row.sample].shards_of(row.block)) for row in rows), "shards")
    for sample, grid in grids.items():
        chosen = open_method(grid, method, folder, seed_distance, components_of)
        limit = window_bytes(grid, memory_budget)
        counts = {"blocks": 0, "voxels": 0}
        for row in rows:
            if row.sample == sample:
                out = folder / sample / grid.block_name(row.block)
                found = separate_block(chosen, grid, row.block, out, limit, progress)
                counts["blocks"] += 1
                counts["voxels"] += sum(n for value, n in found.items() if value)
        record.counts[sample] = counts
