"""The Zarr reader against zarr, ome-zarr-models and ome-zarr-py: levels, series, groups, damaged metadata."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models
import pytest
import zarr

from images import all_of, assert_boxes_equal, noise
from voxelmill.errors import BadDataError, InputMissingError, RefusedError, UsageError
from voxelmill.formats import Selection, open_image

STORE = "em_cellmap/flyem_medulla-a/flyem_medulla-a.zarr"


def write_levels(path: Path, volume: np.ndarray, axes: str = "zyx", **more: Any) -> list[np.ndarray]:
    """An NGFF image with three levels, as the specification says; what they hold."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    levels = [volume[..., :: 2**n, :: 2**n] for n in range(3)]
    kinds = {"t": "time", "c": "channel"}
    described = [
        {"name": a, "type": kinds.get(a, "space")} | ({"unit": "nanometer"} if a in "zyx" else {}) for a in axes
    ]
    datasets = []
    for number, level in enumerate(levels):
        group.create_array(f"s{number}", data=level, chunks=(4,) * volume.ndim)
        scale = [1.0] * (volume.ndim - 2) + [2.0**number] * 2
        shift = [0.0] * (volume.ndim - 2) + [(2.0**number - 1) / 2] * 2
        transforms = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
        datasets.append({"path": f"s{number}", "coordinateTransformations": transforms})
    group.attrs["multiscales"] = [{"version": "0.4", "name": "a", "axes": described, "datasets": datasets, **more}]
    return levels


def described(path: Path) -> Any:
    """The first image's description as ome-zarr-models reads and checks it."""
    image = ome_zarr_models.open_ome_zarr(zarr.open_group(path, mode="r"))
    return image.ome_attributes.multiscales[0] if hasattr(image, "ome_attributes") else image.attributes.multiscales[0]


AXES = [("zyx", (5, 17, 19)), ("czyx", (2, 5, 17, 19)), ("tczyx", (3, 2, 5, 17, 19))]


@pytest.mark.parametrize(("axes", "shape"), AXES)
def test_every_level(tmp_path: Path, axes: str, shape: tuple[int, ...]) -> None:
    levels = write_levels(tmp_path / "a.zarr", noise(shape), axes)
    time = 2 if "t" in axes else None
    reference = described(tmp_path / "a.zarr")
    for number, (level, dataset) in enumerate(zip(levels, reference.datasets, strict=True)):
        with open_image(tmp_path / "a.zarr", Selection(level=number, timepoint=time)) as source:
            expected = (level[2] if "t" in axes else level).reshape(source.shape)
            np.testing.assert_array_equal(all_of(source), expected)
            assert_boxes_equal(source, expected)
            scale, shift = dataset.coordinateTransformations
            assert source.spacing == pytest.approx([value / 1e3 for value in scale.scale[-3:]])
            assert source.origin == pytest.approx([value / 1e3 for value in shift.translation[-3:]])
            assert source.in_place.path == dataset.path
    with pytest.raises(UsageError, match="3 levels"):
        open_image(tmp_path / "a.zarr", Selection(level=3, timepoint=time))
    if "t" in axes:
        with pytest.raises(BadDataError, match="3 time points"):
            open_image(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("labels", "names"),
    [(["a", "b"], ("a", "b")), (["a"], ()), (["a", ""], ()), (["a", 3], ()), (["a", "b", "c"], ()), ([], ())],
)
def test_channels_have_names_where_each_has_one(tmp_path: Path, labels: list, names: tuple[str, ...]) -> None:
    path = tmp_path / "a.zarr"
    write_levels(path, noise((2, 8, 8, 8)), "czyx")
    change(path, lambda ome: ome.update(omero={"channels": [{"label": label} for label in labels]}))
    with open_image(path) as source:
        assert source.channel_names == names


@pytest.mark.parametrize(
    ("own", "common", "spacing", "origin"),
    [
        ([("scale", 2.0), ("translation", 10.0)], [("scale", 3.0)], 6.0, 30.0),
        ([("scale", 2.0)], [("translation", 10.0)], 2.0, 10.0),
        ([("translation", 10.0), ("scale", 2.0)], [], 2.0, 20.0),
        ([("scale", 2.0), ("translation", 10.0)], [("scale", 3.0), ("translation", 1.0)], 6.0, 31.0),
        ([("identity", 0.0), ("scale", 2.0)], [], 2.0, 0.0),
    ],
)
def test_transformations_follow_each_other(
    tmp_path: Path, own: list, common: list, spacing: float, origin: float
) -> None:
    def listed(steps: list) -> list[dict[str, Any]]:
        return [{"type": kind, kind: [value] * 3} for kind, value in steps]

    path = tmp_path / "a.zarr"
    write_levels(path, noise((3, 4, 5)), coordinateTransformations=listed(common))
    change(path, lambda meta: meta["multiscales"][0]["datasets"][0].update(coordinateTransformations=listed(own)))
    with open_image(path) as source:
        assert source.spacing == pytest.approx((spacing / 1e3,) * 3)
        assert source.origin == pytest.approx((origin / 1e3,) * 3)


