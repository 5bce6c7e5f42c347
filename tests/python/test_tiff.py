"""The TIFF reader against tifffile, on generated files of every layout and on real ones."""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from images import all_of, assert_boxes_equal, noise
from voxelmill.errors import BadDataError, InputMissingError, RefusedError
from voxelmill.formats import Selection, open_image
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
        data = all_of(source)
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
        data = all_of(source)
        expected = volume.reshape(volume.shape[1:]) if volume.ndim == 5 else volume
        if axes and "c" in axes:
            expected = np.moveaxis(expected, axes.index("c"), 0)
        np.testing.assert_array_equal(data, expected.reshape(czyx))
        assert_boxes_equal(source, data)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"compression": "zlib", "tile": (16, 16)}])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_stack_that_was_saved_as_colours(tmp_path: Path, planar: str, options: dict, channels: int) -> None:
    """Three planes look like red, green, blue to some writers; the user says that they are z."""
    volume = noise((channels, 3, 20, 30), "u1")
    written = volume if planar == "separate" else np.moveaxis(volume, 1, -1)
    written, axes = (written[0], "") if channels == 1 else (written, "c")
    tifffile.imwrite(tmp_path / "a.tif", written, photometric="rgb", planarconfig=planar, **options)
    axes += "zyx" if planar == "separate" else "yxz"
    with open_image(tmp_path / "a.tif", Selection(axes=axes)) as source:
        assert (source.shape, source.rgb) == (volume.shape, False)
        np.testing.assert_array_equal(all_of(source), volume)
        assert_boxes_equal(source, volume)
    with pytest.raises(BadDataError, match="axes"):
        open_image(tmp_path / "a.tif", Selection(axes=axes.replace("z", "t"), timepoint=0))


@pytest.mark.parametrize("axes", ["cyx", "yxc"])
def test_the_depth_of_tiles_is_no_channel(tmp_path: Path, axes: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise((8, 32, 32)), volumetric=True, tile=(4, 16, 16), photometric="minisblack")
    with pytest.raises(BadDataError, match="axes"):
        open_image(path, Selection(axes=axes))


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
        np.testing.assert_array_equal(all_of(source)[0], noise((2, 8, 8)))


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


