"""Readers against tifffile, nibabel, SimpleITK and zarr, on generated files of every layout and on real ones."""

from __future__ import annotations

import gzip
import itertools
import json
import resource
import struct
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import tifffile
import zarr

from voxelmill.errors import BadDataError, InputMissingError, RefusedError, UsageError
from voxelmill.formats import Selection, missing_chunks, nifti, open_image
from voxelmill.formats.base import ImageSource
from voxelmill.formats.nifti import GzipReader
from voxelmill.formats.spacing import checked, from_zeiss, micrometres_per

PIPELINES = ("zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs.ZarrsCodecPipeline")
BIN = Path(__file__).parents[2] / "bin"


def whole(source: ImageSource) -> np.ndarray:
    """All voxels, channels first."""
    box = tuple((0, n) for n in source.shape[1:])
    return np.stack([source.read(channel, box) for channel in range(source.shape[0])])


def assert_boxes_equal(source: ImageSource, data: np.ndarray) -> None:
    """Boxes of every kind (edges, one voxel, none) equal slices of the whole, in any order."""
    rng = np.random.default_rng(1)
    for _ in range(12):
        ends = [sorted(rng.integers(0, n + 1, 2)) for n in data.shape[1:]]
        channel = int(rng.integers(data.shape[0]))
        box = tuple((int(a), int(b)) for a, b in ends)
        part = source.read(channel, box)
        np.testing.assert_array_equal(part, data[channel][tuple(slice(a, b) for a, b in box)])
        assert part.dtype == source.dtype and part.dtype.isnative


def noise(shape: tuple[int, ...], dtype: str = "u2") -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 120, shape)
    return (values > 60) if dtype == "b1" else values.astype(dtype)


TIFF_LAYOUTS = {
    "one strip": {},
    "many strips": {"rowsperstrip": 3},
    "tiles": {"tile": (16, 32)},
    "big": {"bigtiff": True},
    "big-endian": {"byteorder": ">"},
    "big-endian big tiles": {"byteorder": ">", "bigtiff": True, "tile": (16, 16), "compression": "zlib"},
    "zlib": {"compression": "zlib"},
    "zlib, predictor": {"compression": "zlib", "predictor": True, "rowsperstrip": 5},
    "lzw": {"compression": "lzw", "rowsperstrip": 5},
    "packbits": {"compression": "packbits"},
    "zstd tiles": {"compression": "zstd", "tile": (32, 16)},
    "lzma": {"compression": "lzma"},
    "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "ome": {"ome": True, "metadata": {"axes": "ZYX"}},
    "ome tiles": {"ome": True, "tile": (16, 16), "compression": "zlib", "metadata": {"axes": "ZYX"}},
    "no description": {"metadata": None},
    "volumetric": {"volumetric": True, "tile": (4, 16, 16), "compression": "zlib", "metadata": {"axes": "ZYX"}},
}


@pytest.mark.parametrize("layout", TIFF_LAYOUTS)
def test_tiff_layouts_equal_tifffile(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise((7, 37, 53)), photometric="minisblack", **TIFF_LAYOUTS[layout])
    with open_image(path) as source:
        assert (source.axes, source.shape, source.spacing) == ("zyx", (1, 7, 37, 53), None)
        data = whole(source)
        np.testing.assert_array_equal(data[0], tifffile.imread(path))
        assert_boxes_equal(source, data)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"])
def test_every_type_in_both_byte_orders(tmp_path: Path, dtype: str, order: str) -> None:
    volume = noise((3, 9, 11), dtype)
    tifffile.imwrite(tmp_path / "a.tif", volume, byteorder=order, photometric="minisblack")
    with open_image(tmp_path / "a.tif") as source:
        np.testing.assert_array_equal(whole(source)[0], volume)
        assert source.dtype == volume.dtype
    stored = np.dtype(dtype).newbyteorder(order)
    for memory, pipeline in itertools.product("CF", PIPELINES):
        path = tmp_path / f"{memory}{PIPELINES.index(pipeline)}.zarr"
        with zarr.config.set({"codec_pipeline.path": PIPELINES[0]}):
            array = zarr.create_array(
                path, shape=volume.shape, chunks=(2, 4, 4), dtype=stored, zarr_format=2, order=memory
            )
            array[:] = volume
        with zarr.config.set({"codec_pipeline.path": pipeline}), open_image(path) as source:
            np.testing.assert_array_equal(whole(source)[0], volume)
            assert source.dtype == volume.dtype and not missing_chunks(source)
            assert (source.in_place is not None) == (stored.isnative and memory == "C")
    if dtype not in ("b1", "f2"):
        header = nib.Nifti1Header(endianness=order)
        header.set_data_dtype(dtype)
        image = nib.Nifti1Image(volume.T, np.eye(4), header)
        nib.save(image, tmp_path / "a.nii")
        with open_image(tmp_path / "a.nii") as source:
            np.testing.assert_array_equal(whole(source)[0], volume)
            assert source.dtype == volume.dtype


