"""The samplesheet, and CHECK_INPUT's comparison of images with a model."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import os
import pickle
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
import zarr

from conftest import ROOT
from voxelmill import check as check_module
from voxelmill import forecast
from voxelmill.check import check_input, is_staged_as, refuse_cores, with_all_faults
from voxelmill.convert.mending import open_given
from voxelmill.convert.request import Request
from voxelmill.errors import (
    BadDataError,
    FaultsError,
    InputMissingError,
    ModelMismatchError,
    UsageError,
    VoxelmillError,
    WriteFailedError,
)
from voxelmill.evaluation.request import Evaluation
from voxelmill.files import read_json
from voxelmill.fit import CheckOptions
from voxelmill.forecast import Checked, name_batches
from voxelmill.formats.base import NO_CHOICE
from voxelmill.model.config import ModelConfig
from voxelmill.model.package import load_config, new_package, weights_name
from voxelmill.planning import Options
from voxelmill.samplesheet import read_sheet, rows_of_images

SCHEMA = ROOT / "assets" / "schema_input.json"


def model(**changes: Any) -> ModelConfig:
    """A model of one grey channel with patches of 8 x 16 x 16 voxels of 2 x 1 x 1 micrometres."""
    dimensions = len(changes.get("patch_size", (8, 16, 16)))
    layers = {"conv_op": f"torch.nn.Conv{dimensions}d", "norm_op": f"torch.nn.InstanceNorm{dimensions}d",
              "dropout_op": None, "nonlin": "torch.nn.LeakyReLU"}  # fmt: skip
    architecture = {
        "class": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "imports": list(layers),
        "kwargs": layers
        | {
            "n_stages": 2,
            "features_per_stage": [4, 8],
            "kernel_sizes": [[3] * dimensions] * 2,
            "strides": [[1] * dimensions, [2] * dimensions],
            "n_conv_per_stage": [1, 1],
            "n_conv_per_stage_decoder": [1],
            "conv_bias": True,
            "norm_op_kwargs": {"affine": True},
            "dropout_op_kwargs": None,
            "nonlin_kwargs": {"inplace": True},
        },
    }
    resampling = {"name": "resample_data_or_seg_to_shape", "kwargs": {"is_seg": False, "order": 1, "order_z": 0,
                  "force_separate_z": None}}  # fmt: skip
    values: dict[str, Any] = {
        "configuration": "3d_fullres",
        "trainer": "nnUNetTrainer",
        "dataset_name": "Dataset001_Test",
        "patch_size": (8, 16, 16),
        "spacing": (2.0, 1.0, 1.0)[-dimensions:],
        "spacing_unit": "um",
        "transpose_forward": (0, 1, 2),
        "normalization": ("ZScoreNormalization",) * len(changes.get("channel_names", ("grey",))),
        "intensity_properties": {},
        "resampling_data": resampling,
        "resampling_probabilities": resampling,
        "channel_names": ("grey",),
        "labels": {"background": 0, "axon": 1},
        "regions_class_order": None,
        "heads": 2,
        "foreground_values": (1,),
        "ignore_label": None,
        "mirror_axes": (),
        "architecture": architecture,
        "reader": "Tiff3DIO",
        "folds": ("0",),
    }
    return ModelConfig(**(values | changes))


def write_package(path: Path, config: ModelConfig) -> Path:
    """A package whose weights nobody will read."""
    with new_package(path) as package:
        package.add_config(config)
        for fold in config.folds:
            package.add(weights_name(fold), b"")
    assert load_config(path) == config
    return path


def write_image(path: Path, shape: Sequence[int] = (6, 20, 20), spacing: Sequence[float] | None = (2, 1, 1)) -> Path:
    """An OME-TIFF with sizes in micrometres."""
    sizes = (
        {} if spacing is None else dict(zip(("PhysicalSizeZ", "PhysicalSizeY", "PhysicalSizeX"), spacing, strict=True))
    )
    axes = "CZYX"[-len(shape) :]
    tifffile.imwrite(path, np.ones(shape, "u1"), ome=True, photometric="minisblack", metadata={"axes": axes, **sizes})
    return path


def stage(folder: Path, names: Sequence[str], base: Path) -> Path:
    """Numbered folders with links to the images, as Nextflow makes them; a missing image leaves a gap."""
    for number, name in enumerate(names, 1):
        if (base / name).exists():
            (folder / str(number)).mkdir(parents=True)
            (folder / str(number) / Path(name).name).symlink_to(base / name)
    folder.mkdir(exist_ok=True)
    return folder


def run(
    base: Path,
    rows: Sequence[Mapping[str, str]] | None = None,
    images: Sequence[str] = (),
    config: ModelConfig | str | None = "model",
    **options: Any,
) -> Checked:
    """Check rows of a sheet, or images without a sheet, that lie in ``base``."""
    sheet = None
    if rows is not None:
        sheet = base / "samplesheet.csv"
        with open(sheet, "w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)
        images = []
        for row in rows:
            images += [part.strip() for part in row.get("image", "").split(";") if part.strip()]
            opened = ("semantic", "instances", *(("truth",) if options.get("evaluate") else ()))
            images += [row[column] for column in opened if row.get(column)]
    staged = stage(base / f"staged{len(list(base.glob('staged*')))}", images, base)
    return check_input(sheet, staged, SCHEMA, model() if config == "model" else config, CheckOptions(**options))


def load_script(name: str) -> Any:
    """A script of ``bin/`` as a module."""
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / "bin" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The sheet


def sheet_of(tmp_path: Path, data: bytes) -> tuple[list, list]:
    (tmp_path / "s.csv").write_bytes(data)
    return read_sheet(tmp_path / "s.csv", json.loads(SCHEMA.read_text()))[:2]


def test_sheet_with_mark_windows_lines_and_blanks(tmp_path: Path) -> None:
    data = '\ufeffsample, image ,spacing\r\n\r\na, b c.tif ,"2,1,1"\r\nb,ü1.tif;ü2.tif,\r\n'.encode()
    rows, rejected = sheet_of(tmp_path, data)
    assert not rejected
    assert [(r.number, r.sample, r.names, r.images) for r in rows] == [
        (3, "a", ("b c.tif",), (1,)),
        (4, "b", ("ü1.tif", "ü2.tif"), (2, 3)),
    ]
    assert rows[0].values == {"spacing": "2,1,1"} and rows[1].values == {}


def test_every_fault_of_every_row_is_told(tmp_path: Path) -> None:
    lines = ["sample,image,unit,sha256,semantic,instances", "../x,a.tif,,,,", "A,a.tif,feet,12,,", "a,,,,,",
             "con.x,a.tif,,,l.tif,m.tif", "ok,a.tif,um,,,"]  # fmt: skip
    data = "\n".join(lines).encode()
    rows, rejected = sheet_of(tmp_path, data)
    assert [(row.sample, row.images) for row in rows] == [("ok", (6,))]
    text = "\n".join(str(one.error) for one in rejected)
    for words in (
        "'../x'",
        "'feet'",
        "um, nm, mm, m, pixel",
        "'12'",
        "no image",
        "rows 3 and 4",
        "Windows",
        "labels in semantic and in instances",
    ):
        assert words in text
    assert {one.error.code for one in rejected} == {65}


@pytest.mark.parametrize("name", ["Pipeline_Info", "report", "REPORT.html", "outputs.json"])
def test_no_sample_has_the_name_of_something_published(tmp_path: Path, name: str) -> None:
    rows, rejected = sheet_of(tmp_path, f"sample,image\n{name},a.tif\n{name}s,b.tif\n".encode())
    assert [row.sample for row in rows] == [f"{name}s"]
    assert "is the name of a result" in str(rejected[0].error) and rejected[0].error.code == 65
    assert rows_of_images({1: f"{name}.tif"})[0].sample == f"s_{name}"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"sample,image\n", "no samples"),
        (b"sampel,image\na,b.tif\n", "did you mean 'sample'"),
        (b"sample,image,Spacing\na,b.tif,1\n", "did you mean 'spacing'"),
        (b"sample\na\n", "'image' is missing"),
        (b"sample,image,image\na,b,c\n", "twice"),
        (b"sample;image\na;b\n", "semicolons"),
        ("sample,image\nä,b\n".encode("latin-1"), "UTF-8"),
        (b'sample,image\na,"b\n', "CSV"),
    ],
)
def test_sheets_that_are_none(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(BadDataError) as caught:
        sheet_of(tmp_path, data)
    assert words in str(caught.value)


def test_cells_beyond_the_header(tmp_path: Path) -> None:
    _, rejected = sheet_of(tmp_path, b"sample,image,spacing\na,b.tif,2,1,1\n")
    assert "5 cells under 3 columns" in str(rejected[0].error)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_an_image_under_another_rows_number_is_refused(tmp_path: Path, skip_bad: bool) -> None:
    """The sheet is read twice, here and where images are staged: what the two make of it must be the same."""
    for name in ("a.tif", "raw/b.tif", "c.tif", "more/c.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_image(tmp_path / name)
    sheet = tmp_path / "samplesheet.csv"
    sheet.write_text("sample,image\na,a.tif\nb,./raw/b.tif\nc,c.tif\n")

    def checked(staged: str, *names: str) -> Checked:
        folder = stage(tmp_path / staged, names, tmp_path)
        return check_input(sheet, folder, SCHEMA, model(), CheckOptions(skip_bad=skip_bad), images=len(names))

    assert [entry["id"] for entry in checked("right", "a.tif", "raw/b.tif", "c.tif").samples] == ["a", "b", "c"]
    with pytest.raises(BadDataError, match=r"'c\.tif' was taken for file 2, the sheet names '\./raw/b\.tif'") as caught:
        checked("moved", "a.tif", "c.tif", "raw/b.tif")
    assert caught.value.sample == "b"
    with pytest.raises(BadDataError, match="4 files were found in the samplesheet, 3 are named in it"):
        checked("shifted", "a.tif", "raw/b.tif", "c.tif", "more/c.tif")


def test_labels_under_another_rows_number_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.tif")
        write_labels(tmp_path / f"{name}_l.tif")
    sheet = tmp_path / "samplesheet.csv"
    sheet.write_text("sample,image,instances\na,a.tif,a_l.tif\nb,b.tif,b_l.tif\n")
    moved = stage(tmp_path / "moved", ["a.tif", "b_l.tif", "b.tif", "a_l.tif"], tmp_path)
    with pytest.raises(BadDataError, match=r"'b_l\.tif' was taken for file 2, the sheet names 'a_l\.tif'"):
        check_input(sheet, moved, SCHEMA, None, CheckOptions(), images=4)


def test_staged_names_of_paths_and_addresses() -> None:
    for name, staged in (("../a b.tif", "a b.tif"), ("v.zarr/", "v.zarr"), ("a%20b.tif", "a%20b.tif")):
        assert is_staged_as(name, staged)
    for staged in ("a b.tif", "a%20b.tif", "a b.tif?key=1/2"):
        assert is_staged_as("https://host/x/a%20b.tif?key=1/2", staged)
    assert not is_staged_as("a%20b.tif", "a b.tif") and not is_staged_as("https://host/a.tif", "b.tif")


def test_rows_of_images() -> None:
    names = ["a_0000.tif", "a_0001.tif", "b_0001.tif", "b_0002.tif", "Präparat 1.ome.tif", "Pra\u0308parat 1.nii.gz",
             "con.zarr", "...", "c_0000.nii.gz", "../x$(y).tif", "x" * 80 + ".tif"]  # fmt: skip
    rows = rows_of_images(dict(enumerate(names, 1)))
    assert [(row.sample, row.images) for row in rows] == [
        ("a", (1, 2)),
        ("b_0001", (3,)),
        ("b_0002", (4,)),
        ("Praparat_1", (5,)),
        ("Praparat_1-2", (6,)),
        ("s_con", (7,)),
        ("sample", (8,)),
        ("c", (9,)),
        ("x_y_", (10,)),
        ("x" * 64, (11,)),
    ]


def test_labels_are_numbered_after_the_images_of_their_row(tmp_path: Path) -> None:
    """Also those of rows that are rejected: Nextflow numbers files without judging rows."""
    data = b"sample,image,semantic,instances\na,1.tif;2.tif,l;3.tif,\nb,4.tif,5.tif,6.tif\nc,7.tif,,8.tif\nd,9.tif,,\n"
    (tmp_path / "s.csv").write_bytes(data)
    rows, rejected, files = read_sheet(tmp_path / "s.csv", json.loads(SCHEMA.read_text()))
    assert [(row.sample, row.start, row.files) for row in rows] == [
        ("a", "assemble", [(1, "1.tif"), (2, "2.tif"), (3, "l;3.tif")]),
        ("c", "analyze", [(7, "7.tif"), (8, "8.tif")]),
        ("d", "predict", [(9, "9.tif")]),
    ]
    assert [one.sample for one in rejected] == ["b"] and files == 9


# Images and model


def test_entry_of_samples_json(tmp_path: Path) -> None:
    write_image(tmp_path / "a.ome.tif")
    result = run(tmp_path, images=["a.ome.tif"])
    assert result.samples == [
        {
            "id": "a", "batch": "a", "start": "predict", "images": [1], "channel": [0],
            "format": "OME-TIFF", "shape": [1, 6, 20, 20], "dtype": "uint8", "spacing": [2.0, 1.0, 1.0],
            "unit": "um", "spacing_origin": "OME-XML", "box": None,
            "flip": "none", "intensity": "none", "missing_chunks": "error", "nonfinite": "error", "in_place": False,
            "sha256": None, "group": None, "selections": [asdict(NO_CHOICE)],
            "files": ["a.ome.tif"], "labels": None, "warnings": [],
        }
    ]  # fmt: skip
    assert result.skipped == [] and result.total["windows"] > 0
    assert "a       6 20 20  2 1 1" in forecast.table(result)
    assert forecast.table(result).split()[:6] == ["sample", "z,", "y,", "x", "spacing", "windows"]
    idle = replace(result, estimates={name: {**one, "windows": 0} for name, one in result.estimates.items()})
    assert "windows" not in forecast.table(idle) and "time" in forecast.table(idle)


def test_all_faults_of_all_samples_at_once(tmp_path: Path) -> None:
    write_image(tmp_path / "good.tif")
    write_image(tmp_path / "none.tif", spacing=None)
    write_image(tmp_path / "two.tif", (2, 6, 20, 20), None)
    rows = [{"sample": name, "image": f"{name}.tif"} for name in ("good", "gone", "none", "two")]
    with pytest.raises(FaultsError) as caught:
        run(tmp_path, rows)
    told = [(fault.sample, fault.code) for fault in caught.value.faults]
    assert told == [("gone", 66), ("none", 65), ("two", 78), ("two", 65)]
    assert caught.value.code == 66
    assert all(len(str(fault).splitlines()) <= 12 for fault in caught.value.faults)
    lines = str(caught.value).splitlines()
    assert lines[0] == "error:    4 faults in 3 samples"
    assert lines[2].split("  ")[0] == "sample" and max(map(len, lines)) <= 118
    assert [line.split()[0] for line in lines[3:] if line[:1].strip()] == ["gone", "none", "two", "two"]
    assert not list(tmp_path.rglob("faults.csv"))
    result = run(tmp_path, rows, skip_bad=True)
    assert [entry["id"] for entry in result.samples] == ["good"]
    assert [row["id"] for row in result.skipped] == ["gone", "none", "two"]
    table = forecast.table(result)
    assert (
        table.index("good") < table.index("left out") < table.index("4 faults in 3 samples") < table.index("gone.tif")
    )
    two = result.skipped[2]["error"].split("\n\n")
    assert len(two) == 2 and all(text.startswith("error:    ") for text in two)
    with pytest.raises(FaultsError):
        run(tmp_path, rows[1:], skip_bad=True)


def test_a_long_table_is_cut_and_a_file_has_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty faults, five of a sample, eight lines of a cell; the file's cells are no formulas."""
    monkeypatch.chdir(tmp_path)
    errors: list[VoxelmillError] = [
        BadDataError("=1+1 " + "bad " * n, sample="first", file=f"{n}.tif", remedy="x " * 400) for n in range(8)
    ]
    errors += [InputMissingError("gone", sample=f"s{n}", file=f"{n}.tif", expected="a file") for n in range(60)]
    told = with_all_faults(FaultsError(errors))
    text = str(told)
    lines = text.splitlines()
    assert lines[0] == "error:    68 faults in 61 samples"
    assert lines[-1] == f"and 18 more; all are in {tmp_path}/check/faults.csv"
    assert max(map(len, lines[:-1])) <= 118 and max(len(part.splitlines()) for part in text.split("\n\n")) == 8
    assert sum(line.startswith("first") for line in lines) == 5 and text.count("a file") == 45
    assert [len(line) for line in lines if "4.tif" in line] and "5.tif: =1" not in text
    with open("check/faults.csv", newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["file"] for row in rows] == [f"{n}.tif" for n in (*range(8), *range(60))]
    assert rows[1]["what is wrong"] == "'=1+1 bad " and rows[1]["what to do"] == "x " * 400
    copied = pickle.loads(pickle.dumps(told))
    assert (copied.code, len(copied.faults)) == (65, 68)


