"""What is common to all ways of telling objects apart: windows that grow, blocks as one array, labels by name, scripts.

The method of most tests here knows the whole volume and pretends not to: a voxel is decided where a window reaches as
far as the voxel asks for. So each test knows what must come out, and which windows were asked for.
"""

from __future__ import annotations

import runpy
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from assembled import BY_CLASS, KEEP_ALL, label_all, make_grid, relabel_all, write_blocks
from conftest import ROOT
from voxelmill.errors import TemporaryError, UsageError
from voxelmill.files import read_json
from voxelmill.grid import SEPARATED, LabelGrid
from voxelmill.image import Box, slices, whole
from voxelmill.objects.link import link_sample
from voxelmill.objects.separation.border_core import border_core_instances
from voxelmill.objects.separation.cores import find_label, label_values
from voxelmill.objects.separation.gather import BORDER_CORE, WATERSHED, Gathered, gather_blocks, separated_grid
from voxelmill.objects.separation.separate import window_bytes
from voxelmill.objects.separation.windows import UNDECIDED, separate_block, separate_box
from voxelmill.rows import BlockRow, write_rows
from voxelmill.task import Progress

ENDLESS = 10**6


@dataclass
class Pretender:
    """Tells the truth of a voxel where a window, unless the sample ends, reaches as far around it as it needs."""

    truth: np.ndarray
    needs: np.ndarray
    halo: int = 1
    bytes_per_voxel: int = 1
    windows: list[Box] = field(default_factory=list)

    def flood(self, window: Box) -> np.ndarray:
        self.windows.append(window)
        return self.known(window)

    def known(self, window: Box) -> np.ndarray:
        decided = np.ones([b - a for a, b in window], bool)
        for axis, ((start, stop), size) in enumerate(zip(window, self.truth.shape, strict=True)):
            at = np.arange(start, stop)
            reach = np.minimum(
                np.where(start == 0, ENDLESS, at - start), np.where(stop == size, ENDLESS, stop - 1 - at)
            ).reshape([-1 if i == axis else 1 for i in range(3)])
            decided &= self.needs[slices(window)] <= reach
        return np.where(decided, self.truth[slices(window)], UNDECIDED)


@dataclass
class DiskPretender(Pretender):
    on_disk: list[Box] = field(default_factory=list)

    def flood_on_disk(self, window: Box, box: Box, limit: int) -> np.ndarray:
        self.on_disk.append(window)
        return self.known(window)[tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(box, window, strict=True))]


def volume(shape: tuple[int, ...], seed: int, deepest: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2**40, shape) * rng.integers(0, 2, shape)
    return truth, np.where(rng.random(shape) < 0.1, rng.integers(0, deepest + 1, shape), 0)


def voxels(box: Box) -> int:
    return int(np.prod([b - a for a, b in box]))


@settings(max_examples=60)
@given(
    shape=st.tuples(*[st.integers(1, 20)] * 3),
    corners=st.tuples(*[st.tuples(st.floats(0, 1), st.floats(0, 1))] * 3),
    seed=st.integers(0, 1000),
    deepest=st.integers(0, 30),
    halo=st.integers(1, 8),
    limit=st.integers(1, 3000),
)
def test_every_voxel_is_decided_within_the_limit(
    shape: tuple[int, ...],
    corners: tuple[tuple[float, float], ...],
    seed: int,
    deepest: int,
    halo: int,
    limit: int,
) -> None:
    box = tuple((int(min(c) * (n - 1)), int(max(c) * (n - 1)) + 1) for c, n in zip(corners, shape, strict=True))
    method = DiskPretender(*volume(shape, seed, deepest), halo=halo)
    assert np.array_equal(separate_box(method, box, shape, limit), method.truth[slices(box)])
    assert all(voxels(window) <= limit for window in method.windows)
    assert all(voxels(window) > limit for window in method.on_disk)


def test_only_what_is_left_is_looked_at_again() -> None:
    truth, needs = volume((40, 40, 40), 0, 0)
    needs[20, 21, 22] = 9
    method = Pretender(truth, needs, halo=2)
    assert np.array_equal(separate_box(method, ((10, 30),) * 3, truth.shape, 10**6), truth[10:30, 10:30, 10:30])
    around = [tuple((c - halo, c + halo + 1) for c in (20, 21, 22)) for halo in (4, 8, 16)]
    # the first window reaches 11 voxels beyond the one that asks for nine
    assert method.windows == [((8, 32),) * 3]
    method = Pretender(truth, needs, halo=2)
    separate_box(method, ((14, 24), (14, 24), (14, 24)), truth.shape, 10**6)
    assert method.windows == [((12, 26),) * 3, around[0], around[1], around[2]]


