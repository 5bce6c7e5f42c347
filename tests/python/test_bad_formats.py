"""Bad input in every format, through CHECK_INPUT: empty, cut, renamed, another type, headers that lie, no spacing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
import zarr

from test_bad_input import FLAT, SPACING, TEXT, Case, assert_told, import_all, prepare, raw, tiff, volume
from test_check import load_script, write_image
from test_mutations import write_picture

FULL = (*SPACING, "--check", "full")

Writer = Callable[[Path, np.ndarray], None]


def write_tiff(path: Path, data: np.ndarray) -> None:
    tifffile.imwrite(path, data, photometric="minisblack")


def write_nifti(path: Path, data: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(data.transpose(), np.diag([0.001, 0.001, 0.002, 1]), dtype=data.dtype), path)


def write_itk(path: Path, data: np.ndarray, compressed: bool = False) -> None:
    image = sitk.GetImageFromArray(data)
    image.SetSpacing((0.001, 0.001, 0.002))
    sitk.WriteImage(image, str(path), useCompression=compressed)


def write_nrrd(path: Path, data: np.ndarray, encoding: str = "raw") -> None:
    header = {"space directions": np.diag([0.001, 0.001, 0.002]), "space": "left-posterior-superior"}
    nrrd.write(str(path), data.transpose(), header | {"encoding": encoding})


def write_hdf5(path: Path, data: np.ndarray, **options: Any) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", data=data, **options)


def write_zarr(path: Path, data: np.ndarray) -> None:
    zarr.create_array(path, shape=data.shape, chunks=data.shape, dtype=data.dtype)[:] = data


FORMATS: dict[str, tuple[str, str, Writer]] = {
    "TIFF": ("a.tif", "TIFF", write_tiff),
    "NIfTI": ("a.nii", "NIfTI", write_nifti),
    "NIfTI gzip": ("a.nii.gz", "gzip-compressed NIfTI", write_nifti),
    "MHA": ("a.mha", "MetaImage", write_itk),
    "MHA zlib": ("a.mha", "MetaImage", partial(write_itk, compressed=True)),
    "NRRD": ("a.nrrd", "NRRD", write_nrrd),
    "NRRD gzip": ("a.nrrd", "NRRD", partial(write_nrrd, encoding="gzip")),
    "HDF5": ("a.h5", "HDF5", write_hdf5),
    "HDF5 gzip": ("a.h5", "HDF5", partial(write_hdf5, chunks=(2, 10, 20), compression="gzip")),
    "PNG": ("a.png", "PNG", lambda path, _data: write_picture(path)),
    "JPEG": ("a.jpg", "JPEG", lambda path, _data: write_picture(path)),
}
"""File name, the format's name in messages, and how its own library writes a volume (z, y, x)."""

VOLUMES = [name for name in FORMATS if name not in ("PNG", "JPEG")]
FLOATS = [*VOLUMES, "Zarr"]


def written(name: str, data: np.ndarray, folder: Path, file: str = "") -> None:
    given, _, write = FORMATS.get(name, ("a.zarr", "Zarr", write_zarr))
    write(folder / given, data)
    if file:
        (folder / given).rename(folder / file)


def whole(name: str, data: np.ndarray | None = None, file: str = "") -> Callable[[Path], None]:
    return partial(written, name, volume() if data is None else data, file=file)


def cut(name: str, length: float) -> Callable[[Path], None]:
    """Of which the first bytes are left, or a part of them."""

    def write(folder: Path) -> None:
        whole(name)(folder)
        path = folder / FORMATS[name][0]
        data = path.read_bytes()
        path.write_bytes(data[: int(length) if length > 1 else int(len(data) * length)])

    return write


def edited(name: str, found: bytes, new: bytes) -> Callable[[Path], None]:
    """With other bytes in its header."""

    def write(folder: Path) -> None:
        whole(name)(folder)
        path = folder / FORMATS[name][0]
        data, count = re.subn(found, lambda _: new, path.read_bytes(), count=1)
        assert count == 1
        path.write_bytes(data)

    return write


