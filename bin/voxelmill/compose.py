"""COMPOSE_STORE: the label store of a sample from the shards of its blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr

from voxelmill.errors import TemporaryError
from voxelmill.files import read_json, write_json
from voxelmill.grid import INSTANCES, SEPARATED, LabelGrid
from voxelmill.image import Box, cut_box, slices, whole
from voxelmill.pictures import OBJECTS, PICTURES, PictureBuilder, save_pictures
from voxelmill.seams import seam_ratios
from voxelmill.store import (
    CHUNK,
    COLOURS,
    create_array,
    create_label_levels,
    level_shape,
    link,
    multiscales,
    write_group,
    write_label_shard,
)
from voxelmill.task import Task

TOUCHING = (INSTANCES, SEPARATED)
"""Kinds of blocks whose objects may touch."""

FULL = 0.999
"""Share of one class above which a mask is reported as full."""


def compose_store(grid: LabelGrid, blocks: Path, out: Path, linked: dict[str, Any] | None = None) -> dict[str, Any]:
    """Link the blocks' shards into one NGFF labels group, fill what has no block, add the top of the pyramid.

    Parameters
    ----------
    grid : LabelGrid
    blocks : Path
        Folder that holds ``<sample>.b<block>.zarr`` and, where objects were made, ``<sample>.b<block>.instances.zarr``
        of every reached block.
    out : Path
        Folder of the sample: gets ``labels.ome.zarr``, ``<sample>.labels.json`` and ``<sample>.label_pictures.npz``.
    linked : dict, optional
        ``<sample>.linked.json``: type and number of the objects.

    Returns
    -------
    dict
        What ``<sample>.labels.json`` holds: voxels and volume per class, number of objects, seams, warnings.

    Raises
    ------
    TemporaryError
        Where a block did not arrive, or left a shard out.
    """
    store = out / "labels.ome.zarr"
    layers: dict[str, zarr.Array] = {}
    voxels: dict[int, int] = {}
    if grid.kind != INSTANCES:
        layers["semantic"], voxels = compose_layer(grid, blocks, store / "semantic", grid.dtype, "zarr")
        write_group(store / "semantic", {**described(grid, store / "semantic"), "image-label": class_colours(grid)})
    if linked is not None:
        layers["instances"], found = compose_layer(grid, blocks, store / "instances", linked["dtype"], "instances.zarr")
        write_group(store / "instances", {**described(grid, store / "instances"), "image-label": {}})
        voxels = voxels or found
    write_group(store, {"labels": list(layers)})
    first = next(iter(layers.values()))
    objects = layers["instances"] if linked is not None and linked["kind"] in TOUCHING else None
    write_pictures(grid, first, objects, out / f"{grid.sample}.label_pictures.npz")
    summary = summarise(grid, voxels) | {
        "objects": None if linked is None else linked["objects"],
        "seams": seam_ratios(first, grid.cuts, grid.shard),
    }
    write_json(out / f"{grid.sample}.labels.json", summary)
    return summary


def compose_layer(
    grid: LabelGrid, blocks: Path, folder: Path, dtype: str, ending: str
) -> tuple[zarr.Array, dict[int, int]]:
    """One label image of the store -> its array at full size, and voxels of each value (of objects: 0 and 1)."""
    levels = create_label_levels(folder, grid.shape, grid.shard, dtype)
    voxels = link_blocks(grid, blocks, folder, len(levels), ending)
    fill_unreached(grid, folder, levels)
    voxels[0] = grid.voxels - sum(n for value, n in voxels.items() if value)
    add_top_levels(folder, levels, grid)
    return levels[0], voxels


def link_blocks(grid: LabelGrid, blocks: Path, folder: Path, n_levels: int, ending: str) -> dict[int, int]:
    """Bring every block's shards into the store -> voxels of each value in the reached blocks."""
    voxels: dict[int, int] = {}
    for block in grid.reached:
        arrived = blocks / f"{grid.sample}.b{block}.{ending}"
        if not (arrived / "counts.json").is_file():
            raise incomplete(grid, f"block {block} did not arrive")
        for value, n in read_json(arrived / "counts.json").items():
            voxels[int(value)] = voxels.get(int(value), 0) + n
        for box in grid.shards_of(block):
            key = shard_key(grid, box)
            for level in range(n_levels):
                source = arrived / str(level) / key
                if not source.is_file():
                    raise incomplete(grid, f"shard {key} of block {block}, level {level}, is missing")
                link(source, folder / str(level) / key)
    return voxels


def shard_key(grid: LabelGrid, box: Box) -> str:
    """File of a shard inside its array."""
    return "c/" + "/".join(map(str, grid.shard_index(box)))


def incomplete(grid: LabelGrid, found: str) -> TemporaryError:
    return TemporaryError(
        f"the label store is incomplete: {found}",
        sample=grid.sample,
        expected=f"{len(grid.reached)} blocks with all their shards",
        remedy="run again with -resume",
    )


