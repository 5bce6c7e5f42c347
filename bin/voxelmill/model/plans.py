"""nnU-Net's ``plans.json`` and ``dataset.json``, read as plain data -> ModelConfig."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from voxelmill.errors import BadDataError, ModelMismatchError, RefusedError
from voxelmill.model.config import ModelConfig, check_config, heads_and_values, resolve_spacing_unit, shorten

PLANS = "plans.json"
DATASET = "dataset.json"

DEFAULT_NETWORK_TRAINERS = frozenset({
    "nnUNetTrainer", "nnUNetTrainerAdam", "nnUNetTrainerAdam1en3", "nnUNetTrainerAdam3en4", "nnUNetTrainerAdan",
    "nnUNetTrainerAdan1en1", "nnUNetTrainerAdan1en3", "nnUNetTrainerAdan3en4", "nnUNetTrainerAdanCosAnneal",
    "nnUNetTrainerBenchmark_5epochs", "nnUNetTrainerBenchmark_5epochs_noDataLoading", "nnUNetTrainerCELoss",
    "nnUNetTrainerCELoss_5epochs", "nnUNetTrainerCosAnneal", "nnUNetTrainerDA5", "nnUNetTrainerDA5Segord0",
    "nnUNetTrainerDA5_10epochs", "nnUNetTrainerDA5ord0", "nnUNetTrainerDiceCELoss_noSmooth",
    "nnUNetTrainerDiceLoss", "nnUNetTrainerDiceTopK10Loss", "nnUNetTrainerNoDA", "nnUNetTrainerNoDeepSupervision",
    "nnUNetTrainerNoMirroring", "nnUNetTrainerTopk10Loss", "nnUNetTrainerTopk10LossLS01",
    "nnUNetTrainerVanillaAdam", "nnUNetTrainerVanillaAdam1en3", "nnUNetTrainerVanillaAdam3en4",
    "nnUNetTrainer_100epochs", "nnUNetTrainer_10epochs", "nnUNetTrainer_1epoch", "nnUNetTrainer_2000epochs",
    "nnUNetTrainer_2000epochs_NoMirroring", "nnUNetTrainer_20epochs", "nnUNetTrainer_250epochs",
    "nnUNetTrainer_250epochs_NoMirroring", "nnUNetTrainer_4000epochs", "nnUNetTrainer_4000epochs_NoMirroring",
    "nnUNetTrainer_500epochs", "nnUNetTrainer_50epochs", "nnUNetTrainer_5epochs", "nnUNetTrainer_750epochs",
    "nnUNetTrainer_8000epochs", "nnUNetTrainer_8000epochs_NoMirroring", "nnUNetTrainer_DASegOrd0",
    "nnUNetTrainer_DASegOrd0_NoMirroring", "nnUNetTrainer_noDummy2DDA", "nnUNetTrainer_onlyMirror01",
    "nnUNetTrainer_onlyMirror01_1500ep", "nnUNetTrainer_onlyMirror01_DA5", "nnUNetTrainer_onlyMirror01_DASegOrd0",
    "nnUNetTrainer_probabilisticOversampling", "nnUNetTrainer_probabilisticOversampling_010",
    "nnUNetTrainer_probabilisticOversampling_033", "nnUNetTrainer_warmup", "nnUNet_Trainer_BS8",
})  # fmt: skip
"""nnU-Net's own trainers whose network is the one that the plans describe."""

BATCH_NORM_TRAINER = "nnUNetTrainerBN"
"""Takes the plans' network with batch norm in place of the plans' norm."""

OTHER_NETWORK_TRAINERS = frozenset({
    "AbstractPrimus", "nnUNet_PrimusV2B_Trainer", "nnUNet_PrimusV2L_Trainer", "nnUNet_PrimusV2M_Trainer",
    "nnUNet_PrimusV2S_Trainer", "nnUNet_PrimusV3B_Trainer", "nnUNet_PrimusV3L_Trainer", "nnUNet_PrimusV3M_Trainer",
    "nnUNet_PrimusV3S_Trainer", "nnUNet_Primus_B_Trainer", "nnUNet_Primus_L_Trainer", "nnUNet_Primus_M_Trainer",
    "nnUNet_Primus_M_Trainer_BS8", "nnUNet_Primus_M_Trainer_BS8_2e4", "nnUNet_Primus_S_Trainer", "_Primus_B_96_BS1",
    "_Primus_L_48_BS1", "_Primus_M_96_BS1", "_Primus_S_96_BS1",
})  # fmt: skip
"""nnU-Net's own trainers that build a network of their own, whatever the plans say."""