@pytest.mark.parametrize(
    ("shape", "options", "axes", "czyx", "rgb"),
    [
        ((5, 2, 20, 30), {"imagej": True, "metadata": {"axes": "ZCYX"}}, "zcyx", (2, 5, 20, 30), False),
        ((2, 5, 20, 30), {"ome": True, "metadata": {"axes": "CZYX"}}, "czyx", (2, 5, 20, 30), False),
        (
            (2, 5, 20, 30),
            {"ome": True, "metadata": {"axes": "CZYX"}, "compression": "zlib"},
            "czyx",
            (2, 5, 20, 30),
            False,
        ),
        ((1, 2, 5, 20, 30), {"ome": True, "metadata": {"axes": "TCZYX"}}, "czyx", (2, 5, 20, 30), False),
        ((20, 30), {}, "yx", (1, 1, 20, 30), False),
        ((20, 30, 3), {"photometric": "rgb"}, "yxc", (3, 1, 20, 30), True),
        ((4, 20, 30, 3), {"photometric": "rgb", "compression": "zlib"}, "zyxc", (3, 4, 20, 30), True),
        ((3, 20, 30), {"photometric": "rgb", "planarconfig": "separate"}, "cyx", (3, 1, 20, 30), True),
        (
            (4, 3, 20, 30),
            {"photometric": "rgb", "planarconfig": "separate", "tile": (16, 16), "compression": "zlib"},
            "zcyx",
            (3, 4, 20, 30),
            True,
        ),
        ((1, 1, 1), {}, None, (1, 1, 1, 1), False),
        ((1, 20, 30), {}, None, (1, 1, 20, 30), False),
        ((5, 1, 30), {}, None, (1, 5, 1, 30), False),
        ((5, 20, 1), {}, None, (1, 5, 20, 1), False),
    ],
)
def test_tiff_axes(tmp_path: Path, shape: tuple, options: dict, axes: str | None, czyx: tuple, rgb: bool) -> None:
    volume = noise(shape, "u1")
    tifffile.imwrite(tmp_path / "a.tif", volume, **{"photometric": "minisblack", **options})
    with open_image(tmp_path / "a.tif") as source:
        assert (source.shape, source.rgb) == (czyx, rgb)
        assert axes is None or source.axes == axes
        data = whole(source)
        expected = volume.reshape(volume.shape[1:]) if volume.ndim == 5 else volume
        if axes and "c" in axes:
            expected = np.moveaxis(expected, axes.index("c"), 0)
        np.testing.assert_array_equal(data, expected.reshape(czyx))
        assert_boxes_equal(source, data)


def test_axes_given_by_the_user(tmp_path: Path) -> None:
    volume = noise((2, 5, 20, 30))
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, volume, photometric="minisblack")
    with pytest.raises(BadDataError, match=r"error:.*axes are"):
        open_image(path)
    with open_image(path, Selection(axes="czyx")) as source:
        np.testing.assert_array_equal(whole(source), volume)
    with open_image(path, Selection(axes="ZCYX")) as source:
        np.testing.assert_array_equal(whole(source), np.moveaxis(volume, 1, 0))
    for wrong in ("zyx", "czyy", "qzyx", "cyxz"):
        with pytest.raises(BadDataError, match=r"error:.*axes are"):
            open_image(path, Selection(axes=wrong))
    with pytest.raises(BadDataError, match="TZYX, 2 time points"):
        open_image(path, Selection(axes="tzyx"))
    with open_image(path, Selection(axes="tzyx", timepoint=1)) as source:
        np.testing.assert_array_equal(whole(source), volume[1:])
    nib.save(nib.Nifti1Image(volume.T, np.eye(4)), tmp_path / "a.nii.gz")
    with open_image(tmp_path / "a.nii.gz", Selection(axes="czyx")) as source:
        np.testing.assert_array_equal(whole(source), volume)
    zarr.create_array(tmp_path / "a.zarr", data=volume)
    with open_image(tmp_path / "a.zarr", Selection(axes="zcyx")) as source:
        np.testing.assert_array_equal(whole(source), np.moveaxis(volume, 1, 0))


