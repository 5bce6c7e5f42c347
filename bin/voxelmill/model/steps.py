"""Post-processing that nnU-Net found to improve a model: its ``postprocessing.json``, read as a stranger's text.

nnU-Net writes the same beside it as a pickle of Python functions, ``postprocessing.pkl``, which is never opened. The
JSON names functions; each is compared with a closed list and never looked up in Python's modules.

A JSON has no tuples, so that a region ``(1, 2)`` and a list of the labels 1 and 2 look alike in it. They also mean the
same: nnU-Net's function takes the voxels of all labels and regions together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxelmill.errors import BadDataError, InputMissingError, ModelMismatchError, RefusedError
from voxelmill.model.config import ModelConfig, check_name, is_whole, shorten
from voxelmill.model.package import POSTPROCESSING, load_config, load_manifest, parse_json, verified_bytes

NONE, MODEL = "none", "model"
"""Words of ``--postprocessing``; anything else is a file."""

KEEP_LARGEST = "remove_all_but_largest_component_from_segmentation"
ARGUMENTS = frozenset({"labels_or_regions", "background_label"})
FUNCTIONS, KWARGS = "postprocessing_fns", "postprocessing_kwargs"
MAX_BYTES, MAX_STEPS = 16 << 20, 1000
LARGEST_LABEL = 65534
REMEDY = "nothing of it was applied; if you do not need it, take the file out of the model's folder"


@dataclass(frozen=True)
class Step:
    """Of all voxels that have one of the ``labels``, those of the largest component keep theirs.

    Components are joined across labels, by 26 neighbours; all components of the largest size are kept.

    Attributes
    ----------
    labels : tuple of int
        Ascending, without the background.
    background_label : int
        What the other voxels become.
    """

    labels: tuple[int, ...]
    background_label: int = 0

    def __str__(self) -> str:
        named = "label" if len(self.labels) == 1 else "labels"
        return f"largest component of {named} {', '.join(map(str, self.labels))}"


def read_steps(value: object, file: str) -> tuple[Step, ...]:
    """Steps of a ``postprocessing.json``, in order.

    Parameters
    ----------
    value : object
        What the file holds. The Dice of the training cases that nnU-Net keeps in it as well is left aside.
    file : str
        For the message.

    Raises
    ------
    RefusedError
        A function or an argument that is not known.
    BadDataError
        Not such a file, or labels that are none.
    """
    functions = value.get(FUNCTIONS) if isinstance(value, Mapping) else None
    kwargs = value.get(KWARGS) if isinstance(value, Mapping) else None
    if (
        not isinstance(functions, list)
        or not isinstance(kwargs, list)
        or not len(functions) == len(kwargs) <= MAX_STEPS
    ):
        raise BadDataError(
            "not nnU-Net's post-processing",
            file=file,
            expected=f"lists {FUNCTIONS} and {KWARGS} of one length, at most {MAX_STEPS}",
            remedy=REMEDY,
        )
    return tuple(read_step(name, arguments, file) for name, arguments in zip(functions, kwargs, strict=True))


def read_step(name: object, arguments: object, file: str) -> Step:
    """One function and its arguments."""
    check_name("post-processing function", name, {KEEP_LARGEST}, file)
    if not isinstance(arguments, Mapping) or "labels_or_regions" not in arguments:
        raise BadDataError(
            f"arguments {shorten(arguments)} of {KEEP_LARGEST}", file=file, expected="labels_or_regions", remedy=REMEDY
        )
    for argument in arguments:
        check_name(f"argument of {KEEP_LARGEST}", argument, ARGUMENTS, file)
    labels = labels_of(arguments["labels_or_regions"], file)
    background = arguments.get("background_label", 0)
    if not is_whole(background, 0, LARGEST_LABEL):
        raise bad_label(background, 0, file)
    return Step(tuple(sorted(set(labels))), background)


def labels_of(value: Any, file: str) -> list[int]:
    """A label, a region or a list of both -> all labels in it."""
    labels: list[int] = []
    for part in value if isinstance(value, list) else [value]:
        for label in part if isinstance(part, list) else [part]:
            if not is_whole(label, 1, LARGEST_LABEL):
                raise bad_label(label, 1, file)
            labels.append(label)
    return labels


def bad_label(label: object, lowest: int, file: str) -> BadDataError:
    return BadDataError(
        f"{shorten(label)} is no label that post-processing can work on",
        file=file,
        expected=f"whole numbers from {lowest} to {LARGEST_LABEL}",
        remedy=REMEDY,
    )


def check_labels(steps: Sequence[Step], config: ModelConfig, file: str) -> None:
    """Raise ModelMismatchError where a step names labels that the model has not: it belongs to another model."""
    entries = [value for name, value in config.labels.items() if name != "ignore"]
    known = {label for entry in entries for label in ([entry] if isinstance(entry, int) else entry)} | {0}
    known |= set(config.foreground_values)
    named = {label for step in steps for label in (*step.labels, step.background_label)}
    if named - known:
        raise ModelMismatchError(
            f"the post-processing names labels that the model has not: {', '.join(map(str, sorted(named - known)))}",
            file=file,
            expected=f"labels out of {', '.join(map(str, sorted(known)))}",
            remedy=f"take the {POSTPROCESSING} of this model",
        )


def steps_of_file(path: Path, config: ModelConfig) -> tuple[Step, ...]:
    """Steps of a file that belongs to a model.

    Raises
    ------
    InputMissingError
        No such file.
    RefusedError, BadDataError, ModelMismatchError
        See :func:`read_steps` and :func:`check_labels`.
    """
    path = Path(path)
    if path.suffix == ".pkl":
        raise RefusedError(
            "a pickle may run code and is never opened",
            file=path,
            expected=f"the {POSTPROCESSING} that nnU-Net writes beside it",
            remedy=f"pass {path.with_suffix('.json')}",
        )
    if not path.is_file():
        raise InputMissingError(
            "there is no such file for --postprocessing",
            file=path,
            expected=f"{NONE}, {MODEL} or the path of a {POSTPROCESSING}",
        )
    if path.stat().st_size > MAX_BYTES:
        raise BadDataError(f"{path.stat().st_size} bytes are too many for this file", file=path)
    steps = read_steps(parse_json(path.read_bytes(), str(path)), str(path))
    check_labels(steps, config, str(path))
    return steps


def steps_of_package(path: Path, config: ModelConfig) -> tuple[Step, ...] | None:
    """Steps that a package brings along; None where it has no post-processing. Raises as :func:`steps_of_file`."""
    manifest = load_manifest(path)
    if POSTPROCESSING not in manifest:
        return None
    file = str(Path(path) / POSTPROCESSING)
    steps = read_steps(parse_json(verified_bytes(path, POSTPROCESSING, manifest), file), file)
    check_labels(steps, config, file)
    return steps


def chosen_steps(choice: str, package: Path) -> tuple[Step, ...]:
    """Steps to apply.

    Parameters
    ----------
    choice : str
        ``none``, ``model`` or the path of a ``postprocessing.json``.
    package : Path

    Raises
    ------
    ModelMismatchError
        The package has no post-processing and is asked for it, or the file names labels that the model has not.
    InputMissingError, RefusedError, BadDataError
        See :func:`steps_of_file`.
    """
    if choice == NONE:
        return ()
    config = load_config(package)
    if choice != MODEL:
        return steps_of_file(Path(choice), config)
    steps = steps_of_package(package, config)
    if steps is None:
        raise ModelMismatchError(
            "--postprocessing model, and the model has no post-processing",
            file=package,
            expected=f"{POSTPROCESSING} in the model's folder or in its crossval_results_folds_*",
            remedy=f"pass the file that nnUNetv2_determine_postprocessing wrote, or --postprocessing {NONE}",
        )
    return steps


def notice(choice: str, package: Path) -> str | None:
    """What to tell a user whose model brings post-processing that is not applied."""
    if choice != NONE:
        return None
    steps = steps_of_package(package, load_config(package))
    if not steps:
        return None
    return (
        f"the model brings post-processing that is not applied ({describe(steps)}): the labels are the network's own; "
        f"--postprocessing {MODEL} applies it"
    )


def describe(steps: Sequence[Step]) -> str:
    """Steps in words."""
    return "; ".join(map(str, steps[:4])) + (f"; and {len(steps) - 4} more" if len(steps) > 4 else "")


def steps_json(steps: Sequence[Step]) -> bytes:
    """The steps alone, in nnU-Net's form."""
    value: dict[str, Any] = {
        FUNCTIONS: [KEEP_LARGEST] * len(steps),
        KWARGS: [
            {"labels_or_regions": list(step.labels)}
            | ({"background_label": step.background_label} if step.background_label else {})
            for step in steps
        ],
    }
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
