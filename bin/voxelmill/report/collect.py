"""Everything that a run left for its report, read from the staged files and put beside the sample it belongs to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from voxelmill.errors import BadDataError, InputMissingError, TemporaryError
from voxelmill.files import read_json
from voxelmill.image import ImageInfo
from voxelmill.model.config import ModelConfig
from voxelmill.report import arrival
from voxelmill.report.arrival import PREDICTION
from voxelmill.report.objects import Cohort, ObjectTable, Seam, cohort, object_table, seams
from voxelmill.report.text import listed, plural
from voxelmill.report.usage import (
    Comparison,
    ProcessUse,
    comparisons,
    device_kinds,
    disk_bytes,
    processes,
    unprobed_kinds,
    versions,
)


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
    object_count : int or None
        Instances in the label store; None where none were made.
    objects : ObjectTable or None
    gallery, length_chart, size_chart : Path or None
        Pictures of a few objects, and the charts of their length and their size (SVG).
    seams : tuple of Seam or None
        One per axis that was cut; None where nothing is known.
    warnings : tuple of str
    failure : str or None
        Why there is no result, or not all of it.
    """

    name: str
    entry: Mapping[str, Any]
    image: ImageInfo | None = None
    pictures: Path | None = None
    label_pictures: Path | None = None
    classes: tuple[ClassVolume, ...] = ()
    windows: int | None = None
    computed: int = 0
    reused: int = 0
    object_count: int | None = None
    objects: ObjectTable | None = None
    gallery: Path | None = None
    length_chart: Path | None = None
    size_chart: Path | None = None
    seams: tuple[Seam, ...] | None = None
    warnings: tuple[str, ...] = ()
    failure: str | None = None

    @cached_property
    def box(self) -> str | None:
        """The part of the image that was asked for, as ``--box`` is written."""
        box = self.entry.get("box")
        return ",".join(f"{start}:{stop}" for start, stop in box) if box else None


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
    """Contents of the report.

    ``params`` are the run's parameters as they are, ``parameters`` as they are printed. ``model`` is None where all
    labels were given, ``disk`` where no task said what it left in the work folder. ``others`` are models whose
    probabilities were averaged with those of ``model``.
    """

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
    model: Model | None
    params: Mapping[str, Any]
    cohort: Cohort | None
    group_chart: Path | None
    disk: int | None
    records: tuple[Mapping[str, Any], ...]
    others: tuple[Model, ...] = ()

    @property
    def models(self) -> tuple[Model, ...]:
        """All models, in the order in which the user named them."""
        return () if self.model is None else (self.model, *self.others)

    @property
    def finished(self) -> tuple[Sample, ...]:
        return tuple(sample for sample in self.samples if sample.failure is None)

    @property
    def failed(self) -> tuple[Sample, ...]:
        return tuple(sample for sample in self.samples if sample.failure is not None)

    @property
    def warning_count(self) -> int:
        return len(self.warnings) + sum(len(sample.warnings) for sample in self.samples)

    @property
    def grouped_warnings(self) -> dict[str, tuple[str, ...]]:
        """Warning -> the samples that it is about; none for one about the run."""
        grouped: dict[str, list[str]] = {text: [] for text in self.warnings}
        for sample in self.samples:
            for text in sample.warnings:
                grouped.setdefault(text, []).append(sample.name)
        return {text: tuple(names) for text, names in grouped.items()}

    @cached_property
    def published(self) -> frozenset[str]:
        """Paths of the tasks' outputs, as their records name them."""
        return frozenset(name for record in self.records for name in record["outputs"])


@dataclass(frozen=True)
class _Staged:
    """Paths of the staged files by sample, and the task records."""

    images: dict[str, Path] = field(default_factory=dict)
    labels: dict[str, Path] = field(default_factory=dict)
    pictures: dict[str, Path] = field(default_factory=dict)
    label_pictures: dict[str, Path] = field(default_factory=dict)
    objects: dict[str, Path] = field(default_factory=dict)
    galleries: dict[str, Path] = field(default_factory=dict)
    length_charts: dict[str, Path] = field(default_factory=dict)
    size_charts: dict[str, Path] = field(default_factory=dict)
    of_run: dict[str, Path] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)

    def endings(self) -> dict[str, dict[str, Path]]:
        return {
            ".image.json": self.images,
            ".labels.json": self.labels,
            ".projections.npz": self.pictures,
            ".label_pictures.npz": self.label_pictures,
            ".objects.json": self.objects,
            ".gallery.npz": self.galleries,
            ".lengths.svg": self.length_charts,
            ".sizes.svg": self.size_charts,
        }


