"""Damaged copies of images of every format: each is refused in words, or is the very image.

Where a format has no means to tell, `UNSEEN` says so, and nothing else happens.
"""

from __future__ import annotations

import os
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
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
from PIL import Image as Picture

from mutants import FINE, Child, Image, Mutant, Region, mutants, sizes

FLIPS = int(os.environ.get("VOXELMILL_MUTANTS", "240"))
"""Header bits that are flipped in each format; of voxels a third as many bytes are changed. A sweep of thousands is
asked for in the environment."""

OME = {"axes": "ZYX", "PhysicalSizeZ": 2.0, "PhysicalSizeY": 1.0, "PhysicalSizeX": 0.5}
IMAGEJ = {"axes": "ZYX", "spacing": 2, "unit": "um"}
CHECKED = [zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec()]


def volume(dtype: str = "u2", shape: tuple[int, ...] = (6, 24, 20)) -> np.ndarray:
    """A bright ball in noise: what compresses a little."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    ball = 120 * (sum(axis**2 for axis in grid) < 0.5)
    return (ball + np.random.default_rng(0).integers(0, 60, shape)).astype(dtype)


# Writers, and where their voxels are


def write_tiff(path: Path, **options: Any) -> None:
    tifffile.imwrite(path, volume(), **{"photometric": "minisblack"} | options)


def tiff_voxels(path: Path) -> list[Region]:
    with tifffile.TiffFile(path) as tif:
        return [
            ("", at, at + n) for page in tif.pages for at, n in zip(page.dataoffsets, page.databytecounts, strict=True)
        ]


def write_slices(path: Path) -> None:
    path.mkdir()
    for z, plane in enumerate(volume()[:4]):
        tifffile.imwrite(path / f"z{z}.tif", plane, photometric="minisblack", compression="zlib", metadata=None)


def write_ome_set(path: Path) -> None:
    """Two files whose XML is one, as a microscope writes them."""
    path.mkdir()
    for name, planes in (("a.ome.tif", volume()[:3]), ("b.ome.tif", volume()[3:])):
        tifffile.imwrite(path / name, planes, photometric="minisblack", compression="zlib", ome=True, metadata=OME)
    uuids = {
        name: tifffile.tiffcomment(path / name).split('UUID="')[1].split('"')[0] for name in ("a.ome.tif", "b.ome.tif")
    }
    for name in uuids:
        text = tifffile.tiffcomment(path / name)
        planes = "".join(
            f'<TiffData FirstZ="{z}" IFD="{z % 3}" PlaneCount="1"><UUID FileName="{file}">{key}</UUID></TiffData>'
            for z, (file, key) in enumerate((file, key) for file, key in uuids.items() for _ in range(3))
        )
        text = text[: text.index("<TiffData")] + planes + text[text.index("</Pixels>") :]
        tifffile.tiffcomment(path / name, text.replace('SizeZ="3"', 'SizeZ="6"').encode())


def slices_voxels(path: Path) -> list[Region]:
    return [(name, start, stop) for name in sizes(path) for _, start, stop in tiff_voxels(path / name)]


def write_nifti(path: Path, kind: Any = nib.Nifti1Image) -> None:
    image = kind(volume("i2").transpose(), np.diag([0.5, 1, 2, 1]))
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def after(start: int, path: Path) -> list[Region]:
    return [("", start, path.stat().st_size)]


def write_itk(path: Path, compressed: bool) -> None:
    image = sitk.GetImageFromArray(volume())
    image.SetSpacing((0.5, 1, 2))
    sitk.WriteImage(image, str(path), useCompression=compressed)


def mha_voxels(path: Path) -> list[Region]:
    return after(path.read_bytes().index(b"LOCAL\n") + 6, path)


def write_nrrd(path: Path, encoding: str) -> None:
    header = {"space directions": np.diag([0.5, 1, 2]), "space": "left-posterior-superior", "encoding": encoding}
    nrrd.write(str(path), volume().transpose(), header)


def nrrd_voxels(path: Path) -> list[Region]:
    return after(path.read_bytes().index(b"\n\n") + 2, path)


def write_picture(path: Path) -> None:
    Picture.fromarray(volume("u1", (60, 70))).save(path)


def png_voxels(path: Path) -> list[Region]:
    data = path.read_bytes()
    at = data.index(b"IDAT")
    return [("", at + 4, at + 4 + int.from_bytes(data[at - 4 : at]))]


def jpeg_voxels(path: Path) -> list[Region]:
    data = path.read_bytes()
    scan = data.index(b"\xff\xda")
    return [("", scan + 2 + int.from_bytes(data[scan + 2 : scan + 4]), len(data) - 2)]


def write_hdf5(path: Path, libver: str = "earliest", **options: Any) -> None:
    with h5py.File(path, "w", libver=libver) as file:
        dataset = file.create_dataset("raw", data=volume(), **options)
        dataset.attrs["element_size_um"] = [2.0, 1.0, 0.5]


def hdf5_voxels(path: Path) -> list[Region]:
    with h5py.File(path) as file:
        dataset = file["raw"]
        if dataset.chunks is None:
            return [("", dataset.id.get_offset(), dataset.id.get_offset() + dataset.id.get_storage_size())]
        chunks = [dataset.id.get_chunk_info(i) for i in range(dataset.id.get_num_chunks())]
        return [("", chunk.byte_offset, chunk.byte_offset + chunk.size) for chunk in chunks]


def write_zarr(path: Path, version: int = 3, **options: Any) -> None:
    options = {"chunks": (3, 12, 20)} | options
    zarr.create_array(path, shape=volume().shape, dtype="u2", zarr_format=version, **options)[:] = volume()


def write_ome_zarr(path: Path) -> None:
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    scale = [{"type": "scale", "scale": [2.0, 1.0, 0.5]}]
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}], "name": "v"}
    zarr.create_group(path, attributes={"ome": {"version": "0.5", "multiscales": [image]}})
    write_zarr(path / "0", chunks=(3, 12, 10), shards=(6, 24, 20))


def zarr_voxels(path: Path) -> list[Region]:
    return [
        (name, 0, size) for name, size in sizes(path).items() if not name.split("/")[-1].startswith((".z", "zarr."))
    ]


IMAGES = {
    "TIFF": Image("a.tif", partial(write_tiff, metadata=None), tiff_voxels),
    "TIFF deflate": Image("a.tif", partial(write_tiff, compression="zlib", predictor=True, tile=(16, 16)), tiff_voxels),
    "TIFF LZW": Image("a.tif", partial(write_tiff, compression="lzw", rowsperstrip=8), tiff_voxels),
    "TIFF packbits": Image("a.tif", partial(write_tiff, compression="packbits"), tiff_voxels),
    "TIFF zstd": Image("a.tif", partial(write_tiff, compression="zstd"), tiff_voxels),
    "TIFF LZMA": Image("a.tif", partial(write_tiff, compression="lzma"), tiff_voxels),
    "BigTIFF": Image("a.tif", partial(write_tiff, bigtiff=True), tiff_voxels),
    "OME-TIFF": Image("a.ome.tif", partial(write_tiff, ome=True, metadata=OME), tiff_voxels),
    "ImageJ": Image("a.tif", partial(write_tiff, imagej=True, resolution=(2, 1), metadata=IMAGEJ),
                    tiff_voxels),
    "OME-TIFF set": Image("set", write_ome_set, slices_voxels),
    "slices": Image("slices", write_slices, slices_voxels),
    "NIfTI": Image("a.nii", write_nifti, partial(after, 352)),
    "NIfTI-2": Image("a.nii", partial(write_nifti, kind=nib.Nifti2Image), partial(after, 544)),
    "NIfTI gzip": Image("a.nii.gz", write_nifti, partial(after, 10)),
    "MHA": Image("a.mha", partial(write_itk, compressed=False), mha_voxels),
    "MHA zlib": Image("a.mha", partial(write_itk, compressed=True), mha_voxels),
    "NRRD": Image("a.nrrd", partial(write_nrrd, encoding="raw"), nrrd_voxels),
    "NRRD gzip": Image("a.nrrd", partial(write_nrrd, encoding="gzip"), nrrd_voxels),
    "PNG": Image("a.png", write_picture, png_voxels),
    "JPEG": Image("a.jpg", write_picture, jpeg_voxels),
    "HDF5": Image("a.h5", write_hdf5, hdf5_voxels),
    "HDF5 fletcher32": Image("a.h5", partial(write_hdf5, libver="latest", chunks=(3, 12, 20), compression="gzip",
                                             fletcher32=True), hdf5_voxels),
    "Zarr 2": Image("a.zarr", partial(write_zarr, version=2), zarr_voxels),
    "Zarr 3": Image("a.zarr", write_zarr, zarr_voxels),
    "Zarr 3 crc32c": Image("a.zarr", partial(write_zarr, compressors=CHECKED),
                           zarr_voxels),
    "OME-Zarr shards": Image("a.ome.zarr", write_ome_zarr, zarr_voxels),
}  # fmt: skip

RAW = {"voxels": {"pixels"}}
"""Bytes of voxels without a checksum are voxels, whatever they are."""

TEXT = {"header": {"metadata"}}
"""Words and numbers without a checksum: a spacing of another size, or an unknown key instead of the spacing's."""

