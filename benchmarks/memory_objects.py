#!/usr/bin/env python3
"""Peak memory of the processes behind the prediction, over given labels of growing size, through Nextflow."""

from __future__ import annotations

import shutil
from pathlib import Path

import click
import numpy as np
from measure import apart, machine, table
from pipeline import Process, nextflow, processes

BASE = 128


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default="work/memory_objects", show_default=True)
@click.option("--sides", default="256 512 768", show_default=True)
@click.option("--rule", "rules", multiple=True, help="Parameter of the pipeline, as NAME=VALUE.")
def main(folder: Path, sides: str, rules: tuple[str, ...]) -> None:
    """Print one row per process: peak in MB for every volume, slope in bytes per voxel, CPU seconds of the largest."""
    folder.mkdir(parents=True, exist_ok=True)
    print(machine(), flush=True)
    done: dict[int, list[Process]] = {}
    options = [part for rule in rules for part in (f"--{rule.partition('=')[0]}", rule.partition("=")[2])]
    for side in map(int, sides.split()):
        here = (folder / str(side)).resolve()
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir(parents=True)
        apart(write_volume, here, side)
        use = nextflow(here / "run", "--input", here / "samples.csv", *options)
        done[side] = processes(here / "run")
        print(f"{side}: {use.wall:.0f} s wall, load {use.load:.1f}", flush=True)
        shutil.rmtree(here)
    print(slopes(done))


def write_volume(folder: Path, side: int) -> None:
    """Noise, and labels of wavy tubes that go through the whole volume most of them cut into pieces."""
    import tifffile

    rng = np.random.default_rng(0)
    cube = rng.integers(100, 4000, (BASE,) * 3, dtype=np.uint16)
    along = np.arange(side)
    offset = np.round(6 * np.sin(along / 17)).astype(int)

    def plane(z: int) -> np.ndarray:
        return np.tile(cube[z % BASE], (-(-side // BASE),) * 2)[:side, :side]

    def labels(z: int) -> np.ndarray:
        y, x = np.ogrid[:side, :side]
        bent = (x - offset[y]) % 40
        inside = (bent - 20) ** 2 + ((z % 40) - 20) ** 2 <= 9
        # gaps make objects of 60 voxels' length, but for every eighth tube
        gap = ((y + 13 * (x // 40)) % 70 < 8) & ((x // 40) % 8 != 0)
        return (inside & ~gap).astype(np.uint8)

    for name, make, kind in (("image", plane, np.uint16), ("labels", labels, np.uint8)):
        planes = (make(z) for z in range(side))
        path = folder / f"{name}.tif"
        tifffile.imwrite(path, planes, shape=(side,) * 3, dtype=kind, bigtiff=True, metadata={"axes": "ZYX"})
    row = f"s,{folder / 'image.tif'},{folder / 'labels.tif'},1,um"
    (folder / "samples.csv").write_text(f"sample,image,semantic,spacing,unit\n{row}\n")


def slopes(done: dict[int, list[Process]]) -> str:
    """One row per process; its largest task counts."""
    voxels = [side**3 for side in done]
    rows = []
    for name in [process.name for process in next(iter(done.values()))]:
        found = [next(process for process in run if process.name == name) for run in done.values()]
        peaks = [process.memory for process in found]
        slope = np.polyfit(voxels, peaks, 1)[0] if len(voxels) > 1 else float("nan")
        rows.append([name, *(f"{peak / 1e6:.0f}" for peak in peaks), f"{slope:.4f}", f"{found[-1].cpu:.0f}"])
    heads = [f"{n / 1e6:.0f} Mvoxel" for n in voxels]
    return table(["process", *heads, "bytes per voxel", "CPU s of the largest"], rows)


if __name__ == "__main__":
    main()
