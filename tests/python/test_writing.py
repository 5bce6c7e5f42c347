"""Images written as every format, read by other people's programs and by our own readers."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import imagecodecs
import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import tifffile
import zarr
from defusedxml import ElementTree
from ome_zarr_models.v05 import Image
from ome_zarr_models.v05.image_label import ImageLabel
from PIL import Image as Pillow

from conftest import ROOT
from images import ArraySource, all_of, source_of
from voxelmill.errors import BadDataError, WriteFailedError, code_of
from voxelmill.formats import bands, open_image, planes, tiff_writer, writing, zarr_writer
from voxelmill.formats.bands import band_step
from voxelmill.formats.slices_writer import SlicesWriter
from voxelmill.formats.writing import FORMATS, carriers, describe, faults, losses, refuse, write_image
from voxelmill.formats.zarr_writer import halve, zarr_step

SPACING = (3.0, 0.65, 0.5)
SHAPES = {
    "volume": (1, 13, 70, 81), "channels": (2, 7, 70, 33), "plane": (1, 1, 130, 81), "colour": (3, 1, 90, 70),
}  # fmt: skip
TYPES = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32", "float64"]
STREAMED = sorted(FORMATS.keys() - {"jpeg"})


def voxels(shape, dtype, seed=0) -> np.ndarray:
    """Smooth values over the whole range of a type, its ends among them."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        array = rng.normal(size=shape).astype(dtype)
        array.reshape(-1)[:2] = np.finfo(dtype).min, np.finfo(dtype).max
        return array
    info = np.iinfo(dtype)
    array = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    array.reshape(-1)[:2] = info.min, info.max
    return array


def image(kind="volume", dtype="uint16", **known) -> ArraySource:
    known = {"spacing": SPACING, "rgb": kind == "colour", "chunk": (4, 32, 32), **known}
    return source_of(voxels(SHAPES[kind], dtype), **known)


def written(folder: Path, source, target: str, **options) -> Path:
    path = folder / f"img{FORMATS[target].suffix}"
    write_image(source, path, target, **options)
    return path


def by_others(path: Path, target: str) -> np.ndarray:
    """Channels, z, y, x as programs that are not ours read a file; axes of length one may be lost."""
    if target == "ome-zarr":
        array = np.asarray(zarr.open_array(str(path), path="0", mode="r")[:])
    elif target in ("nifti", "nii"):
        array = np.asarray(nib.load(path).dataobj).T
    elif target in ("mha", "nrrd"):
        read = SimpleITK.ReadImage(str(path))
        array = SimpleITK.GetArrayFromImage(read)
        array = np.moveaxis(array, -1, 0) if read.GetNumberOfComponentsPerPixel() > 1 else array
    elif target == "hdf5":
        with h5py.File(path) as file:
            array = file["image"][:]
    elif target == "png":
        array = imagecodecs.png_decode(path.read_bytes())
        array = np.moveaxis(array, -1, 0) if array.ndim == 3 else array
    elif target == "slices":
        array = np.stack([tifffile.imread(file) for file in sorted(path.iterdir())])
        array = np.moveaxis(array, -1, 0) if array.ndim == 4 else array
    else:
        with tifffile.TiffFile(path) as tif:
            series = tif.series[0]
            array, axes = series.asarray(), series.axes
        where = {"C": "C", "S": "C"}
        array = np.moveaxis(
            array, [i for i, a in enumerate(axes) if a in where], [0] * (("C" in axes) or ("S" in axes))
        )
    return array


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("target", STREAMED)
def test_values_and_types_come_back(tmp_path, target, kind, dtype):
    source = image(kind, dtype)
    if faults(source, target):
        with pytest.raises(BadDataError, match="cannot carry"):
            written(tmp_path, source, target)
        assert list(tmp_path.iterdir()) == []
        return
    path = written(tmp_path, source, target)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    found = by_others(path, target)
    assert found.dtype == source.dtype
    np.testing.assert_array_equal(found.reshape(source.shape), source.array)
    with open_image(path) as ours:
        assert (ours.shape, ours.dtype) == (source.shape, source.dtype)
        np.testing.assert_array_equal(all_of(ours), source.array)
        if FORMATS[target].spacing:
            assert ours.spacing == pytest.approx(SPACING, rel=1e-6)
        assert ours.rgb == (kind == "colour" and target in COLOURED and dtype in COLOURED[target])


