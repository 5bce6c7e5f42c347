"""COMPARE_SAMPLES: the objects of all samples in one table, and whether groups of samples differ in length or size.

Objects of one sample are not independent, so the unit of a test is the sample: its mean length, or where no skeletons
were measured its mean equivalent diameter. What is said of the objects of a group, effect sizes included, only
describes. Of every measured object 8 bytes are held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import kruskal, mannwhitneyu

from voxelmill.errors import TemporaryError
from voxelmill.files import read_json, write_json
from voxelmill.objects.charts import GroupLengths, group_chart, save_chart
from voxelmill.objects.summary import DIAMETER
from voxelmill.objects.tables import TableWriter, objects_schema, stream, suffix, table_writer, union_schema
from voxelmill.task import Task

LEAST_SAMPLES = 3
"""Samples with a mean length that every group needs for a test."""

EXACT = 8
"""Up to so many samples in the smaller of two groups, p is exact if all means differ; else it is asymptotic."""

CHARTS = {DIAMETER: "sizes_by_group"}
"""Name of the chart where not lengths are compared."""

NAMED = 10


@dataclass(frozen=True)
class Arrived:
    """One sample of the run.

    Attributes
    ----------
    id : str
    group : str or None
    table : Path
        ``<sample>.objects.parquet``
    summary : mapping
        Contents of ``<sample>.objects.json``.
    """

    id: str
    group: str | None
    table: Path
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Lengths:
    """Of one sample the lengths, or diameters, of its measured objects (n,), and the mean volume of those objects."""

    sample: Arrived
    values: np.ndarray
    volume_mean: float | None


def compare_samples(samples: Path, tables: Path, length: str, skip: bool, out: Path, record: Task) -> dict[str, Any]:
    """Write ``objects.csv``, ``objects.parquet``, ``cohort.json`` and, for samples in groups, a chart.

    The chart is ``lengths_by_group``, or where equivalent diameters are compared ``sizes_by_group``, as PNG and SVG.

    Parameters
    ----------
    samples : Path
        ``samples.json``
    tables : Path
        Folder of ``<sample>.objects.parquet`` and ``<sample>.objects.json``.
    length : str
        ``longest_path`` or ``longest_branch``. Where a sample has no lengths, equivalent diameters are compared.
    skip : bool
        Whether a sample may be absent; it is then named.
    out : Path
    record : Task

    Returns
    -------
    dict
        What ``cohort.json`` holds.

    Raises
    ------
    TemporaryError
        Where a sample did not arrive and may not be absent.
    """
    entries = read_json(samples)["samples"]
    arrived = [
        Arrived(entry["id"], entry.get("group") or None, table, read_json(summary))
        for entry in entries
        if (table := tables / f"{entry['id']}.objects.parquet").exists()
        and (summary := tables / f"{entry['id']}.objects.json").exists()
    ]
    missing = [entry["id"] for entry in entries if entry["id"] not in {sample.id for sample in arrived}]
    if missing and not skip:
        raise TemporaryError(
            f"the objects of {len(missing)} of {len(entries)} samples did not arrive",
            sample=named(missing),
            expected="a table of objects for every sample of samples.json",
            remedy="run again with -resume",
        )
    compared = quantity_of(arrived, length)
    lengths = write_all(arrived, compared, out)
    units = {sample.summary["unit"] for sample in arrived}
    unit = "pixel" if units == {"pixel"} else "um"
    cohort = compare(lengths, unit, compared, missing)
    grouped = [group for group in pooled(groups_of(lengths, unit)) if group.means.size]
    if grouped:
        for path in save_chart(group_chart(grouped, unit, compared), out / CHARTS.get(compared, "lengths_by_group")):
            record.output(path)
    write_json(out / "cohort.json", cohort)
    for name in ("objects.csv", "objects.parquet", "cohort.json"):
        record.output(out / name)
    record.counts = {"samples": len(arrived), "missing": len(missing), "objects": sum(_objects(s) for s in arrived)}
    if missing:
        record.warn(f"without the samples that did not arrive: {named(missing)}")
    return cohort


def quantity_of(samples: Sequence[Arrived], length: str) -> str:
    """What is compared: the length, or the equivalent diameter where a sample has no lengths."""
    named_lengths = all(
        f"{length}_{suffix(sample.summary['unit'])}" in pq.read_schema(sample.table).names for sample in samples
    )
    return length if named_lengths else DIAMETER


# One table


def write_all(samples: Sequence[Arrived], length: str, out: Path) -> list[Lengths]:
    """All rows of all samples, in the order of the samplesheet, with their sample and group in front.

    Columns that some samples do not have, such as those of another unit or of more channels, are null in their rows.
    """
    own = [pq.read_schema(sample.table) for sample in samples] or [objects_schema("um", 0)]
    front = [pa.field("sample", pa.string(), False), pa.field("group", pa.string())]
    schema = pa.schema([*front, *union_schema(own)], {"voxelmill": own[0].metadata[b"voxelmill"]})
    with table_writer(schema, out / "objects.parquet", out / "objects.csv") as writer:
        return [_append(sample, length, schema, writer) for sample in samples]


def _append(sample: Arrived, length: str, schema: pa.Schema, writer: TableWriter) -> Lengths:
    end = suffix(sample.summary["unit"])
    lengths, volumes = [np.empty(0)], [np.empty(0)]
    for table in stream([sample.table], pq.read_schema(sample.table).names):
        writer.write(widened(table, sample, schema))
        measured = table.filter(table["measured"])
        lengths.append(measured[f"{length}_{end}"].drop_null().to_numpy())
        volumes.append(measured[f"volume_{end}3"].drop_null().to_numpy())
    volume = np.concatenate(volumes)
    return Lengths(sample, np.concatenate(lengths), float(volume.mean()) if volume.size else None)


def widened(table: pa.Table, sample: Arrived, schema: pa.Schema) -> pa.Table:
    """A sample's rows in the columns of all samples."""
    columns = []
    for field in schema:
        if field.name == "sample":
            columns.append(pa.repeat(pa.scalar(sample.id, field.type), len(table)))
        elif field.name == "group":
            columns.append(pa.repeat(pa.scalar(sample.group, field.type), len(table)))
        elif field.name in table.column_names:
            columns.append(table[field.name])
        else:
            columns.append(pa.nulls(len(table), field.type))
    return pa.table(columns, schema=schema)