COMPARISON = "compare_samples"
COHORT, GROUP_CHARTS = "cohort.json", ("lengths_by_group.svg", "sizes_by_group.svg")


def collect_run(
    samples: Path,
    estimate: Path,
    params: Path,
    package: Path | None,
    staged: Iterable[Path],
    others: Sequence[Path] = (),
) -> Run:
    """Read everything.

    Parameters
    ----------
    samples, estimate, params : Path
        ``samples.json``, ``estimate.json`` and ``params.json``.
    package : Path or None
        Folder of the packed model; None where all labels were given.
    staged : iterable of Path
        Files, or folders of files, told apart by their names: ``<sample>.image.json``, ``.labels.json``,
        ``.projections.npz``, ``.label_pictures.npz``, ``.objects.json``, ``.gallery.npz``, ``.lengths.svg``,
        ``.sizes.svg``; ``cohort.json`` and a chart of the groups of the run; any other JSON file with a process is a
        task's record.
    others : sequence of Path
        Packages of the models that were averaged with the first.

    Raises
    ------
    TemporaryError
        A sample did not arrive, and bad samples were not to be skipped.
    """
    listed, run = read_json(samples), read_json(params)
    files = _sort(staged)
    labels = {name: read_json(path) for name, path in files.labels.items()}
    expected = {entry["id"]: arrival.steps(entry, run["params"]) for entry in listed["samples"]}
    missing = {
        entry["id"]
        for entry in listed["samples"]
        if not arrival.arrived(entry, expected[entry["id"]], files.images, labels, files.objects, files.records)
    }
    if missing and run["params"].get("on_bad_sample") != "skip":
        names = sorted(missing)
        raise TemporaryError(
            f"{len(missing)} of {len(listed['samples'])} samples did not arrive",
            sample=", ".join(names[:5]) + (", ..." if len(missing) > 5 else ""),
            expected="all results of every sample of samples.json",
            remedy="run again with -resume",
        )
    uncompared = files.objects and not any(record["process"] == COMPARISON for record in files.records)
    if uncompared and run["params"].get("on_bad_sample") != "skip":
        raise TemporaryError(
            "the comparison of the samples did not arrive",
            expected=f"{COHORT}, and the record of its task",
            remedy="run again with -resume",
        )
    told = _warnings_by_sample(files.records, listed["samples"])
    if uncompared:
        told.setdefault("", []).append(f"{COMPARISON.upper()} failed: samples are not compared")
    kinds = device_kinds(files.records)
    for name, of_sample in kinds.items():
        told.setdefault(name, []).extend(mixed_sample(of_sample))
    told.setdefault("", []).extend([*mixed_run(kinds), *probed_other(*unprobed_kinds(files.records))])
    failures = {
        entry["id"]: arrival.failure(entry, expected[entry["id"]], files.records)
        for entry in listed["samples"]
        if entry["id"] in missing
    }
    finished = [
        _sample(entry, files, labels.get(entry["id"], {}), told, failures.get(entry["id"]))
        for entry in listed["samples"]
    ]
    skipped = [Sample(entry["id"], entry, failure=str(entry["error"])) for entry in listed.get("skipped", [])]
    return Run(
        samples=(*finished, *skipped),
        processes=processes(files.records),
        versions=versions(files.records),
        estimates=comparisons(read_json(estimate), files.records),
        parameters=shown_parameters(run["params"], run.get("defaults")),
        command=run.get("command"),
        revision=run.get("revision"),
        profile=run.get("profile"),
        devices=_unique(r["device"] for r in files.records if r["process"] == PREDICTION),
        planned_only=run["params"].get("stop_after") == "split",
        warnings=_unique(told.get("", [])),
        model=_model(package) if package else None,
        params=run["params"],
        cohort=cohort(read_json(files.of_run[COHORT])) if COHORT in files.of_run else None,
        group_chart=next((files.of_run[name] for name in GROUP_CHARTS if name in files.of_run), None),
        disk=disk_bytes(files.records),
        records=tuple(files.records),
        others=tuple(_model(other) for other in others),
    )


