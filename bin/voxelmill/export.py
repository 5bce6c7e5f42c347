"""EXPORT_LABELS: label files in the input's own format, streamed out of the label store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from voxelmill.errors import BadDataError
from voxelmill.files import atomic_path
from voxelmill.formats.bands import Part, band_step, write_bands
from voxelmill.formats.planes import STRIP_ROWS, Description, ImageWriter
from voxelmill.formats.spacing import triple
from voxelmill.formats.writing import FORMATS, write_errors
from voxelmill.grid import INSTANCES, LabelGrid
from voxelmill.image import Box, ImageInfo, cut_box, whole
from voxelmill.outlines import MAX_OUTLINES, write_outlines
from voxelmill.store import CHUNK, read_labels
from voxelmill.task import Task

AUTO, NONE, GEOJSON = "auto", "none", "geojson"
TIFF, PNG = "tiff", "png"
FILES = (TIFF, "ome-tiff", "nifti", "mha", "nrrd", "hdf5", PNG)
"""Formats of label files."""

CHOICES = (AUTO, *FILES, GEOJSON, NONE)

OWN = {
    "NIfTI": "nifti", "TIFF": TIFF, "MetaImage": "mha", "NRRD": "nrrd", "HDF5": "hdf5", "PNG": PNG, "JPEG": PNG,
}  # fmt: skip
"""What a format's name contains -> the format of its label files. Slices get one TIFF file; a Zarr input none: the
label store is its own format."""


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
    format : str or None
        Where it is not that of the other files.
    """

    name: str
    dtype: str
    largest: int | None
    values: Callable[[np.ndarray], np.ndarray]
    format: str | None = None


def export_formats(wish: str, image_format: str, planes: int = 1) -> list[str]:
    """Formats of the label files: the wish (names joined by commas), or that of the input; TIFF where that cannot hold
    so many planes.

    Outlines that were not asked for are not among them.
    """
    if wish != AUTO:
        return [name for name in wish.split(",") if name != NONE]
    own = [target for known, target in OWN.items() if known in image_format][:1]
    return [TIFF if FORMATS[target].single and planes > 1 else target for target in own]