def test_one_name_for_the_colours_of_a_pixel_is_no_name_of_a_channel(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    for samples, names in ((3, ["RGB"]), (2, ["a", "b"])):
        volume = noise((20, 30, 3) if samples == 3 else (2, 20, 30), "u1")
        tifffile.imwrite(path, volume, photometric="rgb" if samples == 3 else "minisblack", ome=True,
                         metadata={"axes": "YXS" if samples == 3 else "CYX", "Channel": {"Name": names}})  # fmt: skip
        with open_image(path) as source:
            assert (source.shape[0], source.channel_names) == (samples, () if samples == 3 else ("a", "b"))


# Several images and resolutions


def test_a_series_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    volumes = [noise((3, 20, 30)), noise((2, 4, 16, 17), "u1"), noise((9, 8), "f4")]
    axes = ["ZYX", "CZYX", "YX"]
    with tifffile.TiffWriter(path, ome=True) as writer:
        for i, (volume, names) in enumerate(zip(volumes, axes, strict=True)):
            sizes = {"PhysicalSizeX": i + 1, "PhysicalSizeY": i + 1, "PhysicalSizeZ": 2, "Name": f"image {i}"}
            writer.write(volume, photometric="minisblack", metadata={"axes": names, **sizes}, compression="zlib")
    with pytest.raises(BadDataError) as caught:
        open_image(path)
    text = str(caught.value)
    assert "3 images" in text and "1 ('image 1', CZYX 2 x 4 x 16 x 17 uint8)" in text and "--series" in text
    for number, volume in enumerate(volumes):
        with open_image(path, Selection(series=number)) as source:
            data = all_of(source)
            np.testing.assert_array_equal(data.reshape(volume.shape), tifffile.imread(path, series=number))
            assert_boxes_equal(source, data)
            assert source.spacing == (2.0, number + 1, number + 1)
    for wrong in (3, -1):
        with pytest.raises(BadDataError, match=f"no image {wrong}"):
            open_image(path, Selection(series=wrong))
    with pytest.raises(BadDataError, match="no resolution level 1"):
        open_image(path, Selection(series=0, level=1))


@pytest.mark.parametrize("metadata", [{}, None])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_pages_of_several_shapes_are_several_images(
    tmp_path: Path, metadata: dict | None, compression: str | None
) -> None:
    path = tmp_path / "a.tif"
    volumes = [noise((3, 20, 30)), noise((2, 16, 17)), noise((2, 8, 8), "u1")]
    with tifffile.TiffWriter(path) as writer:
        for volume in volumes:
            writer.write(volume, photometric="minisblack", metadata=metadata, compression=compression)
    with pytest.raises(BadDataError, match=r"page 4 is 16 x 17 uint16, page 1 is 20 x 30 uint16: the file holds 3"):
        open_image(path)
    for number, volume in enumerate(volumes):
        with open_image(path, Selection(series=number)) as source:
            np.testing.assert_array_equal(all_of(source)[0], volume)
    size = path.stat().st_size
    with open(path, "r+b") as handle:
        handle.truncate(size - 20)
    with pytest.raises(BadDataError, match="truncated"):  # the last image's, though another is chosen
        open_image(path, Selection(series=0))


def test_many_images_are_listed_in_part(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        for side in range(20, 40):
            writer.write(noise((side, 30)), photometric="minisblack", metadata={"axes": "YX"})
    with pytest.raises(BadDataError, match=r"20 images: .*7 \('?.*27 x 30.* and 12 more"):
        open_image(tmp_path / "a.ome.tif")


@pytest.mark.parametrize("kind", ["ome", "shaped", "pages"])
@pytest.mark.parametrize("options", [{}, {"tile": (16, 16), "compression": "zlib"}])
def test_levels_of_a_pyramid(tmp_path: Path, kind: str, options: dict) -> None:
    path = tmp_path / "a.tif"
    volume = noise((3, 64, 96))
    levels = [volume, volume[:, ::2, ::2], volume[:, ::4, ::4]]
    sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25, "PhysicalSizeZ": 2} if kind == "ome" else {}
    with tifffile.TiffWriter(path, ome=kind == "ome") as writer:
        same = {"photometric": "minisblack", **options}
        if kind == "pages":
            for level in levels:
                writer.write(level, **same, metadata=None)
        else:
            writer.write(volume, subifds=2, metadata={"axes": "ZYX", **sizes} if sizes else {}, **same)
            for level in levels[1:]:
                writer.write(level, subfiletype=1, **same)
    with tifffile.TiffFile(path) as tif:
        assert len(tif.series[0].levels) == 3
    for number, level in enumerate(levels):
        with open_image(path, Selection(level=number)) as source:
            np.testing.assert_array_equal(all_of(source)[0], level)
            assert_boxes_equal(source, level[None])
            if sizes:
                assert source.spacing == (2.0, 0.25 * 2**number, 0.5 * 2**number)
                assert source.origin == (0.0, *((2**number - 1) / 2 * side for side in (0.25, 0.5)))
    with open_image(path) as source:
        np.testing.assert_array_equal(all_of(source)[0], volume)
        assert [*source.warnings] == [] or (kind == "pages" and "3 resolutions" in source.warnings[0])
    with pytest.raises(BadDataError, match="no resolution level 3"):
        open_image(path, Selection(level=3))


# Time


@pytest.mark.parametrize("kind", ["imagej", "ome", "axes"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_time_points(tmp_path: Path, kind: str, compression: str | None) -> None:
    path = tmp_path / "a.tif"
    volume = noise((3, 4, 2, 8, 9))
    options: dict = {"compression": compression, "photometric": "minisblack"}
    if kind != "axes":
        options |= {kind: True}
    tifffile.imwrite(path, volume, **options, metadata={"axes": "TZCYX"})
    with pytest.raises(BadDataError, match="3 time points"):
        open_image(path)
    with pytest.raises(BadDataError, match="no time point 3"):
        open_image(path, Selection(timepoint=3))
    with tifffile.TiffFile(path) as tif:
        series = tif.series[0]
        expected = np.moveaxis(series.asarray(), [series.axes.index(axis) for axis in "TCZYX"], range(5))
    for time in range(3):
        with open_image(path, Selection(timepoint=time)) as source:
            data = all_of(source)
            np.testing.assert_array_equal(data, expected[time])
            np.testing.assert_array_equal(data, np.moveaxis(volume[time], 1, 0))
            assert_boxes_equal(source, data)
            assert source.timepoint == time
    with open_image(path, Selection(axes=series.axes.lower().replace("t", "q").replace("c", "t").replace("q", "c"),
                                    timepoint=1)) as source:  # fmt: skip
        np.testing.assert_array_equal(all_of(source), volume[:, :, 1])


# Compressions

COMPRESSED = {
    "zlib": {"compression": "zlib"}, "deflate": {"compression": "deflate"}, "lzw": {"compression": "lzw"},
    "packbits": {"compression": "packbits"}, "zstd": {"compression": "zstd"}, "lzma": {"compression": "lzma"},
    "lerc": {"compression": "lerc"}, "jpeg2000": {"compression": "jpeg2000"}, "jpegxl": {"compression": "jpegxl"},
    "png": {"compression": "png"}, "webp": {"compression": "webp"}, "jpeg": {"compression": "jpeg"},
    "zlib, predictor": {"compression": "zlib", "predictor": True},
    "lzw, predictor": {"compression": "lzw", "predictor": True},
    "zstd, predictor": {"compression": "zstd", "predictor": True},
}  # fmt: skip
PIXELS = {
    "u1": ("u1", ()), "u2": ("u2", ()), "f4": ("f4", ()), "rgb": ("u1", (3,)), "rgb16": ("u2", (3,)),
}  # fmt: skip
CANNOT = {("jpeg2000", "f4"), ("png", "f4"), ("webp", "u1"), ("webp", "u2"), ("webp", "f4"), ("webp", "rgb16"),
          ("jpeg", "u2"), ("jpeg", "f4"), ("jpeg", "rgb16"), ("lerc", "rgb16")}  # fmt: skip
"""What these formats do not hold."""


@pytest.mark.parametrize(("compression", "pixels"), sorted({*itertools.product(COMPRESSED, PIXELS)} - CANNOT))
def test_compressions_equal_tifffile(tmp_path: Path, compression: str, pixels: str) -> None:
    dtype, samples = PIXELS[pixels]
    volume = noise((4, 40, 60, *samples), "u1").astype(dtype)
    kind = "rgb" if samples else "minisblack"
    orders = "<" if compression in ("lerc", "jpeg2000", "jpegxl", "png") else "<>"
    for big, order, tile, planar in itertools.product((False, True), orders, (None, (16, 32)), (None, "separate")):
        if planar and (not samples or compression == "webp"):
            continue
        written = np.moveaxis(volume, -1, 1) if planar else volume
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, written, photometric=kind, bigtiff=big, byteorder=order, tile=tile, planarconfig=planar,
                         rowsperstrip=None if tile else 7, **COMPRESSED[compression])  # fmt: skip
        expected = tifffile.imread(path)
        if compression not in ("jpeg", "webp"):
            np.testing.assert_array_equal(expected, written)
        with open_image(path) as source:
            data = all_of(source)
            if samples:
                expected = np.moveaxis(expected, 1 if planar else -1, 0)
            np.testing.assert_array_equal(data, expected.reshape(data.shape))
            assert_boxes_equal(source, data)


@pytest.mark.parametrize(
    "compression", ["raw", "group3", "group4", "tiff_ccitt", "packbits", "tiff_lzw", "tiff_deflate"]
)
def test_one_bit_equals_pillow(tmp_path: Path, compression: str) -> None:
    plane = noise((33, 53), "b1")
    Image.fromarray(plane).save(tmp_path / "a.tif", compression=compression)
    with open_image(tmp_path / "a.tif") as source:
        expected = np.asarray(Image.open(tmp_path / "a.tif"))
        inverted = any("MinIsWhite" in text for text in source.warnings)
        np.testing.assert_array_equal(all_of(source)[0, 0].astype(bool), ~expected if inverted else expected)
        assert_boxes_equal(source, all_of(source))


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "tiff_adobe_deflate"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_colours_of_another_writer(tmp_path: Path, compression: str, mode: str) -> None:
    """libtiff's: JPEG has YCbCr with less colour than brightness, which is read as RGB."""
    y, x = np.mgrid[:64, :96]
    plane = np.stack([y * 2, x * 2, y + x], -1).astype("u1")[..., : 3 if mode == "RGB" else 1].squeeze()
    Image.fromarray(plane).save(tmp_path / "a.tif", compression=compression)
    expected = np.asarray(Image.open(tmp_path / "a.tif"))
    with open_image(tmp_path / "a.tif") as source:
        data = all_of(source)[:, 0]
        close = np.abs(np.moveaxis(data, 0, -1).squeeze().astype(int) - expected)
        assert close.max() <= (3 if compression == "jpeg" else 0) and source.rgb == (mode == "RGB")
        read = tifffile.imread(tmp_path / "a.tif")
        np.testing.assert_array_equal(np.moveaxis(data, 0, -1).squeeze(), read)


def packed(values: np.ndarray, bits: int) -> bytes:
    """Rows of whole bytes, most significant bit first."""
    shown = np.unpackbits(values.astype(">u2").view("u1").reshape(*values.shape, 2), axis=-1)[..., 16 - bits :]
    return np.packbits(shown.reshape(values.shape[0], -1), axis=-1).tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 2, 4, 10, 12, 14])
