"""IMPORT_IMAGE of samples that bring labels along: a label image becomes the blocks that prediction would have made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from voxelmill.errors import BadDataError
from voxelmill.files import write_json
from voxelmill.formats import open_image
from voxelmill.formats.base import ImageSource, Selection
from voxelmill.grid import INSTANCES, SEMANTIC, LabelGrid, block_cuts, label_dtype, shard_cuts, shard_shape
from voxelmill.image import Box, ImageInfo, cut_box, whole
from voxelmill.importing import SampleSpec, staged_file, step_boxes, tree_bytes
from voxelmill.rows import BlockRow, write_rows
from voxelmill.store import create_label_levels, write_label_shard
from voxelmill.task import Task

STEP_BYTES = 256_000_000
"""A step reads whole shards of the store up to this size, or one shard."""

BLOCK_SHARDS = 2
"""Shards along each side of a block."""

LARGEST = {SEMANTIC: np.iinfo(np.uint16).max - 1, INSTANCES: np.iinfo(np.int64).max}
"""A class is kept in two bytes, of which the largest number means "never written"; tables hold ids as int64."""


@dataclass(frozen=True)
class LabelImage:
    """A label image, opened, on the voxels of a sample.

    ``file`` is its name as the user gave it; ``box`` (z, y, x) the part of it that the sample is.
    """

    source: ImageSource
    sample: str
    file: str
    kind: str
    box: Box
    shard: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(stop - start for start, stop in self.box)

    def steps(self) -> Iterator[tuple[Box, np.ndarray]]:
        """All labels in steps of whole shards: box of the sample, unsigned labels (z, y, x)."""
        for at in step_boxes(self.shape, self.shard, self.source.dtype.itemsize, STEP_BYTES):
            inside = tuple((a + start, b + start) for (a, b), (start, _) in zip(at, self.box, strict=True))
            yield at, self.checked(self.source.read(0, inside), inside)

    def checked(self, labels: np.ndarray, box: Box) -> np.ndarray:
        """Labels that are none of an object or class are refused."""
        low, high, limit = int(labels.min()), int(labels.max()), LARGEST[self.kind]
        if low < 0 or high > limit:
            value = low if low < 0 else high
            first = np.argwhere(labels == value)[0] + [start for start, _ in box]
            classes = self.kind == SEMANTIC and value > limit
            raise BadDataError(
                f"the label {value} at z, y, x = {', '.join(map(str, first))}",
                sample=self.sample,
                file=self.file,
                expected=f"whole numbers from 0, the background, to {limit}",
                remedy="name the file in the column instances if its values are objects, else number the classes anew"
                if classes
                else "number the labels from 1, with 0 for the background",
            )
        return labels


@dataclass(frozen=True)
class Survey:
    """What a first reading finds.

    Attributes
    ----------
    largest : int
        Largest label.
    classes : tuple of int
        Labels that occur, without the background; of instances one class for all.
    shards : frozenset of Box
        Those that hold labels.
    """

    largest: int
    classes: tuple[int, ...]
    shards: frozenset[Box]


def survey(image: LabelImage) -> Survey:
    """Read all labels once, for what must be known before the first is written."""
    largest, shards = 0, set[Box]()
    present = np.zeros(LARGEST[SEMANTIC] + 1, bool)
    for at, labels in image.steps():
        largest = max(largest, int(labels.max()))
        for box, part in cut(labels, at, image.shard):
            if part.any():
                shards.add(box)
                if image.kind == SEMANTIC:
                    present |= np.bincount(part.ravel(), minlength=len(present)) > 0
    classes = np.flatnonzero(present[1:]) + 1 if image.kind == SEMANTIC else [1] * bool(largest)
    return Survey(largest, tuple(map(int, classes)), frozenset(shards))


def cut(labels: np.ndarray, at: Box, shard: Sequence[int]) -> Iterator[tuple[Box, np.ndarray]]:
    """The shards of a step: box of the sample, view of the labels."""
    for box in cut_box(at, shard):
        yield box, labels[tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(box, at, strict=True))]


def label_grid(image: LabelImage, info: ImageInfo, found: Survey) -> LabelGrid:
    """Blocks of a few shards; those without a label are left out."""
    cuts = tuple(
        block_cuts(shard_cuts(size, side, False), BLOCK_SHARDS * side, side)
        for size, side in zip(info.shape, image.shard, strict=True)
    )
    told = image.source.label_names
    names = {"0": "background"} | {
        str(value): "object" if image.kind == INSTANCES else told.get(value, f"class {value}")
        for value in found.classes
    }
    # Objects are told from classes by their type too: a store of theirs never has fewer than two bytes.
    least = 255 if image.kind == INSTANCES else 0
    grid = LabelGrid(
        sample=image.sample,
        shape=info.shape,
        spacing=info.spacing,
        origin=info.origin,
        unit=info.unit,
        shard=image.shard,
        cuts=cuts,
        reached=(),
        values=found.classes,
        label_names=names,
        windows=0,
        kind=image.kind,
        dtype=label_dtype(max(found.largest, least)),
    )
    return replace(grid, reached=tuple(sorted({grid.block_of(box) for box in found.shards})))


def write_blocks(image: LabelImage, grid: LabelGrid, out: Path) -> None:
    """Write the shards of the reached blocks below ``out``, and how many voxels of each class a block holds."""
    levels: dict[int, list[zarr.Array]] = {
        number: create_label_levels(out / grid.block_name(number), grid.shape, grid.shard, grid.dtype)
        for number in grid.reached
    }
    voxels = {number: np.zeros(max(grid.values, default=0) + 1, np.int64) for number in grid.reached}
    for at, labels in image.steps() if levels else ():
        for box, part in cut(labels, at, grid.shard):
            number = grid.block_of(box)
            if number in levels:
                write_label_shard(levels[number], box, part.astype(grid.dtype))
                classes = part != 0 if grid.kind == INSTANCES else part
                voxels[number] += np.bincount(classes.ravel(), minlength=len(voxels[number]))
    for number, counts in voxels.items():
        found = {str(value): int(counts[value]) for value in np.flatnonzero(counts)}
        write_json(out / grid.block_name(number) / "counts.json", found)


def import_labels(image: LabelImage, info: ImageInfo, out: Path) -> LabelGrid:
    """Turn a label image into blocks.

    Parameters
    ----------
    image : LabelImage
    info : ImageInfo
        Of the image that the labels lie over.
    out : Path
        Folder of the sample: gets ``<sample>.grid.json`` and ``blocks/<sample>.b<block>.zarr``, which hold unsigned
        integers: of classes one byte or two, of objects, whose ids are kept, two, four or eight.

    Raises
    ------
    BadDataError
        Where a label is negative or too large.
    """
    grid = label_grid(image, info, survey(image))
    write_blocks(image, grid, out / "blocks")
    grid.save(out / f"{grid.sample}.grid.json")
    return grid


def import_given(
    batch: str, entries: Sequence[dict[str, Any]], images: Path, shard_size: int, out: Path, record: Task
) -> None:
    """Import the labels of a batch, after its images.

    Parameters
    ----------
    batch : str
    entries : sequence of dict
        The batch's entries of ``samples.json``.
    images : Path
        Staged files ``<n>/<file>``; a sample's labels are the last of its files.
    shard_size : int
        Voxels along each side of a shard.
    out : Path
        Holds ``<sample>/<sample>.image.json``; gets ``<batch>/<batch>.blocks.csv``, where a sample of its own has one
        group per block, and many small samples one group for all.
    record : Task
    """
    rows: list[BlockRow] = []
    given = [entry for entry in entries if entry["labels"] is not None]
    for entry in given:
        spec, labels = SampleSpec.from_dict(entry), entry["labels"]
        folder = out / spec.id
        with open_image(staged_file(images, entry["images"][-1]), Selection(**entry["selections"][-1])) as source:
            box = spec.box or whole(source.shape[1:])
            info = ImageInfo.load(folder / f"{spec.id}.image.json")
            shard = shard_shape(info.shape, shard_size)
            image = LabelImage(source, spec.id, labels["file"], labels["kind"], box, shard)
            grid = import_labels(image, info, folder)
        rows += [BlockRow(spec.id, block, 0 if len(entries) > 1 else block, 0) for block in grid.reached]
        record.counts[spec.id] |= {"blocks": len(grid.reached), "label_bytes": tree_bytes(folder / "blocks")}
    if given:
        write_rows(out / batch / f"{batch}.blocks.csv", BlockRow, rows)