COLOURED = {
    "ome-tiff": ("uint8", "uint16"), "imagej": ("uint8",), "tiff": ("uint8",), "png": ("uint8", "uint16"),
    "slices": ("uint8", "uint16"), "nrrd": TYPES, "ome-zarr": TYPES,
}  # fmt: skip
"""Where an image of red, green and blue is known for one when it is read again."""


def test_which_format_carries_what():
    """The table of the documentation."""
    one = {kind: {t for t in FORMATS if not faults(image(kind, "uint8"), t)} for kind in SHAPES}
    assert one["volume"] == FORMATS.keys() - {"png", "jpeg"}
    assert one["channels"] == FORMATS.keys() - {"png", "jpeg", "slices"}
    assert one["plane"] == one["colour"] == FORMATS.keys()
    kept = {dtype: {t for t in FORMATS if not faults(image("plane", dtype), t)} for dtype in TYPES}
    everything = {"ome-zarr", "nifti", "nii", "mha", "nrrd", "hdf5"}
    tiffs = {"ome-tiff", "tiff", "slices"}
    assert kept["uint8"] == FORMATS.keys()
    assert kept["uint16"] == FORMATS.keys() - {"jpeg"}
    assert kept["float32"] == everything | tiffs | {"imagej"}
    for dtype in ("int8", "int16", "int32", "uint32", "float64"):
        assert kept[dtype] == everything | tiffs
    for dtype in ("int64", "uint64"):
        assert kept[dtype] == everything


def test_a_refusal_names_the_formats_that_can():
    with pytest.raises(BadDataError, match="float64") as raised:
        refuse(image("volume", "float64"), "imagej")
    assert raised.value.expected is not None
    assert "ome-tiff" in raised.value.expected
    assert "png" not in raised.value.expected
    for source, target, labels in (
        (image("volume", "uint64"), "tiff", False), (image("volume", "uint8"), "png", False),
        (image("colour", "uint8", rgb=False), "png", False), (image("plane", "uint8"), "jpeg", True),
    ):  # fmt: skip
        with pytest.raises(BadDataError) as raised:
            refuse(source, target, labels)
        assert target not in carriers(source, labels)
    big = replace(image("volume", "uint16"), shape=(1, 1200, 1000, 1000))
    assert "less than 2147483648" in faults(big, "imagej")[0]
    assert faults(big, "tiff") == []


def test_what_a_format_does_not_keep_is_said():
    source = image(affine=np.eye(4), origin=(1.0, 2.0, 3.0), channel_names=("a",))
    assert losses(source, "nifti") == ["the names of its channels"]
    assert losses(source, "ome-zarr") == ["its orientation in the world"]
    assert len(losses(source, "png")) == 3
    assert losses(image(spacing=None), "nifti")[0].endswith("1 mm")
    assert losses(image("plane", "uint8"), "jpeg")[0].startswith("values")


def test_truth_values_and_half_precision_become_wider(tmp_path):
    array = voxels((1, 5, 6, 7), "uint8") > 100
    np.testing.assert_array_equal(by_others(written(tmp_path, source_of(array), "tiff"), "tiff"), array[0])
    half = voxels((1, 5, 6, 7), "float16")
    found = by_others(written(tmp_path, source_of(half), "mha"), "mha")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, half[0])


@pytest.mark.parametrize(
    ("target", "kind"), [(target, kind) for target in STREAMED for kind in SHAPES if not faults(image(kind), target)]
)
def test_memory_threads_and_chunks_change_no_byte(tmp_path, target, kind, monkeypatch):
    source = image(kind)
    first = digests(written(tmp_path / "a", source, target))
    monkeypatch.setattr(planes, "SPOOL_BYTES", 100)
    monkeypatch.setattr(bands, "LARGE", 1)
    monkeypatch.setattr(zarr_writer, "GOAL", 1)
    monkeypatch.setattr(bands, "thread_count", lambda: 5)
    for number, chunk in enumerate([(1, 1, 81), (2, 5, 40), (64, 64, 64)]):
        for budget in (1, 1 << 18):
            again = written(tmp_path / f"b{number}{budget}", replace(source, chunk=chunk), target, memory_budget=budget)
            assert digests(again) == first


