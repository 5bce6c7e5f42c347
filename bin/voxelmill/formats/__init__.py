"""Readers of images: one per format, picked by what a file holds and not by its name."""

from __future__ import annotations

import gzip
import re
import stat
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from voxelmill.errors import BadDataError, InputMissingError, UsageError
from voxelmill.formats.base import NO_CHOICE, ImageSource, InPlace, Selection, damage_told, unreadable
from voxelmill.formats.hdf5 import open_hdf5
from voxelmill.formats.metaimage import open_metaimage
from voxelmill.formats.nifti import open_nifti
from voxelmill.formats.nrrd import open_nrrd
from voxelmill.formats.ome_zarr import open_ome_zarr
from voxelmill.formats.picture import open_jpeg, open_png
from voxelmill.formats.slices import open_folder
from voxelmill.formats.tiff import open_tiff
from voxelmill.formats.zarr_metadata import METADATA_FILES

__all__ = [
    "ImageSource",
    "InPlace",
    "Selection",
    "identify",
    "open_image",
]

TIFF, NIFTI, NIFTI_GZ, ZARR = "TIFF", "NIfTI", "gzip-compressed NIfTI", "Zarr"
SLICES = "a folder of slices"
METAIMAGE, NRRD, HDF5, PNG, JPEG = "MetaImage", "NRRD", "HDF5", "PNG", "JPEG"

READABLE = (
    f"{TIFF}, OME-TIFF, {NIFTI} (.nii, .nii.gz), {METAIMAGE} (.mha), {NRRD}, {HDF5}, {PNG}, {JPEG}, OME-Zarr, {SLICES}"
)

MAGIC = {
    b"II*\0": TIFF,
    b"MM\0*": TIFF,
    b"II+\0": TIFF,
    b"MM\0+": TIFF,
    b"\x89PNG": PNG,
    b"\xff\xd8\xff": JPEG,
    b"\0\0\0\x0cjP": "JPEG 2000",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"\x89HDF": HDF5,
    b"NRRD": NRRD,
    b"\x93NUMPY": "NumPy",
    b"ZISRAW": "Zeiss CZI",
    b"\xda\xce\xbe\x0a": "Nikon ND2",
    b"p\0\0\0": "Leica LIF",
    b"%PDF": "PDF",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}

METAIMAGE_HEAD = re.compile(rb"(?:Comment[ \t]*=.*\n)?(?:ObjectType|NDims)[ \t]*=")
"""MetaImage begins with a key, not with a magic number."""


@dataclass(frozen=True)
class Reader:
    """How files of one kind are opened.

    Attributes
    ----------
    open : callable
        Path, selection -> image.
    suffixes : tuple of str
        Endings that promise this kind, lower case.
    choices : frozenset of str
        What of a selection has a meaning here.
    """

    open: Callable[[Path, Selection], ImageSource]
    suffixes: tuple[str, ...]
    choices: frozenset[str]


READERS = {
    TIFF: Reader(
        open_tiff,
        (".tif", ".tiff", ".btf", ".tf2", ".tf8"),
        frozenset({"axes", "series", "timepoint", "level"}),
    ),
    NIFTI: Reader(open_nifti, (".nii",), frozenset({"axes", "timepoint"})),
    NIFTI_GZ: Reader(open_nifti, (".nii.gz",), frozenset({"axes", "timepoint"})),
    METAIMAGE: Reader(open_metaimage, (".mha", ".mhd"), frozenset({"axes", "timepoint"})),
    NRRD: Reader(open_nrrd, (".nrrd", ".nhdr"), frozenset({"axes", "timepoint"})),
    HDF5: Reader(open_hdf5, (".h5", ".hdf5", ".hdf", ".he5"), frozenset({"axes", "timepoint", "dataset"})),
    PNG: Reader(open_png, (".png",), frozenset({"axes"})),
    JPEG: Reader(open_jpeg, (".jpg", ".jpeg"), frozenset({"axes"})),
    SLICES: Reader(open_folder, (), frozenset({"axes", "series", "timepoint", "level"})),
    ZARR: Reader(open_ome_zarr, (".zarr",), frozenset({"axes", "series", "timepoint", "level"})),
}


