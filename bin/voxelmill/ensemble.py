"""The networks of a model as one: folds, mirroring, and how torch runs them on a device."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch

from voxelmill.device import gpu_is_absent
from voxelmill.plan import Plan

Network = Callable[[torch.Tensor], torch.Tensor]


def use_device(device: str, threads: int) -> torch.device:
    """Set torch up for repeatable results and return the device.

    Raises
    ------
    DeviceAbsentError
        Where ``cuda`` is asked for and there is none; never a silent fall back to the CPU.
    """
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    if device == "cuda" and not torch.cuda.is_available():
        raise gpu_is_absent("torch sees no CUDA device here")
    return torch.device(device)


class OneDnnConvolution(torch.nn.Module):
    """A convolution that always runs in oneDNN.

    torch gives a batch of one with few values before its last axis (at most 20480, ``use_mkldnn`` in
    ``Convolution.cpp``) to a plain loop that takes several times as long; the first and the deepest layers of a U-Net
    on a small patch are such. Values differ in the last bits of float32 only, as any order of summation does.
    """

    def __init__(self, convolution: torch.nn.Conv2d | torch.nn.Conv3d):
        super().__init__()
        self.convolution = convolution

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        c = self.convolution
        return torch.ops.aten.mkldnn_convolution(x, c.weight, c.bias, c.padding, c.stride, c.dilation, c.groups)


def with_onednn(network: torch.nn.Module) -> torch.nn.Module:
    """Replace the convolutions inside a network."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Conv2d | torch.nn.Conv3d) and not isinstance(parent, OneDnnConvolution):
                setattr(parent, name, OneDnnConvolution(child))
    return network


def prepared(network: torch.nn.Module, plan: Plan) -> Network:
    """The network as the plan's engine runs it."""
    if plan.engine == "compile":
        # imported where it is needed: it takes longer than torch itself
        import torch._inductor.config

        # weights become constants: only then do compiled convolutions run in oneDNN, with weights laid out once
        torch._inductor.config.freezing = True
        return torch.compile(network)
    return with_onednn(network) if (plan.engine, plan.device) == ("float32", "cpu") else network


class Ensemble:
    """All folds of a model with test-time mirroring, as nnU-Net's predictor evaluates them.

    Parameters
    ----------
    networks : sequence of callables
        One per fold: float32 (n, channels, *patch) -> (n, heads, *patch).
    plan : Plan
    device : torch.device
    """

    def __init__(self, networks: Sequence[Network], plan: Plan, device: torch.device):
        self.networks = networks
        self.plan = plan
        self.device = device
        spatial = len(plan.patch_size)
        self._flips = [
            tuple(axis + 2 for axis in axes)
            for n in range(1, len(plan.mirror_axes) + 1)
            for axes in itertools.combinations(plan.mirror_axes, n)
        ]
        self._planar = spatial == 2

    def __call__(self, windows: torch.Tensor) -> Iterator[torch.Tensor]:
        """Logits of each fold, float32 or half (n, heads, *patch), for windows (n, channels, *patch with 3 axes)."""
        x = windows.to(self.device)
        if self._planar:
            x = x.squeeze(2)
        for network in self.networks:
            with self._precision():
                logits = network(x)
                for axes in self._flips:
                    logits += torch.flip(network(torch.flip(x, axes)), axes)
                if self._flips:
                    logits /= len(self._flips) + 1
            yield logits.unsqueeze(2) if self._planar else logits

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        """nnU-Net's: half precision convolutions on CUDA, float32 on the CPU; bfloat16 where the user says so."""
        if self.plan.engine == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return torch.autocast("cuda") if self.device.type == "cuda" else contextlib.nullcontext()
