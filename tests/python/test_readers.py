"""Readers of MetaImage, NRRD, PNG, JPEG and HDF5 against SimpleITK, pynrrd, Pillow, imagecodecs and h5py."""

from __future__ import annotations

import itertools
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import h5py
import imagecodecs
import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest
import SimpleITK
import tifffile

from conftest import ROOT
from images import all_of, assert_boxes_equal, noise
from voxelmill.errors import BadDataError, RefusedError, UsageError
from voxelmill.formats import Selection, open_image

TYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]
TURNED = (0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0)
OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)


def itk_affine(image: SimpleITK.Image) -> np.ndarray:
    """Voxel x, y, z to right, anterior, superior in millimetres, by SimpleITK alone."""
    at = [image.TransformIndexToPhysicalPoint(tuple(map(int, index))) for index in np.vstack([np.zeros(3), np.eye(3)])]
    points = np.array(at) * (-1, -1, 1)
    affine = np.eye(4)
    affine[:3, :3] = (points[1:] - points[0]).T
    affine[:3, 3] = points[0]
    return affine


def itk_image(volume: np.ndarray, direction: tuple[float, ...] = TURNED, *, vector: bool = False) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(volume, isVector=vector)
    image.SetSpacing((0.5, 0.25, 2.0))
    image.SetOrigin((10.0, 20.0, -30.5))
    image.SetDirection(direction)
    return image


# MetaImage and NRRD


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("direction", [tuple(np.eye(3).ravel()), TURNED, OBLIQUE])
def test_medical_files_equal_simpleitk(tmp_path: Path, name: str, compressed: bool, direction: tuple) -> None:
    volume = noise((7, 19, 23))
    SimpleITK.WriteImage(itk_image(volume, direction), tmp_path / name, useCompression=compressed)
    with open_image(tmp_path / name) as source:
        read = SimpleITK.ReadImage(tmp_path / name)
        np.testing.assert_array_equal(all_of(source)[0], SimpleITK.GetArrayFromImage(read))
        assert_boxes_equal(source, volume[None])
        np.testing.assert_allclose(source.spacing, [1000 * size for size in reversed(read.GetSpacing())])
        np.testing.assert_allclose(source.affine, itk_affine(read), atol=1e-6)
        assert (source.axes, source.dtype, source.channel_names) == ("zyx", volume.dtype, ())
        assert "unit unknown read as mm" in source.spacing_origin
        plain = np.array_equal(np.reshape(direction, (3, 3)), np.eye(3))
        assert source.origin == ((-30500.0, 20000.0, 10000.0) if plain else (0.0, 0.0, 0.0))


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
@pytest.mark.parametrize("dtype", TYPES)
def test_medical_types_in_both_byte_orders(tmp_path: Path, name: str, dtype: str) -> None:
    volume = noise((3, 4, 5), dtype)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(volume), tmp_path / name)
    for swapped in (False, True):
        data = (tmp_path / name).read_bytes()
        if swapped:
            end = len(data) - volume.nbytes
            data = data[:end].replace(b"MSB = False", b"MSB = True").replace(b"little", b"big")
            (tmp_path / name).write_bytes(data + volume.astype(volume.dtype.newbyteorder(">")).tobytes())
        with open_image(tmp_path / name) as source:
            np.testing.assert_array_equal(all_of(source)[0], volume)
            assert source.dtype == volume.dtype


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
@pytest.mark.parametrize("compressed", [False, True])
def test_medical_channels(tmp_path: Path, name: str, compressed: bool) -> None:
    volume = noise((4, 9, 11, 3), "u1")
    SimpleITK.WriteImage(itk_image(volume, vector=True), tmp_path / name, useCompression=compressed)
    with open_image(tmp_path / name) as source:
        data = np.moveaxis(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(tmp_path / name)), -1, 0)
        assert (source.axes, source.shape) == ("zyxc", (3, 4, 9, 11))
        np.testing.assert_array_equal(all_of(source), data)
        assert_boxes_equal(source, data)


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_medical_planes_and_series(tmp_path: Path, name: str) -> None:
    plane = SimpleITK.GetImageFromArray(noise((9, 11), "u1"))
    plane.SetSpacing((0.5, 0.25))
    plane.SetOrigin((3.0, 4.0))
    SimpleITK.WriteImage(plane, tmp_path / name)
    with open_image(tmp_path / name) as source:
        assert (source.axes, source.shape, source.spacing) == ("yx", (1, 1, 9, 11), (250.0, 250.0, 500.0))
        assert source.spacing_origin.endswith("z as y") and source.origin == (0.0, 4000.0, 3000.0)
        np.testing.assert_array_equal(all_of(source)[0, 0], noise((9, 11), "u1"))
    series = noise((4, 3, 9, 11))
    image = SimpleITK.JoinSeries([itk_image(one) for one in series])
    SimpleITK.WriteImage(image, tmp_path / name)
    path = tmp_path / name
    if name == "a.nrrd":  # ITK has no kind for time
        path.write_bytes(nrrd_bytes(series, {"kinds": "domain domain domain time", "spacings": "0.5 0.25 2 nan"}))
    with pytest.raises(BadDataError, match="TZYX, 4 time points"):
        open_image(path)
    with open_image(path, Selection(timepoint=2)) as source:
        np.testing.assert_array_equal(all_of(source)[0], series[2])
        assert (source.spacing, source.timepoint) == ((2000.0, 250.0, 500.0), 2)
        if name == "a.mha":
            np.testing.assert_allclose(source.affine, itk_affine(itk_image(series[0])), atol=1e-6)
    with open_image(path, Selection(axes="czyx")) as source:
        np.testing.assert_array_equal(all_of(source), series)


