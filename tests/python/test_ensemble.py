"""The mean of several models: nnU-Net's own ensemble to the last step, and the same bytes for any partition."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import zarr
from nnunetv2.ensembling.ensemble import average_probabilities
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from conftest import ROOT
from inprocess import imported, predicted, textured
from models import make_model_folder
from reference import predict_reference
from test_exact import REGIONS, tree_digest
from test_nextflow import nextflow, tasks
from voxelmill.average import average_batch, average_models, average_shard, mean_steps
from voxelmill.check import check_input
from voxelmill.compose import compose_store
from voxelmill.ensemble import with_onednn
from voxelmill.errors import ModelMismatchError, TemporaryError, VoxelmillError
from voxelmill.fit import CheckOptions
from voxelmill.image import ImageInfo
from voxelmill.model.checkpoint import pack_model
from voxelmill.model.config import ModelConfig, agree_members
from voxelmill.model.network import load_networks
from voxelmill.plan import Plan
from voxelmill.planning import Options
from voxelmill.probabilities import MEMBER_TYPE, largest_step
from voxelmill.probability_store import block_name
from voxelmill.task import Task

SHAPE, BORDER = (36, 44, 50), ((3, 2), (4, 0), (1, 5))
STEP = 1 / largest_step(MEMBER_TYPE)
FLOAT32 = 5e-6
PLAIN = {"labels": {"background": 0, "core": 1, "border": 2}}
MODELS: list[dict[str, Any]] = [
    {"patch_size": (16, 16, 16), "seed": 0},
    {"patch_size": (24, 20), "seed": 5, "configuration": "2d"},
    {"patch_size": (8, 16, 16), "seed": 9, "spacing": (2.0, 2.0, 1.5), "transpose_forward": (2, 0, 1)},
]
TILES = (((16, 16, 16), (32, 32, 32), (16, 16, 32)), (None, (16, 16, 16), (48, 16, 16)))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=["classes", "regions"])
def packages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Labels, and a folder with three models of them: ``<n>`` as nnU-Net left it and ``<n>.package``."""
    labels = PLAIN if request.param == "classes" else REGIONS
    folder = tmp_path_factory.mktemp(request.param)
    for number, model in enumerate(MODELS, start=1):
        found = make_model_folder(folder / str(number), features=(4, 8), **{**model, **labels})
        pack_model(found, folder / f"{number}.package", spacing_unit="mm")
    return labels, folder


def members(
    folder: Path, out: Path, info: ImageInfo, tiles: Sequence[tuple[int, ...] | None], n_tasks: int
) -> list[Plan]:
    """Predict with every model; all blocks of probabilities go to ``<out>/blocks``."""
    plans = []
    (out / "blocks").mkdir()
    for number, tile in enumerate(tiles, start=1):
        own = out / str(number)
        own.mkdir()
        (own / "s.image.zarr").symlink_to(out / "s.image.zarr")
        config, _ = pack_model(folder / f"{number}.package", out / f"{number}.copy")
        networks = load_networks(folder / f"{number}.package", config)
        options = Options(mirroring=False, threads=1, shard_size=16, tile_size=tile, probabilities=MEMBER_TYPE)
        plans.append(predicted(config, networks, info, own, options, n_tasks, member=number).plan)
        for path in (own / "blocks").glob("*.probabilities.zarr"):
            path.rename(out / "blocks" / path.name)
    return plans


