"""A GPU without a GPU: tensors that bear the device ``cuda``, mix with no others, and share a memory that ends.

Values are computed on the CPU. What is tested with it is where tensors lie, and what happens when there is no room.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from voxelmill import device

CUDA = torch.device("cuda", 0)


class OnGpu(torch.Tensor):
    """A tensor in the memory of the fake GPU."""


class FakeGpu(TorchFunctionMode):
    """The GPU, while its block runs.

    Parameters
    ----------
    memory : int
        Bytes; a tensor that does not fit raises ``torch.OutOfMemoryError``.
    """

    def __init__(self, memory: int):
        super().__init__()
        self.memory = memory
        self.peak = 0
        self._held: dict[int, list[int]] = {}

    @property
    def used(self) -> int:
        return sum(size for size, _ in self._held.values())

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [value for value in flattened([args, list(kwargs.values())]) if isinstance(value, torch.Tensor)]
        here = any(isinstance(tensor, OnGpu) for tensor in tensors)
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return CUDA if here else func(*args, **kwargs)
        if func in (torch.Tensor.numpy, torch.Tensor.__array__) and here:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        moved = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.device)]
        wanted = moved[-1].type if moved else None
        if func is torch.Tensor.cpu or (func is torch.Tensor.to and wanted == "cpu"):
            return args[0].as_subclass(torch.Tensor).clone() if here else args[0]
        args, kwargs = replaced(args), {name: replaced([value])[0] for name, value in kwargs.items()}
        if func is not torch.Tensor.to and here:
            strangers = [t for t in tensors if not isinstance(t, OnGpu | torch.nn.Parameter) and t.dim()]
            if strangers:
                raise RuntimeError(f"Expected all tensors to be on the same device ({func})")
        result = func(*args, **kwargs)
        if wanted == "cuda" and isinstance(result, torch.Tensor):
            result = (result.clone() if func is torch.Tensor.to else result).as_subclass(OnGpu)
        for value in flattened([result]):
            if isinstance(value, OnGpu):
                self._hold(value)
        return result

    def _hold(self, tensor: OnGpu) -> None:
        with torch._C.DisableTorchFunctionSubclass():
            storage = tensor.untyped_storage()
            place, size = storage.data_ptr(), storage.nbytes()
        entry = self._held.setdefault(place, [size, 0])
        entry[1] += 1
        weakref.finalize(tensor, self._release, place)
        self.peak = max(self.peak, self.used)
        if self.used > self.memory:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes")

    def _release(self, place: int) -> None:
        entry = self._held.get(place)
        if entry is not None:
            entry[1] -= 1
            if not entry[1]:
                del self._held[place]


def flattened(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from flattened(value)
        else:
            yield value


def replaced(values: Sequence[Any]) -> list[Any]:
    """Arguments with the CPU in the place of the GPU."""
    return [torch.device("cpu") if isinstance(value, torch.device) else value for value in values]


@contextmanager
def fake_gpu(memory: int, patch: pytest.MonkeyPatch, others: int = 0) -> Iterator[FakeGpu]:
    """A machine with such a GPU, of whose memory other programs hold some."""
    gpu = FakeGpu(memory - others)
    patch.setattr(device, "visible_gpus", lambda: 1)
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "empty_cache", lambda: None)
    patch.setattr(torch.cuda, "synchronize", lambda *_: None)
    patch.setattr(torch.cuda, "mem_get_info", lambda *_: (memory - others, memory))
    patch.setattr(torch.cuda, "get_device_name", lambda *_: "Fake")
    patch.setattr(torch.cuda, "get_device_capability", lambda *_: (1, 2))
    patch.setattr(torch.cuda, "max_memory_reserved", lambda *_: gpu.peak)
    patch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: setattr(gpu, "peak", gpu.used))
    with gpu:
        yield gpu
