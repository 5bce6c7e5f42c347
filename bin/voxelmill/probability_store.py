"""Zarr arrays of probabilities: one shard per head and shard of the labels, written whole by one task, and their store.

Axis order c, z, y, x, where c counts the heads of the network. The lower levels keep every second voxel, as those of
the labels do.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from voxelmill.errors import TemporaryError
from voxelmill.grid import LabelGrid
from voxelmill.image import Box, cut_box, slices, whole
from voxelmill.plan import Plan
from voxelmill.probabilities import background, largest_step
from voxelmill.store import (
    CHUNK,
    COLOURS,
    create_array,
    level_factor,
    level_shape,
    level_shard,
    link,
    multiscales,
    n_shard_levels,
    write_group,
)
from voxelmill.task import Task

STORE = "probabilities.ome.zarr"

IN_MEMORY = 2**28
"""Bytes of a shard's probabilities above which they are gathered in a file."""


def block_name(grid: LabelGrid, number: int, member: int) -> str:
    """Folder of a block's probabilities; the models that are averaged each have their own."""
    return f"{grid.sample}{f'.m{member}' if member else ''}.b{number}.probabilities.zarr"


def create_levels(path: Path, grid: LabelGrid, heads: int, dtype: str) -> list[zarr.Array]:
    """The arrays (c, z, y, x) that are written shard by shard, level 0 first, below ``path``."""
    return [
        create_array(
            path / str(level),
            (heads, *level_shape(grid.shape, level)),
            dtype,
            (1, *level_shard(grid.shape, grid.shard, level)),
            "czyx",
        )
        for level in range(n_shard_levels(grid.shape, grid.shard))
    ]


