"""The report's pages."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from voxelmill import __version__
from voxelmill.report.collect import Run, Sample
from voxelmill.report.figures import COLOURS, Views, class_indices, sample_views, thumbnail
from voxelmill.report.text import card, dimensions, duration, share, significant, size, thousands, volume

TEMPLATES = Path(__file__).parent / "templates"

LARGEST_FILE = 20_000_000
LARGEST_TEXT = 3_000_000
"""Room that the report keeps for all that is not a picture."""

SAMPLES_PER_FILE = 20
CLASSES_IN_SUMMARY = 3

ReportPages = dict[str, str]
"""Relative path -> HTML."""


@dataclass(frozen=True)
class Shown:
    """A sample as the pages show it.

    ``page`` is the address of its section: an anchor, or a page of its own. ``total`` is the sum of its voxels.
    """

    sample: Sample
    anchor: str
    page: str
    thumbnail: str | None
    views: tuple[Views, ...]
    total: int


def render_report(run: Run, generated: str) -> ReportPages:
    """All pages of a report.

    Up to `SAMPLES_PER_FILE` samples are one file; more are an index and a page for each sample.

    Parameters
    ----------
    run : Run
    generated : str
        Date and time to print.

    Returns
    -------
    dict
        ``report.html``, and ``report/<number>-<sample>.html`` where samples have their own pages. No page is larger
        than `LARGEST_FILE`.
    """
    environment = _environment()
    colours = class_indices(_class_values(run))
    common = {"run": run, "generated": generated, "swatches": {v: COLOURS[c] for v, c in colours.items()}}
    page = environment.get_template("page.html")
    alone = len(run.samples) <= SAMPLES_PER_FILE
    budget = (LARGEST_FILE - LARGEST_TEXT) // (max(1, len(run.samples)) if alone else 1)
    pages, shown = {}, []
    for number, sample in enumerate(run.samples, 1):
        row = _show(run, sample, number, alone, colours, budget, thumbnails=len(run.samples))
        shown.append(row if alone else _without_views(row))
        if not alone and sample.failure is None:
            pages[row.page] = page.render(**common, shown=[row], part="sample", home="../report.html")
    pages["report.html"] = page.render(**common, shown=shown, part="all" if alone else "index", home="")
    return pages


def _show(
    run: Run, sample: Sample, number: int, alone: bool, colours: Mapping[int, int], budget: int, thumbnails: int
) -> Shown:
    anchor = f"sample-{number}"
    slug = re.sub(r"[^A-Za-z0-9._-]", "_", sample.name)[:80]
    where = f"#{anchor}" if alone else f"report/{number:04d}-{slug}.html"
    image = sample.image
    if sample.failure is not None or image is None or sample.pictures is None:
        return Shown(sample, anchor, where, None, (), image.voxels if image else 0)
    pictures = _arrays(sample.pictures)
    labels = _arrays(sample.label_pictures) if sample.label_pictures else None
    small = None
    if thumbnails * 6000 <= LARGEST_TEXT:
        small = thumbnail(image.shape, image.spacing, pictures, labels, colours)
    channels = run.model.config.channel_names
    views = sample_views(image.shape, image.spacing, image.unit, pictures, labels, channels, colours, budget)
    return Shown(sample, anchor, where, small, views, image.voxels)


def _without_views(row: Shown) -> Shown:
    """What the index needs; pictures of thousands of samples are not kept."""
    return Shown(row.sample, row.anchor, row.page, row.thumbnail, (), row.total)


def _class_values(run: Run) -> tuple[int, ...]:
    """Label values in the model's order; those of the samples where a model lists regions."""
    values = dict.fromkeys(run.model.config.foreground_values)
    for sample in run.samples:
        values |= dict.fromkeys(row.value for row in sample.classes)
    return tuple(values)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (card, dimensions, duration, share, significant, size, thousands, volume):
        environment.filters[function.__name__] = function
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    environment.globals.update(
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=__version__,
        classes_in_summary=CLASSES_IN_SUMMARY,
    )
    return environment
