"""AVERAGE_MODELS: labels, and where they are wanted probabilities, from the probabilities of several models.

nnU-Net's ``nnUNetv2_ensemble`` averages what its models say at the source resolution, and so does this. The models'
plans differ in windows, tiles and blocks, but all cut the same source grid into the same shards: these are added one
head at a time, as integers, whose sum is the same in any order.

Source: ``average_probabilities`` and ``merge_files`` of nnU-Net 2.8.1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import zarr

from voxelmill.errors import ModelMismatchError, TemporaryError
from voxelmill.image import Box
from voxelmill.plan import Plan
from voxelmill.probabilities import MEMBER_TYPE, background, largest_step
from voxelmill.probability_store import (
    STORE,
    block_name,
    create_levels,
    finish_store,
    read_shard,
    write_background,
    write_shard,
)
from voxelmill.stitch import block_of_labels
from voxelmill.task import Task


class Member:
    """One model's probabilities of a sample, read shard by shard.

    Parameters
    ----------
    plan : Plan
    blocks : Path
        Folder with the probabilities of all its reached blocks.

    Raises
    ------
    TemporaryError
        Where a block did not arrive.
    """

    def __init__(self, plan: Plan, blocks: Path):
        assert plan.probabilities is not None
        self.plan = plan
        self.dtype = plan.probabilities
        self._arrays: dict[int, zarr.Array] = {}
        for number in plan.grid.reached:
            folder = blocks / block_name(plan.grid, number, plan.member)
            if not folder.is_dir():
                raise TemporaryError(
                    f"block {number} of model {plan.member} did not arrive",
                    sample=plan.sample,
                    expected=f"{len(plan.grid.reached)} blocks of probabilities of this model",
                    remedy="run again with -resume",
                )
            self._arrays[number] = zarr.open_array(str(folder), path="0", mode="r")

    def read(self, head: int, box: Box) -> np.ndarray:
        """Probabilities (z, y, x) of one head in a shard."""
        number = self.plan.grid.block_of(box)
        if number in self._arrays:
            return read_shard(self._arrays[number], head, box, self.plan.sample)
        value = background(head, self.plan.regions_class_order is not None, self.dtype)
        return np.full(tuple(stop - start for start, stop in box), value, self.dtype)


def average_shard(members: Sequence[Member], box: Box, keep: Callable[[int, np.ndarray], None] | None) -> np.ndarray:
    """Labels of one shard.

    Parameters
    ----------
    members : sequence of Member
    box : Box
    keep : callable or None
        Gets the number of every head and the sum of its probabilities, uint32 (z, y, x).

    Returns
    -------
    ndarray of the plans' label type
        The head with the largest mean, the first of equal ones; of regions those whose mean lies above a half.
    """
    plan = members[0].plan
    order = plan.regions_class_order
    all_of_them = len(members) * largest_step(members[0].dtype)
    labels = best = None
    for head in range(plan.heads):
        total = members[0].read(head, box).astype(np.uint32)
        for member in members[1:]:
            total += member.read(head, box)
        if keep is not None:
            keep(head, total)
        if labels is None or best is None:
            labels, best = np.zeros(total.shape, plan.label_dtype), total.copy()
        if order is not None:
            labels[2 * total > all_of_them] = order[head]
        elif head:
            labels[total > best] = head
            np.maximum(best, total, out=best)
    assert labels is not None
    return labels


def mean_steps(total: np.ndarray, n_members: int, dtype: str) -> np.ndarray:
    """Sum of several models' probabilities -> their mean in the steps of ``dtype``, to the nearest."""
    whole = n_members * largest_step(MEMBER_TYPE)
    return ((2 * total.astype(np.int64) * largest_step(dtype) + whole) // (2 * whole)).astype(dtype)


def average_models(plans: Sequence[Plan], blocks: Path, out: Path, probabilities: str | None = None) -> None:
    """Average the models of one sample.

    Parameters
    ----------
    plans : sequence of Plan
        One per model, in the order in which the user named them.
    blocks : Path
        Folder with the blocks of probabilities of all models.
    out : Path
        Folder of the sample: gets the blocks of labels of the first plan, and ``probabilities.ome.zarr``.
    probabilities : str, optional
        Type in which the mean is kept; without it there is no store of probabilities.

    Raises
    ------
    TemporaryError
        Where a block did not arrive, or is damaged.
    ModelMismatchError
        Where the models do not tell the same classes apart.
    """
    plan = plans[0]
    grid = plan.grid
    for other in plans[1:]:
        require_agreement(plan, other)
    members = [Member(one, blocks) for one in plans]
    levels = create_levels(out / STORE, grid, plan.heads, probabilities) if probabilities else []

    def keeping(box: Box) -> Callable[[int, np.ndarray], None] | None:
        if probabilities is None:
            return None
        return lambda head, total: write_shard(levels, head, box, mean_steps(total, len(members), probabilities))

    for number in grid.reached:
        with block_of_labels(plan, number, out) as write:
            for box in grid.shards_of(number):
                write(box, average_shard(members, box, keeping(box)))
    if probabilities:
        for box in grid.shard_boxes():
            if grid.block_of(box) not in grid.reached:
                write_background(levels, plan.regions_class_order is not None, box)
        finish_store(plan, out / STORE, levels)


def require_agreement(first: Plan, other: Plan) -> None:
    """Raise ModelMismatchError unless two models' outputs mean the same."""
    if (first.head_names, first.regions_class_order) != (other.head_names, other.regions_class_order):
        raise ModelMismatchError(
            f"model {other.member} tells other classes apart: {', '.join(other.head_names)}",
            sample=first.sample,
            expected=f"those of model {first.member}: {', '.join(first.head_names)}",
            remedy="average models of the same labels only",
        )


def average_batch(folder: Path, n_members: int, probabilities: str | None, record: Task) -> None:
    """Average every sample of a batch.

    Parameters
    ----------
    folder : Path
        Holds ``<sample>.m<member>.plan.json`` of all models, and the blocks; each sample gets a folder in it.
    n_members : int
        How many models there are.
    probabilities : str or None
    record : Task

    Raises
    ------
    TemporaryError
        Where a model's plan of a sample is not there.
    """
    plans: dict[str, list[Plan]] = defaultdict(list)
    for path in sorted(folder.glob("*.plan.json")):
        plan = Plan.load(path)
        plans[plan.sample].append(plan)
    for sample, found in sorted(plans.items()):
        found.sort(key=lambda plan: plan.member)
        if [plan.member for plan in found] != list(range(1, n_members + 1)):
            raise TemporaryError(
                f"plans of models {', '.join(str(plan.member) for plan in found)} arrived",
                sample=sample,
                expected=f"one of each of {n_members} models",
                remedy="run again with -resume",
            )
        average_models(found, folder, folder / sample, probabilities)
        if probabilities:
            record.output(folder / sample / STORE)
        record.counts[sample] = {"blocks": len(found[0].grid.reached), "models": n_members}
