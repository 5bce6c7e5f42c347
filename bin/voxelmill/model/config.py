"""What a packed model says about itself, and the closed lists of names that it may use.

Names in a model's files are text from a stranger: they are compared with these lists and never looked up in Python's
modules, so no name can make the program import or call anything else.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from voxelmill.errors import BadDataError, ModelMismatchError, RefusedError

MILLIMETRE_READERS = frozenset({"SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"})
UNITLESS_READERS = frozenset({"Tiff3DIO", "NaturalImage2DIO"})
READERS = MILLIMETRE_READERS | UNITLESS_READERS
SPACING_UNITS = frozenset({"mm", "um", "none"})

NORMALIZATIONS = frozenset(
    {
        "ZScoreNormalization",
        "CTNormalization",
        "NoNormalization",
        "RescaleTo01Normalization",
        "RGBTo01Normalization",
    }
)
RESAMPLINGS = frozenset(
    {
        "resample_data_or_seg_to_shape",
        "resample_torch_simple",
        "resample_torch_fornnunet",
        "no_resampling_hack",
    }
)

_ARCHITECTURES = "dynamic_network_architectures.architectures"
NETWORKS = {
    f"{_ARCHITECTURES}.unet.PlainConvUNet": "PlainConvUNet",
    f"{_ARCHITECTURES}.unet.ResidualEncoderUNet": "ResidualEncoderUNet",
    f"{_ARCHITECTURES}.unet.ResidualUNet": "ResidualUNet",
    f"{_ARCHITECTURES}.residual_unet.ResidualEncoderUNet": "ResidualEncoderUNet",
    f"{_ARCHITECTURES}.residual_unet.ResidualUNet": "ResidualUNet",
}


def _torch_names(module: str, *classes: str) -> dict[str, str]:
    """Both spellings that plans use for a class of ``torch.nn`` -> its name in ``torch.nn``."""
    return {f"{prefix}.{name}": name for name in classes for prefix in ("torch.nn", f"torch.nn.modules.{module}")}


_BLOCKS = "dynamic_network_architectures.building_blocks.residual"
LAYERS: dict[str, dict[str, str]] = {
    "conv_op": _torch_names("conv", "Conv2d", "Conv3d"),
    "norm_op": _torch_names("instancenorm", "InstanceNorm2d", "InstanceNorm3d")
    | _torch_names("batchnorm", "BatchNorm2d", "BatchNorm3d"),
    "dropout_op": _torch_names("dropout", "Dropout2d", "Dropout3d"),
    "nonlin": _torch_names(
        "activation", "LeakyReLU", "ReLU", "PReLU", "ELU", "SELU", "GELU", "SiLU", "Mish", "Softplus", "Hardswish"
    ),
    "block": {f"{_BLOCKS}.BasicBlockD": "BasicBlockD", f"{_BLOCKS}.BottleneckD": "BottleneckD"},
}

_SHARED_ARGUMENTS = {
    "n_stages", "features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage_decoder", "conv_bias",
    "norm_op_kwargs", "dropout_op_kwargs", "nonlin_kwargs", "conv_op", "norm_op", "dropout_op", "nonlin",
}  # fmt: skip
_RESIDUAL_ARGUMENTS = _SHARED_ARGUMENTS | {"n_blocks_per_stage", "block", "bottleneck_channels", "stem_channels"}
NETWORK_ARGUMENTS = {
    "PlainConvUNet": frozenset(_SHARED_ARGUMENTS | {"n_conv_per_stage", "nonlin_first"}),
    "ResidualEncoderUNet": frozenset(_RESIDUAL_ARGUMENTS),
    "ResidualUNet": frozenset(_RESIDUAL_ARGUMENTS),
}
LARGEST_ARGUMENT = 65536
"""Upper bound for every number of an architecture; no network is larger, and a hostile one cannot ask for more."""
DEPTH_ARGUMENTS = frozenset({"n_stages", "n_conv_per_stage", "n_blocks_per_stage", "n_conv_per_stage_decoder"})
LARGEST_DEPTH = 64
"""Upper bound for the arguments that count layers."""


@dataclass(frozen=True)
class ModelConfig:
    """Everything of a model but its weights: ``model.json`` of a package.

    "Network order" is the axis order after ``transpose_forward``; two entries for a 2d configuration.

    Attributes
    ----------
    configuration, trainer, dataset_name : str
        nnU-Net's names.
    patch_size : tuple of int
        Input window of the network in voxels, network order.
    spacing : tuple of float
        Voxel size that the network expects, network order, in ``spacing_unit``.
    spacing_unit : str
        ``mm``, ``um`` or ``none`` (no resampling: every image takes the model's spacing).
    transpose_forward : tuple of int
        Axis of the image (as the reader gives it) behind each axis of the network; always three entries.
    normalization : tuple of str
        Class name per channel.
    intensity_properties : dict
        Channel index as text -> statistics of the training foreground.
    resampling_data, resampling_probabilities : dict
        ``{"name": function, "kwargs": {...}}``.
    channel_names : tuple of str
        In the order of the network's input channels.
    labels : dict
        Name -> label value, or list of values for a region.
    regions_class_order : tuple of int or None
        Value that each region writes, in order; None for a model with plain labels.
    heads : int
        Output channels of the network.
    foreground_values : tuple of int
        Label values other than background that a segmentation can hold, ascending.
    ignore_label : int or None
        Training label that never occurs in a segmentation.
    mirror_axes : tuple of int
        Spatial axes in network order, 0-based, that test-time mirroring may flip.
    architecture : dict
        ``{"class": dotted name, "kwargs": {...}, "imports": [kwargs that name a class]}``.
    reader : str
        nnU-Net's reader class; it fixes the orientation of the image.
    folds : tuple of str
        Names of the packed folds: ``"0"``, ..., ``"all"``.
    fingerprint : dict or None
        nnU-Net's dataset fingerprint.
    licence : str or None
        Licence named in ``dataset.json``.
    """

    configuration: str
    trainer: str
    dataset_name: str
    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    spacing_unit: str
    transpose_forward: tuple[int, ...]
    normalization: tuple[str, ...]
    intensity_properties: dict[str, dict[str, float | None]]
    resampling_data: dict[str, Any]
    resampling_probabilities: dict[str, Any]
    channel_names: tuple[str, ...]
    labels: dict[str, int | list[int]]
    regions_class_order: tuple[int, ...] | None
    heads: int
    foreground_values: tuple[int, ...]
    ignore_label: int | None
    mirror_axes: tuple[int, ...]
    architecture: dict[str, Any]
    reader: str
    folds: tuple[str, ...]
    fingerprint: dict[str, Any] | None = None
    licence: str | None = None

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return len(self.patch_size)

    @property
    def channels(self) -> int:
        return len(self.channel_names)

    @property
    def has_regions(self) -> bool:
        return self.regions_class_order is not None

    def to_dict(self) -> dict[str, Any]:
        """Value for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], file: str = "model.json") -> ModelConfig:
        """Inverse of :meth:`to_dict`, checked like a stranger's.

        Raises
        ------
        BadDataError
            A field is missing, unknown or of the wrong kind.
        RefusedError, ModelMismatchError
            See :func:`check_config`.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(value, Mapping) or set(value) != names:
            found = sorted(set(value) ^ names) if isinstance(value, Mapping) else type(value).__name__
            raise BadDataError(f"fields missing or unknown: {found}", file=file, remedy="pack the model again")
        entries: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in value.items()}
        config = cls(**entries)
        try:
            check_config(config, file)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise BadDataError(f"a field is of the wrong kind: {error}", file=file, remedy="pack it again") from error
        return config


def agree_members(configs: Sequence[ModelConfig]) -> None:
    """Raise unless models can be averaged: the same channels, classes and regions; grid and spacing may differ.

    Raises
    ------
    ModelMismatchError
        What two models call their channels or labels differs.
    """
    for number, other in enumerate(configs[1:], start=2):
        for what, names in (("channels", list_channels), ("labels", list_labels)):
            if names(configs[0]) != names(other):
                raise ModelMismatchError(
                    f"the {what} of model {number} are {names(other)}",
                    file=other.dataset_name,
                    expected=f"those of the first model: {names(configs[0])}",
                    remedy="average models that were trained on the same labels and channels only",
                )


def list_channels(config: ModelConfig) -> str:
    return ", ".join(config.channel_names)


def list_labels(config: ModelConfig) -> str:
    """Names and values as one text: of regions in the order of the network's outputs, with what each writes."""
    used = {name: value for name, value in config.labels.items() if name != "ignore"}
    if config.regions_class_order is None:
        values = {name: value[0] if isinstance(value, list) else value for name, value in used.items()}
        return ", ".join(f"{name} {value}" for name, value in sorted(values.items(), key=lambda item: item[1]))
    return f"{', '.join(f'{name} {value}' for name, value in used.items())}; written {config.regions_class_order}"


