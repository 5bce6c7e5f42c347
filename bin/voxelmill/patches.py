"""SAVE_PATCHES: the image of every tile as a TIFF file, and beside it a JSON of where it lies.

A file holds the raw voxels of one block (its core) and what else the windows of its tile look at: the halo, which
neighbours share, and zeros where windows reach beyond the image because nnU-Net pads. A block in which no window has
its centre is its core alone, so that the cores are always the whole image; `Joined` puts them together again.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from voxelmill.errors import BadDataError, InputMissingError
from voxelmill.files import read_json, write_json
from voxelmill.formats import open_image
from voxelmill.formats.base import ImageSource
from voxelmill.formats.spacing import triple
from voxelmill.formats.writing import write_image
from voxelmill.image import Box, StoredImage, slices, staged_image
from voxelmill.plan import Axis, Plan
from voxelmill.reader import HALO
from voxelmill.task import Task

FORMAT = 1


@dataclass(frozen=True)
class Sides:
    """Voxels along z, y, x below and above."""

    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class Patch:
    """Contents of ``<sample>.t<tile>.json``. Lists run along z, y, x, boxes are half-open, in voxels of the sample.

    Attributes
    ----------
    format : int
    sample : str
    tile : int
        Number of the tile and of its block.
    file : str
        The TIFF beside it.
    windows : int
        Windows of the network that the tile has.
    axes : str
        Of `shape`.
    shape : tuple of int
        Voxels of the file, padding included.
    dtype : str
    position : tuple of int
        Voxel of the sample that comes first in the file, after the padding.
    core : Box
        The block: what no other file has as its core.
    halo : Sides
        Voxels of the sample around the core.
    padding : Sides
        Zeros around these.
    spacing : tuple of float
    unit : str
        ``um`` or ``pixel``, of `spacing` and `origin`.
    origin : tuple of float
        Centre of the file's first voxel, which may be padding.
    image_shape : tuple of int
        Voxels of the sample.
    nonzero_box : Box
        The part of the sample that the network is shown: nnU-Net crops to it, and pads with zeros around it.
    model_patch_size : tuple of int
        Voxels of a window along the sample's axes, in the network's voxel size.
    """

    format: int
    sample: str
    tile: int
    file: str
    windows: int
    axes: str
    shape: tuple[int, ...]
    dtype: str
    position: tuple[int, ...]
    core: Box
    halo: Sides
    padding: Sides
    spacing: tuple[float, ...]
    unit: str
    origin: tuple[float, ...]
    image_shape: tuple[int, ...]
    nonzero_box: Box
    model_patch_size: tuple[int, ...]

    @property
    def box(self) -> Box:
        """Voxels of the file, on the sample's axes; padding lies outside the sample."""
        return tuple(
            (first - pad, first - pad + size)
            for first, pad, size in zip(self.position, self.padding.before, self.shape[1:], strict=True)
        )

    @classmethod
    def load(cls, path: Path) -> Patch:
        """Inverse of what `save_patches` writes; BadDataError for anything else."""
        value = read_json(path)
        try:
            boxes = {name: tuple((int(a), int(b)) for a, b in value[name]) for name in ("core", "nonzero_box")}
            sides = {name: Sides(**{k: tuple(v) for k, v in value[name].items()}) for name in ("halo", "padding")}
            flat = {name: tuple(v) for name, v in value.items() if isinstance(v, list) and name not in boxes}
            patch = cls(**{**value, **flat, **boxes, **sides})
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise BadDataError(f"not the JSON of a patch: {error}", file=path) from error
        if patch.format != FORMAT:
            raise BadDataError(f"a patch of format {patch.format}", file=path, expected=f"format {FORMAT}")
        return patch


