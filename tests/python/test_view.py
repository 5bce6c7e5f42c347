"""Layers of a result folder, without napari."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from assembled import find_objects
from conftest import ROOT
from inprocess import array_source
from voxelmill.compose import compose_store
from voxelmill.errors import BadDataError, DeviceAbsentError, InputMissingError
from voxelmill.files import write_json
from voxelmill.store import COLOURS, level_shape, multiscales, write_group
from voxelmill.view import Volume, import_napari, layers, show

SHAPE = (20, 90, 150)
SPACING, ORIGIN = (2.0, 0.5, 0.4), (10.0, 20.0, 30.0)


def volume(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4000, SHAPE).astype(np.uint16)


def labels_of(image: np.ndarray) -> np.ndarray:
    labels = np.zeros(image.shape, np.uint8)
    labels[2:9, 5:30, 5:140], labels[12:15, 40:80, 9:11] = 1, 2
    return labels


def entry_of(**changes: Any) -> dict[str, Any]:
    entry = {
        "id": "s", "files": ["s.tif"], "channel": [0], "shape": [1, *SHAPE], "spacing": list(SPACING), "unit": "um",
        "box": None, "selections": [{}],
    }  # fmt: skip
    return {**entry, **changes}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Results of a sample ``s`` beside its samplesheet in ``data``; the image is not there yet."""
    labels = labels_of(volume())
    grid = find_objects(labels, tmp_path / "work", spacing=SPACING, shard=32).grid
    grid = type(grid)(**{**grid.__dict__, "origin": ORIGIN})
    linked = {"kind": "semantic", "dtype": "uint16", "objects": 2}
    compose_store(grid, tmp_path / "work", tmp_path / "results" / "s", linked)
    record(tmp_path / "results", entry_of())
    (tmp_path / "data").mkdir()
    return tmp_path / "results"


def record(results: Path, entry: dict[str, Any], sheet: str = "data/s.csv") -> None:
    write_json(results / "pipeline_info" / "samples.json", {"samples": [entry]})
    write_json(results / "pipeline_info" / "params.json", {"params": {"input": sheet}})


def add_probabilities(folder: Path) -> np.ndarray:
    """Store of the form that the probabilities have."""
    values = np.random.default_rng(1).integers(0, 255, (3, *SHAPE)).astype(np.uint8)
    store = folder / "probabilities.ome.zarr"
    described = multiscales("probabilities", SHAPE, SPACING, "um", ORIGIN, 2, axes="czyx")
    channels = [{"label": name} for name in ("background", "a", "b")]
    write_group(store, {"multiscales": [described], "omero": {"channels": channels}})
    zarr.open_group(str(store)).attrs["probabilities"] = {"largest_step": 254}
    for level in range(2):
        shape = (3, *level_shape(SHAPE, level))
        array = zarr.create_array(str(store / str(level)), shape=shape, dtype="uint8", chunks=(1, 10, 32, 32))
        array[:] = values[:, :: 2**level, :: 2**level, :: 2**level]
    return values


def test_layers_of_a_sample(results: Path) -> None:
    image = volume()
    tifffile.imwrite(results.parent / "data" / "s.tif", image, metadata={"axes": "ZYX"})
    values = add_probabilities(results / "s")
    found, notes = layers(results / "s")
    assert notes == []
    assert [layer.kwargs["name"] for layer in found] == [
        "s.tif", "probability of background", "probability of a", "probability of b", "semantic", "instances"
    ]  # fmt: skip
    assert [layer.kind for layer in found] == ["image"] * 4 + ["labels"] * 2
    for layer in found:
        assert layer.kwargs["scale"] == list(SPACING) and layer.kwargs["units"] == ["micrometer"] * 3
        assert layer.kwargs["translate"] == list(ORIGIN)
        assert layer.data[0].shape == SHAPE and layer.data[0].ndim == 3
    assert np.array_equal(found[0].data[0], image)
    assert found[2].kwargs["contrast_limits"] == [0, 254] and not found[2].kwargs["visible"]
    assert np.array_equal(found[2].data[0], values[1]) and len(found[2].data) == 2
    semantic, instances = found[4:]
    assert [level.shape for level in semantic.data] == [SHAPE, (10, 45, 75), (5, 23, 38)]
    for level, data in enumerate(semantic.data):
        step = 2**level
        assert np.array_equal(data, labels_of(image)[::step, ::step, ::step])
    assert set(np.unique(instances.data[0])) == {0, 1, 2}
    assert semantic.names == {1: "class 1", 2: "class 2"} and instances.names == {}
    assert semantic.colours[1] == tuple(part / 255 for part in (*COLOURS[0], 255)) and instances.colours == {}
    assert instances.kwargs["visible"] and not semantic.kwargs["visible"]