def nrrd_bytes(volume: np.ndarray, fields: dict[str, str], data: bytes | None = None) -> bytes:
    """An NRRD file by hand; a field of ``None`` is left out."""
    types = {"u1": "uchar", "u2": "ushort", "f4": "float"}
    header = {
        "type": types[volume.dtype.str[1:]], "dimension": str(volume.ndim), "encoding": "raw", "endian": "little",
        "sizes": " ".join(map(str, reversed(volume.shape))),
    } | fields  # fmt: skip
    lines = ["NRRD0005", *(f"{key}: {value}" for key, value in header.items() if value is not None), "", ""]
    return "\n".join(lines).encode() + (volume.tobytes() if data is None else data)


def test_nrrd_spaces_and_units(tmp_path: Path) -> None:
    volume, path = noise((3, 4, 5), "u1"), tmp_path / "a.nrrd"
    fields = {"space directions": "(1,0,0) (0,2,0) (0,0,3)", "space origin": "(10,20,30)"}
    for space in ("right-anterior-superior", "left-anterior-superior", "left-posterior-superior"):
        path.write_bytes(nrrd_bytes(volume, {"space": space, **fields}))
        with open_image(path) as source:
            np.testing.assert_allclose(source.affine, itk_affine(SimpleITK.ReadImage(path)), atol=1e-9)
    path.write_bytes(nrrd_bytes(volume, {"space dimension": "3", "space units": '"um" "um" "um"', **fields}))
    with open_image(path) as source:
        assert (source.spacing, source.origin, source.spacing_origin) == ((3.0, 2.0, 1.0), (30.0, 20.0, 10.0), "NRRD")
        np.testing.assert_allclose(np.diag(source.affine), (-1e-3, -2e-3, 3e-3, 1))
    path.write_bytes(nrrd_bytes(volume, {"spacings": "1 2 3", "units": '"nm" "nm" "nm"'}))
    with open_image(path) as source:
        assert source.spacing == pytest.approx((3e-3, 2e-3, 1e-3)) and source.affine is None
    path.write_bytes(nrrd_bytes(volume, {"spacings": "1 2 3", "units": '"nm" "nm" "um"'}))
    with open_image(path) as source:
        assert source.spacing is None and "'nm', 'um'" in source.warnings[0]
    path.write_bytes(nrrd_bytes(volume, {}))
    with open_image(path) as source:
        assert source.spacing is None and source.affine is None