def digests(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("target", ["tiff", "hdf5", "ome-zarr", "mha"])
def test_each_chunk_is_decoded_once(tmp_path, target, monkeypatch):
    monkeypatch.setattr(bands, "LARGE", 1)
    source = image("channels", chunk=(4, 48, 33))
    boxes = []
    original = source._read
    source._read = lambda channel, box: boxes.append((channel, box)) or original(channel, box)
    written(tmp_path, source, target)
    assert len(boxes) == len(set(boxes))
    assert sum(np.prod([b - a for a, b in box]) for _, box in boxes) == source.array.size
    for _, box in boxes:
        for (start, stop), side, size in zip(box, source.chunk, source.shape[1:], strict=True):
            assert start % side == 0
            assert stop % side == 0 or stop == size


def test_steps_stay_within_memory():
    shape, chunk = (1000, 20_000, 20_000), (64, 64, 64)
    depth, rows = band_step(shape, chunk, 2, (1, 64), 4_000_000_000)
    assert (depth, rows) == (64, 64)
    depth, rows = band_step(shape, (1, 20_000, 20_000), 2, (1, 64), 1_000_000_000)
    assert depth * rows * 20_000 * 2 <= 1_000_000_000
    for budget in (1 << 28, 1 << 30, 1 << 32):
        step = zarr_step(shape, (64, 256, 256), chunk, 2, budget)
        assert all(side % shard == 0 for side, shard in zip(step, (64, 256, 256), strict=True))
        assert np.prod(step) * 2 * zarr_writer.COPIES <= max(budget // 2, 64 * 256 * 256 * 2 * zarr_writer.COPIES)


# Zarr


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("labels", [False, True])
def test_ngff_metadata_are_valid(tmp_path, kind, labels):
    source = image(kind, "uint16", channel_names=("a", "b") if kind == "channels" else (), origin=(7.0, 8.0, 9.0))
    path = written(tmp_path, source, "ome-zarr", labels=labels)
    group = zarr.open_group(str(path), mode="r")
    model = (ImageLabel if labels else Image).from_zarr(group)
    scales = model.ome_attributes.multiscales[0]
    assert [axis.name for axis in scales.axes] == list("czyx" if source.shape[0] > 1 else "zyx")
    assert {axis.unit for axis in scales.axes if axis.type == "space"} == {"micrometer"}
    attributes = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]
    assert attributes["version"] == "0.5"
    assert ("image-label" in attributes) == labels
    if kind == "channels" and not labels:
        assert [channel["label"] for channel in attributes["omero"]["channels"]] == ["a", "b"]
    with open_image(path) as ours:
        assert ours.origin == (7.0, 8.0, 9.0)
        assert ours.spacing == SPACING


def test_a_flat_plane_has_no_z_axis(tmp_path):
    path = written(tmp_path, image("plane", spacing=(0.5, 0.5, 0.5)), "ome-zarr")
    assert zarr.open_array(str(path), path="0", mode="r").ndim == 2
    Image.from_zarr(zarr.open_group(str(path), mode="r"))
    path = written(tmp_path, image("plane", spacing=None), "ome-zarr")
    assert zarr.open_array(str(path), path="0", mode="r").ndim == 2
    with open_image(path) as ours:
        assert (ours.shape, ours.spacing) == (SHAPES["plane"], None)


def test_levels_are_means_and_lie_in_the_middle(tmp_path):
    shape = (1, 70, 270, 300)
    source = source_of(voxels(shape, "uint16"), spacing=SPACING, origin=(10.0, 20.0, 30.0))
    path = written(tmp_path, source, "ome-zarr")
    levels = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]["datasets"]
    assert len(levels) == 4
    expected = source.array[0]
    for level, dataset in enumerate(levels):
        found = np.asarray(zarr.open_array(str(path), path=str(level), mode="r")[:])
        if level:
            expected = slow_mean(expected)
        np.testing.assert_array_equal(found, expected)
        scale, shift = (t[t["type"]] for t in dataset["coordinateTransformations"])
        np.testing.assert_allclose(scale, np.array(SPACING) * 2**level)
        np.testing.assert_allclose(shift, np.add((10.0, 20.0, 30.0), np.array(SPACING) * (2**level - 1) / 2))


