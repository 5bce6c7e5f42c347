"""Label files, held against what tifffile, nibabel and SimpleITK read."""

from __future__ import annotations

import errno
import gzip
import hashlib
import subprocess
import sys
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import tifffile
from defusedxml import ElementTree
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import ROOT
from voxelmill import export
from voxelmill.errors import BadDataError, TemporaryError, WriteFailedError
from voxelmill.export import FILES, export_batch, export_formats, export_labels
from voxelmill.files import read_json
from voxelmill.formats import bands, hdf5_writer, itk_writer, nifti_writer, open_image, planes, tiff_writer
from voxelmill.formats.bands import band_step
from voxelmill.formats.deflate import adler32_combine, crc32_combine
from voxelmill.formats.planes import piece_rows
from voxelmill.formats.writing import FORMATS
from voxelmill.grid import LabelGrid
from voxelmill.image import ArrayLocation, ImageInfo
from voxelmill.importing import SampleSpec, import_image
from voxelmill.store import create_array
from voxelmill.task import Task, task

BUDGET = 1 << 30
SPACING = (3.0, 0.65, 0.5)


def make_grid(shape=(70, 90, 130), *, unit="um", spacing=SPACING, kind="predicted", **other) -> LabelGrid:
    return LabelGrid(
        sample="a",
        shape=shape,
        spacing=spacing if unit == "um" else (1.0, 1.0, 1.0),
        origin=(0.0, 0.0, 0.0),
        unit=unit,
        shard=tuple(min(128, 64 * -(-n // 64)) if n > 1 else 1 for n in shape),
        cuts=tuple((0, n) for n in shape),
        reached=(0,),
        values=(1, 2, 3),
        label_names={"1": "a", "2": "b", "3": "c"},
        windows=0,
        kind=kind,
        dtype="uint8",
        **other,
    )


def make_info(grid: LabelGrid, *, format="OME-TIFF", affine=None, **other) -> ImageInfo:
    return ImageInfo(
        sample="a",
        shape=grid.shape,
        dtype="uint16",
        spacing=grid.spacing,
        unit=grid.unit,
        spacing_origin="",
        format=format,
        files=("a.tif",),
        array=ArrayLocation("0", "czyx", (0,)),
        intensity=(),
        flip="",
        nonzero_box=tuple((0, n) for n in grid.shape),
        statistics=(),
        content_sha256="0" * 64,
        affine=affine,
        forms=() if affine is None else ((0, tree(np.eye(4))), (1, affine)),
        **other,
    )


def labels_of(shape, largest: int, dtype: str, seed=0) -> np.ndarray:
    """Boxes of labels in noise-free background, the largest label among them."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, dtype)
    for _ in range(40):
        corner = [rng.integers(0, n) for n in shape]
        labels[tuple(slice(c, c + rng.integers(1, 30)) for c in corner)] = rng.integers(1, largest, endpoint=True)
    labels.reshape(-1)[-1] = largest
    return labels


def make_store(folder: Path, grid: LabelGrid, **arrays: np.ndarray) -> Path:
    store = folder / "labels" / "1" / "labels.ome.zarr"
    for name, labels in arrays.items():
        array = create_array(store / name / "0", labels.shape, str(labels.dtype), grid.shard, "zyx")
        array[:] = labels
    return store


def write(store: Path, grid: LabelGrid, info: ImageInfo, out: Path, format="tiff", binary=None, budget=BUDGET):
    return {
        path.name: path
        for path in export_labels(store, grid, info, out, format=format, binary=binary, memory_budget=budget)
    }


@pytest.fixture
def grid() -> LabelGrid:
    return make_grid()


@pytest.fixture
def arrays(grid) -> dict[str, np.ndarray]:
    semantic = labels_of(grid.shape, 3, "uint8")
    instances = labels_of(grid.shape, 700, "uint16", seed=1)
    return {"semantic": semantic, "instances": instances}


# Which files, and what they hold


@pytest.mark.parametrize(
    ("wish", "image", "expected"),
    [
        ("auto", "OME-TIFF", ["tiff"]), ("auto", "ImageJ TIFF", ["tiff"]), ("auto", "TIFF", ["tiff"]),
        ("auto", "NIfTI", ["nifti"]), ("auto", "MetaImage", ["mha"]), ("auto", "NRRD", ["nrrd"]),
        ("auto", "HDF5", ["hdf5"]), ("auto", "PNG", ["png"]), ("auto", "JPEG", ["png"]),
        ("auto", "TIFF slices", ["tiff"]), ("auto", "OME-Zarr 0.5", []), ("auto", "Zarr 3", []),
        ("tiff", "NIfTI", ["tiff"]), ("none", "TIFF", []), ("mha,geojson", "TIFF", ["mha", "geojson"]),
    ],
)  # fmt: skip
def test_the_format_is_that_of_the_input(wish, image, expected):
    assert export_formats(wish, image) == expected


def read_hdf5(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return file["image"][:]


def read_itk(path: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


READ = {
    "tiff": tifffile.imread, "ome-tiff": tifffile.imread, "nifti": lambda path: np.asarray(nib.load(path).dataobj).T,
    "mha": read_itk, "nrrd": read_itk, "hdf5": read_hdf5, "png": lambda path: np.asarray(Image.open(path)),
}  # fmt: skip
VOLUMES = [name for name in FILES if name != "png"]


@pytest.mark.parametrize("format", FILES)
@pytest.mark.parametrize("binary", [None, 255])
def test_the_three_files_hold_classes_foreground_and_ids(tmp_path, grid, arrays, format, binary):
    if format == "png":
        grid, arrays = make_grid((1, 90, 130)), {name: array[:1] for name, array in arrays.items()}
    files = write(make_store(tmp_path, grid, **arrays), grid, make_info(grid), tmp_path / "a", format, binary)

    suffix = FORMATS[format].suffix
    found = {name.removeprefix("a.label_").removesuffix(suffix): READ[format](path) for name, path in files.items()}
    semantic, instances = arrays["semantic"], arrays["instances"]
    expected = {
        "raw": semantic if binary is None else np.where(semantic > 0, 255, 0).astype(np.uint8),
        "binary": np.where(instances > 0, binary or 1, 0).astype(np.uint8),
        "instances": instances,
    }
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name].reshape(array.shape), array)


def test_png_holds_single_planes_and_ids_of_16_bits(tmp_path, grid, arrays):
    with pytest.raises(BadDataError, match="70 planes"):
        write(make_store(tmp_path, grid, **arrays), grid, make_info(grid), tmp_path / "a", "png")
    assert export_formats("auto", "PNG", planes=70) == ["tiff"]
    labels = labels_of((1, 90, 130), 65_536, "uint32")
    grid = make_grid(labels.shape)
    store = make_store(tmp_path / "b", grid, instances=labels)
    record = Task("export_labels", "a")
    export.export_sample(
        store, grid, make_info(grid), tmp_path / "b", record, export="png", binary=None, memory_budget=BUDGET
    )
    assert sorted(path.name for path in (tmp_path / "b").glob("a.*")) == ["a.label_binary.png", "a.label_instances.tif"]
    assert "65536" in record.warnings[0]["text"]
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b" / "a.label_instances.tif"), labels[0])


@pytest.mark.parametrize("format", ["mha", "nrrd"])
def test_labels_of_an_itk_image_lie_on_it(tmp_path, format, monkeypatch):
    """Also where a box was cut out of an image whose first voxel is not at zero."""
    image = SimpleITK.GetImageFromArray(labels_of((6, 7, 8), 3, "uint8"))
    image.SetSpacing((0.5, 0.65, 3.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    image.SetDirection((0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0))
    SimpleITK.WriteImage(image, str(tmp_path / f"in.{format}"))
    grid = replace(make_grid((3, 4, 5)), spacing=(3000.0, 650.0, 500.0))
    box = ((2, 5), (1, 5), (3, 8))
    with open_image(tmp_path / f"in.{format}") as source:
        info = import_image([source], SampleSpec("a", (0,), grid.spacing, "um", "", box=box), tmp_path)
    labels = labels_of(grid.shape, 3, "uint8")
    store = make_store(tmp_path, grid, semantic=labels)
    (wish,) = export_formats("auto", info.format)
    path = write(store, grid, info, tmp_path / "a", wish)[f"a.label_raw.{format}"]
    ours = SimpleITK.ReadImage(str(path))
    assert ours.GetDirection() == pytest.approx(image.GetDirection())
    assert ours.GetSpacing() == pytest.approx(image.GetSpacing())
    assert ours.GetOrigin() == pytest.approx(image.TransformIndexToPhysicalPoint((3, 1, 2)))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(ours), labels)


@pytest.mark.parametrize(
    ("export", "code"), [("tiff,nifti", 0), ("none", 0), ("bmp", 2), ("auto,tiff", 2), ("none,tiff", 2), ("", 2)]
)
def test_formats_on_the_command_line(tmp_path, grid, arrays, export, code, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path, grid, **arrays)
    grid.save(tmp_path / "a.grid.json")
    make_info(grid).save(tmp_path / "a.image.json")
    command = [sys.executable, ROOT / "bin" / "export_labels.py", "--batch", "a", "--samples", "a", "--export", export]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    written = {path.name for path in (tmp_path / "a").glob("*.label_*")}
    assert len(written) == (6 if export == "tiff,nifti" else 0)


def test_without_instances_the_binary_file_is_the_foreground_of_the_classes(tmp_path, grid, arrays):
    files = write(make_store(tmp_path, grid, semantic=arrays["semantic"]), grid, make_info(grid), tmp_path / "a")
    assert sorted(files) == ["a.label_binary.tif", "a.label_raw.tif"]
    np.testing.assert_array_equal(tifffile.imread(files["a.label_binary.tif"]), arrays["semantic"] > 0)


def test_given_instances_have_no_raw_file(tmp_path, arrays):
    grid = make_grid(kind="instances")
    files = write(make_store(tmp_path, grid, instances=arrays["instances"]), grid, make_info(grid), tmp_path / "a")
    assert sorted(files) == ["a.label_binary.tif", "a.label_instances.tif"]


@pytest.mark.parametrize(
    ("largest", "stored", "kind", "expected"),
    [
        (65534, "uint16", "predicted", "uint16"),
        (65536, "uint32", "predicted", "uint32"),
        (65535, "uint32", "instances", "uint16"),
        (65536, "uint32", "instances", "uint32"),
        (7, "uint64", "instances", "uint16"),
        (2**32 - 1, "uint64", "instances", "uint32"),
    ],
)
def test_ids_get_16_bits_only_where_they_fit(tmp_path, largest, stored, kind, expected):
    grid = make_grid((5, 20, 30), kind=kind)
    labels = labels_of(grid.shape, largest, stored)
    files = write(make_store(tmp_path, grid, instances=labels), grid, make_info(grid), tmp_path / "a")
    found = tifffile.imread(files["a.label_instances.tif"])
    assert found.dtype == expected
    np.testing.assert_array_equal(found, labels)


def test_an_id_beyond_32_bits_is_an_error_for_tiff_and_none_for_nifti(tmp_path):
    grid = make_grid((5, 20, 30), kind="instances")
    labels = labels_of(grid.shape, 2**32, "uint64")
    store = make_store(tmp_path, grid, instances=labels)
    with pytest.raises(BadDataError, match="4294967296") as raised:
        write(store, grid, make_info(grid), tmp_path / "a")
    assert raised.value.remedy is not None
    assert "--export nifti" in raised.value.remedy
    files = write(store, grid, make_info(grid), tmp_path / "a", "nifti")
    np.testing.assert_array_equal(np.asarray(nib.load(files["a.label_instances.nii.gz"]).dataobj).T, labels)


# TIFF


def test_imagej_finds_its_calibration(tmp_path, grid, arrays):
    path = write(make_store(tmp_path, grid, **arrays), grid, make_info(grid), tmp_path / "a")["a.label_instances.tif"]
    with tifffile.TiffFile(path) as tif:
        metadata, tags = tif.imagej_metadata, tif.pages.first.tags
        assert metadata["spacing"] == 3.0
        assert metadata["unit"] == "micron"
        assert metadata["slices"] == metadata["images"] == grid.shape[0]
        assert tif.series[0].axes == "ZYX"
        assert [tags[f"{axis}Resolution"].value[1] / tags[f"{axis}Resolution"].value[0] for axis in "YX"] == [
            pytest.approx(0.65, rel=1e-9), 0.5,
        ]  # fmt: skip
        assert tags["ResolutionUnit"].value == 1
        assert not {"DateTime", "Software"} & {tag.name for tag in tags}
        assert not tif.is_bigtiff
    with open_image(path) as source:
        assert source.format == "ImageJ TIFF"
        assert source.spacing == pytest.approx(SPACING, rel=1e-9)


def test_classes_are_not_black_on_a_screen(tmp_path, grid, arrays):
    """ImageJ shows 8 bits from 0 to 255 unless the file says another range."""
    files = write(make_store(tmp_path, grid, **arrays), grid, make_info(grid), tmp_path / "a")
    for name, largest in (("raw", 3), ("binary", 1), ("instances", 700)):
        with tifffile.TiffFile(files[f"a.label_{name}.tif"]) as tif:
            assert (tif.imagej_metadata["min"], tif.imagej_metadata["max"]) == (0, largest)


def test_a_single_plane_is_a_picture(tmp_path):
    grid = make_grid((1, 300, 200))
    labels = labels_of(grid.shape, 3, "uint8")
    path = write(make_store(tmp_path, grid, semantic=labels), grid, make_info(grid), tmp_path / "a")["a.label_raw.tif"]
    np.testing.assert_array_equal(tifffile.imread(path), labels[0])
    with tifffile.TiffFile(path) as tif:
        assert tif.series[0].axes == "YX"
        assert tif.imagej_metadata["unit"] == "micron"


def test_pixels_have_no_calibration(tmp_path):
    grid = make_grid((5, 20, 30), unit="pixel")
    labels = labels_of(grid.shape, 70000, "uint32")
    store = make_store(tmp_path, grid, semantic=labels.astype(np.uint8) % 4, instances=labels)
    files = write(store, grid, make_info(grid), tmp_path / "a")
    with tifffile.TiffFile(files["a.label_raw.tif"]) as tif:
        assert tif.is_imagej
        assert not {"unit", "spacing"} & tif.imagej_metadata.keys()
    assert "PhysicalSize" not in tifffile.TiffFile(files["a.label_instances.tif"]).ome_metadata
    for path in files.values():
        with open_image(path) as source:
            assert source.spacing is None


def test_ids_beyond_16_bits_are_ome_tiff_with_calibration(tmp_path):
    grid = make_grid((9, 70, 65))
    labels = labels_of(grid.shape, 70000, "uint32")
    path = write(make_store(tmp_path, grid, instances=labels), grid, make_info(grid), tmp_path / "a")[
        "a.label_instances.tif"
    ]
    with tifffile.TiffFile(path) as tif:
        assert tif.is_ome
        assert not tif.is_bigtiff
        assert tif.series[0].axes == "ZYX"
        assert tif.series[0].dtype == np.uint32
        xml = ElementTree.fromstring(tif.ome_metadata)
        np.testing.assert_array_equal(tif.asarray(), labels)
    pixels = next(element for element in xml.iter() if element.tag.endswith("Pixels"))
    assert [float(pixels.get(f"PhysicalSize{axis}")) for axis in "ZYX"] == list(SPACING)
    assert {pixels.get(f"PhysicalSize{axis}Unit") for axis in "ZYX"} == {"µm"}
    assert xml.get("UUID") is None
    with open_image(path) as source:
        assert (source.format, source.spacing, source.shape) == ("OME-TIFF", SPACING, (1, *grid.shape))


def test_above_two_gibibytes_it_is_a_big_ome_tiff(tmp_path, grid, arrays, monkeypatch):
    """The limit is lowered to the size of the test's arrays; nothing else depends on it."""
    store = make_store(tmp_path, grid, **arrays)
    assert tiff_writer.LIMIT == 2**31
    size = np.prod(grid.shape)
    monkeypatch.setattr(tiff_writer, "LIMIT", size + 1)
    files = write(store, grid, make_info(grid), tmp_path / "a")
    kinds = {}
    for name, path in files.items():
        with tifffile.TiffFile(path) as tif:
            kinds[name.split(".")[1]] = (tif.is_imagej, tif.is_ome, tif.is_bigtiff)
            np.testing.assert_array_equal(tif.asarray() > 0, arrays["semantic" if "raw" in name else "instances"] > 0)
    assert kinds == {
        "label_raw": (True, False, False), "label_binary": (True, False, False), "label_instances": (False, True, True),
    }  # fmt: skip


def test_pages_are_what_imagej_reads(tmp_path, grid, arrays):
    """ImageJ 1.x: a page per plane, deflate without predictor, strips of whole rows, one sample."""
    path = write(make_store(tmp_path, grid, **arrays), grid, make_info(grid), tmp_path / "a")["a.label_instances.tif"]
    with tifffile.TiffFile(path) as tif:
        assert len(tif.pages) == grid.shape[0]
        assert sum(page.tags.get("ImageDescription") is not None for page in tif.pages) == 1
        for page in tif.pages:
            assert (page.compression, page.predictor, page.photometric, page.samplesperpixel) == (8, 1, 1, 1)
            assert not page.is_tiled
            for offset, size, rows in zip(page.dataoffsets, page.databytecounts, strip_rows(page), strict=True):
                tif.filehandle.seek(offset)
                decoded = zlib.decompress(tif.filehandle.read(size))
                assert len(decoded) == rows * grid.shape[2] * 2


def strip_rows(page: tifffile.TiffPage) -> list[int]:
    starts = range(0, page.imagelength, page.rowsperstrip)
    return [min(page.rowsperstrip, page.imagelength - start) for start in starts]


def test_strips_stay_small():
    assert [piece_rows(width) for width in (100, 4096, 4097, 10_000, 10**6)] == [64, 64, 32, 16, 1]


def test_an_empty_mask_is_no_decompression_bomb_to_our_own_reader(tmp_path):
    grid = make_grid((4, 4000, 5000))
    empty = np.zeros(grid.shape, np.uint8)
    path = write(make_store(tmp_path, grid, semantic=empty), grid, make_info(grid), tmp_path / "a")["a.label_raw.tif"]
    with open_image(path) as source:
        assert not source.read(0, ((3, 4), (0, 4000), (0, 5000))).any()


# NIfTI

OBLIQUE = np.array([[-0.4, 0.05, 0.0, 12.0], [0.03, 0.6, 0.1, -7.0], [0.0, -0.06, 1.5, 3.5], [0, 0, 0, 1.0]])
"""Almost a rotation."""


def rotated(spacing) -> np.ndarray:
    """Affine of rotated and mirrored voxels."""
    turn = np.linalg.qr(OBLIQUE[:3, :3])[0]
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing[::-1]) / 1e3
    affine[:3, 3] = [12.0, -7.0, 3.5]
    return affine


def tree(affine: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, row)) for row in affine)


