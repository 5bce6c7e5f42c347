"""From the numbers of every sample to the tables and the page of an evaluation, and the pictures of its worst cases."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from images import ArraySource, source_of
from reported import Page as Html
from test_check import load_script, run, write_image
from voxelmill.errors import TemporaryError, UsageError
from voxelmill.evaluation import worst as worst_module
from voxelmill.evaluation.evaluate import evaluate_batch
from voxelmill.evaluation.listing import list_evaluated
from voxelmill.evaluation.page import DETAILED, PREDICTION, SHADE, TRUTH, case_figure, score, threshold_chart
from voxelmill.evaluation.request import Evaluation
from voxelmill.evaluation.scores import distribution, headline, pooled, scores_of, summary, worst_first
from voxelmill.evaluation.worst import GREYS, save_worst, shown_plane
from voxelmill.files import read_json, write_json
from voxelmill.image import Box
from voxelmill.task import Task

NOW = "2026-01-02 03:04 UTC"


# Numbers of samples, as EVALUATE_LABELS writes them


def of_class(value: int, dice: float | None, surface: float | None = 0.5) -> dict[str, Any]:
    near = {"mean": surface, "hd95": 2.0, "hd": 3.0, "dice": 0.75, "tolerance": 0.25}
    return {
        "value": value,
        "name": f"class {value}",
        "truth_voxels": 1200 + value,
        "predicted_voxels": 900,
        "overlap_voxels": 800,
        "dice": dice,
        "iou": None if dice is None else dice / (2 - dice),
        "precision": 0.875,
        "recall": 0.625,
        "surface": None if surface is None else near,
    }


def objects(tp: Sequence[int] = (8, 6, 0), truth: int = 10, predicted: int = 12) -> dict[str, Any]:
    rows = []
    for iou, n in zip((0.5, 0.75, 0.9), tp, strict=True):
        fp, fn = predicted - n, truth - n
        rows.append(
            {
                "iou": iou,
                "tp": n,
                "fp": fp,
                "fn": fn,
                "precision": n / predicted if predicted else None,
                "recall": n / truth,
                "f1": 2 * n / (truth + predicted),
                "ap": n / (n + fp + fn),
            }
        )
    return {
        "truth": truth,
        "predicted": predicted,
        "thresholds": rows,
        "mean_ap": 0.3125,
        "panoptic": {"pq": 0.4375, "sq": 0.7, "rq": 0.6123},
        "splits": 3,
        "merges": 1,
        "variation_of_information": {"split": 1.25, "merge": 0.125},
        "adapted_rand_error": 0.0625,
        "size_classes": [{"low": 5, "high": 1234, "truth": 5, "found": 4, "recall": 0.8, "mean_iou": 0.456}],
    }


def sample(
    name: str, *, dice: float | None = 0.5, found: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    value: dict[str, Any] = {
        "sample": name,
        "kind": "semantic" if found is None else "instances",
        "group": None,
        "shape": [4, 50, 60],
        "spacing": [2.0, 1.0, 0.5],
        "unit": "um",
        "voxels": 12000,
        "ignored_voxels": 0,
        "ignore_label": None,
        "classes": [of_class(1, dice)],
        "objects": found,
        "worst": [],
        "warnings": [],
        "files": [],
        "first": [0, 0, 0],
        "source": {"predicted": "p.tif", "truth": "t.tif"},
    }
    return value | changes


def written(folder: Path, samples: Sequence[dict[str, Any]], missing: Sequence[str] = ()) -> tuple[Path, Path]:
    """``samples.json`` and the folder of results; samples that are missing are listed and left nothing."""
    order = [*(one["sample"] for one in samples), *missing]
    write_json(folder / "samples.json", {"samples": [{"id": name, "batch": "all"} for name in order], "skipped": []})
    (folder / "results").mkdir()
    for one in samples:
        write_json(folder / "results" / f"{one['sample']}.evaluation.json", one)
    record = {
        "process": "evaluate_labels",
        "name": "all",
        "part": None,
        "voxelmill": "1",
        "python": "3.11",
        "wall_seconds": 2.5,
        "cpu_seconds": 1.0,
        "peak_memory_bytes": 10**8,
        "disk_bytes": 10**6,
        "counts": {},
        "warnings": [],
        "outputs": {},
        "files": {},
        "versions": {"numpy": "2.1"},
    }
    write_json(folder / "results" / "all.evaluate_labels.json", record)
    return folder / "samples.json", folder / "results"


def listed(folder: Path, samples: Sequence[dict[str, Any]]) -> tuple[Html, str]:
    """The page of samples, parsed and as it is."""
    folder.mkdir(exist_ok=True)
    list_evaluated(*written(folder, samples), None, False, folder, NOW)
    html = (folder / "report.html").read_text()
    return Html(html), html


numbers = st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=9)


@given(numbers)
def test_distribution_is_that_of_the_values_that_there_are(values: list[float | None]) -> None:
    known = [value for value in values if value is not None]
    found = distribution(values)
    assert found["n"] == len(known)
    if known:
        expected = {
            "mean": statistics.fmean(known),
            "median": statistics.median(known),
            "min": min(known),
            "max": max(known),
        }
        assert {name: found[name] for name in expected} == pytest.approx(expected)
        assert found["sd"] == (pytest.approx(statistics.stdev(known), abs=1e-9) if len(known) > 1 else None)
    else:
        assert set(found.values()) == {0, None}


def test_all_numbers_of_a_sample_are_scores() -> None:
    one = sample("a", found=objects(predicted=0, tp=(0, 0, 0)), unit="pixel")
    found = {(score.name, score.measure): score.value for score in scores_of(one)}
    assert found["class 1", "surface_hd95"] == 2.0 and found["objects", "splits"] == 3
    assert found["objects", "precision@0.75"] is None and found["objects", "recall@0.9"] == 0
    # each number of the JSON once, but for the counts and the size classes
    assert len(found) == 4 + 4 + 4 * 3 + 1 + 3 + 2 + 2 + 1
    assert {score.unit for score in scores_of(one) if score.measure == "surface_mean"} == {"pixel"}


def test_samples_are_sorted_by_objects_or_else_classes() -> None:
    two = sample("two", classes=[of_class(1, 0.9), of_class(2, 0.5), of_class(3, None)])
    rows = [
        sample("none", classes=[]),
        sample("best", dice=0.9),
        two,
        sample("objects", found=objects()),
        sample("worst", found=objects((1, 1, 1))),
    ]
    assert headline(two) == pytest.approx(0.7) and headline(rows[3]) == 16 / 22
    assert [one["sample"] for one in worst_first(rows)] == ["worst", "two", "objects", "best", "none"]


def test_summary_over_samples_and_groups() -> None:
    rows = [
        sample("a", dice=0.5, group="g", found=objects((8, 6, 0))),
        sample("b", dice=0.75, group="f"),
        sample("c", dice=None, group="g", found=objects((4, 2, 1), 5, 6), unit="pixel"),
        sample("d", dice=0.25),
    ]
    every, g, f = summary(rows)
    assert [(part["group"], part["samples"]) for part in (every, g, f)] == [(None, 4), ("g", 2), ("f", 1)]

    def measure(part: dict[str, Any], kind: str, name: str, unit: str | None = None) -> dict[str, Any]:
        (found,) = [m for m in part["measures"] if (m["kind"], m["measure"], m["unit"]) == (kind, name, unit)]
        return found

    semantic = measure(every, "semantic", "dice")
    assert (semantic["n"], semantic["mean"], semantic["class"], semantic["name"]) == (2, 0.5, 1, "class 1")
    assert semantic["sd"] == pytest.approx(math.sqrt(2) / 4)
    assert measure(g, "instances", "dice") | {"name": ""} == {
        "kind": "instances",
        "class": 1,
        "name": "",
        "measure": "dice",
        "unit": None,
        "n": 1,
        "mean": 0.5,
        "sd": None,
        "median": 0.5,
        "min": 0.5,
        "max": 0.5,
    }
    assert measure(g, "instances", "f1@0.5")["mean"] == pytest.approx((16 / 22 + 8 / 11) / 2)
    # distances in micrometres and in voxels are no numbers of one kind
    assert [measure(g, "instances", "surface_hd", unit)["n"] for unit in ("um", "pixel")] == [1, 1]
    assert [(row["iou"], row["tp"], row["fp"], row["fn"]) for row in g["pooled"]] == [
        (0.5, 12, 6, 3),
        (0.75, 8, 10, 7),
        (0.9, 1, 17, 14),
    ]
    assert g["pooled"][0]["f1"] == 24 / 33 and g["pooled"][0]["ap"] == 12 / 21
    assert f["pooled"] is None and every["pooled"] == pooled(rows)


# The lists


def test_table_has_every_number(tmp_path: Path) -> None:
    rows = [
        sample("a", found=objects(predicted=0, tp=(0, 0, 0)), group="=1+1"),
        sample("b", classes=[of_class(1, 0.5), of_class(7, None, None)]),
    ]
    rows[1]["classes"][0]["name"] = "@x"
    list_evaluated(*written(tmp_path, rows), None, False, tmp_path, NOW)
    with open(tmp_path / "evaluation.csv", newline="") as handle:
        lines = list(csv.DictReader(handle))
    assert [(line["sample"], line["of"], line["class"]) for line in lines] == [
        ("a", "class", "1"),
        ("a", "objects", ""),
        ("b", "class", "1"),
        ("b", "class", "7"),
    ]
    foreground, counted, first, second = lines
    assert counted["group"] == "'=1+1" and first["name"] == "'@x" and first["group"] == ""
    assert (counted["truth_objects"], counted["predicted_objects"], counted["splits"]) == ("10", "0", "3")
    assert counted["precision@0.5"] == "" and float(counted["recall@0.9"]) == 0.0
    assert float(counted["variation_of_information_merge"]) == 0.125 and float(counted["sq"]) == 0.7
    for line, row in ((foreground, rows[0]["classes"][0]), (first, rows[1]["classes"][0])):
        for name in ("truth_voxels", "predicted_voxels", "overlap_voxels", "dice", "iou", "precision", "recall"):
            assert float(line[name]) == row[name]
        for name, value in row["surface"].items():
            assert float(line[f"surface_{name}"]) == value
        assert line["unit"] == "um"
    assert second["dice"] == second["surface_mean"] == second["unit"] == "" and second["truth_voxels"] == "1207"
    written_json = read_json(tmp_path / "evaluation.json")
    assert written_json["samples"] == rows and written_json["missing"] == []
    assert written_json["summary"] == json.loads(json.dumps(summary(rows)))


def test_a_sample_that_did_not_arrive(tmp_path: Path) -> None:
    paths = written(tmp_path, [sample("a")], ["gone"])
    with pytest.raises(TemporaryError, match="1 of 2 samples did not arrive, the first is gone"):
        list_evaluated(*paths, None, False, tmp_path, NOW)
    assert not (tmp_path / "report.html").exists()
    listed = read_json(paths[0]) | {"skipped": [{"id": "bad", "error": "error:    the truth is float32"}]}
    write_json(paths[0], listed)
    list_evaluated(*paths, None, True, tmp_path, NOW)
    assert read_json(tmp_path / "evaluation.json")["missing"] == ["bad", "gone"]
    text = Html((tmp_path / "report.html").read_text()).text
    assert "Incomplete: 1 of 3 samples" in text and "the truth is float32" in text and "EVALUATE_LABELS failed" in text
    (tmp_path / "results" / "a.evaluation.json").unlink()
    with pytest.raises(TemporaryError, match="2 of 2"):
        list_evaluated(*paths, None, True, tmp_path, NOW)


# The page


def test_page_has_the_numbers_of_the_json(tmp_path: Path) -> None:
    rows = [
        sample("good", dice=0.987, found=objects((10, 9, 8), 10, 10), group="g1", warnings=["dim <b>light</b>"]),
        sample("bad", dice=0.123, found=objects((2, 1, 0)), group="g2", ignored_voxels=3000),
    ]
    page, html = listed(tmp_path, rows)
    assert "Complete: 2 samples, 1 warning" in page.text and "&lt;b&gt;" in html and "<b>light" not in html
    names = [row[0] for row in page.rows if row and row[0] in ("good", "bad")]
    assert names == ["bad", "good"]
    (line,) = [row for row in page.rows if row[:2] == ["bad", "g2"]]
    assert line == ["bad", "g2", "4 × 50 × 60", "1012", "0.182", "0.312", "0.438", "3", "1", "0.123", "–"]
    for one in rows:
        at = one["objects"]["thresholds"]
        for row in at:
            cells = [f"{row['iou']:.2f}", *(str(row[n]) for n in ("tp", "fp", "fn"))]
            assert [*cells, *(score(row[n]) for n in ("precision", "recall", "f1", "ap"))] in page.rows
        assert ["5 to 1,234", "5", "4", "0.800", "", "0.456"] in page.rows
        found = one["classes"][0]
        assert [
            "class 1",
            "1,201",
            "900",
            score(found["dice"]),
            score(found["iou"]),
            "0.875",
            "0.625",
            "0.750",
            "0.5",
            "23",
        ] in page.rows
    assert ["Panoptic quality= segmentation × recognition, IoU 0.5", "0.438"] in page.rows
    assert ["Variation of informationsplit, merge, bits", "1.2500.125"] in page.rows
    assert ["Adapted Rand error", "0.062"] in page.rows
    assert "of which 25.00 % are ignored" in page.text and "10 objects in the truth, 12 predicted" in page.text
    # over samples: mean, SD, median, least, greatest; then of the groups
    mean = (rows[0]["objects"]["thresholds"][0]["f1"] + rows[1]["objects"]["thresholds"][0]["f1"]) / 2
    (line,) = [row for row in page.rows if row[:2] == ["F1 at IoU 0.5", "objects"]]
    assert line[2:4] == ["2", score(mean)] and line[5:8] == [score(mean), "0.182", "1.000"]
    assert ["g1", "1", "1.000", "0.312", "0.438", "0.987"] in page.rows
    assert "F1 at IoU 0.5 0.571" in " ".join(page.text.split()) and "(12 found, 8 missed, 10 false)" in page.text
    for name in ("Kirillov", "Caicedo", "Arganda-Carreras", "Nikolov", "Schmidt", "Taha"):
        assert name in page.text
    assert "numpy" in page.text and NOW in page.text


def test_page_needs_no_other_file(tmp_path: Path) -> None:
    page, html = listed(tmp_path, [sample("a", found=objects()), sample("b")])
    links = [tag.get("href") or "" for tag in (*page.all("a"), *page.all("link"))]
    assert all(link.startswith(("#", "data:")) for link in links)
    anchors = {tag["id"] for _, tag in page.tags if "id" in tag}
    assert {link[1:] for link in links if link.startswith("#")} <= anchors
    assert not re.search(r"(src|url)\s*[=(]\s*[\"']?(?!data:)[a-z]+:", html)
    assert "default-src 'none'" in html
    script = re.search(r"<script>(.*)</script>", html, re.DOTALL)
    assert script and base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode() in html


def test_one_sample_and_many(tmp_path: Path) -> None:
    page, _ = listed(tmp_path / "one", [sample("a", classes=[], warnings=["both are empty"])])
    assert "Neither volume has a label" in page.text and "Summary" not in page.text
    rows = [sample(f"s{n}", dice=n / 100) for n in range(DETAILED + 3, 0, -1)]
    page, _ = listed(tmp_path / "many", rows)
    assert f"The worst {DETAILED} of {DETAILED + 3} samples" in page.text
    shown = [tag for tag in page.all("article")]
    linked = [tag["href"] for tag in page.all("a") if (tag["href"] or "").startswith("#sample-")]
    assert len(shown) == len(linked) == DETAILED
    assert [row[0] for row in page.rows if re.fullmatch(r"s\d+", row[0])] == [f"s{n}" for n in range(1, DETAILED + 4)]


def test_parameters_and_command(tmp_path: Path) -> None:
    params = {
        "params": {"ignore_label": 255, "box": None, "unit": "um"},
        "defaults": {"ignore_label": None, "box": None, "unit": "um"},
        "command": "nextflow run main.nf --ignore_label 255",
        "revision": "r1",
        "profile": "slurm",
    }
    write_json(tmp_path / "params.json", params)
    list_evaluated(*written(tmp_path, [sample("a")]), tmp_path / "params.json", False, tmp_path, NOW)
    page = Html((tmp_path / "report.html").read_text())
    assert ["ignore_label", "255", "–"] in page.rows and ["unit", "um"] in page.rows
    assert "--ignore_label 255" in page.text and "slurm" in page.text and "r1" in page.text


def test_curves_are_at_the_numbers() -> None:
    rows = objects((9, 5, 1))["thresholds"]
    rows[2]["ap"] = None
    chart = threshold_chart(rows)
    f1, ap = chart.curves
    left, bottom = chart.ticks[0][0], chart.levels[0][0]
    right, top = chart.ticks[-1][0], chart.levels[-1][0]
    assert left < right and top < bottom
    assert (chart.ticks[0][1], chart.ticks[-1][1]) == ("0.5", "0.9") and (chart.levels[0][1], chart.levels[-1][1]) == (
        "0",
        "1",
    )
    for curve, key, count in ((f1, "f1", 3), (ap, "ap", 2)):
        points = [tuple(map(float, pair.split(","))) for pair in curve.points.split()]
        assert len(points) == count
        for (x, y), row in zip(points, rows, strict=False):
            assert 0.5 + 0.4 * (x - left) / (right - left) == pytest.approx(row["iou"], abs=0.001)
            assert (bottom - y) / (bottom - top) == pytest.approx(row[key], abs=0.001)
    assert "IoU 0.9: F1" in chart.words and "AP –" in chart.words


def pixels(address: str) -> np.ndarray:
    data = base64.b64decode(address.partition(",")[2])
    image = Image.open(io.BytesIO(data))
    return np.asarray(image.convert("RGBA") if image.mode == "P" else image)


def colour(code: str) -> tuple[int, ...]:
    return (*bytes.fromhex(code[1:]), 255)


def test_outlines_of_a_case() -> None:
    """Pixels of 32: 128 of the truth's square, the prediction one to the right of it; the truth is the case."""
    labels = np.zeros((16, 16), np.uint16)
    labels[4:8, 4:8] = 1
    layers = {
        "grey": (np.indices((16, 16)).sum(0) % 2 * 150).astype(np.uint8),
        "truth": labels,
        "predicted": np.roll(labels, 1, axis=1),
        "focus": labels == 1,
        "box": np.array([[3, 4], [10, 26], [0, 16]]),
    }
    figure = case_figure("Missed, plane z 3", layers, sample("a"))
    layer = pixels(figure.outlines or "")
    assert layer.shape == (512, 512, 4) and (pixels(figure.grey) == layers["grey"]).all()
    noisy = layers | {"grey": np.arange(256, dtype=np.uint8).reshape(16, 16)}
    assert "jpeg" in case_figure("", noisy, sample("a")).grey[:20]
    clear, dark = (0, 0, 0, 0), (0, 0, 0, SHADE)
    at = {
        (0, 0): dark,
        (128, 128): colour(TRUTH),
        (131, 140): colour(TRUTH),
        (133, 140): clear,
        (140, 131): colour(TRUTH),
        (140, 140): clear,
        (140, 160): colour(PREDICTION),
        (140, 161): colour(PREDICTION),
        (140, 162): clear,
        (140, 286): colour(PREDICTION),
        (140, 287): colour(PREDICTION),
        (140, 285): dark,
        (140, 288): dark,
        (140, 255): colour(TRUTH),
        (128, 200): colour(PREDICTION),
        (130, 200): colour(TRUTH),
        (255, 140): colour(TRUTH),
        (127, 200): dark,
    }
    assert {place: tuple(map(int, layer[place])) for place in at} == at
    # 16 rows of 1 um (of 22 in the box: every pixel is more than a voxel) and 16 columns of 0.5 um
    assert figure.aspect == pytest.approx(8 / 16) and figure.title == "Missed, plane z 3"


