"""Label volumes against a truth: scores equal direct computation on whole arrays, whatever boxes they are read in."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from skimage.metrics import adapted_rand_error, variation_of_information

from images import source_of
from voxelmill.errors import BadDataError
from voxelmill.evaluation import reading
from voxelmill.evaluation import surfaces as surfaces_module
from voxelmill.evaluation.evaluate import Comparison, evaluate_batch, evaluate_sample
from voxelmill.evaluation.overlaps import OverlapCounter
from voxelmill.evaluation.reading import read_parts, reading_boxes
from voxelmill.evaluation.surfaces import SurfaceFinder, cell_side
from voxelmill.files import read_json
from voxelmill.task import Task

ROOT = Path(__file__).resolve().parents[2]
LARGE = 2**40 + 7
NEAR = {"rel": 1e-9, "abs": 1e-9}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def evaluated(
    predicted: np.ndarray,
    truth: np.ndarray,
    scratch: Path,
    kind: str = "instances",
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0),
    ignore: int | None = None,
    memory: int = 4_000_000_000,
    chunk: tuple[int, int, int] = (1, 1, 1),
) -> dict[str, Any]:
    comparison = Comparison(kind, spacing, "um", ignore, {1: "core", 2: "border"})
    sources = source_of(predicted, chunk=chunk), source_of(truth)
    return evaluate_sample(*sources, comparison, scratch, memory_budget=memory).scores


# Direct computation on whole arrays


def surface_of(mask: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """With SciPy's erosion, for which all is empty outside the array; in the axes of more than one voxel."""
    axes = sum(n > 1 for n in mask.shape)
    flat, unknown = np.squeeze(mask & ~ignored), np.squeeze(ignored)
    inner = ndimage.binary_erosion(flat | unknown, ndimage.generate_binary_structure(axes, 1)) if axes else flat
    return (flat & ~inner).reshape(mask.shape)


def direct_surface(
    predicted: np.ndarray, truth: np.ndarray, ignored: np.ndarray, spacing: tuple[float, ...]
) -> dict[str, float] | None:
    one, other = surface_of(predicted, ignored), surface_of(truth, ignored)
    if not (one.any() and other.any()):
        return None
    there = ndimage.distance_transform_edt(~other, spacing)[one]
    back = ndimage.distance_transform_edt(~one, spacing)[other]
    both = np.concatenate([there, back])
    tolerance = max([s for s, n in zip(spacing, truth.shape, strict=True) if n > 1], default=max(spacing))
    return {
        "mean": both.mean(),
        "hd": both.max(),
        "hd95": max(np.quantile(there, 0.95), np.quantile(back, 0.95)),
        "dice": (both <= tolerance * (1 + 1e-9)).mean(),
        "tolerance": tolerance,
    }