def open_image(path: Path | str, selection: Selection = NO_CHOICE) -> ImageSource:
    """Open an image; only its header is read.

    Parameters
    ----------
    path : Path or str
    selection : Selection
        Which part of the file is the image.

    Raises
    ------
    UsageError
        Where something is selected that files of this kind do not have.
    InputMissingError
        Where there is nothing under this name or it may not be read.
    BadDataError
        Where it is no image, not the one its name says, damaged, or not one volume.
    RefusedError
        Where it would run code or names files outside its folder.
    """
    path = Path(path)
    found = identify(path)
    promised = next((kind for kind, one in READERS.items() if path.name.lower().endswith(one.suffixes)), None)
    if found not in READERS:
        raise BadDataError(
            f"the file holds {found}" + (f", its name says {promised}" if promised else ""),
            file=path,
            expected=READABLE,
            remedy="convert the image to one of these" if found != "nothing: 0 bytes" else "copy it from its origin",
        )
    if promised not in (None, found):
        raise BadDataError(
            f"the file holds {found}, its name says {promised}",
            file=path,
            remedy="give the file a name that says what it is, and check that it is the right one",
        )
    reader = READERS[found]
    for name, value in asdict(selection).items():
        if value is not None and name not in reader.choices:
            raise UsageError(
                f"{name} {value} is chosen, and a {found} image has none",
                file=path,
                remedy=f"leave --{name} and the column {name} empty for this image",
            )
    with damage_told(path, "the header cannot be read, the file is damaged"):
        return reader.open(path, selection)


def identify(path: Path) -> str:
    """What a file or folder holds, in words, from its first bytes."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            if any((path / name).exists() for name in METADATA_FILES):
                return ZARR
            return SLICES
        if not stat.S_ISREG(mode):
            raise BadDataError("neither a file nor a folder", file=path, expected=READABLE)
        with open(path, "rb") as handle:
            head = handle.read(544)
    except FileNotFoundError as error:
        raise InputMissingError("the image does not exist", file=path, remedy="check the path") from error
    except PermissionError as error:
        raise InputMissingError(
            "no permission to read the image", file=path, remedy="ask its owner for read access"
        ) from error
    if not head:
        return "nothing: 0 bytes"
    if head[:2] == b"\x1f\x8b":
        return _identify_gzip(path)
    return (
        _identify_nifti(head)
        or next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
        or _text(head)
    )


def _identify_nifti(head: bytes) -> str | None:
    sizes = {int.from_bytes(head[:4], order) for order in ("little", "big")}
    if head[4:7] == b"n+2" or head[344:347] == b"n+1":
        return NIFTI
    if head[4:7] == b"ni2" or head[344:347] == b"ni1":
        return "a NIfTI header without its voxels (.hdr of a .hdr/.img pair)"
    if 348 in sizes and len(head) >= 348:
        return "an Analyze 7.5 header"
    return None


def _identify_gzip(path: Path) -> str:
    try:
        with gzip.GzipFile(path) as stream:
            head = stream.read(544)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error
    return NIFTI_GZ if _identify_nifti(head) == NIFTI else "gzip-compressed data that are no NIfTI"


def _text(head: bytes) -> str:
    if head[128:132] == b"DICM":
        return "DICOM"
    if METAIMAGE_HEAD.match(head):
        return METAIMAGE
    printable = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in head)
    if printable < 0.95 * len(head):
        return "unknown data"
    start = head.lstrip()[:100].lower()
    return "HTML" if start.startswith((b"<!doctype html", b"<html")) else "XML" if start.startswith(b"<") else "text"
