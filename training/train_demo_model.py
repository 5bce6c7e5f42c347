"""Train the demo's nnU-Net model on generated tubes and on hand-labelled axons, and score it on what it never saw.

    python training/train_demo_model.py --data PATH --out assets/demo_model

PATH holds `axons_lightsheet/` (see `training/README.md`). Everything is seeded and runs on the CPU.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import tifffile
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bin"))

from voxelmill.phantom import LABELS, tubes

SPACING = (3.0, 2.0, 2.0)
IGNORE = 3
DATASET = "Dataset001_DemoAxons"
CONFIGURATION = "3d_fullres"
TRAINER = "nnUNetTrainer_10epochs"
PATCH = (32, 64, 64)
FEATURES = (8, 16, 32)
BATCH = 2
SEED = 20260

GENERATED = tuple((SEED + i, (48, 128, 128), n) for i, n in enumerate((6, 9, 12, 15, 18, 22, 26, 30, 35, 40, 50, 60)))
HELD_OUT_GENERATED = tuple((SEED + 100 + i, (64, 128, 128), n) for i, n in enumerate((8, 16, 32)))

# The cubes are crops of `training_example_original.tif`; this is the slice of it where each cube begins.
CUBE_BEGINS = (4, 6, 14, 11, 35, 15, 8, 35, 5, 9)
HELD_OUT_SLICE = 77
THRESHOLD_SLICES = (17, 48)


def real_cubes(data: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """The ten cubes with their labels; those of the held-out slice are set to ignore."""
    pairs = []
    for number, begin in enumerate(CUBE_BEGINS):
        image = tifffile.imread(data / "train" / f"volume-{number}.tiff")
        labels = tifffile.imread(data / "train_ignore_labels" / f"label-{number}.tif")
        if 0 <= HELD_OUT_SLICE - begin < len(labels):
            labels[HELD_OUT_SLICE - begin] = IGNORE
        pairs.append((image, labels))
    return pairs


def write_dataset(folder: Path, data: Path) -> None:
    """The raw nnU-Net dataset: TIFF files with their spacing in micrometres beside them."""
    generated = [tubes(shape, SPACING, seed, n) for seed, shape, n in GENERATED]
    cases = {f"tubes_{i:02d}": (phantom.image, phantom.labels) for i, phantom in enumerate(generated)}
    cases |= {f"axons_{i:02d}": pair for i, pair in enumerate(real_cubes(data))}
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    sidecar = json.dumps({"spacing": SPACING})
    for name, (image, labels) in cases.items():
        tifffile.imwrite(folder / "imagesTr" / f"{name}_0000.tif", image)
        tifffile.imwrite(folder / "labelsTr" / f"{name}.tif", labels)
        (folder / "imagesTr" / f"{name}.json").write_text(sidecar)
        (folder / "labelsTr" / f"{name}.json").write_text(sidecar)
    description = {
        "channel_names": {"0": "lightsheet"},
        "labels": {**LABELS, "ignore": IGNORE},
        "numTraining": len(cases),
        "file_ending": ".tif",
        "overwrite_image_reader_writer": "Tiff3DIO",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2))


def plan(preprocessed: Path) -> None:
    """nnU-Net's own plan, its network made small enough for a demo on two CPU cores."""
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
    stages = len(FEATURES)
    configuration |= {"patch_size": PATCH, "batch_size": BATCH}
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": FEATURES,
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    plans["configurations"] = {CONFIGURATION: configuration}
    path.write_text(json.dumps(plans, indent=2))
    preprocess_dataset(1, configurations=[CONFIGURATION], num_processes=[1])


