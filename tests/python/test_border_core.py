"""Objects from cores and borders: made in blocks they are those of the whole volume, voxel for voxel and id for id.

The oracle repeats what ParticleSeg3D does on the whole array: distances of scipy, and cores that are dilated by 3x3x3
voxels again and again inside their region.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from assembled import BY_CLASS, KEEP_ALL, label_all, make_grid, relabel_all, write_blocks
from voxelmill.errors import TemporaryError
from voxelmill.grid import LabelGrid
from voxelmill.image import slices
from voxelmill.objects.link import link_sample
from voxelmill.objects.separation.border_core import BorderCore, border_core_instances
from voxelmill.objects.separation.gather import BORDER_CORE, Gathered, gather_blocks, separated_grid
from voxelmill.objects.separation.marks import Markers, link_cores, mark_block
from voxelmill.objects.separation.windows import separate_block
from voxelmill.task import Progress

CORE, BORDER = 1, 2
PLENTY = 10**9


def whole_array(labels: np.ndarray) -> np.ndarray:
    """Objects of labels (z, y, x), numbered by their first voxels."""
    mask = labels == CORE
    region = mask | (labels == BORDER)
    cores, count = ndimage.label(mask)
    distances = ndimage.distance_transform_edt(mask) if not mask.all() else np.full(labels.shape, np.inf)
    for core, box in enumerate(ndimage.find_objects(cores), 1):
        of_core = distances[box][cores[box] == core]
        if (of_core <= 1).mean() >= 0.95 and not (of_core >= 3).any():
            cores[box][cores[box] == core] = 0
    regions, _ = ndimage.label(region, np.ones((3, 3, 3)))
    without = np.setdiff1d(regions, regions[cores > 0])
    objects = np.where(np.isin(regions, without[without > 0]), count + regions, cores)
    while (left := region & (objects == 0)).any():
        objects[left] = ndimage.grey_dilation(objects, size=(3, 3, 3), mode="constant")[left]
    values, first, place = np.unique(objects, return_index=True, return_inverse=True)
    order = np.argsort(np.where(values == 0, -1, first))
    numbers = np.empty(len(values), int)
    numbers[order] = np.arange(len(values)) + (0 not in values)
    return numbers[place].reshape(labels.shape)


def separate(
    labels: np.ndarray, folder: Path, limit: int = PLENTY, halo: int = 2, **of_grid: Any
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """All tasks of the pipeline in turn -> instances, ids before they are numbered, what LINK_CORES counts."""
    shutil.rmtree(folder, ignore_errors=True)
    grid = make_grid(labels, **of_grid)
    write_blocks(grid, labels, folder / "labels")
    gather_blocks(grid, folder / "labels", "zarr", folder / "s.gathered.zarr")
    gathered = Gathered(folder / "s.gathered.zarr")
    for block in grid.reached:
        mark_block(gathered, block, CORE, BORDER, folder / "marks")
    counts = link_cores(grid, folder / "marks", folder)
    ids_grid = separated_grid(grid, BORDER_CORE)
    ids = separate_marks(ids_grid, folder, limit, halo)
    label_all(ids_grid, folder, BY_CLASS)
    summary, _ = link_sample(ids_grid, folder, BY_CLASS, KEEP_ALL, 0, folder)
    return relabel_all(ids_grid, folder, BY_CLASS, summary["dtype"]), ids, counts


def separate_marks(grid: LabelGrid, folder: Path, limit: int, halo: int) -> np.ndarray:
    """SEPARATE_OBJECTS of every block -> ids (z, y, x)."""
    method = BorderCore(
        grid, Gathered(folder / "s.marks.zarr").read, Markers(grid, folder / "s.markers"), folder, halo=halo
    )
    ids = np.zeros(grid.shape, np.uint64)
    for block in grid.reached:
        out = folder / grid.block_name(block)
        separate_block(method, grid, block, out, limit, Progress(1, "shards"))
        here = slices(grid.block_box(block))
        ids[here] = zarr.open_array(str(out), path="0", mode="r")[here]
    return ids


def noise(shape: tuple[int, ...], core: float, border: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.choice(3, shape, p=[1 - core - border, core, border]).astype(np.uint8)


def blobs(shape: tuple[int, ...], core: float, border: float, seed: int, smooth: float = 1.2) -> np.ndarray:
    """Cores inside borders, in shares of the volume."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), smooth)
    inner, outer = np.quantile(field, [1 - core, max(0, 1 - core - border)])
    return np.select([field >= inner, field >= outer], [CORE, BORDER], 0).astype(np.uint8)


