"""Pictures of a sample as the report shows them: grey values, label outlines, scale bars."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from voxelmill.pictures import OBJECTS

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
"""Okabe and Ito's palette without black, brightest first."""

STEPS = ((1024, 85), (768, 80), (512, 80), (384, 75), (256, 70), (128, 60), (64, 50))
"""Longer side in pixels and JPEG quality, tried in turn until a sample's pictures fit into their share of the file."""

WIDTH, HEIGHT, GAP, NARROWEST = 1072, 440, 24, 112
"""Room for a sample's pictures in CSS pixels: the page, one row, between two pictures, the narrowest column."""

THUMBNAIL = 168

OBJECT_LONGEST, PATH_POINTS = 512, 512
"""Longer side of an object's picture in pixels, and the most points of the path drawn above it."""

LARGEST_CHART = 300_000
"""Bytes of a chart; a larger one is left out, its numbers are in the tables."""


@dataclass(frozen=True)
class ScaleBar:
    """A line of a round length below a picture; ``percent`` is its share of the picture's width."""

    percent: float
    text: str


@dataclass(frozen=True)
class Figure:
    """One picture: a grey image, and the outlines of the labels as a layer above it, both as data addresses.

    Attributes
    ----------
    title, alternative : str
        Caption, and what is said where the picture is not seen.
    grey : str
    outlines : str or None
        None where there are no labels.
    aspect : float
        Physical width over height.
    fill : float
        Percentage of its column that it takes.
    coarse : bool
        Its pixels are larger than the screen's and are shown as squares.
    bar : ScaleBar
    area : str
        Its cell in the sample's grid: ``max``, ``z``, ``x`` or ``y``; empty in the gallery.
    path : str
        Points of a line drawn above it, x and y as shares of 1000; empty for none.
    """

    title: str
    alternative: str
    grey: str
    outlines: str | None
    aspect: float
    fill: float
    coarse: bool
    bar: ScaleBar
    area: str
    path: str = ""


@dataclass(frozen=True)
class Views:
    """The pictures of one channel, and the grid that keeps them at one physical scale.

    ``columns`` is the grid's template, ``width`` its largest width in CSS pixels, ``limits`` the grey values shown as
    black and white of the slices and of the projection.
    """

    channel: str
    figures: tuple[Figure, ...]
    columns: str
    width: float
    flat: bool
    limits: tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class _View:
    """One picture before it is encoded: pixels of the image and the labels, and its physical size (height, width).

    ``parted`` are ids of objects that may touch, whose outlines are drawn instead of those of the labels.
    """

    area: str
    title: str
    grey: np.ndarray
    labels: np.ndarray | None
    parted: np.ndarray | None
    extent: tuple[float, float]


def class_indices(values: Sequence[int]) -> dict[int, int]:
    """Label value -> position of its colour, in the order of the model's classes, background left out."""
    return {value: index % len(COLOURS) for index, value in enumerate(value for value in values if value != 0)}


def outline_mask(labels: np.ndarray, radius: int = 1) -> np.ndarray:
    """Pixels of an object that lie within ``radius`` pixels (a square) of another value; never background.

    Parameters
    ----------
    labels : np.ndarray
        Label values (height, width).
    radius : int
        Thickness of the outline.

    Returns
    -------
    np.ndarray
        bool (height, width)
    """
    window = 2 * radius + 1
    largest = ndimage.maximum_filter(labels, window, mode="nearest")
    return (labels != 0) & (largest != ndimage.minimum_filter(labels, window, mode="nearest"))


