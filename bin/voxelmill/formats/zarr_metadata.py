"""Metadata of Zarr folders, of format 2 and 3: read, and refused where they would run code or leave the folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from voxelmill.errors import BadDataError, InputMissingError, RefusedError

MAX_METADATA = 64 << 20
MAX_NAMED = 8
MAX_FOLDERS = 2000
MAX_DEPTH = 5

CODECS_2 = {
    "blosc", "zlib", "gzip", "zstd", "lz4", "bz2", "lzma", "delta", "shuffle", "bitround", "crc32", "crc32c", "adler32",
    "fletcher32", "packbits", "fixedscaleoffset", "quantize", "astype",
}  # fmt: skip
CODECS_3 = {"bytes", "transpose", "blosc", "gzip", "zstd", "crc32c", "sharding_indexed"}

METADATA_FILES = ("zarr.json", ".zarray", ".zgroup", ".zattrs")


def read_metadata(folder: Path) -> dict[str, Any]:
    """Metadata of a group or an array in one form: Zarr 3 as it is, Zarr 2 with its attributes merged in."""
    if (folder / "zarr.json").exists():
        return read_object(folder / "zarr.json")
    for name in (".zarray", ".zgroup"):
        if (folder / name).exists():
            attributes = read_object(folder / ".zattrs") if (folder / ".zattrs").exists() else {}
            return {**read_object(folder / name), "attributes": attributes}
    if (folder / ".zattrs").exists():
        return {"zarr_format": 2, "attributes": read_object(folder / ".zattrs")}
    if not folder.exists():
        raise InputMissingError("the Zarr array is missing", file=folder)
    raise BadDataError("the folder has no Zarr metadata", file=folder, expected="zarr.json, .zarray or .zgroup")


def read_object(path: Path) -> dict[str, Any]:
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


def images_inside(folder: Path) -> list[str]:
    """Paths of images and arrays below a group, at most ``MAX_NAMED``; what lies inside them is not among them."""
    found: list[str] = []
    waiting, seen = [""], 0
    while waiting and len(found) < MAX_NAMED and seen < MAX_FOLDERS:
        inside = waiting.pop(0)
        seen += 1
        with os.scandir(folder / inside) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        for name in sorted(names, key=lambda text: (not text.isdecimal(), int(text) if text.isdecimal() else 0, text)):
            path = f"{inside}/{name}" if inside else name
            try:
                metadata = read_metadata(folder / path)
            except BadDataError:
                metadata = {}
            if is_array(metadata) or isinstance(ngff_of(metadata).get("multiscales"), list):
                found.append(path)
            elif path.count("/") < MAX_DEPTH:
                waiting.append(path)
    return found[:MAX_NAMED]


def ngff_of(metadata: dict[str, Any]) -> dict[str, Any]:
    """NGFF's part of the attributes: all of them before version 0.5, one of them since."""
    attributes = metadata.get("attributes") or {}
    found = attributes.get("ome", attributes) if isinstance(attributes, dict) else {}
    return found if isinstance(found, dict) else {}


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


def chunk_files(
    root: Path, prefix: str, separator: str, grid: list[int], *, sharded: bool = False
) -> Iterator[tuple[int, ...]]:
    """Indices of the chunk files below an array's folder that lie inside the grid.

    Of shards those without a byte are left out: such a file would read as the fill value, without a word.
    """
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
                inside = all(i < n for i, n in zip(index, grid, strict=True))
                if inside and not (sharded and os.path.getsize(os.path.join(folder, name)) == 0):
                    yield index