@pytest.mark.parametrize("codes", [(1, 1), (0, 2), (1, 0), (1, 4), (0, 0)])
def test_nifti_has_the_geometry_of_the_input(tmp_path, codes):
    grid = make_grid((20, 30, 40))
    labels = labels_of(grid.shape, 3, "uint8")
    image = nib.Nifti1Image(np.zeros(grid.shape[::-1], np.uint8), None)
    image.header.set_zooms([s / 1e3 for s in reversed(grid.spacing)])
    if codes[0]:
        image.set_qform(rotated(grid.spacing), codes[0])
    if codes[1]:
        image.set_sform(rotated(grid.spacing) + np.eye(4)[3] * [[5], [6], [7], [0]], codes[1])
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "in.nii.gz")
    info = imported(tmp_path / "in.nii.gz", grid, tmp_path)
    path = write(make_store(tmp_path, grid, semantic=labels), grid, info, tmp_path / "a", "nifti")["a.label_raw.nii.gz"]

    ours, given = nib.load(path), nib.load(tmp_path / "in.nii.gz")
    np.testing.assert_allclose(ours.affine, given.affine, rtol=1e-6)
    assert (int(ours.header["qform_code"]), int(ours.header["sform_code"])) == codes
    np.testing.assert_allclose(ours.get_qform(), given.get_qform(), atol=1e-5)
    assert ours.header.get_zooms() == pytest.approx(given.header.get_zooms())
    np.testing.assert_array_equal(np.asarray(ours.dataobj).T, labels)
    assert ours.get_data_dtype() == np.uint8
    assert ours.header.get_xyzt_units()[0] == "mm"
    ours, given = SimpleITK.ReadImage(str(path)), SimpleITK.ReadImage(str(tmp_path / "in.nii.gz"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(ours), labels)
    assert ours.GetSpacing() == pytest.approx(given.GetSpacing(), rel=1e-6)
    assert ours.GetOrigin() == pytest.approx(given.GetOrigin(), rel=1e-6)
    assert ours.GetDirection() == pytest.approx(given.GetDirection(), abs=1e-6)


def imported(path: Path, grid: LabelGrid, out: Path) -> ImageInfo:
    """What IMPORT_IMAGE writes about a file."""
    spec = SampleSpec("a", (0,), grid.spacing, grid.unit, "")
    with open_image(path) as source:
        import_image([source], spec, out)
    return ImageInfo.load(out / "a.image.json")


def test_a_unit_of_micrometres_becomes_millimetres(tmp_path):
    grid = make_grid((5, 6, 7))
    image = nib.Nifti1Image(np.zeros(grid.shape[::-1], np.uint8), np.diag([*reversed(grid.spacing), 1]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "in.nii")
    labels = labels_of(grid.shape, 3, "uint8")
    info = imported(tmp_path / "in.nii", grid, tmp_path)
    path = write(make_store(tmp_path, grid, semantic=labels), grid, info, tmp_path / "a", "nifti")["a.label_raw.nii.gz"]
    np.testing.assert_allclose(nib.load(path).affine * 1e3, image.affine * [[1], [1], [1], [1e3]], rtol=1e-6)
    with open_image(path) as source:
        assert source.spacing == pytest.approx(grid.spacing)


def test_the_affine_moves_with_the_box(tmp_path):
    """A voxel of the cut-out box keeps its place in space."""
    grid = make_grid((5, 6, 7))
    first = (4, 3, 2)
    affine = rotated(grid.spacing)
    info = make_info(grid, format="NIfTI", affine=tree(affine), first=first)
    labels = labels_of(grid.shape, 3, "uint8")
    path = write(make_store(tmp_path, grid, semantic=labels), grid, info, tmp_path / "a", "nifti")["a.label_raw.nii.gz"]
    np.testing.assert_allclose(nib.load(path).affine @ [1, 2, 3, 1], affine @ [3, 5, 7, 1], rtol=1e-6)


def test_shears_are_kept_in_the_sform(tmp_path):
    grid = make_grid((5, 6, 7))
    info = make_info(grid, format="NIfTI", affine=tree(OBLIQUE))
    labels = labels_of(grid.shape, 3, "uint8")
    path = write(make_store(tmp_path, grid, semantic=labels), grid, info, tmp_path / "a", "nifti")["a.label_raw.nii.gz"]
    image = nib.load(path)
    np.testing.assert_allclose(image.affine, OBLIQUE, rtol=1e-6)
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (0, 1)


def test_a_tiff_can_be_exported_as_nifti_in_millimetres(tmp_path, grid, arrays):
    path = write(make_store(tmp_path, grid, **arrays), grid, make_info(grid), tmp_path / "a", "nifti")[
        "a.label_instances.nii.gz"
    ]
    assert nib.load(path).header.get_zooms() == pytest.approx([0.0005, 0.00065, 0.003])
    with open_image(path) as source:
        assert source.spacing == pytest.approx(SPACING, rel=1e-6)


def test_an_axis_beyond_nifti_1_makes_nifti_2(tmp_path):
    grid = make_grid((2, 3, 32768))
    labels = labels_of(grid.shape, 3, "uint8")
    path = write(make_store(tmp_path, grid, semantic=labels), grid, make_info(grid), tmp_path / "a", "nifti")[
        "a.label_raw.nii.gz"
    ]
    image = nib.load(path)
    assert isinstance(image, nib.Nifti2Image)
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, labels)


def test_the_gzip_stream_is_one_member_with_a_true_checksum(tmp_path, grid, arrays):
    path = write(make_store(tmp_path, grid, **arrays), grid, make_info(grid), tmp_path / "a", "nifti")[
        "a.label_instances.nii.gz"
    ]
    decoder = zlib.decompressobj(31)  # Compares checksum and length at the end.
    data = decoder.decompress(path.read_bytes())
    assert decoder.eof
    assert not decoder.unused_data
    assert data[352:] == arrays["instances"].tobytes()
    assert gzip.decompress(path.read_bytes()) == data
    assert path.read_bytes()[4:8] == bytes(4)  # no time


@given(st.binary(max_size=300), st.binary(max_size=70000))
@settings(max_examples=50, deadline=None)
def test_checksums_can_be_put_together(first, second):
    assert crc32_combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)
    assert adler32_combine(zlib.adler32(first), zlib.adler32(second), len(second)) == zlib.adler32(first + second)