def check_config(config: ModelConfig, file: str) -> None:
    """Compare every name of a model with the closed lists, and its numbers with each other.

    Parameters
    ----------
    config : ModelConfig
    file : str
        Where the text came from, for the message.

    Raises
    ------
    RefusedError
        A class or function that is not on its list.
    BadDataError
        A number is impossible.
    """
    check_name("image reader", config.reader, READERS, file)
    check_name("spacing unit", config.spacing_unit, SPACING_UNITS, file)
    for name in config.normalization:
        check_name("normalisation", name, NORMALIZATIONS, file)
    for resampling in (config.resampling_data, config.resampling_probabilities):
        check_name("resampling function", resampling["name"], RESAMPLINGS, file)
        check_plain("resampling options", resampling["kwargs"], file)
    check_architecture(config.architecture, config.dimensions, file)
    size = config.dimensions
    axes = tuple(range(3))
    check = [
        ("patch_size", size in (2, 3) and all(is_whole(n, 1, LARGEST_ARGUMENT) for n in config.patch_size)),
        ("spacing", len(config.spacing) == size and all(is_length(s) for s in config.spacing)),
        ("transpose_forward", tuple(sorted(config.transpose_forward)) == axes),
        ("normalization_schemes", len(config.normalization) == config.channels >= 1),
        ("mirror axes", set(config.mirror_axes) <= set(range(size))),
        ("labels", is_whole(config.heads, 1, LARGEST_ARGUMENT)),
        ("folds", len(config.folds) >= 1 and all(is_fold(name) for name in config.folds)),
    ]
    for name, good in check:
        if not good:
            raise BadDataError(f"{name} is impossible for a {size}d network", file=file)


