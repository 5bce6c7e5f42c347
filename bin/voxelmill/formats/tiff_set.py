"""An OME-TIFF in several files, named by the folder that holds them and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from voxelmill.errors import BadDataError, InputMissingError
from voxelmill.formats import ome_xml
from voxelmill.formats.base import Selection
from voxelmill.formats.tiff import open_described
from voxelmill.formats.tiff_checks import Page, open_checked
from voxelmill.formats.tiff_source import TiffSource

COMPANION = ".companion.ome"


def describes_set(path: Path) -> bool:
    """The TIFF file says that its image needs other files."""
    tif, _ = open_checked(path)
    with tif:
        xml, _ = ome_xml.read_ome_xml(tif.pages.first.description, path)
    return xml is not None and bool(ome_xml.other_files(xml, path))


def open_set(folder: Path, files: Sequence[Path], selection: Selection) -> TiffSource:
    """Open the image whose files are all that a folder holds.

    Every name in the description is looked at before tifffile sees it, and every file.

    Parameters
    ----------
    folder : Path
    files : sequence of Path
        All files of the folder; the first is a TIFF that describes a set.
    selection : Selection

    Raises
    ------
    BadDataError
        Where the files and the description contradict each other.
    InputMissingError
        Where a file is missing.
    RefusedError
        Where the description names a file elsewhere.
    """
    here = {file.name: file for file in files}
    xml, main, warnings = _description(files[0], here)
    named = {*ome_xml.other_files(xml, main), main.name}
    if len({name.lower() for name in named}) < len(named):
        raise BadDataError("the OME-XML names two files that differ in capitals only", file=folder)
    _all_here(named, here, folder)
    members = {name for name in named if not name.endswith(COMPANION)}
    spare = sorted(set(here) - named - {name for name in here if name.endswith(COMPANION)})
    if spare:
        raise BadDataError(
            f"the folder holds an OME-TIFF of {len(members)} files and, besides, {', '.join(spare[:5])}",
            file=folder,
            expected="the files of one image and nothing else",
            remedy="move the others away",
        )
    looked_at: dict[Path, list[Page]] = {}
    for name in sorted(members - {main.name}):
        tif, pages = open_checked(here[name])
        tif.close()
        looked_at[here[name]] = pages
    tif, pages = open_checked(main)
    looked_at = {main: pages, **looked_at}
    try:
        source = open_described(tif, main, xml, looked_at, selection, warnings)
    except BaseException:
        tif.close()
        raise
    source.path, source.format = folder, f"OME-TIFF in {len(members)} files"
    return source


def _description(first: Path, here: dict[str, Path]) -> tuple[ome_xml.OmeXml, Path, list[str]]:
    """The description of a set, the TIFF that is opened first, and warnings.

    Most files of a set may only say where the description is: in another TIFF or in a companion file.
    """
    xml, warnings = _of_tiff(first)
    elsewhere = [element.get("MetadataFile", "") for element in ome_xml.children(xml.root, "BinaryOnly")]
    if not elsewhere:
        return xml, first, warnings
    name = elsewhere[0]
    ome_xml.check_name(name, first)
    _all_here({name}, here, first.parent)
    if not name.endswith(COMPANION):
        xml, warnings = _of_tiff(here[name])
        if ome_xml.children(xml.root, "BinaryOnly"):
            raise BadDataError("the OME-XML of each file says that another one has it", file=here[name])
        return xml, here[name], warnings
    if here[name].stat().st_size > ome_xml.MAX_XML:
        raise BadDataError("the companion file is too long", file=here[name], expected=f"at most {ome_xml.MAX_XML}")
    found, warnings = ome_xml.read_ome_xml(here[name].read_bytes().decode("utf-8-sig", "replace"), here[name])
    if found is None:
        raise BadDataError("the companion file holds no OME-XML", file=here[name], expected="OME-XML")
    # What has an identifier of its own in a companion file is the companion file.
    found.root.attrib.pop("UUID", None)
    return found, first, warnings


def _of_tiff(path: Path) -> tuple[ome_xml.OmeXml, list[str]]:
    tif, _ = open_checked(path)
    with tif:
        xml, warnings = ome_xml.read_ome_xml(tif.pages.first.description, path)
    if xml is None:
        raise BadDataError("a file of an OME-TIFF set holds no OME-XML", file=path)
    return xml, warnings


def _all_here(names: set[str], here: dict[str, Path], folder: Path) -> None:
    missing = sorted(names - set(here))
    if missing:
        raise InputMissingError(
            f"the image is a set of {len(names)} files; missing: {', '.join(missing[:5])}"
            + (f" and {len(missing) - 5} more" if len(missing) > 5 else ""),
            file=folder,
            expected="all files of the set in one folder",
            remedy="put the missing files back",
        )
