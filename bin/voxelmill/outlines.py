"""Outlines of labels in a single plane as GeoJSON, which QuPath opens.

An outline runs along the edges of the pixels, so that filling it gives the same pixels again. Coordinates are pixels of
the image, x to the right and y down, the corner of the first pixel at 0, 0.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from voxelmill.errors import BadDataError
from voxelmill.files import atomic_path
from voxelmill.formats.writing import write_errors
from voxelmill.grid import LabelGrid
from voxelmill.image import Box
from voxelmill.store import COLOURS, read_labels

MAX_OUTLINES = 100_000
"""Objects up to which outlines are written without being asked for."""

STRIP = 2048
"""Rows of the plane that are read together."""

BYTES_PER_PIXEL = 32
"""What tracing takes for a pixel of an object's box: the labels, the mask, its corners."""

Ring = np.ndarray
"""Corners (x, y), int64, the first not repeated."""

EAST, SOUTH, WEST, NORTH = range(4)

TURNS = {
    # Pixels around a corner (north-west, north-east, south-west, south-east) -> ways in and out, the object to the
    # right. Where two pixels meet at a corner only, each is gone round on its own.
    (0, 0, 0, 1): ((NORTH, EAST),),
    (0, 0, 1, 0): ((EAST, SOUTH),),
    (1, 0, 0, 0): ((SOUTH, WEST),),
    (0, 1, 0, 0): ((WEST, NORTH),),
    (1, 1, 1, 0): ((WEST, SOUTH),),
    (1, 1, 0, 1): ((NORTH, WEST),),
    (0, 1, 1, 1): ((EAST, NORTH),),
    (1, 0, 1, 1): ((SOUTH, EAST),),
    (1, 0, 0, 1): ((SOUTH, WEST), (NORTH, EAST)),
    (0, 1, 1, 0): ((WEST, NORTH), (EAST, SOUTH)),
}


@dataclass(frozen=True)
class Objects:
    """Where the labels of a plane lie, in the order of their first rows; all arrays have one entry per label.

    ``top`` and ``left`` are the first row and column, ``bottom`` and ``right`` those behind the last.
    """

    ids: np.ndarray
    top: np.ndarray
    bottom: np.ndarray
    left: np.ndarray
    right: np.ndarray


def outline(mask: np.ndarray) -> list[list[Ring]]:
    """Polygons around the pixels of a mask (y, x).

    Returns
    -------
    list of list of Ring
        Per part its outer ring and the rings of its holes. No ring touches itself; two may meet at a corner. Outer
        rings go clockwise on the screen.
    """
    rings = [simple for ring in trace(mask) for simple in split(ring)]
    areas = [area(ring) for ring in rings]
    order = sorted((i for i, a in enumerate(areas) if a > 0), key=lambda i: areas[i])
    parts = {i: [rings[i]] for i in order}
    low, high = (np.array([edge(rings[i], axis=0) for i in order]) for edge in (np.min, np.max))
    for i, size in enumerate(areas):
        if size < 0:
            point = _beside(rings[i])
            around = np.flatnonzero(((low < point) & (point < high)).all(axis=1))
            # The smallest that holds the hole; an island in it is smaller still.
            parts[next(order[k] for k in around if areas[order[k]] > -size and _inside(point, rings[order[k]]))].append(
                rings[i]
            )
    return [parts[i] for i in sorted(parts)]


def trace(mask: np.ndarray) -> list[Ring]:
    """Closed ways along the pixels' edges, the object to the right; corners where the way turns."""
    padded = np.pad(mask.astype(np.uint8), 1)
    code = padded[:-1, :-1] | padded[:-1, 1:] << 1 | padded[1:, :-1] << 2 | padded[1:, 1:] << 3
    found: list[np.ndarray] = []
    for pattern, turns in TURNS.items():
        at = np.argwhere(code == sum(bit << i for i, bit in enumerate(pattern)))
        found += [np.column_stack([at, np.broadcast_to(turn, (len(at), 2))]) for turn in turns]
    corners = np.concatenate(found)
    follow = np.empty(len(corners), np.int64)
    for way in (EAST, SOUTH, WEST, NORTH):
        # Edges of one way on one line do not overlap: sorted, the first start belongs to the first end.
        major, minor = (0, 1) if way in (EAST, WEST) else (1, 0)
        start, end = (np.flatnonzero(corners[:, column] == way) for column in (3, 2))
        start, end = (at[np.lexsort((corners[at, minor], corners[at, major]))] for at in (start, end))
        follow[start] = end
    points = corners[:, 1::-1]
    return [points[ring] for ring in _cycles(follow.tolist(), np.lexsort((corners[:, 1], corners[:, 0])).tolist())]


