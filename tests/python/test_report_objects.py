"""Objects, comparison and methods in the report: known numbers, found again in the pages by an HTML parser."""

from __future__ import annotations

import base64
import io
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reported import GROUPS, LENGTH, OBJECTS, SVG, TEST, WHEN, Folder, Page
from voxelmill.files import read_json, write_json
from voxelmill.report import render, words
from voxelmill.report.charts import HEIGHT, WIDTH, histogram, seam_chart
from voxelmill.report.figures import COLOURS, LARGEST_CHART
from voxelmill.report.objects import Seam, cohort, object_table
from voxelmill.report.render import render_report

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Two samples with objects, one of them compared with the other."""
    made = Folder(tmp_path)
    for name in ("s0", "s1"):
        made.sample(name)
        made.objects(name)
    made.cohort("s0", "s1")
    return made


def page_of(folder: Folder) -> Page:
    return Page(folder.pages()["report.html"])


def change_labels(folder: Folder, name: str, **changes: object) -> None:
    path = folder.path / "staged" / f"{name}.labels.json"
    write_json(path, read_json(path) | changes)


def test_numbers_of_objects_are_in_the_tables(folder: Folder) -> None:
    page = page_of(folder)
    assert page.rows.count(["Length µm", "3", "20", "8.16", "20.5", "11 to 29", "1030"]) == 2
    assert ["Volume mm³", "3", "0.0025", "–", "0.002", "1.1 × 10⁻⁸ to 2.9 × 10⁻⁸", "1 × 10⁻⁸3 × 10⁻⁸"] in page.rows
    for row in (
        ["Connected parts found", "12", ""], ["Dropped with fewer voxels than asked for", "4", "11"],
        ["Dropped at the border of the image", "3", "1,234"], ["Objects", "5", "777"], ["Measured", "3", ""],
        ["Kept but not measured, at the border", "2", ""], ["Without a skeleton", "1", ""],
        ["Thinned on a coarser grid", "1", ""],
    ):  # fmt: skip
        assert page.rows.count(row) == 2, row
    assert not any("smaller volume" in row[0] for row in page.rows if row)
    tube = next(row for row in page.rows if row[0] == "tube")
    assert tube[1] == "4"
    assert not re.search(r"\b(NaN|nan|None|inf)\b", page.text)


def test_the_overview_says_what_was_found(folder: Folder) -> None:
    assert words.overview(folder.collect()) == (
        "10 objects in 2 samples. 14 were dropped (8 with fewer voxels than asked for and 6 at the border of the "
        "image). 4 objects at the border are in the labels but not measured. 2 objects have no skeleton, and so no "
        "length. Median length 20.5 µm."
    )
    folder.objects("s1", quantities=[LENGTH | {"median": 1500.0}])
    assert words.overview(folder.collect()).endswith("Median length of a sample 20.5 µm to 1.5 mm.")
    assert "10 objects in 2 samples." in page_of(folder).text


def test_without_objects_the_overview_counts_voxels(tmp_path: Path) -> None:
    made = Folder(tmp_path)
    made.sample("s0")
    run = made.collect()
    labelled = sum(row.voxels for row in run.samples[0].classes if row.value)
    assert words.overview(run) == f"1 sample segmented: {100 * labelled / 2880:.2f} % of the voxels belong to a class."
    page = Page(dict(render_report(run, WHEN))["report.html"])
    assert "Length" not in page.text and "Seams" not in page.text
    assert "connected components" not in page.text


def test_a_histogram_has_the_counts_as_areas() -> None:
    row = replace(
        object_table(OBJECTS).quantities[0],
        n=10,
        edges=(1.0, 2.0, 3.0, 5.0),
        counts=(1, 0, 9),
        median=4.0,
        min=1.25,
        max=4.5,
        unit="",
    )
    chart = histogram(row)
    assert chart is not None
    areas = [width * height for _, _, width, height in chart.bars]
    assert areas[1] / areas[0] == pytest.approx(9, rel=1e-2)
    assert [(x, width) for x, _, width, _ in chart.bars] == [(0, WIDTH / 4), (WIDTH / 2, WIDTH / 2)]
    assert all(y + height == pytest.approx(HEIGHT) for _, y, _, height in chart.bars)
    assert (chart.median, chart.first, chart.last) == (0.75 * WIDTH, "1.25", "4.5")
    assert chart.words == "Histogram: of 10, the most (9) are from 3 to 5"
    assert histogram(replace(row, counts=(0, 0, 0))) is None


def test_histograms_are_told_to_those_who_do_not_see_them(folder: Folder) -> None:
    drawn = [a for a in page_of(folder).all("svg") if a.get("class") == "histogram"]
    assert [a["aria-label"] for a in drawn[:2]] == [
        "Histogram: of 3, the most (2) are from 20 µm to 30 µm",
        "Histogram: of 3, the most (2) are from 20 µm³ to 30 µm³",
    ]  # fmt: skip
    assert all(a["role"] == "img" for a in drawn) and len(drawn) == 4


def test_the_gallery_shows_outline_path_and_scale(folder: Folder) -> None:
    page = page_of(folder)
    shown = [a for a in page.all("img") if "object with its outline" in (a["alt"] or "")]
    assert [a["alt"] for a in shown[:2]] == [
        "Largest object with its outline and its longest path", "Smallest object with its outline",
    ]  # fmt: skip
    lines = [a["points"] for a in page.all("polyline")]
    assert lines == ["175,500 825,500"] * 4  # each drawn twice, in two samples
    assert "7 blob" in page.text and "321 voxels, 642 µm³" in page.text and "length 30 µm, 1 branch" in page.text
    assert "not measured" in page.text
    outlines = [a["src"] for a in page.all("img") if a.get("class") == "outlines"][4:6]
    for address, colour in zip(outlines, (COLOURS[1], COLOURS[0]), strict=True):
        layer = np.array(Image.open(io.BytesIO(base64.b64decode(address.split(",", 1)[1]))).convert("RGBA"))
        assert layer.shape[:2] == (256, 512)
        inside = layer[..., 3] > 0
        assert {tuple(pixel) for pixel in layer[inside][:, :3]} == {tuple(bytes.fromhex(colour[1:]))}
        rows, columns = np.nonzero(inside)
        assert (rows.min(), rows.max()) == (-(-2 * 256 // 10), 8 * 256 // 10)
        assert (columns.min(), columns.max()) == (-(-3 * 512 // 20), 17 * 512 // 20)
    assert "20 µm" in page.text  # 80 µm wide


def test_the_length_chart_is_a_picture_with_its_numbers(folder: Folder) -> None:
    def charts() -> list[dict[str, str | None]]:
        return [a for a in page_of(folder).all("img") if (a["src"] or "").startswith("data:image/svg")]

    own, _, _ = found = sorted(charts(), key=lambda a: a["alt"] or "", reverse=True)
    assert [base64.b64decode(a["src"].split(",", 1)[1]) for a in found] == [SVG] * 3
    assert own["alt"] == (
        "Chart of the longest path of 3 objects: mean 20 µm, standard deviation 8.165 µm, median 20.5 µm, 90 % between "
        "11 µm and 29 µm"
    )
    assert found[2]["alt"] == (
        "Chart of length by group. wild: 1 sample, 3 objects, mean 20 µm, median 20.5 µm; mutant: 1 sample, 8 objects, "
        "mean 30 µm, median 31 µm"
    )
    (folder.path / "staged" / "s0.lengths.svg").write_bytes(SVG.ljust(LARGEST_CHART + 1))
    assert len(charts()) == 2


def test_a_sample_without_objects_has_no_empty_parts(folder: Folder) -> None:
    none = dict.fromkeys(("below_min_voxels", "below_min_volume", "touches_border"), 0)
    empty = {"objects": 0, "measured": 0, "components": 0, "skeleton_empty": 0, "reduced_resolution": 0}
    for name in ("s0", "s1"):
        folder.objects(name, **empty, quantities=[], gallery=[], classes=[], dropped=none, dropped_voxels=none)
        (folder.path / "staged" / f"{name}.gallery.npz").unlink()
    page = page_of(folder)
    assert "0 objects in 2 samples. " not in page.text and "0 objects in 2 samples." in page.text
    assert ["Objects", "0", "0"] in page.rows
    assert "Histogram" not in page.text and not page.all("polyline")


def seam(axis: str, cuts: int, ratio: float | None, chance: float | None = 0.02) -> Seam:
    return Seam(axis, cuts, None if ratio is None else 0.01 * ratio, 0.01, ratio, chance)


def test_seams_are_drawn_around_one() -> None:
    chart = seam_chart([seam("z", 1, 1.0), seam("y", 2, 1.1), seam("x", 1, None)])
    assert (chart.low, chart.high, chart.one) == (0.8, 1.2, 50)
    assert chart.band == (37.5, 62.5)
    assert chart.marks == (50, 75, None)
    wide = seam_chart([seam("z", 1, 3.0)])
    assert (wide.low, wide.high, wide.marks) == (0, 2, (100,))


@pytest.mark.parametrize(
    ("seams", "start"),
    [
        ([], "Not measured: the sample is a single block"),
        ([("z", 0, None)], "Not measured: the sample is a single block"),
        ([("z", 1, None)], "Not measured: no label changes"),
        ([("z", 1, 1.049), ("y", 1, None)], "Labels change across the planes where blocks meet as often as elsewhere"),
        (
            [("z", 1, 1.2), ("y", 1, 1.0)],
            "Labels change across the planes where blocks meet along z 20 % more often",
        ),
        ([("z", 1, 0.9)], "Labels change across the planes where blocks meet along z 10 % less often"),
        ([("z", 4, 1.2, 0.3)], "Labels change across the planes where blocks meet as often as elsewhere"),
        ([("z", 1, 1.2, None), ("y", 4, 1.2, 0.3)], "There are too few planes"),
        ([("z", 1, 1.2, None), ("y", 4, 1.2, 0.1)], "Labels change across the planes where blocks meet along y 20 %"),
    ],
)
def test_seams_are_explained(seams: list[tuple], start: str) -> None:
    assert words.seam_sentence([seam(*row) for row in seams]).startswith(start)


def test_seams_are_shown_where_they_were_measured(folder: Folder) -> None:
    rows = [{"axis": "z", "cuts": 0, "rate": None, "reference": 0.1, "ratio": None, "chance": None}]
    seen = {"axis": "x", "cuts": 3, "rate": 0.2, "reference": 0.1, "ratio": 2.0, "chance": 0.5}
    change_labels(folder, "s0", seams=[*rows, seen])
    change_labels(folder, "s1", seams=rows)
    page = page_of(folder)
    assert ["x", "3", "2", ""] in page.rows
    assert not any(row[:1] == ["z"] for row in page.rows)
    assert "along x 100 % more often" in page.text
    assert "Not measured: the sample is a single block, so nothing was cut." in page.text


def test_samples_and_groups_are_compared(folder: Folder) -> None:
    page = page_of(folder)
    assert ["wild", "1", "53", "20± 8", "20.5"] in page.rows
    assert ["mutant", "1", "98", "30", "31"] in page.rows
    assert ["s0", "wild", "5", "3", "20.25", "–", "0.0025"] in page.rows
    assert "Mann–Whitney U of sample means of length: statistic 3.5; p = 0.042; Cliff's delta = 0.667." in page.text
    assert "in 4.2 % of runs" in page.text
    assert "Samples are the units." in page.text and "In no group: s9." in page.text
    assert "objects.csv" in [a["href"] for a in page.all("a")]
    assert {"s0/s0.objects.csv", "s0/s0.axons.json"} <= {a["href"] for a in page.all("a")}
    assert "s0/s0.lengths.png" not in {a["href"] for a in page.all("a")}


@pytest.mark.parametrize(
    ("test", "sentence"),
    [
        (None, ""),
        (
            TEST | {"p": 1e-5, "effect": {}},
            "Mann–Whitney U of sample means of length: statistic 3.5; p < 0.001. If the groups did not differ, chance "
            "would set their sample means of length apart as far as here in fewer than 1 in 1,000 of runs.",
        ),
        (
            TEST | {"p": None, "statistic": None},
            "Mann–Whitney U of sample means of length: Cliff's delta = 0.667.",
        ),
    ],
)
def test_a_test_is_put_into_words(test: dict | None, sentence: str) -> None:
    value = {"length": "longest_path", "unit": "um", "groups": GROUPS, "samples": [], "test": test, "note": ""}
    assert words.test_sentence(cohort(value)) == sentence


def test_one_sample_alone_is_not_compared(tmp_path: Path) -> None:
    made = Folder(tmp_path)
    made.sample("s0")
    made.objects("s0")
    made.cohort("s0", groups=[], test=None, note="")
    page = page_of(made)
    assert "Comparison" not in page.text
    assert "5 objects in 1 sample." in page.text


def test_pixel_units_reach_every_number(tmp_path: Path) -> None:
    made = Folder(tmp_path)
    for name in ("s0", "s1"):
        made.sample(name)
        made.image(name, (6, 20, 24), unit="pixel", spacing=(1.0, 1.0, 1.0))
        made.objects(name, unit="pixel", quantities=[LENGTH | {"unit": "px", "mean": 2000.0}])
        path = made.path / "staged" / f"{name}.labels.json"
        value = read_json(path)
        write_json(path, value | {"classes": [row | {"volume_um3": None} for row in value["classes"]]})
    made.cohort("s0", "s1", unit="pixel", groups=[], test=None)
    page = page_of(made)
    assert not any("µm" in cell or "mm" in cell for row in page.rows for cell in row)
    assert ["s0", "wild", "5", "3", "20.25", "–", "2,500,000"] in page.rows
    assert "Median length 20.5 px." in page.text and "length 30 px" in page.text
    assert ["Length px", "3", "2,000", "8.16", "20.5", "11 to 29", "1030"] in page.rows


def test_methods_are_the_facts_of_the_run(folder: Folder) -> None:
    folder.params["params"] |= {
        "step_size": 0.25, "mirroring": "on", "connectivity": "26", "components_of": "foreground",
        "min_object_voxels": 20, "min_object_volume": 1.5, "border_objects": "drop",
    }  # fmt: skip
    folder.model(folds=["0", "1"])
    segmentation, objects, software = words.methods(folder.collect())
    for fact in (
        "nnU-Net model Dataset001_Tubes (configuration 3d_fullres, trainer nnUNetTrainer, the folds 0 and 1 averaged",
        "windows of 16 × 32 × 32 voxels at a step of 0.25", "mirrored windows (network axes z, y and x)",
        "resampled to the model's voxel size of 2 × 1 × 1 µm", "Voxel size (z × y × x) 2 × 1 × 1 µm.",
    ):  # fmt: skip
        assert fact in segmentation, fact
    for fact in (
        "connected components of all classes together in the whole image (26-connectivity: voxels that share a face,",
        "Objects of fewer than 20 voxels or of less than 1.5 µm³ were left out.",
        "Objects at the border of the image were left out.",
        "thinned to its skeleton (Lee, Kashyap and Chu", "Length is the longest of all shortest paths",
        "2 large objects were thinned on a coarser grid.",
        "Groups were compared on their sample means of length (Mann–Whitney U).",
    ):  # fmt: skip
        assert fact in objects, fact
    assert "(revision abc123), python 3.11.2, numpy 2.2.0. Networks ran on cpu." in software
    page = page_of(folder)
    assert all(paragraph in page.text for paragraph in (segmentation, objects, software))


def test_methods_say_how_objects_that_touch_were_told_apart(folder: Folder) -> None:
    params = {"instances": "border_core", "core_label": "nucleus", "border_label": "rim", "seed_distance": 7}
    folder.params["params"] |= params
    objects = words.methods(folder.collect())[1]
    assert "the cores of the class nucleus" in objects and "voxels of the class rim" in objects
    assert "connected components" not in objects
    folder.params["params"] |= {"instances": "watershed", "components_of": "class"}
    objects = words.methods(folder.collect())[1]
    assert "basins of a watershed" in objects and "of each class" in objects and "within 7 voxels" in objects
    assert "nucleus" not in objects


DIAMETER = LENGTH | {"name": "equivalent_diameter_um", "label": "Equivalent diameter", "median": 12.5, "mean": 12.0}
SIZES = {"d10": 5.0, "d50": 14.0, "d90": 2000.0}


def with_shapes(folder: Folder, name: str, **changes: object) -> None:
    """A sample whose objects have shapes and no skeletons."""
    gallery = [{**row, "length": None, "branches": None, "diameter": 9.5} for row in OBJECTS["gallery"]]
    values = {"length": None, "quantities": [DIAMETER], "sizes": SIZES, "gallery": gallery, "skeleton_empty": 0}
    folder.objects(name, **values | changes)
    (folder.path / "staged" / f"{name}.lengths.svg").unlink()
    (folder.path / "staged" / f"{name}.sizes.svg").write_bytes(SVG)


def test_objects_without_skeletons_have_sizes(folder: Folder) -> None:
    for name in ("s0", "s1"):
        with_shapes(folder, name, reduced_resolution=0)
    folder.cohort("s0", "s1", length="equivalent_diameter")
    (folder.path / "staged" / "lengths_by_group.svg").rename(folder.path / "staged" / "sizes_by_group.svg")
    run = folder.collect()
    assert words.overview(run).endswith("not measured. Median equivalent diameter 12.5 µm.")
    page = Page(dict(render_report(run, WHEN))["report.html"])
    charts = [a["alt"] for a in page.all("img") if (a["src"] or "").startswith("data:image/svg")]
    sizes = "D10 5 µm, D50 14 µm and D90 2 mm"
    told = f"Chart of the equivalent diameter of 3 objects, and of their share of the volume: {sizes}"
    assert charts.count(told) == 2
    assert len(charts) == 3 and any((alt or "").startswith("Chart of diameter by group. wild") for alt in charts)
    assert f"{sizes}: 10, 50 and 90 % of the volume" in page.text
    assert "diameter 9.5 µm" in page.text and "length " not in page.text.partition("Methods")[0].lower()
    assert "Coloured: outline." in page.text
    assert ["Equivalent diameter µm", "3", "12", "8.16", "12.5", "11 to 29", "1030"] in page.rows
    assert any("Mean diameterµm" in cell for row in page.rows for cell in row)
    _, objects, _ = words.methods(run)
    for fact in ("marching cubes", "ball of equal volume", "same second moments", "share a face"):
        assert fact in objects, fact
    for other in ("skeleton", "Length is", "perimeter", "coarser"):
        assert other not in objects, other


def test_objects_of_a_plane_have_perimeters(folder: Folder) -> None:
    perimeter = LENGTH | {"name": "perimeter_um", "label": "Perimeter"}
    for name in ("s0", "s1"):
        with_shapes(folder, name, quantities=[DIAMETER, perimeter])
    run = folder.collect()
    assert "share of the area: D10 5 µm" in words.size_alternative(run.samples[0].objects)
    _, objects, _ = words.methods(run)
    assert "marching squares" in objects and "marching cubes" not in objects


def test_without_objects_there_are_no_sizes(folder: Folder) -> None:
    with_shapes(folder, "s0", quantities=[], sizes=None, gallery=[])
    table = folder.collect().samples[0].objects
    assert words.size_alternative(table) == "Chart of size: no object was measured"
    assert words.size_sentence(table) == ""
    assert "D10" not in page_of(folder).text


def test_objects_far_below_the_mean_are_counted(folder: Folder) -> None:
    folder.params["params"] |= {"min_object_fraction": 0.005}
    dropped = {"below_min_voxels": 0, "below_min_volume": 0, "below_mean_fraction": 6, "touches_border": 0}
    for name in ("s0", "s1"):
        folder.objects(name, dropped=dropped, dropped_voxels=dropped)
    run = folder.collect()
    assert "12 were dropped (12 smaller than the asked share of the mean volume)." in words.overview(run)
    assert "Objects of less than 0.5 % of the mean volume of a sample's objects were left out." in words.methods(run)[1]
    assert ["Dropped smaller than the asked share of the mean volume", "6", "6"] in page_of(folder).rows


def test_methods_of_other_choices(folder: Folder) -> None:
    folder.params["params"] |= {
        "mirroring": "off",
        "min_object_voxels": 0,
        "border_objects": "keep",
        "connectivity": "6",
    }
    folder.model(spacing_unit="none")
    for name in ("s0", "s1"):
        folder.objects(name, length="longest_branch", reduced_resolution=0)
    segmentation, objects, _ = words.methods(folder.collect())
    assert "fold 0; Isensee" in segmentation and "Windows were not mirrored. Images were not resampled." in segmentation
    assert "components of each class in" in objects and "No object was left out for its size." in objects
    assert "were kept but not measured" in objects and "the longest single branch" in objects
    assert "coarser" not in objects
    assert "white: longest branch." in page_of(folder).text


def test_given_labels_need_no_model(folder: Folder) -> None:
    shutil.rmtree(folder.path / "model")
    for path in (folder.path / "records").glob("*predict*"):
        path.unlink()
    for entry, start in zip(folder.samples, ("assemble", "analyze"), strict=True):
        entry["start"] = start
        change_labels(folder, entry["id"], windows=0)
    run = folder.collect()
    assert run.model is None and run.warning_count == 0
    page = Page(dict(render_report(run, WHEN))["report.html"])
    assert "none, labels were given" in page.text and "Card" not in page.text
    assert "Labels or instances of all samples were given, not predicted." in page.text
    assert "nnU-Net" not in page.text and "planned" not in page.text
    assert {a["style"] for a in page.all("span") if a.get("class") == "swatch"} == {
        f"background:{colour}" for colour in COLOURS[:2]
    }
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")} <= ids


def test_disk_is_summed_and_its_freeing_explained(folder: Folder) -> None:
    folder.record("import_image", "s0", disk_bytes=1_500_000)
    folder.record("import_image", "s1", disk_bytes=500_000)
    folder.record("stitch_blocks", "s0", disk_bytes=3_000_000)
    run = folder.collect()
    assert {use.name: use.disk for use in run.processes if use.disk} == {
        "import_image": 2_000_000,
        "stitch_blocks": 3_000_000,
    }
    assert run.disk == 5_000_000
    page = Page(dict(render_report(run, WHEN))["report.html"])
    assert next(row for row in page.rows if row[0] == "IMPORT_IMAGE")[-1] == "2.00 MB"
    assert next(row for row in page.rows if row[0] == "PACK_MODEL")[-1] == "–"
    assert ["Work folder, at its largest", "60.0 kB", "5.00 MB"] in page.rows
    assert "The tasks left 5.00 MB in the work folder." in page.text and "nextflow clean -f" in page.text
    folder.params["params"]["cleanup"] = True
    assert "removed at the end of the run" in page_of(folder).text


def test_no_disk_is_claimed_where_none_was_measured(folder: Folder) -> None:
    page = page_of(folder)
    assert "Disk" not in [cell[:4] for row in page.rows for cell in row]
    assert "nextflow clean" not in page.text


def test_text_of_others_is_only_text(folder: Folder) -> None:
    classes = [{"value": 1, "name": HOSTILE, "objects": 5, "voxels": 9}]
    gallery = [{"key": "largest", "id": 7, "class": HOSTILE, "voxels": 1, "volume": 2.0, "length": 3.0, "branches": 1}]
    quantities = [LENGTH | {"label": HOSTILE, "unit": HOSTILE}]
    folder.objects("s0", classes=classes, gallery=gallery, quantities=quantities, warnings=[HOSTILE])
    test = TEST | {"name": HOSTILE, "of": HOSTILE, "note": HOSTILE, "effect": {HOSTILE: HOSTILE}}
    folder.cohort("s0", "s1", groups=[GROUPS[0] | {"name": HOSTILE}], note=HOSTILE, unit=HOSTILE, test=test)
    page = page_of(folder)
    assert page.text.count(HOSTILE) > 12
    assert all("onerror" not in attributes and attributes.get("src") != "x" for _, attributes in page.tags)


def test_the_file_stays_small_with_everything_in_it(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for name in ("s0", "s1"):
        (folder.path / "staged" / f"{name}.lengths.svg").write_bytes(SVG.ljust(100_000))
        path = folder.path / "staged" / f"{name}.gallery.npz"
        with np.load(path) as stored:
            arrays = dict(stored)
        arrays |= {key: rng.integers(0, 255, (256, 256)).astype(np.uint8) for key in arrays if key.endswith("_grey")}
        arrays |= {key: rng.random((256, 256)) < 0.5 for key in arrays if key.endswith("_mask")}
        np.savez(path, **arrays)
    free = len(folder.pages()["report.html"])
    assert free > 500_000
    monkeypatch.setattr(render, "LARGEST_FILE", 350_000)
    monkeypatch.setattr(render, "LARGEST_TEXT", 100_000)
    tight = folder.pages()["report.html"]
    assert len(tight.encode()) <= 350_000
    assert len([a for a in Page(tight).all("button") if a.get("class") == "stack"]) == 8
    assert ["Length µm", "3", "20", "8.16", "20.5", "11 to 29", "1030"] in Page(tight).rows


@pytest.mark.parametrize("number", [2, 23])
def test_headings_are_in_order_and_everything_has_a_name(folder: Folder, number: int) -> None:
    (folder.path / "model" / "card.md").write_text("## Deep\n\n#### Deeper\n\n## Again\n")
    for index in range(2, number):
        folder.sample(f"s{index}")
        folder.objects(f"s{index}")
    change_labels(
        folder, "s0", seams=[{"axis": "x", "cuts": 3, "rate": 0.2, "reference": 0.1, "ratio": 2.0, "chance": 0.5}]
    )
    pages = folder.pages()
    assert len(pages) == (1 if number == 2 else 24)
    for html in pages.values():
        page = Page(html)
        levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels)), levels
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        assert next(a["href"] for a in page.all("a")) == "#main" and "main" in ids
        assert all(a.get("aria-label") or a.get("aria-hidden") == "true" for a in page.all("svg"))
        regions = [a for a in page.all("div") if a.get("class") == "scroll"]
        assert all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in regions)
        assert all((a["src"] or "").startswith("data:image/") for a in page.all("img"))


def test_a_samples_own_page_leads_to_its_tables(folder: Folder) -> None:
    for index in range(2, 21):
        folder.sample(f"s{index}")
    pages = folder.pages()
    own = Page(pages["report/0001-s0.html"])
    assert "../s0/s0.objects.csv" in [a["href"] for a in own.all("a")]
    assert ["Length µm", "3", "20", "8.16", "20.5", "11 to 29", "1030"] in own.rows
    index = Page(pages["report.html"])
    assert ["mutant", "1", "98", "30", "31"] in index.rows
    assert "report/0001-s0.html" in [a["href"] for a in index.all("a")]


def test_paper_is_a4_and_shows_what_is_folded(folder: Folder) -> None:
    html = folder.pages()["report.html"]
    style = html[html.index("<style>") : html.index("</style>")]
    printed = style[style.index("@media print") :]
    assert "size: A4" in printed and "color-scheme: light" in printed
    assert "details::details-content { content-visibility: visible" in printed
    assert ".scroll { overflow: visible; }" in printed
    assert style.index("prefers-color-scheme: dark") < style.index("@media print")