def sample_views(
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    unit: str,
    pictures: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray] | None,
    channels: Sequence[str],
    colours: Mapping[int, int],
    budget: int,
) -> tuple[Views, ...]:
    """Pictures of all channels of a sample, as large as the budget allows.

    Parameters
    ----------
    shape : tuple of int
        Voxels (z, y, x).
    spacing : tuple of float
        Voxel size (z, y, x) in ``unit``.
    unit : str
        ``um`` or ``pixel``.
    pictures : mapping
        Contents of ``<sample>.projections.npz``: uint8 (channels, height, width), and ``limits``.
    labels : mapping or None
        Contents of ``<sample>.label_pictures.npz``: label values (1, height, width), and ids of objects that may touch.
    channels : sequence of str
        Names in the model's order.
    colours : mapping
        Result of `class_indices`.
    budget : int
        Characters that the pictures may take in the file.
    """
    groups = [_views(shape, spacing, pictures, labels, channel) for channel in range(len(pictures["mid_z"]))]
    encoded: list[list[tuple[str, str | None]]] = []
    for longest, quality in STEPS:
        encoded = [
            [_encode(view, longest, quality, colours, max(1, longest // 512)) for view in group] for group in groups
        ]
        if sum(len(grey) + len(outlines or "") for group in encoded for grey, outlines in group) <= budget:
            break
    limits = pictures["limits"]
    return tuple(
        _arrange(shape, spacing, unit, group, layers, channels[index] if len(groups) > 1 else "", limits[index])
        for index, (group, layers) in enumerate(zip(groups, encoded, strict=True))
    )


def thumbnail(
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    pictures: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray] | None,
    colours: Mapping[int, int],
) -> str:
    """A small projection of the first channel with its outlines, for the summary table."""
    view = _views(shape, spacing, pictures, labels, 0)[0]
    height, width = _pixels(view.extent, THUMBNAIL)
    image = Image.fromarray(view.grey).resize((width, height), Image.Resampling.BOX).convert("RGB")
    if view.labels is not None:
        image.paste(*_paint(_nearest(view.labels, height, width), colours, 1))
    return _data_address(image, "JPEG", quality=80)


def object_figure(
    title: str,
    line: str,
    grey: np.ndarray,
    mask: np.ndarray,
    path: np.ndarray,
    extent: tuple[float, float],
    unit: str,
    colour: int,
) -> Figure:
    """One object of the gallery: a projection with its outline and the path that its length is measured along.

    Parameters
    ----------
    title : str
    line : str
        What the path is called.
    grey : np.ndarray
        uint8 (height, width).
    mask : np.ndarray
        bool, of the same shape.
    path : np.ndarray
        Row and column of each point (n, 2), where pixel i reaches from i to i + 1; empty where the object has no path.
    extent : tuple of float
        Physical height and width.
    unit : str
        ``um`` or ``pixel``.
    colour : int
        Index in `COLOURS`.
    """
    view = _View("", title, grey, mask.astype(np.uint8), None, extent)
    image, outlines = _encode(view, OBJECT_LONGEST, 80, {1: colour}, radius=2)
    aspect = extent[1] / extent[0]
    steps = np.linspace(0, len(path) - 1, min(len(path), PATH_POINTS)).round().astype(int)
    points = path[steps][:, ::-1] * 1000 / (grey.shape[1], grey.shape[0])
    return Figure(
        title=title,
        alternative=f"{title} object with its outline" + (f" and its {line}" if len(path) > 1 else ""),
        grey=image,
        outlines=outlines,
        aspect=round(aspect, 6),
        fill=round(100 * min(1.0, aspect), 2),
        coarse=max(grey.shape) < OBJECT_LONGEST // 2,
        bar=scale_bar(extent[1], unit),
        area="",
        path=" ".join(f"{x:.0f},{y:.0f}" for x, y in points) if len(path) > 1 else "",
    )


def svg_address(path: Path) -> str | None:
    """A chart as a data address; None where it is larger than `LARGEST_CHART`."""
    data = path.read_bytes()
    return None if len(data) > LARGEST_CHART else f"data:image/svg+xml;base64,{base64.b64encode(data).decode()}"


def scale_bar(extent: float, unit: str) -> ScaleBar:
    """The longest bar of 1, 2 or 5 times a power of ten that is at most 30 % of a picture's width."""
    power = 10.0 ** math.floor(math.log10(0.3 * extent))
    length = max(step * power for step in (1, 2, 5) if step * power <= 0.3 * extent * (1 + 1e-9))
    text = f"{length:g} px" if unit == "pixel" else f"{length:g} µm" if length < 1000 else f"{length / 1000:g} mm"
    return ScaleBar(round(100 * length / extent, 2), text)


def _views(
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    pictures: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray] | None,
    channel: int,
) -> list[_View]:
    z, y, x = (n * step for n, step in zip(shape, spacing, strict=True))

    def view(area: str, title: str, key: str, extent: tuple[float, float], turned: bool = False) -> _View:
        grey = pictures[key][channel]
        mask, ids = (None if labels is None or name not in labels else labels[name][0] for name in (key, OBJECTS + key))
        if turned:
            grey, mask, ids = (None if array is None else array.T for array in (grey, mask, ids))
        return _View(area, title, grey, mask, ids, extent)

    if shape[0] == 1:
        return [view("z", "Image", "mid_z", (y, x))]
    return [
        view("max", "Maximum along z", "max_z", (y, x)),
        view("z", f"Slice z {shape[0] // 2} of {shape[0]}", "mid_z", (y, x)),
        view("x", f"Slice x {shape[2] // 2} of {shape[2]}", "mid_x", (y, z), turned=True),
        view("y", f"Slice y {shape[1] // 2} of {shape[1]}", "mid_y", (z, x)),
    ]


def _arrange(
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    unit: str,
    views: list[_View],
    layers: list[tuple[str, str | None]],
    channel: str,
    limits: np.ndarray,
) -> Views:
    z, y, x = (n * step for n, step in zip(shape, spacing, strict=True))
    flat = len(views) == 1
    if flat:
        scale = min(0.6 * WIDTH / x, 1.5 * HEIGHT / y)
        columns, width = "1fr", x * scale
    else:
        room = WIDTH - 2 * GAP
        scale = min(room / (2 * x + z), (room - NARROWEST) / (2 * x), HEIGHT / y, 1.4 * HEIGHT / z)
        wide, thin = max(x * scale, NARROWEST), max(z * scale, NARROWEST)
        columns, width = f"{wide:.0f}fr {wide:.0f}fr {thin:.0f}fr", 2 * wide + thin + 2 * GAP
    figures = []
    for view, (grey, outlines) in zip(views, layers, strict=True):
        shown = view.extent[1] * scale
        figures.append(
            Figure(
                title=view.title,
                alternative=view.title + (" with label outlines" if outlines else ""),
                grey=grey,
                outlines=outlines,
                aspect=round(view.extent[1] / view.extent[0], 6),
                fill=round(100 * min(1.0, shown / max(shown, 0 if flat else NARROWEST)), 2),
                coarse=view.grey.shape[1] < shown and view.grey.shape[0] < view.extent[0] * scale,
                bar=scale_bar(view.extent[1], unit),
                area=view.area,
            )
        )
    slices, projection = ((float(low), float(high)) for low, high in limits)
    return Views(channel, tuple(figures), columns, round(width), flat, (slices, projection))


def _encode(view: _View, longest: int, quality: int, colours: Mapping[int, int], radius: int) -> tuple[str, str | None]:
    image = Image.fromarray(view.grey)
    image = image.resize([min(n, longest) for n in image.size], Image.Resampling.BOX)
    grey = _data_address(image, "JPEG", quality=quality)
    if view.labels is None:
        return grey, None
    height, width = _pixels(view.extent, longest)
    labels = _nearest(view.labels, height, width)
    edges = outline_mask(labels if view.parted is None else _nearest(view.parted, height, width), radius)
    index = np.where(edges, _lookup(labels, colours), 0).astype(np.uint8)
    layer = Image.fromarray(index, mode="P")
    layer.putpalette(bytes(3) + b"".join(_rgb(colour) for colour in COLOURS))
    return grey, _data_address(layer, "PNG", transparency=0, bits=4)


def _paint(labels: np.ndarray, colours: Mapping[int, int], radius: int) -> tuple[Image.Image, None, Image.Image]:
    """Colours of all pixels, and the mask of those on an outline: arguments of ``Image.paste``."""
    palette = np.frombuffer(bytes(3) + b"".join(_rgb(colour) for colour in COLOURS), np.uint8).reshape(-1, 3)
    return Image.fromarray(palette[_lookup(labels, colours)]), None, Image.fromarray(outline_mask(labels, radius))


def _lookup(labels: np.ndarray, colours: Mapping[int, int]) -> np.ndarray:
    """Label values -> palette entries: 0 is nothing, then one per colour."""
    table = np.zeros(max(int(labels.max(initial=0)), *colours, 0) + 1, np.uint8)
    for value, colour in colours.items():
        table[value] = colour + 1
    return table[labels]


def _pixels(extent: tuple[float, float], longest: int) -> tuple[int, int]:
    """Square pixels (height, width) for a physical extent, the longer side as given."""
    scale = longest / max(extent)
    height, width = (max(1, round(side * scale)) for side in extent)
    return height, width


def _nearest(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    rows = np.arange(height) * labels.shape[0] // height
    columns = np.arange(width) * labels.shape[1] // width
    return labels[np.ix_(rows, columns)]


def _rgb(colour: str) -> bytes:
    return bytes.fromhex(colour[1:])


def _data_address(image: Image.Image, kind: str, **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
