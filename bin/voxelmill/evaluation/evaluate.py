"""EVALUATE_LABELS: the label volumes of a batch compared with their truth, streamed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from voxelmill.convert.changes import GIVEN, Spec
from voxelmill.convert.conversion import staged_file
from voxelmill.convert.mending import open_given
from voxelmill.convert.views import crop, pick, watch
from voxelmill.errors import VoxelmillError
from voxelmill.evaluation.classes import class_scores, foreground_scores
from voxelmill.evaluation.instances import Pairing, matches_of, matches_schema, object_scores, worst_objects
from voxelmill.evaluation.overlaps import OverlapCounter, Overlaps, WrongCounter
from voxelmill.evaluation.reading import BOX_VOXELS, VOXEL_BYTES, read_parts
from voxelmill.evaluation.surfaces import SurfaceFinder
from voxelmill.files import write_json
from voxelmill.formats.base import ImageSource, Selection
from voxelmill.grid import INSTANCES
from voxelmill.image import whole
from voxelmill.objects.tables import table_writer
from voxelmill.task import Task

WORST = 12
"""Places that are shown."""

WORST_VOXELS = 64**3
"""Of the boxes of which the worst are shown, where there are no objects."""

DIGITS = 10
"""Of a score: more of them would depend on the order in which equal distances were found."""


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how.

    Attributes
    ----------
    kind : str
        ``semantic`` or ``instances``: what both volumes hold.
    spacing : tuple of float
        z, y, x.
    unit : str
        Of the spacing, ``um`` or ``pixel``.
    ignore : int or None
        Value of the truth whose voxels count nowhere.
    names : mapping
        Of classes.
    """

    kind: str
    spacing: tuple[float, ...]
    unit: str
    ignore: int | None
    names: Mapping[int, str]


@dataclass(frozen=True)
class Evaluated:
    """Scores of a sample, and the objects that they are about."""

    scores: dict[str, Any]
    pairing: Pairing | None


def evaluate_batch(
    entries: Sequence[Mapping[str, Any]],
    files: Path,
    out: Path,
    record: Task,
    *,
    ignore: int | None,
    memory_budget: int,
) -> None:
    """Evaluate the samples of a batch.

    Parameters
    ----------
    entries : sequence of mapping
        The batch's entries of ``samples.json``.
    files : Path
        Staged files ``<n>/<file>``; the entries' ``images`` are their numbers: images, then labels, then truth.
    out : Path
        Gets a folder per sample: ``<sample>.evaluation.json``, ``<sample>.worst.npz`` and, of objects,
        ``<sample>.matches.parquet`` and ``<sample>.matches.csv``.
    record : Task
    ignore : int or None
        Value of the truth whose voxels count nowhere.
    memory_budget : int
        Bytes.
    """
    for entry in entries:
        sample = entry["id"]
        try:
            scores = evaluate_entry(entry, files, out, ignore=ignore, memory_budget=memory_budget)
        except VoxelmillError as error:
            error.sample = error.sample or sample
            raise
        for text in scores["warnings"]:
            record.warn(text, sample=sample)
        for name in scores["files"]:
            record.output(out / sample / name)
        record.counts[sample] = {"voxels": scores["voxels"]}


def evaluate_entry(
    entry: Mapping[str, Any], files: Path, out: Path, *, ignore: int | None, memory_budget: int
) -> dict[str, Any]:
    """Evaluate one sample and write its files -> what ``<sample>.evaluation.json`` holds."""
    from voxelmill.evaluation.worst import save_worst

    sample, spec, kind = entry["id"], Spec.from_dict(entry), entry["labels"]["kind"]
    folder = out / sample
    with ExitStack() as opened:
        given = spec.spacing if spec.origin in GIVEN else None
        sources = [
            opened.enter_context(open_given(staged_file(files, number), Selection(**chosen), given))
            for number, chosen in zip(entry["images"], entry["selections"], strict=True)
        ]
        box = spec.box or whole(sources[-1].shape[1:])
        *images, predicted, truth = sources
        image = crop(pick(images, spec.channels), box) if images else None
        predicted, truth = crop(predicted, box), crop(truth, box)
        comparison = Comparison(kind, spec.spacing, spec.unit, ignore, {**predicted.label_names, **truth.label_names})
        result = evaluate_sample(
            watch(predicted, sample), truth, comparison, folder / "surfaces", memory_budget=memory_budget
        )
        names = [f"{sample}.evaluation.json", f"{sample}.worst.npz"]
        if result.pairing is not None:
            names += [f"{sample}.matches.parquet", f"{sample}.matches.csv"]
            write_matches(result.pairing, comparison, folder / names[-2], folder / names[-1])
        save_worst(
            folder / names[1],
            result.scores["worst"],
            image,
            predicted,
            truth,
            kind,
            ignore,
        )
    scores = {
        **result.scores,
        "sample": sample,
        "group": entry.get("group"),
        "first": [start for start, _ in box],
        "source": {"predicted": entry["labels"]["file"], "truth": entry["truth"]["file"]},
        "warnings": list(dict.fromkeys([*entry["warnings"], *result.scores["warnings"]])),
        "files": names,
    }
    write_json(folder / names[0], scores)
    return scores