def test_nrrd_channels_by_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    volume = noise((2, 3, 4, 5), "u1")
    path.write_bytes(nrrd_bytes(volume, {"kinds": "domain domain domain list"}))
    with open_image(path) as source:
        assert (source.axes, source.shape, source.rgb) == ("czyx", (2, 3, 4, 5), False)
        np.testing.assert_array_equal(all_of(source), volume)
    coloured = noise((4, 5, 3), "u1")
    path.write_bytes(nrrd_bytes(coloured, {"kinds": "RGB-color domain domain"}))
    with open_image(path) as source:
        assert (source.axes, source.shape, source.rgb) == ("yxc", (3, 1, 4, 5), True)
        np.testing.assert_array_equal(all_of(source)[:, 0], np.moveaxis(coloured, -1, 0))
    path.write_bytes(nrrd_bytes(volume, {"kinds": "complex domain domain domain"}))
    with pytest.raises(BadDataError, match="axes are"):
        open_image(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoding": "bzip2"}, "bzip2"), ({"encoding": "ascii"}, "ascii"), ({"type": "block"}, "block"),
        ({"data file": "secret.raw"}, "another file"), ({"byte skip": "-1"}, "byte skip"), ({"line skip": "2"}, "line"),
        ({"sizes": "5 4"}, "damaged"), ({"sizes": "5 4 -3"}, "damaged"), ({"dimension": "x"}, "damaged"),
        ({"sizes": "5 4 4"}, "truncated"), ({"sizes": "5 4 2"}, "follow the last voxel"), ({"type": None}, "damaged"),
        ({"sizes": "99999999 99999999 99999999"}, "truncated"), ({"spacings": "1 0 1"}, "spacing"),
        ({"spacings": "1 nope 1"}, "damaged"), ({"units": '"mm" "mm'}, "damaged"), ({"encoding": None}, "damaged"),
        ({"space directions": "(1,0,0) (1,0,0) (0,0,1)", "space dimension": "3"}, "directions"),
        ({"space directions": "(1,0,0) (0,inf,0) (0,0,1)", "space dimension": "3"}, "spacing"),
    ],
)  # fmt: skip
def test_nrrd_headers_that_are_refused(tmp_path: Path, fields: dict, message: str) -> None:
    (tmp_path / "a.nrrd").write_bytes(nrrd_bytes(noise((3, 4, 5), "u1"), fields))
    with pytest.raises(BadDataError, match=message):
        open_image(tmp_path / "a.nrrd")


def mha_bytes(volume: np.ndarray, fields: dict[str, str], data: bytes | None = None) -> bytes:
    types = {"u1": "MET_UCHAR", "u2": "MET_USHORT"}
    header = {
        "NDims": str(volume.ndim), "DimSize": " ".join(map(str, reversed(volume.shape))), "ElementSpacing": "1 2 3",
        "ElementType": types[volume.dtype.str[1:]],
    } | fields | {"ElementDataFile": fields.get("ElementDataFile", "LOCAL")}  # fmt: skip
    lines = "".join(f"{key} = {value}\n" for key, value in header.items() if value is not None)
    return lines.encode() + (volume.tobytes() if data is None else data)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ElementDataFile": "../secret.raw"}, "another file"), ({"ElementDataFile": "LIST"}, "another file"),
        ({"DimSize": "5 4"}, "damaged"), ({"DimSize": "5 4 -3"}, "damaged"), ({"DimSize": "5 4 4"}, "truncated"),
        ({"DimSize": "5 4 2"}, "follow the last voxel"), ({"NDims": "x"}, "damaged"), ({"NDims": None}, "unknown data"),
        ({"DimSize": "99999999 99999999 99999999"}, "truncated"), ({"ElementType": "MET_STRING"}, "MET_STRING"),
        ({"BinaryData": "False"}, "text"), ({"CompressedData": "maybe"}, "damaged"),
        ({"CompressedData": "True", "CompressedDataSize": "61"}, "truncated"),
        ({"CompressedData": "True", "CompressedDataSize": "59"}, "follow the last voxel"),
        ({"CompressedData": "True"}, "decoded"), ({"ElementSpacing": "1 0 1"}, "spacing"),
        ({"ElementSpacing": "1 nan 1"}, "spacing"), ({"ElementSpacing": "1 1"}, "damaged"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "directions"), ({"TransformMatrix": "1 0 0"}, "damaged"),
        ({"Offset": "1 inf 1"}, "directions"), ({"HeaderSize": "nan"}, "damaged"), ({"DimSize": "0 4 3"}, "no voxels"),
        ({"ElementNumberOfChannels": "0"}, "damaged"),
        ({"CompressedData": "1", "DimSize": "99999 9999 99"}, "declares"),
    ],
)  # fmt: skip
def test_metaimage_headers_that_are_refused(tmp_path: Path, fields: dict, message: str) -> None:
    (tmp_path / "a.mha").write_bytes(mha_bytes(noise((3, 4, 5), "u1"), fields))
    with pytest.raises(BadDataError, match=message):
        open_image(tmp_path / "a.mha")


