"""Outlines of labels, filled again by matplotlib and compared with the labels."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path as Polygon

from test_export import make_grid, make_info, make_store
from voxelmill import export
from voxelmill.errors import BadDataError, UsageError, WriteFailedError
from voxelmill.export import export_sample
from voxelmill.outlines import outline, write_outlines
from voxelmill.store import COLOURS
from voxelmill.task import Task

BUDGET = 1 << 30


def filled(parts, shape) -> np.ndarray:
    """How often each pixel's centre is inside: inside an outer ring and in none of its holes."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    points = np.column_stack([x.ravel(), y.ravel()])
    count = np.zeros(shape, int)
    for outer, *holes in parts:
        inside = Polygon(outer).contains_points(points)
        for hole in holes:
            within = Polygon(hole).contains_points(points)
            assert not (within & ~inside).any()
            inside &= ~within
        count += inside.reshape(shape)
    return count


def closed(parts):
    return [[np.vstack([ring, ring[:1]]) for ring in part] for part in parts]


def assert_rings_are_simple(parts):
    for ring in (ring for part in parts for ring in part):
        assert len({tuple(corner) for corner in ring.tolist()}) == len(ring) >= 4
        steps = np.diff(np.vstack([ring, ring[:2]]), axis=0)
        assert ((steps == 0).sum(axis=1) == 1).all()
        assert all(a @ b == 0 for a, b in pairwise(steps))  # a turn at every corner


PICTURES = {
    "a pixel": "#",
    "a bar": "####",
    "a hole": "###\n#.#\n###",
    "two holes that meet at a corner": "####\n#.##\n##.#\n####",
    "parts that meet at a corner": "#.\n.#",
    "parts that meet at a corner, the other way": ".#\n#.",
    "a ring that is open at a corner": "####\n#..#\n#.#.\n####",
    "an island in a hole": "#####\n#...#\n#.#.#\n#...#\n#####",
    "an island that touches its shore at a corner": "#####\n#...#\n#.#.#\n##..#\n#####",
    "a chessboard": "#.#.#\n.#.#.\n#.#.#",
    "holes in two parts": "###.###\n#.#.#.#\n###.###",
    "a part in a hole of another, with a hole": "#######\n#.....#\n#.###.#\n#.#.#.#\n#.###.#\n#.....#\n#######",
}


@pytest.mark.parametrize("name", PICTURES)
def test_filling_an_outline_gives_the_same_pixels(name):
    mask = np.array([[letter == "#" for letter in row] for row in PICTURES[name].split("\n")])
    parts = outline(mask)
    assert_rings_are_simple(parts)
    np.testing.assert_array_equal(filled(closed(parts), mask.shape), mask)


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))).filter(lambda mask: bool(mask.any())))
@settings(max_examples=300, deadline=None)
def test_any_mask(mask):
    parts = outline(mask)
    assert_rings_are_simple(parts)
    np.testing.assert_array_equal(filled(closed(parts), mask.shape), mask)


def test_how_many_parts_and_holes():
    def count(name):
        mask = np.array([[letter == "#" for letter in row] for row in PICTURES[name].split("\n")])
        return [len(part) - 1 for part in outline(mask)]

    assert count("a hole") == [1]
    assert count("two holes that meet at a corner") == [2]
    assert count("parts that meet at a corner") == [0, 0]
    assert sorted(count("an island in a hole")) == [0, 1]
    assert sorted(count("a part in a hole of another, with a hole")) == [1, 1]


def plane_grid(shape, **other):
    return replace(make_grid((1, *shape)), **other)


def read(path: Path) -> list[dict]:
    return json.loads(path.read_text())["features"]


def polygons(feature):
    geometry = feature["geometry"]
    parts = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    assert all(ring[0] == ring[-1] for part in parts for ring in part)
    return [[np.array(ring) for ring in part] for part in parts]


