"""Charts of lengths and sizes: how they are distributed in one sample, or in groups of samples.

Equal input gives equal bytes. Text in the SVG files is drawn as paths, so that it looks alike without fonts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from scipy.stats import gaussian_kde

from voxelmill.files import atomic_path
from voxelmill.objects.summary import BINS, DIAMETER, bins
from voxelmill.samplesheet import printable
from voxelmill.store import COLOURS

POINTS = 200
CUT = 3.0
"""The grid of a density reaches so many bandwidths beyond the data."""

STEPS = 500
"""Points of a distribution that are drawn at most."""

DPI = 300
PALETTE = tuple("#{:02X}{:02X}{:02X}".format(*COLOURS[i]) for i in (4, 5, 2, 6, 0, 1))
"""Without the yellow, which is too bright for lines on white."""
Dash = tuple[int, tuple[int, ...]]
Curve = tuple[np.ndarray, np.ndarray]

DASHES: tuple[Dash, ...] = ((0, ()), (0, (5, 2)), (0, (1, 1)), (0, (5, 1, 1, 1)))
"""Dashes of the lines; each round through the palette takes the next."""

INK, GREY = "#222222", "#767676"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 12, "axes.titlesize": 13, "axes.labelsize": 13, "legend.fontsize": 11,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GREY, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.linewidth": 0.8, "text.parse_math": False,
    "svg.fonttype": "path", "svg.hashsalt": "voxelmill",
}  # fmt: skip


LENGTHS = {
    "longest_path": "Length of the longest path",
    "longest_branch": "Length of the longest branch",
    DIAMETER: "Equivalent diameter",
}
"""What ``--length`` can be, and what stands in for it, in words."""

NAMES = {DIAMETER: LENGTHS[DIAMETER]}
"""Titles of what is not called length."""

WIDE = 20.0
"""Sizes are drawn on a logarithmic axis where the largest is more than so many times the smallest."""


@dataclass(frozen=True)
class GroupLengths:
    """What a chart shows of one group.

    Attributes
    ----------
    name : str
    lengths : np.ndarray
        Of all its objects, float64.
    means : np.ndarray
        Mean length of each of its samples that has any.
    samples : int
        How many samples it has.
    """

    name: str
    lengths: np.ndarray
    means: np.ndarray
    samples: int


def density(values: np.ndarray) -> Curve | None:
    """Gaussian kernel density with Scott's bandwidth, as seaborn's ``kdeplot`` draws it by default.

    Parameters
    ----------
    values : np.ndarray
        float64 (n,)

    Returns
    -------
    (grid, density) or None
        float64 (200,) each, from three bandwidths below the smallest value to three above the largest; None where
        there are fewer than two different values.

    References
    ----------
    Scott, Multivariate Density Estimation (1992); ``scipy.stats.gaussian_kde``.
    """
    if values.size < 2 or np.ptp(values) <= 1e-9 * np.abs(values).max():
        return None
    kernel = gaussian_kde(values, bw_method="scott")
    reach = CUT * float(np.sqrt(kernel.covariance.item()))
    grid = np.linspace(values.min() - reach, values.max() + reach, POINTS)
    return grid, kernel(grid)


def cumulative(values: np.ndarray, steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """Empirical distribution: share of the values up to each of them.

    Parameters
    ----------
    values : np.ndarray
        float64 (n,), n >= 1
    steps : int
        At most so many of the sorted values are kept, evenly by rank, the smallest and the largest among them.

    Returns
    -------
    x, share : np.ndarray
        float64 (m,) each, m <= min(n, steps), ascending.
    """
    ordered = np.sort(values)
    n = ordered.size
    rank = np.unique(np.linspace(0, n - 1, min(n, steps)).round().astype(np.int64))
    return ordered[rank], (rank + 1) / n


def length_chart(
    sample: str, spacing: Sequence[float], unit: str, lengths: np.ndarray, length: str = "longest_path"
) -> Figure:
    """Distribution of the lengths of one sample's objects.

    Parameters
    ----------
    sample : str
    spacing : sequence of float
        z, y, x
    unit : str
        ``um`` or ``pixel``.
    lengths : np.ndarray
        float64 (n,) in that unit.
    length : str
        Which length: a key of `LENGTHS`.
    """
    shown = "px" if unit == "pixel" else "µm"
    voxel = " × ".join(f"{step:.4g}" for step in spacing)
    lines = [printable(sample), f"voxel {voxel} {shown} (z × y × x)"]
    if lengths.size:
        lines.append(
            f"{_objects(lengths.size)}, mean {four_digits(lengths.mean())} {shown}, "
            f"SD {four_digits(lengths.std())} {shown}"
        )
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 5.2), layout="constrained")
        FigureCanvasAgg(figure)
        left = figure.add_subplot()
        left.set_title(lines[0], fontweight="bold", loc="left", pad=24 if len(lines) == 2 else 40)
        left.annotate(
            "\n".join(lines[1:]), (0, 1), (0, 6), textcoords="offset points", xycoords="axes fraction", fontsize=11
        )
        left.set_xlabel(f"{LENGTHS[length]} ({shown})")
        if not lengths.size:
            _nothing(left, "no measured objects")
            return figure
        right = left.twinx()
        dark, bright = PALETTE[0], PALETTE[1]
        curve = density(lengths)
        _ends(left, right, [lengths], [curve], shown)
        _density(left, lengths, curve, dark, DASHES[0], fill=True)
        _cumulative(right, lengths, bright)
        for axes, colour in ((left, dark), (right, bright)):
            axes.yaxis.label.set_color(colour)
            axes.tick_params(axis="y", colors=colour)
        return figure


def cumulative_size(diameters: np.ndarray, power: int, steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """Share of the volume in objects up to a diameter.

    Parameters
    ----------
    diameters : np.ndarray
        float64 (n,), n >= 1
    power : int
        3 for volumes, 2 for areas.
    steps : int
        Of more diameters about so many are kept, evenly by share, the smallest and the largest among them.

    Returns
    -------
    x, share : np.ndarray
        float64 (m,) each, ascending.
    """
    ordered = np.sort(diameters)
    share = np.cumsum((ordered / ordered[-1]) ** power)
    share /= share[-1]
    if ordered.size <= steps:
        return ordered, share
    kept = np.searchsorted(share, np.linspace(share[0], 1.0, steps))
    kept = np.unique(np.append(np.minimum(kept, ordered.size - 1), (0, ordered.size - 1)))
    return ordered[kept], share[kept]


def size_edges(diameters: np.ndarray) -> tuple[np.ndarray, bool]:
    """Bins of a histogram (n >= 1 diameters), equally wide as they are drawn, and whether the axis is logarithmic."""
    low, high = float(diameters.min()), float(diameters.max())
    if high - low <= 1e-9 * high:
        return np.array([0.9 * low, 1.1 * high]), False
    wide = high > WIDE * low
    drawn = np.log10(diameters) if wide else diameters
    edges = np.linspace(drawn.min(), drawn.max(), 1 + int(np.clip(bins(drawn), 1, BINS)))
    edges = 10**edges if wide else edges
    # rounding must not leave out the first or the last
    edges[0], edges[-1] = low, high
    return edges, wide


def size_chart(
    sample: str,
    spacing: Sequence[float],
    unit: str,
    diameters: np.ndarray,
    power: int,
    sizes: Mapping[str, float] | None,
) -> Figure:
    """Sizes of one sample's objects: how many there are of each, and how the volume is shared out among them.

    Parameters
    ----------
    sample : str
    spacing : sequence of float
        z, y, x
    unit : str
        ``um`` or ``pixel``.
    diameters : np.ndarray
        float64 (n,) in that unit: equivalent diameters.
    power : int
        3 for volumes, 2 for the areas of an image of one plane.
    sizes : mapping or None
        Result of `voxelmill.objects.summary.size_of`; None for no objects.
    """
    shown = "px" if unit == "pixel" else "µm"
    what = "volume" if power == 3 else "area"
    lines = [printable(sample), f"voxel {' × '.join(f'{step:.4g}' for step in spacing)} {shown} (z × y × x)"]
    if sizes:
        marks = ", ".join(f"{name.upper()} {four_digits(value)}" for name, value in sizes.items())
        lines.append(f"{_objects(diameters.size)}, by {what} {marks} {shown}")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 5.2), layout="constrained")
        FigureCanvasAgg(figure)
        left = figure.add_subplot()
        left.set_title(lines[0], fontweight="bold", loc="left", pad=24 if len(lines) == 2 else 40)
        left.annotate(
            "\n".join(lines[1:]), (0, 1), (0, 6), textcoords="offset points", xycoords="axes fraction", fontsize=11
        )
        left.set_xlabel(f"{LENGTHS[DIAMETER]} ({shown})")
        if not sizes:
            _nothing(left, "no measured objects")
            return figure
        right = left.twinx()
        dark, bright = PALETTE[0], PALETTE[1]
        edges, wide = size_edges(diameters)
        counts, _ = np.histogram(diameters, edges)
        if wide:
            left.set_xscale("log")
            left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: four_digits(value)))
        left.stairs(counts, edges, fill=True, color=dark, alpha=0.25, lw=0)
        left.stairs(counts, edges, color=dark, lw=1.5)
        x, share = cumulative_size(diameters, power)
        line = np.array([edges[0], *x, edges[-1]]), np.array([0, *share, 1])
        right.plot(*line, drawstyle="steps-post", color=bright, lw=2)
        scale = np.log if wide else np.asarray
        for row, (name, value) in enumerate(sizes.items()):
            right.axvline(value, color=INK, lw=0.9, linestyle=DASHES[2])
            # names of equal sizes stand below each other, and none beyond the end of the axis
            share_of_axis = (scale(value) - scale(edges[0])) / (scale(edges[-1]) - scale(edges[0]))
            side, shift = ("right", -3) if share_of_axis > 0.9 else ("left", 3)
            right.annotate(
                name.upper(),
                (value, 1.03),
                (shift, -2 - 12 * row),
                textcoords="offset points",
                ha=side,
                va="top",
                fontsize=10,
                color=INK,
            )
        left.set_xlim(edges[0], edges[-1])
        left.set_ylim(0, 1.08 * counts.max())
        left.set_ylabel("Number of objects")
        right.set_ylim(0, 1.03)
        right.set_ylabel(f"Cumulative share of the {what}")
        for axes, colour in ((left, dark), (right, bright)):
            axes.yaxis.label.set_color(colour)
            axes.tick_params(axis="y", colors=colour)
        return figure


def group_chart(groups: Sequence[GroupLengths], unit: str, length: str = "longest_path") -> Figure:
    """Distributions of groups of samples, and below them the mean of every sample.

    Groups get the palette's colours in their order.

    Parameters
    ----------
    groups : sequence of GroupLengths
    unit : str
        ``um`` or ``pixel``.
    length : str
        Which length: a key of `LENGTHS`.
    """
    shown = "px" if unit == "pixel" else "µm"
    with mpl.rc_context(STYLE):
        strip = 0.5 + 0.3 * len(groups)
        figure = Figure(figsize=(8, 5.4 + strip + 0.22 * len(groups)), layout="constrained")
        FigureCanvasAgg(figure)
        left, below = figure.subplots(2, 1, sharex=True, height_ratios=(5, strip))
        right = left.twinx()
        curves = [density(group.lengths) for group in groups]
        _ends(left, right, [group.lengths for group in groups], curves, shown)
        for index, (group, curve) in enumerate(zip(groups, curves, strict=True)):
            colour, dash = _look(index)
            if group.lengths.size:
                _density(left, group.lengths, curve, colour, dash, fill=len(groups) <= 3)
                _cumulative(right, group.lengths, colour, 1.0, dash)
            below.plot(group.means, np.full(group.means.size, index), "o", color=colour, ms=7, alpha=0.75, mew=0)
            if group.means.size:
                below.plot([group.means.mean()], [index], "|", color=INK, ms=16, mew=1.8)
        _legend(figure, groups, f"{NAMES.get(length, 'Length')} by group")
        left.tick_params(labelbottom=False)
        below.set_xlabel(f"{LENGTHS[length]} ({shown})")
        below.set_ylim(len(groups) - 0.4, -0.6)
        below.set_yticks(range(len(groups)), [shortened(group.name) for group in groups])
        below.set_title("Mean of every sample; | mean of these means", loc="left", fontsize=11)
        below.grid(axis="y", color="#DDDDDD", lw=0.8)
        below.set_axisbelow(True)
        below.spines["right"].set_visible(False)
        return figure


def save_chart(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Write ``<stem>.png`` (300 dpi) and ``<stem>.svg``, neither with a date."""
    png, svg = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    with mpl.rc_context(STYLE):
        with atomic_path(png) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": "Voxelmill"})
        with atomic_path(svg) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": "Voxelmill"})
    return png, svg


