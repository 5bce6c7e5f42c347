"""Tiles as TIFF: what their windows look at is in them, and their cores are the image."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from inprocess import imported, textured
from models import make_model_folder
from voxelmill.errors import BadDataError, InputMissingError
from voxelmill.files import read_json
from voxelmill.formats import open_image
from voxelmill.image import ArrayLocation, Box, StoredImage, slices, whole
from voxelmill.model.checkpoint import pack_model
from voxelmill.model.config import ModelConfig
from voxelmill.model.package import load_config
from voxelmill.patches import Patch, Sides, join_patches, patch_of, save_batch, save_patches
from voxelmill.plan import Plan
from voxelmill.planning import Options, make_plan
from voxelmill.reader import NetworkImage
from voxelmill.task import Task


@dataclass(frozen=True)
class Case:
    """A model and the image that it meets."""

    patch: tuple[int, ...]
    shape: tuple[int, int, int]
    border: tuple[tuple[int, int], ...] = ((0, 0), (0, 0), (0, 0))
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channels: int = 1
    flip: str = ""
    tile: tuple[int, int, int] = (32, 32, 32)
    model: dict[str, Any] = field(default_factory=dict)


CASES = {
    "isotropic": Case((16, 16, 16), (61, 50, 75)),
    "nonzero box": Case((16, 16, 16), (70, 90, 75), border=((30, 2), (4, 20), (1, 36)), tile=(16, 16, 16)),
    "2d": Case((24, 20), (20, 88, 86), model={"configuration": "2d"}),
    "one plane": Case((24, 20), (1, 160, 280), model={"configuration": "2d"}),
    "transposed, flipped": Case((8, 24, 20), (88, 86, 41), flip="zx", model={"transpose_forward": (2, 0, 1)}),
    "several channels": Case((16, 16, 16), (50, 51, 52), channels=2),
    "smaller than a patch": Case((16, 16, 16), (9, 40, 11), tile=(16, 16, 16)),
    "resampled": Case((16, 16, 16), (50, 51, 86), spacing=(1, 1.3, 0.8)),
    "resampled apart": Case((8, 24, 24), (40, 88, 92), spacing=(3.2, 1.0, 0.9)),
    "resampled and small": Case(
        (16, 16, 16), (40, 20, 51), border=((2, 3), (3, 3), (2, 0)), spacing=(1, 0.5, 0.8), tile=(16, 16, 16)
    ),
}


@cache
def config_of(name: str) -> ModelConfig:
    import tempfile

    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        make_model_folder(
            Path(folder) / "in", patch_size=case.patch, channels=case.channels, features=(4, 8), **case.model
        )
        pack_model(Path(folder) / "in", Path(folder) / "model", spacing_unit="mm")
        return load_config(Path(folder) / "model")


@dataclass(frozen=True)
class Sample:
    image: np.ndarray
    plan: Plan
    stored: StoredImage
    folder: Path


def sample_of(name: str, folder: Path) -> Sample:
    case = CASES[name]
    image = textured(case.shape, case.channels, 1, case.border)
    out = folder / "s"
    info = imported(image, out, tuple(1000 * s for s in case.spacing), flip=case.flip)
    plan = make_plan(config_of(name), info, Options(threads=1, shard_size=16, tile_size=case.tile))
    return Sample(image, plan, StoredImage(out / "s.image.zarr", info), folder / "patches")


class Elsewhere(StoredImage):
    """A stored image of which only a box is known; the rest is noise."""

    def __init__(self, image: StoredImage, known: Box, voxels: np.ndarray):
        self.info, self.known, self.voxels = image.info, known, voxels

    def read(self, channel: int, box: Box) -> np.ndarray:
        full = np.random.default_rng(0).integers(0, 2000, self.info.shape).astype(self.info.dtype)
        full[slices(self.known)] = self.voxels[channel]
        return full[slices(box)]


@pytest.mark.parametrize("name", CASES)
def test_patches_hold_what_windows_look_at_and_cores_are_the_image(name: str, tmp_path: Path) -> None:
    sample = sample_of(name, tmp_path)
    plan, image = sample.plan, sample.stored
    files = save_patches(plan, image, sample.folder, 1_000_000)
    assert len(files) == 2 * math.prod(plan.grid.blocks)
    assert sorted(files) == sorted(sample.folder.iterdir())
    total = 0
    for path in files[1::2]:
        patch = Patch.load(path)
        assert patch == patch_of(plan, patch.tile, image)
        with open_image(path.with_suffix(".tif")) as opened:
            assert opened.shape == patch.shape and opened.dtype == image.info.dtype == patch.dtype
            assert np.allclose(opened.spacing, image.info.spacing)
            voxels = np.stack([opened.read(c, whole(opened.shape[1:])) for c in range(opened.shape[0])])
        # the whole image with zeros around it, cut at the patch's box
        around = 40
        wide = np.pad(sample.image, [(0, 0), *[(around, around)] * 3])
        at = tuple(slice(a + around, b + around) for a, b in patch.box)
        assert np.array_equal(voxels, wide[(slice(None), *at)])
        real = tuple(
            (p, p + n - a - b)
            for p, n, a, b in zip(
                patch.position, patch.shape[1:], patch.padding.before, patch.padding.after, strict=True
            )
        )
        for axis in range(3):
            (a, b), (c, d) = real[axis], patch.core[axis]
            assert 0 <= a <= c < d <= b <= plan.shape[axis]
            assert (c - a, b - d) == (patch.halo.before[axis], patch.halo.after[axis])
            assert patch.padding.before[axis] == 0 or a == 0
            assert patch.padding.after[axis] == 0 or b == plan.shape[axis]
        block = plan.block(patch.tile)
        assert patch.windows == (plan.windows(block) if block in plan.tiles else 0)
        total += patch.windows
        if patch.windows:
            inner = tuple(
                slice(b, n - a)
                for b, n, a in zip(patch.padding.before, patch.shape[1:], patch.padding.after, strict=True)
            )
            known = Elsewhere(image, real, voxels[(slice(None), *inner)])
            box = tuple(
                (axis.starts[axis.tiles[i][0]], axis.starts[axis.tiles[i][1] - 1] + axis.patch)
                for axis, i in zip(plan.axes, block, strict=True)
            )
            allowed = 1e-5 if any(axis.data.kind == "cubic" for axis in plan.axes) else 0
            assert np.abs(NetworkImage(plan, known).read(box) - NetworkImage(plan, image).read(box)).max() <= allowed
        else:
            assert patch.box == patch.core
    assert total == plan.n_windows
    joined = join_patches(sample.folder, "s")
    assert joined.shape == sample.image.shape and joined.dtype == sample.image.dtype
    for channel, voxels in enumerate(sample.image):
        assert np.array_equal(joined.read(channel, whole(voxels.shape)), voxels)
    odd = tuple((n // 3, max(n // 3 + 1, n - 2)) for n in plan.shape)
    assert np.array_equal(joined.read(0, odd), sample.image[0][slices(odd)])


def test_halo_and_padding_in_numbers(tmp_path: Path) -> None:
    plan, image = (sample := sample_of("smaller than a patch", tmp_path)).plan, sample.stored
    patches = [patch_of(plan, number, image) for number in range(math.prod(plan.grid.blocks))]
    # a patch of 16 on 9 and 11 voxels: nnU-Net pads the smaller half below
    assert {(p.padding.before[0], p.padding.after[0]) for p in patches} == {(3, 4)}
    assert {(p.padding.before[2], p.padding.after[2]) for p in patches} == {(2, 3)}
    assert {p.shape[1] for p in patches} == {p.shape[3] for p in patches} == {16}
    assert all(p.position[0] == p.position[2] == 0 for p in patches)
    first = patches[0]
    assert first.core[1][0] == 0 and first.halo == Sides((0, 0, 0), (0, 0, 0))
    assert first.origin == (-3000.0, 0.0, -2000.0)
    assert first.model_patch_size == (16, 16, 16)


def test_halo_is_no_more_than_windows_need(tmp_path: Path) -> None:
    plan, image = (sample := sample_of("isotropic", tmp_path)).plan, sample.stored
    assert plan.axes[2].blocks == (0, 32, 75)
    first, second = plan.axes[2].tiles
    left, right = patch_of(plan, 0, image), patch_of(plan, 1, image)
    reach = [axis.starts[axis.tiles[0][1] - 1] + 16 for axis in plan.axes]
    assert left.halo == Sides((0, 0, 0), tuple(r - a.blocks[1] for r, a in zip(reach, plan.axes, strict=True)))
    assert right.position[2] == plan.axes[2].starts[second[0]] and first[1] == second[0]


def test_a_box_read_in_place_and_units_without_size(tmp_path: Path) -> None:
    sample = sample_of("several channels", tmp_path)
    info = replace(sample.stored.info, unit="pixel", spacing=(1.0, 1.0, 1.0), array=ArrayLocation("0", "czyx", (1, 0)))
    stored = StoredImage(tmp_path / "s" / "s.image.zarr", info)
    save_patches(sample.plan, stored, sample.folder, 10**9)
    with tifffile.TiffFile(sample.folder / "s.t0.tif") as tif:
        assert tif.is_imagej and "unit" not in (tif.imagej_metadata or {})
        assert tif.series[0].axes == "ZCYX"
    joined = join_patches(sample.folder, "s")
    assert joined.spacing is None
    assert np.array_equal(joined.read(0, whole(info.shape)), sample.image[1])


def test_a_missing_or_foreign_patch_is_an_error(tmp_path: Path) -> None:
    sample = sample_of("isotropic", tmp_path)
    save_patches(sample.plan, sample.stored, sample.folder, 10**9)
    with pytest.raises(InputMissingError, match="no patches"):
        join_patches(sample.folder, "t")
    text = (sample.folder / "s.t1.json").read_text()
    (sample.folder / "s.t1.json").write_text(text.replace('"uint16"', '"uint8"'))
    with pytest.raises(BadDataError, match="not of one image"):
        join_patches(sample.folder, "s")
    (sample.folder / "s.t1.json").write_text(text.replace('"halo"', '"hola"'))
    with pytest.raises(BadDataError, match="not the JSON of a patch"):
        join_patches(sample.folder, "s")
    (sample.folder / "s.t1.json").unlink()
    with pytest.raises(InputMissingError, match="a patch is missing"):
        join_patches(sample.folder, "s")
    (sample.folder / "s.t1.json").write_text(text)
    (sample.folder / "s.t1.tif").unlink()
    with pytest.raises(InputMissingError, match=r"s\.t1\.tif is missing"):
        join_patches(sample.folder, "s")


def test_a_batch(tmp_path: Path) -> None:
    sample = sample_of("isotropic", tmp_path)
    task = tmp_path / "task"
    (task / "stores").mkdir(parents=True)
    (task / "stores" / "s.image.zarr").symlink_to(tmp_path / "s" / "s.image.zarr")
    sample.stored.info.save(task / "s.image.json")
    sample.plan.save(task / "s.plan.json")
    first, second = Task("save_patches", "b"), Task("save_patches", "b")
    save_batch(task, 10**9, first)
    save_batch(task, 10**5, second)
    blocks = math.prod(sample.plan.grid.blocks)
    assert first.counts == {"s": {"patches": blocks}}
    assert first.outputs == second.outputs and len(first.outputs) == 2 * blocks
    assert sorted(path.name for path in (task / "s" / "patches").iterdir()) == sorted(
        f"s.t{n}.{kind}" for n in range(blocks) for kind in ("tif", "json")
    )
    value = read_json(task / "s" / "patches" / "s.t0.json")
    assert value["padding"] == {"before": [0, 0, 0], "after": [0, 0, 0]}
    assert value["core"] == [[0, 32], [0, 32], [0, 32]] and value["position"] == [0, 0, 0]
