#!/usr/bin/env python3
"""What a run costs before there is much to compute: a hundred small images, the demo, one cube of 128 voxels."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
from measure import ROOT, Use, apart, machine, table
from pipeline import DEMO_OPTIONS, PROCESS_HEADER, nextflow, phantom_volume, process_rows, processes

RUNS = ("many", "demo", "cube")


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default="work/small", show_default=True)
@click.option("--images", default=100, show_default=True, help="Number of small images.")
@click.option("--runs", default=" ".join(RUNS), show_default=True)
def main(folder: Path, images: int, runs: str) -> None:
    """Print wall and CPU seconds of each run, and of every process in it."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    print(machine())
    for name in runs.split():
        if name == "many":
            apart(make_plane_model, folder / "model")
            apart(write_images, folder / "images", images)
            options = ("--input", folder / "images", "--model", folder / "model")
            use = nextflow(folder / name, *options, "--unit", "pixel", "--model_spacing_unit", "none")
        elif name == "demo":
            use = nextflow(folder / name, "-profile", "demo")
        else:
            image = apart(phantom_volume, folder / "cubes", (128, 128, 128), "cube")
            use = nextflow(folder / name, "--input", image, *DEMO_OPTIONS)
        report(name, use, folder / name)


def report(name: str, use: Use, folder: Path) -> None:
    print(f"\n{name}: {use.wall:.0f} s wall, {use.cpu:.0f} s CPU, largest process {use.largest / 1e9:.2f} GB, ", end="")
    print(f"tree PSS {use.tree / 1e9:.2f} GB, load {use.load:.1f} at the start\n")
    print(table(PROCESS_HEADER, process_rows(processes(folder))), flush=True)


def make_plane_model(path: Path) -> None:
    """The 2d network that nnU-Net plans for a patch of 256 x 256, with random weights."""
    import shutil
    import sys

    sys.path.insert(0, str(ROOT / "tests" / "python"))
    import torch

    from models import make_model_folder, random_network

    shutil.rmtree(path, ignore_errors=True)
    features = (32, 64, 128, 256, 512, 512, 512)
    make_model_folder(path, patch_size=[256, 256], configuration="2d", features=features, reader="Tiff3DIO")
    plans = json.loads((path / "plans.json").read_text())
    block = plans["configurations"]["2d"]["architecture"]
    stages = len(features)
    block["arch_kwargs"] |= {"n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1)}
    (path / "plans.json").write_text(json.dumps(plans))
    checkpoint = path / "fold_0" / "checkpoint_final.pth"
    state = torch.load(checkpoint, weights_only=False)
    state["network_weights"] = random_network(block, 1, 3, seed=0).state_dict()
    state["init_args"]["plans"] = plans
    state["optimizer_state"] = {}
    torch.save(state, checkpoint)


def write_images(folder: Path, number: int) -> None:
    """Noise over blobs, uint8, 256 x 256."""
    import tifffile
    from scipy.ndimage import gaussian_filter

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for n in range(number):
        blobs = gaussian_filter(rng.normal(size=(256, 256)), 4)
        values = 110 + 40 * blobs / blobs.std() + rng.normal(0, 10, blobs.shape)
        tifffile.imwrite(folder / f"image{n:03}.tif", np.clip(values, 1, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