def _sort(staged: Iterable[Path]) -> _Staged:
    found = _Staged()
    endings = found.endings()
    for file in _files(staged):
        ending = next((ending for ending in endings if file.name.endswith(ending)), None)
        if ending is not None:
            endings[ending][file.name.removesuffix(ending)] = file
        elif file.name in (COHORT, *GROUP_CHARTS):
            found.of_run[file.name] = file
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


def _sample(
    entry: Mapping[str, Any],
    files: _Staged,
    labels: Mapping[str, Any],
    told: Mapping[str, list[str]],
    failure: str | None,
) -> Sample:
    name = entry["id"]
    image = ImageInfo.load(files.images[name]) if name in files.images else None
    table = read_json(files.objects[name]) if name in files.objects else {}
    computed, reused = (arrival.windows(files.records, name, how) for how in ("computed", "reused"))
    warnings = [
        *_texts(entry.get("warnings", [])),
        *(image.warnings if image else ()),
        *_texts(labels.get("warnings", [])),
        *_texts(table.get("warnings", [])),
        *told.get(name, []),
    ]
    # of several models the labels know the first one's only
    planned = max(labels.get("windows") or 0, arrival.windows(files.records, name, "windows", "plan_tiles"))
    if labels and computed + reused != planned:
        warnings.append(f"{planned} windows were planned, {computed + reused} are in the tasks' records")
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
        windows=planned if labels else None,
        computed=computed,
        reused=reused,
        object_count=table.get("objects", labels.get("objects")),
        objects=object_table(table) if table else None,
        gallery=files.galleries.get(name),
        length_chart=files.length_charts.get(name),
        size_chart=files.size_charts.get(name),
        seams=seams(labels["seams"]) if labels.get("seams") is not None else None,
        warnings=_unique(warnings),
        failure=failure,
    )


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


def mixed_sample(kinds: Mapping[str, int]) -> list[str]:
    """Warning about a sample whose tasks ran on several kinds of device.

    Parameters
    ----------
    kinds : mapping
        Kind -> number of tasks.
    """
    if len(kinds) < 2:
        return []
    shares = listed([f"{plural(number, 'task')} on {kind}" for kind, number in sorted(kinds.items())])
    return [
        f"predicted on {len(kinds)} kinds of device ({shares}), which round differently: these labels are those of no "
        "single device, and another run need not give them again. Do not rely on this sample; predict it again on one "
        "kind"
    ]


def mixed_run(kinds: Mapping[str, Mapping[str, int]], names: int = 5) -> list[str]:
    """Warning about samples that were predicted on different kinds of device; at most so many are named per kind.

    Parameters
    ----------
    kinds : mapping
        Sample -> kind -> number of tasks.
    """
    samples: dict[str, list[str]] = {}
    for name, of_sample in kinds.items():
        for kind in of_sample:
            samples.setdefault(kind, []).append(name)
    if len(samples) < 2:
        return []
    parts = [
        f"{kind}: {', '.join(found[:names])}{f' and {len(found) - names} more' if len(found) > names else ''}"
        for kind, found in sorted(samples.items())
    ]
    return [
        f"networks ran on {len(samples)} kinds of device, which round differently, so that a few labels may depend on "
        f"which one a sample met ({'; '.join(parts)}). Where samples are compared, predict all of them on one kind"
    ]


def probed_other(probed: Sequence[str], others: Sequence[str]) -> list[str]:
    """Warning about GPUs that are not of the kind that the plans were made for."""
    if not probed or not others:
        return []
    return [
        f"plans were made for {listed(probed)}, but networks also ran on {listed(others)}, whose memory was not "
        "probed: the batch and the tiles may not fit it. Name GPUs of one kind"
    ]


def _texts(warnings: Iterable[str | Mapping[str, str]]) -> list[str]:
    return [warning if isinstance(warning, str) else warning["text"] for warning in warnings]


def _unique(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def shown_parameters(params: Mapping[str, Any], defaults: Mapping[str, Any] | None) -> tuple[Parameter, ...]:
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
