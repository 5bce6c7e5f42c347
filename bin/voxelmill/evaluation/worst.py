"""Pictures of the worst cases of a sample: where prediction and truth differ most, over the image if there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxelmill.formats.base import ImageSource
from voxelmill.image import Box
from voxelmill.objects.gallery import grey_levels
from voxelmill.pictures import save_pictures

SIDE = 256
"""Pixels on the longer side of a picture, at most."""

MARGIN, LEAST_MARGIN = 0.25, 8
"""Room around a case on each side: a share of its longer side in the plane, and at least so many voxels."""

PLANES = 128
"""Planes of a case that are looked at, at most, evenly spaced."""

STEP_VOXELS = 1 << 24
"""Voxels that are read at a time."""

MOST_VOXELS, LAYER = 1 << 30, 64
"""Voxels that are read for a case, about; of a larger one so few planes that as much is read even if each of them takes
a layer of chunks of this depth."""

OF_PREDICTION = ("false", "merged")
"""Cases whose id is one of the prediction; all others are the truth's."""

LAYERS = ("grey", "predicted", "truth", "focus", "box")

GREYS = {"background": 24, "apart": 220, "same": 110}
"""Without an image: where both have nothing, where they differ, where both have a label and agree."""


@dataclass(frozen=True)
class Cut:
    """The voxels that a picture of a case may show: every ``step``-th of some rows and columns, in some planes."""

    planes: range
    rows: tuple[int, int]
    columns: tuple[int, int]
    step: int

    def plane(self, index: int) -> Cut:
        """One of its planes."""
        return Cut(self.planes[index : index + 1], self.rows, self.columns, self.step)

    def read(self, source: ImageSource) -> np.ndarray:
        """Voxels of the first channel (planes, rows, columns)."""
        rows, columns = self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]
        kept = [len(range(0, n, self.step)) for n in (rows, columns)]
        out = np.empty((len(self.planes), *kept), source.dtype)
        # Layer by layer of the file's chunks, so that each is decoded once.
        layers = np.array(self.planes) // source.chunk[0]
        for layer in np.unique(layers):
            first, last = (int(np.searchsorted(layers, layer, side)) for side in ("left", "right"))
            z = (self.planes[first], self.planes[last - 1] + 1)
            band = max(1, STEP_VOXELS // ((z[1] - z[0]) * columns) // self.step) * self.step
            for start in range(0, rows, band):
                y = self.rows[0] + start
                part = source.read(0, (z, (y, min(y + band, self.rows[1])), self.columns))
                part = part[:: self.planes.step, :: self.step, :: self.step]
                out[first:last, start // self.step :][:, : part.shape[1]] = part
        return out

    def inside(self, box: Box) -> tuple[slice, slice]:
        """Rows and columns of what was read that lie in a box (z, y, x)."""
        slices = []
        for (first, last), (start, stop) in zip((self.rows, self.columns), box[1:], strict=True):
            ends = (max(start, first), min(stop, last))
            slices.append(slice(*(-((first - end) // self.step) for end in ends)))
        return slices[0], slices[1]


def save_worst(
    path: Path,
    worst: Sequence[Mapping[str, Any]],
    image: ImageSource | None,
    predicted: ImageSource,
    truth: ImageSource,
    kind: str,
    ignore: int | None,
) -> None:
    """Write one picture for each of the worst cases.

    Of a case the plane z is shown that `shown_plane` chooses. Nothing is read but the planes of its box with
    a margin.

    Parameters
    ----------
    path : Path
        Gets, for the case at position ``NN``, ``NN_grey`` uint8, ``NN_predicted`` and ``NN_truth`` uint16, all (height,
        width), in which equal values are one label of this picture and 0 is background; ``NN_focus`` bool, the case
        itself; ``NN_box`` int64 (3, 2), the shown voxels. Pictures have at most `SIDE` pixels a side: of larger cases
        every second, third ... voxel.
    worst : sequence of mapping
        ``what``, ``id`` (None for a box of classes) and ``box`` of each case, in voxels of the sources.
    image : ImageSource or None
        Its first channel is shown.
    predicted, truth : ImageSource
    kind : str
        ``semantic`` or ``instances``: in the latter a label that both have is the same, whatever its number.
    ignore : int or None
        Value of the truth whose voxels are shown as background of both.
    """
    arrays: dict[str, np.ndarray] = {}
    for number, case in enumerate(worst):
        pictures = case_pictures(case, image, predicted, truth, kind, ignore)
        arrays |= {f"{number:02d}_{layer}": pictures[layer] for layer in LAYERS}
    save_pictures(path, arrays)


def case_pictures(
    case: Mapping[str, Any],
    image: ImageSource | None,
    predicted: ImageSource,
    truth: ImageSource,
    kind: str,
    ignore: int | None,
) -> dict[str, np.ndarray]:
    """The arrays of one case, by `LAYERS`; see :func:`save_worst`."""
    box: Box = tuple((int(start), int(stop)) for start, stop in case["box"])
    cut = cut_of(box, truth.shape[1:])
    here, there = labels_of(cut, predicted, truth, ignore)
    rows, columns = cut.inside(box)
    within = np.zeros(here.shape[1:], bool)
    within[rows, columns] = True
    focus, wrong = focus_of(case, here, there)
    focus, wrong = focus & within, wrong & within
    z = shown_plane(*(np.count_nonzero(mask, axis=(1, 2)) for mask in (focus, wrong)))
    plane = cut.plane(z)
    grey = agreement(here[z], there[z], kind) if image is None else grey_levels(plane.read(image)[0])
    return {
        "grey": grey,
        "predicted": renumbered(here[z]),
        "truth": renumbered(there[z]),
        "focus": focus[z],
        "box": np.array([(plane.planes[0], plane.planes[0] + 1), cut.rows, cut.columns], np.int64),
    }


def shown_plane(focus: np.ndarray, wrong: np.ndarray) -> int:
    """The plane with most wrong voxels of those that show at least half as much of the case as any.

    Without the latter it could be one that the case only touches. Of equal planes it is that with most of the case,
    then the first.
    """
    order = (-np.arange(len(focus)), focus, np.where(2 * focus >= focus.max(), wrong, -1))
    return int(np.lexsort(order)[-1])


def cut_of(box: Box, shape: Sequence[int]) -> Cut:
    """The box with a margin in its planes, inside the volume, thinned out to `SIDE` pixels."""
    margin = max(LEAST_MARGIN, round(MARGIN * max(stop - start for start, stop in box[1:])))
    rows, columns = (
        (max(0, start - margin), min(n, stop + margin)) for (start, stop), n in zip(box[1:], shape[1:], strict=True)
    )
    step = -(-max(rows[1] - rows[0], columns[1] - columns[0]) // SIDE)
    (start, stop), _, _ = box
    area = (rows[1] - rows[0]) * (columns[1] - columns[0])
    most = PLANES if (stop - start) * area <= MOST_VOXELS else min(PLANES, max(1, MOST_VOXELS // (area * LAYER)))
    apart = -(-(stop - start) // most)
    return Cut(range(start + (apart - 1) // 2, stop, apart), rows, columns, step)


def labels_of(
    cut: Cut, predicted: ImageSource, truth: ImageSource, ignore: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true labels (planes, rows, columns), both 0 where the truth is ignored."""
    here, there = cut.read(predicted), cut.read(truth)
    if ignore is not None:
        unknown = there == ignore
        here[unknown] = 0
        there[unknown] = 0
    return here, there


def focus_of(case: Mapping[str, Any], predicted: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the case is, and where it is wrong: bool, of the labels' shape.

    An object is wrong where it and the object of the other volume that shares most voxels with it differ. A box of
    classes is wrong where the classes differ.
    """
    if case["id"] is None:
        wrong = predicted != truth
        return wrong, wrong
    mine, other = (predicted, truth) if case["what"] in OF_PREDICTION else (truth, predicted)
    focus = mine == case["id"]
    values, counts = np.unique(other[focus & (other != 0)], return_counts=True)
    if not values.size:
        return focus, focus
    return focus, focus ^ (other == values[counts.argmax()])


def agreement(predicted: np.ndarray, truth: np.ndarray, kind: str) -> np.ndarray:
    """Grey values (uint8) that say where two planes of labels agree, by `GREYS`."""
    same = (predicted != 0) & (truth != 0) if kind == "instances" else (predicted == truth) & (truth != 0)
    grey = np.where(same, GREYS["same"], np.where((predicted != 0) | (truth != 0), GREYS["apart"], GREYS["background"]))
    return grey.astype(np.uint8)


def renumbered(labels: np.ndarray) -> np.ndarray:
    """Small numbers in the labels' order instead of any; 0 stays (uint16: a picture has no more labels than pixels)."""
    values, index = np.unique(np.append(labels.ravel(), labels.dtype.type(0)), return_inverse=True)
    return index[:-1].reshape(labels.shape).astype(np.uint16 if len(values) <= 1 << 16 else np.uint32)
