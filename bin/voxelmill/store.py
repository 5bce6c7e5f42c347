"""OME-Zarr stores: sharded Zarr v3 arrays, NGFF 0.5 metadata, every chunk written and checksummed.

A shard is written whole by exactly one task. The lower pyramid levels of a label store keep the shard grid of level 0
(their shards shrink with the level), so that the task that owns a shard also owns its smaller copies.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from voxelmill.errors import TemporaryError
from voxelmill.image import Box, slices

zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})

CHUNK = 64
SMALLEST_SHARD = 16

COLOURS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
"""Okabe-Ito palette, distinguishable with colour-blind eyes."""


def create_array(
    path: Path, shape: Sequence[int], dtype: str, shard: Sequence[int], axes: str, *, chunk: Sequence[int] | None = None
) -> zarr.Array:
    """A sharded array in which a chunk that is absent is a lost chunk, never zeros that were left out.

    The fill value is the largest integer, or NaN: zeros differ from it and are therefore written, and a chunk that is
    lost later does not pass for background. The checksum is Zstandard's own: one behind a compressor that decodes parts
    of a chunk is not looked at when a part is read. ``chunk`` must divide ``shard``; by default it is a cube of at most
    64 voxels.
    """
    kind = np.dtype(dtype)
    chunk = [min(n, CHUNK) for n in shard] if chunk is None else chunk
    return zarr.create_array(
        store=str(path),
        shape=tuple(shape),
        dtype=dtype,
        chunks=tuple(shard),
        serializer=ShardingCodec(
            chunk_shape=tuple(chunk),
            codecs=[BytesCodec(), ZstdCodec(level=1, checksum=True)],
            index_codecs=[BytesCodec(), Crc32cCodec()],
        ),
        compressors=None,
        fill_value=np.nan if kind.kind == "f" else np.iinfo(kind).max,
        dimension_names=list(axes),
        config={"write_empty_chunks": True},
        overwrite=True,
    )


def level_factor(shape: Sequence[int], level: int) -> tuple[int, ...]:
    """Voxels of level 0 per voxel of a level; an axis of a single plane is never reduced."""
    return tuple(1 if n == 1 else 2**level for n in shape)


def level_shape(shape: Sequence[int], level: int) -> tuple[int, ...]:
    return tuple(-(-n // f) for n, f in zip(shape, level_factor(shape, level), strict=True))


def n_shard_levels(shape: Sequence[int], shard: Sequence[int]) -> int:
    """Levels that are written shard by shard: until a shard of the level would be thinner than 16 voxels."""
    sides = [s for n, s in zip(shape, shard, strict=True) if n > 1] or [1]
    levels = 1
    while min(sides) // 2**levels >= SMALLEST_SHARD and max(level_shape(shape, levels - 1)) > CHUNK:
        levels += 1
    return levels


def level_shard(shape: Sequence[int], shard: Sequence[int], level: int) -> tuple[int, ...]:
    return tuple(max(1, s // f) for s, f in zip(shard, level_factor(shape, level), strict=True))


def create_label_levels(path: Path, shape: Sequence[int], shard: Sequence[int], dtype: str) -> list[zarr.Array]:
    """The label arrays (z, y, x) that are written shard by shard, level 0 first, below ``path``."""
    return [
        create_array(path / str(level), level_shape(shape, level), dtype, level_shard(shape, shard, level), "zyx")
        for level in range(n_shard_levels(shape, shard))
    ]


def write_label_shard(levels: list[zarr.Array], box: Box, labels: np.ndarray) -> None:
    """Write one shard (z, y, x) and its smaller copies; every second voxel is kept, so that labels stay labels."""
    for level, array in enumerate(levels):
        factor = level_factor(levels[0].shape, level)
        smaller = tuple((start // f, -(-stop // f)) for (start, stop), f in zip(box, factor, strict=True))
        array[slices(smaller)] = np.ascontiguousarray(labels[tuple(slice(None, None, f) for f in factor)])


def link(source: Path, target: Path) -> None:
    """Hard link where the file system allows it, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def multiscales(
    name: str,
    shape: Sequence[int],
    spacing: Sequence[float],
    unit: str,
    origin: Sequence[float],
    levels: int,
    axes: str = "zyx",
) -> dict[str, Any]:
    """NGFF 0.5 ``multiscales`` of a pyramid whose levels keep every second voxel.

    ``shape``, ``spacing`` and ``origin`` are of z, y, x; ``unit`` is ``um`` or ``pixel``. All levels begin with
    the same voxel and share one translation.
    """
    described: list[dict[str, str]] = []
    for axis in axes:
        entry = {"name": axis, "type": "channel" if axis == "c" else "space"}
        if axis != "c" and unit != "pixel":
            entry["unit"] = "micrometer"
        described.append(entry)
    channel = [0.0] * axes.count("c")
    datasets = []
    for level in range(levels):
        scale = [s * f for s, f in zip(spacing, level_factor(shape, level), strict=True)]
        transformations: list[dict[str, Any]] = [{"type": "scale", "scale": [1.0] * len(channel) + scale}]
        if any(origin):
            transformations.append({"type": "translation", "translation": [*channel, *origin]})
        datasets.append({"path": str(level), "coordinateTransformations": transformations})
    return {"name": name, "axes": described, "datasets": datasets}


def write_group(path: Path, ome: dict[str, Any]) -> None:
    """Create a Zarr group with NGFF 0.5 attributes; what lies below it is left alone."""
    zarr.open_group(str(path), mode="a").attrs["ome"] = {"version": "0.5", **ome}


def read_labels(array: zarr.Array, box: Box, sample: str) -> np.ndarray:
    """Labels (z, y, x) of a box of a sample's label store; TemporaryError where they are damaged or never written."""
    try:
        labels = np.asarray(array[slices(box)])
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise damaged_labels(sample, f"a chunk of the labels cannot be decoded: {error}") from error
    if (labels == array.fill_value).any():
        raise damaged_labels(sample, f"labels were never written in planes {box[0][0]} to {box[0][1] - 1}")
    return labels


def damaged_labels(sample: str, found: str) -> TemporaryError:
    return TemporaryError(
        found,
        sample=sample,
        file="labels.ome.zarr",
        remedy="delete the work folder of the COMPOSE_STORE task of this sample, then -resume",
    )