def slow_mean(array: np.ndarray) -> np.ndarray:
    """Every voxel on its own, by Python's exact integers."""
    padded = np.pad(array, [(0, n % 2) for n in array.shape], mode="edge").astype(object)
    total = sum(padded[z::2, y::2, x::2] for z in (0, 1) for y in (0, 1) for x in (0, 1))
    return ((total + 4) // 8).astype(array.dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_means_of_every_type(dtype):
    array = voxels((5, 6, 7), dtype)
    if np.dtype(dtype).kind == "f":
        array = array.clip(-100, 100)
        padded = np.pad(array.astype(np.float64), [(0, n % 2) for n in array.shape], mode="edge")
        expected = padded.reshape(3, 2, 3, 2, 4, 2).mean(axis=(1, 3, 5))
        np.testing.assert_allclose(halve(array, array.shape, False), expected, rtol=1e-6)
        return
    found = halve(array, array.shape, False)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, slow_mean(array))


def test_levels_of_labels_keep_labels(tmp_path):
    labels = voxels((1, 70, 270, 300), "uint32")
    path = written(tmp_path, source_of(labels, spacing=SPACING), "ome-zarr", labels=True)
    for level in range(4):
        found = np.asarray(zarr.open_array(str(path), path=str(level), mode="r")[:])
        np.testing.assert_array_equal(found, labels[0][tuple(slice(None, None, 2**level) for _ in range(3))])


# TIFF


def test_tiff_says_sizes_channels_and_units(tmp_path):
    source = image("channels", "float32", channel_names=("DAPI", 'a "µ" <b>\x01'))
    with tifffile.TiffFile(written(tmp_path, source, "ome-tiff")) as tif:
        assert (tif.is_ome, tif.series[0].axes) == (True, "ZCYX")
        pixels = next(e for e in ElementTree.fromstring(tif.ome_metadata).iter() if e.tag.endswith("Pixels"))
    assert [float(pixels.get(f"PhysicalSize{axis}")) for axis in "ZYX"] == list(SPACING)
    assert [e.get("Name") for e in pixels if e.tag.endswith("Channel")] == ["DAPI", 'a "µ" <b>']
    with tifffile.TiffFile(written(tmp_path, source, "imagej")) as tif:
        metadata = tif.imagej_metadata
        assert (tif.series[0].axes, metadata["unit"], metadata["spacing"]) == ("ZCYX", "micron", 3.0)
        assert (metadata["channels"], metadata["slices"], metadata["hyperstack"]) == (2, 7, True)
        assert metadata["min"] == pytest.approx(source.array.min(), rel=1e-9)
        assert metadata["max"] == pytest.approx(source.array.max(), rel=1e-9)


def test_above_the_limit_a_tiff_is_big(tmp_path, monkeypatch):
    source = image()
    monkeypatch.setattr(tiff_writer, "LIMIT", source.array.nbytes)
    with tifffile.TiffFile(written(tmp_path, source, "tiff")) as tif:
        assert (tif.is_bigtiff, tif.is_ome, tif.is_imagej) == (True, True, False)
        np.testing.assert_array_equal(tif.asarray(), source.array[0])


