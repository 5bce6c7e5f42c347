"""Scores of objects, all out of the table of overlaps: which object is found, split, merged or missed.

Counts are compared as whole numbers, so that an IoU of exactly 0.6 reaches 0.6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from voxelmill import __version__
from voxelmill.evaluation.classes import ratio
from voxelmill.evaluation.overlaps import Overlaps
from voxelmill.objects.tables import AXES, ROWS, suffix

PERCENT = tuple(range(50, 91, 5))
"""IoU at which objects are matched, in hundredths."""

FOUND = 50
"""IoU in hundredths from which an object counts as found, and at which panoptic quality is taken."""

PIECE = 10
"""IoU in hundredths above which an object is a piece of another, for splits and merges."""

QUARTERS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Labels:
    """Objects of one volume in the order of their ids.

    Attributes
    ----------
    ids, voxels : (n,) int64
    boxes : (n, 6) int32
        z start, z stop, y start, y stop, x start, x stop.
    """

    ids: np.ndarray
    voxels: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def labels_in(ids: np.ndarray, voxels: np.ndarray, boxes: np.ndarray) -> Labels:
    """Objects out of the parts that one side of the pairs is; 0 is none."""
    kept = np.flatnonzero(ids > 0)
    order = kept[np.argsort(ids[kept], kind="stable")]
    found, starts = np.unique(ids[order], return_index=True)
    if not found.size:
        return Labels(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 6), np.int32))
    bounds = np.empty((len(found), 6), np.int32)
    bounds[:, 0::2] = np.minimum.reduceat(boxes[order, 0::2], starts)
    bounds[:, 1::2] = np.maximum.reduceat(boxes[order, 1::2], starts)
    return Labels(found, np.add.reduceat(voxels[order], starts), bounds)


@dataclass(frozen=True)
class Pairing:
    """Objects of both volumes and the pairs of them that share voxels.

    Attributes
    ----------
    truth, predicted : Labels
    at_truth, at_predicted : (n,) int64
        Rows of the objects of each pair; pairs are in the order of truth, then prediction.
    overlap, union : (n,) int64
        Voxels.
    """

    truth: Labels
    predicted: Labels
    at_truth: np.ndarray
    at_predicted: np.ndarray
    overlap: np.ndarray
    union: np.ndarray

    @classmethod
    def of(cls, overlaps: Overlaps) -> Pairing:
        """Objects and pairs of a table of overlaps."""
        truth = labels_in(overlaps.truth, overlaps.voxels, overlaps.boxes)
        predicted = labels_in(overlaps.predicted, overlaps.voxels, overlaps.boxes)
        both = (overlaps.truth > 0) & (overlaps.predicted > 0)
        at_truth = np.searchsorted(truth.ids, overlaps.truth[both])
        at_predicted = np.searchsorted(predicted.ids, overlaps.predicted[both])
        shared = overlaps.voxels[both]
        union = truth.voxels[at_truth] + predicted.voxels[at_predicted] - shared
        return cls(truth, predicted, at_truth, at_predicted, shared, union)

    @cached_property
    def iou(self) -> np.ndarray:
        return self.overlap / self.union

    def matches(self, percent: int) -> np.ndarray:
        """Pairs (their rows) that are matched where the IoU is at least so many hundredths, 50 or more.

        They are as many as an optimal assignment finds, without a search for it: above one half an object has at most
        one partner. At exactly one half it can have two only where both are halves of it, which have no other partner;
        then the first of them counts.
        """
        reached = np.flatnonzero(100 * self.overlap >= percent * self.union)
        reached = reached[np.unique(self.at_truth[reached], return_index=True)[1]]
        return np.sort(reached[np.unique(self.at_predicted[reached], return_index=True)[1]])

    @cached_property
    def pieces(self) -> tuple[np.ndarray, np.ndarray]:
        """How many objects of the other volume each object of truth and of prediction has an IoU above 0.1 with."""
        rows = 100 * self.overlap > PIECE * self.union
        return (
            np.bincount(self.at_truth[rows], minlength=len(self.truth)),
            np.bincount(self.at_predicted[rows], minlength=len(self.predicted)),
        )

    def best(self, at: np.ndarray, count: int) -> np.ndarray:
        """The pair with the largest IoU of each object of one side, -1 for an object without; of equals the first.

        Parameters
        ----------
        at : numpy.ndarray
            ``at_truth`` or ``at_predicted``.
        count : int
            Objects of that side.
        """
        result = np.full(count, -1, np.int64)
        order = np.lexsort((np.arange(len(at)), -self.iou, at))
        owners, first = np.unique(at[order], return_index=True)
        result[owners] = order[first]
        return result

    @cached_property
    def kinds(self) -> tuple[np.ndarray, np.ndarray]:
        """What became of each object: of truth ``found``, ``split``, ``merged``, ``missed``; of prediction ``found``,
        ``merged`` (it holds several), ``piece`` (of a split one), ``false``."""
        matched = self.matches(FOUND)
        rows = 100 * self.overlap > PIECE * self.union
        split, merged = (pieces > 1 for pieces in self.pieces)
        truth = np.full(len(self.truth), "missed", "U6")
        predicted = np.full(len(self.predicted), "false", "U6")
        truth[self.at_truth[rows & merged[self.at_predicted]]] = "merged"
        truth[split] = "split"
        predicted[self.at_predicted[rows & split[self.at_truth]]] = "piece"
        predicted[merged] = "merged"
        truth[self.at_truth[matched]] = "found"
        predicted[self.at_predicted[matched]] = "found"
        return truth, predicted


def object_scores(overlaps: Overlaps, pairing: Pairing) -> dict[str, Any]:
    """All scores of objects.

    * Matching, precision, recall, F1 and AP = TP / (TP + FP + FN) at IoU 0.5 to 0.9: as StarDist (Schmidt et al. 2018,
      MICCAI) and Cellpose.
    * Panoptic quality at IoU 0.5: Kirillov et al. 2019, CVPR.
    * Splits are objects of the truth with an IoU above 0.1 with several predicted ones, merges predicted objects with
      several of the truth: Caicedo et al. 2019, Cytometry A 95:952.
    * Variation of information (bits; Meila 2007) and adapted Rand error (Arganda-Carreras et al. 2015) over the voxels
      that are not background in the truth, as scikit-image with its ``ignore_labels=(0,)``.

    Parameters
    ----------
    overlaps : Overlaps
    pairing : Pairing
        Of the same.
    """
    truth, predicted = len(pairing.truth), len(pairing.predicted)
    thresholds = [threshold_scores(len(pairing.matches(p)), truth, predicted, p) for p in PERCENT]
    average = [one["ap"] for one in thresholds if one["ap"] is not None]
    split, merge = variation_of_information(overlaps)
    pieces = pairing.pieces
    return {
        "truth": truth,
        "predicted": predicted,
        "thresholds": thresholds,
        "mean_ap": float(np.mean(average)) if average else None,
        "panoptic": panoptic_quality(pairing),
        "splits": int((pieces[0] > 1).sum()),
        "merges": int((pieces[1] > 1).sum()),
        "variation_of_information": {"split": split, "merge": merge},
        "adapted_rand_error": adapted_rand_error(overlaps),
        "size_classes": size_classes(pairing),
    }


def threshold_scores(tp: int, truth: int, predicted: int, percent: int) -> dict[str, Any]:
    """Scores at one IoU; None for a share of nothing."""
    fp, fn = predicted - tp, truth - tp
    return {
        "iou": percent / 100,
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "precision": ratio(tp, predicted),
        "recall": ratio(tp, truth),
        "f1": ratio(2 * tp, truth + predicted),
        "ap": ratio(tp, tp + fp + fn),
    }


def panoptic_quality(pairing: Pairing) -> dict[str, float | None]:
    """Panoptic quality = mean IoU of the matched (SQ) x F1 (RQ); SQ is None without a match, all without an object."""
    iou = pairing.iou[pairing.matches(FOUND)]
    quality = ratio(2 * len(iou), len(pairing.truth) + len(pairing.predicted))
    segmentation = float(iou.mean()) if iou.size else None
    return {"pq": quality if quality is None else quality * (segmentation or 0.0), "sq": segmentation, "rq": quality}


def variation_of_information(overlaps: Overlaps) -> tuple[float | None, float | None]:
    """Bits by which the prediction splits the truth's objects, and by which it merges them; None without an object."""
    rows = overlaps.truth > 0
    voxels = overlaps.voxels[rows]
    total = int(voxels.sum())
    if not total:
        return None, None

    def entropy(of: np.ndarray) -> float:
        groups = np.bincount(np.unique(of[rows], return_inverse=True)[1], weights=voxels)
        within = groups[np.unique(of[rows], return_inverse=True)[1]]
        return float((voxels * np.log2(within / voxels)).sum() / total)

    return entropy(overlaps.truth), entropy(overlaps.predicted)


