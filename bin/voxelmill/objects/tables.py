"""Tables of objects: what was linked and what was measured, joined row by row and written as CSV and Parquet.

Everything streams: memory is that of a few thousand rows, and of 8 bytes per id while ids are compared. A Parquet
column carries its unit in its field's metadata under ``unit``.

Numbers in CSV files are the shortest decimals that give back the same binary number, never with an exponent, with a
point in every locale. Nulls are empty cells. A text that a spreadsheet would take for a formula gets an apostrophe in
front; Parquet keeps it as it is.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from voxelmill import __version__
from voxelmill.errors import InputMissingError, TemporaryError
from voxelmill.files import atomic_path
from voxelmill.grid import LabelGrid
from voxelmill.objects.columns import MEASURES, Column, columns_of, plane_axis

ROWS = 2**14
"""Rows of a table that are held at once."""

POINTS = 2**19
"""Points of profiles that are held at once, but for a single object that has more."""

ROW_GROUP = 2**16

AXES = "zyx"
STATISTICS = ("mean", "min", "max", "sd")
FORMULA = r"^[=+\-@\t\r]"
"""First characters that make a spreadsheet run a cell."""


# Columns


def suffix(unit: str) -> str:
    """End of a column's name: lengths in micrometres or, for ``pixel``, in voxels."""
    return "px" if unit == "pixel" else "um"


def objects_schema(
    unit: str,
    channels: int,
    metadata: Mapping[str, str] | None = None,
    measures: Sequence[str] = MEASURES,
    plane: bool = False,
) -> pa.Schema:
    """Columns of ``<sample>.objects.parquet`` in their order, with units.

    Parameters
    ----------
    unit : str
        ``um`` or ``pixel``.
    channels : int
        Of the image, in the model's order.
    metadata : mapping, optional
        Of the file, beside Voxelmill's version.
    measures : sequence of str
        What was measured.
    plane : bool
        Whether the image has a single plane.
    """
    end = suffix(unit)
    fields = [
        pa.field("id", pa.int64(), False),
        pa.field("class", pa.string(), False),
        _field("voxels", pa.int64(), "voxels"),
        _field(f"volume_{end}3", pa.float64(), f"{end}3"),
        *(_field(f"centroid_{axis}_{end}", pa.float64(), end) for axis in AXES),
        *(_field(f"{axis}_{bound}", pa.int64(), "voxels") for axis in AXES for bound in ("start", "stop")),
        pa.field("touches_border", pa.bool_()),
        pa.field("measured", pa.bool_()),
        *(_field(f"{name}_c{c}", pa.float64(), "raw values") for name in STATISTICS for c in range(channels)),
        *(_measure(column, end) for column in columns_of(measures, plane)),
    ]
    return pa.schema(fields, {"voxelmill": __version__, "unit": unit, **(metadata or {})})


