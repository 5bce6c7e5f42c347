"""Everything that a run left for its report, read from the staged files and put beside the sample it belongs to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from voxelmill.errors import BadDataError, InputMissingError, TemporaryError
from voxelmill.files import read_json
from voxelmill.image import ImageInfo
from voxelmill.model.config import ModelConfig

ORDER = (
    "pack_model", "check_input", "import_image", "plan_tiles", "predict_tiles", "stitch_blocks", "compose_store",
)  # fmt: skip
"""Processes in the order of the data; others follow by name."""

PREDICTION = "predict_tiles"
"""The process whose counts are ``{sample: {"windows", "computed", "reused", "piece_bytes"}, "device": name}``."""

ESTIMATES = {
    "windows": ("Windows", "count"),
    "seconds": ("Prediction, tasks one after another", "seconds"),
    "memory_bytes": ("Memory of a prediction task", "bytes"),
    "work_bytes": ("Work folder: image stores and pieces", "bytes"),
    "output_bytes": ("Results", "bytes"),
}
"""Key of ``estimate.json`` -> what the report calls it and how it is written."""


@dataclass(frozen=True)
class ClassVolume:
    """One row of a sample's class table; ``volume_um3`` is None for an image without physical size."""

    value: int
    name: str
    voxels: int
    volume_um3: float | None


@dataclass(frozen=True)
class Sample:
    """What is known of one sample.

    Attributes
    ----------
    name : str
    entry : mapping
        Its entry in ``samples.json``; only ``id`` where its row was skipped.
    image : ImageInfo or None
    pictures, label_pictures : Path or None
        Picture files; see `voxelmill.pictures`.
    classes : tuple of ClassVolume
        In the model's order, background last.
    windows : int or None
        Windows of the global grid.
    computed, reused : int
        How many of them went through the network, and how many had a constant input and took a stored result.
    warnings : tuple of str
    failure : str or None
        Why there is no result.
    """

    name: str
    entry: Mapping[str, Any]
    image: ImageInfo | None
    pictures: Path | None
    label_pictures: Path | None
    classes: tuple[ClassVolume, ...]
    windows: int | None
    computed: int
    reused: int
    warnings: tuple[str, ...]
    failure: str | None

    @cached_property
    def box(self) -> str | None:
        """The part of the image that was asked for, as ``--box`` is written."""
        box = self.entry.get("box")
        return ",".join(f"{start}:{stop}" for start, stop in box) if box else None


@dataclass(frozen=True)
class ProcessUse:
    """Time and memory of all tasks of one process."""

    name: str
    tasks: int
    wall_sum: float
    wall_max: float
    cpu_sum: float
    peak_memory: int


@dataclass(frozen=True)
class Comparison:
    """One estimate and what came of it, written as ``kind`` says; ``actual`` is None where nothing was measured."""

    name: str
    kind: str
    estimate: float
    actual: float | None


@dataclass(frozen=True)
class Parameter:
    """A parameter of the run; ``default`` is None, and ``changed`` False, where no defaults are known."""

    name: str
    value: str
    default: str | None
    changed: bool


@dataclass(frozen=True)
class Model:
    """A package: its facts, the digests of its files, and its card as Markdown."""

    config: ModelConfig
    digests: Mapping[str, str]
    card: str | None

    @property
    def labels(self) -> tuple[tuple[str, str], ...]:
        """Name and value of every label in the order of the values; a region's values are joined."""
        values = {name: value if isinstance(value, list) else [value] for name, value in self.config.labels.items()}
        return tuple((name, " + ".join(map(str, value))) for name, value in sorted(values.items(), key=lambda v: v[1]))


@dataclass(frozen=True)
class Run:
    """Contents of the report."""

    samples: tuple[Sample, ...]
    processes: tuple[ProcessUse, ...]
    versions: Mapping[str, tuple[str, ...]]
    estimates: tuple[Comparison, ...]
    parameters: tuple[Parameter, ...]
    command: str | None
    revision: str | None
    profile: str | None
    devices: tuple[str, ...]
    planned_only: bool
    warnings: tuple[str, ...]
    model: Model
    records: tuple[Mapping[str, Any], ...]

    @property
    def finished(self) -> tuple[Sample, ...]:
        return tuple(sample for sample in self.samples if sample.failure is None)

    @property
    def failed(self) -> tuple[Sample, ...]:
        return tuple(sample for sample in self.samples if sample.failure is not None)

    @property
    def warning_count(self) -> int:
        return len(self.warnings) + sum(len(sample.warnings) for sample in self.samples)


@dataclass(frozen=True)
class _Staged:
    """Paths of the staged files by sample, and the task records."""

    images: dict[str, Path]
    labels: dict[str, Path]
    pictures: dict[str, Path]
    label_pictures: dict[str, Path]
    records: list[dict[str, Any]]