def test_slices_are_in_the_order_of_their_names(tmp_path, monkeypatch):
    path = written(tmp_path, image("volume"), "slices", name="em")
    assert [file.name for file in sorted(path.iterdir())][::12] == ["em_z0000.tif", "em_z0012.tif"]
    with tifffile.TiffFile(path / "em_z0003.tif") as tif:
        assert (tif.imagej_metadata["spacing"], tif.imagej_metadata["unit"]) == (3.0, "micron")
    with open_image(path / "em_z0003.tif") as one:
        assert one.spacing == pytest.approx(SPACING)
    many = replace(describe(image(), labels=False, name="em"), shape=(1, 10_001, 1, 1))
    with SlicesWriter(tmp_path / "many", many):
        pass
    assert [file.name for file in (tmp_path / "many").iterdir()] == ["em_z00000.tif"]


# World


OBLIQUE = np.array([[-0.4, 0.3, 0.0, 12.0], [0.3, 0.4, 0.0, -7.0], [0.0, 0.0, 1.5, 3.5], [0, 0, 0, 1.0]])
SHEARED = np.array([[-0.4, 0.05, 0.0, 12.0], [0.03, 0.6, 0.1, -7.0], [0.0, -0.06, 1.5, 3.5], [0, 0, 0, 1.0]])


def size_of(affine):
    return tuple(1e3 * n for n in np.linalg.norm(affine[:3, :3], axis=0)[::-1])


@pytest.mark.parametrize("target", ["nifti", "nii", "mha", "nrrd"])
def test_a_voxel_keeps_its_place_in_the_world(tmp_path, target):
    source = image("channels", "float32", affine=OBLIQUE, spacing=size_of(OBLIQUE))
    path = written(tmp_path, source, target)
    read = SimpleITK.ReadImage(str(path))
    at = read.TransformContinuousIndexToPhysicalPoint([3.0, 2.0, 1.0, *([0.0] * (read.GetDimension() - 3))])[:3]
    np.testing.assert_allclose(np.array(at) * (-1, -1, 1), (OBLIQUE @ [3, 2, 1, 1])[:3], rtol=1e-5)
    with open_image(path) as ours:
        np.testing.assert_allclose(ours.affine, OBLIQUE, rtol=1e-5, atol=1e-7)
        assert ours.spacing == pytest.approx(source.spacing, rel=1e-6)


@pytest.mark.parametrize("target", ["nifti", "mha", "nrrd", "ome-zarr"])
def test_an_origin_is_the_centre_of_the_first_voxel(tmp_path, target):
    path = written(tmp_path, image(origin=(1000.0, 2000.0, 3000.0)), target)
    if target == "ome-zarr":
        with open_image(path) as ours:
            assert ours.origin == (1000.0, 2000.0, 3000.0)
        return
    signs = (-1, -1, 1) if target == "nifti" else (1, 1, 1)
    assert SimpleITK.ReadImage(str(path)).GetOrigin() == pytest.approx(np.array([3.0, 2.0, 1.0]) * signs)


def test_forms_of_a_nifti_are_kept_and_shears_are_in_the_sform(tmp_path):
    forms = ((2, OBLIQUE), (0, np.eye(4)))
    read = nib.load(written(tmp_path, image(affine=OBLIQUE, forms=forms, spacing=size_of(OBLIQUE)), "nifti"))
    assert [int(read.header[f"{form}_code"]) for form in ("qform", "sform")] == [2, 0]
    read = nib.load(written(tmp_path, image(affine=SHEARED, spacing=size_of(SHEARED)), "nii"))
    assert [int(read.header[f"{form}_code"]) for form in ("qform", "sform")] == [0, 1]
    np.testing.assert_allclose(read.affine, SHEARED, rtol=1e-6)


def test_nifti_headers_say_what_they_hold(tmp_path):
    read = nib.load(written(tmp_path, image("channels"), "nifti"))
    assert (read.shape, read.header.get_intent()[0]) == ((33, 70, 7, 1, 2), "vector")
    read = nib.load(written(tmp_path, image("volume"), "nifti", labels=True))
    assert int(read.header["intent_code"]) == 1002
    assert isinstance(read, nib.Nifti1Image)
    long = source_of(np.arange(32768, dtype=np.int16).reshape(1, 1, -1))
    assert isinstance(nib.load(written(tmp_path, long, "nii")), nib.Nifti2Image)


