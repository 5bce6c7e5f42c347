"""Writers of images and labels: one per format, picked by its name. What a format cannot carry is refused, never cast.

Two types are written as their next wider kind, without a change of value: truth values as 8 bits, half precision as
single precision.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from voxelmill.errors import WRITE_FAILED, BadDataError, VoxelmillError, WriteFailedError, code_of
from voxelmill.files import atomic_folder, atomic_path
from voxelmill.formats.bands import Part, write_bands
from voxelmill.formats.base import ImageSource
from voxelmill.formats.hdf5_writer import Hdf5Writer
from voxelmill.formats.itk_writer import ItkWriter
from voxelmill.formats.nifti_writer import NiftiWriter
from voxelmill.formats.picture_writer import JpegWriter, PngWriter
from voxelmill.formats.planes import Description, ImageWriter
from voxelmill.formats.slices_writer import SlicesWriter
from voxelmill.formats.tiff_writer import IMAGEJ_TYPES, LIMIT, OME_TYPES, TiffWriter
from voxelmill.formats.zarr_writer import write_ome_zarr
from voxelmill.image import Box

ALL_TYPES = (
    "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32", "float64",
)  # fmt: skip
WIDER = {"bool": "uint8", "float16": "float32"}

MEMORY_BUDGET = 4_000_000_000


@dataclass(frozen=True)
class Target:
    """A format that images are written as.

    Attributes
    ----------
    name : str
    suffix : str
        Of its files; empty for a folder.
    types : tuple of str
        Types of voxels that it holds.
    open : callable or None
        Path, description -> writer; None for Zarr, which is written shard by shard.
    folder : bool
    channels : tuple of int or None
        Numbers of channels that it holds; None for any.
    single : bool
        It holds one plane.
    limit : int or None
        Bytes of the voxels, from which it is another format.
    longest : int or None
        Voxels along an axis.
    lossy : bool
        Values change.
    orientation, origin, spacing : bool
        It says how the voxels lie in the world; where the first of them is; how large they are.
    names : bool
        It holds the names of channels.
    """

    name: str
    suffix: str
    types: tuple[str, ...]
    open: Callable[[Path, Description], ImageWriter] | None
    folder: bool = False
    channels: tuple[int, ...] | None = None
    single: bool = False
    limit: int | None = None
    longest: int | None = None
    lossy: bool = False
    orientation: bool = False
    origin: bool = False
    spacing: bool = True
    names: bool = False


PLACED: dict[str, Any] = {"orientation": True, "origin": True}
"""What the medical formats hold."""

PICTURE: dict[str, Any] = {"channels": (1, 3), "single": True, "spacing": False}

FORMATS = {
    target.name: target
    for target in (
        Target("ome-zarr", ".ome.zarr", ALL_TYPES, None, folder=True, origin=True, names=True),
        Target("ome-tiff", ".ome.tif", tuple(OME_TYPES), partial(TiffWriter, imagej=False), names=True),
        Target("imagej", ".tif", IMAGEJ_TYPES, partial(TiffWriter, imagej=True), limit=LIMIT),
        Target("tiff", ".tif", tuple(OME_TYPES), TiffWriter),
        Target("slices", "", tuple(OME_TYPES), SlicesWriter, folder=True, channels=(1, 3)),
        Target("nifti", ".nii.gz", ALL_TYPES, NiftiWriter, **PLACED),
        Target("nii", ".nii", ALL_TYPES, partial(NiftiWriter, compressed=False), **PLACED),
        Target("mha", ".mha", ALL_TYPES, partial(ItkWriter, nrrd=False), **PLACED),
        Target("nrrd", ".nrrd", ALL_TYPES, partial(ItkWriter, nrrd=True), **PLACED),
        Target("hdf5", ".h5", ALL_TYPES, Hdf5Writer, origin=True, names=True),
        Target("png", ".png", ("uint8", "uint16"), PngWriter, **PICTURE),
        Target("jpeg", ".jpg", ("uint8",), JpegWriter, longest=65_500, limit=1 << 28, lossy=True, **PICTURE),
    )
}
"""``tiff`` is ImageJ's TIFF where that can carry the image, else OME-TIFF."""


def faults(source: ImageSource, target: str, labels: bool = False) -> list[str]:
    """Why a format cannot carry an image, in words; empty where it can."""
    form = FORMATS[target]
    channels, *shape = source.shape
    dtype = written_dtype(source.dtype)
    found = []
    if dtype.name not in form.types:
        found.append(f"voxels of type {source.dtype}: it holds {', '.join(form.types)}")
    if labels and form.lossy:
        found.append("labels: it changes values")
    if form.single and shape[0] > 1:
        found.append(f"{shape[0]} planes: it holds one")
    if form.channels is not None and (channels not in form.channels or (channels == 3 and not source.rgb)):
        what = "channels that are not red, green, blue" if channels == 3 else f"{channels} channels"
        found.append(f"{what}: it holds one channel, or red, green, blue")
    elif target == "slices" and channels == 3 and dtype.name not in ("uint8", "uint16"):
        found.append(f"coloured voxels of type {source.dtype}: it holds uint8 and uint16")
    if form.longest is not None and max(shape) > form.longest:
        found.append(f"an axis of {max(shape)} voxels: it counts up to {form.longest}")
    size = prod(source.shape) * dtype.itemsize
    if form.limit is not None and size >= form.limit:
        found.append(f"{size} bytes of voxels: it holds less than {form.limit}")
    return found


