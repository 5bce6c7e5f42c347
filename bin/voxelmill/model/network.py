"""Networks from a package: known classes, weights from safetensors, nothing of nnU-Net."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from dynamic_network_architectures.architectures import unet
from dynamic_network_architectures.building_blocks import residual
from torch import nn

from voxelmill.errors import BadDataError, ModelMismatchError
from voxelmill.model.config import LAYERS, NETWORKS, ModelConfig, check_architecture
from voxelmill.model.package import load_manifest, verified_bytes, weights_name


def build_network(config: ModelConfig) -> nn.Module:
    """The model's network without weights.

    Parameters
    ----------
    config : ModelConfig

    Returns
    -------
    torch.nn.Module
        Maps (batch, channels, *patch_size) float32 to (batch, heads, *patch_size); eval mode, no deep supervision, no
        gradients. Its parameters hold no memory yet (device ``meta``) until :func:`fill_network` assigns them, so a
        package cannot make the program allocate more than its weights.

    Raises
    ------
    RefusedError
        A name in the architecture is not a known one.
    ModelMismatchError
        The architecture's numbers do not make a network.
    """
    check_architecture(config.architecture, config.dimensions, "model.json")
    kwargs = {name: layer_class(name, value) for name, value in config.architecture["kwargs"].items()}
    network_class = getattr(unet, NETWORKS[config.architecture["class"]])
    try:
        with torch.device("meta"):
            network = network_class(
                input_channels=config.channels, num_classes=config.heads, deep_supervision=False, **kwargs
            )
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ModelMismatchError(
            f"the architecture in the plans makes no network: {error}", remedy="check plans.json of the model"
        ) from error
    return network.eval().requires_grad_(False)


def layer_class(name: str, value: Any) -> Any:
    """Class for a known name of an argument that takes a class; any other value as it is."""
    if name not in LAYERS or value is None:
        return value
    return getattr(residual if name == "block" else nn, LAYERS[name][value])


def fill_network(network: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    """Give a network of :func:`build_network` its weights; the tensors are taken over, not copied.

    Raises
    ------
    ModelMismatchError
        Names or shapes differ.
    """
    try:
        network.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:5]]
        raise ModelMismatchError(
            "the weights do not fit the network of the plans: " + " | ".join(line[:160] for line in lines),
            remedy="pack a model whose plans.json and checkpoints come from the same training",
        ) from error
    return network.eval().requires_grad_(False)


def encode_weights(weights: dict[str, torch.Tensor]) -> bytes:
    """Safetensors of a state dict: the same bytes for the same tensors.

    nnU-Net's networks register modules twice, so that several names share one tensor, which the format refuses: the
    first name owns the tensor and a table in the header gives the owner of every other name. Floating-point tensors
    become float32, as they do when nnU-Net loads them.
    """
    owners: dict[tuple[object, ...], str] = {}
    aliases: dict[str, str] = {}
    unique: dict[str, torch.Tensor] = {}
    for name in sorted(weights):
        tensor = weights[name].detach()
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        owner = owners.setdefault(place, name) if tensor.numel() else name
        if owner != name:
            aliases[name] = owner
        else:
            unique[name] = (tensor.float() if tensor.is_floating_point() else tensor).clone().contiguous()
    return safetensors.torch.save(unique, {"aliases": json.dumps(aliases, sort_keys=True)})


def read_weights(data: bytes, file: str) -> dict[str, torch.Tensor]:
    """State dict from the bytes of a package's safetensors file, names that share a tensor included.

    Raises
    ------
    BadDataError
        The bytes are not such a file.
    """
    try:
        weights = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        aliases = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["aliases"])
        return weights | {name: weights[owner] for name, owner in aliases.items()}
    except (safetensors.SafetensorError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise BadDataError(f"not a weights file: {error}", file=file, remedy="pack the model again") from error


def load_networks(path: Path, config: ModelConfig, device: str | torch.device = "cpu") -> list[nn.Module]:
    """One network per fold of a package, verified against its manifest.

    Parameters
    ----------
    path : Path
        Folder of the package.
    config : ModelConfig
        From ``load_config(path)``.
    device : str or torch.device

    Returns
    -------
    list of torch.nn.Module
        In the order of ``config.folds``; see :func:`build_network`.

    Raises
    ------
    RefusedError
        A file differs from the manifest.
    """
    manifest = load_manifest(path)
    networks = []
    for fold in config.folds:
        name = weights_name(fold)
        weights = read_weights(verified_bytes(path, name, manifest), name)
        networks.append(fill_network(build_network(config), weights).to(device))
    return networks
