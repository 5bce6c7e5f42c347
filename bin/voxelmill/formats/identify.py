"""What a file or folder holds, by its first bytes and not by its name."""

from __future__ import annotations

import gzip
import re
import stat
import zlib
from pathlib import Path

from voxelmill.errors import BadDataError, InputMissingError
from voxelmill.formats.base import unreadable
from voxelmill.formats.zarr_metadata import METADATA_FILES

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
