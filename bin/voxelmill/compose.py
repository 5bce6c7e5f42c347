"""COMPOSE_STORE: the label store of a sample from the shards of its blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr

from voxelmill.errors import TemporaryError
from voxelmill.files import read_json, write_json
from voxelmill.image import Box, slices
from voxelmill.pictures import PictureBuilder, save_pictures
from voxelmill.plan import Plan
from voxelmill.store import (
    CHUNK,
    COLOURS,
    create_array,
    create_label_levels,
    level_shape,
    link,
    multiscales,
    shard_boxes,
    write_group,
    write_label_shard,
)
from voxelmill.task import Task

FULL = 0.999
"""Share of one class above which a mask is reported as full."""


def compose_store(plan: Plan, blocks: Path, out: Path) -> dict[str, Any]:
    """Link the blocks' shards into one NGFF labels group, fill what no window reaches, add the top of the pyramid.

    Parameters
    ----------
    plan : Plan
    blocks : Path
        Folder that holds ``<sample>.b<block>.zarr`` of every reached block.
    out : Path
        Folder of the sample: gets ``labels.ome.zarr``, ``<sample>.labels.json`` and ``<sample>.label_pictures.npz``.

    Returns
    -------
    dict
        What ``<sample>.labels.json`` holds: voxels and volume per class, warnings.

    Raises
    ------
    TemporaryError
        Where a block did not arrive, or left a shard out.
    """
    store = out / "labels.ome.zarr"
    semantic = store / "semantic"
    write_group(store, {"labels": ["semantic"]})
    levels = create_label_levels(semantic, plan)
    voxels = link_blocks(plan, blocks, semantic, len(levels))
    fill_unreached(plan, semantic, levels)
    voxels[0] = plan_voxels(plan) - sum(n for value, n in voxels.items() if value)
    n_levels = add_top_levels(semantic, levels, plan)
    write_group(
        semantic,
        {
            "multiscales": [multiscales("semantic", plan.shape, plan.spacing, plan.unit, plan.origin, n_levels)],
            "image-label": {
                "colors": [{"label-value": v, "rgba": [*COLOURS[(v - 1) % len(COLOURS)], 255]} for v in plan.values],
                "properties": [{"label-value": v, "class": plan.label_names[str(v)]} for v in plan.values],
            },
        },
    )
    write_pictures(plan, levels[0], out / f"{plan.sample}.label_pictures.npz")
    summary = summarise(plan, voxels)
    write_json(out / f"{plan.sample}.labels.json", summary)
    return summary


def plan_voxels(plan: Plan) -> int:
    return int(np.prod(plan.shape, dtype=np.int64))


def link_blocks(plan: Plan, blocks: Path, semantic: Path, n_levels: int) -> dict[int, int]:
    """Bring every block's shards into the store -> voxels of each value in the reached blocks."""
    voxels: dict[int, int] = {}
    for block in plan.pieces:
        folder = blocks / plan.block_name(block)
        if not (folder / "counts.json").is_file():
            raise incomplete(plan, f"block {plan.number(block)} did not arrive")
        for value, n in read_json(folder / "counts.json").items():
            voxels[int(value)] = voxels.get(int(value), 0) + n
        for shard in plan.shards_of(block):
            key = shard_key(plan, plan.to_source_box(plan.shard_box(shard)))
            for level in range(n_levels):
                source = folder / str(level) / key
                if not source.is_file():
                    raise incomplete(plan, f"shard {key} of block {plan.number(block)}, level {level}, is missing")
                link(source, semantic / str(level) / key)
    return voxels


def shard_key(plan: Plan, box: Box) -> str:
    """File of a shard inside its array."""
    return "c/" + "/".join(str(start // side) for (start, _), side in zip(box, plan.shard, strict=True))


def incomplete(plan: Plan, found: str) -> TemporaryError:
    return TemporaryError(
        f"the label store is incomplete: {found}",
        sample=plan.sample,
        expected=f"{len(plan.pieces)} blocks with all their shards",
        remedy="run again with -resume",
    )


def fill_unreached(plan: Plan, semantic: Path, levels: list[zarr.Array]) -> None:
    """Write background where no window reaches: every shard of the store exists, so that a lost one is noticed."""
    for box in shard_boxes(plan.shape, plan.shard):
        if not (semantic / "0" / shard_key(plan, box)).is_file():
            write_label_shard(levels, box, np.zeros(tuple(b - a for a, b in box), plan.label_dtype))


def add_top_levels(semantic: Path, levels: list[zarr.Array], plan: Plan) -> int:
    """Halve the last level, shard by shard, until it fits one chunk -> number of levels."""
    n_levels, below = len(levels), levels[-1]
    shard = tuple(1 if n == 1 else 4 * CHUNK for n in plan.shape)
    step = tuple(1 if n == 1 else 2 for n in plan.shape)
    while max(below.shape) > CHUNK:
        top = create_array(semantic / str(n_levels), level_shape(plan.shape, n_levels), plan.label_dtype, shard, "zyx")
        for box in shard_boxes(top.shape, shard):
            top[slices(box)] = below[tuple(slice(a * f, b * f, f) for (a, b), f in zip(box, step, strict=True))]
        n_levels, below = n_levels + 1, top
    return n_levels


def write_pictures(plan: Plan, labels: zarr.Array, path: Path) -> None:
    """Maximum projections and middle slices of the labels, on the pixel grid of the image's pictures."""
    pictures = PictureBuilder(plan.shape, 1, np.dtype(plan.label_dtype))
    for box in shard_boxes(plan.shape, plan.shard):
        pictures.update(box, np.asarray(labels[slices(box)]))
    save_pictures(path, pictures.arrays())


def summarise(plan: Plan, voxels: dict[int, int]) -> dict[str, Any]:
    """Voxels and volume of every class, and a warning where a mask is empty or full."""
    voxel_um3 = float(np.prod(plan.spacing))
    classes = [
        {
            "value": value,
            "name": plan.label_names[str(value)],
            "voxels": voxels.get(value, 0),
            "volume_um3": None if plan.unit == "pixel" else voxels.get(value, 0) * voxel_um3,
        }
        for value in (0, *plan.values)
    ]
    total = plan_voxels(plan)
    warnings = []
    if voxels[0] == total:
        warnings.append("the mask is empty: no voxel belongs to any class")
    for value in plan.values:
        share = voxels.get(value, 0) / total
        if share > FULL:
            warnings.append(f"the mask is full: {share:.1%} of the volume is {plan.label_names[str(value)]}")
    return {
        "sample": plan.sample,
        "shape": list(plan.shape),
        "spacing": list(plan.spacing),
        "unit": plan.unit,
        "origin": list(plan.origin),
        "classes": classes,
        "windows": plan.n_windows,
        "warnings": warnings,
    }


def compose_batch(folder: Path, record: Task) -> None:
    """Compose the stores of every sample whose plan lies in ``folder``, each into a folder of its own in it."""
    for path in sorted(folder.glob("*.plan.json")):
        plan = Plan.load(path)
        summary = compose_store(plan, folder, folder / plan.sample)
        record.counts[plan.sample] = {entry["name"]: entry["voxels"] for entry in summary["classes"]}
        for name in ("labels.ome.zarr", f"{plan.sample}.labels.json"):
            record.output(folder / plan.sample / name)
        for warning in summary["warnings"]:
            record.warn(warning, sample=plan.sample)
