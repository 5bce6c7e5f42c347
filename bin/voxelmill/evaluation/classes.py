"""Scores of classes: how well the voxels of each agree, whatever object they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from voxelmill.evaluation.overlaps import Overlaps


def ratio(part: float, of: float) -> float | None:
    """A share; None of nothing."""
    return float(part) / float(of) if of else None


def class_scores(overlaps: Overlaps, names: Mapping[int, str]) -> list[dict[str, Any]]:
    """Scores of every class that one of both volumes has, in the order of their values.

    Dice is ``2 TP / (2 TP + FP + FN)``, IoU ``TP / (TP + FP + FN)``, precision ``TP / (TP + FP)``, recall
    ``TP / (TP + FN)`` in voxels. None stands for a share of nothing: the recall of a class that is not in the truth.

    Parameters
    ----------
    overlaps : Overlaps
    names : mapping
        Of classes.
    """
    values = np.union1d(overlaps.truth, overlaps.predicted)
    return [
        scores_of(
            int(value),
            names.get(int(value), f"class {value}"),
            int(overlaps.voxels[overlaps.truth == value].sum()),
            int(overlaps.voxels[overlaps.predicted == value].sum()),
            int(overlaps.voxels[(overlaps.truth == value) & (overlaps.predicted == value)].sum()),
        )
        for value in values[values > 0]
    ]


def foreground_scores(overlaps: Overlaps, name: str = "foreground") -> list[dict[str, Any]]:
    """Scores of all objects together as one class, 1; none where both volumes are empty."""
    truth, predicted = overlaps.truth > 0, overlaps.predicted > 0
    if not (truth.any() or predicted.any()):
        return []
    totals = (int(overlaps.voxels[where].sum()) for where in (truth, predicted, truth & predicted))
    return [scores_of(1, name, *totals)]


def scores_of(value: int, name: str, truth: int, predicted: int, overlap: int) -> dict[str, Any]:
    """Scores of a class out of its numbers of voxels, see `class_scores`."""
    return {
        "value": value,
        "name": name,
        "truth_voxels": truth,
        "predicted_voxels": predicted,
        "overlap_voxels": overlap,
        "dice": ratio(2 * overlap, truth + predicted),
        "iou": ratio(overlap, truth + predicted - overlap),
        "precision": ratio(overlap, predicted),
        "recall": ratio(overlap, truth),
    }
