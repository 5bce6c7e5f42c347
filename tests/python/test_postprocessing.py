"""nnU-Net's post-processing in blocks, against nnU-Net's own function on the whole volume."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import tempfile
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nnunetv2.postprocessing import remove_connected_components as nnunet
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from assembled import make_grid, write_blocks
from conftest import ROOT
from models import make_model_folder
from voxelmill.compose import compose_store
from voxelmill.errors import BadDataError, InputMissingError, ModelMismatchError, RefusedError, TemporaryError
from voxelmill.files import read_json
from voxelmill.image import slices
from voxelmill.model.checkpoint import pack_model
from voxelmill.model.package import load_config
from voxelmill.model.steps import KEEP_LARGEST, Step, chosen_steps, notice, read_steps, steps_json
from voxelmill.postprocessing import Removed, postprocess_sample
from voxelmill.store import level_factor

REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}


def after(labels: np.ndarray, steps: Sequence[Step], **of_grid: Any) -> np.ndarray:
    """Labels that come out of blocks; everything else that comes out with them is checked here."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        grid = make_grid(labels, **of_grid)
        write_blocks(grid, labels, folder)
        before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        removed = postprocess_sample(grid, steps, folder, folder / "s")
        assert {path: path.read_bytes() for path in before} == before
        result = np.zeros(grid.shape, grid.dtype)
        for block in grid.reached:
            old, out = folder / grid.block_name(block), folder / "s" / grid.block_name(block)
            assert sorted(p.relative_to(old) for p in old.rglob("*")) == sorted(
                p.relative_to(out) for p in out.rglob("*")
            )
            here = slices(grid.block_box(block))
            result[here] = zarr.open_array(str(out), path="0", mode="r")[here]
            values, counts = np.unique(result[here], return_counts=True)
            assert read_json(out / "counts.json") == {
                str(v): n for v, n in zip(values.tolist(), counts.tolist(), strict=True)
            }
        assert sorted(path.name for path in (folder / "s").iterdir()) == sorted(map(grid.block_name, grid.reached))
        compose_store(grid, folder / "s", folder / "composed")
        store = folder / "composed" / "labels.ome.zarr" / "semantic"
        for level in range(2):
            if (store / str(level)).exists():
                factor = level_factor(grid.shape, level)
                small = result[tuple(slice(None, None, f) for f in factor)]
                assert np.array_equal(zarr.open_array(str(store), path=str(level), mode="r")[:], small)
        if len(steps) == 1:
            assert removed[0].voxels == np.count_nonzero(
                np.isin(labels, steps[0].labels) & (removed_mask(labels, steps[0]))
            )
    return result


def removed_mask(labels: np.ndarray, step: Step) -> np.ndarray:
    """Voxels that nnU-Net's function takes away: they get a label that no other has."""
    marked = nnunet.remove_all_but_largest_component_from_segmentation(labels.astype(np.int16), list(step.labels), -1)
    return marked == -1


def whole(labels: np.ndarray, steps: Sequence[Step]) -> np.ndarray:
    """nnU-Net's functions on the whole volume."""
    kwargs = [{"labels_or_regions": list(step.labels), "background_label": step.background_label} for step in steps]
    function = nnunet.remove_all_but_largest_component_from_segmentation
    return nnunet.apply_postprocessing(labels, [function] * len(steps), kwargs)


LABELS = st.lists(st.integers(1, 3), min_size=1, max_size=3, unique=True).map(lambda found: tuple(sorted(found)))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50)),
    density=st.sampled_from([0.01, 0.03, 0.08, 0.15, 0.5]),
    blocks=st.tuples(*[st.integers(1, 3)] * 3),
    steps=st.lists(st.builds(Step, LABELS, st.integers(0, 3)), min_size=1, max_size=3),
)
@example(seed=172, shape=(1, 1, 35), density=0.5, blocks=(1, 1, 1), steps=[Step((1, 3))])
@example(seed=1, shape=(33, 40, 50), density=0.08, blocks=(2, 2, 2), steps=[Step((1, 2, 3)), Step((1,)), Step((2,), 1)])
def test_equal_to_nnunet_on_the_whole_volume(
    seed: int,
    shape: tuple[int, int, int],
    density: float,
    blocks: tuple[int, int, int],
    steps: list[Step],
) -> None:
    rng = np.random.default_rng(seed)
    labels = (rng.integers(1, 4, shape) * (rng.random(shape) < density)).astype(np.uint8)
    assert np.array_equal(after(labels, steps, blocks=blocks), whole(labels, steps))


