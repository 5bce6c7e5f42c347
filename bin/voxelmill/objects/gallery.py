"""A few objects of a sample with their pictures, for the report: the largest, the smallest, one in the middle.

A picture is the maximum projection of the first channel around an object along the axis on which the object is
thinnest. Reading goes cube by cube; of an object whose box is very large some layers of the image are left out, and
its mask comes from a smaller level of the labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import zarr

from voxelmill.grid import LabelGrid
from voxelmill.image import Box, StoredImage, cut_box, slices
from voxelmill.pictures import AXES, PictureBuilder
from voxelmill.store import CHUNK, level_factor

KEYS = ("largest", "median", "smallest", "most_branched")
"""In the order in which they are shown."""

SIDE = 256
"""Pixels on the longer side of a picture."""

MARGIN = 0.15
"""Room around an object, as a share of its longer side in the picture."""

LEAST_MARGIN = 6
"""Voxels."""

LAYERS = 2**30
"""Voxels of the image that are read for one picture; one layer of chunks in any case."""

MASK = 2**28
"""Voxels of the labels that are read for one picture."""

CUBE = (CHUNK, 4 * CHUNK, 4 * CHUNK)
"""Voxels that are held at once."""

PATH_POINTS = 512


def choose(voxels: np.ndarray, branches: np.ndarray) -> dict[str, int]:
    """Positions of the objects that are shown, all different.

    Largest, smallest and (lower) median by voxels, and of the others the one with the most branches, if it has any
    junction. Objects of equal size count in their order; of equally branched ones the largest is taken.

    Parameters
    ----------
    voxels : np.ndarray
        Integers (n,)
    branches : np.ndarray
        Integers (n,)

    Returns
    -------
    dict
        Key -> position; as many keys as there are objects, at most four.
    """
    n = voxels.size
    order = np.lexsort((np.arange(n), voxels))
    chosen: dict[str, int] = {}
    if n:
        chosen["largest"] = int(order[-1])
    if n > 1:
        chosen["smallest"] = int(order[0])
    if n > 2:
        chosen["median"] = int(order[(n - 1) // 2])
    if n > 3:
        others = np.setdiff1d(order, list(chosen.values()))
        best = others[np.lexsort((others, -voxels[others], -branches[others]))[0]]
        if branches[best] > 1:
            chosen["most_branched"] = int(best)
    return {key: chosen[key] for key in KEYS if key in chosen}


def projected_axis(box: Box, grid: LabelGrid) -> int:
    """The axis on which a box is thinnest in space; that of the only plane in an image of one plane."""
    if 1 in grid.shape:
        return grid.shape.index(1)
    return int(np.argmin([(stop - start) * step for (start, stop), step in zip(box, grid.spacing, strict=True)]))


def crop_of(box: Box, axis: int, grid: LabelGrid) -> Box:
    """The box with a margin that is equally wide in space on both axes of the picture, inside the volume."""
    plane = [other for other in range(3) if other != axis]
    width = MARGIN * max((box[other][1] - box[other][0]) * grid.spacing[other] for other in plane)
    cut = []
    for other, ((start, stop), n, step) in enumerate(zip(box, grid.shape, grid.spacing, strict=True)):
        margin = 1 if other == axis else max(LEAST_MARGIN, round(width / step))
        cut.append((max(0, start - margin), min(n, stop + margin)))
    return tuple(cut)


def object_pictures(
    key: str, number: int, box: Box, path: np.ndarray, grid: LabelGrid, image: StoredImage, labels: Path
) -> dict[str, np.ndarray]:
    """The arrays of one object.

    Parameters
    ----------
    key : str
        One of `KEYS`; the arrays' names begin with it.
    number : int
        The object's id.
    box : Box
    path : np.ndarray
        Voxels (n, 3) of its path.
    grid : LabelGrid
    image : StoredImage
    labels : Path
        Group of instance labels: arrays ``0``, ``1``, ...

    Returns
    -------
    dict
        ``<key>_grey`` uint8 (height, width), ``<key>_mask`` bool (height, width), ``<key>_path`` float32 (m, 2): row
        and column, where pixel i reaches from i to i + 1; ``<key>_extent`` float64 (2,): height and width of the
        pixels' grid in micrometres, or voxels.
    """
    axis = projected_axis(box, grid)
    plane = [other for other in range(3) if other != axis]
    crop = crop_of(box, axis, grid)
    grey = _project(image, crop, axis)
    factors = [-(-(crop[other][1] - crop[other][0]) // SIDE) for other in plane]
    mask = _mask(labels, number, box, crop, axis, factors, grey.shape)
    thinned = path[np.unique(np.linspace(0, len(path) - 1, min(len(path), PATH_POINTS)).round().astype(np.int64))]
    at = [(thinned[:, other] + 0.5 - crop[other][0]) / f for other, f in zip(plane, factors, strict=True)]
    extent = [n * f * grid.spacing[other] for n, f, other in zip(grey.shape, factors, plane, strict=True)]
    return {
        f"{key}_grey": grey_levels(grey),
        f"{key}_mask": mask,
        f"{key}_path": np.stack(at, axis=1).astype(np.float32),
        f"{key}_extent": np.array(extent, np.float64),
    }


def grey_levels(picture: np.ndarray, low: float = 0.5, high: float = 99.8) -> np.ndarray:
    """Raw values -> uint8: percentiles of the finite pixels become 0 and 255."""
    values = picture.astype(np.float64)
    finite = values[np.isfinite(values)]
    black, white = np.percentile(finite, (low, high)) if finite.size else (0.0, 0.0)
    scaled = (values - black) * (255 / ((white - black) or 1.0))
    return np.clip(np.nan_to_num(scaled), 0, 255).round().astype(np.uint8)


def _project(image: StoredImage, crop: Box, axis: int) -> np.ndarray:
    """Maximum of the first channel along an axis, reduced to at most `SIDE` pixels by the maximum of a cell."""
    shape = tuple(stop - start for start, stop in crop)
    builder = PictureBuilder(shape, 1, np.dtype(image.info.dtype), SIDE)
    cubes = _cubes(crop, axis)
    layers = sorted({cube[axis] for cube in cubes})
    kept = set(layers[:: -(-int(np.prod(shape, dtype=np.int64)) // LAYERS)])
    for cube in cubes:
        if cube[axis] in kept:
            relative = tuple((a - start, b - start) for (a, b), (start, _) in zip(cube, crop, strict=True))
            builder.update(relative, image.read(0, cube))
    return builder.arrays()[f"max_{AXES[axis]}"][0]


def _cubes(crop: Box, axis: int) -> list[Box]:
    """The crop in pieces along the grid of chunks, thin along the projected axis."""
    side = [CUBE[0] if other == axis else CUBE[1] for other in range(3)]
    outer = tuple((start // s * s, stop) for (start, stop), s in zip(crop, side, strict=True))
    return [
        tuple((max(a, start), b) for (a, b), (start, _) in zip(cube, crop, strict=True))
        for cube in cut_box(outer, side)
    ]


def _mask(
    labels: Path, number: int, box: Box, crop: Box, axis: int, factors: list[int], shape: tuple[int, ...]
) -> np.ndarray:
    """Pixels of the picture in which the object has a voxel (bool, height and width)."""
    full = zarr.open_array(str(labels / "0"), mode="r").shape
    levels = sum(1 for folder in labels.iterdir() if folder.name.isdigit())
    volume = int(np.prod([stop - start for start, stop in box], dtype=np.int64))
    level = next((n for n in range(levels) if volume / np.prod(level_factor(full, n)) <= MASK), levels - 1)
    array = zarr.open_array(str(labels / str(level)), mode="r")
    scale = level_factor(full, level)
    # voxel v of a level stands for the voxels from v * scale on
    inner = tuple((start // f, -(-stop // f)) for (start, stop), f in zip(box, scale, strict=True))
    plane = [other for other in range(3) if other != axis]
    mask = np.zeros(shape, bool)
    for cube in _cubes(inner, axis):
        seen = (np.asarray(array[slices(cube)]) == number).any(axis=axis)
        rows, columns = np.nonzero(seen)
        spans = []
        for index, other, f in zip((rows, columns), plane, factors, strict=True):
            first = (index + cube[other][0]) * scale[other]
            last = np.minimum(first + scale[other], box[other][1]) - 1
            first = np.maximum(first, box[other][0])
            spans.append(((first - crop[other][0]) // f, (last - crop[other][0]) // f))
        _fill(mask, *spans[0], *spans[1])
    return mask


def _fill(mask: np.ndarray, top: np.ndarray, bottom: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Set the rectangles from (top, left) to (bottom, right), both included."""
    for down in range(int((bottom - top).max(initial=-1)) + 1):
        for across in range(int((right - left).max(initial=-1)) + 1):
            mask[np.minimum(top + down, bottom), np.minimum(left + across, right)] = True


def instance_labels(folder: Path, position: int) -> Path:
    """Group of instance labels of the sample at a position, from 0, of a batch."""
    return folder / "labels" / str(position + 1) / "labels.ome.zarr" / "instances"


def gallery(
    chosen: Mapping[str, tuple[int, Box, np.ndarray]], grid: LabelGrid, image: StoredImage, labels: Path
) -> dict[str, np.ndarray]:
    """Arrays of ``<sample>.gallery.npz`` for the chosen objects: key -> (id, box, path)."""
    arrays: dict[str, np.ndarray] = {}
    for key, (number, box, path) in chosen.items():
        arrays |= object_pictures(key, number, box, path, grid, image, labels)
    return arrays
