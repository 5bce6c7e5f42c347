"""CONVERT_IMAGES: the samples of a batch in another format, streamed, and what was done to each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from voxelmill.convert.changes import GIVEN, Spec, change
from voxelmill.convert.mending import open_given
from voxelmill.convert.request import Request
from voxelmill.convert.views import watch
from voxelmill.errors import VoxelmillError, WriteFailedError
from voxelmill.files import sha256_tree, write_json
from voxelmill.formats import ImageSource, Selection, open_image
from voxelmill.formats.writing import FORMATS, write_image, written_dtype
from voxelmill.image import Box
from voxelmill.task import Task

SLICES = ".slices"
"""Ending of a folder of slices, which the format leaves open."""

LABELS = ".labels"

SAMPLE = 64
"""Voxels along each axis of the boxes that are read again."""


def convert_batch(
    entries: Sequence[Mapping[str, Any]],
    files: Path,
    request: Request,
    out: Path,
    record: Task,
    *,
    memory_budget: int,
) -> None:
    """Convert the samples of a batch.

    Parameters
    ----------
    entries : sequence of mapping
        The batch's entries of ``samples.json``.
    files : Path
        Staged files ``<n>/<file>``; the entries' ``images`` are their numbers: images, then labels.
    request : Request
    out : Path
        Gets a folder per sample: ``<sample><suffix>``, ``<sample>.labels<suffix>`` and ``<sample>.converted.json``.
    record : Task
    memory_budget : int
        Bytes.
    """
    for entry in entries:
        sample = entry["id"]
        try:
            done = convert_sample(entry, files, request, out, memory_budget=memory_budget)
        except VoxelmillError as error:
            error.sample = error.sample or sample
            raise
        for text in done["warnings"]:
            record.warn(text, sample=sample)
        for one in done["written"]:
            record.output(out / sample / one["file"])
            one["sha256"] = record.outputs[str(out / sample / one["file"])]
        write_json(out / sample / f"{sample}.converted.json", done)
        record.counts[sample] = {"voxels": sum(math.prod(one["shape"]) for one in done["written"])}


def convert_sample(
    entry: Mapping[str, Any], files: Path, request: Request, out: Path, *, memory_budget: int
) -> dict[str, Any]:
    """Convert the image of one sample, and its labels -> what was done."""
    sample = entry["id"]
    count = len(entry["files"])
    spec = Spec.from_dict(entry)
    paths = [staged_file(files, number) for number in entry["images"]]
    with ExitStack() as opened:
        sources = [
            opened.enter_context(open_given(path, Selection(**chosen), spec.spacing if spec.origin in GIVEN else None))
            for path, chosen in zip(paths, entry["selections"], strict=True)
        ]
        labels = sources[count] if entry["labels"] else None
        changed = change(sources[:count], labels, request, spec)
        written = []
        for what, source in (("image", changed.image), ("labels", changed.labels)):
            if source is not None:
                path = out / sample / output_name(sample, request.format, labels=what == "labels")
                convert_image(source, path, request.format, sample, what, memory_budget)
                written.append(described(what, source, path))
        return {
            "sample": sample,
            "source": [*entry["files"], *([entry["labels"]["file"]] if entry["labels"] else [])],
            "source_sha256": [sha256_tree(path) for path in paths] if is_whole(entry, request) else [],
            "format": request.format,
            "labels_kind": labels_kind(entry, request),
            "group": entry.get("group"),
            "changes": list(changed.changes),
            "warnings": list(dict.fromkeys([*entry["warnings"], *changed.warnings, *changed.seen()])),
            "written": written,
        }


def labels_kind(entry: Mapping[str, Any], request: Request) -> str | None:
    """The column of a samplesheet that the written labels belong to; cores and borders are classes."""
    if not entry["labels"]:
        return None
    return "semantic" if request.border_core is not None else entry["labels"]["kind"]


def output_name(sample: str, target: str, *, labels: bool) -> str:
    """Name of a converted file or folder."""
    return f"{sample}{LABELS if labels else ''}{FORMATS[target].suffix or SLICES}"


def convert_image(source: ImageSource, path: Path, target: str, sample: str, what: str, memory_budget: int) -> None:
    """Write an image and compare some of it with what is read back.

    The writers look at what they wrote; this looks at what the readers of the next run will find.

    Raises
    ------
    WriteFailedError
        Where something else is read.
    """
    watched = watch(source, f"{sample}, {what}")
    write_image(
        watched, path, target, labels=what == "labels", name=path.name.removesuffix(FORMATS[target].suffix or SLICES),
        memory_budget=memory_budget,
    )  # fmt: skip
    with open_image(path) as found:
        pairs = [("shape", source.shape, found.shape), ("type", written_dtype(source.dtype), found.dtype)]
        if source.spacing and FORMATS[target].spacing:
            near = found.spacing is not None and np.allclose(source.spacing, found.spacing, rtol=1e-5, atol=0)
            pairs.append(("spacing", source.spacing, source.spacing if near else found.spacing))
        if not FORMATS[target].lossy:
            boxes = sample_boxes(source.shape[1:], sequential=target == "nifti")
            same = all(
                equal(source.read(c, box), found.read(c, box)) for c in (0, source.shape[0] - 1) for box in boxes
            )
            pairs.append(("voxels", "those of the image", "those of the image" if same else "others"))
    for name, wanted, got in pairs:
        if wanted != got:
            raise WriteFailedError(
                f"what was written has the {name} {got}",
                sample=sample,
                file=path,
                expected=f"{wanted}",
                remedy="check the disk of the work folder, then run again with -resume",
            )


def equal(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one.astype(other.dtype, copy=False), other, equal_nan=other.dtype.kind == "f")


def sample_boxes(shape: Sequence[int], *, sequential: bool) -> list[Box]:
    """Boxes at the image's beginning, in its middle and at its end; the first alone where others cost a whole pass."""

    def box(starts: Sequence[int]) -> Box:
        return tuple((start, min(start + SAMPLE, n)) for start, n in zip(starts, shape, strict=True))

    ends = [max(0, n - SAMPLE) for n in shape]
    middle = [n // 2 for n in ends]
    return [box((0, 0, 0))] if sequential else [box((0, 0, 0)), box(middle), box(ends)]


def described(what: str, source: ImageSource, path: Path) -> dict[str, Any]:
    """What is known of a written file; ``stated`` says whether it states its own voxel size."""
    with open_image(path) as found:
        stated = found.spacing is not None
    return {
        "what": what,
        "file": path.name,
        "shape": list(source.shape),
        "dtype": written_dtype(source.dtype).name,
        "spacing": None if source.spacing is None else list(source.spacing),
        "origin": list(source.origin),
        "stated": stated,
    }


def is_whole(entry: Mapping[str, Any], request: Request) -> bool:
    """Whether files are converted whole: to hash terabytes for a part of them would take longer than to convert it."""
    levels = any(chosen.get("level") for chosen in entry["selections"])
    return entry["box"] is None and not levels and not (request.align_labels and entry["labels"])


def staged_file(folder: Path, number: int) -> Path:
    """The only file in a numbered folder."""
    (path,) = (folder / str(number)).iterdir()
    return path
