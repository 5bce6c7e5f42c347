"""Objects found block by block are those of the whole volume: same voxels, same ids, same numbers, for any cut.

The oracle is cc3d on the whole array. Some tests bear the name of a fault that older tools have.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from assembled import BY_CLASS, KEEP_ALL, Objects, find_objects, label_all, make_grid, relabel_all, write_blocks
from conftest import ROOT
from voxelmill.errors import TemporaryError, UsageError
from voxelmill.files import read_json
from voxelmill.grid import SEPARATED
from voxelmill.image import ArrayLocation, ImageInfo, Intensity, whole
from voxelmill.objects import link
from voxelmill.objects.components import BACKWARD, Joining, label_shard, measure_shard
from voxelmill.objects.link import Filters, id_type, link_sample, pack
from voxelmill.rows import BlockRow, MeasureRow, write_rows
from voxelmill.store import create_array


def noise(shape: tuple[int, ...], density: float, classes: int = 1, seed: int = 0) -> np.ndarray:
    """Random labels: no smoothness, so that objects have many branches and touch every seam."""
    rng = np.random.default_rng(seed)
    return ((rng.random(shape) < density) * rng.integers(1, classes + 1, shape)).astype(np.uint8)


def blobs(shape: tuple[int, ...], density: float, seed: int = 0) -> np.ndarray:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return (smooth > np.quantile(smooth, 1 - density)).astype(np.uint8)


def whole_volume(labels: np.ndarray, joining: Joining = BY_CLASS) -> np.ndarray:
    mask = labels if joining.components_of == "class" else labels > 0
    return cc3d.connected_components(mask, connectivity=joining.connectivity)


def digest(folder: Path) -> str:
    """Of the table and of every shard of the instances, wherever its block keeps it."""
    total = hashlib.sha256((folder / "s.linked.parquet").read_bytes() + (folder / "s.linked.json").read_bytes())
    shards = {
        (path.parts[-5], *map(int, path.parts[-3:])): path.read_bytes()
        for path in folder.glob("s.b*.instances.zarr/*/c/*/*/*")
    }
    for key in sorted(shards):
        total.update(repr(key).encode() + shards[key])
    return f"{len(shards)} {total.hexdigest()}"


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(*[st.integers(1, 22)] * 3),
    shard=st.tuples(*[st.sampled_from([5, 8, 13, 30])] * 3),
    blocks=st.tuples(*[st.integers(1, 3)] * 3),
    density=st.sampled_from([0.05, 0.1, 0.2, 0.32, 0.6]),
    connectivity=st.sampled_from([6, 18, 26]),
    components_of=st.sampled_from(["class", "foreground"]),
    classes=st.sampled_from([1, 3]),
    seed=st.integers(0, 1000),
)
def test_ids_are_those_of_the_whole_volume(
    tmp_path: Path,
    shape: tuple[int, ...],
    shard: tuple[int, ...],
    blocks: tuple[int, ...],
    density: float,
    connectivity: Any,
    components_of: str,
    classes: int,
    seed: int,
) -> None:
    labels = noise(shape, density, classes, seed)
    joining = Joining(connectivity, components_of)
    shutil.rmtree(tmp_path / "s", ignore_errors=True)
    found = find_objects(labels, tmp_path / "s", joining, shard=shard, blocks=blocks)
    assert np.array_equal(found.instances, whole_volume(labels, joining))


@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize(("density", "classes"), [(0.03, 1), (0.1, 2), (0.25, 1), (0.5, 3)])
def test_noise_of_every_density(tmp_path: Path, density: float, classes: int, connectivity: Any) -> None:
    labels = noise((30, 40, 37), density, classes)
    joining = Joining(connectivity)
    found = find_objects(labels, tmp_path, joining, blocks=(2, 3, 2))
    expected = whole_volume(labels, joining)
    assert np.array_equal(found.instances, expected)
    assert found.summary["components"] == found.summary["objects"] == expected.max()
    assert found.column("id").tolist() == list(range(1, expected.max() + 1))


def test_no_byte_depends_on_the_cut_into_blocks(tmp_path: Path) -> None:
    # one object reaches through all shards: the order in which its sums are added shows
    labels = noise((40, 33, 48), 0.12)
    image = np.random.default_rng(1).lognormal(0, 5, (2, *labels.shape)).astype(np.float32)
    digests = {}
    for blocks in [(1, 1, 1), (3, 1, 1), (1, 3, 2), (3, 3, 3)]:
        folder = tmp_path / "".join(map(str, blocks))
        find_objects(labels, folder, filters=Filters(2), image=image, blocks=blocks)
        digests[blocks] = digest(folder)
    assert len(set(digests.values())) == 1, digests
    assert digests[1, 1, 1].startswith("27 ")


def test_spiral_through_all_blocks_is_one_object(tmp_path: Path) -> None:
    """A line of one voxel that is joined anew at every seam, and another beside it that is never joined to it."""
    labels = np.zeros((9, 40, 40), np.uint8)
    for k, turn in enumerate(range(0, 20, 2)):
        ring = np.zeros((40, 40), bool)
        ring[turn : 40 - turn, turn : 40 - turn] = True
        ring[turn + 1 : 39 - turn, turn + 1 : 39 - turn] = False
        # open every ring at its corner and lead inwards
        ring[turn + 1, turn] = False
        ring[turn + 2, turn : turn + 3] = True
        labels[k % 2 * 8][ring] = 1
        labels[:, turn + 2, turn + 2] = 1
    expected = whole_volume(labels, Joining(6))
    assert 1 <= expected.max() < 15
    found = find_objects(labels, tmp_path, Joining(6), shard=(9, 8, 8), blocks=(1, 5, 5))
    assert found.summary["objects"] == expected.max()
    assert np.array_equal(found.instances, expected)


@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize(("connectivity", "steps"), [(6, 1), (18, 2), (26, 3)])
def test_corner_seams(tmp_path: Path, blocks: int, connectivity: Any, steps: int) -> None:
    """Voxels of two shards that share a face, an edge or only a corner, inside a block and across blocks."""
    labels = np.zeros((16, 16, 16), np.uint8)
    corners = list(itertools.product((4, 8, 12), repeat=3))[::2]
    pairs = []
    for corner, direction in zip(corners, BACKWARD, strict=False):
        first = tuple(c - (step > 0) for c, step in zip(corner, direction, strict=True))
        second = tuple(c + step for c, step in zip(first, direction, strict=True))
        labels[first] = labels[second] = 1
        pairs.append((direction, first, second))
    assert len(pairs) == 13
    found = find_objects(labels, tmp_path, Joining(connectivity), shard=4, blocks=blocks).instances
    for direction, first, second in pairs:
        assert found[first] and found[second]
        assert (found[first] == found[second]) == (sum(map(abs, direction)) <= steps)


def test_other_classes_are_no_bridge(tmp_path: Path) -> None:
    labels = np.zeros((8, 8, 16), np.uint8)
    labels[4, 4, :] = 1
    labels[4, 4, 8:12] = 2
    by_class = find_objects(labels, tmp_path / "class", shard=4, blocks=(1, 1, 2))
    assert by_class.column("class_value").tolist() == [1, 2, 1]
    together = find_objects(labels, tmp_path / "all", Joining(26, "foreground"), shard=4, blocks=(1, 1, 2))
    assert together.column("class_value").tolist() == [1]
    assert together.column("voxels").tolist() == [16]


def test_mixed_objects_have_the_class_of_most_voxels(tmp_path: Path) -> None:
    labels = np.zeros((1, 8, 24), np.uint8)
    labels[0, 1, :10] = 2
    labels[0, 1, 10:24] = 7
    labels[0, 4, :12] = 7
    labels[0, 4, 12:24] = 2
    found = find_objects(labels, tmp_path, Joining(26, "foreground"), shard=(1, 8, 8), blocks=(1, 1, 3))
    assert found.column("class_value").tolist() == [7, 2]


def test_blocks_that_no_window_reached(tmp_path: Path) -> None:
    labels = noise((40, 40, 40), 0.2)
    grid = make_grid(labels, blocks=3)
    unreached = [b for b in range(27) if b % 2]
    for block in unreached:
        labels[tuple(slice(*axis) for axis in grid.block_box(block))] = 0
    found = find_objects(labels, tmp_path, blocks=3, unreached=unreached)
    assert not (tmp_path / "s.b1.components").exists()
    assert np.array_equal(found.instances, whole_volume(labels))


def test_sample_that_no_window_reached(tmp_path: Path) -> None:
    found = find_objects(np.zeros((20, 20, 20), np.uint8), tmp_path, blocks=1, unreached=[0])
    assert found.summary["objects"] == found.table.num_rows == 0


def test_more_than_65535_objects(tmp_path: Path) -> None:
    labels = np.zeros((84, 84, 84), np.uint8)
    labels[::2, ::2, ::2] = 1
    found = find_objects(labels, tmp_path, shard=42, blocks=(1, 1, 2))
    assert found.summary["objects"] == 42**3 == 74088
    assert found.instances.dtype == np.uint32
    assert np.array_equal(found.instances, whole_volume(labels))
    assert [id_type(n) for n in (0, 65534, 65535, 2**32 - 2, 2**32 - 1)] == ["uint16"] * 2 + ["uint32"] * 2 + ["uint64"]


def test_few_objects_whose_estimate_is_above_65535(tmp_path: Path) -> None:
    labels = np.zeros((64, 64, 64), np.uint8)
    labels[..., ::2] = 1
    labels[0] = 1
    with pytest.raises(ValueError, match="too small to contain the estimated"):
        cc3d.connected_components(labels, out_dtype=np.uint16)
    found = find_objects(labels, tmp_path, shard=64, blocks=1)
    assert found.instances.dtype == np.uint16
    assert found.column("voxels").tolist() == [np.count_nonzero(labels)]


def test_empty_mask(tmp_path: Path) -> None:
    found = find_objects(np.zeros((20, 30, 20), np.uint8), tmp_path, image=np.ones((2, 20, 30, 20), np.uint16))
    assert found.table.num_rows == 0
    boxes = [f"{axis}_{bound}" for axis in "zyx" for bound in ("start", "stop")]
    floats = [
        *(f"centroid_{axis}" for axis in "zyx"),
        *(f"{n}_c{c}" for c in (0, 1) for n in ("mean", "min", "max", "sd")),
    ]
    expected = {"id": "int64", "class_value": "int32", "voxels": "int64", "touches_border": "bool", "measured": "bool"}
    expected |= dict.fromkeys(boxes, "int64") | dict.fromkeys(floats, "double")
    assert {field.name: str(field.type) for field in found.table.schema} == expected
    assert not found.instances.any()
    assert found.instances.dtype == np.uint16
    assert pack([("s", found.boxes)], 5) == [MeasureRow("s", 0, 0, 0, 5)]


def test_one_object_that_fills_the_volume(tmp_path: Path) -> None:
    found = find_objects(np.ones((20, 33, 17), np.uint8), tmp_path, image=np.full((1, 20, 33, 17), 65535, np.uint16))
    row = found.table.to_pylist()[0]
    assert row["voxels"] == 20 * 33 * 17
    assert [row[f"{axis}_stop"] for axis in "zyx"] == [20, 33, 17]
    assert [row[f"centroid_{axis}"] for axis in "zyx"] == [9.5, 16.0, 8.0]
    assert (row["mean_c0"], row["sd_c0"], row["touches_border"]) == (65535, 0, True)
    assert (found.instances == 1).all()


def test_flat_sample(tmp_path: Path) -> None:
    labels = noise((1, 100, 90), 0.3)
    image = noise((1, 1, 100, 90), 1.0, 200)
    for connectivity in (6, 18, 26):
        joining = Joining(connectivity)  # type: ignore[arg-type]
        found = find_objects(labels, tmp_path / str(connectivity), joining, image=image, shard=(1, 32, 32))
        neighbours = ndimage.generate_binary_structure(2, 1 if connectivity == 6 else 2)
        expected, n = ndimage.label(labels[0], neighbours)
        assert found.summary["objects"] == n
        assert np.array_equal(found.instances[0] > 0, expected > 0)
        assert np.array_equal(found.instances, whole_volume(labels, joining))
    # the only plane is no border
    inside = np.zeros((1, 20, 20), np.uint8)
    inside[0, 5:9, 5:9] = 1
    assert not find_objects(inside, tmp_path / "inside").column("touches_border").any()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_statistics_are_those_of_numpy_and_scipy(tmp_path: Path, dtype: str) -> None:
    labels = blobs((140, 28, 29), 0.15)
    rng = np.random.default_rng(3)
    image = rng.normal(100, 20, (2, *labels.shape)).astype(dtype)
    # far from zero and narrow: what a plain sum of squares would lose
    image[1] = (30000 if dtype in ("uint16", "int16", "float32") else 200) + rng.integers(0, 3, labels.shape)
    found = find_objects(labels, tmp_path, image=image, shard=(128, 16, 16), blocks=(2, 1, 2))
    expected = whole_volume(labels)
    n = int(expected.max())
    assert n > 30
    statistics = cc3d.statistics(expected)
    assert np.array_equal(found.column("voxels"), statistics["voxel_counts"][1:])
    index = np.arange(1, n + 1)
    for axis, name in enumerate("zyx"):
        assert found.column(f"centroid_{name}") == pytest.approx(statistics["centroids"][1:, axis], rel=1e-6)
        boxes = [box[axis] for box in statistics["bounding_boxes"][1:]]
        assert found.column(f"{name}_start").tolist() == [box.start for box in boxes]
        assert found.column(f"{name}_stop").tolist() == [box.stop for box in boxes]
    for channel, values in enumerate(image.astype(np.float64)):
        assert found.column(f"min_c{channel}").tolist() == list(ndimage.minimum(values, expected, index))
        assert found.column(f"max_c{channel}").tolist() == list(ndimage.maximum(values, expected, index))
        assert found.column(f"mean_c{channel}") == pytest.approx(ndimage.mean(values, expected, index), rel=1e-12)
        sd = [values[expected == i].std() for i in index]
        assert found.column(f"sd_c{channel}") == pytest.approx(sd, rel=1e-9, abs=1e-9)
    touches = [any(b.start == 0 or b.stop == s for b, s in zip(box, labels.shape, strict=True))
               for box in statistics["bounding_boxes"][1:]]  # fmt: skip
    assert found.column("touches_border").tolist() == touches
    assert 0 < sum(touches) < n


def test_only_the_foreground_is_read(tmp_path: Path) -> None:
    labels = np.zeros((70, 20, 20), np.uint8)
    labels[66:68, 5:9, 3:20] = 1
    grid = make_grid(labels, shard=(70, 20, 20), blocks=1)
    labelling = label_shard(labels, grid, BY_CLASS)
    asked = []

    def read(channel: int, box: Any) -> np.ndarray:
        asked.append(box)
        return np.ones(tuple(b - a for a, b in box), np.uint8)

    measure_shard(labels, labelling, whole(labels.shape), grid, BY_CLASS, read, 1)
    assert asked == [((66, 68), (5, 9), (3, 20))]


def rods(lengths: list[int]) -> np.ndarray:
    """One rod along x per length, away from the border but for the first, which touches it; 4 x 4 voxels apart."""
    labels = np.zeros((9, 4 * len(lengths) + 1, 40), np.uint8)
    for i, length in enumerate(lengths):
        start = 0 if i == 0 else 2
        labels[4, 4 * i + 2, start : start + length] = 1
    return labels


def test_dropped_objects_are_counted_by_reason(tmp_path: Path) -> None:
    labels = rods([4, 20, 3, 6, 7, 5])
    filters = Filters(min_voxels=5, min_volume=0.9, border="drop")
    found = find_objects(labels, tmp_path, filters=filters, spacing=(0.5, 0.5, 0.6), shard=8)
    # volumes: 0.15 per voxel; 5 voxels are enough, but only 6 have the volume (0.9 exactly)
    assert found.summary["components"] == 6
    nothing = {"below_mean_fraction": 0, "touches_border": 0}
    assert found.summary["dropped"] == {"below_min_voxels": 2, "below_min_volume": 1, **nothing}
    assert found.summary["dropped_voxels"] == {"below_min_voxels": 7, "below_min_volume": 5, **nothing}
    assert found.column("voxels").tolist() == [20, 6, 7]
    assert found.column("id").tolist() == [1, 2, 3]
    expected = cc3d.dust(labels, threshold=6, connectivity=26)
    assert np.array_equal(found.instances, whole_volume(expected))


def test_a_share_of_the_mean_volume(tmp_path: Path) -> None:
    """The mean is that of all objects, those that another filter drops included; an object of just that share stays."""
    found = find_objects(rods([8, 4, 3, 10, 15]), tmp_path, filters=Filters(4, min_mean_fraction=0.5), shard=8)
    assert found.summary["dropped"] == {
        "below_min_voxels": 1, "below_min_volume": 0, "below_mean_fraction": 0, "touches_border": 0,
    }  # fmt: skip
    assert found.column("voxels").tolist() == [8, 4, 10, 15]
    fewer = find_objects(rods([8, 4, 3, 10, 15]), tmp_path / "b", filters=Filters(min_mean_fraction=0.501), shard=8)
    assert fewer.summary["dropped"]["below_mean_fraction"] == 2
    assert fewer.summary["dropped_voxels"]["below_mean_fraction"] == 7
    assert fewer.column("voxels").tolist() == [8, 10, 15]


@pytest.mark.parametrize("border", ["measure", "keep", "drop"])
def test_objects_at_the_border(tmp_path: Path, border: str) -> None:
    found = find_objects(rods([9, 10, 8]), tmp_path, filters=Filters(border=border), shard=8)
    assert found.summary["objects"] == (2 if border == "drop" else 3)
    assert found.summary["dropped"]["touches_border"] == (1 if border == "drop" else 0)
    assert found.summary["dropped_voxels"]["touches_border"] == (9 if border == "drop" else 0)
    expected = {"measure": [True, True, True], "keep": [False, True, True], "drop": [True, True]}[border]
    assert found.column("measured").tolist() == expected
    assert (found.boxes > 0).tolist() == expected
    assert int(found.instances.max()) == found.summary["objects"]


def test_no_object_left(tmp_path: Path) -> None:
    found = find_objects(rods([4, 5]), tmp_path, filters=Filters(100), shard=8)
    assert found.summary["dropped"]["below_min_voxels"] == 2
    assert found.table.num_rows == 0
    assert not found.instances.any()


def test_least_volume_needs_a_voxel_size(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no voxel size"):
        find_objects(rods([4]), tmp_path, filters=Filters(min_volume=1.0), unit="pixel", shard=8)
    assert find_objects(rods([4]), tmp_path / "b", filters=Filters(1), unit="pixel", shard=8).summary["objects"] == 1


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32), shard=st.sampled_from([5, 8]), blocks=st.integers(1, 3))
def test_separated_objects_are_numbered_by_their_first_voxel(seed: int, shard: int, blocks: int) -> None:
    """Ids that touch stay apart, ids in parts stay one, and an id says its class; their own order means nothing."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.integers(0, 12, (11, 13, 9)), 2, axis=2)
    ids = np.where(labels > 0, rng.permutation(2**40 + np.arange(12))[labels], 0).astype(np.uint64)
    grid = replace(
        make_grid(ids, shard=shard, blocks=blocks), kind=SEPARATED, values=(3, 7), dtype="uint64",
        label_names={"0": "background", "3": "core", "7": "shell"},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_blocks(grid, ids, folder)
        label_all(grid, folder, BY_CLASS)
        summary, _ = link_sample(grid, folder, BY_CLASS, Filters(), 0, folder)
        found = relabel_all(grid, folder, BY_CLASS, summary["dtype"])
        table = pq.read_table(folder / "s.linked.parquet")
    present, first = np.unique(ids[ids > 0], return_index=True)
    ordered = present[np.argsort(first)]
    expected = np.zeros(ids.shape, found.dtype)
    for number, one in enumerate(ordered, 1):
        expected[ids == one] = number
    assert np.array_equal(found, expected)
    assert table["class_value"].to_pylist() == [(3, 7)[int(one - 1) % 2] for one in ordered]
    assert table["voxels"].to_pylist() == [int((ids == one).sum()) for one in ordered]


@pytest.mark.parametrize("offset", [0, 300, 2**33])
def test_given_instances_keep_their_ids(tmp_path: Path, offset: int) -> None:
    """Ids are objects: in parts or touching, in any order, too large for 32 bits."""
    labels = np.zeros((20, 24, 36), np.uint8 if offset == 0 else np.uint64)
    labels[2:5, 2:4, 2:30] = 9 + offset
    labels[12:14, 20:22, 30:33] = 9 + offset
    labels[5:9, 2:20, 3:6] = 4 + offset
    labels[15, 15, 15] = 200 + offset
    image = noise((1, 20, 24, 36), 1.0, 250)
    of_grid = {"kind": "instances", "shard": 8, "blocks": (2, 3, 2)}
    found = find_objects(labels, tmp_path / "all", image=image, **of_grid)
    assert np.array_equal(found.instances, labels)
    ids = [4 + offset, 9 + offset, 200 + offset]
    assert found.column("id").tolist() == ids
    assert found.column("class_value").tolist() == [1, 1, 1]
    assert found.column("voxels").tolist() == [int((labels == i).sum()) for i in ids]
    assert found.column("mean_c0") == pytest.approx([image[0][labels == i].mean() for i in ids])
    assert found.column("x_stop").tolist() == [6, 33, 16]
    kept = find_objects(labels, tmp_path / "some", filters=Filters(2), **of_grid)
    assert np.array_equal(kept.instances, np.where(labels == 200 + offset, 0, labels))
    assert kept.summary["dropped"]["below_min_voxels"] == 1


def test_full_shard_of_instances(tmp_path: Path) -> None:
    labels = np.arange(1, 16**3 + 1, dtype=np.uint16).reshape(16, 16, 16)
    found = find_objects(labels, tmp_path, kind="instances", shard=8)
    assert np.array_equal(found.instances, labels)


@pytest.fixture
def labelled(tmp_path: Path) -> Objects:
    return find_objects(noise((20, 20, 40), 0.2), tmp_path, blocks=(1, 1, 2))


def again(found: Objects) -> None:
    """Link and write once more."""
    link_sample(found.grid, found.folder, BY_CLASS, KEEP_ALL, 0, found.folder)
    relabel_all(found.grid, found.folder, BY_CLASS, found.summary["dtype"])


@pytest.mark.parametrize("ending", ["components", "lut"])
@pytest.mark.parametrize("damage", ["lost", "cut", "changed"])
def test_lost_or_damaged_files_are_temporary_errors(labelled: Objects, ending: str, damage: str) -> None:
    again(labelled)
    path = labelled.folder / f"s.b1.{ending}"
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    if damage == "changed":
        # within the first array, behind the header of its member
        path.write_bytes(content[:100] + bytes([content[100] ^ 255]) + content[101:])
    with pytest.raises(TemporaryError) as caught:
        if ending == "lut":
            relabel_all(labelled.grid, labelled.folder, BY_CLASS, labelled.summary["dtype"])
        else:
            again(labelled)
    assert caught.value.code == 75
    assert caught.value.file == str(path)


@pytest.mark.parametrize("step", ["label", "relabel"])
@pytest.mark.parametrize("lost", ["block", "shard"])
def test_lost_labels_are_temporary_errors(labelled: Objects, step: str, lost: str) -> None:
    shutil.rmtree(labelled.folder / ("s.b1.zarr" if lost == "block" else "s.b1.zarr/0/c/1/0/1"), ignore_errors=True)
    if lost == "shard":
        (labelled.folder / "s.b1.zarr/0/c/0/1/2").unlink()
    with pytest.raises(TemporaryError, match="incomplete") as caught:
        if step == "label":
            label_all(labelled.grid, labelled.folder, BY_CLASS)
        else:
            again(labelled)
    assert caught.value.file == str(labelled.folder / "s.b1.zarr")


def test_labels_that_are_not_those_that_were_linked(labelled: Objects) -> None:
    for changed in (np.zeros((20, 20, 40), np.uint8), noise((20, 20, 40), 0.2, seed=5)):
        write_blocks(labelled.grid, changed, labelled.folder)
        with pytest.raises(TemporaryError, match="components now and had"):
            relabel_all(labelled.grid, labelled.folder, BY_CLASS, labelled.summary["dtype"])


def test_objects_are_shared_out_to_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "BOX_VOXELS_PER_TASK", 100)
    monkeypatch.setattr(link, "OBJECTS_PER_TASK", 4)
    samples = [
        ("a", np.array([10, 10, 10])),
        ("b", np.array([0, 0])),
        ("c", np.array([60, 20, 500, 1, 1, 1, 0, 1, 1])),
        ("d", np.array([], np.int64)),
        ("e", np.array([99])),
    ]
    rows = pack(samples, 7)
    assert [(r.sample, r.task, r.first, r.last) for r in rows] == [
        ("a", 0, 0, 3),
        ("b", 0, 0, 0),
        ("c", 0, 0, 1),
        ("c", 1, 1, 2),
        ("c", 2, 2, 3),
        ("c", 3, 3, 7),
        ("c", 4, 7, 9),
        ("d", 4, 0, 0),
        ("e", 5, 0, 1),
    ]
    assert {row.memory_bytes for row in rows} == {7}


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(boxes=st.lists(st.lists(st.integers(0, 150), max_size=12), min_size=1, max_size=4))
def test_every_object_is_measured_once(monkeypatch: pytest.MonkeyPatch, boxes: list[list[int]]) -> None:
    monkeypatch.setattr(link, "BOX_VOXELS_PER_TASK", 100)
    monkeypatch.setattr(link, "OBJECTS_PER_TASK", 5)
    rows = pack([(str(i), np.array(voxels, np.int64)) for i, voxels in enumerate(boxes)], 1)
    assert [row.task for row in rows] == sorted(row.task for row in rows)
    assert {row.task for row in rows} == set(range(rows[-1].task + 1))
    for i, voxels in enumerate(boxes):
        of_sample = [row for row in rows if row.sample == str(i)]
        covered = list(itertools.chain.from_iterable(range(row.first, row.last) for row in of_sample))
        assert covered == (list(range(len(voxels))) if any(voxels) else [])
    for task in range(rows[-1].task + 1):
        members = [boxes[int(row.sample)][row.first : row.last] for row in rows if row.task == task]
        together = list(itertools.chain.from_iterable(members))
        assert len(together) <= 5
        assert sum(together) <= 100 or len(together) == 1