def check_name(kind: str, name: object, allowed: Collection[str], file: str) -> None:
    """Raise RefusedError unless ``name`` is one of ``allowed``."""
    if not isinstance(name, str) or name not in allowed:
        raise RefusedError(
            f"unknown {kind} {shorten(name)}",
            file=file,
            expected=f"one of {', '.join(sorted(allowed))}",
            remedy="nothing of this model was run; ask its author for a model with nnU-Net's own classes",
        )


def check_plain(kind: str, options: object, file: str) -> None:
    """Raise RefusedError unless ``options`` maps names to numbers, short words, None or lists of numbers."""
    if not isinstance(options, dict) or not all(
        isinstance(key, str) and (is_plain(value) or isinstance(value, str)) for key, value in options.items()
    ):
        raise RefusedError(f"{kind} hold more than numbers: {shorten(options)}", file=file)


def check_architecture(architecture: object, dimensions: int, file: str) -> None:
    """Raise unless a network can be built from known classes and plain numbers.

    Raises
    ------
    RefusedError
        Unknown class, unknown argument, or a value that is not a number.
    ModelMismatchError
        Layers for another number of axes than the patch has.
    """
    if not isinstance(architecture, dict) or set(architecture) != {"class", "kwargs", "imports"}:
        raise BadDataError("the architecture block is incomplete", file=file, expected="class, kwargs and imports")
    check_name("network class", architecture["class"], NETWORKS, file)
    kwargs, imports = architecture["kwargs"], architecture["imports"]
    if not isinstance(kwargs, dict) or not isinstance(imports, list | tuple):
        raise BadDataError("the architecture block is malformed", file=file)
    network = NETWORKS[architecture["class"]]
    for name in [*kwargs, *imports]:
        check_name(f"argument of {network}", name, NETWORK_ARGUMENTS[network], file)
    for name, value in kwargs.items():
        if name in LAYERS:
            if value is not None or name == "conv_op":
                check_name(f"class for {name}", value, LAYERS[name], file)
                named = LAYERS[name][value]
                if named[-2:] in ("2d", "3d") and named[-2:] != f"{dimensions}d":
                    raise ModelMismatchError(f"{named} in a network with a {dimensions}d patch", file=file)
        elif name.endswith("_kwargs"):
            if value is not None:
                check_plain(f"options in {name}", value, file)
        elif not is_plain(value, LARGEST_DEPTH if name in DEPTH_ARGUMENTS else LARGEST_ARGUMENT):
            raise RefusedError(f"argument {name} of {network} is no sane number: {shorten(value)}", file=file)
    for name in imports:
        if name not in LAYERS:
            raise RefusedError(f"argument {name} of {network} asks to import {shorten(kwargs.get(name))}", file=file)


