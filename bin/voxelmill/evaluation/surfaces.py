"""Distances between the surfaces of two label volumes, exact at any distance without holding either.

Surface voxels are found box by box and kept on disk, by class and by cell of a fixed grid. A cell's points then look
for their nearest points of the other volume in their own cell and in ever wider rings around it, until no ring can hold
a nearer one.

Definitions are those of MONAI (``SurfaceDistanceMetric(symmetric=True)``, ``HausdorffDistanceMetric``,
``SurfaceDiceMetric``): a surface voxel is one of the class with a face neighbour that is not, and the volume's own
faces are surfaces too. An axis of one voxel has no surface of its own: a plane is 2D. Other than there, an ignored
voxel is neither a surface nor outside: where nobody knows whether a class ends, it does not end.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from voxelmill.errors import TemporaryError
from voxelmill.evaluation.reading import Part
from voxelmill.objects.thinning import compiled

CELL_VOXELS = 1 << 21
"""Of a cell of the grid: 128 along each side, or 1448 of a plane."""

NEAR = 4
"""Voxels around a point that are looked at one by one before a tree is asked: most surfaces are this near."""

HELD_POINTS = 1 << 22
"""Points of the trees that are kept for the next cell."""

DISTINCT = 1 << 20
"""Distances that are collected before equal ones are counted together."""

PREDICTED, TRUTH = 0, 1

Cell = tuple[int, int, int]


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between two surfaces, in the unit of the spacing.

    Attributes
    ----------
    mean : float
        Over the points of both surfaces (average symmetric surface distance).
    hd95 : float
        The larger one of both directions' 95th percentiles (linear interpolation).
    hd : float
        The largest (Hausdorff).
    dice : float
        Share of points of both surfaces that are within the tolerance of the other.
    tolerance : float
    """

    mean: float
    hd95: float
    hd: float
    dice: float
    tolerance: float


def cell_side(shape: Sequence[int], voxels: int = CELL_VOXELS) -> tuple[int, int, int]:
    """Cubes, or squares of a plane, of at least `NEAR` voxels a side; an axis of one voxel takes no part."""
    axes = sum(n > 1 for n in shape) or 1
    side = max(NEAR, round(voxels ** (1 / axes)))
    z, y, x = (side if n > 1 else 1 for n in shape)
    return z, y, x


