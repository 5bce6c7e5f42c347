"""Train a small nnU-Net that tells touching objects apart, and score it on a part of the volumes that it never saw.

    python training/train_border_core_model.py particles --data PATH --out assets/models/particles

PATH holds `microct/` and `fluorescence/` (see `training/README.md`). Everything is seeded and runs on the CPU.
"""

from __future__ import annotations

import functools
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import tifffile
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter
from skimage.feature import peak_local_max
from skimage.filters import threshold_otsu
from skimage.segmentation import watershed

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bin"))

from train_demo_model import ship

from voxelmill.convert.border_core import border_core_labels
from voxelmill.objects.separation.border_core import border_core_instances

DATASET = "Dataset001_BorderCore"
CONFIGURATION = "3d_fullres"
TRAINER = "nnUNetTrainer_20epochs"
EPOCHS = 20
SEED = 1
DISTANCES = (2, 3, 4, 5, 6, 7, 8, 9, 11)
LABELS = {"background": 0, "core": 1, "border": 2}

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Volume:
    """An image with instances (z, y, x), cut along z into a part for training and a part for the test.

    The planes between the two belong to neither.
    """

    name: str
    image: str
    instances: str
    training: tuple[int, int]
    test: tuple[int, int]

    def read(self, data: Path, part: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Image and instances of a part."""
        image, instances = (tifffile.imread(data / file)[slice(*part)] for file in (self.image, self.instances))
        return image, instances


@dataclass(frozen=True)
class Recipe:
    """What a model learns from, and how.

    Attributes
    ----------
    volumes : tuple of Volume
    channel : str
    spacing : tuple of float
        Micrometres along z, y, x; ones where the model counts in voxels.
    thickness : float
        Of the border, in the unit of the spacing.
    patch : tuple of int
    batch : int
        Patches per step.
    steps : int
        Of an epoch.
    border_weight : float
        How much a voxel of the border counts in the cross-entropy. A border that comes out too thick costs a rim of the
        core, which growing gives back; one with a hole makes two objects one.
    features : tuple of int
    strides : tuple of tuple of int
        Of each stage.
    """

    volumes: tuple[Volume, ...]
    channel: str
    spacing: Spacing
    thickness: float
    patch: tuple[int, int, int]
    batch: int
    steps: int
    border_weight: float
    features: tuple[int, ...]
    strides: tuple[tuple[int, int, int], ...]


def microct(name: str, training: int, depth: int) -> Volume:
    """The first planes for training, a gap of four, the rest for the test."""
    folder = f"microct/{name}_dev_"
    return Volume(name, f"{folder}grey.tif", f"{folder}instances.tif", (0, training), (training + 4, depth))


NUCLEI = "fluorescence/ovule_nuclei_1135"
RECIPES = {
    "particles": Recipe(
        volumes=(microct("nmc", 72, 120), microct("ellipsoids", 60, 100)),
        channel="microct",
        spacing=(1.0, 1.0, 1.0),
        thickness=2.0,
        patch=(40, 40, 40),
        batch=1,
        steps=600,
        border_weight=8.0,
        features=(16, 32, 64, 96),
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
    ),
    "nuclei": Recipe(
        volumes=(Volume("ovule", f"{NUCLEI}.ome.tif", f"{NUCLEI}_instances.tif", (0, 48), (52, 100)),),
        channel="nuclei",
        spacing=(0.2837, 0.1268, 0.1268),
        thickness=0.3,
        patch=(32, 64, 64),
        batch=2,
        steps=40,
        border_weight=1.0,
        features=(8, 16, 32, 32),
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)),
    ),
}


def write_dataset(folder: Path, data: Path, recipe: Recipe) -> None:
    """The raw nnU-Net dataset: TIFF files with their spacing beside them."""
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    sidecar = json.dumps({"spacing": recipe.spacing})
    for volume in recipe.volumes:
        image, instances = volume.read(data, volume.training)
        labels = border_core_labels(instances, recipe.thickness, recipe.spacing)
        for name, array in ((f"imagesTr/{volume.name}_0000", image), (f"labelsTr/{volume.name}", labels)):
            tifffile.imwrite(folder / f"{name}.tif", array)
        for name in (f"imagesTr/{volume.name}", f"labelsTr/{volume.name}"):
            (folder / f"{name}.json").write_text(sidecar)
    description = {
        "channel_names": {"0": recipe.channel},
        "labels": LABELS,
        "numTraining": len(recipe.volumes),
        "file_ending": ".tif",
        "overwrite_image_reader_writer": "Tiff3DIO",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2))


def plan(preprocessed: Path, recipe: Recipe) -> None:
    """nnU-Net's own plan, its network made small enough for a CPU."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiments,
        preprocess_dataset,
    )

    extract_fingerprint_dataset(1, num_processes=1, check_dataset_integrity=True)
    plan_experiments([1])
    path = preprocessed / DATASET / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    configuration = plans["configurations"][CONFIGURATION]
    stages = len(recipe.features)
    configuration |= {"patch_size": recipe.patch, "batch_size": recipe.batch, "spacing": recipe.spacing}
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": recipe.features,
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": recipe.strides,
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    plans["configurations"] = {CONFIGURATION: configuration}
    path.write_text(json.dumps(plans, indent=2))
    preprocess_dataset(1, configurations=[CONFIGURATION], num_processes=[1])


