"""GPUs: whether there is one, what fits it, and that the way to less memory changes no byte; on a stand-in for one."""

from __future__ import annotations

import ctypes
import itertools
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import ROOT
from fake_gpu import CUDA, FakeGpu, fake_gpu
from inprocess import imported, textured
from models import make_model_folder
from reported import Folder
from test_nextflow import nextflow, tasks
from voxelmill import device
from voxelmill.ensemble import prepared
from voxelmill.errors import GPU_MEMORY, DeviceAbsentError, GpuMemoryError, TemporaryError, UsageError
from voxelmill.files import sha256_file
from voxelmill.image import ImageInfo, StoredImage
from voxelmill.model.checkpoint import pack_model
from voxelmill.model.config import ModelConfig
from voxelmill.model.network import load_networks
from voxelmill.plan import Plan
from voxelmill.planning import Options, blank_image, make_plan
from voxelmill.predict import Counts, predict_tiles, weighted_sums
from voxelmill.probe import Attempt, Gpu, Probe, Trial, attempts, chosen_device, find_fit, probe_device, sums_moved
from voxelmill.reader import NetworkImage
from voxelmill.schedule import estimate
from voxelmill.task import Task

GIGA = 10**9
SHAPE = (40, 50, 44)
OPTIONS = Options(device="cuda", threads=1, shard_size=16, mirroring=False, batch=4)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelConfig]:
    folder = tmp_path_factory.mktemp("model")
    nnunet = make_model_folder(folder / "nnunet", patch_size=(16, 16, 16), features=(4, 8))
    return folder / "package", pack_model(nnunet, folder / "package", spacing_unit="mm")[0]


# whether there is a GPU


@pytest.mark.parametrize(("init", "count", "number", "found"), [(0, 0, 2, 2), (100, 0, 2, 0), (0, 3, 2, 0)])
def test_gpus_that_the_driver_shows(
    init: int, count: int, number: int, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_count(place: object) -> int:
        ctypes.cast(place, ctypes.POINTER(ctypes.c_int))[0] = number  # type: ignore[arg-type]
        return count

    driver = SimpleNamespace(cuInit=lambda _flags: init, cuDeviceGetCount=get_count)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver if name == "libcuda.so.1" else None)
    assert device.visible_gpus() == found


