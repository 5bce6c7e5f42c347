"""Real nnU-Net v2 result folders with small random networks, as ``nnUNetv2_train`` would leave them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import LabelManager

UNET = "dynamic_network_architectures.architectures.unet"
IMPORTS = ["conv_op", "norm_op", "dropout_op", "nonlin"]
HEAD_GAIN = 5.0
"""Factor on the weights of every output layer. A network with He-initialised weights and zero biases gives logits near
zero with one head ahead almost everywhere; scaled heads with the mean over the heads removed cross each other, so that
all classes occur in noise and logits are as large as a trained network's."""

DATA_RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
PROBABILITY_RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}


def default_strides(patch_size: Sequence[int], stages: int) -> list[list[int]]:
    """Stride 1, then 2 wherever the patch can still be halved to at least four voxels."""
    size = list(patch_size)
    strides = [[1] * len(size)]
    for _ in range(stages - 1):
        step = [2 if n % 2 == 0 and n >= 8 else 1 for n in size]
        size = [n // s for n, s in zip(size, step, strict=True)]
        strides.append(step)
    return strides


def architecture(
    patch_size: Sequence[int],
    features: Sequence[int],
    strides: Sequence[Sequence[int]] | None,
    arch: str,
) -> dict[str, Any]:
    """``architecture`` block of a configuration in plans.json."""
    dimensions, stages = len(patch_size), len(features)
    depth = "n_conv_per_stage" if arch == "PlainConvUNet" else "n_blocks_per_stage"
    return {
        "network_class_name": f"{UNET}.{arch}",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(features),
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": [[3] * dimensions] * stages,
            "strides": [list(s) for s in strides or default_strides(patch_size, stages)],
            depth: [1] * stages,
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": list(IMPORTS),
    }


def random_network(block: Mapping[str, Any], channels: int, heads: int, seed: int) -> torch.nn.Module:
    """nnU-Net's network for a block of plans.json with seeded weights and :data:`HEAD_GAIN` on its output layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = get_network_from_plans(
            block["network_class_name"],
            block["arch_kwargs"],
            block["_kw_requires_import"],
            channels,
            heads,
            deep_supervision=True,
        )
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if ".norm.weight" in name:
                    # Residual blocks start as the identity (weight 0): let them take part.
                    parameter.uniform_(0.5, 1.5)
                elif ".norm.bias" in name:
                    parameter.uniform_(-0.3, 0.3)
                elif "seg_layers" in name and name.endswith("weight"):
                    if heads > 1:
                        parameter.sub_(parameter.mean(dim=0, keepdim=True))
                    parameter.mul_(HEAD_GAIN)
                elif "seg_layers" in name:
                    parameter.zero_()
    return network


def intensity_properties(channels: int) -> dict[str, dict[str, float]]:
    """Foreground statistics of an 8-bit image."""
    numbers = {
        "max": 250.0, "mean": 110.0, "median": 105.0, "min": 1.0,
        "percentile_00_5": 12.0, "percentile_99_5": 230.0, "std": 42.0,
    }  # fmt: skip
    return {str(channel): dict(numbers) for channel in range(channels)}


def checkpoint(
    network: torch.nn.Module,
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    *,
    trainer: str,
    configuration: str,
    fold: str,
    mirror_axes: Sequence[int] | None,
) -> dict[str, Any]:
    """What ``nnUNetTrainer.save_checkpoint`` writes, NumPy scalars in the log included."""
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, weight_decay=3e-5, nesterov=True)
    return {
        "network_weights": network.state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "grad_scaler_state": None,
        "logging": {
            "mean_fg_dice": [np.float64(0.61)],
            "ema_fg_dice": [np.float64(0.61)],
            "dice_per_class_or_region": [[np.float64(0.6), np.float32(0.62)]],
            "train_losses": [np.float32(-0.4)],
            "val_losses": [np.float32(-0.35)],
            "lrs": [0.01],
            "epoch_start_timestamps": [1700000000.0],
            "epoch_end_timestamps": [1700000100.0],
        },
        "_best_ema": np.float64(0.61),
        "current_epoch": 1,
        "init_args": {
            "plans": dict(plans),
            "configuration": configuration,
            "fold": fold if fold == "all" else int(fold),
            "dataset_json": dict(dataset),
            "device": torch.device("cpu"),
        },
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": None if mirror_axes is None else tuple(mirror_axes),
    }


def make_model_folder(
    path: Path,
    *,
    patch_size: Sequence[int],
    configuration: str = "3d_fullres",
    spacing: Sequence[float] | None = None,
    channels: int = 1,
    labels: Mapping[str, int | Sequence[int]] | None = None,
    regions_class_order: Sequence[int] | None = None,
    transpose_forward: Sequence[int] = (0, 1, 2),
    normalization: Sequence[str] = ("ZScoreNormalization",),
    resampling_data: str = "resample_data_or_seg_to_shape",
    resampling_data_kwargs: Mapping[str, Any] | None = None,
    resampling_probabilities: str = "resample_data_or_seg_to_shape",
    resampling_probabilities_kwargs: Mapping[str, Any] | None = None,
    folds: Sequence[str] = ("0",),
    mirror_axes: Sequence[int] | None = (0, 1, 2),
    features: Sequence[int] = (4, 8, 16),
    strides: Sequence[Sequence[int]] | None = None,
    reader: str = "SimpleITKIO",
    seed: int = 0,
    trainer: str = "nnUNetTrainer",
    arch: str = "PlainConvUNet",
    plans_changes: Mapping[str, Any] | None = None,
    configuration_changes: Mapping[str, Any] | None = None,
    checkpoint_changes: Mapping[str, Any] | None = None,
) -> Path:
    """Write a result folder that ``nnUNetPredictor.initialize_from_trained_model_folder`` loads.

    Parameters
    ----------
    path : Path
        Folder to write: plans.json, dataset.json, dataset_fingerprint.json, fold_<f>/checkpoint_final.pth.
    patch_size, spacing : sequence
        Network order; two entries for ``2d``. The spacing is 1 on every axis unless given.
    labels : mapping
        Name -> value, or list of values for a region. Default: background 0, core 1, border 2.
    normalization : sequence of str
        One per channel; a single name serves all channels.
    strides : sequence, optional
        One per entry of ``features``; default: 2 on every axis that can be halved.
    seed : int
        Weights of the first fold; the next folds take the next seeds.
    plans_changes, configuration_changes, checkpoint_changes : mapping, optional
        Entries to put over those of plans.json, of the configuration, of every checkpoint.

    Returns
    -------
    Path
        ``path``.
    """
    path = Path(path)
    labels = dict(labels or {"background": 0, "core": 1, "border": 2})
    spacing = [1.0] * len(patch_size) if spacing is None else [float(length) for length in spacing]
    if mirror_axes is not None:
        mirror_axes = tuple(axis for axis in mirror_axes if axis < len(patch_size))
    names = list(normalization) * (channels if len(normalization) == 1 else 1)
    dataset: dict[str, Any] = {
        "channel_names": {str(channel): f"channel{channel}" for channel in range(channels)},
        "labels": labels,
        "numTraining": 3,
        "file_ending": ".tif" if reader == "Tiff3DIO" else ".png" if reader == "NaturalImage2DIO" else ".nii.gz",
    }
    if regions_class_order is not None:
        dataset["regions_class_order"] = list(regions_class_order)
    settings = {
        "data_identifier": f"nnUNetPlans_{configuration}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch_size),
        "median_image_size_in_voxels": [float(2 * n) for n in patch_size],
        "spacing": spacing,
        "normalization_schemes": names,
        "use_mask_for_norm": [False] * channels,
        "resampling_fn_data": resampling_data,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": dict(
            DATA_RESAMPLING if resampling_data_kwargs is None else resampling_data_kwargs
        ),
        "resampling_fn_seg_kwargs": {**DATA_RESAMPLING, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": resampling_probabilities,
        "resampling_fn_probabilities_kwargs": dict(
            PROBABILITY_RESAMPLING if resampling_probabilities_kwargs is None else resampling_probabilities_kwargs
        ),
        "architecture": architecture(patch_size, features, strides, arch),
        "batch_dice": False,
    }
    built = {**settings["architecture"], "arch_kwargs": dict(settings["architecture"]["arch_kwargs"])}
    if trainer == "nnUNetTrainerBN":
        built["arch_kwargs"]["norm_op"] = f"torch.nn.modules.batchnorm.BatchNorm{len(patch_size)}d"
    plans = {
        "dataset_name": "Dataset900_Random",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": ([1.0] * 3 + spacing)[-3:],
        "original_median_shape_after_transp": ([1] * 3 + list(patch_size))[-3:],
        "image_reader_writer": reader,
        "transpose_forward": list(transpose_forward),
        "transpose_backward": [list(transpose_forward).index(axis) for axis in range(3)],
        "configurations": {configuration: {**settings, **(configuration_changes or {})}},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": intensity_properties(channels),
        **(plans_changes or {}),
    }
    fingerprint = {
        "foreground_intensity_properties_per_channel": intensity_properties(channels),
        "median_relative_size_after_cropping": 1.0,
        "shapes_after_crop": [([1] * 3 + list(patch_size))[-3:]],
        "spacings": [([1.0] * 3 + spacing)[-3:]],
    }
    path.mkdir(parents=True, exist_ok=True)
    for name, value in (("plans", plans), ("dataset", dataset), ("dataset_fingerprint", fingerprint)):
        (path / f"{name}.json").write_text(json.dumps(value, indent=4))
    heads = LabelManager(dataset["labels"], dataset.get("regions_class_order")).num_segmentation_heads
    for position, fold in enumerate(folds):
        network = random_network(built, channels, heads, seed + position)
        state = checkpoint(
            network,
            plans,
            dataset,
            trainer=trainer,
            configuration=configuration,
            fold=fold,
            mirror_axes=mirror_axes,
        )
        (path / f"fold_{fold}").mkdir()
        torch.save({**state, **(checkpoint_changes or {})}, path / f"fold_{fold}" / "checkpoint_final.pth")
    return path
