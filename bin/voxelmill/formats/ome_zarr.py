"""OME-Zarr 0.1 to 0.5 and plain Zarr arrays of format 2 and 3, read in place.

A chunk that is not there reads as zeros without a word, so the grid is compared with the files. Codecs are taken from
a list: one of them would run code.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from voxelmill.errors import BadDataError, UsageError
from voxelmill.formats.base import (
    NO_CHOICE,
    ImageSource,
    InPlace,
    Selection,
    accepted_dtype,
    all_named,
    bad_axes,
    check_axes,
    shape_czyx,
    unreadable,
)
from voxelmill.formats.chunks import MissingChunks, check_chunk
from voxelmill.formats.spacing import Spacing, Triple, from_lengths, micrometres_per
from voxelmill.formats.zarr_metadata import (
    MAX_NAMED,
    array_dtype,
    check_codecs,
    check_inside,
    chunk_files,
    chunk_shapes,
    images_inside,
    is_array,
    key_encoding,
    ngff_of,
    read_metadata,
)
from voxelmill.image import Box, read_axes

MAX_NAME = 64

PYTHON_PIPELINE = "zarr.core.codec_pipeline.BatchedCodecPipeline"
"""zarrs, which is faster, reads neither foreign byte order nor chunks in Fortran order; such an image is copied."""


@dataclass(kw_only=True)
class ZarrSource(ImageSource):
    """A volume in a Zarr folder; see :class:`ImageSource`."""

    inside: str = field(repr=False)
    array: zarr.Array = field(repr=False)
    metadata: dict[str, Any] = field(repr=False)

    def _read(self, channel: int, box: Box) -> np.ndarray:
        return read_axes(self.array, self.axes, channel, self.timepoint, box).astype(self.dtype, copy=False)

    def missing_chunks(self) -> MissingChunks:
        """Chunk (or shard) files that the grid of the array has and the folder has not.

        A writer may leave out chunks that are all fill value, so these count as missing too: nobody can tell. The work
        is bounded by the files that are there, whatever shape the metadata declare.
        """
        files, chunks = chunk_shapes(self.metadata)
        grid = [-(-length // size) for length, size in zip(self.metadata["shape"], files, strict=True)]
        prefix, separator = key_encoding(self.metadata)
        root = self.path / self.inside
        present = frozenset(chunk_files(root, prefix, separator, grid, sharded=files != chunks))
        return MissingChunks(tuple(grid), present, prefix, separator)


def open_ome_zarr(path: Path, selection: Selection = NO_CHOICE) -> ZarrSource:
    """Open an image in a Zarr folder: an NGFF image, or an array without metadata.

    Parameters
    ----------
    path : Path
        Folder of the image or of the array, or of several images as bioformats2raw writes them.
    selection : Selection
        ``axes``, ``timepoint``, of an NGFF image the ``level``, the finest without it, and of a folder of several
        images the ``series``.

    Raises
    ------
    BadDataError
        Where the metadata are damaged or not those of one image.
    RefusedError
        Where a codec is not on the list or an array lies outside the folder.
    """
    try:
        return _open(path, selection)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, ArithmeticError, RecursionError) as error:
        text = " ".join(repr(error).split())[:200]
        raise BadDataError(f"the Zarr metadata are damaged: {text}", file=path) from error


def _open(path: Path, selection: Selection) -> ZarrSource:
    metadata = read_metadata(path)
    ngff = ngff_of(metadata)
    prefix = ""
    if "bioformats2raw.layout" in ngff and "multiscales" not in ngff:
        prefix = series_inside(path, selection.series) + "/"
        metadata = read_metadata(path / prefix)
        ngff = ngff_of(metadata)
    elif selection.series:
        raise UsageError(f"series {selection.series} of a Zarr folder that holds one image", file=path)
    if is_array(metadata):
        return _open_plain(path, metadata, selection)
    multiscales = ngff.get("multiscales")
    if isinstance(multiscales, list) and multiscales:
        return _open_multiscale(path, prefix, multiscales[0], ngff, selection)
    inside = images_inside(path)
    named = ", ".join(inside) + (", ..." if len(inside) == MAX_NAMED else "")
    raise BadDataError(
        f"the folder is {'an HCS plate' if 'plate' in ngff else 'a Zarr group without an image of its own'}",
        file=path,
        expected="an NGFF image (multiscales) or a Zarr array",
        remedy=f"name an image inside it; there are: {named}" if inside else "check the path: no image is inside it",
    )


def series_inside(path: Path, series: int | None) -> str:
    """Name of one of the images of a folder with several: those that are listed, else those that are numbered."""
    listed = ngff_of(read_metadata(path / "OME")).get("series") if (path / "OME").is_dir() else None
    names = [check_inside(str(name), path) for name in listed] if isinstance(listed, list) else []
    if not names:
        names = sorted((entry.name for entry in os.scandir(path) if entry.name.isdecimal()), key=int)
    if not names:
        raise BadDataError("the folder holds no image", file=path, expected="images with the names 0, 1, ...")
    if series is None and len(names) > 1:
        raise BadDataError(
            f"the folder holds {len(names)} images",
            file=path,
            remedy=f"choose one with --series or the column series, 0 to {len(names) - 1}",
        )
    if not 0 <= (series or 0) < len(names):
        raise BadDataError(f"there is no series {series}", file=path, expected=f"0 to {len(names) - 1}")
    return names[series or 0]


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
    check_axes(path, names, tuple(metadata["shape"]), selection.timepoint)
    transforms = [
        *(datasets[level].get("coordinateTransformations") or []),
        *(multiscale.get("coordinateTransformations") or []),
    ]
    scale, shift = combined(transforms, len(described))
    scaled = any(transform["type"] == "scale" for transform in transforms)
    spacing, origin = read_spacing(names, described, scale if scaled else None, shift, metadata, path)
    version = str(ngff.get("version") or multiscale.get("version") or "")
    labels = [channel.get("label") for channel in (ngff.get("omero") or {}).get("channels", [])]
    channel_names = all_named(labels, shape_czyx(names, tuple(metadata["shape"]))[0])
    kind = f"OME-Zarr {version}".strip()
    source = _source(path, inside, names, metadata, kind, spacing, origin, selection.timepoint, channel_names)
    source.rgb = tuple(map(str.lower, channel_names)) == ("red", "green", "blue")
    source.label_names = label_names(ngff.get("image-label"))
    return source


def combined(transforms: list[dict[str, Any]], count: int) -> tuple[list[float], list[float]]:
    """Scale and translation of transformations that are applied one after the other."""
    scale, shift = [1.0] * count, [0.0] * count
    for transform in transforms:
        kind = transform["type"]
        if kind == "scale":
            factors = [float(value) for value in transform["scale"]]
            scale = [a * b for a, b in zip(scale, factors, strict=True)]
            shift = [a * b for a, b in zip(shift, factors, strict=True)]
        elif kind == "translation":
            shift = [a + float(b) for a, b in zip(shift, transform["translation"], strict=True)]
        elif kind != "identity":
            raise ValueError(f"a transformation of type {str(kind)[:40]!r}")
    if not all(map(math.isfinite, shift)):
        raise ValueError(f"the translation {shift}")
    return scale, shift


def label_names(found: Any) -> dict[int, str]:
    """Names of labels by their value, where NGFF's ``image-label`` has them, each name once."""
    properties = found.get("properties") if isinstance(found, dict) else None
    names = {
        one["label-value"]: one["class"].strip()
        for one in (properties if isinstance(properties, list) else [])
        if isinstance(one, dict) and isinstance(one.get("class"), str) and type(one.get("label-value")) is int
    }
    simple = all(0 < len(name) <= MAX_NAME and name.isprintable() for name in names.values())
    return names if simple and len(set(names.values())) == len(names) else {}


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
    if len(files) != len(shape) or min(*files, *decoded) < 1:
        raise ValueError(f"chunks of {files} voxels")
    check_chunk(decoded, dtype, path)
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
