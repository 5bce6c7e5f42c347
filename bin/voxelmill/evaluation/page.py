"""The report of an evaluation: one HTML file with all scores, the worst cases and what every number means."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from voxelmill.evaluation.scores import Key, Scores, distribution, headline, scores_of, summary, worst_first
from voxelmill.evaluation.worst import LAYERS
from voxelmill.report import text
from voxelmill.report.collect import Parameter, shown_parameters
from voxelmill.report.figures import COLOURS, Figure, outline_mask, scale_bar
from voxelmill.report.render import template
from voxelmill.report.usage import ProcessUse, disk_bytes, processes, versions

DETAILED = 20
"""Samples that are shown one by one; of more, the worst."""

CASES, CASES_OF_MANY, MANY = 12, 6, 10
"""Cases of a sample that are shown, and how many where there are more than `MANY` samples: the page stays small."""

SIDE = 512
"""Pixels that outlines are drawn on, about."""

PREDICTION, TRUTH = COLOURS[0], COLOURS[1]
THICK, THIN = 4, 2
"""Pixels of the outlines of the truth, and of the prediction's above them, where both are the same object."""

SHADE = 110
"""How dark everything beside the case itself is, of 255."""

FEW = 8
"""Grey values up to which a picture is kept without loss."""

UNITS = {"um": "µm", "pixel": "px"}

MEASURES = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "Precision",
    "recall": "Recall",
    "surface_dice": "Surface Dice",
    "surface_mean": "Mean surface distance",
    "surface_hd95": "95 % Hausdorff distance",
    "surface_hd": "Hausdorff distance",
    "f1@0.5": "F1 at IoU 0.5",
    "f1@0.75": "F1 at IoU 0.75",
    "f1@0.9": "F1 at IoU 0.9",
    "mean_ap": "Mean AP, IoU 0.5 to 0.9",
    "pq": "Panoptic quality",
    "sq": "Segmentation quality",
    "rq": "Recognition quality",
    "splits": "Split objects",
    "merges": "Merged objects",
    "variation_of_information_split": "Variation of information, split",
    "variation_of_information_merge": "Variation of information, merge",
    "adapted_rand_error": "Adapted Rand error",
}
"""Measures in the summary, and what they are called."""

BEYOND_ONE = ("surface_mean", "surface_hd95", "surface_hd", "splits", "merges", "variation_of_information_split",
              "variation_of_information_merge")  # fmt: skip
"""Measures that are no shares from 0 to 1."""

CAPTIONS = {
    "missed": ("Missed", "truth"),
    "split": ("Split", "truth"),
    "merged": ("Merged", "prediction"),
    "false": ("False", "prediction"),
    "wrong": ("Wrong classes", ""),
}
"""What a case is called, and whose number it has."""


@dataclass(frozen=True)
class Case:
    """One of the worst cases with its picture; ``of`` says whose number ``id`` is, both are empty for classes."""

    title: str
    of: str
    id: str
    voxels: int
    iou: float | None
    place: str
    figure: Figure


@dataclass(frozen=True)
class Curve:
    """A line on the chart of thresholds: ``points`` x,y for SVG, ``marks`` the same one by one."""

    name: str
    style: str
    points: str
    marks: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Chart:
    """The chart of thresholds in words and shapes, on `Chart.WIDTH` x `Chart.HEIGHT` units."""

    WIDTH = 400
    HEIGHT = 220

    curves: tuple[Curve, ...]
    ticks: tuple[tuple[float, str], ...]
    levels: tuple[tuple[float, str], ...]
    words: str


@dataclass(frozen=True)
class Strip:
    """One measure over samples: a dot for each from 0 to 100, and their median; whether it is a share from 0 to 1."""

    name: str
    of: str
    unit: str
    numbers: Mapping[str, Any]
    share: bool
    dots: tuple[float, ...]
    median: float | None


@dataclass(frozen=True)
class Shown:
    """A sample as the page shows it; ``cases`` and ``chart`` of the detailed ones only."""

    anchor: str
    score: float | None
    dice: float | None
    scores: Scores
    detailed: bool
    cases: tuple[Case, ...]
    chart: Chart | None

    @property
    def unit(self) -> str:
        return UNITS[self.scores["unit"]]


