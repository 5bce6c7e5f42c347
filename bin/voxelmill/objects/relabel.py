"""RELABEL_BLOCKS: the instance labels of a block, from its labels and the ids that LINK_OBJECTS gave.

Components are found again rather than stored: that costs less than writing and reading them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from voxelmill.archive import Archive
from voxelmill.errors import TemporaryError
from voxelmill.files import read_json, write_json
from voxelmill.grid import LabelGrid
from voxelmill.objects.components import Joining, label_shard, open_block
from voxelmill.rows import BlockRow, read_rows
from voxelmill.store import create_label_levels, write_label_shard
from voxelmill.task import Task


def relabel_block(
    grid: LabelGrid, block: int, folder: Path, table: Path, joining: Joining, dtype: str, out: Path
) -> dict[int, int]:
    """Write the instance labels of a block, shard by shard.

    Memory holds one shard: its labels, its components (2 or 4 bytes per voxel, and as much again inside cc3d) and ids.

    Parameters
    ----------
    grid : LabelGrid
    block : int
    folder : Path
        The block's labels, ``<sample>.b<block>.zarr``.
    table : Path
        ``<sample>.b<block>.lut``.
    joining : Joining
        As LABEL_BLOCKS had it.
    dtype : str
        Of the ids.
    out : Path
        Folder to make, in the form of the block's labels.

    Returns
    -------
    dict
        Voxels of background (0) and of objects (1).

    Raises
    ------
    TemporaryError
        Where labels or table are missing or damaged, or do not belong together.
    """
    labels_of = open_block(grid, folder)
    boxes = grid.shards_of(block)
    ids = Archive(table)
    counts = ids.read("shards", (len(boxes), 2), np.int64)
    levels = create_label_levels(out, grid.shape, grid.shard, dtype)
    for i, box in enumerate(boxes):
        labels = labels_of(box)
        labelling = label_shard(labels, grid, joining) if labels.any() else None
        count = labelling.count if labelling else 0
        if count != counts[i, 0]:
            raise TemporaryError(
                f"shard {i} of block {block} has {count} components now and had {counts[i, 0]} before",
                sample=grid.sample,
                file=table,
                remedy="run again with -resume; if it stays, delete the work folders of LABEL_BLOCKS",
            )
        if labelling and counts[i, 1]:
            instances = look_up(ids.read(f"ids.{i}", (count + 1,), dtype), labelling.components)
        else:
            instances = np.zeros(labels.shape, dtype)
        write_label_shard(levels, box, instances)
    ids.close()
    voxels = int(counts[:, 1].sum())
    found = {0: sum_voxels(grid, block) - voxels, 1: voxels}
    write_json(out / "counts.json", {str(value): n for value, n in found.items() if n})
    return found


def look_up(ids: np.ndarray, components: np.ndarray) -> np.ndarray:
    """``ids[components]``, plane by plane, which stay in the processor's cache."""
    instances = np.empty(components.shape, ids.dtype)
    for plane, numbers in zip(instances, components, strict=True):
        # numbers are in range: "clip" spares the check of each
        np.take(ids, numbers, out=plane, mode="clip")
    return instances


def sum_voxels(grid: LabelGrid, block: int) -> int:
    return int(np.prod([stop - start for start, stop in grid.block_box(block)], dtype=np.int64))


def relabel_group(batch: str, group: int, folder: Path, joining: Joining, record: Task) -> None:
    """Write the instance labels of the blocks of one group.

    Parameters
    ----------
    batch : str
    group : int
    folder : Path
        Holds ``<batch>.blocks.csv``, ``<sample>.grid.json``, ``<sample>.linked.json``, the blocks and their tables;
        gets ``<sample>/<sample>.b<block>.instances.zarr``.
    joining : Joining
    record : Task
    """
    rows = [row for row in read_rows(folder / f"{batch}.blocks.csv", BlockRow) if row.group == group]
    grids = {row.sample: LabelGrid.load(folder / f"{row.sample}.grid.json") for row in rows}
    dtypes = {sample: read_json(folder / f"{sample}.linked.json")["dtype"] for sample in grids}
    for row in rows:
        grid = grids[row.sample]
        found = relabel_block(
            grid,
            row.block,
            folder / grid.block_name(row.block),
            folder / f"{row.sample}.b{row.block}.lut",
            joining,
            dtypes[row.sample],
            folder / row.sample / f"{row.sample}.b{row.block}.instances.zarr",
        )
        counts = record.counts.setdefault(row.sample, {"blocks": 0, "voxels": 0})
        counts["blocks"] += 1
        counts["voxels"] += found[1]