def assert_same_labels(features, labels):
    found = np.zeros(labels.shape, np.int64)
    for feature in features:
        parts = polygons(feature)
        y1, x1 = (max(ring[:, axis].max() for part in parts for ring in part) for axis in (1, 0))
        y0, x0 = (min(ring[:, axis].min() for part in parts for ring in part) for axis in (1, 0))
        inside = filled([[ring - (x0, y0) for ring in part] for part in parts], (y1 - y0, x1 - x0))
        window = found[y0:y1, x0:x1]
        assert inside.max() == 1
        assert not window[inside > 0].any()
        window[inside > 0] = int(feature["properties"]["name"])
    np.testing.assert_array_equal(found, labels)


def stored(tmp_path, labels, **other):
    grid = plane_grid(labels.shape)
    return make_store(tmp_path, grid, instances=labels[None], **{k: v[None] for k, v in other.items()}), grid


@pytest.mark.parametrize("name", ["embryos_grey", "mitocheck_t1"])
def test_labels_of_real_images(shared_data, tmp_path, name):
    labels = tifffile.imread(shared_data / "qupath" / f"{name}_labels.tif").astype(np.uint16)
    store, grid = stored(tmp_path, labels)
    path = tmp_path / "out.geojson"
    assert write_outlines(store, grid, path, most=None, memory_budget=BUDGET) == len(np.unique(labels)) - 1
    assert_same_labels(read(path), labels)


def test_any_memory_gives_the_same_bytes(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 60, (30, 40)), np.ones((3, 2))).astype(np.uint16)
    store, grid = stored(tmp_path, labels)
    most = write_outlines(store, grid, tmp_path / "a.geojson", most=None, memory_budget=BUDGET)
    # An object's box is all of the plane here; a strip is a few rows.
    write_outlines(store, grid, tmp_path / "b.geojson", most=None, memory_budget=64 * labels.size)
    assert most == len(np.unique(labels)) - 1
    assert (tmp_path / "a.geojson").read_bytes() == (tmp_path / "b.geojson").read_bytes()
    assert_same_labels(read(tmp_path / "a.geojson"), labels)


def test_objects_across_strips_and_borders(tmp_path, monkeypatch):
    monkeypatch.setattr("voxelmill.outlines.STRIP", 7)
    labels = np.zeros((40, 30), np.uint32)
    labels[0:40, 0:3] = 70_000
    labels[5:9, 10:30] = 2
    labels[6, 12] = 3
    labels[38:, 28:] = 5
    store, grid = stored(tmp_path, labels)
    write_outlines(store, grid, tmp_path / "a.geojson", most=None, memory_budget=BUDGET)
    features = read(tmp_path / "a.geojson")
    assert [feature["properties"]["name"] for feature in features] == ["70000", "2", "3", "5"]
    assert_same_labels(features, labels)
    # Too little for all rows of the tall object at once.
    write_outlines(store, grid, tmp_path / "b.geojson", most=None, memory_budget=64 * 200)
    assert (tmp_path / "b.geojson").read_bytes() == (tmp_path / "a.geojson").read_bytes()


def test_features_are_those_of_qupath(shared_data, tmp_path):
    labels = np.zeros((9, 9), np.uint16)
    labels[1:4, 1:4], labels[5:8, 5:8] = 1, 2
    classes = np.where(labels == 2, 3, labels > 0).astype(np.uint8)
    store, grid = stored(tmp_path, labels, semantic=classes)
    write_outlines(store, grid, tmp_path / "a.geojson", most=None, memory_budget=BUDGET)
    ours = read(tmp_path / "a.geojson")
    assert [feature["properties"]["classification"] for feature in ours] == [
        {"name": "a", "color": list(COLOURS[0])}, {"name": "c", "color": list(COLOURS[2])},
    ]  # fmt: skip
    theirs = read(shared_data / "qupath" / "embryos_grey.geojson")[0]
    assert ours[0].keys() == theirs.keys()
    assert theirs["properties"].keys() <= ours[0]["properties"].keys()
    assert len(ours[0]["id"]) == len(theirs["id"])
    assert len({feature["id"] for feature in ours}) == 2
    assert ours[0]["geometry"]["coordinates"] == [[[1, 1], [4, 1], [4, 4], [1, 4], [1, 1]]]
    assert len((tmp_path / "a.geojson").read_text().splitlines()) == 2 + 2


