"""Readers against tifffile, nibabel, SimpleITK and zarr, on generated files of every layout and on real ones."""

from __future__ import annotations

import gzip
import itertools
import json
import resource
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import tifffile
import zarr

from images import all_of, assert_boxes_equal, noise
from voxelmill.errors import BadDataError, RefusedError, UsageError
from voxelmill.formats import Selection, open_image, streams
from voxelmill.formats.spacing import checked, micrometres_per
from voxelmill.formats.streams import InflateReader

PIPELINES = ("zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs.ZarrsCodecPipeline")
BIN = Path(__file__).parents[2] / "bin"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"])
def test_every_type_in_both_byte_orders(tmp_path: Path, dtype: str, order: str) -> None:
    volume = noise((3, 9, 11), dtype)
    tifffile.imwrite(tmp_path / "a.tif", volume, byteorder=order, photometric="minisblack")
    with open_image(tmp_path / "a.tif") as source:
        np.testing.assert_array_equal(all_of(source)[0], volume)
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
            np.testing.assert_array_equal(all_of(source)[0], volume)
            assert source.dtype == volume.dtype and not source.missing_chunks()
            assert (source.in_place is not None) == (stored.isnative and memory == "C")
    if dtype not in ("b1", "f2"):
        header = nib.Nifti1Header(endianness=order)
        header.set_data_dtype(dtype)
        image = nib.Nifti1Image(volume.T, np.eye(4), header)
        nib.save(image, tmp_path / "a.nii")
        with open_image(tmp_path / "a.nii") as source:
            np.testing.assert_array_equal(all_of(source)[0], volume)
            assert source.dtype == volume.dtype


def test_axes_given_by_the_user(tmp_path: Path) -> None:
    volume = noise((2, 5, 20, 30))
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, volume, photometric="minisblack")
    with pytest.raises(BadDataError, match=r"error:.*axes are"):
        open_image(path)
    with open_image(path, Selection(axes="czyx")) as source:
        np.testing.assert_array_equal(all_of(source), volume)
    with open_image(path, Selection(axes="ZCYX")) as source:
        np.testing.assert_array_equal(all_of(source), np.moveaxis(volume, 1, 0))
    for wrong in ("zyx", "czyy", "qzyx", "cyxz"):
        with pytest.raises(BadDataError, match=r"error:.*axes are"):
            open_image(path, Selection(axes=wrong))
    with pytest.raises(BadDataError, match="TZYX, 2 time points"):
        open_image(path, Selection(axes="tzyx"))
    with open_image(path, Selection(axes="tzyx", timepoint=1)) as source:
        np.testing.assert_array_equal(all_of(source), volume[1:])
    nib.save(nib.Nifti1Image(volume.T, np.eye(4)), tmp_path / "a.nii.gz")
    with open_image(tmp_path / "a.nii.gz", Selection(axes="czyx")) as source:
        np.testing.assert_array_equal(all_of(source), volume)
    zarr.create_array(tmp_path / "a.zarr", data=volume)
    with open_image(tmp_path / "a.zarr", Selection(axes="zcyx")) as source:
        np.testing.assert_array_equal(all_of(source), np.moveaxis(volume, 1, 0))


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
        data = all_of(source)
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


