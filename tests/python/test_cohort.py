"""COMPARE_SAMPLES: one table of all samples, and a test whose unit is the sample."""

from __future__ import annotations

import csv
import itertools
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from voxelmill.errors import TemporaryError
from voxelmill.files import read_json, write_json
from voxelmill.objects import charts, tables
from voxelmill.objects.charts import PALETTE, GroupLengths, group_chart, save_chart
from voxelmill.objects.cohort import cliffs_delta, compare_samples, group_test
from voxelmill.objects.columns import MEASURES
from voxelmill.objects.tables import objects_schema, table_writer
from voxelmill.task import Task

ROOT = Path(__file__).resolve().parents[2]


class Run:
    """Fabricated tables of the samples of a run."""

    def __init__(self, path: Path):
        self.path = path
        self.entries: list[dict] = []
        (path / "tables").mkdir()

    def sample(
        self,
        name: str,
        lengths: Sequence[float],
        group: str | None = None,
        unit: str = "um",
        channels: int = 1,
        arrives: bool = True,
        unmeasured: int = 1,
        measures: Sequence[str] = MEASURES,
    ) -> None:
        self.entries.append({"id": name, "group": group})
        if not arrives:
            return
        end = "px" if unit == "pixel" else "um"
        schema = objects_schema(unit, channels, {"sample": name}, measures)
        rows = [
            {
                "id": n, "class": "=axon", "voxels": 10 * n, f"volume_{end}3": 20.0 * n, "measured": True,
                "touches_border": False, f"longest_path_{end}": float(length), f"longest_branch_{end}": length / 2,
                f"equivalent_diameter_{end}": 3.0 * length,
                f"mean_c{channels - 1}": n + 0.5,
            }
            for n, length in enumerate(lengths, 1)
        ]  # fmt: skip
        rows += [
            {"id": len(rows) + n, "class": "=axon", "voxels": 9999, f"volume_{end}3": 1e9, "measured": False}
            for n in range(1, unmeasured + 1)
        ]
        with table_writer(schema, self.path / "tables" / f"{name}.objects.parquet") as writer:
            writer.write(pa.Table.from_pylist(rows, schema))
        summary = {"sample": name, "unit": unit, "objects": len(rows), "measured": len(lengths)}
        write_json(self.path / "tables" / f"{name}.objects.json", summary)

    def compare(self, length: str = "longest_path", skip: bool = False) -> dict:
        write_json(self.path / "samples.json", {"samples": self.entries, "skipped": []})
        self.record = Task("compare_samples", "compare_samples")
        return compare_samples(
            self.path / "samples.json", self.path / "tables", length, skip, self.path / "out", self.record
        )


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(charts, "DPI", 30)
    return Run(tmp_path)


def six(run: Run, samples: int = 3) -> dict[str, list[np.ndarray]]:
    """Two groups of samples, treated ones longer; in the sheet they alternate and treated comes first."""
    rng = np.random.default_rng(1)
    lengths: dict[str, list[np.ndarray]] = {"treated": [], "control": []}
    for n, (group, scale) in itertools.product(range(samples), {"treated": 60.0, "control": 40.0}.items()):
        values = rng.gamma(3, scale * (1 + n / 50), 30 + 7 * n)
        lengths[group].append(values)
        run.sample(f"{group}{n}", values.tolist(), group)
    return lengths


