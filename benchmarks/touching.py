"""Objects that touch, on parts of real volumes that the models never saw: cores and borders, and watershed.

Every volume is segmented by the pipeline with the model in `assets/models` and ``--instances border_core``; the same
voxels above Otsu's threshold (after a Gaussian of one voxel) are separated with ``--instances watershed`` at several
seed distances; and all of them are evaluated with ``--workflow evaluate`` beside the true instances.

    python benchmarks/touching.py --data PATH --work FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import numpy as np
import tifffile
from measure import ROOT, machine, table
from pipeline import nextflow
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_otsu

sys.path.insert(0, str(ROOT / "training"))

from train_border_core_model import RECIPES, Volume

DISTANCES = (3, 5, 7, 9, 11)


def write_part(volume: Volume, data: Path, folder: Path) -> None:
    """The test part of a volume: image, foreground by a threshold, true instances."""
    folder.mkdir(parents=True, exist_ok=True)
    image, truth = volume.read(data, volume.test)
    smooth = gaussian_filter(image.astype(float), 1)
    mask = (smooth > threshold_otsu(smooth)).astype(np.uint8)
    for name, array in (("image", image), ("mask", mask), ("truth", truth)):
        tifffile.imwrite(folder / f"{volume.name}.{name}.tif", array)


def sheet(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path.absolute()


def result(folder: Path, sample: str) -> Path:
    return folder / "results" / sample / f"{sample}.label_instances.tif"


@click.command(help=__doc__)
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--work", required=True, type=click.Path(path_type=Path))
@click.option("--models", default="nuclei,particles", show_default=True)
@click.option("--model-folder", default=ROOT / "assets" / "models", type=click.Path(path_type=Path))
def main(data: Path, work: Path, models: str, model_folder: Path) -> None:
    print(machine())
    parts = (work / "parts").absolute()
    pairs: dict[str, Path] = {}
    for name in models.split(","):
        recipe = RECIPES[name]
        for volume in recipe.volumes:
            write_part(volume, data, parts)
        names = [volume.name for volume in recipe.volumes]
        images = sheet(work / f"{name}.csv", "sample,image", [f"{one},{parts / one}.image.tif" for one in names])
        voxels = (
            "--spacing",
            ",".join(map(str, recipe.spacing)),
            "--unit",
            "um",
            "--measure",
            "shape",
            "--export",
            "tiff",
        )
        folder = (work / f"{name}_model").absolute()
        model = ("--model", model_folder / name, "--model_spacing_unit", "um", "--instances", "border_core")
        nextflow(folder, "--input", images, *model, *voxels)
        pairs |= {f"{one}-model": result(folder, one) for one in names}
        rows = [f"{one},{parts / one}.image.tif,{parts / one}.mask.tif" for one in names]
        masks = sheet(work / f"{name}_mask.csv", "sample,image,semantic", rows)
        for distance in DISTANCES:
            folder = (work / f"{name}_{distance}").absolute()
            method = ("--instances", "watershed", "--seed_distance", str(distance))
            nextflow(folder, "--input", masks, *method, *voxels)
            pairs |= {f"{one}-watershed-{distance}": result(folder, one) for one in names}
    rows = [f"{pair},{path},{parts / pair.split('-')[0]}.truth.tif" for pair, path in pairs.items()]
    folder = (work / "evaluation").absolute()
    nextflow(folder, "--workflow", "evaluate", "--input", sheet(work / "pairs.csv", "sample,instances,truth", rows))
    shown = []
    for pair in pairs:
        scores = json.loads((folder / "results" / pair / f"{pair}.evaluation.json").read_text())["objects"]
        numbers = (scores["thresholds"][0]["f1"], scores["mean_ap"], scores["panoptic"]["pq"])
        name, _, method_name = pair.partition("-")
        counts = scores["truth"], scores["predicted"], scores["splits"], scores["merges"]
        shown.append([name, method_name.replace("-", ", seeds "), *counts, *(f"{number:.3f}" for number in numbers)])
    header = ("volume", "method", "objects", "found", "splits", "merges", "F1 at 0.5", "mean AP", "PQ")
    print(table(header, shown))


if __name__ == "__main__":
    main()