@pytest.mark.parametrize("target", ["mha", "nrrd", "hdf5", "ome-tiff", "imagej", "ome-zarr"])
def test_an_image_without_size_stays_without(tmp_path, target):
    with open_image(written(tmp_path, image(spacing=None), target)) as ours:
        assert ours.spacing is None


def test_hdf5_says_axes_and_sizes_and_checks_its_chunks(tmp_path):
    path = written(tmp_path, image("channels", channel_names=("a", "b")), "hdf5")
    with h5py.File(path) as file:
        data = file["image"]
        assert [dimension.label for dimension in data.dims] == list("czyx")
        assert data.attrs["element_size_um"].tolist() == list(SPACING)
        assert (data.compression, data.shuffle, data.fletcher32) == ("gzip", True, True)
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(blob)
    with h5py.File(path) as file, pytest.raises(OSError, match=r"fletcher32|checksum|filter"):
        file["image"][:]


def test_jpeg_is_near_the_image(tmp_path):
    y, x = np.mgrid[:90, :70]
    array = np.stack([y * 2, x * 3, y + x]).astype(np.uint8)[:, None]
    source = source_of(array, rgb=True)
    found = np.asarray(Pillow.open(written(tmp_path, source, "jpeg")))
    assert np.abs(found.astype(int) - np.moveaxis(array[:, 0], 0, -1)).max() <= 8


def test_png_is_what_others_read(tmp_path):
    source = image("plane", "uint16")
    with Pillow.open(written(tmp_path, source, "png")) as read:
        read.load()
        np.testing.assert_array_equal(np.asarray(read), source.array[0, 0])


REAL = [
    "fluorescence/czyx_dna.ome.tif", "fluorescence/bmcv_zcyx.tiff", "fluorescence/float32_dna.ome.tif",
    "fluorescence/bmcv_zyx_float16.tiff", "fluorescence/ovule_nuclei_1135_instances.tif",
    "fluorescence/xyz_8bit__mitotic_plate_calibrated.tif", "mri/t1_t1w.nii.gz", "mri/t2_t2.nii.gz",
    "mri/standard.nii.gz", "qupath/mitocheck_t1.tif", "em_cellmap/image-03.zarr", "em_cellmap/v05_zyx_bool.zarr",
    "em_cellmap/neubias_celegans_series",
]  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_images_survive_every_format_that_carries_them(shared_data, tmp_path, name):
    with open_image(shared_data / name) as source:
        expected = all_of(source)
        targets = carriers(source)
        assert {"ome-zarr", "nifti", "mha", "nrrd", "hdf5"} <= set(targets)
        for target in targets:
            path, form = written(tmp_path, source, target), FORMATS[target]
            with open_image(path) as ours:
                found = all_of(ours)
                assert (found.shape, found.dtype) == (expected.shape, writing.written_dtype(source.dtype)), target
                np.testing.assert_array_equal(found, expected)
                if form.spacing and (source.spacing is not None or target not in ("nifti", "nii")):
                    assert ours.spacing == (source.spacing and pytest.approx(source.spacing, rel=1e-6)), target
                if form.orientation and source.affine is not None:
                    np.testing.assert_allclose(ours.affine, source.affine, rtol=1e-5, atol=1e-5)
                if form.names:
                    assert ours.channel_names == source.channel_names, target
            shutil.rmtree(path) if path.is_dir() else path.unlink()


# Disks


