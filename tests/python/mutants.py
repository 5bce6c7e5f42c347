"""Damaged copies of images, each opened and read to its end in a child process that is watched.

Run as a program it is the child: one job per line on standard input, one outcome per line on standard output.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 30
MEMORY = 1 << 30

FINE = ("error", "same")
"""What may happen to any damaged copy: a refusal in words, or the very image."""

Region = tuple[str, int, int]
"""File inside a folder ("" where the image is a file), first byte, byte behind the last."""


@dataclass(frozen=True)
class Image:
    """An image as its format's own library writes it.

    Attributes
    ----------
    name : str
        File or folder, with the suffix of its format.
    write : callable
        Writes it under a path.
    voxels : callable
        Path -> bytes that hold voxels; the others are the header.
    """

    name: str
    write: Callable[[Path], None]
    voxels: Callable[[Path], list[Region]]


@dataclass(frozen=True)
class Mutant:
    """One damaged copy: ``file`` is cut after ``cut`` bytes, or one of its bytes is changed by ``xor``."""

    region: str
    file: str
    cut: int | None = None
    at: int = 0
    xor: int = 0


def sizes(path: Path) -> dict[str, int]:
    """Bytes of every file of an image, by name; of a file itself under an empty name."""
    if path.is_file():
        return {"": path.stat().st_size}
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): file.stat().st_size for file in files}


def mutants(path: Path, voxels: Sequence[Region], flips: int, seed: int) -> Iterator[Mutant]:
    """Twenty truncations, ``flips`` bits of the header, a third as many bytes of the voxels; always the same ones."""
    chosen = random.Random(seed)
    lengths = sizes(path)
    names = list(lengths) if len(lengths) < 20 else chosen.sample(list(lengths), 20)
    points = [(name, i) for i in range(-(-20 // len(names))) for name in names][:20]
    per_name = -(-20 // len(names))
    for name, i in points:
        yield Mutant(
            "cut", name, cut=lengths[name] * i // per_name if i < per_name - 1 or i == 0 else lengths[name] - 1
        )
    taken = {name: np.zeros(length, bool) for name, length in lengths.items()}
    for name, start, stop in voxels:
        taken[name][start:stop] = True
    for region, wanted, count in (("header", False, flips), ("voxels", True, flips // 3)):
        places = [(name, int(at)) for name, mask in taken.items() for at in np.flatnonzero(mask == wanted)]
        for name, at in chosen.choices(places, k=count) if places else ():
            yield Mutant(
                region, name, at=at, xor=1 << chosen.randrange(8) if region == "header" else chosen.randrange(1, 256)
            )


class Child:
    """A process that handles one damaged copy after the other, and is replaced when it dies."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def outcome(self, job: dict[str, Any]) -> tuple[str, str]:
        """What happened (``error``, ``same``, ``metadata``, ``pixels``, ``crash`` or ``killed``), and more about it."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code, self.process = self.process.wait(), None
            return (
                "killed",
                f"signal {-code}: more than {SECONDS} s" if code == -signal.SIGALRM else f"exit code {code}",
            )
        kind, text = json.loads(line)
        return kind, text

    def close(self) -> None:
        if self.process is not None and self.process.stdin:
            self.process.stdin.close()
            self.process.wait()


# The child


def contents(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Every voxel (c, z, y, x) of an image, read as CHECK_INPUT and the import read it, and what it says of itself."""
    from voxelmill.check import every_box, refuse_missing_chunks
    from voxelmill.formats import open_image

    with open_image(path) as source:
        refuse_missing_chunks(source)
        affine = None if source.affine is None else source.affine.tolist()
        told = {"spacing": source.spacing, "origin": source.origin, "axes": source.axes, "affine": affine,
                "channels": source.channel_names}  # fmt: skip
        parts = [source.read(channel, box).ravel() for channel, box in every_box(source)]
        voxels = np.concatenate(parts) if parts else np.empty(0, source.dtype)
        return voxels.reshape(-1), told | {"shape": source.shape, "dtype": source.dtype.name}


def judge(path: Path, whole: tuple[np.ndarray, dict[str, Any]]) -> tuple[str, str]:
    """What becomes of a damaged copy of an image."""
    from voxelmill.errors import INTERNAL, code_of

    try:
        voxels, told = contents(path)
    except Exception as error:
        if code_of(error) not in (INTERNAL, 137, 1):
            return "error", str(error)
        return "crash", "".join(traceback.format_exception(error))
    for name in ("shape", "dtype"):
        if told[name] != whole[1][name]:
            return "pixels", f"{name} {told[name]}, not {whole[1][name]}"
    if voxels.tobytes() != whole[0].tobytes():
        return "pixels", f"{int((voxels != whole[0]).sum())} voxels differ"
    changed = [name for name, value in told.items() if str(value) != str(whole[1][name])]
    return ("metadata", ", ".join(f"{name}: {told[name]}" for name in changed)) if changed else ("same", "")


def serve() -> None:
    """Take jobs until there are no more. Memory is limited to what the first image took and `MEMORY` more."""
    known: dict[str, tuple[np.ndarray, dict[str, Any]]] = {}
    for line in sys.stdin:
        job = json.loads(line)
        original, copy, file = Path(job["original"]), Path(job["copy"]), job["file"]
        if str(original) not in known:
            resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY,) * 2)
            known.clear()
            known[str(original)] = contents(original)
            status = Path("/proc/self/status").read_text()
            limit = 1024 * int(status.split("VmData:")[1].split()[0]) + MEMORY
            resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
        if original.is_dir():
            shutil.copytree(original, copy, dirs_exist_ok=True)
        target = copy / file if file else copy
        data = bytearray((original / file if file else original).read_bytes())
        if job["cut"] is not None:
            data = data[: job["cut"]]
        else:
            data[job["at"]] ^= job["xor"]
        target.write_bytes(data)
        signal.alarm(SECONDS)
        outcome = judge(copy, known[str(original)])
        signal.alarm(0)
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    serve()
