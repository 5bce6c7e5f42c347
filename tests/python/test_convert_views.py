"""Views of an image: any box of a change has the same bits, and the whole is what other tools compute."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage
import SimpleITK
import skimage.transform
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from images import all_of, source_of
from voxelmill.convert import resampling
from voxelmill.convert.geometry import Geometry, disagree, repaired, rescaled, respaced
from voxelmill.convert.resampling import resample, resample_labels
from voxelmill.convert.views import crop, describe, pick, reorient, watch
from voxelmill.errors import BadDataError
from voxelmill.formats.world import orientation

SHAPE = (9, 11, 13)
RNG = np.random.default_rng(3)


def image(dtype: str = "uint16", shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    rng = np.random.default_rng(11)
    if dtype.startswith("f"):
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(0, min(50_000, np.iinfo(dtype).max), shape).astype(dtype)


def affine(seed: int = 0) -> np.ndarray:
    """An oblique affine with another size along each axis."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    result = np.eye(4)
    result[:3, :3] = turn @ np.diag([0.5, 0.7, 1.1])
    result[:3, 3] = rng.normal(size=3) * 10
    return result


def boxes_of(shape: tuple[int, ...], cuts: tuple[list[int], ...]) -> list[tuple[tuple[int, int], ...]]:
    """The boxes between cuts along each axis."""
    pairs = []
    for n, own in zip(shape, cuts, strict=True):
        edges = sorted({0, n, *(c % n for c in own)})
        pairs.append(list(itertools.pairwise(edges)))
    return list(itertools.product(*pairs))


def put_together(source, cuts) -> np.ndarray:
    out = np.empty(source.shape, source.dtype)
    for box in boxes_of(source.shape[1:], cuts):
        for channel in range(source.shape[0]):
            out[(channel, *(slice(*pair) for pair in box))] = source.read(channel, box)
    return out


CUTS = st.tuples(*[st.lists(st.integers(1, 40), max_size=3)] * 3)
LENGTHS = st.tuples(*[st.sampled_from([0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 2.9, 3.0, 20.0])] * 3)


@settings(max_examples=60)
@given(CUTS, LENGTHS, st.sampled_from(["0", "1", "3", "area"]), st.sampled_from(["uint8", "int16", "float32", "bool"]))
def test_any_partition_of_a_resampled_image_has_the_same_bytes(cuts, target, order, dtype):
    array = RNG.random(SHAPE) > 0.5 if dtype == "bool" else image(dtype)
    array = np.stack([array, array[::-1]])
    whole = all_of(resample(source_of(array), target, order))
    parts = put_together(resample(source_of(array), target, order), cuts)
    assert whole.tobytes() == parts.tobytes()
    assert whole.dtype == array.dtype


@settings(max_examples=60)
@given(CUTS, LENGTHS, st.sampled_from(["majority", "nearest"]))
def test_any_partition_of_resampled_labels_has_the_same_bytes(cuts, target, how):
    labels = np.random.default_rng(5).integers(0, 4, SHAPE).astype(np.uint32)
    whole = all_of(resample_labels(source_of(labels), target, how))
    parts = put_together(resample_labels(source_of(labels), target, how), cuts)
    assert whole.tobytes() == parts.tobytes()


@pytest.mark.parametrize("order", ["0", "1", "3", "area"])
def test_every_channel_is_its_own(order):
    both = np.stack([image(), image()[::-1]])
    found = all_of(resample(source_of(both), (2.0, 0.7, 1.0), order))
    for channel in range(2):
        assert np.array_equal(found[channel], all_of(resample(source_of(both[channel]), (2.0, 0.7, 1.0), order))[0])


@pytest.mark.parametrize("order", ["0", "1", "3", "area"])
def test_small_steps_and_bricks_change_nothing_that_counts(monkeypatch, order):
    array = image("float64", (30, 31, 33))
    once = all_of(resample(source_of(array), (0.7, 1.3, 2.0), order))
    monkeypatch.setattr(resampling, "STEP_VOXELS", 500)
    monkeypatch.setattr(resampling, "BRICK", 7)
    again = all_of(resample(source_of(array), (0.7, 1.3, 2.0), order))
    assert np.abs(once - again).max() < (1e-8 if order == "3" else 1e-300)