OFFSETS = {"header": {"pixels"}}
"""Numbers without a checksum that say where and how voxels lie: another place, another slope, another type."""

UNSEEN: dict[str, list[dict[str, set[str]]]] = {
    "TIFF": [RAW, OFFSETS],
    "TIFF LZW": [RAW],
    "TIFF packbits": [RAW, OFFSETS],
    "TIFF zstd": [RAW],
    "BigTIFF": [RAW, OFFSETS],
    "OME-TIFF": [RAW, OFFSETS, TEXT],
    "ImageJ": [RAW, OFFSETS, TEXT],
    "OME-TIFF set": [TEXT],
    "NIfTI": [RAW, OFFSETS, TEXT],
    "NIfTI-2": [RAW, OFFSETS, TEXT],
    "MHA": [RAW, TEXT],
    "MHA zlib": [TEXT],
    "NRRD": [RAW, TEXT],
    "NRRD gzip": [TEXT],
    # its tables decide what its voxels are
    "JPEG": [RAW, OFFSETS],
    "HDF5": [RAW, TEXT],
    # zstd in Zarr is written without the checksum that it could have; a shard's index has one, its chunks have not
    "Zarr 2": [RAW, OFFSETS],
    "Zarr 3": [RAW, OFFSETS],
    # chunks with a checksum, but a shape without one: another that asks for the same chunks
    "Zarr 3 crc32c": [OFFSETS],
    "OME-Zarr shards": [RAW, OFFSETS, TEXT],
}
"""What a format has no means to tell. Every other damage is told in every format, and all of it where it is not named
here: a TIFF with deflate or LZMA, slices of that kind, .nii.gz, PNG, HDF5 with fletcher32."""


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    one = Child()
    yield one
    one.close()


