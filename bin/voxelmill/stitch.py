"""STITCH_BLOCKS: the shards of one block from what tiles sent to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from voxelmill.archive import Archive
from voxelmill.blend import finish
from voxelmill.files import write_json
from voxelmill.image import Box
from voxelmill.plan import Cell, Index, Plan
from voxelmill.probabilities import probability_member
from voxelmill.probability_store import block_name, create_levels, gathered, write_shard
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
        Folder that gets the block's labels and, where the plan wants them, its probabilities: one Zarr array per
        pyramid level, shaped like the whole sample, with this block's shards only.

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
    number = plan.number(block)
    with block_of_labels(plan, number, out) as write:
        probable = []
        if plan.probabilities is not None:
            folder = out / block_name(plan.grid, number, plan.member)
            probable = create_levels(folder, plan.grid, plan.heads, plan.probabilities)
        for shard in plan.shards_of(block):
            box = plan.to_source_box(plan.shard_box(shard))
            labels, likely = stitch_shard(plan, shard, received, out)
            write(box, plan.to_source(labels))
            for head, values in enumerate(() if likely is None else likely):
                write_shard(probable, head, box, plan.to_source(values))
    for piece in received.values():
        piece.close()
    return write.counts


class BlockOfLabels:
    """Writes the shards of a block's labels and counts their voxels; see :func:`block_of_labels`."""

    def __init__(self, plan: Plan, folder: Path):
        self.levels = create_label_levels(folder, plan.shape, plan.shard, plan.label_dtype)
        self._voxels = np.zeros(np.iinfo(plan.label_dtype).max + 1, dtype=np.int64)

    def __call__(self, box: Box, labels: np.ndarray) -> None:
        """Write a shard (z, y, x)."""
        self._voxels += np.bincount(labels.ravel(), minlength=len(self._voxels))
        write_label_shard(self.levels, box, labels)

    @property
    def counts(self) -> dict[int, int]:
        """Voxels of every label value so far."""
        return {int(value): int(self._voxels[value]) for value in np.flatnonzero(self._voxels)}


@contextmanager
def block_of_labels(plan: Plan, number: int, out: Path) -> Iterator[BlockOfLabels]:
    """A block of labels below ``out``, shaped like the whole sample; its counts, written last, say that it is whole."""
    folder = out / plan.grid.block_name(number)
    block = BlockOfLabels(plan, folder)
    yield block
    write_json(folder / "counts.json", {str(value): n for value, n in block.counts.items()})


def stitch_shard(
    plan: Plan, shard: Index, received: dict[Index, Archive], scratch: Path
) -> tuple[np.ndarray, np.ndarray | None]:
    """Labels of one shard, and its probabilities (heads first) where the plan wants them; network axis order.

    Background where no window reaches. ``scratch`` is a folder for a nameless file.
    """
    box = plan.shard_box(shard)
    shape = tuple(stop - start for start, stop in box)
    labels = np.zeros(shape, plan.label_dtype)
    likely = None
    if plan.probabilities is not None:
        regions = plan.regions_class_order is not None
        likely = gathered((plan.heads, *shape), plan.probabilities, regions, scratch)
    for cell in plan.cells(shard=shard):
        here = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(cell.box, box, strict=True))
        values, probable = cell_content(plan, cell, received)
        labels[here] = values
        if likely is not None:
            likely[(slice(None), *here)] = probable
    return labels, likely


def cell_content(plan: Plan, cell: Cell, received: dict[Index, Archive]) -> tuple[np.ndarray, np.ndarray | None]:
    """Labels and probabilities of a cell, from the tile that finished it or from the sums of all that reach it."""
    if not cell.finished:
        return finish(cell_sums(plan, cell, received), plan, cell)
    piece = received[cell.tiles[0]]
    shape = tuple(stop - start for start, stop in cell.box)
    labels = piece.read(cell.name, shape, plan.label_dtype)
    if plan.probabilities is None:
        return labels, None
    return labels, piece.read(probability_member(cell), (plan.heads, *shape), plan.probabilities)


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


def stitch_group(batch: str, group: int, folder: Path, record: Task, member: int = 0) -> None:
    """Stitch the blocks of one group.

    Parameters
    ----------
    batch : str
    group : int
    folder : Path
        Holds ``<batch>.blocks.csv``, ``<sample>.plan.json`` and the pieces; each sample's blocks go to a folder in it.
    record : Task
    member : int
        Number of the model, from 1, where several are averaged.
    """
    rows = [row for row in read_rows(folder / f"{batch}.blocks.csv", BlockRow) if row.group == group]
    plans = {row.sample: Plan.load(folder / Plan.file_name(row.sample, member)) for row in rows}
    for row in rows:
        plan = plans[row.sample]
        block = plan.block(row.block)
        stitch_block(plan, block, folder, folder / row.sample)
    record.counts["blocks"] = len(rows)