def test_images_are_opened_at_the_same_time_and_told_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first file is the slowest: its sample is still the first. No more files are open than there are threads."""
    rows = [{"sample": f"s{n}", "image": f"{n}.tif"} for n in range(9)]
    for n in range(9):
        write_image(tmp_path / f"{n}.tif", spacing=None if n % 4 == 3 else (2, 1, 1))
    now, most, together = set[int](), [0], threading.Barrier(4)

    def slowly(path: Path, *chosen: Any) -> Any:
        now.add(threading.get_ident())
        most[0] = max(most[0], len(now))
        if path.name in ("0.tif", "1.tif", "2.tif", "3.tif"):
            together.wait(20)
        time.sleep(0.05 if path.name == "0.tif" else 0.01)
        now.discard(threading.get_ident())
        return open_given(path, *chosen)

    alone = run(tmp_path, rows, skip_bad=True, full=True, workers=1)
    monkeypatch.setattr(check_module, "open_given", slowly)
    assert run(tmp_path, rows, skip_bad=True) == alone
    assert run(tmp_path, rows, skip_bad=True, full=True, workers=4) == alone
    assert most == [4]
    with pytest.raises(FaultsError) as caught:
        run(tmp_path, rows, full=True, workers=4)
    assert [fault.sample for fault in caught.value.faults] == ["s3", "s7"]
    assert [entry["id"] for entry in alone.samples] == [f"s{n}" for n in range(9) if n % 4 != 3]


def test_memory_that_no_tile_fits_is_told_for_every_sample(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif")
    write_image(tmp_path / "b.tif", spacing=None)
    with pytest.raises(FaultsError) as caught:
        run(tmp_path, images=["a.tif", "a.tif", "b.tif"], plan=Options(memory_budget=1_000_000))
    assert [(fault.sample, fault.code) for fault in caught.value.faults] == [("a", 2), ("a-2", 2), ("b", 65)]
    text = str(caught.value.faults[0])
    assert all(words in text for words in ("smallest tile needs", "--memory_budget", "sample:   a"))


@pytest.mark.parametrize(
    ("row", "options", "expected"),
    [
        ({}, {}, ((2, 1, 1), "um", "OME-XML")),
        ({}, {"spacing": "4000,2000,2000", "unit": "nm"}, ((4, 2, 2), "um", "--spacing")),
        ({}, {"spacing": "1.5"}, ((1.5, 1.5, 1.5), "um", "--spacing")),
        ({"spacing": "3;1;1"}, {"spacing": "9,9,9", "unit": "um"}, ((3, 1, 1), "um", "samplesheet")),
        ({"spacing": "0.003 0.001 0.001", "unit": "mm"}, {}, ((3, 1, 1), "um", "samplesheet")),
        ({"unit": "pixel"}, {}, ((1, 1, 1), "pixel", "no physical size")),
        ({}, {"spacing": "pixel"}, ((1, 1, 1), "pixel", "no physical size")),
        ({}, {"unit": "pixel"}, ((1, 1, 1), "pixel", "no physical size")),
    ],
)
def test_spacing_comes_from_the_sheet_the_param_the_file(
    tmp_path: Path, row: dict, options: dict, expected: tuple
) -> None:
    write_image(tmp_path / "a.tif")
    entry = run(tmp_path, [{"sample": "a", "image": "a.tif", **row}], **options).samples[0]
    assert entry["spacing"] == pytest.approx(expected[0])
    assert (entry["unit"], entry["spacing_origin"]) == expected[1:]
    overruled = expected[2] in ("samplesheet", "--spacing")
    assert any("the file" in text for text in entry["warnings"]) == overruled


@pytest.mark.parametrize("row", [{"spacing": "0;1;1"}, {"spacing": "1;1"}, {"spacing": "1e9;1;1"}, {"spacing": "-"}])
def test_spacing_that_is_none(tmp_path: Path, row: dict) -> None:
    write_image(tmp_path / "a.tif")
    with pytest.raises(BadDataError, match=r"error:.*spacing"):
        run(tmp_path, [{"sample": "a", "image": "a.tif", **row}])


@pytest.mark.parametrize(
    ("spacing", "outcome"),
    [("2,1,1", None), ("3,1.4,1.4", None), ("2,1.6,1", "warning"), ("2,1,3.1", "error"), ("0.6,1,1", "error")],
)
def test_spacing_against_the_model(tmp_path: Path, spacing: str, outcome: str | None) -> None:
    write_image(tmp_path / "a.tif", spacing=None)
    if outcome == "error":
        with pytest.raises(ModelMismatchError, match="factor of 3"):
            run(tmp_path, images=["a.tif"], spacing=spacing)
    result = run(tmp_path, images=["a.tif"], spacing=spacing, allow_spacing_mismatch=outcome == "error")
    assert any("factor" in text for text in result.samples[0]["warnings"]) == (outcome is not None)
    free = run(tmp_path, images=["a.tif"], spacing=spacing, config=model(spacing_unit="none"))
    assert free.samples[0]["warnings"] == []


def test_spacing_is_compared_on_the_models_axes(tmp_path: Path) -> None:
    """The first axis of this network is the image's x."""
    config = model(transpose_forward=(2, 0, 1), spacing=(8.0, 1.0, 2.0))
    write_image(tmp_path / "a.tif", spacing=(1, 2, 8))
    assert run(tmp_path, images=["a.tif"], config=config).samples[0]["warnings"] == []
    with pytest.raises(ModelMismatchError, match="factor of 8"):
        run(tmp_path, images=["a.tif"], config=model(spacing=(8.0, 1.0, 2.0)))


