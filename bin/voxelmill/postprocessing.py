"""POSTPROCESS_LABELS: nnU-Net's post-processing of a whole sample, whose labels come in blocks.

A step keeps the largest component of some labels. Components are those of LABEL_BLOCKS, found shard by shard and joined
across shards and blocks as LINK_OBJECTS joins them, so that the result is that of nnU-Net's function on the whole
volume, whatever the shards and blocks. Shards that no step changes are linked, not written again.

Source: ``remove_all_but_largest_component_from_segmentation`` of nnU-Net 2.8.1 and ``remove_all_but_largest_component``
of acvl_utils: all axes and diagonals join, and of several components of the largest size all are kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import zarr

from voxelmill.compose import shard_key
from voxelmill.errors import TemporaryError
from voxelmill.files import read_json, write_json
from voxelmill.grid import LabelGrid
from voxelmill.image import Box
from voxelmill.model.steps import Step, chosen_steps, describe
from voxelmill.objects.components import FOREGROUND, Joining, label_shard, label_shards, open_block, row_type
from voxelmill.objects.link import Parts, join
from voxelmill.store import create_label_levels, link, write_label_shard
from voxelmill.task import Task

TOGETHER = Joining(26, FOREGROUND)
"""scikit-image's ``label`` without a connectivity, which nnU-Net calls: all 26 neighbours."""

OPEN_BLOCKS = 64


@dataclass(frozen=True)
class Removed:
    """What the steps did: components and voxels of the whole sample that became another label."""

    components: int = 0
    voxels: int = 0

    def __add__(self, other: Removed) -> Removed:
        return Removed(self.components + other.components, self.voxels + other.voxels)


class Labels:
    """Labels of a sample on their way: shards that a step changed are in the new blocks, all others in the old ones.

    Memory holds the values that occur in each shard, and a few open arrays.

    Parameters
    ----------
    grid : LabelGrid
    blocks : Path
        Folder of the old blocks.
    out : Path
        Folder of the new ones.
    """

    def __init__(self, grid: LabelGrid, blocks: Path, out: Path):
        self.grid, self.blocks, self.out = grid, blocks, out
        self.changed: set[Box] = set()
        self.moved: dict[int, np.ndarray] = {}
        self.values: dict[Box, frozenset[int]] = {}
        self._levels: dict[int, list[zarr.Array]] = {}
        self._old = lru_cache(OPEN_BLOCKS)(lambda block: open_block(grid, blocks / grid.block_name(block)))
        self._new = lru_cache(OPEN_BLOCKS)(lambda block: open_block(grid, out / grid.block_name(block)))

    def read(self, block: int, box: Box) -> np.ndarray:
        """Labels (z, y, x) of a shard."""
        labels = (self._new if box in self.changed else self._old)(block)(box)
        if box not in self.values:
            self.values[box] = frozenset(map(int, np.flatnonzero(np.bincount(labels.ravel()))))
        return labels

    def mask(self, block: int, box: Box, step: Step) -> np.ndarray:
        """Where a shard has one of a step's labels -> uint8 (z, y, x); one that is known to have none is not read."""
        if box in self.values and self.values[box].isdisjoint(step.labels):
            return np.zeros(tuple(stop - start for start, stop in box), np.uint8)
        return np.isin(self.read(block, box), step.labels).view(np.uint8)

    def write(self, block: int, box: Box, labels: np.ndarray, before: np.ndarray) -> None:
        """Replace a shard, which held ``before``."""
        if block not in self._levels:
            folder = self.out / self.grid.block_name(block)
            self._levels[block] = create_label_levels(folder, self.grid.shape, self.grid.shard, self.grid.dtype)
        write_label_shard(self._levels[block], box, labels)
        self.changed.add(box)
        n = np.iinfo(self.grid.dtype).max + 1
        change = np.bincount(labels.ravel(), minlength=n) - np.bincount(before.ravel(), minlength=n)
        self.moved[block] = self.moved.get(block, np.zeros(n, np.int64)) + change
        self.values[box] = frozenset(map(int, np.unique(labels)))

    def finish(self) -> None:
        """Complete the new blocks: what is as it was is linked, and the voxels of every label are counted."""
        for block in self.grid.reached:
            old, new = (folder / self.grid.block_name(block) for folder in (self.blocks, self.out))
            levels = self._levels.get(block) or create_label_levels(
                new, self.grid.shape, self.grid.shard, self.grid.dtype
            )
            for box in self.grid.shards_of(block):
                if box not in self.changed:
                    for level in range(len(levels)):
                        link_shard(old, new, f"{level}/{shard_key(self.grid, box)}", self.grid.sample)
            counts = {int(value): n for value, n in read_counts(old, self.grid.sample).items()}
            for value in np.flatnonzero(self.moved.get(block, np.empty(0))):
                counts[int(value)] = counts.get(int(value), 0) + int(self.moved[block][value])
            write_json(new / "counts.json", {str(value): n for value, n in counts.items() if n})


