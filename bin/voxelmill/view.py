"""Layers of a sample's results for napari: the image, its labels, its probabilities. napari itself is not needed here.

Everything is read when it is looked at, from the resolution that is looked at. Positions and lengths are micrometres
along z, y, x, so that layers lie over each other whatever files they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from voxelmill.errors import DeviceAbsentError, InputMissingError, VoxelmillError
from voxelmill.files import read_json
from voxelmill.formats import open_image
from voxelmill.formats.base import NO_CHOICE, ImageSource, Selection
from voxelmill.image import Box

IMAGE, LABELS = "image", "labels"
LABEL_STORE, PROBABILITY_STORE = "labels.ome.zarr", "probabilities.ome.zarr"
LAYERS_OF_LABELS = ("semantic", "instances")
CHANNEL_COLOURS = ("green", "magenta", "cyan", "yellow", "red", "blue")


class Volume:
    """One channel of an image as an array (z, y, x) that reads what is asked of it."""

    def __init__(self, source: ImageSource, channel: int):
        self.source, self.channel = source, channel
        self.shape, self.dtype = source.shape[1:], source.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        """Numbers, slices of ascending order and an ellipsis, as of an array."""
        keys = list(key) if isinstance(key, tuple) else [key]
        if Ellipsis in keys:
            at = keys.index(Ellipsis)
            keys[at : at + 1] = [slice(None)] * (self.ndim - len(keys) + 1)
        keys += [slice(None)] * (self.ndim - len(keys))
        box: list[tuple[int, int]] = []
        inside: list[int | slice] = []
        for one, size in zip(keys, self.shape, strict=True):
            if isinstance(one, slice):
                start, stop, step = one.indices(size)
                if step < 0:
                    raise IndexError("steps run upwards")
                box.append((start, max(start, stop)))
                inside.append(slice(None, None, step))
            else:
                index = int(one) + (size if one < 0 else 0)
                if not 0 <= index < size:
                    raise IndexError(f"index {int(one)} of an axis of {size}")
                box.append((index, index + 1))
                inside.append(0)
        where: Box = tuple(box)
        return self.source.read(self.channel, where)[tuple(inside)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[...], dtype)


@dataclass(frozen=True)
class Layer:
    """What napari shows.

    Attributes
    ----------
    kind : str
        ``image`` or ``labels``.
    data : list of array-like
        The same volume (z, y, x) in falling resolution.
    kwargs : dict
        Arguments of ``Viewer.add_image`` or ``add_labels``.
    colours : dict
        Label -> red, green, blue, opacity from 0 to 1; empty where napari may choose.
    names : dict
        Label -> class.
    """

    kind: str
    data: list[Volume]
    kwargs: dict[str, Any]
    colours: dict[int, tuple[float, ...]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)


def layers(folder: Path, images: Sequence[Path] = ()) -> tuple[list[Layer], list[str]]:
    """Layers of a sample, image first.

    Parameters
    ----------
    folder : Path
        A sample's folder in the results.
    images : sequence of Path
        The image, or one file per channel; without it the one that the run had, where it still lies.

    Returns
    -------
    layers : list of Layer
    notes : list of str
        What is not shown, and why.

    Raises
    ------
    InputMissingError
        No such results, or no such image.
    """
    folder = Path(folder).resolve()
    store = folder / LABEL_STORE
    if not store.is_dir():
        raise InputMissingError(f"no {LABEL_STORE} in this folder", file=folder, remedy=where_instead(folder))
    found: list[Layer] = []
    for name in LAYERS_OF_LABELS:
        if (store / name).is_dir():
            found.append(label_layer(store / name, name))
    of_image, notes = image_layers(folder, images, found[0].kwargs)
    return [*of_image, *probability_layers(folder / PROBABILITY_STORE), *found], notes


def where_instead(folder: Path) -> str:
    samples = sorted(path.parent.name for path in folder.glob(f"*/{LABEL_STORE}"))
    return f"pass a sample's folder: {', '.join(samples[:8])}" if samples else "pass <outdir>/<sample> of a run"


def pyramid(path: Path, selection: Selection = NO_CHOICE) -> list[ImageSource]:
    """The image at the chosen level and all coarser ones that it has."""
    first = selection.level or 0
    levels = [open_image(path, selection)]
    while True:
        try:
            level = open_image(path, replace(selection, level=first + len(levels)))
        except VoxelmillError:
            return levels
        if level.shape[0] != levels[-1].shape[0] or not np.prod(level.shape) < np.prod(levels[-1].shape):
            return levels
        levels.append(level)


def placed(spacing: Sequence[float] | None, origin: Sequence[float]) -> dict[str, Any]:
    """Where a volume lies."""
    scale = [1.0] * 3 if spacing is None else list(map(float, spacing))
    return {
        "scale": scale,
        "translate": list(map(float, origin)),
        "units": ["pixel" if spacing is None else "micrometer"] * 3,
        "axis_labels": ["z", "y", "x"],
    }


def label_layer(path: Path, name: str) -> Layer:
    """One label image of the store."""
    levels = pyramid(path)
    described = attributes(path).get("ome", {}).get("image-label", {})
    colours = {
        int(entry["label-value"]): tuple(part / 255 for part in entry["rgba"]) for entry in described.get("colors", [])
    }
    names = {int(entry["label-value"]): str(entry["class"]) for entry in described.get("properties", [])}
    kwargs = {"name": name, "opacity": 0.5, "visible": name == "instances" or not (path.parent / "instances").is_dir()}
    where = placed(levels[0].spacing, levels[0].origin)
    return Layer(LABELS, [Volume(level, 0) for level in levels], {**kwargs, **where}, colours, names)


def attributes(path: Path) -> dict[str, Any]:
    """Attributes of a Zarr group."""
    found: dict[str, Any] = zarr.open_group(str(path), mode="r").attrs.asdict()
    return found


def probability_layers(path: Path) -> Iterator[Layer]:
    """One hidden layer per class of the probabilities."""
    if not path.is_dir():
        return
    levels = pyramid(path)
    largest = attributes(path).get("probabilities", {}).get("largest_step", 255)
    for channel in range(levels[0].shape[0]):
        name = levels[0].channel_names[channel] if levels[0].channel_names else str(channel)
        yield Layer(
            IMAGE,
            [Volume(level, channel) for level in levels],
            {
                "name": f"probability of {name}",
                "visible": False,
                "blending": "additive",
                "colormap": "inferno",
                "contrast_limits": [0, largest],
                **placed(levels[0].spacing, levels[0].origin),
            },
        )


def image_layers(folder: Path, given: Sequence[Path], labels: dict[str, Any]) -> tuple[list[Layer], list[str]]:
    """One layer per channel of the image, and what there is to say about it."""
    entry = entry_of(folder)
    if given:
        selections = [NO_CHOICE] * len(given)
        if entry is not None and len(entry["files"]) == len(given):
            selections = selections_of(entry)
        paths: list[Path] = [Path(path) for path in given]
    elif entry is None:
        return [], ["the image is not shown: this folder has no record of it; name it with --image"]
    else:
        found = [find_image(name, folder.parent) for name in entry["files"]]
        selections, paths = selections_of(entry), [path for path in found if path is not None]
        if len(paths) < len(found):
            lost = next(name for name, path in zip(entry["files"], found, strict=True) if path is None)
            return [], [f"the image is not shown: {lost} is not where the run had it; name it with --image"]
    pyramids = [pyramid(path, selection) for path, selection in zip(paths, selections, strict=True)]
    where = image_place(pyramids[0][0], entry, labels)
    channels = [(levels, channel) for levels in pyramids for channel in range(levels[0].shape[0])]
    if entry is not None and len(pyramids) == 1 and max(entry["channel"], default=0) < len(channels):
        channels = [channels[channel] for channel in entry["channel"]]
    result = []
    for number, (levels, channel) in enumerate(channels):
        names = levels[0].channel_names
        name = names[channel] if names else paths[min(number, len(paths) - 1)].name
        several = len(channels) > 1
        result.append(
            Layer(
                IMAGE,
                [Volume(level, channel) for level in levels],
                {
                    "name": name if names or len(paths) > 1 or not several else f"{name} {channel}",
                    "colormap": CHANNEL_COLOURS[number % len(CHANNEL_COLOURS)] if several else "gray",
                    "blending": "additive" if several else "translucent",
                    **where,
                },
            )
        )
    return result, []


def image_place(source: ImageSource, entry: dict[str, Any] | None, labels: dict[str, Any]) -> dict[str, Any]:
    """Where the image lies: by what the run took for its voxel size, else as the labels, else by its own header."""
    shape = list(source.shape[1:])
    if entry is not None and shape_of(entry) == shape:
        start = [0] * 3 if entry["box"] is None else [first for first, _ in entry["box"]]
        spacing = entry["spacing"]
        origin = [t - first * s for t, first, s in zip(labels["translate"], start, spacing, strict=True)]
        return placed(None, origin) if entry["unit"] == "pixel" else placed(spacing, origin)
    return placed(source.spacing or labels["scale"], source.origin)


def shape_of(entry: dict[str, Any]) -> list[int]:
    return list(entry["shape"][1:])


def entry_of(folder: Path) -> dict[str, Any] | None:
    """The sample's entry of the run's ``samples.json``."""
    record = folder.parent / "pipeline_info" / "samples.json"
    if not record.is_file():
        return None
    entries: list[dict[str, Any]] = read_json(record)["samples"]
    return next((entry for entry in entries if entry["id"] == folder.name), None)


def selections_of(entry: dict[str, Any]) -> list[Selection]:
    """Which part of each file is the image; given labels, which follow the images, are left out."""
    chosen = entry.get("selections") or [{}] * len(entry["files"])
    return [Selection(**one) for one in chosen[: len(entry["files"])]]


def find_image(name: str, results: Path) -> Path | None:
    """A file as the samplesheet names it: in the working folder, beside the results or beside the samplesheet."""
    folders = [Path(), results, results.parent]
    parameters = results / "pipeline_info" / "params.json"
    if parameters.is_file():
        told = read_json(parameters).get("params", {}).get("input")
        if isinstance(told, str):
            sheet = Path(told)
            for base in (Path(), results.parent):
                folders += [base / sheet.parent, base / sheet]
    return next((folder / name for folder in folders if (folder / name).exists()), None)


def show(found: Sequence[Layer], title: str, napari: Any) -> Any:
    """Open the layers in a new viewer of napari, which the caller imported -> the viewer."""
    viewer = napari.Viewer(title=title)
    for layer in found:
        several = len(layer.data) > 1
        data = layer.data if several else layer.data[0]
        if layer.kind == IMAGE:
            kwargs = dict(layer.kwargs)
            # napari looks for the range of values in the whole volume: the coarsest level is enough
            kwargs.setdefault("contrast_limits", value_range(layer.data[-1]))
            viewer.add_image(data, multiscale=several, **kwargs)
        else:
            viewer.add_labels(data, multiscale=several, **layer.kwargs, **label_looks(layer, napari))
    # napari 0.9 moved its overlays to the canvas
    getattr(getattr(viewer, "canvas", viewer), "overlays", viewer).scale_bar.visible = True
    return viewer


def value_range(volume: Volume) -> list[float]:
    """Smallest and largest value of at most 16 planes."""
    step = -(-len(volume) // 16)
    planes = [volume[z] for z in range(0, len(volume), step)]
    low, high = float(min(plane.min() for plane in planes)), float(max(plane.max() for plane in planes))
    return [low, max(high, low + 1)]


def label_looks(layer: Layer, napari: Any) -> dict[str, Any]:
    """Colours and class names in napari's own types."""
    looks: dict[str, Any] = {}
    if layer.colours:
        colours: dict[int | None, Any] = {None: "transparent", 0: "transparent"}
        colours |= {int(label): rgba for label, rgba in layer.colours.items()}
        looks["colormap"] = napari.utils.colormaps.DirectLabelColormap(color_dict=colours)
    if layer.names:
        names = {0: "background", **layer.names}
        looks["features"] = {"index": list(names), "class": list(names.values())}
    return looks


def import_napari(load: Callable[[str], Any]) -> Any:
    """napari, which Voxelmill does not install.

    Raises
    ------
    DeviceAbsentError
        It is not installed.
    """
    try:
        return load("napari")
    except ImportError as error:
        raise DeviceAbsentError(
            f"napari is not installed: {error}",
            remedy='install it where voxelmill is: pip install "napari[all]", and run this on a machine with a screen',
        ) from error