def test_labels_are_those_of_nnunets_ensemble(packages: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    labels, folder = packages
    image = textured(SHAPE, seed=3, border=BORDER)
    info = imported(image, tmp_path)
    plans = members(folder, tmp_path, info, TILES[0], 2)
    assert len({plan.grid.cuts for plan in plans}) > 1
    average_models(plans, tmp_path / "blocks", tmp_path / "out", "uint16")
    compose_store(plans[0].grid, tmp_path / "out", tmp_path)
    found = np.asarray(zarr.open_array(str(tmp_path / "labels.ome.zarr"), path="semantic/0", mode="r")[:])
    means = np.asarray(zarr.open_array(str(tmp_path / "out" / "probabilities.ome.zarr"), path="0", mode="r")[:])

    files = []
    for number in range(1, len(MODELS) + 1):
        statistics = [(s.mean, s.std) for s in info.statistics]
        reference = predict_reference(
            folder / str(number), image, (1.0, 1.0, 1.0), statistics, kernels=with_onednn, stock=False
        )
        files.append(str(tmp_path / f"{number}.npz"))
        np.savez(files[-1], probabilities=reference.probabilities)
    theirs = average_probabilities(files)
    manager = LabelManager(labels["labels"], labels.get("regions_class_order"))
    segmentation = manager.convert_probabilities_to_segmentation(theirs)

    assert np.abs(means * STEP - theirs).max() <= STEP + FLOAT32
    differs = found != segmentation
    if manager.has_regions:
        margin = np.abs(theirs - 0.5).min(axis=0)
    else:
        best = np.sort(theirs, axis=0)
        margin = best[-1] - best[-2]
    assert differs.mean() < 1e-4
    assert (margin[differs] <= STEP + FLOAT32).all()
    assert (np.bincount(segmentation.ravel().astype(int)) > 0).sum() >= 3
    # no model alone gives these labels
    for number in range(1, len(MODELS) + 1):
        own = manager.convert_probabilities_to_segmentation(np.load(files[number - 1])["probabilities"])
        assert (own != found).mean() > 0.05


def test_same_bytes_for_any_partition(packages: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    _, folder = packages
    image = textured(SHAPE, seed=4, border=BORDER)
    digests = set()
    for number, tiles in enumerate(TILES):
        out = tmp_path / str(number)
        plans = members(folder, out, imported(image, out), tiles, 1 + 2 * number)
        average_models(plans, out / "blocks", out / "out", "uint8")
        compose_store(plans[0].grid, out / "out", out)
        digests.add((tree_digest(out / "labels.ome.zarr"), tree_digest(out / "out" / "probabilities.ome.zarr")))
    assert len(digests) == 1


def test_a_batch_lacks_nothing_in_silence(packages: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    _, folder = packages
    info = imported(textured((20, 20, 20), seed=4), tmp_path)
    plans = members(folder, tmp_path, info, (None, None), 1)
    for plan in plans:
        plan.save(tmp_path / Plan.file_name("s", plan.member))
    for path in (tmp_path / "blocks").iterdir():
        path.rename(tmp_path / path.name)
    record = Task("average_models", "s")
    with pytest.raises(TemporaryError, match="plans of models 1, 2 arrived"):
        average_batch(tmp_path, 3, None, record)
    average_batch(tmp_path, 2, None, record)
    counts = json.loads((tmp_path / "s" / plans[0].grid.block_name(0) / "counts.json").read_text())
    assert sum(counts.values()) > 0
    assert not (tmp_path / "s" / "probabilities.ome.zarr").exists()
    other = [plans[0], replace(plans[1], label_names={**plans[1].label_names, "1": "else"})]
    with pytest.raises(ModelMismatchError, match="other classes"):
        average_models(other, tmp_path, tmp_path / "other")
    lost = tmp_path / block_name(plans[1].grid, plans[1].grid.reached[-1], 2)
    lost.rename(tmp_path / "away")
    with pytest.raises(TemporaryError, match="of model 2 did not arrive"):
        average_models(plans, tmp_path, tmp_path / "other")


def test_mean_steps() -> None:
    total = np.arange(3 * 65534 + 1, dtype=np.uint32)
    for dtype in ("uint8", "uint16"):
        found = mean_steps(total, 3, dtype)
        assert found.dtype == dtype
        exact = total / (3 * 65534) * largest_step(dtype)
        assert np.abs(found - exact).max() <= 0.5 + 1e-9
        assert found[0] == 0
        assert found[-1] == largest_step(dtype)


def config_of(folder: Path, **changes: Any) -> ModelConfig:
    model = make_model_folder(folder / "nnunet", patch_size=(16, 16, 16), features=(2, 4), **changes)
    return pack_model(model, folder / "package", spacing_unit="mm")[0]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"labels": {"background": 0, "core": 2, "border": 1}}, "labels"),
        ({"labels": {"background": 0, "core": 1}}, "labels"),
        ({"labels": {"background": 0, "core": 1, "border": 2, "third": 3}}, "labels"),
        ({"labels": {"background": 0, "core": [1, 2], "border": 2}, "regions_class_order": [1, 2]}, "labels"),
        ({"channels": 2}, "channels"),
    ],
)
def test_models_that_cannot_be_averaged(changes: dict[str, Any], what: str, tmp_path: Path) -> None:
    first = config_of(tmp_path / "1")
    other = config_of(tmp_path / "2", **changes)
    with pytest.raises(ModelMismatchError, match=f"the {what} of model 2 are .*") as caught:
        agree_members([first, other])
    listed = "core 1, border 2" if what == "labels" else "channel0"
    assert listed in str(caught.value)
    agree_members([first, config_of(tmp_path / "3", spacing=(2.0, 2.0, 2.0), seed=3)])