def overlap_matrix(predicted: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels shared and IoU of objects of truth (rows) and prediction, by comparing all with all."""
    rows, columns = ([i for i in np.unique(labels) if i > 0] for labels in (truth, predicted))
    shared = np.array([[((truth == t) & (predicted == p)).sum() for p in columns] for t in rows], int)
    union = np.array([[((truth == t) | (predicted == p)).sum() for p in columns] for t in rows], int)
    shape = len(rows), len(columns)
    return shared.reshape(shape), shared.reshape(shape) / np.maximum(union.reshape(shape), 1)


def direct_objects(predicted: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """StarDist's matching with an optimal assignment, panoptic quality out of it, Caicedo's splits and merges."""
    _, iou = overlap_matrix(predicted, truth)
    rows, columns = iou.shape
    thresholds = []
    for step in range(9):
        reached = iou >= (50 + 5 * step) / 100 - 1e-12
        pairs = linear_sum_assignment(-(reached.astype(float) + iou / (2 * max(1, min(iou.shape)))))
        thresholds.append((int(reached[pairs].sum()), float(iou[pairs][reached[pairs]].sum())))
    tp, total = thresholds[0]
    return {
        "truth": rows,
        "predicted": columns,
        "tp": [count for count, _ in thresholds],
        "pq": total / (tp + (columns - tp) / 2 + (rows - tp) / 2) if rows + columns else None,
        "splits": int(((iou > 0.1).sum(axis=1) > 1).sum()),
        "merges": int(((iou > 0.1).sum(axis=0) > 1).sum()),
    }


def direct_partition(predicted: np.ndarray, truth: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """scikit-image's scores, of labels without gaps, which its tables need."""
    if not (truth > 0).any():
        return None, None, None
    one, other = (np.unique(np.append(labels, 0), return_inverse=True)[1][:-1] for labels in (truth, predicted))
    with np.errstate(invalid="ignore"):
        split, merge = variation_of_information(one, other, ignore_labels=(0,))
        error, *_ = adapted_rand_error(one, other)
    return float(split), float(merge), None if math.isnan(error) else float(error)


def nearly(value: float | None) -> Any:
    return None if value is None else pytest.approx(value, **NEAR)


def compare_surface(found: dict[str, float] | None, expected: dict[str, float] | None) -> None:
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found == {name: pytest.approx(value, **NEAR) for name, value in expected.items()}


# Volumes

VALUES = st.sampled_from([0, 0, 1, 2, 3, LARGE])


@st.composite
def volumes(draw: st.DrawFn, values: Any = VALUES) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Two volumes of a few blocks of equal labels, alike in part; planes and single rows among them."""
    shape = draw(st.tuples(st.sampled_from([1, 2, 7]), st.integers(1, 9), st.integers(1, 14)))
    truth, predicted = np.zeros(shape, np.int64), np.zeros(shape, np.int64)

    def paint(labels: np.ndarray) -> tuple[tuple[slice, ...], int]:
        ends = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in shape]
        where = tuple(slice(*pair) for pair in ends)
        value = draw(values)
        labels[where] = value
        return where, value

    for _ in range(draw(st.integers(0, 5))):
        where, value = paint(truth)
        if draw(st.booleans()):
            predicted[where] = value
    for _ in range(draw(st.integers(0, 3))):
        paint(predicted)
    return predicted, truth, draw(st.sampled_from([(1.0, 1.0, 1.0), (3.0, 0.7, 0.7), (0.3, 1.0, 2.5)]))


MEMORY = st.integers(1, 400).map(lambda voxels: 2 * voxels * reading.VOXEL_BYTES)
IGNORE = st.sampled_from([None, 2, 0, -1])


@given(volumes(), IGNORE, MEMORY)
@settings(max_examples=150)
def test_objects_equal_direct_computation(scratch, pair, ignore, memory):
    predicted, truth, spacing = pair
    if ignore == -1:
        truth = np.where(truth == 3, -1, truth)
    found = evaluated(predicted, truth, scratch, spacing=spacing, ignore=ignore, memory=memory)
    ignored = truth == ignore if ignore is not None else np.zeros(truth.shape, bool)
    assert found["ignored_voxels"] == ignored.sum()
    kept_p, kept_t = predicted[~ignored], truth[~ignored]
    expected, objects = direct_objects(kept_p, kept_t), found["objects"]
    for name in ("truth", "predicted", "splits", "merges"):
        assert objects[name] == expected[name], name
    assert [one["tp"] for one in objects["thresholds"]] == expected["tp"]
    assert objects["panoptic"]["pq"] == nearly(expected["pq"])
    split, merge, error = direct_partition(kept_p, kept_t)
    assert objects["variation_of_information"] == {"split": nearly(split), "merge": nearly(merge)}
    assert objects["adapted_rand_error"] == nearly(error)
    for one in found["classes"]:
        compare_surface(one["surface"], direct_surface(predicted > 0, truth > 0, ignored, spacing))


@given(volumes(st.integers(0, 4)), IGNORE, MEMORY)
@settings(max_examples=150)
def test_classes_equal_direct_computation(scratch, pair, ignore, memory):
    predicted, truth, spacing = pair
    found = evaluated(predicted, truth, scratch, "semantic", spacing, ignore, memory)
    ignored = truth == ignore if ignore is not None else np.zeros(truth.shape, bool)
    p, t = predicted[~ignored], truth[~ignored]
    assert [one["value"] for one in found["classes"]] == sorted({*p.tolist(), *t.tolist()} - {0})
    for one in found["classes"]:
        here, there = p == one["value"], t == one["value"]
        both, either = (here & there).sum(), (here | there).sum()
        assert one["iou"] == nearly(both / either)
        assert one["dice"] == nearly(2 * both / (here.sum() + there.sum()))
        assert one["precision"] == nearly(both / here.sum() if here.any() else None)
        assert one["recall"] == nearly(both / there.sum() if there.any() else None)
        surface = direct_surface(predicted == one["value"], truth == one["value"], ignored, spacing)
        compare_surface(one["surface"], surface)


@given(volumes(), IGNORE, MEMORY, st.tuples(*[st.integers(1, 6)] * 3), st.sampled_from(["semantic", "instances"]))
@settings(max_examples=80)
def test_same_bytes_for_any_boxes_and_chunks(scratch, pair, ignore, memory, chunk, kind):
    predicted, truth, spacing = pair
    predicted, truth = np.minimum(predicted, 9), np.minimum(truth, 9)
    whole = evaluated(predicted, truth, scratch, kind, spacing, ignore)
    parts = evaluated(predicted, truth, scratch, kind, spacing, ignore, memory, chunk)
    assert json.dumps(whole) == json.dumps(parts)


@given(st.tuples(*[st.integers(1, 40)] * 3), st.lists(st.tuples(*[st.integers(1, 50)] * 3), min_size=1), st.data())
def test_boxes_fill_a_volume_once_and_are_bounded(shape, chunks, data):
    voxels = data.draw(st.integers(1, 5000))
    filled = np.zeros(shape, int)
    boxes = reading_boxes(shape, chunks, voxels)
    for box in boxes:
        part = filled[tuple(slice(*pair) for pair in box)]
        part += 1
        assert part.size <= voxels
    assert (filled == 1).all()
    assert boxes == sorted(boxes)


def test_no_more_is_read_than_a_box_and_its_margin():
    labels = np.zeros((20, 30, 40), np.uint8)
    parts = list(read_parts(source_of(labels), source_of(labels), None, 800))
    assert max(part.truth.size for part in parts) <= 3 * 22 * 42
    assert sum(math.prod(b - a for a, b in part.box) for part in parts) == labels.size


def test_as_many_pairs_as_voxels():
    """The table of pairs grows, and no pair is lost or counted twice while it does."""
    rng = np.random.default_rng(0)
    predicted = rng.permutation(40_000).reshape(10, 40, 100) + 2**35
    truth = rng.integers(0, 3, predicted.shape)
    counter = OverlapCounter(None)
    for part in read_parts(source_of(predicted), source_of(truth), None, 3000):
        counter.add(part)
    found = counter.result()
    assert (found.voxels == 1).all()
    order = np.lexsort((predicted.ravel(), truth.ravel()))
    np.testing.assert_array_equal(found.predicted, predicted.ravel()[order])
    np.testing.assert_array_equal(found.truth, truth.ravel()[order])
    places = np.stack(np.unravel_index(order, predicted.shape), axis=1)
    np.testing.assert_array_equal(found.boxes[:, ::2], places)
    np.testing.assert_array_equal(found.boxes[:, 1::2], places + 1)


def finder_distances(
    predicted: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...], side: tuple[int, int, int], folder: Path
) -> dict[str, float] | None:
    with SurfaceFinder(folder, truth.shape, None, foreground=True, side=side) as finder:
        for part in read_parts(source_of(predicted.astype(np.uint8)), source_of(truth.astype(np.uint8)), None, 4000):
            finder.add(part)
        found = finder.distances(1, spacing)
        return None if found is None else vars(found)


@given(st.integers(0, 2**32), st.integers(4, 11), st.sampled_from([(1.0, 1.0, 1.0), (4.0, 0.5, 0.5), (0.2, 1.0, 3.0)]))
@example(0, 4, (1.0, 1.0, 1.0))
@settings(max_examples=40)
def test_surfaces_that_lie_many_cells_apart(scratch, seed, side, spacing):
    rng = np.random.default_rng(seed)
    shape = (24, 40, 55)
    predicted, truth = np.zeros(shape, bool), np.zeros(shape, bool)
    for labels in (predicted, truth):
        for _ in range(rng.integers(1, 4)):
            at = [int(rng.integers(0, n - 2)) for n in shape]
            labels[tuple(slice(a, a + int(rng.integers(1, 6))) for a in at)] = True
    none = np.zeros(shape, bool)
    compare_surface(
        finder_distances(predicted, truth, spacing, (side,) * 3, scratch),
        direct_surface(predicted, truth, none, spacing),
    )


def test_trees_are_dropped_when_they_hold_too_many_points(scratch, monkeypatch):
    rng = np.random.default_rng(3)
    predicted, truth = (rng.random((20, 20, 40)) < p for p in (0.002, 0.3))
    expected = direct_surface(predicted, truth, np.zeros(truth.shape, bool), (1.0, 1.0, 1.0))
    monkeypatch.setattr(surfaces_module, "HELD_POINTS", 50)
    monkeypatch.setattr(surfaces_module, "DISTINCT", 10)
    compare_surface(finder_distances(predicted, truth, (1.0, 1.0, 1.0), (5, 5, 5), scratch), expected)


def test_surface_points_leave_nothing_behind(tmp_path):
    labels = np.ones((3, 4, 5), np.uint8)
    evaluated(labels, labels, tmp_path / "points")
    assert not list(tmp_path.iterdir())


def test_cells_of_a_plane_and_of_a_volume():
    assert cell_side((300, 300, 300)) == (128, 128, 128)
    assert cell_side((1, 9000, 9000)) == (1, 1448, 1448)


# Known cases


def rows(*labels: list[int]) -> np.ndarray:
    """A plane with two rows of each list: enough for objects."""
    return np.repeat(np.array(labels, np.int64), 2, axis=0)[None]


def test_halves_of_an_object_have_one_half_and_count_once(scratch):
    truth, predicted = rows([1, 1, 1, 1, 0, 2, 3, 0]), rows([5, 5, 6, 6, 0, 7, 7, 0])
    found = evaluated(predicted, truth, scratch)["objects"]
    assert [one["tp"] for one in found["thresholds"]] == [2, 0, 0, 0, 0, 0, 0, 0, 0]
    assert (found["thresholds"][0]["fp"], found["thresholds"][0]["fn"]) == (1, 1)
    assert found["panoptic"] == {"pq": pytest.approx(1 / 3), "sq": 0.5, "rq": pytest.approx(2 / 3)}
    assert (found["splits"], found["merges"]) == (1, 1)


def test_an_iou_of_exactly_a_threshold_reaches_it(scratch):
    for step in range(9):
        percent = 50 + 5 * step
        truth, predicted = np.zeros((1, 1, 100), int), np.zeros((1, 1, 100), int)
        truth[..., :], predicted[..., :percent] = 1, 1
        found = evaluated(predicted, truth, scratch)["objects"]["thresholds"]
        assert [one["tp"] for one in found] == [1] * (step + 1) + [0] * (8 - step)
        assert found[step]["iou"] == percent / 100


def test_equal_volumes_are_perfect(scratch):
    labels = rows([1, 1, 0, 2, 2], [3, 3, 0, 0, LARGE])
    found = evaluated(labels, labels, scratch)
    assert {one["f1"] for one in found["objects"]["thresholds"]} == {1.0}
    assert found["objects"]["mean_ap"] == 1
    assert found["objects"]["panoptic"] == {"pq": 1, "sq": 1, "rq": 1}
    assert found["classes"][0]["surface"] == {"mean": 0, "hd": 0, "hd95": 0, "dice": 1, "tolerance": 1}
    assert found["worst"] == []
    assert found["warnings"] == []


@pytest.mark.parametrize("kind", ["semantic", "instances"])
def test_empty_volumes(kind, scratch):
    empty, full = np.zeros((2, 3, 4), np.uint8), np.ones((2, 3, 4), np.uint8)
    nothing = evaluated(empty, empty, scratch, kind)
    assert nothing["classes"] == [] and nothing["worst"] == [] and nothing["warnings"] == ["the truth is empty"]
    missed, false = evaluated(empty, full, scratch, kind), evaluated(full, empty, scratch, kind)
    for found, precision, recall in ((missed, None, 0), (false, 0, None)):
        (one,) = found["classes"]
        assert (one["dice"], one["iou"], one["precision"], one["recall"]) == (0, 0, precision, recall)
        assert one["surface"] is None
    assert (missed["warnings"], false["warnings"]) == (["the prediction is empty"], ["the truth is empty"])
    if kind == "instances":
        assert nothing["objects"]["panoptic"] == {"pq": None, "sq": None, "rq": None}
        assert nothing["objects"]["mean_ap"] is None and nothing["objects"]["adapted_rand_error"] is None
        assert [one["what"] for one in missed["worst"] + false["worst"]] == ["missed", "false"]
        assert missed["objects"]["panoptic"] == {"pq": 0, "sq": None, "rq": 0}
    ignored = evaluated(full, full, scratch, kind, ignore=1)
    assert ignored["ignored_voxels"] == full.size and "nothing to compare" in ignored["warnings"][0]
    json.dumps([nothing, missed, false, ignored], allow_nan=False)


def test_what_is_ignored_has_no_surface_and_is_not_outside(scratch):
    truth, predicted = np.zeros((1, 9, 9), np.uint8), np.zeros((1, 9, 9), np.uint8)
    truth[0, 2:7, 2:7], predicted[0, 2:7, 2:7] = 1, 1
    predicted[0, :, 6:] = 1
    truth[0, :, 6:] = 9
    found = evaluated(predicted, truth, scratch, "semantic", ignore=9)
    assert found["classes"][0]["surface"]["hd"] == 0
    assert found["classes"][0]["overlap_voxels"] == found["classes"][0]["predicted_voxels"] == 20
    assert "no voxel of the truth has the ignore label 8" in evaluated(truth, truth, scratch, ignore=8)["warnings"]


def test_size_classes_are_quarters_of_the_truth(scratch):
    truth, predicted = np.zeros((1, 40, 40), int), np.zeros((1, 40, 40), int)
    for number in range(1, 13):
        truth[0, 3 * number, : 3 * number] = number
        # one voxel in three: found from a half up
        predicted[0, 3 * number, : 3 * number if number > 6 else number] = number
    found = evaluated(predicted, truth, scratch)["objects"]["size_classes"]
    assert [(one["low"], one["high"]) for one in found] == [(3, 9), (12, 18), (21, 27), (30, 36)]
    assert [(one["truth"], one["found"], one["recall"]) for one in found] == [
        (3, 0, 0),
        (3, 0, 0),
        (3, 3, 1),
        (3, 3, 1),
    ]
    assert [one["mean_iou"] for one in found] == [pytest.approx(v) for v in (1 / 3, 1 / 3, 1, 1)]


def test_objects_of_one_volume_are_in_one_size_class(scratch):
    truth = np.zeros((1, 9, 30), int)
    truth[0, ::2, :20] = np.arange(1, 6)[:, None]
    truth[0, 8, :] = 5
    found = evaluated(truth, truth, scratch)["objects"]["size_classes"]
    assert [(one["low"], one["high"], one["truth"]) for one in found] == [(20, 20, 4), (30, 30, 1)]


def test_the_worst_objects_come_first_and_each_kind_is_shown(scratch):
    truth, predicted = np.zeros((1, 60, 100), int), np.zeros((1, 60, 100), int)
    for number in range(20):
        truth[0, number, : 100 - number] = number + 1
    truth[0, 30, :30], predicted[0, 30, :12], predicted[0, 30, 14:26] = 101, 201, 202
    truth[0, 40, :10], truth[0, 40, 12:22], predicted[0, 40, :40] = 111, 112, 211
    predicted[0, 50, 5:9] = 221
    found = evaluated(predicted, truth, scratch)["worst"]
    assert len(found) == 12
    assert [(one["what"], one["id"]) for one in found[:9]] == [("missed", number) for number in range(1, 10)]
    assert [(one["what"], one["id"]) for one in found[9:]] == [("merged", 211), ("split", 101), ("false", 221)]
    assert found[0] == {"what": "missed", "id": 1, "iou": 0, "voxels": 100, "box": [[0, 1], [0, 1], [0, 100]]}
    assert found[-1]["box"] == [[0, 1], [50, 51], [5, 9]]
    assert found[-3]["iou"] == 0.25


def test_the_worst_are_those_with_most_wrong_voxels(scratch):
    truth, predicted = np.zeros((1, 3, 100), int), np.zeros((1, 3, 100), int)
    truth[0, 0], predicted[0, 0, :45], truth[0, 2, :60] = 1, 2, 3
    found = evaluated(predicted, truth, scratch)["worst"]
    assert [(one["what"], one["id"], one["iou"]) for one in found] == [
        ("missed", 3, 0),
        ("missed", 1, 0.45),
        ("false", 2, 0.45),
    ]


def test_the_worst_boxes_of_classes(scratch):
    truth, predicted = np.zeros((70, 70, 140), int), np.zeros((70, 70, 140), int)
    truth[:2, :2, :2], predicted[:2, :2, 1] = 1, 1
    truth[66:68, 66, 130:135] = 2
    found = evaluated(predicted, truth, scratch, "semantic")["worst"]
    first, second = found
    assert first == {"what": "wrong", "id": None, "iou": 0, "voxels": 10, "box": [[64, 70], [64, 70], [128, 140]]}
    assert second == {"what": "wrong", "id": None, "iou": 0.5, "voxels": 4, "box": [[0, 64], [0, 64], [0, 64]]}


@pytest.mark.parametrize("value", [-1, 2**63])
def test_labels_that_are_none_are_refused(value, scratch):
    good = np.ones((1, 3, 3), np.uint8)
    bad = np.full((1, 3, 3), value, np.int64 if value < 0 else np.uint64)
    for pair in ((bad, good), (good, bad)):
        with pytest.raises(BadDataError, match=str(value)):
            evaluated(*pair, scratch)


def test_only_the_ignore_label_of_the_truth_may_be_negative(scratch):
    good, bad = np.ones((1, 3, 3), np.uint8), np.full((1, 3, 3), -1, np.int8)
    assert evaluated(good, bad, scratch, ignore=-1)["ignored_voxels"] == 9
    for pair in ((good, bad - 1), (bad, good)):
        with pytest.raises(BadDataError, match="the label -"):
            evaluated(*pair, scratch, ignore=-1)


# Batches


def entry_of(kind: str, paths: list[Path], **changes: Any) -> dict[str, Any]:
    """What CHECK_INPUT writes for a row with an image, labels and truth, as far as evaluation reads it."""
    selection = {"axes": None, "series": None, "timepoint": None, "level": None, "dataset": None}
    return {
        "id": "a",
        "images": list(range(1, len(paths) + 1)),
        "files": [path.name for path in paths[:-2]],
        "selections": [selection] * len(paths),
        "labels": {"kind": kind, "file": paths[-2].name},
        "truth": {"file": paths[-1].name},
        "channel": [0],
        "spacing": [2.0, 0.5, 0.5],
        "unit": "um",
        "spacing_origin": "OME-XML",
        "box": None,
        "group": "g",
        "warnings": ["told before"],
        **changes,
    }


@pytest.fixture
def staged(tmp_path, monkeypatch) -> list[Path]:
    """An image, labels and truth: files in numbered folders."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(5)
    truth = ndimage.label(ndimage.gaussian_filter(rng.normal(size=(10, 30, 40)), 2) > 0.06)[0].astype(np.uint16)
    predicted = np.roll(truth, 1, axis=2)
    predicted[predicted == 3] = 0
    # one in unlike pieces, and two in one
    sizes = np.argsort(-np.bincount(truth.ravel()))[1:5]
    largest = predicted == sizes[0]
    predicted[largest & (np.cumsum(largest).reshape(truth.shape) * 3 < largest.sum())] = 900
    predicted[predicted == sizes[3]] = sizes[2]
    paths = []
    for number, (name, array) in enumerate({"i.tif": truth, "p.ome.tif": predicted, "t.nii.gz": truth}.items(), 1):
        path = Path("files") / str(number) / name
        path.parent.mkdir(parents=True)
        if name.endswith("tif"):
            tifffile.imwrite(path, array, metadata={"axes": "ZYX"}, ome="ome" in name)
        else:
            nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), np.diag([5e-4, 5e-4, 2e-3, 1])), path)
        paths.append(path)
    return paths