def config_from_plans(
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    *,
    configuration: str,
    trainer: str,
    mirror_axes: Sequence[int] | None,
    folds: Sequence[str],
    spacing_unit: str = "auto",
    fingerprint: Mapping[str, Any] | None = None,
    trusted: bool = False,
    digest: Callable[[], str] | None = None,
) -> tuple[ModelConfig, list[str]]:
    """Configuration of a trained model.

    Parameters
    ----------
    plans, dataset : mapping
        Contents of ``plans.json`` and ``dataset.json``.
    configuration, trainer, mirror_axes
        From the checkpoint: nnU-Net's names and ``inference_allowed_mirroring_axes``.
    folds : sequence of str
    spacing_unit : str
        ``um``, ``mm``, ``none`` or ``auto``.
    fingerprint : mapping, optional
        Contents of ``dataset_fingerprint.json``.
    trusted : bool
        The user vouches for the model: a trainer that nobody knows is taken to use the network of the plans.
    digest : callable, optional
        Gives what the user would have to name to vouch for the model. Called for a refusal only: it reads every
        checkpoint.

    Returns
    -------
    config : ModelConfig
    warnings : list of str

    Raises
    ------
    RefusedError
        A class, function or trainer that is not on the closed lists.
    ModelMismatchError
        A kind of model that Voxelmill does not run (cascade, normalisation inside a mask, own network).
    BadDataError
        The files are incomplete or contradict themselves.
    """
    warnings = check_trainer(trainer, trusted, digest)
    try:
        settings = resolve_configuration(plans, configuration)
        refuse_unsupported(plans, settings, configuration)
        labels, regions, ignore = read_labels(dataset)
        heads, values = heads_and_values(labels, regions)
        architecture = read_architecture(settings)
        if trainer == BATCH_NORM_TRAINER:
            norm = f"torch.nn.modules.batchnorm.BatchNorm{len(settings['patch_size'])}d"
            architecture["kwargs"] |= {"norm_op": norm, "norm_op_kwargs": {"eps": 1e-5, "affine": True}}
        reader = plans["image_reader_writer"]
        spacing = tuple(float(length) for length in settings["spacing"])
        properties = plans.get("foreground_intensity_properties_per_channel") or plans.get(
            "foreground_intensity_properties_by_modality"
        )
        config = ModelConfig(
            configuration=configuration,
            trainer=trainer,
            dataset_name=str(plans["dataset_name"]),
            patch_size=tuple(settings["patch_size"]),
            spacing=spacing,
            spacing_unit="none",
            transpose_forward=tuple(plans["transpose_forward"]),
            normalization=tuple(settings["normalization_schemes"]),
            intensity_properties=finite_only(properties or {}),
            resampling_data=resampling_of(settings, "resampling_fn_data"),
            resampling_probabilities=resampling_of(settings, "resampling_fn_probabilities"),
            channel_names=channels_of(dataset),
            labels=labels,
            regions_class_order=regions,
            heads=heads,
            foreground_values=values,
            ignore_label=ignore,
            mirror_axes=tuple(mirror_axes or ()),
            architecture=architecture,
            reader=reader,
            folds=tuple(folds),
            fingerprint=None if fingerprint is None else finite_only(fingerprint),
            licence=licence_of(dataset),
        )
        check_config(config, PLANS)
        check_intensities(config)
        unit, warning = resolve_spacing_unit(reader, spacing, spacing_unit)
    except KeyError as error:
        raise BadDataError(f"{PLANS} or {DATASET} lacks the entry {error}", file=PLANS) from error
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise BadDataError(f"an entry of {PLANS} or {DATASET} is of the wrong kind: {error}", file=PLANS) from error
    return ModelConfig(**{**vars(config), "spacing_unit": unit}), warnings + ([warning] if warning else [])


def check_trainer(trainer: str, trusted: bool, digest: Callable[[], str] | None) -> list[str]:
    """Raise unless the trainer's network is the one of the plans, or one that can be derived from them.

    Returns
    -------
    list of str
        A warning where only the user's word says so.
    """
    if trainer in OTHER_NETWORK_TRAINERS:
        raise ModelMismatchError(
            f"trainer {trainer} builds its own network",
            expected="a trainer that uses the network of plans.json",
            remedy="predict with nnU-Net itself, or ask for support of this network",
        )
    if trainer in DEFAULT_NETWORK_TRAINERS or trainer == BATCH_NORM_TRAINER:
        return []
    if trusted:
        return [
            f"trainer {shorten(trainer)} is unknown: you vouch for the model, so its network is taken to be that of "
            "the plans; the weights fit it, but activations or norms that have no weights could differ"
        ]
    raise RefusedError(
        f"unknown trainer {shorten(trainer)}: it may build another network than plans.json says",
        expected="one of nnU-Net's own trainers",
        remedy=digest and f"if it uses the network of plans.json, vouch for the model with --trust_model {digest()}",
    )


