"""What every script of ``bin/`` shares: one record per task, and errors turned into exit codes."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voxelmill import __version__
from voxelmill.errors import INTERNAL, VoxelmillError, code_of
from voxelmill.files import disk_bytes, sha256_files, sha256_of_files, write_json

REPORTED_PACKAGES = (
    "torch", "numpy", "scipy", "scikit-image", "zarr", "zarrs", "tifffile", "imagecodecs", "nibabel", "safetensors",
    "dynamic_network_architectures", "matplotlib", "connected-components-3d", "numba", "pyarrow",
)  # fmt: skip
MODULES = {"scikit-image": "skimage", "connected-components-3d": "cc3d"}


SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Lines in the task's log: how many things are done, speed, time left."""

    def __init__(self, total: int, things: str):
        self.total, self.things, self.done = total, things, 0
        self.started = self.shown = time.monotonic()

    def advance(self, number: int) -> None:
        self.done += number
        now = time.monotonic()
        if now - self.shown > SECONDS_BETWEEN_LINES or self.done == self.total:
            self.shown = now
            speed = self.done / max(now - self.started, 1e-3)
            print(
                f"{self.done} of {self.total} {self.things}, {speed:.3g} {self.things}/s, "
                f"{(self.total - self.done) / speed:.0f} s left",
                file=sys.stderr,
                flush=True,
            )


@dataclass
class Task:
    """Record of one task for the report; written as ``<name>/<name>.<process>[.<part>].json``.

    ``outputs`` holds one digest per published file or folder, ``files`` digest and size of each of their files, and
    ``device`` the kind of device on which networks ran.
    """

    process: str
    name: str
    part: str | None = None
    device: str | None = None
    counts: dict[str, Any] = field(default_factory=dict)
    warnings: list[dict[str, str]] = field(default_factory=list)
    outputs: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        part = "" if self.part is None else f".{self.part}"
        return Path(self.name) / f"{self.name}.{self.process}{part}.json"

    def warn(self, text: str, *, sample: str = "") -> None:
        """Keep a warning for the report and show it in the task's log."""
        self.warnings.append({"sample": sample, "text": text})
        print(f"warning: {sample + ': ' if sample else ''}{text}", file=sys.stderr, flush=True)

    def output(self, path: Path) -> None:
        """Record an output file, or a folder with all its files."""
        digests = sha256_files(path)
        self.outputs[str(path)] = sha256_of_files(digests)
        for name, digest in digests.items():
            file = Path(path) / name
            self.files[file.as_posix()] = {"sha256": digest, "bytes": file.stat().st_size}


@contextmanager
def task(process: str, name: str, part: str | None = None) -> Iterator[Task]:
    """Run a script's work: measure it, write its record, end the process with the right exit code."""
    record = Task(process, name, part)
    start = time.monotonic()
    with exit_codes():
        yield record
        used = resource.getrusage(resource.RUSAGE_SELF)
        write_json(
            record.path,
            {
                "process": process,
                "name": name,
                "part": part,
                "voxelmill": __version__,
                "python": platform.python_version(),
                "wall_seconds": round(time.monotonic() - start, 3),
                "cpu_seconds": round(used.ru_utime + used.ru_stime, 3),
                "peak_memory_bytes": used.ru_maxrss * 1024,
                "disk_bytes": disk_bytes(Path()),
                "device": record.device,
                "counts": record.counts,
                "warnings": record.warnings,
                "outputs": record.outputs,
                "files": record.files,
                "versions": package_versions(),
            },
        )


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn an error into a message and the exit code of its kind."""
    try:
        yield
    except Exception as error:
        print(message_of(error), file=sys.stderr, flush=True)
        if os.environ.get("VOXELMILL_DEBUG"):
            traceback.print_exc()
        sys.exit(code_of(error))


def message_of(error: Exception) -> str:
    """At most twelve lines that say what happened and what to do."""
    if isinstance(error, VoxelmillError):
        return str(error)
    kind = type(error).__name__
    if code_of(error) == INTERNAL:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return (
            f"error:    internal error, {kind}: {error}\n"
            f"at:       {Path(where.filename).name}:{where.lineno}\n"
            "do:       run again with --debug and report the traceback"
        )
    return f"error:    {kind}: {error}"


def package_versions() -> dict[str, str]:
    """Versions of the reported packages that this process imported."""
    loaded = {name.split(".")[0] for name in sys.modules}
    versions = {}
    for package in REPORTED_PACKAGES:
        if MODULES.get(package, package) in loaded:
            versions[package] = importlib.metadata.version(package)
    return versions
