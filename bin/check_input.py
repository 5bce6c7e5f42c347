#!/usr/bin/env python3
"""CHECK_INPUT: open every header, report all faults at once, and estimate what the run will take."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from voxelmill.check import check_input, refuse_cores
from voxelmill.convert.request import Request
from voxelmill.errors import UsageError
from voxelmill.evaluation.request import Evaluation
from voxelmill.files import write_json
from voxelmill.fit import CheckOptions
from voxelmill.forecast import table
from voxelmill.formats import Selection
from voxelmill.model.config import agree_members
from voxelmill.model.package import load_config
from voxelmill.model.steps import chosen_steps, notice
from voxelmill.planning import Options
from voxelmill.schedule import tile_shape
from voxelmill.task import task

PATH = click.Path(path_type=Path)
ID_LAYERS = {"border_core": 2, "watershed": 1}
"""Way to separate objects that touch -> arrays of numbers that it writes on the way: marks and ids, or ids."""

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def memory_bytes(text: str, option: str = "--memory-budget") -> int:
    """``4 GB`` or a plain number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)B?", text)
    if match is None:
        raise UsageError(f"{option} {text!r}", expected="a size such as 4 GB")
    return int(float(match[1]) * UNITS[match[2]])


def request(values: Mapping[str, Any]) -> Request | None:
    """What images are to be converted to, if they are."""
    if values["target"] is None:
        return None
    names = (
        "target_spacing",
        "order",
        "label_resampling",
        "orientation",
        "repair_header",
        "align_labels",
        "border_core",
    )
    return Request(format=values["target"], **{name: values[name] for name in names})


@click.command()
@click.option("--input", "sheet", type=PATH, help="Samplesheet; without it every staged image is a sample.")
@click.option("--images", type=int, help="How many files the pipeline found in the samplesheet.")
@click.option("--staged", type=PATH, required=True, help="Folder with one numbered folder per file.")
@click.option("--package", "packages", type=PATH, multiple=True, help="A packed model; several are averaged.")
@click.option("--postprocessing", default="none", help="none, model, or a postprocessing.json of nnU-Net.")
@click.option("--schema", type=PATH, required=True, help="JSON schema of the samplesheet.")
@click.option("--axes")
@click.option("--series", type=int)
@click.option("--timepoint", type=int)
@click.option("--level", type=int)
@click.option("--dataset")
@click.option("--channel")
@click.option("--intensity", default="none", type=click.Choice(["none", "percentile8"]))
@click.option("--flip", default="none", type=click.Choice(["none", "z", "y", "x", "zy", "zx", "yx", "zyx"]))
@click.option("--spacing")
@click.option("--unit", type=click.Choice(["um", "nm", "mm", "m", "pixel"]))
@click.option("--box")
@click.option("--preview", is_flag=True)
@click.option("--on-bad-sample", default="stop", type=click.Choice(["stop", "skip"]))
@click.option("--missing-chunks", default="error", type=click.Choice(["error", "fill"]))
@click.option("--nonfinite", default="error", type=click.Choice(["error", "zero"]))
@click.option("--check", default="header", type=click.Choice(["header", "full"]))
@click.option("--workers", default=1, help="CPUs of the task.")
@click.option("--allow-spacing-mismatch", is_flag=True)
@click.option("--min-object-volume", default=0.0)
@click.option("--threads", default=2)
@click.option("--task-minutes", default=30.0)
@click.option("--tile-size")
@click.option("--memory-budget", default="4 GB")
@click.option("--gpu-memory-budget", default="8 GB")
@click.option("--batch-size", default=1)
@click.option("--step-size", default=0.5)
@click.option("--mirroring", default="on", type=click.Choice(["on", "off"]))
@click.option("--engine", default="float32")
@click.option("--save-probabilities", type=click.Choice(["uint8", "uint16"]))
@click.option("--shard-size", default=256)
@click.option("--device", default="cpu")
@click.option("--format", "target", help="Images are to be converted to this format, and not segmented.")
@click.option("--target-spacing")
@click.option("--order", default="1", type=click.Choice(["0", "1", "3", "area"]))
@click.option("--label-resampling", default="majority", type=click.Choice(["majority", "nearest"]))
@click.option("--orientation")
@click.option("--repair-header", type=click.Choice(["qform", "sform"]))
@click.option("--align-labels", is_flag=True)
@click.option("--border-core", help="Instances become border-core labels with borders of this thickness.")
@click.option("--method", default="components", help="How objects are found.")
@click.option("--core-label", help="Name or number of the label of cores, where objects are made of them.")
@click.option("--border-label")
@click.option("--evaluate", is_flag=True, help="Labels are to be compared with the truth.")
@click.option("--ignore-label", type=int, help="Value of the truth whose voxels count nowhere.")
def main(
    sheet: Path | None, images: int | None, staged: Path, packages: tuple[Path, ...], schema: Path, **values: Any
) -> None:
    """Write check/samples.json and check/estimate.json, and print the estimate."""
    with task("check_input", "check") as record:
        options = CheckOptions(
            selection=Selection(**{name: values[name] for name in ("axes", "series", "timepoint", "level", "dataset")}),
            channel=values["channel"],
            intensity=values["intensity"],
            flip=values["flip"],
            spacing=values["spacing"],
            unit=values["unit"],
            box=values["box"],
            preview=values["preview"],
            skip_bad=values["on_bad_sample"] == "skip",
            fill_missing=values["missing_chunks"] == "fill",
            nonfinite=values["nonfinite"],
            full=values["check"] == "full",
            workers=values["workers"],
            allow_spacing_mismatch=values["allow_spacing_mismatch"],
            convert=request(values),
            evaluate=Evaluation(values["ignore_label"]) if values["evaluate"] else None,
            min_object_volume=values["min_object_volume"],
            plan=Options(
                step_size=values["step_size"],
                mirroring=values["mirroring"] == "on",
                device=values["device"],
                engine=values["engine"],
                shard_size=values["shard_size"],
                memory_budget=memory_bytes(values["memory_budget"]),
                tile_size=tile_shape(values["tile_size"]),
                gpu_memory_budget=memory_bytes(values["gpu_memory_budget"], "--gpu-memory-budget"),
                threads=values["threads"],
                batch=values["batch_size"],
                task_seconds=60 * values["task_minutes"],
                probabilities=values["save_probabilities"],
                id_layers=ID_LAYERS.get(values["method"], 0),
            ),
        )
        configs = [load_config(package) for package in packages]
        agree_members(configs)
        for package in packages[:1]:
            # What is wrong with the steps is told here and not after the prediction.
            chosen_steps(values["postprocessing"], package)
            if text := notice(values["postprocessing"], package):
                record.warn(text)
        config = configs[0] if configs else None
        if config is not None and values["core_label"] is not None:
            refuse_cores(config, values["core_label"], values["border_label"])
        result = check_input(sheet, staged, schema, config, options, others=configs[1:], images=images)
        for entry in result.samples:
            for text in entry["warnings"]:
                record.warn(text, sample=entry["id"])
        for row in result.skipped:
            record.warn(f"skipped: {row['error'].splitlines()[0].removeprefix('error:').strip()}", sample=row["id"])
        print(table(result), flush=True)
        outputs = {
            "samples": {"samples": result.samples, "skipped": result.skipped, "estimate": result.estimates},
            "estimate": result.total,
        }
        for name, value in outputs.items():
            write_json(Path("check") / f"{name}.json", value)
            record.output(Path("check") / f"{name}.json")
        record.counts = {"samples": len(result.samples), "skipped": len(result.skipped)}


if __name__ == "__main__":
    main()
