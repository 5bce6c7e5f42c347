"""Readers of images: one per format, picked by what a file holds and not by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from voxelmill.errors import BadDataError, UsageError
from voxelmill.formats.base import NO_CHOICE, ImageSource, InPlace, Selection, damage_told
from voxelmill.formats.hdf5 import open_hdf5
from voxelmill.formats.identify import (
    HDF5,
    JPEG,
    METAIMAGE,
    NIFTI,
    NIFTI_GZ,
    NRRD,
    PNG,
    READABLE,
    SLICES,
    TIFF,
    ZARR,
    identify,
)
from voxelmill.formats.metaimage import open_metaimage
from voxelmill.formats.nifti import open_nifti
from voxelmill.formats.nrrd import open_nrrd
from voxelmill.formats.ome_zarr import open_ome_zarr
from voxelmill.formats.picture import open_jpeg, open_png
from voxelmill.formats.slices import open_folder
from voxelmill.formats.tiff import open_tiff

__all__ = [
    "ImageSource",
    "InPlace",
    "Selection",
    "identify",
    "open_image",
]


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