def collect_run(samples: Path, estimate: Path, params: Path, package: Path, staged: Iterable[Path]) -> Run:
    """Read everything.

    Parameters
    ----------
    samples, estimate, params : Path
        ``samples.json``, ``estimate.json`` and ``params.json``.
    package : Path
        Folder of the packed model.
    staged : iterable of Path
        Files, or folders of files, told apart by their names: ``<sample>.image.json``, ``<sample>.labels.json``,
        ``<sample>.projections.npz``, ``<sample>.label_pictures.npz``; any other JSON file with a process is a task's
        record.

    Raises
    ------
    TemporaryError
        A sample did not arrive, and bad samples were not to be skipped.
    """
    listed, run = read_json(samples), read_json(params)
    files = _sort(staged)
    planned_only = run["params"].get("stop_after") == "split"
    missing = [
        entry["id"]
        for entry in listed["samples"]
        if entry["id"] not in files.images or not (planned_only or entry["id"] in files.labels)
    ]
    if missing and run["params"].get("on_bad_sample") != "skip":
        raise TemporaryError(
            f"{len(missing)} of {len(listed['samples'])} samples did not arrive",
            sample=", ".join(missing[:5]) + (", ..." if len(missing) > 5 else ""),
            expected="an image and its labels for every sample of samples.json",
            remedy="run again with -resume",
        )
    told = _warnings_by_sample(files.records, listed["samples"])
    finished = [_sample(entry, files, told, entry["id"] in missing) for entry in listed["samples"]]
    skipped = [_skipped(entry) for entry in listed.get("skipped", [])]
    return Run(
        samples=(*finished, *skipped),
        processes=_processes(files.records),
        versions=_versions(files.records),
        estimates=_comparisons(read_json(estimate), finished, files.records),
        parameters=_parameters(run["params"], run.get("defaults")),
        command=run.get("command"),
        revision=run.get("revision"),
        profile=run.get("profile"),
        devices=_unique(r["counts"]["device"] for r in files.records if r["process"] == PREDICTION),
        planned_only=planned_only,
        warnings=_unique(told.get("", [])),
        model=_model(package),
        records=tuple(files.records),
    )


def _sort(staged: Iterable[Path]) -> _Staged:
    found = _Staged({}, {}, {}, {}, [])
    endings = {
        ".image.json": found.images,
        ".labels.json": found.labels,
        ".projections.npz": found.pictures,
        ".label_pictures.npz": found.label_pictures,
    }
    for file in _files(staged):
        ending = next((ending for ending in endings if file.name.endswith(ending)), None)
        if ending is not None:
            endings[ending][file.name.removesuffix(ending)] = file
        elif file.suffix == ".json":
            value = read_json(file)
            if isinstance(value, dict) and "process" in value:
                found.records.append(value)
    found.records.sort(key=lambda record: (record["process"], record["name"], record["part"] or ""))
    return found


def _files(staged: Iterable[Path]) -> Iterable[Path]:
    for path in staged:
        if path.is_dir():
            yield from sorted(file for file in path.iterdir() if file.is_file())
        elif path.exists():
            yield path
        else:
            raise InputMissingError("staged file is missing", file=path)


def _sample(entry: Mapping[str, Any], files: _Staged, told: Mapping[str, list[str]], missing: bool) -> Sample:
    name = entry["id"]
    image = ImageInfo.load(files.images[name]) if name in files.images else None
    labels = read_json(files.labels[name]) if name in files.labels else {}
    computed, reused = (_windows(files.records, name, how) for how in ("computed", "reused"))
    warnings = [
        *_texts(entry.get("warnings", [])),
        *(image.warnings if image else ()),
        *_texts(labels.get("warnings", [])),
        *told.get(name, []),
    ]
    if labels and computed + reused != labels["windows"]:
        warnings.append(f"{labels['windows']} windows were planned, {computed + reused} are in the tasks' records")
    rows = [
        ClassVolume(row["value"], row["name"], row["voxels"], row.get("volume_um3"))
        for row in labels.get("classes", [])
    ]
    return Sample(
        name=name,
        entry=entry,
        image=image,
        pictures=files.pictures.get(name),
        label_pictures=files.label_pictures.get(name),
        classes=tuple(sorted(rows, key=lambda row: row.value == 0)),
        windows=labels.get("windows"),
        computed=computed,
        reused=reused,
        warnings=_unique(warnings),
        failure=_failure(entry, files.records) if missing else None,
    )