def ball(labels: np.ndarray, centre: tuple[int, ...], radius: int, core: int) -> None:
    """Draw a ball of border with a core."""
    squares = sum((axis - c) ** 2 for axis, c in zip(np.indices(labels.shape), centre, strict=True))
    labels[(squares <= radius**2) & (labels == 0)] = BORDER
    labels[squares <= core**2] = CORE


def cube(labels: np.ndarray, corner: tuple[int, ...], side: int, value: int) -> None:
    labels[tuple(slice(c, c + side) for c in corner)] = value


random_labels = st.builds(
    lambda make, shape, core, border, seed: make(shape, core, border, seed),
    st.sampled_from([noise, blobs]),
    st.tuples(*[st.integers(1, 24)] * 3),
    st.sampled_from([0.02, 0.1, 0.3]),
    st.sampled_from([0.05, 0.3, 0.6, 0.7]),
    st.integers(0, 10**6),
)


@settings(max_examples=100)
@given(labels=random_labels)
def test_an_array_in_memory(labels: np.ndarray) -> None:
    found = border_core_instances(labels)
    assert found.dtype == np.int32
    assert np.array_equal(found, whole_array(labels))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    labels=random_labels,
    shard=st.tuples(*[st.sampled_from([6, 8, 13, 16])] * 3),
    blocks=st.tuples(*[st.integers(1, 3)] * 3),
    limit=st.sampled_from([1, 24 * 10**3, 24 * 16**3, PLENTY]),
    halo=st.integers(1, 8),
    missing=st.booleans(),
)
def test_blocks_give_what_the_whole_volume_gives(
    tmp_path: Path,
    labels: np.ndarray,
    shard: tuple[int, ...],
    blocks: tuple[int, ...],
    limit: int,
    halo: int,
    missing: bool,
) -> None:
    grid = make_grid(labels, shard=shard, blocks=blocks)
    unreached = grid.reached[1::3] if missing else ()
    for block in unreached:
        labels[slices(grid.block_box(block))] = 0
    found, _, _ = separate(labels, tmp_path / "s", limit, halo, shard=shard, blocks=blocks, unreached=unreached)
    assert np.array_equal(found, whole_array(labels))


def test_no_id_depends_on_blocks_or_memory(tmp_path: Path) -> None:
    labels = blobs((24, 30, 33), 0.1, 0.6, 3)
    expected = whole_array(labels)
    assert expected.max() > 20
    found = {}
    for blocks, limit, halo in [((1, 1, 1), PLENTY, 8), ((3, 1, 2), 24 * 14**3, 2), ((2, 3, 3), 1, 4)]:
        instances, ids, _ = separate(labels, tmp_path / "s", limit, halo, shard=12, blocks=blocks)
        assert np.array_equal(instances, expected)
        found[blocks] = ids.tobytes()
    assert len(set(found.values())) == 1


@pytest.mark.parametrize("name", ["microct/nmc_dev", "microct/ellipsoids_dev", "nuclei"])
def test_real_labels(shared_data: Path, tmp_path: Path, name: str) -> None:
    path = "nnunet_model/test_case/nuc_d_label.tif" if name == "nuclei" else f"{name}_border_core.tif"
    labels = tifffile.imread(shared_data / path)[:56, :110, :110]
    expected = whole_array(labels)
    assert expected.max() > 10
    assert np.array_equal(border_core_instances(labels), expected)
    found, _, counts = separate(labels, tmp_path / "s", shard=32, blocks=2)
    assert np.array_equal(found, expected)
    assert counts["cores"] + counts["regions_without_core"] == expected.max()


def both(labels: np.ndarray, folder: Path, **of_grid: Any) -> np.ndarray:
    """Objects made in blocks, which must be those made in memory."""
    found, _, _ = separate(labels, folder / "s", **({"shard": 8, "blocks": 2} | of_grid))
    assert np.array_equal(found, border_core_instances(labels))
    return found


def test_balls_that_touch_are_two_objects(tmp_path: Path) -> None:
    labels = np.zeros((16, 16, 28), np.uint8)
    ball(labels, (8, 8, 8), 6, 3)
    ball(labels, (8, 8, 19), 6, 3)
    assert ndimage.label(labels)[1] == 1
    found = both(labels, tmp_path)
    # the plane in the middle is as far from one core as from the other: it goes to the second
    assert (found[..., :13][labels[..., :13] > 0] == 1).all()
    assert (found[..., 14:][labels[..., 14:] > 0] == 2).all()


