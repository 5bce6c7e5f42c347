"""EXPORT_LABELS: label files in the input's own format, streamed out of the label store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from voxelmill.errors import WRITE_FAILED, BadDataError, WriteFailedError, code_of
from voxelmill.files import atomic_path
from voxelmill.formats.nifti_writer import Forms, NiftiWriter
from voxelmill.formats.planes import STRIP_ROWS, PlaneWriter, Spool
from voxelmill.formats.tiff_writer import TiffWriter
from voxelmill.grid import INSTANCES, LabelGrid
from voxelmill.image import Box, ImageInfo, cut_box, whole
from voxelmill.store import CHUNK, read_labels
from voxelmill.task import Task

AUTO, TIFF, NIFTI, NONE = "auto", "tiff", "nifti", "none"
SUFFIX = {TIFF: ".tif", NIFTI: ".nii.gz"}
WIDEST = {TIFF: 32, NIFTI: 64}
"""Bits of the widest integers that the readers of a format know."""

COPIES = 4
"""Arrays of a band's size that exist at once at most: as read, compared with the fill value, converted, as bytes."""


@dataclass(frozen=True)
class LabelFile:
    """A file that is made of a label array.

    Attributes
    ----------
    name : str
        ``label_raw``, ``label_binary`` or ``label_instances``.
    dtype : str
    largest : int or None
        End of the range that viewers show; None for the largest value.
    values : callable
        Labels (z, y, x) of the store -> values of the file.
    """

    name: str
    dtype: str
    largest: int | None
    values: Callable[[np.ndarray], np.ndarray]


def export_format(wish: str, image_format: str) -> str:
    """``tiff``, ``nifti`` or ``none``: the wish, or the format of the input.

    A Zarr input gets no file: the label store is its own format.
    """
    if wish != AUTO:
        return wish
    return NIFTI if "NIfTI" in image_format else TIFF if "TIFF" in image_format else NONE


def export_labels(
    store: Path, grid: LabelGrid, info: ImageInfo, out: Path, *, format: str, binary: int | None, memory_budget: int
) -> list[Path]:
    """Write the label files of one sample.

    Parameters
    ----------
    store : Path
        ``labels.ome.zarr``.
    grid : LabelGrid
    info : ImageInfo
    out : Path
        Folder of the sample: gets ``<sample>.label_raw``, ``.label_binary`` and ``.label_instances``.
    format : str
        ``tiff`` or ``nifti``.
    binary : int or None
        Value of the foreground in the raw and the binary file; None keeps the classes in the raw one.
    memory_budget : int
        Bytes.

    Returns
    -------
    list of Path

    Raises
    ------
    TemporaryError
        Where a part of the store is missing or damaged.
    BadDataError
        Where an id is too large for the format.
    WriteFailedError
        Where the disk is full.
    """
    written = []
    instances = (store / "instances" / "0").is_dir()
    if (store / "semantic" / "0").is_dir():
        array = zarr.open_array(str(store), path="semantic/0", mode="r")
        files = [raw_file(grid, str(array.dtype), binary), *([] if instances else [binary_file(binary)])]
        written += write_files(array, files, grid, info, out, format, memory_budget)
    if instances:
        array = zarr.open_array(str(store), path="instances/0", mode="r")
        files = [binary_file(binary), instance_file(array, grid, format, memory_budget)]
        written += write_files(array, files, grid, info, out, format, memory_budget)
    return written


def raw_file(grid: LabelGrid, dtype: str, binary: int | None) -> LabelFile:
    """The classes of the network, or the given ones."""
    if binary is not None:
        return LabelFile("label_raw", "uint8", binary, lambda labels: (labels > 0).astype(np.uint8) * np.uint8(binary))
    return LabelFile("label_raw", dtype, max(grid.values, default=1), lambda labels: labels)


def binary_file(binary: int | None) -> LabelFile:
    """What is left after the filters."""
    value = np.uint8(1 if binary is None else binary)
    return LabelFile("label_binary", "uint8", int(value), lambda labels: (labels > 0).astype(np.uint8) * value)


def instance_file(array: zarr.Array, grid: LabelGrid, format: str, memory_budget: int) -> LabelFile:
    """The ids of the objects, in 16 bits only where the largest fits.

    The store's own type is the smallest for objects that were numbered here. Ids that were given may be smaller than
    their type, or too large for the format, so the largest is looked for.
    """
    dtype = str(array.dtype)
    if array.dtype.itemsize > 2 and (grid.kind == INSTANCES or array.dtype.itemsize * 8 > WIDEST[format]):
        largest = largest_label(array, grid.sample, memory_budget)
        dtype = next(name for name in ("uint16", "uint32", "uint64") if largest <= np.iinfo(name).max)
        if np.dtype(dtype).itemsize * 8 > WIDEST[format]:
            raise BadDataError(
                f"the largest id is {largest}",
                sample=grid.sample,
                expected=f"at most {2 ** WIDEST[format] - 1} in a TIFF file",
                remedy="use --export nifti, or --export none: labels.ome.zarr holds every id",
            )
    return LabelFile("label_instances", dtype, None, lambda labels: labels)


def largest_label(array: zarr.Array, sample: str, memory_budget: int) -> int:
    largest = 0
    for box in bands(array, memory_budget):
        largest = max(largest, int(read_labels(array, box, sample).max()))
    return largest