def _failure(entry: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> str:
    """Which task failed, as far as the records of those that did not can tell, and where its log is."""
    sample, batch = entry["id"], entry["batch"]
    own = [record for record in records if record["name"] == batch]
    done = {record["process"] for record in own}
    planned = sum(
        record["counts"].get(sample, {}).get("windows", 0) for record in own if record["process"] == "plan_tiles"
    )
    if "import_image" not in done:
        failed = "IMPORT_IMAGE"
    elif "plan_tiles" not in done:
        failed = "PLAN_TILES"
    elif _windows(own, sample, "windows") < planned:
        failed = "PREDICT_TILES"
    elif planned and "stitch_blocks" not in done:
        failed = "STITCH_BLOCKS"
    else:
        failed = "STITCH_BLOCKS or COMPOSE_STORE"
    return (
        f"{failed} failed. Its log is the file .command.err in the folder (workdir) that pipeline_info/trace.txt gives "
        f"for the task of that name and of the tag {batch} that has the status FAILED."
    )


def _windows(records: Iterable[Mapping[str, Any]], sample: str, how: str) -> int:
    """Windows of a sample in the counts of the prediction tasks."""
    return sum(record["counts"].get(sample, {}).get(how, 0) for record in records if record["process"] == PREDICTION)


def _skipped(entry: Mapping[str, Any]) -> Sample:
    return Sample(entry["id"], entry, None, None, None, (), None, 0, 0, (), str(entry["error"]))


def _warnings_by_sample(
    records: Sequence[Mapping[str, Any]], entries: Iterable[Mapping[str, Any]]
) -> dict[str, list[str]]:
    """Warnings of the tasks by sample; those of the run as a whole under the empty name.

    A task of a batch of one sample need not name it.
    """
    batches: dict[str, list[str]] = {}
    for entry in entries:
        batches.setdefault(entry["batch"], []).append(entry["id"])
    told: dict[str, list[str]] = {}
    for record in records:
        alone = batches.get(record["name"], [])
        default = alone[0] if len(alone) == 1 else ""
        for warning in record["warnings"]:
            told.setdefault(warning["sample"] or default, []).append(warning["text"])
    return told


def _texts(warnings: Iterable[str | Mapping[str, str]]) -> list[str]:
    return [warning if isinstance(warning, str) else warning["text"] for warning in warnings]


def _unique(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def _processes(records: Iterable[Mapping[str, Any]]) -> tuple[ProcessUse, ...]:
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
        )
        for name, group in sorted(groups.items(), key=lambda item: (place.get(item[0], len(ORDER)), item[0]))
    )


def _versions(records: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Name -> every version that some task used; more than one is worth seeing."""
    found: dict[str, set[str]] = {}
    for record in records:
        used = {"voxelmill": record["voxelmill"], "python": record["python"], **record["versions"]}
        for name, version in used.items():
            found.setdefault(name, set()).add(version)
    first = [name for name in ("voxelmill", "python") if name in found]
    rest = sorted((name for name in found if name not in first), key=str.lower)
    return {name: tuple(sorted(found[name])) for name in (*first, *rest)}


def _comparisons(
    estimate: Mapping[str, float], samples: Iterable[Sample], records: Sequence[Mapping[str, Any]]
) -> tuple[Comparison, ...]:
    """Estimates beside what was measured; the size of the results is not."""
    predictions = [record for record in records if record["process"] == PREDICTION]
    measured: dict[str, float] = {"work_bytes": _counted_bytes(records)}
    if predictions:
        measured["windows"] = sum(sample.computed + sample.reused for sample in samples)
        measured["seconds"] = sum(record["wall_seconds"] for record in predictions)
        measured["memory_bytes"] = max(record["peak_memory_bytes"] for record in predictions)
    return tuple(
        Comparison(name, kind, estimate[key], measured.get(key))
        for key, (name, kind) in ESTIMATES.items()
        if key in estimate
    )


def _counted_bytes(records: Iterable[Mapping[str, Any]]) -> int:
    """Bytes that tasks report for their samples: image stores and pieces."""
    counts = [count for record in records for count in record["counts"].values() if isinstance(count, dict)]
    return sum(value for count in counts for name, value in count.items() if name in ("store_bytes", "piece_bytes"))


def _parameters(params: Mapping[str, Any], defaults: Mapping[str, Any] | None) -> tuple[Parameter, ...]:
    rows = []
    for name, value in sorted(params.items()):
        known = defaults is not None and name in defaults
        default = _written(defaults[name]) if defaults is not None and known else None
        rows.append(Parameter(name, _written(value), default, known and _written(value) != default))
    return tuple(rows)


def _written(value: Any) -> str:
    """A parameter as a user would write it; the empty string for none."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _model(package: Path) -> Model:
    manifest = package / "manifest.json"
    if not manifest.is_file():
        raise BadDataError("no packed model here", file=package, expected="a folder with manifest.json")
    card = package / "card.md"
    return Model(
        config=ModelConfig.from_dict(read_json(package / "model.json")),
        digests=read_json(manifest)["files"],
        card=card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None,
    )