def export_labels(
    store: Path,
    grid: LabelGrid,
    info: ImageInfo,
    out: Path,
    *,
    format: str,
    binary: int | None,
    memory_budget: int,
    warn: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Write the label files of one sample in one format.

    Parameters
    ----------
    store : Path
        ``labels.ome.zarr``.
    grid : LabelGrid
    info : ImageInfo
    out : Path
        Folder of the sample: gets ``<sample>.label_raw``, ``.label_binary`` and ``.label_instances``.
    format : str
        Of `FILES`.
    binary : int or None
        Value of the foreground in the raw and the binary file; None keeps the classes in the raw one.
    memory_budget : int
        Bytes.
    warn : callable
        Told where a file has another format.

    Returns
    -------
    list of Path

    Raises
    ------
    TemporaryError
        Where a part of the store is missing or damaged.
    BadDataError
        Where an id is too large for the format, or it holds single planes and this is a volume.
    WriteFailedError
        Where the disk is full.
    """
    if FORMATS[format].single and grid.shape[0] > 1:
        raise BadDataError(
            f"labels of {grid.shape[0]} planes, and {format} holds one",
            sample=grid.sample,
            remedy="use --export tiff, or --export auto",
        )
    written = []
    instances = (store / "instances" / "0").is_dir()
    if (store / "semantic" / "0").is_dir():
        array = zarr.open_array(str(store), path="semantic/0", mode="r")
        files = [raw_file(grid, str(array.dtype), binary), *([] if instances else [binary_file(binary)])]
        written += write_files(array, files, grid, info, out, format, memory_budget)
    if instances:
        array = zarr.open_array(str(store), path="instances/0", mode="r")
        files = [binary_file(binary), instance_file(array, grid, format, memory_budget, warn)]
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


def instance_file(
    array: zarr.Array, grid: LabelGrid, format: str, memory_budget: int, warn: Callable[[str], None]
) -> LabelFile:
    """The ids of the objects, in 16 bits only where the largest fits.

    The store's own type is the smallest for objects that were numbered here. Ids that were given may be smaller than
    their type, or too large for the format, so the largest is looked for.
    """
    dtype = str(array.dtype)
    if array.dtype.itemsize > 2 and (grid.kind == INSTANCES or array.dtype.itemsize > widest(format)):
        largest = largest_label(array, grid.sample, memory_budget)
        dtype = next(name for name in ("uint16", "uint32", "uint64") if largest <= np.iinfo(name).max)
        if format == PNG and np.dtype(dtype).itemsize > widest(format):
            warn(f"ids up to {largest} do not fit into PNG: label_instances is a TIFF file")
            format = TIFF
        if np.dtype(dtype).itemsize > widest(format):
            raise BadDataError(
                f"the largest id is {largest}",
                sample=grid.sample,
                expected=f"at most {2 ** (8 * widest(format)) - 1} in a file of the format {format}",
                remedy="use --export nifti, or --export none: labels.ome.zarr holds every id",
            )
    return LabelFile("label_instances", dtype, None, lambda labels: labels, format)


def widest(format: str) -> int:
    """Bytes of the widest unsigned integers that a format holds."""
    return max(np.dtype(name).itemsize for name in FORMATS[format].types if name.startswith("uint"))


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
    paths = [out / f"{grid.sample}.{file.name}{FORMATS[file.format or format].suffix}" for file in files]
    remedy = "free space on the disk of the work folder, then -resume; --export none writes none"
    with write_errors(paths[0], sample=grid.sample, remedy=remedy), ExitStack() as stack:
        temporary = [stack.enter_context(atomic_path(path)) for path in paths]
        with ExitStack() as opened:
            parts = [
                Part(opened.enter_context(make_writer(path, file, grid, info, file.format or format)), file.values)
                for path, file in zip(temporary, files, strict=True)
            ]
            write_bands(
                lambda _, box: read_labels(array, box, grid.sample),
                (1, *array.shape),
                (min(CHUNK, array.shape[0]), CHUNK, CHUNK),
                max([array.dtype.itemsize, *(part.writer.dtype.itemsize for part in parts)]),
                parts,
                memory_budget,
            )
        for part in parts:
            part.writer.verify()
    return paths


def make_writer(path: Path, file: LabelFile, grid: LabelGrid, info: ImageInfo, format: str) -> ImageWriter:
    open_writer = FORMATS[format].open
    assert open_writer is not None
    return open_writer(path, describe(file, grid, info))


def describe(file: LabelFile, grid: LabelGrid, info: ImageInfo) -> Description:
    """What a label file is told: the orientation is the input's own, moved to the first voxel of the box that was cut.

    An input that sets neither ``qform`` nor ``sform`` stays without, unless it was cut.
    """
    affine: np.ndarray | None = None
    forms: tuple[tuple[int, np.ndarray], ...] = ()
    if info.affine is not None:
        first = info.first
        affine, *moved = (np.array(m) for m in (info.affine, *(form for _, form in info.forms)))
        codes = [code for code, _ in info.forms]
        if moved and not any(codes) and any(first):
            moved, codes = [np.eye(4), affine.copy()], [0, 1]
        for matrix in (affine, *moved):
            matrix[:3, 3] += matrix[:3, :3] @ first[::-1]
        forms = tuple(zip(codes, moved, strict=True))
    spacing = None if grid.unit == "pixel" else triple(grid.spacing)
    return Description(
        name=f"{grid.sample}.{file.name}",
        shape=(1, grid.shape[0], grid.shape[1], grid.shape[2]),
        dtype=np.dtype(file.dtype),
        spacing=spacing,
        origin=(0.0, 0.0, 0.0) if spacing is None else triple(grid.origin),
        affine=affine,
        forms=forms,
        labels=True,
        largest=file.largest,
    )


def bands(array: zarr.Array, memory_budget: int) -> list[Box]:
    """Boxes of few rows that fill an array."""
    depth, rows = band_step(array.shape, (CHUNK,) * 3, array.dtype.itemsize, (1, STRIP_ROWS), memory_budget // 4)
    return cut_box(whole(array.shape), (depth, rows, array.shape[2]))


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
        ``auto``, or names of `CHOICES` joined by commas.
    binary : int or None
        See `export_labels`.
    memory_budget : int
        Bytes.
    """
    for number, sample in enumerate(samples, 1):
        info = ImageInfo.load(folder / f"{sample}.image.json")
        grid = LabelGrid.load(folder / f"{sample}.grid.json")
        paths = export_sample(
            folder / "labels" / str(number) / "labels.ome.zarr",
            grid,
            info,
            folder / sample,
            record,
            export=export,
            binary=binary,
            memory_budget=memory_budget,
        )
        for path in paths:
            record.output(path)


def export_sample(
    store: Path,
    grid: LabelGrid,
    info: ImageInfo,
    out: Path,
    record: Task,
    *,
    export: str,
    binary: int | None,
    memory_budget: int,
) -> list[Path]:
    """All files of one sample; single planes get outlines of their objects beside them unless formats were named."""
    formats = export_formats(export, info.format, grid.shape[0])
    paths: list[Path] = []
    for format in formats:
        if format != GEOJSON:
            paths += export_labels(
                store,
                grid,
                info,
                out,
                format=format,
                binary=binary,
                memory_budget=memory_budget,
                warn=lambda text: record.warn(text, sample=grid.sample),
            )
    asked = GEOJSON in formats
    if asked or (export == AUTO and grid.shape[0] == 1):
        path = out / f"{grid.sample}.label_outlines.geojson"
        outlines = write_outlines(store, grid, path, most=None if asked else MAX_OUTLINES, memory_budget=memory_budget)
        if outlines is not None:
            paths.append(path)
            formats = [*formats, *([] if asked else [GEOJSON])]
    if paths:
        record.counts[grid.sample] = {
            "format": ",".join(formats),
            "files": len(paths),
            "export_bytes": sum(path.stat().st_size for path in paths),
        }
    return paths
