"""Folders: one plane per file against tifffile and Pillow, and OME-TIFFs in several files against tifffile."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from images import all_of, assert_boxes_equal, noise
from voxelmill.errors import BadDataError, InputMissingError, RefusedError, UsageError
from voxelmill.formats import Selection, handles, identify, open_image, slices
from voxelmill.formats.slices import natural_order

LAYOUTS = {
    "uncompressed": {},
    "big-endian": {"byteorder": ">"},
    "strips": {"compression": "zlib", "rowsperstrip": 5},
    "tiles": {"compression": "zstd", "tile": (16, 16)},
    "ome": {"ome": True, "metadata": {"axes": "YX"}},
    "imagej": {"imagej": True},
    "no description": {"metadata": None},
    "bilevel": {"bilevel": True},
}


def write(folder: Path, planes: np.ndarray, name: str = "img_z{}.tif", **options: object) -> Path:
    folder.mkdir(exist_ok=True)
    for z, plane in enumerate(planes):
        options.setdefault("photometric", "minisblack")
        tifffile.imwrite(folder / name.format(z), plane, **options)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_slices_equal_tifffile(tmp_path: Path, layout: str) -> None:
    options = dict(LAYOUTS[layout])
    volume = noise((12, 37, 53), "b1" if options.pop("bilevel", False) else "u2")
    folder = write(tmp_path / "a", volume, **options)
    assert identify(folder) == "a folder of slices"
    with open_image(folder) as source:
        assert (source.axes, source.shape, source.dtype) == ("zyx", (1, *volume.shape), volume.dtype)
        data = all_of(source)
        np.testing.assert_array_equal(data[0], [tifffile.imread(folder / f"img_z{z}.tif") for z in range(12)])
        assert_boxes_equal(source, data)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_slices_in_colour(tmp_path: Path, separate: bool, compression: str | None) -> None:
    shape = (3, 3, 20, 30) if separate else (3, 20, 30, 3)
    volume = noise(shape, "u1")
    folder = write(
        tmp_path / "a", volume, photometric="rgb", planarconfig="separate" if separate else None,
        compression=compression,
    )  # fmt: skip
    with open_image(folder) as source:
        assert (source.rgb, source.shape) == (True, (3, 3, 20, 30))
        data = all_of(source)
        np.testing.assert_array_equal(data, np.moveaxis(volume, 1 if separate else 3, 0))
        assert_boxes_equal(source, data)


@pytest.mark.parametrize(("suffix", "channels"), [("png", 1), ("png", 3), ("jpg", 1), ("jpg", 3)])
def test_pictures(tmp_path: Path, suffix: str, channels: int) -> None:
    volume = noise((3, 20, 30, 3)[: 4 if channels == 3 else 3], "u1")
    for z, plane in enumerate(volume):
        Image.fromarray(plane).save(tmp_path / f"{z}.{suffix}")
    expected = np.stack([np.asarray(Image.open(tmp_path / f"{z}.{suffix}")) for z in range(3)])
    with open_image(tmp_path) as source:
        np.testing.assert_array_equal(all_of(source), np.moveaxis(expected.reshape(3, 20, 30, channels), 3, 0))


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (("z10.tif", "z2.tif", "z1.tif"), (2, 1, 0)),
        (("z003.tif", "z001.tif", "z002.tif"), (1, 2, 0)),
        (("s_1_of_3.tif", "s_2_of_3.tif"), (0, 1)),
        (("a_2_20240102.tif", "a_1_20240101.tif"), (1, 0)),
        (("only.tif",), (0,)),
    ],
)
def test_natural_order(names: tuple[str, ...], order: tuple[int, ...]) -> None:
    files = [Path(name) for name in names]
    found, warnings = natural_order(files, Path("a"))
    assert found == [files[i] for i in order] and not [w for w in warnings if "lost" in w and "z10" not in names[0]]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("z1.tif", "z01.tif"), "same number"),
        (("a_z1.tif", "b_z2.tif"), "more than numbers"),
        (("z1.tif", "z2.tiff"), "more than numbers"),
        (("z1.tif", "z.tif"), "more than numbers"),
        (("c0_z0.tif", "c0_z1.tif", "c1_z0.tif", "c1_z1.tif"), "no number is different"),
        (("1_20.tif", "2_10.tif"), "different orders"),
    ],
)
def test_names_that_say_no_order(names: tuple[str, ...], words: str) -> None:
    with pytest.raises(BadDataError, match=words):
        natural_order([Path(name) for name in names], Path("a"))


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((1, 2, 4, 7), ["between the slices 1 and 7 there is no 3, 5, 6: if"]),
        ((0, 100), ["the numbers of the slices run in steps of 100"]),
        ((0, 2, 4, 8), ["the numbers of the slices run in steps of 2", "no 6: if"]),
        ((0, 1, 10**15), ["and 999999999999990 more"]),
        ((5, 6, 7), []),
    ],
)
def test_gaps_are_told(numbers: tuple[int, ...], words: list[str]) -> None:
    _, warnings = natural_order([Path(f"{n}.tif") for n in numbers], Path("a"))
    assert len(warnings) == len(words)
    assert all(part in text for part, text in zip(words, warnings, strict=True))


def test_what_is_left_out_and_what_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", noise((3, 8, 9)))
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._img_z0.tif"):
        (folder / name).write_bytes(b"x")
    with open_image(folder) as source:
        assert source.shape == (1, 3, 8, 9) and not source.warnings
    (folder / "img_z3.tif").write_text("text")
    with pytest.raises(BadDataError, match="no slice") as caught:
        open_image(folder)
    assert caught.value.file.endswith("img_z3.tif")
    (folder / "img_z3.tif").unlink()
    (folder / "sub").mkdir()
    with pytest.raises(BadDataError, match="'sub', which is no slice"):
        open_image(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputMissingError, match="empty"):
        open_image(tmp_path / "empty")
    for choice in (Selection(series=0), Selection(timepoint=0), Selection(level=0)):
        with pytest.raises(UsageError, match="a folder of slices has none"):
            open_image(write(tmp_path / "b", noise((3, 8, 9))), choice)


@pytest.mark.parametrize(
    ("plane", "options", "words"),
    [
        (noise((8, 10)), {}, r"shape: img_z0\.tif has 8 x 9, img_z2\.tif 8 x 10"),
        (noise((8, 9), "u1"), {}, "type: .* uint16, .* uint8"),
        (noise((8, 9, 3)), {"photometric": "rgb"}, "channels: .* 1, .* 3"),
        (noise((2, 8, 9)), {}, "holds 2 planes"),
        (noise((2, 8, 9)), {"imagej": True, "metadata": {"axes": "ZYX"}}, "holds 2 planes"),
        (noise((2, 8, 9)), {"metadata": None}, "holds 2 planes"),
    ],
)
def test_the_first_slice_that_differs(tmp_path: Path, plane: np.ndarray, options: dict, words: str) -> None:
    folder = write(tmp_path / "a", noise((2, 8, 9)))
    for z in (2, 3):
        tifffile.imwrite(folder / f"img_z{z}.tif", plane, **{"photometric": "minisblack", **options})
    with pytest.raises(BadDataError, match=words) as caught:
        open_image(folder)
    assert caught.value.file.endswith("img_z2.tif")


def test_stacks_in_one_header_are_no_slices(tmp_path: Path) -> None:
    """The page is like the others; that more planes follow it is only said in the description."""
    folder = write(tmp_path / "a", noise((2, 8, 9), "u1"), imagej=True)
    tifffile.imwrite(folder / "img_z2.tif", noise((4, 8, 9), "u1"), imagej=True, metadata={"axes": "ZYX"})
    with pytest.raises(BadDataError, match="holds 4 planes"):
        open_image(folder)


def test_the_same_pixels_stored_in_another_way(tmp_path: Path) -> None:
    volume = noise((4, 37, 53))
    folder = write(tmp_path / "a", volume)
    tifffile.imwrite(folder / "img_z1.tif", volume[1], compression="zlib")
    tifffile.imwrite(folder / "img_z2.tif", volume[2], byteorder=">", bigtiff=True)
    with open_image(folder) as source:
        np.testing.assert_array_equal(all_of(source)[0], volume)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
def test_a_slice_that_is_cut(tmp_path: Path, options: dict) -> None:
    folder = write(tmp_path / "a", noise((3, 32, 32)), **options)
    data = (folder / "img_z1.tif").read_bytes()
    for cut in (len(data) // 2, len(data) - 1, 20, 0):
        (folder / "img_z1.tif").write_bytes(data[:cut])
        with pytest.raises(BadDataError) as caught:
            open_image(folder)
        assert caught.value.file.endswith("img_z1.tif")


def test_spacing_of_slices(tmp_path: Path) -> None:
    sizes = {"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25}
    with open_image(write(tmp_path / "a", noise((3, 8, 9)), ome=True, metadata=sizes)) as source:
        assert source.spacing is None and "not of z" in source.warnings[0]
    with open_image(write(tmp_path / "b", noise((3, 8, 9)), ome=True, metadata=sizes | {"PhysicalSizeZ": 2})) as source:
        assert (source.spacing, source.spacing_origin) == ((2.0, 0.25, 0.5), "OME-XML")
    tifffile.imwrite(tmp_path / "b" / "img_z2.tif", noise((8, 9)), ome=True, metadata=sizes | {"PhysicalSizeZ": 3})
    with open_image(tmp_path / "b") as source:
        assert source.spacing == (2.0, 0.25, 0.5) and "differ in voxel size" in source.warnings[0]


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
def test_few_files_stay_open(tmp_path: Path, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = noise((300, 4, 5))
    folder = write(tmp_path / "a", volume, **options)
    counts: list[int] = []
    real = slices.SlicesSource._trim

    def counted(self: slices.SlicesSource) -> None:
        counts.append(len(os.listdir("/proc/self/fd")))
        real(self)

    monkeypatch.setattr(slices.SlicesSource, "_trim", counted)
    before = len(os.listdir("/proc/self/fd"))
    with open_image(folder) as source:
        np.testing.assert_array_equal(all_of(source)[0], volume)
    assert len(counts) > 30 and max(counts) - before <= 4 * slices.KEPT + handles.MAX_OPEN
    assert len(os.listdir("/proc/self/fd")) == before


def test_real_slices(shared_data: Path) -> None:
    folder = shared_data / "em_cellmap/neubias_celegans_series"
    with open_image(folder) as source:
        data = all_of(source)
        np.testing.assert_array_equal(data[0], tifffile.imread(sorted(folder.glob("*.tif"))))
        assert_boxes_equal(source, data)
        assert (source.spacing, source.warnings) == (None, [])


# OME-TIFFs in several files

PIXELS = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"{uuid}>{only}<Image ID="Image:0"><Pixels '
    'ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="9" SizeY="8" SizeZ="{z}" SizeC="{c}" SizeT="1" '
    'PhysicalSizeX="0.5" PhysicalSizeY="0.5" PhysicalSizeZ="2">{data}</Pixels></Image></OME>'
)
BINARY_ONLY = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><BinaryOnly MetadataFile="{}" UUID="{}"/></OME>'
)


def write_set(folder: Path, volume: np.ndarray, kind: str = "full", **options: object) -> list[str]:
    """One file per channel; the description in all of them, in the first, or in a companion file."""
    folder.mkdir(exist_ok=True)
    order = options.pop("byteorder", "<")
    channels, planes = volume.shape[:2]
    names = [f"a_c{c}.ome.tif" for c in range(channels)]
    data = "".join(
        f'<TiffData FirstC="{c}" FirstZ="{z}" FirstT="0" IFD="{z}" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{c}'
        "</UUID></TiffData>"
        for c, name in enumerate(names)
        for z in range(planes)
    )
    for c, name in enumerate(names):
        text = PIXELS.format(uuid=f' UUID="urn:uuid:{c}"', only="", z=planes, c=channels, data=data)
        if kind == "companion" or (kind == "master" and c > 0):
            text = BINARY_ONLY.format("a.companion.ome" if kind == "companion" else names[0], "urn:uuid:master")
        with tifffile.TiffWriter(folder / name, byteorder=order) as writer:
            for z in range(planes):
                description = text if z == 0 else None
                plane = volume[c, z]
                writer.write(plane, description=description, metadata=None, photometric="minisblack", **options)
    if kind == "companion":
        text = PIXELS.format(uuid=' UUID="urn:uuid:companion"', only="", z=planes, c=channels, data=data)
        (folder / "a.companion.ome").write_text(text)
    return names


def test_files_of_a_set_go_by_their_names(tmp_path: Path) -> None:
    """Of two files with one identifier a reader that goes by identifiers takes the first for both."""
    volume = noise((3, 5, 8, 9))
    for name in write_set(tmp_path, volume):
        text = tifffile.tiffcomment(tmp_path / name)
        tifffile.tiffcomment(tmp_path / name, text.replace("urn:uuid:2<", "urn:uuid:1<").encode())
    with open_image(tmp_path) as source:
        np.testing.assert_array_equal(all_of(source), volume)


@pytest.mark.parametrize("kind", ["full", "master", "companion"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "rowsperstrip": 3}, {"byteorder": ">"}])
def test_sets_equal_tifffile(tmp_path: Path, kind: str, options: dict) -> None:
    volume = noise((2, 5, 8, 9))
    names = write_set(tmp_path / "a", volume, kind, **options)
    if kind != "companion":  # of which tifffile reads one file
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "a" / names[0]), volume)
    with open_image(tmp_path / "a") as source:
        assert (source.axes, source.shape, source.spacing) == ("czyx", (2, 5, 8, 9), (2.0, 0.5, 0.5))
        data = all_of(source)
        np.testing.assert_array_equal(data, volume)
        assert_boxes_equal(source, data)


def test_a_set_that_is_not_whole(tmp_path: Path) -> None:
    names = write_set(tmp_path / "a", noise((3, 5, 8, 9)))
    with pytest.raises(BadDataError, match="set of 3 files") as caught:
        open_image(tmp_path / "a" / names[0])
    assert "name the folder" in str(caught.value)
    (tmp_path / "a" / "notes.txt").write_text("text")
    with pytest.raises(BadDataError, match=r"besides, notes\.txt"):
        open_image(tmp_path / "a")
    (tmp_path / "a" / "notes.txt").unlink()
    (tmp_path / "a" / names[1]).unlink()
    with pytest.raises(InputMissingError, match=names[1]):
        open_image(tmp_path / "a")
    with pytest.raises(InputMissingError, match=names[1]):
        open_image(tmp_path / "a" / names[0])


@pytest.mark.parametrize("cut", [0.2, 0.6, 0.99])
def test_a_set_with_a_cut_file(tmp_path: Path, cut: float) -> None:
    names = write_set(tmp_path / "a", noise((2, 5, 8, 9)))
    path = tmp_path / "a" / names[1]
    path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    with pytest.raises(BadDataError) as caught:
        open_image(tmp_path / "a")
    assert caught.value.file.endswith(names[1])


def test_a_set_whose_pages_differ(tmp_path: Path) -> None:
    names = write_set(tmp_path / "a", noise((2, 5, 8, 9)))
    other = tmp_path / "other"
    write_set(other, noise((2, 5, 8, 9)), compression="zlib")
    os.replace(other / names[1], tmp_path / "a" / names[1])
    with pytest.raises(BadDataError, match="stored in another way") as caught:
        open_image(tmp_path / "a")
    assert caught.value.file.endswith(names[1])


@pytest.mark.parametrize("outside", ["../secret.tif", "/etc/secret.tif", "C:\\secret.tif", "sub/secret.tif", ".."])
@pytest.mark.parametrize("kind", ["full", "companion", "metadata"])
def test_no_file_outside_the_folder_is_opened(
    tmp_path: Path, kind: str, outside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = noise((2, 5, 8, 9))
    tifffile.imwrite(tmp_path / "secret.tif", volume[0], photometric="minisblack")
    names = write_set(tmp_path / "a", volume, "full" if kind == "full" else "companion")
    if kind == "companion":
        text = (tmp_path / "a" / "a.companion.ome").read_text()
        (tmp_path / "a" / "a.companion.ome").write_text(text.replace(names[1], outside))
    else:
        path = tmp_path / "a" / names[0]
        text = tifffile.tiffcomment(path)
        tifffile.tiffcomment(path, text.replace(names[1] if kind == "full" else "a.companion.ome", outside).encode())
    opened: list[str] = []
    real = tifffile.TiffFile.__init__
    monkeypatch.setattr(
        tifffile.TiffFile, "__init__", lambda self, file, **kw: opened.append(str(file)) or real(self, file, **kw)
    )
    with pytest.raises(RefusedError, match="outside the image's folder"):
        open_image(tmp_path / "a")
    assert opened and not any("secret" in file for file in opened)


def test_time_points_and_series_of_a_set(tmp_path: Path) -> None:
    volume = noise((2, 5, 8, 9))
    names = write_set(tmp_path / "a", volume)
    for name in names:
        path = tmp_path / "a" / name
        text = tifffile.tiffcomment(path).replace('SizeC="2" SizeT="1"', 'SizeC="1" SizeT="2"')
        text = text.replace('FirstT="0"', 'FirstT="x"').replace("FirstC", "FirstT", 99).replace('FirstT="x"', "")
        tifffile.tiffcomment(path, text.encode())
    with pytest.raises(BadDataError, match="2 time points"):
        open_image(tmp_path / "a")
    for time in (0, 1):
        with open_image(tmp_path / "a", Selection(timepoint=time)) as source:
            np.testing.assert_array_equal(all_of(source)[0], volume[time])