def shortened(name: str, longest: int = 28) -> str:
    """A user's text for a chart."""
    name = printable(name)
    return name if len(name) <= longest else name[: longest - 1] + "…"


def four_digits(value: float) -> str:
    """At least four significant digits, never a power of ten: 1,234,567 and 12.34 and 0.0123."""
    digits = 0 if value == 0 else max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _objects(n: int) -> str:
    return f"{n:,} object{'' if n == 1 else 's'}"


def _nothing(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=16, color=GREY)
    axes.set(xticks=[], yticks=[])
    axes.spines["right"].set_visible(False)


def _look(index: int) -> tuple[str, Dash]:
    """Colour and dashes of a group."""
    return PALETTE[index % len(PALETTE)], DASHES[index // len(PALETTE) % len(DASHES)]


def _density(
    axes: Axes, lengths: np.ndarray, curve: Curve | None, colour: str, dash: Dash, *, fill: bool = False
) -> None:
    """The density, or where there is none a line at the only value."""
    if curve is None:
        axes.axvline(float(lengths.mean()), color=colour, linestyle=dash, lw=2)
        return
    axes.plot(*curve, color=colour, linestyle=dash, lw=2)
    if fill:
        axes.fill_between(*curve, color=colour, alpha=0.12, lw=0)


def _cumulative(axes: Axes, lengths: np.ndarray, colour: str, width: float = 1.5, dash: Dash = DASHES[0]) -> None:
    """The distribution from 0 to 1, as far as the axis reaches."""
    x, share = cumulative(lengths)
    low, high = axes.get_xlim()
    line = np.array([low, *x, high]), np.array([0, *share, 1])
    axes.plot(*line, drawstyle="steps-post", color=colour, linestyle=dash, lw=width)


def _ends(left: Axes, right: Axes, lengths: Sequence[np.ndarray], densities: Sequence[Curve | None], unit: str) -> None:
    """Limits, labels and a note where there is no density."""
    filled = [values for values in lengths if values.size]
    curves = [curve for curve in densities if curve is not None]
    low = min([float(grid[0]) for grid, _ in curves] + [float(values.min()) for values in filled], default=0.0)
    high = max([float(grid[-1]) for grid, _ in curves] + [float(values.max()) for values in filled], default=1.0)
    if not curves:
        room = 0.1 * high or 1.0
        low, high = low - room, high + room
    # no length is negative, though the density reaches there
    left.set_xlim(max(0.0, low), high)
    left.set_ylim(0, 1.05 * max((float(curve.max()) for _, curve in curves), default=1.0))
    if not curves:
        left.set_yticks([])
        why = "one object:" if sum(values.size for values in filled) == 1 else "all values are equal:"
        left.text(0.02, 0.96, f"{why}\nno density", transform=left.transAxes, va="top", color=GREY, fontsize=11)
    left.set_ylabel(f"Density (1/{unit})")
    right.set_ylim(0, 1.03)
    right.set_ylabel("Cumulative share of objects")


def _legend(figure: Figure, groups: Sequence[GroupLengths], title: str) -> None:
    handles, labels = [], []
    for index, group in enumerate(groups):
        colour, dash = _look(index)
        handles.append(Line2D([], [], color=colour, linestyle=dash, lw=2))
        count = f"{group.samples} sample{'' if group.samples == 1 else 's'}"
        labels.append(f"{shortened(group.name)} ({count}, {_objects(group.lengths.size)})")
    names = [f"{n}" for n in range(len(labels))]
    legend = figure.legend(handles, names, loc="outside upper left", frameon=False, title=title, alignment="left")
    legend.get_title().set(fontweight="bold", fontsize=13)
    # given above, a label that begins with an underscore would be left out
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(label)
