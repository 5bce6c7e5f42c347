"""OME-XML: read with suspicion, mended where it is damaged.

What tifffile is given is not the text of the file but what was understood of it, with names of other files only where
they were looked at before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element, ParseError, SubElement, tostring

import numpy as np
import tifffile
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException
from lxml import etree

from voxelmill.errors import BadDataError, RefusedError
from voxelmill.formats.spacing import Spacing, from_lengths

MAX_XML = 64 << 20

TYPES = {
    "bit": ("b1", "u1"), "int8": ("i1",), "int16": ("i2",), "int32": ("i4",), "uint8": ("u1",), "uint16": ("u2",),
    "uint32": ("u4",), "float": ("f4",), "double": ("f8",),
}  # fmt: skip

UNREADABLE = "no part of it can be used: the file is read as a plain TIFF, without names of axes and without voxel size"

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_DECLARATION = re.compile(r"<!\s*(DOCTYPE|ENTITY)", re.IGNORECASE)
_START = re.compile(r"<(\w+:)?OME[\s>]")
# The sign for micro after a wrong turn between Latin-1 and UTF-8, or lost on the way.
_MICRO = {"Âµ": "µ", "Î¼": "µ", "\ufffd": "µ", "&#181;": "µ", "Âμ": "µ"}


@dataclass(frozen=True)
class OmeXml:
    """What could be read of a description.

    Attributes
    ----------
    root : Element
        Without namespaces.
    damage : str
        What is wrong with the text, empty where nothing is.
    """

    root: Element
    damage: str = ""

    @property
    def pixels(self) -> list[Element]:
        return [pixels for image in children(self.root, "Image") for pixels in children(image, "Pixels")]

    @property
    def names(self) -> list[str]:
        return [image.get("Name", "") for image in children(self.root, "Image") for _ in children(image, "Pixels")]


def children(element: Element, name: str) -> list[Element]:
    return [child for child in element if child.tag == name]


def read_ome_xml(description: str, path: Path) -> tuple[OmeXml | None, list[str]]:
    """The OME-XML of a description and warnings; None where it is something else or nothing of it can be used.

    Raises
    ------
    BadDataError
        Where it is too long, or declares a document type or entities, whose only use here is an attack.
    """
    if not _START.search(description[:4096]):
        return None, []
    if len(description) > MAX_XML:
        raise BadDataError(f"the OME-XML has {len(description)} characters", file=path, expected=f"at most {MAX_XML}")
    try:
        # Bytes that are no UTF-8 reach us as Latin-1; encoding again would hide them from the parser.
        return OmeXml(_plain(ElementTree.fromstring(description.encode(), forbid_dtd=True))), []
    except DefusedXmlException as error:
        raise _declares(path, type(error).__name__) from error
    except (ParseError, ValueError) as error:
        damage = " ".join(str(error).split())[:100]
    if declared := _DECLARATION.search(description):
        raise _declares(path, declared[1].upper())
    root = _recovered(description)
    xml = None if root is None else OmeXml(root, damage)
    if xml is None or not (xml.pixels or children(xml.root, "BinaryOnly")):
        return None, [f"the OME-XML is damaged ({damage}) and {UNREADABLE}"]
    return xml, [f"the OME-XML is damaged ({damage}): what can be read of it is used"]


def _declares(path: Path, what: str) -> BadDataError:
    return BadDataError(
        f"the OME-XML declares a document type or entities ({what})",
        file=path,
        remedy="do not use this file; ask where it comes from",
    )


def _recovered(description: str) -> Element | None:
    """What libxml2 makes of a damaged text; nothing outside the text is looked at."""
    start = _START.search(description)
    text = _CONTROL.sub("", description[start.start() if start else 0 :])
    parser = etree.XMLParser(
        recover=True, resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False,
        remove_comments=True, remove_pis=True, huge_tree=False, encoding="utf-8",
    )  # fmt: skip
    try:
        root = etree.fromstring(text.encode("utf-8", "replace"), parser)
    except (etree.XMLSyntaxError, ValueError):
        return None
    return None if root is None else _plain(root)


def _plain(element: Any) -> Element:
    """A copy without namespaces: those of many writers are wrong, and names say enough."""
    copy = Element(_local(element.tag), {_local(name): value for name, value in element.attrib.items()})
    waiting = [(element, copy)]
    while waiting:
        source, target = waiting.pop()
        target.text = source.text
        for child in source:
            if isinstance(child.tag, str):
                attributes = {_local(name): value for name, value in child.attrib.items()}
                waiting.append((child, SubElement(target, _local(child.tag), attributes)))
    return copy


def _local(name: str) -> str:
    return name.rpartition("}")[2].rpartition(":")[2]


def other_files(xml: OmeXml, path: Path) -> list[str]:
    """Names of the other files of a set, sorted; none of them is opened.

    Raises
    ------
    RefusedError
        Where one is not in the image's own folder.
    """
    own = xml.root.get("UUID")
    named = [element.get("MetadataFile", "") for element in children(xml.root, "BinaryOnly")]
    # A file that was renamed still has its own identifier.
    named += [element.get("FileName", "") for element in xml.root.iter("UUID") if own is None or element.text != own]
    others = sorted({name for name in named if name and name != path.name})
    for name in others:
        check_name(name, path)
    return others


def check_name(name: str, path: Path) -> None:
    """Refuse the name of a file that is not in the image's own folder."""
    pure = PurePosixPath(name.replace("\\", "/"))
    if len(pure.parts) != 1 or pure.name == ".." or ":" in name or not name.isprintable():
        raise RefusedError(
            f"the OME-XML names the file {name!r}, which is outside the image's folder",
            file=path,
            remedy="do not use this file; ask where it comes from",
        )


