#!/usr/bin/env python3
"""A million touching particles in one generated volume, from given core and border labels to tables and report.

The volume has 8 voxels a side for every particle, so that a million are 800 x 800 x 800 voxels. What comes out is
compared with what was drawn: the number of objects, every volume, and every voxel.
"""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
from measure import ROOT, Use, apart, machine, table
from pipeline import PROCESS_HEADER, nextflow, process_rows, processes

SAMPLE = "particles"
LIMIT = 2_000_000_000
UNITS = {"B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30}
OPTIONS = {"border_core": ("--core_label", "1", "--border_label", "2"), "components": ("--components_of", "foreground")}
RESULTS = (f"{SAMPLE}/{SAMPLE}.*", "objects.csv", "report*", "outputs.json")


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default="work/million", show_default=True)
@click.option("--count", default=1_000_000, show_default=True, help="Particles.")
@click.option("--instances", default="border_core", show_default=True, help="One or several methods, with spaces.")
@click.option("--touching", default=0.1, show_default=True, help="Share of neighbours that touch, along every axis.")
@click.option("--keep", is_flag=True, help="Leave inputs, work folder and results.")
@click.option("--rule", "rules", multiple=True, help="Parameter of the pipeline, as NAME=VALUE.")
def main(folder: Path, count: int, instances: str, touching: float, keep: bool, rules: tuple[str, ...]) -> None:
    """Print time, memory and sizes of a run per method, and whether its objects are those that were drawn."""
    folder = folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(machine(), flush=True)
    print(apart(write_volume, folder, count, touching), flush=True)
    options = [part for rule in rules for part in (f"--{rule.partition('=')[0]}", rule.partition("=")[2])]
    if not any(rule.startswith("memory_budget=") for rule in rules):
        options += ["--memory_budget", "2 GB"]
    for method in instances.split():
        here = folder / method
        given = ["--instances", method] if method != "components" else []
        use = nextflow(here, "--input", folder / "samples.csv", *given, *OPTIONS.get(method, ()), *options)
        report(method, use, here)
        print(apart(check, here / "results", method, count, touching), flush=True)
        if not keep:
            shutil.rmtree(here)
    if not keep:
        shutil.rmtree(folder)


def report(method: str, use: Use, folder: Path) -> None:
    """Print what the run took, its processes, and the sizes of its results."""
    print(
        f"\n{method}: {use.wall:.0f} s wall, {use.cpu:.0f} s CPU, largest process {use.largest / 1e9:.2f} GB, ", end=""
    )
    print(f"tree PSS {use.tree / 1e9:.2f} GB, load {use.load:.1f} at the start\n")
    found, sampled = processes(folder), trace_peaks(folder)
    rows = [
        [*row, f"{sampled[process.name] / 1e6:.0f}"] for row, process in zip(process_rows(found), found, strict=True)
    ]
    print(table([*PROCESS_HEADER, "peak of the trace MB"], rows))
    most = {p.name: max(p.memory, sampled[p.name]) for p in found}
    above = {name: peak for name, peak in most.items() if peak > LIMIT}
    print(
        f"\ntasks above {LIMIT / 1e9:.0f} GB: {', '.join(above) or 'none'}; most: {max(most.values()) / 1e9:.2f} GB\n"
    )
    print(table(("result", "MB"), sizes(folder / "results")), flush=True)


def trace_peaks(folder: Path) -> dict[str, int]:
    """Process -> bytes that Nextflow saw at most in one of its tasks, all processes of the task together."""
    peaks: dict[str, int] = {}
    with open(folder / "results" / "pipeline_info" / "trace.txt", newline="") as handle:
        for row in csv.DictReader(handle, delimiter="\t"):
            name = row["name"].split(" ")[0].split(":")[-1]
            value, _, unit = row["peak_rss"].partition(" ")
            peaks[name] = max(peaks.get(name, 0), round(float(value) * UNITS[unit]) if unit in UNITS else 0)
    return peaks