@pytest.fixture
def pictures(monkeypatch) -> list[Any]:
    """The calls that draw the worst places, which are tested elsewhere."""
    calls: list[Any] = []

    def save_worst(path: Path, *rest: Any) -> None:
        calls.append((path, *rest))
        path.write_bytes(b"pictures")

    module = ModuleType("worst")
    module.save_worst = save_worst  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "voxelmill.evaluation.worst", module)
    return calls


def run_batch(entry: dict[str, Any], **values: Any) -> dict[str, Any]:
    record = Task("evaluate_labels", "batch1")
    options = {"ignore": None, "memory_budget": 4_000_000_000, **values}
    evaluate_batch([json.loads(json.dumps(entry))], Path("files"), Path(), record, **options)
    scores = read_json(Path("a/a.evaluation.json"))
    assert {Path(path).name for path in record.outputs} == set(scores["files"])
    assert {one["text"] for one in record.warnings} == set(scores["warnings"])
    return scores


def test_a_batch_writes_scores_and_the_table_of_objects(staged, pictures):
    scores = run_batch(entry_of("instances", staged))
    predicted, truth = tifffile.imread(staged[1]), tifffile.imread(staged[0])
    assert sorted(path.name for path in Path("a").iterdir()) == sorted(scores["files"])
    assert scores["sample"] == "a" and scores["group"] == "g" and scores["first"] == [0, 0, 0]
    assert scores["source"] == {"predicted": "p.ome.tif", "truth": "t.nii.gz"}
    assert "told before" in scores["warnings"]
    table = pq.read_table("a/a.matches.parquet").to_pylist()
    text = pyarrow.csv.read_csv("a/a.matches.csv").to_pylist()
    assert text == [{**row, "partner": row["partner"]} for row in table]
    check_table(table, predicted, truth, math.prod((2.0, 0.5, 0.5)))
    ((path, worst, image, *_),) = pictures
    assert path == Path("a/a.worst.npz") and worst == scores["worst"] and image.path.name == "i.tif"