def outcomes(name: str, folder: Path, child: Child) -> dict[tuple[str, str], list[tuple[Mutant, str]]]:
    """Region and outcome -> the damaged copies, and more about each."""
    image = IMAGES[name]
    (folder / "whole").mkdir()
    (folder / "copy").mkdir()
    path = folder / "whole" / image.name
    image.write(path)
    found = defaultdict(list)
    for mutant in mutants(path, image.voxels(path), FLIPS, seed=zlib.crc32(name.encode())):
        job = {"original": str(path), "copy": str(folder / "copy" / image.name), **asdict(mutant)}
        kind, text = child.outcome(job)
        found[mutant.region, kind].append((mutant, text))
    return found


@pytest.mark.parametrize("name", IMAGES)
def test_a_damaged_copy_is_refused_or_the_same(name: str, tmp_path: Path, child: Child) -> None:
    found = outcomes(name, tmp_path, child)
    bad = [(key, *one) for key, value in found.items() if key[1] in ("crash", "killed") for one in value]
    assert not bad, bad[0]
    unseen = {(region, kind) for region, kind in found if kind not in FINE}
    known = {(region, kind) for part in UNSEEN.get(name, []) for region, kinds in part.items() for kind in kinds}
    assert unseen <= known, {key: found[key][:3] for key in unseen - known}
    assert ("voxels", "pixels") in unseen or ("voxels", "pixels") not in known