def _cycles(follow: list[int], order: list[int]) -> Iterator[list[int]]:
    """Cycles of a permutation, each from where it is first met."""
    seen = bytearray(len(follow))
    for first in order:
        ring, at = [], first
        while not seen[at]:
            seen[at] = 1
            ring.append(at)
            at = follow[at]
        if ring:
            yield ring


def split(ring: Ring) -> list[Ring]:
    """Rings that pass no corner twice, out of one that may."""
    corners = list(map(tuple, ring.tolist()))
    if len(set(corners)) == len(corners):
        return [ring]
    done: list[Ring] = []
    way: list[tuple[int, ...]] = []
    index: dict[tuple[int, ...], int] = {}
    for corner in corners:
        if corner in index:
            first = index[corner]
            loop = way[first:]
            del way[first + 1 :]
            for other in loop[1:]:
                del index[other]
            done.append(np.array(loop))
        else:
            index[corner] = len(way)
            way.append(corner)
    return [*done, np.array(way)]


def area(ring: Ring) -> float:
    """Twice the enclosed area; positive where the way is clockwise on the screen."""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))


def _beside(hole: Ring) -> np.ndarray:
    """A point (x, y) in a hole, a quarter of a pixel to the left of its first way."""
    way = np.sign(hole[1] - hole[0])
    return hole[0] + 0.5 * way + 0.25 * np.array([way[1], -way[0]])


def _inside(point: np.ndarray, ring: Ring) -> bool:
    """Whether a point that is on no edge lies inside a ring."""
    xs, ys = ring[:, 0], ring[:, 1]
    above = ys > point[1]
    return bool(np.count_nonzero((above != np.roll(above, -1)) & (xs > point[0])) % 2)


def find_objects(array: zarr.Array, sample: str, rows: int) -> Objects:
    """Boxes of all labels of a plane, in one pass over it."""
    found: list[np.ndarray] = []
    for start in range(0, array.shape[1], rows):
        band = read_rows(array, (start, min(start + rows, array.shape[1])), sample)
        y, x = np.nonzero(band)
        if len(y):
            found.append(_boxes(band[y, x].astype(np.uint64), y + start, y + start + 1, x, x + 1))
    boxes = np.concatenate(found) if found else np.zeros((0, 5), np.uint64)
    if len(found) > 1:
        boxes = _boxes(boxes[:, 0], *boxes[:, 1:].T.astype(np.int64))
    boxes = boxes[np.lexsort((boxes[:, 0], boxes[:, 1]))]
    return Objects(boxes[:, 0], *boxes[:, 1:].T.astype(np.int64))