def train(iterations: int, threads: int) -> Path:
    """Run the stock trainer with `iterations` steps per epoch; returns its result folder."""
    from nnunetv2.run.run_training import get_trainer_from_args

    # One process for loading and augmenting: several would deliver batches in an order that chance decides.
    os.environ |= {"nnUNet_n_proc_DA": "0"}
    torch.set_num_threads(threads)
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    trainer = get_trainer_from_args(DATASET, CONFIGURATION, "all", TRAINER, device=torch.device("cpu"))
    trainer.num_iterations_per_epoch = iterations
    trainer.num_val_iterations_per_epoch = 4
    trainer.run_training()
    return Path(trainer.output_folder_base)


def ship(result: Path, out: Path) -> None:
    """Copy what prediction needs; the optimizer's state and the logs stay behind."""
    (out / "fold_all").mkdir(parents=True, exist_ok=True)
    for name in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
        shutil.copyfile(result / name, out / name)
    full = torch.load(result / "fold_all" / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    slim = {key: full[key] for key in ("network_weights", "trainer_name", "inference_allowed_mirroring_axes")}
    slim["init_args"] = {key: full["init_args"][key] for key in ("configuration", "fold")}
    torch.save(slim, out / "fold_all" / "checkpoint_final.pth")


def predict(model: Path, image: np.ndarray) -> np.ndarray:
    """nnU-Net's own labels (z, y, x) of an image (z, y, x) of the training data's spacing, without mirroring."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), ("all",))
    return predictor.predict_single_npy_array(image[None].astype(np.float32), {"spacing": list(SPACING)})


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    """Overlap of two masks."""
    return float(2 * (found & truth).sum() / max(found.sum() + truth.sum(), 1))


def score(model: Path, data: Path) -> dict[str, object]:
    """Dice on generated volumes and on the labelled slice that were both kept out of the training."""
    generated = [tubes(shape, SPACING, seed, n) for seed, shape, n in HELD_OUT_GENERATED]
    found = [predict(model, phantom.image) for phantom in generated]
    by_class = {
        name: [round(dice(f == value, p.labels == value), 4) for f, p in zip(found, generated, strict=True)]
        for name, value in LABELS.items()
        if value
    }
    image = tifffile.imread(data / "training_example_original.tif")
    truth = tifffile.imread(data / "training_example_label.tif")
    labels = predict(model, image)
    ratio = image / np.median(image)
    tuned = truth[list(THRESHOLD_SLICES)] == 2
    thresholds = np.arange(1.05, 2.5, 0.01)
    threshold = max(thresholds, key=lambda value: dice(ratio[list(THRESHOLD_SLICES)] > value, tuned))
    slices = {
        z: {
            "axon": round(dice(labels[z] == LABELS["axon"], truth[z] == 2), 4),
            "edge": round(dice(labels[z] == LABELS["edge"], truth[z] == 4), 4),
            "axon by threshold": round(dice(ratio[z] > threshold, truth[z] == 2), 4),
            "found": round(float((labels[z] == LABELS["axon"])[truth[z] == 2].mean()), 4),
            "right": round(float((truth[z] == 2)[labels[z] == LABELS["axon"]].mean()), 4),
        }
        for z in (*THRESHOLD_SLICES, HELD_OUT_SLICE)
    }
    return {"generated": by_class, "real slices": slices, "threshold": round(float(threshold), 2)}


@click.command(help=__doc__)
@click.option("--data", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--iterations", default=80, show_default=True, help="Steps per epoch; there are ten epochs.")
@click.option("--threads", default=1, show_default=True)
def main(data: Path, out: Path, iterations: int, threads: int) -> None:
    axons = data / "axons_lightsheet"
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        folders = {name: Path(work) / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        os.environ |= {name: str(folder) for name, folder in folders.items()} | {"nnUNet_n_proc_DA": str(threads)}
        write_dataset(folders["nnUNet_raw"] / DATASET, axons)
        plan(folders["nnUNet_preprocessed"])
        ship(train(iterations, threads), out)
    trained = time.monotonic()
    print(json.dumps({**score(out, axons), "training seconds": round(trained - began)}, indent=2))


if __name__ == "__main__":
    main()