# Streaming, errors, bytes


@pytest.mark.parametrize("format", VOLUMES)
def test_memory_and_disk_buffers_change_no_byte(tmp_path, grid, arrays, format, monkeypatch):
    store = make_store(tmp_path, grid, **arrays)
    whole = write(store, grid, make_info(grid), tmp_path / "a", format)
    monkeypatch.setattr(planes, "SPOOL_BYTES", 100)
    parts = write(store, grid, make_info(grid), tmp_path / "b", format, budget=1 << 20)
    chunk = (64, 64, 64)
    assert band_step(grid.shape, chunk, 2, (1, 64), BUDGET) == (70, 90)
    assert band_step(grid.shape, chunk, 2, (1, 64), 1 << 17)[0] < 10
    for name, path in whole.items():
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(parts[name].read_bytes()).digest()


def test_each_chunk_is_decoded_once_for_all_files_of_an_array(tmp_path, grid, arrays, monkeypatch):
    read = []
    original = export.read_labels

    def counted(array, box, sample):
        read.append((array.path, box))
        return original(array, box, sample)

    monkeypatch.setattr(export, "read_labels", counted)
    monkeypatch.setattr(bands, "LARGE", 1)
    write(make_store(tmp_path, grid, **arrays), grid, make_info(grid), tmp_path / "a")
    assert len(read) == len(set(read)) == 2 * 2 * 2  # arrays, layers of chunks along z and along y
    for path in ("semantic/0", "instances/0"):
        voxels = sum(np.prod([b - a for a, b in box]) for p, box in read if p == path)
        assert voxels == np.prod(grid.shape)