# The comparison


def compare(lengths: Sequence[Lengths], unit: str, length: str, missing: Sequence[str]) -> dict[str, Any]:
    """Contents of ``cohort.json``.

    Where some images have a physical size and others have none, the others are in the table, but have no means here
    and are in no group.

    Parameters
    ----------
    lengths : sequence of Lengths
    unit : str
        ``um`` or ``pixel``.
    length : str
        What is compared; see `quantity_of`.
    missing : sequence of str
        Samples that did not arrive.
    """
    members = groups_of(lengths, unit)
    groups = pooled(members)
    return {
        "length": length,
        "unit": unit,
        "groups": [_group_row(group, members[group.name]) for group in groups],
        "samples": [_sample_row(one, one.sample.summary["unit"] == unit) for one in lengths],
        "test": group_test(groups, length),
        "note": " ".join(notes(lengths, unit, missing)),
        "missing": list(missing),
    }


def groups_of(lengths: Sequence[Lengths], unit: str) -> dict[str, list[Lengths]]:
    """Groups in the order in which the samplesheet names them first; samples of another unit are left out."""
    members: dict[str, list[Lengths]] = {}
    for one in lengths:
        if one.sample.group is not None and one.sample.summary["unit"] == unit:
            members.setdefault(one.sample.group, []).append(one)
    return members


def pooled(groups: Mapping[str, Sequence[Lengths]]) -> list[GroupLengths]:
    """Lengths of all objects of each group, and the means of its samples."""
    return [
        GroupLengths(
            name,
            np.concatenate([one.values for one in members]),
            np.array([one.values.mean() for one in members if one.values.size]),
            len(members),
        )
        for name, members in groups.items()
    ]