def write_shard(levels: Sequence[zarr.Array], head: int, box: Box, values: np.ndarray) -> None:
    """Write one shard (z, y, x) of a head and its smaller copies."""
    shape = levels[0].shape[1:]
    for level, array in enumerate(levels):
        factor = level_factor(shape, level)
        smaller = tuple((start // f, -(-stop // f)) for (start, stop), f in zip(box, factor, strict=True))
        array[of_head(head, smaller)] = values[tuple(slice(None, None, f) for f in factor)][None]


def of_head(head: int, box: Box) -> tuple[slice, ...]:
    """Index of a box (z, y, x) of one head, which stays an axis."""
    return (slice(head, head + 1), *slices(box))


def write_background(levels: Sequence[zarr.Array], regions: bool, box: Box) -> None:
    """Write a shard that no window reaches."""
    array = levels[0]
    for head in range(array.shape[0]):
        value = background(head, regions, str(array.dtype))
        write_shard(levels, head, box, np.full(tuple(b - a for a, b in box), value, array.dtype))


def gathered(shape: tuple[int, ...], dtype: str, regions: bool, folder: Path) -> np.ndarray:
    """An array (heads, ...) of background to fill; a large one lies in a nameless file, not in memory."""
    if math.prod(shape) * np.dtype(dtype).itemsize <= IN_MEMORY:
        array = np.empty(shape, dtype)
    else:
        with tempfile.TemporaryFile(dir=folder) as file:
            array = np.memmap(file, dtype, "w+", shape=shape)
    for head, values in enumerate(array):
        values[...] = background(head, regions, dtype)
    return array


def read_shard(array: zarr.Array, head: int, box: Box, sample: str) -> np.ndarray:
    """Probabilities (z, y, x) of a box; TemporaryError where they are damaged or were never written."""
    try:
        values = np.asarray(array[of_head(head, box)])[0]
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise incomplete(sample, f"a chunk cannot be decoded: {error}") from error
    if (values == array.fill_value).any():
        raise incomplete(sample, f"nothing was written in planes {box[0][0]} to {box[0][1] - 1} of head {head}")
    return values


def incomplete(sample: str, found: str) -> TemporaryError:
    return TemporaryError(
        f"the probabilities are incomplete: {found}",
        sample=sample,
        expected="every shard of every block that a window reaches",
        remedy="run again with -resume",
    )


def shard_key(grid: LabelGrid, head: int, box: Box) -> str:
    """File of a shard inside its array."""
    return "c/" + "/".join(map(str, (head, *grid.shard_index(box))))


def compose_probabilities(plan: Plan, blocks: Path, out: Path) -> Path:
    """Link the shards of all blocks into one NGFF image, fill what has no block, add the top of the pyramid.

    Parameters
    ----------
    plan : Plan
        With the type of the probabilities.
    blocks : Path
        Folder that holds ``<sample>.b<block>.probabilities.zarr`` of every reached block.
    out : Path
        Folder of the sample: gets ``probabilities.ome.zarr``.

    Raises
    ------
    TemporaryError
        Where a block did not arrive, or left a shard out.
    """
    assert plan.probabilities is not None
    grid, store = plan.grid, out / STORE
    levels = create_levels(store, grid, plan.heads, plan.probabilities)
    for number in range(math.prod(grid.blocks)):
        arrived = blocks / block_name(grid, number, plan.member)
        for box in grid.shards_of(number):
            if number not in grid.reached:
                write_background(levels, plan.regions_class_order is not None, box)
                continue
            for head in range(plan.heads):
                link_shard(grid, number, shard_key(grid, head, box), arrived, store, len(levels))
    return finish_store(plan, store, levels)


def link_shard(grid: LabelGrid, number: int, key: str, arrived: Path, store: Path, n_levels: int) -> None:
    """Bring one shard of a block and its smaller copies into the store."""
    for level in range(n_levels):
        source = arrived / str(level) / key
        if not source.is_file():
            raise incomplete(grid.sample, f"shard {key} of block {number}, level {level}, did not arrive")
        link(source, store / str(level) / key)


def finish_store(plan: Plan, store: Path, levels: list[zarr.Array]) -> Path:
    """Add the top of the pyramid and the metadata to a store whose shards are written."""
    n_levels = add_top_levels(plan.grid, store, levels)
    write_metadata(plan, store, n_levels, str(levels[0].dtype))
    return store


def add_top_levels(grid: LabelGrid, store: Path, levels: list[zarr.Array]) -> int:
    """Halve the last level, head by head and shard by shard, until it fits one chunk -> number of levels."""
    level, below = len(levels), levels[-1]
    shard = tuple(1 if n == 1 else 4 * CHUNK for n in grid.shape)
    step = tuple(1 if n == 1 else 2 for n in grid.shape)
    while max(below.shape[1:]) > CHUNK:
        shape = level_shape(grid.shape, level)
        top = create_array(store / str(level), (below.shape[0], *shape), str(below.dtype), (1, *shard), "czyx")
        for head in range(below.shape[0]):
            for box in cut_box(whole(shape), shard):
                wide = tuple(slice(a * f, b * f, f) for (a, b), f in zip(box, step, strict=True))
                top[of_head(head, box)] = below[(slice(head, head + 1), *wide)]
        level, below = level + 1, top
    return level


def write_metadata(plan: Plan, store: Path, n_levels: int, dtype: str) -> None:
    """NGFF metadata with a channel per head, and what the integers mean."""
    step = largest_step(dtype)
    description = multiscales("probabilities", plan.shape, plan.spacing, plan.unit, plan.origin, n_levels, axes="czyx")
    write_group(store, {"multiscales": [description], "omero": {"channels": list(channels(plan.head_names, step))}})
    zarr.open_group(str(store), mode="a").attrs["probabilities"] = {
        "activation": "softmax" if plan.regions_class_order is None else "sigmoid",
        "heads": list(plan.head_names),
        "scale": 1 / step,
        "largest_step": step,
        "never_written": step + 1,
    }


def channels(names: Iterable[str], step: int) -> Iterable[dict[str, Any]]:
    """OMERO's description of the channels: name, colour, range; the background is not shown at first."""
    for head, name in enumerate(names):
        colour = COLOURS[(head - 1) % len(COLOURS)]
        yield {
            "label": name,
            "color": "".join(f"{part:02X}" for part in colour),
            "window": {"min": 0, "max": step, "start": 0, "end": step},
            "active": name != "background",
        }


def compose_batch(folder: Path, record: Task) -> None:
    """Compose the stores of every sample whose plan lies in ``folder``, each into a folder of its own in it."""
    for path in sorted(folder.glob("*.plan.json")):
        plan = Plan.load(path)
        record.output(compose_probabilities(plan, folder, folder / plan.sample))
        record.counts[plan.sample] = {"heads": plan.heads}
