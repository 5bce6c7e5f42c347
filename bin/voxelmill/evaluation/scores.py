"""All scores of a sample as one flat list, and how they are distributed over samples.

Distances of samples with and without a physical size are kept apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxelmill.evaluation.instances import threshold_scores

FIRST = 0.5
"""IoU at which an object counts as found."""

Key = tuple[tuple[str, int | None], str, str | None]

Scores = Mapping[str, Any]
"""Contents of ``<sample>.evaluation.json``."""


@dataclass(frozen=True)
class Score:
    """One number of a sample.

    Attributes
    ----------
    of : tuple
        Kind of labels and the class' value; None for the value of objects.
    name : str
        Of the class, ``objects`` for objects.
    measure : str
        Such as ``dice``, or with the IoU that it is taken at: ``f1@0.75``.
    value : float or None
        None where it is a share of nothing.
    unit : str or None
        ``um`` or ``pixel`` of a distance.
    """

    of: tuple[str, int | None]
    name: str
    measure: str
    value: float | None
    unit: str | None = None

    @property
    def key(self) -> Key:
        """What must be equal for two samples' numbers to be compared."""
        return self.of, self.measure, self.unit


CLASS_MEASURES = ("dice", "iou", "precision", "recall")
SURFACE_MEASURES = ("dice", "mean", "hd95", "hd")
DISTANCES = ("mean", "hd95", "hd")
THRESHOLD_MEASURES = ("precision", "recall", "f1", "ap")


def scores_of(sample: Scores) -> Iterator[Score]:
    """All scores of a sample, in the order of the tables."""
    if objects := sample["objects"]:
        for name, value in object_measures(objects):
            yield Score((sample["kind"], None), "objects", name, value)
    for row in sample["classes"]:
        of, surface = (sample["kind"], row["value"]), row["surface"] or {}
        for measure in CLASS_MEASURES:
            yield Score(of, row["name"], measure, row[measure])
        for measure in SURFACE_MEASURES:
            unit = sample["unit"] if measure in DISTANCES else None
            yield Score(of, row["name"], f"surface_{measure}", surface.get(measure), unit)


def object_measures(objects: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Name and value of every score of objects but those of size classes, which differ from sample to sample."""
    for measure in THRESHOLD_MEASURES:
        for row in objects["thresholds"]:
            yield f"{measure}@{row['iou']:g}", row[measure]
    yield "mean_ap", objects["mean_ap"]
    for name in ("pq", "sq", "rq"):
        yield name, objects["panoptic"][name]
    yield "splits", objects["splits"]
    yield "merges", objects["merges"]
    for name in ("split", "merge"):
        yield f"variation_of_information_{name}", objects["variation_of_information"][name]
    yield "adapted_rand_error", objects["adapted_rand_error"]


def headline(sample: Scores) -> float | None:
    """The number that samples are sorted by: F1 of objects at IoU 0.5, else the mean Dice of the classes."""
    if sample["objects"]:
        return next((row["f1"] for row in sample["objects"]["thresholds"] if row["iou"] == FIRST), None)
    found = [row["dice"] for row in sample["classes"] if row["dice"] is not None]
    return float(np.mean(found)) if found else None


def worst_first(samples: Iterable[Scores]) -> list[Scores]:
    """Samples by `headline`, those without one last; equals stay in their order."""

    def place(sample: Scores) -> tuple[bool, float]:
        score = headline(sample)
        return score is None, score or 0.0

    return sorted(samples, key=place)


def summary(samples: Sequence[Scores]) -> list[dict[str, Any]]:
    """Scores over all samples, then over those of each group, in the order of the sheet.

    Returns
    -------
    list of dict
        ``group`` (None for all samples), ``samples`` (how many), ``measures`` (see `distribution`) and ``pooled``: the
        objects of all samples counted as if they were one's, None without objects.
    """
    groups = dict.fromkeys(sample["group"] for sample in samples if sample["group"] is not None)
    members = [(None, list(samples)), *((g, [s for s in samples if s["group"] == g]) for g in groups)]
    return [
        {
            "group": group,
            "samples": len(those),
            "measures": distributions(those),
            "pooled": pooled(those),
        }
        for group, those in members
    ]


def distributions(samples: Iterable[Scores]) -> list[dict[str, Any]]:
    """Every score over samples: see `distribution`."""
    found: dict[Key, list[Score]] = {}
    for sample in samples:
        for score in scores_of(sample):
            found.setdefault(score.key, []).append(score)
    return [
        {"kind": of[0], "class": of[1], "name": scores[0].name, "measure": measure, "unit": unit}
        | distribution([score.value for score in scores])
        for (of, measure, unit), scores in found.items()
    ]


def distribution(values: Iterable[float | None]) -> dict[str, float | int | None]:
    """How many values there are, mean, standard deviation (of a sample: n - 1), median, least and greatest."""
    known = np.array([value for value in values if value is not None], float)
    if not known.size:
        return {"n": 0, "mean": None, "sd": None, "median": None, "min": None, "max": None}
    return {
        "n": int(known.size),
        "mean": float(known.mean()),
        "sd": float(known.std(ddof=1)) if known.size > 1 else None,
        "median": float(np.median(known)),
        "min": float(known.min()),
        "max": float(known.max()),
    }


def pooled(samples: Iterable[Scores]) -> list[dict[str, Any]] | None:
    """Objects of all samples together: at each IoU the sums of TP, FP and FN, and what follows from them."""
    sums: dict[float, np.ndarray] = {}
    for sample in samples:
        for row in (sample["objects"] or {"thresholds": []})["thresholds"]:
            sums.setdefault(row["iou"], np.zeros(3, np.int64))
            sums[row["iou"]] += (row["tp"], row["fp"], row["fn"])

    rows = [(round(100 * iou), counts.tolist()) for iou, counts in sorted(sums.items())]
    return [threshold_scores(tp, tp + fn, tp + fp, percent) for percent, (tp, fp, fn) in rows] or None