# Pictures of the worst cases


class Watched(ArraySource):
    """Remembers what was read."""

    def _read(self, channel: int, box: Box) -> np.ndarray:
        self.__dict__.setdefault("boxes", []).append(box)
        return super()._read(channel, box)


def watched(array: np.ndarray) -> Watched:
    source = source_of(array)
    return Watched(**{name: getattr(source, name) for name in ("path", "format", "shape", "dtype", "array")})


def case(what: str, number: int | None, box: Sequence[Sequence[int]]) -> dict[str, Any]:
    return {"what": what, "id": number, "iou": 0.1, "voxels": 5, "box": [list(pair) for pair in box]}


def saved(
    tmp_path: Path,
    cases: Sequence[dict[str, Any]],
    image: Any,
    predicted: Any,
    truth: Any,
    kind: str = "instances",
    ignore: int | None = None,
) -> dict[str, np.ndarray]:
    save_worst(tmp_path / "a.worst.npz", cases, image, predicted, truth, kind, ignore)
    with np.load(tmp_path / "a.worst.npz", allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def volumes() -> tuple[np.ndarray, np.ndarray]:
    """Ids of the truth: 7 (missed), 2**40 (split into 5 and 6); of the prediction also 9, which is false."""
    truth, predicted = np.zeros((6, 40, 50), np.int64), np.zeros((6, 40, 50), np.int64)
    truth[1:4, 10:14, 20:26] = 7
    truth[2:6, 25:35, 10:30] = 2**40
    predicted[2:6, 25:35, 10:22] = 5
    predicted[2:6, 25:35, 22:30] = 6
    predicted[4, 25:35, 10:16] = 6
    predicted[0:2, 0:5, 0:6] = 9
    return predicted, truth


def test_pictures_of_known_cases(tmp_path: Path) -> None:
    predicted, truth = volumes()
    image = np.arange(6 * 40 * 50, dtype=np.uint16).reshape(6, 40, 50)
    cases = [
        case("missed", 7, [(1, 4), (10, 14), (20, 26)]),
        case("split", 2**40, [(2, 6), (25, 35), (10, 30)]),
        case("false", 9, [(0, 2), (0, 5), (0, 6)]),
    ]
    found = saved(tmp_path, cases, source_of(image), source_of(predicted), source_of(truth))
    assert sorted(found) == sorted(
        f"{n:02d}_{k}" for n in range(3) for k in ("grey", "predicted", "truth", "focus", "box")
    )
    # 8 voxels around the missed one, in the first of three equal planes
    assert found["00_box"].tolist() == [[1, 2], [2, 22], [12, 34]]
    np.testing.assert_array_equal(found["00_focus"], truth[1, 2:22, 12:34] == 7)
    np.testing.assert_array_equal(found["00_truth"], truth[1, 2:22, 12:34] == 7)
    assert not found["00_predicted"].any() and found["00_truth"].dtype == np.uint16
    # the split one: 5 covers most of it, least so in plane 4
    assert found["01_box"].tolist() == [[4, 5], [17, 40], [2, 38]]
    part = predicted[4, 17:40, 2:38]
    np.testing.assert_array_equal(found["01_predicted"], 1 * (part == 5) + 2 * (part == 6))
    np.testing.assert_array_equal(found["01_focus"], truth[4, 17:40, 2:38] == 2**40)
    part = image[4, 17:40, 2:38].astype(float)
    black, white = np.percentile(part, (0.5, 99.8))
    np.testing.assert_array_equal(found["01_grey"], np.clip((part - black) / (white - black) * 255, 0, 255).round())
    # clipped where the volume ends
    assert found["02_box"].tolist() == [[0, 1], [0, 13], [0, 14]]
    np.testing.assert_array_equal(found["02_focus"], predicted[0, :13, :14] == 9)


def test_the_plane_shows_the_case() -> None:
    assert shown_plane(np.array([1, 9, 10, 4]), np.array([99, 3, 5, 50])) == 2
    assert shown_plane(np.array([5, 9, 10, 10]), np.array([7, 3, 7, 7])) == 2
    assert shown_plane(np.array([0, 0]), np.array([0, 0])) == 0


def test_pictures_without_an_image_say_where_both_agree(tmp_path: Path) -> None:
    truth, predicted = np.zeros((1, 20, 20), np.uint8), np.zeros((1, 20, 20), np.uint8)
    truth[0, 2:10, 2:10], predicted[0, 4:10, 2:14] = 1, 1
    predicted[0, 8:10] *= 2
    cases = [case("wrong", None, [(0, 1), (0, 16), (0, 12)])]
    for kind, different in (("semantic", True), ("instances", False)):
        found = saved(tmp_path, cases, None, source_of(predicted), source_of(truth), kind)
        both = (truth[0] != 0) & (predicted[0] != 0)
        same = both & ((truth[0] == predicted[0]) if different else True)
        expected = np.where(same, GREYS["same"], np.where(truth[0] | predicted[0], GREYS["apart"], GREYS["background"]))
        assert found["00_box"].tolist() == [[0, 1], [0, 20], [0, 20]]
        np.testing.assert_array_equal(found["00_grey"], expected)
        # what is wrong is shown inside the box only
        wrong = truth[0] != predicted[0]
        wrong[16:], wrong[:, 12:] = False, False
        np.testing.assert_array_equal(found["00_focus"], wrong)
    truth[0, 2:6, 2:4], truth[0, 0, 0] = 255, 255
    found = saved(tmp_path, cases, None, source_of(predicted), source_of(truth), "semantic", 255)
    unknown = truth[0] == 255
    assert not found["00_focus"][unknown].any() and not found["00_truth"][unknown].any()
    assert not found["00_predicted"][unknown].any() and (found["00_grey"][unknown] == GREYS["background"]).all()


def test_large_and_tall_cases_are_thinned_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longer side has 600 + 2 x 150 voxels: every fourth. 300 planes: every third. Any bands give the same."""
    rng = np.random.default_rng(0)
    predicted, truth = (rng.integers(0, 4, (300, 9, 1000)).astype("u2") for _ in range(2))
    truth[151], predicted[151] = np.where(rng.random((9, 1000)) < 0.9, 3, 1), 0
    tall = [case("missed", 3, [(0, 300), (2, 7), (200, 800)])]
    image, here, there = (watched(array) for array in (truth, predicted, truth))
    here.chunk = (64, 4, 4)
    found = saved(tmp_path, tall, image, here, there)
    assert found["00_box"].tolist() == [[151, 152], [0, 9], [50, 950]]
    np.testing.assert_array_equal(found["00_truth"], 1 + truth[151, ::4, 50:950:4] // 3)
    focus = truth[151] == 3
    focus[:2], focus[7:], focus[:, :200], focus[:, 800:] = False, False, False, False
    np.testing.assert_array_equal(found["00_focus"], focus[::4, 50:950:4])
    # nothing twice: single planes, or the wanted ones of a layer of chunks together
    assert [box[0] for box in image.boxes] == [(151, 152)]
    assert [box[0] for box in there.boxes] == [(z, z + 1) for z in range(1, 300, 3)]
    assert [box[0] for box in here.boxes] == [(1, 62), (64, 128), (130, 191), (193, 254), (256, 299)]
    assert {box[2] for source in (image, here, there) for box in source.boxes} == {(50, 950)}
    for voxels in (1, 5000, 200_000):
        monkeypatch.setattr(worst_module, "STEP_VOXELS", voxels)
        again = saved(tmp_path, tall, image, here, there)
        assert all((again[name] == found[name]).all() for name in found)
    # Too large to be read whole: 3 planes, of which each may take a layer.
    monkeypatch.setattr(worst_module, "MOST_VOXELS", 3 * 64 * 9 * 900)
    there.boxes.clear()
    saved(tmp_path, tall, None, here, there)
    assert {box[0] for box in there.boxes} == {(49, 50), (149, 150), (249, 250)}


def test_nothing_is_wrong(tmp_path: Path) -> None:
    labels = source_of(np.ones((2, 8, 8), "u1"))
    assert saved(tmp_path, [], None, labels, labels) == {}
    with pytest.raises(UsageError):
        saved(tmp_path, [case("missed", 1, [(0, 3), (0, 8), (0, 8)])], None, labels, labels)


# All of it


def write_volume(path: Path, labels: np.ndarray) -> None:
    import tifffile

    sizes = dict(zip(("PhysicalSizeZ", "PhysicalSizeY", "PhysicalSizeX"), (2, 1, 1), strict=True))
    tifffile.imwrite(path, labels, ome=True, photometric="minisblack", metadata={"axes": "ZYX", **sizes})


def test_from_the_sheet_to_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the check are evaluated and listed by the scripts' own functions, with a box."""
    predicted, truth = (array % 251 for array in volumes())
    write_image(tmp_path / "i.tif", (6, 40, 50))
    for name, labels in (("p", predicted), ("t", truth), ("pc", predicted > 0), ("tc", truth > 0)):
        write_volume(tmp_path / f"{name}.tif", labels.astype("u1"))
    rows = [
        {"sample": "things", "image": "i.tif", "semantic": "", "instances": "p.tif", "truth": "t.tif", "group": "g"},
        {"sample": "classes", "image": "", "semantic": "pc.tif", "instances": "", "truth": "tc.tif", "group": ""},
    ]
    checked = run(tmp_path, rows, config=None, evaluate=Evaluation(), box="1:,:,:")
    monkeypatch.chdir(tmp_path)
    write_json(Path("samples.json"), {"samples": checked.samples, "skipped": checked.skipped})
    (staged,) = tmp_path.glob("staged*")
    record = Task("evaluate_labels", "batch1")
    evaluate_batch(checked.samples, staged, Path(), record, ignore=None, memory_budget=10**9)
    (tmp_path / "results").mkdir()
    for path in [*tmp_path.glob("*/*.evaluation.json"), *tmp_path.glob("*/*.worst.npz")]:
        (tmp_path / "results" / path.name).symlink_to(path)
    told = {
        "process": "evaluate_labels",
        "name": "batch1",
        "part": None,
        "voxelmill": "1",
        "python": "3",
        "versions": {},
        "wall_seconds": 1,
        "cpu_seconds": 1,
        "peak_memory_bytes": 1,
        "files": record.files,
        "outputs": {},
    }
    write_json(tmp_path / "results" / "batch1.evaluate_labels.json", told)
    load_script("list_evaluated").main.main(
        ["--samples", "samples.json", "--results", "results"], standalone_mode=False
    )

    done = {one["sample"]: one for one in read_json(Path("evaluation.json"))["samples"]}
    page = Html(Path("report.html").read_text())
    things = done["things"]
    assert things["group"] == "g" and things["first"] == [1, 0, 0] and things["worst"]
    assert next(row for row in page.rows if row and row[0] == "things")[:2] == ["things", "g"]
    pictures = [tag["src"] for tag in page.all("img")]
    shown = sum(len(one["worst"]) for one in done.values())
    assert len(pictures) == 2 * shown and all((src or "").startswith("data:image/") for src in pictures)
    titles = re.findall(r"(?:Missed|Split|Merged|False|Wrong classes), plane z \d+", page.text)
    assert len(titles) == shown
    # voxels of the file, not of the box that was cut out of it
    missed = next(one for one in things["worst"] if one["what"] == "missed")
    assert missed["box"] == [[0, 3], [10, 14], [20, 26]] and "1:4,10:14,20:26" in page.text
    assert read_json(Path("list_evaluated/list_evaluated.list_evaluated.json"))["outputs"].keys() == {
        "evaluation.csv",
        "evaluation.json",
        "report.html",
        "outputs.sha256",
    }
    sums = dict(reversed(line.split("  ")) for line in Path("outputs.sha256").read_text().splitlines())
    matches = {f"things/things.matches.{end}" for end in ("csv", "parquet")}
    assert sums.keys() == matches | {
        "evaluation.csv",
        "evaluation.json",
        "report.html",
        "pipeline_info/samples.json",
        "things/things.evaluation.json",
        "classes/classes.evaluation.json",
    }
    for name, digest in sums.items():
        path = tmp_path / name.replace("pipeline_info/", "")
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