def write_sample(folder: Path, sample: str, labels: np.ndarray, image: np.ndarray) -> list[BlockRow]:
    """All that the three scripts find in a task's folder, but for the table of blocks."""
    grid = make_grid(labels)
    grid = type(grid)(**{**vars(grid), "sample": sample})
    grid.save(folder / f"{sample}.grid.json")
    write_blocks(grid, labels, folder)
    store = create_array(
        folder / "stores" / f"{sample}.image.zarr" / "0", image.shape, str(image.dtype), (1, 16, 16, 16), "czyx"
    )
    store[:] = image
    ImageInfo(
        sample=sample,
        shape=labels.shape,
        dtype=str(image.dtype),
        spacing=(1.0, 1.0, 1.0),
        unit="um",
        spacing_origin="test",
        format="array",
        files=(),
        array=ArrayLocation("0", "czyx", (1, 0)),
        intensity=(Intensity(), Intensity()),
        flip="none",
        nonzero_box=whole(labels.shape),
        statistics=(),
        content_sha256="",
    ).save(folder / f"{sample}.image.json")
    return [BlockRow(sample, block, block % 2, 1) for block in grid.reached]


def test_scripts(tmp_path: Path) -> None:
    """Two samples of one batch, blocks in two groups, each step in a process of its own."""
    labels = {"a": noise((33, 20, 20), 0.2), "b": np.zeros((20, 20, 20), np.uint8)}
    image = {name: np.random.default_rng(2).integers(0, 999, (2, *of.shape)).astype(np.uint16) for name, of in labels.items()}  # fmt: skip # noqa: E501
    rows = [row for name, of in labels.items() for row in write_sample(tmp_path, name, of, image[name])]
    write_rows(tmp_path / "batch.blocks.csv", BlockRow, rows)

    def run(script: str, *options: str) -> None:
        subprocess.run([sys.executable, ROOT / "bin" / script, "--batch", "batch", *options], cwd=tmp_path, check=True)

    for group in ("0", "1"):
        run("label_blocks.py", "--group", group, "--connectivity", "6")
    for path in tmp_path.glob("*/*.components"):
        shutil.move(path, tmp_path)
    run("link_objects.py", "--connectivity", "6", "--min-object-voxels", "2", "--memory-budget", "1000")
    for path in [*tmp_path.glob("*/*.lut"), *tmp_path.glob("*/*.linked.json")]:
        shutil.move(path, tmp_path)
    for group in ("0", "1"):
        run("relabel_blocks.py", "--group", group, "--connectivity", "6")

    expected = cc3d.connected_components(cc3d.dust(labels["a"], threshold=2, connectivity=6), connectivity=6)
    blocks = [zarr.open_array(str(p), path="0", mode="r")[:] for p in sorted(tmp_path.glob("a/a.b*.instances.zarr"))]
    assert len(blocks) == 8
    found = np.min(blocks, axis=0)
    assert np.array_equal(found, expected)
    table = pq.read_table(tmp_path / "a" / "a.linked.parquet")
    # channels in the model's order
    assert table["mean_c0"].to_pylist() == pytest.approx(
        ndimage.mean(image["a"][1], expected, np.arange(1, expected.max() + 1)).tolist()
    )
    with open(tmp_path / "batch" / "batch.measures.csv", newline="") as handle:
        measures = list(csv.DictReader(handle))
    assert measures == [
        {"sample": "a", "task": "0", "first": "0", "last": str(expected.max()), "memory_bytes": "1000"},
        {"sample": "b", "task": "0", "first": "0", "last": "0", "memory_bytes": "1000"},
    ]
    counts = read_json(tmp_path / "batch" / "batch.relabel_blocks.0.json")["counts"]
    counts_1 = read_json(tmp_path / "batch" / "batch.relabel_blocks.1.json")["counts"]
    assert counts["a"]["voxels"] + counts_1["a"]["voxels"] == np.count_nonzero(expected)
    of_blocks = [read_json(path) for path in tmp_path.glob("a/a.b*.instances.zarr/counts.json")]
    assert sum(block.get("1", 0) for block in of_blocks) == np.count_nonzero(expected)
    assert sum(block.get("0", 0) for block in of_blocks) == np.count_nonzero(expected == 0)
    linked = read_json(tmp_path / "batch" / "batch.link_objects.json")["counts"]["a"]
    assert linked["components"] == linked["objects"] + linked["below_min_voxels"]
