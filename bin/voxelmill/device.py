"""What a device is: whether there is a GPU, its kind, and what its errors mean.

torch is imported where it is needed only: whether there is a GPU at all is told before that.
"""

from __future__ import annotations

import ctypes
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from voxelmill.errors import DeviceAbsentError, TemporaryError
from voxelmill.files import read_json

if TYPE_CHECKING:
    import torch

OUT_OF_MEMORY = re.compile(r"CUDA.*out of memory|CUDNN_STATUS\w*ALLOC|CUBLAS_STATUS_ALLOC_FAILED", re.DOTALL)
"""How libraries below torch tell it, where torch gives no OutOfMemoryError."""

UNUSABLE = re.compile(r"no kernel image|driver version is insufficient|CUDA_ERROR_NO_DEVICE|no CUDA-capable device")
BUSY = re.compile(r"busy or unavailable")
HOST_MEMORY = re.compile(r"DefaultCPUAllocator")


def visible_gpus() -> int:
    """GPUs that NVIDIA's driver shows to this process.

    The driver is asked and not torch, whose import alone can take longer than so plain an answer should.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def require_gpu() -> None:
    """Raise unless the driver shows a GPU.

    Raises
    ------
    DeviceAbsentError
    """
    if not visible_gpus():
        raise gpu_is_absent("no NVIDIA driver shows a GPU here")


def require_planned_gpu(folder: Path) -> None:
    """The same where the plans of a folder are for a GPU."""
    if any(read_json(path)["device"] == "cuda" for path in Path(folder).glob("*.plan.json")):
        require_gpu()


def gpu_is_absent(why: str) -> DeviceAbsentError:
    """What is said where there is no GPU; the CPU never stands in for it silently."""
    return DeviceAbsentError(
        f"--device cuda was asked for, but {why}",
        expected="an NVIDIA GPU with its driver visible in the task (in a container: the engine's GPU option)",
        remedy="run on a GPU node, or choose --device cpu",
    )


def device_kind(device: torch.device) -> str:
    """What decides the bits of a network's output: the GPU's name and generation, or the CPU's instruction set."""
    import torch

    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
    return f"CPU {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the GPU's memory is not enough."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def runs_out_of_memory(work: Callable[[], object]) -> bool:
    """Do some work -> whether it ended for want of GPU memory.

    The error is dropped before this returns, and with it all tensors that its traceback holds.
    """
    try:
        work()
    except RuntimeError as error:
        if is_out_of_memory(error):
            return True
        raise device_fault(error) or error from None
    return False


def device_fault(error: RuntimeError) -> Exception | None:
    """What an error of CUDA itself or of the host's memory is called here; None for any other error."""
    text = (str(error).splitlines() or [""])[0]
    if UNUSABLE.search(text):
        return DeviceAbsentError(
            f"torch cannot use this GPU: {text}",
            expected="a driver and a GPU that this version of torch supports",
            remedy="update the driver, run on a newer GPU, or choose --device cpu",
        )
    if BUSY.search(text):
        return TemporaryError(f"the GPU is held by another program: {text}", remedy="wait until it is free")
    if HOST_MEMORY.search(str(error)):
        return MemoryError(text)
    return None


def release_memory(device: torch.device) -> None:
    """Give memory that torch keeps for later back to the GPU."""
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