def test_several_time_points_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise((4, 5, 20, 30)), imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(BadDataError, match=r"error:.*TZYX"):
        open_image(tmp_path / "a.tif")


def test_boxes_outside_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise((4, 5, 6)), photometric="minisblack")
    with open_image(tmp_path / "a.tif") as source:
        for channel, box in ((1, ((0, 1),) * 3), (0, ((0, 5), (0, 1), (0, 1))), (0, ((-1, 1), (0, 1), (0, 1)))):
            with pytest.raises(UsageError):
                source.read(channel, box)


# NIfTI


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("scaling", [None, (2.5, -3.0)])
def test_nifti_equals_nibabel(tmp_path: Path, name: str, kind: type, scaling: tuple | None) -> None:
    volume = noise((9, 21, 31), "i2")
    affine = np.diag([-0.5, 0.25, 2.0, 1.0])
    image = kind(volume.T, affine)
    image.header.set_xyzt_units("mm")
    if scaling:
        image.header.set_slope_inter(*scaling)
    nib.save(image, tmp_path / name)
    with open_image(tmp_path / name) as source:
        reference = nib.load(tmp_path / name)
        data = whole(source)
        np.testing.assert_array_equal(data[0], np.asanyarray(reference.dataobj).T)
        assert source.dtype == np.asanyarray(reference.dataobj).dtype
        np.testing.assert_array_equal(source.affine, reference.affine)
        np.testing.assert_allclose(source.spacing, (2000.0, 250.0, 500.0))
        if kind is nib.Nifti1Image:  # ITK does not read the other
            itk = SimpleITK.ReadImage(tmp_path / name)
            np.testing.assert_allclose(data[0], SimpleITK.GetArrayFromImage(itk))
            np.testing.assert_allclose(source.spacing, [1000 * s for s in reversed(itk.GetSpacing())])
        assert_boxes_equal(source, data)


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1e6), ("mm", 1e3), ("micron", 1.0), ("unknown", 1e3)])
def test_nifti_units(tmp_path: Path, unit: str, factor: float) -> None:
    image = nib.Nifti1Image(noise((4, 5, 6), "u1"), np.diag([1, 2, 3, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    with open_image(tmp_path / "a.nii") as source:
        assert source.spacing == (3 * factor, 2 * factor, factor)
        assert ("unknown" in source.spacing_origin) == (unit == "unknown")
        np.testing.assert_allclose(np.diag(source.affine)[:3], np.array([1, 2, 3]) * factor / 1e3)


def test_compressed_nifti_is_read_once_and_its_checksum_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = np.random.default_rng(0).integers(0, 2**15, (40, 64, 64)).astype("i2")
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(volume.T, np.eye(4)), path)
    decoded = []
    real = GzipReader._decode
    monkeypatch.setattr(GzipReader, "_decode", lambda self, limit: decoded.append(data := real(self, limit)) or data)
    monkeypatch.setattr(nifti, "SPAN", 2 * 64 * 64)
    monkeypatch.setattr(nifti, "STATES", 16)
    with open_image(path) as source:
        decoded.clear()
        for z in range(0, 40, 8):
            np.testing.assert_array_equal(source.read(0, ((z, z + 8), (0, 64), (0, 64))), volume[z : z + 8])
        assert sum(map(len, decoded)) == 352 + volume.nbytes
        assert len(source.handles[0]._states) <= 16
        decoded.clear()
        np.testing.assert_array_equal(source.read(0, ((20, 21), (0, 64), (0, 64))), volume[20:21])
        assert sum(map(len, decoded)) <= 6 * volume[0].nbytes
    damaged = bytearray(path.read_bytes())
    damaged[-8] ^= 1
    path.write_bytes(damaged)
    with open_image(path) as source:
        source.read(0, ((0, 39), (0, 64), (0, 64)))
        with pytest.raises(BadDataError, match="incorrect data check"):
            source.read(0, ((39, 40), (0, 64), (0, 64)))


def test_gzip_of_several_members(tmp_path: Path) -> None:
    """Block-wise compressors write them; the last four bytes are then not the length of all."""
    volume = noise((9, 21, 31), "i2")
    nib.save(nib.Nifti1Image(volume.T, np.eye(4)), tmp_path / "a.nii")
    data = (tmp_path / "a.nii").read_bytes()
    parts = [gzip.compress(data[i : i + 1000]) for i in range(0, len(data), 1000)]
    (tmp_path / "a.nii.gz").write_bytes(b"".join(parts[:3]) + b"\0" * 7 + b"".join(parts[3:]) + b"\0" * 9)
    with open_image(tmp_path / "a.nii.gz") as source:
        np.testing.assert_array_equal(whole(source)[0], volume)
        assert_boxes_equal(source, volume[None])


# Zarr


@pytest.mark.parametrize(("version", "shards"), [(2, None), (3, None), (3, (8, 16, 16))])
@pytest.mark.parametrize("compressors", [None, "auto"])
def test_plain_zarr(tmp_path: Path, version: int, shards: tuple | None, compressors: str | None) -> None:
    volume = noise((11, 37, 53))
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=volume.shape, dtype="u2", chunks=(4, 8, 8), shards=shards, zarr_format=version,
        compressors=compressors,
    )  # fmt: skip
    array[:] = volume
    with open_image(tmp_path / "a.zarr") as source:
        assert (source.format, source.spacing) == (f"Zarr {version}", None)
        assert (source.in_place.path, source.in_place.axes, source.in_place.timepoint) == ("", "zyx", 0)
        assert source.chunk == (shards or (4, 8, 8))
        np.testing.assert_array_equal(whole(source)[0], volume)
        assert_boxes_equal(source, volume[None])
        assert not missing_chunks(source)


def write_ngff(path: Path, data: np.ndarray, axes: str, version: str, scale: list[float], unit: str | None) -> None:
    """An NGFF image with one level, as the specification says."""
    kinds = {"t": "time", "c": "channel"}
    described = [
        {"name": a, "type": kinds.get(a, "space")} | ({"unit": unit} if unit and a in "zyx" else {}) for a in axes
    ]
    transforms = [
        {"type": "scale", "scale": scale},
        {"type": "translation", "translation": [10.0] * len(scale)},
    ]
    multiscale = {"axes": described, "datasets": [{"path": "s0", "coordinateTransformations": transforms}]}
    number = 3 if version == "0.5" else 2
    group = zarr.create_group(path, zarr_format=number)
    group.create_array("s0", data=data, chunks=tuple(min(n, 8) for n in data.shape))
    if number == 3:
        group.attrs["ome"] = {"version": version, "multiscales": [multiscale]}
    else:
        group.attrs["multiscales"] = [{"version": version} | multiscale]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(("axes", "shape"), [("zyx", (9, 10, 11)), ("tczyx", (1, 2, 9, 10, 11)), ("cyx", (2, 10, 11))])
def test_ngff(tmp_path: Path, version: str, axes: str, shape: tuple[int, ...]) -> None:
    volume = noise(shape)
    write_ngff(tmp_path / "a.zarr", volume, axes, version, [2.0] * len(axes), "nanometer")
    with open_image(tmp_path / "a.zarr") as source:
        assert source.format == f"OME-Zarr {version}"
        np.testing.assert_allclose(source.spacing, [0.002] * 3)
        np.testing.assert_allclose(source.origin, [0.01 if "z" in axes else 0.0, 0.01, 0.01])
        assert (source.in_place.path, source.in_place.axes) == ("s0", axes)
        data = whole(source)
        np.testing.assert_array_equal(data, volume.reshape(data.shape))
        assert_boxes_equal(source, data)


def test_ngff_transformations_of_the_whole_image_come_last(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    write_ngff(path, noise((3, 4, 5)), "zyx", "0.4", [2.0] * 3, "micrometer")
    attributes = json.loads((path / ".zattrs").read_text())
    attributes["multiscales"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [3.0] * 3}]
    (path / ".zattrs").write_text(json.dumps(attributes))
    with open_image(path) as source:
        assert (source.spacing, source.origin) == ((6.0,) * 3, (30.0,) * 3)


def test_ngff_without_unit_or_scale_has_no_spacing(tmp_path: Path) -> None:
    write_ngff(tmp_path / "a.zarr", noise((3, 4, 5)), "zyx", "0.4", [1.0, 1.0, 1.0], None)
    with open_image(tmp_path / "a.zarr") as source:
        assert source.spacing is None and "no unit" in source.warnings[0]


@pytest.mark.parametrize(("version", "shards"), [(2, None), (3, None), (3, (4, 4, 4))])
def test_missing_chunks_are_counted(tmp_path: Path, version: int, shards: tuple | None) -> None:
    path = tmp_path / "a.zarr"
    array = zarr.create_array(
        path, shape=(8, 8, 8), dtype="u2", chunks=(2, 2, 2) if shards else (4, 4, 4), shards=shards, zarr_format=version
    )
    array[:] = 1
    keys = ("0.1.1", "1.0.0") if version == 2 else ("c/0/1/1", "c/1/0/0")
    for key in keys:
        (path / key).unlink()
    with open_image(path) as source:
        missing = missing_chunks(source)
        assert (len(missing), list(missing), missing[0], missing[-1:]) == (2, list(keys), keys[0], [keys[1]])


def test_zarr_that_declares_an_exabyte_costs_nothing(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=(2**20, 2**20, 2**20), dtype="u2", chunks=(64, 64, 64))
    array[:64, :64, :64] = 1
    with open_image(tmp_path / "a.zarr") as source:
        missing = missing_chunks(source)
        assert (len(missing), missing[0]) == (2**42 - 1, "c/0/0/1")


def test_codecs_and_paths_that_are_not_safe_are_refused(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=noise((3, 4, 5)), zarr_format=2)
    meta = tmp_path / "a.zarr" / ".zarray"
    text = meta.read_text()
    meta.write_text(text.replace('"filters": null', '"filters": [{"id": "pickle"}]'))
    with pytest.raises(RefusedError, match="pickle"):
        open_image(tmp_path / "a.zarr")
    meta.write_text(text.replace('"<u2"', '"|O"'))
    with pytest.raises(BadDataError, match=r"\|O"):
        open_image(tmp_path / "a.zarr")
    write_ngff(tmp_path / "b.zarr", noise((3, 4, 5)), "zyx", "0.4", [1.0] * 3, "nm")
    meta = tmp_path / "b.zarr" / ".zattrs"
    meta.write_text(meta.read_text().replace('"s0"', '"../a.zarr"'))
    with pytest.raises(RefusedError, match=r"error:.*outside"):
        open_image(tmp_path / "b.zarr")


# Spacing


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("µm", 1), ("\u03bcm", 1), ("um", 1), ("micron", 1), ("\\u00B5m", 1), ("micrometer", 1), ("nanometre", 1e-3),
        ("nm", 1e-3), ("mm", 1e3), ("Millimeter", 1e3), ("cm", 1e4), ("m", 1e6), ("inch", 25400), ("angstrom", 1e-4),
        ("pm", 1e-6), ("pixel", None), ("", None), ("reference frame", None), ("second", None),
    ],
)  # fmt: skip
def test_length_units(unit: str, factor: float | None) -> None:
    assert micrometres_per(unit) == (None if factor is None else pytest.approx(factor))


