"""Thinning, graphs, paths and lengths against scikit-image, skan, SciPy and tubes of known length."""

from __future__ import annotations

import numpy as np
import pytest
import skan
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.sparse.csgraph import shortest_path
from skimage.morphology import skeletonize as lee

from tubes import tube
from voxelmill.objects.skeleton import Edges, Paths, branches, connect, diameters, paths, smooth, walk
from voxelmill.objects.thinning import Skeleton, skeletonize

CUBIC = (1.0, 1.0, 1.0)
TALL = (3.0, 1.0, 1.0)
ODD = (2.5, 1.0, 0.7)


@st.composite
def masks(draw: st.DrawFn, sides: tuple[int, int] = (1, 14)) -> np.ndarray:
    """Noise of any density, or blobs, sheets and rings of any thickness; at least one voxel."""
    shape = draw(st.tuples(*[st.integers(*sides)] * 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        mask = rng.random(shape) < draw(st.floats(0.02, 1.0))
    else:
        noise = ndimage.gaussian_filter(rng.normal(size=shape), draw(st.floats(0.5, 2.5)))
        width = draw(st.floats(0.1, 2.0)) * noise.std()
        mask = abs(noise) < width if draw(st.booleans()) else noise > width - noise.std()
    mask[tuple(rng.integers(0, shape))] = True
    return mask


def ring(radius: float = 6.0, thickness: float = 1.8) -> np.ndarray:
    z, y, x = np.indices((7, 19, 19))
    return np.hypot(np.hypot(y - 9, x - 9) - radius, z - 3) <= thickness


def of_voxels(voxels: np.ndarray) -> Skeleton:
    return Skeleton(np.asarray(voxels, dtype=np.int64), np.ones(len(voxels)), False)


def image_of(skeleton: Skeleton) -> np.ndarray:
    image = np.zeros(skeleton.voxels.max(axis=0) + 1, dtype=bool)
    image[tuple(skeleton.voxels.T)] = True
    return image


# Thinning


@given(masks())
@settings(max_examples=250)
def test_thinning_equals_scikit_image(mask: np.ndarray) -> None:
    expected = np.argwhere(lee(mask, method="lee"))
    found = skeletonize(mask, CUBIC)
    assert found.empty == (len(expected) == 0)
    if not found.empty:
        np.testing.assert_array_equal(found.voxels, expected)


@given(masks(), st.integers(0, 2))
@settings(max_examples=60)
def test_objects_of_one_plane_are_thinned_as_scikit_image_does(mask: np.ndarray, axis: int) -> None:
    plane = mask.take([mask.shape[axis] // 2], axis=axis)
    if plane.any():
        expected = np.argwhere(lee(plane, method="lee"))
        found = skeletonize(plane, CUBIC)
        assert found.empty == (len(expected) == 0)
        if not found.empty:
            np.testing.assert_array_equal(found.voxels, expected)


def test_a_plane_of_an_image_is_thinned_like_a_picture() -> None:
    rng = np.random.default_rng(4)
    picture = ndimage.gaussian_filter(rng.normal(size=(90, 70)), 3) > 0
    expected = np.argwhere(lee(picture, method="lee"))
    np.testing.assert_array_equal(skeletonize(picture[None], CUBIC).voxels[:, 1:], expected)


@pytest.mark.parametrize("branch", [False, True])
def test_tubes_are_thinned_as_scikit_image_does(branch: bool) -> None:
    rng = np.random.default_rng(5)
    for _ in range(4):
        mask = tube(rng, 50, branch=branch).mask
        np.testing.assert_array_equal(skeletonize(mask, CUBIC).voxels, np.argwhere(lee(mask, method="lee")))


def test_what_thinning_leaves_nothing_of_keeps_the_voxel_nearest_to_its_centroid() -> None:
    mask = np.ones((2, 2, 4), dtype=bool)
    assert not lee(mask, method="lee").any()
    found = skeletonize(mask, CUBIC)
    assert found.empty
    assert found.voxels.tolist() == [[0, 0, 1]]
    measured = paths([found], CUBIC)
    assert (measured.longest_path.length[0], measured.longest_branch.length[0], measured.branches[0]) == (0, 0, 0)


@pytest.mark.parametrize(
    "mask",
    [
        np.ones((1, 1, 1), bool), np.ones((1, 9, 9), bool), np.ones((9, 1, 9), bool), np.ones((9, 9, 9), bool),
        np.ones((1, 1, 9), bool), np.ones((2, 2, 2), bool), ring(), ndimage.generate_binary_structure(3, 1),
    ],
)  # fmt: skip
def test_every_shape_gives_finite_values(mask: np.ndarray) -> None:
    skeleton = skeletonize(mask, ODD)
    found = paths([skeleton], ODD)
    for values in (
        found.longest_path.length,
        found.steps,
        found.longest_path.along,
        found.straight,
        found.longest_branch.length,
        skeleton.distances,
    ):
        assert np.isfinite(values).all()
        assert (values >= 0).all()
    assert found.branches[0] == 0 if len(skeleton.voxels) == 1 else found.branches[0] >= 1


# Distance to the background


@given(masks(), st.tuples(*[st.floats(0.2, 5)] * 3))
@settings(max_examples=100)
def test_distances_equal_the_distance_transform(mask: np.ndarray, spacing: tuple[float, ...]) -> None:
    found = skeletonize(mask, spacing)
    expected = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    np.testing.assert_allclose(found.distances, expected[tuple(found.voxels.T)], rtol=1e-12)


def test_distances_in_thick_objects_equal_the_distance_transform() -> None:
    z, y, x = np.indices((30, 50, 60))
    mask = ((z - 14) / 12) ** 2 + ((y - 25) / 20) ** 2 + ((x - 30) / 28) ** 2 < 1
    found = skeletonize(mask, ODD)
    expected = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=ODD)[1:-1, 1:-1, 1:-1]
    np.testing.assert_allclose(found.distances, expected[tuple(found.voxels.T)], rtol=1e-12)


def test_there_is_no_distance_across_the_only_plane() -> None:
    mask = np.ones((1, 9, 30), dtype=bool)
    found = skeletonize(mask, (1.0, 2.0, 2.0), flat=(True, False, False))
    expected = ndimage.distance_transform_edt(np.pad(mask[0], 1), sampling=2.0)[1:-1, 1:-1]
    np.testing.assert_allclose(found.distances, expected[tuple(found.voxels[:, 1:].T)])
    assert found.distances.max() == 10


# The graph


@given(masks((1, 9)), st.tuples(*[st.sampled_from([0.5, 1.0, 1.7, 3.0])] * 3), st.booleans())
@settings(max_examples=150)
def test_the_longest_path_is_the_largest_of_all_shortest_paths(
    mask: np.ndarray, spacing: tuple[float, ...], thin: bool
) -> None:
    skeleton = skeletonize(mask, spacing) if thin else of_voxels(np.argwhere(mask))
    n = len(skeleton.voxels)
    steps = skeleton.voxels[:, None] - skeleton.voxels[None]
    near = (abs(steps) <= 1).all(axis=2) & (steps != 0).any(axis=2)
    weights = np.where(near, np.linalg.norm(steps * spacing, axis=2), 0)
    between = shortest_path(weights, directed=False)
    found = paths([skeleton], spacing)
    np.testing.assert_allclose(found.steps[0], between[np.isfinite(between)].max(), rtol=1e-12)

    path = found.longest_path.points
    assert path[0] <= path[-1]
    assert len(np.unique(path)) == len(path)
    assert near[path[:-1], path[1:]].all()
    np.testing.assert_allclose(weights[path[:-1], path[1:]].sum(), found.steps[0], rtol=1e-12)
    np.testing.assert_allclose(found.straight[0], np.linalg.norm(steps[path[0], path[-1]] * spacing), rtol=1e-12)
    assert n >= len(path)


def same_branches(found: Paths, k: int, skeleton: Skeleton, voxels: np.ndarray, spacing: tuple[float, ...]) -> None:
    """Number of branches, length of the longest, and its voxels where no other is as long: those of skan."""
    theirs = skan.Skeleton(image_of(skeleton), spacing=spacing)
    lengths = theirs.path_lengths()
    assert found.branches[k] == len(lengths)
    np.testing.assert_allclose(found.longest_branch.length[k], lengths.max(), rtol=1e-12)
    longest = np.flatnonzero(lengths > lengths.max() * (1 - 1e-9))
    if len(longest) == 1:
        starts = found.longest_branch.starts
        way = voxels[found.longest_branch.points[starts[k] : starts[k + 1]]].tolist()
        expected = theirs.path_coordinates(longest[0]).astype(int).tolist()
        assert len(way) == len(expected)
        if expected[0] == expected[-1]:
            assert way[0] == way[-1] and sorted(map(tuple, way[1:])) == sorted(map(tuple, expected[1:]))
        else:
            assert way in (expected, expected[::-1])


@given(masks((1, 12)), st.sampled_from([CUBIC, TALL, ODD]))
@settings(max_examples=150)
def test_branches_are_those_of_skan(mask: np.ndarray, spacing: tuple[float, ...]) -> None:
    skeleton = skeletonize(mask, spacing)
    found = paths([skeleton], spacing)
    objects = np.zeros(len(skeleton.voxels), dtype=np.int64)
    if not len(connect(skeleton.voxels, objects, spacing).first):
        assert (found.branches[0], found.longest_branch.length[0]) == (0, 0)
        return
    same_branches(found, 0, skeleton, skeleton.voxels, spacing)


@pytest.mark.parametrize("spacing", [CUBIC, TALL])
def test_branches_of_tubes_and_rings_are_those_of_skan(spacing: tuple[float, ...]) -> None:
    rng = np.random.default_rng(7)
    shapes = [tube(rng, 50, spacing, branch=branch).mask for branch in (False, True) * 3] + [ring()]
    skeletons = [skeletonize(mask, spacing) for mask in shapes]
    found = paths(skeletons, spacing)
    voxels = np.concatenate([skeleton.voxels for skeleton in skeletons])
    for k, skeleton in enumerate(skeletons):
        same_branches(found, k, skeleton, voxels, spacing)


def test_a_side_spur_halves_the_longest_branch_and_not_the_longest_path() -> None:
    """The 36 units with a spur that other tools report as 18."""
    line = [(0, 3, x) for x in range(37)]
    spur = [(0, 3 + k, 18) for k in range(1, 4)]
    voxels = np.array(sorted(line + spur))
    found = paths([of_voxels(voxels)], CUBIC)
    assert found.steps[0] == pytest.approx(36)
    assert found.longest_path.length[0] == pytest.approx(36)
    assert found.longest_branch.length[0] < 19


def test_a_ring_is_one_branch_and_half_of_it_the_longest_path() -> None:
    skeleton = skeletonize(ring(), CUBIC)
    found = paths([skeleton], CUBIC)
    assert found.branches[0] == 1
    assert found.longest_branch.length[0] == pytest.approx(2 * found.steps[0], rel=0.1)


def test_of_several_parts_the_longest_path_counts() -> None:
    short, long = [(0, 0, x) for x in range(4)], [(5, 0, x) for x in range(9)]
    for parts in (short + long, long[:0] + short + long):
        found = paths([of_voxels(sorted(parts))], CUBIC)
        assert found.steps[0] == 8
        assert found.branches[0] == 2


@given(st.lists(masks((1, 8)), min_size=2, max_size=6), st.sampled_from([CUBIC, ODD]))
@settings(max_examples=40)
def test_an_object_gives_the_same_bytes_in_any_company(shapes: list[np.ndarray], spacing: tuple[float, ...]) -> None:
    skeletons = [skeletonize(mask, spacing) for mask in shapes]
    together = paths(skeletons, spacing)
    before = 0
    for k, skeleton in enumerate(skeletons):
        alone = paths([skeleton], spacing)
        part = slice(together.longest_path.starts[k], together.longest_path.starts[k + 1])
        assert (together.longest_path.points[part] - before).tolist() == alone.longest_path.points.tolist()
        assert together.longest_path.along[part].tobytes() == alone.longest_path.along.tobytes()
        for name in ("steps", "straight", "branches"):
            assert getattr(together, name)[k] == getattr(alone, name)[0]
        part = slice(together.longest_branch.starts[k], together.longest_branch.starts[k + 1])
        assert (together.longest_branch.points[part] - before).tolist() == alone.longest_branch.points.tolist()
        assert together.longest_branch.along[part].tobytes() == alone.longest_branch.along.tobytes()
        before += len(skeleton.voxels)


def test_cycles_are_searched_until_no_longer_path_can_exist() -> None:
    """Random graphs with many cycles, where the farthest node of the farthest node is often no end; all at once."""
    rng = np.random.default_rng(2)
    n, graphs = 30, 60
    firsts, seconds, lengths, expected = [], [], [], []
    for k in range(graphs):
        first, second = np.triu_indices(n, 1)
        chosen = rng.random(len(first)) < 0.08
        length = rng.choice([1.0, 1.5, 2.5], chosen.sum())
        between = shortest_path(Edges(first[chosen], second[chosen], length).matrix(n), directed=False)
        expected.append(between[np.isfinite(between)].max())
        firsts.append(first[chosen] + n * k)
        seconds.append(second[chosen] + n * k)
        lengths.append(length)
    edges = Edges(np.concatenate(firsts), np.concatenate(seconds), np.concatenate(lengths))
    start, stop, length, distances = diameters(edges, np.repeat(np.arange(graphs), n))
    np.testing.assert_allclose(length, expected)
    between = shortest_path(edges.matrix(n * graphs), directed=False)
    np.testing.assert_allclose(between[start, stop], expected)
    np.testing.assert_allclose(distances[stop], expected)


def test_no_edges_are_no_branches() -> None:
    none = np.empty(0, dtype=np.int64)
    objects = np.array([0, 1, 1])
    longest, count = branches(Edges(none, none, np.empty(0)), objects)
    assert (longest.length.tolist(), count.tolist()) == ([], [0, 0])
    starts, nodes = walk(longest, objects)
    assert (starts.tolist(), nodes.tolist()) == ([0, 1, 2], [0, 1])


# Lengths


@pytest.mark.parametrize("spacing", [CUBIC, TALL])
@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("branch", [False, True])
def test_the_length_of_tubes_is_right_within_three_percent(
    spacing: tuple[float, ...], curved: bool, branch: bool
) -> None:
    rng = np.random.default_rng(3)
    drawn = [tube(rng, rng.uniform(40, 120), spacing, curved=curved, branch=branch) for _ in range(80)]
    found = paths([skeletonize(one.mask, spacing) for one in drawn], spacing)
    truth = np.array([one.length for one in drawn])
    assert np.median(found.longest_path.length / truth) == pytest.approx(1, abs=0.03)
    # along the voxels it would not be
    assert np.median(found.steps / truth) > 1.04


def test_smoothing_keeps_straight_lines_and_ends() -> None:
    points = np.concatenate(
        [np.arange(9)[:, None] * (1.0, 2.0, 0.5), np.arange(4)[:, None] * (0.0, 0.0, 3.0), np.ones((1, 3))]
    )
    starts = np.array([0, 9, 13, 14])
    np.testing.assert_allclose(smooth(points, starts, np.ones(3)), points, atol=1e-12)
    stairs = np.repeat(np.arange(21.0), 2)
    stairs = np.stack([stairs[1:], stairs[:-1], np.zeros(41)], axis=1)
    smoothed = smooth(stairs, np.array([0, 41]), np.ones(3))
    assert (smoothed[[0, -1]] == stairs[[0, -1]]).all()
    assert abs(smoothed[:, 0] - smoothed[:, 1] - 0.5)[4:-4].max() < 0.02


def test_distances_along_a_path_grow_up_to_its_length() -> None:
    rng = np.random.default_rng(9)
    skeleton = skeletonize(tube(rng, 60, TALL, branch=True).mask, TALL)
    found = paths([skeleton], TALL)
    assert found.longest_path.along[0] == 0
    assert (np.diff(found.longest_path.along) > 0).all()
    assert found.longest_path.along[-1] == found.longest_path.length[0]
    assert found.straight[0] <= found.longest_path.length[0] <= found.steps[0]
