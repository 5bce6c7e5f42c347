"""GATHER_BLOCKS: the blocks of a sample as one array, from which any box can be read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import zarr

from voxelmill.compose import link_blocks
from voxelmill.errors import TemporaryError
from voxelmill.grid import SEPARATED, LabelGrid
from voxelmill.image import Box, slices
from voxelmill.objects.separation.cores import label_values
from voxelmill.objects.separation.windows import inside, overlap
from voxelmill.store import create_array
from voxelmill.task import Task

BORDER_CORE, WATERSHED = "border_core", "watershed"
"""How objects that touch are separated."""

SHARDS, GRID = "0", "grid.json"
"""What a gathered store holds."""


def gather_blocks(grid: LabelGrid, blocks: Path, ending: str, out: Path) -> None:
    """Link the shards of all reached blocks into one array.

    Parameters
    ----------
    grid : LabelGrid
        With the type of the blocks' arrays.
    blocks : Path
        Folder that holds ``<sample>.b<block>.<ending>`` of every reached block.
    ending : str
    out : Path
        Folder to make: the array ``0``, without shards where no block was reached, and the grid.

    Raises
    ------
    TemporaryError
        Where a block did not arrive, or left a shard out.
    """
    create_array(out / SHARDS, grid.shape, grid.dtype, grid.shard, "zyx")
    link_blocks(grid, blocks, out, 1, ending)
    grid.save(out / GRID)


class Gathered:
    """A store that `gather_blocks` made.

    Parameters
    ----------
    folder : Path

    Raises
    ------
    TemporaryError
        Here or on a read: the store did not arrive, or a shard of a reached block is missing or damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            self.grid = LabelGrid.load(folder / GRID)
            self._array = zarr.open_array(str(folder), path=SHARDS, mode="r")
        except (OSError, ValueError) as error:
            raise self._lost("it did not arrive") from error
        self._reached = frozenset(self.grid.reached)

    def read(self, box: Box) -> np.ndarray:
        """Labels (z, y, x) of any box of the sample; 0 in blocks that were not reached."""
        try:
            labels = np.asarray(self._array[slices(box)])
        except (OSError, RuntimeError, ValueError) as error:
            raise self._lost(f"{describe(box)} cannot be read: {error}") from error
        if labels.max() == self._array.fill_value:
            labels = np.array(labels)
            self._clear_unreached(labels, box)
        return labels

    def _clear_unreached(self, labels: np.ndarray, box: Box) -> None:
        for block in blocks_in(self.grid, box):
            common = overlap(self.grid.block_box(block), box)
            part = labels[slices(inside(common, box))]
            never = part == self._array.fill_value
            if block in self._reached and never.any():
                raise self._lost(f"{describe(common)} was not written")
            part[never] = 0

    def _lost(self, found: str) -> TemporaryError:
        return TemporaryError(
            f"labels of a sample are incomplete: {found}",
            file=self.folder,
            remedy="run again with -resume; if it stays, delete the work folders of the tasks that wrote the blocks",
        )


def describe(box: Box) -> str:
    return "box " + "x".join(f"{start}-{stop}" for start, stop in box)


def blocks_in(grid: LabelGrid, box: Box) -> list[int]:
    """Numbers of the blocks that a box reaches into."""
    along = [
        [i for i, (a, b) in enumerate(itertools.pairwise(cuts)) if a < stop and start < b]
        for cuts, (start, stop) in zip(grid.cuts, box, strict=True)
    ]
    return [grid.number((z, y, x)) for z in along[0] for y in along[1] for x in along[2]]


def separated_grid(grid: LabelGrid, method: str) -> LabelGrid:
    """The grid of the ids that a method gives to a sample's objects.

    Watershed keeps the classes; cores and borders become one class of objects.
    """
    ids = replace(grid, kind=SEPARATED, dtype="uint64")
    if method == WATERSHED:
        return ids
    return replace(ids, values=(1,), label_names={"0": "background", "1": "object"})


def gather_batch(folder: Path, method: str, labels: Sequence[str], record: Task) -> None:
    """Gather the labels of the samples of a batch.

    Parameters
    ----------
    folder : Path
        Holds ``<sample>.grid.json`` and the blocks; each sample's folder in it gets ``<sample>.gathered.zarr`` and
        ``<sample>.grid.json``, the grid of the ids to come.
    method : str
        `BORDER_CORE` or `WATERSHED`.
    labels : sequence of str
        Names or numbers of the labels of cores and of borders; watershed needs none.
    record : Task

    Raises
    ------
    UsageError
        Where a sample lacks one of the labels.
    """
    for path in sorted(folder.glob("*.grid.json")):
        grid = LabelGrid.load(path)
        if method == BORDER_CORE:
            label_values(grid, labels)
        gather_blocks(grid, folder, "zarr", folder / grid.sample / f"{grid.sample}.gathered.zarr")
        separated_grid(grid, method).save(folder / grid.sample / f"{grid.sample}.grid.json")
        record.counts[grid.sample] = {"blocks": len(grid.reached)}
