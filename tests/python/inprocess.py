"""The chain from an array to labels without Nextflow: what its scripts do, in one process."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import zarr
from scipy.ndimage import gaussian_filter

from voxelmill.compose import compose_store
from voxelmill.ensemble import prepared
from voxelmill.formats.base import ImageSource
from voxelmill.image import Box, ImageInfo, StoredImage, slices
from voxelmill.importing import SampleSpec, import_image
from voxelmill.model.config import ModelConfig
from voxelmill.plan import Plan
from voxelmill.planning import Options, make_plan
from voxelmill.predict import Counts, predict_tiles
from voxelmill.reader import NetworkImage
from voxelmill.stitch import stitch_block


@dataclass
class ArraySource(ImageSource):
    """An image in memory."""

    voxels: np.ndarray | None = None

    def _read(self, channel: int, box: Box) -> np.ndarray:
        assert self.voxels is not None
        return self.voxels[channel][slices(box)]


def array_source(array: np.ndarray, affine: np.ndarray | None = None) -> ArraySource:
    """Source of an array (c, z, y, x)."""
    return ArraySource(
        path=Path("memory"), format="array", shape=array.shape, dtype=array.dtype, affine=affine, voxels=array
    )


def textured(
    shape: Sequence[int], channels: int = 1, seed: int = 0, border: Sequence[Sequence[int]] = ()
) -> np.ndarray:
    """Smooth blobs with noise, uint16 (channels, z, y, x), zero in a border of ``(before, after)`` voxels per axis."""
    rng = np.random.default_rng(seed)
    image = np.zeros((channels, *shape), np.uint16)
    for channel in range(channels):
        blobs = gaussian_filter(rng.normal(size=shape), 3)
        values = 400 + 250 * blobs / blobs.std() + rng.normal(0, 60, shape)
        image[channel] = np.clip(values, 1, 65535)
    inside = tuple(slice(a, n - b) for n, (a, b) in zip(shape, border or [(0, 0)] * 3, strict=True))
    result = np.zeros_like(image)
    result[(slice(None), *inside)] = image[(slice(None), *inside)]
    return result


@dataclass
class Result:
    """Labels (z, y, x) and what they came from."""

    labels: np.ndarray
    plan: Plan
    info: ImageInfo
    counts: Counts
    store: Path


def imported(
    image: np.ndarray, out: Path, spacing_um: tuple[float, float, float] = (1000.0, 1000.0, 1000.0), **spec: object
) -> ImageInfo:
    """Import an array (c, z, y, x) as sample ``s``."""
    given = SampleSpec(
        id="s", channel=tuple(range(len(image))), spacing=spacing_um, unit="um", spacing_origin="test", **spec
    )  # type: ignore[arg-type]
    return import_image([array_source(image)], given, out)


def predicted(
    config: ModelConfig,
    networks: Sequence[torch.nn.Module],
    info: ImageInfo,
    out: Path,
    options: Options,
    n_tasks: int = 1,
    member: int = 0,
) -> Result:
    """Plan, predict in ``n_tasks`` tasks of shuffled tiles, stitch and compose the sample imported to ``out``."""
    torch.set_num_threads(options.threads)
    plan = replace(make_plan(config, info, options), member=member)
    plan.save(out / "s.plan.json")
    plan = Plan.load(out / "s.plan.json")
    tiles = list(plan.tiles)
    random.Random(n_tasks).shuffle(tiles)
    counts = Counts()
    for task in range(n_tasks):
        image = NetworkImage(plan, StoredImage(out / "s.image.zarr", info))
        of_task = [(plan, tile, image) for tile in tiles[task::n_tasks]]
        if of_task:
            found = predict_tiles(
                of_task, [prepared(network, plan) for network in networks], torch.device("cpu"), out / "pieces"
            )["s"]
            counts = Counts(*(getattr(counts, n) + getattr(found, n) for n in ("windows", "computed", "reused")))
    for block in plan.pieces:
        stitch_block(plan, block, out / "pieces" / "s", out / "blocks")
    compose_store(plan.grid, out / "blocks", out)
    labels = zarr.open_array(str(out / "labels.ome.zarr"), path="semantic/0", mode="r")[:]
    return Result(np.asarray(labels), plan, info, counts, out / "labels.ome.zarr")
