"""Images and labels as OME-Zarr 0.5 with a pyramid: sharded Zarr v3, every shard written once and whole."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import zarr

from voxelmill.formats.planes import Description, not_as_written
from voxelmill.image import Box, cut_box, slices, whole
from voxelmill.store import (
    CHUNK,
    COLOURS,
    create_array,
    level_factor,
    level_shape,
    level_shard,
    multiscales,
    n_shard_levels,
    write_group,
)

SHARD, PLANE_SHARD = (64, 256, 256), (1, 2048, 2048)
PLANE_CHUNK = (1, 512, 512)

COPIES = 4
"""Arrays of a step's size that exist at once at most: as read, as converted, as it is handed over, its mean's sums."""

GOAL = 64 << 20
"""Bytes from which a longer step is not faster."""

T = TypeVar("T")

Read = Callable[[int, Box], np.ndarray]


def write_ome_zarr(read: Read, path: Path, what: Description, chunk: Sequence[int], memory_budget: int) -> None:
    """Write an image with its pyramid: means of up to eight voxels, or every second voxel of labels.

    Parameters
    ----------
    read : callable
        Channel, box -> voxels (z, y, x) of the type that is written.
    path : Path
        Folder; must not exist.
    what : Description
    chunk : sequence of int
        Voxels (z, y, x) that the source decodes at once.
    memory_budget : int
        Bytes.

    Raises
    ------
    WriteFailedError
        Where the store does not hold what was written.
    """
    shape = what.shape[1:]
    shard = PLANE_SHARD if shape[0] == 1 else SHARD
    # A plane keeps its z axis only where that says something: a thickness of its own, a height.
    flat = shape[0] == 1 and (what.spacing is None or what.spacing[0] == what.spacing[1]) and not what.origin[0]
    axes = ("c" if what.shape[0] > 1 else "") + ("yx" if flat else "zyx")
    arrays = [
        _create(path, what, axes, level, level_shard(shape, shard, level), chunk_of(shape))
        for level in range(n_shard_levels(shape, shard))
    ]
    for channel in range(what.shape[0]):
        for box in cut_box(whole(shape), zarr_step(shape, shard, chunk, what.dtype.itemsize, memory_budget)):
            values = read(channel, box)
            for level, array in enumerate(arrays):
                if level:
                    values = halve(values, shape, what.labels)
                _put(array, axes, channel, level_box(box, shape, level), values)
    arrays += _top(path, what, axes, shard, arrays[-1], len(arrays))
    write_group(path, attributes(what, axes, len(arrays)))
    verify(path, arrays)


def zarr_step(
    shape: Sequence[int], shard: Sequence[int], chunk: Sequence[int], itemsize: int, memory_budget: int
) -> tuple[int, int, int]:
    """Whole shards that are written together: as wide as the image, because most files hold whole rows together.

    Where memory does not allow whole chunks of the source, they are decoded several times.
    """
    limit = memory_budget // 2 // COPIES // itemsize
    least = [min(math.lcm(s, c), -(-n // s) * s) for s, c, n in zip(shard, chunk, shape, strict=True)]
    depth, height, width = least[0], least[1], -(-shape[2] // shard[2]) * shard[2]
    if depth * height * width > limit:
        depth = shard[0]
        height = max(1, limit // (depth * width) // shard[1]) * shard[1]
        width = max(1, min(width, limit // (depth * height)) // shard[2]) * shard[2]
    goal = min(limit, GOAL // itemsize)
    height = min(-(-shape[1] // shard[1]) * shard[1], height * max(1, goal // (depth * height * width)))
    return depth, height, width


def _create(
    path: Path, what: Description, axes: str, level: int, shard: Sequence[int], chunk: Sequence[int]
) -> zarr.Array:
    """An array of a level; ``shard`` and ``chunk`` along z, y, x."""
    lengths = (what.shape[0], *level_shape(what.shape[1:], level))
    return create_array(
        path / str(level),
        _kept(axes, lengths),
        what.dtype.name,
        _kept(axes, (1, *shard)),
        axes,
        chunk=_kept(axes, (1, *(min(s, c) for s, c in zip(shard, chunk, strict=True)))),
    )


def _kept(axes: str, values: Sequence[T]) -> list[T]:
    """Of one value per c, z, y, x those of the axes that the arrays have."""
    return [value for axis, value in zip("czyx", values, strict=True) if axis in axes]


def level_box(box: Box, shape: Sequence[int], level: int) -> Box:
    """A box of whole shards on the grid of a level."""
    factor = level_factor(shape, level)
    return tuple((start // f, -(-stop // f)) for (start, stop), f in zip(box, factor, strict=True))


def _at(axes: str, channel: int, box: Box) -> tuple[slice, ...]:
    return tuple(_kept(axes, (slice(channel, channel + 1), *slices(box))))


def _put(array: zarr.Array, axes: str, channel: int, box: Box, values: np.ndarray) -> None:
    at = _at(axes, channel, box)
    array[at] = np.ascontiguousarray(values).reshape([s.stop - s.start for s in at])


def _get(array: zarr.Array, axes: str, channel: int, box: Box) -> np.ndarray:
    return np.asarray(array[_at(axes, channel, box)]).reshape([stop - start for start, stop in box])


def halve(values: np.ndarray, shape: Sequence[int], labels: bool) -> np.ndarray:
    """Every second voxel of labels, or the mean of two voxels on each axis of an image that has more than one plane.

    At the end of an odd axis the mean is of what there is. Integers are rounded to the nearest, halves upwards.
    """
    step = level_factor(shape, 1)
    if labels:
        return values[tuple(slice(None, None, f) for f in step)]
    if values.dtype.kind in "iu" and values.dtype.itemsize == 8:
        return _halve_wide(values, step)
    # Eight values of a type need three bits more.
    wide = np.float64 if values.dtype.kind == "f" else {1: np.int16, 2: np.int32, 4: np.int64}[values.dtype.itemsize]
    total = values
    for axis, factor in enumerate(step):
        if factor == 1:
            continue
        if total.shape[axis] % 2:
            total = np.concatenate([total, total.take([-1], axis)], axis)
        even, odd = (total[(*itertools.repeat(slice(None), axis), slice(start, None, 2))] for start in (0, 1))
        total = np.add(even, odd, dtype=wide)
    count = math.prod(step)
    if values.dtype.kind == "f":
        return (total / count).astype(values.dtype)
    # A power of two, so that a shift is the division.
    return ((total + count // 2) >> count.bit_length() - 1).astype(values.dtype)


def _halve_wide(values: np.ndarray, step: Sequence[int]) -> np.ndarray:
    """As `halve`, for integers whose sums need more than 64 bits: quotients and remainders are summed apart."""
    count = math.prod(step)
    padded = np.pad(values, [(0, n % f) for n, f in zip(values.shape, step, strict=True)], mode="edge")
    parts = [padded[tuple(slice(i, None, f) for i, f in zip(at, step, strict=True))] for at in np.ndindex(*step)]
    whole_parts = sum((part // count for part in parts), np.zeros_like(parts[0]))
    rest = sum((part % count for part in parts), np.zeros_like(parts[0]))
    return whole_parts + (rest + values.dtype.type(count // 2)) // values.dtype.type(count)


def _top(
    path: Path, what: Description, axes: str, shard: Sequence[int], below: zarr.Array, level: int
) -> list[zarr.Array]:
    """Levels above those whose shards lie in the shards of level 0, until an image fits one chunk."""
    shape = what.shape[1:]
    factor = level_factor(shape, 1)
    made = []
    while max(level_shape(shape, level - 1)) > CHUNK:
        lower, upper = level_shape(shape, level - 1), level_shape(shape, level)
        above = _create(path, what, axes, level, shard, chunk_of(shape))
        for channel in range(what.shape[0]):
            for box in cut_box(whole(upper), shard):
                under = tuple((a * f, min(b * f, n)) for (a, b), f, n in zip(box, factor, lower, strict=True))
                _put(above, axes, channel, box, halve(_get(below, axes, channel, under), shape, what.labels))
        made.append(above)
        below, level = above, level + 1
    return made


def chunk_of(shape: Sequence[int]) -> tuple[int, int, int]:
    return PLANE_CHUNK if shape[0] == 1 else (CHUNK, CHUNK, CHUNK)


def attributes(what: Description, axes: str, levels: int) -> dict[str, Any]:
    """NGFF 0.5 metadata of the image."""
    spacing, unit = what.spacing or (1.0, 1.0, 1.0), "pixel" if what.spacing is None else "um"
    full = "czyx" if "c" in axes else "zyx"
    described = multiscales(what.name, what.shape[1:], spacing, unit, what.origin, levels, full)
    described["type"] = "stride" if what.labels else "mean"
    if not what.labels:
        _shift(described, what, spacing)
    if "z" not in axes:
        _drop_z(described)
    ome: dict[str, Any] = {"multiscales": [described]}
    if what.labels:
        ome["image-label"] = {}
    elif what.channel_names or what.rgb:
        ome["omero"] = {"channels": _channels(what)}
    return ome


def _shift(described: dict[str, Any], what: Description, spacing: Sequence[float]) -> None:
    """Voxels of a level of means lie in the middle of what they are made of."""
    for level, dataset in enumerate(described["datasets"]):
        transforms = dataset["coordinateTransformations"]
        lead = [0.0] * (len(transforms[0]["scale"]) - 3)
        factor = level_factor(what.shape[1:], level)
        moved = [o + s * (f - 1) / 2 for o, s, f in zip(what.origin, spacing, factor, strict=True)]
        if any(moved):
            dataset["coordinateTransformations"] = [
                transforms[0],
                {"type": "translation", "translation": [*lead, *moved]},
            ]


def _drop_z(described: dict[str, Any]) -> None:
    z = next(i for i, axis in enumerate(described["axes"]) if axis["name"] == "z")
    del described["axes"][z]
    for dataset in described["datasets"]:
        for transform in dataset["coordinateTransformations"]:
            del transform[transform["type"]][z]


def _channels(what: Description) -> list[dict[str, Any]]:
    """NGFF ``omero`` channels: names and colours; the range of values is that of the type, or 0 to 1."""
    end = float(np.iinfo(what.dtype).max) if what.dtype.kind in "iu" else 1.0
    names = what.channel_names or ("red", "green", "blue")
    palette = ((255, 0, 0), (0, 255, 0), (0, 0, 255)) if what.rgb else COLOURS
    return [
        {
            "label": name,
            "color": "".join(f"{value:02X}" for value in palette[i % len(palette)]),
            "active": True,
            "window": {"min": 0.0, "max": end, "start": 0.0, "end": end},
        }
        for i, name in enumerate(names)
    ]


def verify(path: Path, arrays: Sequence[zarr.Array]) -> None:
    """WriteFailedError where a shard is not there, or the last chunk of a level cannot be read."""
    for level, array in enumerate(arrays):
        again = zarr.open_array(str(path), path=str(level), mode="r")
        shards = math.prod(-(-n // s) for n, s in zip(array.shape, array.shards or array.chunks, strict=True))
        files = sum(1 for file in (path / str(level) / "c").rglob("*") if file.is_file())
        if again.shape != array.shape or again.dtype != array.dtype or files != shards:
            raise not_as_written(path, f"level {level}: {files} shards of {again.shape}", f"{shards} of {array.shape}")
        np.asarray(again[tuple(slice(n - 1, n) for n in again.shape)])