def carriers(source: ImageSource, labels: bool = False) -> list[str]:
    """Formats that carry an image unchanged."""
    return [name for name, form in FORMATS.items() if not form.lossy and not faults(source, name, labels)]


def refuse(source: ImageSource, target: str, labels: bool = False) -> None:
    """Raise BadDataError where a format cannot carry an image."""
    found = faults(source, target, labels)
    if found:
        raise BadDataError(
            f"{target} cannot carry this image: {'; '.join(found)}",
            file=source.path,
            expected=f"one of the formats that can: {', '.join(carriers(source, labels))}",
            remedy="choose one of them",
        )


def losses(source: ImageSource, target: str) -> list[str]:
    """What of an image a format does not keep beside its voxels, in words."""
    form = FORMATS[target]
    lost = []
    if form.lossy:
        lost.append("values: they are compressed with losses")
    if source.affine is not None and not form.orientation:
        lost.append("its orientation in the world")
    elif any(source.origin) and not form.origin:
        lost.append("its origin")
    if source.spacing is not None and not form.spacing:
        lost.append("its voxel size")
    if source.spacing is None and target in ("nifti", "nii"):
        lost.append("that it has no voxel size: a header has one, here 1 mm")
    if source.channel_names and not form.names and not source.rgb:
        lost.append("the names of its channels")
    return lost


def written_dtype(dtype: np.dtype) -> np.dtype:
    """The type that an image is written in: its own, or the wider one that formats know."""
    return np.dtype(WIDER.get(dtype.name, dtype.name))


def describe(source: ImageSource, *, labels: bool, name: str) -> Description:
    return Description(
        name=name,
        shape=source.shape,
        dtype=written_dtype(source.dtype),
        spacing=source.spacing,
        origin=source.origin,
        affine=source.affine,
        forms=source.forms,
        channel_names=source.channel_names,
        rgb=source.rgb,
        labels=labels,
    )


def write_image(
    source: ImageSource,
    path: Path,
    target: str,
    *,
    labels: bool = False,
    name: str = "",
    memory_budget: int = MEMORY_BUDGET,
) -> None:
    """Write an image as another format, band by band.

    Parameters
    ----------
    source : ImageSource
    path : Path
        The file, or for ``ome-zarr`` and ``slices`` the folder; what lies there is replaced.
    target : str
        Of `FORMATS`.
    labels : bool
        The values are names: pyramids keep voxels and make no means.
    name : str
        Of the image inside the file, and of the files of ``slices``; the path's name without suffix by default.
    memory_budget : int
        Bytes that the voxels in memory may take; a source that decodes more at once takes that much. The file's bytes
        do not depend on it, nor on the number of threads.

    Raises
    ------
    BadDataError
        Where the format cannot carry the image, or the image is damaged.
    WriteFailedError
        Where the disk is full, or the file does not hold what was written.
    """
    refuse(source, target, labels)
    path, form = Path(path), FORMATS[target]
    name = name or path.name.removesuffix(form.suffix)
    what = describe(source, labels=labels, name=name)

    def read(channel: int, box: Box) -> np.ndarray:
        return source.read(channel, box).astype(what.dtype, copy=False)

    with write_errors(path), (atomic_folder if form.folder else atomic_path)(path) as temporary:
        if form.open is None:
            write_ome_zarr(read, temporary, what, source.chunk, memory_budget)
            return
        itemsize = max(what.dtype.itemsize, source.dtype.itemsize)
        with form.open(temporary, what) as writer:
            write_bands(read, what.shape, source.chunk, itemsize, [Part(writer, lambda values: values)], memory_budget)
        writer.verify()


@contextmanager
def write_errors(path: Path, *, sample: str | None = None, remedy: str = "") -> Iterator[None]:
    """Turn the system's errors of a full or broken disk into ours."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, VoxelmillError) or code_of(error) != WRITE_FAILED:
            raise
        text = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise WriteFailedError(
            f"{path.name} cannot be written: {text}",
            sample=sample,
            file=path,
            remedy=remedy or f"free space on the disk ({free_bytes(path)} bytes are left), then run again",
        ) from error


def free_bytes(path: Path) -> int:
    return shutil.disk_usage(path.parent).free
