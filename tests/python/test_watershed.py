"""Watershed in windows against scikit-image on the whole array, and against shapes whose parts are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.segmentation import watershed

from voxelmill.errors import UsageError
from voxelmill.grid import SEMANTIC, LabelGrid
from voxelmill.image import Box, cut_box, slices, whole
from voxelmill.objects.components import CLASS, FOREGROUND
from voxelmill.objects.separation.watershed import (
    SEED_DISTANCE,
    Metric,
    Watershed,
    flood_labels,
    squared_distances,
    watershed_instances,
)
from voxelmill.objects.separation.windows import UNDECIDED, separate_box

CUBIC = (1.0, 1.0, 1.0)
NEIGHBOURS = np.ones((3, 3, 3))


def grid_of(labels: np.ndarray, spacing: Sequence[float], values: Sequence[int]) -> LabelGrid:
    return LabelGrid(
        sample="a",
        shape=labels.shape,
        spacing=tuple(spacing),
        origin=(0.0, 0.0, 0.0),
        unit="um",
        shard=(16, 16, 16),
        cuts=tuple((0, n) for n in labels.shape),
        reached=(0,),
        values=tuple(values),
        label_names={"0": "background", **{str(v): f"class {v}" for v in values}},
        windows=0,
        kind=SEMANTIC,
        dtype="uint8",
    )


# The definition, on whole arrays


def expected_squares(mask: np.ndarray, weights: Sequence[int]) -> np.ndarray:
    """Distances from a tree of the voxels outside."""
    squares = np.zeros(mask.shape, np.int64)
    inside, outside = np.argwhere(mask), np.argwhere(~mask)
    if not len(outside):
        return squares
    if len(inside):
        scale = np.sqrt(np.array(weights, float))
        _, nearest = KDTree(outside * scale).query(inside * scale)
        squares[mask] = ((outside[nearest] - inside) ** 2 * np.array(weights)).sum(axis=1)
    return squares


def expected_ranks(mask: np.ndarray, weights: Sequence[int]) -> np.ndarray:
    """Heights are added up by shifts of the volume with its faces repeated."""
    padded = np.pad(expected_squares(mask, weights), 1, mode="edge")
    views = (padded[tuple(slice(d, d + n) for d, n in zip(at, mask.shape, strict=True))] for at in np.ndindex(3, 3, 3))
    heights = sum(views)
    flat = np.flatnonzero(mask)
    order = np.lexsort((flat, -heights.ravel()[flat]))
    rank = np.full(mask.size, mask.size, np.int64)
    rank[flat[order]] = np.arange(len(flat))
    return rank.reshape(mask.shape)


def expected_seeds(rank: np.ndarray, mask: np.ndarray, reach: Sequence[int]) -> list[tuple[int, ...]]:
    """A seed has no neighbour before it, so that only such voxels need be looked at."""
    seeds = []
    for at in np.argwhere(mask & (ndimage.minimum_filter(rank, size=3, mode="nearest") == rank)):
        box = tuple(slice(max(c - r, 0), c + r + 1) for c, r in zip(at, reach, strict=True))
        pieces, _ = ndimage.label(mask[box], NEIGHBOURS)
        mine = pieces[tuple(c - s.start for c, s in zip(at, box, strict=True))]
        if rank[box][pieces == mine].min() == rank[tuple(at)]:
            seeds.append(tuple(map(int, at)))
    return seeds


def expected_ids(labels: np.ndarray, values: Sequence[int], metric: Metric, components_of: str) -> np.ndarray:
    ids = np.zeros(labels.shape, np.int64)
    masks = [labels != 0] if components_of == FOREGROUND else [labels == value for value in values]
    for mask in masks:
        rank = expected_ranks(mask, metric.weights)
        markers = np.zeros(labels.shape, np.int32)
        table = [0]
        for seed in expected_seeds(rank, mask, metric.reach):
            place = int(np.ravel_multi_index(seed, labels.shape))
            table.append(place * len(values) + list(values).index(int(labels[seed])) + 1)
            markers[seed] = len(table) - 1
        ids += np.array(table)[watershed(rank, markers, connectivity=NEIGHBOURS, mask=mask)]
    return ids


# Volumes


@dataclass(frozen=True)
class Volume:
    labels: np.ndarray
    values: tuple[int, ...]
    spacing: tuple[float, ...]
    seed_distance: float
    components_of: str

    @property
    def metric(self) -> Metric:
        return Metric.of(self.labels.shape, self.spacing, self.seed_distance)

    @property
    def method(self) -> Watershed:
        return Watershed(
            lambda box: self.labels[slices(box)],
            grid_of(self.labels, self.spacing, self.values),
            self.components_of,
            self.seed_distance,
        )

    def expected(self) -> np.ndarray:
        return expected_ids(self.labels, self.values, self.metric, self.components_of)


@st.composite
def volumes(draw: st.DrawFn) -> Volume:
    """Blobs that touch, of one to three classes, in cubic or other voxels, or in a single plane."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.tuples(*[st.integers(8, 36)] * 3))
    if draw(st.integers(0, 3)) == 0:
        shape = tuple(1 if i == draw(st.integers(0, 2)) else 2 * n for i, n in enumerate(shape))
    sigma = draw(st.floats(0.6, 4.0))
    noise = ndimage.gaussian_filter(rng.normal(size=shape), sigma)
    mask = noise > np.quantile(noise, draw(st.floats(0.1, 0.95)))
    values = draw(st.sampled_from([(1,), (1, 2), (5, 2, 3)]))
    number = ndimage.gaussian_filter(rng.normal(size=shape), 2 * sigma).argsort(axis=None).argsort() * len(values)
    labels = np.where(mask, np.array(values, np.uint8)[(number // mask.size).reshape(shape)], 0).astype(np.uint8)
    return Volume(
        labels,
        values,
        draw(st.sampled_from([CUBIC, (2.0, 1.0, 1.0), (1.0, 1.0, 2.2374), (0.3, 1.0, 0.7), (0.01, 0.5, 0.5)])),
        draw(st.sampled_from([0.0, 1.0, 2.0, 3.0, 6.0])),
        draw(st.sampled_from([CLASS, FOREGROUND])),
    )


@st.composite
def windows(draw: st.DrawFn, shape: Sequence[int]) -> Box:
    box = []
    for n in shape:
        size = draw(st.integers((n + 1) // 2, n))
        start = draw(st.integers(0, n - size))
        box.append((start, start + size))
    return tuple(box)


def artificial_faces(box: Box, shape: Sequence[int]) -> np.ndarray:
    """Voxels of a window on those of its faces that are not faces of the sample."""
    faces = np.zeros([b - a for a, b in box], bool)
    for axis, ((a, b), n) in enumerate(zip(box, shape, strict=True)):
        lines = np.moveaxis(faces, axis, 0)
        lines[0] |= a > 0
        lines[-1] |= b < n
    return faces


# Windows


@given(volumes())
@settings(max_examples=30)
def test_whole_volume_equals_scikit_image(volume: Volume) -> None:
    np.testing.assert_array_equal(volume.method.flood(whole(volume.labels.shape)), volume.expected())


@given(st.data())
@settings(max_examples=60)
def test_windows_equal_the_whole(data: st.DataObject) -> None:
    """What a window decides is right, and it decides every component that does not reach one of its inner faces."""
    volume = data.draw(volumes())
    expected = volume.expected()
    shape = volume.labels.shape
    for _ in range(3):
        window = data.draw(windows(shape))
        found = volume.method.flood(window)
        decided = found != UNDECIDED
        np.testing.assert_array_equal(found[decided], expected[slices(window)][decided])
        labels = volume.labels[slices(window)]
        faces = artificial_faces(window, shape)
        for value in volume.values if volume.components_of == CLASS else [None]:
            mask = labels != 0 if value is None else labels == value
            pieces, count = ndimage.label(mask, NEIGHBOURS)
            inner = np.setdiff1d(np.arange(1, count + 1), pieces[faces])
            assert decided[np.isin(pieces, inner)].all()


@given(st.data())
@settings(max_examples=25)
def test_boxes_equal_the_whole(data: st.DataObject) -> None:
    """From any first halo on, and with windows of any size that are enough in the end."""
    volume = data.draw(volumes())
    expected = volume.expected()
    shape = volume.labels.shape
    found = np.zeros(shape, np.int64)
    method = replace(volume.method, halo=data.draw(st.integers(1, 8)))
    sides = data.draw(st.tuples(*[st.integers(7, 20)] * 3))
    for box in cut_box(whole(shape), sides):
        found[slices(box)] = separate_box(method, box, shape, volume.labels.size * method.bytes_per_voxel)
    np.testing.assert_array_equal(found, expected)


def test_memory_that_is_too_small_is_an_error() -> None:
    """A ball that fills the sample cannot be told from a half of it; where there is room, cuts do not matter."""
    labels = balls([(20, 20, 20)], 19, (41, 41, 41))
    volume = Volume(labels, (1,), CUBIC, 5.0, CLASS)
    method = replace(volume.method, halo=2)
    everything = method.bytes_per_voxel * labels.size
    box = ((0, 20),) * 3
    np.testing.assert_array_equal(separate_box(method, box, labels.shape, everything), volume.expected()[slices(box)])
    with pytest.raises(UsageError) as error:
        separate_box(method, box, labels.shape, everything // 4)
    assert "--memory_budget" in str(error.value)


def test_a_window_decides_more_than_what_lies_inside() -> None:
    """In a chain of balls through the whole sample, all but those at the faces of the window are decided."""
    labels = balls([(8, 8, x) for x in range(8, 150, 11)], 7, (17, 17, 157))
    volume = Volume(labels, (1,), CUBIC, 6.0, CLASS)
    window = ((0, 17), (0, 17), (40, 117))
    found = volume.method.flood(window)
    undecided = np.flatnonzero((found == UNDECIDED).any(axis=(0, 1))) + 40
    assert undecided.min() == 40 and undecided.max() == 116
    assert not np.any((undecided > 58) & (undecided < 98))
    np.testing.assert_array_equal(found[:, :, 18:58], volume.expected()[:, :, 58:98])


# Seeds and known shapes


def balls(centres: Sequence[tuple[float, ...]], radius: float, shape: Sequence[int]) -> np.ndarray:
    at = np.indices(tuple(shape)).reshape(3, -1).T
    return (KDTree(np.array(centres, float)).query(at)[0] <= radius).reshape(tuple(shape)).astype(np.uint8)


@given(volumes())
@settings(max_examples=30)
def test_every_component_has_a_seed_and_no_object_is_in_two(volume: Volume) -> None:
    instances = watershed_instances(volume.labels, volume.spacing, volume.seed_distance, volume.components_of)
    assert np.array_equal(instances != 0, volume.labels != 0)
    for value in volume.values if volume.components_of == CLASS else [None]:
        mask = volume.labels != 0 if value is None else volume.labels == value
        for inside in (instances[mask], np.where(mask, instances, 0)):
            assert inside.size == 0 or inside.min() >= 0
        for number in np.unique(instances[mask]):
            assert ndimage.label(instances == number, NEIGHBOURS)[1] == 1
        if value is not None:
            assert not np.isin(np.unique(instances[mask]), instances[~mask]).any()
    first = np.unique(instances, return_index=True)
    assert np.array_equal(first[0][first[0] > 0], np.arange(1, instances.max() + 1))
    assert np.all(np.diff(first[1][first[0] > 0]) > 0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_touching_balls_are_two(axis: int) -> None:
    """Two balls that overlap are cut at the plane between their centres."""
    centres = np.full((2, 3), 10.0)
    centres[1, axis] = 25
    shape = np.full(3, 21)
    shape[axis] = 36
    instances = watershed_instances(balls(list(map(tuple, centres)), 9, tuple(shape)))
    assert instances.max() == 2
    along = np.moveaxis(instances, axis, 0)
    assert not np.any(along[:17] == 2) and not np.any(along[19:] == 1)


def test_a_cylinder_is_one() -> None:
    """Its axis is a plateau of distances."""
    y, x = np.indices((21, 21)) - 10
    cylinder = np.broadcast_to(np.hypot(y, x) <= 8, (60, 21, 21)).astype(np.uint8)
    for turned in (cylinder, cylinder.transpose(1, 0, 2), cylinder.transpose(1, 2, 0)):
        assert watershed_instances(turned).max() == 1


def test_a_full_volume_is_one() -> None:
    assert np.array_equal(watershed_instances(np.ones((5, 6, 7), np.uint8)), np.ones((5, 6, 7)))
    assert not watershed_instances(np.zeros((5, 6, 7), bool)).any()


def test_a_full_window_decides_nothing() -> None:
    """Unless the sample ends with it."""
    metric = Metric.of((99, 5, 5), CUBIC, 5)
    window = ((0, 20), (0, 5), (0, 5))
    assert np.all(flood_labels(np.ones((20, 5, 5), np.uint8), window, (99, 5, 5), (1,), metric) == UNDECIDED)


def test_seed_distance_is_in_voxels_of_the_finest_axis() -> None:
    """Balls in voxels that are three times as high are separated like those in cubic voxels."""
    centres = [(30, 30, 30), (30, 30, 46), (45, 30, 38)]
    cubic = balls(centres, 9, (75, 61, 76))
    flat = watershed_instances(cubic[::3], (3.0, 1.0, 1.0), 8)
    assert flat.max() == watershed_instances(cubic, CUBIC, 8).max() == 3
    assert watershed_instances(cubic[::3], (3.0, 1.0, 1.0), 18).max() == 1
    for at in centres:
        z, y, x = at
        assert flat[z // 3, y, x] == watershed_instances(cubic, CUBIC, 8)[at]


def test_metric() -> None:
    assert Metric.of((9, 9, 9), (0.3, 0.3, 0.3), 6) == Metric((1, 1, 1), (6, 6, 6))
    assert Metric.of((9, 9, 9), (4.0, 2.0, 2.0), 5) == Metric((4, 1, 1), (2, 5, 5))
    assert Metric.of((9, 9, 9), (50.0, 1.0, 1.0), 5) == Metric((2500, 1, 1), (1, 5, 5))
    assert Metric.of((9, 9, 9), (1.5, 1.0, 1.0), 4) == Metric((9, 4, 4), (3, 4, 4))
    # the height of a single plane does not matter
    assert Metric.of((1, 9, 9), (0.01, 1.0, 2.0), 4) == Metric((1, 1, 4), (0, 4, 2))
    assert Metric.of((1, 1, 1), (0.5, 1.0, 2.0), 4) == Metric((1, 1, 1), (0, 0, 0))


@given(volumes())
@settings(max_examples=20)
def test_distances_are_those_of_the_nearest_voxel(volume: Volume) -> None:
    mask = volume.labels != 0
    found = squared_distances(mask, volume.metric.weights)
    np.testing.assert_array_equal(found[mask], expected_squares(mask, volume.metric.weights)[mask])


def test_ids_tell_the_class() -> None:
    rng = np.random.default_rng(5)
    labels = np.array([0, 3, 1, 2], np.uint8)[
        (ndimage.gaussian_filter(rng.random((24, 30, 28)), 2) * 400).astype(int) % 4
    ]
    values = (1, 2, 3)
    grid = grid_of(labels, CUBIC, values)
    ids = Watershed(lambda box: labels[slices(box)], grid).flood(whole(labels.shape))
    assert np.array_equal(grid.class_of(ids[labels != 0]), labels[labels != 0])
    # of all classes together: that of the seed
    mixed = replace(Watershed(lambda box: labels[slices(box)], grid), components_of=FOREGROUND).flood(
        whole(labels.shape)
    )
    for number in np.unique(mixed[mixed > 0]):
        place = np.unravel_index((number - 1) // len(values), labels.shape)
        assert mixed[place] == number and grid.class_of(number) == labels[place]


def test_ids_of_a_large_sample_need_64_bits() -> None:
    """A window far from the origin of a sample of 2**39 voxels."""
    shape = (8192, 8192, 8192)
    labels = balls([(12, 12, 12)], 5, (25, 25, 25)) * 2
    window = tuple((8000, 8025) for _ in range(3))
    ids = flood_labels(labels, window, shape, (1, 2), Metric.of(shape, CUBIC, 6))
    assert np.unique(ids).tolist() == [0, ((8012 * 8192 + 8012) * 8192 + 8012) * 2 + 2]


# Real particles


@pytest.mark.parametrize(("name", "at_least"), [("nmc_dev", 0.98), ("ellipsoids_dev", 0.85)])
def test_most_voxels_go_where_distances_alone_lead_them(shared_data: Path, name: str, at_least: float) -> None:
    """From the same seeds, scikit-image's usual watershed of the distance gives similar objects.

    The smaller the particles, the more of their distances are equal.
    """
    mask = tifffile.imread(shared_data / "microct" / f"{name}_instances.tif")[:48, :90, :90] != 0
    ours = watershed_instances(mask)
    metric = Metric.of(mask.shape, CUBIC, SEED_DISTANCE)
    markers = np.zeros(mask.shape, np.int32)
    for seed in expected_seeds(expected_ranks(mask, metric.weights), mask, metric.reach):
        markers[seed] = ours[seed]
    theirs = watershed(-ndimage.distance_transform_edt(mask), markers, connectivity=NEIGHBOURS, mask=mask)
    share = np.mean(ours[mask] == theirs[mask])
    assert share > at_least


def test_particles_are_found(shared_data: Path) -> None:
    """Of particles that all touch, most have one object that is more than half theirs, and it theirs."""
    truth = tifffile.imread(shared_data / "microct" / "nmc_dev_instances.tif")[:48, :90, :90].astype(np.int64)
    found = watershed_instances(truth != 0)
    pairs, common = np.unique(found * (truth.max() + 1) + truth, return_counts=True)
    ours, theirs = np.divmod(pairs, truth.max() + 1)
    union = np.bincount(found.ravel())[ours] + np.bincount(truth.ravel())[theirs] - common
    matched = np.count_nonzero((common > 0.5 * union) & (ours > 0))
    assert 2 * matched > 0.9 * (found.max() + len(np.unique(truth)) - 1)