@pytest.mark.parametrize("factor", [(2.0, 2.0, 2.0), (0.5, 0.5, 0.5), (1.0, 3.0, 0.25), (4.0, 1.0, 2.0)])
def test_order_1_is_scikit_images_resize_and_torchs_interpolate(factor):
    array = image("float64", (8, 12, 16))
    found = all_of(resample(source_of(array), factor, "1"))[0]
    shape = tuple(int(n / f) for n, f in zip(array.shape, factor, strict=True))
    assert found.shape == shape
    expected = skimage.transform.resize(array, shape, 1, mode="edge", anti_aliasing=False)
    assert np.allclose(found, expected, atol=1e-12)
    other = torch.nn.functional.interpolate(torch.from_numpy(array)[None, None], shape, mode="trilinear")
    assert np.allclose(found, other[0, 0].numpy(), atol=1e-12)


@pytest.mark.parametrize("factor", [(2.0, 2.0, 2.0), (0.5, 0.5, 0.5), (1.0, 3.0, 0.25)])
def test_order_3_is_scipys_zoom_and_scikit_images_resize(factor):
    array = image("float64", (24, 30, 28))
    found = all_of(resample(source_of(array), factor, "3"))[0]
    zoom = [1 / f for f in factor]
    expected = scipy.ndimage.zoom(array, zoom, order=3, mode="nearest", grid_mode=True)
    # SciPy continues the image by twelve voxels before its filter, here it is sixteen: 0.27**12
    assert np.abs(found - expected).max() < 1e-5
    other = skimage.transform.resize(array, found.shape, 3, mode="edge", anti_aliasing=False, clip=False)
    assert np.abs(found - other).max() < 1e-5


@pytest.mark.parametrize("factor", [(2.0, 2.0, 2.0), (0.5, 0.25, 1.0), (3.0, 3.0, 1.0), (1.5, 0.7, 2.3)])
def test_order_0_takes_the_voxel_that_a_centre_lies_in(factor):
    array = image("uint16", (12, 12, 12))
    found = all_of(resample(source_of(array), factor, "0"))[0]
    centres = [np.floor((np.arange(n) + 0.5) * f + 1e-9).astype(int) for n, f in zip(found.shape, factor, strict=True)]
    assert np.array_equal(found, array[np.ix_(*(np.minimum(at, 11) for at in centres))])
    if all(float(1 / f).is_integer() or float(f).is_integer() for f in factor) and max(factor) != 2.0:
        assert np.array_equal(found, skimage.transform.resize(array, found.shape, 0, preserve_range=True).astype("u2"))


def test_area_is_the_mean_of_the_voxels_underneath():
    array = image("float64", (8, 12, 15))
    found = all_of(resample(source_of(array), (2.0, 4.0, 5.0), "area"))[0]
    assert np.allclose(found, skimage.transform.downscale_local_mean(array, (2, 4, 5)))
    # Voxels that lie in two new ones count with their share: by an image of copies whose lengths divide.
    found = all_of(resample(source_of(array), (2.5, 1.0, 1.5), "area"))[0]
    copies = array.repeat(2, 0).repeat(2, 2)[:15]
    assert np.allclose(found[:3], skimage.transform.downscale_local_mean(copies, (5, 1, 3)))


def majority(labels: np.ndarray, shape: tuple[int, ...], factor: tuple[float, ...]) -> np.ndarray:
    """By counting every voxel's share of every new one."""
    out = np.zeros(shape, labels.dtype)
    for at in np.ndindex(shape):
        count: dict[int, float] = {}
        spans = [(o * f, min((o + 1) * f, n)) for o, f, n in zip(at, factor, labels.shape, strict=True)]
        ranges = [range(int(a), int(np.ceil(b))) for a, b in spans]
        for old in itertools.product(*ranges):
            share = np.prod([min(b, i + 1) - max(a, i) for i, (a, b) in zip(old, spans, strict=True)])
            count[int(labels[old])] = count.get(int(labels[old]), 0.0) + share
        out[at] = min(count, key=lambda label: (-round(count[label], 9), label))
    return out