def test_only_what_is_looked_at_is_read(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(results.parent / "data" / "s.tif", volume(), metadata={"axes": "ZYX"})
    found, _ = layers(results / "s")
    asked: list[Any] = []
    for layer in found:
        for data in layer.data:
            read = data.source.read
            monkeypatch.setattr(data.source, "read", lambda c, box, read=read: (asked.append(box), read(c, box))[1])
    assert asked == []
    for layer in found:
        assert layer.data[0][3].shape == SHAPE[1:]
    assert asked == [((3, 4), (0, 90), (0, 150))] * 3
    assert found[0].data[0][2:5, ..., 7:9:2].shape == (3, 90, 1) and asked[3:] == [((2, 5), (0, 90), (7, 9))]


def test_a_box_lies_inside_its_image(results: Path) -> None:
    whole = np.zeros((30, 100, 160), np.uint16)
    tifffile.imwrite(results.parent / "data" / "s.tif", whole, metadata={"axes": "ZYX"})
    box = [[5, 25], [10, 100], [4, 154]]
    record(results, entry_of(box=box, shape=[1, *whole.shape]))
    image = layers(results / "s")[0][0]
    assert image.kwargs["translate"] == [10 - 5 * 2, 20 - 10 * 0.5, pytest.approx(30 - 4 * 0.4)]
    record(results, entry_of(unit="pixel", shape=[1, *whole.shape]))
    assert layers(results / "s")[0][0].kwargs["units"] == ["pixel"] * 3


def test_channels_and_parts_of_files(results: Path) -> None:
    data = results.parent / "data"
    both = np.stack([volume(1), volume(2), volume(3)])
    tifffile.imwrite(data / "s.tif", both, metadata={"axes": "CZYX"})
    record(results, entry_of(channel=[2, 0], shape=[3, *SHAPE], selections=[{"axes": "czyx"}]))
    found, _ = layers(results / "s")
    images = [layer for layer in found if layer.kind == "image"]
    assert [layer.kwargs["colormap"] for layer in images] == ["green", "magenta"]
    assert np.array_equal(images[0].data[0], both[2]) and np.array_equal(images[1].data[0], both[0])
    tifffile.imwrite(data / "a.tif", both[1], metadata={"axes": "ZYX"})
    tifffile.imwrite(data / "b.tif", both[:2], metadata={"axes": "TZYX"})
    chosen = [{}, {"axes": "tzyx", "timepoint": 1}, {"axes": "of the labels"}]
    record(results, entry_of(files=["a.tif", "b.tif"], channel=[0, 0], selections=chosen))
    found, _ = layers(results / "s")
    assert [layer.kwargs["name"] for layer in found[:2]] == ["a.tif", "b.tif"]
    assert np.array_equal(found[0].data[0], both[1]) and np.array_equal(found[1].data[0], both[1])


def test_an_image_that_is_named(results: Path, tmp_path: Path) -> None:
    store = tmp_path / "elsewhere.zarr"
    image = volume(4)
    write_group(store, {"multiscales": [multiscales("i", SHAPE, SPACING, "um", (1.0, 2.0, 3.0), 3)]})
    for level in range(3):
        small = image[:: 2**level, :: 2**level, :: 2**level]
        zarr.create_array(str(store / str(level)), shape=small.shape, dtype="uint16", chunks=(8, 8, 8))[:] = small
    found, notes = layers(results / "s", [store])
    assert notes == [] and [level.shape for level in found[0].data] == [SHAPE, (10, 45, 75), (5, 23, 38)]
    assert found[0].kwargs["translate"] == list(ORIGIN)
    (results / "pipeline_info" / "samples.json").unlink()
    assert layers(results / "s", [store])[0][0].kwargs["translate"] == [1.0, 2.0, 3.0]
    with pytest.raises(InputMissingError, match="does not exist"):
        layers(results / "s", [tmp_path / "none.tif"])


def test_what_is_missing_is_said(results: Path) -> None:
    found, notes = layers(results / "s")
    assert [layer.kind for layer in found] == ["labels"] * 2
    assert len(notes) == 1 and "s.tif is not where the run had it" in notes[0]
    (results / "pipeline_info" / "samples.json").unlink()
    assert "no record" in layers(results / "s")[1][0]
    with pytest.raises(InputMissingError, match=r"no labels\.ome\.zarr") as caught:
        layers(results)
    assert caught.value.remedy == "pass a sample's folder: s"
    (results.parent / "data" / "s.tif").write_bytes(b"II*\0")
    record(results, entry_of())
    with pytest.raises(BadDataError):
        layers(results / "s")


KEYS = st.one_of(
    st.integers(-4, 3),
    st.slices(4).filter(lambda key: key.step is None or key.step > 0),
    st.just(slice(None)),
    st.just(Ellipsis),
)


@given(st.lists(KEYS, min_size=1, max_size=3).filter(lambda keys: sum(key is Ellipsis for key in keys) < 2))
def test_a_volume_is_indexed_as_an_array(keys: list[Any]) -> None:
    array = np.arange(2 * 4 * 5 * 6).reshape(2, 4, 5, 6)
    given = Volume(array_source(array), 1)
    assert np.array_equal(given[tuple(keys)], array[1][tuple(keys)])
    assert np.array_equal(given[keys[0]], array[1][keys[0]])


def test_a_volume_has_ends() -> None:
    given = Volume(array_source(np.zeros((1, 4, 5, 6))), 0)
    assert (given.size, len(given), np.asarray(given, np.int8).dtype) == (120, 4, np.int8)
    for key in (4, -5, (0, 0, 6), slice(None, None, -1)):
        with pytest.raises(IndexError):
            given[key]


class Viewer:
    """Takes what napari's viewer takes."""

    def __init__(self, title: str):
        self.title = title
        self.added: list[tuple[str, Any, dict[str, Any]]] = []
        self.scale_bar = SimpleNamespace(visible=False)

    def add_image(self, data: Any, **kwargs: Any) -> None:
        self.added.append(("image", data, kwargs))

    def add_labels(self, data: Any, **kwargs: Any) -> None:
        self.added.append(("labels", data, kwargs))


def test_what_napari_is_given(results: Path) -> None:
    tifffile.imwrite(results.parent / "data" / "s.tif", volume(), metadata={"axes": "ZYX"})
    maps = SimpleNamespace(DirectLabelColormap=lambda color_dict: color_dict)
    napari = SimpleNamespace(Viewer=Viewer, utils=SimpleNamespace(colormaps=maps))
    viewer = show(layers(results / "s")[0], "s", napari)
    image, semantic, instances = viewer.added
    assert image[0] == "image" and isinstance(image[1], Volume) and not image[2]["multiscale"]
    low, high = image[2]["contrast_limits"]
    assert 0 <= low < 100 and 3900 < high < 4000
    assert semantic[2]["multiscale"] and len(semantic[1]) == 3
    assert semantic[2]["features"] == {"index": [0, 1, 2], "class": ["background", "class 1", "class 2"]}
    assert semantic[2]["colormap"][1][3] == 1 and semantic[2]["colormap"][None] == "transparent"
    assert "colormap" not in instances[2] and viewer.scale_bar.visible


def test_napari_is_not_there(results: Path) -> None:
    def load(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    with pytest.raises(DeviceAbsentError, match="not installed") as caught:
        import_napari(load)
    assert 'pip install "napari[all]"' in str(caught.value)
    assert import_napari(lambda name: name) == "napari"


def test_the_script_says_how_to_get_napari(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("view_script", ROOT / "bin" / "view.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(script, "importlib", SimpleNamespace(import_module=absent))
    done = CliRunner().invoke(script.main, [str(results / "s")])
    assert done.exit_code == 69
    assert "note:" in done.output and "pip install" in done.output
    assert CliRunner().invoke(script.main, [str(results)]).exit_code == 66
