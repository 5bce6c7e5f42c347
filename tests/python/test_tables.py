"""TABULATE_OBJECTS: every object in one row of every table, numbers in their units, a readable chart, true pictures."""

from __future__ import annotations

import csv
import io
import json
import runpy
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ecdf
from seaborn._statistics import KDE

from objects import CLASSES, Sample
from voxelmill import __version__
from voxelmill.errors import InputMissingError, TemporaryError, UsageError
from voxelmill.files import read_json
from voxelmill.objects import charts, gallery, tables
from voxelmill.objects.charts import (
    cumulative,
    cumulative_size,
    density,
    length_chart,
    save_chart,
    size_chart,
    size_edges,
)
from voxelmill.objects.columns import MEASURES, parse_measures
from voxelmill.objects.gallery import choose, grey_levels
from voxelmill.objects.summary import describe, size_of
from voxelmill.objects.tables import Rows, cells, stream, table_writer, union_schema
from voxelmill.objects.tabulate import tabulate_batch
from voxelmill.task import Task

ROOT = Path(__file__).resolve().parents[2]
BOXES = (
    ((2, 4), (2, 5), (3, 20)), ((5, 8), (10, 14), (0, 9)), ((5, 8), (20, 24), (5, 40)), ((1, 2), (30, 31), (4, 9)),
    ((6, 9), (30, 38), (10, 30)), ((9, 10), (2, 3), (30, 40)),
)  # fmt: skip
"""Of six objects the second touches the border."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(charts, "DPI", 30)
    return tmp_path


def tabulate(
    *samples: Sample, length: str = "longest_path", tasks: int = 2, measures: Sequence[str] = MEASURES
) -> Task:
    for position, sample in enumerate(samples, 1):
        sample.write(Path(), position, tasks, measures)
    record = Task("tabulate_objects", "batch")
    tabulate_batch([sample.name for sample in samples], length, Path(), record, measures)
    return record


def merged(sample: Sample) -> pd.DataFrame:
    """The table as pandas joins it."""
    return pd.DataFrame(sample.rows).merge(pd.DataFrame(sample.measures), on="id", how="left")


def test_tables_are_the_join_in_physical_units(folder: Path) -> None:
    sample = Sample("a", BOXES, channels=2, origin=(10.0, 0.5, 0.0))
    tabulate(sample)
    expected = merged(sample)
    objects = pd.read_parquet("a/a.objects.parquet")
    np.testing.assert_array_equal(objects["id"], expected["id"])
    assert list(objects["class"]) == [CLASSES[value] for value in expected["class_value"]]
    np.testing.assert_allclose(objects["volume_um3"], expected["voxels"] * 9.0, rtol=1e-15)
    for axis, spacing, origin in zip("zyx", (3.0, 2.0, 1.5), (10.0, 0.5, 0.0), strict=True):
        centre = expected[f"centroid_{axis}"] * spacing + origin
        np.testing.assert_allclose(objects[f"centroid_{axis}_um"], centre, rtol=1e-15)
    same = ["voxels", "touches_border", "measured", "branches", "tortuosity", "skeleton_voxels", "length_resolution"]
    same += ["sphericity", "elongation", "flatness", "neighbours"]
    same += [f"{axis}_{bound}" for axis in "zyx" for bound in ("start", "stop")]
    same += [f"{name}_c{c}" for name in ("mean", "min", "max", "sd") for c in range(2)]
    for name in same:
        pd.testing.assert_series_equal(objects[name], expected[name], check_dtype=False)
    for name in ("longest_path", "longest_branch", "mean_thickness", "equivalent_diameter", "axis_1", "axis_3"):
        np.testing.assert_array_equal(objects[f"{name}_um"], expected[name])
    for name in ("surface", "contact_area"):
        np.testing.assert_array_equal(objects[f"{name}_um2"], expected[name])
    assert objects.loc[1, "longest_path_um":"contact_area_um2"].isna().all()


def test_csv_is_the_parquet_table(folder: Path) -> None:
    tabulate(Sample("a", BOXES, channels=2))
    table = pq.read_table("a/a.objects.parquet")
    text = Path("a/a.objects.csv").read_bytes()
    assert b"\r" not in text
    rows = list(csv.reader(io.StringIO(text.decode(), newline="")))
    assert rows[0] == table.column_names
    assert rows[1][:2] == ["1", "axon"]
    for row, values in zip(rows[1:], table.to_pylist(), strict=True):
        for cell, (name, value) in zip(row, values.items(), strict=True):
            if isinstance(value, str):
                assert cell.removeprefix("'") == value
            elif isinstance(value, bool) or value is None:
                assert cell == {True: "true", False: "false", None: ""}[value]
            else:
                assert float(cell) == value, name


def test_names_and_metadata_tell_the_unit(folder: Path) -> None:
    tabulate(Sample("a", BOXES), Sample("b", BOXES, unit="pixel", spacing=(1.0, 1.0, 1.0)))
    micrometres, pixels = (pq.read_schema(f"{name}/{name}.objects.parquet") for name in "ab")
    for schema, end in ((micrometres, "um"), (pixels, "px")):
        lengths = {name: f"{name}_{end}" for name in ("longest_path", "longest_branch", "mean_thickness")}
        lengths |= {name: f"{name}_{end}" for name in ("equivalent_diameter", "axis_1", "axis_2", "axis_3")}
        for name in (*lengths.values(), *(f"centroid_{axis}_{end}" for axis in "zyx")):
            assert schema.field(name).metadata[b"unit"] == end.encode()
        assert schema.field(f"volume_{end}3").metadata[b"unit"] == f"{end}3".encode()
        for name in ("surface", "contact_area"):
            assert schema.field(f"{name}_{end}2").metadata[b"unit"] == f"{end}2".encode()
        assert schema.field("z_stop").metadata[b"unit"] == b"voxels"
        assert schema.field("tortuosity").metadata is None
        assert schema.metadata[b"voxelmill"] == __version__.encode()
    assert [name.replace("_um", "_px") for name in micrometres.names] == pixels.names
    assert micrometres.names[:10] == [
        "id", "class", "voxels", "volume_um3", "centroid_z_um", "centroid_y_um", "centroid_x_um", "z_start", "z_stop",
        "y_start",
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_profiles_are_the_image_along_the_paths(folder: Path, dtype: str) -> None:
    sample = Sample("a", BOXES, channels=2, dtype=dtype)
    tabulate(sample)
    table = pq.read_table("a/a.profiles.parquet")
    assert table.column_names == ["id", "position", "distance_um", "z", "y", "x", "c0", "c1"]
    assert table.schema.field("c0").type == (pa.uint16() if dtype == "uint16" else pa.float64())
    points = table.to_pandas()
    assert list(points["id"].unique()) == [1, 3, 4, 5, 6]
    for row in sample.measures:
        own = points[points["id"] == row["id"]]
        np.testing.assert_array_equal(own["position"], range(len(own)))
        np.testing.assert_array_equal(own["distance_um"], row["profile_distance"])
        np.testing.assert_array_equal(own["x"], row["profile_x"])
        for channel in range(2):
            values = sample.image[channel, own["z"], own["y"], own["x"]]
            np.testing.assert_array_equal(own[f"c{channel}"], values)


@pytest.mark.parametrize("length", ["longest_path", "longest_branch"])
def test_axons_json_has_metres_and_raw_values(folder: Path, length: str) -> None:
    sample = Sample("a", BOXES, channels=2)
    tabulate(sample, length=length)
    axons = json.loads(Path("a/a.axons.json").read_text())
    assert list(axons) == ["1", "3", "4", "5", "6"]
    for row in sample.measures:
        volume = int((sample.labels == row["id"]).sum())
        profile = [int(v) for v in row["profile_c0"]]
        assert axons[str(row["id"])] == {"volume": volume, "length": row[length] / 1e6, "profile": profile}
        assert all(isinstance(value, int) for value in axons[str(row["id"])]["profile"])


def test_axons_json_has_no_metres_without_a_physical_size(folder: Path) -> None:
    tabulate(Sample("a", BOXES, unit="pixel", spacing=(1.0, 1.0, 1.0), dtype="float32"))
    axons = json.loads(Path("a/a.axons.json").read_text())
    assert {entry["length"] for entry in axons.values()} == {None}
    assert all(isinstance(value, float) for value in axons["1"]["profile"])


def test_sample_without_objects(folder: Path) -> None:
    record = tabulate(Sample("a", []), tasks=1)
    assert Path("a/a.objects.csv").read_text().count("\n") == 1
    assert pq.read_table("a/a.objects.parquet").num_rows == pq.read_table("a/a.profiles.parquet").num_rows == 0
    assert json.loads(Path("a/a.axons.json").read_text()) == {}
    summary = read_json(Path("a/a.objects.json"))
    assert (summary["objects"], summary["quantities"], summary["gallery"]) == (0, [], [])
    assert [row["objects"] for row in summary["classes"]] == [0, 0]
    assert dict(np.load("a/a.gallery.npz")) == {}
    assert Image.open("a/a.lengths.png").size[0] == 240
    assert record.counts == {"a": {"objects": 0, "measured": 0, "skeleton_empty": 0}}


def test_objects_at_the_border_only(folder: Path) -> None:
    record = tabulate(Sample("a", BOXES[1:2]), tasks=1)
    assert pd.read_csv("a/a.objects.csv")["longest_path_um"].isna().all()
    assert read_json(Path("a/a.objects.json"))["quantities"] == []
    assert "none of the 1 objects is measured" in record.warnings[0]["text"]


def test_object_without_a_skeleton(folder: Path) -> None:
    sample = Sample("a", BOXES)
    empty = {"longest_path": 0.0, "longest_branch": 0.0, "tortuosity": 1.0, "branches": 0, "skeleton_empty": True}
    sample.measures[0] |= empty
    record = tabulate(sample)
    lengths = read_json(Path("a/a.objects.json"))["quantities"][0]
    assert (lengths["n"], lengths["min"]) == (5, 0)
    text = "1 of 5 measured objects have no skeleton: they count as length 0"
    assert record.warnings == [{"sample": "a", "text": text}]


def test_measures_that_are_no_numbers_are_empty_cells(folder: Path) -> None:
    sample = Sample("a", BOXES)
    lost = {"longest_path": float("nan"), "longest_branch": None, "tortuosity": float("inf"), "mean_thickness": None}
    sample.measures[0] |= lost | {name: [] for name in sample.measures[0] if name.startswith("profile")}
    tabulate(sample)
    with open("a/a.objects.csv", encoding="utf-8") as handle:
        row = next(csv.DictReader(handle))
    assert [row[name] for name in ("longest_path_um", "tortuosity", "mean_thickness_um")] == ["", "", ""]
    assert json.loads(Path("a/a.axons.json").read_text())["1"] == {"volume": 102, "length": None, "profile": []}
    assert read_json(Path("a/a.objects.json"))["quantities"][0]["n"] == 4


@pytest.mark.parametrize("change", ["lost", "doubled", "foreign", "task", "order"])
def test_no_measure_is_lost_or_doubled(folder: Path, change: str) -> None:
    sample = Sample("a", BOXES)
    if change == "lost":
        del sample.measures[2]
    elif change == "doubled":
        sample.measures.insert(2, sample.measures[2])
    elif change == "foreign":
        sample.measures.append({**sample.measures[0], "id": 77})
    elif change == "order":
        sample.measures.reverse()
    sample.write(Path(), tasks=2)
    if change == "task":
        Path("a.m1.measures.parquet").unlink()
    told = {
        "lost": "1 lost: id 4", "doubled": "1 doubled: id 4", "foreign": "1 not asked for: id 77",
        "task": "2 lost: id 5, 6", "order": "order of the objects",
    }  # fmt: skip
    with pytest.raises(TemporaryError, match=told[change]) as raised:
        tabulate_batch(["a"], "longest_path", Path(), Task("tabulate_objects", "a"))
    assert raised.value.sample == "a"
    assert not Path("a/a.objects.csv").exists()


def test_objects_lost_between_tasks(folder: Path) -> None:
    sample = Sample("a", BOXES)
    sample.write(Path())
    summary = read_json(Path("a.linked.json")) | {"objects": 7}
    Path("a.linked.json").write_text(json.dumps(summary))
    with pytest.raises(TemporaryError, match="6 objects"):
        tabulate_batch(["a"], "longest_path", Path(), Task("tabulate_objects", "a"))
    Path("a.linked.parquet").unlink()
    with pytest.raises(InputMissingError):
        tabulate_batch(["a"], "longest_path", Path(), Task("tabulate_objects", "a"))


def test_names_that_begin_alike_stay_apart(folder: Path) -> None:
    names = ("img1", "img10", "img1.m0", "img1.m0.m1", "IMGX")
    samples = [Sample(name, BOXES[: n + 1], seed=n) for n, name in enumerate(names)]
    samples[4].grid = samples[4].grid.__class__(**{**samples[4].grid.__dict__, "spacing": (9.0, 9.0, 9.0)})
    tabulate(*samples, tasks=2)
    for sample in samples:
        objects = pd.read_parquet(f"{sample.name}/{sample.name}.objects.parquet")
        np.testing.assert_array_equal(objects["mean_c0"], [row["mean_c0"] for row in sample.rows])
        lengths = objects.loc[objects["measured"], "longest_path_um"]
        np.testing.assert_array_equal(lengths, [row["longest_path"] for row in sample.measures])
        largest = np.load(f"{sample.name}/{sample.name}.gallery.npz")["largest_mask"]
        assert largest.any()
    assert len({Path(f"{name}/{name}.axons.json").read_bytes() for name in names}) == len(names)


def test_results_do_not_depend_on_tasks(folder: Path) -> None:
    digests = []
    for tasks in (1, 2, 5):
        for file in Path().glob("*.measures.parquet"):
            file.unlink()
        digests.append(tabulate(Sample("a", BOXES, channels=2), tasks=tasks).outputs)
    assert digests[0] == digests[1] == digests[2]
    assert len(digests[0]) == 8


def test_portions_give_the_same_tables(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tabulate(Sample("a", BOXES, channels=2)).outputs
    monkeypatch.setattr(tables, "ROWS", 2)
    monkeypatch.setattr(tables, "POINTS", 20)
    assert tabulate(Sample("a", BOXES, channels=2)).outputs == whole


def test_portions_of_lists_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "POINTS", 100)
    lists = pa.array([list(range(10))] * 55, pa.list_(pa.int32()))
    pq.write_table(pa.table({"n": range(55), "lists": lists}), tmp_path / "t.parquet")
    portions = [len(table) for table in stream([tmp_path / "t.parquet"], ["n", "lists"], lists="lists")]
    assert portions == [10] * 5 + [5]


@given(st.lists(st.integers(0, 5), max_size=8), st.lists(st.integers(0, 6), max_size=10))
def test_rows_come_in_any_number(portions: list[int], wanted: list[int]) -> None:
    schema = pa.schema([("n", pa.int64())])
    total = sum(portions)
    values = iter(range(total))
    made = [pa.table({"n": [next(values) for _ in range(size)]}, schema) for size in portions]
    rows, taken = Rows(made, schema), []
    for n in wanted:
        n = min(n, total - len(taken))
        got = rows.take(n)["n"].to_pylist()
        assert len(got) == n
        taken += got
    assert taken == list(range(len(taken)))


# Cells


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_decimals_give_back_the_number_without_exponent(values: list[float]) -> None:
    for cell, value in zip(cells(pa.chunked_array([pa.array(values)])), values, strict=True):
        assert float(cell) == value
        assert set(cell) <= set("-.0123456789")


def test_formulas_are_defused_and_numbers_left() -> None:
    texts = ["=1+1", "+a", "-a", "@x", "\tx", "\rx", "a=1", "", "'", "axon-1", 'a "b", c']
    defused = ["'" + text for text in texts[:6]] + texts[6:]
    assert cells(pa.chunked_array([texts])) == defused
    assert cells(pa.chunked_array([[-1, 2]])) == ["-1", "2"]
    assert cells(pa.chunked_array([[-1.5, None, 1e-7, 1e22]])) == ["-1.5", "", "0.0000001", "1" + "0" * 22]


def test_text_of_any_kind_comes_back(tmp_path: Path) -> None:
    schema = pa.schema([("t", pa.string())])
    texts = ["ä, ö", 'he said "x"', "two\nlines", "µm³", "=cmd", "日本"]
    with table_writer(schema, tmp_path / "t.parquet", tmp_path / "t.csv") as writer:
        writer.write(pa.table({"t": texts}, schema))
    with open(tmp_path / "t.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.reader(handle))
    assert [row[0] for row in rows[1:]] == [*texts[:4], "'=cmd", texts[5]]
    assert pq.read_table(tmp_path / "t.parquet")["t"].to_pylist() == texts


def test_broken_writing_leaves_nothing(tmp_path: Path) -> None:
    schema = pa.schema([("n", pa.int64())])
    with (
        pytest.raises(ZeroDivisionError),
        table_writer(schema, tmp_path / "t.parquet", tmp_path / "t.csv") as writer,
    ):
        writer.write(pa.table({"n": [1]}, schema))
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_union_of_columns_keeps_their_order() -> None:
    schemas = [pa.schema([(name, pa.int64()) for name in names]) for names in ("abe", "acde", "fa", "")]
    assert union_schema(schemas).names == ["f", "a", "c", "d", "b", "e"]


# The summary


def test_summary_of_the_measured(folder: Path) -> None:
    sample = Sample("a", BOXES)
    sample.measures[1]["length_resolution"] = 4
    record = tabulate(sample)
    summary = read_json(Path("a/a.objects.json"))
    assert (summary["objects"], summary["measured"], summary["components"]) == (6, 5, 9)
    assert (summary["dropped"]["below_min_voxels"], summary["dropped"]["below_mean_fraction"]) == (2, 1)
    assert (summary["measures"], summary["length"]) == (["skeleton", "shape"], "longest_path")
    assert summary["reduced_resolution"] == 1
    assert "1 of 5 measured objects are so large" in record.warnings[0]["text"]
    frame = pd.DataFrame(sample.rows)
    by_class = frame.groupby("class_value")["voxels"]
    for row in summary["classes"]:
        assert row == {
            "value": row["value"], "name": CLASSES[row["value"]], "objects": by_class.count()[row["value"]],
            "voxels": by_class.sum()[row["value"]],
        }  # fmt: skip
    measured = merged(sample)[lambda table: table["measured"]]
    expected = {
        "longest_path_um": ("Length", "µm", measured["longest_path"]),
        "volume_um3": ("Volume", "µm³", measured["voxels"] * 9.0),
        "mean_thickness_um": ("Mean thickness", "µm", measured["mean_thickness"]),
        "tortuosity": ("Tortuosity", "", measured["tortuosity"]),
        "branches": ("Branches", "", measured["branches"]),
        "equivalent_diameter_um": ("Equivalent diameter", "µm", measured["equivalent_diameter"]),
        "surface_um2": ("Surface", "µm²", measured["surface"]),
        "sphericity": ("Sphericity", "", measured["sphericity"]),
        "axis_1_um": ("First axis", "µm", measured["axis_1"]),
        "axis_2_um": ("Second axis", "µm", measured["axis_2"]),
        "axis_3_um": ("Third axis", "µm", measured["axis_3"]),
        "elongation": ("Elongation", "", measured["elongation"].dropna()),
        "flatness": ("Flatness", "", measured["flatness"]),
        "neighbours": ("Neighbours", "", measured["neighbours"]),
        "contact_area_um2": ("Contact area", "µm²", measured["contact_area"]),
    }
    assert [row["name"] for row in summary["quantities"]] == list(expected)
    for row in summary["quantities"]:
        label, unit, values = expected[row["name"]]
        assert (row["label"], row["unit"], row["n"]) == (label, unit, len(values))
        found = [row[name] for name in ("mean", "min", "p5", "p25", "median", "p75", "p95", "max")]
        known = [values.mean(), *values.quantile([0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])]
        np.testing.assert_allclose(found, known, rtol=1e-12)
        assert row["sd"] == pytest.approx(values.std(ddof=0), rel=1e-12)


@pytest.mark.parametrize("measures", [("skeleton",), ("shape",)])
@pytest.mark.parametrize("depth", [12, 1])
def test_only_what_was_measured_is_there(folder: Path, measures: tuple[str, ...], depth: int) -> None:
    boxes = BOXES if depth > 1 else [((0, 1), *box[1:]) for box in BOXES[2:]]
    sample = Sample("a", boxes, shape=(depth, 40, 48))
    record = tabulate(sample, measures=measures)
    names = pq.read_schema("a/a.objects.parquet").names
    of_skeleton = ["longest_path_um", "branches", "skeleton_empty", "length_resolution"]
    of_shape = ["equivalent_diameter_um", "axis_1_um", "elongation", "neighbours"]
    of_volume = ["surface_um2", "sphericity", "axis_3_um", "flatness", "contact_area_um2"]
    of_plane = ["perimeter_um", "circularity", "contact_length_um"]
    wanted = of_skeleton if measures == ("skeleton",) else of_shape + (of_volume if depth > 1 else of_plane)
    assert set(wanted) <= set(names)
    assert not set(names) & {*of_skeleton, *of_shape, *of_volume, *of_plane} - set(wanted)
    files = {path.name.removeprefix("a.") for path in Path("a").iterdir()}
    always = {"objects.csv", "objects.parquet", "objects.json", "gallery.npz"}
    skeletons = {"profiles.parquet", "axons.json", "lengths.png", "lengths.svg"}
    assert files == always | (skeletons if measures == ("skeleton",) else {"sizes.png", "sizes.svg"})
    assert {path.removeprefix("a/a.") for path in record.outputs} == files - {"objects.json", "gallery.npz"}
    summary = read_json(Path("a/a.objects.json"))
    labels = [row["label"] for row in summary["quantities"]]
    if measures == ("skeleton",):
        assert labels == ["Length", "Volume", "Mean thickness", "Tortuosity", "Branches"]
        assert (summary["sizes"], summary["gallery"][0]["diameter"]) == (None, None)
    else:
        assert labels[:2] == ["Volume", "Equivalent diameter"] and "Length" not in labels
        assert ("Perimeter" in labels) == (depth == 1)
        entry = summary["gallery"][0]
        assert (summary["length"], entry["length"], entry["branches"]) == (None, None, None)
        assert entry["diameter"] == 10.0 + entry["id"]
        assert "most_branched" not in {entry["key"] for entry in summary["gallery"]}
        assert np.load("a/a.gallery.npz")["largest_path"].shape == (0, 2)


def test_measures_are_named_by_the_user() -> None:
    assert parse_measures("shape,skeleton") == parse_measures(" skeleton, shape") == MEASURES
    assert parse_measures("shape") == ("shape",)
    for text in ("", "shape,", "form", "skeleton shape"):
        with pytest.raises(UsageError, match="unknown"):
            parse_measures(text)


sizes = st.lists(st.floats(0.1, 100), min_size=1, max_size=60).map(np.array)


@given(sizes, st.sampled_from([2, 3]))
def test_diameters_that_share_out_the_volume(diameters: np.ndarray, power: int) -> None:
    found = size_of(np.append(diameters, np.nan), power)
    assert found is not None
    volumes = diameters**power
    for name, share in (("d10", 0.1), ("d50", 0.5), ("d90", 0.9)):
        assert found[name] in diameters
        assert volumes[diameters <= found[name]].sum() >= (share - 1e-9) * volumes.sum()
        assert volumes[diameters < found[name]].sum() <= (share + 1e-9) * volumes.sum()
    assert size_of(np.array([np.nan]), power) is None


values_of_any_kind = st.one_of(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=200).map(lambda v: np.array(v, np.int32)),
    st.lists(st.floats(0, 1e9), min_size=1, max_size=200).map(np.array),
    st.floats(0, 1e9).map(lambda v: np.full(7, v)),
)


@given(values_of_any_kind)
def test_histogram_holds_every_value(values: np.ndarray) -> None:
    told = describe(values)
    assert sum(told["counts"]) == told["n"] == values.size
    assert len(told["edges"]) == len(told["counts"]) + 1 <= 52
    assert (np.diff(told["edges"]) > 0).all()
    assert told["edges"][0] <= values.min() and values.max() <= told["edges"][-1]
    if values.dtype.kind == "i":
        np.testing.assert_array_equal(np.array(told["edges"]) % 1, 0.5)
    if values.dtype.kind == "i" and np.ptp(values) < 50:
        np.testing.assert_array_equal(told["counts"], np.bincount(values - values.min()))


# The chart


@pytest.mark.parametrize("n", [2, 3, 40, 5000])
def test_density_is_that_of_seaborn(n: int) -> None:
    values = np.random.default_rng(n).gamma(2.0, 50.0, n)
    expected, support = KDE()(values)
    curve = density(values)
    assert curve is not None
    np.testing.assert_allclose(curve[0], support, rtol=1e-12)
    np.testing.assert_allclose(curve[1], expected, rtol=1e-9)


def test_density_by_its_formula() -> None:
    values = np.array([1.0, 2.0, 4.0, 8.0])
    width = values.std(ddof=1) * values.size ** (-1 / 5)
    curve = density(values)
    assert curve is not None
    grid = np.linspace(1 - 3 * width, 8 + 3 * width, 200)
    bells = np.exp(-(((grid[:, None] - values) / width) ** 2) / 2) / (width * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(curve[0], grid, rtol=1e-12)
    np.testing.assert_allclose(curve[1], bells.mean(axis=1), rtol=1e-9)


@pytest.mark.parametrize("values", [[], [3.0], [3.0] * 9, [0.0, 0.0], [1e6, 1e6 + 1e-6]])
def test_no_density_of_equal_lengths(values: list[float]) -> None:
    assert density(np.array(values)) is None


@pytest.mark.parametrize("n", [1, 2, 499, 500, 501, 7000])
def test_distribution_is_thinned_evenly(n: int) -> None:
    values = np.random.default_rng(n).integers(0, 1000, n).astype(float)
    x, share = cumulative(values)
    assert x.size == min(n, 500)
    assert (x[0], x[-1], share[-1]) == (values.min(), values.max(), 1.0)
    assert np.diff(share, prepend=0).max() < 1 / min(n, 500) + 2 / n
    exact = ecdf(values).cdf.evaluate(x)
    assert (share <= exact + 1e-12).all()
    last_of_equals = np.append(np.diff(x) > 0, True) if n <= 500 else x == x[-1]
    np.testing.assert_allclose(share[last_of_equals], exact[last_of_equals])


@pytest.mark.parametrize("lengths", [[], [5.0], [5.0] * 3, [5.0, 9.0], range(900)])
@pytest.mark.parametrize("unit", ["um", "pixel"])
def test_chart_says_what_it_shows(tmp_path: Path, lengths: list[float], unit: str) -> None:
    values = np.array(list(lengths), float)
    figure = length_chart("$a_1^", (3.0, 2.0, 1.5), unit, values, "longest_branch")
    texts = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    shown = "\n".join(texts)
    name = {"um": "µm", "pixel": "px"}[unit]
    assert "$a_1^" in shown
    assert f"3 × 2 × 1.5 {name}" in shown
    assert f"Length of the longest branch ({name})" in shown
    if not lengths:
        assert "no measured objects" in shown
    else:
        assert f"{len(lengths)} object{'' if len(lengths) == 1 else 's'}, mean" in shown
        assert (len(set(lengths)) > 1) != ("no density" in shown)
    if len(lengths) == 900:
        assert f"mean 449.5 {name}, SD 259.8 {name}" in shown
        assert figure.axes[0].get_xlim()[0] == 0


@given(sizes, st.sampled_from([2, 3]), st.sampled_from([4, 500]))
def test_cumulative_size_is_the_share_of_the_volume(diameters: np.ndarray, power: int, steps: int) -> None:
    x, share = cumulative_size(diameters, power, steps)
    assert (x[0], x[-1], share[-1]) == (diameters.min(), diameters.max(), pytest.approx(1))
    assert (np.diff(x) >= 0).all() and (np.diff(share) > 0).all()
    volumes = diameters**power
    exact = np.array([volumes[diameters <= value].sum() for value in x]) / volumes.sum()
    assert (share <= exact + 1e-9).all()
    if steps == 500:
        last_of_equals = np.append(np.diff(x) > 0, True)
        np.testing.assert_allclose(share[last_of_equals], exact[last_of_equals], rtol=1e-9)
    else:
        steps_up = np.diff(share, prepend=0)
        assert steps_up.max() <= 1 / (steps - 1) + volumes.max() / volumes.sum() + 1e-9


@given(sizes)
def test_bins_of_sizes_hold_every_object(diameters: np.ndarray) -> None:
    edges, wide = size_edges(diameters)
    counts, _ = np.histogram(diameters, edges)
    assert counts.sum() == diameters.size
    assert wide == (diameters.max() > 20 * diameters.min())
    widths = np.diff(np.log10(edges) if wide else edges)
    np.testing.assert_allclose(widths, widths[0], rtol=1e-6)


@pytest.mark.parametrize("diameters", [[], [5.0], [5.0] * 3, [5.0, 9.0], [1.0, 50.0], range(100, 1000)])
@pytest.mark.parametrize(("unit", "power"), [("um", 3), ("pixel", 2)])
def test_chart_of_sizes_says_what_it_shows(diameters: list[float], unit: str, power: int) -> None:
    values = np.array(list(diameters), float)
    figure = size_chart("$a_1^", (3.0, 2.0, 1.5), unit, values, power, size_of(values, power))
    shown = "\n".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))
    name = {"um": "µm", "pixel": "px"}[unit]
    assert "$a_1^" in shown and f"Equivalent diameter ({name})" in shown
    if not diameters:
        assert "no measured objects" in shown
        return
    left, right = figure.axes
    assert f"Cumulative share of the {'volume' if power == 3 else 'area'}" in shown
    assert left.get_xscale() == ("log" if list(diameters) == [1.0, 50.0] else "linear")
    assert sum(left.patches[0].get_data().values) == values.size
    marks = [line.get_xdata()[0] for line in right.get_lines()[1:]]
    assert marks == list((size_of(values, power) or {}).values())
    if len(diameters) == 900 and power == 3:
        assert f"900 objects, by volume D10 562, D50 840, D90 974 {name}" in shown


def test_chart_files_are_small_equal_and_undated(tmp_path: Path) -> None:
    values = np.random.default_rng(0).gamma(2.0, 50.0, 20_000)
    name = r"no $\math^$"
    paths = [save_chart(length_chart(name, (1.0, 1.0, 1.0), "um", values), tmp_path / stem) for stem in ("x", "y")]
    sizes = size_chart(name, (1.0, 1.0, 1.0), "um", values, 3, size_of(values, 3))
    assert save_chart(sizes, tmp_path / "sizes")[1].stat().st_size < 150_000
    for first, second in zip(*paths, strict=True):
        assert first.read_bytes() == second.read_bytes()
    png, svg = paths[0]
    assert svg.stat().st_size < 150_000
    picture = Image.open(png)
    assert round(picture.info["dpi"][0]) == 300
    text = svg.read_text()
    assert "<dc:date>" not in text and "<text" not in text
    assert ElementTree.fromstring(text).tag.endswith("svg")


# The gallery


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 4)), max_size=12))
def test_gallery_shows_different_objects(objects: list[tuple[int, int]]) -> None:
    voxels, branches = (np.array([pair[i] for pair in objects], np.int64) for i in range(2))
    chosen = choose(voxels, branches)
    n = len(objects)
    assert len(set(chosen.values())) == len(chosen)
    assert list(chosen) == [key for key in gallery.KEYS if key in chosen]
    assert len(chosen) >= min(n, 3)
    if n:
        assert voxels[chosen["largest"]] == voxels.max()
    if n > 1:
        assert voxels[chosen["smallest"]] == voxels.min()
    if n > 2:
        assert voxels[chosen["median"]] == np.sort(voxels)[(n - 1) // 2]
    rest = [branches[i] for i in range(n) if i not in {at for key, at in chosen.items() if key != "most_branched"}]
    if "most_branched" in chosen:
        assert branches[chosen["most_branched"]] == max(rest) > 1
    elif rest:
        assert max(rest) <= 1


def test_gallery_pictures_show_the_objects(folder: Path) -> None:
    sample = Sample("a", BOXES, channels=2)
    sample.labels[6:9, 30:33, 10:14] = 6  # another object in the box of the fifth
    tabulate(sample)
    arrays = np.load("a/a.gallery.npz")
    entries = {entry["key"]: entry for entry in read_json(Path("a/a.objects.json"))["gallery"]}
    assert {key: entry["id"] for key, entry in entries.items()} == {
        "largest": 5, "median": 1, "smallest": 4, "most_branched": 3,
    }  # fmt: skip
    assert entries["most_branched"] == {
        "key": "most_branched", "id": 3, "class": "=soma", "voxels": 420, "volume": 3780.0, "length": 51.0,
        "branches": 2, "diameter": 13.0,
    }  # fmt: skip
    # object 5: z 6-9 (9 um), y 30-38 (16 um), x 10-30 (30 um); thinnest along z, margins 6 in y and x, 1 in z
    cut = (slice(5, 10), slice(24, 40), slice(4, 36))
    np.testing.assert_array_equal(arrays["largest_mask"], (sample.labels[cut] == 5).any(axis=0))
    np.testing.assert_array_equal(arrays["largest_grey"], grey_levels(sample.image[0][cut].max(axis=0)))
    assert arrays["largest_grey"].dtype == np.uint8
    np.testing.assert_array_equal(arrays["largest_extent"], [16 * 2.0, 32 * 1.5])
    rows, columns = arrays["largest_path"].T
    np.testing.assert_array_equal(rows, np.full(20, 6.5))
    np.testing.assert_array_equal(columns, np.arange(6, 26) + 0.5)
    # object 4: z 3 um, y 2 um, x 7.5 um: thinnest along y
    cut = (slice(0, 8), slice(29, 32), slice(0, 15))
    np.testing.assert_array_equal(arrays["smallest_mask"], (sample.labels[cut] == 4).any(axis=1))
    np.testing.assert_array_equal(arrays["smallest_grey"], grey_levels(sample.image[0][cut].max(axis=1)))


@pytest.mark.parametrize("limits", [None, (2**30, 700), (1, 1)])
def test_large_objects_have_small_pictures(
    folder: Path, monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int] | None
) -> None:
    box = ((2, 7), (40, 640), (12, 72))
    sample = Sample("a", [box], shape=(9, 700, 90), spacing=(1.0, 1.0, 1.0), shard=(64, 64, 64))
    sample.labels[5, 100:500, 20:50] = 0
    monkeypatch.setattr(gallery, "CUBE", (2, 32, 32))
    sample.write(Path())
    if limits:
        monkeypatch.setattr(gallery, "LAYERS", limits[0])
        monkeypatch.setattr(gallery, "MASK", limits[1])
        shutil.rmtree("labels/1/labels.ome.zarr/instances/0/c")
    tabulate_batch(["a"], "longest_path", Path(), Task("tabulate_objects", "a"))
    arrays = np.load("a/a.gallery.npz")
    grey, mask, path = (arrays[f"largest_{name}"] for name in ("grey", "mask", "path"))
    # the margin of 90 rows and columns ends at the image; three rows to a pixel, the last has one row only
    assert grey.shape == mask.shape == (234, 90)
    np.testing.assert_array_equal(arrays["largest_extent"], [702, 90])
    inside = np.zeros((702, 90), bool)
    inside[40:640, 12:72] = True
    np.testing.assert_array_equal(mask, inside.reshape(234, 3, 90).any(axis=1))
    crop = np.zeros((702, 90), np.uint16)
    crop[:700] = sample.image[0, 1 : 2 if limits == (1, 1) else 8].max(axis=0)
    np.testing.assert_array_equal(grey, grey_levels(crop.reshape(234, 3, 90).max(axis=1)))
    np.testing.assert_allclose(path[:, 0], (40 + 0.5) / 3)
    assert (path[0, 1], path[-1, 1]) == (12.5, 71.5)


def test_picture_of_a_flat_image_is_the_plane(folder: Path) -> None:
    sample = Sample("a", [((0, 1), (5, 9), (5, 30))], shape=(1, 20, 40), spacing=(50.0, 1.0, 1.0), shard=(1, 16, 16))
    tabulate(sample, tasks=1)
    arrays = np.load("a/a.gallery.npz")
    np.testing.assert_array_equal(arrays["largest_mask"], sample.labels[0, :15, :36] == 1)


def test_script(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Sample("a", BOXES).write(Path(), 1)
    Sample("b", []).write(Path(), 2)
    script = str(ROOT / "bin/tabulate_objects.py")
    arguments = ["--batch", "batch1", "--samples", "a,b", "--length", "longest_branch"]
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(script, run_name="__main__")
    record = read_json(Path("batch1/batch1.tabulate_objects.json"))
    assert record["counts"]["a"] == {"objects": 6, "measured": 5, "skeleton_empty": 0}
    assert len(record["outputs"]) == 16
    assert read_json(Path("a/a.objects.json"))["measures"] == ["skeleton", "shape"]
    assert read_json(Path("a/a.objects.json"))["length"] == "longest_branch"
