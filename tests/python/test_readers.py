"""Readers of MetaImage, NRRD, PNG, JPEG and HDF5 against SimpleITK, pynrrd, Pillow, imagecodecs and h5py."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from images import assert_boxes_equal, noise, whole
from voxelmill.errors import BadDataError
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
        np.testing.assert_array_equal(whole(source)[0], SimpleITK.GetArrayFromImage(read))
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
            np.testing.assert_array_equal(whole(source)[0], volume)
            assert source.dtype == volume.dtype


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
@pytest.mark.parametrize("compressed", [False, True])
def test_medical_channels(tmp_path: Path, name: str, compressed: bool) -> None:
    volume = noise((4, 9, 11, 3), "u1")
    SimpleITK.WriteImage(itk_image(volume, vector=True), tmp_path / name, useCompression=compressed)
    with open_image(tmp_path / name) as source:
        data = np.moveaxis(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(tmp_path / name)), -1, 0)
        assert (source.axes, source.shape) == ("zyxc", (3, 4, 9, 11))
        np.testing.assert_array_equal(whole(source), data)
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
        np.testing.assert_array_equal(whole(source)[0, 0], noise((9, 11), "u1"))
    series = noise((4, 3, 9, 11))
    image = SimpleITK.JoinSeries([itk_image(one) for one in series])
    SimpleITK.WriteImage(image, tmp_path / name)
    path = tmp_path / name
    if name == "a.nrrd":  # ITK has no kind for time
        path.write_bytes(nrrd_bytes(series, {"kinds": "domain domain domain time", "spacings": "0.5 0.25 2 nan"}))
    with pytest.raises(BadDataError, match="TZYX, 4 time points"):
        open_image(path)
    with open_image(path, Selection(timepoint=2)) as source:
        np.testing.assert_array_equal(whole(source)[0], series[2])
        assert (source.spacing, source.timepoint) == ((2000.0, 250.0, 500.0), 2)
        if name == "a.mha":
            np.testing.assert_allclose(source.affine, itk_affine(itk_image(series[0])), atol=1e-6)
    with open_image(path, Selection(axes="czyx")) as source:
        np.testing.assert_array_equal(whole(source), series)


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
        np.testing.assert_array_equal(whole(source), volume)
    coloured = noise((4, 5, 3), "u1")
    path.write_bytes(nrrd_bytes(coloured, {"kinds": "RGB-color domain domain"}))
    with open_image(path) as source:
        assert (source.axes, source.shape, source.rgb) == ("yxc", (3, 1, 4, 5), True)
        np.testing.assert_array_equal(whole(source)[:, 0], np.moveaxis(coloured, -1, 0))
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
        ({"ElementNumberOfChannels": "0"}, "damaged"), ({"CompressedData": "1", "DimSize": "99999 9999 99"}, "declares"),
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
        np.testing.assert_array_equal(whole(source)[0], volume)
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)), volume)
    compressed = zlib.compress(volume.tobytes())
    path.write_bytes(mha_bytes(volume, {"CompressedData": "True"}, compressed))
    with open_image(path) as source:
        np.testing.assert_array_equal(whole(source)[0], volume)
    path.write_bytes(mha_bytes(volume, {"Comment": "a = b", "ElementMin": "0"}))
    with pytest.raises(BadDataError, match="HDF5|text|unknown|MetaImage"):
        path.write_bytes(b"ObjectType = Image\nNDims = 3\n")
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
            whole(source)
    for cut in (len(data) // 2, len(data) - 1, 300, 20):
        path.write_bytes(data[:cut])
        with pytest.raises(BadDataError):
            open_image(path)
