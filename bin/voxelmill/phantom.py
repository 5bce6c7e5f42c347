"""Volumes whose truth is known: light-sheet-like tubes for the demo and its model, and touching particles by millions.

Positions and lengths are in micrometres, axes are z, y, x, and a voxel's centre is its index times the spacing.
The grey values follow a cleared mouse brain under a light-sheet microscope: a camera offset, an uneven bright
background with fine texture, thin beaded fibres that blur three times further along z than in the plane, shot noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

STEP_UM = 1.0
PSF_UM = (4.5, 1.8, 1.8)
CAMERA_OFFSET = 700.0
PHOTON_GAIN = 2.2
READ_NOISE = 25.0
BACKGROUND = 750.0
LABELS = {"background": 0, "axon": 1, "edge": 2}
PARTICLE_LABELS = {"background": 0, "core": 1, "border": 2}
GREY = (60, 190, 140)
"""Mean grey values of background, core and border of particles."""

GREY_NOISE = 12
LEAST_WIDTH = 6
"""Voxels of a particle along every axis, at least; its core is then thick enough to count as one."""


@dataclass(frozen=True)
class Curve:
    """One unbranched centre line.

    Parameters
    ----------
    points : (n, 3) float64
        Positions along the line, z, y, x, in micrometres.
    radii : (n,) float64
        Radius of the tube at each point, in micrometres.
    brightness : (n,) float64
        Grey values above the background at each point, before the microscope's blur.
    """

    points: np.ndarray
    radii: np.ndarray
    brightness: np.ndarray

    @property
    def length_um(self) -> float:
        return float(np.linalg.norm(np.diff(self.points, axis=0), axis=1).sum())


@dataclass(frozen=True)
class Tube:
    """One object: a trunk and the branches that leave it."""

    id: int
    curves: tuple[Curve, ...]

    @cached_property
    def length_um(self) -> float:
        """Length of the trunk's centre line and of every branch's, from where it leaves the trunk's centre line."""
        return sum(curve.length_um for curve in self.curves)

    @cached_property
    def radius_um(self) -> float:
        """Mean radius along all centre lines."""
        return float(np.concatenate([curve.radii for curve in self.curves]).mean())

    @property
    def branches(self) -> int:
        return len(self.curves) - 1


@dataclass(frozen=True)
class Phantom:
    """A volume and its truth.

    Parameters
    ----------
    image : (z, y, x) uint16
        Grey values as a camera gives them.
    labels : (z, y, x) uint8
        Classes, see `LABELS`: the rim of one voxel in the plane around the axons is a class of its own.
    instances : (z, y, x) uint32
        Ids of the tubes, 0 outside.
    tubes : tuple of Tube
        In the order of their ids, which are 1, 2, ...
    spacing : (3,) float
        Micrometres, z, y, x.
    """

    image: np.ndarray
    labels: np.ndarray
    instances: np.ndarray
    tubes: tuple[Tube, ...]
    spacing: tuple[float, float, float]


def tubes(
    shape: tuple[int, int, int] = (64, 256, 256),
    spacing: tuple[float, float, float] = (3.0, 2.0, 2.0),
    seed: int = 0,
    n: int = 40,
) -> Phantom:
    """Make a volume of `n` tapering, branching, partly touching tubes; equal arguments give equal bytes.

    Parameters
    ----------
    shape : (z, y, x)
        Voxels.
    spacing : (z, y, x)
        Micrometres.
    seed : int
        Seed of everything that is drawn by chance.
    n : int
        Number of tubes.

    Returns
    -------
    Phantom
    """
    growth, optics = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    grown = grow(shape, spacing, n, growth)
    instances, signal = draw(grown, shape, spacing)
    return Phantom(
        image=photograph(signal, spacing, optics),
        labels=classes(instances),
        instances=instances,
        tubes=grown,
        spacing=spacing,
    )