def test_what_is_left_far_apart_is_looked_at_apart() -> None:
    truth, needs = volume((90, 8, 8), 0, 0)
    needs[31, 4, 4] = needs[62, 4, 4] = 4
    method = Pretender(truth, needs, halo=2)
    separate_box(method, ((30, 64), (0, 8), (0, 8)), truth.shape, 10**6)
    assert method.windows[0] == ((28, 66), (0, 8), (0, 8))
    # a window around each costs less than one around both
    assert sorted(method.windows[1:]) == [((27, 36), (0, 8), (0, 8)), ((58, 67), (0, 8), (0, 8))]
    # all of them ask for one voxel more than the first window has
    needs[30:64, 4, 4] = [min(z - 28, 65 - z) + 1 for z in range(30, 64)]
    method = Pretender(truth, needs, halo=2)
    separate_box(method, ((30, 64), (0, 8), (0, 8)), truth.shape, 10**6)
    assert method.windows[1:] == [((26, 68), (0, 8), (0, 8))]


def test_a_window_that_is_too_large_is_cut() -> None:
    truth, needs = volume((8, 8, 32), 0, 0)
    method = Pretender(truth, needs)
    assert np.array_equal(separate_box(method, whole(truth.shape), truth.shape, 8 * 8 * 10), truth)
    assert method.windows == [((0, 8), (0, 8), (a, b)) for a, b in [(23, 32), (15, 25), (7, 17), (0, 9)]]


def test_memory_that_is_too_small_is_an_error_that_says_how_much(tmp_path: Path) -> None:
    truth, needs = volume((40, 40, 40), 0, 0)
    needs[20, 20, 20] = 15
    method = Pretender(truth, needs, bytes_per_voxel=10**5)
    with pytest.raises(UsageError, match=r"in 12-29x12-29x12-29 .* less than 17x17x17 voxels") as caught:
        separate_block(method, ids_grid(truth), 0, tmp_path / "ids", 4000 * 10**5, Progress(1, "shards"))
    assert caught.value.sample == "s"
    assert "0.5 GB" in str(caught.value) and "--memory_budget at least 1.5 GB" in str(caught.value)
    # the advice is enough for the largest shards there are
    needed = 17**3 * method.bytes_per_voxel
    assert window_bytes(ids_grid(np.zeros((256, 256, 256)), shard=256), needed + 10**9) >= needed


def test_a_method_that_never_ends_is_stopped() -> None:
    truth, needs = volume((6, 6, 6), 0, 0)
    truth[2, 3, 4] = UNDECIDED
    with pytest.raises(RuntimeError, match=r"undecided in the whole volume, within \(\(2, 3\), \(3, 4\), \(4, 5\)\)"):
        separate_box(Pretender(truth, needs), whole(truth.shape), truth.shape, 10**6)


def ids_grid(truth: np.ndarray, **of_grid: Any) -> LabelGrid:
    return separated_grid(make_grid(np.ones(truth.shape, np.uint8), **({"blocks": 1} | of_grid)), BORDER_CORE)


def test_a_block_holds_ids_and_counts_its_classes(tmp_path: Path) -> None:
    truth, needs = volume((20, 18, 33), 0, 4)
    truth[0, 0, 0] = np.iinfo(np.int64).max
    labels = np.array([[[2, 5, 7]]], np.uint8)
    grid = separated_grid(make_grid(np.resize(labels, truth.shape), shard=8, blocks=2), WATERSHED)
    method = Pretender(truth, needs)
    for block in grid.reached:
        here = slices(grid.block_box(block))
        counts = separate_block(method, grid, block, tmp_path / "ids", 10**6, Progress(1, "shards"))
        array = zarr.open_array(str(tmp_path / "ids"), path="0", mode="r")
        assert array.dtype == np.uint64 and array.fill_value == np.iinfo(np.uint64).max
        assert np.array_equal(array[here], truth[here])
        classes = grid.class_of(truth[here][truth[here] > 0])
        assert counts == {0: int((truth[here] == 0).sum())} | {v: int((classes == v).sum()) for v in (2, 5, 7)}
        assert read_json(tmp_path / "ids" / "counts.json") == {str(value): n for value, n in counts.items()}
        shutil.rmtree(tmp_path / "ids")