def sizes(results: Path) -> list[list[str]]:
    """Names and megabytes of the published files; a folder counts as one."""
    found = {path for pattern in RESULTS for path in results.glob(pattern)} | {results / SAMPLE / "labels.ome.zarr"}
    rows = []
    for path in sorted(path for path in found if path.exists()):
        files = path.rglob("*") if path.is_dir() else [path]
        size = sum(file.stat().st_size for file in files if file.is_file())
        rows.append([str(path.relative_to(results)), f"{size / 1e6:.1f}"])
    return rows


def drawn(count: int, touching: float) -> Any:
    sys.path.insert(0, str(ROOT / "bin"))
    from voxelmill.phantom import particles

    return particles(count, touching=(touching,) * 3)


def write_volume(folder: Path, count: int, touching: float) -> str:
    """Write labels and image as TIFF, layer by layer, and the samplesheet; returns what they hold."""
    import tifffile

    volume = drawn(count, touching)

    def planes(name: str) -> Any:
        for layer in range(volume.cells[0]):
            labels, _ = volume.band(layer)
            yield from labels if name == "labels" else volume.grey(labels, layer)

    for name in ("image", "labels"):
        path = folder / f"{name}.tif"
        tifffile.imwrite(path, planes(name), shape=volume.shape, dtype=np.uint8, bigtiff=True, metadata={"axes": "ZYX"})
    row = f"{SAMPLE},{folder / 'image.tif'},{folder / 'labels.tif'},1,um"
    (folder / "samples.csv").write_text(f"sample,image,semantic,spacing,unit\n{row}\n")
    shape = " x ".join(map(str, volume.shape))
    voxels = int(volume.volumes().sum())
    return f"{count:,} particles of {voxels:,} voxels in {volume.components():,} components; {shape} voxels"


def check(results: Path, method: str, count: int, touching: float) -> str:
    """Compare the table and the labels with what was drawn, layer by layer."""
    import pyarrow.parquet as pq
    import zarr

    volume = drawn(count, touching)
    volumes = volume.volumes()
    objects = pq.read_table(results / SAMPLE / f"{SAMPLE}.objects.parquet", columns=["id", "voxels"])
    found = objects["voxels"].to_numpy()
    told = [f"{len(found):,} objects of {found.sum():,} voxels"]
    if method == "components":
        told.append(f"drawn: {volume.components():,} components of {volumes.sum():,}")
        right = (len(found), int(found.sum())) == (volume.components(), int(volumes.sum()))
        return f"{'RIGHT' if right else 'WRONG'}: {'; '.join(told)}"
    store = zarr.open_array(str(results / SAMPLE / "labels.ome.zarr" / "instances"), path="0", mode="r")
    id_of = np.zeros(count + 1, np.int64)
    for layer in range(volume.cells[0]):
        truth = volume.band(layer)[1]
        id_of[truth] = store[layer * volume.cell : (layer + 1) * volume.cell]
    unlike = 0
    for layer in range(volume.cells[0]):
        truth = volume.band(layer)[1]
        unlike += int((id_of[truth] != store[layer * volume.cell : (layer + 1) * volume.cell]).sum())
    ids = objects["id"].to_numpy()
    one_each = id_of[0] == 0 and np.array_equal(np.sort(id_of[1:]), np.arange(1, count + 1))
    same = one_each and np.array_equal(ids, np.arange(1, count + 1)) and np.array_equal(found[id_of[1:] - 1], volumes)
    told.append(f"drawn: {count:,} of {volumes.sum():,}; every volume {'as drawn' if same else 'NOT as drawn'}")
    told.append(f"{unlike:,} voxels unlike the drawn ones")
    return f"{'RIGHT' if same and not unlike else 'WRONG'}: {'; '.join(told)}"


if __name__ == "__main__":
    main()
