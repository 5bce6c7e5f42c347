"""The tables that say which tile or block belongs to which task, as Nextflow and the tasks read them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

from voxelmill.files import write_bytes


@dataclass(frozen=True)
class TileRow:
    """One line of ``<batch>.tiles.csv``: a tile, its task, and what a task needs that computes this tile alone.

    ``seconds`` is the estimate of its windows, rounded up. ``memory_bytes`` are the host's; what a GPU needs is in the
    plan.
    """

    sample: str
    tile: int
    task: int
    windows: int
    memory_bytes: int
    threads: int
    seconds: int


@dataclass(frozen=True)
class BlockRow:
    """One line of ``<batch>.blocks.csv``: a block, the group it is stitched in, and that group's number of pieces."""

    sample: str
    block: int
    group: int
    n_pieces: int


@dataclass(frozen=True)
class MeasureRow:
    """One line of ``<batch>.measures.csv``: a task measures the rows [first, last) of a sample's table of objects."""

    sample: str
    task: int
    first: int
    last: int
    memory_bytes: int


Row = TypeVar("Row", TileRow, BlockRow, MeasureRow)


def write_rows(path: Path, kind: type[Row], rows: Sequence[Row]) -> None:
    """Write a table of the plan as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_bytes(path, text.getvalue().encode())


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Read what :func:`write_rows` wrote."""
    with open(path, encoding="utf-8", newline="") as handle:
        table = list(csv.DictReader(handle))
    return [kind(row["sample"], *(int(row[field.name]) for field in fields(kind)[1:])) for row in table]
