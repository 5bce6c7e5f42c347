"""The TIFF reader against tifffile, on generated files of every layout and on real ones."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile

from images import assert_boxes_equal, noise, whole
from voxelmill.errors import BadDataError, InputMissingError, RefusedError
from voxelmill.formats import open_image
from voxelmill.formats.base import ImageSource
from voxelmill.formats.spacing import from_zeiss

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


def test_several_time_points_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise((4, 5, 20, 30)), imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(BadDataError, match=r"error:.*TZYX"):
        open_image(tmp_path / "a.tif")


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


def test_real_ome_xml_that_contradicts_its_pixels(shared_data: Path) -> None:
    with pytest.raises(BadDataError, match="contradict"):
        open_image(shared_data / "fluorescence/malformed_omexml.ome.tif")