@pytest.fixture(scope="module")
def on_full_disks(tmp_path_factory) -> dict[str, str]:
    """What each format's writer ends with where files cannot be longer than 100 kB, as the libraries tell it."""
    folder = tmp_path_factory.mktemp("full")
    code = f"""
import json, resource, signal, sys
sys.path[:0] = [{str(ROOT / "bin")!r}, {str(ROOT / "tests/python")!r}]
import numpy as np
from pathlib import Path
from images import source_of
from voxelmill.formats.writing import write_image, FORMATS
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
array = np.random.default_rng(0).integers(0, 255, (1, 1, 700, 700), np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
ends = {{}}
for target, form in FORMATS.items():
    try:
        write_image(source_of(array), Path({str(folder)!r}) / ("a" + form.suffix), target)
        ends[target] = "written"
    except Exception as error:
        ends[target] = f"{{type(error).__name__}} {{[path.name for path in Path({str(folder)!r}).iterdir()]}}"
print(json.dumps(ends))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("target", sorted(FORMATS))
def test_a_full_disk_leaves_nothing(on_full_disks, target):
    assert on_full_disks[target] == "WriteFailedError []"


def test_a_full_disk_is_known_by_its_words():
    """Those of zarrs and of HDF5."""
    assert code_of(RuntimeError("No space left on device (os error 28)")) == 74
    assert code_of(OSError("Can't write (file write failed: errno = 28, error message = 'No space left')")) == 74
    assert code_of(RuntimeError("No such file (os error 2)")) == 70


@pytest.mark.parametrize("target", STREAMED)
def test_the_system_s_errors_are_told(tmp_path, target, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    source = image("plane")
    monkeypatch.setattr(ArraySource, "_read", full)
    with pytest.raises(WriteFailedError, match="No space left") as raised:
        written(tmp_path, source, target)
    assert raised.value.remedy is not None
    assert "bytes are left" in raised.value.remedy
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", sorted(set(STREAMED) - {"ome-zarr", "slices"}))
def test_a_file_that_lost_its_end_is_noticed(tmp_path, target, monkeypatch):
    source = image("plane")
    kind = type(FORMATS[target].open(tmp_path / "probe", describe(source, labels=False, name="")))
    (tmp_path / "probe").unlink()
    close = kind.close

    def cut(writer):
        close(writer)
        data = writer.path.read_bytes()
        writer.path.write_bytes(data[: len(data) // 2])

    monkeypatch.setattr(kind, "close", cut)
    with pytest.raises((WriteFailedError, BadDataError)):
        written(tmp_path, source, target)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_lost_a_shard_is_noticed(tmp_path, monkeypatch):
    original = zarr_writer.write_group

    def lose(path, ome):
        original(path, ome)
        next(path.rglob("c/*/*/*")).unlink()

    monkeypatch.setattr(zarr_writer, "write_group", lose)
    with pytest.raises(WriteFailedError, match="shards"):
        written(tmp_path, image(), "ome-zarr")
    assert list(tmp_path.iterdir()) == []


def test_what_lies_there_is_replaced_only_by_a_whole_image(tmp_path):
    path = written(tmp_path, image(), "ome-zarr")
    before = digests(path)
    broken = image()
    broken._read = lambda *_: (_ for _ in ()).throw(BadDataError("damaged"))
    with pytest.raises(BadDataError, match="damaged"):
        written(tmp_path, broken, "ome-zarr")
    assert digests(path) == before
    written(tmp_path, image(dtype="uint8"), "ome-zarr")
    assert digests(path) != before


def test_memory_does_not_grow_with_the_volume(tmp_path):
    """In a process of its own: what the libraries hold is counted too."""
    code = f"""
import json, resource, sys
sys.path[:0] = [{str(ROOT / "bin")!r}, {str(ROOT / "tests/python")!r}]
from pathlib import Path
from dataclasses import dataclass
import numpy as np
from voxelmill.formats.base import ImageSource
from voxelmill.formats.writing import write_image, FORMATS
@dataclass(kw_only=True)
class Plain(ImageSource):
    def _read(self, channel, box):
        z, y, x = (np.arange(*pair).astype(np.uint8) for pair in box)
        return z[:, None, None] ^ y[:, None] ^ x
def write(planes, target):
    source = Plain(path=Path("x"), format="", shape=(1, planes, 512, 512), dtype=np.dtype("uint8"), chunk=(64, 64, 64))
    write_image(source, Path({str(tmp_path)!r}) / target, target, memory_budget=100_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
targets = ["tiff", "nifti", "hdf5", "ome-zarr"]
first = max(write(128, target) for target in targets)
print(json.dumps({{target: write(640, target) - first for target in targets}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Kilobytes; the longer volume has 134,000 more.
    assert max(json.loads(done.stdout).values()) < 40_000
