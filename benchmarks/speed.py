#!/usr/bin/env python3
"""The same volumes and the same trained network through nnU-Net's own command and through this pipeline, on the CPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import median

import click
import numpy as np
from measure import KEPT_BY_ALLOCATOR, Use, apart, machine, run, table
from pipeline import DEMO_MODEL, DEMO_OPTIONS, PROCESS_HEADER, nextflow, phantom_volume, process_rows, processes

NNUNET, NNUNET_KEPT, OURS = "nnU-Net", "nnU-Net, allocator keeps memory", "Voxelmill"


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default="work/speed", show_default=True)
@click.option("--shapes", default="256,256,256 256,512,512", show_default=True, help="z,y,x of every volume.")
@click.option("--rounds", default=1, show_default=True, help="Each round runs every variant once.")
def main(folder: Path, shapes: str, rounds: int) -> None:
    """Print wall and CPU seconds, memory, ratios to nnU-Net as shipped, and how many voxels differ from its labels."""
    folder = folder.resolve()
    print(machine(), flush=True)
    for text in shapes.split():
        name = text.replace(",", "x")
        here = folder / name
        image = apart(phantom_volume, here / "images", tuple(map(int, text.split(","))), "volume")
        uses: dict[str, list[Use]] = {NNUNET: [], NNUNET_KEPT: [], OURS: []}
        for number in range(rounds):
            for variant in uses:
                use = pipeline_run(here, image) if variant == OURS else nnunet_run(here, variant)
                uses[variant].append(use)
                print(json.dumps({"volume": name, "round": number, "variant": variant, **vars(use)}), flush=True)
        print(f"\n{name}, medians of {rounds} interleaved rounds\n\n{summary(here, uses)}\n", flush=True)
        print(table(PROCESS_HEADER, process_rows(processes(here / OURS))), flush=True)


def nnunet_run(here: Path, variant: str) -> Use:
    out = here / variant
    shutil.rmtree(out, ignore_errors=True)
    command = ["nnUNetv2_predict_from_modelfolder", "-i", here / "images", "-o", out, "-m", DEMO_MODEL, "-f", "all"]
    command += ["-device", "cpu", "--disable_tta", "-npp", "1", "-nps", "1", "--disable_progress_bar"]
    environment = {name: str(here / "unused") for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    environment |= KEPT_BY_ALLOCATOR if variant == NNUNET_KEPT else {}
    return run(command, log=here / f"{variant}.log", environment=environment, tree=True)


def pipeline_run(here: Path, image: Path) -> Use:
    return nextflow(here / OURS, "--input", image, *DEMO_OPTIONS)


def summary(here: Path, uses: dict[str, list[Use]]) -> str:
    """One row per variant."""
    wall = {variant: median(use.wall for use in runs) for variant, runs in uses.items()}
    cpu = {variant: median(use.cpu for use in runs) for variant, runs in uses.items()}
    rows = []
    for variant, runs in uses.items():
        different, voxels = apart(differences, here, variant)
        rows.append(
            [
                variant,
                f"{wall[variant]:.0f}",
                f"{wall[NNUNET] / wall[variant]:.2f}",
                f"{cpu[variant]:.0f}",
                f"{cpu[NNUNET] / cpu[variant]:.2f}",
                f"{max(use.largest for use in runs) / 1e9:.2f}",
                f"{max(use.tree for use in runs) / 1e9:.2f}",
                f"{different:,} of {voxels:,}",
                f"{min(use.load for use in runs):.1f} to {max(use.load for use in runs):.1f}",
            ]
        )
    header = ("variant", "wall s", "times faster", "CPU s", "times less CPU", "largest process GB", "tree PSS GB")
    return table((*header, "voxels that differ from nnU-Net", "load at the start"), rows)


def differences(here: Path, variant: str) -> tuple[int, int]:
    """Voxels whose label is not that of nnU-Net as shipped, and all voxels."""
    expected, found = labels(here, NNUNET), labels(here, variant)
    return int((expected != found).sum()), expected.size


def labels(here: Path, variant: str) -> np.ndarray:
    """Labels (z, y, x) of the last run."""
    import tifffile
    import zarr

    if variant != OURS:
        return tifffile.imread(here / variant / "volume.tif")
    (store,) = (here / OURS / "results").glob("*/labels.ome.zarr")
    return np.asarray(zarr.open_array(str(store), path="semantic/0", mode="r")[:])


if __name__ == "__main__":
    main()