def test_classes_have_outlines_where_there_are_no_objects(tmp_path):
    classes = np.zeros((9, 9), np.uint8)
    classes[1:4, 1:4], classes[5:8, 5:8], classes[8, 0] = 1, 2, 1
    grid = plane_grid(classes.shape)
    store = make_store(tmp_path, grid, semantic=classes[None])
    assert write_outlines(store, grid, tmp_path / "a.geojson", most=None, memory_budget=BUDGET) == 2
    first, second = read(tmp_path / "a.geojson")
    assert (first["geometry"]["type"], second["geometry"]["type"]) == ("MultiPolygon", "Polygon")
    assert first["properties"] == {
        "objectType": "annotation", "classification": {"name": "a", "color": list(COLOURS[0])},
    }  # fmt: skip


def test_an_empty_mask_is_an_empty_collection(tmp_path):
    store, grid = stored(tmp_path, np.zeros((9, 9), np.uint16))
    assert write_outlines(store, grid, tmp_path / "a.geojson", most=None, memory_budget=BUDGET) == 0
    assert json.loads((tmp_path / "a.geojson").read_text()) == {"type": "FeatureCollection", "features": []}


def test_an_object_that_does_not_fit_into_memory_is_an_error(tmp_path):
    store, grid = stored(tmp_path, np.ones((90, 90), np.uint16))
    with pytest.raises(BadDataError, match="90 x 90"):
        write_outlines(store, grid, tmp_path / "a.geojson", most=None, memory_budget=10_000)
    assert not (tmp_path / "a.geojson").exists()


@pytest.mark.parametrize(
    ("export_as", "image", "expected"),
    [
        ("auto", "PNG", ["a.label_binary.png", "a.label_instances.png", "a.label_outlines.geojson"]),
        ("auto", "OME-Zarr 0.5", ["a.label_outlines.geojson"]),
        ("tiff", "PNG", ["a.label_binary.tif", "a.label_instances.tif"]),
        ("geojson", "PNG", ["a.label_outlines.geojson"]),
        ("none", "PNG", []),
    ],
)
def test_single_planes_get_outlines_beside_their_label_files(tmp_path, export_as, image, expected):
    store, grid = stored(tmp_path, np.eye(20, dtype=np.uint16))
    record, out = Task("export_labels", "a"), tmp_path / "a"
    paths = export_sample(
        store, grid, make_info(grid, format=image), out, record, export=export_as, binary=None, memory_budget=BUDGET
    )
    assert sorted(path.name for path in paths) == expected
    assert sorted(path.name for path in out.glob("*")) == expected


def test_too_many_objects_have_outlines_only_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "MAX_OUTLINES", 2)
    store, grid = stored(tmp_path, np.arange(4, dtype=np.uint16).reshape(2, 2))
    info, record = make_info(grid, format="PNG"), Task("export_labels", "a")
    for wish, count in (("auto", 2), ("geojson", 1)):
        paths = export_sample(
            store, grid, info, tmp_path / wish, record, export=wish, binary=None, memory_budget=BUDGET
        )
        assert len(paths) == count


def test_volumes_have_none(tmp_path):
    labels = np.ones((3, 9, 9), np.uint16)
    grid = make_grid(labels.shape)
    store = make_store(tmp_path, grid, instances=labels)
    info, record = make_info(grid), Task("export_labels", "a")
    paths = export_sample(store, grid, info, tmp_path / "a", record, export="auto", binary=None, memory_budget=BUDGET)
    assert [path.suffix for path in paths] == [".tif", ".tif"]
    with pytest.raises(BadDataError, match="3 planes") as raised:
        export_sample(store, grid, info, tmp_path / "b", record, export="geojson", binary=None, memory_budget=BUDGET)
    assert not isinstance(raised.value, (UsageError, WriteFailedError))
