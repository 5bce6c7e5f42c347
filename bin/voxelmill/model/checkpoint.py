"""An untrusted nnU-Net model -> a package; the only place that opens a checkpoint."""

from __future__ import annotations

import hashlib
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxelmill.errors import BadDataError, DeviceAbsentError, ModelMismatchError, RefusedError
from voxelmill.files import sha256_file
from voxelmill.model.config import ModelConfig, resolve_spacing_unit, shorten
from voxelmill.model.network import build_network, encode_weights, fill_network, load_networks, read_weights
from voxelmill.model.package import (
    CARD,
    CONFIG,
    FINGERPRINT,
    POSTPROCESSING,
    PackageWriter,
    is_package,
    is_text,
    load_config,
    load_manifest,
    new_package,
    parse_json,
    verified_bytes,
    weights_name,
)
from voxelmill.model.plans import DATASET, PLANS, config_from_plans
from voxelmill.model.source import ModelFolder, choose_folds, find_model, find_postprocessing, opened_source
from voxelmill.model.steps import steps_json, steps_of_file, steps_of_package

MAX_TEXT_BYTES = 64 << 20
MAX_CARD_BYTES = 1 << 20
OLDEST_TORCH = (2, 10)
"""Earlier releases have known holes in the restricted loader."""


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a checkpoint that a package needs."""

    trainer: str
    configuration: str
    mirror_axes: tuple[int, ...] | None
    weights: dict[str, torch.Tensor]


def pack_model(
    source: Path,
    out: Path,
    *,
    folds: str = "all",
    checkpoint: str = "checkpoint_final.pth",
    spacing_unit: str = "auto",
    trust: str | None = None,
) -> tuple[ModelConfig, list[str]]:
    """Make a package of a model; a package is verified and passed on.

    Parameters
    ----------
    source : Path
        nnU-Net's result folder, a zip of it, or a package (folder or zip).
    out : Path
        Folder to write.
    folds : str
        ``all`` or names with commas.
    checkpoint : str
        File name of the checkpoint in every fold.
    spacing_unit : str
        ``um``, ``mm``, ``none`` or ``auto``.
    trust : str, optional
        ``sha256:`` and the digest of the model's files, see :func:`digest_of`: these very files may hold any pickle and
        a trainer that nobody knows.

    Returns
    -------
    config : ModelConfig
    warnings : list of str

    Raises
    ------
    RefusedError
        Anything in the model that is not on a closed list, or a file that differs from its hash.
    ModelMismatchError
        Not a complete model, or one that Voxelmill does not run.
    BadDataError
        A damaged file.
    DeviceAbsentError
        torch is too old to open a stranger's file.
    """
    check_torch(torch.__version__)
    out = Path(out)
    with opened_source(source, out.absolute().parent) as folder:
        if is_package(folder):
            return copy_package(folder, out, folds, spacing_unit)
        return pack_folder(find_model(folder, folds, checkpoint), out, spacing_unit, trust)


def check_torch(version: str) -> None:
    """Raise DeviceAbsentError for a torch that cannot open a stranger's file safely."""
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if found < OLDEST_TORCH:
        raise DeviceAbsentError(f"torch {version} is too old to open a model safely", expected="torch 2.10 or later")


def pack_folder(model: ModelFolder, out: Path, spacing_unit: str, trust: str | None) -> tuple[ModelConfig, list[str]]:
    """Package of a complete result folder; see :func:`pack_model`."""
    trusted = trust is not None
    if trust is not None and trust != digest_of(model):
        raise RefusedError(
            f"the model is not the one that you trust: {digest_of(model)}", file=model.path, expected=trust
        )
    plans, plans_bytes = read_text(model.path / PLANS)
    dataset, dataset_bytes = read_text(model.path / DATASET)
    fingerprint = None
    if (model.path / "dataset_fingerprint.json").is_file():
        fingerprint, _ = read_text(model.path / "dataset_fingerprint.json")
    first: Checkpoint | None = None
    with new_package(out) as package:
        for fold, file in model.checkpoints.items():
            found = read_checkpoint(file, model, trusted)
            if first is None:
                first = found
                config, warnings = config_from_plans(
                    plans,
                    dataset,
                    configuration=found.configuration,
                    trainer=found.trainer,
                    mirror_axes=found.mirror_axes,
                    folds=tuple(model.checkpoints),
                    spacing_unit=spacing_unit,
                    fingerprint=fingerprint,
                    trusted=trusted,
                    digest=partial(digest_of, model),
                )
            check_same_training(first, found, file)
            add_weights(package, fold, config, found.weights)
            first = replace(first, weights={})
        package.add_config(config)
        package.add(PLANS, plans_bytes)
        package.add(DATASET, dataset_bytes)
        if config.fingerprint is not None:
            package.add(FINGERPRINT, (model.path / "dataset_fingerprint.json").read_bytes())
        card = card_of(model.path)
        if card is not None:
            package.add(CARD, card)
        postprocessing, warning = find_postprocessing(model)
        if postprocessing is not None:
            package.add(POSTPROCESSING, steps_json(steps_of_file(postprocessing, config)))
        if warning is not None:
            warnings.append(warning)
    return config, warnings