def adapted_rand_error(overlaps: Overlaps) -> float | None:
    """One minus the F score of the pairs of voxels that are in one object in both volumes."""
    rows = overlaps.truth > 0
    voxels = overlaps.voxels[rows].astype(float)

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1)).sum())

    sides = [
        pairs(np.bincount(np.unique(of[rows], return_inverse=True)[1], weights=voxels))
        for of in (overlaps.truth, overlaps.predicted)
    ]
    score = ratio(2 * pairs(voxels), sum(sides))
    return None if score is None else 1 - score


def size_classes(pairing: Pairing) -> list[dict[str, Any]]:
    """Detection of small and large objects: the truth's objects in quarters of their number, by volume.

    Objects of one volume are in one class, so that there may be fewer than four, and of unlike numbers. ``mean_iou`` is
    of every object's best partner, 0 for one without.
    """
    volumes = pairing.truth.voxels
    if not len(volumes):
        return []
    edges = np.quantile(volumes, QUARTERS, method="inverted_cdf")
    quarter = np.searchsorted(edges, volumes, side="left")
    found = np.zeros(len(volumes), bool)
    found[pairing.at_truth[pairing.matches(FOUND)]] = True
    iou = best_iou(pairing, pairing.best(pairing.at_truth, len(volumes)))
    return [
        {
            "low": int(volumes[inside].min()),
            "high": int(volumes[inside].max()),
            "truth": int(inside.sum()),
            "found": int(found[inside].sum()),
            "recall": ratio(int(found[inside].sum()), int(inside.sum())),
            "mean_iou": float(iou[inside].mean()),
        }
        for inside in (quarter == number for number in np.unique(quarter))
    ]