def test_a_voxel_between_two_cores_goes_to_the_one_that_comes_later(tmp_path: Path) -> None:
    labels = np.zeros((5, 5, 25), np.uint8)
    cube(labels, (0, 0, 0), 5, CORE)
    labels[2, 2, 5:20] = BORDER
    cube(labels, (0, 0, 20), 5, CORE)
    found = both(labels, tmp_path)
    assert found[2, 2].tolist() == [1] * 12 + [2] * 13
    # numbers of cores follow their first voxels: one voxel that comes first turns it round
    labels[:, 0, 0] = 0
    labels[0, 0, :5] = 0
    assert both(labels, tmp_path)[2, 2].tolist() == [2] * 13 + [1] * 12


def test_small_cores_are_border(tmp_path: Path) -> None:
    labels = np.zeros((13, 13, 50), np.uint8)
    labels[3:10, 3:10, 2:48] = BORDER
    cube(labels, (6, 6, 4), 1, CORE)
    cube(labels, (5, 5, 14), 3, CORE)
    cube(labels, (4, 4, 27), 5, CORE)
    found, _, counts = separate(labels, tmp_path / "s", shard=8, blocks=(1, 2, 3))
    assert (counts["cores"], counts["small_cores"], counts["regions"], counts["regions_without_core"]) == (1, 2, 1, 0)
    assert np.array_equal(found > 0, labels > 0)
    assert found.max() == 1
    cube(labels, (4, 4, 40), 5, CORE)
    assert both(labels, tmp_path).max() == 2


@pytest.mark.parametrize("shift", range(1, 5))
@pytest.mark.parametrize(("side", "cores"), [(3, 0), (5, 1)])
def test_a_core_across_blocks_is_judged_as_a_whole(tmp_path: Path, side: int, cores: int, shift: int) -> None:
    """Seven parts of a core of 5x5x5 voxels have no voxel that is two away from others; and 3x3x3 has none at all."""
    labels = np.zeros((16, 16, 16), np.uint8)
    cube(labels, (8 - shift,) * 3, side, CORE)
    found, _, counts = separate(labels, tmp_path / "s", shard=8, blocks=2)
    assert (counts["cores"], counts["small_cores"]) == (cores, 1 - cores)
    assert np.array_equal(found, labels > 0)


@pytest.mark.parametrize(("tail", "cores"), [(34, 1), (35, 0)])
def test_95_of_100_voxels_decide(tmp_path: Path, tail: int, cores: int) -> None:
    """Four of the 45 voxels of a bar are inside; a tail that is thin all along brings their share down to 4 in 80."""
    labels = np.zeros((7, 7, 50), np.uint8)
    labels[2:5, 2:5, 2:7] = CORE
    labels[3, 3, 7 : 7 + tail] = CORE
    found, _, counts = separate(labels, tmp_path / "s", shard=16, blocks=2)
    assert (counts["cores"], counts["small_cores"]) == (cores, 1 - cores)
    assert np.array_equal(found, labels)
    # border beside it shows that memory and blocks agree on whether there is a core
    labels[3, 3, 7 + tail] = BORDER
    cube(labels, (1, 1, 45), 5, CORE)
    labels[3, 3, 8 + tail : 45] = BORDER
    assert both(labels, tmp_path).max() == 1 + cores


def test_a_voxel_three_away_keeps_a_core(tmp_path: Path) -> None:
    """A plate with 95 % of its voxels at its faces and one place that is thick enough, or lacks a voxel for it."""
    for within, missing, kept in [(3, 0, False), (6, 0, False), (8, 0, True), (8, 1, False)]:
        labels = np.zeros((12, 48, 48), np.uint8)
        labels[5:7, 1:47, 1:47] = CORE
        squares = sum((axis - c) ** 2 for axis, c in zip(np.indices(labels.shape), (5, 24, 24), strict=True))
        labels[squares <= within] = CORE
        # beyond two faces of the middle's shard
        labels[5, 22, 22] *= 1 - missing
        distances = ndimage.distance_transform_edt(labels == CORE)
        assert (distances[labels == CORE] <= 1).mean() >= 0.95
        assert (distances.max() >= 3) == kept
        _, _, counts = separate(labels, tmp_path / "s", shard=(6, 24, 24), blocks=2)
        assert counts["cores"] == kept


