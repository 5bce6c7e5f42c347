"""TIFF, BigTIFF, OME-TIFF and ImageJ TIFF, read strip by strip or tile by tile.

tifffile parses the headers and decodes the segments. What it was told and what it found are compared in
``tiff_checks`` and ``ome_xml``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from voxelmill.errors import BadDataError, InputMissingError
from voxelmill.formats import ome_xml
from voxelmill.formats.base import SMALL, Selection, accepted_dtype, all_named, bad_axes, shape_czyx, unreadable
from voxelmill.formats.tiff_checks import (
    FORMATS,
    Page,
    check_alike,
    check_extents,
    check_planes,
    contiguous,
    differing_page,
    open_checked,
)
from voxelmill.formats.tiff_series import (
    at_level,
    choose_series,
    header_spacing,
    pages_are_planes,
    series_axes,
    value_warnings,
)
from voxelmill.formats.tiff_source import TiffSource


def open_tiff(path: Path, selection: Selection) -> TiffSource:
    """Open a TIFF of any flavour.

    Parameters
    ----------
    path : Path
    selection : Selection
        ``axes`` overrules the file's own: one letter out of ``tczyx`` for each that has a length above one;
        ``series``, ``timepoint`` and ``level`` choose.

    Raises
    ------
    BadDataError
        Where the file is cut, declares more than it can hold, has pages that differ or metadata that contradict them,
        or holds several images of which none is chosen.
    InputMissingError
        Where the file belongs to a set of which a file is missing.
    RefusedError
        Where its metadata point outside its folder.
    """
    tif, pages = open_checked(path)
    try:
        xml, warnings = ome_xml.read_ome_xml(tif.pages.first.description, path)
        if xml is not None:
            check_alone(xml, path)
        return open_described(tif, path, xml, {path: pages}, selection, warnings)
    except BaseException:
        tif.close()
        raise


def check_alone(xml: ome_xml.OmeXml, path: Path) -> None:
    """Refuse a file that is one of a set; no other file is opened."""
    others = ome_xml.other_files(xml, path)
    if not others:
        return
    folders = {path.parent, path.resolve().parent}
    missing = [name for name in others if not any((folder / name).exists() for folder in folders)]
    remedy = "name the folder that holds the whole set, and nothing else, as the image"
    if missing:
        raise InputMissingError(
            f"the image is a set of {len(others) + 1} files; missing: {', '.join(missing[:5])}",
            file=path,
            expected="the whole set in one folder, or an OME-TIFF that holds the whole image",
            remedy=f"put the missing files back; {remedy}",
        )
    raise BadDataError(
        f"the image is a set of {len(others) + 1} files, another is {others[0]}",
        file=path,
        expected="the whole set, or an OME-TIFF that holds the whole image",
        remedy=remedy,
    )


def open_described(
    tif: tifffile.TiffFile,
    path: Path,
    xml: ome_xml.OmeXml | None,
    looked_at: dict[Path, list[Page]],
    selection: Selection,
    warnings: list[str],
) -> TiffSource:
    """Open an image whose files have all been looked at.

    Parameters
    ----------
    tif : TiffFile
        From :func:`open_checked`.
    path : Path
        Its name.
    xml : OmeXml or None
        It names no files but those in ``looked_at``.
    looked_at : dict
        The pages of each file.
    selection : Selection
    warnings : list of str
    """
    if xml is None:
        return _open(tif, path, xml, looked_at, selection, warnings)
    if not xml.pixels:
        raise ome_xml.contradiction(path, "the OME-XML describes no image")
    first = tif.pages.first
    planes = sum(map(len, looked_at.values())) * first.samplesperpixel * first.imagedepth
    told = ome_xml.mend(xml, first, planes, path)
    tif.close()
    tif = tifffile.TiffFile(
        path, omexml=ome_xml.for_tifffile(xml, path), is_shaped=False, is_mmstack=False, is_ndtiff=False, is_lsm=False,
        _multifile=len(looked_at) > 1,
    )  # fmt: skip
    try:
        return _open(tif, path, xml, looked_at, selection, warnings + told)
    except BaseException:
        tif.close()
        raise


def _open(
    tif: tifffile.TiffFile,
    path: Path,
    xml: ome_xml.OmeXml | None,
    looked_at: dict[Path, list[Page]],
    selection: Selection,
    warnings: list[str],
) -> TiffSource:
    pages = [page for found in looked_at.values() for page in found]
    differing = differing_page(pages)
    try:
        every = list(tif.series)
    except Exception as error:
        if differing is not None:
            raise BadDataError(differing, file=path, expected="pages of one shape and type") from error
        raise unreadable(path, error) from error
    pixels = None
    if xml is not None and len(every) != len(xml.pixels):
        if len(xml.pixels) == 1:
            key = every[0].keyframe
            ome_xml.check_ome(xml.pixels[0], every[0], len(pages) * key.samplesperpixel * key.imagedepth, path)
        raise ome_xml.contradiction(
            path, f"the OME-XML describes {len(xml.pixels)} images, {len(every)} are in the file"
        )
    for each in every:
        check_planes(tif, each, len(pages), len(every), path)
    number, series, told = choose_series(every, selection, differing if xml is None else None, path)
    key = series.keyframe
    numbers = {(file.resolve(), index): page for file, found in looked_at.items() for index, page in enumerate(found)}
    if xml is not None:
        pixels = xml.pixels[number]
        finest = every[number].keyframe
        ome_xml.check_ome(pixels, every[number], len(pages) * finest.samplesperpixel * finest.imagedepth, path)
        told += _unnamed_pages(xml, every, len(pages), path)
    check_alike(series, numbers, path)
    check_extents(every, path)
    axes = series_axes(series, path, selection)
    shape = tuple(series.shape)
    if not pages_are_planes(series) and series.size * series.dtype.itemsize > SMALL:
        raise bad_axes(path, axes.names, shape)
    channels, *extent = shape_czyx(axes.names, shape)
    _, *finest_extent = shape_czyx(axes.names, tuple(every[number].shape))
    found = header_spacing(tif, key, extent[0], path) if pixels is None else ome_xml.spacing(pixels, extent[0], path)
    spacing, origin = found.value, (0.0, 0.0, 0.0)
    if spacing is not None and extent != finest_extent:
        spacing, origin = at_level(spacing, tuple(finest_extent), tuple(extent))
    return TiffSource(
        path=path,
        format=FORMATS[series.kind],
        shape=(channels - axes.opaque, extent[0], extent[1], extent[2]),
        dtype=accepted_dtype(np.dtype(series.dtype), path),
        spacing=spacing,
        spacing_origin=found.origin,
        warnings=[*warnings, *told, *value_warnings(key, axes.opaque), *found.warnings],
        rgb=axes.rgb,
        axes=axes.names,
        origin=origin,
        channel_names=() if pixels is None else all_named(ome_xml.channel_names(pixels), channels - axes.opaque),
        chunk=_chunk(key, contiguous(series) is not None),
        timepoint=axes.time,
        tif=tif,
        series=series,
        leading=axes.names[: len(axes.names) - len(key.shape)],
        channels=channels,
    )


def _unnamed_pages(xml: ome_xml.OmeXml, every: Sequence[Any], pages: int, path: Path) -> list[str]:
    """Warn of pages that the description does not name."""
    named = len({(page.parent.filehandle.path, page.index) for series in every for page in series.pages})
    if named >= pages:
        return []
    if xml.damage:
        raise ome_xml.contradiction(path, f"the damaged OME-XML speaks of {named} pages, the file has {pages}")
    return [f"{pages - named} of {pages} pages belong to no image of the OME-XML: they are left out"]


def _chunk(key: tifffile.TiffPage, in_one_piece: bool) -> tuple[int, int, int]:
    """What has to be decoded at once, along z, y, x."""
    if in_one_piece or key.is_final:
        return 1, 1, key.imagewidth
    if key.is_tiled:
        return key.tiledepth, key.tilelength, key.tilewidth
    return 1, min(key.rowsperstrip, key.imagelength), key.imagewidth