def resolve_configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Settings of a configuration with those that it inherits."""
    configurations = plans["configurations"]
    chain: list[Mapping[str, Any]] = []
    wanted: Any = name
    while wanted is not None:
        if wanted not in configurations:
            raise ModelMismatchError(
                f"the plans have no configuration {shorten(wanted)}",
                file=PLANS,
                expected=f"one of {', '.join(sorted(configurations))}",
            )
        if len(chain) > len(configurations):
            raise BadDataError(f"configuration {shorten(name)} inherits from itself", file=PLANS)
        chain.append(configurations[wanted])
        wanted = configurations[wanted].get("inherits_from")
    settings: dict[str, Any] = {}
    for part in reversed(chain):
        settings |= part
    return settings


def refuse_unsupported(plans: Mapping[str, Any], settings: Mapping[str, Any], name: str) -> None:
    """Refuse what Voxelmill does not run.

    Raises
    ------
    ModelMismatchError
        A cascade, or normalisation inside a mask.
    RefusedError
        A preprocessor or label manager that is not nnU-Net's own.
    """
    if settings.get("previous_stage") is not None:
        raise ModelMismatchError(
            f"configuration {name} is a cascade: it needs the segmentation of {shorten(settings['previous_stage'])}",
            file=PLANS,
            expected="a model of one stage: 2d, 3d_fullres or 3d_lowres",
            remedy="pass the folder of the 3d_fullres or 3d_lowres model",
        )
    if any(settings["use_mask_for_norm"]):
        raise ModelMismatchError(
            "use_mask_for_norm is true: the model normalises inside a mask of non-zero voxels",
            file=PLANS,
            expected="normalisation over the whole image",
            remedy="predict with nnU-Net itself, or train without the mask",
        )
    for kind, found, known in (
        ("preprocessor", settings.get("preprocessor_name"), "DefaultPreprocessor"),
        ("label manager", plans.get("label_manager", "LabelManager"), "LabelManager"),
    ):
        if found != known:
            raise RefusedError(f"unknown {kind} {shorten(found)}", file=PLANS, expected=known)


def channels_of(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the channels in the order of their numbers."""
    names = dataset["modality"] if "modality" in dataset else dataset["channel_names"]
    if not isinstance(names, Mapping):
        raise TypeError("channel_names is no mapping")
    return tuple(str(names[key]) for key in sorted(names, key=int))


def read_labels(
    dataset: Mapping[str, Any],
) -> tuple[dict[str, int | list[int]], tuple[int, ...] | None, int | None]:
    """Labels, the values that regions write (None without regions) and the ignore label."""
    labels: dict[str, int | list[int]] = {
        str(name): [int(entry) for entry in value] if isinstance(value, list) else int(value)
        for name, value in dataset["labels"].items()
    }
    if labels.get("background") != 0:
        raise BadDataError("label background is not 0", file=DATASET)
    ignore = labels.get("ignore")
    if isinstance(ignore, list):
        raise BadDataError("the ignore label is a list", file=DATASET)
    used = {
        entry
        for name, value in labels.items()
        if name != "ignore"
        for entry in (value if isinstance(value, list) else [value])
    }
    if ignore is not None and ignore != max(used) + 1:
        raise BadDataError(f"the ignore label {ignore} is not the highest value plus one", file=DATASET)
    if not any(isinstance(value, list) and len(value) > 1 for value in labels.values()):
        if used != set(range(len(used))):
            raise ModelMismatchError(f"the labels are not 0, 1, 2, ...: {shorten(sorted(used))}", file=DATASET)
        return labels, None, ignore
    regions = tuple(int(value) for value in dataset.get("regions_class_order") or ())
    if len(regions) != heads_and_values(labels, regions)[0] or not all(0 <= value <= 65535 for value in regions):
        raise BadDataError(f"regions_class_order {shorten(regions)} does not match the regions", file=DATASET)
    return labels, regions, ignore


def read_architecture(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture block; plans older than nnU-Net 2.3 describe the same networks in other words."""
    if "architecture" in settings:
        block = settings["architecture"]
        return {
            "class": block["network_class_name"],
            "kwargs": dict(block["arch_kwargs"]),
            "imports": list(block["_kw_requires_import"]),
        }
    network = settings["UNet_class_name"]
    encoder = settings["n_conv_per_stage_encoder"]
    dimensions = len(settings["patch_size"])
    return {
        "class": f"dynamic_network_architectures.architectures.unet.{network}",
        "kwargs": {
            "n_stages": len(encoder),
            "features_per_stage": [
                min(settings["UNet_base_num_features"] * 2**stage, settings["unet_max_num_features"])
                for stage in range(min(len(encoder), 32))
            ],
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": settings["conv_kernel_sizes"],
            "strides": settings["pool_op_kernel_sizes"],
            "n_conv_per_stage" if network == "PlainConvUNet" else "n_blocks_per_stage": encoder,
            "n_conv_per_stage_decoder": settings["n_conv_per_stage_decoder"],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "imports": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def resampling_of(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {"name": settings[name], "kwargs": dict(settings[f"{name}_kwargs"])}


def check_intensities(config: ModelConfig) -> None:
    """CT normalisation uses training statistics: raise BadDataError where they are missing."""
    for channel, name in enumerate(config.normalization):
        known = config.intensity_properties.get(str(channel), {})
        for key in ("mean", "std", "percentile_00_5", "percentile_99_5"):
            if name == "CTNormalization" and known.get(key) is None:
                raise BadDataError(f"CTNormalization needs {key} of channel {channel}, which is missing", file=PLANS)


def finite_only(value: Any) -> Any:
    """The same JSON value with None for NaN and infinity, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): finite_only(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite_only(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def licence_of(dataset: Mapping[str, Any]) -> str | None:
    found = dataset.get("licence", dataset.get("license"))
    return found[:200] if isinstance(found, str) and found else None