@pytest.mark.parametrize(
    ("channel", "expected"), [("0", [0]), ("-1", [1]), ("1", [1]), ("dapi", [0]), ("a;b", [1]), ("2", 65), ("x", 65),
                              ("0;1", 78), ("-1,0", 78), (None, 78)]
)  # fmt: skip
def test_channels_of_a_file(tmp_path: Path, channel: str | None, expected: list | int) -> None:
    names = {"axes": "CZYX", "Channel": {"Name": ["dapi", "a;b"]}, "PhysicalSizeX": 1, "PhysicalSizeY": 1,
             "PhysicalSizeZ": 2}  # fmt: skip
    tifffile.imwrite(tmp_path / "a.tif", np.ones((2, 6, 20, 20), "u1"), ome=True, metadata=names)
    if isinstance(expected, int):
        with pytest.raises(VoxelmillError) as caught:
            run(tmp_path, images=["a.tif"], channel=channel)
        assert caught.value.code == expected
        assert "dapi" in str(caught.value) and (expected == 65 or "grey" in str(caught.value))
    else:
        assert run(tmp_path, images=["a.tif"], channel=channel).samples[0]["channel"] == expected
    config = model(channel_names=("a;b", "dapi"))
    with pytest.raises(ModelMismatchError, match="in this order"):
        run(tmp_path, images=["a.tif"], config=config)
    for text in ("1;0", "-1,0"):
        assert run(tmp_path, images=["a.tif"], config=config, channel=text).samples[0]["channel"] == [1, 0]