def change(path: Path, edit: Any) -> None:
    meta = json.loads((path / ".zattrs").read_text())
    edit(meta)
    (path / ".zattrs").write_text(json.dumps(meta))


def steps(multiscale: dict) -> list[dict]:
    return multiscale["datasets"][0]["coordinateTransformations"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: steps(m).append({"type": "affine", "affine": []}),
        lambda m: steps(m).append({"type": "scale", "path": "x"}),
        lambda m: steps(m).append({"type": "translation", "translation": [1e999] * 3}),
        lambda m: steps(m).append({"type": "scale", "scale": ["a", 1, 1]}),
        lambda m: steps(m).append({"type": "scale", "scale": [0, 1, 1]}),
        lambda m: steps(m).append({"type": "scale", "scale": [1, 1]}),
        lambda m: m.update(datasets=[]),
        lambda m: m.update(datasets=[{"path": "nowhere"}]),
        lambda m: m.update(datasets={"path": "s0"}),
        lambda m: m.update(axes=["z", "y"]),
        lambda m: m.update(axes=[{"name": "q"}, {"name": "y"}, {"name": "x"}]),
        lambda m: m.update(axes=7),
    ],
)  # fmt: skip
def test_damaged_ngff_is_told(tmp_path: Path, edit: Any) -> None:
    write_levels(tmp_path / "a.zarr", noise((3, 4, 5)))
    change(tmp_path / "a.zarr", lambda meta: edit(meta["multiscales"][0]))
    with pytest.raises((BadDataError, UsageError, InputMissingError)):
        open_image(tmp_path / "a.zarr")


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    "field",
    [
        ("shape", "abc"), ("shape", [-1, 4, 5]), ("shape", None), ("shape", [3, 4]), ("chunks", [0, 2, 2]),
        ("chunks", [2, 2]), ("dtype", {"a": 1}), ("dtype", "<M8"), ("codec", {"id": 7, "name": 7}), ("codec", "x"),
        ("shape", [2**70, 4, 5]), ("chunks", [2**40, 2**20, 2]), ("shape", [[1], 4, 5]),
    ],
)  # fmt: skip
def test_damaged_array_metadata_are_told(tmp_path: Path, version: int, field: tuple) -> None:
    path = tmp_path / "a.zarr"
    zarr.create_array(path, data=noise((3, 4, 5)), chunks=(2, 2, 2), zarr_format=version)
    file = path / (".zarray" if version == 2 else "zarr.json")
    meta = json.loads(file.read_text())
    key, value = field
    if version == 2:
        meta["compressor" if key == "codec" else key] = value
    elif key == "chunks":
        meta["chunk_grid"]["configuration"]["chunk_shape"] = value
    elif key == "codec":
        meta["codecs"].append(value)
    else:
        meta["data_type" if key == "dtype" else key] = value
    file.write_text(json.dumps(meta))
    with pytest.raises((BadDataError, RefusedError)), open_image(path) as source:
        all_of(source)


def test_axes_of_the_user_that_do_not_fit_ngff(tmp_path: Path) -> None:
    write_levels(tmp_path / "a.zarr", noise((3, 4, 5)))
    for axes in ("yx", "czyx", "zyy"):
        with pytest.raises(BadDataError, match="axes are"):
            open_image(tmp_path / "a.zarr", Selection(axes=axes))
    with open_image(tmp_path / "a.zarr", Selection(axes="cyx")) as source:
        assert source.shape == (3, 1, 4, 5)


