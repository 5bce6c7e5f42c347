"""Shapes of objects: surfaces, axes and neighbours beside scikit-image, ITK and counting one voxel after another."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import find_contours, label, marching_cubes, mesh_surface_area, regionprops

from voxelmill.image import cut_box, slices
from voxelmill.objects import shape
from voxelmill.objects.columns import OF_PLANE, OF_VOLUME
from voxelmill.objects.shape import Counts, add, concatenate, count, measures_of

SPACING = (2.0, 1.0, 0.7)
sides = st.tuples(*[st.integers(2, 9)] * 3)
shares = st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.95])


def volume(seed: int, sides: tuple[int, int, int], share: float, values: int = 3) -> np.ndarray:
    """Noise of a few labels, among them at least one voxel of each."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(sides) < share, rng.integers(1, values + 1, sides), 0).astype(np.uint16)
    labels.flat[:values] = np.arange(1, values + 1)
    return labels


def boxes_of(labels: np.ndarray) -> np.ndarray:
    places = ndimage.find_objects(labels)
    return np.array([[(at.start, at.stop) for at in place] for place in places])


def counts_of(labels: np.ndarray) -> Counts:
    boxes = boxes_of(labels)
    return count(labels, np.arange(1, len(boxes) + 1), boxes)


def measure(
    labels: np.ndarray, spacing: tuple[float, ...] = SPACING, plane: int | None = None
) -> dict[str, np.ndarray]:
    return measures_of(counts_of(labels), spacing, plane)


def ball(radius: float, centre: tuple[float, float, float] = (0.0, 0.0, 0.0), axes: int = 3) -> np.ndarray:
    reach = math.ceil(radius) + 1
    grid = np.mgrid[[slice(-reach, reach + 1)] * axes]
    away = sum((along - at) ** 2 for along, at in zip(grid, centre, strict=False))
    mask = (away <= radius**2).astype(np.uint8)
    return mask if axes == 3 else mask[None]


@given(st.integers(0, 2**32 - 1), sides, shares)
@settings(max_examples=60, deadline=None)
def test_surface_is_that_of_marching_cubes(seed: int, sides: tuple[int, int, int], share: float) -> None:
    labels = volume(seed, sides, share)
    found = measure(labels)["surface"]
    for number in (1, 2, 3):
        mesh = marching_cubes(np.pad(labels == number, 1).astype(float), 0.5, spacing=SPACING)
        assert found[number - 1] == pytest.approx(mesh_surface_area(*mesh[:2]), rel=1e-5)


def test_every_cube_has_the_area_of_its_own_mesh() -> None:
    cases = [np.array(bits, np.uint16).reshape(2, 2, 2) for bits in itertools.product((0, 1), repeat=8) if any(bits)]
    for cube in cases:
        mesh = marching_cubes(np.pad(cube, 1).astype(float), 0.5)
        assert measure(cube, (1.0, 1.0, 1.0))["surface"][0] == pytest.approx(mesh_surface_area(*mesh[:2]), rel=1e-6)


@pytest.mark.parametrize("plane", [0, 1, 2])
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(2, 12)] * 2), shares)
@settings(max_examples=30, deadline=None)
def test_perimeter_is_that_of_the_contours(plane: int, seed: int, sides: tuple[int, int], share: float) -> None:
    flat = volume(seed, (1, *sides), share, 2)
    spacing = tuple(np.delete(SPACING, plane))
    found = measure(np.moveaxis(flat, 0, plane), SPACING, plane)
    for number in (1, 2):
        mask = flat[0] == number
        contours = find_contours(np.pad(mask, 1).astype(float), 0.5)
        length = sum(np.linalg.norm(np.diff(line, axis=0) * spacing, axis=1).sum() for line in contours)
        assert found["perimeter"][number - 1] == pytest.approx(length, rel=1e-9)
        area = mask.sum() * np.prod(spacing)
        assert found["circularity"][number - 1] == pytest.approx(4 * math.pi * area / length**2)
        assert found["equivalent_diameter"][number - 1] == pytest.approx(math.sqrt(4 * area / math.pi))


