"""OME-Zarr 0.1 to 0.5 and plain Zarr arrays of format 2 and 3, read in place.

A chunk that is not there reads as zeros without a word, so the grid is compared with the files. Codecs are taken from
a list: one of them would run code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import zarr

from voxelmill.errors import BadDataError, InputMissingError, RefusedError, UsageError
from voxelmill.formats.base import (
    ImageSource,
    InPlace,
    Selection,
    accepted_dtype,
    bad_axes,
    check_axes,
    shape_czyx,
    unreadable,
)
from voxelmill.formats.chunks import MissingChunks
from voxelmill.formats.spacing import Spacing, Triple, from_lengths, micrometres_per
from voxelmill.image import Box

MAX_METADATA = 64 << 20
MAX_CHUNK = 2 << 30

CODECS_2 = {
    "blosc", "zlib", "gzip", "zstd", "lz4", "bz2", "lzma", "delta", "shuffle", "bitround", "crc32", "crc32c", "adler32",
    "fletcher32", "packbits", "fixedscaleoffset", "quantize", "astype",
}  # fmt: skip
CODECS_3 = {"bytes", "transpose", "blosc", "gzip", "zstd", "crc32c", "sharding_indexed"}

PYTHON_PIPELINE = "zarr.core.codec_pipeline.BatchedCodecPipeline"
"""zarrs, which is faster, reads neither foreign byte order nor chunks in Fortran order; such an image is copied."""

METADATA_FILES = ("zarr.json", ".zarray", ".zgroup", ".zattrs")


@dataclass(kw_only=True)
class ZarrSource(ImageSource):
    """A volume in a Zarr folder; see :class:`ImageSource`."""

    inside: str = field(repr=False)
    array: zarr.Array = field(repr=False)
    metadata: dict[str, Any] = field(repr=False)

    def _read(self, channel: int, box: Box) -> np.ndarray:
        at = {"c": slice(channel, channel + 1), "t": slice(self.timepoint, self.timepoint + 1)}
        at |= {axis: slice(*pair) for axis, pair in zip("zyx", box, strict=True)}
        data = np.asarray(self.array[tuple(at[axis] for axis in self.axes)])
        order = [i for i, axis in enumerate(self.axes) if axis not in "zyx"]
        order += [self.axes.index(axis) for axis in "zyx" if axis in self.axes]
        shape = [stop - start for start, stop in box]
        return data.transpose(order).reshape(shape).astype(self.dtype, copy=False)

    def missing_chunks(self) -> MissingChunks:
        """Chunk (or shard) files that the grid of the array has and the folder has not.

        A writer may leave out chunks that are all fill value, so these count as missing too: nobody can tell. The work
        is bounded by the files that are there, whatever shape the metadata declare.
        """
        files, _ = chunk_shapes(self.metadata)
        grid = [-(-length // size) for length, size in zip(self.metadata["shape"], files, strict=True)]
        prefix, separator = key_encoding(self.metadata)
        present = frozenset(chunk_files(self.path / self.inside, prefix, separator, grid))
        return MissingChunks(tuple(grid), present, prefix, separator)


def open_ome_zarr(path: Path, selection: Selection) -> ZarrSource:
    """Open an image in a Zarr folder: an NGFF image, or an array without metadata.

    Parameters
    ----------
    path : Path
        Folder of the image or of the array.
    selection : Selection
        ``axes``, ``timepoint``, and of an NGFF image the ``level``, the finest without it.

    Raises
    ------
    BadDataError
        Where the metadata are damaged or not those of one image.
    RefusedError
        Where a codec is not on the list or an array lies outside the folder.
    """
    metadata = read_metadata(path)
    if is_array(metadata):
        return _open_plain(path, metadata, selection)
    attributes = metadata.get("attributes") or {}
    ngff = attributes.get("ome", attributes)
    prefix = ""
    if "bioformats2raw.layout" in ngff and "multiscales" not in ngff:
        if (path / "1").is_dir():
            raise BadDataError(
                "the folder holds several images", file=path, remedy=f"name one of them, such as {path.name}/0"
            )
        prefix = "0/"
        attributes = read_metadata(path / "0").get("attributes") or {}
        ngff = attributes.get("ome", attributes)
    multiscales = ngff.get("multiscales")
    if not isinstance(multiscales, list) or not multiscales:
        what = "an HCS plate" if "plate" in ngff else "a Zarr group without an image"
        raise BadDataError(
            f"the folder is {what}",
            file=path,
            expected="an NGFF image (multiscales) or a Zarr array",
            remedy=f"name the image or the array inside it; there are: {', '.join(_members(path)[:8]) or 'none'}",
        )
    try:
        return _open_multiscale(path, prefix, multiscales[0], ngff, selection)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadDataError(f"the NGFF metadata are damaged: {error!r}", file=path) from error


def _open_plain(path: Path, metadata: dict[str, Any], selection: Selection) -> ZarrSource:
    if selection.level:
        raise UsageError(f"level {selection.level} of an array that has no other resolutions", file=path)
    axes = selection.axes
    shape = tuple(metadata["shape"])
    named = metadata.get("dimension_names") or (metadata.get("attributes") or {}).get("_ARRAY_DIMENSIONS")
    names = axes.lower() if axes else ""
    if not names and named and all(isinstance(name, str) for name in named):
        names = "".join(named).lower() if all(len(name) == 1 for name in named) else ""
    if not names:
        names = {2: "yx", 3: "zyx"}.get(len(shape), "")
    kind = f"Zarr {metadata['zarr_format']}"
    return _source(path, "", names, metadata, kind, Spacing(), (0.0, 0.0, 0.0), selection.timepoint, ())


def _open_multiscale(path: Path, prefix: str, multiscale: dict, ngff: dict, selection: Selection) -> ZarrSource:
    axes, level = selection.axes, selection.level or 0
    datasets = multiscale["datasets"]
    if not 0 <= level < len(datasets):
        raise UsageError(f"level {level} of an image with {len(datasets)} levels", file=path)
    inside = prefix + check_inside(datasets[level]["path"], path)
    metadata = read_metadata(path / inside)
    if not is_array(metadata):
        raise BadDataError(f"{inside} is no Zarr array", file=path)
    described = [a if isinstance(a, dict) else {"name": a} for a in multiscale.get("axes") or list("tczyx")]
    names = axes.lower() if axes else "".join(_letter(axis) for axis in described)
    if len(described) != len(metadata["shape"]):
        raise bad_axes(path, names, tuple(metadata["shape"]))
    transforms = [
        *(datasets[level].get("coordinateTransformations") or []),
        *(multiscale.get("coordinateTransformations") or []),
    ]
    scale, shift = [1.0] * len(described), [0.0] * len(described)
    for transform in transforms:
        if transform["type"] == "scale":
            factors = [float(value) for value in transform["scale"]]
            scale = [a * b for a, b in zip(scale, factors, strict=True)]
            shift = [a * b for a, b in zip(shift, factors, strict=True)]
        elif transform["type"] == "translation":
            shift = [a + float(b) for a, b in zip(shift, transform["translation"], strict=True)]
    scaled = any(transform["type"] == "scale" for transform in transforms)
    spacing, origin = read_spacing(names, described, scale if scaled else None, shift, metadata, path)
    version = str(ngff.get("version") or multiscale.get("version") or "")
    channels = [channel.get("label", "") for channel in (ngff.get("omero") or {}).get("channels", [])]
    channel_names = tuple(channels) if channels and all(channels) else ()
    kind = f"OME-Zarr {version}".strip()
    return _source(path, inside, names, metadata, kind, spacing, origin, selection.timepoint, channel_names)


def _source(
    path: Path,
    inside: str,
    names: str,
    metadata: dict[str, Any],
    kind: str,
    spacing: Spacing,
    origin: Triple,
    timepoint: int | None,
    channel_names: tuple[str, ...],
) -> ZarrSource:
    shape = tuple(int(length) for length in metadata["shape"])
    time = check_axes(path, names, shape, timepoint)
    dtype = accepted_dtype(array_dtype(metadata, path), path)
    check_codecs(metadata, path)
    files, decoded = chunk_shapes(metadata)
    if prod(decoded) * dtype.itemsize > MAX_CHUNK:
        raise BadDataError(
            f"the chunks of {' x '.join(map(str, decoded))} voxels have to be decoded whole",
            file=path,
            expected=f"chunks of at most {MAX_CHUNK} bytes",
        )
    native = array_dtype(metadata, path).isnative and metadata.get("order", "C") == "C"
    try:
        with zarr.config.set({} if native else {"codec_pipeline.path": PYTHON_PIPELINE}):
            array = zarr.open_array(str(path / inside), mode="r")
    except Exception as error:
        raise unreadable(path, error) from error
    return ZarrSource(
        path=path,
        format=kind,
        shape=shape_czyx(names, shape),
        dtype=dtype,
        spacing=spacing.value,
        spacing_origin=spacing.origin,
        in_place=InPlace(inside, names, time) if native else None,
        warnings=list(spacing.warnings),
        axes=names,
        origin=origin,
        channel_names=channel_names,
        chunk=shape_czyx(names, files)[1:],
        timepoint=time,
        inside=inside,
        array=array,
        metadata=metadata,
    )


def _letter(axis: dict[str, Any]) -> str:
    kind = axis.get("type")
    if kind in ("channel", "time"):
        return kind[0]
    name = str(axis["name"]).lower()
    return name if len(name) == 1 else "?"


def read_spacing(
    names: str,
    described: list[dict[str, Any]],
    scale: list[float] | None,
    shift: list[float],
    metadata: dict[str, Any],
    path: Path,
) -> tuple[Spacing, Triple]:
    """Spacing and position of the first voxel (micrometres) from NGFF axes and transformations."""
    if scale is None:
        return Spacing(), (0.0, 0.0, 0.0)
    units = {name: axis.get("unit") for name, axis in zip(names, described, strict=True) if name in "zyx"}
    planes = shape_czyx(names, tuple(metadata["shape"]))[1]
    if not any(units.values()):
        return Spacing(warnings=("the NGFF scale has no unit: it is not used",)), (0.0, 0.0, 0.0)
    lengths = {axis: (scale[names.index(axis)], unit) for axis, unit in units.items() if unit}
    found = from_lengths(lengths, planes, "NGFF", path)
    position = {axis: shift[names.index(axis)] * (micrometres_per(unit) or 0.0) for axis, (_, unit) in lengths.items()}
    return found, (position.get("z", 0.0), position.get("y", 0.0), position.get("x", 0.0))


# Metadata


def read_metadata(folder: Path) -> dict[str, Any]:
    """Metadata of a group or an array in one form: Zarr 3 as it is, Zarr 2 with its attributes merged in."""
    if (folder / "zarr.json").exists():
        return _read_json(folder / "zarr.json")
    for name in (".zarray", ".zgroup"):
        if (folder / name).exists():
            attributes = _read_json(folder / ".zattrs") if (folder / ".zattrs").exists() else {}
            return {**_read_json(folder / name), "attributes": attributes}
    if (folder / ".zattrs").exists():
        return {"zarr_format": 2, "attributes": _read_json(folder / ".zattrs")}
    if not folder.exists():
        raise InputMissingError("the Zarr array is missing", file=folder)
    raise BadDataError("the folder has no Zarr metadata", file=folder, expected="zarr.json, .zarray or .zgroup")


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_METADATA:
        raise BadDataError(f"the metadata have {path.stat().st_size} bytes", file=path)
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadDataError(f"the metadata are no JSON: {error}", file=path) from error
    if not isinstance(value, dict):
        raise BadDataError("the metadata are no JSON object", file=path)
    return value


def is_array(metadata: dict[str, Any]) -> bool:
    return metadata.get("node_type") == "array" or ("shape" in metadata and "chunks" in metadata)


def _members(path: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())


def check_inside(name: str, path: Path) -> str:
    """A path of the metadata, refused where it leaves the folder."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name:
        raise RefusedError(
            f"the metadata name the array {name!r}, which is outside the image's folder",
            file=path,
            remedy="do not use this image; ask where it comes from",
        )
    return str(pure)