def volume(*boxes: tuple[Any, ...], shape: tuple[int, ...] = (48, 48, 48)) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    for value, *box in boxes:
        labels[tuple(box)] = value
    return labels


def test_all_components_of_the_largest_size_are_kept() -> None:
    labels = volume(
        (1, slice(2, 5), 3, 3), (1, slice(20, 23), 40, 40), (1, 45, slice(1, 4), 9), (1, slice(40, 42), 20, 20)
    )
    found = after(labels, [Step((1,))], blocks=3)
    assert np.count_nonzero(found) == 9
    assert np.array_equal(found, whole(labels, [Step((1,))]))


def test_a_component_across_all_shards_beats_compact_ones() -> None:
    labels = volume((2, slice(3, 8), slice(3, 8), slice(3, 8)), (1, slice(0, 48), 47, 47), (1, 0, slice(0, 48), 47))
    labels[0, 0, :] = 1
    labels[47, 47, 0:47] = 3
    steps = [Step((1, 2, 3)), Step((1,))]
    found = after(labels, steps, blocks=3)
    assert not (found == 2).any() and np.count_nonzero(found) == np.count_nonzero(labels) - 125
    assert np.array_equal(found, whole(labels, steps))


@pytest.mark.parametrize("other", [(15, 15, 15), (15, 16, 15), (16, 15, 15), (15, 15, 16)])
def test_voxels_that_meet_at_a_corner_or_an_edge_of_shards_are_one(other: tuple[int, int, int]) -> None:
    labels = volume((1, 40, 40, slice(40, 42)))
    labels[16, 16, 16] = labels[other] = labels[17, 17, 17] = 1
    found = after(labels, [Step((1,))], blocks=3)
    assert np.count_nonzero(found) == 3
    assert np.array_equal(found, whole(labels, [Step((1,))]))


def test_blocks_that_no_window_reached_are_background() -> None:
    labels = volume((1, slice(0, 4), 1, 1), (1, slice(40, 43), 40, 40), (2, 40, 1, 1))
    found = after(labels, [Step((1,))], unreached=(3, 6))
    assert np.array_equal(found, whole(labels, [Step((1,))]))


def test_nothing_to_do_links_every_shard(tmp_path: Path) -> None:
    labels = volume((1, slice(0, 30), 1, 1))
    grid = make_grid(labels)
    write_blocks(grid, labels, tmp_path)
    for out, steps in (("a", [Step((1,)), Step((2,))]), ("b", [])):
        assert sum(postprocess_sample(grid, steps, tmp_path, tmp_path / out), Removed()) == Removed()
        for file in sorted(tmp_path.glob("s.b*.zarr/*/c/*/*/*")):
            assert (tmp_path / out / file.relative_to(tmp_path)).samefile(file)


def test_a_lost_or_damaged_shard_is_an_error(tmp_path: Path) -> None:
    labels = volume((1, slice(0, 30), 1, 1))
    grid = make_grid(labels)
    for number, steps in enumerate(([Step((1,))], [])):
        folder = tmp_path / str(number)
        write_blocks(grid, labels, folder)
        (folder / "s.b7.zarr" / "0" / "c" / "2" / "2" / "2").unlink()
        with pytest.raises(TemporaryError, match=r"was not written|is missing"):
            postprocess_sample(grid, steps, folder, folder / "s")
        (folder / "s.b6.zarr" / "counts.json").unlink()
        with pytest.raises(TemporaryError):
            postprocess_sample(grid, [], folder, folder / "t")