def test_no_gpu_is_told_within_ten_seconds(model: tuple[Path, ModelConfig], tmp_path: Path) -> None:
    """Also where a scheduler names a GPU; torch is not even imported."""
    if device.visible_gpus():
        pytest.skip("this machine has a GPU")
    plan = make_plan(model[1], blank_image(model[1], SHAPE, (1000.0,) * 3), OPTIONS)
    plan.save(tmp_path / "s.plan.json")
    for script, arguments in (
        ("probe_device", ["--package", model[0]]),
        ("predict_tiles", ["--package", model[0], "--batch", "s", "--task", "0"]),
    ):
        command = [sys.executable, "-X", "importtime", ROOT / "bin" / f"{script}.py", *arguments]
        start = time.monotonic()
        ended = subprocess.run(
            list(map(str, command)),
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert time.monotonic() - start < 10
        assert ended.returncode == 69, ended.stderr[-500:]
        assert "--device cuda was asked for, but no NVIDIA driver shows a GPU here" in ended.stderr
        assert "voxelmill.device" in ended.stderr
        assert not re.search(r"\|\s+torch$", ended.stderr, re.M)
    assert not (tmp_path / "device.json").exists()


def test_errors_of_cuda_have_codes_of_their_own() -> None:
    def failing(text: str) -> Callable[[], None]:
        def fail() -> None:
            raise RuntimeError(text)

        return fail

    for text in ("CUDA error: out of memory", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"):
        assert device.runs_out_of_memory(failing(text))
    with pytest.raises(DeviceAbsentError, match="cannot use this GPU"):
        device.runs_out_of_memory(failing("CUDA error: no kernel image is available for execution on the device"))
    with pytest.raises(TemporaryError, match="held by another"):
        device.runs_out_of_memory(failing("CUDA error: CUDA-capable device(s) is/are busy or unavailable"))
    with pytest.raises(MemoryError):
        device.runs_out_of_memory(
            failing("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")
        )
    with pytest.raises(RuntimeError, match="something else"):
        device.runs_out_of_memory(failing("something else"))


# what fits


@pytest.mark.parametrize(
    ("batch", "fits", "found", "tried"),
    [
        (4, lambda a: True, Attempt(4, "device"), 1),
        (6, lambda a: a.batch <= 3, Attempt(3, "device"), 2),
        (4, lambda a: a.batch == 1, Attempt(1, "device"), 3),
        (4, lambda a: a.sums == "host", Attempt(1, "host"), 4),
        (1, lambda a: a.sums == "host", Attempt(1, "host"), 2),
        (2, lambda a: False, None, 3),
    ],
)
@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("lacks", ["memory", "budget"])
def test_steps_down(
    batch: int, fits: Callable[[Attempt], bool], found: Attempt | None, tried: int, fallback: bool, lacks: str
) -> None:
    gpu, seen, told = Gpu("Fake", 16 * GIGA, 12 * GIGA), [], []

    def trial(attempt: Attempt) -> int | None:
        seen.append(attempt)
        return GIGA if fits(attempt) else 9 * GIGA if lacks == "budget" else None

    def probe() -> Probe:
        return find_fit(gpu, replace(OPTIONS, batch=batch), fallback, 5 * GIGA, trial, told.append)

    if found is None and not fallback:
        with pytest.raises(UsageError if lacks == "budget" else GpuMemoryError) as caught:
            probe()
        assert ("raise --gpu_memory_budget to 9.0 GB" in str(caught.value)) == (lacks == "budget")
        assert "--cpu_fallback" in str(caught.value)
    else:
        result = probe()
        expected = ("cuda", found.batch, found.sums, GIGA) if found else ("cpu", 1, "device", 0)
        assert (result.device, result.batch, result.sums, result.network_bytes) == expected
        assert len(told) == tried - (found is not None)
        assert all(("--gpu_memory_budget" in text) == (lacks == "budget") for text in told)
        if found is None:
            assert "the CPU predicts" in told[-1]
    assert len(seen) == tried


def test_sums_count_against_the_budget() -> None:
    gpu = Gpu("Fake", 80 * GIGA, 80 * GIGA)
    for budget, sums in ((6 * GIGA, "device"), (6 * GIGA - 1, "host")):
        options = replace(OPTIONS, batch=1, gpu_memory_budget=budget)
        assert find_fit(gpu, options, False, 5 * GIGA, lambda _: GIGA, lambda _: None).sums == sums


def test_tasks_that_share_a_gpu_share_its_memory() -> None:
    """Each plan has its part of what is free, not all of it."""
    for sharing, sums in ((1, "device"), (2, "host")):
        gpu, told = Gpu("Fake", 12 * GIGA, 10 * GIGA, sharing), []
        options = replace(OPTIONS, batch=1)
        probe = find_fit(gpu, options, False, 5 * GIGA, lambda _: GIGA, told.append)
        assert (probe.sums, probe.planned(options).gpu_memory_budget) == (sums, min(8, 10 // sharing) * GIGA)
    assert "has too little memory" in told[0]
    assert "for 2 tasks" in told[0]
    with pytest.raises(GpuMemoryError, match="a smaller --tasks_per_gpu"):
        find_fit(gpu, options, False, 5 * GIGA, lambda _: 6 * GIGA, told.append)


def peaks(package: Path, config: ModelConfig, patch: pytest.MonkeyPatch) -> dict[Attempt, int]:
    """What each attempt takes of a GPU that is large enough."""
    found = {}
    for attempt in attempts(OPTIONS.batch):
        with fake_gpu(10**12, patch) as gpu:
            trial = trial_of(package, config)
            assert trial(attempt) is not None
            found[attempt] = gpu.peak
    return found


def trial_of(package: Path, config: ModelConfig) -> Trial:
    def load(plan: Plan) -> list:
        return [prepared(network, plan) for network in load_networks(package, config, CUDA)]

    return Trial(config, OPTIONS, load, CUDA)


def test_a_gpu_is_probed_with_the_network_itself(
    model: tuple[Path, ModelConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, config = model
    monkeypatch.setattr("voxelmill.probe.CUDA_CONTEXT_BYTES", 0)
    needed = peaks(package, config, monkeypatch)
    assert list(needed) == [Attempt(4, "device"), Attempt(2, "device"), Attempt(1, "device"), Attempt(1, "host")]
    assert list(needed.values()) == sorted(needed.values(), reverse=True)
    assert len(set(needed.values())) == 4
    for number, (attempt, memory) in enumerate(needed.items()):
        record, out = Task("probe_device", "probe_device"), tmp_path / str(number) / "device.json"
        with fake_gpu(2 * memory, monkeypatch, others=memory) as gpu:
            probe_device(package, OPTIONS, False, out, record)
        probe = Probe.load(out)
        assert (probe.device, probe.batch, probe.sums) == ("cuda", attempt.batch, attempt.sums)
        assert record.device == "Fake, compute capability 1.2"
        assert probe.share_bytes == memory
        assert 0 < probe.network_bytes <= gpu.memory
        assert len(record.warnings) == number
        told = (
            f"Fake, compute capability 1.2 ({memory / 1e9:.1f} of {2 * memory / 1e9:.1f} GB free) has too little memory"
        )
        assert all(warning["text"].startswith(told) for warning in record.warnings)
        assert record.outputs
    too_small = needed[Attempt(1, "host")] - 1
    with fake_gpu(too_small, monkeypatch), pytest.raises(GpuMemoryError, match="single window") as caught:
        probe_device(package, OPTIONS, False, tmp_path / "none.json", Task("probe_device", "probe_device"))
    assert caught.value.code == GPU_MEMORY
    assert not (tmp_path / "none.json").exists()
    with fake_gpu(too_small, monkeypatch):
        probe_device(package, OPTIONS, True, tmp_path / "cpu.json", Task("probe_device", "probe_device"))
    planned = Probe.load(tmp_path / "cpu.json").planned(OPTIONS)
    assert (planned.device, planned.batch) == ("cpu", 1)
    plan = make_plan(config, blank_image(config, SHAPE, (1000.0,) * 3), planned)
    assert plan == make_plan(config, blank_image(config, SHAPE, (1000.0,) * 3), replace(OPTIONS, device="cpu", batch=1))


# plans for a GPU


def large(config: ModelConfig, **options: object) -> Plan:
    chosen = replace(OPTIONS, shard_size=256, **options)  # type: ignore[arg-type]
    return make_plan(config, blank_image(config, (2048, 2048, 2048), (1000.0,) * 3), chosen)


def test_a_plan_has_both_memories(model: tuple[Path, ModelConfig]) -> None:
    """The sums are the GPU's as far as its budget goes, then the host's; what the budgets say holds for every plan."""
    config = model[1]
    budgets = [int(n * GIGA) for n in (64, 16, 4, 2, 0.75)]
    plans = [large(config, gpu_memory_budget=budget, memory_budget=16 * GIGA) for budget in budgets]
    widths = [math.prod(len(axis.blocks) for axis in plan.axes[1:]) for plan in plans]
    assert [plan.sums for plan in plans] == ["device"] * 4 + ["host"]
    assert widths[:4] == sorted(widths[:4])
    assert widths[0] < widths[3]
    for plan, budget in zip(plans, budgets, strict=True):
        assert plan.gpu_memory_bytes <= budget
        assert plan.memory_bytes <= 16 * GIGA
    one, other = (
        large(config, gpu_memory_budget=64 * GIGA, memory_budget=10**12, tile_size=(512,) * 3, sums=s)
        for s in ("device", "host")
    )
    assert one.axes == other.axes
    assert other.memory_bytes - one.memory_bytes == one.gpu_memory_bytes - other.gpu_memory_bytes > 0
    assert large(config, device="cpu").gpu_memory_bytes == 0
    assert large(config, gpu_network_bytes=3 * GIGA, sums="host").gpu_memory_bytes == 3 * GIGA
    for fault, small in (
        ("--gpu_memory_budget", {"gpu_memory_budget": GIGA // 2}),
        ("--memory_budget", {"memory_budget": GIGA}),
    ):
        with pytest.raises(UsageError, match=f"at most {fault}"):
            large(config, **small)


def test_plans_take_what_was_probed(model: tuple[Path, ModelConfig], tmp_path: Path) -> None:
    probe = Probe("cuda", 2, "device", 5 * GIGA, GIGA)
    probe.save(tmp_path / "device.json")
    assert Probe.load(tmp_path / "device.json") == probe
    options = chosen_device(replace(OPTIONS, shard_size=256), tmp_path / "device.json")
    assert (options.batch, options.gpu_network_bytes, options.gpu_memory_budget) == (2, GIGA, 5 * GIGA)
    assert chosen_device(replace(OPTIONS, device="cpu"), None).batch == OPTIONS.batch
    with pytest.raises(UsageError, match="without --probed"):
        chosen_device(OPTIONS, None)
    for number, tile in enumerate((256, 2048)):
        chosen = replace(options, tile_size=(tile,) * 3, memory_budget=10**12)
        plan = make_plan(model[1], blank_image(model[1], (2048,) * 3, (1000.0,) * 3), chosen)
        path = tmp_path / f"{number}.plan.json"
        plan.save(path)
        assert Plan.load(path) == plan
        moved = [text for _, text in sums_moved(chosen, [path])]
        assert (plan.sums, len(moved)) == (("device", 0), ("host", 1))[number]


def test_the_demo_with_a_gpu_fits_the_test_profile(tmp_path: Path) -> None:
    """What checks of an installation start: the demo's model and size, with the budget that the profile gives."""
    config = pack_model(ROOT / "assets" / "demo_model", tmp_path / "package", spacing_unit="um")[0]
    values = dict(re.findall(r"^    (\w+) = (.+)$", (ROOT / "conf" / "test.config").read_text(), re.M))
    budget = int(values["memory_budget"].removeprefix("'").removesuffix(" GB'")) * GIGA
    shape = tuple(map(int, values["demo_shape"].strip("'").split(",")))
    options = Options(device="cuda", memory_budget=budget, threads=1, mirroring=False)
    assert estimate(config, shape, (1.0,) * 3, options).memory_bytes > 2 * GIGA


@pytest.mark.parametrize(("features", "batch"), [(32, 4), (128, 4), (128, 1)])
def test_a_guess_of_gpu_memory_refuses_nothing(features: int, batch: int, model: tuple[Path, ModelConfig]) -> None:
    """A network that by the guess fits the GPU in no batch, or in a smaller one: only the probe can tell."""
    kwargs = model[1].architecture["kwargs"] | {"features_per_stage": [features, 2 * features]}
    wide = replace(model[1], patch_size=(128,) * 3, architecture=model[1].architecture | {"kwargs": kwargs})
    options = replace(OPTIONS, batch=batch, shard_size=256)
    shape, spacing = (512,) * 3, (1000.0,) * 3
    with pytest.raises(UsageError, match="at most --gpu_memory_budget"):
        make_plan(wide, blank_image(wide, shape, spacing), replace(options, batch=4))
    found = estimate(wide, shape, spacing, options)
    assert found.windows == estimate(wide, shape, spacing, replace(options, device="cpu", memory_budget=10**12)).windows
    assert found.memory_bytes <= options.memory_budget
    for fault, small in (
        ("--gpu_memory_budget", replace(options, gpu_memory_budget=GIGA // 50, memory_budget=32 * GIGA // 10)),
        ("--memory_budget", replace(options, memory_budget=GIGA)),
    ):
        with pytest.raises(UsageError, match=f"at most {fault}"):
            estimate(wide, shape, spacing, small)


# where the sums lie


class Convolution:
    """Three heads; the network of a test, on whatever device its windows are."""

    def __init__(self, on_call: Callable[[int], None] = lambda _: None):
        self.weight = torch.randn((3, 1, 3, 3, 3), generator=torch.Generator().manual_seed(1))
        self.on_call = on_call
        self.calls = 0

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.on_call(self.calls)
        return torch.nn.functional.conv3d(windows, self.weight.to(windows.device), padding=1)


@pytest.fixture(scope="module")
def sample(model: tuple[Path, ModelConfig], tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageInfo, Path, Plan]:
    out = tmp_path_factory.mktemp("sample")
    image = textured(SHAPE, border=((3, 2), (4, 0), (1, 5)))
    # equal constant windows are kept and used again: they too move to the host
    image[:, :, :18], image[:, :, 30:] = 7, 7
    info = imported(image, out)
    options = replace(OPTIONS, device="cpu", tile_size=(48, 16, 16), batch=2)
    return info, out / "s.image.zarr", make_plan(model[1], info, options)


def pieces(
    sample: tuple[ImageInfo, Path, Plan],
    out: Path,
    where: torch.device,
    network: Convolution,
    sums: str = "device",
    warn: Callable[[str, str], None] = lambda text, name: None,
) -> tuple[dict[str, str], Counts]:
    """Predict all tiles -> digests of the pieces, and the counts."""
    info, store, plan = sample
    plan = replace(plan, device=where.type, sums=sums)
    image = NetworkImage(plan, StoredImage(store, info))
    counts = predict_tiles([(plan, tile, image) for tile in plan.tiles], [network], where, out, warn)  # type: ignore[list-item]
    return {path.name: sha256_file(path) for path in sorted(out.rglob("*.piece"))}, counts["s"]


def on_gpu(
    sample: tuple[ImageInfo, Path, Plan],
    out: Path,
    patch: pytest.MonkeyPatch,
    memory: int,
    network: Callable[[FakeGpu], Convolution],
    sums: str = "device",
) -> tuple[dict[str, str], Counts, int, list[str]]:
    """The same on a GPU -> also the most memory that was held at once, and the warnings."""
    told: list[str] = []
    with fake_gpu(memory, patch) as gpu:
        found, counts = pieces(sample, out, CUDA, network(gpu), sums, lambda text, _: told.append(text))
        return found, counts, gpu.peak, told


def test_sums_in_host_memory_have_the_same_bytes(
    sample: tuple[ImageInfo, Path, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In host memory, on the GPU, and on one from which another program takes memory in the midst of a tile."""
    network = Convolution()
    expected, counts = pieces(sample, tmp_path / "cpu", torch.device("cpu"), network)
    assert len(sample[2].tiles) > 3
    assert counts.reused > 3
    device_run = on_gpu(sample, tmp_path / "device", monkeypatch, 10**12, lambda _: Convolution())
    host_run = on_gpu(sample, tmp_path / "host", monkeypatch, 10**12, lambda _: Convolution(), "host")
    for found, found_counts, _, told in (device_run, host_run):
        assert found == expected
        assert found_counts == counts
        assert told == []
    most, least = device_run[2], host_run[2]
    assert least < 0.75 * most

    # in the first tile, and in the last one, when constants are kept already
    for call in (1, network.calls):

        def crowded(gpu: FakeGpu, call: int = call) -> Convolution:
            return Convolution(lambda n: setattr(gpu, "memory", least) if n == call else None)

        out = tmp_path / f"crowded{call}"
        found, found_counts, _, told = on_gpu(sample, out, monkeypatch, 10**12, crowded)
        assert found == expected
        assert (found_counts.windows, found_counts.computed + found_counts.reused) == (counts.windows, counts.windows)
        assert len(told) == 1
        assert "sums of this task lay in host memory" in told[0]

    with pytest.raises(GpuMemoryError, match="too little memory for tile") as caught:
        on_gpu(sample, tmp_path / "none", monkeypatch, least // 2, lambda _: Convolution())
    assert caught.value.code == GPU_MEMORY
    assert not list((tmp_path / "none").rglob("*.piece"))


def test_other_errors_of_the_network_are_not_mended(sample: tuple[ImageInfo, Path, Plan], tmp_path: Path) -> None:
    def fail(_: int) -> None:
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        pieces(sample, tmp_path, torch.device("cpu"), Convolution(fail))


def test_sums_are_products_in_double_precision_rounded_to_even() -> None:
    """What IEEE 754 fixes for every device: NumPy's arithmetic gives the same integers, in any order of windows."""
    rng = np.random.default_rng(3)
    folds = [rng.normal(0, 10, (2, 3, 4, 5, 6)).astype(t) for t in (np.float32, np.float16)]
    weights = np.ldexp(rng.integers(1, 2**11, (4, 5, 6)), -10) * 2.0**40
    # ties: half of the last place
    folds[0][0, 0, 0, 0], weights[0, 0] = np.float32([0.5, 1.5, 2.5, -0.5, -1.5, 0.25]), 1.0

    def logits() -> Iterator[torch.Tensor]:
        return (torch.from_numpy(fold) for fold in folds)

    found = weighted_sums(logits(), torch.from_numpy(weights), math.inf, "s").numpy()
    expected = sum(np.rint(fold.astype(np.float64) * weights).astype(np.int64) for fold in folds)
    assert np.array_equal(found, expected)
    totals = {found[list(order)].sum(axis=0).tobytes() for order in itertools.permutations(range(2))}
    assert len(totals) == 1


# what is reported


def report_of(tmp_path: Path, *tasks: tuple[str, str]) -> Folder:
    """Fabricated results of samples whose prediction tasks ran on these kinds of device."""
    folder = Folder(tmp_path)
    for name in dict.fromkeys(name for name, _ in tasks):
        folder.sample(name)
    for path in (tmp_path / "records").glob("*predict_tiles*"):
        path.unlink()
    for number, (name, kind) in enumerate(tasks):
        share = sum(1 for other, _ in tasks if other == name)
        counts = {name: {"windows": 12 // share, "computed": 12 // share, "reused": 0, "piece_bytes": 1}}
        folder.record("predict_tiles", name, part=str(number), counts=counts, device=kind)
    return folder


def test_one_kind_of_device_is_no_warning(tmp_path: Path) -> None:
    tasks = (("a", "CPU x86_64 AVX2"), ("a", "CPU x86_64 AVX2"), ("device", "CPU x86_64 AVX2"))
    run = report_of(tmp_path, *tasks).collect()
    assert run.warning_count == 0
    assert run.devices == ("CPU x86_64 AVX2",)


def test_kinds_of_device_are_told(tmp_path: Path) -> None:
    run = report_of(tmp_path, ("a", "CPU x86_64 AVX2"), ("b", "CPU x86_64 AVX512"), ("c", "CPU x86_64 AVX2")).collect()
    (text,) = run.warnings
    assert "CPU x86_64 AVX2: a, c; CPU x86_64 AVX512: b" in text
    assert all(sample.warnings == () for sample in run.samples)


def test_kinds_within_a_sample_are_told_in_stronger_words(tmp_path: Path) -> None:
    folder = report_of(tmp_path, ("a", "Fake, compute capability 1.2"), ("a", "Other"), ("a", "Other"), ("b", "Other"))
    run = folder.collect()
    (text,) = run.samples[0].warnings
    assert "1 task on Fake, compute capability 1.2 and 2 tasks on Other" in text
    assert "Do not rely on this sample" in text
    assert run.samples[1].warnings == ()
    assert len(run.warnings) == 1
    assert "Do not rely on this sample" in "".join(folder.pages().values())


@pytest.mark.parametrize(("predicted", "told"), [("Fake", 0), ("Other", 1), ("CPU x86_64 AVX2", 0)])
def test_a_gpu_that_was_not_probed_is_told(predicted: str, told: int, tmp_path: Path) -> None:
    folder = report_of(tmp_path, ("a", predicted))
    folder.record("probe_device", "probe_device", device="Fake")
    run = folder.collect()
    assert len(run.warnings) == told
    assert all("plans were made for Fake, but networks also ran on Other" in text for text in run.warnings)


# from the probe to the plans

WIRING = """
include {{ SPLIT }} from '{root}/subworkflows/split'

workflow {{
    def none = [:].withDefault {{ '' }}
    def models = params.models.tokenize(';').collect {{ name -> [file(name), ''] }}
    def job = [models: models, device: 'cuda', steps: [], schema: file('schema.json'), last: 'split', outdir: 'results', mode: 'copy', options: none, code: none]
    SPLIT(channel.value([[], [file('a.tif')], [], ['']]), job)
}}
"""  # noqa: E501


@pytest.mark.nextflow
@pytest.mark.parametrize(("models", "parser"), [("one;two", "v2"), ("one", "v1")])
def test_every_plan_takes_the_probe_of_its_own_model(models: str, parser: str, tmp_path: Path) -> None:
    (tmp_path / "main.nf").write_text(WIRING.format(root=ROOT))
    for name in ("a.tif", "schema.json"):
        (tmp_path / name).write_text(name)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    ended = nextflow(tmp_path, "run", "main.nf", "-stub-run", "--models", models, parser=parser)
    assert ended.returncode == 0, ended.stdout
    submitted = tasks(ended.stdout, "Submitted")
    several = ";" in models
    probes = {name for name in submitted if name.startswith("PROBE_DEVICE")}
    assert len(probes) == 1 + several
    plans = sorted((tmp_path / "work").glob("*/*/*/*.plan.json"))
    assert len(plans) == 1 + several
    for plan in plans:
        staged = plan.parent.parent / "device.json"
        assert staged.is_symlink()
        if several:
            (member,) = re.findall(r"\.(m\d)\.", plan.name)
            (record,) = (staged.resolve().parent / "probe_device").iterdir()
            assert record.name == f"probe_device.probe_device.{member}.json"