def test_memory_is_a_band_and_not_the_planes(tmp_path):
    """64 planes are 256 MB here."""
    grid = make_grid((64, 2000, 2000), spacing=(1.0, 1.0, 1.0))
    store = tmp_path / "labels.ome.zarr"
    array = create_array(store / "semantic" / "0", grid.shape, "uint8", (64, 512, 512), "zyx")
    array[:] = 0
    array[10:20, 100:150] = 1
    tracemalloc.start()
    write(store, grid, make_info(grid), tmp_path / "a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 64 * 2000 * bands.copies(2) + (5 << 20)


def test_a_lost_shard_is_no_background(tmp_path, grid, arrays):
    store = make_store(tmp_path, grid, **arrays)
    (store / "instances" / "0" / "c" / "0" / "0" / "1").unlink()
    with pytest.raises(TemporaryError, match="never written"):
        write(store, grid, make_info(grid), tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["a.label_raw.tif"]


def test_a_damaged_shard_is_an_error(tmp_path, grid, arrays):
    store = make_store(tmp_path, grid, **arrays)
    shard = store / "semantic" / "0" / "c" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 255
    shard.write_bytes(data)
    with pytest.raises(TemporaryError, match="cannot be decoded"):
        write(store, grid, make_info(grid), tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []


WRITERS = {
    "tiff": (tiff_writer.TiffWriter, "write"), "ome-tiff": (tiff_writer.TiffWriter, "write"),
    "nifti": (nifti_writer.NiftiWriter, "write"), "mha": (itk_writer.ItkWriter, "write"),
    "nrrd": (itk_writer.ItkWriter, "write"), "hdf5": (hdf5_writer.Hdf5Writer, "flush"),
}  # fmt: skip


@pytest.mark.parametrize("format", VOLUMES)
def test_a_full_disk_leaves_nothing_and_names_the_file(tmp_path, grid, arrays, format, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*WRITERS[format], full)
    with pytest.raises(WriteFailedError, match="No space left") as raised:
        write(make_store(tmp_path, grid, **arrays), grid, make_info(grid), tmp_path / "a", format)
    assert raised.value.file is not None
    assert "a.label_raw" in raised.value.file
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize("format", VOLUMES)
def test_a_file_that_lost_its_end_is_noticed(tmp_path, grid, arrays, format, monkeypatch):
    def cut(writer):
        close(writer)
        data = writer.path.read_bytes()
        writer.path.write_bytes(data[: len(data) // 2])

    kind = WRITERS[format][0]
    close = kind.close
    monkeypatch.setattr(kind, "close", cut)
    with pytest.raises((WriteFailedError, BadDataError)):
        write(make_store(tmp_path, grid, **arrays), grid, make_info(grid), tmp_path / "a", format)
    assert list((tmp_path / "a").iterdir()) == []


def test_a_batch_takes_its_stores_in_the_order_of_its_samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, (name, format) in enumerate([("s2", "TIFF"), ("s1", "OME-Zarr 0.5"), ("s3", "NIfTI")], 1):
        grid = replace(make_grid((3, 20, 30)), sample=name)
        grid.save(tmp_path / f"{name}.grid.json")
        replace(make_info(grid, format=format), sample=name).save(tmp_path / f"{name}.image.json")
        labels = np.full(grid.shape, number, np.uint8)
        array = create_array(
            tmp_path / "labels" / str(number) / "labels.ome.zarr" / "semantic" / "0",
            grid.shape,
            "uint8",
            grid.shard,
            "zyx",
        )
        array[:] = labels
    with task("export_labels", "batch1") as record:
        export_batch(["s2", "s1", "s3"], Path(), record, export="auto", binary=None, memory_budget=BUDGET)
    written = sorted(str(path) for name in ("s1", "s2", "s3") for path in Path(name).glob("*"))
    assert written == [
        "s2/s2.label_binary.tif", "s2/s2.label_raw.tif", "s3/s3.label_binary.nii.gz", "s3/s3.label_raw.nii.gz",
    ]  # fmt: skip
    assert (tifffile.imread("s2/s2.label_raw.tif") == 1).all()
    assert (np.asarray(nib.load("s3/s3.label_raw.nii.gz").dataobj) == 3).all()
    record = read_json(Path("batch1/batch1.export_labels.json"))
    assert set(record["outputs"]) == set(written)
    assert record["counts"]["s2"]["files"] == 2