def fill_unreached(grid: LabelGrid, folder: Path, levels: list[zarr.Array]) -> None:
    """Write background where there is no block: every shard of the store exists, so that a lost one is noticed."""
    for box in grid.shard_boxes():
        if not (folder / "0" / shard_key(grid, box)).is_file():
            write_label_shard(levels, box, np.zeros(tuple(b - a for a, b in box), levels[0].dtype))


def add_top_levels(folder: Path, levels: list[zarr.Array], grid: LabelGrid) -> None:
    """Halve the last level, shard by shard, until it fits one chunk."""
    level, below = len(levels), levels[-1]
    shard = tuple(1 if n == 1 else 4 * CHUNK for n in grid.shape)
    step = tuple(1 if n == 1 else 2 for n in grid.shape)
    while max(below.shape) > CHUNK:
        top = create_array(folder / str(level), level_shape(grid.shape, level), str(below.dtype), shard, "zyx")
        for box in cut_box(whole(top.shape), shard):
            top[slices(box)] = below[tuple(slice(a * f, b * f, f) for (a, b), f in zip(box, step, strict=True))]
        level, below = level + 1, top


def described(grid: LabelGrid, folder: Path) -> dict[str, Any]:
    """NGFF ``multiscales`` of the levels that lie in a folder."""
    n_levels = sum(1 for path in folder.iterdir() if path.name.isdecimal())
    return {"multiscales": [multiscales(folder.name, grid.shape, grid.spacing, grid.unit, grid.origin, n_levels)]}


def class_colours(grid: LabelGrid) -> dict[str, Any]:
    """NGFF ``image-label``: colour and name of every class."""
    return {
        "colors": [{"label-value": v, "rgba": [*COLOURS[(v - 1) % len(COLOURS)], 255]} for v in grid.values],
        "properties": [{"label-value": v, "class": grid.label_names[str(v)]} for v in grid.values],
    }


def write_pictures(grid: LabelGrid, labels: zarr.Array, objects: zarr.Array | None, path: Path) -> None:
    """Maximum projections and middle slices of the classes, on the pixel grid of the image's pictures.

    Where objects may touch, their ids in the middle slices as well, under the same keys with `OBJECTS` in front.
    """
    given = grid.kind == INSTANCES
    pictures = PictureBuilder(grid.shape, 1, np.dtype("uint8" if given else grid.dtype))
    ids = None if objects is None else PictureBuilder(grid.shape, 1, objects.dtype)
    for box in grid.shard_boxes():
        found = np.asarray(labels[slices(box)])
        pictures.update(box, (found > 0).astype(np.uint8) if given else found)
        if objects is not None and ids is not None:
            ids.update(box, np.asarray(objects[slices(box)]))
    cut = {} if ids is None else {OBJECTS + key: ids.arrays()[key] for key in PICTURES if key.startswith("mid")}
    save_pictures(path, pictures.arrays() | cut)


def summarise(grid: LabelGrid, voxels: dict[int, int]) -> dict[str, Any]:
    """Voxels and volume of every class, and a warning where a mask is empty or full."""
    voxel_um3 = float(np.prod(grid.spacing))
    classes = [
        {
            "value": value,
            "name": grid.label_names[str(value)],
            "voxels": voxels.get(value, 0),
            "volume_um3": None if grid.unit == "pixel" else voxels.get(value, 0) * voxel_um3,
        }
        for value in (0, *grid.values)
    ]
    warnings = []
    if voxels[0] == grid.voxels:
        warnings.append("the mask is empty: no voxel belongs to any class")
    for value in grid.values:
        share = voxels.get(value, 0) / grid.voxels
        if share > FULL:
            warnings.append(f"the mask is full: {share:.1%} of the volume is {grid.label_names[str(value)]}")
    return {
        "sample": grid.sample,
        "kind": grid.kind,
        "shape": list(grid.shape),
        "spacing": list(grid.spacing),
        "unit": grid.unit,
        "origin": list(grid.origin),
        "classes": classes,
        "windows": grid.windows,
        "warnings": warnings,
    }


def compose_batch(folder: Path, record: Task) -> None:
    """Compose the stores of every sample whose grid lies in ``folder``, each into a folder of its own in it."""
    for path in sorted(folder.glob("*.grid.json")):
        grid = LabelGrid.load(path)
        linked = folder / f"{grid.sample}.linked.json"
        summary = compose_store(grid, folder, folder / grid.sample, read_json(linked) if linked.exists() else None)
        record.counts[grid.sample] = {entry["name"]: entry["voxels"] for entry in summary["classes"]}
        for name in ("labels.ome.zarr", f"{grid.sample}.labels.json"):
            record.output(folder / grid.sample / name)
        for warning in summary["warnings"]:
            record.warn(warning, sample=grid.sample)
