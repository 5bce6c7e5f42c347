"""The report's pages."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
from markupsafe import Markup

from voxelmill import __version__
from voxelmill.report import text, words
from voxelmill.report.charts import histogram, seam_chart
from voxelmill.report.collect import Run, Sample
from voxelmill.report.figures import (
    COLOURS,
    Figure,
    Views,
    class_indices,
    object_figure,
    sample_views,
    svg_address,
    thumbnail,
)
from voxelmill.report.objects import DROPPED, GALLERY, Specimen

TEMPLATES = Path(__file__).parent / "templates"

LARGEST_FILE = 20_000_000
LARGEST_TEXT = 3_000_000
"""Room that the report keeps for all that is not a picture."""

SAMPLES_PER_FILE = 20
CLASSES_IN_SUMMARY = 3
SAMPLES_PER_WARNING = 5

FILES = ("objects.csv", "axons.json", "lengths.png", "sizes.png")
"""Published tables and charts that a sample's section links to."""

FILTERS = (
    text.card, text.dimensions, text.duration, text.listed, text.plural, text.quantity, text.readable, text.share,
    text.significant, text.size, text.thousands, text.volume, histogram, seam_chart,
)  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """A sample as the pages show it.

    ``page`` is the address of its section: an anchor, or a page of its own. ``total`` is the sum of its voxels.
    ``gallery`` are a few of its objects with their pictures, ``chart`` and ``size_chart`` those of their length and
    size, ``files`` are names and addresses of its tables.
    """

    sample: Sample
    anchor: str
    page: str
    thumbnail: str | None
    views: tuple[Views, ...]
    total: int
    gallery: tuple[tuple[Specimen, Figure], ...] = ()
    chart: str | None = None
    size_chart: str | None = None
    files: tuple[tuple[str, str], ...] = ()


def render_report(run: Run, generated: str) -> Iterator[tuple[str, str]]:
    """All pages of a report, one after the other.

    Up to `SAMPLES_PER_FILE` samples are one file; more are an index and a page for each sample.

    Parameters
    ----------
    run : Run
    generated : str
        Date and time to print.

    Yields
    ------
    path, html : str
        ``report/<number>-<sample>.html`` where samples have their own pages, and last ``report.html``. No page is
        larger than `LARGEST_FILE`.
    """
    colours = class_indices(_class_values(run))
    common = {
        "run": run,
        "generated": generated,
        "swatches": {v: COLOURS[c] for v, c in colours.items()},
        "group_chart": svg_address(run.group_chart) if run.group_chart else None,
    }
    page = template(
        "page.html",
        reasons=DROPPED,
        classes_in_summary=CLASSES_IN_SUMMARY,
        samples_per_warning=SAMPLES_PER_WARNING,
    )
    alone = len(run.samples) <= SAMPLES_PER_FILE
    budget = (LARGEST_FILE - LARGEST_TEXT) // (max(1, len(run.samples)) if alone else 1)
    shown = []
    for number, sample in enumerate(run.samples, 1):
        row = _show(run, sample, number, alone, colours, budget, thumbnails=len(run.samples))
        shown.append(row if alone else _without_views(row))
        if not alone and (sample.failure is None or row.views):
            yield row.page, page.render(**common, shown=[row], part="sample", home="../report.html")
    yield "report.html", page.render(**common, shown=shown, part="all" if alone else "index", home="")


def _show(
    run: Run, sample: Sample, number: int, alone: bool, colours: Mapping[int, int], budget: int, thumbnails: int
) -> Shown:
    anchor = f"sample-{number}"
    slug = re.sub(r"[^A-Za-z0-9._-]", "_", sample.name)[:80]
    where = f"#{anchor}" if alone else f"report/{number:04d}-{slug}.html"
    image = sample.image
    total = image.voxels if image else 0
    if image is None or sample.pictures is None or (sample.failure is not None and not sample.classes):
        return Shown(sample, anchor, where, None, (), total)
    pictures = _arrays(sample.pictures)
    labels = _arrays(sample.label_pictures) if sample.label_pictures else None
    small = None
    if thumbnails * 6000 <= LARGEST_TEXT:
        small = thumbnail(image.shape, image.spacing, pictures, labels, colours)
    gallery = _gallery(sample, colours)
    chart, sizes = (svg_address(path) if path else None for path in (sample.length_chart, sample.size_chart))
    spent = sum(len(figure.grey) + len(figure.outlines or "") for _, figure in gallery)
    spent += len(chart or "") + len(sizes or "")
    if spent > budget / 2:
        gallery, chart, sizes, spent = (), None, None, 0
    channels = _channels(run, sample)
    views = sample_views(image.shape, image.spacing, image.unit, pictures, labels, channels, colours, budget - spent)
    return Shown(sample, anchor, where, small, views, total, gallery, chart, sizes, _files(run, sample, alone))


def _gallery(sample: Sample, colours: Mapping[int, int]) -> tuple[tuple[Specimen, Figure], ...]:
    if sample.objects is None or sample.gallery is None or sample.image is None:
        return ()
    arrays = _arrays(sample.gallery)
    values = {row.name: row.value for row in sample.objects.classes}
    line = words.LENGTH_NAMES.get(sample.objects.length or "", "path")
    figures = []
    for shown in sample.objects.gallery:
        grey, mask, path, extent = (arrays.get(f"{shown.key}_{layer}") for layer in ("grey", "mask", "path", "extent"))
        if grey is None or mask is None or path is None or extent is None:
            continue
        colour = colours.get(values.get(shown.class_name, 0), 0)
        title, size = GALLERY[shown.key], (float(extent[0]), float(extent[1]))
        figure = object_figure(title, line, grey, mask, path, size, sample.image.unit, colour)
        figures.append((shown, figure))
    return tuple(figures)


def _files(run: Run, sample: Sample, alone: bool) -> tuple[tuple[str, str], ...]:
    """Those of `FILES` that were published, relative to the sample's page."""
    home = "" if alone else "../"
    names = [f"{sample.name}/{sample.name}.{name}" for name in FILES]
    return tuple((name.rsplit("/", 1)[1], f"{home}{quote(name)}") for name in names if name in run.published)


def _channels(run: Run, sample: Sample) -> tuple[str, ...]:
    """Names of a sample's channels; numbers where no model names them."""
    if run.model:
        return run.model.config.channel_names
    return tuple(f"Channel {number}" for number in range(len(sample.image.array.channels) if sample.image else 0))


def _without_views(row: Shown) -> Shown:
    """What the index needs; pictures of thousands of samples are not kept."""
    return Shown(row.sample, row.anchor, row.page, row.thumbnail, (), row.total)


def _class_values(run: Run) -> tuple[int, ...]:
    """Label values in the model's order; those of the samples where a model lists regions, or there is none."""
    values = dict.fromkeys(run.model.config.foreground_values if run.model else ())
    for sample in run.samples:
        values |= dict.fromkeys(row.value for row in sample.classes)
    return tuple(values)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def template(name: str, filters: Sequence[Callable[..., Any]] = (), **values: Any) -> jinja2.Template:
    """A template of a report, with the filters, the style and the script that all reports share.

    Parameters
    ----------
    name : str
    filters : sequence of callable
        Further ones, known by their names.
    **values
        Of this report.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (*FILTERS, *filters):
        environment.filters[function.__name__] = function
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    environment.globals.update(
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=__version__,
        words=words,
        **values,
    )
    return environment.get_template(name)
