"""Border-core labels: those of eroding every instance by itself, for any part of an array."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion
from skimage.morphology import ball, erosion

from images import all_of, source_of
from voxelmill.convert import border_core as module
from voxelmill.convert.border_core import BORDER, CORE, Ids, border_core, border_core_labels, footprint, ids_in
from voxelmill.convert.thickness import Thickness, parse_thickness
from voxelmill.errors import BadDataError, UsageError
from voxelmill.image import slices

SHAPES = st.tuples(*[st.integers(1, 14)] * 3)
SPACINGS = st.tuples(*[st.sampled_from([0.1, 0.25, 0.2837, 0.5, 1.0, 2.0])] * 3)


def eroded(instances: np.ndarray, element: np.ndarray) -> np.ndarray:
    """Core and border by eroding one instance after the other; beyond the array every instance goes on."""
    out = np.zeros(instances.shape, np.uint8)
    for label in np.unique(instances[instances != 0]):
        own = instances == label
        out[own] = BORDER
        out[binary_erosion(own, element, border_value=1)] = CORE
    return out


def element_of(thickness: float, spacing: tuple[float, float, float]) -> np.ndarray:
    """All voxels of a ball, by their distances one at a time."""
    reach = [math.ceil(thickness / size) + 1 for size in spacing]
    element = np.zeros([2 * r + 1 for r in reach], bool)
    for at in itertools.product(*(range(-r, r + 1) for r in reach)):
        distance = math.hypot(*(i * size for i, size in zip(at, spacing, strict=True)))
        element[tuple(i + r for i, r in zip(at, reach, strict=True))] = distance <= thickness * (1 + 1e-6)
    return element


def patches(shape: tuple[int, ...], seed: int, coarse: int, count: int, dtype: str = "uint16") -> np.ndarray:
    """Instances of boxes that touch, some of them of several parts, with some noise."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, count + 1, [-(-n // coarse) for n in shape])
    labels = small.repeat(coarse, 0).repeat(coarse, 1).repeat(coarse, 2)[slices(tuple((0, n) for n in shape))]
    noise = rng.random(shape) < 0.01
    return np.where(noise, rng.integers(0, count + 1, shape), labels).astype(dtype)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(0, 999), st.integers(2, 9), st.integers(1, 4), st.sampled_from([1, 1.5, 2, 3, 4.2]))
def test_cores_are_what_is_left_of_every_instance_when_it_is_eroded(shape, seed, coarse, count, thickness):
    instances = patches(shape, seed, coarse, count)
    expected = eroded(instances, element_of(thickness, (1.0, 1.0, 1.0)))
    found = border_core_labels(instances, thickness)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(0, 999), st.integers(2, 9), SPACINGS, st.sampled_from([0.3, 0.5, 1.0, 1.3, 2.0]))
@example((1, 12, 12), 3, 5, (0.1, 0.1, 0.1), 0.3)
def test_lengths_count_along_every_axis_for_themselves(shape, seed, coarse, spacing, thickness):
    if thickness < min(spacing):
        thickness = min(spacing)
    instances = patches(shape, seed, coarse, 3, "uint32")
    expected = eroded(instances, element_of(thickness, spacing))
    assert np.array_equal(border_core_labels(instances, thickness, spacing), expected)


@pytest.mark.parametrize("thickness", [1, 2, 3, 5])
def test_a_thickness_in_voxels_is_the_ball_of_scikit_image(thickness):
    instances = patches((24, 30, 28), 5, 13, 2)
    widths = footprint(thickness, (1.0, 1.0, 1.0))
    reach = np.arange(-thickness, thickness + 1)
    assert np.array_equal(np.abs(reach) <= widths[..., None], ball(thickness).astype(bool))
    for label in (1, 2):
        own = erosion(instances == label, ball(thickness), mode="max").astype(bool)
        assert np.array_equal(own, (border_core_labels(instances, thickness) == CORE) & (instances == label))
        assert own.any() or thickness == 5


@pytest.mark.parametrize("name", ["nmc", "ellipsoids"])
def test_labels_of_a_published_set(shared_data, name):
    folder = shared_data / "microct"
    instances = tifffile.imread(folder / f"{name}_dev_instances.tif")[:50]
    given_labels = tifffile.imread(folder / f"{name}_dev_border_core.tif")[:49]
    assert np.array_equal(border_core_labels(instances, 1)[:49], given_labels)


CUTS = st.tuples(*[st.lists(st.integers(1, 40), max_size=3)] * 3)


@settings(max_examples=40, deadline=None)
@given(CUTS, st.integers(0, 99), st.sampled_from(["1", "2", "3.5", "0.5um", "800nm", "1e"]), st.integers(20, 3000))
def test_any_box_has_the_labels_of_the_whole(cuts, seed, text, step):
    text = "0.001mm" if text == "1e" else text
    instances = patches((13, 15, 17), seed, 6, 3, "int64")
    source = source_of(instances, spacing=(0.5, 0.25, 0.3))
    thickness = parse_thickness(text)
    whole = border_core_labels(instances, *thickness.lengths(source.spacing))
    viewed = border_core(source, thickness)
    out = np.empty(source.shape[1:], np.uint8)
    before = module.STEP_VOXELS
    module.STEP_VOXELS = step
    try:
        edges = [sorted({0, n, *(c % n for c in own)}) for n, own in zip(source.shape[1:], cuts, strict=True)]
        for box in itertools.product(*(itertools.pairwise(own) for own in edges)):
            out[slices(box)] = viewed.read(0, box)
    finally:
        module.STEP_VOXELS = before
    assert np.array_equal(out, whole)
    without = set(np.unique(instances)) - set(np.unique(instances[whole == CORE])) - {0}
    assert viewed.without_core() == (len(without), len(set(np.unique(instances)) - {0}))