def copy_package(source: Path, out: Path, folds: str, spacing_unit: str) -> tuple[ModelConfig, list[str]]:
    """Verified copy of a package, with fewer folds or another spacing unit where asked for."""
    config = load_config(source)
    chosen = choose_folds(folds, list(config.folds), source)
    unit = config.spacing_unit if spacing_unit == "auto" else resolve_spacing_unit(config.reader, (), spacing_unit)[0]
    config = replace(config, folds=chosen, spacing_unit=unit)
    manifest = load_manifest(source)
    steps_of_package(source, config)
    for network in load_networks(source, config):
        probe(config, network)
    with new_package(out) as package:
        for name in sorted(manifest):
            if is_text(name) and name != CONFIG:
                package.add(name, verified_bytes(source, name, manifest))
        for fold in chosen:
            package.add(weights_name(fold), verified_bytes(source, weights_name(fold), manifest))
        package.add_config(config)
    return config, []


def read_text(file: Path) -> tuple[dict[str, Any], bytes]:
    """A JSON object of the model and its bytes.

    Raises
    ------
    BadDataError
        Too big, or not a JSON object.
    """
    if file.stat().st_size > MAX_TEXT_BYTES:
        raise BadDataError(f"{file.stat().st_size} bytes are too many for this file", file=file)
    data = file.read_bytes()
    value = parse_json(data, str(file))
    if not isinstance(value, dict):
        raise BadDataError("not a JSON object", file=file)
    return value, data


def card_of(folder: Path) -> bytes | None:
    """The model's own description, at most a mebibyte of UTF-8."""
    for name in ("model_card.md", "README.md"):
        if (folder / name).is_file():
            with open(folder / name, "rb") as handle:
                return handle.read(MAX_CARD_BYTES).decode("utf-8", "ignore").encode()
    return None


def digest_of(model: ModelFolder) -> str:
    """``sha256:`` and a digest over the files that are read from a model: plans, dataset and the chosen checkpoints."""
    digest = hashlib.sha256()
    for file in (model.path / PLANS, model.path / DATASET, *model.checkpoints.values()):
        digest.update(f"{file.relative_to(model.path).as_posix()}\0{sha256_file(file)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


class NumberType:
    """Stands in for ``numpy.dtype`` while a checkpoint is read: number types only, no state of NumPy's is touched."""

    KNOWN = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})

    def __init__(self, name: str, *_: object):
        if name not in self.KNOWN:
            raise pickle.UnpicklingError(f"Unsupported numpy type {shorten(name)}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")


def number(kind: NumberType, data: bytes) -> Any:
    """Stands in for NumPy's ``scalar``: the Python number of its bytes."""
    if not isinstance(kind, NumberType) or not isinstance(data, bytes) or len(data) != kind.dtype.itemsize:
        raise pickle.UnpicklingError("Unsupported numpy scalar")
    return np.frombuffer(data, kind.dtype)[0].item()


# NumPy 1 wrote ``numpy.core``, NumPy 2 writes ``numpy._core``.
ALLOWED: list[Any] = [
    (number, "numpy._core.multiarray.scalar"),
    (number, "numpy.core.multiarray.scalar"),
    (NumberType, "numpy.dtype"),
]
"""The only globals beyond torch's own restricted list that a checkpoint may name: nnU-Net's log holds NumPy scalars."""


def read_checkpoint(file: Path, model: ModelFolder, trusted: bool = False) -> Checkpoint:
    """Open a checkpoint without running anything of it.

    Parameters
    ----------
    file : Path
    model : ModelFolder
        For the digest in the message.
    trusted : bool
        The user named the digest of these files: any pickle is loaded.

    Raises
    ------
    RefusedError
        The pickle names anything but tensors, plain Python values and NumPy scalars.
    BadDataError
        Damaged or incomplete.
    """
    check_not_inflated(file)
    try:
        with torch.serialization.safe_globals(ALLOWED):
            content = torch.load(file, map_location="cpu", weights_only=not trusted)
    except Exception as error:
        # torch reports a refusal as an UnpicklingError, or for TorchScript and tar archives in words.
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
            raise RefusedError(
                f"the checkpoint is more than weights: {refusal(str(error))}",
                file=file,
                expected="tensors, plain Python values and NumPy scalars",
                remedy=f"nothing was run; if you trust its author pass --trust_model {digest_of(model)}",
            ) from error
        if isinstance(error, MemoryError):
            raise
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadDataError(f"the checkpoint is damaged: {text[:160]}", file=file, remedy="copy it again") from error
    return checkpoint_of(content, file)