class SurfaceFinder:
    """Finds surface voxels and keeps them in two files; a context that removes them.

    Memory grows with the number of classes in each cell of each box that is read, not with surfaces.

    Parameters
    ----------
    folder : Path
        For the files.
    shape : sequence of int
        Of the volume, z, y, x.
    ignore : int or None
        Value of the truth whose voxels count nowhere.
    foreground : bool
        All labels above 0 are one class, 1.
    side : tuple of int, optional
        Of a cell.
    """

    def __init__(
        self,
        folder: Path,
        shape: Sequence[int],
        ignore: int | None,
        *,
        foreground: bool,
        side: tuple[int, int, int] | None = None,
    ):
        self._shape = np.array(shape)
        self._ignore, self._foreground = ignore, foreground
        self.side = side or cell_side(shape)
        folder.mkdir(parents=True, exist_ok=True)
        self._paths = [folder / f"surface.{name}.points" for name in ("predicted", "truth")]
        self._files: list[Any] = [open(path, "w+b") for path in self._paths]  # noqa: SIM115
        self._places: list[dict[int, dict[Cell, list[tuple[int, int]]]]] = [{}, {}]
        self._buffer = np.empty((0, 4), np.int64)

    def __enter__(self) -> SurfaceFinder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file, path in zip(self._files, self._paths, strict=True):
            file.close()
            path.unlink(missing_ok=True)
        with suppress(OSError):  # others may use the folder too
            self._paths[0].parent.rmdir()

    def add(self, part: Part) -> None:
        """Keep the surface voxels of a box."""
        for which, labels in ((PREDICTED, part.predicted), (TRUTH, part.truth)):
            points = self._surface(labels, part)
            if len(points):
                self._keep(which, points)

    def _surface(self, labels: np.ndarray, part: Part) -> np.ndarray:
        """Class, z, y, x of the surface voxels of a box -> (n, 4) int64, of use until the next call."""
        bounds, first = np.array(part.inside), np.array([start for start, _ in part.box])
        flat = self._shape == 1
        ignoring, value = self._ignore is not None, self._ignore or 0
        while True:
            count = _find_surface(
                labels, part.truth, bounds, first, flat, ignoring, value, self._foreground, self._buffer
            )
            if count <= len(self._buffer):
                return self._buffer[:count]
            self._buffer = np.empty((count + (count >> 2), 4), np.int64)

    def _keep(self, which: int, points: np.ndarray) -> None:
        cells = points[:, 1:] // self.side
        low, high = cells.min(axis=0), cells.max(axis=0)
        spans = high - low + 1
        number = points[:, 0]
        for axis in range(3):
            number = number * spans[axis] + (cells[:, axis] - low[axis])
        # a stable sort of 16 bits is several times as fast
        order = np.argsort(number.astype(np.uint16) if number.max() < 1 << 16 else number, kind="stable")
        number = number[order]
        starts = np.flatnonzero(np.r_[True, number[1:] != number[:-1]])
        file = self._files[which]
        offset = file.seek(0, 2)
        file.write(points[order, 1:].astype(np.int32).tobytes())
        for start, stop in itertools.pairwise([*starts.tolist(), len(number)]):
            value = int(points[order[start], 0])
            z, y, x = cells[order[start]].tolist()
            places = self._places[which].setdefault(value, {}).setdefault((z, y, x), [])
            places.append((offset + 12 * start, stop - start))

    def points(self, which: int, value: int, cell: Cell) -> np.ndarray:
        """Points of a class in a cell -> (n, 3) int32.

        Raises
        ------
        TemporaryError
            Where the file is not as it was written.
        """
        found = []
        for offset, count in self._places[which].get(value, {}).get(cell, ()):
            self._files[which].seek(offset)
            data = self._files[which].read(12 * count)
            if len(data) < 12 * count:
                raise TemporaryError("a file of surface points was cut off", remedy="check the disk of the work folder")
            found.append(np.frombuffer(data, np.int32).reshape(-1, 3))
        return np.concatenate(found) if found else np.empty((0, 3), np.int32)

    def cells(self, which: int, value: int) -> list[Cell]:
        """Cells with points of a class, in z, y, x order."""
        return sorted(self._places[which].get(value, ()))

    def distances(self, value: int, spacing: Sequence[float]) -> SurfaceDistances | None:
        """Distances between both surfaces of a class; None where one of them has no point.

        Parameters
        ----------
        value : int
        spacing : sequence of float
            z, y, x.
        """
        for file in self._files:
            file.flush()
        if not (self.cells(PREDICTED, value) and self.cells(TRUTH, value)):
            return None
        there, back = (self._directed(one, other, value, spacing) for one, other in ((0, 1), (1, 0)))
        tolerance = max([s for s, n in zip(spacing, self._shape, strict=True) if n > 1] or spacing)
        count = there.count + back.count
        return SurfaceDistances(
            mean=(there.sum() + back.sum()) / count,
            hd95=max(there.percentile(0.95), back.percentile(0.95)),
            hd=max(there.percentile(1), back.percentile(1)),
            dice=(there.within(tolerance) + back.within(tolerance)) / count,
            tolerance=float(tolerance),
        )

    def _directed(self, which: int, other: int, value: int, spacing: Sequence[float]) -> Counts:
        """Distances of a surface's points to the other surface."""
        counts = Counts()
        target = Surface(self, other, value, np.array(spacing, float))
        for cell in self.cells(which, value):
            counts.add(target.squares_to(self.points(which, value, cell), cell))
        return counts