def source_reach(axis: Axis, tile: int) -> tuple[int, int]:
    """Source voxels that a tile's windows look at on an axis, in the network's direction.

    Resampling's taps and, for a spline, its prefilter's halo are in it. It begins below 0 or ends beyond the axis where
    windows look at padding there.
    """
    first, last = axis.tiles[tile]
    start, stop = axis.starts[first], axis.starts[last - 1] + axis.patch
    inside = np.arange(max(0, start), min(axis.length, stop))
    low, high = axis.data.footprint(inside, axis.length, axis.cropped)
    halo = HALO if axis.data.kind == "cubic" else 0
    begin = max(0, int(low.min()) - halo) + axis.crop[0]
    end = min(axis.cropped, int(high.max()) + halo) + axis.crop[0]
    # nnU-Net pads the resampled image: its voxels become source voxels
    per_voxel = axis.cropped / axis.length
    if start < 0:
        begin = axis.crop[0] - math.ceil(-start * per_voxel)
    if stop > axis.length:
        end = axis.crop[1] + math.ceil((stop - axis.length) * per_voxel)
    return begin, end


def patch_of(plan: Plan, number: int, image: StoredImage) -> Patch:
    """Where a tile's file lies."""
    info = image.info
    block = plan.block(number)
    core = plan.to_source_box(
        tuple((axis.blocks[i], axis.blocks[i + 1]) for axis, i in zip(plan.axes, block, strict=True))
    )
    windows = plan.windows(block)
    box = core
    if windows:
        reach = plan.to_source_box(tuple(source_reach(axis, i) for axis, i in zip(plan.axes, block, strict=True)))
        box = tuple((min(a, c), max(b, d)) for (a, b), (c, d) in zip(core, reach, strict=True))
    real = tuple((max(0, a), min(n, b)) for (a, b), n in zip(box, plan.shape, strict=True))
    sizes = dict(zip((axis.source for axis in plan.axes), (axis.patch for axis in plan.axes), strict=True))
    return Patch(
        format=FORMAT,
        sample=plan.sample,
        tile=number,
        file=f"{plan.sample}.t{number}.tif",
        windows=windows,
        axes="czyx",
        shape=(len(info.array.channels), *(b - a for a, b in box)),
        dtype=info.dtype,
        position=tuple(a for a, _ in real),
        core=core,
        halo=Sides(
            tuple(c - a for (a, _), (c, _) in zip(real, core, strict=True)),
            tuple(b - d for (_, b), (_, d) in zip(real, core, strict=True)),
        ),
        padding=Sides(
            tuple(a - c for (a, _), (c, _) in zip(real, box, strict=True)),
            tuple(d - b for (_, b), (_, d) in zip(real, box, strict=True)),
        ),
        spacing=info.spacing,
        unit=info.unit,
        origin=tuple(o + a * s for o, (a, _), s in zip(info.origin, box, info.spacing, strict=True)),
        image_shape=info.shape,
        nonzero_box=info.nonzero_box,
        model_patch_size=tuple(sizes[axis] for axis in range(3)),
    )


@dataclass(kw_only=True)
class Padded(ImageSource):
    """A box of a sample's image, zero where it reaches beyond the image."""

    image: StoredImage
    box: Box

    def _read(self, channel: int, box: Box) -> np.ndarray:
        at = tuple((a + c, b + c) for (a, b), (c, _) in zip(box, self.box, strict=True))
        real = tuple((max(0, a), min(n, b)) for (a, b), n in zip(at, self.image.info.shape, strict=True))
        values = np.zeros(tuple(b - a for a, b in at), self.dtype)
        if all(a < b for a, b in real):
            here = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(real, at, strict=True))
            values[here] = self.image.read(channel, real)
        return values


def padded(image: StoredImage, patch: Patch) -> Padded:
    info = image.info
    depth, rows, columns = image.chunks
    return Padded(
        path=Path(patch.file),
        format=info.format,
        shape=as_czyx(patch.shape),
        dtype=np.dtype(info.dtype),
        spacing=None if info.unit == "pixel" else triple(info.spacing),
        origin=triple(patch.origin),
        chunk=(depth, rows, columns),
        image=image,
        box=patch.box,
    )


