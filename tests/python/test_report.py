"""The report: its pictures against direct computations, its pages as a browser would read them."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.segmentation import find_boundaries

from reported import WHEN, Folder, Page, gradient, label_volume, pictures_of
from voxelmill.errors import TemporaryError
from voxelmill.files import read_json, write_json
from voxelmill.pictures import OBJECTS, PICTURES, PictureBuilder, stretch
from voxelmill.report import arrival, render
from voxelmill.report.collect import collect_run
from voxelmill.report.figures import COLOURS, class_indices, outline_mask, sample_views, scale_bar
from voxelmill.report.outputs import outputs_list
from voxelmill.report.provenance import digests_of
from voxelmill.report.render import render_report
from voxelmill.report.text import card, duration, listed, plural, quantity, share, significant, size, volume
from voxelmill.report.words import methods

SCRIPT = Path(__file__).resolve().parents[2] / "bin" / "build_report.py"
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def decoded(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.split(",", 1)[1])))


def direct_pictures(volume: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """Pictures of a whole volume (z, y, x), cell by cell."""
    factors = [-(-n // size) for n in volume.shape]
    result = {}
    for axis, letter in enumerate("zyx"):
        plane = [other for other in range(3) if other != axis]
        flat = volume.max(axis=axis)
        cells = [range(0, volume.shape[other], factors[other]) for other in plane]
        f, g = (factors[other] for other in plane)
        result[f"max_{letter}"] = np.array([[flat[a : a + f, b : b + g].max() for b in cells[1]] for a in cells[0]])
        result[f"mid_{letter}"] = volume.take(volume.shape[axis] // 2, axis)[::f, ::g]
    return result


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize(("shape", "size"), [((5, 9, 11), 16), ((13, 22, 31), 7), ((1, 40, 33), 8), ((30, 4, 3), 10)])
def test_pictures_equal_those_of_the_whole_volume(dtype: str, shape: tuple[int, int, int], size: int) -> None:
    rng = np.random.default_rng(0)
    volume = rng.integers(-100 if dtype in ("int16", "float32") else 0, 100, (2, *shape)).astype(dtype)
    builder = PictureBuilder(shape, 2, volume.dtype, size)
    boxes = [
        tuple((start, min(start + 4, n)) for start, n in zip(corner, shape, strict=True))
        for corner in np.ndindex(*(-(-n // 4) for n in shape))
        for corner in [tuple(4 * c for c in corner)]
    ]
    for index in rng.permutation(2 * len(boxes)):
        channel, box = index % 2, boxes[index // 2]
        builder.update(box, volume[channel][tuple(slice(*pair) for pair in box)], channel)
    arrays = builder.arrays()
    assert set(arrays) == set(PICTURES)
    for channel in range(2):
        for name, expected in direct_pictures(volume[channel], size).items():
            np.testing.assert_array_equal(arrays[name][channel], expected, err_msg=name)
    assert all(max(a.shape[1:]) <= size and a.dtype == dtype for a in arrays.values())


def test_a_nan_does_not_hide_a_projection() -> None:
    volume = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    volume[1, 1, 1] = np.nan
    arrays = pictures_of(volume)
    assert arrays["max_z"][0, 1, 1] == volume[0, 1, 1]
    assert stretch(arrays)["mid_z"][0, 1, 1] == 0


def test_stretch_maps_percentiles_to_black_and_white() -> None:
    arrays = pictures_of(np.random.default_rng(1).integers(0, 60000, (20, 21, 22)).astype(np.uint16))
    stretched = stretch(arrays, 10, 90)
    for row, kind in enumerate(("mid", "max")):
        pixels = np.concatenate([arrays[f"{kind}_{axis}"][0].ravel() for axis in "zyx"]).astype(float)
        black, white = np.percentile(pixels, (10, 90))
        assert stretched["limits"][0, row].tolist() == [black, white]
        grey = stretched[f"{kind}_y"][0]
        expected = np.clip((arrays[f"{kind}_y"][0].astype(float) - black) / (white - black) * 255, 0, 255)
        assert grey.dtype == np.uint8
        assert np.abs(grey - expected).max() <= 0.5 + 1e-9


def test_a_constant_image_is_black() -> None:
    with np.errstate(all="raise"):
        stretched = stretch(pictures_of(np.full((3, 4, 5), 7, np.uint16)))
    assert not any(stretched[name].any() for name in PICTURES)


def test_outlines_are_the_inner_boundaries() -> None:
    labels = np.random.default_rng(2).integers(0, 3, (9, 11)).repeat(4, 0).repeat(5, 1).astype(np.uint8)
    np.testing.assert_array_equal(outline_mask(labels), find_boundaries(labels, connectivity=2, mode="inner"))


def test_thick_outlines_reach_as_far_as_asked() -> None:
    labels = label_volume((2, 20, 24))[1]
    thick = outline_mask(labels, 2)
    for y, x in np.ndindex(labels.shape):
        around = labels[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
        assert thick[y, x] == (labels[y, x] != 0 and np.ptp(around) > 0)


def test_layers_have_the_class_colours_at_the_boundaries() -> None:
    shape = (6, 20, 24)
    labels = pictures_of(label_volume(shape))
    images = stretch(pictures_of(gradient(shape)))
    (views,) = sample_views(shape, (2.0, 1.0, 1.0), "um", images, labels, ["signal"], class_indices((1, 2)), 10**7)
    for figure, key, turned in zip(views.figures, ("max_z", "mid_z", "mid_x", "mid_y"), (0, 0, 1, 0), strict=True):
        layer = np.array(decoded(figure.outlines).convert("RGBA"))
        expected = labels[key][0].T if turned else labels[key][0]
        rows, columns = (np.arange(n) * m // n for n, m in zip(layer.shape[:2], expected.shape, strict=True))
        expected = expected[np.ix_(rows, columns)]
        thin = find_boundaries(expected, connectivity=2, mode="inner")
        assert (layer[..., 3][thin] == 255).all()
        assert (layer[..., 3][expected == 0] == 0).all()
        for value, colour in ((1, COLOURS[0]), (2, COLOURS[1])):
            seen = {tuple(pixel) for pixel in layer[(expected == value) & (layer[..., 3] > 0)][:, :3]}
            assert seen <= {tuple(bytes.fromhex(colour[1:]))}
        assert max(layer.shape) == 1024


def test_objects_that_touch_are_parted_in_the_slices() -> None:
    """In slices the outlines are those of the ids, in the colour of the class; in the projection those of the class."""
    shape = (6, 20, 24)
    volume = np.zeros(shape, np.uint8)
    volume[1:5, 4:16, 4:20] = 2
    labels = pictures_of(volume)
    ids = volume.astype(np.uint32) * 70_000
    ids[:, :, 12:] *= 2
    ids[:, 15:] = 0
    parted = {OBJECTS + key: picture for key, picture in pictures_of(ids).items() if key.startswith("mid")}
    images = stretch(pictures_of(gradient(shape)))
    args = (shape, (1.0, 1.0, 1.0), "um", images)
    (views,) = sample_views(*args, labels | parted, ["signal"], class_indices((1, 2)), 10**7)
    (without,) = sample_views(*args, labels, ["signal"], class_indices((1, 2)), 10**7)
    assert views.figures[0].outlines == without.figures[0].outlines
    layer = np.array(decoded(views.figures[1].outlines).convert("RGBA"))
    expected = ids[shape[0] // 2]
    rows, columns = (np.arange(n) * m // n for n, m in zip(layer.shape[:2], expected.shape, strict=True))
    expected = expected[np.ix_(rows, columns)]
    assert (layer[..., 3][find_boundaries(expected, connectivity=2, mode="inner")] == 255).all()
    assert (layer[..., 3][expected == 0] == 0).all()
    assert {tuple(pixel) for pixel in layer[layer[..., 3] > 0][:, :3]} == {tuple(bytes.fromhex(COLOURS[1][1:]))}


def test_pictures_keep_the_physical_aspect() -> None:
    shape, spacing = (10, 30, 40), (4.0, 1.0, 0.5)
    images = stretch(pictures_of(gradient(shape)))
    (views,) = sample_views(shape, spacing, "um", images, None, ["signal"], {}, 10**7)
    assert {figure.area: figure.aspect for figure in views.figures} == {
        "max": pytest.approx(20 / 30, abs=1e-6),
        "z": pytest.approx(20 / 30, abs=1e-6),
        "x": pytest.approx(40 / 30, abs=1e-6),
        "y": pytest.approx(20 / 40, abs=1e-6),
    }
    assert all(figure.outlines is None for figure in views.figures)
    assert decoded(views.figures[2].grey).size == (10, 30)


def test_a_flat_image_has_one_picture() -> None:
    shape = (1, 30, 40)
    (views,) = sample_views(
        shape, (1.0, 1.0, 1.0), "pixel", stretch(pictures_of(gradient(shape))), None, ["a"], {}, 10**7
    )
    assert [figure.area for figure in views.figures] == ["z"]
    assert views.figures[0].bar.text == "10 px"


@pytest.mark.parametrize(
    ("extent", "unit", "percent", "text"),
    [
        (512.0, "um", 19.53, "100 µm"), (50.0, "um", 20.0, "10 µm"), (10.0, "um", 20.0, "2 µm"),
        (0.8, "um", 25.0, "0.2 µm"), (9000.0, "um", 22.22, "2 mm"), (300.0, "pixel", 16.67, "50 px"),
    ],
)  # fmt: skip
def test_scale_bars_are_round_and_true(extent: float, unit: str, percent: float, text: str) -> None:
    bar = scale_bar(extent, unit)
    assert (bar.percent, bar.text) == (percent, text)


def test_numbers_as_a_reader_wants_them() -> None:
    assert [significant(v) for v in (0, 12.3456, 1234567.8, 0.00080531, 1.234567e-7)] == [
        "0", "12.35", "1,234,568", "0.0008053", "1.235 × 10⁻⁷",
    ]  # fmt: skip
    assert [volume(v) for v in (512.0, 2.5e6)] == ["512 µm³", "0.0025 mm³"]
    assert [significant(v) for v in (None, float("nan"), float("inf"))] == ["–", "–", "–"]
    assert [significant(1234.5, 3, factor) for factor in (1.0, 1e-3)] == ["1,234", "1.23"]
    assert [significant(*v) for v in ((999.7, 3), (999.4, 3), (100, 2), (99.4, 2))] == ["1,000", "999", "100", "99"]
    lengths = ((999.0, "µm"), (1500.0, "µm"), (7.5, "px"), (2e6, "µm³"), (1.25, ""), (None, "µm"))
    assert [quantity(*v) for v in lengths] == ["999 µm", "1.5 mm", "7.5 px", "0.002 mm³", "1.25", "–"]
    assert [plural(1, "branch", "branches"), plural(1234, "object")] == ["1 branch", "1,234 objects"]
    assert [listed(v) for v in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
    assert [size(v) for v in (999, 1_500_000, 21_400_000_000)] == ["999 bytes", "1.50 MB", "21.4 GB"]
    assert [duration(v) for v in (1.23, 65, 7500)] == ["1.2 s", "1 min 05 s", "2 h 05 min"]
    assert [share(*v) for v in ((0, 10), (1, 10**6), (1, 3), (0, 0))] == ["0 %", "< 0.01 %", "33.33 %", "0 %"]


def test_a_card_brings_no_html_of_its_own() -> None:
    html = card(
        f"---\nlicense: x\n---\n# A\n{HOSTILE}\n\n[b](javascript:alert(1)) ![c](https://d.org/e.png)\n\n|f|\n|-|\n|g|\n"
    )
    tags = [tag for tag, _ in Page(html).tags]
    assert tags == ["pre", "h4", "p", "p", "table", "thead", "tr", "th", "tbody", "tr", "td"]


@pytest.mark.parametrize("number", [1, 3])
def test_one_file_shows_everything(folder: Folder, number: int) -> None:
    for index in range(number):
        folder.sample(f"s{index}", warnings=["far from the model"] if index == 0 else [])
    pages = folder.pages()
    assert list(pages) == ["report.html"]
    page = Page(pages["report.html"])
    for text in (
        "1 warning", "abc123", "nextflow run main.nf", "Dataset001_Tubes 3d_fullres", "Predicted oncpu",
        "6 × 20 × 24", "2 × 1 × 1 µm", "OME-XML", "OME-TIFF, uint16", "c" * 64, "5" * 64, "Finds ", "CC BY 4.0",
        "PREDICT_TILES", "2.00 GB", "50.0 s" if number == 1 else "2 min 30 s", "far from the model", "2.2.0",
        "Slice z 3 of 6", "Slice y 10 of 20", "Slice x 12 of 24", "Maximum along z", "ZScoreNormalization",
    ):  # fmt: skip
        assert text in page.text, text
    assert len([a for a in page.all("button") if a.get("class") == "stack"]) == 4 * number
    assert len([a for a in page.all("img") if a.get("class") == "outlines"]) == 4 * number
    voxels = np.bincount(label_volume((6, 20, 24)).ravel())
    assert f"{voxels[1]:,}" in page.text
    assert share(int(voxels[2]), 6 * 20 * 24) in page.text
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")} <= ids


def test_the_page_needs_no_network_and_runs_one_known_script(folder: Folder) -> None:
    folder.sample("s0")
    html = folder.pages()["report.html"]
    page = Page(html)
    assert all(a["src"].startswith("data:image/") for a in page.all("img"))
    assert [a["href"] for a in page.all("link")] == ["data:,"]
    assert "url(" not in html and "@import" not in html
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in policy
    assert all("alt" in a for a in page.all("img"))
    assert all(a.get("aria-label") or a.get("class") == "close" for a in page.all("button"))


def test_more_than_twenty_samples_have_their_own_pages(folder: Folder) -> None:
    for index in range(25):
        folder.sample(f"s {index}" if index else "a'b")
    pages = folder.pages()
    assert len(pages) == 26
    index = Page(pages["report.html"])
    links = [a["href"] for a in index.all("a") if a["href"].startswith("report/")]
    assert links == [path for path in pages if path != "report.html"]
    assert links[:2] == ["report/0001-a_b.html", "report/0002-s_1.html"]
    assert not [a for a in index.all("button") if a.get("class") == "stack"]
    for path in links:
        page = Page(pages[path])
        assert len([a for a in page.all("button") if a.get("class") == "stack"]) == 4
        assert "../report.html" in [a["href"] for a in page.all("a")]


def test_text_of_others_is_only_text(folder: Folder) -> None:
    folder.sample(HOSTILE)
    folder.image(HOSTILE, (6, 20, 24), files=(HOSTILE,), spacing_origin=HOSTILE, warnings=(HOSTILE,), format=HOSTILE)
    labels = folder.path / "staged" / f"{HOSTILE}.labels.json"
    value = read_json(labels)
    value["classes"][1]["name"] = HOSTILE
    write_json(labels, value)
    folder.skipped.append({"id": HOSTILE + "2", "error": HOSTILE})
    folder.params["params"][HOSTILE] = HOSTILE
    folder.params |= {"command": HOSTILE, "revision": HOSTILE, "profile": HOSTILE}
    folder.model(dataset_name=HOSTILE, channel_names=[HOSTILE], labels={HOSTILE: 0, "a": 1, "b": 2}, licence=HOSTILE)
    folder.record(HOSTILE, "x", warnings=[{"sample": "", "text": HOSTILE}], versions={HOSTILE: HOSTILE})
    page = Page(folder.pages()["report.html"])
    assert page.text.count(HOSTILE) > 15
    assert len(page.all("script")) == 1
    assert all("onerror" not in attributes and attributes.get("src") != "x" for _, attributes in page.tags)


def run_script(folder: Folder) -> subprocess.CompletedProcess[str]:
    folder.write()
    command = [sys.executable, str(SCRIPT), "--samples", "samples.json", "--estimate", "estimate.json"]
    command += ["--params", "params.json", "--package", "model", "staged", "records"]
    return subprocess.run(command, cwd=folder.path, capture_output=True, text=True, check=False)


def test_a_sample_that_did_not_arrive_is_refused(folder: Folder) -> None:
    folder.sample("here")
    folder.sample("lost", labels=False)
    done = run_script(folder)
    assert done.returncode == 75
    assert "1 of 2 samples did not arrive" in done.stderr
    assert "lost" in done.stderr and "here" not in done.stderr
    assert not (folder.path / "report.html").exists()
    assert not (folder.path / "outputs.json").exists()


def test_a_sample_whose_image_is_lost_is_refused(folder: Folder) -> None:
    folder.sample("lost")
    (folder.path / "staged" / "lost.image.json").unlink()
    with pytest.raises(TemporaryError, match="1 of 1 samples"):
        folder.collect()


def test_bad_samples_are_listed_where_they_may_be_skipped(folder: Folder) -> None:
    folder.params["params"]["on_bad_sample"] = "skip"
    folder.sample("here")
    folder.sample("lost", labels=False)
    folder.skipped.append({"id": "unread", "error": "page 7 is cut short"})
    page = Page(folder.pages()["report.html"])
    assert "Incomplete: 1 of 3 samples" in page.text
    assert "page 7 is cut short" in page.text
    assert "IMPORT_IMAGE failed" in page.text
    assert len([a for a in page.all("article")]) == 1


COMPONENTS = {"instances": "components", "export": "auto", "on_bad_sample": "skip", "stop_after": None}
SPLIT = ["import_image", "plan_tiles"]
STITCHED = [*SPLIT, "predict_tiles", "predict_tiles", "stitch_blocks"]
LINKED = [*STITCHED, "label_blocks", "link_objects"]
COMPOSED = [*LINKED, "relabel_blocks", "compose_store"]
APART = ["gather_blocks", "mark_cores", "link_cores", "separate_objects"]


@pytest.mark.parametrize(
    ("records", "params", "failed"),
    [
        ([], {}, "IMPORT_IMAGE"),
        (["import_image"], {}, "PLAN_TILES"),
        (SPLIT, {}, "PREDICT_TILES"),
        ([*SPLIT, "predict_tiles", "stitch_blocks"], {}, "PREDICT_TILES"),
        (STITCHED[:-1], {}, "STITCH_BLOCKS"),
        (STITCHED, {}, "STITCH_BLOCKS or COMPOSE_STORE"),
        (STITCHED, COMPONENTS, "STITCH_BLOCKS or LABEL_BLOCKS"),
        ([*STITCHED, "stitch_blocks", "label_blocks"], COMPONENTS, "LABEL_BLOCKS"),
        ([*STITCHED, "label_blocks"], COMPONENTS, "STITCH_BLOCKS or LABEL_BLOCKS or LINK_OBJECTS"),
        (LINKED, COMPONENTS, "RELABEL_BLOCKS"),
        ([*LINKED, "stitch_blocks", "label_blocks", "relabel_blocks"], COMPONENTS, "RELABEL_BLOCKS"),
        ([*LINKED, "relabel_blocks"], COMPONENTS, "RELABEL_BLOCKS or COMPOSE_STORE"),
        ([*COMPOSED, "export_labels"], COMPONENTS, "MEASURE_OBJECTS"),
        ([*COMPOSED, "measure_objects"], COMPONENTS, "MEASURE_OBJECTS or TABULATE_OBJECTS"),
        ([*COMPOSED, "measure_objects", "tabulate_objects"], COMPONENTS, "EXPORT_LABELS"),
    ],
)
def test_the_process_that_failed_is_named_with_its_log(
    folder: Folder, records: list[str], params: dict, failed: str
) -> None:
    """Half of the windows are in each prediction task; records of another sample prove nothing."""
    folder.params["params"] |= {"on_bad_sample": "skip"} | params
    folder.sample("lost", labels=False)
    folder.sample("here")
    if params:
        folder.objects("here")
        folder.cohort("here")
    windows = {"plan_tiles": 12, "predict_tiles": 6}
    for part, process in enumerate(records):
        counts = {"lost": {"windows": windows[process], "computed": windows[process]}} if process in windows else {}
        folder.record(process, "lost", part=str(part), counts=counts)
    for process in (*COMPOSED, "measure_objects", "export_labels"):
        folder.record(process, "here")
    run = folder.collect()
    assert [sample.name for sample in run.failed] == ["lost"]
    reason = run.failed[0].failure
    assert reason is not None and reason.startswith(f"{failed} failed")
    assert ".command.err" in reason and "pipeline_info/trace.txt" in reason and "tag lost " in reason


@pytest.mark.parametrize(
    ("start", "params", "expected"),
    [
        ("predict", {"stop_after": "split"}, SPLIT),
        ("predict", {"stop_after": "predict"}, [*dict.fromkeys(STITCHED), "compose_store"]),
        ("predict", {"stop_after": "assemble"}, [*dict.fromkeys(COMPOSED)]),
        ("predict", {}, [*dict.fromkeys(COMPOSED), "measure_objects", "tabulate_objects", "export_labels"]),
        ("predict", {"instances": "none", "export": "none"}, [*dict.fromkeys(STITCHED), "compose_store"]),
        ("assemble", {"stop_after": "split"}, ["import_image"]),
        ("assemble", {"instances": "none"}, ["import_image", "compose_store", "export_labels"]),
        ("assemble", {"stop_after": "assemble"}, ["import_image", *COMPOSED[5:]]),
        (
            "assemble",
            {"instances": "watershed", "stop_after": "assemble"},
            ["import_image", *APART[::3], *COMPOSED[5:]],
        ),
        ("assemble", {"instances": "border_core", "stop_after": "assemble"}, ["import_image", *APART, *COMPOSED[5:]]),
        ("assemble", {"instances": "border_core", "stop_after": "predict"}, ["import_image", "compose_store"]),
        (
            "analyze",
            {"instances": "border_core", "export": "none"},
            ["import_image", *COMPOSED[5:], "measure_objects", "tabulate_objects"],
        ),
        (
            "analyze",
            {"instances": "none", "export": "none"},
            ["import_image", *COMPOSED[5:], "measure_objects", "tabulate_objects"],
        ),
    ],
)
def test_every_start_and_stop_has_its_processes(start: str, params: dict, expected: list[str]) -> None:
    assert list(arrival.steps({"start": start}, COMPONENTS | params)) == expected


def test_a_sample_must_bring_what_its_processes_leave(folder: Folder) -> None:
    folder.params["params"] |= COMPONENTS | {"on_bad_sample": "stop"}
    folder.sample("s0", batch="batch1")
    folder.objects("s0")
    folder.cohort("s0")
    folder.record("export_labels", "batch1")
    assert folder.collect().failed == ()
    for lost in ("s0.objects.json", "s0.labels.json", "s0.image.json"):
        path = folder.path / "staged" / lost
        kept = path.read_bytes()
        path.unlink()
        with pytest.raises(TemporaryError, match="1 of 1 samples"):
            folder.collect()
        path.write_bytes(kept)
    labels = folder.path / "staged" / "s0.labels.json"
    value = read_json(labels)
    write_json(labels, value | {"objects": None})
    with pytest.raises(TemporaryError, match="1 of 1 samples"):
        folder.collect()
    write_json(labels, value)
    (export,) = (folder.path / "records").glob("*export_labels*")
    export.unlink()
    with pytest.raises(TemporaryError, match="1 of 1 samples"):
        folder.collect()


def test_a_lost_comparison_is_told(folder: Folder) -> None:
    folder.sample("s0")
    folder.objects("s0")
    with pytest.raises(TemporaryError, match="comparison"):
        folder.collect()
    folder.params["params"]["on_bad_sample"] = "skip"
    run = folder.collect()
    assert run.warnings == ("COMPARE_SAMPLES failed: samples are not compared",)
    assert run.failed == ()


def test_a_sample_that_failed_late_still_shows_its_labels(folder: Folder) -> None:
    folder.params["params"] |= COMPONENTS
    folder.sample("late")
    for process in COMPOSED:
        folder.record(process, "late")
    labels = folder.path / "staged" / "late.labels.json"
    write_json(labels, read_json(labels) | {"objects": 4})
    page = Page(folder.pages()["report.html"])
    assert "Incomplete: 0 of 1 sample" in page.text
    assert "MEASURE_OBJECTS failed" in page.text
    assert len([a for a in page.all("button") if a.get("class") == "stack"]) == 4
    assert {"#failed", "#samples"} <= {a["href"] for a in page.all("a")}
    assert "4 objects in 1 sample." in page.text


def test_a_plan_has_pictures_but_no_labels(folder: Folder) -> None:
    folder.params["params"]["stop_after"] = "split"
    folder.sample("s0", labels=False)
    folder.record("plan_tiles", "s0", outputs={"s0/s0.plan.json": "1" * 64})
    run = folder.collect()
    page = Page(dict(render_report(run, WHEN))["report.html"])
    assert "Planned: 1 sample, stopped after split" in page.text
    assert len([a for a in page.all("button") if a.get("class") == "stack"]) == 4
    assert not [a for a in page.all("img") if a.get("class") == "outlines"]
    assert "Estimate and actual" in page.text
    assert [row["path"] for row in outputs_list(run, {})["outputs"]] == ["s0/s0.plan.json"]


def test_pictures_shrink_until_the_file_is_small_enough(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(3):
        folder.sample(f"s{index}", (2, 700, 1300), noise=1)
    free = folder.pages()["report.html"]
    largest = [max(decoded(a["src"]).size) for a in Page(free).all("img")]
    assert max(largest) == 1024
    monkeypatch.setattr(render, "LARGEST_FILE", 700_000)
    monkeypatch.setattr(render, "LARGEST_TEXT", 100_000)
    assert len(free) > 1_500_000
    tight = folder.pages()["report.html"]
    assert len(tight.encode()) <= 700_000
    assert len([a for a in Page(tight).all("button") if a.get("class") == "stack"]) == 12


def test_processes_are_summed_in_the_order_of_the_data(folder: Folder) -> None:
    folder.sample("s0")
    folder.record("predict_tiles", "s0", wall=12.0, cpu=20.0, memory=3_000_000_000, part="1")
    folder.record("check_input", "check")
    folder.record("another", "s0")
    folder.record("import_image", "s0", disk_bytes=50_000)
    folder.record("import_image", "s1", disk_bytes=7_000)
    run = folder.collect()
    assert [use.name for use in run.processes] == [
        "pack_model",
        "check_input",
        "import_image",
        "predict_tiles",
        "another",
    ]
    use = run.processes[3]
    assert (use.tasks, use.wall_sum, use.wall_max, use.cpu_sum, use.peak_memory) == (2, 42.0, 30.0, 70.0, 3_000_000_000)
    assert [(row.name, row.estimate, row.actual) for row in run.estimates] == [
        ("Windows", 12, 12), ("Prediction, tasks one after another", 40.0, 42.0),
        ("Memory of a prediction task", 2_500_000_000, 3_000_000_000),
        ("Work folder, at its largest", 60_000, 57_000), ("Results", 900, None),
    ]  # fmt: skip


def test_windows_come_from_the_tasks_and_must_add_up(folder: Folder) -> None:
    folder.sample("s0")
    sample = folder.collect().samples[0]
    assert (sample.windows, sample.computed, sample.reused, sample.warnings) == (12, 9, 3, ())
    folder.record("predict_tiles", "s0", part="1", counts={"s0": {"windows": 2, "computed": 2, "reused": 0}})
    assert folder.collect().samples[0].warnings == ("12 windows were planned, 14 are in the tasks' records",)


def test_warnings_reach_their_sample_once(folder: Folder) -> None:
    folder.sample("alone", warnings=["twice"])
    folder.sample("a", batch="batch1")
    folder.sample("b", batch="batch1")
    folder.record(
        "import_image", "alone", warnings=[{"sample": "alone", "text": "twice"}, {"sample": "", "text": "its"}]
    )
    folder.record("import_image", "batch1", warnings=[{"sample": "b", "text": "one"}, {"sample": "", "text": "all"}])
    run = folder.collect()
    assert {sample.name: sample.warnings for sample in run.samples} == {
        "alone": ("twice", "its"),
        "a": (),
        "b": ("one",),
    }
    assert run.warnings == ("all",)
    assert run.warning_count == 4


def test_changed_params_and_differing_versions_stand_out(folder: Folder) -> None:
    folder.sample("s0")
    folder.record("stitch_blocks", "s0", versions={"numpy": "2.3.0"})
    run = folder.collect()
    assert {p.name: (p.value, p.default) for p in run.parameters if p.changed} == {
        "folds": ("0", "all"),
        "input": ("samples.csv", ""),
    }
    assert run.versions == {"voxelmill": ("0.1.0",), "python": ("3.11.2",), "numpy": ("2.2.0", "2.3.0")}
    page = Page(dict(render_report(run, WHEN))["report.html"])
    assert "2.2.0 and 2.3.0" in page.text
    assert "As by default (2)" in page.text


def test_images_without_physical_size_have_no_volumes(folder: Folder) -> None:
    folder.sample("s0")
    folder.image("s0", (6, 20, 24), unit="pixel", spacing=(1.0, 1.0, 1.0))
    labels = folder.path / "staged" / "s0.labels.json"
    value = read_json(labels)
    write_json(labels, value | {"classes": [row | {"volume_um3": None} for row in value["classes"]]})
    page = Page(folder.pages()["report.html"])
    assert "µm³" not in page.text and "mm³" not in page.text
    assert "5 px" in page.text


def test_outputs_have_the_digest_of_every_published_file(folder: Folder) -> None:
    folder.sample("s0")
    outputs = {"s0/labels.ome.zarr": "2" * 64, "s0/s0.labels.json": "3" * 64, "s0/s0.plan.json": "4" * 64}
    folder.record("compose_store", "s0", outputs=outputs)
    folder.record("check_input", "check", outputs={"check/estimate.json": "6" * 64})
    folder.record("import_image", "s0", outputs={"s0/s0.image.zarr": "7" * 64})
    done = run_script(folder)
    assert done.returncode == 0, done.stderr
    html, params = ((folder.path / name).read_bytes() for name in ("report.html", "params.json"))
    assert read_json(folder.path / "outputs.json") == {
        "format": 1,
        "outputs": [
            {"kind": "estimate", "sample": None, "path": "pipeline_info/estimate.json", "sha256": "6" * 64},
            {
                "kind": "params",
                "sample": None,
                "path": "pipeline_info/params.json",
                "sha256": hashlib.sha256(params).hexdigest(),
            },
            {"kind": "report", "sample": None, "path": "report.html", "sha256": hashlib.sha256(html).hexdigest()},
            {"kind": "labels", "sample": "s0", "path": "s0/labels.ome.zarr", "sha256": "2" * 64},
            {"kind": "class_volumes", "sample": "s0", "path": "s0/s0.labels.json", "sha256": "3" * 64},
        ],
    }
    assert read_json(folder.path / "build_report" / "build_report.build_report.json")["outputs"].keys() == {
        "report.html"
    }


def test_all_models_of_an_ensemble_are_named(folder: Folder) -> None:
    folder.sample("s1")
    other = folder.path / "other"
    folder.model(configuration="2d", patch_size=[64, 48], spacing=[1.0, 1.0], mirror_axes=[0, 1])
    (folder.path / "model").rename(other)
    (folder.path / "model").mkdir()
    folder.model()
    folder.params["params"]["model"] = "one;two"
    counts = {"s1": {"windows": 30, "computed": 30, "reused": 0, "piece_bytes": 1}}
    folder.record("predict_tiles", "s1", part="m2.0", counts=counts)
    for part, windows in (("m1", 12), ("m2", 30)):
        folder.record("plan_tiles", "s1", part=part, counts={"s1": {"windows": windows}})
    run = collect_run(*folder.write(), [folder.path / "staged", folder.path / "records"], [other])
    assert [model.config.configuration for model in run.models] == ["3d_fullres", "2d"]
    sample = run.samples[0]
    assert (sample.windows, sample.computed, sample.reused, sample.warnings) == (42, 39, 3, ())
    assert "averaged with those of the model Dataset001_Tubes (configuration 2d" in methods(run)[0]
    assert "Dataset001_Tubes 3d_fullres, Dataset001_Tubes 2d" in dict(render_report(run, WHEN))["report.html"]
    digests = digests_of(run.models)
    assert digests == {"fold_0.safetensors": "5" * 64, "model 2/fold_0.safetensors": "5" * 64}


def test_methods_tell_what_post_processing_removed(folder: Folder) -> None:
    folder.sample("s1")
    folder.sample("s2")
    folder.params["params"]["postprocessing"] = "model"
    told = {"removed_components": 3, "removed_voxels": 1200, "steps": "largest component of labels 1, 2"}
    counts = {"s1": told, "s2": {**told, "removed_components": 1, "removed_voxels": 34}}
    folder.record("postprocess_labels", "s1", counts=counts)
    run = collect_run(*folder.write(), [folder.path / "staged", folder.path / "records"])
    expected = "kept the largest component of labels 1, 2: 4 components of 1,234 voxels became another label."
    assert expected in methods(run)[0]
    assert "post-processing" not in methods(replace(run, records=()))[0]
    found = arrival.steps(folder.samples[0], {"postprocessing": "model"})
    assert found.index("postprocess_labels") == found.index("stitch_blocks") + 1
    assert "postprocess_labels" not in arrival.steps(folder.samples[0], {"postprocessing": "none"})


def test_a_lost_model_of_an_ensemble_is_not_laid_on_the_next_process(folder: Folder) -> None:
    folder.sample("s1", labels=False)
    params = {"model": "one;two", "instances": "components"}
    entry = folder.samples[0]
    expected = arrival.steps(entry, params)
    assert expected.index("average_models") == expected.index("stitch_blocks") + 1
    done = [("import_image", None), ("plan_tiles", "m1"), ("plan_tiles", "m2"), ("predict_tiles", "m1.0")]
    done += [("stitch_blocks", part) for part in ("m1.0", "m2.0", "m2.1", "m2.2")]
    records = [{"process": process, "name": "s1", "part": part, "counts": {}} for process, part in done]
    assert "AVERAGE_MODELS failed" in arrival.failure(entry, expected, records)
    later = [*records, {"process": "average_models", "name": "s1", "part": None, "counts": {}}]
    later += [{"process": "label_blocks", "name": "s1", "part": "0", "counts": {}}]
    assert "LINK_OBJECTS failed" in arrival.failure(entry, expected, later)
