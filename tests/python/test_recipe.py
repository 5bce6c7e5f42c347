"""The recipe ais.yml against its steps done one by one, on whole arrays, with the libraries themselves."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import cc3d
import numpy as np
import pytest
import tifffile
import torch
from skan import Skeleton
from skimage.morphology import skeletonize

from conftest import ROOT
from reference import predict_reference
from test_nextflow import schema_properties
from test_pipeline import finished
from voxelmill.ensemble import with_onednn
from voxelmill.phantom import Curve, Tube, draw, photograph

RECIPE = ROOT / "assets" / "recipes" / "ais.yml"
SPACING = (3.0, 2.0, 2.0)
FOLDS = ("0", "1", "2", "3", "4")
DUST = 1500


def curve(start: tuple[float, ...], heading: tuple[float, ...], bend: tuple[float, ...], length: float) -> Curve:
    """A bent centre line, in micrometres."""
    t = np.linspace(0, 1, int(length))
    along = np.array(heading) / np.linalg.norm(heading)
    points = np.array(start) + np.outer(t * length, along) + np.outer(np.sin(np.pi * t), bend)
    return Curve(points, np.full(len(t), 6.0), np.full(len(t), 3000.0))


def hyperstack() -> np.ndarray:
    """uint16 (z, c, y, x): noise, and behind it four tubes: plain, branched, at the border, small."""
    trunk = curve((45, 30, 100), (0.02, 1, 0), (0, 0, 10), 170)
    tubes = [
        Tube(1, (curve((48, 25, 30), (0, 1, 0), (4, 0, 15), 175),)),
        Tube(2, (trunk, curve((50, 100, 110), (0.05, 0.3, 1), (5, 0, 0), 80))),
        Tube(3, (curve((48, 30, 140), (0, 0.1, 1), (0, 0, 0), 90),)),
        Tube(4, (curve((50, 195, 170), (0, -0.1, 0.3), (0, 5, 0), 20),)),
    ]
    rng = np.random.default_rng(0)
    _, signal = draw(tubes, (32, 112, 112), SPACING)
    return np.stack([rng.integers(0, 900, signal.shape).astype(np.uint16), photograph(signal, SPACING, rng)], axis=1)


def five_folds(folder: Path) -> Path:
    """The demo's model with five folds that differ a little, each with a best and a last checkpoint."""
    demo = ROOT / "assets" / "demo_model"
    shutil.copytree(demo, folder, ignore=shutil.ignore_patterns("fold_*"))
    for fold in FOLDS:
        checkpoint = torch.load(demo / "fold_all" / "checkpoint_final.pth", map_location="cpu", weights_only=False)
        noise = torch.Generator().manual_seed(int(fold))
        for name, weights in checkpoint["network_weights"].items():
            if name.endswith("weight"):
                weights += 0.02 * weights.std(correction=0) * torch.randn(weights.shape, generator=noise)
        (folder / f"fold_{fold}").mkdir()
        for which in ("best", "final"):
            torch.save(checkpoint, folder / f"fold_{fold}" / f"checkpoint_{which}.pth")
    return folder


def stretched(volume: np.ndarray) -> np.ndarray:
    """8 bits between the minimum and the 97.5th percentile, by sorting all voxels."""
    ordered = np.sort(volume, axis=None)
    low, high = int(ordered[0]), max(255, int(ordered[int(np.ceil(0.975 * (volume.size - 1))) - 1]))
    assert ordered[-1] > 255
    return np.clip(np.floor((volume.astype(float) - low) * (256 / (high - low + 1)) + 0.5), 0, 255).astype(np.uint8)


@dataclass
class Expected:
    """What the steps give: foreground, ids (z, y, x), and of every object away from the border its measures."""

    foreground: np.ndarray
    instances: np.ndarray
    branch_um: dict[int, float]
    profile: dict[int, list[int]]


def directly(volume: np.ndarray, model: Path) -> Expected:
    """The recipe's steps on the whole volume (z, y, x)."""
    shown = stretched(volume)[:, ::-1, ::-1]
    mean, std = float(shown.mean(dtype=float)), float(shown.std(dtype=float))
    found = predict_reference(
        model, shown[None], SPACING, [(mean, std)], folds=FOLDS, mirroring=True, kernels=with_onednn, stock=False
    )
    foreground = found.labels[:, ::-1, ::-1] > 0
    components = cc3d.connected_components(np.ascontiguousarray(foreground), connectivity=26)
    instances = np.zeros_like(components)
    branch_um, profile = {}, {}
    kept = [i for i in range(1, components.max() + 1) if (components == i).sum() >= DUST]
    for number, component in enumerate(kept, 1):
        mask = components == component
        instances[mask] = number
        places = np.argwhere(mask)
        if (places.min(0) == 0).any() or (places.max(0) == np.array(volume.shape) - 1).any():
            continue
        skeleton = Skeleton(skeletonize(mask, method="lee") > 0, spacing=SPACING)
        longest = int(np.argmax(skeleton.path_lengths()))
        branch_um[number] = float(skeleton.path_lengths()[longest])
        at = skeleton.path_coordinates(longest).astype(int)
        profile[number] = volume[tuple(at.T)].tolist()
    return Expected(foreground, instances, branch_um, profile)


def test_the_recipe_names_parameters_that_exist() -> None:
    rules = schema_properties()
    lines = [line for line in RECIPE.read_text().splitlines() if line and not line.startswith("#")]
    for line in lines:
        name, _, value = line.partition(":")
        choices = rules[name].get("enum")
        assert choices is None or value.strip().strip("'") in map(str, choices), line


@pytest.mark.nextflow
@pytest.mark.slow
def test_the_recipe_does_what_its_steps_do_on_whole_arrays(tmp_path: Path) -> None:
    image = hyperstack()
    sizes = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX", SPACING, strict=True)}
    metadata = {"axes": "ZCYX", **sizes, **{f"PhysicalSize{axis}Unit": "µm" for axis in "ZYX"}}
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images" / "a.ome.tif", image, ome=True, metadata=metadata)
    model = five_folds(tmp_path / "model")
    small = ("--threads", "1", "--memory_budget", "2 GB", "--shard_size", "64", "--tile_size", "32,64,64")
    finished(tmp_path, "-params-file", RECIPE, "--input", "images", "--model", model, *small)

    expected = directly(image[:, 1], model)
    results = tmp_path / "results" / "a"
    raw, binary, instances = (
        tifffile.imread(results / f"a.label_{name}.tif") for name in ("raw", "binary", "instances")
    )
    np.testing.assert_array_equal(raw, np.where(expected.foreground, 255, 0))
    np.testing.assert_array_equal(binary, np.where(expected.instances > 0, 255, 0))
    np.testing.assert_array_equal(instances, expected.instances)
    assert len(expected.branch_um) >= 2, "too few objects away from the border to compare"
    assert instances.max() > len(expected.branch_um), "no object at the border"

    axons = json.loads((results / "a.axons.json").read_text())
    assert set(axons) == {str(number) for number in expected.branch_um}
    for number, length in expected.branch_um.items():
        axon = axons[str(number)]
        assert set(axon) == {"volume", "length", "profile"}
        assert axon["volume"] == (expected.instances == number).sum()
        assert axon["length"] == pytest.approx(length * 1e-6, rel=1e-6)
        assert axon["profile"] in (expected.profile[number], expected.profile[number][::-1])