def test_one_table_of_all_samples(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROWS", 2)
    run.sample("b", [1.5, 2.5, 3.5], "=g")
    run.sample("a10", [4.0])
    run.sample("a1", [], unmeasured=0)
    run.compare()
    table = pq.read_table(run.path / "out/objects.parquet")
    assert table.column_names == ["sample", "group", *objects_schema("um", 1).names]
    assert table["sample"].to_pylist() == ["b"] * 4 + ["a10"] * 2
    assert table["group"].to_pylist() == ["=g"] * 4 + [None] * 2
    own = pa.concat_tables(
        pq.read_table(run.path / f"tables/{name}.objects.parquet").replace_schema_metadata() for name in ("b", "a10")
    )
    assert table.drop_columns(["sample", "group"]).replace_schema_metadata().equals(own)
    assert table.schema.field("volume_um3").metadata == {b"unit": b"um3"}
    with open(run.path / "out/objects.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.reader(handle))
    assert rows[0] == table.column_names
    assert rows[1][:4] == ["b", "'=g", "1", "'=axon"]
    assert rows[5][:2] == ["a10", ""]
    frame = pd.read_csv(run.path / "out/objects.csv")
    np.testing.assert_array_equal(frame["longest_path_um"], [1.5, 2.5, 3.5, np.nan, 4.0, np.nan])
    assert run.record.counts == {"samples": 3, "missing": 0, "objects": 6}


def test_samples_of_several_units_and_channels(run: Run) -> None:
    run.sample("a", [10.0, 20.0], "g")
    run.sample("b", [5.0], "g", unit="pixel", channels=3)
    run.sample("c", [30.0], "h")
    cohort = run.compare()
    table = pq.read_table(run.path / "out/objects.parquet")
    names = table.column_names
    assert sorted(names[2:]) == sorted({*objects_schema("um", 1).names, *objects_schema("pixel", 3).names})
    assert names.index("voxels") < names.index("volume_px3") < names.index("touches_border")
    assert names[names.index("mean_c0") :][:3] == ["mean_c0", "mean_c1", "mean_c2"]
    frame = table.to_pandas().set_index("sample")
    assert frame.loc["b", "volume_um3"].isna().all() and frame.loc["a", "volume_px3"].isna().all()
    assert frame.loc["b", "longest_path_px"].iloc[0] == 5.0
    assert (cohort["unit"], cohort["note"]) == ("um", "Not compared, as their images have no physical size: b.")
    assert [(group["samples"], group["mean"]) for group in cohort["groups"]] == [(["a"], 15.0), (["c"], 30.0)]
    assert [row["mean"] for row in cohort["samples"]] == [15.0, None, 30.0]


def test_run_without_physical_sizes(run: Run) -> None:
    run.sample("a", [10.0, 20.0], "g", unit="pixel")
    cohort = run.compare()
    assert (cohort["unit"], cohort["groups"][0]["mean"], cohort["note"]) == ("pixel", 15.0, "")


def test_numbers_of_samples_and_groups(run: Run) -> None:
    lengths = six(run)
    cohort = run.compare()
    assert [group["name"] for group in cohort["groups"]] == ["treated", "control"]
    for group in cohort["groups"]:
        values = np.concatenate(lengths[group["name"]])
        assert group["samples"] == [f"{group['name']}{n}" for n in range(3)]
        assert (group["objects"], group["measured"]) == (values.size + 3, values.size)
        found = [group[name] for name in ("mean", "sd", "median")]
        np.testing.assert_allclose(found, [values.mean(), values.std(), np.median(values)], rtol=1e-12)
    assert [row["id"] for row in cohort["samples"]] == [entry["id"] for entry in run.entries]
    row = cohort["samples"][2]
    values = lengths["treated"][1]
    assert (row["id"], row["group"], row["objects"], row["measured"]) == ("treated1", "treated", 38, 37)
    found = [row[name] for name in ("mean", "median", "volume_mean")]
    np.testing.assert_allclose(found, [values.mean(), np.median(values), 20.0 * 19], rtol=1e-12)
    assert read_json(run.path / "out/cohort.json") == cohort
    for name in ("lengths_by_group.png", "lengths_by_group.svg", "objects.csv", "objects.parquet", "cohort.json"):
        assert str(run.path / "out" / name) in run.record.outputs


def test_length_is_the_chosen_one(run: Run) -> None:
    six(run)
    paths, branches = run.compare(), run.compare("longest_branch")
    assert branches["length"] == "longest_branch"
    for path, branch in zip(paths["samples"], branches["samples"], strict=True):
        assert branch["mean"] == pytest.approx(path["mean"] / 2)


def test_diameters_are_compared_where_there_are_no_lengths(run: Run) -> None:
    for n in range(3):
        run.sample(f"a{n}", [1.0 + n, 2.0], "g", measures=["shape"])
        run.sample(f"b{n}", [11.0 + n], "h", measures=["shape"])
    cohort = run.compare()
    assert cohort["length"] == "equivalent_diameter"
    assert [row["mean"] for row in cohort["samples"]] == [4.5, 33.0, 6.0, 36.0, 7.5, 39.0]
    assert [row["median"] for row in cohort["groups"]] == [6.0, 36.0]
    assert cohort["test"]["of"] == "sample means of equivalent diameter"
    assert cohort["test"]["p"] == pytest.approx(0.1)
    assert "is larger than every object" in cohort["test"]["note"]
    assert "longest_path_um" not in pq.read_schema(run.path / "out/objects.parquet").names
    charts = sorted(path.name for path in (run.path / "out").glob("*_by_group.*"))
    assert charts == ["sizes_by_group.png", "sizes_by_group.svg"]
    assert {str(run.path / "out" / name) for name in charts} < set(run.record.outputs)


def test_two_groups_are_tested_by_samples(run: Run) -> None:
    lengths = six(run, 4)
    test = run.compare()["test"]
    means = [[values.mean() for values in group] for group in lengths.values()]
    known = stats.mannwhitneyu(*means, alternative="two-sided", method="exact")
    assert (test["name"], test["of"]) == ("Mann–Whitney U", "sample means of length")
    assert (test["statistic"], test["p"]) == (known.statistic, known.pvalue)
    assert test["p"] == pytest.approx(2 / 70)
    assert "p is exact and cannot be below 0.029" in test["note"]
    treated, control = (np.concatenate(group) for group in lengths.values())
    pairs = np.sign(control[:, None] - treated)
    assert test["effect"] == {"Cliff's delta of objects, control against treated": pytest.approx(pairs.mean())}


def group(name: str, means: Sequence[float]) -> GroupLengths:
    return GroupLengths(name, np.array(means, float), np.array(means, float), len(means))


def test_tied_means_have_no_exact_p() -> None:
    first, second = [1.0, 2.0, 3.0, 4.0], [3.0, 5.0, 6.0]
    test = group_test([group("a", first), group("b", second)])
    assert test is not None
    assert test["p"] == stats.mannwhitneyu(first, second, method="asymptotic").pvalue
    assert test["note"].startswith("p is asymptotic;")


def test_many_samples_have_no_exact_p() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(9), rng.random(12)
    test = group_test([group("a", first.tolist()), group("b", second.tolist())])
    assert test is not None
    assert test["p"] == stats.mannwhitneyu(first, second, method="asymptotic").pvalue


def test_more_groups_are_tested_together() -> None:
    means = [[1.0, 2.0, 3.5], [2.5, 5.0, 6.0, 7.0], [0.5, 8.0, 9.0]]
    test = group_test([group(name, values) for name, values in zip("abc", means, strict=True)])
    assert test is not None
    known = stats.kruskal(*means)
    assert (test["name"], test["statistic"], test["p"]) == ("Kruskal–Wallis H", known.statistic, known.pvalue)
    assert "2 degrees of freedom" in test["note"]
    assert list(test["effect"]) == [f"Cliff's delta of objects, {name} against a" for name in "bc"]


def test_no_p_where_there_are_too_few_samples(run: Run) -> None:
    run.sample("a", [1.0, 2.0], "g")
    run.sample("a2", [1.0], "g")
    run.sample("b", [5.0, 6.0], "h")
    run.sample("c", [7.0], "h")
    run.sample("d", [7.0], "h")
    test = run.compare()["test"]
    assert test["p"] is test["statistic"] is None
    assert "needs 3 samples with lengths in every group; too few: g (2)." in test["note"]
    assert test["effect"] == {"Cliff's delta of objects, h against g": 1.0}


def test_no_p_of_equal_means() -> None:
    for groups in ("ab", "abc"):
        test = group_test([group(name, [2.0, 2.0, 2.0]) for name in groups])
        assert test is not None and test["p"] is None and "equal" in test["note"]


def test_sample_without_lengths_is_no_sample_of_a_test(run: Run) -> None:
    six(run)
    run.sample("empty", [], "control")
    cohort = run.compare()
    assert cohort["test"]["p"] == pytest.approx(0.1)
    assert cohort["note"] == "Without a measured object, and so without a mean: empty."
    assert cohort["groups"][1]["samples"][-1] == "empty"
    assert cohort["samples"][-1]["mean"] is None


@pytest.mark.parametrize("groups", [[None, None], ["g", "g"], ["g", None]])
def test_fewer_than_two_groups_are_not_tested(run: Run, groups: list[str | None]) -> None:
    for name, of in zip("ab", groups, strict=True):
        run.sample(name, [1.0, 2.0], of)
    cohort = run.compare()
    assert cohort["test"] is None
    assert (run.path / "out/lengths_by_group.svg").exists() == ("g" in groups)
    assert [row["name"] for row in cohort["groups"]] == (["g"] if "g" in groups else [])
    assert cohort["note"] == ("In no group: b." if groups == ["g", None] else "")


def test_group_without_lengths(run: Run) -> None:
    run.sample("a", [], "g")
    run.sample("b", [], "h")
    cohort = run.compare()
    assert cohort["test"] is None
    assert [row["mean"] for row in cohort["groups"]] == [None, None]
    assert not (run.path / "out/lengths_by_group.svg").exists()


def test_sample_that_did_not_arrive(run: Run) -> None:
    run.sample("a", [1.0])
    run.sample("lost", [1.0], arrives=False)
    with pytest.raises(TemporaryError, match="1 of 2 samples") as raised:
        run.compare()
    assert raised.value.sample == "lost"
    cohort = run.compare(skip=True)
    assert (cohort["missing"], cohort["note"]) == (["lost"], "Did not arrive: lost.")
    assert [row["id"] for row in cohort["samples"]] == ["a"]
    assert "lost" in run.record.warnings[0]["text"]


def test_no_sample_arrived(run: Run) -> None:
    run.sample("lost", [], arrives=False)
    assert run.compare(skip=True)["samples"] == []
    assert (run.path / "out/objects.csv").read_text().startswith("sample,group,id,")


def test_order_of_files_does_not_matter(run: Run) -> None:
    six(run)
    run.compare()
    first = {path.name: path.read_bytes() for path in (run.path / "out").iterdir()}
    for path in sorted((run.path / "tables").iterdir(), reverse=True):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    run.compare()
    assert {path.name: path.read_bytes() for path in (run.path / "out").iterdir()} == first


floats = st.lists(st.integers(0, 12).map(float), min_size=1, max_size=30)


@given(floats, floats)
def test_cliffs_delta_counts_pairs(first: list[float], second: list[float]) -> None:
    values, reference = np.array(first), np.array(second)
    expected = np.sign(values[:, None] - reference).mean()
    assert cliffs_delta(values, reference) == pytest.approx(expected, abs=1e-12)


def test_chart_of_groups(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [r"$\a^$", "_b", "c" * 60, "d", "e", "f", "g", "one length"]
    groups = [GroupLengths(name, rng.gamma(3, 40, 200), rng.normal(120, 9, 3), 3) for name in names[:-1]]
    groups.append(GroupLengths(names[-1], np.full(3, 80.0), np.array([80.0]), 2))
    figure = group_chart(groups, "um")
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[:2] == [r"$\a^$ (3 samples, 200 objects)", "_b (3 samples, 200 objects)"]
    assert legend[2].startswith("c" * 27 + "…")
    assert legend[-1] == "one length (2 samples, 3 objects)"
    looks = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in figure.legends[0].get_lines()}
    assert len(looks) == len(names)
    assert [line.get_color() for line in figure.legends[0].get_lines()][:2] == list(PALETTE[:2])
    curves = figure.axes[0].get_lines()
    assert [line.get_color() for line in curves] == [PALETTE[n % len(PALETTE)] for n in range(len(names))]
    sizes = group_chart(groups, "um", "equivalent_diameter")
    assert sizes.legends[0].get_title().get_text() == "Equivalent diameter by group"
    assert sizes.axes[1].get_xlabel() == "Equivalent diameter (µm)"
    assert figure.legends[0].get_title().get_text() == "Length by group"
    dots = [line for line in figure.axes[1].get_lines() if line.get_marker() == "o"]
    for dot, shown in zip(dots, groups, strict=True):
        np.testing.assert_array_equal(dot.get_xdata(), shown.means)
    first, second = (save_chart(group_chart(groups, "um"), tmp_path / name) for name in ("x", "y"))
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_script(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.sample("a", [1.0, 2.0], "g")
    run.sample("lost", [], arrives=False)
    write_json(run.path / "samples.json", {"samples": run.entries})
    script = str(ROOT / "bin/compare_samples.py")
    monkeypatch.chdir(run.path)
    arguments = ["--samples", "samples.json", "--tables", "tables", "--on-bad-sample", "skip"]
    monkeypatch.setattr(sys, "argv", [script, *arguments, "--length", "longest_path"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(script, run_name="__main__")
    record = read_json(run.path / "compare_samples/compare_samples.compare_samples.json")
    assert set(record["outputs"]) == {
        "objects.csv", "objects.parquet", "cohort.json", "lengths_by_group.png", "lengths_by_group.svg",
    }  # fmt: skip