@given(st.integers(0, 2**32 - 1), sides, shares)
@settings(max_examples=60, deadline=None)
def test_axes_are_those_of_itk(seed: int, sides: tuple[int, int, int], share: float) -> None:
    labels = volume(seed, sides, share)
    found = measure(labels)
    image = SimpleITK.GetImageFromArray(labels)
    image.SetSpacing(SPACING[::-1])
    known = SimpleITK.LabelShapeStatisticsImageFilter()
    known.Execute(image)
    for number in (1, 2, 3):
        k = number - 1
        moments = np.array(known.GetPrincipalMoments(number))
        axes = [found[f"axis_{n}"][k] for n in (3, 2, 1)]
        np.testing.assert_allclose(axes, 2 * np.sqrt(5 * np.maximum(moments, 0)), rtol=1e-6, atol=1e-4)
        assert found["equivalent_diameter"][k] == pytest.approx(2 * known.GetEquivalentSphericalRadius(number))
        if axes[1] > 1e-3:
            assert found["elongation"][k] == pytest.approx(known.GetElongation(number), rel=1e-6)
        if axes[0] > 1e-3:
            assert found["flatness"][k] == pytest.approx(known.GetFlatness(number), rel=1e-6)


def test_axes_are_those_of_scikit_image() -> None:
    for labels, plane in ((volume(5, (9, 8, 12), 0.4), None), (volume(6, (1, 12, 15), 0.4), 0)):
        found = measure(labels, (1.0, 1.0, 1.0), plane)
        for k, region in enumerate(regionprops(labels if plane is None else labels[0])):
            last = 3 if plane is None else 2
            assert found["axis_1"][k] == pytest.approx(region.axis_major_length)
            assert found[f"axis_{last}"][k] == pytest.approx(region.axis_minor_length)
            assert found["equivalent_diameter"][k] == pytest.approx(region.equivalent_diameter_area)


def test_an_ellipsoid_has_its_axes() -> None:
    halves = np.array([9.0, 14.0, 22.0])
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    spacing = np.array([1.5, 0.75, 0.5])
    grid = np.stack(np.mgrid[-16:17, -32:33, -46:47], axis=-1) * spacing
    inside = (np.square(grid @ turn / halves).sum(axis=-1) <= 1).astype(np.uint8)
    found = measure(inside, tuple(spacing))
    for k, half in enumerate(halves[::-1], 1):
        assert found[f"axis_{k}"][0] == pytest.approx(2 * half, rel=0.005)
    assert found["elongation"][0] == pytest.approx(22 / 14, rel=0.01)
    assert found["flatness"][0] == pytest.approx(14 / 9, rel=0.01)
    assert found["equivalent_diameter"][0] == pytest.approx(2 * np.prod(halves) ** (1 / 3), rel=0.005)


@pytest.mark.parametrize(("radius", "low", "high"), [(20, 0.918, 0.922), (5, 0.925, 0.94), (3, 0.94, 0.97)])
def test_how_far_a_ball_is_from_a_sphericity_of_one(radius: float, low: float, high: float) -> None:
    rng = np.random.default_rng(1)
    found = [measure(ball(radius, tuple(rng.random(3) - 0.5)), (1.0, 1.0, 1.0)) for _ in range(8)]
    assert low < np.mean([one["sphericity"][0] for one in found]) < high
    assert np.mean([one["elongation"][0] for one in found]) == pytest.approx(1, abs=0.03)
    for one in found:
        size = math.pi * one["equivalent_diameter"][0] ** 3 / 6
        by_definition = math.pi ** (1 / 3) * (6 * size) ** (2 / 3) / one["surface"][0]
        assert one["sphericity"][0] == pytest.approx(by_definition)
        assert one["equivalent_diameter"][0] == pytest.approx(2 * radius, rel=0.03)