def test_the_order_of_regions_is_part_of_their_meaning(tmp_path: Path) -> None:
    first = config_of(tmp_path / "1", **REGIONS)
    turned = dict(reversed(REGIONS["labels"].items()))
    other = config_of(tmp_path / "2", labels=turned, regions_class_order=REGIONS["regions_class_order"])
    with pytest.raises(ModelMismatchError, match="labels of model 2"):
        agree_members([first, other])
    agree_members([first, replace(first, ignore_label=4, labels={**first.labels, "ignore": 4})])


@pytest.mark.parametrize("order", [None, (3, 1, 2)])
def test_ties(order: tuple[int, ...] | None) -> None:
    """Of equal means the first is taken; a region needs more than a half."""

    class Plain:
        regions_class_order, heads, label_dtype = order, 3, "uint8"

    class Given:
        plan, dtype = Plain, MEMBER_TYPE

        def __init__(self, *heads: int):
            self.heads = heads

        def read(self, head: int, box: object) -> np.ndarray:
            return np.full((1, 1, 1), self.heads[head], np.uint16)

    for first, second, label, regions in [
        ((65534, 0, 0), (0, 65534, 0), 0, 0),
        ((0, 30000, 35534), (0, 35534, 30000), 1, 0),
        ((0, 30000, 35534), (0, 35534, 30001), 2, 2),
        ((40000, 32768, 0), (40000, 32767, 0), 0, 1),
    ]:
        found = average_shard([Given(*first), Given(*second)], (), None)  # type: ignore[list-item]
        assert found.item() == (label if order is None else regions)


def test_an_image_must_fit_every_model(tmp_path: Path) -> None:
    (tmp_path / "staged" / "1").mkdir(parents=True)
    image = tmp_path / "staged" / "1" / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((30, 31, 32), np.uint8), np.eye(4)), image)  # type: ignore[attr-defined]
    first, other = config_of(tmp_path / "1"), config_of(tmp_path / "2", spacing=(2.0, 2.0, 2.0))
    schema = ROOT / "assets" / "schema_input.json"

    def figures(*others: ModelConfig) -> dict[str, float]:
        return check_input(None, tmp_path / "staged", schema, first, CheckOptions(), others=others).estimates["a"]

    assert figures(other)["windows"] == figures()["windows"] + 1 > 1
    assert figures(other)["work_bytes"] > figures()["work_bytes"]
    with pytest.raises(VoxelmillError, match="4"):
        figures(config_of(tmp_path / "3", spacing=(4.0, 4.0, 4.0)))


@pytest.mark.nextflow
def test_every_model_has_its_tasks_and_one_task_averages_them(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text("image")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    command = ["run", ROOT, "-stub-run", "-resume", "--input", "a.tif", "--stop_after", "predict"]
    first = nextflow(tmp_path, *command, "--model", "one;two", parser="v2")
    assert first.returncode == 0, first.stdout
    of_model = [("PLAN_TILES", ""), ("PREDICT_TILES", " 0"), ("STITCH_BLOCKS", " 0")]
    own = {n: {f"{process} (stub1 model {n}{group})" for process, group in of_model} for n in (1, 2)}
    behind = {f"{process} (stub1)" for process in ("AVERAGE_MODELS", "COMPOSE_STORE")} | {"BUILD_REPORT"}
    before = {"CHECK_INPUT", "IMPORT_IMAGE (stub1)"}
    assert tasks(first.stdout, "Submitted") - {"PACK_MODEL (1)", "PACK_MODEL (2)"} == own[1] | own[2] | behind | before

    (tmp_path / "two" / "new").touch()
    second = nextflow(tmp_path, *command, "--model", "one;two", parser="v2")
    again = tasks(second.stdout, "Submitted")
    assert again >= own[2] | {"AVERAGE_MODELS (stub1)"}
    assert not again & own[1]
    assert own[1] | {"IMPORT_IMAGE (stub1)"} <= tasks(second.stdout, "Cached")