def check_table(table: list[dict[str, Any]], predicted: np.ndarray, truth: np.ndarray, volume: float) -> None:
    """Every object of the truth, then every predicted one that was not found, with what NumPy says of it."""
    shared, iou = overlap_matrix(predicted, truth)
    ids = [np.unique(labels)[1:].tolist() for labels in (truth, predicted)]
    found = iou > 0.5
    assert [row["id"] for row in table if row["side"] == "truth"] == ids[0]
    false = [p for p, hit in zip(ids[1], found.any(axis=0), strict=True) if not hit]
    assert [row["id"] for row in table if row["side"] == "predicted"] == false
    assert (np.count_nonzero(iou, axis=0) > 1).any() and (np.count_nonzero(iou, axis=1) > 1).any()
    assert {row["kind"] for row in table} >= {"found", "missed", "merged", "piece", "false"}
    for row in table:
        side = row["side"] == "predicted"
        labels, ious, overlaps = (predicted, iou.T, shared.T) if side else (truth, iou, shared)
        index = ids[side].index(row["id"])
        mask = labels == row["id"]
        assert row["voxels"] == mask.sum() and row["volume_um3"] == mask.sum() * volume
        place = [(one.start, one.stop) for one in ndimage.find_objects(mask.astype(int))[0]]
        assert [(row[f"{axis}_start"], row[f"{axis}_stop"]) for axis in "zyx"] == place
        assert row["pieces"] == (ious[index] > 0.1).sum()
        best = int(ious[index].argmax())
        if ious[index, best] == 0:
            assert (row["partner"], row["overlap"], row["iou"]) == (None, 0, 0)
        else:
            assert row["partner"] == ids[1 - side][best]
            assert row["overlap"] == overlaps[index, best] and row["iou"] == pytest.approx(ious[index, best])
        split, merged = (iou > 0.1).sum(axis=1) > 1, (iou > 0.1).sum(axis=0) > 1
        if side:
            piece = (split & (iou[:, index] > 0.1)).any()
            assert row["kind"] == ("merged" if merged[index] else "piece" if piece else "false")
        else:
            kind = "split" if split[index] else "merged" if (merged & (iou[index] > 0.1)).any() else "missed"
            assert row["kind"] == ("found" if found[index].any() else kind)