def best_iou(pairing: Pairing, best: np.ndarray) -> np.ndarray:
    """IoU of the pairs of `Pairing.best`, 0 for an object without."""
    result = np.zeros(len(best))
    result[best >= 0] = pairing.iou[best[best >= 0]]
    return result


def worst_objects(pairing: Pairing, count: int, each: int = 3) -> list[dict[str, Any]]:
    """Objects with most voxels times 1 - IoU (of the best partner), worst first, and some of each kind.

    Parameters
    ----------
    pairing : Pairing
    count : int
    each : int
        How many of one kind go before others of it that are worse than the first of another kind.

    Returns
    -------
    list of dict
        ``what``: ``missed`` or ``split`` with an id of the truth, ``merged`` or ``false`` with one of the prediction.
    """
    candidates = []
    for labels, at, kinds, wanted in (
        (pairing.truth, pairing.at_truth, pairing.kinds[0], ("missed", "split")),
        (pairing.predicted, pairing.at_predicted, pairing.kinds[1], ("merged", "false")),
    ):
        iou = best_iou(pairing, pairing.best(at, len(labels)))
        wrong = labels.voxels * (1 - iou)
        for kind in wanted:
            rows = np.flatnonzero(kinds == kind)
            for place, row in enumerate(rows[np.argsort(-wrong[rows], kind="stable")[:count]]):
                what = {
                    "what": kind,
                    "id": int(labels.ids[row]),
                    "iou": float(iou[row]),
                    "voxels": int(labels.voxels[row]),
                    "box": labels.boxes[row].reshape(3, 2).tolist(),
                }
                candidates.append((place >= each, -float(wrong[row]), what))
    chosen = sorted(candidates, key=lambda one: one[:2])[:count]
    return [what for *_, what in sorted(chosen, key=lambda one: one[1])]


# The table


def matches_schema(unit: str) -> pa.Schema:
    """Columns of ``<sample>.matches.parquet``: one row per object of the truth, then per predicted one that is false.

    ``partner`` is the object of the other volume with the largest IoU, ``pieces`` how many of them have an IoU above
    0.1. The box is in voxels of the sample.
    """
    end = suffix(unit)

    def field(name: str, kind: pa.DataType, unit: str, null: bool = False) -> pa.Field:
        return pa.field(name, kind, null, {"unit": unit} if unit else None)

    return pa.schema(
        [
            field("side", pa.string(), ""),
            field("id", pa.int64(), ""),
            field("kind", pa.string(), ""),
            field("voxels", pa.int64(), "voxels"),
            field(f"volume_{end}3", pa.float64(), f"{end}3"),
            field("partner", pa.int64(), "", True),
            field("overlap", pa.int64(), "voxels"),
            field("iou", pa.float64(), ""),
            field("pieces", pa.int32(), ""),
            *(field(f"{axis}_{bound}", pa.int64(), "voxels") for axis in AXES for bound in ("start", "stop")),
        ],
        {"voxelmill": __version__, "unit": unit},
    )


def matches_of(pairing: Pairing, schema: pa.Schema, voxel_volume: float) -> Iterator[pa.Table]:
    """Rows of the table in small portions."""
    truth, predicted = np.arange(len(pairing.truth)), np.flatnonzero(pairing.kinds[1] != "found")
    for side, rows in (("truth", truth), ("predicted", predicted)):
        here = pairing.truth if side == "truth" else pairing.predicted
        there = pairing.predicted if side == "truth" else pairing.truth
        at, partners = pairing.at_truth, pairing.at_predicted
        if side == "predicted":
            at, partners = partners, at
        kinds, pieces = pairing.kinds[side != "truth"], pairing.pieces[side != "truth"]
        best = pairing.best(at, len(here))
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            pair = best[part]
            has = pair >= 0
            partner, overlap, iou = np.zeros(len(part), np.int64), np.zeros(len(part), np.int64), np.zeros(len(part))
            partner[has], overlap[has], iou[has] = there.ids[partners[pair[has]]], pairing.overlap[pair[has]], 0
            iou[has] = pairing.iou[pair[has]]
            columns = [
                np.full(len(part), side),
                here.ids[part],
                kinds[part],
                here.voxels[part],
                here.voxels[part] * voxel_volume,
                pa.array(partner, mask=~has),
                overlap,
                iou,
                pieces[part],
                *(here.boxes[part, i] for i in range(6)),
            ]
            arrays = [pa.array(column).cast(one.type) for column, one in zip(columns, schema, strict=True)]
            yield pa.table(arrays, schema=schema)
