"""One volume in every format through the whole pipeline: the same labels, handed back in the format they came in."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
import zarr
from ome_zarr_models.v05 import ImageLabel, Labels

from conftest import ROOT
from test_pipeline import SMALL, finished
from voxelmill.files import read_json
from voxelmill.phantom import tubes

pytestmark = [pytest.mark.nextflow, pytest.mark.slow]

SPACING = (3.0, 2.0, 2.0)
MILLIMETRES = tuple(length / 1000 for length in SPACING)
MODEL = ROOT / "assets" / "demo_model"


def write_slices(path: Path, volume: np.ndarray) -> None:
    path.mkdir()
    for z, plane in enumerate(volume):
        tifffile.imwrite(path / f"slice_{z}.tif", plane, photometric="minisblack")


def write_itk(path: Path, volume: np.ndarray) -> None:
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(MILLIMETRES[::-1])
    image.SetOrigin((0.01, 0.02, 0.03))
    image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
    sitk.WriteImage(image, str(path), True)


def write_nifti(path: Path, volume: np.ndarray) -> None:
    # Axes that run towards left, posterior, superior.
    affine = np.diag([-MILLIMETRES[2], -MILLIMETRES[1], MILLIMETRES[0], 1.0])
    image = nib.Nifti1Image(volume.T, affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def write_time_series(path: Path, volume: np.ndarray) -> None:
    series = np.stack([volume[::-1], volume])
    lengths = dict(zip(("PhysicalSizeZ", "PhysicalSizeY", "PhysicalSizeX"), SPACING, strict=True))
    tifffile.imwrite(path, series, ome=True, photometric="minisblack", metadata={"axes": "TZYX", **lengths})


def write_imagej(path: Path, volume: np.ndarray) -> None:
    tifffile.imwrite(
        path, volume, imagej=True, resolution=(1 / SPACING[2], 1 / SPACING[1]),
        metadata={"axes": "ZYX", "spacing": SPACING[0], "unit": "um"},
    )  # fmt: skip


def write_hdf5(path: Path, volume: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["volumes/raw"] = volume
        file["volumes/other"] = volume[::-1].copy()
        file["volumes/raw"].attrs["element_size_um"] = SPACING


def write_zarr(path: Path, volume: np.ndarray) -> None:
    zarr.create_array(path, data=volume, chunks=(16, 32, 32), zarr_format=2)


def write_cellmap(path: Path, volume: np.ndarray) -> None:
    """NGFF 0.4 in nanometres, two levels, names and transformations as CellMap stores have them."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("s0", data=np.repeat(volume, 2, axis=0), chunks=(24, 48, 56))
    group.create_array("s1", data=volume, chunks=(24, 48, 56))
    scales = [[1500.0, 2000.0, 2000.0], [3000.0, 2000.0, 2000.0]]
    group.attrs["multiscales"] = [{
        "version": "0.4", "name": "", "coordinateTransformations": [{"type": "scale", "scale": [1.0] * 3}],
        "axes": [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"],
        "datasets": [
            {"path": f"s{level}", "coordinateTransformations": [
                {"type": "scale", "scale": scale}, {"type": "translation", "translation": [0.0] * 3}
            ]} for level, scale in enumerate(scales)
        ],
    }]  # fmt: skip


IMAGES: dict[str, tuple[str, Callable[[Path, np.ndarray], None], dict[str, str]]] = {
    "time": ("time.ome.tif", write_time_series, {"timepoint": "1"}),
    "imagej": ("imagej.tif", write_imagej, {}),
    "slices": ("slices", write_slices, {"spacing": "3;2;2"}),
    "nifti": ("nifti.nii.gz", write_nifti, {}),
    "mha": ("mha.mha", write_itk, {}),
    "nrrd": ("nrrd.nrrd", write_itk, {}),
    "hdf5": ("hdf5.h5", write_hdf5, {"dataset": "/volumes/raw"}),
    "plain": ("plain.zarr", write_zarr, {"spacing": "3;2;2"}),
    "cellmap": ("cellmap.zarr", write_cellmap, {"level": "1"}),
}

READ: dict[str, tuple[str, Callable[[str], np.ndarray]]] = {
    "time": (".tif", tifffile.imread),
    "imagej": (".tif", tifffile.imread),
    "slices": (".tif", tifffile.imread),
    "nifti": (".nii.gz", lambda path: np.asarray(nib.load(path).dataobj).T),
    "mha": (".mha", lambda path: sitk.GetArrayFromImage(sitk.ReadImage(path))),
    "nrrd": (".nrrd", lambda path: nrrd.read(path)[0].T),
    "hdf5": (".h5", lambda path: h5py.File(path)["image"][()]),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of all images in one run."""
    folder = tmp_path_factory.mktemp("every")
    volume = tubes((24, 48, 56), seed=1, n=6).image
    columns = ["sample", "image", "spacing", "timepoint", "level", "dataset"]
    with open(folder / "samples.csv", "w", newline="") as file:
        sheet = csv.DictWriter(file, columns, restval="")
        sheet.writeheader()
        for name, (image, write, cells) in IMAGES.items():
            write(folder / image, volume)
            sheet.writerow({"sample": name, "image": image, **cells})
    finished(folder, "--input", "samples.csv", "--model", MODEL, "--model_spacing_unit", "um", *SMALL)
    return folder


def test_labels_do_not_depend_on_the_format(run: Path) -> None:
    stores = {name: zarr.open_array(run / "results" / name / "labels.ome.zarr" / "semantic" / "0") for name in IMAGES}
    first = stores["imagej"][:]
    assert 500 < (first > 0).sum() < first.size / 4
    for name, store in stores.items():
        np.testing.assert_array_equal(store[:], first, err_msg=name)
    samples = {one["id"]: one for one in read_json(run / "results" / "pipeline_info" / "samples.json")["samples"]}
    for name, sample in samples.items():
        assert sample["spacing"] == pytest.approx(SPACING), name


@pytest.mark.parametrize("name", READ)
def test_label_files_have_the_format_of_the_image(run: Path, name: str) -> None:
    folder = run / "results" / name
    suffix, read = READ[name]
    for kind, layer in (("label_raw", "semantic"), ("label_instances", "instances")):
        expected = zarr.open_array(folder / "labels.ome.zarr" / layer / "0")[:]
        np.testing.assert_array_equal(read(str(folder / f"{name}.{kind}{suffix}")), expected)


@pytest.mark.parametrize("name", ["mha", "nrrd", "nifti"])
def test_label_files_lie_where_the_image_lies(run: Path, name: str) -> None:
    image = sitk.ReadImage(str(run / IMAGES[name][0]))
    labels = sitk.ReadImage(str(run / "results" / name / f"{name}.label_instances{READ[name][0]}"))
    for one, other in (
        (labels.GetSpacing(), image.GetSpacing()),
        (labels.GetOrigin(), image.GetOrigin()),
        (labels.GetDirection(), image.GetDirection()),
    ):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-9)


def test_label_stores_are_valid_ngff(run: Path) -> None:
    for name in IMAGES:
        store = run / "results" / name / "labels.ome.zarr"
        Labels.from_zarr(zarr.open_group(store, mode="r"))
        for layer in ("semantic", "instances"):
            ImageLabel.from_zarr(zarr.open_group(store / layer, mode="r"))


def test_zarr_gets_no_label_files(run: Path) -> None:
    assert not list((run / "results" / "cellmap").glob("*label_*.tif"))