def array_dtype(metadata: dict[str, Any], path: Path) -> np.dtype:
    """The stored type, or an error where it is no plain number."""
    name = metadata["dtype"] if metadata["zarr_format"] == 2 else metadata["data_type"]
    try:
        dtype = np.dtype(name) if isinstance(name, str) else None
    except TypeError:
        dtype = None
    if dtype is None or dtype.hasobject:
        raise BadDataError(f"voxels of type {name}", file=path, expected="bool, an integer or a float")
    return dtype


def check_codecs(metadata: dict[str, Any], path: Path) -> None:
    """Refuse codecs that are not on the list; pickle runs code."""
    if metadata["zarr_format"] == 2:
        used = [metadata.get("compressor"), *(metadata.get("filters") or [])]
        strange = [str(codec.get("id")) for codec in used if codec and codec.get("id") not in CODECS_2]
    else:
        strange = [name for name in _codec_names(metadata.get("codecs") or []) if name not in CODECS_3]
        strange = [n for n in strange if not (n.startswith("numcodecs.") and n.partition(".")[2] in CODECS_2)]
    if strange:
        raise RefusedError(
            f"the chunks use the codec {', '.join(strange)}",
            file=path,
            expected=f"one of {', '.join(sorted(CODECS_3))} or a numeric codec of numcodecs",
            remedy="write the image again with one of these",
        )