def profiles_schema(unit: str, dtype: str, channels: int, metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """Columns of ``<sample>.profiles.parquet``: one row per voxel of a path, raw values in the image's own type."""
    end = suffix(unit)
    fields = [
        pa.field("id", pa.int64(), False),
        pa.field("position", pa.int32(), False),
        _field(f"distance_{end}", pa.float64(), end),
        *(_field(axis, pa.int32(), "voxels") for axis in AXES),
        *(_field(f"c{c}", raw_type(dtype), "raw values") for c in range(channels)),
    ]
    return pa.schema(fields, {"voxelmill": __version__, "unit": unit, **(metadata or {})})


def raw_type(dtype: str) -> pa.DataType:
    """Type in which raw values of an image are written: whole numbers stay whole."""
    return pa.from_numpy_dtype(np.dtype(dtype).newbyteorder("=")) if np.dtype(dtype).kind in "iu" else pa.float64()


def union_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """All columns of several tables; one that is not in the first stands behind the column it follows in its own."""
    merged: list[pa.Field] = []
    for schema in schemas:
        names = [field.name for field in merged]
        at = 0
        for field in schema:
            if field.name in names:
                at = names.index(field.name) + 1
            else:
                merged.insert(at, field)
                names.insert(at, field.name)
                at += 1
    return pa.schema(merged)


def _measure(column: Column, end: str) -> pa.Field:
    unit = column.unit(end)
    return _field(column.title(end), column.type, unit) if unit else pa.field(column.name, column.type)


def _field(name: str, kind: pa.DataType, unit: str) -> pa.Field:
    return pa.field(name, kind, metadata={"unit": unit})


# Rows of several files, one after another


def stream(paths: Iterable[Path], columns: Sequence[str], lists: str | None = None) -> Iterator[pa.Table]:
    """Rows of Parquet files in small portions.

    Parameters
    ----------
    paths : iterable of Path
    columns : sequence of str
    lists : str, optional
        A column of lists: portions get smaller so that all rows together have about `POINTS` elements.
    """
    for path in paths:
        with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
            rows = ROWS if lists is None else min(ROWS, max(1, POINTS // max(1, _mean_length(file, lists))))
            for batch in file.iter_batches(rows, columns=list(columns)):
                yield pa.table(batch)


def _mean_length(file: pq.ParquetFile, column: str) -> int:
    meta = file.metadata
    leaf = next(
        i for i in range(meta.num_columns) if meta.schema.column(i).path.split(".")[0] == column
    )  # a list's only leaf
    values = sum(meta.row_group(group).column(leaf).num_values for group in range(meta.num_row_groups))
    return values // max(1, meta.num_rows)


class Rows:
    """Takes any number of rows at a time from a stream of portions."""

    def __init__(self, portions: Iterable[pa.Table], schema: pa.Schema):
        self._portions = iter(portions)
        self._held = schema.empty_table()

    def take(self, n: int) -> pa.Table:
        """The next ``n`` rows; the caller knows that they are there."""
        tables, missing = [self._held], n - len(self._held)
        while missing > 0:
            tables.append(next(self._portions))
            missing -= len(tables[-1])
        table = pa.concat_tables(tables)
        self._held = table.slice(n)
        return table.slice(0, n).combine_chunks()


# The join


def measure_files(folder: Path, sample: str) -> list[Path]:
    """The measures of exactly this sample, by task: ``a.m0.measures.parquet`` is not of the sample ``a.m0``."""
    pattern = re.compile(re.escape(sample) + r"\.m(\d+)\.measures\.parquet")
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def ordered_measures(sample: str, linked: Path, measures: Sequence[Path]) -> list[Path]:
    """Check that every object that is to be measured is in one row of the measures, and no other is.

    Parameters
    ----------
    sample : str
    linked : Path
        ``<sample>.linked.parquet``, in the order of its ids.
    measures : sequence of Path
        Each in the order of its ids.

    Returns
    -------
    list of Path
        The measures in the order of their ids, without empty files.

    Raises
    ------
    TemporaryError
        Where a measure is lost, doubled or of an object that is not to be measured.
    """
    table = pq.read_table(linked, columns=["id", "measured"])
    expected = table.filter(table["measured"])["id"].to_numpy()
    ids = [(pq.read_table(path, columns=["id"])["id"].to_numpy(), path) for path in measures]
    ids = sorted(((found, path) for found, path in ids if found.size), key=lambda pair: int(pair[0][0]))
    found = np.concatenate([found for found, _ in ids]) if ids else np.empty(0, np.int64)
    if not np.array_equal(found, expected):
        raise TemporaryError(
            _difference(expected, found),
            sample=sample,
            file=", ".join(path.name for path in measures[:3]) + (", ..." if len(measures) > 3 else "") or None,
            expected=f"{expected.size} objects, one row each",
            remedy="run again with -resume",
        )
    return [path for _, path in ids]


def _difference(expected: np.ndarray, found: np.ndarray) -> str:
    values, counts = np.unique(found, return_counts=True)
    faults = {
        "lost": np.setdiff1d(expected, values),
        "doubled": values[counts > 1],
        "not asked for": np.setdiff1d(values, expected),
    }
    told = [
        f"{ids.size} {what}: id {', '.join(map(str, ids[:5]))}{', ...' if ids.size > 5 else ''}"
        for what, ids in faults.items()
        if ids.size
    ]
    return "measures of objects are wrong: " + ("; ".join(told) or "they are not in the order of the objects")


def join(
    grid: LabelGrid, linked: pa.Table, measures: pa.Table, schema: pa.Schema, measured_columns: Sequence[Column]
) -> pa.Table:
    """Rows of the objects' table.

    Parameters
    ----------
    grid : LabelGrid
    linked : pa.Table
        Rows of ``<sample>.linked.parquet``; centroids in voxels.
    measures : pa.Table
        The measures of those of them that are measured, in the same order.
    schema : pa.Schema
        Result of `objects_schema`.
    measured_columns : sequence of Column
        Those of the measures.
    """
    end = suffix(grid.unit)
    measured = linked["measured"].to_numpy()
    at = pa.array(np.cumsum(measured) - 1, mask=~measured)
    found = measures.take(at)
    columns: dict[str, Any] = {name: linked[name] for name in linked.column_names if name in schema.names}
    names = {value: grid.label_names[str(value)] for value in grid.values}
    columns["class"] = pa.array([names[value] for value in linked["class_value"].to_pylist()], pa.string())
    columns[f"volume_{end}3"] = pc.multiply(linked["voxels"].cast(pa.float64()), voxel_volume(grid))
    for axis, spacing, origin in zip(AXES, grid.spacing, grid.origin, strict=True):
        columns[f"centroid_{axis}_{end}"] = pc.add(pc.multiply(linked[f"centroid_{axis}"], spacing), origin)
    for measure in measured_columns:
        column = found[measure.name]
        if pa.types.is_floating(measure.type):
            column = pc.if_else(pc.is_finite(column), column, pa.scalar(None, measure.type))
        columns[measure.title(end)] = column
    return pa.table([pa.chunked_array(columns[field.name]).cast(field.type) for field in schema], schema=schema)


def voxel_volume(grid: LabelGrid) -> float:
    return float(np.prod(grid.spacing))


def objects_of(
    grid: LabelGrid,
    channels: int,
    linked: Path,
    files: Sequence[Path],
    schema: pa.Schema,
    measures: Sequence[str] = MEASURES,
) -> Iterator[pa.Table]:
    """Rows of the objects' table in small portions, from files that `ordered_measures` has accepted."""
    columns = columns_of(measures, plane_axis(grid.shape) is not None)
    empty = pa.schema([("id", pa.int64()), *((column.name, column.type) for column in columns)])
    rows = Rows((table.cast(empty) for table in stream(files, empty.names)), empty)
    statistics = [f"{name}_c{c}" for name in STATISTICS for c in range(channels)]
    bounds = [f"{axis}_{bound}" for axis in AXES for bound in ("start", "stop")]
    wanted = ["id", "class_value", "voxels", *bounds, *(f"centroid_{axis}" for axis in AXES)]
    for table in stream([linked], [*wanted, "touches_border", "measured", *statistics]):
        yield join(grid, table, rows.take(pc.sum(table["measured"], min_count=0).as_py()), schema, columns)


def profiles_of(measures: Sequence[Path], channels: int) -> Iterator[pa.Table]:
    """Ids and paths of the measured objects, in small portions."""
    lists = ["profile_distance", *(f"profile_{axis}" for axis in AXES), *(f"profile_c{c}" for c in range(channels))]
    return stream(measures, ["id", *lists], lists="profile_distance")


def long_form(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """One row per point: a portion of `profiles_of` in the columns of `profiles_schema`."""
    lists = table["profile_distance"].combine_chunks()
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    starts = np.cumsum(lengths) - lengths
    columns = [
        np.repeat(table["id"].to_numpy(), lengths),
        np.arange(lengths.sum()) - np.repeat(starts, lengths),
        *(pc.list_flatten(table[name].combine_chunks()) for name in table.column_names[1:]),
    ]
    arrays = [pa.array(column) if isinstance(column, np.ndarray) else column for column in columns]
    return pa.table([array.cast(field.type) for array, field in zip(arrays, schema, strict=True)], schema=schema)


# Writing


class TableWriter:
    """Writes portions of rows to Parquet and, if asked, to CSV."""

    def __init__(self, parquet: pq.ParquetWriter, text: CsvWriter | None):
        self._parquet, self._text = parquet, text
        self._held: list[pa.Table] = []

    def write(self, table: pa.Table) -> None:
        if self._text is not None:
            self._text.write(table)
        self._held.append(table)
        if sum(map(len, self._held)) >= ROW_GROUP:
            self.flush()

    def flush(self) -> None:
        if self._held:
            self._parquet.write_table(pa.concat_tables(self._held), row_group_size=ROW_GROUP)
            self._held = []


class CsvWriter:
    """Writes the header, then portions of rows."""

    def __init__(self, handle: IO[str], schema: pa.Schema):
        self._writer = csv.writer(handle, lineterminator="\n")
        self._writer.writerow(schema.names)

    def write(self, table: pa.Table) -> None:
        for start in range(0, len(table), ROWS):
            columns = [cells(column) for column in table.slice(start, ROWS).columns]
            self._writer.writerows(zip(*columns, strict=True))


@contextmanager
def table_writer(schema: pa.Schema, parquet: Path, text: Path | None = None) -> Iterator[TableWriter]:
    """Both files appear whole, or neither does."""
    with atomic_path(parquet) as temporary, ExitStack() as stack:
        plain = None
        if text is not None:
            name = stack.enter_context(atomic_path(text))
            plain = CsvWriter(stack.enter_context(open(name, "w", encoding="utf-8", newline="")), schema)
        target = stack.enter_context(pq.ParquetWriter(temporary, schema, compression="zstd"))
        writer = TableWriter(target, plain)
        yield writer
        writer.flush()


def cells(column: pa.ChunkedArray) -> list[str]:
    """One column as text for a CSV file."""
    if pa.types.is_string(column.type):
        column = pc.replace_substring_regex(column, pattern=f"({FORMULA})", replacement=r"'\1")
    text = column.cast(pa.string()).fill_null("").to_pylist()
    if pa.types.is_floating(column.type):
        values = column.to_numpy()
        for row in np.flatnonzero(pc.match_substring(column.cast(pa.string()), "e").fill_null(False).to_numpy()):
            text[row] = np.format_float_positional(values[row], trim="-")
    return text


def check_rows(sample: str, path: Path, expected: int) -> None:
    """Check the number of rows of a Parquet file.

    Raises
    ------
    InputMissingError
        Where there is no file.
    TemporaryError
        Where it has another number of rows.
    """
    if not path.exists():
        raise InputMissingError("a table of objects is missing", sample=sample, file=path.name)
    rows = int(pq.read_metadata(path).num_rows)
    if rows != expected:
        raise TemporaryError(
            f"the table has {rows} objects",
            sample=sample,
            file=path.name,
            expected=f"{expected} objects",
            remedy="run again with -resume",
        )