def is_plain(value: object, largest: int = LARGEST_ARGUMENT) -> bool:
    """None, a truth value, a number of sane size, or (nested) lists of such."""
    if isinstance(value, list | tuple):
        return len(value) <= 64 and all(is_plain(entry, largest) for entry in value)
    if isinstance(value, bool) or value is None:
        return True
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) <= largest


def is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_length(value: object) -> bool:
    """A positive finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def is_fold(name: object) -> bool:
    """``all`` or a number of at most three digits, as text."""
    return isinstance(name, str) and (name == "all" or (name.isascii() and name.isdigit() and len(name) <= 3))


def shorten(value: object) -> str:
    """A stranger's text for one line of a message: printable, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def heads_and_values(
    labels: Mapping[str, int | list[int]], regions_class_order: Collection[int] | None
) -> tuple[int, tuple[int, ...]]:
    """Output channels of the network and the values that a segmentation can hold, by nnU-Net's rules.

    Returns
    -------
    heads : int
        With regions the number of foreground regions, else the number of labels with background.
    foreground_values : tuple of int
        Ascending, without background.
    """
    used = {name: value for name, value in labels.items() if name != "ignore"}
    if regions_class_order is not None:
        regions = [value for value in used.values() if (set(value) if isinstance(value, list) else {value}) != {0}]
        return len(regions), tuple(sorted(set(regions_class_order) - {0}))
    values = {entry for value in used.values() for entry in (value if isinstance(value, list) else [value])}
    return len(values), tuple(range(1, len(values)))


def resolve_spacing_unit(reader: str, spacing: Collection[float], wanted: str) -> tuple[str, str | None]:
    """Unit of the plan's spacing; nnU-Net's plans carry none.

    Parameters
    ----------
    reader : str
        nnU-Net's reader class. Readers of medical formats give millimetres.
    spacing : collection of float
        The plan's spacing.
    wanted : str
        ``um``, ``mm``, ``none``, or ``auto``: decide from the reader.

    Returns
    -------
    unit : str
    warning : str or None

    Raises
    ------
    ModelMismatchError
        Nobody can know the unit.
    """
    if wanted != "auto":
        return wanted, None
    if reader in MILLIMETRE_READERS:
        return "mm", None
    if all(length == 1 for length in spacing):
        return "none", (
            f"the model was trained through {reader} with spacing 1 on every axis: no image is resampled for it; "
            "pass --model_spacing_unit um or mm if the 1 is a length"
        )
    raise ModelMismatchError(
        f"the model's spacing {list(spacing)} has no unit: {reader} reads plain numbers",
        expected="a unit for the model's spacing",
        remedy="pass --model_spacing_unit um (or mm, or none to use every image as it is)",
    )