@pytest.mark.parametrize("factor", [(2.0, 2.0, 2.0), (3.0, 2.0, 1.0), (1.5, 1.5, 1.5), (2.5, 1.25, 4.0), (20.0,) * 3])
@pytest.mark.parametrize("values", [2, 5, 1000])
def test_majority_counts_shares(factor, values):
    labels = np.random.default_rng(values).integers(0, values, SHAPE).astype(np.uint16)
    found = all_of(resample_labels(source_of(labels), factor, "majority"))[0]
    assert np.array_equal(found, majority(labels, found.shape, factor))


def test_labels_on_smaller_voxels_are_repeated():
    labels = np.random.default_rng(1).integers(0, 9, SHAPE).astype(np.uint8)
    for how in ("majority", "nearest"):
        found = all_of(resample_labels(source_of(labels), (0.5, 0.25, 1.0), how))[0]
        assert np.array_equal(found, labels.repeat(2, 0).repeat(4, 1))


def test_equal_parts_go_to_the_smallest_label():
    labels = np.array([7, 7, 3, 3], np.uint8).reshape(1, 1, 4)
    assert all_of(resample_labels(source_of(labels), (1.0, 1.0, 4.0), "majority")).ravel() == [3]


def test_integers_are_rounded_and_clipped():
    steps = np.array([0, 0, 0, 255, 255, 255], np.uint8).reshape(1, 1, 6)
    found = all_of(resample(source_of(steps), (1.0, 1.0, 0.5), "3"))
    smooth = all_of(resample(source_of(steps.astype(np.float64)), (1.0, 1.0, 0.5), "3"))
    assert smooth.min() < -1
    assert smooth.max() > 256
    assert np.array_equal(found, np.clip(np.rint(smooth), 0, 255).astype(np.uint8))
    half = np.array([1, 2, 3, 6], np.uint8).reshape(1, 1, 4)
    assert all_of(resample(source_of(half), (1.0, 1.0, 2.0), "area")).ravel().tolist() == [2, 4]
    largest = np.full((1, 1, 4), 2**64 - 1, np.uint64)
    assert all_of(resample(source_of(largest), (1.0, 1.0, 2.0), "1")).max() > 2**64 - 2**13


def test_a_nan_outside_the_voxels_underneath_does_not_count():
    array = np.array([1.0, 3.0, np.nan, 5.0]).reshape(1, 1, 4)
    assert all_of(resample(source_of(array), (1.0, 1.0, 2.0), "area")).ravel()[0] == 2
    array = np.array([1.0, 3.0, 4.0, np.nan, 5.0, 6.0]).reshape(1, 1, 6)
    assert np.isfinite(all_of(resample(source_of(array), (1.0, 1.0, 1.5), "area")).ravel()).tolist() == [1, 1, 0, 1]


@given(
    st.integers(1, 60), st.sampled_from([0.1, 0.2837, 1.0, 3.0, 1 / 3]), st.sampled_from([0.1, 0.3, 0.7, 2.0, 1 / 7])
)
@example(10, 0.1, 0.3)
def test_the_spacing_asked_for_is_written_and_the_outer_corner_stays(n, old, new):
    source = source_of(image("uint8", (n, 2, 2)), spacing=(old, old, old), origin=(5.0, 0.0, 0.0))
    found = resample(source, (new, old, old), "0")
    if n == 1:
        assert found is source
        return
    assert found.spacing == (new, old, old)
    assert found.shape[1] == max(1, round(n * old / new))
    assert found.origin[0] - new / 2 == pytest.approx(5.0 - old / 2, abs=1e-9)
    ends = found.origin[0] + new * (found.shape[1] - 0.5), 5.0 + old * (n - 0.5)
    assert abs(ends[0] - ends[1]) <= new / 2 + 1e-9 or found.shape[1] == 1