def test_metaimage_fields(tmp_path: Path) -> None:
    volume, path = noise((3, 4, 5), "u1"), tmp_path / "a.mha"
    path.write_bytes(mha_bytes(volume, {"ElementSpacing": None}))
    with open_image(path) as source:
        assert source.spacing is None and source.affine is None
    path.write_bytes(mha_bytes(volume, {"ElementSpacing": None, "ElementSize": "1 2 3", "DistanceUnits": "um"}))
    with open_image(path) as source:
        assert (source.spacing, source.spacing_origin) == ((3.0, 2.0, 1.0), "MetaImage")
        np.testing.assert_allclose(np.diag(source.affine), (-1e-3, -2e-3, 3e-3, 1))
    padding = b"x" * 17
    path.write_bytes(mha_bytes(volume, {"HeaderSize": "-1"}, padding + volume.tobytes()))
    with open_image(path) as source:
        np.testing.assert_array_equal(all_of(source)[0], volume)
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)), volume)
    compressed = zlib.compress(volume.tobytes())
    path.write_bytes(mha_bytes(volume, {"CompressedData": "True"}, compressed))
    with open_image(path) as source:
        np.testing.assert_array_equal(all_of(source)[0], volume)
    path.write_bytes(b"ObjectType = Image\nNDims = 3\n")
    with pytest.raises(BadDataError, match="damaged or cut"):
        open_image(path)


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_damage_of_compressed_medical_files_is_seen(tmp_path: Path, name: str) -> None:
    volume = np.random.default_rng(0).integers(0, 2**15, (8, 16, 16)).astype("u2")
    path = tmp_path / name
    SimpleITK.WriteImage(itk_image(volume), path, useCompression=True)
    data = path.read_bytes()
    for at in range(len(data) - 3000, len(data), 311):
        damaged = bytearray(data)
        damaged[at] ^= 16
        path.write_bytes(damaged)
        with pytest.raises(BadDataError), open_image(path) as source:
            all_of(source)
    for cut in (len(data) // 2, len(data) - 1, 300, 20):
        path.write_bytes(data[:cut])
        with pytest.raises(BadDataError):
            open_image(path)


# PNG and JPEG


def picture(shape: tuple[int, ...], dtype: str = "u1") -> np.ndarray:
    """Smooth enough for JPEG."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    plane = (np.sin(y / 5) + np.cos(x / 7) + 2) * 60
    planes = np.stack([plane * (c + 1) / 3 for c in range(shape[2])], -1) if len(shape) == 3 else plane
    return (planes * (200 if dtype == "u2" else 1)).astype(dtype)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_png_equals_imagecodecs(tmp_path: Path, dtype: str, samples: int) -> None:
    plane = picture((40, 50, samples) if samples > 1 else (40, 50), dtype)
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(plane))
    channels = 3 if samples > 2 else 1
    with open_image(path) as source:
        assert (source.shape, source.dtype, source.rgb) == ((channels, 1, 40, 50), dtype, channels == 3)
        assert (source.axes, source.spacing) == ("yxc" if channels == 3 else "yx", None)
        assert bool(source.warnings) == (samples in (2, 4))
        expected = np.moveaxis(plane.reshape(40, 50, samples), -1, 0)[:channels, None]
        np.testing.assert_array_equal(all_of(source), expected)
        assert_boxes_equal(source, expected)


def test_png_by_pillow(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = PIL.Image.fromarray(picture((40, 50)))
    image.save(path, dpi=(300, 300), transparency=3)
    with open_image(path) as source:
        assert source.spacing is None and "transparency" in source.warnings[0]
        np.testing.assert_array_equal(all_of(source)[0, 0], picture((40, 50)))
    image.convert("1").save(path)
    with open_image(path) as source:
        np.testing.assert_array_equal(all_of(source)[0, 0], np.asarray(image.convert("1")))
        assert source.dtype == bool
    image.convert("P").save(path)
    with pytest.raises(BadDataError, match="palette"):
        open_image(path)
    image.save(path, save_all=True, append_images=[image.rotate(90)])
    with pytest.raises(BadDataError, match="frames"):
        open_image(path)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_equals_pillow(tmp_path: Path, samples: int, progressive: bool) -> None:
    path = tmp_path / "a.jpg"
    plane = picture((40, 50, 3) if samples == 3 else (40, 50))
    PIL.Image.fromarray(plane).save(path, progressive=progressive, dpi=(72, 72))
    with open_image(path) as source:
        assert (source.shape, source.rgb, source.spacing) == ((samples, 1, 40, 50), samples == 3, None)
        assert "lossy" in source.warnings[0]
        expected = np.moveaxis(np.asarray(PIL.Image.open(path)).reshape(40, 50, samples), -1, 0)[:, None]
        np.testing.assert_array_equal(all_of(source), expected)
        assert_boxes_equal(source, expected)
    # behind the end mark some cameras keep a second picture
    path.write_bytes(path.read_bytes() + b"more")
    with open_image(path) as source:
        np.testing.assert_array_equal(all_of(source), expected)
    PIL.Image.fromarray(picture((40, 50, 3))).convert("CMYK").save(path)
    with pytest.raises(BadDataError, match="4 channels"):
        open_image(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_pictures_that_are_cut_or_declare_too_much(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    PIL.Image.fromarray(picture((90, 110))).save(path)
    data = path.read_bytes()
    for cut in np.linspace(5, len(data) - 1, 25).astype(int):
        path.write_bytes(data[:cut])
        with pytest.raises(BadDataError, match=r"truncated|unknown"), open_image(path) as source:
            all_of(source)
    large = bytearray(data)
    if name == "a.png":
        large[16:24] = struct.pack(">II", 60000, 60000)
        large[29:33] = struct.pack(">I", zlib.crc32(large[12:29]))
    else:
        at = large.index(b"\xff\xc0")
        large[at + 5 : at + 9] = struct.pack(">HH", 60000, 60000)
    path.write_bytes(large)
    with pytest.raises(BadDataError, match="60000 x 60000"):
        open_image(path)


def test_every_changed_byte_of_a_png_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    plane = picture((20, 30))
    path.write_bytes(imagecodecs.png_encode(plane))
    data = path.read_bytes()
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 4
        path.write_bytes(damaged)
        try:
            with open_image(path) as source:
                found = all_of(source)[0, 0]
        except BadDataError:
            continue
        np.testing.assert_array_equal(found, plane)


def test_other_pictures_are_refused_by_name(tmp_path: Path) -> None:
    for kind in ("BMP", "GIF"):
        PIL.Image.fromarray(picture((20, 30))).save(tmp_path / "a.x", format=kind)
        with pytest.raises(BadDataError, match=kind):
            open_image(tmp_path / "a.x")


# HDF5


@pytest.mark.parametrize("file", ["a.jpg", "a.png", "a.tif"])
def test_a_turned_picture_is_told(tmp_path: Path, file: str) -> None:
    plane = picture((5, 7))
    exif = PIL.Image.Exif()
    for orientation in (1, 6, 8, 99):
        exif[PIL.ExifTags.Base.Orientation] = orientation
        if file == "a.tif":
            tifffile.imwrite(tmp_path / file, plane, photometric="minisblack", extratags=[(274, 3, 1, orientation)])
        else:
            PIL.Image.fromarray(plane).save(tmp_path / file, exif=exif)
        with open_image(tmp_path / file) as source:
            assert source.shape == (1, 1, 5, 7)
            assert [f"orientation {orientation}" in text for text in source.warnings].count(True) == (
                orientation in (6, 8)
            )


def test_damaged_exif_says_nothing(tmp_path: Path) -> None:
    PIL.Image.fromarray(picture((5, 7))).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    with open_image(tmp_path / "a.jpg") as source:
        assert len(source.warnings) == 1


def write_hdf5(
    path: Path, data: np.ndarray, name: str = "volume", attributes: dict | None = None, **options: Any
) -> None:
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset(name, data=data, **options)
        dataset.attrs.update(attributes or {})


HDF5_LAYOUTS: dict[str, dict] = {
    "contiguous": {}, "chunks": {"chunks": (3, 8, 8)}, "gzip": {"chunks": (3, 8, 8), "compression": "gzip"},
    "lzf": {"chunks": (2, 7, 9), "compression": "lzf", "shuffle": True}, "checksums": {"fletcher32": True},
    "szip": {"chunks": (3, 8, 8), "compression": "szip"}, "growing": {"maxshape": (None, None, None)},
}  # fmt: skip


HDF5_TYPES = ["u1", ">u2", "i4", "f2", ">f8", "b1"]
WITHOUT_SZIP = {("szip", "b1")}


@pytest.mark.parametrize(("layout", "dtype"), sorted({*itertools.product(HDF5_LAYOUTS, HDF5_TYPES)} - WITHOUT_SZIP))
def test_hdf5_equals_h5py(tmp_path: Path, layout: str, dtype: str) -> None:
    volume = noise((7, 19, 23), "b1") if dtype == "b1" else noise((7, 19, 23)).astype(dtype)
    write_hdf5(tmp_path / "a.h5", volume, **HDF5_LAYOUTS[layout])
    with open_image(tmp_path / "a.h5") as source:
        assert (source.axes, source.shape, source.spacing) == ("zyx", (1, 7, 19, 23), None)
        assert source.dtype == volume.dtype.newbyteorder("=") and not source.missing_chunks()
        np.testing.assert_array_equal(all_of(source)[0], volume)
        assert_boxes_equal(source, volume[None].astype(source.dtype))


def test_hdf5_axes_and_spacing(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    volume = noise((4, 5, 6, 3))
    tags = json.dumps({"axes": [{"key": key, "typeFlags": 2} for key in "zyxc"]})
    write_hdf5(path, volume, attributes={"axistags": tags, "element_size_um": [2.0, 0.5, 0.25]})
    with open_image(path) as source:
        assert (source.axes, source.shape, source.spacing) == ("zyxc", (3, 4, 5, 6), (2.0, 0.5, 0.25))
        assert source.spacing_origin == "element_size_um"
        np.testing.assert_array_equal(all_of(source), np.moveaxis(volume, -1, 0))
    write_hdf5(path, volume)
    with pytest.raises(BadDataError, match="axes are unknown"):
        open_image(path)
    with h5py.File(path, "r+") as file:
        for dimension, label in zip(file["volume"].dims, "tzyx", strict=True):
            dimension.label = label
    with open_image(path, Selection(timepoint=3)) as source:
        np.testing.assert_array_equal(all_of(source)[0], volume[3])
    with open_image(path, Selection(axes="xyzc", dataset="volume")) as source:
        np.testing.assert_array_equal(all_of(source), volume.transpose(3, 2, 1, 0))
    for bad in ([0.0, 1.0, 1.0], [1.0, float("nan"), 1.0]):
        write_hdf5(path, volume[0], attributes={"element_size_um": bad})
        with pytest.raises(BadDataError, match="spacing"):
            open_image(path)
    for odd in ([1.0, 1.0, 1.0, 1.0], "one"):
        write_hdf5(path, volume[0], attributes={"element_size_um": odd})
        with open_image(path) as source:
            assert source.spacing is None and "not three lengths" in source.warnings[0]
    write_hdf5(path, volume[0, 0], attributes={"element_size_um": [0.5, 0.25]})
    with open_image(path) as source:
        assert (source.spacing, source.axes) == ((0.5, 0.5, 0.25), "yx")


def test_hdf5_datasets(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["table"] = np.zeros(5)
        file["text"] = "words"
        file["deep/er/image"] = noise((3, 4, 5))
        file["alias"] = h5py.SoftLink("/deep/er/image")
        file["circle"] = h5py.SoftLink("/circle")
        file["deep/loop"] = file["deep"]
    for selection in (Selection(), Selection(dataset="deep/er/image"), Selection(dataset="/alias")):
        with open_image(path, selection) as source:
            np.testing.assert_array_equal(all_of(source)[0], noise((3, 4, 5)))
    for name, message in (("nothing", "no array"), ("deep", "group"), ("circle", "circle"), ("table/x", "no array"),
                          ("text", "axes are"), ("table", "axes are"), ("../a", "no array")):  # fmt: skip
        with pytest.raises(BadDataError, match=message):
            open_image(path, Selection(dataset=name))
    with h5py.File(path, "r+") as file:
        for index in range(10):
            file[f"other/{index}"] = noise((2, 3), "u1")
    with pytest.raises(BadDataError, match=r"11 arrays.*/deep/er/image \(3 x 4 x 5, uint16\).*and 3 more") as caught:
        open_image(path)
    assert "--dataset" in str(caught.value) and len(str(caught.value).splitlines()) <= 12
    with h5py.File(path, "w") as file:
        file["table"] = np.zeros(5)
    with pytest.raises(BadDataError, match="no array is an image"):
        open_image(path)
    write_hdf5(path, noise((3, 4, 5)).astype("c8"))
    with pytest.raises(BadDataError, match="complex64"):
        open_image(path, Selection(dataset="volume"))


def test_hdf5_that_names_other_files_or_filters_is_refused(tmp_path: Path) -> None:
    secret, path = tmp_path / "secret.h5", tmp_path / "a.h5"
    write_hdf5(secret, noise((3, 4, 5)))
    (tmp_path / "raw").write_bytes(bytes(60))
    with h5py.File(path, "w") as file:
        file["link"] = h5py.ExternalLink("secret.h5", "/volume")
        file["soft"] = h5py.SoftLink("/link")
        file.create_dataset("external", (3, 4, 5), "u1", external=[(str(tmp_path / "raw"), 0, 60)])
        layout = h5py.VirtualLayout((3, 4, 5), "u2")
        layout[:] = h5py.VirtualSource(secret, "volume", (3, 4, 5))
        file.create_virtual_dataset("virtual", layout)
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((3, 4, 5))
        properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
        h5py.h5d.create(file.id, b"zstd", h5py.h5t.NATIVE_UINT16, h5py.h5s.create_simple((3, 4, 5)), properties)
    for name, message in (("link", "secret"), ("soft", "secret"), ("external", "other files"),
                          ("virtual", "other files"), ("zstd", "32015")):  # fmt: skip
        with pytest.raises(RefusedError, match=message):
            open_image(path, Selection(dataset=name))


def test_hdf5_chunks_that_were_never_written(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("volume", (4, 8, 10), "u2", chunks=(2, 4, 4))
        dataset[:2] = 1
        file.create_dataset("empty", (4, 8, 10), "u2")
    with open_image(path, Selection(dataset="volume")) as source:
        missing = source.missing_chunks()
        assert (len(missing), missing[0]) == (6, "/volume 1,0,0")
    with open_image(path, Selection(dataset="empty")) as source:
        assert len(source.missing_chunks()) == 1


@pytest.mark.parametrize("options", [{}, {"chunks": (2, 8, 8), "compression": "gzip"}])
def test_hdf5_that_is_cut(tmp_path: Path, options: dict) -> None:
    path = tmp_path / "a.h5"
    write_hdf5(path, np.random.default_rng(0).integers(0, 2**15, (8, 16, 16)).astype("u2"), **options)
    data = path.read_bytes()
    for cut in np.linspace(0, len(data) - 1, 20).astype(int):
        path.write_bytes(data[:cut])
        with pytest.raises(BadDataError), open_image(path) as source:
            all_of(source)


@pytest.mark.parametrize(
    ("name", "selection"),
    [("a.png", Selection(level=1)), ("a.mha", Selection(dataset="x")), ("a.h5", Selection(series=1))],
)
def test_choices_that_a_format_has_not(tmp_path: Path, name: str, selection: Selection) -> None:
    volume = noise((3, 4, 5), "u1")
    if name == "a.h5":
        write_hdf5(tmp_path / name, volume)
    else:
        data = imagecodecs.png_encode(volume[0]) if name == "a.png" else mha_bytes(volume, {})
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError):
        open_image(tmp_path / name, selection)


# Memory

READ_BANDS = """
import resource, sys
from voxelmill.formats import open_image
source = open_image(sys.argv[1])
source.read(0, ((0, 1), (0, 8), (0, 8)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_, depth, length, width = source.shape
total = 0
for z in range(0, depth, 16):
    total += int(source.read(0, ((z, min(z + 16, depth)), (0, length), (0, width))).sum())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, total)
"""


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a.nrrd", "a.h5"])
def test_bands_of_a_compressed_file_need_little_memory(tmp_path: Path, name: str) -> None:
    """128 MB in bands of 8 MB; a file per format by its own library."""
    volume = np.zeros((256, 512, 512), "u2")
    volume[:, ::3, ::7] = np.arange(256)[:, None, None]
    if name == "a.h5":
        write_hdf5(tmp_path / name, volume, chunks=(8, 128, 128), compression="gzip", compression_opts=1)
    else:
        writer = SimpleITK.ImageFileWriter()
        writer.SetFileName(str(tmp_path / name))
        writer.SetUseCompression(True)
        writer.SetCompressionLevel(1)
        writer.Execute(SimpleITK.GetImageFromArray(volume))
    expected = int(volume.sum())
    del volume
    done = subprocess.run(
        [sys.executable, "-c", READ_BANDS, tmp_path / name], capture_output=True, text=True, timeout=120,
        env={"PYTHONPATH": str(ROOT / "bin"), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    memory, total = map(int, done.stdout.split())
    assert total == expected and memory < 64 << 20
