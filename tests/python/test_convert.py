"""--workflow convert: from a row of the sheet to files that other tools read, with values, axes and positions kept."""

from __future__ import annotations

import csv
import io
import itertools
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
import zarr

from images import all_of, source_of
from voxelmill.check import check_row
from voxelmill.convert.align import align
from voxelmill.convert.border_core import border_core_labels
from voxelmill.convert.check import fit_conversion
from voxelmill.convert.conversion import convert_batch, output_name
from voxelmill.convert.listing import list_converted
from voxelmill.convert.request import Request, parse_orientation, parse_target
from voxelmill.errors import BadDataError, TemporaryError, UsageError, VoxelmillError, WriteFailedError
from voxelmill.files import read_json, write_json
from voxelmill.fit import CheckOptions
from voxelmill.formats import open_image
from voxelmill.formats.writing import FORMATS, faults, write_image
from voxelmill.samplesheet import LabelFile, Row
from voxelmill.task import Task

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (6, 7, 9)
SPACING = (2.0, 0.5, 0.25)
ORIGIN = (10.0, 20.0, 30.0)
VOLUMES = [name for name in FORMATS if name not in ("png", "jpeg")]
UNIQUE = [name for name in VOLUMES if name not in ("nii", "tiff", "imagej")]
MEMORY = 200_000_000


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def volume(dtype: str = "uint16", channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(7)
    values = rng.integers(0, 120, (channels, *SHAPE))
    return values.astype(dtype) if dtype != "float32" else (values / 7).astype(dtype)


def turned() -> np.ndarray:
    """An oblique affine with the sizes of SPACING."""
    turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
    result = np.eye(4)
    result[:3, :3] = turn @ np.diag([s / 1e3 for s in SPACING[::-1]])
    result[:3, 3] = 0.1, -0.2, 0.3
    return result


def convert(
    files: list[Path],
    request: Request,
    *,
    labels: Path | None = None,
    sample: str = "a",
    kind: str = "instances",
    options: CheckOptions | None = None,
    **values: str,
) -> dict[str, Any]:
    """Check and convert one row -> what was done; results lie in the current folder."""
    every = [*files, *([labels] if labels else [])]
    staged = Path("staged") / sample
    for number, path in enumerate(every, 1):
        (staged / str(number)).mkdir(parents=True, exist_ok=True)
        place = staged / str(number) / path.name
        if not place.is_symlink():
            place.symlink_to(path.resolve())
    names = tuple(path.name for path in files)
    given = LabelFile(kind, labels.name, len(every)) if labels else None
    row = Row(2, sample, names, tuple(range(1, len(files) + 1)), values, given)
    found = {number: staged / str(number) / path.name for number, path in enumerate(every, 1)}
    options = replace(options or CheckOptions(), convert=request)
    entry, _ = check_row(row, found, partial(fit_conversion, request), options)
    record = Task("convert_images", sample)
    entry = json.loads(json.dumps(entry))
    convert_batch([entry], staged, request, Path(), record, memory_budget=MEMORY)
    write_json(record.path, {"files": record.files, "outputs": record.outputs})
    return read_json(Path(sample) / f"{sample}.converted.json")


def output(target: str, sample: str = "a", labels: bool = False) -> Path:
    return Path(sample) / output_name(sample, target, labels=labels)


def written(target: str, name: str = "in", **known: Any) -> Path:
    """A file of a phantom in a format."""
    array = known.pop("array", volume())
    path = Path("given") / f"{name}{FORMATS[target].suffix}"
    source = source_of(array, **{"spacing": SPACING, "origin": ORIGIN, **known})
    write_image(source, path, target)
    return path


@pytest.mark.parametrize(("one", "other"), list(itertools.product(UNIQUE, VOLUMES)))
def test_round_trip_of_every_pair_of_formats(one, other):
    path = written(one)
    before = open_image(path)
    convert([path], Request(other))
    after = open_image(output(other))
    assert np.array_equal(all_of(after), volume())
    assert after.dtype == np.uint16
    assert after.shape == (1, *SHAPE)
    assert np.allclose(after.spacing, SPACING, rtol=1e-6)
    if FORMATS[one].origin and FORMATS[other].origin and not (before.affine is not None and after.affine is None):
        place = after.origin if after.affine is None else after.affine[2::-1, 3] * 1e3
        assert np.allclose(np.abs(place), ORIGIN, rtol=1e-5)
    convert([output(other)], Request(one), sample="b")
    again = open_image(output(one, "b"))
    assert np.array_equal(all_of(again), volume())
    assert np.allclose(again.spacing, SPACING, rtol=1e-6)
    if FORMATS[one].origin and FORMATS[other].origin:
        assert np.allclose(again.origin, ORIGIN, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"])
@pytest.mark.parametrize("target", VOLUMES)
def test_every_type_goes_through_or_is_refused_before(dtype, target):
    path = written("hdf5", array=volume(dtype))
    if faults(open_image(path), target):
        with pytest.raises(BadDataError, match="cannot carry"):
            entry_of(path, Request(target))
        return
    convert([path], Request(target))
    after = open_image(output(target))
    assert after.dtype == dtype
    assert np.array_equal(all_of(after), volume(dtype))


@pytest.mark.parametrize(("one", "other"), list(itertools.product(["nifti", "nii", "mha", "nrrd"], repeat=2)))
def test_orientation_goes_through_medical_formats(one, other):
    path = written(one, affine=turned())
    convert([path], Request(other))
    after = open_image(output(other))
    assert np.allclose(after.affine, open_image(path).affine, atol=1e-7)
    assert np.allclose(after.affine, turned(), atol=1e-6)
    assert np.array_equal(all_of(after), volume())


@pytest.mark.parametrize("target", ["ome-zarr", "ome-tiff", "hdf5", "nifti", "mha", "nrrd"])
def test_channels_go_through(target):
    path = written("ome-zarr", array=volume(channels=2), channel_names=("DNA", "actin"))
    convert([path], Request(target))
    after = open_image(output(target))
    assert np.array_equal(all_of(after), volume(channels=2))
    if FORMATS[target].names:
        assert after.channel_names == ("DNA", "actin")
    convert([path], Request(target), sample="b", channel="actin")
    assert np.array_equal(all_of(open_image(output(target, "b"))), volume(channels=2)[1:])


def test_files_of_channels_become_one_image():
    array = volume(channels=2)
    files = [written("ome-tiff", f"c{i}", array=array[i]) for i in range(2)]
    convert(files, Request("ome-zarr"))
    assert np.array_equal(all_of(open_image(output("ome-zarr"))), array)


def test_a_plane_becomes_a_picture_and_a_picture_a_tiff():
    array = volume("uint8")[:, :1]
    path = written("ome-tiff", array=array)
    done = convert([path], Request("png"))
    assert any("voxel size" in text for text in done["warnings"])
    assert np.array_equal(all_of(open_image(output("png"))), array)
    convert([output("png")], Request("ome-tiff"), sample="b", spacing="1;0.5;0.25")
    after = open_image(output("ome-tiff", "b"))
    assert np.array_equal(all_of(after), array)
    assert after.spacing[1:] == (0.5, 0.25)


def test_box_of_image_and_labels_with_the_affine_moved():
    labels = np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE)
    image = written("nifti", affine=turned())
    given = written("nifti", "labels", array=labels, affine=turned())
    before = image.read_bytes()
    done = convert([image], Request("nifti"), labels=given, options=CheckOptions(box="1:4,:5,2:8"))
    assert image.read_bytes() == before
    for name, whole in ((output("nifti"), volume()[0]), (output("nifti", labels=True), labels)):
        file = nib.load(name)
        assert np.array_equal(np.asarray(file.dataobj).transpose(2, 1, 0), whole[1:4, :5, 2:8])
        assert np.allclose(file.affine @ [0, 0, 0, 1], turned() @ [2, 0, 1, 1], atol=1e-6)
    assert done["changes"] == ["box 1:4,0:5,2:8"]
    assert done["source_sha256"] == []


def test_spacing_is_set_and_wrong_units_repaired():
    path = written("nifti", affine=turned())
    convert([path], Request("nifti"), spacing="3;2;1", unit="mm")
    file = nib.load(output("nifti"))
    assert np.allclose(file.header.get_zooms(), (1, 2, 3))
    assert np.array_equal(np.asarray(file.dataobj), np.asarray(nib.load(path).dataobj))
    # Micrometres were written as if they were millimetres.
    convert([path], Request("nifti"), sample="b", options=CheckOptions(unit="um"))
    assert np.allclose(nib.load(output("nifti", "b")).affine[:3], turned()[:3] * 1e-3, atol=1e-9)
    convert([path], Request("ome-zarr"), sample="c", unit="pixel")
    assert open_image(output("ome-zarr", "c")).spacing is None
    with pytest.raises(BadDataError, match="a unit without a spacing"):
        convert([written("ome-tiff")], Request("nifti"), sample="d", unit="mm")


def test_resampled_image_and_labels():
    labels = np.random.default_rng(1).integers(0, 3, SHAPE).astype(np.uint8)
    image, given = written("ome-zarr"), written("ome-tiff", "labels", array=labels)
    done = convert([image], Request("nifti", target_spacing="2,1,1", order="area"), labels=given)
    after = open_image(output("nifti"))
    assert after.shape == (1, 6, 4, 2)
    assert after.spacing == pytest.approx((2.0, 1.0, 1.0))
    assert np.allclose(after.affine[2::-1, 3] * 1e3, (10, 20.25, 30.375))
    there = open_image(output("nifti", labels=True))
    assert there.shape == after.shape
    assert np.array_equal(there.affine, after.affine)
    assert "spacing 2 x 0.5 x 0.25 to 2 x 1 x 1 um (order area)" in done["changes"]
    done = convert([image], Request("nifti", target_spacing="2,1,1"), sample="b")
    assert any("--order area" in text for text in done["warnings"])


def grown(seeds: int) -> np.ndarray:
    """Instances (z, y, x) of SHAPE that fill it: every voxel has the id of its nearest seed."""
    at = np.random.default_rng(4).random((seeds, 3)) * SHAPE
    places = np.stack(np.indices(SHAPE), axis=-1)[..., None, :]
    return (((places - at) ** 2).sum(-1).argmin(-1) + 1).astype(np.uint32)


@pytest.mark.parametrize("target", ["ome-zarr", "nifti", "slices", "tiff"])
def test_instances_become_core_and_border(target):
    instances = grown(4)
    labels = written("nifti", "labels", array=instances, affine=turned())
    image = written("nifti", affine=turned())
    done = convert([image], Request(target, border_core="1"), labels=labels)
    found = open_image(output(target, labels=True))
    assert found.dtype == np.uint8
    assert np.array_equal(all_of(found)[0], border_core_labels(instances, 1))
    assert done["changes"] == ["instances to core and border (1 voxel)"]
    assert done["labels_kind"] == "semantic"
    assert not any("core" in text for text in done["warnings"])


def test_cores_and_borders_are_those_of_the_voxels_that_are_written():
    instances = grown(3)
    image, labels = written("nifti", affine=turned()), written("nifti", "labels", array=instances, affine=turned())
    request = Request("nifti", border_core="0.5um", target_spacing="1,0.5,0.25", orientation="RAS")
    options = CheckOptions(box="1:6,:,:")
    done = convert([image], request, labels=labels, options=options)
    convert([image], replace(request, border_core=None), labels=labels, options=options, sample="b")
    before, after = (open_image(output("nifti", sample, labels=True)) for sample in "ba")
    assert sorted(after.spacing) == pytest.approx([0.25, 0.5, 1.0])
    assert np.array_equal(all_of(after)[0], border_core_labels(all_of(before)[0], 0.5, after.spacing))
    assert done["changes"][-1] == "instances to core and border (0.5 um)"
    assert {1, 2} <= set(np.unique(all_of(after)))


def test_instances_too_thin_for_a_core_are_told():
    instances = np.zeros(SHAPE, np.uint16)
    instances[:, 1:4] = 5
    instances[2:4, 5:7, 3:6] = 9
    instances[0, 6, 8] = 2
    done = convert([written("hdf5")], Request("hdf5", border_core="1"), labels=written("hdf5", "l", array=instances))
    assert [text.split(":")[0] for text in done["warnings"]] == ["2 of 3 instances are too thin for a core"]
    assert set(np.unique(all_of(open_image(output("hdf5", labels=True)))[0][instances == 5])) == {1, 2}
    # 0.6 um reach over the rows and columns of this image, and not over its planes.
    done = convert(
        [written("hdf5")],
        Request("hdf5", border_core="0.6um"),
        labels=written("hdf5", "l", array=instances),
        sample="b",
    )
    assert "2 of 3" in done["warnings"][-1]
    labels = all_of(open_image(output("hdf5", "b", labels=True)))[0]
    assert np.array_equal(labels, border_core_labels(instances, 0.6, SPACING))
    assert (labels[:, 2] == 1).all()


def test_cores_and_borders_need_instances():
    image, labels = written("ome-tiff"), written("ome-tiff", "labels", array=grown(3).astype(np.uint8))
    for text, given, kind in (("no labels", None, ""), ("semantic labels", labels, "semantic")):
        with pytest.raises(VoxelmillError, match=text) as caught:
            convert([image], Request(border_core="3"), labels=given, kind=kind)
        assert "instances" in str(caught.value)
    with pytest.raises(VoxelmillError, match="--border_core '3px'"):
        convert([image], Request(border_core="3px"), labels=labels)
    with pytest.raises(VoxelmillError, match="without physical size"):
        convert([image], Request(border_core="3um"), labels=labels, unit="pixel")


def test_orientation_of_image_and_labels():
    image, given = (written("nifti", name, affine=turned()) for name in ("image", "labels"))
    done = convert([image], Request("mha", orientation="ras"), labels=given)
    for labels in (False, True):
        after = open_image(output("mha", labels=labels))
        expected = nib.as_closest_canonical(nib.load(image))
        assert np.array_equal(all_of(after)[0].transpose(2, 1, 0), np.asarray(expected.dataobj))
        assert np.allclose(after.affine, expected.affine, atol=1e-6)
    assert done["changes"][0].endswith("to RAS")


def test_header_is_repaired():
    image = nib.Nifti1Image(volume()[0].transpose(2, 1, 0), None)
    image.set_qform(np.diag([1.0, 1.0, 1.0, 1.0]), 1)
    image.set_sform(np.diag([2.0, 2.0, 2.0, 1.0]), 2)
    nib.save(image, "both.nii")
    done = convert([Path("both.nii")], Request("nifti"))
    assert any("qform and sform" in text for text in done["warnings"])
    convert([Path("both.nii")], Request("nifti", repair_header="sform"), sample="b")
    file = nib.load(output("nifti", "b"))
    assert np.allclose(file.get_qform(), file.get_sform())
    assert np.allclose(file.get_sform(), np.diag([2.0, 2.0, 2.0, 1.0]))
    assert np.allclose(file.header.get_zooms(), 2)
    convert([Path("both.nii")], Request("nifti", repair_header="qform"), sample="c")
    assert np.allclose(nib.load(output("nifti", "c")).get_sform(), np.eye(4))


def test_labels_of_another_shape_are_refused_unless_they_are_aligned():
    fine = volume("uint8")[0].repeat(2, 0).repeat(2, 1).repeat(2, 2)
    corner = tuple(o - s / 4 for o, s in zip(ORIGIN, SPACING, strict=True))
    image = written("ome-zarr")
    given = written("ome-zarr", "labels", array=fine, spacing=tuple(s / 2 for s in SPACING), origin=corner)
    with pytest.raises(BadDataError, match="the labels are 12 x 14 x 18") as caught:
        convert([image], Request("nifti"), labels=given)
    assert "--align_labels" in caught.value.remedy
    convert([image], Request("ome-zarr", align_labels=True), labels=given)
    assert np.array_equal(all_of(open_image(output("ome-zarr", labels=True))), volume("uint8"))
    assert open_image(output("ome-zarr", labels=True)).origin == pytest.approx(ORIGIN)


def test_labels_beside_the_voxels_are_an_error_with_the_numbers():
    image = source_of(volume(), spacing=(1.0, 1.0, 1.0))
    half = source_of(volume("uint8"), spacing=(0.5, 0.5, 0.5))
    with pytest.raises(BadDataError, match=r"along z the labels begin \+0.25 voxels"):
        align(image, half, "majority")
    far = source_of(volume("uint8"), spacing=(1.0, 1.0, 1.0), origin=(50.0, 0.0, 0.0))
    with pytest.raises(BadDataError, match="cover voxels 50 to 56"):
        align(image, far, "majority")
    near = source_of(volume("uint8"), spacing=(1.0, 1.0, 1.0), origin=(2.004, -3.0, 1.0))
    with pytest.raises(BadDataError, match="only the image does not say how it lies in the body"):
        align(image, source_of(volume("uint8"), spacing=(1.0, 1.0, 1.0), affine=np.eye(4)), "majority")
    part, labels, told = align(image, near, "majority")
    assert part.shape == labels.shape == (1, 4, 4, 8)
    assert told == ["the labels reach beyond the image along z, y, x: that part is left out"]
    assert np.array_equal(all_of(labels), volume("uint8")[:, :4, 3:, :8])
    assert np.array_equal(all_of(part), volume()[:, 2:, :4, 1:])


def test_labels_align_by_their_affines():
    step = np.eye(4)
    step[:3, :3] = np.diag([0.5, 1.0, 2.0])
    step[:3, 3] = (-0.25, 2.0, 0.5)
    image = source_of(volume(), affine=turned(), spacing=SPACING)
    labels = source_of(volume("uint8"), affine=turned() @ step, spacing=SPACING)
    part, found, _ = align(image, labels, "nearest")
    assert part.shape == (1, 6, 5, 4)
    assert np.array_equal(all_of(found)[0], volume("uint8")[0, :3, :5].repeat(2, 0)[:, :, 1:9:2])
    assert np.allclose(part.affine, found.affine)
    with pytest.raises(BadDataError, match="not parallel"):
        align(image, source_of(volume("uint8"), affine=np.diag([1.0, 1.0, 1.0, 1.0])), "nearest")


CELLMAP = "em_cellmap/flyem_medulla-a/flyem_medulla-a.zarr/recon-1"


@pytest.mark.parametrize("name", ["cell", "pm"])
@pytest.mark.parametrize("crop", ["crop1", "crop2", "crop3"])
def test_cellmap_labels_land_on_the_right_voxels(shared_data, name, crop):
    store = shared_data / CELLMAP
    em, label = store / "em/fibsem-uint8", store / f"labels/groundtruth/{crop}/{name}"
    # The store leaves out chunks of background.
    options = CheckOptions(fill_missing=True)
    convert([em], Request("ome-zarr", align_labels=True), labels=label, options=options)
    image, labels = open_image(output("ome-zarr")), open_image(output("ome-zarr", labels=True))
    scale = read_json(label / ".zattrs")["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    size, first = scale[0]["scale"][0], np.array(scale[1]["translation"])
    raw = zarr.open_array(str(label / "s0"), mode="r")[:]
    factor = round(10 / size)
    assert factor == {"crop1": 1, "crop2": 1, "crop3": 2}[crop]
    # EM voxel i has its centre at 10 i nm: the labels' first edge over 10 nm, rounded, is its number.
    begin = np.rint((first - size / 2 + 5) / 10).astype(int)
    count = np.array(raw.shape) // factor
    em_array = zarr.open_array(str(em / "s0"), mode="r")
    at = tuple(slice(b, b + n) for b, n in zip(begin, count, strict=True))
    assert np.array_equal(all_of(image)[0], em_array[at])
    assert image.origin == pytest.approx(tuple(begin * 0.01))
    assert labels.origin == pytest.approx(image.origin)
    assert labels.spacing == pytest.approx((0.01,) * 3)
    blocks = raw.reshape(count[0], factor, count[1], factor, count[2], factor).transpose(0, 2, 4, 1, 3, 5)
    blocks = np.sort(blocks.reshape(*count, -1).astype(np.int64), axis=-1)
    votes = (blocks[..., :, None] == blocks[..., None, :]).sum(-1)
    expected = np.take_along_axis(blocks, votes.argmax(-1)[..., None], -1)[..., 0]
    assert np.array_equal(all_of(labels)[0], expected)
    if crop == "crop3":
        own = zarr.open_array(str(label / "s1"), mode="r")[:]
        assert np.array_equal(all_of(labels)[0], own)


REAL = [
    "fluorescence/ovule_nuclei_1135.ome.tif",
    "fluorescence/czyx_dna.ome.tif",
    "axons_lightsheet/lightsheet_chunk_128x256x256.ome.tif",
    "microct/100_fiberform.tif",
    "mri/t2.nii.gz",
    "em_cellmap/neubias_celegans_series",
    "em_cellmap/v05_zyx_bool.zarr",
]


def real_files(folder: Path) -> list[Path]:
    named = [folder / name for name in REAL if (folder / name).exists()]
    return named + sorted((folder / "mri").glob("t?_*.nii.gz"))[:2]


@pytest.mark.parametrize("target", VOLUMES)
def test_real_files_survive_every_format_that_can_carry_them(shared_data, target):
    tried = 0
    for number, path in enumerate(real_files(shared_data)):
        before = open_image(path)
        sample = f"r{number}"
        if faults(before, target):
            continue
        convert([path], Request(target), sample=sample)
        after = open_image(output(target, sample))
        assert np.array_equal(all_of(after), all_of(before).astype(after.dtype)), path
        if before.spacing is None:
            assert after.spacing is None or target in ("nifti", "nii", "mha", "nrrd"), path
        else:
            assert np.allclose(after.spacing, before.spacing, rtol=1e-6), path
        if before.affine is not None and FORMATS[target].orientation:
            assert np.allclose(after.affine, before.affine, atol=1e-4), path
        tried += 1
    assert tried >= 3


def test_same_bytes_for_any_memory():
    path = written("ome-tiff", array=np.random.default_rng(0).integers(0, 999, (40, 50, 60)).astype("u2"))
    digests = set()
    for memory in (200_000, MEMORY):
        request = Request("ome-zarr", target_spacing="1,1,1")
        entry = entry_of(path, request)
        record = Task("convert_images", "a")
        convert_batch([entry], Path("staged") / "a", request, Path(), record, memory_budget=memory)
        digests.add(next(iter(record.outputs.values())))
    assert len(digests) == 1


def entry_of(path: Path, request: Request) -> dict[str, Any]:
    place = Path("staged/a/1") / path.name
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.is_symlink():
        place.symlink_to(path.resolve())
    row = Row(2, "a", (path.name,), (1,), {})
    return check_row(row, {1: place}, partial(fit_conversion, request), CheckOptions())[0]


def test_what_is_read_back_is_compared(monkeypatch):
    path = written("ome-tiff")
    entry = entry_of(path, Request("nifti"))
    other = written("nifti", "other", array=volume() + 1)

    def writes_something_else(_source, path, *_, **__):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(other.read_bytes())

    monkeypatch.setattr("voxelmill.convert.conversion.write_image", writes_something_else)
    with pytest.raises(WriteFailedError, match="voxels others"):
        convert_batch([entry], Path("staged/a"), Request("nifti"), Path(), Task("c", "a"), memory_budget=MEMORY)


def test_lists_of_a_run():
    labels = written("mha", "labels", array=volume("uint8"))
    convert([written("ome-tiff")], Request("nifti"), labels=labels, group="control")
    convert([written("png", "flat", array=volume("uint8")[:, :1])], Request("png"), sample="b", spacing="1;2;3")
    convert([written("png", "flat", array=volume("uint8")[:, :1])], Request("png"), sample="c")
    write_json(Path("samples.json"), {"samples": [{"id": name} for name in "abc"]})
    results = Path("results")
    results.mkdir()
    for sample in "abc":
        for path in Path(sample).glob("*.json"):
            (results / path.name).write_bytes(path.read_bytes())
    list_converted(Path("samples.json"), results, False, Path())
    rows = list(csv.DictReader(io.StringIO(Path("samples.csv").read_text())))
    assert rows[0] == {
        "sample": "a", "image": "a/a.nii.gz", "instances": "a/a.labels.nii.gz", "spacing": "", "unit": "",
        "group": "control",
    }  # fmt: skip
    assert (rows[1]["spacing"], rows[1]["unit"]) == ("1.0;2.0;3.0", "um")
    assert (rows[2]["spacing"], rows[2]["unit"]) == ("", "pixel")
    done = list(csv.DictReader(io.StringIO(Path("converted.csv").read_text())))
    assert [(row["sample"], row["what"], row["source"]) for row in done][:2] == [
        ("a", "image", "in.ome.tif"),
        ("a", "labels", "labels.mha"),
    ]
    Path("pipeline_info").mkdir()
    Path("samples.json").rename("pipeline_info/samples.json")
    checked = subprocess.run(["sha256sum", "--check", "--strict", "outputs.sha256"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert {line.split(": ")[0] for line in checked.stdout.splitlines()} >= {
        "a/a.nii.gz", "a/a.labels.nii.gz", "b/b.png", "samples.csv", "converted.csv",
    }  # fmt: skip
    (results / "c.converted.json").unlink()
    with pytest.raises(TemporaryError, match="1 of 3 samples"):
        list_converted(Path("pipeline_info/samples.json"), results, False, Path())
    list_converted(Path("pipeline_info/samples.json"), results, True, Path())
    assert len(Path("samples.csv").read_text().splitlines()) == 3


def test_the_sheet_of_a_conversion_is_one_of_an_analysis():
    from voxelmill.samplesheet import read_sheet

    test_lists_of_a_run()
    rows, rejected, files = read_sheet(Path("samples.csv"), read_json(ROOT / "assets/schema_input.json"))
    assert not rejected
    assert files == 3
    assert rows[0].labels.kind == "instances"


def test_the_sheet_of_cores_and_borders_has_classes():
    labels = written("mha", "labels", array=grown(3).astype(np.uint8))
    convert([written("ome-tiff")], Request("nifti", border_core="1"), labels=labels)
    write_json(Path("samples.json"), {"samples": [{"id": "a"}]})
    list_converted(Path("samples.json"), Path("a"), False, Path())
    (row,) = csv.DictReader(io.StringIO(Path("samples.csv").read_text()))
    assert row == {"sample": "a", "image": "a/a.nii.gz", "semantic": "a/a.labels.nii.gz"}


def test_nnunet_takes_cores_and_borders_for_a_training_and_refuses_instances():
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    image, labels = written("ome-tiff"), written("ome-tiff", "labels", array=grown(5).astype(np.uint8))
    raw = Path("Dataset101_Particles")
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    description = {
        "channel_names": {"0": "microct"},
        "labels": {"background": 0, "core": 1, "border": 2},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    for border_core, right in (("1", True), (None, False)):
        convert([image], Request("nifti", border_core=border_core), labels=labels)
        (raw / "imagesTr/a_0000.nii.gz").write_bytes(output("nifti").read_bytes())
        (raw / "labelsTr/a.nii.gz").write_bytes(output("nifti", labels=True).read_bytes())
        if right:
            verify_dataset_integrity(str(raw), 1)
        else:
            with pytest.raises(RuntimeError):
                verify_dataset_integrity(str(raw), 1)


def test_the_script_converts_what_comes_on_its_standard_input():
    path = written("ome-tiff")
    entry = entry_of(path, Request("nrrd"))
    command = [
        sys.executable,
        ROOT / "bin/convert_images.py",
        "--batch",
        "a",
        "--images",
        "staged/a",
        "--format",
        "nrrd",
    ]
    done = subprocess.run(command, input=json.dumps([entry]), text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(all_of(open_image("a/a.nrrd")), volume())
    record = read_json(Path("a/a.convert_images.json"))
    assert list(record["files"]) == ["a/a.nrrd"]
    entry["box"] = [[0, 99], [0, 1], [0, 1]]
    done = subprocess.run(command, input=json.dumps([entry]), text=True, capture_output=True, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def test_wishes_are_read_or_refused():
    assert parse_target("8,8,8nm") == pytest.approx((0.008,) * 3)
    assert parse_target("0.5") == (0.5,) * 3
    for text in ("1,2", "x", "1,1,1 parsec", "1e,2,3"):
        with pytest.raises(UsageError, match="target_spacing"):
            parse_target(text)
    with pytest.raises(VoxelmillError):
        parse_target("0,1,1")
    assert parse_orientation("lps") == "LPS"
    for text in ("RRS", "RA", "XYZ", "RASL"):
        with pytest.raises(UsageError, match="orientation"):
            parse_orientation(text)


def test_all_faults_of_a_row_come_at_once():
    path = written("ome-tiff", array=volume(channels=2))
    labels = written("ome-tiff", "labels", array=volume("float32"))
    with pytest.raises(VoxelmillError) as caught:
        convert([path], Request("jpeg", orientation="RAS"), labels=labels, channel="9")
    text = str(caught.value)
    assert "no channel '9'" in text
    assert "float32" in text


def test_tifffile_reads_what_was_cut_out():
    path = written("ome-zarr", array=volume("uint8"))
    convert([path], Request("imagej"), options=CheckOptions(box="2:4,1:6,:"))
    assert np.array_equal(tifffile.imread(output("imagej")), volume("uint8")[0, 2:4, 1:6])


def script(name: str, *options: str, text: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "bin" / f"{name}.py", *options]
    return subprocess.run(command, input=text, text=True, capture_output=True, check=False)


def test_the_scripts_of_a_run_one_after_the_other():
    for number, name in enumerate(("one", "two"), 1):
        path = written("ome-tiff", name)
        place = Path("_images") / str(number) / path.name
        place.parent.mkdir(parents=True)
        place.symlink_to(path.resolve())
    wishes = ["--format", "nifti", "--target-spacing", "2,1,1", "--order", "area"]
    schema = str(ROOT / "assets/schema_input.json")
    checked = script("check_input", "--staged", "_images", "--schema", schema, *wishes)
    assert checked.returncode == 0, checked.stderr
    entries = read_json(Path("check/samples.json"))["samples"]
    assert [entry["batch"] for entry in entries] == ["batch1", "batch1"]
    text = json.dumps(entries)
    done = script("convert_images", "--batch", "batch1", "--images", "_images", *wishes, text=text)
    assert done.returncode == 0, done.stderr
    assert nib.load("one/one.nii.gz").shape == (2, 4, 6)
    Path("results").mkdir()
    for path in [*Path().glob("*/*.converted.json"), Path("batch1/batch1.convert_images.json")]:
        (Path("results") / path.name).write_bytes(path.read_bytes())
    listed = script("list_converted", "--samples", "check/samples.json", "--results", "results")
    assert listed.returncode == 0, listed.stderr
    rows = csv.DictReader(Path("samples.csv").read_text().splitlines())
    assert [row["image"] for row in rows] == ["one/one.nii.gz", "two/two.nii.gz"]
    refused = script("check_input", "--staged", "_images", "--schema", schema, "--format", "jpeg")
    assert refused.returncode == 65
    assert "jpeg cannot carry" in refused.stderr


@pytest.mark.parametrize("size", [0.0, -1.0, np.nan])
@pytest.mark.parametrize("form", ["qform", "sform", "none"])
def test_a_header_without_voxel_sizes_is_mended_by_a_spacing(size, form):
    header = nib.Nifti1Header()
    header.set_data_shape(SHAPE[::-1])
    header.set_data_dtype(np.uint16)
    if form == "qform":
        header.set_qform(np.diag([1.0, 1.0, 1.0, 1.0]), 1)
    if form == "sform":
        header.set_sform(np.diag([2.0, 2.0, 2.0, 1.0]), 1)
    header["pixdim"][1:4] = size
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    Path("bad.nii").write_bytes(header.binaryblock + bytes(4) + volume()[0].tobytes())
    with pytest.raises(BadDataError, match="voxel spacing"):
        convert([Path("bad.nii")], Request("nifti"))
    done = convert([Path("bad.nii")], Request("nifti"), sample="b", spacing="3;2;1", unit="mm")
    assert any("takes their place" in text for text in done["warnings"])
    file = nib.load(output("nifti", "b"))
    assert np.allclose(file.header.get_zooms(), (1, 2, 3))
    assert np.allclose(np.linalg.norm(file.affine[:3, :3], axis=0), (1, 2, 3))
    assert np.array_equal(np.asarray(file.dataobj).T, volume()[0])


def test_a_part_of_a_file_is_converted():
    array = np.random.default_rng(4).integers(0, 99, (3, *SHAPE)).astype(np.uint16)
    tifffile.imwrite("times.ome.tif", array, ome=True, metadata={"axes": "TZYX"})
    convert([Path("times.ome.tif")], Request("nrrd"), timepoint="2")
    assert np.array_equal(all_of(open_image(output("nrrd")))[0], array[2])


def test_a_level_of_a_store_is_converted(shared_data):
    em = shared_data / CELLMAP / "em/fibsem-uint8"
    done = convert([em], Request("ome-zarr"), level="1", options=CheckOptions(fill_missing=True))
    after = open_image(output("ome-zarr"))
    assert np.array_equal(all_of(after)[0], zarr.open_array(str(em / "s1"), mode="r")[:])
    assert after.spacing == pytest.approx((0.02,) * 3)
    assert after.origin == pytest.approx((0.005,) * 3)
    assert done["source_sha256"] == []


def test_slices_to_zarr_to_nifti_and_back(shared_data):
    folder = shared_data / "em_cellmap/neubias_celegans_series"
    planes = np.stack([tifffile.imread(path) for path in sorted(folder.glob("*.tif"))])
    convert([folder], Request("ome-zarr"), spacing="0.05;0.0046;0.0046")
    convert([output("ome-zarr")], Request("nifti"), sample="b")
    assert np.array_equal(np.asarray(nib.load(output("nifti", "b")).dataobj).transpose(2, 1, 0), planes)
    convert([output("nifti", "b")], Request("slices"), sample="c")
    names = sorted(output("slices", "c").iterdir())
    assert [path.name for path in names] == [f"c_z{z:04d}.tif" for z in range(len(planes))]
    assert np.array_equal(np.stack([tifffile.imread(path) for path in names]), planes)
    assert open_image(output("slices", "c")).spacing == pytest.approx((0.05, 0.0046, 0.0046))