def test_thirds_in_floating_point_are_thirds():
    labels = np.arange(9, dtype=np.uint8).reshape(1, 1, 9)
    for old, new in ((0.1, 0.3), (np.float32(0.1), np.float32(0.3)), (1 / 3, 1.0)):
        source = source_of(labels, spacing=(1.0, 1.0, float(old)))
        assert all_of(resample_labels(source, (1.0, 1.0, float(new)), "majority")).ravel().tolist() == [0, 3, 6]
        assert all_of(resample(source, (1.0, 1.0, float(new)), "area")).ravel().tolist() == [1, 4, 7]


def test_world_positions_stay_when_an_image_is_resampled_or_cropped():
    matrix = affine()
    source = source_of(image(), affine=matrix, forms=((1, matrix), (2, matrix)), spacing=(1100.0, 700.0, 500.0))
    found = resample(source, (2200.0, 350.0, 500.0), "1")
    corners = np.array([[-0.5, -0.5, -0.5, 1], [12.5, -0.5, -0.5, 1], [-0.5, 10.5, -0.5, 1]]).T
    new = np.array([[-0.5, -0.5, -0.5, 1], [12.5, -0.5, -0.5, 1], [-0.5, 21.5, -0.5, 1]]).T
    assert np.allclose(matrix @ corners, found.affine @ new)
    assert np.allclose(found.affine, found.forms[0][1])
    part = crop(source, ((2, 5), (1, 11), (4, 6)))
    assert np.allclose(part.affine @ [0, 0, 0, 1], matrix @ [4, 1, 2, 1])
    assert part.origin == (2200.0, 700.0, 2000.0)
    assert np.array_equal(all_of(part), source.array[:, 2:5, 1:11, 4:6])


def test_nothing_is_resampled_without_a_physical_size():
    for change in (lambda s: resample(s, (1.0,) * 3, "1"), lambda s: resample_labels(s, (1.0,) * 3, "majority")):
        with pytest.raises(BadDataError, match="no physical size"):
            change(source_of(image(), spacing=None))


ALL_48 = ["".join(c) for p in itertools.permutations(("LR", "PA", "IS")) for c in itertools.product(*p)]


@pytest.mark.parametrize("codes", ALL_48)
def test_every_orientation_is_nibabels(codes):
    matrix = affine(4)
    array = image("int16")
    source = source_of(array, affine=matrix, forms=((1, matrix), (1, matrix)), spacing=(1100.0, 700.0, 500.0))
    found = reorient(source, codes)
    file = nib.Nifti1Image(array.transpose(2, 1, 0), matrix)
    change = nib.orientations.ornt_transform(nib.io_orientation(matrix), nib.orientations.axcodes2ornt(tuple(codes)))
    expected = file.as_reoriented(change)
    assert np.array_equal(all_of(found)[0].transpose(2, 1, 0), np.asarray(expected.dataobj))
    assert np.allclose(found.affine, expected.affine)
    assert orientation(found.affine) == codes
    assert np.allclose(np.array(found.spacing)[::-1] / 1e3, expected.header.get_zooms(), rtol=1e-6)
    cuts = ([2, 5], [4], [1, 3])
    assert np.array_equal(put_together(found, cuts), all_of(found))
    back = reorient(found, orientation(source.affine))
    assert np.array_equal(all_of(back), source.array)
    assert np.allclose(back.affine, matrix)