def test_the_view_is_an_image_of_its_own():
    source = source_of(patches((9, 9, 9), 1, 4, 3, "uint32"), spacing=(2.0, 1.0, 1.0), origin=(5.0, 6.0, 7.0))
    found = border_core(source, Thickness(1))
    assert (found.dtype, found.shape, found.spacing, found.origin) == ("uint8", source.shape, (2, 1, 1), (5, 6, 7))
    assert found.label_names == {1: "core", 2: "border"}
    assert set(np.unique(all_of(found))) == {0, 1, 2}


def test_known_answers():
    instances = np.zeros((1, 9, 12), np.uint16)
    instances[0, 1:8, :6] = 7
    instances[0, 1:8, 6:] = 3
    labels = border_core_labels(instances, 2)[0]
    # The sides at the end of the array are no border, the side where both touch is one on both sides.
    row = [1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1]
    assert labels.tolist() == [[0] * 12, [2] * 12, [2] * 12, row, row, row, [2] * 12, [2] * 12, [0] * 12]
    assert (border_core_labels(np.ones((3, 3, 3), bool), 3) == CORE).all()


def test_a_length_of_so_many_voxels_is_not_lost_to_rounding():
    # In binary, three tenths are less than three times a tenth, and as a 32-bit number a tenth is more than it is.
    assert footprint(0.3, (0.1, 0.1, 0.1)).tolist() == footprint(3, (1, 1, 1)).tolist()
    tenth = float(np.float32(0.1))
    assert footprint(0.3, (tenth, tenth, tenth)).tolist() == footprint(3, (1, 1, 1)).tolist()
    assert footprint(2.9999, (1, 1, 1)).tolist() != footprint(3, (1, 1, 1)).tolist()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64", "uint64", ">u2"])
def test_every_type_of_instances(dtype):
    instances = patches((8, 9, 10), 2, 5, 100)
    top = min(np.iinfo(dtype).max, 2**63 + 5)
    many = np.where(instances == 1, top, instances).astype(dtype)
    assert np.array_equal(border_core_labels(many, 1.5), border_core_labels(np.where(many == top, 1, instances), 1.5))
    strided = np.repeat(many, 2, axis=2)[:, :, ::2]
    assert np.array_equal(border_core_labels(strided, 1.5), border_core_labels(many, 1.5))


def test_ids_above_what_a_float_can_tell_apart():
    instances = np.full((4, 4, 4), 2**63 + 1, np.uint64)
    instances[2:] = 2**63 + 3
    ids = Ids()
    for plane in instances:
        ids.add(ids_in(plane))
    assert ids.all().tolist() == [2**63 + 1, 2**63 + 3]
    viewed = border_core(source_of(instances), Thickness(3))
    viewed.read(0, ((0, 4), (0, 4), (0, 4)))
    assert viewed.without_core() == (2, 2)


def test_many_ids_are_merged_on_the_way():
    ids = Ids()
    for start in range(0, 400_000, 40_000):
        ids.add(np.arange(start, start + 50_000))
        assert sum(map(len, ids.waiting)) <= 250_000
    assert np.array_equal(ids.all(), np.arange(410_000))


@pytest.mark.parametrize(
    ("text", "length", "unit"),
    [("3", 3.0, None), ("1.5um", 1.5, "um"), (" .5 nm ", 0.5, "nm"), ("2 mm", 2.0, "mm"), ("0.25", 0.25, None)],
)
def test_thickness_is_read(text, length, unit):
    assert parse_thickness(text) == Thickness(length, unit)


@pytest.mark.parametrize("text", ["", "um", "-1", "0", "0.0um", "1e3", "3 m", "3px", "1,2", "nan", "3um um"])
def test_thickness_is_refused(text):
    with pytest.raises(UsageError, match="border_core"):
        parse_thickness(text)


def test_lengths_in_the_unit_of_the_spacing():
    spacing = (0.3, 0.2, 0.1)
    assert Thickness(2).lengths(spacing) == (2, (1, 1, 1))
    assert Thickness(1500, "nm").lengths(spacing) == (pytest.approx(1.5), spacing)
    assert Thickness(0.001, "mm").lengths(spacing) == (pytest.approx(1.0), spacing)
    assert str(Thickness(1)) == "1 voxel" and str(Thickness(1.5)) == "1.5 voxels" and str(Thickness(2, "nm")) == "2 nm"
    with pytest.raises(BadDataError, match="without physical size"):
        Thickness(1, "um").lengths(None)


def test_what_has_no_meaning_is_refused():
    instances = np.ones((3, 3, 3), np.uint8)
    with pytest.raises(UsageError, match="256 voxels"):
        border_core_labels(instances, 256)
    with pytest.raises(UsageError, match="1 x 1 x 1"):
        border_core_labels(instances, 0.9)
    with pytest.raises(UsageError, match="float32"):
        border_core_labels(instances.astype("f4"))
    with pytest.raises(UsageError, match=r"\(3, 3\)"):
        border_core_labels(instances[0])
    with pytest.raises(UsageError, match="2 x 2 x 2"):
        border_core(source_of(instances, spacing=(2.0, 2.0, 2.0)), Thickness(1, "um"))
