"""The seam figure, held against plain NumPy on whole arrays and against what it is there to show."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage

from voxelmill.seams import middle, seam_ratios
from voxelmill.store import create_array

SHARD = (32, 32, 32)


def stored(tmp_path, labels, shard=SHARD):
    array = create_array(tmp_path / "0", labels.shape, str(labels.dtype), shard, "zyx")
    array[:] = labels
    return array


@pytest.fixture(scope="module")
def texture() -> np.ndarray:
    """Blobs of about ten voxels, the same everywhere."""
    noise = np.random.default_rng(3).standard_normal((96, 160, 224))
    return (ndimage.gaussian_filter(noise, 2.5) > 0).astype(np.uint8)


QUANTILE = {2: 9.925, 3: 5.841}
"""Student's t at 99 %, two-sided, from a table."""

CUTS = ((0, 32, 64, 96), (0, 64, 96, 160), (0, 64, 128, 192, 224))


def changed(labels, axis, plane) -> int:
    return int((np.take(labels, plane, axis) != np.take(labels, plane - 1, axis)).sum())


def test_rates_are_those_of_the_whole_array(tmp_path, texture):
    found = seam_ratios(stored(tmp_path, texture), CUTS, SHARD)
    # Middles of the blocks; those on a border of a chunk are moved by half a chunk.
    middles = ([16, 48, 80], [48, 80, 144], [48, 112, 176, 208])
    for axis, row in enumerate(found):
        inner = CUTS[axis][1:-1]
        area = texture.size / texture.shape[axis]
        at = [changed(texture, axis, plane) for plane in inner]
        half = [changed(texture, axis, plane) for plane in middles[axis]]
        beside = [(a + b) / 2 for a, b in itertools.pairwise(half)]
        error = np.std(half, ddof=1) * np.sqrt(1 / len(inner) + 1 / len(half)) / np.mean(half)
        assert row == {
            "axis": "zyx"[axis],
            "cuts": len(inner),
            "rate": pytest.approx(sum(at) / len(inner) / area),
            "reference": pytest.approx(sum(beside) / len(inner) / area),
            "ratio": pytest.approx(sum(at) / sum(beside)),
            "chance": pytest.approx(QUANTILE[len(half) - 1] * error, rel=1e-3),
        }


def test_whole_labels_show_no_seam(tmp_path, texture):
    for row in seam_ratios(stored(tmp_path, texture), CUTS, SHARD):
        assert row["ratio"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shifted_block_shows_on_its_axis(tmp_path, texture, axis):
    broken = texture.copy()
    start, stop = CUTS[axis][1:3]
    where = tuple(slice(start, stop) if i == axis else slice(None) for i in range(3))
    broken[where] = np.roll(texture[where], 7, axis=(axis + 1) % 3)
    for row in seam_ratios(stored(tmp_path, broken), CUTS, SHARD):
        if row["axis"] == "zyx"[axis]:
            assert row["ratio"] > 1.5
            assert row["ratio"] - 1 > row["chance"]
        else:
            assert row["ratio"] < 1.3


def test_objects_that_are_not_linked_show(tmp_path, texture):
    """Every block with numbers of its own: each object that crosses a border changes there."""
    ids = ndimage.label(texture)[0].astype(np.uint32)
    ids[64:] += (ids[64:] > 0) * np.uint32(100_000)
    rows = {row["axis"]: row for row in seam_ratios(stored(tmp_path, ids), ((0, 64, 96), (0, 160), (0, 224)), SHARD)}
    assert rows["z"]["ratio"] > 2


def test_without_borders_there_is_no_ratio(tmp_path):
    rows = seam_ratios(
        stored(tmp_path, np.ones((1, 40, 64), np.uint8), (1, 64, 64)), ((0, 1), (0, 40), (0, 64)), (1, 64, 64)
    )
    nothing = {"cuts": 0, "rate": None, "reference": None, "ratio": None, "chance": None}
    assert rows == [{"axis": axis, **nothing} for axis in "zyx"]


def test_one_border_cannot_tell_chance(tmp_path, texture):
    rows = seam_ratios(stored(tmp_path, texture), ((0, 32, 96), (0, 160), (0, 224)), SHARD)
    assert rows[0]["ratio"] is not None and rows[0]["chance"] is None


def test_an_empty_mask_has_rates_and_no_ratio(tmp_path):
    rows = seam_ratios(stored(tmp_path, np.zeros((64, 64, 64), np.uint8)), ((0, 32, 64),) * 3, SHARD)
    assert [(row["rate"], row["reference"], row["ratio"]) for row in rows] == [(0, 0, None)] * 3


def test_two_planes_of_a_shard_are_read_at_a_time(tmp_path, texture):
    class Watched:
        def __init__(self, array):
            self.array, self.shape, self.read = array, array.shape, []

        def __getitem__(self, key):
            self.read.append(tuple(part.stop - part.start for part in key))
            return self.array[key]

    watched = Watched(stored(tmp_path, texture))
    seam_ratios(watched, CUTS, SHARD)
    assert {tuple(sorted(shape)) for shape in watched.read} == {(2, 32, 32)}


@pytest.mark.parametrize(
    ("start", "stop", "side", "expected"), [(0, 512, 64, 288), (512, 768, 64, 672), (0, 90, 64, 45), (8, 10, 1, 9)]
)
def test_the_middle_is_inside_a_chunk(start, stop, side, expected):
    assert middle(start, stop, side) == expected