@pytest.mark.parametrize("bad", [(0, 1, 1), (1, -1, 1), (1, 1, float("nan")), (1, float("inf"), 1), (2000, 1, 1)])
def test_lengths_that_are_no_voxel_size(bad: tuple) -> None:
    with pytest.raises(BadDataError, match=r"error:.*spacing"):
        checked(bad)


def test_ome_units_and_absent_axes(tmp_path: Path) -> None:
    def spacing(shape: tuple[int, ...], **sizes: object) -> ImageSource:
        axes = "ZYX"[-len(shape) :]
        tifffile.imwrite(tmp_path / "a.ome.tif", noise(shape, "u1"), ome=True, metadata={"axes": axes, **sizes})
        with open_image(tmp_path / "a.ome.tif") as source:
            return source

    found = spacing((3, 4, 5), PhysicalSizeX=500, PhysicalSizeXUnit="nm", PhysicalSizeY=0.5, PhysicalSizeZ=2e-3,
                    PhysicalSizeZUnit="mm")  # fmt: skip
    assert (found.spacing, found.spacing_origin) == (pytest.approx((2.0, 0.5, 0.5)), "OME-XML")
    found = spacing((3, 4, 5), PhysicalSizeX=0.5, PhysicalSizeY=0.5)
    assert found.spacing is None and "not of z" in found.warnings[0]
    found = spacing((4, 5), PhysicalSizeX=0.5, PhysicalSizeY=0.25)
    assert (found.spacing, found.spacing_origin) == ((0.25, 0.25, 0.5), "OME-XML, z as y")
    found = spacing((3, 4, 5), PhysicalSizeX=1, PhysicalSizeXUnit="pixel", PhysicalSizeY=1, PhysicalSizeZ=1)
    assert found.spacing is None and "'pixel'" in found.warnings[0]
    with pytest.raises(BadDataError, match=r"error:.*spacing"):
        spacing((3, 4, 5), PhysicalSizeX=1, PhysicalSizeY=0, PhysicalSizeZ=1)