def for_tifffile(xml: OmeXml, path: Path) -> str:
    """The text that tifffile gets: files go by their names, which have been checked, and identifiers are dropped."""
    own = xml.root.attrib.pop("UUID", None)
    for pixels in xml.pixels:
        for data in children(pixels, "TiffData"):
            for uuid in children(data, "UUID"):
                name = uuid.get("FileName", "")
                if not name and own is not None and uuid.text != own:
                    raise BadDataError(
                        "the OME-XML places a plane in another file, which it does not name",
                        file=path,
                        remedy="copy the file again from its origin, or save the image to one file",
                    )
                if name in ("", path.name) or (own is not None and uuid.text == own):
                    data.remove(uuid)
                else:
                    uuid.text = name
    root = Element("OME")
    root.extend(child for child in xml.root if child.tag in ("Image", "StructuredAnnotations"))
    return tostring(root, encoding="unicode")


def mend(xml: OmeXml, page: tifffile.TiffPage, planes: int, path: Path) -> list[str]:
    """Fill in what is missing and follows from the pages; -> warnings.

    Parameters
    ----------
    xml : OmeXml
        Changed in place.
    page : TiffPage
    planes : int
        Held by the file or the set.
    path : Path

    Raises
    ------
    BadDataError
        Where a size is missing that does not follow, or none says in which order several axes run.
    """
    warnings: list[str] = []
    for pixels in xml.pixels:
        known = {f"Size{axis}": size for axis in "XYZCT" if (size := _size(pixels, axis, path)) is not None}
        found = {"SizeX": page.imagewidth, "SizeY": page.imagelength}
        lacking = [f"Size{axis}" for axis in "ZCT" if f"Size{axis}" not in known]
        if len(xml.pixels) > 1 and lacking:
            raise contradiction(path, f"the OME-XML has no {', '.join(lacking)} for one of {len(xml.pixels)} images")
        if lacking:
            rest = prod(known.get(f"Size{axis}", 1) for axis in "ZCT")
            length, over = divmod(planes, rest)
            if over or (length > 1 and len(lacking) > 1):
                raise contradiction(path, f"the OME-XML has no {', '.join(lacking)}, the file {planes} planes")
            found |= dict.fromkeys(lacking, length)
        missing = [name for name in ("SizeX", "SizeY", *lacking) if name not in known]
        for name in missing:
            pixels.set(name, str(found[name]))
        if missing:
            told = ", ".join(f"{name} {found[name]}" for name in missing)
            warnings.append(f"the OME-XML lacks {', '.join(missing)}: the pages say {told}")
        order = pixels.get("DimensionOrder", "")
        if sorted(order) != sorted("XYZCT") or not order.startswith("XY"):
            if sum(int(pixels.get(f"Size{axis}", "1")) > 1 for axis in "ZCT") > 1:
                raise contradiction(path, f"the OME-XML says {order or 'nothing'} as the order of the axes")
            pixels.set("DimensionOrder", "XYZCT")
            warnings.append("the OME-XML does not say in which order the axes run; only one is longer than 1")
        if xml.damage and not other_files(xml, path):
            _complete_planes(pixels)
    return warnings