def _boxes(ids: np.ndarray, top: np.ndarray, bottom: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Columns id, top, bottom, left, right (uint64) of the smallest boxes around those of each id."""
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    first = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
    sides = [
        reduce.reduceat(side[order], first)
        for reduce, side in ((np.minimum, top), (np.maximum, bottom), (np.minimum, left), (np.maximum, right))
    ]
    return np.column_stack([ids[first], *(side.astype(np.uint64) for side in sides)])


def read_rows(
    array: zarr.Array, rows: tuple[int, int], sample: str, columns: tuple[int, int] | None = None
) -> np.ndarray:
    box: Box = ((0, 1), rows, columns or (0, array.shape[2]))
    return read_labels(array, box, sample)[0]


def write_outlines(store: Path, grid: LabelGrid, path: Path, *, most: int | None, memory_budget: int) -> int | None:
    """Write one feature per object, or per class where there are no objects.

    Parameters
    ----------
    store : Path
        ``labels.ome.zarr``.
    grid : LabelGrid
    path : Path
    most : int or None
        Objects above which nothing is written; None for any number.
    memory_budget : int
        Bytes.

    Returns
    -------
    int or None
        Features; None where there are too many.

    Raises
    ------
    BadDataError
        Where the labels are no single plane, or one object does not fit into memory.
    """
    if grid.shape[0] > 1:
        raise BadDataError(
            f"labels of {grid.shape[0]} planes have no outlines",
            sample=grid.sample,
            expected="a single plane",
            remedy="leave geojson out of --export",
        )
    has = {name: (store / name / "0").is_dir() for name in ("instances", "semantic")}
    classes = zarr.open_array(str(store), path="semantic/0", mode="r") if has["semantic"] else None
    objects = zarr.open_array(str(store), path="instances/0", mode="r") if has["instances"] else classes
    assert objects is not None
    limit = max(1, memory_budget // 2 // BYTES_PER_PIXEL)
    rows = max(1, min(STRIP, limit // grid.shape[2]))
    found = find_objects(objects, grid.sample, rows)
    if most is not None and len(found.ids) > most:
        return None
    with (
        write_errors(path, sample=grid.sample),
        atomic_path(path) as temporary,
        open(temporary, "w", encoding="ascii", newline="\n") as file,
    ):
        file.write('{"type": "FeatureCollection", "features": [')
        before = "\n"
        for number, mask, corner, value in _masks(found, objects, classes, grid.sample, rows, limit):
            polygons = [[closed(ring + corner) for ring in part] for part in outline(mask)]
            text = json.dumps(feature(grid, number, value, polygons, has["instances"]), separators=(",", ":"))
            file.write(before + text)
            before = ",\n"
        file.write("\n]}\n")
    return len(found.ids)


def closed(ring: Ring) -> list[list[int]]:
    """Corners as GeoJSON has them: the first is also the last."""
    corners: list[list[int]] = ring.tolist()
    return [*corners, corners[0]]


def _masks(
    found: Objects, objects: zarr.Array, classes: zarr.Array | None, sample: str, rows: int, limit: int
) -> Iterator[tuple[int, np.ndarray, tuple[int, int], int | None]]:
    """Id, mask, its first column and row, and class of every object, strip after strip of the plane."""
    strips = found.top // rows
    for strip in np.unique(strips):
        members = np.flatnonzero(strips == strip)
        start, end = int(strip) * rows, int(found.bottom[members].max())
        together = (end - start) * objects.shape[2] <= 2 * limit
        end = min(end, start + rows) if not together else end
        held = read_rows(objects, (start, end), sample)
        kinds = None if classes is None else read_rows(classes, (start, min(start + rows, objects.shape[1])), sample)
        for i in members:
            top, bottom, left, right = (int(side[i]) for side in (found.top, found.bottom, found.left, found.right))
            if (bottom - top) * (right - left) > limit:
                raise BadDataError(
                    f"label {found.ids[i]} spans {bottom - top} x {right - left} pixels, too many to outline",
                    sample=sample,
                    expected=f"at most {limit} within --memory_budget",
                    remedy="raise --memory_budget, or leave geojson out of --export",
                )
            if bottom <= end:
                crop = held[top - start : bottom - start, left:right]
            else:
                crop = read_rows(objects, (top, bottom), sample, (left, right))
            mask = crop == found.ids[i].astype(objects.dtype)
            value = None
            if kinds is not None:
                value = int(kinds[top - start, left + int(mask[0].argmax())]) or None
            yield int(found.ids[i]), mask, (left, top), value


def feature(grid: LabelGrid, number: int, value: int | None, polygons: list[Any], is_object: bool) -> dict[str, Any]:
    """One GeoJSON feature as QuPath writes them; its identifier depends on sample and label alone."""
    properties: dict[str, Any] = {"objectType": "detection" if is_object else "annotation"}
    if is_object:
        properties["name"] = str(number)
        value = value or (grid.values[0] if len(grid.values) == 1 else None)
    else:
        value = number
    if value is not None and str(value) in grid.label_names:
        colour = COLOURS[(value - 1) % len(COLOURS)]
        properties["classification"] = {"name": grid.label_names[str(value)], "color": list(colour)}
    single = len(polygons) == 1
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{grid.sample}/{'object' if is_object else 'class'}/{number}")),
        "geometry": {
            "type": "Polygon" if single else "MultiPolygon",
            "coordinates": polygons[0] if single else polygons,
        },
        "properties": properties,
    }