def test_imagej_calibration_and_printing_resolution(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, noise((3, 4, 5)), imagej=True, resolution=(4, 2), metadata={"axes": "ZYX", "spacing": 3, "unit": "um"}
    )
    with open_image(path) as source:
        assert (source.spacing, source.spacing_origin) == ((3.0, 0.5, 0.25), "ImageJ")
    tifffile.imwrite(path, noise((3, 4, 5)), imagej=True, resolution=(4, 2), metadata={"axes": "ZYX", "unit": "cm"})
    with open_image(path) as source:
        assert source.spacing is None and "not of z" in source.warnings[0]
    tifffile.imwrite(path, noise((3, 4, 5)), resolution=(300, 300), resolutionunit="inch", photometric="minisblack")
    with open_image(path) as source:
        assert source.spacing is None


def test_zeiss_scaling(tmp_path: Path) -> None:
    lines = [f"AcquisitionBlock|AcquisitionModeSetup|Scaling{axis} = {value}" for axis, value in
             (("X", 2.5e-7), ("Y", 5e-7), ("Z", 1e-6))]  # fmt: skip
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise((3, 4, 5)), imagej=True, metadata={"Info": "\n".join(["A = 1", *lines])})
    with open_image(path) as source:
        assert (source.spacing, source.spacing_origin) == (pytest.approx((1.0, 0.5, 0.25)), "Zeiss Scaling")
    assert from_zeiss("\n".join(lines[:2]), 3).value is None