def test_regions_without_a_core_are_objects(tmp_path: Path) -> None:
    labels = np.zeros((10, 20, 30), np.uint8)
    labels[1, 1, 1:25] = BORDER
    labels[4:7, 4:7, 4:7] = CORE  # too small
    labels[8:, 2:12, 2:12] = BORDER
    cube(labels, (3, 12, 20), 5, CORE)
    labels[3:8, 17, 20:25] = BORDER
    found = both(labels, tmp_path)
    assert np.array_equal(found, ndimage.label(labels, np.ones((3, 3, 3)))[0])
    assert found.max() == 4


def test_other_labels_are_background(tmp_path: Path) -> None:
    labels = np.zeros((5, 5, 15), np.uint8)
    cube(labels, (0, 0, 0), 5, CORE)
    labels[:, :, 5] = BORDER
    labels[:, :, 6:] = 3
    assert both(labels, tmp_path)[2, 2].tolist() == [1] * 6 + [0] * 9


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 40), (1, 40, 1), (40, 1, 1), (4, 4, 4)])
def test_everything_is_core(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """What lies outside of the image is not there: no voxel is next to it."""
    labels = np.full(shape, CORE, np.uint8)
    assert np.array_equal(both(labels, tmp_path), labels)
    _, _, counts = separate(labels, tmp_path / "s", shard=8, blocks=2)
    assert (counts["cores"], counts["small_cores"]) == (1, 0)


def test_nothing_is_there(tmp_path: Path) -> None:
    found, _, counts = separate(np.zeros((9, 9, 9), np.uint8), tmp_path / "s", shard=4)
    assert not found.any() and not any(counts.values())
    found, _, _ = separate(np.zeros((9, 9, 9), np.uint8), tmp_path / "s", shard=4, unreached=range(8))
    assert not found.any()


def test_more_than_65535_cores(tmp_path: Path) -> None:
    """Cores of 3x3 pixels in a plane of border: one in nine is not at their edge, which is enough to stay."""
    rows, columns = 261, 252
    labels = np.full((1, 4 * rows, 4 * columns), BORDER, np.uint8)
    y, x = (np.arange(n) % 4 < 3 for n in labels.shape[1:])
    labels[0][np.ix_(y, x)] = CORE
    # a pixel between cores is one step from both, and goes to the later: down, and to the right
    row, column = (np.minimum((np.arange(n) + 1) // 4, n // 4 - 1) for n in labels.shape[1:])
    expected = row[:, None] * columns + column + 1
    assert expected.max() == rows * columns > 65_535
    found, _, counts = separate(labels, tmp_path / "s", halo=8, shard=(1, 512, 512), blocks=(1, 2, 2))
    assert counts["cores"] == rows * columns
    assert np.array_equal(found[0], expected)
    assert np.array_equal(border_core_instances(labels)[0], expected)


def test_borders_that_are_deeper_than_memory_are_grown_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path of border winds through all shards, with a core at either end: its middle is 150 voxels from both."""
    labels = np.zeros((5, 40, 44), np.uint8)
    labels[2, 2::4, 2:42] = BORDER
    for turn, row in enumerate(range(2, 34, 4)):
        labels[2, row : row + 5, 41 if turn % 2 == 0 else 2] = BORDER
    cube(labels, (0, 0, 0), 5, CORE)
    cube(labels, (0, 34, 2), 5, CORE)
    windows = []
    on_disk = BorderCore.flood_on_disk

    def watched(self: BorderCore, window: Any, box: Any, limit: int) -> np.ndarray:
        windows.append(window)
        return on_disk(self, window, box, limit)

    monkeypatch.setattr(BorderCore, "flood_on_disk", watched)
    expected = whole_array(labels)
    assert expected.max() == 2
    found, _, _ = separate(labels, tmp_path / "s", limit=20 * 12**3, halo=4, shard=10, blocks=2)
    assert np.array_equal(found, expected)
    assert any(window == ((0, 5), (0, 40), (0, 44)) for window in windows)
    # what is on disk has no name, and is gone with the task
    assert not [path for path in (tmp_path / "s").iterdir() if path.name.startswith("tmp")]


def test_marks_and_markers_of_different_runs_are_an_error(tmp_path: Path) -> None:
    labels = blobs((16, 16, 16), 0.2, 0.4, 0)
    separate(labels, tmp_path / "s", shard=8)
    other = np.zeros_like(labels)
    ball(other, (8, 8, 8), 6, 3)
    separate(other, tmp_path / "t", shard=8)
    grid = separated_grid(make_grid(labels, shard=8), BORDER_CORE)
    (tmp_path / "t" / "s.markers").replace(tmp_path / "s" / "s.markers")
    with pytest.raises(TemporaryError, match="do not belong together"):
        separate_marks(grid, tmp_path / "s", PLENTY, 2)
