"""What of a model fits a GPU, found by running it there: the batch, the place of the sums, and what plans may use.

torch is imported where it is needed only: whether there is a GPU at all is told before that, and plans need none.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from voxelmill.device import device_kind, release_memory, require_gpu, runs_out_of_memory
from voxelmill.errors import BadDataError, GpuMemoryError, TemporaryError, UsageError
from voxelmill.files import read_json, write_json
from voxelmill.model.config import ModelConfig
from voxelmill.model.package import load_config
from voxelmill.plan import Plan
from voxelmill.planning import (
    CUDA_CONTEXT_BYTES,
    MEMORY_MARGIN,
    Options,
    blank_image,
    cell_memory,
    halvings,
    make_plan,
    sums_memory,
)
from voxelmill.task import Task

if TYPE_CHECKING:
    import torch

    from voxelmill.ensemble import Network

FILE_NAME = "device.json"


@dataclass(frozen=True)
class Attempt:
    """Windows that are computed at once, and where the sums lie: ``device`` or ``host``."""

    batch: int
    sums: str

    def __str__(self) -> str:
        windows = "a window" if self.batch == 1 else f"{self.batch} windows at once"
        return windows if self.sums == "host" else f"{windows} beside the sums of the smallest tile"


def attempts(batch: int) -> Iterator[Attempt]:
    """What is tried, best first: the batch halved down to one window, then the sums in the host's memory."""
    yield from (Attempt(windows, "device") for windows in halvings(batch))
    yield Attempt(1, "host")


@dataclass(frozen=True)
class Probe:
    """Contents of ``device.json``: what PROBE_DEVICE found, for all plans of a model.

    ``device`` is ``cuda``, or ``cpu`` where the GPU has too little memory and the user allows the CPU. One task may use
    ``share_bytes`` of the GPU; ``network_bytes`` were taken by the network, a batch and the driver.
    """

    device: str
    batch: int
    sums: str
    share_bytes: int
    network_bytes: int

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Probe:
        return cls(**read_json(path))

    def planned(self, options: Options) -> Options:
        """The options of a plan for this device."""
        if self.device == "cpu":
            return replace(options, device="cpu", batch=self.batch)
        return replace(
            options,
            device=self.device,
            batch=self.batch,
            sums=self.sums,
            gpu_network_bytes=self.network_bytes,
            gpu_memory_budget=min(options.gpu_memory_budget, self.share_bytes),
        )


def chosen_device(options: Options, probed: Path | None) -> Options:
    """The options of all plans of a model: what was probed, where a GPU is asked for.

    Raises
    ------
    UsageError
        A plan for a GPU without a probe, whose tasks could each find something else.
    """
    if options.device != "cuda":
        return options
    if probed is None:
        raise UsageError(
            "--device cuda without --probed",
            expected=f"the {FILE_NAME} of PROBE_DEVICE",
            remedy="run probe_device.py first, on the machine that predicts",
        )
    return Probe.load(probed).planned(options)