def test_how_far_a_disc_is_from_a_circularity_of_one() -> None:
    rng = np.random.default_rng(1)
    found = [measure(ball(30, tuple(rng.random(2) - 0.5), 2), (5.0, 1.0, 1.0), 0) for _ in range(8)]
    assert np.mean([one["perimeter"][0] for one in found]) == pytest.approx(1.055 * 2 * math.pi * 30, rel=0.005)
    assert np.mean([one["circularity"][0] for one in found]) == pytest.approx(0.9, abs=0.01)


def test_thin_objects_have_no_ratio_without_a_divisor() -> None:
    labels = np.zeros((5, 5, 9), np.uint16)
    labels[0, 0, 0] = 1
    labels[1, 1, 1:8] = 2
    labels[3, 0:4, 1:8] = 3
    labels[4, np.arange(5), np.arange(5)] = 4  # a slanted line: its axes are 0 but for rounding
    found = measure(labels)
    np.testing.assert_array_equal(np.isnan(found["elongation"]), [True, True, False, True])
    np.testing.assert_array_equal(np.isnan(found["flatness"]), [True] * 4)
    np.testing.assert_array_equal(found["axis_3"], [0, 0, 0, 0])


def test_a_very_long_object_keeps_its_thickness() -> None:
    length = 200_000
    rod = measure(np.ones((3, 3, length), np.uint8), (1.0, 1.0, 1.0))
    assert rod["axis_1"][0] == pytest.approx(2 * math.sqrt(5 * (length**2 - 1) / 12))
    assert rod["axis_2"][0] == rod["axis_3"][0] == pytest.approx(2 * math.sqrt(5 * 2 / 3))


@pytest.mark.parametrize("direction", [(1, 1, 1), (0, 1, 2), (3, 1, 2)])
def test_a_line_has_one_axis_in_any_direction(direction: tuple[int, int, int]) -> None:
    for n in range(2, 14):
        line = np.arange(n)[:, None] * direction
        labels = np.zeros(line.max(axis=0) + 1, np.uint8)
        labels[tuple(line.T)] = 1
        found = measure(labels)
        length = np.linalg.norm(np.array(direction) * SPACING)
        assert found["axis_1"][0] == pytest.approx(2 * math.sqrt(5 * (n**2 - 1) / 12) * length)
        assert (found["axis_2"][0], found["axis_3"][0]) == (0, 0)
        assert np.isnan(found["elongation"][0]) and np.isnan(found["flatness"][0])


def faces_by_hand(labels: np.ndarray) -> dict[int, tuple[list[int], set[int]]]:
    """Faces across each axis that an object shares with others, and their ids, voxel by voxel."""
    found: dict[int, tuple[list[int], set[int]]] = {int(n): ([0, 0, 0], set()) for n in np.unique(labels) if n}
    for at in itertools.product(*map(range, labels.shape)):
        for axis, step in itertools.product(range(3), (-1, 1)):
            there = tuple(p + step * (i == axis) for i, p in enumerate(at))
            if all(0 <= p < n for p, n in zip(there, labels.shape, strict=True)):
                mine, other = int(labels[at]), int(labels[there])
                if mine and other and mine != other:
                    found[mine][0][axis] += 1
                    found[mine][1].add(other)
    return found


@given(st.integers(0, 2**32 - 1), sides, shares, st.sampled_from([0, 1, 64]))
@settings(max_examples=40, deadline=None)
def test_neighbours_are_those_that_share_a_face(
    seed: int, sides: tuple[int, int, int], share: float, room: int
) -> None:
    labels = volume(seed, sides, share, 6) if np.prod(sides) >= 6 else np.ones(sides, np.uint16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shape, "CONTACTS", room)
        counts = counts_of(labels)
    found = measures_of(counts, SPACING, None)
    for k, (faces, others) in enumerate(faces_by_hand(labels).values()):
        assert counts.faces[k].tolist() == faces
        assert counts.others[counts.starts[k] : counts.starts[k + 1]].tolist() == sorted(others)
        assert found["neighbours"][k] == len(others)
        area = faces[0] * 0.7 + faces[1] * 1.4 + faces[2] * 2.0
        assert found["contact_area"][k] == pytest.approx(area)