# Damage


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"compression": "zlib", "metadata": None}])
def test_stack_whose_last_pages_are_cut_off(tmp_path: Path, options: dict) -> None:
    """Anywhere: inside the voxels, inside a page header, and between two pages, where nothing looks broken."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise((8, 32, 32)), photometric="minisblack", **options)
    data = path.read_bytes()
    with tifffile.TiffFile(path) as tif:
        starts = [page.offset for page in tif.pages]
        ends = [page.dataoffsets[-1] + page.databytecounts[-1] for page in tif.pages]
    assert open_image(path).shape == (1, 8, 32, 32)
    for cut in (*starts[1:], *ends[:-1], ends[-1] - 1, starts[4] + 9, len(data) // 2):
        path.write_bytes(data[:cut])
        with pytest.raises(BadDataError, match="truncated"):
            open_image(path)


def test_header_that_declares_too_much(tmp_path: Path) -> None:
    tags = [(256, 4, 1, 2**31), (257, 4, 1, 2**31), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1),
            (278, 4, 1, 2**31), (279, 4, 1, 100)]  # fmt: skip
    for compression in (1, 8):
        entries = sorted([*tags, (259, 3, 1, compression)])
        body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + b"\0" * 4
        (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + body + b"\0" * (216 - len(body)))
        with pytest.raises(BadDataError, match=str(2**62)):
            open_image(tmp_path / "a.tif")


def test_pages_in_a_loop(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise((8, 8)), photometric="minisblack", metadata=None)
    data = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + entries * 12, first)
    path.write_bytes(data)
    with pytest.raises(BadDataError, match=r"error:.*loop"):
        open_image(path)


def test_ome_xml_with_entities_is_refused(tmp_path: Path) -> None:
    xml = '<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY a "b">]><OME>&a;</OME>'
    tifffile.imwrite(tmp_path / "a.tif", noise((8, 8)), description=xml, metadata=None, photometric="minisblack")
    with pytest.raises(BadDataError, match=r"error:.*entities"):
        open_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("old", "new"),
    [('SizeX="5"', 'SizeX="6"'), ('SizeZ="3"', 'SizeZ="4"'), ('Type="uint8"', 'Type="float"'), ('IFD="0"', 'IFD="9"')],
)
def test_ome_xml_that_contradicts_its_pixels(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise((3, 4, 5), "u1"), ome=True, photometric="minisblack", metadata={"axes": "ZYX"})
    xml = tifffile.tiffcomment(path)
    assert old in xml
    tifffile.tiffcomment(path, xml.replace(old, new).encode())
    with pytest.raises(BadDataError, match=r"error:.*contradict"):
        open_image(path)


@pytest.mark.parametrize(
    ("options", "old", "new"),
    [({"imagej": True}, "images=3", "images=4"), ({}, '"shape": [3, 4, 5]', '"shape": [4, 4, 5]')],
)
def test_description_of_more_planes_than_there_are(tmp_path: Path, options: dict, old: str, new: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise((3, 4, 5), "u1"), photometric="minisblack", compression="zlib", **options)
    text = tifffile.tiffcomment(path)
    assert old in text
    tifffile.tiffcomment(path, text.replace(old, new).encode())
    with pytest.raises(BadDataError, match=r"error:.*planes"):
        open_image(path)


def test_no_file_of_a_set_but_the_named_one_is_opened(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tifffile.imwrite(tmp_path / f"{name}.ome.tif", noise((2, 8, 8)), ome=True, metadata={"axes": "ZYX"})
    path = tmp_path / "a.ome.tif"
    xml = tifffile.tiffcomment(path)
    data = '<TiffData FirstZ="{}" IFD="0" PlaneCount="1"><UUID FileName="{}">urn:uuid:{}</UUID></TiffData>'
    uuid = xml.split('UUID="urn:uuid:')[1].split('"')[0]

    def name_files(other: str) -> None:
        start = xml.index("<TiffData")
        end = xml.index("</Pixels>")
        text = data.format(0, "a.ome.tif", uuid) + data.format(1, other, "1234")
        tifffile.tiffcomment(path, (xml[:start] + text + xml[end:]).encode())

    name_files("gone.ome.tif")
    with pytest.raises(InputMissingError, match=r"gone\.ome\.tif"):
        open_image(path)
    name_files("b.ome.tif")
    with pytest.raises(BadDataError, match=r"set of 2 files"):
        open_image(path)
    for outside in ("../secret.tif", "/etc/secret.tif", "C:\\secret.tif"):
        name_files(outside)
        with pytest.raises(RefusedError, match=r"error:.*secret"):
            open_image(path)


def test_renamed_ome_tiff_is_read(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", noise((2, 8, 8)), ome=True, metadata={"axes": "ZYX"})
    xml = tifffile.tiffcomment(tmp_path / "a.ome.tif")
    uuid = xml.split('UUID="')[1].split('"')[0]
    named = xml.replace("<TiffData", "<TiffData", 1)
    start = named.index("<TiffData")
    end = named.index("</Pixels>")
    named = named[:start] + f'<TiffData><UUID FileName="old.ome.tif">{uuid}</UUID></TiffData>' + named[end:]
    tifffile.tiffcomment(tmp_path / "a.ome.tif", named.encode())
    with open_image(tmp_path / "a.ome.tif") as source:
        np.testing.assert_array_equal(whole(source)[0], noise((2, 8, 8)))


def test_deflate_bomb_in_nifti(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((30000, 30000, 30000))
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + b"\0" * 1000))
    with pytest.raises(BadDataError, match="declares"):
        open_image(tmp_path / "a.nii.gz")


# Memory

BOUNDED = """
import resource, sys
import numpy as np
from voxelmill.formats import Selection, open_image
source = open_image(sys.argv[1])
source.read(0, ((0, 1), (0, 64), (0, 64)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_, depth, length, width = source.shape
for z in range(0, depth, depth // 4):
    source.read(0, ((z, z + 1), (0, length), (0, 512)))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize("kind", ["tiff", "nifti", "tiles", "zarr"])
def test_memory_is_bounded_by_the_box(tmp_path: Path, kind: str) -> None:
    """A gigabyte is read in boxes of 2 MB under a limit on the memory that grows by far less than the image."""
    depth, side = 256, 2048
    if kind == "tiff":
        path = tmp_path / "a.tif"
        tifffile.memmap(path, shape=(depth, side, side), dtype="u1", photometric="minisblack")
    elif kind == "tiles":
        path = tmp_path / "a.tif"
        tile = np.zeros((128, 128), "u1")
        tiles = (tile for _ in range(16 * (side // 128) ** 2))
        tifffile.imwrite(path, tiles, shape=(16, side, side), dtype="u1", tile=(128, 128), compression="zlib",
                         photometric="minisblack")  # fmt: skip
    elif kind == "nifti":
        path = tmp_path / "a.nii"
        header = nib.Nifti1Header()
        header.set_data_shape((side, side, depth))
        header.set_data_dtype("u1")
        header["magic"], header["vox_offset"] = b"n+1", 352
        header["pixdim"][:4] = 1
        path.write_bytes(header.binaryblock)
        with open(path, "r+b") as handle:
            handle.truncate(352 + depth * side * side)
    else:
        path = tmp_path / "a.zarr"
        zarr.create_array(path, shape=(depth, side, side), chunks=(8, 128, 128), dtype="u1")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))

    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, path], capture_output=True, text=True, preexec_fn=limit, env={"PYTHONPATH": BIN,
        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 48 << 20


# Real files


REAL = {
    "axons_lightsheet/lightsheet_chunk_128x256x256.ome.tif": ((1, 128, 256, 256), (3.0, 2.0, 2.0), "OME-XML"),
    "fluorescence/ovule_nuclei_1135.ome.tif": ((1, 100, 100, 100), (0.2837, 0.1268, 0.1268), "OME-XML"),
    "fluorescence/czyx_dna.ome.tif": ((2, 45, 130, 133), (0.4994, 0.5119, 0.5119), "OME-XML"),
    "fluorescence/float32_dna.ome.tif": ((1, 45, 130, 133), None, ""),
    "fluorescence/xyzc_16bit__dna_conf_wf.tif": ((2, 45, 130, 133), (0.4994, 0.5119, 0.5119), "ImageJ"),
    "fluorescence/bmcv_zcyx.tiff": ((2, 25, 50, 50), (0.0545, 0.4356, 0.4356), "ImageJ"),
    "fluorescence/bmcv_qyx_float32.tiff": ((1, 2, 256, 256), None, ""),
    "fluorescence/bmcv_zyx_float16.tiff": ((1, 5, 256, 256), None, ""),
    "fluorescence/xyz_8bit__nuclei_autothresh.tif": ((1, 37, 118, 132), (4.0, 0.8286, 0.8286), "ImageJ"),
    "fluorescence/xy_16bit__rat_hippocampal_neuron.tif": ((1, 1, 512, 512), (0.16, 0.16, 0.16), "ImageJ, z as y"),
    "microct/nmc_dev_grey.tif": ((1, 120, 150, 150), (0.4, 0.4, 0.4), "ImageJ"),
    "microct/100_fiberform.tif": ((1, 100, 100, 100), None, ""),
    "mri/t1_t1w.nii.gz": ((1, 77, 76, 42), (1000.0, 1000.0, 1000.0), "NIfTI"),
    "mri/t2_t2.nii.gz": ((1, 52, 55, 60), (1000.0, 1000.0, 1000.0), "NIfTI"),
    "mri/standard.nii.gz": ((1, 7, 5, 4), (2000.0, 3000.0, 1000.0), "NIfTI, unit unknown read as mm"),
    "em_cellmap/image-03.zarr": ((1, 2, 100, 100), (1.0, 1.0, 1.0), "NGFF"),
    "em_cellmap/v05_zyx_bool.zarr": ((1, 2, 100, 100), (1.0, 1.0, 1.0), "NGFF"),
    "em_cellmap/flyem_medulla-a/flyem_medulla-a.zarr/recon-1/em/fibsem-uint8": (
        (1, 150, 250, 250),
        (0.01, 0.01, 0.01),
        "NGFF",
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(shared_data: Path, name: str) -> None:
    path = shared_data / name
    shape, spacing, origin = REAL[name]
    with open_image(path) as source:
        assert (source.shape, source.spacing_origin) == (shape, origin)
        assert source.spacing == (spacing and pytest.approx(spacing, rel=1e-3))
        data = whole(source)
        if path.suffix in (".tif", ".tiff"):
            expected = tifffile.imread(path)
        elif path.suffix == ".gz":
            expected = np.asanyarray(nib.load(path).dataobj).T
            np.testing.assert_array_equal(source.affine, nib.load(path).affine)
        else:
            expected = zarr.open_array(str(path / source.in_place.path), mode="r")[:]
        if "c" in source.axes:
            expected = np.moveaxis(expected, source.axes.index("c"), 0)
        np.testing.assert_array_equal(data, expected.reshape(shape))
        assert_boxes_equal(source, data)


def test_real_ome_xml_that_contradicts_its_pixels(shared_data: Path) -> None:
    with pytest.raises(BadDataError, match="contradict"):
        open_image(shared_data / "fluorescence/malformed_omexml.ome.tif")


def test_real_nifti_with_time_points(shared_data: Path) -> None:
    with pytest.raises(BadDataError, match=r"error:.*TZYX"):
        open_image(shared_data / "mri/example_nifti2.nii.gz")