def test_the_budget_less_what_is_taken_already() -> None:
    grid = ids_grid(np.zeros((64, 64, 64)), shard=64)
    assert window_bytes(grid, 4 * 10**9) == 4 * 10**9 - 5 * 10**8 - 16 * 64**3
    assert window_bytes(grid, 10**8) == 25 * 10**6


def gathered(labels: np.ndarray, folder: Path, **of_grid: Any) -> Gathered:
    grid = make_grid(labels, **of_grid)
    write_blocks(grid, labels, folder)
    gather_blocks(grid, folder, "zarr", folder / "s.gathered.zarr")
    return Gathered(folder / "s.gathered.zarr")


def test_any_box_of_all_blocks_can_be_read(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 4, (20, 33, 26)).astype(np.uint8)
    unreached = (0, 5, 10)
    store = gathered(labels, tmp_path, shard=8, blocks=(2, 3, 2), unreached=unreached)
    for block in unreached:
        labels[slices(store.grid.block_box(block))] = 0
    rng = np.random.default_rng(1)
    for _ in range(50):
        box = tuple(tuple(sorted(map(int, rng.choice(n + 1, 2, replace=False)))) for n in labels.shape)
        assert np.array_equal(store.read(box), labels[slices(box)])
    shards = sorted(path for path in (tmp_path / "s.gathered.zarr" / "0" / "c").rglob("*") if path.is_file())
    assert len(shards) == sum(len(store.grid.shards_of(block)) for block in store.grid.reached)
    # linked, not copied
    assert all(path.stat().st_nlink == 2 for path in shards)


def test_lost_or_damaged_shards_are_errors(tmp_path: Path) -> None:
    labels = np.ones((16, 16, 16), np.uint8)
    store = gathered(labels, tmp_path, shard=8, unreached=(7,))
    shard = tmp_path / "s.gathered.zarr" / "0" / "c" / "0" / "1" / "1"
    content = shard.read_bytes()
    shard.unlink()
    assert store.read(((0, 8), (0, 8), (0, 16))).all()
    with pytest.raises(TemporaryError, match="0-8x8-16x8-9 was not written"):
        store.read(((0, 16), (0, 16), (0, 9)))
    shard.write_bytes(content[:20])
    with pytest.raises(TemporaryError, match="cannot be read"):
        store.read(whole(labels.shape))
    (tmp_path / "s.b3.zarr" / "0" / "c" / "0" / "1" / "1").unlink()
    with pytest.raises(TemporaryError, match="block 3"):
        gather_blocks(store.grid, tmp_path, "zarr", tmp_path / "again.zarr")
    with pytest.raises(TemporaryError, match="did not arrive"):
        Gathered(tmp_path / "nothing.zarr")


NAMES = {"0": "background", "1": "Core", "2": "border", "7": "3", "3": "other"}


@pytest.mark.parametrize(
    ("wanted", "value"), [("core", 1), ("CORE", 1), ("border", 2), ("2", 2), ("Other", 3), ("3", 7), ("7", 7)]
)
def test_labels_by_name_or_number(wanted: str, value: int) -> None:
    assert find_label(NAMES, wanted) == value


