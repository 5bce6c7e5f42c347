"""The pipeline as a user starts it, and what its tasks took."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure import ROOT, SCRIPTS, Use, run

SPACING = (3.0, 2.0, 2.0)
PHANTOM = (64, 256, 256)
DEMO_MODEL = ROOT / "assets" / "demo_model"
DEMO_OPTIONS = (
    "--model",
    DEMO_MODEL,
    "--model_spacing_unit",
    "um",
    "--mirroring",
    "off",
    "--spacing",
    "3,2,2",
    "--unit",
    "um",
)


@dataclass(frozen=True)
class Process:
    """All tasks of a process; seconds are sums, CPU and memory (bytes, the largest task) of its script."""

    name: str
    tasks: int
    wall: float
    script_wall: float
    cpu: float
    memory: int


def nextflow(folder: Path, *options: str | Path) -> Use:
    """Run the pipeline in an empty folder; results go to ``results`` in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    quiet = {"NXF_ANSI_LOG": "false", "NXF_DISABLE_CHECK_LATEST": "true", "NXF_OFFLINE": "true"}
    command = ["nextflow", "run", ROOT / "main.nf", "--outdir", "results", "-work-dir", "work", *options]
    return run(command, log=folder / "nextflow.out", folder=folder, environment=quiet, tree=True)


def processes(folder: Path) -> list[Process]:
    """What the tasks of a run took, by Nextflow's trace and the tasks' own records."""
    with open(folder / "results" / "pipeline_info" / "trace.txt", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    found: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    for row in rows:
        name = row["name"].split(" ")[0].split(":")[-1]
        found.setdefault(name, []).append((seconds(row["realtime"]), record(Path(row["workdir"]))))
    return [
        Process(
            name,
            len(tasks),
            sum(wall for wall, _ in tasks),
            sum(record.get("wall_seconds", 0.0) for _, record in tasks),
            sum(record.get("cpu_seconds", 0.0) for _, record in tasks),
            max(record.get("peak_memory_bytes", 0) for _, record in tasks),
        )
        for name, tasks in found.items()
    ]


def record(folder: Path) -> dict[str, Any]:
    """The record that a task wrote in its folder."""
    for path in folder.glob("*/*.json"):
        if not path.is_symlink() and not path.parent.is_symlink():
            value = json.loads(path.read_text())
            if isinstance(value, dict) and "cpu_seconds" in value:
                return value
    return {}


def seconds(text: str) -> float:
    """Nextflow's ``1h 2m 3.4s`` or ``56ms``."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    total = 0.0
    for part in text.split():
        unit = part.lstrip("0123456789.")
        total += float(part.removesuffix(unit)) * units[unit] if unit in units else 0.0
    return total


def process_rows(found: Sequence[Process]) -> list[list[Any]]:
    return [
        [p.name, p.tasks, f"{p.wall:.1f}", f"{p.script_wall:.1f}", f"{p.cpu:.1f}", f"{p.memory / 1e6:.0f}"]
        for p in found
    ]


PROCESS_HEADER = ("process", "tasks", "wall s of the tasks", "of their scripts' work", "its CPU s", "peak MB")


def phantom_volume(folder: Path, shape: Sequence[int], name: str) -> Path:
    """A uint16 TIFF (z, y, x) put together from the demo's phantoms, with nnU-Net's spacing file beside it."""
    import tifffile

    folder.mkdir(parents=True, exist_ok=True)
    volume = np.empty(tuple(shape), np.uint16)
    counts = [-(-n // m) for n, m in zip(shape, PHANTOM, strict=True)]
    for seed, at in enumerate(np.ndindex(*counts), start=1):
        made = folder.parent / "phantoms" / f"{seed}.ome.tif"
        if not made.exists():
            command = [SCRIPTS / "make_demo.py", "--out", made.parent, "--name", str(seed), "--seed", str(seed)]
            run(command, log=made.parent / "log")
        box = tuple(slice(i * m, min((i + 1) * m, n)) for i, m, n in zip(at, PHANTOM, shape, strict=True))
        volume[box] = tifffile.imread(made)[tuple(slice(0, s.stop - s.start) for s in box)]
    tifffile.imwrite(folder / f"{name}_0000.tif", volume)
    (folder / f"{name}.json").write_text(json.dumps({"spacing": SPACING}))
    return folder / f"{name}_0000.tif"
