#!/usr/bin/env python3
"""Connected components of a mask: libraries on the whole array in memory, and this pipeline's steps out of core."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from measure import ROOT, apart, machine, table

SHARD = 256
RADIUS, STEPS = 3, 82
SIGMA = 2.25
MASKS = {"tubes": 0.02, "blobs": 0.2}
WHOLE = ("cc3d", "cc3d and statistics", "scipy.ndimage.label")
OURS = ("ours, 1 block", "ours, 8 blocks", "ours, 8 blocks and image")
DASK = "dask-image, chunks of 128"
COMPONENTS = (62_500, 250_000, 1_000_000)


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default="work/labelling", show_default=True)
@click.option("--sides", default="256 384 512", show_default=True, help="Sides of the cubes.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--core", default=0, show_default=True, help="Core that all runs are pinned to; -1 for none.")
@click.option("--dask-python", default=None, help="Python that can import dask_image, numpy and click.")
@click.option("--worker", default=None, hidden=True)
def main(folder: Path, sides: str, rounds: int, core: int, dask_python: str | None, worker: str | None) -> None:
    """Print speed, CPU seconds and peak memory of every method on tubes (2 %) and blobs (20 %), then LINK_OBJECTS."""
    if worker:
        print(json.dumps(measured(**json.loads(worker))))
        return
    folder.mkdir(parents=True, exist_ok=True)
    if core >= 0:
        os.sched_setaffinity(0, {core})
    names = ("connected-components-3d", "scipy")
    print(machine() + "".join(f", {name} {importlib.metadata.version(name)}" for name in names), flush=True)
    for mask in MASKS:
        rows, seconds = [], {}
        for side in map(int, sides.split()):
            for method in (*WHOLE, *OURS, *([DASK] if dask_python and side == 256 else [])):
                python = dask_python if method == DASK else sys.executable
                facts = child(python, folder=str(folder), method=method, mask=mask, side=side, rounds=rounds)
                print(json.dumps({"mask": mask, "side": side, "method": method, **facts}), flush=True)
                seconds.setdefault(method, []).append((side**3, facts["cpu"]))
                rows.append(row_of(side, method, facts))
        print(f"\n{mask}, {MASKS[mask]:.0%} of the voxels\n")
        header = (
            "side",
            "method",
            "Mvoxel/s",
            "CPU s",
            "Mvoxel per CPU s",
            "objects",
            "bytes/voxel",
            "ids of cc3d",
            "load",
        )
        print(table(header, rows))
        print("\n" + "; ".join(f"{name}: voxels^{exponent(of):.2f}" for name, of in seconds.items() if len(of) > 2))
        if not dask_python:
            print("dask-image: not run, no --dask-python")
        print(flush=True)
    for joined in (False, True):
        rows, seconds = [], {"wall": [], "cpu": []}
        for count in COMPONENTS:
            facts = child(sys.executable, folder=str(folder), method="link", joined=joined, count=count, rounds=rounds)
            for name, of in seconds.items():
                of.append((facts["components"], facts[name]))
            rows.append(
                [f"{facts[k]:,}" for k in ("components", "objects")]
                + [f"{facts['wall']:.2f}", f"{facts['cpu']:.2f}", f"{facts['bytes'] / facts['components']:.0f}"]
                + [f"{facts['load']:.1f}"]
            )
        print(f"\nLINK_OBJECTS, {'rods through 16 shards' if joined else 'single voxels'}, no image\n")
        print(table(("components of shards", "objects", "s", "CPU s", "bytes per component", "load"), rows))
        print("\n" + ", ".join(f"{name} s: components^{exponent(of):.2f}" for name, of in seconds.items()), flush=True)


def child(python: str, **job: Any) -> dict[str, Any]:
    """Measure in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [python, __file__, "--worker", json.dumps(job)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(out.splitlines()[-1])


def row_of(side: int, method: str, facts: dict[str, Any]) -> list[str]:
    million = side**3 / 1e6
    same = {True: "yes", False: "NO", None: ""}[facts["same"]]
    return [
        f"{side}³",
        method,
        f"{million / facts['wall']:.0f}" if million / facts["wall"] >= 10 else f"{million / facts['wall']:.1f}",
        f"{facts['cpu']:.2f}",
        f"{million / facts['cpu']:.0f}" if million / facts["cpu"] >= 10 else f"{million / facts['cpu']:.1f}",
        f"{facts['objects']:,}",
        f"{facts['bytes'] / side**3:.1f}",
        same,
        f"{facts['load']:.1f}",
    ]


def exponent(points: list[tuple[int, float]]) -> float:
    """Slope of log seconds over log size, by least squares."""
    size, seconds = np.log(np.array(points, dtype=float)).T
    return float(np.polyfit(size, seconds, 1)[0])


def measured(folder: str, method: str, rounds: int, **of: Any) -> dict[str, Any]:
    """Best of some rounds of one method -> wall and CPU seconds, bytes at the peak above what was there before."""
    load = os.getloadavg()[0]
    work = Path(folder) / "run"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if method == "link":
        with_tests()
        run, answer = link_only(work, **of)
    elif method in OURS:
        with_tests()
        run, answer = out_of_core(work, mask_of(Path(folder), **of), OURS.index(method))
    else:
        run, answer = in_memory(method, np.load(mask_of(Path(folder), **of)))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("VmRSS")
    results = []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        results.append((time.perf_counter() - wall, time.process_time() - cpu))
    peak = status("VmHWM") - before
    wall, cpu = (min(values) for values in zip(*results, strict=True))
    found = {"wall": wall, "cpu": cpu, "bytes": peak, "load": load, **answer()}
    shutil.rmtree(work)
    return found


def status(name: str) -> int:
    """Bytes that the kernel counts for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def mask_of(folder: Path, mask: str, side: int) -> Path:
    """File of a mask, uint8; made once, in a process of its own."""
    path = folder / f"{mask}.{side}.npy"
    if not path.exists():
        apart(make_mask, path, mask, side)
    return path


def make_mask(path: Path, mask: str, side: int) -> None:
    """Curved tubes of radius 3, or smoothed noise above a threshold."""
    rng = np.random.default_rng(0)
    if mask == "blobs":
        from scipy.ndimage import gaussian_filter

        smooth = gaussian_filter(rng.normal(size=(side,) * 3).astype(np.float32), SIGMA)
        voxels = (smooth > np.quantile(smooth[::3, ::3, ::3], 1 - MASKS[mask])).astype(np.uint8)
    else:
        voxels = np.zeros((side,) * 3, np.uint8)
        ball = np.argwhere(np.linalg.norm(np.indices((2 * RADIUS + 1,) * 3) - RADIUS, axis=0) <= RADIUS) - RADIUS
        for _ in range(round(MASKS[mask] * side**3 / (math.pi * RADIUS**2 * STEPS))):
            at, direction = rng.uniform(0, side, 3), rng.normal(size=3)
            for _ in range(STEPS):
                direction += 0.1 * rng.normal(size=3)
                at = at + direction / np.linalg.norm(direction)
                voxel = ball + np.round(at).astype(int)
                voxel = voxel[((voxel >= 0) & (voxel < side)).all(axis=1)]
                voxels[tuple(voxel.T)] = 1
    np.save(path, voxels)


def in_memory(method: str, mask: np.ndarray) -> tuple[Callable[[], Any], Callable[[], dict[str, Any]]]:
    """A library on the whole array."""
    kept: dict[str, Any] = {}
    if method == DASK:
        import dask.array as da
        from dask_image.ndmeasure import label

        def run() -> None:
            labels, count = label(da.from_array(mask, chunks=128), np.ones((3, 3, 3)))
            labels.compute(scheduler="single-threaded")
            kept["objects"] = int(count.compute(scheduler="single-threaded"))
    elif method == "scipy.ndimage.label":
        from scipy.ndimage import label

        def run() -> None:
            kept["objects"] = int(label(mask, np.ones((3, 3, 3)))[1])
    else:
        import cc3d

        def run() -> None:
            labels, kept["objects"] = cc3d.connected_components(mask, connectivity=26, return_N=True)
            if method == "cc3d and statistics":
                cc3d.statistics(labels)

    return run, lambda: {"objects": kept["objects"], "same": None}


def with_tests() -> None:
    """The library, and the driver that its tests use."""
    sys.path[:0] = [str(ROOT / "bin"), str(ROOT / "tests" / "python")]


def out_of_core(work: Path, mask: Path, variant: int) -> tuple[Callable[[], Any], Callable[[], dict[str, Any]]]:
    """Blocks on disk -> instances and table on disk."""
    channels = int(variant == 2)
    apart(prepare, work, mask, 1 if variant == 0 else 2, channels)
    import pyarrow.parquet  # noqa: F401 (what is imported later would count as memory of the steps)
    import scipy.sparse.csgraph  # noqa: F401
    import zarr

    from assembled import BY_CLASS, KEEP_ALL
    from voxelmill.grid import LabelGrid
    from voxelmill.image import ArrayLocation, ImageInfo, StoredImage, slices
    from voxelmill.objects.components import label_block
    from voxelmill.objects.link import link_sample
    from voxelmill.objects.relabel import relabel_block

    grid = LabelGrid.load(work / "s.grid.json")
    image = None
    if channels:
        fields = dict.fromkeys(ImageInfo.__dataclass_fields__)
        image = StoredImage(work / "image.zarr", ImageInfo(**{**fields, "array": ArrayLocation("0", "zyx", (0,))}))
    objects: dict[str, int] = {}

    def run() -> None:
        for block in grid.reached:
            out = work / f"s.b{block}.components"
            label_block(grid, block, work / grid.block_name(block), BY_CLASS, out, image and image.read, channels)
        summary, _ = link_sample(grid, work, BY_CLASS, KEEP_ALL, channels, work)
        for block in grid.reached:
            out = work / f"s.b{block}.instances.zarr"
            lut = work / f"s.b{block}.lut"
            relabel_block(grid, block, work / grid.block_name(block), lut, BY_CLASS, summary["dtype"], out)
        objects["objects"] = summary["objects"]

    def answer() -> dict[str, Any]:
        import cc3d

        expected = cc3d.connected_components(np.load(mask), connectivity=26)
        same = True
        for block in grid.reached:
            here = slices(grid.block_box(block))
            found = zarr.open_array(str(work / f"s.b{block}.instances.zarr"), path="0", mode="r")[here]
            same = same and np.array_equal(found, expected[here])
        return {**objects, "same": same}

    return run, answer


def prepare(work: Path, mask: Path, blocks: int, channels: int) -> None:
    """Blocks as STITCH_BLOCKS writes them; the image is uint16 noise in a store as IMPORT_IMAGE writes it."""
    with_tests()
    from assembled import make_grid, write_blocks
    from voxelmill.store import create_array

    labels = np.load(mask, mmap_mode="r")
    grid = make_grid(labels, shard=SHARD, blocks=blocks)
    if labels.shape[0] <= SHARD and blocks > 1:
        grid = make_grid(labels, shard=labels.shape[0] // 2, blocks=blocks)
    grid.save(work / "s.grid.json")
    write_blocks(grid, labels, work)
    if channels:
        store = create_array(work / "image.zarr" / "0", labels.shape, "uint16", grid.shard, "zyx")
        rng = np.random.default_rng(0)
        for z in range(0, labels.shape[0], grid.shard[0]):
            slab = labels[z : z + grid.shard[0]]
            store[z : z + len(slab)] = (slab * 300.0 + rng.normal(1000, 100, slab.shape)).astype(np.uint16)


def link_only(work: Path, joined: bool, count: int) -> tuple[Callable[[], Any], Callable[[], dict[str, Any]]]:
    """LINK_OBJECTS of so many components of shards: single voxels, or pieces of rods that cross 16 shards."""
    apart(prepare_link, work, joined, count)
    import pyarrow.parquet  # noqa: F401
    import scipy.sparse.csgraph  # noqa: F401

    from assembled import BY_CLASS, KEEP_ALL
    from voxelmill.grid import LabelGrid
    from voxelmill.objects.components import row_type
    from voxelmill.objects.link import Parts, link_sample

    grid = LabelGrid.load(work / "s.grid.json")
    objects = {"components": Parts(grid, work, BY_CLASS, "components", row_type(0, grid, BY_CLASS)).components}

    def run() -> None:
        objects["objects"] = link_sample(grid, work, BY_CLASS, KEEP_ALL, 0, work)[0]["objects"]

    return run, lambda: objects


def prepare_link(work: Path, joined: bool, count: int) -> None:
    with_tests()
    from assembled import BY_CLASS, label_all, make_grid, write_blocks

    if joined:
        side = 2 * round(math.sqrt(count / 16))
        labels = np.zeros((side, side, 256), np.uint8)
        labels[::2, ::2] = 1
    else:
        labels = np.zeros((2 * round(count ** (1 / 3)),) * 3, np.uint8)
        labels[::2, ::2, ::2] = 1
    grid = make_grid(labels, shard=(64, 64, 16) if joined else 64, blocks=2)
    grid.save(work / "s.grid.json")
    write_blocks(grid, labels, work)
    label_all(grid, work, BY_CLASS)


if __name__ == "__main__":
    main()