def test_bits_that_fill_no_byte(tmp_path: Path, bits: int, order: str) -> None:
    values = np.random.default_rng(0).integers(0, 2**bits, (20, 31)).astype("u2")
    data = packed(values, bits)
    tags = [(256, 4, 1, 31), (257, 4, 1, 20), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 256),
            (277, 3, 1, 1), (278, 4, 1, 20), (279, 4, 1, len(data))]  # fmt: skip
    value = {3: "HH", 4: "I"}
    entries = [
        struct.pack(order + "HHI" + value[kind], code, kind, count, number, *[0] * (kind == 3))
        for code, kind, count, number in tags
    ]
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    body = head + struct.pack(order + "H", len(tags)) + b"".join(entries) + bytes(4)
    path = tmp_path / "a.tif"
    path.write_bytes(body.ljust(256, b"\0") + data)
    np.testing.assert_array_equal(tifffile.imread(path), values)
    with open_image(path) as source:
        np.testing.assert_array_equal(all_of(source)[0, 0], values)
        assert source.dtype == {1: "b1", 2: "u1", 4: "u1"}.get(bits, "u2")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadDataError, match="truncated"):
        open_image(path)


def test_values_are_read_as_stored(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    volume = noise((3, 8, 9), "u1")
    tifffile.imwrite(path, volume, photometric="miniswhite")
    with open_image(path) as source:
        np.testing.assert_array_equal(all_of(source)[0], volume)
        assert "MinIsWhite" in source.warnings[0]
    tifffile.imwrite(path, volume[0], photometric="palette", colormap=np.zeros((3, 256), "u2"))
    with open_image(path) as source:
        np.testing.assert_array_equal(all_of(source)[0, 0], volume[0])
        assert "colour table" in source.warnings[0]


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(("samples", "kind"), [(4, "rgb"), (2, "minisblack")])
def test_opacity_is_left_out(tmp_path: Path, planar: str, compression: str | None, samples: int, kind: str) -> None:
    volume = noise((3, 20, 30, samples), "u1")
    written = np.moveaxis(volume, -1, 1) if planar == "separate" else volume
    for alpha, left in (("unassalpha", samples - 1), ("assocalpha", samples - 1), ("unspecified", samples)):
        tifffile.imwrite(tmp_path / "a.tif", written, photometric=kind, planarconfig=planar, compression=compression,
                         extrasamples=[alpha])  # fmt: skip
        with open_image(tmp_path / "a.tif") as source:
            assert source.shape == (left, 3, 20, 30) and source.rgb == (left == 3)
            np.testing.assert_array_equal(all_of(source), np.moveaxis(volume, -1, 0)[:left])
            assert any("opacity" in text for text in source.warnings) == (left < samples)


def test_a_sparse_hyperstack_of_five_gibibytes(tmp_path: Path) -> None:
    """ImageJ writes one header and all planes behind it; its 32-bit offsets know nothing of the others."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((2, 64, 64), "u2"), imagej=True, metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path) as tif:
        start = tif.pages[0].dataoffsets[0]
        assert len(tif.pages) == 1 or tif.series[0].dataoffset == start
    head = bytearray(path.read_bytes()[:start])
    planes, side = 1300, 1024 * 2
    with tifffile.TiffFile(path) as tif:
        tags = tif.pages[0].tags
        for code, value in ((256, side), (257, side), (278, side)):
            struct.pack_into("<I" if tags[code].dtype == 4 else "<H", head, tags[code].valueoffset, value)
        struct.pack_into("<I", head, tags[279].valueoffset, side * side)
        chain = tif.pages[0].offset + 2 + len(tags) * 12
        place, count = tags[270].valueoffset, tags[270].count
    struct.pack_into("<I", head, chain, 0)
    struct.pack_into("<H", head, tags[258].valueoffset, 8)
    text = f"ImageJ=1.11a\nimages={planes}\nslices={planes}\n".encode()
    assert len(text) <= count
    head[place : place + count] = text.ljust(count, b"\0")
    path.write_bytes(head)
    with open(path, "r+b") as handle:
        handle.truncate(start + planes * side * side)
        handle.seek(start + (planes - 1) * side * side + 2000 * side)
        handle.write(np.arange(256, dtype="u1").tobytes() * (side // 256) * 4)
    assert path.stat().st_size > 5 << 30
    with open_image(path) as source:
        assert source.shape == (1, planes, side, side)
        box = ((planes - 2, planes), (1990, 2010), (100, 700))
        expected = tifffile.memmap(path, mode="r")[tuple(slice(*ends) for ends in box)]
        np.testing.assert_array_equal(source.read(0, box), expected)
        assert expected.any()
    with open(path, "r+b") as handle:
        handle.truncate(start + planes * side * side - 1)
    with pytest.raises(BadDataError):
        open_image(path)


# Damaged OME-XML

SIZES = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25, "PhysicalSizeZ": 2}


def with_xml(path: Path, change: Callable[[str], str], shape: tuple[int, ...] = (3, 4, 5), axes: str = "ZYX") -> Path:
    tifffile.imwrite(path, noise(shape, "u1"), ome=True, photometric="minisblack", metadata={"axes": axes, **SIZES})
    text = tifffile.tiffcomment(path)
    changed = change(text)
    assert changed != text
    tifffile.tiffcomment(path, changed.encode())
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda xml: xml[: xml.index("</Pixels>")], "damaged"),
        (lambda xml: xml[: xml.index("<TiffData") + 12], "damaged"),
        (lambda xml: xml[: xml.index("<TiffData")], "damaged"),
        (lambda xml: xml.replace("<TiffData", "\x03\x0b<TiffData"), "damaged"),
        (lambda xml: xml.replace('Name="Image0"', 'Name="a & b < c"'), "damaged"),
        (lambda xml: xml.replace("</Image>", ""), "damaged"),
        (lambda xml: xml.replace("<Pixels", "<ome:Pixels").replace("</Pixels", "</ome:Pixels"), "damaged"),
        (lambda xml: xml.replace('Name="Image0"', 'Name="&undefined;"'), "damaged"),
        (lambda xml: xml.replace('SizeZ="3"', ""), "lacks SizeZ: the pages say SizeZ 3"),
        (lambda xml: re.sub('Size[CT]="1"', "", xml), "lacks SizeC, SizeT"),
        (lambda xml: xml.replace('SizeX="5"', ""), "lacks SizeX: the pages say SizeX 5"),
        (lambda xml: xml.replace('DimensionOrder="XYCZT"', "").replace('DimensionOrder="XYZCT"', ""), "order"),
        (lambda xml: xml.replace("2016-06", "2003-FC"), ""),
        (lambda xml: xml.replace(' xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"', ""), ""),
    ],
)  # fmt: skip
def test_what_is_left_of_damaged_ome_xml_is_used(tmp_path: Path, change: Callable[[str], str], words: str) -> None:
    path = with_xml(tmp_path / "a.tif", change)
    with open_image(path) as source:
        np.testing.assert_array_equal(all_of(source)[0], noise((3, 4, 5), "u1"))
        assert (source.format, source.axes, source.spacing) == ("OME-TIFF", "zyx", (2.0, 0.25, 0.5))
        assert source.warnings == [] if not words else words in source.warnings[0]


@pytest.mark.parametrize("unit", ["Âµm", "Î¼m", "\ufffdm"])
def test_a_damaged_unit(tmp_path: Path, unit: str) -> None:
    change = lambda xml: xml.replace("<Pixels", f'<Pixels PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}"')  # noqa: E731
    with open_image(with_xml(tmp_path / "a.tif", change)) as source:
        assert source.spacing == (2.0, 0.25, 0.5) and "damaged µm" in source.warnings[0]


def test_sizes_that_are_no_numbers(tmp_path: Path) -> None:
    with open_image(with_xml(tmp_path / "a.tif", lambda xml: xml.replace('SizeX="0.5"', 'SizeX="wide"'))) as source:
        assert source.spacing is None and "'wide' along x" in source.warnings[0]
    with pytest.raises(BadDataError, match="contradict"):
        open_image(with_xml(tmp_path / "a.tif", lambda xml: xml.replace('SizeZ="3"', 'SizeZ="many"')))


@pytest.mark.parametrize(
    "change",
    [lambda xml: xml[: xml.index("<Image")], lambda xml: xml[: xml.index("<Pixels")], lambda xml: "<OME " * 99],
)
def test_ome_xml_of_which_nothing_is_left(tmp_path: Path, change: Callable[[str], str]) -> None:
    with open_image(with_xml(tmp_path / "a.tif", change)) as source:
        np.testing.assert_array_equal(all_of(source)[0], noise((3, 4, 5), "u1"))
        assert source.spacing is None and "read as a plain TIFF" in source.warnings[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda xml: xml.replace('SizeX="5"', 'SizeX="6"').replace("</Image>", ""),
        lambda xml: xml.replace('SizeZ="3"', 'SizeZ="4"').replace("</Image>", ""),
        lambda xml: xml.replace('SizeZ="3"', 'SizeZ="2"').replace("</Image>", ""),
        lambda xml: xml.replace('Type="uint8"', 'Type="float"').replace("</Image>", ""),
        lambda xml: xml.replace('SizeZ="3"', "").replace('SizeC="1"', ""),
    ],
)
def test_damaged_ome_xml_that_contradicts_its_pixels(tmp_path: Path, change: Callable[[str], str]) -> None:
    with pytest.raises(BadDataError, match="contradict"):
        open_image(with_xml(tmp_path / "a.tif", change))


def test_two_long_axes_need_their_order(tmp_path: Path) -> None:
    drop = lambda xml: re.sub(' DimensionOrder="[A-Z]*"', "", xml)  # noqa: E731
    with pytest.raises(BadDataError, match="order of the axes"):
        open_image(with_xml(tmp_path / "a.tif", drop, (2, 3, 4, 5), "CZYX"))


@pytest.mark.parametrize(
    "text",
    [
        '<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY a "b">]><OME>&a;</OME',
        '<!doctype OME SYSTEM "file:///etc/passwd"><OME><Image></OME>',
        '<OME><Image Name="x"><!ENTITY b SYSTEM "file:///etc/passwd"></OME>',
    ],
)
def test_damage_hides_no_entities(tmp_path: Path, text: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise((8, 8)), description=text, metadata=None, photometric="minisblack")
    with pytest.raises(BadDataError, match=r"error:.*entities"):
        open_image(tmp_path / "a.tif")


def test_pages_that_no_image_names(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(noise((3, 4, 5)), photometric="minisblack", metadata={"axes": "ZYX"})
    text = tifffile.tiffcomment(path)
    text = text.replace('SizeZ="3"', 'SizeZ="2"').replace('PlaneCount="3"', 'PlaneCount="2"')
    tifffile.tiffcomment(path, text.encode())
    with open_image(path) as source:
        assert source.shape == (1, 2, 4, 5) and "1 of 3 pages belong to no image" in source.warnings[0]


@pytest.mark.parametrize("name", ["fluorescence", "microct", "qupath", "em_cellmap/neubias_celegans_series"])
def test_every_real_tiff_equals_tifffile(shared_data: Path, name: str) -> None:
    for path in sorted((shared_data / name).glob("*.tif*")):
        if path.name.startswith("malformed"):
            continue
        with open_image(path) as source:
            expected = tifffile.imread(path)
            if "c" in source.axes:
                expected = np.moveaxis(expected, source.axes.index("c"), 0)
            data = all_of(source)
            np.testing.assert_array_equal(data, expected.reshape(-1, *data.shape[1:])[: data.shape[0]])


@pytest.mark.parametrize("name", ["jpeg8", "jpeg2k", "jpegxl", "png", "webp", "lerc"])
def test_a_tile_that_declares_more_than_the_page(tmp_path: Path, name: str) -> None:
    """Of 16 x 16 pixels, whose codestream has four million: nothing of it is decoded."""
    path = tmp_path / "a.tif"
    code = {"jpeg8": 7, "jpeg2k": 34712, "jpegxl": 50002, "png": 34933, "webp": 50001, "lerc": 34887}[name]
    samples = 3 if name == "webp" else 1
    options = {"lossless": True} if name in ("webp", "jpegxl") else {}
    data = getattr(imagecodecs, f"{name}_encode")(
        np.zeros((2000, 2100, 3)[: 3 if samples == 3 else 2], "u1"), **options
    )
    tags = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, code), (262, 3, 1, 2 if samples == 3 else 1),
            (273, 4, 1, 256), (277, 3, 1, samples), (278, 4, 1, 16), (279, 4, 1, len(data))]  # fmt: skip
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    path.write_bytes((b"II*\0" + struct.pack("<I", 8) + body).ljust(256, b"\0") + data)
    with open_image(path) as source, pytest.raises(BadDataError, match="declares 2100 x 2000 pixels"):
        source.read(0, ((0, 1), (0, 16), (0, 16)))