def link_shard(old: Path, new: Path, key: str, sample: str) -> None:
    if not (old / key).is_file():
        raise lost(old, f"shard {key} is missing", sample)
    link(old / key, new / key)


def read_counts(block: Path, sample: str) -> dict[str, int]:
    if not (block / "counts.json").is_file():
        raise lost(block, "it did not arrive", sample)
    counts: dict[str, int] = read_json(block / "counts.json")
    return counts


def lost(block: Path, found: str, sample: str) -> TemporaryError:
    return TemporaryError(
        f"labels of a block are incomplete: {found}",
        sample=sample,
        file=block,
        remedy="run again with -resume; if it stays, delete the work folder of the STITCH_BLOCKS task of this block",
    )


def keep_largest(labels: Labels, step: Step, scratch: Path) -> Removed:
    """Apply a step to all blocks of a sample.

    Memory is that of LABEL_BLOCKS (about 16 bytes per voxel of a shard) and LINK_OBJECTS (about 300 bytes per component
    of a shard).

    Parameters
    ----------
    labels : Labels
    step : Step
    scratch : Path
        Folder for the components of the blocks, which are of no use afterwards.

    Returns
    -------
    Removed
    """
    grid = replace(labels.grid, values=(1,), dtype="uint8")
    for block in grid.reached:
        label_shards(
            grid,
            block,
            masks_of(labels, block, step),
            TOGETHER,
            scratch / f"{grid.sample}.b{block}.components",
            no_image,
            0,
        )
    parts = Parts(grid, scratch, TOGETHER, "components", row_type(0, grid, TOGETHER))
    rows = parts.rows()
    owner, count = join(len(rows), parts.pairs(rows["class_value"]))
    # sums of whole numbers below 2**53 are exact
    sizes = np.bincount(owner, rows["voxels"], count).astype(np.int64)
    lesser = sizes < sizes.max(initial=0)
    gone = lesser[owner]
    for part in parts.parts:
        drop = gone[part.offset : part.offset + part.count]
        if drop.any():
            box = parts.boxes[part.block][part.place]
            components = label_shard(labels.mask(part.block, box, step), grid, TOGETHER).components
            before = labels.read(part.block, box)
            after = before.copy()
            after[np.concatenate([[False], drop])[components]] = step.background_label
            labels.write(part.block, box, after, before)
    return Removed(int(lesser.sum()), int(sizes[lesser].sum()))


def masks_of(labels: Labels, block: int, step: Step) -> Callable[[Box], np.ndarray]:
    return lambda box: labels.mask(block, box, step)


def no_image(channel: int, box: Box) -> np.ndarray:
    """Stands in for the image, which nothing here looks at."""
    raise NotImplementedError(channel, box)


def postprocess_sample(grid: LabelGrid, steps: Sequence[Step], blocks: Path, out: Path) -> list[Removed]:
    """Apply steps, each to what the one before it left.

    Parameters
    ----------
    grid : LabelGrid
    steps : sequence of Step
    blocks : Path
        Folder that holds ``<sample>.b<block>.zarr`` of every reached block; they are not changed.
    out : Path
        Gets blocks of the same names and form.

    Returns
    -------
    list of Removed
        Of every step.

    Raises
    ------
    TemporaryError
        Where a block is missing or damaged.
    """
    labels = Labels(grid, blocks, out)
    out.mkdir(parents=True, exist_ok=True)
    removed = []
    for step in steps:
        with tempfile.TemporaryDirectory(prefix=".components-", dir=out) as scratch:
            removed.append(keep_largest(labels, step, Path(scratch)))
    labels.finish()
    return removed


def postprocess_batch(choice: str, package: Path, folder: Path, record: Task) -> None:
    """Apply a model's post-processing to the samples of a batch.

    Parameters
    ----------
    choice : str
        ``model`` or the path of a ``postprocessing.json``; see `voxelmill.model.steps.chosen_steps`.
    package : Path
    folder : Path
        Holds ``<sample>.grid.json`` and the blocks; each sample's new blocks go to a folder in it.
    record : Task
    """
    steps = chosen_steps(choice, package)
    for path in sorted(folder.glob("*.grid.json")):
        grid = LabelGrid.load(path)
        removed = postprocess_sample(grid, steps, folder, folder / grid.sample)
        total = sum(removed, Removed())
        record.counts[grid.sample] = {
            "removed_components": total.components,
            "removed_voxels": total.voxels,
            "steps": describe(steps),
        }