def as_czyx(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    c, z, y, x = shape
    return c, z, y, x


def save_patches(plan: Plan, image: StoredImage, out: Path, memory_budget: int) -> list[Path]:
    """Write the tiles of a sample.

    Parameters
    ----------
    plan : Plan
    image : StoredImage
    out : Path
        Folder: gets ``<sample>.t<tile>.tif`` and ``.json`` for every block of the plan.
    memory_budget : int
        Bytes that voxels in memory may take.

    Returns
    -------
    list of Path
        Both files of every tile, in the order of their numbers.

    Raises
    ------
    BadDataError
        Where TIFF has no such type of voxels (integers of 64 bits), or the image is damaged.
    WriteFailedError
        Where the disk is full.
    """
    written = []
    for number in range(math.prod(plan.grid.blocks)):
        patch = patch_of(plan, number, image)
        path = out / patch.file
        out.mkdir(parents=True, exist_ok=True)
        write_image(padded(image, patch), path, "tiff", name=path.stem, memory_budget=memory_budget)
        write_json(path.with_suffix(".json"), asdict(patch))
        written += [path, path.with_suffix(".json")]
    return written


@dataclass(kw_only=True)
class Joined(ImageSource):
    """The image that the cores of patches make."""

    patches: tuple[Patch, ...]

    def _read(self, channel: int, box: Box) -> np.ndarray:
        values = np.empty(tuple(b - a for a, b in box), self.dtype)
        for patch in self.patches:
            common = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, patch.core, strict=True))
            if all(a < b for a, b in common):
                inside = tuple((a - c, b - c) for (a, b), (c, _) in zip(common, patch.box, strict=True))
                here = slices(tuple((a - c, b - c) for (a, b), (c, _) in zip(common, box, strict=True)))
                with open_image(self.path / patch.file) as source:
                    values[here] = source.read(channel, inside)
        return values


def join_patches(folder: Path, sample: str) -> Joined:
    """The image of a sample out of the cores of its patches, read lazily.

    Parameters
    ----------
    folder : Path
        Holds what `save_patches` wrote.
    sample : str

    Raises
    ------
    InputMissingError
        Where a patch is missing.
    BadDataError
        Where the patches are not of one image.
    """
    found = [Patch.load(path) for path in sorted(Path(folder).glob("*.json")) if is_patch(path, sample)]
    if not found:
        raise InputMissingError("no patches of this sample", sample=sample, file=folder)
    first = found[0]
    alike = [(p.sample, p.image_shape, p.shape[0], p.dtype, p.spacing, p.unit) for p in found]
    if any(other != alike[0] for other in alike):
        raise BadDataError("the patches are not of one image", sample=sample, file=folder)
    # cores never overlap: together they have as many voxels as the image exactly where none is missing
    covered = sum(math.prod(b - a for a, b in patch.core) for patch in found)
    missing = [patch.file for patch in found if not (Path(folder) / patch.file).is_file()]
    if missing or covered != math.prod(first.image_shape):
        raise InputMissingError(
            f"{missing[0] if missing else 'a patch'} is missing: {covered} of {math.prod(first.image_shape)} voxels",
            sample=sample,
            file=folder,
            remedy="copy all files of the folder",
        )
    return Joined(
        path=Path(folder),
        format="patches",
        shape=as_czyx((first.shape[0], *first.image_shape)),
        dtype=np.dtype(first.dtype),
        spacing=None if first.unit == "pixel" else triple(first.spacing),
        origin=triple(tuple(o - a * s for o, (a, _), s in zip(first.origin, first.box, first.spacing, strict=True))),
        patches=tuple(sorted(found, key=lambda patch: patch.tile)),
    )


def is_patch(path: Path, sample: str) -> bool:
    start, _, number = path.stem.rpartition(".t")
    return start == sample and number.isdigit()


def save_batch(folder: Path, memory_budget: int, record: Task) -> None:
    """Write the tiles of every sample whose plan lies in ``folder``, with ``<sample>.image.json`` and ``stores/``.

    They go to ``<sample>/patches``.
    """
    for path in sorted(folder.glob("*.plan.json")):
        plan = Plan.load(path)
        image = staged_image(plan.sample, folder)
        out = folder / plan.sample / "patches"
        for file in save_patches(plan, image, out, memory_budget):
            record.output(file)
        record.counts[plan.sample] = {"patches": math.prod(plan.grid.blocks)}