def test_one_file_per_channel(tmp_path: Path) -> None:
    config = model(channel_names=("a", "b"))
    write_image(tmp_path / "s_0000.tif")
    write_image(tmp_path / "s_0001.tif")
    entry = run(tmp_path, images=["s_0000.tif", "s_0001.tif"], config=config).samples[0]
    assert (entry["id"], entry["images"], entry["channel"], entry["shape"]) == ("s", [1, 2], [0, 1], [2, 6, 20, 20])
    row = {"sample": "s", "image": "s_0000.tif; other.tif"}
    for shape, spacing, words in (((7, 20, 20), (2, 1, 1), "shape"), ((6, 20, 20), (2, 1, 2), "spacing")):
        write_image(tmp_path / "other.tif", shape, spacing)
        with pytest.raises(BadDataError, match=f"differ in {words}"):
            run(tmp_path, [row], config=config)
    write_image(tmp_path / "other.tif", (2, 6, 20, 20))
    with pytest.raises(BadDataError, match="several channels"):
        run(tmp_path, [row], config=config)
    with pytest.raises(ModelMismatchError, match="1 channels of the model"):
        run(tmp_path, images=["s_0000.tif", "s_0001.tif"])


def test_colour_images_need_a_model_of_three_channels(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((20, 20, 3), "u1"), photometric="rgb")
    flat = {"patch_size": (16, 16), "configuration": "2d", "spacing_unit": "none"}
    with pytest.raises(BadDataError, match="RGB image, axes YXC"):
        run(tmp_path, images=["a.tif"], config=model(**flat), unit="pixel")
    assert run(tmp_path, images=["a.tif"], config=model(**flat), unit="pixel", channel="1").samples[0]["channel"] == [1]
    colours = model(**flat, channel_names=("r", "g", "b"))
    assert run(tmp_path, images=["a.tif"], config=colours, unit="pixel").samples[0]["channel"] == [0, 1, 2]


def test_a_plane_needs_a_2d_model(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", np.ones((20, 20), "u1"), imagej=True, resolution=(1, 1), metadata={"unit": "um"}
    )
    with pytest.raises(BadDataError, match="axes YX"):
        run(tmp_path, images=["a.tif"])
    flat = model(patch_size=(16, 16), configuration="2d")
    entry = run(tmp_path, images=["a.tif"], config=flat).samples[0]
    assert (entry["shape"], entry["spacing"], entry["spacing_origin"]) == ([1, 1, 20, 20], [1, 1, 1], "ImageJ, z as y")


def test_much_smaller_than_the_training_images(tmp_path: Path) -> None:
    config = model(fingerprint={"shapes_after_crop": [[6, 100, 100], [40, 200, 90]]})
    write_image(tmp_path / "a.tif")
    assert (
        "y 20 (smallest 100), x 20 (smallest 90)"
        in run(tmp_path, images=["a.tif"], config=config).samples[0]["warnings"][0]
    )
    write_image(tmp_path / "b.tif", (6, 30, 30))
    assert run(tmp_path, images=["b.tif"], config=config).samples[0]["warnings"] == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"box": "1:3,:5,4:"}, [[1, 3], [0, 5], [4, 90]]),
        ({"box": "1:3,:5,4:999"}, [[1, 3], [0, 5], [4, 90]]),
        ({"preview": True}, [[7, 23], [4, 36], [29, 61]]),
        ({}, None),
    ],
)
def test_boxes(tmp_path: Path, options: dict, expected: list | None) -> None:
    write_image(tmp_path / "a.tif", (30, 40, 90))
    entry = run(tmp_path, images=["a.tif"], **options).samples[0]
    assert entry["box"] == expected and entry["shape"] == [1, 30, 40, 90]
    assert any("clipped" in text for text in entry["warnings"]) == ("999" in options.get("box", ""))


