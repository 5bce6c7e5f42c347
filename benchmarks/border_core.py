#!/usr/bin/env python3
"""Border-core labels to instances: ParticleSeg3D's function and this pipeline's on the same arrays.

The peer wants versions that nothing else here does: `uv venv --python 3.10 DIR`, then into it numpy==1.26.4
scipy==1.10.1 scikit-image==0.19.3 zarr==2.18.3 numcodecs==0.12.1 connected-components-3d==3.12.3 numpy-indexed tqdm
click setuptools wheel, and GeodisTK==0.1.7 with --no-build-isolation; its source is a checkout of
MIC-DKFZ/ParticleSeg3D. It runs serially, as it does by default; the pool of processes that it imports is a stub. Every
run is a process of its own that holds the labels in memory before the clock starts; imports, and the compilation of
loops by a first call on a small array, are not timed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from measure import ROOT, apart, machine, table

CORE, BORDER = 1, 2
RADIUS, CORE_RADIUS = 5, 3
CELL = (13, 13, 28)
"""Voxels around a pair of balls, which has at least one voxel of background on every side."""

TOUCHING = 0.3
APART = 13
NOISE = ((0.6, 0.85, 2.5), (0.7, 0.9, 1.5), (0.8, 0.93, 3.5), (0.5, 0.8, 1.2))
"""Smoothed noise, to compare results only: quantiles above which it is border and core, and sigma."""

NOISE_SHAPE = (72, 80, 96)
PEER, OURS = "ParticleSeg3D", "ours"
MB = 1e6


@click.command()
@click.argument("counts", nargs=-1, type=int)
@click.option("--folder", type=click.Path(path_type=Path), default="work/border_core", show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Each round runs both once.")
@click.option("--core", default=0, show_default=True, help="Core that all runs are pinned to; -1 for none.")
@click.option("--peer-python", default=None, help="Python of the peer's environment; without it ours runs alone.")
@click.option("--peer-source", type=click.Path(path_type=Path), default=None, help="Checkout of ParticleSeg3D.")
@click.option("--worker", default=None, hidden=True)
def main(
    counts: tuple[int, ...],
    folder: Path,
    rounds: int,
    core: int,
    peer_python: str | None,
    peer_source: Path | None,
    worker: str | None,
) -> None:
    """Print seconds, objects per second, memory and correctness for COUNTS balls (1000 5000 20000 70000)."""
    if worker:
        print(json.dumps(measured(**json.loads(worker))))
        return
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if core >= 0:
        os.sched_setaffinity(0, {core})
    print(machine(), flush=True)
    pythons = {OURS: sys.executable}
    if peer_python and peer_source:
        pythons = {PEER: peer_python, OURS: sys.executable}
    rows = []
    for count in counts or (1000, 5000, 20_000, 70_000):
        labels = folder / f"balls.{count}.npy"
        pieces = apart(draw, labels, count)
        print(f"{count} balls in {pieces} components, {facts_of(labels)}", flush=True)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in pythons}
        for _ in range(rounds):
            for name, python in pythons.items():
                out = str(result(folder, name))
                found = child(python, name=name, labels=str(labels), out=out, peer=str(peer_source))
                print(json.dumps({"balls": count, "way": name, **found}), flush=True)
                runs[name].append(found)
        voxels = np.load(labels, mmap_mode="r").size
        middle = {name: {key: median(run[key] for run in of) for key in ("wall", "cpu")} for name, of in runs.items()}
        for name, of in runs.items():
            told = apart(compare, labels, result(folder, name), result(folder, OURS))
            print(json.dumps({"balls": count, "way": name, **told}), flush=True)
            rows.append(row_of(count, voxels, name, of, middle, told))
        for path in (labels, *(result(folder, name) for name in pythons)):
            path.unlink()
    print(f"\n{table(HEADER, rows)}\n")
    rows = []
    for seed, noise in enumerate(NOISE if PEER in pythons else ()):
        labels = folder / "noise.npy"
        apart(draw_noise, labels, seed, *noise)
        returned = {}
        for name, python in pythons.items():
            found = child(python, name=name, labels=str(labels), out=str(result(folder, name)), peer=str(peer_source))
            returned[name] = found["returned"]
        for name in pythons:
            told = apart(compare, labels, result(folder, name), result(folder, OURS))
            rows.append([noise, name, returned[name], *told.values()])
    if rows:
        print(table(("noise: quantiles, sigma", "way", "count returned", *HEADER[-4:-1]), rows))


HEADER = (
    "balls", "Mvoxel", "way", "wall s, median (all)", "CPU s", "objects/s", "times faster",
    "objects per CPU s", "times less CPU", "peak memory above labels MB", "bytes/voxel",
    "count returned", "ids in the array", "foreground voxels that are 0", "voxels unlike ours", "load",
)  # fmt: skip


def row_of(
    count: int,
    voxels: int,
    name: str,
    runs: list[dict[str, Any]],
    middle: dict[str, dict[str, float]],
    told: dict[str, Any],
) -> list[str]:
    memory = max(run["bytes"] for run in runs)
    walls = ", ".join(f"{run['wall']:.2f}" for run in runs)
    own, peer = middle[name], middle.get(PEER)
    return [
        f"{count:,}",
        f"{voxels / 1e6:.1f}",
        name,
        f"{own['wall']:.2f} ({walls})",
        f"{own['cpu']:.2f}",
        f"{count / own['wall']:,.0f}",
        f"{peer['wall'] / own['wall']:.1f}" if peer else "",
        f"{count / own['cpu']:,.0f}",
        f"{peer['cpu'] / own['cpu']:.1f}" if peer else "",
        f"{memory / MB:,.0f}",
        f"{memory / voxels:.1f}",
        f"{runs[-1]['returned']:,}",
        f"{told['ids']:,}",
        f"{told['lost']:,}",
        f"{told['unlike']:,}",
        f"{runs[0]['load']:.1f}",
    ]


def result(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def facts_of(labels: Path) -> str:
    array = np.load(labels, mmap_mode="r")
    return f"{' x '.join(map(str, array.shape))} voxels, {array.size / 1e6:.1f} million"


def child(python: str, **job: Any) -> dict[str, Any]:
    """Measure in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    command = [python, __file__, "--worker", json.dumps(job)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(out.splitlines()[-1])


def measured(name: str, labels: str, out: str, peer: str) -> dict[str, Any]:
    """One run of one way -> wall and CPU seconds, bytes at the peak above what was there before, count returned."""
    load = os.getloadavg()[0]
    function = peer_function(peer) if name == PEER else our_function()
    array = np.load(labels)
    function(array[:16, :16, :32].copy())
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, wall, cpu = status("VmRSS"), time.perf_counter(), time.process_time()
    instances, count = function(array)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = status("VmHWM") - before
    np.save(out, instances)
    return {"wall": wall, "cpu": cpu, "bytes": peak, "returned": count, "load": load}


def status(name: str) -> int:
    """Bytes that the kernel counts for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def peer_function(source: str) -> Callable[[np.ndarray], tuple[np.ndarray, int]]:
    """ParticleSeg3D's function, serially and without its bar."""
    import types

    for name in ("acvl_utils", "acvl_utils.miscellaneous", "acvl_utils.miscellaneous.ptqdm"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["acvl_utils.miscellaneous.ptqdm"].ptqdm = None  # type: ignore[attr-defined]
    sys.path.insert(0, source)
    from particleseg3d.inference.border_core2instance import border_core2instance

    def function(labels: np.ndarray) -> tuple[np.ndarray, int]:
        scratch = tempfile.mkdtemp()
        instances, count = border_core2instance(labels, f"{scratch}/components.zarr", progressbar=False)
        shutil.rmtree(scratch)
        return instances, int(count)

    return function


def our_function() -> Callable[[np.ndarray], tuple[np.ndarray, int]]:
    sys.path.insert(0, str(ROOT / "bin"))
    from voxelmill.objects.separation.border_core import border_core_instances

    def function(labels: np.ndarray) -> tuple[np.ndarray, int]:
        instances = border_core_instances(labels, core=CORE, border=BORDER)
        return instances, int(instances.max(initial=0))

    return function


def draw(path: Path, count: int, seed: int = 0) -> int:
    """Write labels (uint8) of pairs of balls in cells of their own; returns the number of their components.

    Of the pairs 30 % touch: their centres are 8 to 11 voxels apart, so that the cores of none meet. Nearer ones share
    voxels.
    """
    rng = np.random.default_rng(seed)
    pairs = -(-count // 2)
    sides = np.array(CELL)
    across = max(1, round((pairs * sides.prod()) ** (1 / 3) / sides[2]))
    rows = max(1, round((pairs / across) ** 0.5))
    cells = np.array([-(-pairs // (across * rows)), rows, across])
    corners = np.stack(np.unravel_index(np.arange(pairs), cells), axis=1) * sides
    near = rng.permutation(pairs) < round(TOUCHING * pairs)
    first = corners + RADIUS + 1 + rng.integers(0, 2, (pairs, 3))
    second = corners + RADIUS + 1 + rng.integers(0, 2, (pairs, 3))
    second[:, 2] = first[:, 2] + np.where(near, rng.integers(8, 12, pairs), APART)
    # the two of a pair that touches lie in a row, or the farther of them might miss each other
    second[near, :2] = first[near, :2]
    centres = np.stack([first, second], axis=1).reshape(-1, 3)[:count]
    labels = np.zeros(cells * sides, np.uint8)
    for radius, value in ((RADIUS, BORDER), (CORE_RADIUS, CORE)):
        offsets = np.argwhere(np.linalg.norm(np.indices((2 * radius + 1,) * 3) - radius, axis=0) <= radius) - radius
        for some in np.array_split(centres, -(-len(centres) // 4096)):
            labels[tuple((some[:, None] + offsets).reshape(-1, 3).T)] = value
    np.save(path, labels)
    return count - int(near[: count // 2].sum())


def draw_noise(path: Path, seed: int, border: float, core: float, sigma: float) -> None:
    """Write labels (uint8) with cores of all sizes and shapes, some with holes, and components without a core."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.normal(size=NOISE_SHAPE), sigma)
    labels = (BORDER * (smooth > np.quantile(smooth, border))).astype(np.uint8)
    labels[(smooth > np.quantile(smooth, core)) & (rng.random(NOISE_SHAPE) > 0.02)] = CORE
    np.save(path, labels)


def compare(labels: Path, found: Path, ours: Path) -> dict[str, int]:
    """Ids in a result, foreground that it lost, and voxels where it is not the same division as ours.

    Two objects are the same where most of either's voxels are the other's; voxels of the same objects are alike.
    """
    foreground = np.load(labels, mmap_mode="r") > 0
    ids = np.load(found, mmap_mode="r")[foreground].astype(np.int64)
    expected = np.load(ours, mmap_mode="r")[foreground].astype(np.int64)
    pairs, counts = np.unique(ids * (expected.max() + 1) + expected, return_counts=True)
    pairs, counts = pairs[np.argsort(-counts, kind="stable")], np.sort(counts)[::-1]
    of_id, of_expected = np.divmod(pairs, expected.max() + 1)
    best = [np.zeros(len(pairs), bool), np.zeros(len(pairs), bool)]
    for mask, values in zip(best, (of_id, of_expected), strict=True):
        mask[np.unique(values, return_index=True)[1]] = True
    same = best[0] & best[1] & (of_id > 0)
    return {
        "ids": int(np.unique(of_id[of_id > 0]).size),
        "lost": int((ids == 0).sum()),
        "unlike": int(counts[~same].sum()),
    }


if __name__ == "__main__":
    main()
