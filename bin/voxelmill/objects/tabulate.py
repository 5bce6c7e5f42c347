"""TABULATE_OBJECTS: all that is known of a sample's objects as tables, JSON, a chart and pictures.

Tables stream. Of every measured object about 60 bytes are held for percentiles, charts and the choice of pictures.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from voxelmill.files import atomic_path, read_json, write_json
from voxelmill.grid import LabelGrid
from voxelmill.image import StoredImage, staged_image
from voxelmill.objects.charts import length_chart, save_chart, size_chart
from voxelmill.objects.columns import MEASURES, SHAPE, SKELETON, plane_axis
from voxelmill.objects.gallery import choose, gallery, instance_labels
from voxelmill.objects.summary import DIAMETER, Measured, read_measured, summarise
from voxelmill.objects.tables import (
    AXES,
    check_rows,
    long_form,
    measure_files,
    objects_of,
    objects_schema,
    ordered_measures,
    profiles_of,
    profiles_schema,
    suffix,
    table_writer,
)
from voxelmill.pictures import save_pictures
from voxelmill.task import Task

UM_PER_M = 1e6
TABLES = ("objects.csv", "objects.parquet")
PUBLISHED = {
    SKELETON: ("profiles.parquet", "axons.json", "lengths.png", "lengths.svg"),
    SHAPE: ("sizes.png", "sizes.svg"),
}
"""Files of a sample that are there where this was measured."""


def tabulate_batch(
    samples: Sequence[str], length: str, folder: Path, record: Task, measures: Sequence[str] = MEASURES
) -> None:
    """Tables, charts and pictures of every sample of a batch.

    Parameters
    ----------
    samples : sequence of str
        In the batch's order: the label store of the first is ``labels/1``.
    length : str
        ``longest_path`` or ``longest_branch``: what JSON and charts call length.
    folder : Path
        Holds ``<sample>.linked.parquet`` and ``.json``, ``<sample>.m<task>.measures.parquet``, ``<sample>.grid.json``,
        ``<sample>.image.json``, ``stores/`` and ``labels/``; gets a folder per sample.
    record : Task
    measures : sequence of str
        What was measured: some of `MEASURES`.
    """
    for position, sample in enumerate(samples):
        grid = LabelGrid.load(folder / f"{sample}.grid.json")
        labels = instance_labels(folder, position)
        summary = tabulate_sample(grid, staged_image(sample, folder), labels, length, folder, folder / sample, measures)
        record.counts[sample] = {name: summary[name] for name in ("objects", "measured", "skeleton_empty")}
        for ending in (*TABLES, *(ending for name in measures for ending in PUBLISHED[name])):
            record.output(folder / sample / f"{sample}.{ending}")
        for warning in summary["warnings"]:
            record.warn(warning, sample=sample)


def tabulate_sample(
    grid: LabelGrid,
    image: StoredImage,
    labels: Path,
    length: str,
    folder: Path,
    out: Path,
    measures: Sequence[str] = MEASURES,
) -> dict[str, Any]:
    """Everything about the objects of one sample.

    Parameters
    ----------
    grid : LabelGrid
    image : StoredImage
    labels : Path
        Group of its instance labels.
    length : str
    folder, out : Path
        Where its linked objects and measures lie; what gets the results.
    measures : sequence of str
        What was measured.

    Returns
    -------
    dict
        What ``<sample>.objects.json`` holds.

    Raises
    ------
    InputMissingError, TemporaryError
        Where tables are missing, or do not fit each other.
    """
    sample, channels = grid.sample, len(image.info.array.channels)
    linked, told = folder / f"{sample}.linked.parquet", read_json(folder / f"{sample}.linked.json")
    check_rows(sample, linked, told["objects"])
    files = ordered_measures(sample, linked, measure_files(folder, sample))
    plane = plane_axis(grid.shape) is not None

    objects = out / f"{sample}.objects.parquet"
    schema = objects_schema(grid.unit, channels, {"sample": sample}, measures, plane)
    with table_writer(schema, objects, out / f"{sample}.objects.csv") as writer:
        for table in objects_of(grid, channels, linked, files, schema, measures):
            writer.write(table)
    measured = read_measured(objects, length, grid.unit)
    chosen = {key: int(measured.id[at]) for key, at in choose(measured.voxels, measured.branches).items()}
    paths = dict.fromkeys(chosen.values(), np.empty((0, len(AXES)), np.int64))
    if SKELETON in measures:
        paths |= write_profiles(grid, image.info.dtype, channels, files, measured, out, set(chosen.values()))
        lengths = measured.length[np.isfinite(measured.length)]
        save_chart(length_chart(sample, grid.spacing, grid.unit, lengths, length), out / f"{sample}.lengths")
    summary = summarise(grid, told, objects, measured, length, measures)
    if SHAPE in measures:
        diameters = measured.diameter[np.isfinite(measured.diameter)]
        figure = size_chart(sample, grid.spacing, grid.unit, diameters, 2 if plane else 3, summary["sizes"])
        save_chart(figure, out / f"{sample}.sizes")
    rows = rows_of(objects, chosen.values())
    save_pictures(
        out / f"{sample}.gallery.npz",
        gallery({key: (n, _box(rows[n]), paths[n]) for key, n in chosen.items()}, grid, image, labels),
    )
    summary["gallery"] = [gallery_entry(key, rows[n], length, grid.unit) for key, n in chosen.items()]
    write_json(out / f"{sample}.objects.json", summary)
    return summary


def write_profiles(
    grid: LabelGrid,
    dtype: str,
    channels: int,
    measures: Sequence[Path],
    measured: Measured,
    out: Path,
    wanted: set[int],
) -> dict[int, np.ndarray]:
    """Write ``<sample>.profiles.parquet`` and ``<sample>.axons.json`` in one pass over the paths.

    Returns
    -------
    dict
        Of the wanted objects the voxels of the path, int64 (n, 3).
    """
    schema = profiles_schema(grid.unit, dtype, channels, {"sample": grid.sample})
    lengths = np.full(measured.length.size, np.nan) if grid.unit == "pixel" else measured.length / UM_PER_M
    paths: dict[int, np.ndarray] = {}
    done = 0
    with (
        table_writer(schema, out / f"{grid.sample}.profiles.parquet") as writer,
        axons_file(out / f"{grid.sample}.axons.json") as axons,
    ):
        for table in profiles_of(measures, channels):
            part = slice(done, done + len(table))
            done += len(table)
            points = long_form(table, schema)
            writer.write(points)
            borders = np.searchsorted(points["id"].to_numpy(), measured.id[part], side="left")
            profiles = np.split(points["c0"].to_numpy(), borders[1:])
            axons.write(measured.id[part], measured.voxels[part], lengths[part], profiles)
            for number in wanted.intersection(measured.id[part].tolist()):
                path = points.filter(np.asarray(points["id"]) == number)
                paths[number] = np.stack([path[axis].to_numpy() for axis in AXES], axis=1).astype(np.int64)
    return paths


class AxonsWriter:
    """Writes JSON object by object; see `axons_file`."""

    def __init__(self, handle: IO[str]):
        self._handle, self._separator = handle, "{\n"

    def write(self, ids: np.ndarray, voxels: np.ndarray, metres: np.ndarray, profiles: Sequence[np.ndarray]) -> None:
        """Add objects: ids, volumes and lengths (n,), and for each its raw values."""
        for number, volume, length, profile in zip(
            ids.tolist(), voxels.tolist(), metres.tolist(), profiles, strict=True
        ):
            entry = {"volume": volume, "length": None if np.isnan(length) else length, "profile": profile.tolist()}
            self._handle.write(f'{self._separator}"{number}": {json.dumps(entry, allow_nan=False)}')
            self._separator = ",\n"

    def close(self) -> None:
        self._handle.write("{}\n" if self._separator == "{\n" else "\n}\n")


@contextmanager
def axons_file(path: Path) -> Iterator[AxonsWriter]:
    """JSON of lengths and profiles.

    ``{"<id>": {"volume": voxels, "length": metres, "profile": [raw values of channel 0 along the path]}}``. A length is
    null where there are no metres, as in an image without physical size.
    """
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as handle:
        writer = AxonsWriter(handle)
        yield writer
        writer.close()


def rows_of(objects: Path, ids: Collection[int]) -> dict[int, dict[str, Any]]:
    """A few rows of ``<sample>.objects.parquet`` by id."""
    table = pq.read_table(objects, filters=[("id", "in", list(ids))]) if ids else pa.table({})
    return {row["id"]: row for row in table.to_pylist()}


def gallery_entry(key: str, row: Mapping[str, Any], length: str, unit: str) -> dict[str, Any]:
    """One object of the gallery in ``<sample>.objects.json``."""
    end = suffix(unit)
    return {
        "key": key,
        "id": row["id"],
        "class": row["class"],
        "voxels": row["voxels"],
        "volume": row[f"volume_{end}3"],
        "length": row.get(f"{length}_{end}"),
        "branches": row.get("branches"),
        "diameter": row.get(f"{DIAMETER}_{end}"),
    }


def _box(row: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    return tuple((row[f"{axis}_start"], row[f"{axis}_stop"]) for axis in AXES)