def test_series_of_several_images(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    zarr.open_group(path, mode="w", zarr_format=2).attrs["bioformats2raw.layout"] = 3
    volumes = [noise((3, 4, 5 + n)) for n in range(3)]
    write_levels(path / "0", volumes[0])
    with open_image(path) as source:
        assert source.shape == (1, 3, 4, 5) and source.in_place.path == "0/s0"
    for number in (1, 2):
        write_levels(path / str(number), volumes[number])
    with pytest.raises(BadDataError, match=r"3 images(.|\n)*--series"):
        open_image(path)
    with pytest.raises(BadDataError, match="no series 3"):
        open_image(path, Selection(series=3))
    for listed in (False, True):
        if listed:
            zarr.open_group(path / "OME", mode="w", zarr_format=2).attrs["series"] = ["2", "1", "0"]
        for number in range(3):
            with open_image(path, Selection(series=number)) as source:
                np.testing.assert_array_equal(all_of(source)[0], volumes[2 - number if listed else number])
                assert not source.missing_chunks()
    change(path / "OME", lambda meta: meta.update(series=["../../x"]))
    with pytest.raises(RefusedError, match="outside"):
        open_image(path)
    with pytest.raises(UsageError, match="series 1"):
        open_image(path / "0", Selection(series=1))


def test_groups_name_what_is_inside(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    zarr.open_group(path, mode="w", zarr_format=2).attrs["plate"] = {"wells": [{"path": "A/1"}]}
    for name in ("A/1/0", "A/1/1", "B/1/0"):
        write_levels(path / name, noise((3, 4, 5)))
    with pytest.raises(BadDataError, match=r"HCS plate(.|\n)*A/1/0, A/1/1, B/1/0"):
        open_image(path)
    empty = tmp_path / "b.zarr"
    zarr.open_group(empty, mode="w")
    with pytest.raises(BadDataError, match="no image is inside"):
        open_image(empty)
    os.symlink("/", empty / "root")
    with pytest.raises(BadDataError, match="no image is inside"):
        open_image(empty)


def test_class_names_are_read(tmp_path: Path) -> None:
    write_levels(tmp_path / "a.zarr", noise((3, 4, 5), "u1"))

    def names(properties: Any) -> dict[int, str]:
        change(tmp_path / "a.zarr", lambda meta: meta.update({"image-label": {"properties": properties}}))
        with open_image(tmp_path / "a.zarr") as source:
            return source.label_names

    assert names([{"label-value": 1, "class": "axon"}, {"label-value": 7, "class": " cell body "}]) == {
        1: "axon", 7: "cell body"
    }  # fmt: skip
    assert names([{"label-value": 1, "area": 3}, {"label-value": "2", "class": "a"}, 5]) == {}
    for bad in ([{"label-value": n, "class": "same"} for n in (1, 2)], [{"label-value": 1, "class": "a\nb"}], "x", {}):
        assert names(bad) == {}


@pytest.mark.parametrize("codec", [{"endian": "big"}, {"order": "F"}])
def test_byte_and_axis_order_of_zarr_3(tmp_path: Path, codec: dict) -> None:
    volume = noise((5, 6, 7))
    serializer = zarr.codecs.BytesCodec(endian=codec.get("endian", "little"))
    filters = [zarr.codecs.TransposeCodec(order=(2, 1, 0))] if codec.get("order") == "F" else None
    with zarr.config.set({"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"}):
        zarr.create_array(tmp_path / "a.zarr", data=volume, chunks=(2, 4, 4), serializer=serializer, filters=filters)
    with (
        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}),
        open_image(tmp_path / "a.zarr") as source,
    ):
        np.testing.assert_array_equal(all_of(source)[0], volume)
        assert_boxes_equal(source, volume[None])


# Real files


@pytest.mark.parametrize("name", ["image-03.zarr", "image-04.zarr", "v05_zyx_bool.zarr"])
def test_levels_of_real_images(shared_data: Path, name: str) -> None:
    path = shared_data / "em_cellmap" / name
    for number, dataset in enumerate(described(path).datasets):
        with open_image(path, Selection(level=number)) as source:
            np.testing.assert_array_equal(all_of(source)[0], zarr.open_array(str(path / dataset.path), mode="r")[:])
            assert source.spacing == pytest.approx(dataset.coordinateTransformations[0].scale)


def test_levels_of_the_cellmap_store(shared_data: Path) -> None:
    base = shared_data / STORE / "recon-1"
    crops = [p for p in (base / "labels/groundtruth").glob("crop*/*") if p.is_dir()]
    assert len(crops) == 6
    for path in (base / "em/fibsem-uint8", *crops):
        for number, dataset in enumerate(described(path).datasets):
            with open_image(path, Selection(level=number)) as source:
                np.testing.assert_array_equal(all_of(source)[0], zarr.open_array(str(path / dataset.path), mode="r")[:])
                scale, shift = dataset.coordinateTransformations
                assert source.spacing == pytest.approx([value / 1e3 for value in scale.scale])
                assert source.origin == pytest.approx([value / 1e3 for value in shift.translation])
    with open_image(base / "labels/groundtruth/crop3/cell") as source:
        assert source.origin == pytest.approx((0.1975, 1.3975, 0.1975)) and source.spacing == pytest.approx((5e-3,) * 3)


@pytest.mark.parametrize(
    ("inside", "named"),
    [
        ("", "recon-1/em/fibsem-uint8, "), ("recon-1", "em/fibsem-uint8, labels/groundtruth/crop1/cell, "),
        ("recon-1/labels/groundtruth/crop3", "there are: cell, pm"), ("recon-1/em", "there are: fibsem-uint8"),
    ],
)  # fmt: skip
def test_groups_of_the_cellmap_store_name_what_is_inside(shared_data: Path, inside: str, named: str) -> None:
    with pytest.raises(BadDataError, match="group") as caught:
        open_image(shared_data / STORE / inside)
    assert named in str(caught.value)