class Surface:
    """One surface of a class, to which distances are measured."""

    def __init__(self, finder: SurfaceFinder, which: int, value: int, spacing: np.ndarray):
        self._finder, self._which, self._value, self._spacing = finder, which, value, spacing
        self._side = np.array(finder.side)
        self._cells = finder.cells(which, value)
        self._known = frozenset(self._cells)
        self._centres = cKDTree(np.array(self._cells))
        self._held: OrderedDict[Cell, tuple[np.ndarray, cKDTree | None]] = OrderedDict()
        self._points_held = 0
        self._offsets = near_offsets(spacing)

    def squares_to(self, points: np.ndarray, cell: Cell) -> np.ndarray:
        """Squared distance of each point (n, 3) of a cell to the nearest one of the surface -> (n,) float64."""
        best = self._near(points, cell)
        far = np.flatnonzero(np.isinf(best))
        if far.size:
            best[far] = self._far(points[far], cell)
        return best

    def _near(self, points: np.ndarray, cell: Cell) -> np.ndarray:
        """Squared distances up to a few voxels; infinite where the nearest is farther away."""
        start = np.array(cell) * self._side - NEAR
        mask = np.zeros(self._side + 2 * NEAR, bool)
        for step in itertools.product((-1, 0, 1), repeat=3):
            near = (cell[0] + step[0], cell[1] + step[1], cell[2] + step[2])
            if near in self._known:
                _paint(mask, self._load(near)[0], start)
        return _nearest_of_mask(mask, points - start, self._offsets, self._spacing)

    def _far(self, points: np.ndarray, cell: Cell) -> np.ndarray:
        """Squared distances at any range: rings of cells, as long as one may hold a nearer point."""
        best = np.full(len(points), np.inf)
        places = points * self._spacing
        visited: set[Cell] = set()
        ring = 1
        while len(visited) < len(self._cells):
            for index in self._centres.query_ball_point(cell, ring + 0.5, p=np.inf, return_sorted=True):
                near = self._cells[index]
                if near not in visited:
                    visited.add(near)
                    self._improve(best, points, places, near)
            # what is beyond the ring is this far away on an axis on which there are cells beyond it
            gaps = ((ring * self._side + 1) * self._spacing)[self._reach(cell) > ring]
            if not gaps.size or best.max() <= gaps.min() ** 2:
                break
            ring *= 2
        return best

    def _reach(self, cell: Cell) -> np.ndarray:
        """How many cells away the surface's last one is on each axis."""
        return np.abs(np.array([self._centres.mins, self._centres.maxes]) - cell).max(axis=0)

    def _improve(self, best: np.ndarray, points: np.ndarray, places: np.ndarray, cell: Cell) -> None:
        low = np.array(cell) * self._side
        gap = np.maximum(np.maximum(low - points, points - (low + self._side - 1)), 0) * self._spacing
        worth = np.flatnonzero((gap**2).sum(axis=1) < best)
        if not worth.size:
            return
        there, tree = self._tree(cell)
        limit = math.sqrt(best[worth].max()) * (1 + 1e-9)
        found, index = tree.query(places[worth], distance_upper_bound=limit)
        hit = np.isfinite(found)
        worth = worth[hit]
        # out of whole voxels, so that equal distances are equal numbers wherever they are
        apart = (np.abs(there[index[hit]] - points[worth]) * self._spacing) ** 2
        best[worth] = np.minimum(best[worth], apart[:, 0] + apart[:, 1] + apart[:, 2])

    def _tree(self, cell: Cell) -> tuple[np.ndarray, cKDTree]:
        points, tree = self._load(cell)
        if tree is None:
            tree = cKDTree(points * self._spacing)
            self._held[cell] = points, tree
        return points, tree

    def _load(self, cell: Cell) -> tuple[np.ndarray, cKDTree | None]:
        """Points of a cell and, once it was asked for, their tree; those used last are kept."""
        if cell not in self._held:
            points = self._finder.points(self._which, self._value, cell)
            self._points_held += len(points)
            while self._held and self._points_held > HELD_POINTS:
                _, (old, _) = self._held.popitem(last=False)
                self._points_held -= len(old)
            self._held[cell] = points, None
        self._held.move_to_end(cell)
        return self._held[cell]


