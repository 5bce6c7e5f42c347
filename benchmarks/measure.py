"""Time and memory of a process and of all that it starts."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "bin"
SECONDS_BETWEEN_SAMPLES = 1.0
KEPT_BY_ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": "2000000000", "MALLOC_MMAP_THRESHOLD_": "2000000000"}


@dataclass(frozen=True)
class Use:
    """What a command took.

    Attributes
    ----------
    wall, cpu : float
        Seconds; CPU of the process and of all descendants that were waited for.
    largest : int
        Bytes: the kernel's peak of the largest single process.
    tree : int
        Bytes: the largest sampled sum over all processes, shared pages counted once (PSS); 0 unless asked for.
    load : float
        Load average of one minute at the start.
    """

    wall: float
    cpu: float
    largest: int
    tree: int
    load: float


def run(
    command: Sequence[str | Path],
    *,
    log: Path,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: str = "",
    tree: bool = False,
) -> Use:
    """Run a command to its end and measure it.

    The kernel lets a child's peak begin at that of its parent, so the caller must be small: see `apart`.

    Raises
    ------
    subprocess.CalledProcessError
        Where it fails; ``log`` has what it printed.
    """
    load, start = os.getloadavg()[0], time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    given = log.with_suffix(".stdin")
    given.write_text(stdin)
    with open(log, "w") as out, open(given) as text:
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=text,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        sampler = TreeSampler(process.pid)
        if tree:
            sampler.start()
        _, status, used = os.wait4(process.pid, 0)
        sampler.done.set()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args, output=f"see {log}")
    cpu = used.ru_utime + used.ru_stime
    return Use(time.monotonic() - start, cpu, used.ru_maxrss * 1024, sampler.peak, load)


class TreeSampler(threading.Thread):
    """Samples the memory of a process and its descendants; short peaks can be missed."""

    def __init__(self, root: int):
        super().__init__(daemon=True)
        self.root, self.peak, self.done = root, 0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(SECONDS_BETWEEN_SAMPLES):
            self.peak = max(self.peak, sum(map(proportional_bytes, [self.root, *descendants(self.root)])))


def descendants(root: int) -> list[int]:
    return [process for child in children(root) for process in (child, *descendants(child))]


def children(process: int) -> list[int]:
    found: list[int] = []
    # A process may end at any moment, and so may a thread of it.
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{process}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, thread.read_text().split())
    return found


def proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def apart(function: Any, *args: Any) -> Any:
    """Call a function in a process of its own, so that this one stays small."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def machine() -> str:
    """One line about the processor and the versions that matter."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), platform.machine())
    names = ("torch", "numpy", "zarr", "zarrs", "nnunetv2")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return f"{os.cpu_count()} cores of {model}; Python {platform.python_version()}, {versions}"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