def evaluate_sample(
    predicted: ImageSource,
    truth: ImageSource,
    comparison: Comparison,
    scratch: Path,
    *,
    memory_budget: int = BOX_VOXELS * VOXEL_BYTES,
) -> Evaluated:
    """Compare two label volumes in one pass over both.

    Parameters
    ----------
    predicted, truth : ImageSource
        One channel of integers each, of one shape.
    comparison : Comparison
    scratch : Path
        Folder for surface points while they are needed: 12 bytes each.
    memory_budget : int
        Bytes; half of it is for the boxes. What grows with the number of objects comes on top.

    Returns
    -------
    Evaluated
        ``scores`` as in ``<sample>.evaluation.json`` but for what only the samplesheet knows.

    Raises
    ------
    BadDataError
        Where a volume cannot be read or holds labels that are none.
    """
    shape, ignore = truth.shape[1:], comparison.ignore
    counter, objects = OverlapCounter(ignore), comparison.kind == INSTANCES
    wrong = WrongCounter(shape, worst_side(shape), ignore)
    with SurfaceFinder(scratch, shape, ignore, foreground=objects) as surfaces:
        for part in read_parts(predicted, truth, ignore, min(BOX_VOXELS, memory_budget // 2 // VOXEL_BYTES)):
            counter.add(part)
            surfaces.add(part)
            if not objects:
                wrong.add(part)
        overlaps = counter.result()
        classes = foreground_scores(overlaps) if objects else class_scores(overlaps, comparison.names)
        for one in classes:
            found = surfaces.distances(one["value"], comparison.spacing)
            one["surface"] = None if found is None else asdict(found)
    pairing = Pairing.of(overlaps) if objects else None
    scores = {
        "kind": comparison.kind,
        "shape": list(shape),
        "spacing": list(comparison.spacing),
        "unit": comparison.unit,
        "voxels": math.prod(shape),
        "ignored_voxels": overlaps.ignored,
        "ignore_label": ignore,
        "classes": classes,
        "objects": None if pairing is None else object_scores(overlaps, pairing),
        "worst": worst_boxes(wrong) if pairing is None else worst_objects(pairing, WORST),
        "warnings": remarks(overlaps, comparison),
    }
    return Evaluated(rounded(scores), pairing)


def write_matches(pairing: Pairing, comparison: Comparison, parquet: Path, text: Path) -> None:
    """Write the table of objects."""
    schema = matches_schema(comparison.unit)
    with table_writer(schema, parquet, text) as writer:
        for table in matches_of(pairing, schema, math.prod(comparison.spacing)):
            writer.write(table)


def worst_side(shape: Sequence[int]) -> tuple[int, ...]:
    """Voxels of the boxes of which the worst are shown."""
    axes = sum(n > 1 for n in shape) or 1
    return tuple(round(WORST_VOXELS ** (1 / axes)) if n > 1 else 1 for n in shape)


def worst_boxes(wrong: WrongCounter) -> list[dict[str, Any]]:
    """The boxes with most wrong voxels, worst first; ``iou`` is the share of right voxels among those with a class."""
    return [
        {"what": "wrong", "id": None, "iou": right, "voxels": voxels, "box": [list(pair) for pair in box]}
        for box, voxels, right in wrong.worst(WORST)
    ]


def remarks(overlaps: Overlaps, comparison: Comparison) -> list[str]:
    """What makes scores mean less than they seem to."""
    told = []
    if not len(overlaps.truth):
        told.append("every voxel of the truth has the ignore label: there is nothing to compare")
    elif not (overlaps.truth > 0).any():
        told.append("the truth is empty")
    elif not (overlaps.predicted > 0).any():
        told.append("the prediction is empty")
    if comparison.ignore is not None and not overlaps.ignored:
        told.append(f"no voxel of the truth has the ignore label {comparison.ignore}")
    return told


def rounded(value: Any) -> Any:
    """A tree of dicts and lists with its floats cut to `DIGITS` digits."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
