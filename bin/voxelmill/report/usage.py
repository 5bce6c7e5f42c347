"""What a run used: time, memory and disk per process, estimates beside them, versions of packages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from voxelmill.report.arrival import PREDICTION

PROBE = "probe_device"
"""The process whose device is the GPU that the plans were made for."""

ORDER = (
    "pack_model", "check_input", "import_image", "probe_device", "plan_tiles", "save_patches", "predict_tiles",
    "stitch_blocks", "average_models", "compose_probabilities", "postprocess_labels", "gather_blocks",
    "mark_cores", "link_cores", "separate_objects", "label_blocks", "link_objects", "relabel_blocks",
    "compose_store", "measure_objects", "tabulate_objects", "export_labels", "compare_samples",
)  # fmt: skip
"""Processes in the order of the data; others follow by name."""

ESTIMATES = {
    "windows": ("Windows", "count"),
    "seconds": ("Prediction, tasks one after another", "seconds"),
    "memory_bytes": ("Memory of a prediction task", "bytes"),
    "work_bytes": ("Work folder, at its largest", "bytes"),
    "output_bytes": ("Results", "bytes"),
}
"""Key of ``estimate.json`` -> what the report calls it and how it is written."""


@dataclass(frozen=True)
class ProcessUse:
    """Time, memory and disk of all tasks of one process; ``disk`` is None where no task said it."""

    name: str
    tasks: int
    wall_sum: float
    wall_max: float
    cpu_sum: float
    peak_memory: int
    disk: int | None


@dataclass(frozen=True)
class Comparison:
    """One estimate and what came of it, written as ``kind`` says; ``actual`` is None where nothing was measured."""

    name: str
    kind: str
    estimate: float
    actual: float | None


def processes(records: Iterable[Mapping[str, Any]]) -> tuple[ProcessUse, ...]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(record["process"], []).append(record)
    place = {name: index for index, name in enumerate(ORDER)}
    return tuple(
        ProcessUse(
            name=name,
            tasks=len(group),
            wall_sum=sum(record["wall_seconds"] for record in group),
            wall_max=max(record["wall_seconds"] for record in group),
            cpu_sum=sum(record["cpu_seconds"] for record in group),
            peak_memory=max(record["peak_memory_bytes"] for record in group),
            disk=disk_bytes(group),
        )
        for name, group in sorted(groups.items(), key=lambda item: (place.get(item[0], len(ORDER)), item[0]))
    )


def disk_bytes(records: Iterable[Mapping[str, Any]]) -> int | None:
    """Bytes that tasks left in the work folder. Nothing is removed during a run, so the sum is its peak as well."""
    known = [record["disk_bytes"] for record in records if record.get("disk_bytes") is not None]
    return sum(known) if known else None


def device_kinds(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Sample -> kind of device -> how many of its prediction tasks ran on one of that kind."""
    kinds: dict[str, dict[str, int]] = {}
    for record in records:
        if record["process"] == PREDICTION:
            kind = record["device"]
            for sample in record["counts"]:
                of_sample = kinds.setdefault(sample, {})
                of_sample[kind] = of_sample.get(kind, 0) + 1
    return kinds


def unprobed_kinds(records: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Kinds of GPU that were probed, and those that predicted without."""
    used: dict[str, set[str]] = {PROBE: set(), PREDICTION: set()}
    for record in records:
        if record["process"] in used:
            used[record["process"]].add(record["device"])
    # where the probe's answer is the CPU, that was told
    found = {kind for kind in used[PREDICTION] if not kind.startswith("CPU ")}
    return sorted(used[PROBE]), sorted(found - used[PROBE])


def versions(records: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Name -> every version that some task used; more than one is worth seeing."""
    found: dict[str, set[str]] = {}
    for record in records:
        used = {"voxelmill": record["voxelmill"], "python": record["python"], **record["versions"]}
        for name, version in used.items():
            found.setdefault(name, set()).add(version)
    first = [name for name in ("voxelmill", "python") if name in found]
    rest = sorted((name for name in found if name not in first), key=str.lower)
    return {name: tuple(sorted(found[name])) for name in (*first, *rest)}


def comparisons(estimate: Mapping[str, float], records: Sequence[Mapping[str, Any]]) -> tuple[Comparison, ...]:
    """Estimates beside what was measured; the size of the results is not. An estimate of nothing is left out."""
    predictions = [record for record in records if record["process"] == PREDICTION]
    measured: dict[str, float] = {}
    disk = disk_bytes(records)
    if disk is not None:
        measured["work_bytes"] = disk
    if predictions:
        measured["windows"] = _windows(predictions)
        measured["seconds"] = sum(record["wall_seconds"] for record in predictions)
        measured["memory_bytes"] = max(record["peak_memory_bytes"] for record in predictions)
    return tuple(
        Comparison(name, kind, estimate[key], measured.get(key))
        for key, (name, kind) in ESTIMATES.items()
        if estimate.get(key) or key in measured
    )


def _windows(predictions: Iterable[Mapping[str, Any]]) -> int:
    counts = [count for record in predictions for count in record["counts"].values() if isinstance(count, Mapping)]
    return sum(count.get("computed", 0) + count.get("reused", 0) for count in counts)