@pytest.mark.parametrize(("side", "origin"), [(1, (-7e3, 6e3, 5e3)), (-1, (0.0, 0.0, 0.0))])
def test_the_first_voxel_of_a_nifti(tmp_path: Path, side: int, origin: tuple[float, ...]) -> None:
    """Of an image whose axes run to the left there is no position along x; the affine has it all."""
    affine = np.diag([side, 2.0, 3.0, 1.0])
    affine[:3, 3] = 5, 6, -7
    image = nib.Nifti1Image(noise((4, 5, 6), "u1"), affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "a.nii")
    with open_image(tmp_path / "a.nii") as source:
        assert source.origin == origin
        np.testing.assert_array_equal(source.affine, affine)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((7, 6, 5, 4), "tzyx"), ((7, 6, 5, 4, 3), "ctzyx"), ((7, 6, 5, 1, 3), "czyx"), ((7, 6, 5, 1, 1), "zyx"),
     ((7, 6, 1, 4), "tzyx"), ((7, 6), "zyx"), ((7, 6, 5, 4, 1, 1, 1), "tzyx")],
)  # fmt: skip
def test_time_points_of_nifti(tmp_path: Path, name: str, shape: tuple[int, ...], axes: str) -> None:
    volume = noise(shape, "i2")
    image = nib.Nifti1Image(volume, np.eye(4))
    image.header.set_slope_inter(2.0, 1.0)
    nib.save(image, tmp_path / name)
    reference = np.asanyarray(nib.load(tmp_path / name).dataobj)
    reference = reference.reshape(shape + (1,) * (5 - len(shape)) if len(shape) < 6 else shape[:5])
    times = reference.shape[3]
    if times > 1:
        with pytest.raises(BadDataError, match=f"{times} time points(.|\n)*0 to {times - 1}"):
            open_image(tmp_path / name)
    for time in reversed(range(times)):
        with open_image(tmp_path / name, Selection(timepoint=time)) as source:
            expected = np.moveaxis(reference[:, :, :, time], 3, 0).transpose(0, 3, 2, 1)
            assert (source.axes, source.timepoint) == (axes, time)
            np.testing.assert_array_equal(all_of(source), expected)
            assert_boxes_equal(source, expected)
    with pytest.raises(BadDataError, match="no time point"):
        open_image(tmp_path / name, Selection(timepoint=times))


def test_axes_beyond_five_and_pairs_of_nifti_are_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(noise((3, 4, 5, 1, 1, 2)), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(BadDataError, match="axes are"):
        open_image(tmp_path / "a.nii")
    nib.save(nib.Nifti1Pair(noise((3, 4, 5)), np.eye(4)), tmp_path / "a.img")
    with pytest.raises(BadDataError, match="pair"):
        open_image(tmp_path / "a.hdr")


def test_compressed_nifti_is_read_once_and_its_checksum_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = np.random.default_rng(0).integers(0, 2**15, (40, 64, 64)).astype("i2")
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(volume.T, np.eye(4)), path)
    decoded = []
    real = InflateReader._decode
    monkeypatch.setattr(InflateReader, "_decode", lambda self, limit: decoded.append(data := real(self, limit)) or data)
    monkeypatch.setattr(streams, "SPAN", 2 * 64 * 64)
    monkeypatch.setattr(streams, "STATES", 16)
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
        np.testing.assert_array_equal(all_of(source)[0], volume)
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
        np.testing.assert_array_equal(all_of(source)[0], volume)
        assert_boxes_equal(source, volume[None])
        assert not source.missing_chunks()


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
        data = all_of(source)
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
        missing = source.missing_chunks()
        assert (len(missing), list(missing), missing[0], missing[-1:]) == (2, list(keys), keys[0], [keys[1]])


def test_zarr_that_declares_an_exabyte_costs_nothing(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=(2**20, 2**20, 2**20), dtype="u2", chunks=(64, 64, 64))
    array[:64, :64, :64] = 1
    with open_image(tmp_path / "a.zarr") as source:
        missing = source.missing_chunks()
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


# Damage


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
        data = all_of(source)
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


def test_real_nifti_with_time_points(shared_data: Path) -> None:
    path = shared_data / "mri/example_nifti2.nii.gz"
    with pytest.raises(BadDataError, match=r"error:.*TZYX"):
        open_image(path)
    reference = np.asanyarray(nib.load(path).dataobj)
    for time in range(reference.shape[3]):
        with open_image(path, Selection(timepoint=time)) as source:
            np.testing.assert_array_equal(all_of(source)[0], reference[..., time].T)