# The JSON


def determined(
    folder: Path, labels: dict[str, Any], regions: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A model whose cross-validation has been post-processed by nnU-Net itself -> its ``postprocessing.json``."""
    model = make_model_folder(folder, patch_size=(8, 8, 8), features=(4, 8), labels=labels, regions_class_order=regions)
    predicted, truth = model / "crossval_results_folds_0", model / "truth"
    for name in (predicted, truth):
        name.mkdir()
    true = volume(
        (1, slice(2, 12), slice(2, 6), 5), (2, slice(3, 12), slice(2, 6), 6), (3, 14, 3, 3), shape=(16, 16, 16)
    )
    noisy = true.copy()
    noisy[14, 12:14, 12], noisy[1, 12, 12], noisy[8, 12, 1] = 1, 2, 3
    for name, array in ((predicted, noisy), (truth, true)):
        nibabel.save(nibabel.Nifti1Image(array.T.astype(np.uint8), np.eye(4)), name / "case_1.nii.gz")
    # threads serve as its processes: the same code, without starting Python anew for each step
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: SimpleNamespace(Pool=ThreadPool))
    plans, dataset = read_json(model / "plans.json"), read_json(model / "dataset.json")
    nnunet.determine_postprocessing(
        str(predicted), str(truth), PlansManager(plans).plans, dataset, num_processes=1, keep_postprocessed_files=False
    )
    return predicted / "postprocessing.json"


@pytest.mark.parametrize(
    ("labels", "regions"),
    [
        ({"background": 0, "a": 1, "b": 2, "c": 3}, None),
        (REGIONS, [1, 2, 3]),
    ],
)
def test_the_json_that_nnunet_writes(
    labels: dict[str, Any], regions: list[int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = determined(tmp_path / "in", labels, regions, monkeypatch)
    functions, kwargs = nnunet.load_pickle(str(file.with_suffix(".pkl")))
    _, warnings = pack_model(tmp_path / "in", tmp_path / "model")
    steps = chosen_steps("model", tmp_path / "model")
    assert len(steps) == len(functions) > 0 and not warnings
    rng = np.random.default_rng(1)
    array = (rng.integers(1, 4, (20, 20, 20)) * (rng.random((20, 20, 20)) < 0.08)).astype(np.uint8)
    assert np.array_equal(after(array, steps), nnunet.apply_postprocessing(array, functions, kwargs))
    told = notice("none", tmp_path / "model")
    assert told is not None and "largest component" in told
    assert notice("model", tmp_path / "model") is None
    assert chosen_steps("none", tmp_path / "model") == ()
    assert chosen_steps(str(file), tmp_path / "model") == steps


@pytest.mark.parametrize(
    ("value", "labels"),
    [(1, (1,)), ([1, 2], (1, 2)), ([2, 1, 2], (1, 2)), ([[1, 2], 3], (1, 2, 3)), ([[3, 1]], (1, 3)), ([], ())],
)
def test_labels_and_regions(value: Any, labels: tuple[int, ...]) -> None:
    given = {"postprocessing_fns": [KEEP_LARGEST], "postprocessing_kwargs": [{"labels_or_regions": value}]}
    (step,) = read_steps(given, "x.json")
    assert step == Step(labels)
    assert read_steps(json.loads(steps_json([step, Step((4,), 2)])), "y.json") == (step, Step((4,), 2))
    array = np.arange(8, dtype=np.uint8).reshape(2, 2, 2) % 4
    function = nnunet.remove_all_but_largest_component_from_segmentation
    as_tuples = [tuple(v) if isinstance(v, list) else v for v in value] if isinstance(value, list) else value
    assert np.array_equal(whole(array, [step]), function(array, as_tuples))


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "a list": ([], BadDataError, "not nnU-Net's post-processing"),
    "nothing": ({}, BadDataError, "not nnU-Net's post-processing"),
    "lengths": ({"postprocessing_fns": [KEEP_LARGEST], "postprocessing_kwargs": []}, BadDataError, "one length"),
    "function": ({"postprocessing_fns": ["os.system"], "postprocessing_kwargs": [{}]}, RefusedError, "'os.system'"),
    "number": ({"postprocessing_fns": [7], "postprocessing_kwargs": [{}]}, RefusedError, "unknown post-processing"),
    "no labels": ({"postprocessing_fns": [KEEP_LARGEST], "postprocessing_kwargs": [{}]}, BadDataError, "labels_or_reg"),
    "no object": ({"postprocessing_fns": [KEEP_LARGEST], "postprocessing_kwargs": [3]}, BadDataError, "arguments 3"),
    **{
        f"argument {i}": (
            {"postprocessing_fns": [KEEP_LARGEST], "postprocessing_kwargs": [{"labels_or_regions": 1, **kwargs}]},
            error,
            words,
        )
        for i, (kwargs, error, words) in enumerate(
            [
                ({"connectivity": 6}, RefusedError, "unknown argument of .* 'connectivity'"),
                ({"background_label": -1}, BadDataError, "-1 is no label"),
                ({"background_label": 70000}, BadDataError, "70000 is no label"),
                ({"background_label": True}, BadDataError, "True is no label"),
                ({"labels_or_regions": 0}, BadDataError, "0 is no label"),
                ({"labels_or_regions": "1"}, BadDataError, "'1' is no label"),
                ({"labels_or_regions": 1.5}, BadDataError, "1.5 is no label"),
                ({"labels_or_regions": [[[1]]]}, BadDataError, "is no label"),
                ({"labels_or_regions": None}, BadDataError, "None is no label"),
            ]
        )
    },
}


@pytest.mark.parametrize("name", BAD)
def test_anything_unknown_is_refused_by_name(name: str) -> None:
    value, error, words = BAD[name]
    with pytest.raises(error, match=words) as caught:
        read_steps(value, "x.json")
    assert "x.json" in str(caught.value)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model_folder(folder / "in", patch_size=(8, 8, 8), features=(4, 8))
    pack_model(folder / "in", folder / "model")
    return folder / "model"


def test_a_file_of_another_model_or_no_file(package: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_bytes(steps_json([Step((1, 9))]))
    with pytest.raises(ModelMismatchError, match="has not: 9"):
        chosen_steps(str(tmp_path / "other.json"), package)
    (tmp_path / "odd.json").write_text("{")
    with pytest.raises(BadDataError, match="not readable as JSON"):
        chosen_steps(str(tmp_path / "odd.json"), package)
    with pytest.raises(InputMissingError, match="no such file"):
        chosen_steps("modle", package)
    with pytest.raises(RefusedError, match="never opened"):
        chosen_steps(str(tmp_path / "postprocessing.pkl"), package)
    with pytest.raises(ModelMismatchError, match="has no post-processing"):
        chosen_steps("model", package)
    assert notice("none", package) is None
    assert load_config(package).foreground_values == (1, 2)


def test_the_script(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = volume((1, slice(0, 30), 1, 1), (1, 40, 40, 10), (2, 9, 9, 9), shape=(48, 48, 20))
    grid = make_grid(labels)
    write_blocks(grid, labels, tmp_path)
    grid.save(tmp_path / "s.grid.json")
    (tmp_path / "steps.json").write_bytes(steps_json([Step((1,))]))
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("postprocess_labels", ROOT / "bin" / "postprocess_labels.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    done = CliRunner().invoke(script.main, ["--batch", "b", "--package", str(package), "--steps", "steps.json"])
    assert done.exit_code == 0, done.output
    record = read_json(tmp_path / "b" / "b.postprocess_labels.json")
    assert record["counts"] == {
        "s": {"removed_components": 1, "removed_voxels": 1, "steps": "largest component of label 1"}
    }
    done = CliRunner().invoke(script.main, ["--batch", "b", "--package", str(package), "--steps", "model"])
    assert done.exit_code == 78
