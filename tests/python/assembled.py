"""From labels in memory to objects: what LABEL_BLOCKS, LINK_OBJECTS and RELABEL_BLOCKS do, in one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from voxelmill.files import write_json
from voxelmill.grid import SEMANTIC, LabelGrid, label_dtype
from voxelmill.image import Box, slices
from voxelmill.objects.components import Joining, label_block
from voxelmill.objects.link import Filters, link_sample
from voxelmill.objects.relabel import relabel_block
from voxelmill.store import create_label_levels, write_label_shard

BY_CLASS = Joining()
KEEP_ALL = Filters()


@dataclass(frozen=True)
class Objects:
    """What came out.

    Attributes
    ----------
    instances : ndarray, (z, y, x)
    table : pyarrow.Table
        ``s.linked.parquet``.
    summary : dict
        ``s.linked.json``.
    boxes : ndarray
        Box voxels of the table's rows, 0 where they are not to be measured.
    grid : LabelGrid
    folder : Path
        With all files of the sample ``s``.
    """

    instances: np.ndarray
    table: pa.Table
    summary: dict[str, Any]
    boxes: np.ndarray
    grid: LabelGrid
    folder: Path

    def column(self, name: str) -> np.ndarray:
        return self.table[name].to_numpy()


def cut_axis(size: int, shard: int, blocks: int) -> tuple[int, ...]:
    """Borders of about ``blocks`` blocks of whole shards on one axis."""
    shards = -(-size // shard)
    borders = sorted({round(i * shards / blocks) for i in range(blocks + 1)})
    return tuple(min(border * shard, size) for border in borders)


def make_grid(
    labels: np.ndarray,
    *,
    shard: int | Sequence[int] = 16,
    blocks: int | Sequence[int] = 2,
    kind: str = SEMANTIC,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    unit: str = "um",
    unreached: Sequence[int] = (),
) -> LabelGrid:
    """Grid of a sample ``s`` with these labels (z, y, x); ``blocks`` per axis."""
    sides = (shard,) * 3 if isinstance(shard, int) else tuple(shard)
    sides = tuple(min(n, s) for n, s in zip(labels.shape, sides, strict=True))
    counts = (blocks,) * 3 if isinstance(blocks, int) else blocks
    cuts = tuple(map(cut_axis, labels.shape, sides, counts))
    total = int(np.prod([len(c) - 1 for c in cuts]))
    values = tuple(int(v) for v in np.unique(labels) if v) if kind == SEMANTIC else ()
    values = values or (1,)
    return LabelGrid(
        sample="s",
        shape=labels.shape,
        spacing=tuple(spacing),
        origin=(0.0, 0.0, 0.0),
        unit=unit,
        shard=sides,
        cuts=cuts,
        reached=tuple(b for b in range(total) if b not in unreached),
        values=values,
        label_names={"0": "background", **{str(v): f"class {v}" for v in values}},
        windows=0,
        kind=kind,
        dtype=label_dtype(int(labels.max(initial=1))),
    )


def write_blocks(grid: LabelGrid, labels: np.ndarray, folder: Path) -> None:
    """Write the blocks ``s.b<k>.zarr`` that STITCH_BLOCKS or IMPORT_IMAGE would have made."""
    for block in grid.reached:
        out = folder / grid.block_name(block)
        levels = create_label_levels(out, grid.shape, grid.shard, grid.dtype)
        for box in grid.shards_of(block):
            write_label_shard(levels, box, labels[slices(box)])
        values, counts = np.unique(labels[slices(grid.block_box(block))], return_counts=True)
        write_json(out / "counts.json", {str(v): int(n) for v, n in zip(values, counts, strict=True)})


def label_all(grid: LabelGrid, folder: Path, joining: Joining, image: np.ndarray | None = None) -> None:
    """LABEL_BLOCKS of every block; ``image`` is (c, z, y, x)."""

    def read(channel: int, box: Box) -> np.ndarray:
        assert image is not None
        return image[channel][slices(box)]

    for block in grid.reached:
        out = folder / f"s.b{block}.components"
        label_block(
            grid, block, folder / grid.block_name(block), joining, out, read, 0 if image is None else len(image)
        )


def relabel_all(grid: LabelGrid, folder: Path, joining: Joining, dtype: str) -> np.ndarray:
    """RELABEL_BLOCKS of every block -> instances (z, y, x)."""
    instances = np.zeros(grid.shape, dtype)
    for block in grid.reached:
        out = folder / f"s.b{block}.instances.zarr"
        relabel_block(grid, block, folder / grid.block_name(block), folder / f"s.b{block}.lut", joining, dtype, out)
        here = slices(grid.block_box(block))
        instances[here] = zarr.open_array(str(out), path="0", mode="r")[here]
    return instances


def find_objects(
    labels: np.ndarray,
    folder: Path,
    joining: Joining = BY_CLASS,
    filters: Filters = KEEP_ALL,
    image: np.ndarray | None = None,
    **of_grid: Any,
) -> Objects:
    """Objects of labels (z, y, x): written in blocks, labelled, linked and written again.

    ``image`` is (c, z, y, x); what `make_grid` takes may be given by name.
    """
    grid = make_grid(labels, **of_grid)
    write_blocks(grid, labels, folder)
    label_all(grid, folder, joining, image)
    summary, boxes = link_sample(grid, folder, joining, filters, 0 if image is None else len(image), folder)
    instances = relabel_all(grid, folder, joining, summary["dtype"])
    return Objects(instances, pq.read_table(folder / "s.linked.parquet"), summary, boxes, grid, folder)