def test_orientation_is_simpleitks():
    matrix = affine(4)
    array = image("int16")
    flip = np.diag([-1.0, -1.0, 1.0])
    volume = SimpleITK.GetImageFromArray(array)
    sizes = np.linalg.norm(matrix[:3, :3], axis=0)
    volume.SetSpacing(sizes.tolist())
    volume.SetDirection((flip @ matrix[:3, :3] / sizes).ravel().tolist())
    volume.SetOrigin((flip @ matrix[:3, 3]).tolist())
    for codes in ("LPS", "RAS", "PIR"):
        turned = SimpleITK.DICOMOrient(volume, codes)
        found = reorient(source_of(array, affine=matrix), codes)
        assert np.array_equal(SimpleITK.GetArrayFromImage(turned), all_of(found)[0])
        assert np.allclose(flip @ found.affine[:3, 3], turned.GetOrigin())


def test_an_image_without_affine_cannot_be_turned():
    with pytest.raises(BadDataError, match="does not say how it lies"):
        reorient(source_of(image()), "RAS")


def test_channels_are_picked_and_files_stacked():
    array = np.stack([image(), image() + 1, image() + 2])
    source = source_of(array, channel_names=("a", "b", "c"))
    found = pick([source], (2, 0))
    assert np.array_equal(all_of(found), array[[2, 0]])
    assert found.channel_names == ("c", "a")
    assert pick([source], (0, 1, 2)) is source
    files = [source_of(one) for one in array]
    assert np.array_equal(all_of(pick(files, (0, 1, 2))), array)


def test_a_spacing_is_set_or_its_unit_changed():
    matrix = affine(2)
    source = source_of(image(), affine=matrix, forms=((1, matrix), (2, matrix)), spacing=(1100.0, 700.0, 500.0))
    found = describe(source, respaced(Geometry.of(source), (3.0, 2.0, 1.0)))
    assert found.spacing == (3.0, 2.0, 1.0)
    assert np.allclose(np.linalg.norm(found.affine[:3, :3], axis=0) * 1e3, (1, 2, 3))
    assert np.allclose(found.affine[:3, 3], matrix[:3, 3])
    found = describe(source, rescaled(Geometry.of(source), 1e-3))
    assert found.spacing == pytest.approx((1.1, 0.7, 0.5))
    assert np.allclose(found.affine[:3], matrix[:3] * 1e-3)
    assert np.array_equal(all_of(found), source.array)


def test_qform_and_sform_are_repaired():
    right, wrong = affine(1), affine(2)
    both = Geometry((1100.0, 700.0, 500.0), (0.0,) * 3, right, ((1, wrong), (2, right)))
    assert disagree(both.forms, SHAPE)
    fixed = repaired(both, "sform")
    header = nib.Nifti1Header()
    header.set_qform(right, 2)
    assert np.allclose(fixed.forms[0][1], header.get_qform(), atol=1e-5)
    assert fixed.forms[0][0] == 2
    assert not disagree(fixed.forms, SHAPE)
    assert np.allclose(fixed.affine, right)
    fixed = repaired(both, "qform")
    assert np.array_equal(fixed.affine, wrong)
    assert fixed.forms[1][0] == 1
    plain = np.diag([1.0, 2.0, 3.0, 1.0])
    plain[:3, 3] = 4, 5, 6
    moved = repaired(Geometry((1.0,) * 3, (9.0,) * 3, right, ((1, plain), (2, right))), "qform")
    assert moved.origin == (6e3, 5e3, 4e3)
    unset = Geometry((1.0,) * 3, (0.0,) * 3, right, ((0, np.eye(4)), (2, right)))
    assert not disagree(unset.forms, SHAPE)
    assert repaired(unset, "sform").forms[0][0] == 2
    with pytest.raises(BadDataError, match="not set"):
        repaired(unset, "qform")
    with pytest.raises(BadDataError, match="no qform"):
        repaired(Geometry((1.0,) * 3, (0.0,) * 3, None, ()), "qform")


def test_progress_is_told(capsys, monkeypatch):
    monkeypatch.setattr("voxelmill.convert.views.SECONDS_BETWEEN_LINES", 0.0)
    all_of(watch(source_of(image()), "brain"))
    assert capsys.readouterr().err.startswith("brain: 0 of 0 million voxels")