def test_a_batch_of_classes_has_no_table(staged, pictures):
    scores = run_batch(entry_of("semantic", staged))
    assert scores["objects"] is None
    assert scores["files"] == ["a.evaluation.json", "a.worst.npz"]


def test_a_box_is_evaluated_as_if_it_were_all(staged, pictures, scratch):
    scores = run_batch(entry_of("instances", staged, box=[[2, 9], [0, 20], [5, 33]]), memory_budget=50_000)
    part = np.s_[2:9, 0:20, 5:33]
    arrays = [tifffile.imread(staged[i])[part] for i in (1, 0)]
    direct = evaluated(*arrays, scratch, spacing=(2.0, 0.5, 0.5))
    assert scores["first"] == [2, 0, 5]
    assert {name: scores[name] for name in direct if name != "warnings"} == {
        name: direct[name] for name in direct if name != "warnings"
    }
    assert pictures[0][2].shape == (1, 7, 20, 28)


def test_the_chosen_channel_is_behind_the_pictures(staged, pictures):
    channels = np.arange(24_000, dtype=np.uint16).reshape(2, 10, 30, 40)
    tifffile.imwrite(staged[0], channels, metadata={"axes": "CZYX"}, ome=True)
    run_batch(entry_of("instances", staged, channel=[1], box=[[2, 9], [0, 20], [5, 33]]))
    image = pictures[0][2]
    np.testing.assert_array_equal(image.read(0, ((0, 7), (0, 20), (0, 28))), channels[1, 2:9, :20, 5:33])


