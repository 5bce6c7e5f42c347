"""Which processes a sample goes through, what it must bring to the report, and which process failed if it does not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

PREDICTION = "predict_tiles"
"""The process whose counts are ``{sample: {"windows", "computed", "reused", "piece_bytes"}}``."""

GROUPED = ("stitch_blocks", "mark_cores", "separate_objects", "label_blocks", "relabel_blocks")
"""Processes with a task per group of blocks; each of them has the same groups."""

EXPORT = "export_labels"
"""Runs beside the measuring, so it proves nothing about it."""

AVERAGE = "average_models"
"""Where the user names several models, between stitching and all that follows."""

POSTPROCESSING = "postprocess_labels"
"""Where the user wants nnU-Net's post-processing; a batch without any block has none."""


SEPARATION = {
    "border_core": ("gather_blocks", "mark_cores", "link_cores", "separate_objects"),
    "watershed": ("gather_blocks", "separate_objects"),
}
"""Ways of separating objects that touch -> what comes before objects are found."""


def processed(params: Mapping[str, Any]) -> bool:
    return params.get("postprocessing", "none") != "none"


def steps(entry: Mapping[str, Any], params: Mapping[str, Any]) -> tuple[str, ...]:
    """Processes of a sample in the order of the data.

    Parameters
    ----------
    entry : mapping
        Entry of ``samples.json``; ``start`` is ``predict``, ``assemble`` (its labels are given) or ``analyze`` (its
        instances are).
    params : mapping
        The run's parameters.
    """
    start, stop = entry.get("start", "predict"), params.get("stop_after")
    split = ("import_image", "plan_tiles") if start == "predict" else ("import_image",)
    if stop == "split":
        return split
    several = ";" in str(params.get("model") or "")
    behind = [name for name, wanted in ((AVERAGE, several), (POSTPROCESSING, processed(params))) if wanted]
    predict = (PREDICTION, "stitch_blocks", *behind) if start == "predict" else ()
    objects = start == "analyze" or (stop != "predict" and params.get("instances", "none") != "none")
    apart = SEPARATION.get(str(params.get("instances")), ()) if objects and start != "analyze" else ()
    assemble = (*apart, "label_blocks", "link_objects", "relabel_blocks") if objects else ()
    analyze = ("measure_objects", "tabulate_objects") if objects and stop is None else ()
    export = (EXPORT,) if stop is None and params.get("export", "none") != "none" else ()
    return (*split, *predict, *assemble, "compose_store", *analyze, *export)


def arrived(
    entry: Mapping[str, Any],
    expected: Collection[str],
    images: Collection[str],
    labels: Mapping[str, Mapping[str, Any]],
    tables: Collection[str],
    records: Iterable[Mapping[str, Any]],
) -> bool:
    """Whether a sample brought all that its processes leave.

    Parameters
    ----------
    entry : mapping
        Entry of ``samples.json``.
    expected : collection of str
        Result of `steps`.
    images, tables : collection of str
        Names of the samples whose ``image.json`` and ``objects.json`` are there.
    labels : mapping
        Sample -> contents of its ``labels.json``.
    records : iterable
        Records of the tasks.
    """
    name = entry["id"]
    return (
        name in images
        and ("compose_store" not in expected or name in labels)
        and ("link_objects" not in expected or labels[name].get("objects") is not None)
        and ("tabulate_objects" not in expected or name in tables)
        and (EXPORT not in expected or any(r["process"] == EXPORT and r["name"] == entry["batch"] for r in records))
    )


def failure(entry: Mapping[str, Any], expected: Sequence[str], records: Iterable[Mapping[str, Any]]) -> str:
    """Which task failed, as far as the records of those that did not can tell, and where its log is.

    Parameters
    ----------
    entry, expected, records
        As for `arrived`.
    """
    own = [record for record in records if record["name"] == entry["batch"]]
    failed = " or ".join(step.upper() for step in _suspects(entry["id"], expected, own))
    return (
        f"{failed} failed. Its log is the file .command.err in the folder (workdir) that pipeline_info/trace.txt gives "
        f"for the task of that name and of the tag {entry['batch']} that has the status FAILED."
    )


def _suspects(sample: str, expected: Sequence[str], own: Sequence[Mapping[str, Any]]) -> list[str]:
    """Processes of which one failed: more than one where a lost task and a finished process look the same."""
    # groups of blocks are those of the first model
    tasks = Counter(record["process"] for record in own if not re.match(r"m(?!1\b)\d", str(record.get("part") or "")))
    parted = {PREDICTION, "measure_objects", *GROUPED}
    proven = max((i for i, step in enumerate(expected) if tasks[step] and step not in {EXPORT, *parted}), default=-1)
    groups = max(tasks[step] for step in GROUPED)
    planned = windows(own, sample, "windows", "plan_tiles")
    suspects: list[str] = []
    for step in expected[proven + 1 :]:
        if step == PREDICTION:
            if windows(own, sample, "windows") < planned:
                return [step]
        elif step not in parted or not tasks[step]:
            return [*suspects, step]
        elif step in GROUPED and tasks[step] < groups:
            return [step]
        else:
            suspects.append(step)
    return suspects or [expected[-1]]


def windows(records: Iterable[Mapping[str, Any]], sample: str, how: str, process: str = PREDICTION) -> int:
    """Windows of a sample in the counts of a process' tasks."""
    return sum(record["counts"].get(sample, {}).get(how, 0) for record in records if record["process"] == process)