def ome(**sizes: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        write_image(folder / "a.ome.tif")
        text = tifffile.tiffcomment(folder / "a.ome.tif")
        for name, value in sizes.items():
            text = re.sub(rf'{name}="[^"]*"', f'{name}="{value}"', text)
        tifffile.tiffcomment(folder / "a.ome.tif", text.encode())

    return write


def scaled(size: str) -> Callable[[Path], None]:
    """An OME-Zarr whose z has a size."""

    def write(folder: Path) -> None:
        whole("Zarr", file="0")(folder)
        axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
        scale = [{"type": "scale", "scale": [1.5, 1, 1]}]
        image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
        group = zarr.create_group(folder / "a.zarr", attributes={"ome": {"version": "0.5", "multiscales": [image]}})
        del group
        (folder / "0").rename(folder / "a.zarr" / "0")
        metadata = folder / "a.zarr" / "zarr.json"
        metadata.write_text(metadata.read_text().replace("1.5", size))

    return write


def nan(name: str, value: float) -> Callable[[Path], None]:
    data = volume(dtype="f4")
    data[3, 4, 5] = value
    return whole(name, data)


def special(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        make(folder / "a.tif")

    return write


CASES = [
    *(Case(20, f"{name} of 0 bytes", raw(FORMATS[name][0], b""), 65, ("0 bytes",)) for name in FORMATS),
    *(Case(20, f"{name} that is text", raw(FORMATS[name][0], TEXT), 65, ("holds text", f"says {FORMATS[name][1]}"))
      for name in FORMATS if name != "TIFF"),
    *(Case(20, f"{name} that is TIFF", tiff(FORMATS[name][0]), 65, ("holds TIFF", f"says {FORMATS[name][1]}"))
      for name in FORMATS if name != "TIFF"),
    *(Case(20, f"{name} named TIFF", whole(name, file="a.tif"), 65, (f"holds {FORMATS[name][1]}", "says TIFF"))
      for name in FORMATS if name != "TIFF"),
    *(Case(20, f"{name} cut in its header", cut(name, 40), 65, ("a." ,), SPACING) for name in FORMATS),
    *(Case(21, f"{name} cut", cut(name, 0.6), 65, ("truncated",), FULL, {} if name in VOLUMES else FLAT)
      for name in FORMATS),
    Case(20, "folder without images", lambda folder: (folder / "a").mkdir(), 66, ("empty", "file per plane"), SPACING),
    Case(20, "fifo", special(os.mkfifo), 65, ("neither a file nor a folder",)),
    Case(20, "device", special(lambda path: path.symlink_to("/dev/zero")), 65, ("neither a file nor a folder",)),
    Case(25, "MHA that declares more", edited("MHA", rb"DimSize = 20 20 6", b"DimSize = 99999 99999 99999"), 65,
         ("truncated",), SPACING),
    Case(25, "NRRD that declares more", edited("NRRD", rb"sizes: 20 20 6", b"sizes: 99999 99999 99999"), 65,
         ("truncated",), SPACING),
    Case(25, "zlib MHA that declares more", edited("MHA zlib", rb"DimSize = 20 20 6", b"DimSize = 99999 99999 99999"),
         65, (), SPACING),
    Case(25, "gzip NRRD that declares more", edited("NRRD gzip", rb"sizes: 20 20 6", b"sizes: 99999 99999 99999"), 65,
         (), SPACING),
    Case(25, "PNG that declares more", edited("PNG", rb"IHDR\0\0..\0\0..", b"IHDR" + b"\x7f\xff\xff\xff" * 2), 65,
         (), SPACING, FLAT),
    Case(30, "complex TIFF", whole("TIFF", volume(dtype="c8")), 65, ("complex64",), SPACING),
    Case(30, "complex NIfTI", whole("NIfTI", volume(dtype="c8")), 65, ("complex64",)),
    Case(30, "complex Zarr", whole("Zarr", volume(dtype="c8")), 65, ("complex64",), SPACING),
    Case(30, "complex HDF5", whole("HDF5", volume(dtype="c8")), 65, ("no array", "numbers"), SPACING),
    *(Case(58, f"NaN in {name}", nan(name, np.nan), 65, ("1 voxels", "3, 4, 5"), SPACING, then=import_all)
      for name in FLOATS),
    Case(58, "infinity in HDF5", nan("HDF5", np.inf), 65, ("1 voxels", "3, 4, 5"), SPACING, then=import_all),
    *(Case(45, f"MHA spacing {text!r}", edited("MHA", rb"(?<=ElementSpacing = )[^\n]*", b"1 1 " + text),
           65, ("spacing", "z")) for text in (b"0", b"-1", b"nan", b"inf")),
    *(Case(45, f"NRRD spacing {text}", edited("NRRD", rb"\(0[.0]*,0[.0]*,0.002\)", f"(0.0,0.0,{text})".encode()), 65,
           ("spacing",)) for text in ("0", "nan", "inf")),
    *(Case(45, f"OME spacing {text}", ome(PhysicalSizeZ=text), 65, ("spacing",))
      for text in ("0", "-1", "NaN", "INF", "x")),
    *(Case(45, f"Zarr spacing {text}", scaled(text), 65, ("spacing",)) for text in ("0", "-1")),
]  # fmt: skip


def closed_slice(folder: Path) -> Path:
    (folder / "a").mkdir()
    for z in range(3):
        tifffile.imwrite(folder / "a" / f"{z}.tif", volume((20, 20)), photometric="minisblack")
    return folder / "a" / "1.tif"


def closed_in_zarr(name: str, folder: Path) -> Path:
    whole("Zarr")(folder)
    return folder / "a.zarr" / name


def closed_file(name: str, folder: Path) -> Path:
    whole(name)(folder)
    return folder / FORMATS[name][0]


CLOSED: dict[str, Callable[[Path], Path]] = {name: partial(closed_file, name) for name in FORMATS} | {
    "slice": closed_slice,
    "metadata of Zarr": partial(closed_in_zarr, "zarr.json"),
    "chunk of Zarr": partial(closed_in_zarr, "c/0/0/0"),
}


@pytest.mark.parametrize("name", CLOSED)
def test_files_that_may_not_be_read(
    name: str,
    tmp_path_factory: pytest.TempPathFactory,
    script: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Row 17, as an ordinary user and in every format: the code of a file that is not there."""
    folder = tmp_path_factory.mktemp("closed")
    monkeypatch.chdir(folder)
    arguments = prepare(Case(17, name, lambda inputs: CLOSED[name](inputs).chmod(0), 66, (), FULL), folder)
    parents = [folder, folder.parent, folder.parent.parent]
    root = os.geteuid() == 0
    if root:
        for parent in parents:
            parent.chmod(0o711)
        folder.chmod(0o777)
        os.seteuid(65534)
    try:
        with pytest.raises(SystemExit) as ended:
            script.main.main(arguments, standalone_mode=False)
    finally:
        if root:
            os.seteuid(0)
            for parent in parents:
                parent.chmod(0o700)
    said = capsys.readouterr().err
    assert ended.value.code == 66 and "ermission" in said and "Traceback" not in said, said


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script("check_input")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input_in_every_format(
    case: Case, tmp_path: Path, script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_told(case, tmp_path, script, monkeypatch, capsys)