def write_files(
    array: zarr.Array,
    files: Sequence[LabelFile],
    grid: LabelGrid,
    info: ImageInfo,
    out: Path,
    format: str,
    memory_budget: int,
) -> list[Path]:
    """Write files that are made of the same array in one pass over it; all appear whole, or none."""
    paths = [out / f"{grid.sample}.{file.name}{SUFFIX[format]}" for file in files]
    try:
        with ExitStack() as stack:
            temporary = [stack.enter_context(atomic_path(path)) for path in paths]
            with ExitStack() as opened:
                writers = [
                    opened.enter_context(make_writer(path, file, grid, info, format))
                    for path, file in zip(temporary, files, strict=True)
                ]
                write_planes(array, files, writers, grid.sample, memory_budget)
            for writer in writers:
                writer.verify()
    except OSError as error:
        if code_of(error) != WRITE_FAILED:
            raise
        raise WriteFailedError(
            f"the label files cannot be written: {error.strerror}",
            sample=grid.sample,
            file=paths[0],
            remedy="free space on the disk of the work folder, then -resume; --export none writes none",
        ) from error
    return paths


def make_writer(path: Path, file: LabelFile, grid: LabelGrid, info: ImageInfo, format: str) -> PlaneWriter:
    physical = grid.unit != "pixel"
    if format == TIFF:
        name = f"{grid.sample}.{file.name}"
        return TiffWriter(path, grid.shape, file.dtype, grid.spacing if physical else None, name, file.largest)
    forms, sizes = orientation(grid, info)
    return NiftiWriter(path, grid.shape, file.dtype, forms, sizes, physical)


def orientation(grid: LabelGrid, info: ImageInfo) -> tuple[Forms, tuple[float, ...]]:
    """``qform`` and ``sform`` of the labels, and their voxel size in millimetres along z, y, x.

    They are the input's own, moved to the first voxel of the box that was cut out. For an input that has none the axes
    of the image are those of the space; one that sets neither stays without, unless it was cut.
    """
    if info.affine is None:
        per_unit = 1.0 if grid.unit == "pixel" else 1e-3
        sizes = tuple(s * per_unit for s in grid.spacing)
        affine = np.diag([*reversed(sizes), 1.0])
        affine[:3, 3] = [o * per_unit for o in reversed(grid.origin)]
        return ((1, affine), (1, affine)), sizes
    first = [round(o / s) for o, s in zip(info.origin, info.spacing, strict=True)]
    best = np.array(info.affine)
    (qform, turned), (sform, stretched) = info.forms
    forms = (qform, np.array(turned)), (sform, np.array(stretched))
    if not (qform or sform) and any(first):
        forms = (0, np.eye(4)), (1, best.copy())
    for _, matrix in forms:
        matrix[:3, 3] += matrix[:3, :3] @ first[::-1]
    return forms, tuple(map(float, reversed(np.linalg.norm(best[:3, :3], axis=0))))


def write_planes(
    array: zarr.Array, files: Sequence[LabelFile], writers: Sequence[PlaneWriter], sample: str, memory_budget: int
) -> None:
    """One pass over an array: encode bands of rows, write the planes of every slab in order."""
    for slab in slabs(array, memory_budget):
        (first, last), *_ = slab
        with ExitStack() as stack:
            spools = [Spool(last - first, writer.path.parent) for writer in writers]
            for spool in spools:
                stack.callback(spool.close)
            for box in cut_box(slab, (last - first, STRIP_ROWS, array.shape[2])):
                labels = read_labels(array, box, sample)
                for file, writer, spool in zip(files, writers, spools, strict=True):
                    encode_band(file.values(labels), writer, spool)
            for plane in range(last - first):
                for writer, spool in zip(writers, spools, strict=True):
                    writer.write(spool.pieces(plane))


def encode_band(values: np.ndarray, writer: PlaneWriter, spool: Spool) -> None:
    """Encode rows of several planes (z, y, x)."""
    for plane, rows in enumerate(values):
        for start in range(0, len(rows), writer.rows):
            spool.add(plane, writer.encode(rows[start : start + writer.rows]))


def slabs(array: zarr.Array, memory_budget: int) -> list[Box]:
    """Planes that are encoded before the first of them is written: those of one layer of chunks.

    Fewer where a band of 64 rows of them is more than half of the memory; their chunks are then decoded several times.
    """
    depth = min(CHUNK, array.shape[0])
    row_bytes = STRIP_ROWS * array.shape[2] * array.dtype.itemsize * COPIES
    while depth > 1 and depth * row_bytes > memory_budget // 2:
        depth //= 2
    return cut_box(whole(array.shape), (depth, *array.shape[1:]))


def bands(array: zarr.Array, memory_budget: int) -> list[Box]:
    """Boxes of at most 64 rows that fill an array."""
    return [band for slab in slabs(array, memory_budget) for band in cut_box(slab, (CHUNK, STRIP_ROWS, array.shape[2]))]


def export_batch(
    samples: Sequence[str], folder: Path, record: Task, *, export: str, binary: int | None, memory_budget: int
) -> None:
    """Export the samples of a batch.

    Parameters
    ----------
    samples : sequence of str
        In the order of the label stores ``labels/<n>/labels.ome.zarr``, counted from 1.
    folder : Path
        Holds the stores, ``<sample>.grid.json`` and ``<sample>.image.json``.
    record : Task
    export : str
        ``auto``, ``tiff``, ``nifti`` or ``none``.
    binary : int or None
        See `export_labels`.
    memory_budget : int
        Bytes.
    """
    for number, sample in enumerate(samples, 1):
        info = ImageInfo.load(folder / f"{sample}.image.json")
        format = export_format(export, info.format)
        if format == NONE:
            continue
        grid = LabelGrid.load(folder / f"{sample}.grid.json")
        paths = export_labels(
            folder / "labels" / str(number) / "labels.ome.zarr",
            grid,
            info,
            folder / sample,
            format=format,
            binary=binary,
            memory_budget=memory_budget,
        )
        for path in paths:
            record.output(path)
        record.counts[sample] = {
            "format": format,
            "files": len(paths),
            "export_bytes": sum(path.stat().st_size for path in paths),
        }