@dataclass(frozen=True)
class Page:
    """Contents of the page; samples come worst first. Names as in :class:`voxelmill.report.collect.Run`."""

    samples: tuple[Shown, ...]
    strips: tuple[Strip, ...]
    summary: Sequence[Mapping[str, Any]]
    failed: Mapping[str, str]
    processes: tuple[ProcessUse, ...]
    versions: Mapping[str, tuple[str, ...]]
    disk: int | None
    params: Mapping[str, Any]
    parameters: tuple[Parameter, ...]
    command: str | None
    revision: str | None
    profile: str | None
    generated: str
    estimates: tuple[Any, ...] = ()

    @classmethod
    def of(
        cls,
        evaluated: Sequence[Scores],
        pictures: Mapping[str, Path],
        failed: Mapping[str, str],
        records: Sequence[Mapping[str, Any]],
        run: Mapping[str, Any],
        generated: str,
    ) -> Page:
        """Put together what the page shows.

        Parameters
        ----------
        evaluated : sequence of mapping
            Contents of ``<sample>.evaluation.json`` in the order of the sheet.
        pictures : mapping
            Sample -> its ``<sample>.worst.npz``.
        failed : mapping
            Sample -> why it has no scores.
        records : sequence of mapping
            Of the tasks.
        run : mapping
            ``params``, ``defaults``, ``command``, ``revision``, ``profile``, as far as they are known.
        generated : str
            Date and time to print.
        """
        cases = CASES_OF_MANY if len(evaluated) > MANY else CASES
        rows = enumerate(worst_first(evaluated), 1)
        params = run.get("params") or {}
        return cls(
            samples=tuple(shown(one, number, pictures.get(one["sample"]), cases) for number, one in rows),
            strips=tuple(strips(evaluated)) if len(evaluated) > 1 else (),
            summary=summary(evaluated),
            failed=failed,
            processes=processes(records),
            versions=versions(records),
            disk=disk_bytes(records),
            params=params,
            parameters=shown_parameters(params, run.get("defaults")),
            command=run.get("command"),
            revision=run.get("revision"),
            profile=run.get("profile"),
            generated=generated,
        )

    @property
    def detailed(self) -> tuple[Shown, ...]:
        return tuple(row for row in self.samples if row.detailed)

    @property
    def warnings(self) -> dict[str, tuple[str, ...]]:
        """Warning -> its samples."""
        grouped: dict[str, list[str]] = {}
        for row in self.samples:
            for told in row.scores["warnings"]:
                grouped.setdefault(told, []).append(row.scores["sample"])
        return {told: tuple(names) for told, names in grouped.items()}

    @property
    def lead(self) -> str:
        """The result in a sentence or two."""
        told = [f"{text.plural(len(self.samples), 'sample')} compared with the truth."]
        everyone = self.summary[0]["measures"] if self.samples else []
        for row in everyone:
            wanted = row["measure"] == "f1@0.5" or (row["measure"] == "dice" and row["class"] is not None)
            if wanted and row["n"] and len(told) < 5:
                spread = f" ± {score(row['sd'])}" if row["sd"] is not None else ""
                told.append(f"{MEASURES[row['measure']]} of {row['name']} {score(row['mean'])}{spread}.")
        if len(self.samples) > 1:
            told.append("Mean ± standard deviation over samples.")
        return " ".join(told)


def render_page(page: Page) -> str:
    """The HTML of a report; it needs no other file."""
    colours = {"truth": TRUTH, "prediction": PREDICTION}
    return template("evaluation.html", [score], colours=colours, most=DETAILED).render(
        run=page, generated=page.generated
    )


def score(value: float | None) -> str:
    """A share with three digits behind the point; a dash for none."""
    return text.NOTHING if value is None else f"{value:.3f}"


def shown(one: Scores, number: int, pictures: Path | None, most: int) -> Shown:
    """What the page shows of the sample at a place, counted from the worst."""
    detailed = number <= DETAILED
    dice = distribution(row["dice"] for row in one["classes"])["mean"]
    return Shown(
        anchor=f"sample-{number}",
        score=headline(one),
        dice=dice,
        scores=one,
        detailed=detailed,
        cases=tuple(cases_of(one, pictures, most)) if detailed and pictures else (),
        chart=threshold_chart(one["objects"]["thresholds"]) if detailed and one["objects"] else None,
    )


# Charts