def in_bfloat16(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A training step as nnU-Net takes it on a GPU, in half precision: several times as fast where the CPU has AMX."""

    def autocast(batch: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return step(batch)

    return autocast


def train(steps: int, border_weight: float, threads: int, told: Callable[[Path], None]) -> Path:
    """Run the stock trainer with `steps` steps per epoch; returns its result folder."""
    from nnunetv2.run.run_training import get_trainer_from_args

    # One process for loading and augmenting: several would deliver batches in an order that chance decides.
    os.environ |= {"nnUNet_n_proc_DA": "0"}
    torch.set_num_threads(threads)
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    trainer = get_trainer_from_args(DATASET, CONFIGURATION, "all", TRAINER, device=torch.device("cpu"))
    trainer.num_iterations_per_epoch = steps
    trainer.num_val_iterations_per_epoch = 2
    trainer.save_every = 1
    trainer.initialize()
    trainer.loss.loss.ce.weight = torch.tensor([1.0, 1.0, border_weight])
    trainer.network.register_forward_hook(lambda _network, _input, outputs: [logits.float() for logits in outputs])
    trainer.train_step = in_bfloat16(trainer.train_step)
    result = Path(trainer.output_folder_base)
    told(result)
    trainer.run_training()
    return result


def predict(model: Path, image: np.ndarray, spacing: Spacing) -> np.ndarray:
    """nnU-Net's own labels (z, y, x) of an image (z, y, x), with mirroring."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), ("all",))
    return predictor.predict_single_npy_array(image[None].astype(np.float32), {"spacing": list(spacing)})


def watershed_of(image: np.ndarray, distance: int) -> np.ndarray:
    """Objects without a model: smoothed, above Otsu's threshold, cut by a watershed from the thickest places.

    Parameters
    ----------
    image : (z, y, x) numpy.ndarray
    distance : int
        Voxels between two seeds at least.
    """
    smooth = gaussian_filter(image.astype(float), 1)
    mask = smooth > threshold_otsu(smooth)
    depth = distance_transform_edt(mask)
    seeds = np.zeros(mask.shape, np.int32)
    peaks = peak_local_max(depth, min_distance=distance, labels=mask.astype(np.uint8), exclude_border=False)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return watershed(-depth, seeds, mask=mask)


def f1(found: np.ndarray, truth: np.ndarray, limit: float = 0.5) -> float:
    """Harmonic mean of the parts of found and of true objects that have a partner, with an IoU above the limit."""
    (_, a), (_, b) = (np.unique(array, return_inverse=True) for array in (found, truth))
    shape = int(a.max()) + 1, int(b.max()) + 1
    both = np.bincount(a.ravel() * shape[1] + b.ravel(), minlength=shape[0] * shape[1]).reshape(shape)
    iou = both / (both.sum(axis=1)[:, None] + both.sum(axis=0) - both)
    return float(2 * (iou[1:, 1:] > limit).sum() / max(sum(shape) - 2, 1))


def score(model: Path, data: Path, recipe: Recipe) -> dict[str, object]:
    """F1 at IoU 0.5 on the test parts, beside the watershed with the distance that is best on the test part itself."""
    scores = {}
    for volume in recipe.volumes:
        image, truth = volume.read(data, volume.test)
        objects = border_core_instances(predict(model, image, recipe.spacing))
        ideal = border_core_instances(border_core_labels(truth, recipe.thickness, recipe.spacing))
        without = {distance: f1(watershed_of(image, distance), truth) for distance in DISTANCES}
        best = max(without, key=lambda distance: without[distance])
        scores[volume.name] = {
            "model": round(f1(objects, truth), 3),
            "watershed": round(without[best], 3),
            "distance": best,
            "objects": len(np.unique(truth[truth > 0])),
            "found": len(np.unique(objects[objects > 0])),
            "true cores and borders": round(f1(ideal, truth), 3),
        }
    return scores


def train_model(recipe: Recipe, data: Path, out: Path, steps: int, threads: int) -> None:
    """From the volumes to a result folder that holds what prediction needs."""
    with tempfile.TemporaryDirectory() as work:
        folders = {one: Path(work) / one for one in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        os.environ |= {one: str(folder) for one, folder in folders.items()} | {"nnUNet_n_proc_DA": str(threads)}
        write_dataset(folders["nnUNet_raw"] / DATASET, data, recipe)
        plan(folders["nnUNet_preprocessed"], recipe)
        told = functools.partial(print, "checkpoints in", flush=True)
        ship(train(steps, recipe.border_weight, threads, told), out)


@click.command(help=__doc__)
@click.argument("name", type=click.Choice(sorted(RECIPES)))
@click.option("--data", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--steps", type=int, help=f"Steps per epoch, instead of the recipe's; there are {EPOCHS} epochs.")
@click.option("--threads", default=1, show_default=True)
@click.option("--score-only", is_flag=True, help="Train nothing; score the model in --out.")
def main(name: str, data: Path, out: Path, steps: int | None, threads: int, score_only: bool) -> None:
    recipe = RECIPES[name]
    torch.set_num_threads(threads)
    began = time.monotonic()
    if not score_only:
        train_model(recipe, data, out, steps or recipe.steps, threads)
    seconds = round(time.monotonic() - began)
    print(json.dumps({**score(out, data, recipe), "training seconds": seconds}, indent=2))


if __name__ == "__main__":
    main()
