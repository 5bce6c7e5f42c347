"""Import: what is stored is what was read, and what is measured is what NumPy says of the whole array."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import zarr

from inprocess import array_source, textured
from voxelmill.errors import BadDataError
from voxelmill.formats import Selection, open_image
from voxelmill.image import ImageInfo, StoredImage
from voxelmill.importing import STEP_BYTES, SampleSpec, import_image, step_boxes
from voxelmill.statistics import percentile8

BORDER = ((3, 2), (4, 0), (1, 5))


def spec(channels: int = 1, **changes: object) -> SampleSpec:
    given = {"id": "s", "channel": tuple(range(channels)), "spacing": (3.0, 2.0, 1.0), "unit": "um"}
    return SampleSpec(**{**given, "spacing_origin": "test", **changes})  # type: ignore[arg-type]


def whole(store: Path, info: ImageInfo, channel: int = 0) -> np.ndarray:
    return StoredImage(store, info).read(channel, tuple((0, n) for n in info.shape))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float16", "bool"])
def test_voxels_and_statistics(dtype: str, tmp_path: Path) -> None:
    image = (textured((70, 50, 60), 2, border=BORDER) // 8).astype(dtype)
    if np.dtype(dtype).kind in "if":
        image = image - (image > 0).astype(dtype) * image.dtype.type(40)
    info = import_image([array_source(image)], spec(2), tmp_path)
    assert ImageInfo.load(tmp_path / "s.image.json") == info

    mask = np.argwhere((image != 0).any(axis=0))
    low, high = mask.min(axis=0), mask.max(axis=0) + 1
    assert info.nonzero_box == tuple(zip(low.tolist(), high.tolist(), strict=True))
    for channel, statistics in enumerate(info.statistics):
        assert np.array_equal(whole(tmp_path / "s.image.zarr", info, channel), image[channel].astype(info.dtype))
        inside = image[channel][tuple(map(slice, low, high))].astype(np.float64)
        assert statistics.mean == pytest.approx(inside.mean(), rel=1e-12)
        assert statistics.std == pytest.approx(inside.std(), rel=1e-9)
        assert (statistics.minimum, statistics.maximum) == (inside.min(), inside.max())
        for axis, (lows, highs) in enumerate(statistics.planes):
            others = tuple(a for a in range(3) if a != axis)
            assert np.array_equal(lows, inside.min(axis=others))
            assert np.array_equal(highs, inside.max(axis=others))
        assert statistics.percentiles["median"] == pytest.approx(np.median(inside), abs=2)


def test_steps_cover_an_image_in_whole_shards_of_bounded_size() -> None:
    for shape in ((70, 600, 700), (1, 5000, 4100), (130, 300, 30_000), (5, 5, 5)):
        shard = (1, 2048, 2048) if shape[0] == 1 else (64, 256, 256)
        boxes = step_boxes(shape, shard, 2)
        assert sum(int(np.prod([b - a for a, b in box])) for box in boxes) == np.prod(shape)
        assert max(2 * int(np.prod([b - a for a, b in box])) for box in boxes) <= STEP_BYTES
        assert all(a % side == 0 for box in boxes for (a, _), side in zip(box, shard, strict=True))


def test_box_is_cut_and_keeps_its_place(tmp_path: Path) -> None:
    image = textured((40, 50, 60))
    info = import_image([array_source(image)], spec(box=((10, 30), (5, 50), (0, 33))), tmp_path)
    assert np.array_equal(whole(tmp_path / "s.image.zarr", info), image[0, 10:30, 5:50, :33])
    assert info.origin == (30.0, 10.0, 0.0)


def test_zarr_is_read_in_place_and_like_its_copy(tmp_path: Path) -> None:
    image = textured((40, 50, 60), 3)
    array = zarr.create_array(str(tmp_path / "in.zarr"), shape=image.shape, dtype="uint16", chunks=(1, 16, 32, 32))
    array[:] = image
    channels = (2, 0)
    box = ((3, 40), (0, 50), (10, 60))
    found = []
    for place in (True, False):
        with open_image(tmp_path / "in.zarr", Selection(axes="czyx")) as source:
            found.append(import_image([source], spec(channel=channels, box=box, in_place=place), tmp_path / str(place)))
    assert not (tmp_path / "True" / "s.image.zarr").exists()
    assert found[0].statistics == found[1].statistics
    assert found[0].content_sha256 == found[1].content_sha256
    for position, channel in enumerate(channels):
        expected = image[channel, 3:, :, 10:]
        assert np.array_equal(whole(tmp_path / "in.zarr", found[0], position), expected)
        assert np.array_equal(whole(tmp_path / "False" / "s.image.zarr", found[1], position), expected)


def test_one_file_per_channel(tmp_path: Path) -> None:
    image = textured((20, 30, 40), 2)
    sources = [array_source(image[1:]), array_source(image[:1])]
    info = import_image(sources, spec(files=("b.tif", "a.tif")), tmp_path)
    assert np.array_equal(whole(tmp_path / "s.image.zarr", info, 0), image[1])
    assert np.array_equal(whole(tmp_path / "s.image.zarr", info, 1), image[0])


def test_percentile8_is_the_documented_rule() -> None:
    """The rule written out on the values themselves, after ``stats_from_uint16_histogram`` of ais_segmentation."""
    for seed, top in ((0, 60_000), (1, 300), (2, 256)):
        values = np.random.default_rng(seed).integers(17, top + 1, 4001)
        ordered = np.sort(values)
        rank = int(np.ceil(0.975 * (len(values) - 1)))
        high = max(255, int(ordered[max(rank, 1) - 1]))
        scale = 256 / (high - ordered[0] + 1)
        expected = np.clip((values - ordered[0]) * scale + 0.5, 0, 255).astype(np.uint8)
        rule = percentile8(np.bincount(values, minlength=65536))
        assert np.array_equal(rule(values), expected)
    dark = np.array([0, 3, 255])
    assert np.array_equal(percentile8(np.bincount(dark, minlength=65536))(dark), dark)


def test_percentile8_decides_what_is_zero(tmp_path: Path) -> None:
    image = np.full((1, 20, 20, 20), 1000, np.uint16)
    image[0, 5:15, 6:14, 7:13] = textured((10, 8, 6))[0] + 3000
    info = import_image([array_source(image)], spec(intensity="percentile8"), tmp_path)
    assert info.nonzero_box == ((5, 15), (6, 14), (7, 13))
    assert info.statistics[0].maximum == 255
    with pytest.raises(BadDataError, match="percentile8"):
        import_image([array_source(image.astype(np.float32))], spec(intensity="percentile8"), tmp_path / "float")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value: float, tmp_path: Path) -> None:
    image = textured((20, 30, 40)).astype(np.float32)
    image[0, 7, 8, 9] = image[0, 11, 0, 0] = value
    with pytest.raises(BadDataError, match=r"2 voxels are NaN or infinite.*z, y, x = 7, 8, 9") as caught:
        import_image([array_source(image)], spec(files=("x.tif",)), tmp_path)
    assert caught.value.file == "x.tif"
    info = import_image([array_source(image)], spec(nonfinite="zero"), tmp_path)
    assert "2 voxels" in info.warnings[0]
    assert whole(tmp_path / "s.image.zarr", info)[7, 8, 9] == 0


def test_integers_that_float32_cannot_hold(tmp_path: Path) -> None:
    image = np.ones((1, 4, 4, 4), np.int64)
    image[0, 1, 2, 3] = 2**24
    import_image([array_source(image)], spec(), tmp_path)
    image[0, 1, 2, 3] = -(2**24) - 1
    with pytest.raises(BadDataError, match="16777217"):
        import_image([array_source(image)], spec(), tmp_path)


def test_dark_volume(tmp_path: Path) -> None:
    info = import_image([array_source(np.zeros((1, 8, 9, 10), np.uint8))], spec(), tmp_path)
    assert info.nonzero_box == ((0, 8), (0, 9), (0, 10))
    assert info.statistics[0].std == 0


def test_hash_is_that_of_the_voxels(tmp_path: Path) -> None:
    image = textured((8, 9, 10))
    info = import_image([array_source(image)], spec(), tmp_path)
    assert info.content_sha256 == hashlib.sha256(image.tobytes()).hexdigest()


def test_a_damaged_chunk_is_an_error(tmp_path: Path) -> None:
    info = import_image([array_source(textured((20, 30, 40)))], spec(), tmp_path)
    (shard,) = (p for p in (tmp_path / "s.image.zarr" / "0" / "c").rglob("*") if p.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 255
    shard.write_bytes(data)
    with pytest.raises(BadDataError, match="cannot be decoded"):
        whole(tmp_path / "s.image.zarr", info)
