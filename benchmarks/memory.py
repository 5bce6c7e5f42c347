#!/usr/bin/env python3
"""Peak memory of every process over volumes of growing size in tiles of one size, and bytes in the work folder."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import click
import numpy as np
from chain import Chain, packed
from measure import ROOT, Use, apart, machine, table

TILE = 256
BASE = 128


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default="work/memory", show_default=True)
@click.option("--shapes", default="512,512,512 768,768,768 768,1024,1024 1024,1024,1024", show_default=True)
@click.option("--patch", default=64, show_default=True, help="Side of the stand-in network's patch.")
@click.option("--step-size", default="0.5", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--workers", default=1, show_default=True, help="Prediction tasks at a time.")
@click.option("--task-minutes", default=30.0, show_default=True, help="As in the plan: more make fewer tasks.")
@click.option("--keep", is_flag=True, help="Keep the files of every volume.")
def main(
    folder: Path, shapes: str, patch: int, step_size: str, threads: int, workers: int, task_minutes: float, keep: bool
) -> None:
    """Print one row per process: peak in MB for every volume, and the slope in bytes per voxel."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "model", ignore_errors=True)
    apart(make_model, folder / "model", patch)
    package = packed(folder / "model", folder / "package", "um")
    print(machine(), flush=True)
    done: dict[int, dict[str, list[Use]]] = {}
    for text in shapes.split():
        shape = tuple(map(int, text.split(",")))
        here = folder / text.replace(",", "x")
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir(parents=True)
        apart(write_volume, here / "volume.tif", shape)
        start = time.monotonic()
        chain = Chain(here / "run", package, here / "volume.tif")
        options = ["--tile-size", str(TILE), "--step-size", step_size, "--mirroring", "off", "--threads", str(threads)]
        chain.split("1,1,1", "um", [*options, "--task-minutes", str(task_minutes)])
        chain.predict(workers=workers)
        chain.assemble()
        uses: dict[str, list[Use]] = {}
        for name, use in chain.uses:
            uses.setdefault(name, []).append(use)
        voxels = int(np.prod(shape))
        done[voxels] = uses
        facts = {
            "shape": shape,
            "tiles": len(chain.rows("tiles")),
            "tasks": len(uses["predict_tiles"]),
            "windows": sum(int(row["windows"]) for row in chain.rows("tiles")),
            "wall_seconds": round(time.monotonic() - start),
            "bytes_per_voxel": {name: round(n / voxels, 3) for name, n in folder_bytes(here).items()},
            "peak_mb": {name: round(max(u.largest for u in used) / 1e6) for name, used in uses.items()},
            "cpu_seconds": {name: round(sum(u.cpu for u in used)) for name, used in uses.items()},
            "load": round(uses["check_input"][0].load, 1),
        }
        print(json.dumps(facts), flush=True)
        if not keep:
            shutil.rmtree(here)
    print(slopes(done))


def make_model(path: Path, patch: int) -> None:
    """A cheap network with random weights that mixes its classes."""
    import sys

    sys.path.insert(0, str(ROOT / "tests" / "python"))
    from models import make_model_folder

    labels = {"background": 0, "one": 1}
    make_model_folder(path, patch_size=[patch] * 3, features=(2, 2), reader="Tiff3DIO", labels=labels, mirror_axes=None)


def write_volume(path: Path, shape: tuple[int, int, int]) -> None:
    """Blobs and noise, uint16, plane by plane: one cube repeated at other places, so that no window is constant."""
    import tifffile
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    blobs = gaussian_filter(rng.normal(size=(BASE,) * 3).astype(np.float32), 3, mode="wrap")
    cube = np.clip(400 + 250 * blobs / blobs.std() + rng.normal(0, 60, blobs.shape), 1, 65535).astype(np.uint16)
    copies = [-(-n // BASE) for n in shape[1:]]

    def plane(z: int) -> np.ndarray:
        turned = np.roll(cube[z % BASE], (37 * (z // BASE), 11 * (z // BASE)), (0, 1))
        return np.tile(turned, copies)[: shape[1], : shape[2]]

    planes = (plane(z) for z in range(shape[0]))
    tifffile.imwrite(path, planes, shape=shape, dtype=np.uint16, bigtiff=True, metadata={"axes": "ZYX"})


def folder_bytes(folder: Path) -> dict[str, int]:
    """Bytes of the input, the image store, the pieces and the labels; links are not followed, hard links count once."""
    sizes = {"input": 0, "store": 0, "pieces": 0, "labels": 0, "other": 0}
    seen = set()
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file() or path.stat().st_ino in seen:
            continue
        seen.add(path.stat().st_ino)
        text = str(path.relative_to(folder))
        kind = (
            "input" if text == "volume.tif"
            else "store" if ".image.zarr/" in text
            else "pieces" if text.endswith(".piece")
            else "labels" if ".zarr/" in text
            else "other"
        )  # fmt: skip
        sizes[kind] += path.stat().st_size
    return sizes


def slopes(done: dict[int, dict[str, list[Use]]]) -> str:
    """One row per process; its largest task counts."""
    voxels = list(done)
    rows = []
    for name in done[voxels[0]]:
        peaks = [max(use.largest for use in done[n][name]) for n in voxels]
        slope = np.polyfit(voxels, peaks, 1)[0] if len(voxels) > 1 else float("nan")
        rows.append([name.upper(), *(f"{peak / 1e6:.0f}" for peak in peaks), f"{slope:.4f}"])
    return table(["process", *(f"{n / 1e6:.0f} Mvoxel" for n in voxels), "bytes per voxel"], rows)


if __name__ == "__main__":
    main()