def test_contact_in_a_plane_is_a_length() -> None:
    labels = np.zeros((1, 6, 6), np.uint32)
    labels[0, :3], labels[0, 3:, :2], labels[0, 3:, 4:] = 1, 2, 70_000
    counts = count(
        labels,
        np.array([1, 2, 70_000]),
        np.array([[(0, 1), (0, 3), (0, 6)], [(0, 1), (3, 6), (0, 2)], [(0, 1), (3, 6), (4, 6)]]),
    )
    found = measures_of(counts, (5.0, 3.0, 0.5), 0)
    np.testing.assert_allclose(found["contact_length"], [4 * 0.5, 2 * 0.5, 2 * 0.5])
    assert found["neighbours"].tolist() == [2, 1, 1]


@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(3, 14)] * 3), shares, st.tuples(*[st.integers(1, 7)] * 3))
@settings(max_examples=40, deadline=None)
def test_parts_add_up_to_the_object(
    seed: int, sides: tuple[int, int, int], share: float, tile: tuple[int, int, int]
) -> None:
    labels = volume(seed, sides, share)
    whole = counts_of(labels)
    joined = []
    for number, box in enumerate(boxes_of(labels), 1):
        parts, corners = [], []
        for cut in cut_box(tuple(map(tuple, box.tolist())), tile):
            bounds = np.array(cut)
            area = np.stack([np.maximum(bounds[:, 0] - 1, 0), np.minimum(bounds[:, 1] + 1, sides)], axis=1)
            inside = bounds - area[:, :1]
            ends = (bounds[:, 1] == box[:, 1])[None]
            parts.append(count(labels[slices(area)], np.array([number]), inside[None], ends))
            corners.append(bounds[:, 0] - box[:, 0])
        joined.append(add(parts, np.array(corners)))
    together = concatenate(joined)
    for name in ("voxels", "first", "second", "cubes", "faces", "starts", "others"):
        np.testing.assert_array_equal(getattr(together, name), getattr(whole, name), name)
    mine, known = measures_of(together, SPACING, None), measures_of(whole, SPACING, None)
    for name, values in known.items():
        np.testing.assert_array_equal(mine[name], values, name)


def test_parts_of_a_huge_object_do_not_overflow() -> None:
    """Two cubes of 2 ^ 21 voxels a side, 2 ^ 22 apart: sums of squares are above 2 ^ 100."""
    n, side = 2**60, 2**21
    first = np.array([[n // 2 * (side - 1)] * 3], object)
    second = np.array([[n * (side - 1) * (2 * side - 1) // 6] * 3 + [n * (side - 1) ** 2 // 4] * 3], object)
    nothing = np.zeros((1, 256), np.int64), np.zeros((1, 3), np.int64), np.array([0, 0]), np.empty(0, np.int64)
    one = Counts(np.array([n]), first, second, *nothing)
    both = add([one, one], np.array([[0, 0, 0], [2 * side, 0, 0]]))
    variances = np.diagonal(shape.covariance(both, np.ones(3))[0])
    own = (side**2 - 1) / 12
    np.testing.assert_allclose(variances, [own + side**2, own, own], rtol=1e-9)


def test_labels_of_every_type_and_order_are_counted() -> None:
    labels = label(volume(1, (8, 9, 10), 0.4, 1), connectivity=1)
    known = counts_of(labels.astype(np.uint16))
    for dtype in (np.uint8, np.uint32, np.uint64):
        found = counts_of(np.asfortranarray(labels.astype(dtype)))
        for name in ("voxels", "second", "cubes", "faces", "others"):
            np.testing.assert_array_equal(getattr(found, name), getattr(known, name))


def test_measures_are_the_columns() -> None:
    assert set(measure(volume(0, (3, 4, 5), 0.5))) == {column.name for column in OF_VOLUME}
    assert set(measure(volume(0, (1, 4, 5), 0.5), SPACING, 0)) == {column.name for column in OF_PLANE}
