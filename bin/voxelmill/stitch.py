"""STITCH_BLOCKS: the shards of one block from what tiles sent to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from voxelmill.archive import Archive
from voxelmill.blend import finish
from voxelmill.files import write_json
from voxelmill.plan import Cell, Index, Plan
from voxelmill.rows import BlockRow, read_rows
from voxelmill.store import create_label_levels, write_label_shard
from voxelmill.task import Task


def stitch_block(plan: Plan, block: Index, pieces: Path, out: Path) -> dict[int, int]:
    """Write the shards of one block from the pieces that tiles sent to it.

    Parameters
    ----------
    plan : Plan
    block : Index
        Network axis order.
    pieces : Path
        Folder that holds the block's pieces.
    out : Path
        Folder to make: one Zarr array per pyramid level, shaped like the whole sample, with this block's shards only.

    Returns
    -------
    dict
        Voxels of every label value in the block.

    Raises
    ------
    TemporaryError
        Where a piece is missing, damaged or incomplete.
    """
    received = {tile: Archive(pieces / plan.piece_name(tile, block)) for tile in plan.pieces[block]}
    levels = create_label_levels(out, plan.shape, plan.shard, plan.label_dtype)
    voxels = np.zeros(np.iinfo(plan.label_dtype).max + 1, dtype=np.int64)
    for shard in plan.shards_of(block):
        labels = stitch_shard(plan, shard, received)
        voxels += np.bincount(labels.ravel(), minlength=len(voxels))
        write_label_shard(levels, plan.to_source_box(plan.shard_box(shard)), plan.to_source(labels))
    for piece in received.values():
        piece.close()
    counts = {int(value): int(voxels[value]) for value in np.flatnonzero(voxels)}
    write_json(out / "counts.json", {str(value): n for value, n in counts.items()})
    return counts


def stitch_shard(plan: Plan, shard: Index, received: dict[Index, Archive]) -> np.ndarray:
    """Labels of one shard, network axis order; background where no window reaches."""
    box = plan.shard_box(shard)
    labels = np.zeros(tuple(stop - start for start, stop in box), plan.label_dtype)
    for cell in plan.cells(shard=shard):
        shape = tuple(stop - start for start, stop in cell.box)
        if cell.finished:
            values = received[cell.tiles[0]].read(cell.name, shape, plan.label_dtype)
        else:
            values = finish(cell_sums(plan, cell, received), plan, cell)
        labels[tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(cell.box, box, strict=True))] = values
    return labels


def cell_sums(plan: Plan, cell: Cell, received: dict[Index, Archive]) -> np.ndarray:
    """Sum over tiles of their partial sums on a cell's footprint -> int64 (heads, *footprint)."""
    footprint = cell.footprint
    sums = np.zeros((plan.heads, *(stop - start for start, stop in footprint)), np.int64)
    for tile in cell.tiles:
        shared = plan.shared(cell, tile)
        shape = (plan.heads, *(stop - start for start, stop in shared))
        here = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(shared, footprint, strict=True))
        sums[(slice(None), *here)] += received[tile].read(cell.name, shape, "int64")
    return sums


def stitch_group(batch: str, group: int, folder: Path, record: Task) -> None:
    """Stitch the blocks of one group.

    Parameters
    ----------
    batch : str
    group : int
    folder : Path
        Holds ``<batch>.blocks.csv``, ``<sample>.plan.json`` and the pieces; each sample's blocks go to a folder in it.
    record : Task
    """
    rows = [row for row in read_rows(folder / f"{batch}.blocks.csv", BlockRow) if row.group == group]
    plans = {row.sample: Plan.load(folder / f"{row.sample}.plan.json") for row in rows}
    for row in rows:
        plan = plans[row.sample]
        block = plan.block(row.block)
        stitch_block(plan, block, folder, folder / row.sample / plan.grid.block_name(row.block))
    record.counts["blocks"] = len(rows)
