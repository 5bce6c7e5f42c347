"""Tiled prediction equals nnU-Net's network on the whole volume, voxel by voxel, for any partition."""

from __future__ import annotations

import copy
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from conftest import ROOT
from inprocess import Result, imported, predicted, textured
from models import make_model_folder
from reference import Reference, predict_reference
from voxelmill.blend import REGION_THRESHOLD, gaussian_weights
from voxelmill.ensemble import with_onednn
from voxelmill.model.checkpoint import pack_model
from voxelmill.model.config import ModelConfig
from voxelmill.model.network import load_networks
from voxelmill.phantom import tubes
from voxelmill.planning import Options, window_starts

TORCH_RESAMPLING = {
    "resampling_data": "resample_torch_fornnunet",
    "resampling_data_kwargs": {"is_seg": False, "force_separate_z": None, "memefficient_seg_resampling": False},
    "resampling_probabilities": "resample_torch_fornnunet",
    "resampling_probabilities_kwargs": {
        "is_seg": False,
        "force_separate_z": None,
        "memefficient_seg_resampling": False,
    },
}
REGIONS = {
    "labels": {"background": 0, "whole": [1, 2, 3], "middle": [2, 3], "core": 3},
    # not ascending: where regions overlap, the last one written decides
    "regions_class_order": [3, 1, 2],
}


@dataclass(frozen=True)
class Case:
    """A model, a volume it meets, and a tile size that cuts the volume into 3 x 3 x 3 shards or more."""

    patch: tuple[int, ...]
    shape: tuple[int, int, int]
    border: tuple[tuple[int, int], ...] = ((3, 2), (4, 0), (1, 5))
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channels: int = 1
    folds: tuple[str, ...] = ("0",)
    mirroring: bool = False
    step_size: float = 0.5
    flip: str = ""
    tile: tuple[int, int, int] = (16, 16, 16)
    seed: int = 0
    model: dict[str, Any] = field(default_factory=dict)

    @property
    def resampled(self) -> bool:
        return self.spacing != (1.0, 1.0, 1.0)


