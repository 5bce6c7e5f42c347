"""MARK_CORES and LINK_CORES: the cores of a sample, and its regions of core and border that have none.

A region is a 26-connected component of core and border, a core a 6-connected component of core. Both are found in
shards and joined as LABEL_BLOCKS and LINK_OBJECTS join components, so that the cut into blocks changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from voxelmill.archive import Archive, create_archive
from voxelmill.files import write_json
from voxelmill.grid import SEMANTIC, LabelGrid
from voxelmill.image import slices
from voxelmill.objects.components import (
    FOREGROUND,
    Joining,
    Layer,
    label_shard,
)
from voxelmill.objects.link import Parts, join
from voxelmill.objects.separation.cores import CORE, HALO, count_cores, label_values, too_small
from voxelmill.objects.separation.gather import Gathered, gather_blocks
from voxelmill.objects.separation.growth import BACKGROUND, UNASSIGNED
from voxelmill.objects.separation.windows import inside, widen
from voxelmill.rows import BlockRow, read_rows
from voxelmill.store import create_array
from voxelmill.task import Task

CORES, REGIONS = Joining(6, FOREGROUND), Joining(26, FOREGROUND)

MARKED = np.dtype([*CORE.descr, ("region", "<i8")])
"""What is kept of a core of a shard: its counts, and the region of the shard that it lies in, from 1."""

KEPT_TABLES = 32


def masks(grid: LabelGrid) -> LabelGrid:
    """The grid of labels that are foreground or not."""
    return replace(grid, kind=SEMANTIC, values=(1,), dtype="uint8")


def mark_block(labels: Gathered, block: int, core: int, border: int, out: Path) -> dict[str, int]:
    """Find the cores and regions of a block, shard by shard.

    Memory holds a shard and its halo, its cores and regions (4 bytes per voxel each, and about as much again inside
    cc3d), its marks, and the faces of two layers of shards.

    Parameters
    ----------
    labels : Gathered
    block : int
    core, border : int
        Values of the two labels.
    out : Path
        Folder that gets ``<sample>.b<block>.marks.zarr``, an array in which every shard numbers its cores from 1, and
        after them its regions, whose numbers stand in border; and the archives ``<sample>.b<block>.cores`` and
        ``<sample>.b<block>.regions``, in the form of those of LABEL_BLOCKS.

    Returns
    -------
    dict
        ``shards``, and ``cores`` and ``regions`` of shards.

    Raises
    ------
    TemporaryError
        Where labels are missing or damaged.
    """
    grid = masks(labels.grid)
    name = f"{grid.sample}.b{block}"
    array = create_array(out / f"{name}.marks.zarr" / "0", grid.shape, "uint32", grid.shard, "zyx")
    marked = 0
    with create_archive(out / f"{name}.cores") as of_cores, create_archive(out / f"{name}.regions") as of_regions:
        all_cores = Layer(grid, block, CORES, of_cores)
        all_regions = Layer(grid, block, REGIONS, of_regions)
        for place, box in enumerate(all_regions.boxes):
            window = widen(box, HALO, grid.shape)
            found = labels.read(window)
            here = slices(inside(box, window))
            is_core = found == core
            mask = is_core[here] | (found[here] == border)
            if not mask.any():
                array[slices(box)] = np.zeros(mask.shape, np.uint32)
                continue
            regions = label_shard(mask.view(np.uint8), grid, REGIONS)
            all_regions.add(place, regions, np.zeros(regions.count, np.uint8))
            marks = regions.components.astype(np.uint32)
            if is_core[here].any():
                cores = label_shard(is_core[here].view(np.uint8), grid, CORES)
                all_cores.add(place, cores, np.zeros(cores.count, np.uint8))
                rows = np.zeros(cores.count, MARKED)
                counts = count_cores(is_core, cores.components, cores.count, window, box, grid.shape)
                for field in CORE.names or ():
                    rows[field] = counts[field]
                first = np.stack(np.unravel_index(counts["first"], grid.shape), axis=1) - [start for start, _ in box]
                rows["region"] = regions.components[tuple(first.T)]
                of_cores.add(f"rows.{place}", rows)
                marks[mask] += np.uint32(cores.count)
                np.copyto(marks, cores.components, where=is_core[here])
            array[slices(box)] = marks
            marked += int(mask.sum())
        all_cores.finish()
        all_regions.finish()
    voxels = int(np.prod([stop - start for start, stop in grid.block_box(block)], dtype=np.int64))
    write_json(out / f"{name}.marks.zarr" / "counts.json", {"0": voxels - marked, "1": marked})
    return {"shards": len(all_regions.boxes), "cores": all_cores.components, "regions": all_regions.components}


def mark_group(batch: str, group: int, folder: Path, labels: Sequence[str], record: Task) -> None:
    """Find the cores and regions of the blocks of one group.

    Parameters
    ----------
    batch : str
    group : int
    folder : Path
        Holds ``<batch>.blocks.csv`` and ``<sample>.gathered.zarr``; each sample's folder in it gets what `mark_block`
        writes.
    labels : sequence of str
        Names or numbers of the labels of cores and of borders.
    record : Task
    """
    for row in read_rows(folder / f"{batch}.blocks.csv", BlockRow):
        if row.group != group:
            continue
        gathered = Gathered(folder / f"{row.sample}.gathered.zarr")
        core, border = label_values(gathered.grid, labels)
        counts = mark_block(gathered, row.block, core, border, folder / row.sample)
        total = record.counts.setdefault(row.sample, {"blocks": 0, "shards": 0, "cores": 0, "regions": 0})
        for name, n in {"blocks": 1, **counts}.items():
            total[name] += n


def joined(parts: Parts) -> tuple[np.ndarray, int]:
    """Component of the sample that each of a shard belongs to, and how many there are."""
    return join(parts.components, parts.pairs(np.zeros(parts.components, np.uint8)))


def link_cores(grid: LabelGrid, folder: Path, out: Path) -> dict[str, int]:
    """Decide what every number of a sample's marks stands for.

    Memory grows with the number of cores and regions of shards, by about 200 bytes for each.

    Parameters
    ----------
    grid : LabelGrid
        Any grid of the sample.
    folder : Path
        Holds what `mark_block` wrote for every reached block.
    out : Path
        Gets ``<sample>.marks.zarr``, all marks in one array, and ``<sample>.markers``: for every shard a table from the
        numbers of its marks to `BACKGROUND`, `UNASSIGNED`, or the id of a core or of a region without one, from 2.

    Returns
    -------
    dict
        ``cores`` that are large enough, ``small_cores``, ``regions`` and ``regions_without_core``.

    Raises
    ------
    TemporaryError
        Where a file of a block is missing or damaged.
    """
    grid = masks(grid)
    cores = Parts(grid, folder, CORES, "cores", MARKED)
    regions = Parts(grid, folder, REGIONS, "regions", MARKED)
    rows = cores.rows()
    core_of, n_cores = joined(cores)
    region_of, n_regions = joined(regions)
    whole = np.zeros(n_cores, CORE)
    for name in ("voxels", "thin", "deep"):
        np.add.at(whole[name], core_of, rows[name])
    whole["first"] = grid.voxels
    np.minimum.at(whole["first"], core_of, rows["first"])
    kept = ~too_small(whole)
    core_ids = np.zeros(n_cores, np.int64)
    places = np.flatnonzero(kept)
    core_ids[places[np.argsort(whole["first"][places])]] = np.arange(2, len(places) + 2)

    region_of_row = np.zeros(len(rows), np.int64)
    for part in cores.parts:
        at = slice(part.offset, part.offset + part.count)
        region_of_row[at] = region_of[regions.by_index[part.index].offset + rows["region"][at] - 1]
    has_core = np.zeros(n_regions, bool)
    has_core[region_of_row[kept[core_of]]] = True
    region_ids = np.full(n_regions, UNASSIGNED, np.int64)
    region_ids[~has_core] = np.arange(np.count_nonzero(~has_core)) + len(places) + 2
    # voxels of a core that is too small are border of their region
    id_of_core = np.where(kept[core_of], core_ids[core_of], region_ids[region_of_row])

    with create_archive(out / f"{grid.sample}.markers") as archive:
        sizes = np.zeros(shards_along(grid), np.int64)
        for part in regions.parts:
            mine = cores.by_index.get(part.index)
            of_cores = id_of_core[mine.offset : mine.offset + mine.count] if mine else id_of_core[:0]
            of_regions = region_ids[region_of[part.offset : part.offset + part.count]]
            table = np.concatenate([[BACKGROUND], of_cores, of_regions]).astype(np.int64)
            archive.add(table_name(part.index), table)
            sizes[part.index] = len(table)
        archive.add("sizes", sizes)
    gather_blocks(replace(grid, dtype="uint32"), folder, "marks.zarr", out / f"{grid.sample}.marks.zarr")
    return {
        "cores": len(places),
        "small_cores": n_cores - len(places),
        "regions": n_regions,
        "regions_without_core": int(np.count_nonzero(~has_core)),
    }


def shards_along(grid: LabelGrid) -> tuple[int, ...]:
    return tuple(-(-n // side) for n, side in zip(grid.shape, grid.shard, strict=True))


def table_name(index: Sequence[int]) -> str:
    return "table." + ".".join(map(str, index))


class Markers:
    """What the marks of a sample's shards stand for, as `link_cores` wrote it.

    Memory holds the tables of 32 shards.

    Raises
    ------
    TemporaryError
        Here or later, where the file is missing or damaged.
    """

    def __init__(self, grid: LabelGrid, path: Path):
        self._archive = Archive(path)
        self._sizes = self._archive.read("sizes", shards_along(grid), np.int64)
        self.table = lru_cache(KEPT_TABLES)(self._read)

    def _read(self, index: tuple[int, ...]) -> np.ndarray:
        """Numbers of a shard's marks -> states; only background where the shard has no region."""
        size = int(self._sizes[index])
        return self._archive.read(table_name(index), (size,), np.int64) if size else np.zeros(1, np.int64)


def link_cores_batch(folder: Path, record: Task) -> None:
    """Link the cores of the samples of a batch.

    Parameters
    ----------
    folder : Path
        Holds ``<sample>.grid.json`` and what `mark_block` wrote; each sample's folder in it gets what `link_cores`
        writes.
    record : Task
    """
    for path in sorted(folder.glob("*.grid.json")):
        grid = LabelGrid.load(path)
        record.counts[grid.sample] = link_cores(grid, folder, folder / grid.sample)