def sums_moved(options: Options, plans: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Samples whose sums lie in host memory although the probe had room for those of small tiles, and what to say."""
    if (options.device, options.sums) != ("cuda", "device"):
        return
    for path in plans:
        plan = Plan.load(path)
        if plan.sums == "host":
            yield (
                plan.sample,
                "the sums of its tiles do not fit the GPU's memory (--gpu_memory_budget, or what is free): they lie in "
                "host memory, which is slower; labels are the same",
            )


@dataclass(frozen=True)
class Gpu:
    """Kind and memory of a GPU; ``free_bytes`` before this process took any, the driver's own part included.

    ``tasks`` of a run share it.
    """

    kind: str
    memory_bytes: int
    free_bytes: int
    tasks: int = 1

    @classmethod
    def of(cls, device: torch.device, tasks: int = 1) -> Gpu:
        import torch

        free, total = torch.cuda.mem_get_info(device)
        return cls(device_kind(device), total, min(total, free + CUDA_CONTEXT_BYTES), tasks)

    @property
    def share_bytes(self) -> int:
        """What one task may use of what is free."""
        return self.free_bytes // self.tasks

    def __str__(self) -> str:
        shared = f", for {self.tasks} tasks" if self.tasks > 1 else ""
        return f"{self.kind} ({self.free_bytes / 1e9:.1f} of {self.memory_bytes / 1e9:.1f} GB free{shared})"


def find_fit(
    gpu: Gpu,
    options: Options,
    cpu_fallback: bool,
    sums_bytes: int,
    trial: Callable[[Attempt], int | None],
    report: Callable[[str], None],
) -> Probe:
    """The first attempt that fits.

    Parameters
    ----------
    gpu : Gpu
    options : Options
    cpu_fallback : bool
        Whether the CPU may stand in.
    sums_bytes : int
        What the sums of the smallest tile take where they lie.
    trial : callable
        Bytes of the GPU that all but the sums take in an attempt; None where its memory was not enough.
    report : callable
        Is told every step.

    Raises
    ------
    GpuMemoryError
        Nothing fits.
    UsageError
        The GPU has room for a window, but ``gpu_memory_budget`` has not.
    """
    tried = list(attempts(options.batch))
    limit = min(options.gpu_memory_budget, gpu.share_bytes)
    for number, attempt in enumerate(tried):
        used = trial(attempt)
        beside = sums_bytes if attempt.sums == "device" else 0
        if used is not None and used + beside <= limit:
            return Probe("cuda", attempt.batch, attempt.sums, gpu.share_bytes, used)
        of_budget = used is not None and limit == options.gpu_memory_budget
        lack = "--gpu_memory_budget is too small" if of_budget else f"{gpu} has too little memory"
        if attempt is not tried[-1]:
            follows = tried[number + 1]
            what = "the sums lie in host memory" if follows.sums == "host" else f"{follows.batch} at once"
            report(f"{lack} for {attempt}: {what}")
    if cpu_fallback:
        report(f"{lack} for {tried[-1]}: the CPU predicts, as --cpu_fallback allows")
        return Probe("cpu", 1, "device", gpu.share_bytes, 0)
    if used is not None and of_budget:
        raise UsageError(
            f"a window of this model needs {used / 1e9:.1f} GB of GPU memory",
            expected=f"at most --gpu_memory_budget, which is {options.gpu_memory_budget / 1e9:.1f} GB",
            remedy=f"raise --gpu_memory_budget to {math.ceil(used / 1e8) / 10} GB, or allow --cpu_fallback",
        )
    fewer = "choose a smaller --tasks_per_gpu, " if gpu.tasks > 1 else ""
    raise GpuMemoryError(
        f"{gpu} has too little memory for a single window of this model, with the sums in host memory",
        remedy=f"{fewer}end other programs on the GPU, run on one with more memory, allow --cpu_fallback, or take "
        "--device cpu",
    )


class Trial:
    """Runs a batch of noise through the networks as PREDICT_TILES runs windows, beside a buffer as large as its sums.

    Parameters
    ----------
    config : ModelConfig
    options : Options
    load : callable
        Gives the networks of a plan on the device; called once.
    device : torch.device
    """

    def __init__(
        self,
        config: ModelConfig,
        options: Options,
        load: Callable[[Plan], Sequence[Network]],
        device: torch.device,
    ):
        self.config, self.options, self.load, self.device = config, options, load, device
        self.sums_bytes = smallest_sums(config, options)
        self._networks: Sequence[Network] | None = None

    def __call__(self, attempt: Attempt) -> int | None:
        """Bytes that all but the sums take of the device, None where its memory was not enough."""
        release_memory(self.device)
        if runs_out_of_memory(lambda: self._run(attempt)):
            return None
        return max(0, self._used() - (self.sums_bytes if attempt.sums == "device" else 0))

    def _run(self, attempt: Attempt) -> None:
        import torch

        from voxelmill.blend import FIXED_POINT, window_weights
        from voxelmill.ensemble import Ensemble
        from voxelmill.predict import weighted_sums

        plan = smallest_plan(self.config, replace(self.options, batch=attempt.batch))
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        if self._networks is None:
            self._networks = self.load(plan)
        buffer = reserved(self.sums_bytes if attempt.sums == "device" else 0, self.device)
        weights = torch.from_numpy(window_weights(plan) * FIXED_POINT).to(self.device)
        shape = (attempt.batch, self.config.channels, *(axis.patch for axis in plan.axes))
        windows = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        # that noise is no image is no fault of the model: its memory is what counts
        with torch.inference_mode(), contextlib.suppress(BadDataError):
            weighted_sums(Ensemble(self._networks, plan, self.device)(windows), weights, math.inf, "")
        del buffer

    def _used(self) -> int:
        if self.device.type != "cuda":
            return 0
        import torch

        torch.cuda.synchronize(self.device)
        return CUDA_CONTEXT_BYTES + torch.cuda.max_memory_reserved(self.device)


def reserved(size: int, device: torch.device) -> torch.Tensor:
    """So many bytes of a device, touched by nobody."""
    import torch

    return torch.empty(size, dtype=torch.uint8, device=device)


def smallest_plan(config: ModelConfig, options: Options) -> Plan:
    """A plan on the model's own grid whose tiles are as small as they may be: large enough an image, in any budget."""
    sides = [1, 1, 1]
    patch = (1, *config.patch_size) if len(config.patch_size) == 2 else config.patch_size
    for source, side in zip(config.transpose_forward, patch, strict=True):
        sides[source] = 3 * max(side, options.shard_size)
    endless = 2**62
    chosen = replace(
        options, tile_size=(1, 1, 1), memory_budget=endless, gpu_memory_budget=endless, gpu_network_bytes=None
    )
    return make_plan(config, blank_image(config, tuple(sides), (1.0, 1.0, 1.0), "pixel"), chosen)


def smallest_sums(config: ModelConfig, options: Options) -> int:
    """Bytes that the smallest tile's sums take of a device, with the margin of the plans."""
    plan = smallest_plan(config, options)
    return int(MEMORY_MARGIN * (sums_memory(plan) + cell_memory(plan)))


def probe_device(
    package: Path, options: Options, cpu_fallback: bool, out: Path, record: Task, tasks_per_gpu: int = 1
) -> None:
    """Find what of a model fits the GPU of this machine.

    Parameters
    ----------
    package : Path
    options : Options
    cpu_fallback : bool
    out : Path
        File to write: :class:`Probe`.
    record : Task
    tasks_per_gpu : int
        Tasks of a run that share a GPU; each may use its part of what is free.

    Raises
    ------
    DeviceAbsentError
        There is no GPU.
    GpuMemoryError, UsageError
        See :func:`find_fit`.
    """
    require_gpu()
    from voxelmill.ensemble import prepared, use_device
    from voxelmill.model.network import load_networks

    config = load_config(package)
    device = use_device("cuda", options.threads)
    found: list[Gpu] = []
    if runs_out_of_memory(lambda: found.append(Gpu.of(device, tasks_per_gpu))):
        raise TemporaryError(
            "the GPU has no memory left for one more program", remedy="end other programs on the GPU, or wait for them"
        )
    trial = Trial(
        config, options, lambda plan: [prepared(net, plan) for net in load_networks(package, config, device)], device
    )
    probe = find_fit(found[0], options, cpu_fallback, trial.sums_bytes, trial, record.warn)
    probe.save(out)
    record.output(out)
    record.device = found[0].kind
    record.counts = {"batch": probe.batch, "memory_bytes": probe.network_bytes}