CASES = {
    "isotropic": Case((16, 16, 16), (61, 50, 55)),
    "anisotropic patch": Case((8, 24, 20), (41, 88, 86), tile=(16, 32, 32), seed=4),
    "2d": Case((24, 20), (33, 88, 86), tile=(16, 32, 32), model={"configuration": "2d"}),
    "transposed axes": Case((8, 24, 20), (88, 86, 41), model={"transpose_forward": (2, 0, 1)}, seed=4),
    "several channels": Case((16, 16, 16), (50, 51, 52), channels=2),
    "folds and mirroring": Case((16, 16, 16), (49, 50, 51), folds=("0", "1"), mirroring=True, seed=1),
    "overlapping regions": Case((16, 16, 16), (50, 50, 50), model=REGIONS),
    "residual encoder": Case((16, 16, 16), (50, 50, 50), model={"arch": "ResidualEncoderUNet"}),
    "flipped": Case((16, 16, 16), (50, 55, 49), flip="yx"),
    "step 0.8": Case((16, 16, 16), (60, 55, 49), step_size=0.8),
    "CT": Case((16, 16, 16), (50, 50, 50), model={"normalization": ["CTNormalization"]}),
    "resampled": Case((16, 16, 16), (50, 51, 86), spacing=(1, 1.3, 0.8)),
    "resampled apart": Case((8, 24, 24), (40, 88, 92), spacing=(3.2, 1.0, 0.9), seed=4),
    "resampled by torch": Case((16, 16, 16), (50, 51, 86), spacing=(1, 1.3, 0.8), model=TORCH_RESAMPLING),
    "resampled regions": Case((16, 16, 16), (50, 51, 86), spacing=(1.2, 1.0, 0.8), model=REGIONS),
    "smaller than a patch": Case((16, 16, 16), (9, 40, 11), border=((0, 0),) * 3),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def packed(case: Case, folder: Path) -> tuple[Path, ModelConfig, list[torch.nn.Module]]:
    """nnU-Net's folder of a case, its packed configuration and networks."""
    model = make_model_folder(
        folder / "nnunet",
        patch_size=case.patch,
        channels=case.channels,
        folds=case.folds,
        seed=case.seed,
        **case.model,
    )
    config, _ = pack_model(model, folder / "package", folds="all", checkpoint="checkpoint_final.pth", spacing_unit="mm")
    return model, config, load_networks(folder / "package", config)


def both(case: Case, folder: Path) -> tuple[Result, Reference]:
    """A case through the tiles and through the oracle."""
    model, config, networks = packed(case, folder)
    image = textured(case.shape, case.channels, 1, case.border)
    info = imported(image, folder / "s", tuple(1000 * s for s in case.spacing), flip=case.flip)
    options = Options(mirroring=case.mirroring, step_size=case.step_size, threads=1, shard_size=16, tile_size=case.tile)
    result = predicted(config, networks, info, folder / "s", options, n_tasks=3)
    flips = tuple(slice(None, None, -1 if axis in case.flip else 1) for axis in "zyx")
    reference = predict_reference(
        model,
        image[(slice(None), *flips)].copy(),
        case.spacing,
        [(s.mean, s.std) for s in info.statistics],
        case.folds,
        case.mirroring,
        case.step_size,
        with_onednn,
    )
    unflipped = (getattr(reference, name)[flips] for name in ("labels", "stock", "margin", "rounding"))
    return result, Reference(*unflipped, reference.means, reference.stds)


@pytest.mark.parametrize("name", CASES)
def test_labels_equal_whole_volume(name: str, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    case = CASES[name]
    result, reference = both(case, tmp_path)

    counts = np.bincount(reference.labels.ravel().astype(int))
    assert (counts > 0).sum() >= 3
    assert counts.max() <= 0.95 * counts.sum()
    if name != "smaller than a patch":
        assert all(len(axis.blocks) > 3 for axis in result.plan.axes)
        assert result.plan.axes[1].crop != (0, result.plan.axes[1].size)

    # with resampling, values differ by 1e-9 where a brick ends: nearly all voxels are owed, not all
    allowed = int(1e-4 * reference.labels.size) if case.resampled else 0
    assert (result.labels != reference.labels).sum() <= allowed

    for statistics, mean, std in zip(result.info.statistics, reference.means, reference.stds, strict=False):
        assert statistics.mean == pytest.approx(mean, rel=1e-5)
        assert statistics.std == pytest.approx(std, rel=1e-5)

    # stock nnU-Net sums in float16; where its label is another one, that rounding can reach across the margin
    differs = reference.labels != reference.stock
    record_property("share of voxels that stock nnU-Net labels otherwise", float(differs.mean()))
    assert differs.mean() < 0.001
    if not case.resampled:
        assert (reference.margin[differs] <= reference.rounding[differs]).all()


@pytest.mark.parametrize("which", ["nuclei", "demo"])
def test_trained_models(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The shared nuclei model on its test image, and the demo model on a generated volume, both with a border."""
    if which == "nuclei":
        data = request.getfixturevalue("shared_data") / "nnunet_model"
        model, border, tile = data / "tiny_ovule_nuclei", ((1, 2), (4, 0), (0, 3)), (16, 48, 48)
        image = np.tile(tifffile.imread(data / "test_case" / "nuc_d_0000.tif")[None], (1, 1, 2, 2))[:, :, :150, :150]
    else:
        model, border, tile = ROOT / "assets" / "demo_model", ((2, 1), (3, 0), (0, 5)), (32, 64, 64)
        image = tubes((99, 195, 197), seed=11, n=120).image[None]
    image = image.copy()
    for axis, (before, after) in enumerate(border, start=1):
        image.swapaxes(0, axis)[:before] = 0
        image.swapaxes(0, axis)[image.shape[axis] - after :] = 0
    config, _ = pack_model(model, tmp_path / "package", spacing_unit="um")
    info = imported(image, tmp_path / "s", config.spacing)
    options = Options(mirroring=False, threads=1, shard_size=16, tile_size=tile)
    result = predicted(config, load_networks(tmp_path / "package", config), info, tmp_path / "s", options, n_tasks=2)
    statistics = [(info.statistics[0].mean, info.statistics[0].std)]
    reference = predict_reference(model, image, config.spacing, statistics, ("all",), kernels=with_onednn)

    assert all(len(axis.blocks) > 3 for axis in result.plan.axes)
    assert len(np.unique(reference.labels)) == 3
    assert (result.labels != reference.labels).sum() == 0
    differs = reference.labels != reference.stock
    assert (reference.margin[differs] <= reference.rounding[differs]).all()


@pytest.mark.parametrize("name", ["anisotropic patch", "resampled", "resampled apart", "overlapping regions"])
def test_same_bytes_for_any_partition(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    _, config, networks = packed(case, tmp_path)
    image = textured(case.shape, case.channels, 1, case.border)
    digests, tiles = set(), set()
    for number, (tile, n_tasks) in enumerate([((16, 16, 16), 7), ((32, 32, 32), 1), ((16, 48, 32), 1), (None, 1)]):
        out = tmp_path / str(number)
        info = imported(image, out, tuple(1000 * s for s in case.spacing))
        options = Options(mirroring=False, threads=1, shard_size=16, tile_size=tile)
        result = predicted(config, networks, info, out, options, n_tasks)
        tiles.add(len(result.plan.tiles))
        digests.add(tree_digest(result.store))
    assert len(tiles) >= 3
    assert len(digests) == 1


def tree_digest(folder: Path) -> str:
    """Digest of all files below a folder, names included."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


class CountingNetwork(torch.nn.Module):
    """Two heads; keeps the first value of every window it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[float] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += [float(window.flatten()[0]) for window in x]
        return torch.cat([x, -x], dim=1) / 1e5


@pytest.mark.parametrize("tile", [(16, 16, 16), (32, 16, 48)])
def test_every_window_is_evaluated_once(tile: tuple[int, int, int], tmp_path: Path) -> None:
    case = Case((16, 16, 16), (61, 50, 55), model={"labels": {"background": 0, "object": 1}})
    _, config, _ = packed(case, tmp_path)
    config = replace(config, normalization=("NoNormalization",))
    # every voxel its own value, so that the first one tells which window it is
    image = 1 + np.arange(np.prod(case.shape), dtype=np.int32).reshape(1, *case.shape)
    info = imported(image, tmp_path / "s")
    network = CountingNetwork()
    options = Options(threads=1, shard_size=16, tile_size=tile, mirroring=False)
    result = predicted(config, [network], info, tmp_path / "s", options, n_tasks=5)

    starts = [window_starts(n, p, 0.5) for n, p in zip(case.shape, case.patch, strict=True)]
    expected = sorted(float(image[0, z, y, x]) for z in starts[0] for y in starts[1] for x in starts[2])
    assert sorted(network.calls) == expected
    assert len(set(network.calls)) == len(network.calls) == result.counts.computed
    assert len(result.plan.tiles) > 1


def test_equal_constant_windows_are_computed_once(tmp_path: Path) -> None:
    case = Case((16, 16, 16), (64, 64, 64), model={"labels": {"background": 0, "object": 1}})
    model, config, networks = packed(case, tmp_path)
    image = np.full((1, *case.shape), 7, np.uint16)
    # a second constant on the other side of the mean: mistaken for the first it would change labels
    image[:, 32:] = 3000
    image[:, :20, :20, :20] = textured((20, 20, 20))
    info = imported(image, tmp_path / "s")
    options = Options(threads=1, shard_size=16, tile_size=(64, 64, 64), mirroring=False)
    result = predicted(config, networks, info, tmp_path / "s", options)
    assert result.counts.reused > result.plan.n_windows / 2
    assert result.counts.computed + result.counts.reused == result.plan.n_windows
    reference = predict_reference(model, image, case.spacing, [(s.mean, s.std) for s in info.statistics])
    assert (result.labels != reference.labels).sum() == 0


@pytest.mark.parametrize("patch", [(16, 16, 16), (9, 24, 20), (24, 20), (128, 128, 128)])
def test_weights_are_those_of_nnunet(patch: tuple[int, ...]) -> None:
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    theirs = compute_gaussian(patch, value_scaling_factor=10, device=torch.device("cpu")).numpy()
    assert np.array_equal(gaussian_weights(patch), theirs.astype(np.float64))


def test_region_threshold_is_that_of_torch() -> None:
    around = np.arange(-64, 65, dtype=np.int64) + int(np.float32(REGION_THRESHOLD).view(np.int32))
    logits = np.concatenate([around.astype(np.int32).view(np.float32).astype(np.float64), [-1.0, 0.0, 1e-12, 1e-3]])
    # between float32 neighbours, where the cast decides
    logits = np.concatenate([logits, logits * (1 + 2.0**-26), logits * (1 - 2.0**-26)])
    theirs = (torch.sigmoid(torch.from_numpy(logits).float()) > 0.5).numpy()
    assert np.array_equal(logits > REGION_THRESHOLD, theirs)


@pytest.mark.parametrize(("engine", "allowed"), [("bfloat16", 0.02), ("compile", 0.0)])
def test_other_engines(engine: str, allowed: float, tmp_path: Path) -> None:
    """Declared routes to more speed: the share of voxels whose label changes is small, or none."""
    if engine == "compile" and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    case = Case((16, 16, 16), (40, 40, 40))
    _, config, networks = packed(case, tmp_path)
    image = textured(case.shape, seed=1)
    labels = {}
    for name in ("float32", engine):
        out = tmp_path / name
        info = imported(image, out)
        options = Options(threads=1, shard_size=16, tile_size=(16, 16, 16), mirroring=False, engine=name)
        labels[name] = predicted(config, copy.deepcopy(networks), info, out, options).labels
    differs = (labels["float32"] != labels[engine]).mean()
    assert differs <= allowed
    assert len(np.unique(labels[engine])) == 3
    if engine == "bfloat16":
        assert differs > 0


def test_prediction_does_not_import_nnunet() -> None:
    code = "import sys, voxelmill.predict; print('torch' in sys.modules, 'nnunetv2' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "bin", capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True", "False"]