def test_no_image_is_needed(staged, pictures):
    entry = entry_of("instances", staged)
    run_batch({**entry, "images": [2, 3], "files": [], "selections": entry["selections"][1:]})
    assert pictures[0][2] is None


def test_an_error_names_its_sample(staged, pictures):
    with staged[2].open("r+b") as file:
        file.truncate(staged[2].stat().st_size // 2)
    with pytest.raises(BadDataError) as caught:
        run_batch(entry_of("instances", staged))
    assert caught.value.sample == "a"
    assert not list(Path("a").glob("*.json"))


def test_the_script(staged):
    pytest.importorskip("voxelmill.evaluation.worst")
    done = subprocess.run(
        [sys.executable, ROOT / "bin" / "evaluate_labels.py", "--batch", "batch1", "--images", "files"],
        input=json.dumps([entry_of("instances", staged)]),
        text=True,
        check=True,
        capture_output=True,
    )
    assert "told before" in done.stderr
    assert read_json(Path("batch1/batch1.evaluate_labels.json"))["counts"] == {"a": {"voxels": 12_000}}


def test_a_real_prediction_against_its_truth(shared_data, scratch):
    folder = shared_data / "nnunet_model" / "test_case"
    predicted, truth = (tifffile.imread(folder / f"nuc_d_{name}.tif") for name in ("expected_pred_notta", "label"))
    none, spacing = np.zeros(truth.shape, bool), (0.28, 0.13, 0.13)
    found = evaluated(predicted, truth, scratch, "semantic", spacing)["classes"]
    assert [one["name"] for one in found] == ["core", "border"]
    for one in found:
        here, there = predicted == one["value"], truth == one["value"]
        assert one["dice"] == nearly(2 * (here & there).sum() / (here.sum() + there.sum()))
        compare_surface(one["surface"], direct_surface(here, there, none, spacing))
    cores = [ndimage.label(labels == 1)[0] for labels in (predicted, truth)]
    objects = evaluated(*cores, scratch, spacing=spacing)["objects"]
    expected = direct_objects(*cores)
    assert [one["tp"] for one in objects["thresholds"]] == expected["tp"]
    assert objects["panoptic"]["pq"] == nearly(expected["pq"])
    split, merge, error = direct_partition(*cores)
    assert objects["variation_of_information"] == {"split": nearly(split), "merge": nearly(merge)}
    assert objects["adapted_rand_error"] == nearly(error)