def _size(pixels: Element, axis: str, path: Path) -> int | None:
    text = pixels.get(f"Size{axis}")
    if text is None:
        return None
    try:
        size = int(text)
    except ValueError as error:
        raise contradiction(path, f"the OME-XML says Size{axis} {text[:40]!r}") from error
    if size < 1:
        raise contradiction(path, f"the OME-XML says Size{axis} {size}")
    return size


def _complete_planes(pixels: Element) -> None:
    """Where damage took some of the lines that say which page is which plane, pages are planes in order."""
    every = children(pixels, "TiffData")
    sizes = prod(int(pixels.get(f"Size{axis}", "1")) for axis in "ZCT")
    told = sum(int(data.get("PlaneCount", data.get("NumPlanes", "1"))) for data in every)
    if told < sizes and not any(data.get("IFD") is None and data.get("PlaneCount") is None for data in every):
        for data in every:
            pixels.remove(data)
        SubElement(pixels, "TiffData")


def check_ome(pixels: Element, series: tifffile.TiffPageSeries, held: int, path: Path) -> None:
    """Refuse a description that contradicts the pixels of its image.

    Parameters
    ----------
    pixels : Element
    series : TiffPageSeries
    held : int
        Planes in the file or the set.
    path : Path
    """
    key = series.keyframe
    sizes = {axis: int(pixels.get(f"Size{axis}", "1")) for axis in "XYZCT"}
    shown = " x ".join(f"{axis} {sizes[axis]}" for axis in "TCZYX")
    if (sizes["X"], sizes["Y"]) != (key.imagewidth, key.imagelength):
        raise contradiction(path, f"the OME-XML says {shown}, the pages are Y {key.imagelength} x X {key.imagewidth}")
    planes = sizes["Z"] * sizes["C"] * sizes["T"]
    if planes > held:
        raise contradiction(path, f"the OME-XML says {shown}, which is {planes} planes; the file holds {held}")
    kind = pixels.get("Type", "")
    if kind in TYPES and np.dtype(key.dtype).str[1:] not in TYPES[kind]:
        raise contradiction(path, f"the OME-XML says {kind}, the pixels are {key.dtype}")
    if series.kind != "ome" or any(page is None for page in series.pages):
        raise contradiction(path, f"the OME-XML says {shown}, but its planes do not map to the file's {held}")


def contradiction(path: Path, found: str) -> BadDataError:
    return BadDataError(
        f"{found}: the metadata contradict the pixels",
        file=path,
        remedy="save the image again as OME-TIFF, or remove the wrong ImageDescription",
    )


def channel_names(pixels: Element) -> list[str]:
    """Names of the channels, of which one may stand for the colours of a pixel; empty ones where they are not told."""
    return [channel.get("Name", "") for channel in children(pixels, "Channel")]


def spacing(pixels: Element, planes: int, path: Path) -> Spacing:
    """Voxel size of an image of ``planes`` planes."""
    lengths: dict[str, tuple[float, str]] = {}
    warnings: list[str] = []
    for axis in "XYZ":
        text = pixels.get(f"PhysicalSize{axis}")
        if not text:
            continue
        try:
            size = float(text)
        except ValueError:
            warnings.append(f"OME-XML has a voxel size of {text[:40]!r} along {axis.lower()}, which is no number")
            continue
        lengths[axis.lower()] = (size, _unit(pixels.get(f"PhysicalSize{axis}Unit", "µm"), warnings))
    found = from_lengths(lengths, planes, "OME-XML", path)
    return Spacing(found.value, found.origin, (*dict.fromkeys(warnings), *found.warnings))


def _unit(text: str, warnings: list[str]) -> str:
    for wrong, right in _MICRO.items():
        if text == wrong + "m":
            warnings.append(f"OME-XML has the unit {text!r}, a damaged µm: micrometres")
            return right + "m"
    return text