def test_preview_follows_the_models_axes_and_spacing(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif", (30, 40, 90), (1, 1, 2))
    config = model(transpose_forward=(2, 0, 1))
    assert run(tmp_path, images=["a.tif"], config=config, preview=True).samples[0]["box"] == [
        [0, 30],
        [4, 36],
        [37, 53],
    ]


@pytest.mark.parametrize("box", ["40:50,:,:", "3:3,:,:", "1:2"])
def test_boxes_without_voxels(tmp_path: Path, box: str) -> None:
    write_image(tmp_path / "a.tif", (30, 40, 90))
    with pytest.raises(BadDataError, match=r"error:.*box"):
        run(tmp_path, images=["a.tif"], box=box)


def test_checksums(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.tif")
    good = hashlib.sha256(path.read_bytes()).hexdigest()
    assert run(tmp_path, [{"sample": "a", "image": "a.tif", "sha256": good.upper()}]).samples[0]["id"] == "a"
    with pytest.raises(BadDataError, match="SHA-256"):
        run(tmp_path, [{"sample": "a", "image": "a.tif", "sha256": "0" * 64}])


def test_checksums_of_a_folder_and_of_every_file_of_a_row(tmp_path: Path) -> None:
    """A folder's digest is over its files with their names, in the order of their paths; each wrong file is told."""
    zarr.create_array(tmp_path / "a.zarr", shape=(8, 20, 20), chunks=(4, 20, 20), dtype="u1")[:] = 1
    files = ["c/0/0/0", "c/1/0/0", "zarr.json"]
    lines = (f"{name}\0{hashlib.sha256((tmp_path / 'a.zarr' / name).read_bytes()).hexdigest()}\n" for name in files)
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    row = {"sample": "a", "image": "a.zarr", "spacing": "2;1;1"}
    assert run(tmp_path, [row | {"sha256": digest}]).samples[0]["id"] == "a"
    (tmp_path / "a.zarr" / "c/1/0/0").rename(tmp_path / "a.zarr" / "c/1/0/1")
    with pytest.raises(BadDataError, match="SHA-256"):
        run(tmp_path, [row | {"sha256": digest}], fill_missing=True)
    write_image(tmp_path / "b.tif")
    write_labels(tmp_path / "l.tif")
    row = {"sample": "b", "image": "b.tif", "semantic": "l.tif", "sha256": f"{digest};{digest}"}
    with pytest.raises(FaultsError) as caught:
        run(tmp_path, [row], config=None)
    assert [fault.file for fault in caught.value.faults] == ["b.tif", "l.tif"]


def test_zarr_is_read_in_place_and_a_missing_chunk_told(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=(8, 20, 20), chunks=(4, 20, 20), dtype="u1")
    array[:] = 1
    assert run(tmp_path, images=["a.zarr"], spacing="2,1,1").samples[0]["in_place"] is True
    (tmp_path / "a.zarr" / "c" / "1" / "0" / "0").unlink()
    with pytest.raises(BadDataError, match="1 chunks are missing, the first is c/1/0/0"):
        run(tmp_path, images=["a.zarr"], spacing="2,1,1")
    entry = run(tmp_path, images=["a.zarr"], spacing="2,1,1", fill_missing=True).samples[0]
    assert entry["missing_chunks"] == "fill"


def test_full_check_reads_every_voxel(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    volume = np.random.default_rng(0).integers(0, 255, (6, 40, 40)).astype("u1")
    tifffile.imwrite(path, volume, compression="zlib", photometric="minisblack")
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[5].dataoffsets[0], tif.pages[5].databytecounts[0]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = bytes(count)
    path.write_bytes(data)
    run(tmp_path, images=["a.tif"], spacing="2,1,1")
    with pytest.raises(BadDataError, match="decoded"):
        run(tmp_path, images=["a.tif"], spacing="2,1,1", full=True)


def test_conversions_need_no_model_and_tell_what_a_format_cannot_carry(tmp_path: Path) -> None:
    """Rows with and without labels; every sample's faults at once."""
    write_image(tmp_path / "a.tif", (2, 6, 20, 20), (2, 1, 1))
    write_labels(tmp_path / "l.tif")
    rows = [{"sample": "a", "image": "a.tif", "semantic": "l.tif"}, {"sample": "b", "image": "a.tif", "channel": "1"}]
    result = run(tmp_path, rows, config=None, convert=Request(format="nifti"))
    assert [(entry["id"], entry["start"], entry["channel"]) for entry in result.samples] == [
        ("a", "assemble", [0, 1]),
        ("b", "predict", [1]),
    ]
    assert result.total["windows"] == 0 < result.total["output_bytes"]
    with pytest.raises(FaultsError) as caught:
        run(tmp_path, rows, config=None, convert=Request(format="png"))
    assert {(fault.sample, fault.code) for fault in caught.value.faults} == {("a", 65), ("b", 65)}


def test_script_takes_a_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "a.tif")
    stage(tmp_path / "images", ["a.tif"], tmp_path)
    monkeypatch.chdir(tmp_path)
    seen: list[CheckOptions] = []
    script = load_script("check_input")
    monkeypatch.setattr(
        script, "check_input", lambda *given, **named: seen.append(given[4]) or check_input(*given, **named)
    )
    arguments = ["--staged", "images", "--schema", str(SCHEMA), "--format", "nrrd", "--target-spacing", "4,2,2",
                 "--order", "3", "--align-labels", "--workers", "3"]  # fmt: skip
    script.main.main(arguments, standalone_mode=False)
    assert seen[0].convert == Request("nrrd", "4,2,2", "3", "majority", None, None, True) and seen[0].workers == 3
    values = {name: getattr(seen[0].convert, name) for name in ("target_spacing", "order", "label_resampling")}
    values |= {"target": "nrrd", "orientation": None, "repair_header": None, "align_labels": False}
    assert script.request(values | {"border_core": "1.5um"}).border_core == "1.5um"
    assert read_json(Path("check/samples.json"))["samples"][0]["spacing"] == [2, 1, 1]


def test_cores_and_borders_are_labels_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grown = model(labels={"background": 0, "Core": 1, "border": 2}, heads=3, foreground_values=(1, 2))
    refuse_cores(grown, "core", "border")
    refuse_cores(grown, "2", "1")
    for core, border, words in (("nucleus", "border", "no label 'nucleus'"), ("core", "1", "core and 1 are the same")):
        with pytest.raises(UsageError, match=words):
            refuse_cores(grown, core, border)
    write_image(tmp_path / "a.tif")
    stage(tmp_path / "images", ["a.tif"], tmp_path)
    write_package(tmp_path / "package", model())
    monkeypatch.chdir(tmp_path)
    arguments = ["--staged", "images", "--schema", str(SCHEMA), "--package", "package"]
    script = load_script("check_input")
    with pytest.raises(SystemExit) as caught:
        script.main.main([*arguments, "--core-label", "core", "--border-label", "border"], standalone_mode=False)
    assert caught.value.code == 2 and not Path("check/samples.json").exists()
    script.main.main(arguments, standalone_mode=False)
    assert Path("check/samples.json").exists()


# Given labels


def write_labels(path: Path, shape: Sequence[int] = (6, 20, 20), dtype: str = "u2", spacing: Any = None) -> Path:
    sizes = dict(zip(("PhysicalSizeZ", "PhysicalSizeY", "PhysicalSizeX"), spacing or (), strict=bool(spacing)))
    tifffile.imwrite(path, np.ones(shape, dtype), ome=True, photometric="minisblack", metadata={"axes": "ZYX", **sizes})
    return path


def test_rows_with_labels_need_no_model(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.tif", (2, 6, 20, 20), (2, 1, 1))
        write_labels(tmp_path / f"{name}_l.tif")
    given = [{"sample": "a", "image": "a.tif", "semantic": "a_l.tif", "channel": "1"},
             {"sample": "b", "image": "b.tif", "instances": "b_l.tif"}]  # fmt: skip
    alone = run(tmp_path, given, config=None, flip="x", intensity="percentile8", skip_bad=True)
    assert alone.samples[0] == {
        "id": "a", "batch": "a", "start": "assemble", "images": [1, 2], "channel": [1],
        "format": "OME-TIFF", "shape": [2, 6, 20, 20], "dtype": "uint8", "spacing": [2.0, 1.0, 1.0], "unit": "um",
        "spacing_origin": "OME-XML", "box": None, "flip": "none", "intensity": "none", "missing_chunks": "error",
        "nonfinite": "error", "in_place": False, "sha256": None, "group": None, "selections": [asdict(NO_CHOICE)] * 2,
        "files": ["a.tif"],
        "labels": {"kind": "semantic", "file": "a_l.tif"}, "warnings": [],
    }  # fmt: skip
    second = alone.samples[1]
    assert (second["start"], second["images"], second["channel"]) == ("analyze", [3, 4], [0, 1])
    assert alone.total["windows"] == alone.total["seconds"] == 0
    assert alone.total["memory_bytes"] == CheckOptions().plan.memory_budget
    assert alone.total["work_bytes"] > 3 * 2 * 2400 > alone.total["output_bytes"] > 0

    write_image(tmp_path / "c.tif")
    mixed = run(tmp_path, [*given, {"sample": "c", "image": "c.tif"}])
    assert [entry["start"] for entry in mixed.samples] == ["assemble", "analyze", "predict"]
    assert mixed.estimates["a"]["windows"] == 0 < mixed.estimates["c"]["windows"]
    for skip_bad in (False, True):
        with pytest.raises(UsageError, match=r"no labels are given for c\n") as caught:
            run(tmp_path, [*given, {"sample": "c", "image": "c.tif"}], config=None, skip_bad=skip_bad)
        assert "--model" in str(caught.value)


def test_all_faults_of_labels_at_once(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif", spacing=None)
    write_labels(tmp_path / "l.tif", (6, 20, 21), "f4")
    with pytest.raises(FaultsError) as caught:
        run(tmp_path, [{"sample": "a", "image": "a.tif", "semantic": "l.tif", "channel": "7"}], config=None)
    told = [(fault.file, fault.found.split()[0]) for fault in caught.value.faults]
    assert told == [("a.tif", "there"), ("a.tif", "the"), ("l.tif", "the"), ("l.tif", "the")]
    assert all(words in str(caught.value) for words in ("channel '7'", "voxel size", "float32", "6 x 20 x 21"))


@pytest.mark.parametrize(
    ("z", "row", "told"),
    [
        (2, {}, False),
        (2.01, {}, False),
        (2.1, {}, True),
        (2, {"spacing": "4;1;1"}, True),
        (4, {"unit": "pixel"}, False),
    ],
)
def test_spacing_of_labels_is_told_and_not_used(tmp_path: Path, z: float, row: dict, told: bool) -> None:
    write_image(tmp_path / "a.tif")
    write_labels(tmp_path / "l.tif", spacing=(z, 1, 1))
    entry = run(tmp_path, [{"sample": "a", "image": "a.tif", "semantic": "l.tif", **row}], config=None).samples[0]
    assert any(f"labels' file gives {z:.4g} x 1 x 1 um" in text for text in entry["warnings"]) == told
    assert entry["spacing"] == ([1, 1, 1] if "unit" in row else [4, 1, 1] if row else [2, 1, 1])


def test_box_and_preview_without_a_model(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif", (6, 300, 20))
    write_labels(tmp_path / "l.tif", (6, 300, 20))
    row = {"sample": "a", "image": "a.tif", "instances": "l.tif"}
    assert run(tmp_path, [row], config=None, preview=True).samples[0]["box"] == [[0, 6], [22, 278], [0, 20]]
    assert run(tmp_path, [row], config=None, box="1:,:,:5").samples[0]["box"] == [[1, 6], [0, 300], [0, 5]]


def test_labels_in_zarr_lack_no_chunk(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif")
    array = zarr.create_array(tmp_path / "l.zarr", shape=(6, 20, 20), chunks=(3, 20, 20), dtype="u1")
    array[:] = 1
    (tmp_path / "l.zarr" / "c" / "1" / "0" / "0").unlink()
    row = {"sample": "a", "image": "a.tif", "semantic": "l.zarr"}
    with pytest.raises(BadDataError, match="1 chunks are missing") as caught:
        run(tmp_path, [row], config=None)
    assert caught.value.file == "l.zarr"
    assert run(tmp_path, [row], config=None, fill_missing=True).samples[0]["in_place"] is False


@pytest.mark.parametrize(("digests", "outcome"), [("i", None), ("i;l", None), ("l", 65), ("i;i", 65), ("i;l;l", 65)])
def test_checksum_of_labels(tmp_path: Path, digests: str, outcome: int | None) -> None:
    """One for the image, and one more for the labels where it is given."""
    paths = {"i": write_image(tmp_path / "a.tif"), "l": write_labels(tmp_path / "l.tif")}
    sums = ";".join(hashlib.sha256(paths[name].read_bytes()).hexdigest() for name in digests.split(";"))
    row = {"sample": "a", "image": "a.tif", "semantic": "l.tif", "sha256": sums}
    if outcome is None:
        assert run(tmp_path, [row], config=None).samples[0]["sha256"] == sums
    else:
        with pytest.raises(BadDataError, match=r"SHA-256 of|3 sha256 for 2 files"):
            run(tmp_path, [row], config=None)


def entry_of(name: str, voxels: int = 1000, in_place: bool = False, start: str = "predict") -> dict[str, Any]:
    return {"id": name, "start": start, "shape": [1, 1, 1, voxels], "box": None, "in_place": in_place}


def batches_of(entries: list[dict[str, Any]], separate: bool = False) -> list[str]:
    name_batches(entries, separate=separate)
    return [entry["batch"] for entry in entries]


def test_small_samples_share_batches() -> None:
    entries = [entry_of("a"), entry_of("big", 2**21), entry_of("b"), entry_of("batch1"), entry_of("z", in_place=True)]
    assert batches_of(entries) == ["batch2", "big", "batch2", "batch2", "z"]
    assert batches_of([entry_of("a"), entry_of("b")], separate=True) == ["a", "b"]
    assert batches_of([entry_of("a"), entry_of("big", 2**22)]) == ["a", "big"]
    many = batches_of([entry_of(f"s{i}") for i in range(100)])
    assert [many.count(name) for name in ("batch1", "batch2")] == [64, 36]
    large = batches_of([entry_of(f"s{i}", 2**21 - 1) for i in range(50)])
    assert [large.count(name) for name in ("batch1", "batch2")] == [32, 18]
    starts = ["predict", "assemble", "analyze", "assemble", "predict", "predict"]
    mixed = batches_of([entry_of(f"s{i}", start=start) for i, start in enumerate(starts)])
    assert mixed == ["batch1", "batch2", "s2", "batch2", "batch1", "batch1"]
    boxed = entry_of("a", 2**22) | {"box": [[0, 1], [0, 1], [0, 5]]}
    assert batches_of([boxed, entry_of("b")]) == ["batch1", "batch1"]


def test_work_that_does_not_fit_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "a.tif")
    monkeypatch.setattr(forecast.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(WriteFailedError, match="10 B free"):
        run(tmp_path, images=["a.tif"])


def test_script_writes_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_image(tmp_path / "a.tif")
    write_package(tmp_path / "package", model())
    stage(tmp_path / "images", ["a.tif"], tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments = ["--staged", "images", "--package", "package", "--schema", str(SCHEMA), "--memory-budget", "8 GB",
                 "--channel", "-1", "--engine", "bfloat16", "--shard-size", "16"]  # fmt: skip
    seen: list[CheckOptions] = []
    script = load_script("check_input")
    monkeypatch.setattr(
        script, "check_input", lambda *given, **named: seen.append(given[4]) or check_input(*given, **named)
    )
    script.main.main(arguments, standalone_mode=False)
    assert (seen[0].channel, seen[0].plan.engine, seen[0].plan.shard_size) == ("-1", "bfloat16", 16)
    samples, estimate = read_json(Path("check/samples.json")), read_json(Path("check/estimate.json"))
    record = read_json(Path("check/check.check_input.json"))
    figures = samples["estimate"]["a"]
    assert figures.pop("needs")["import_image"]["memory"] >= 10**9
    assert [entry["id"] for entry in samples["samples"]] == ["a"] and figures == estimate
    assert record["counts"] == {"samples": 1, "skipped": 0}
    assert set(record["outputs"]) == {"check/samples.json", "check/estimate.json"}
    assert capsys.readouterr().out.startswith("sample  z, y, x")


def test_name_that_is_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xff.tif")
    write_image(tmp_path / "a.tif").rename(tmp_path / name)
    entry = run(tmp_path, images=[name]).samples[0]
    assert (entry["id"], entry["files"]) == ("a_", ["a\\xff.tif"])


def test_real_images_with_the_real_model(shared_data: Path, tmp_path: Path) -> None:
    fingerprint = json.loads((shared_data / "nnunet_model/tiny_ovule_nuclei/dataset_fingerprint.json").read_text())
    config = model(
        patch_size=(16, 48, 48), spacing=tuple(fingerprint["spacings"][0]), fingerprint=fingerprint, spacing_unit="um"
    )
    os.symlink(shared_data / "fluorescence/ovule_nuclei_1135.ome.tif", tmp_path / "o.ome.tif")
    os.symlink(shared_data / "axons_lightsheet/lightsheet_chunk_128x256x256.ome.tif", tmp_path / "l.ome.tif")
    assert run(tmp_path, images=["o.ome.tif"], config=config).samples[0]["warnings"] == []
    with pytest.raises(ModelMismatchError, match=r"3 x 2 x 2 um .* factor of 15\.8"):
        run(tmp_path, images=["l.ome.tif"], config=config)


def test_a_volume_needs_a_physical_size(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif")
    with pytest.raises(UsageError, match="no physical size") as refused:
        run(tmp_path, images=["a.tif"], unit="pixel", min_object_volume=5.0)
    assert refused.value.sample == "a"
    assert run(tmp_path, images=["a.tif"], unit="pixel").samples[0]["unit"] == "pixel"


# Labels and truth

EVALUATE = Evaluation()


def test_truth_is_numbered_after_the_labels_only_where_it_is_opened(tmp_path: Path) -> None:
    """Also in rows that are rejected: Nextflow numbers files without judging rows."""
    data = (
        b"sample,image,semantic,instances,truth\na,1.tif;2.tif,3.tif,,4.tif\nb,5.tif,6.tif,7.tif,8.tif\n"
        b"c,,,9.tif,10.tif\nd,11.tif,12.tif,,\ne,,,,13.tif\nf,,14.tif,,15.tif\n"
    )
    (tmp_path / "s.csv").write_bytes(data)
    schema = json.loads(SCHEMA.read_text())
    rows, rejected, files = read_sheet(tmp_path / "s.csv", schema, evaluate=True)
    assert [(row.sample, row.start, row.files) for row in rows] == [
        ("a", "evaluate", [(1, "1.tif"), (2, "2.tif"), (3, "3.tif"), (4, "4.tif")]),
        ("c", "evaluate", [(9, "9.tif"), (10, "10.tif")]),
        ("f", "evaluate", [(14, "14.tif"), (15, "15.tif")]),
    ]
    told = [(one.sample, one.error.found) for one in rejected]
    assert told == [
        ("b", "the row has labels in semantic and in instances"),
        ("d", "the row has no truth"),
        ("e", "the row has no labels to compare with the truth"),
    ]
    assert files == 15
    rows, rejected, files = read_sheet(tmp_path / "s.csv", schema)
    assert [row.files for row in rows] == [[(1, "1.tif"), (2, "2.tif"), (3, "3.tif")], [(8, "11.tif"), (9, "12.tif")]]
    assert [one.sample for one in rejected] == ["b", "c", "e", "f"] and files == 10


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("sample,image,semantic", "column 'truth' is missing"),
        ("sample,image,truth", "column 'semantic' or 'instances' is missing"),
        ("sample,truth,instanecs", "did you mean 'instances'"),
    ],
)
def test_columns_that_an_evaluation_needs(tmp_path: Path, header: str, words: str) -> None:
    (tmp_path / "s.csv").write_text(f"{header}\na,b,c\n")
    with pytest.raises(BadDataError) as caught:
        read_sheet(tmp_path / "s.csv", json.loads(SCHEMA.read_text()), evaluate=True)
    assert words in str(caught.value)


def test_choices_of_images_labels_and_truth(tmp_path: Path) -> None:
    """One value, one per image, one per file; the same sheet in other workflows, which do not open the truth."""

    def chosen(evaluate: bool, image: str, **cells: str) -> list[dict[str, Any]]:
        row = {"sample": "a", "image": image, "instances": "l.h5", "truth": "t.h5", **cells}
        (tmp_path / "s.csv").write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
        (found,), _, _ = read_sheet(tmp_path / "s.csv", json.loads(SCHEMA.read_text()), evaluate=evaluate)
        return [{k: v for k, v in asdict(one).items() if v is not None} for one in found.selections(NO_CHOICE)]

    for evaluate, cells in ((True, "/i;/l;/t"), (False, "/i;/l;/t"), (True, "/i;/l")):
        expected = [{"dataset": name} for name in cells.split(";")]
        assert chosen(evaluate, "i.h5", dataset=cells) == ([*expected, {}])[: 2 + evaluate]
    assert chosen(True, "i.h5", level="1", axes="czyx") == [
        {"level": 1, "axes": "czyx"},
        {"axes": "zyx"},
        {"axes": "zyx"},
    ]
    assert chosen(True, "", level="1", axes="zyx") == [{"level": 1, "axes": "zyx"}] * 2
    assert chosen(True, "", dataset=";/t") == [{}, {"dataset": "/t"}]
    for evaluate, image, cells in ((True, "i.h5", "/a;/b;/c;/d"), (True, "", "/a;/b;/c"), (False, "i.h5", ";;;1")):
        with pytest.raises(BadDataError, match=r"column dataset has \d values"):
            chosen(evaluate, image, dataset=cells)


def test_entries_of_an_evaluation(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif", (2, 6, 20, 20), (2, 1, 1))
    write_labels(tmp_path / "l.tif", spacing=(2, 1, 1))
    write_labels(tmp_path / "t.tif", dtype="u1", spacing=(4, 1, 1))
    write_labels(tmp_path / "n.tif", dtype="u4")
    rows = [
        {"sample": "a", "image": "a.tif", "semantic": "l.tif", "truth": "t.tif", "channel": "1", "group": "g"},
        {"sample": "b", "instances": "l.tif", "truth": "t.tif"},
        {"sample": "c", "instances": "n.tif", "truth": "n.tif", "channel": "1"},
        {"sample": "d", "instances": "n.tif", "truth": "t.tif"},
    ]
    result = run(tmp_path, rows, config=None, evaluate=Evaluation(255), box=":,0:8,:")
    a, b, c, d = result.samples
    assert a["labels"] == {"kind": "semantic", "file": "l.tif"} and a["truth"] == {"file": "t.tif"}
    assert (a["start"], a["files"], a["images"], len(a["selections"])) == ("evaluate", ["a.tif"], [1, 2, 3], 3)
    assert (a["channel"], a["shape"], a["box"]) == ([1], [2, 6, 20, 20], [[0, 6], [0, 8], [0, 20]])
    assert (b["start"], b["files"], b["images"], b["shape"]) == ("evaluate", [], [4, 5], [1, 6, 20, 20])
    assert b["labels"]["kind"] == "instances" and b["spacing"] == [2, 1, 1] and b["unit"] == "um"
    # the truth's spacing differs: told. Of labels without any the truth's is used; of none there are voxels
    assert (
        a["warnings"]
        == b["warnings"]
        == ["the truth's file gives 4 x 1 x 1 um (z, y, x), used is 2 x 1 x 1 um (z, y, x)"]
    )
    assert (c["spacing"], c["unit"], c["channel"]) == ([1, 1, 1], "pixel", [0])
    assert c["warnings"] == ["no file gives a voxel size: distances are in voxels"]
    assert (d["spacing"], d["unit"]) == ([4, 1, 1], "um")
    assert result.total["windows"] == 0 and all(result.total[name] > 0 for name in ("seconds", "work_bytes"))
    assert {entry["batch"] for entry in result.samples} == {"batch1"}
    # a channel of images says nothing of labels
    assert run(tmp_path, rows[1:2], config=None, evaluate=EVALUATE, channel="1").samples[0]["channel"] == [0]


def test_an_ignore_label_that_the_truth_cannot_hold(tmp_path: Path) -> None:
    write_labels(tmp_path / "t.tif", dtype="u1", spacing=(1, 1, 1))
    rows = [{"sample": "a", "semantic": "t.tif", "truth": "t.tif"}]
    for ignore, told in ((None, 0), (255, 0), (256, 1), (-1, 1)):
        warnings = run(tmp_path, rows, config=None, evaluate=Evaluation(ignore)).samples[0]["warnings"]
        assert warnings == [f"the truth is uint8 and holds no ignore label {ignore}: every voxel counts"] * told


def test_all_faults_of_labels_and_truth_at_once(tmp_path: Path) -> None:
    write_image(tmp_path / "i.tif")
    write_labels(tmp_path / "l.tif")
    write_labels(tmp_path / "small.tif", (6, 20, 19))
    write_labels(tmp_path / "float.tif", dtype="f4")
    write_image(tmp_path / "two.tif", (2, 6, 20, 20))
    rows = [
        {"sample": "fine", "image": "i.tif", "semantic": "l.tif", "truth": "l.tif"},
        {"sample": "size", "image": "", "semantic": "l.tif", "truth": "small.tif"},
        {"sample": "both", "image": "i.tif", "semantic": "small.tif", "truth": "float.tif"},
        {"sample": "gone", "image": "", "semantic": "l.tif", "truth": "gone.tif"},
        {"sample": "two", "image": "", "semantic": "l.tif", "truth": "two.tif", "spacing": "0"},
        {"sample": "empty", "image": "", "semantic": "", "truth": "l.tif"},
    ]
    with pytest.raises(FaultsError) as caught:
        run(tmp_path, rows, config=None, evaluate=EVALUATE)
    told = [(fault.sample, fault.file, fault.found) for fault in caught.value.faults]
    assert told[1:] == [
        ("size", "small.tif", "the truth is 6 x 20 x 19 (z, y, x), the labels are 6 x 20 x 20"),
        ("both", "float.tif", "the truth is float32"),
        ("both", "small.tif", "the labels are 6 x 20 x 19 (z, y, x), the image is 6 x 20 x 20"),
        ("both", "float.tif", "the truth is 6 x 20 x 20 (z, y, x), the labels are 6 x 20 x 19"),
        ("gone", "gone.tif", "the label image does not exist"),
        ("two", "l.tif", "the voxel spacing from samplesheet is z 0, y 0, x 0"),
        ("two", "two.tif", "the truth has 2 channels, axes CZYX"),
    ]
    assert told[0][0] == "empty" and "no labels to compare" in told[0][2]
    assert caught.value.faults[4].expected == "truth on the voxels of the labels"
    kept = run(tmp_path, rows, config=None, evaluate=EVALUATE, skip_bad=True)
    assert [entry["id"] for entry in kept.samples] == ["fine"]


def test_truth_that_lies_elsewhere_than_the_labels(tmp_path: Path) -> None:
    voxels = np.zeros((4, 5, 6), "u1")
    for name, shift in (("l", 0), ("t", 3)):
        affine = np.diag([1.0, 1, 2, 1])
        affine[0, 3] = shift
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / f"{name}.nii")
    rows = [{"sample": "a", "instances": "l.nii", "truth": "t.nii"}]
    with pytest.raises(BadDataError, match="the truth's first voxel lies elsewhere than the labels', by") as caught:
        run(tmp_path, rows, config=None, evaluate=EVALUATE)
    assert caught.value.expected == "a first voxel within half a voxel of the labels'"


def test_truth_whose_header_has_no_voxel_size(tmp_path: Path) -> None:
    write_labels(tmp_path / "l.tif")
    image = nib.Nifti1Image(np.zeros((20, 20, 6), "u1"), None)
    image.header["pixdim"][1:4] = 0
    (tmp_path / "t.nii").write_bytes(image.header.binaryblock + bytes(4) + bytes(2400))
    rows = [{"sample": "a", "instances": "l.tif", "truth": "t.nii", "spacing": "2;1;1"}]
    entry = run(tmp_path, rows, config=None, evaluate=EVALUATE).samples[0]
    assert entry["spacing"] == [2, 1, 1] and "the one that is given takes their place" in entry["warnings"][0]
    with pytest.raises(BadDataError, match="is z 0, y 0, x 0"):
        run(tmp_path, [{**rows[0], "spacing": ""}], config=None, evaluate=EVALUATE)


def test_an_evaluation_needs_a_sheet(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif")
    with pytest.raises(UsageError, match="there is no samplesheet"):
        run(tmp_path, images=["a.tif"], config=None, evaluate=EVALUATE)


def test_truth_in_other_workflows_is_told_and_not_opened(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif")
    rows = [{"sample": "a", "image": "a.tif", "truth": "nowhere.tif", "particle_size": "3"}]
    told = ["the column particle_size is not used in this version",
            "the column truth is not used here: --workflow evaluate compares with it"]  # fmt: skip
    for options in ({}, {"convert": Request("nrrd")}):
        entry = run(tmp_path, rows, **options).samples[0]
        assert entry["warnings"] == told and "truth" not in entry and entry["images"] == [1]


def test_digests_of_images_labels_and_truth(tmp_path: Path) -> None:
    """One sheet for several workflows: a digest for the truth is no fault where the truth is not opened."""
    write_image(tmp_path / "i.tif")
    write_labels(tmp_path / "l.tif")
    write_labels(tmp_path / "t.tif", dtype="u1")
    digests = [hashlib.sha256((tmp_path / f"{name}.tif").read_bytes()).hexdigest() for name in "ilt"]
    row = {"sample": "a", "image": "i.tif", "semantic": "l.tif", "truth": "t.tif"}
    for count in (1, 2, 3):
        for options in ({"evaluate": EVALUATE}, {}):
            cells = [{**row, "sha256": ";".join(digests[:count])}]
            assert run(tmp_path, cells, config=None, **options).samples[0]["id"] == "a"
    with pytest.raises(BadDataError) as caught:
        run(tmp_path, [{**row, "sha256": ";".join(digests[:2] + digests[:1])}], config=None, evaluate=EVALUATE)
    assert caught.value.file == "t.tif" and "SHA-256" in str(caught.value)
    with pytest.raises(BadDataError, match="4 sha256 for 3 files"):
        run(tmp_path, [{**row, "sha256": ";".join(digests * 2)[: 4 * 65 - 1]}], config=None, evaluate=EVALUATE)


def test_the_script_of_the_check_passes_an_evaluation_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_labels(tmp_path / "l.tif")
    write_labels(tmp_path / "t.tif")
    stage(tmp_path / "images", ["l.tif", "t.tif"], tmp_path)
    (tmp_path / "s.csv").write_text("sample,instances,truth\na,l.tif,t.tif\n")
    monkeypatch.chdir(tmp_path)
    seen: list[CheckOptions] = []
    script = load_script("check_input")
    monkeypatch.setattr(
        script, "check_input", lambda *given, **named: seen.append(given[4]) or check_input(*given, **named)
    )
    arguments = ["--input", "s.csv", "--images", "2", "--staged", "images", "--schema", str(SCHEMA), "--evaluate",
                 "--ignore-label", "3"]  # fmt: skip
    script.main.main(arguments, standalone_mode=False)
    assert seen[0].evaluate == Evaluation(3) and seen[0].convert is None
    assert read_json(Path("check/samples.json"))["samples"][0]["truth"] == {"file": "t.tif"}