def threshold_chart(thresholds: Sequence[Mapping[str, Any]]) -> Chart:
    """F1 and AP against the IoU at which objects are matched."""
    left, right, top, bottom = 40, Chart.WIDTH - 12, 10, Chart.HEIGHT - 40
    low, high = (thresholds[i]["iou"] for i in (0, -1))

    def x(iou: float) -> float:
        return round(left + (right - left) * (iou - low) / ((high - low) or 1), 1)

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * value, 1)

    curves = []
    for name, key, style in (("F1", "f1", "solid"), ("AP", "ap", "dashed")):
        marks = tuple((x(row["iou"]), y(row[key])) for row in thresholds if row[key] is not None)
        curves.append(Curve(name, style, " ".join(f"{a:g},{b:g}" for a, b in marks), marks))
    told = "; ".join(f"IoU {row['iou']:g}: F1 {score(row['f1'])}, AP {score(row['ap'])}" for row in thresholds)
    return Chart(
        curves=tuple(curves),
        ticks=tuple((x(row["iou"]), f"{row['iou']:g}") for row in thresholds[::2]),
        levels=tuple((y(level / 4), f"{level / 4:g}") for level in range(5)),
        words=f"Chart of F1 and AP against IoU. {told}",
    )


def strips(evaluated: Iterable[Scores]) -> Iterable[Strip]:
    """The summary's rows."""
    found: dict[Key, list[Any]] = {}
    for one in evaluated:
        for row in scores_of(one):
            if row.measure in MEASURES:
                found.setdefault(row.key, []).append(row)
    for (_, measure, unit), rows in found.items():
        numbers = distribution(row.value for row in rows)
        if not numbers["n"]:
            continue
        beyond = measure in BEYOND_ONE
        scale = 100 / ((numbers["max"] or 1) if beyond else 1)
        yield Strip(
            name=MEASURES[measure],
            of=rows[0].name,
            unit=UNITS.get(unit or "", ""),
            numbers=numbers,
            share=not beyond,
            dots=tuple(round(row.value * scale, 2) for row in rows if row.value is not None),
            median=None if numbers["median"] is None else round(numbers["median"] * scale, 2),
        )


# Pictures


def cases_of(one: Scores, pictures: Path, most: int) -> Iterable[Case]:
    """The worst cases of a sample, those whose pictures arrived."""
    first = one.get("first") or [0, 0, 0]
    with np.load(pictures, allow_pickle=False) as stored:
        for number, case in enumerate(one["worst"][:most]):
            if f"{number:02d}_{LAYERS[0]}" not in stored.files:
                continue
            layers = {layer: stored[f"{number:02d}_{layer}"] for layer in LAYERS}
            title, of = CAPTIONS.get(case["what"], (case["what"].capitalize(), ""))
            box = [(start + a, stop + a) for (start, stop), a in zip(case["box"], first, strict=True)]
            yield Case(
                title=title,
                of=of,
                id="" if case["id"] is None else str(case["id"]),
                voxels=case["voxels"],
                iou=case["iou"],
                place=",".join(f"{start}:{stop}" for start, stop in box),
                figure=case_figure(f"{title}, plane z {layers['box'][0, 0] + first[0]}", layers, one),
            )


def case_figure(title: str, layers: Mapping[str, np.ndarray], one: Scores) -> Figure:
    """The grey plane; above it a shadow over all but the case, and the outlines of truth and prediction."""
    grey, box = layers["grey"], layers["box"]
    _, height, width = ((stop - start) * step for (start, stop), step in zip(box, one["spacing"], strict=True))
    factor = max(1, SIDE // max(grey.shape))
    large = {layer: enlarged(layers[layer], factor) for layer in ("predicted", "truth", "focus")}
    index = np.where(large["focus"], 0, 3).astype(np.uint8)
    index[outline_mask(large["truth"], THICK)] = 1
    index[outline_mask(large["predicted"], THIN)] = 2
    layer = Image.fromarray(index, mode="P")
    layer.putpalette(bytes(3) + b"".join(bytes.fromhex(c[1:]) for c in (TRUTH, PREDICTION, "#000000")))
    # JPEG blurs what has a few greys only.
    plain = len(np.unique(grey)) <= FEW
    return Figure(
        title=title,
        alternative=f"{title}, with the outlines of truth and prediction",
        grey=address(Image.fromarray(grey), "PNG") if plain else address(Image.fromarray(grey), "JPEG", quality=80),
        outlines=address(layer, "PNG", transparency=bytes((0, 255, 255, SHADE)), bits=2),
        aspect=round(width / height, 6),
        fill=round(100 * min(1.0, width / height), 2),
        coarse=True,
        bar=scale_bar(width, one["unit"]),
        area="",
    )


def enlarged(labels: np.ndarray, factor: int) -> np.ndarray:
    """Each pixel as a square of ``factor`` by ``factor``."""
    return np.repeat(np.repeat(labels, factor, 0), factor, 1)


def address(image: Image.Image, kind: str, **options: Any) -> str:
    """A picture as a data address."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
