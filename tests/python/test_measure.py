"""MEASURE_OBJECTS: measures and profiles against a direct reading, for any grouping, resolution and damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import block_reduce
from skimage.morphology import skeletonize as lee

from tubes import stage, tube, volume
from voxelmill.errors import TemporaryError
from voxelmill.objects import measure
from voxelmill.objects.columns import MEASURES, columns_of
from voxelmill.objects.measure import measure_task, measures_schema, pool, shared_reads
from voxelmill.objects.shape import count, measures_of
from voxelmill.objects.skeleton import paths
from voxelmill.objects.thinning import skeletonize
from voxelmill.task import Task

SPACING = (2.0, 1.0, 1.0)
PLENTY = 4_000_000_000
LISTS = ("profile_distance", "profile_z", "profile_y", "profile_x")


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """Tubes with and without branches, a block of even sides, a single voxel, a plate and an object in two parts."""
    rng = np.random.default_rng(8)
    drawn = [tube(rng, length, SPACING, branch=bool(length % 2)) for length in (20, 25, 31, 36, 18, 27)]
    tubes = volume(drawn)
    labels = np.zeros((tubes.shape[0] + 16, *tubes.shape[1:]), dtype=np.uint16)
    labels[: tubes.shape[0]] = tubes
    low = tubes.shape[0] + 2
    labels[low : low + 2, 2:4, 2:6] = 7
    labels[low, 10, 10] = 8
    labels[low, 14:30, 4:30] = 9
    labels[low + 4, 4:12, 6] = 11
    labels[low + 8, 4:9, 6] = 11
    return labels


@pytest.fixture(scope="module")
def image(labels: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.integers(0, 60000, (2, *labels.shape)).astype(np.uint16)


def run(
    folder: Path,
    *samples: str,
    rows: list[tuple[str, int, int, int]],
    budget: int = PLENTY,
    task: int = 0,
    length: str = "longest_path",
    measures: tuple[str, ...] = MEASURES,
) -> dict[str, pa.Table]:
    """Measure one task; rows are (sample, task, first, last)."""
    text = "sample,task,first,last,memory_bytes\n" + "".join(f"{','.join(map(str, row))},0\n" for row in rows)
    (folder / "batch.measures.csv").write_text(text)
    record = Task("measure_objects", "batch", str(task))
    measure_task("batch", task, samples, folder, length, budget, record, measures)
    return {
        row[0]: pq.read_table(folder / row[0] / f"{row[0]}.m{task}.measures.parquet") for row in rows if row[1] == task
    }


def tiny_budget(labels: np.ndarray, monkeypatch: pytest.MonkeyPatch, share: float) -> int:
    """A budget in which only this share of the largest box fits."""
    monkeypatch.setattr(measure, "PROGRAM_BYTES", 0)
    largest = max(np.prod([at.stop - at.start for at in place]) for place in ndimage.find_objects(labels) if place)
    return int(largest * 6 * share)


def test_measures_and_profiles_are_those_of_a_direct_reading(
    tmp_path: Path, labels: np.ndarray, image: np.ndarray
) -> None:
    stage(tmp_path, "s", labels, image, SPACING, shard=(32, 64, 64))
    table = run(tmp_path, "s", rows=[("s", 0, 0, 10)])["s"]
    assert table.schema == measures_schema(2)
    assert table["id"].to_pylist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 11]
    for row in table.to_pylist():
        mask = labels == row["id"]
        box = ndimage.find_objects(mask.astype(np.uint8))[0]
        corner = np.array([at.start for at in box])
        skeleton = lee(mask[box], method="lee")
        assert row["skeleton_empty"] == (not skeleton.any())
        if row["skeleton_empty"]:
            skeleton[tuple(skeletonize(mask[box], SPACING).voxels.T)] = True
        assert row["skeleton_voxels"] == skeleton.sum()
        assert row["length_resolution"] == 1
        deep = ndimage.distance_transform_edt(np.pad(mask[box], 1), sampling=SPACING)[1:-1, 1:-1, 1:-1]
        assert row["mean_thickness"] == pytest.approx(2 * deep[skeleton].mean(), rel=1e-12)

        found = paths([skeletonize(mask[box], SPACING)], SPACING)
        assert row["longest_path"] == found.longest_path.length[0] == row["profile_distance"][-1]
        assert row["longest_branch"] == found.longest_branch.length[0]
        assert row["branches"] == found.branches[0]
        straight = found.straight[0]
        assert row["tortuosity"] == (pytest.approx(row["longest_path"] / straight) if straight else 1.0)
        assert row["tortuosity"] >= 1
        assert row["profile_distance"] == found.longest_path.along.tolist()

        path = np.array([row[f"profile_{axis}"] for axis in "zyx"]).T
        assert skeleton[tuple((path - corner).T)].all()
        assert (abs(np.diff(path, axis=0)).max(axis=1) == 1).all()
        for channel in range(2):
            assert row[f"profile_c{channel}"] == image[channel][tuple(path.T)].tolist()
    empty = dict(zip(table["id"].to_pylist(), table["skeleton_empty"].to_pylist(), strict=True))
    assert [number for number, flag in empty.items() if flag] == [7]


@pytest.mark.parametrize("share", [None, 0.9, 0.02])
@pytest.mark.parametrize("measures", [MEASURES, ("shape",)])
def test_shapes_are_those_of_the_whole_image(
    tmp_path: Path,
    labels: np.ndarray,
    image: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    share: float | None,
    measures: tuple[str, ...],
) -> None:
    """Whether objects are read together, each alone or in tiles."""
    touching = labels.copy()
    places = np.argwhere(labels == 9)
    touching[tuple(places[places[:, 2] > 17].T)] = 10
    touching[tuple(places[places[:, 1] > 27].T)] = 12
    touching[tuple((places[places[:, 2] < 9] + [1, 0, 0]).T)] = 13
    stage(tmp_path, "s", touching, image, SPACING, shard=(32, 64, 64), unmeasured=[12])
    boxes = np.array([[(at.start, at.stop) for at in place] for place in ndimage.find_objects(touching)])
    whole = count(touching, np.arange(1, 14), boxes)
    known = measures_of(whole, SPACING, None)
    budget = PLENTY
    if share is None:
        monkeypatch.setattr(measure, "READ_BYTES", 1)
    else:
        monkeypatch.setattr(measure, "TILE", 12)
        budget = tiny_budget(touching, monkeypatch, share)
        monkeypatch.setattr(measure, "BYTES_PER_OBJECT_VOXEL", 0)
    table = run(tmp_path, "s", rows=[("s", 0, 0, 13)], budget=budget, measures=measures)["s"]
    assert table["id"].to_pylist() == [*range(1, 12), 13]
    for name, values in known.items():
        found = table[name].to_numpy()
        np.testing.assert_array_equal(found, values[[*range(11), 12]], name)
    neighbours = dict(zip(table["id"].to_pylist(), table["neighbours"].to_pylist(), strict=True))
    assert [neighbours[k] for k in (8, 9, 10)] == [0, 3, 2]
    if share is not None and "skeleton" in measures:
        assert max(table["length_resolution"].to_pylist()) > 1


def test_rows_are_in_the_order_of_the_ids(tmp_path: Path) -> None:
    labels = np.zeros((62, 8, 40), np.uint8)
    for number, z in enumerate(np.random.default_rng(2).permutation(30), 1):
        labels[2 * z + 1, 4, :number] = number
    stage(tmp_path, "s", labels, labels[None], shard=(32, 32, 32))
    table = run(tmp_path, "s", rows=[("s", 0, 0, 30)])["s"]
    assert table["id"].to_pylist() == list(range(1, 31))
    np.testing.assert_allclose(np.pi * table["equivalent_diameter"].to_numpy() ** 3 / 6, range(1, 31))
    np.testing.assert_array_equal(table["longest_path"].to_numpy() > 0, np.arange(1, 31) > 1)


def test_only_what_is_asked_for_is_measured(tmp_path: Path, labels: np.ndarray, image: np.ndarray) -> None:
    stage(tmp_path, "s", labels, image, SPACING, shard=(32, 64, 64))
    every = run(tmp_path, "s", rows=[("s", 0, 0, 10)])["s"]
    skeletons = run(tmp_path, "s", rows=[("s", 0, 0, 10)], measures=("skeleton",))["s"]
    shutil.rmtree(tmp_path / "stores" / "s.image.zarr" / "0" / "c")
    shapes = run(tmp_path, "s", rows=[("s", 0, 0, 10)], measures=("shape",))["s"]
    assert shapes.column_names == ["id", *(column.name for column in columns_of(["shape"], False))]
    assert not set(skeletons.column_names) & set(shapes.column_names[1:])
    assert set(every.column_names) == {*skeletons.column_names, *shapes.column_names}
    for part in (skeletons, shapes):
        assert part.equals(every.select(part.column_names))


def test_profiles_follow_the_path_that_is_called_length(tmp_path: Path, labels: np.ndarray, image: np.ndarray) -> None:
    stage(tmp_path, "s", labels, image, SPACING, shard=(32, 64, 64))
    rows = run(tmp_path, "s", rows=[("s", 0, 0, 10)], length="longest_branch")["s"].to_pylist()
    assert any(row["longest_branch"] < 0.9 * row["longest_path"] for row in rows)
    for row in rows:
        assert row["profile_distance"][-1] == row["longest_branch"]
        path = tuple(np.array([row[f"profile_{axis}"] for axis in "zyx"]))
        assert row["profile_c1"] == image[1][path].tolist()


def test_tasks_windows_and_reads_do_not_change_a_byte(
    tmp_path: Path, labels: np.ndarray, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(tmp_path, "s", labels, image, SPACING, shard=(32, 64, 64))
    whole = run(tmp_path, "s", rows=[("s", 0, 0, 10)])["s"]
    first = (tmp_path / "s" / "s.m0.measures.parquet").read_bytes()
    run(tmp_path, "s", rows=[("s", 0, 0, 10)])
    assert (tmp_path / "s" / "s.m0.measures.parquet").read_bytes() == first
    rows = [("s", 0, 0, 3), ("s", 1, 3, 4), ("s", 2, 4, 10)]
    monkeypatch.setattr(measure, "WINDOW", 2)
    monkeypatch.setattr(measure, "READ_BYTES", 1)
    parts = [run(tmp_path, "s", rows=rows, task=task)["s"] for task in range(3)]
    assert pa.concat_tables(parts).combine_chunks().equals(whole.combine_chunks())


def test_samples_of_a_batch_share_a_task(tmp_path: Path, labels: np.ndarray, image: np.ndarray) -> None:
    stage(tmp_path, "b", labels, image, SPACING, shard=(64, 64, 64), position=1, unmeasured=[2, 11])
    stage(tmp_path, "a", labels[:, ::-1].copy(), image[:, :, ::-1].copy(), shard=(64, 64, 64), unit="pixel", position=2)
    rows = [("b", 0, 0, 10), ("a", 0, 2, 4)]
    record = run(tmp_path, "b", "a", rows=rows)
    assert record["b"]["id"].to_pylist() == [1, 3, 4, 5, 6, 7, 8, 9]
    assert record["a"]["id"].to_pylist() == [3, 4]


def test_nothing_to_measure_gives_a_table_without_rows(tmp_path: Path, labels: np.ndarray, image: np.ndarray) -> None:
    stage(tmp_path, "s", np.zeros((4, 8, 8), np.uint8), image[:, :4, :8, :8], shard=(16, 16, 16))
    stage(tmp_path, "t", labels, image, position=2, unmeasured=range(12))
    tables = run(tmp_path, "s", "t", rows=[("s", 0, 0, 0), ("t", 0, 0, 10)])
    for table in tables.values():
        assert (table.schema, len(table)) == (measures_schema(2), 0)


def test_a_picture_is_measured_in_its_plane(tmp_path: Path) -> None:
    labels = np.zeros((1, 40, 60), dtype=np.uint8)
    labels[0, 10:19, 5:50] = 1
    stage(tmp_path, "s", labels, labels[None] * 7, (1.0, 0.5, 0.5), shard=(1, 64, 64))
    row = run(tmp_path, "s", rows=[("s", 0, 0, 1)])["s"].to_pylist()[0]
    plane = lee(labels[0] == 1, method="lee")
    deep = ndimage.distance_transform_edt(labels[0], sampling=0.5)
    assert row["mean_thickness"] == pytest.approx(2 * deep[plane].mean())
    assert row["skeleton_voxels"] == plane.sum()
    assert set(row["profile_c0"]) == {7.0}
    # a rectangle of 9 by 45 pixels of half a micrometre, whose contour cuts off the corners
    assert row["perimeter"] == pytest.approx(2 * (8 + 44) * 0.5 + 4 * np.sqrt(0.5) * 0.5)
    assert row["axis_1"] == pytest.approx(4 * np.sqrt((45**2 - 1) / 12) * 0.5)
    assert "surface" not in row


@pytest.mark.parametrize(("share", "factor"), [(0.9, 2), (0.02, 4)])
def test_a_large_object_is_measured_at_a_lower_resolution(
    tmp_path: Path,
    labels: np.ndarray,
    image: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    factor: int,
) -> None:
    stage(tmp_path, "s", labels, image, SPACING, shard=(32, 64, 64))
    monkeypatch.setattr(measure, "TILE", 12)
    budget = tiny_budget(labels, monkeypatch, share)
    monkeypatch.setattr(measure, "BYTES_PER_OBJECT_VOXEL", 0)
    rows = run(tmp_path, "s", rows=[("s", 0, 0, 10)], budget=budget)["s"].to_pylist()
    assert [row["id"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 11]
    assert max(row["length_resolution"] for row in rows) == factor
    assert min(row["length_resolution"] for row in rows) == 1
    spacing = factor * np.array(SPACING)
    for row in (row for row in rows if row["length_resolution"] == factor):
        mask = labels == row["id"]
        box = ndimage.find_objects(mask.astype(np.uint8))[0]
        coarse = block_reduce(mask[box], (factor,) * 3, np.any)
        skeleton = skeletonize(coarse, spacing)
        found = paths([skeleton], spacing)
        assert row["longest_path"] == found.longest_path.length[0]
        assert row["longest_branch"] == found.longest_branch.length[0]
        assert row["mean_thickness"] == pytest.approx(2 * skeleton.distances.mean())

        path = np.array([row[f"profile_{axis}"] for axis in "zyx"]).T
        assert mask[tuple(path.T)].all()
        corner = np.array([at.start for at in box])
        cells = skeleton.voxels[found.longest_path.points]
        np.testing.assert_array_equal((path - corner) // factor, cells)
        for cell, voxel in zip(cells, path, strict=True):
            members = np.argwhere(mask)
            members = members[((members - corner) // factor == cell).all(axis=1)]
            ways = np.linalg.norm((members - corner - cell * factor - (factor - 1) / 2) * SPACING, axis=1)
            assert ways.min() == pytest.approx(
                np.linalg.norm((voxel - corner - cell * factor - (factor - 1) / 2) * SPACING)
            )
        for channel in range(2):
            assert row[f"profile_c{channel}"] == image[channel][tuple(path.T)].tolist()


def test_pooling_keeps_what_any_voxel_has() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((7, 9, 5)) < 0.1
    for factor in (2, 4, 8):
        np.testing.assert_array_equal(pool(mask, factor), block_reduce(mask, (factor,) * 3, np.any))


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.sampled_from([2**12, 2**16, 2**30]))
@settings(max_examples=50)
def test_every_box_is_in_one_read_that_holds_it(seed: int, n: int, limit: int) -> None:
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, 300, (n, 3))
    boxes = np.stack([starts, starts + rng.integers(1, 40, (n, 3))], axis=2)
    arrays = [(np.array([64, 64, 64]), 2), (np.array([1, 128, 300]), 1)]
    reads = shared_reads(boxes, arrays, limit)
    assert sorted(k for _, members in reads for k in members) == list(range(n))
    for bounds, members in reads:
        assert (bounds[:, 0] <= boxes[members, :, 0]).all()
        assert (bounds[:, 1] >= boxes[members, :, 1]).all()
        assert len(members) == 1 or 3 * np.prod(bounds[:, 1] - bounds[:, 0]) <= limit


def test_neighbouring_objects_share_a_read() -> None:
    starts = np.stack(np.meshgrid(*[np.arange(4) * 30] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    boxes = np.stack([starts, starts + 25], axis=2)
    arrays = [(np.array([64, 64, 64]), 4)]
    assert len(shared_reads(boxes, arrays, 2**28)) == 1
    far = np.concatenate([boxes, boxes[:1] + 100_000])
    assert len(shared_reads(far, arrays, 2**28)) == 2


def test_labels_that_lost_voxels_are_an_error(tmp_path: Path, labels: np.ndarray, image: np.ndarray) -> None:
    stage(tmp_path, "s", labels, image, SPACING, shard=(32, 64, 64))
    shape_only = ("shape",)
    array = zarr.open_array(str(tmp_path / "labels" / "1" / "labels.ome.zarr"), path="instances/0")
    place = tuple(np.argwhere(labels == 4)[0])
    for value, found in ((0, f"object 4 has {(labels == 4).sum() - 1} voxels"), (array.fill_value, "never written")):
        array[place] = value
        with pytest.raises(TemporaryError, match=found):
            run(tmp_path, "s", rows=[("s", 0, 0, 10)])
        with pytest.raises(TemporaryError, match=found):
            run(tmp_path, "s", rows=[("s", 0, 0, 10)], measures=shape_only)
    assert not (tmp_path / "s" / "s.m0.measures.parquet").exists()


def test_a_task_says_how_far_it_is(
    tmp_path: Path, labels: np.ndarray, image: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    stage(tmp_path, "s", labels, image, SPACING, shard=(32, 64, 64))
    run(tmp_path, "s", rows=[("s", 0, 0, 10)])
    shown = capsys.readouterr().err
    assert "compiled in" in shown
    assert "10 of 10 objects" in shown
