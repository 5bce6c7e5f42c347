#!/usr/bin/env python3
"""One small volume through PREDICT_TILES with every thread setting and engine, on the CPU."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from time import perf_counter

import click
import numpy as np
from chain import Chain, packed
from measure import KEPT_BY_ALLOCATOR, SCRIPTS, Use, apart, machine, table
from pipeline import DEMO_MODEL, phantom_volume


@dataclass
class Variant:
    """A way to run the prediction, and what it took."""

    name: str
    threads: int
    environment: dict[str, str]
    engine: str = "float32"
    uses: list[Use] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)
    different: int | None = None


SPIN = {"GOMP_SPINCOUNT": "1000"}
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
SETTINGS = [
    Variant("1 thread", 1, KEPT_BY_ALLOCATOR | SPIN),
    Variant("2 threads, spin 1000", 2, KEPT_BY_ALLOCATOR | SPIN),
    Variant("2 threads, passive", 2, KEPT_BY_ALLOCATOR | PASSIVE),
    Variant("2 threads, OpenMP's defaults", 2, KEPT_BY_ALLOCATOR),
    Variant("2 threads, spin 1000, allocator's defaults", 2, SPIN),
]
STEADY_ROUNDS = 15
ENGINES = [Variant(name, 2, KEPT_BY_ALLOCATOR | SPIN, name) for name in ("float32", "compile", "bfloat16")]


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default="work/engines", show_default=True)
@click.option("--shape", default="64,256,256", show_default=True, help="z,y,x of the volume.")
@click.option("--rounds", default=3, show_default=True, help="Each round runs every variant once.")
@click.option("--what", type=click.Choice(["settings", "engines", "both"]), default="both", show_default=True)
def main(folder: Path, shape: str, rounds: int, what: str) -> None:
    """Print windows per second, seconds of the whole process, and labels that differ from float32."""
    folder = folder.resolve()
    shutil.rmtree(folder / "run", ignore_errors=True)
    image = apart(phantom_volume, folder / "images", tuple(map(int, shape.split(","))), "volume")
    package = packed(DEMO_MODEL, folder / "package", "um")
    chain = Chain(folder / "run", package, image)
    chain.split("3,2,2", "um", ("--mirroring", "off"))
    print(machine(), flush=True)
    if what != "settings":
        os.environ |= KEPT_BY_ALLOCATOR | SPIN
        print(
            table(
                ("network alone", "ms per window", "fastest"),
                apart(network_speed, package, chain.folder / "volume.plan.json"),
            ),
            flush=True,
        )
    for variants in [SETTINGS] * (what != "engines") + [ENGINES] * (what != "settings"):
        for number in range(rounds):
            for variant in variants:
                measure(chain, variant, labels=variants is ENGINES and number == 0)
        print(f"\n{shape}, medians of {rounds} interleaved rounds\n\n{summary(variants)}\n", flush=True)


def network_speed(package: Path, plan_file: Path) -> list[list[str]]:
    """Median and shortest time of one window in each engine when warm, interleaved; first as nnU-Net runs it."""
    import sys

    sys.path.insert(0, str(SCRIPTS))
    import torch

    from voxelmill.ensemble import prepared, use_device
    from voxelmill.model.network import load_networks
    from voxelmill.model.package import load_config
    from voxelmill.plan import Plan

    config, device = load_config(package), use_device("cpu", 2)
    plan = Plan.load(plan_file)
    plain, *others = (load_networks(package, config, device)[0] for _ in range(1 + len(ENGINES)))
    networks = {"nnU-Net's own": plain}
    for variant, network in zip(ENGINES, others, strict=True):
        networks[variant.engine] = prepared(network, replace(plan, engine=variant.engine))
    window = torch.randn(1, config.channels, *config.patch_size)
    times: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        for number in range(STEADY_ROUNDS + 2):
            for name, network in networks.items():
                with torch.autocast("cpu", torch.bfloat16, enabled=name == "bfloat16"):
                    start = perf_counter()
                    network(window)
                if number > 1:
                    times[name].append(perf_counter() - start)
    return [[name, f"{1000 * median(t):.0f}", f"{1000 * min(t):.0f}"] for name, t in times.items()]


def measure(chain: Chain, variant: Variant, labels: bool) -> None:
    """Run the prediction once."""
    options = ("--mirroring", "off", "--threads", str(variant.threads), "--engine", variant.engine)
    chain.plan(*options)
    # compiled code is kept in a cache: every run pays for its own
    cache = chain.folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"), "TRITON_CACHE_DIR": str(cache / "triton")}
    chain.predict({**variant.environment, **caches, "OMP_NUM_THREADS": str(variant.threads)})
    variant.uses.append(chain.uses[-1][1])
    log = (chain.folder / "predict_tiles.0.log").read_text()
    variant.speeds.append(float(re.findall(r"([\d.]+) windows/s", log)[-1]))
    if labels:
        chain.assemble()
        kept = chain.folder / f"{variant.engine}.ome.zarr"
        shutil.rmtree(kept, ignore_errors=True)
        (chain.folder / "volume" / "labels.ome.zarr").rename(kept)
        variant.different = apart(differences, kept, chain.folder / "float32.ome.zarr")
    print(variant.name, f"{variant.speeds[-1]} windows/s", variant.uses[-1], variant.different, flush=True)


def differences(found: Path, expected: Path) -> int:
    import zarr

    first, second = (np.asarray(zarr.open_array(str(p), path="semantic/0", mode="r")[:]) for p in (found, expected))
    return int((first != second).sum())


def summary(variants: list[Variant]) -> str:
    rows = []
    for variant in variants:
        loads = [use.load for use in variant.uses]
        rows.append(
            [
                variant.name,
                f"{median(variant.speeds):.1f}",
                f"{min(variant.speeds):.1f} to {max(variant.speeds):.1f}",
                f"{median(use.wall for use in variant.uses):.1f}",
                f"{median(use.cpu for use in variant.uses):.1f}",
                f"{max(use.largest for use in variant.uses) / 1e6:.0f}",
                "" if variant.different is None else f"{variant.different:,}",
                f"{min(loads):.1f} to {max(loads):.1f}",
            ]
        )
    header = ("variant", "windows/s", "all rounds", "wall s", "CPU s", "peak MB", "voxels that differ", "load")
    return table(header, rows)


if __name__ == "__main__":
    main()