def _codec_names(codecs: list[Any]) -> Iterator[str]:
    for codec in codecs:
        if isinstance(codec, str):
            yield codec
            continue
        yield str(codec.get("name"))
        configuration = codec.get("configuration") or {}
        for inner in ("codecs", "index_codecs"):
            yield from _codec_names(configuration.get(inner) or [])


# Chunks


def chunk_shapes(metadata: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Voxels per file (chunk or shard), and voxels that are decoded at once."""
    if metadata["zarr_format"] == 2:
        chunks = tuple(metadata["chunks"])
        return chunks, chunks
    chunks = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
    inner = chunks
    for codec in metadata.get("codecs") or []:
        if isinstance(codec, dict) and codec.get("name") == "sharding_indexed":
            inner = tuple(codec["configuration"]["chunk_shape"])
    return chunks, inner


def key_encoding(metadata: dict[str, Any]) -> tuple[str, str]:
    """What stands before and between the indices in the names of chunk files."""
    if metadata["zarr_format"] == 2:
        return "", metadata.get("dimension_separator", ".")
    encoding = metadata["chunk_key_encoding"]
    configuration = encoding.get("configuration") or {}
    if encoding["name"] == "v2":
        return "", configuration.get("separator", ".")
    separator = configuration.get("separator", "/")
    return f"c{separator}", separator


def chunk_files(root: Path, prefix: str, separator: str, grid: list[int]) -> Iterator[tuple[int, ...]]:
    """Indices of the chunk files below an array's folder that lie inside the grid."""
    for folder, _, names in os.walk(root):
        relative = os.path.relpath(folder, root)
        start = "" if relative == "." else relative.replace(os.sep, "/") + "/"
        for name in names:
            key = start + name
            if not key.startswith(prefix):
                continue
            parts = key[len(prefix) :].split(separator)
            if len(parts) == len(grid) and all(part.isdecimal() for part in parts):
                index = tuple(map(int, parts))
                if all(i < n for i, n in zip(index, grid, strict=True)):
                    yield index