def grow(shape: Sequence[int], spacing: Sequence[float], n: int, rng: np.random.Generator) -> tuple[Tube, ...]:
    """Centre lines of `n` tubes inside the volume; about every third one starts on the surface of an earlier one."""
    extent = (np.asarray(shape) - 1) * np.asarray(spacing)
    grown: list[Tube] = []
    for number in range(1, n + 1):
        radius = rng.uniform(2.4, 3.8)
        if grown and rng.random() < 0.35:
            start, heading = _beside(grown[rng.integers(len(grown))].curves[0], radius, extent, rng)
        else:
            start, heading = rng.uniform(0.05, 0.95, 3) * extent, _direction(rng)
        grown.append(_tube(number, start, heading, radius, extent, rng))
    return tuple(grown)


def draw(tubes: Sequence[Tube], shape: tuple[int, int, int], spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and brightness of tubes on the voxel grid.

    A voxel belongs to the tube whose centre line is nearest in units of its radius. No tube is drawn thinner than
    half a voxel's diagonal, so that none breaks.

    Returns
    -------
    instances : (z, y, x) uint32
    signal : (z, y, x) float32
        Grey values above the background, brightest on the centre line.
    """
    nearest = np.full(shape, np.inf, dtype=np.float32)
    instances = np.zeros(shape, dtype=np.uint32)
    signal = np.zeros(shape, dtype=np.float32)
    for tube in tubes:
        for curve in tube.curves:
            voxels, distance, brightness = _footprint(curve, shape, np.asarray(spacing))
            closer = distance < nearest.flat[voxels]
            voxels, distance, brightness = voxels[closer], distance[closer], brightness[closer]
            nearest.flat[voxels] = distance
            instances.flat[voxels] = tube.id
            signal.flat[voxels] = brightness * np.sqrt(1 - distance**2)
    return instances, signal


def classes(instances: np.ndarray) -> np.ndarray:
    """Semantic labels (uint8, see `LABELS`) of instances: tubes, and their rim of one voxel in the plane."""
    axon = instances > 0
    rim = ndimage.binary_dilation(axon, np.ones((1, 3, 3), dtype=bool)) & ~axon
    return (LABELS["axon"] * axon + LABELS["edge"] * rim).astype(np.uint8)


def photograph(signal: np.ndarray, spacing: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """What the camera sees of `signal` (z, y, x; grey values above the background): uint16 of the same shape."""
    shape = signal.shape
    sigma = np.asarray(PSF_UM) / np.asarray(spacing)
    light = ndimage.gaussian_filter(signal + _specks(shape, spacing, rng), sigma, mode="nearest")
    uneven = 1 + 0.14 * _noise(shape, spacing, (110.0,) * 3, rng) + 0.04 * _noise(shape, spacing, (20.0,) * 3, rng)
    texture = 55.0 * _noise(shape, spacing, (9.0, 2.5, 2.5), rng)
    photons = np.maximum((BACKGROUND + light) * uneven * _illumination(shape, rng) + texture, 0) / PHOTON_GAIN
    grey = CAMERA_OFFSET + PHOTON_GAIN * rng.poisson(photons) + rng.normal(0, READ_NOISE, shape)
    return np.clip(np.rint(grey), 0, np.iinfo(np.uint16).max).astype(np.uint16)


def touching(instances: np.ndarray) -> np.ndarray:
    """Pairs of ids that share a voxel face: (n, 2) of the instances' dtype, smaller id first, sorted."""
    pairs = []
    for axis in range(instances.ndim):
        before, after = np.moveaxis(instances, axis, 0)[:-1], np.moveaxis(instances, axis, 0)[1:]
        meet = (before != after) & (before > 0) & (after > 0)
        pairs.append(np.sort(np.stack([before[meet], after[meet]], axis=1), axis=1))
    return np.unique(np.concatenate(pairs), axis=0)


def _direction(rng: np.random.Generator) -> np.ndarray:
    return _unit(rng.normal(size=3))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _beside(
    neighbour: Curve, radius: float, extent: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A start on the surface of `neighbour`, and a heading that runs along that surface."""
    at = rng.integers(1, len(neighbour.points) - 1)
    tangent = _unit(neighbour.points[at + 1] - neighbour.points[at - 1])
    outward = _unit(np.cross(tangent, _direction(rng)))
    # A tenth of overlap keeps the two in contact on any voxel grid.
    start = neighbour.points[at] + 0.9 * (neighbour.radii[at] + radius) * outward
    heading = _unit(tangent + rng.normal() * np.cross(tangent, outward))
    return np.clip(start, 0, extent), heading


def _tube(
    number: int, start: np.ndarray, heading: np.ndarray, radius: float, extent: np.ndarray, rng: np.random.Generator
) -> Tube:
    """A trunk that grows both ways from `start`, where it has `radius`, and up to three branches."""
    length = rng.uniform(150, 600)
    brightness = 3600 * rng.lognormal(0, 0.5)
    backward = _walk(start, -heading, length / 2, extent, rng)
    forward = _walk(start, heading, length / 2, extent, rng)
    points = np.concatenate([backward[:0:-1], forward])
    along = np.arange(len(points)) - (len(backward) - 1)
    radii = radius * (1 - 0.5 * along * STEP_UM / length)
    trunk = Curve(points, radii, brightness * _beads(len(points), rng))
    stems = rng.integers(1, len(points) - 1, size=min(rng.poisson(0.6), 3))
    branches = (_branch(trunk, stem, 0.4 * length, brightness, extent, rng) for stem in stems)
    return Tube(number, (trunk, *(branch for branch in branches if len(branch.points) > 1)))


def _branch(
    trunk: Curve, stem: int, length: float, brightness: float, extent: np.ndarray, rng: np.random.Generator
) -> Curve:
    """A thinner curve that leaves the trunk's centre line at point `stem` by 30 to 80 degrees."""
    tangent = _unit(trunk.points[stem + 1] - trunk.points[stem - 1])
    angle = np.radians(rng.uniform(30, 80))
    sideways = _unit(np.cross(tangent, _direction(rng)))
    heading = np.cos(angle) * tangent + np.sin(angle) * sideways
    points = _walk(trunk.points[stem], heading, length * rng.uniform(0.5, 1.0), extent, rng)
    radii = trunk.radii[stem] * np.linspace(0.85, 0.55, len(points))
    return Curve(points, radii, 0.9 * brightness * _beads(len(points), rng))


def _walk(
    start: np.ndarray, heading: np.ndarray, length: float, extent: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Points of a smoothly turning line, one step apart, up to `length` or to where it leaves the volume."""
    steps = max(int(length / STEP_UM), 2)
    turns = ndimage.gaussian_filter1d(rng.normal(size=(steps, 3)), sigma=6 / STEP_UM, axis=0, mode="nearest")
    headings = _unit(heading + np.cumsum(0.06 * turns, axis=0) + 1.2 * turns)
    points = np.concatenate([start[None], start + STEP_UM * np.cumsum(headings, axis=0)])
    outside = np.flatnonzero(((points < 0) | (points > extent)).any(axis=1))
    return points[: max(outside[0], 2)] if len(outside) else points


def _beads(n: int, rng: np.random.Generator) -> np.ndarray:
    """Brightness along a fibre, relative to its mean: the swellings of an axon."""
    wave = ndimage.gaussian_filter1d(rng.normal(size=n), sigma=4 / STEP_UM, mode="nearest")
    return np.exp(1.4 * wave)


def _footprint(curve: Curve, shape: tuple[int, int, int], spacing: np.ndarray) -> tuple[np.ndarray, ...]:
    """Voxels that a curve covers.

    Returns
    -------
    voxels : (m,) int64
        Flat indices, each once.
    distance : (m,) float32
        Distance to the nearest point of the centre line in units of the radius there, at most 1.
    brightness : (m,) float32
        Brightness at that point.
    """
    radii = np.maximum(curve.radii, 0.5 * np.linalg.norm(spacing))
    reach = np.ceil(radii.max() / spacing).astype(int)
    window = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1).reshape(-1, 3)
    indices = np.rint(curve.points / spacing).astype(int)[:, None] + window
    distance = np.linalg.norm(indices * spacing - curve.points[:, None], axis=2) / radii[:, None]
    point, place = np.nonzero((distance <= 1) & ((indices >= 0) & (indices < shape)).all(axis=2))
    voxels = np.ravel_multi_index(tuple(indices[point, place].T), shape)
    near = distance[point, place]
    order = np.lexsort((near, voxels))
    voxels, first = np.unique(voxels[order], return_index=True)
    chosen = order[first]
    return voxels, near[chosen].astype(np.float32), curve.brightness[point[chosen]].astype(np.float32)


def _noise(
    shape: tuple[int, ...], spacing: Sequence[float], sigma_um: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """Smooth random field of zero mean and unit standard deviation, drawn on a grid about as coarse as it is smooth."""
    sigma = np.asarray(sigma_um) / np.asarray(spacing)
    stride = np.maximum(np.floor(sigma / 1.5), 1)
    sigma = sigma / stride
    margin = np.ceil(4 * sigma).astype(int)
    grid_shape = np.ceil(np.asarray(shape) / stride).astype(int) + 1 + 2 * margin
    grid = ndimage.gaussian_filter(rng.normal(size=grid_shape), sigma) / _gain(sigma)
    places = (m + np.arange(n) / d for m, n, d in zip(margin, shape, stride, strict=True))
    if (stride == 1).all():
        return grid[tuple(slice(m, m + n) for m, n in zip(margin, shape, strict=True))]
    return ndimage.map_coordinates(grid, np.meshgrid(*places, indexing="ij"), order=1)


def _gain(sigma: np.ndarray) -> float:
    """Standard deviation of white noise of unit variance after a Gaussian filter, which its own sample tells badly."""
    impulse = np.zeros(2 * int(np.ceil(4 * sigma.max())) + 1)
    impulse[len(impulse) // 2] = 1
    return float(np.prod([np.linalg.norm(ndimage.gaussian_filter1d(impulse, s)) for s in sigma]))


def _illumination(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """The sheet's slow loss of light through the tissue: a factor around 1, broadcast over the volume."""
    z, x = np.linspace(-1, 1, shape[0])[:, None, None], np.linspace(-1, 1, shape[2])
    return 1 + rng.uniform(-0.08, 0.08) * z + rng.uniform(-0.08, 0.08) * x


def _specks(shape: tuple[int, ...], spacing: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Small bright dots (debris, autofluorescence) and dark ones (vessels, cell bodies): not part of any label."""
    volume_um3 = float(np.prod(shape) * np.prod(spacing))
    peak = float((2 * np.pi) ** 1.5 * np.prod(np.asarray(PSF_UM) / np.asarray(spacing)))
    field = np.zeros(shape, dtype=np.float32)
    for per_um3, height in ((2.5e-5, 250.0), (2.0e-5, -120.0)):
        count = rng.poisson(volume_um3 * per_um3)
        where = tuple(rng.integers(0, size, count) for size in shape)
        np.add.at(field, where, (height * peak * rng.exponential(size=count)).astype(np.float32))
    return field


# Particles


@dataclass(frozen=True)
class Particles:
    """Touching particles in a volume of any size, made one layer of cells after another.

    The volume is a lattice of cubic cells, the first of which hold one particle each: an ellipsoid in a box of at least
    `LEAST_WIDTH` voxels inside the cell. Neighbours that touch both reach the face between their cells; otherwise
    neither does. What is drawn depends on the seed and the layer of cells only: layers can be made in any order.

    A core is what remains of a particle when voxels with a 6-neighbour outside are taken off. Every other voxel has a
    voxel of its own core among its 26 neighbours and none of another: nearest cores give exactly the particles.

    Attributes
    ----------
    count : int
        Number of particles.
    cells : (3,) int
        Of the lattice, z, y, x.
    cell : int
        Side of a cell in voxels, at least 8.
    touching : (3,) float
        Share of neighbouring cells along z, y and x whose particles touch.
    seed : int
    """

    count: int
    cells: tuple[int, int, int]
    cell: int = 8
    touching: tuple[float, float, float] = (0.1, 0.1, 0.1)
    seed: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the volume."""
        nz, ny, nx = (n * self.cell for n in self.cells)
        return nz, ny, nx

    def bands(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Labels (uint8, `PARTICLE_LABELS`) and ids (int64) of one layer of cells after another: (cell, y, x) each."""
        for layer in range(self.cells[0]):
            yield self.band(layer)

    def band(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels and ids of one layer of cells; ids are 1 to ``count`` in z, y, x order of the cells."""
        labels = self._spread(self._templates[self._kinds(layer)])
        first = layer * self.cells[1] * self.cells[2]
        number = (first + 1 + np.arange(self.cells[1] * self.cells[2])).reshape(self.cells[1:])
        ids = np.repeat(np.repeat(number, self.cell, axis=0), self.cell, axis=1)
        return labels, np.where(labels > 0, ids, 0)

    def grey(self, labels: np.ndarray, layer: int) -> np.ndarray:
        """A noisy grey image (uint8) of the labels of a layer."""
        rng = np.random.default_rng((self.seed, layer, 1))
        noise = rng.integers(-GREY_NOISE, GREY_NOISE + 1, labels.shape, dtype=np.int16)
        return (np.asarray(GREY, np.int16)[labels] + noise).astype(np.uint8)

    def volumes(self) -> np.ndarray:
        """Voxels of every particle, int64 (count,), in the order of their ids."""
        sizes = np.count_nonzero(self._templates, axis=(1, 2, 3))
        kinds = (self._kinds(layer).ravel() for layer in range(self.cells[0]))
        return np.concatenate([sizes[kind] for kind in kinds])[: self.count]

    def contacts(self) -> np.ndarray:
        """Pairs of ids that touch, int64 (n, 2), the smaller first."""
        ids = np.arange(1, math.prod(self.cells) + 1).reshape(self.cells)
        pairs = []
        for layer in range(self.cells[0]):
            for axis, linked in enumerate(self._links(layer)):
                step = math.prod(self.cells[axis + 1 :])
                pairs.append(np.stack([ids[layer][linked], ids[layer][linked] + step], axis=1))
        return np.concatenate(pairs)

    def components(self) -> int:
        """Number of connected components of all particles: fewer than particles where some touch."""
        pairs = self.contacts() - 1
        edges = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(self.count,) * 2)
        return int(connected_components(edges, directed=False)[0])

    @cached_property
    def _boxes(self) -> np.ndarray:
        """First and last voxel of a particle along an axis, by how far it stays from the cell's two faces: (n, 2)."""
        room = min(4, self.cell - LEAST_WIDTH + 1)
        return np.array([(low, self.cell - 1 - high) for low in range(room) for high in range(room)])

    @cached_property
    def _templates(self) -> np.ndarray:
        """A cell for every choice of boxes along z, y and x, and an empty one at the end: uint8 (n, cell, cell, cell).

        Choices that would be too thin are empty and never used.
        """
        places, n = np.arange(self.cell), len(self._boxes)
        middle, radius = self._boxes.mean(axis=1), (np.diff(self._boxes, axis=1)[:, 0] + 1) / 2
        away = ((places - middle[:, None]) / np.maximum(radius, LEAST_WIDTH / 2)[:, None]) ** 2
        away[2 * radius < LEAST_WIDTH] = np.inf
        inside = (
            away[:, None, None, :, None, None] + away[None, :, None, None, :, None] + away[None, None, :, None, None, :]
        ) <= 1
        inside = inside.reshape(n**3, *(self.cell,) * 3)
        cross = ndimage.generate_binary_structure(3, 1)[None]
        core = ndimage.binary_erosion(inside, cross)
        made = PARTICLE_LABELS["border"] * inside - (PARTICLE_LABELS["border"] - PARTICLE_LABELS["core"]) * core
        return np.concatenate([made, np.zeros_like(made[:1])]).astype(np.uint8)

    def _links(self, layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which cells (y, x) of a layer hold a particle that touches its next neighbour along z, y and x."""
        if not 0 <= layer < self.cells[0]:
            empty = np.zeros(self.cells[1:], bool)
            return empty, empty, empty
        rng = np.random.default_rng((self.seed, layer, 0))
        drawn = rng.random((3, *self.cells[1:])) < np.reshape(self.touching, (3, 1, 1))
        _, ny, nx = self.cells
        number = np.arange(ny * nx).reshape(ny, nx) + layer * ny * nx
        _, y, x = np.ogrid[:1, :ny, :nx]
        there = (layer + 1 < self.cells[0]) & (number + ny * nx < self.count)
        along_y = (y[0] + 1 < ny) & (number + nx < self.count)
        along_x = (x[0] + 1 < nx) & (number + 1 < self.count)
        return drawn[0] & there, drawn[1] & along_y, drawn[2] & along_x

    def _kinds(self, layer: int) -> np.ndarray:
        """Template of every cell (y, x) of a layer."""
        after = self._links(layer)
        before = (
            self._links(layer - 1)[0],
            np.pad(after[1], ((1, 0), (0, 0)))[:-1],
            np.pad(after[2], ((0, 0), (1, 0)))[:, :-1],
        )
        rng = np.random.default_rng((self.seed, layer, 2))
        room = min(4, self.cell - LEAST_WIDTH + 1)
        kind = np.zeros(self.cells[1:], np.int64)
        for low, high in zip(before, after, strict=True):
            spare = self.cell - LEAST_WIDTH
            start = np.where(low, 0, 1 + rng.integers(0, room - 1, low.shape))
            stop = np.where(high, 0, 1 + rng.integers(0, room - 1, low.shape))
            # where both together leave too little, the side that is free to move goes back as far as it must
            start = np.where(low, 0, np.minimum(start, np.maximum(1, spare - stop)))
            stop = np.where(high, 0, np.minimum(stop, spare - start))
            kind = kind * room**2 + start * room + stop
        number = np.arange(kind.size).reshape(kind.shape) + layer * kind.size
        return np.where(number < self.count, kind, len(self._templates) - 1)

    def _spread(self, cells: np.ndarray) -> np.ndarray:
        """Cells (y, x, cell, cell, cell) of a layer as a band of planes."""
        ny, nx = cells.shape[:2]
        return np.ascontiguousarray(cells.transpose(2, 0, 3, 1, 4).reshape(self.cell, ny * self.cell, nx * self.cell))


def particles(
    count: int,
    cells: tuple[int, int, int] | None = None,
    cell: int = 8,
    touching: tuple[float, float, float] = (0.1, 0.1, 0.1),
    seed: int = 0,
) -> Particles:
    """Particles in a lattice of cells, by default the smallest cube that holds them; see `Particles`.

    Raises
    ------
    ValueError
        Where the lattice is too small, or its cells are.
    """
    side = math.ceil(round(count ** (1 / 3), 9))
    cells = (side,) * 3 if cells is None else cells
    if math.prod(cells) < count or cell < LEAST_WIDTH + 2:
        raise ValueError(
            f"{count} particles in {cells} cells of {cell} voxels: too few cells, or smaller than 8 voxels"
        )
    return Particles(count, cells, cell, touching, seed)