def refusal(text: str) -> str:
    """What the restricted loader stumbled over, without its advice on how to switch it off."""
    named = re.search(r"GLOBAL (\S+)", text)
    if named:
        return f"it names {shorten(named.group(1))}"
    reason = re.search(r"Unsupported [^.\n]+|TorchScript|legacy \.tar", text)
    return shorten(reason.group(0) if reason else text)


def check_not_inflated(file: Path) -> None:
    """Raise RefusedError for a compressed archive: torch stores tensors as they are, so it can only be a bomb."""
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            total = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise BadDataError(f"the checkpoint is damaged: {error}", file=file, remedy="copy it again") from error
    if total > file.stat().st_size:
        raise RefusedError(f"the checkpoint unpacks to {total} bytes, more than the file has", file=file)


def checkpoint_of(content: object, file: Path) -> Checkpoint:
    """The needed parts of a loaded checkpoint, with the types that they must have."""
    if not isinstance(content, Mapping) or "network_weights" not in content:
        version_1 = isinstance(content, Mapping) and "state_dict" in content
        raise ModelMismatchError(
            "not a checkpoint of nnU-Net v2" + (": nnU-Net v1 wrote it" if version_1 else ""),
            file=file,
            expected="network_weights, trainer_name, init_args",
        )
    arguments, trainer = content.get("init_args"), content.get("trainer_name")
    configuration = arguments.get("configuration") if isinstance(arguments, Mapping) else None
    if not isinstance(configuration, str) or not isinstance(trainer, str):
        raise BadDataError("the checkpoint does not name its trainer and configuration", file=file)
    axes = content.get("inference_allowed_mirroring_axes")
    if axes is not None and not (isinstance(axes, list | tuple) and all(type(axis) is int for axis in axes)):
        raise BadDataError(f"mirror axes {shorten(axes)} are no axes", file=file)
    weights = content["network_weights"]
    if not isinstance(weights, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
        for name, tensor in weights.items()
    ):
        raise BadDataError("network_weights are no dense tensors by name", file=file)
    return Checkpoint(trainer, configuration, None if axes is None else tuple(axes), dict(weights))


def check_same_training(first: Checkpoint, other: Checkpoint, file: Path) -> None:
    """Raise ModelMismatchError where the folds are not of one training."""
    for name in ("trainer", "configuration", "mirror_axes"):
        if getattr(first, name) != getattr(other, name):
            raise ModelMismatchError(
                f"the folds differ in {name}: {shorten(getattr(other, name))}",
                file=file,
                expected=f"{shorten(getattr(first, name))} as in the first fold",
                remedy="pass --folds with folds of one training",
            )


def add_weights(package: PackageWriter, fold: str, config: ModelConfig, weights: dict[str, torch.Tensor]) -> None:
    """Write a fold's weights and prove that the network made of the file gives what the checkpoint gives.

    Raises
    ------
    ModelMismatchError
        The weights do not fit the plans' network.
    """
    name = weights_name(fold)
    data = encode_weights(weights)
    rebuilt = probe(config, fill_network(build_network(config), read_weights(data, name)))
    direct = build_network(config).to_empty(device="cpu")
    direct.load_state_dict(weights)
    if not torch.equal(rebuilt, probe(config, direct)):
        raise RuntimeError(f"{name} gives another output than its checkpoint")
    package.add(name, data)


def probe(config: ModelConfig, network: torch.nn.Module) -> torch.Tensor:
    """Output of a network for a small window of seeded noise, after a check of its shape and values.

    Returns
    -------
    torch.Tensor
        (1, heads, *shape) float32.

    Raises
    ------
    ModelMismatchError
        The network cannot take such a window, or has other heads than the labels.
    BadDataError
        Values that are not finite.
    """
    shape = probe_shape(config)
    noise = torch.randn(1, config.channels, *shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            output: torch.Tensor = network(noise)
    except (RuntimeError, ValueError) as error:
        raise ModelMismatchError(
            f"the network cannot take a window of {list(shape)}: {str(error).splitlines()[0][:160]}", file=PLANS
        ) from error
    if output.shape != (1, config.heads, *shape):
        raise ModelMismatchError(
            f"the network gives {list(output.shape)}", expected=f"{[1, config.heads, *shape]}", file=PLANS
        )
    if not torch.isfinite(output).all():
        raise BadDataError("the network gives values that are not finite", remedy="get the model again")
    return output


def probe_shape(config: ModelConfig) -> tuple[int, ...]:
    """The smallest window with two voxels at the bottom of the network, at most the patch: packing stays fast."""
    strides = config.architecture["kwargs"].get("strides", 1)
    steps = strides if isinstance(strides, list) else [strides] * int(config.architecture["kwargs"]["n_stages"])
    shape = []
    for axis, patch in enumerate(config.patch_size):
        total = math.prod(step[axis] if isinstance(step, list) else step for step in steps)
        shape.append(min(patch, 2 * total))
    return tuple(shape)