class Counts:
    """How often each squared distance occurs: everything about a distribution of distances that is asked for."""

    def __init__(self) -> None:
        self._waiting: list[np.ndarray] = []
        self._squares = np.empty(0)
        self._numbers = np.empty(0, np.int64)

    def add(self, squares: np.ndarray) -> None:
        self._waiting.append(squares)
        if sum(map(len, self._waiting)) > DISTINCT:
            self._settle()

    def _settle(self) -> None:
        values, numbers = np.unique(np.concatenate(self._waiting), return_counts=True)
        squares, place = np.unique(np.concatenate([self._squares, values]), return_inverse=True)
        total = np.zeros(len(squares), np.int64)
        np.add.at(total, place, np.concatenate([self._numbers, numbers]))
        self._squares, self._numbers, self._waiting = squares, total, []

    def _settled(self) -> tuple[np.ndarray, np.ndarray]:
        """Distances in ascending order, and how often they occur."""
        if self._waiting:
            self._settle()
        return np.sqrt(self._squares), self._numbers

    @property
    def count(self) -> int:
        return int(self._settled()[1].sum())

    def sum(self) -> float:
        distances, numbers = self._settled()
        return math.fsum(distances * numbers)

    def percentile(self, share: float) -> float:
        """As ``numpy.quantile`` of all distances, with linear interpolation."""
        distances, numbers = self._settled()
        ends = np.cumsum(numbers)
        place = share * (ends[-1] - 1)
        low, high = (distances[np.searchsorted(ends, at, side="right")] for at in (math.floor(place), math.ceil(place)))
        return float(low + (high - low) * (place - math.floor(place)))

    def within(self, tolerance: float) -> int:
        """How many are not larger; a rounding error does not make them so."""
        distances, numbers = self._settled()
        return int(numbers[distances <= tolerance * (1 + 1e-12)].sum())


def near_offsets(spacing: np.ndarray) -> np.ndarray:
    """Steps of whole voxels in the order of their length, as far as a ball reaches inside the cube of `NEAR` voxels."""
    steps = np.array(list(itertools.product(range(-NEAR, NEAR + 1), repeat=3)))
    squares = ((steps * spacing) ** 2).sum(axis=1)
    order = np.argsort(squares, kind="stable")
    return steps[order[squares[order] <= (NEAR * spacing.min()) ** 2 * (1 + 1e-12)]]


@compiled
def _paint(mask: np.ndarray, points: np.ndarray, start: np.ndarray) -> None:
    """Set the points that lie in a mask which begins at ``start``."""
    depth, rows, width = mask.shape
    for i in range(len(points)):
        z, y, x = points[i, 0] - start[0], points[i, 1] - start[1], points[i, 2] - start[2]
        if 0 <= z < depth and 0 <= y < rows and 0 <= x < width:
            mask[z, y, x] = True


@compiled
def _nearest_of_mask(mask: np.ndarray, points: np.ndarray, offsets: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    result = np.empty(len(points))
    for i in range(len(points)):
        z, y, x = points[i, 0], points[i, 1], points[i, 2]
        result[i] = np.inf
        for k in range(len(offsets)):
            dz, dy, dx = offsets[k, 0], offsets[k, 1], offsets[k, 2]
            if mask[z + dz, y + dy, x + dx]:
                a, b, c = abs(dz) * spacing[0], abs(dy) * spacing[1], abs(dx) * spacing[2]
                result[i] = a * a + b * b + c * c
                break
    return result


@compiled
def _find_surface(
    labels: np.ndarray,
    truth: np.ndarray,
    bounds: np.ndarray,
    first: np.ndarray,
    flat: np.ndarray,
    ignoring: bool,
    ignore: int,
    foreground: bool,
    out: np.ndarray,
) -> int:
    """Write class, z, y, x of surface voxels as long as there is room -> how many there are."""
    z0, z1, y0, y1, x0, x1 = bounds
    depth, rows, width = labels.shape
    count = 0
    for z in range(z0, z1):
        for y in range(y0, y1):
            for x in range(x0, x1):
                v = labels[z, y, x]
                if v <= 0 or (ignoring and truth[z, y, x] == ignore):
                    continue
                found = False
                for face in range(6):
                    axis, step = face // 2, 1 - 2 * (face % 2)
                    if flat[axis]:
                        continue
                    a = z + step if axis == 0 else z
                    b = y + step if axis == 1 else y
                    c = x + step if axis == 2 else x
                    if a < 0 or b < 0 or c < 0 or a >= depth or b >= rows or c >= width:
                        found = True
                        break
                    w = labels[a, b, c]
                    same = w > 0 if foreground else w == v
                    if not same and not (ignoring and truth[a, b, c] == ignore):
                        found = True
                        break
                if found:
                    if count < len(out):
                        out[count, 0] = 1 if foreground else v
                        out[count, 1] = first[0] + z - z0
                        out[count, 2] = first[1] + y - y0
                        out[count, 3] = first[2] + x - x0
                    count += 1
    return count