@pytest.mark.parametrize("wanted", ["0", "background", "cor", "9", "-1", "", "²"])
def test_labels_that_do_not_exist(wanted: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_label(NAMES, wanted)
    assert "Core (1), border (2), 3 (7), other (3)" in str(caught.value)


def test_a_sample_may_lack_a_label_that_is_given_by_number() -> None:
    grid = make_grid(np.full((4, 4, 4), 2, np.uint8), blocks=1)
    assert grid.label_names == {"0": "background", "2": "class 2"}
    assert label_values(grid, ("1", "2")) == (1, 2)
    assert label_values(grid, ("class 2", "5")) == (2, 5)
    for wanted in [("core", "2"), ("2", "class 2"), ("0", "2")]:
        with pytest.raises(UsageError) as caught:
            label_values(grid, wanted)
        assert caught.value.sample == "s"
    empty = make_grid(np.zeros((4, 4, 4), np.uint8), blocks=1, unreached=(0,))
    assert len(label_values(empty, ("core", "border"))) == 2


def test_the_grid_of_ids() -> None:
    grid = make_grid(np.array([[[1, 2]]], np.uint8), blocks=1)
    ids = separated_grid(grid, BORDER_CORE)
    assert (ids.kind, ids.dtype, ids.values) == (SEPARATED, "uint64", (1,))
    assert ids.label_names == {"0": "background", "1": "object"}
    ids = separated_grid(grid, WATERSHED)
    assert (ids.kind, ids.dtype, ids.values, ids.label_names) == (SEPARATED, "uint64", grid.values, grid.label_names)


def stage(target: Path, *sources: Path) -> None:
    """Links in a task's folder, as Nextflow makes them."""
    target.mkdir(exist_ok=True)
    for source in sources:
        (target / source.name).symlink_to(source.resolve())


def run(folder: Path, script: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "bin" / script), run_name="__main__")
    assert ended.value.code == 0


def touching_cubes() -> np.ndarray:
    """Two objects that touch, their cores and borders."""
    labels = np.zeros((12, 12, 24), np.uint8)
    labels[2:11, 2:11, 2:22] = 2
    labels[4:9, 4:9, 4:9] = labels[4:9, 4:9, 14:19] = 1
    return labels


@pytest.mark.parametrize("method", [BORDER_CORE, WATERSHED])
def test_scripts_in_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Every task sees only what is staged for it; two groups of blocks."""
    labels = touching_cubes()
    grid = make_grid(labels, shard=8, blocks=(1, 1, 2))
    start = tmp_path / "start"
    write_blocks(grid, labels, start)
    grid.save(start / "s.grid.json")
    write_rows(start / "b.blocks.csv", BlockRow, [BlockRow("s", block, block, 0) for block in grid.reached])
    groups = [str(block) for block in grid.reached]
    chosen: Sequence[str] = ("--core-label", "1", "--border-label", "CLASS 2")

    stage(tmp_path / "gather", start / "s.grid.json", *start.glob("*.zarr"))
    run(tmp_path / "gather", "gather_blocks.py", "--batch", "b", "--method", method, *chosen, monkeypatch=monkeypatch)
    store = tmp_path / "gather" / "s"
    staged = [store / "s.gathered.zarr"]
    if method == BORDER_CORE:
        stage(tmp_path / "link", start / "s.grid.json")
        for group in groups:
            at = tmp_path / f"mark{group}"
            stage(at, start / "b.blocks.csv", store / "s.gathered.zarr")
            run(at, "mark_cores.py", "--batch", "b", "--group", group, *chosen, monkeypatch=monkeypatch)
            record = read_json(at / "b" / f"b.mark_cores.{group}.json")
            assert record["counts"]["s"]["blocks"] == 1
            stage(tmp_path / "link", *(at / "s").iterdir())
        run(tmp_path / "link", "link_cores.py", "--batch", "b", monkeypatch=monkeypatch)
        found = read_json(tmp_path / "link" / "b" / "b.link_cores.json")["counts"]["s"]
        assert found == {"cores": 2, "small_cores": 0, "regions": 1, "regions_without_core": 0}
        staged = [tmp_path / "link" / "s" / "s.marks.zarr", tmp_path / "link" / "s" / "s.markers"]
    for group in groups:
        at = tmp_path / f"separate{group}"
        stage(at, start / "b.blocks.csv", store / "s.grid.json", *staged)
        arguments = ["--batch", "b", "--group", group, "--method", method, "--memory-budget", str(10**9)]
        run(at, "separate_objects.py", *arguments, monkeypatch=monkeypatch)
        assert read_json(at / "b" / f"b.separate_objects.{group}.json")["counts"]["s"]["blocks"] == 1
        stage(tmp_path / "label", *(at / "s").iterdir())
    ids = LabelGrid.load(store / "s.grid.json")
    label_all(ids, tmp_path / "label", BY_CLASS)
    summary, _ = link_sample(ids, tmp_path / "label", BY_CLASS, KEEP_ALL, 0, tmp_path / "label")
    instances = relabel_all(ids, tmp_path / "label", BY_CLASS, summary["dtype"])
    if method == BORDER_CORE:
        assert np.array_equal(instances, border_core_instances(labels))
    assert np.array_equal(instances > 0, labels > 0)