def group_test(groups: Sequence[GroupLengths], length: str = "longest_path") -> dict[str, Any] | None:
    """Test whether groups differ in the mean lengths, or diameters, of their samples.

    Two groups: Mann-Whitney U, two-sided, of the first group; more: Kruskal-Wallis H. The effect is Cliff's delta of
    the objects of each other group against the first; it describes, and takes no part in the test.

    Returns
    -------
    dict or None
        ``{name, of, statistic, p, effect, note}``, statistic and p None where there are too few samples; None for
        fewer than two groups with objects.

    References
    ----------
    Mann and Whitney (1947); Kruskal and Wallis (1952); Cliff (1993), Psychological Bulletin 114:494.
    """
    groups = [group for group in groups if group.means.size]
    if len(groups) < 2:
        return None
    what, more = ("equivalent diameter", "larger") if length == DIAMETER else ("length", "longer")
    means = [group.means for group in groups]
    smallest = min(map(len, means))
    test: dict[str, Any] = {
        "name": "Mann–Whitney U" if len(groups) == 2 else "Kruskal–Wallis H",
        "of": f"sample means of {what}",
        "statistic": None,
        "p": None,
        "effect": {
            f"Cliff's delta of objects, {other.name} against {groups[0].name}": cliffs_delta(
                other.lengths, groups[0].lengths
            )
            for other in groups[1:]
        },
    }
    effect = (
        f"Cliff's delta is +1 where every object of the one group is {more} than every object of the other, and 0 "
        f"where neither tends to be {more}; it only describes, as objects of one sample are not independent."
    )
    if smallest < LEAST_SAMPLES:
        few = [f"{group.name} ({group.means.size})" for group in groups if group.means.size < LEAST_SAMPLES]
        note = f"No p value: a test needs {LEAST_SAMPLES} samples with {what}s in every group; too few: {named(few)}."
    elif np.ptp(np.concatenate(means)) == 0:
        note = "No p value: all sample means are equal."
    else:
        if len(groups) == 2:
            method = "exact" if smallest <= EXACT and _all_differ(means) else "asymptotic"
            result = mannwhitneyu(*means, alternative="two-sided", method=method)
            note = f"p is {method}"
            if method == "exact":
                note += f" and cannot be below {_least_p(means):.2g} with so few samples"
        else:
            result = kruskal(*means)
            note = f"p is from a chi-square distribution with {len(groups) - 1} degrees of freedom"
        test |= {"statistic": float(result.statistic), "p": float(result.pvalue)}
        note += "; the samples are the units of the test."
    return test | {"note": f"{note} {effect}"}


def cliffs_delta(values: np.ndarray, reference: np.ndarray) -> float:
    """Probability that a value is larger than one of the reference, less the probability that it is smaller."""
    ordered = np.sort(reference)
    larger = np.searchsorted(ordered, values, side="left").sum(dtype=np.float64)
    smaller = (ordered.size - np.searchsorted(ordered, values, side="right")).sum(dtype=np.float64)
    return float((larger - smaller) / values.size / ordered.size)


def notes(lengths: Sequence[Lengths], unit: str, missing: Sequence[str]) -> list[str]:
    """What a reader of the comparison must know."""
    other = [one.sample.id for one in lengths if one.sample.summary["unit"] != unit]
    empty = [one.sample.id for one in lengths if not one.values.size]
    grouped = any(one.sample.group for one in lengths)
    alone = [one.sample.id for one in lengths if one.sample.group is None]
    told = []
    if missing:
        told.append(f"Did not arrive: {named(missing)}.")
    if other:
        told.append(f"Not compared, as their images have no physical size: {named(other)}.")
    if empty:
        told.append(f"Without a measured object, and so without a mean: {named(empty)}.")
    if grouped and alone:
        told.append(f"In no group: {named(alone)}.")
    return told


def named(names: Sequence[str]) -> str:
    """The first of some names."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _all_differ(means: Sequence[np.ndarray]) -> bool:
    every = np.concatenate(means)
    return np.unique(every).size == every.size


def _least_p(means: Sequence[np.ndarray]) -> float:
    """Two-sided p of groups that do not overlap."""
    first, second = (np.arange(m.size) + offset for m, offset in zip(means, (0, len(means[0])), strict=True))
    return float(mannwhitneyu(first, second, method="exact").pvalue)


def _objects(sample: Arrived) -> int:
    return int(sample.summary["objects"])


def _group_row(group: GroupLengths, members: Sequence[Lengths]) -> dict[str, Any]:
    return {
        "name": group.name,
        "samples": [one.sample.id for one in members],
        "objects": sum(_objects(one.sample) for one in members),
        "measured": sum(int(one.sample.summary["measured"]) for one in members),
        "mean": _number(np.mean, group.lengths),
        "sd": _number(np.std, group.lengths),
        "median": _number(np.median, group.lengths),
    }


def _sample_row(one: Lengths, compared: bool) -> dict[str, Any]:
    return {
        "id": one.sample.id,
        "group": one.sample.group,
        "objects": _objects(one.sample),
        "measured": int(one.sample.summary["measured"]),
        "mean": _number(np.mean, one.values) if compared else None,
        "median": _number(np.median, one.values) if compared else None,
        "volume_mean": one.volume_mean if compared else None,
    }


def _number(rule: Any, values: np.ndarray) -> float | None:
    return float(rule(values)) if values.size else None
