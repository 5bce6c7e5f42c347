"""Small charts that are drawn in the page itself, as shapes on a fixed grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voxelmill.report.objects import BAND, Quantity, Seam
from voxelmill.report.text import quantity, significant

WIDTH, HEIGHT = 160, 32
"""Units of a histogram's drawing."""


@dataclass(frozen=True)
class Histogram:
    """Bars as (x, y, width, height) on `WIDTH` × `HEIGHT`, the median's x, least and greatest value, all in words."""

    bars: tuple[tuple[float, float, float, float], ...]
    median: float | None
    first: str
    last: str
    words: str


@dataclass(frozen=True)
class SeamChart:
    """Positions in percent on one axis from ``low`` to ``high``, which all of a sample's axes share.

    ``marks`` has one position per seam, None where there is no ratio.
    """

    low: float
    high: float
    band: tuple[float, float]
    one: float
    marks: tuple[float | None, ...]


def histogram(row: Quantity) -> Histogram | None:
    """Bars whose areas are the counts; None where there are none."""
    counts, edges = np.asarray(row.counts, float), np.asarray(row.edges, float)
    if not counts.any() or not edges[-1] > edges[0]:
        return None
    density = counts / np.diff(edges)
    x = (edges - edges[0]) / (edges[-1] - edges[0]) * WIDTH
    heights = density / density.max() * HEIGHT
    bars = [
        (round(left, 2), round(HEIGHT - tall, 2), round(right - left, 2), round(tall, 2))
        for left, right, tall in zip(x[:-1], x[1:], heights, strict=True)
        if tall > 0
    ]
    median = None if row.median is None else round((row.median - edges[0]) / (edges[-1] - edges[0]) * WIDTH, 2)
    fullest = int(counts.argmax())
    span = " to ".join(quantity(edge, row.unit) for edge in edges[fullest : fullest + 2])
    factor, _ = row.scale
    return Histogram(
        bars=tuple(bars),
        median=median,
        first=significant(row.min, 3, factor),
        last=significant(row.max, 3, factor),
        words=f"Histogram: of {row.n:,}, the most ({row.counts[fullest]:,}) are from {span}",
    )


def seam_chart(seams: Sequence[Seam]) -> SeamChart:
    """An axis around 1 that is wide enough for every ratio, at least 0.8 to 1.2 and at most 0 to 2."""
    far = max((abs(seam.ratio - 1) for seam in seams if seam.ratio is not None), default=0.0)
    reach = min(1.0, max(0.2, float(np.ceil(far * 12) / 10)))

    def place(ratio: float) -> float:
        return round(float(np.clip((ratio - 1 + reach) / (2 * reach), 0, 1)) * 100, 2)

    return SeamChart(
        low=round(1 - reach, 2),
        high=round(1 + reach, 2),
        band=(place(1 - BAND), place(1 + BAND)),
        one=place(1.0),
        marks=tuple(None if seam.ratio is None else place(seam.ratio) for seam in seams),
    )
