#!/usr/bin/env python3
"""The same tubes measured object by object with scikit-image, skan and dask, and by MEASURE_OBJECTS.

The first way restates what ais_segmentation's analyze step does for every object, as calls of the libraries that it
uses: crop by the bounding box, skeletonize by Lee's method, skan's longest branch, and the image's values along it by a
dask gather from a TIFF file. It needs dask, which nothing else here does: ``pip install --target DIR dask`` and put DIR
on PYTHONPATH. Both ways run pinned to one core, in a process of their own, on files that the page cache has seen;
imports and compilation are measured apart, by a run over ten objects before the clock starts.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, process_time

import click
import numpy as np
from measure import ROOT, SCRIPTS, apart, machine, table

SAMPLE = "tubes"
LENGTHS = (40, 68)
SPACING = (1.0, 1.0, 1.0)
WARM = 10
LIBRARIES, OURS = "scikit-image + skan + dask", "MEASURE_OBJECTS"


@dataclass(frozen=True)
class Result:
    """What measuring all objects of a volume took.

    Attributes
    ----------
    start : float
        CPU seconds of imports, compilation and the objects before the clock started.
    wall, cpu : float
        Seconds for all objects.
    memory : int
        Bytes: how much the peak of the process grew meanwhile.
    output : int
        Bytes of what was written.
    lengths : list of float
        In the order of the ids.
    load : float
        Load average of one minute at the start.
    """

    start: float
    wall: float
    cpu: float
    memory: int
    output: int
    lengths: list[float]
    load: float


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default="work/objects", show_default=True)
@click.option("--counts", default="200 1000 2000", show_default=True, help="Tubes per volume.")
@click.option("--rounds", default=1, show_default=True, help="Each round runs every variant once.")
@click.option("--seed", default=1, show_default=True)
def main(folder: Path, counts: str, rounds: int, seed: int) -> None:
    """Print objects per second, lengths against the drawn ones, growth with the number of objects, and memory."""
    folder = folder.resolve()
    print(machine(), flush=True)
    numbers = [int(count) for count in counts.split()]
    rows, times = [], {}
    for branch in (False, True):
        for number in numbers:
            here = folder / f"{number}{'-branch' if branch else ''}"
            truth = np.array(apart(draw, here, number, branch, seed))
            for turn in range(rounds):
                for name, function in ((LIBRARIES, by_libraries), (OURS, by_ours)):
                    result = apart(function, here, number)
                    told = {"tubes": number, "branch": branch, "round": turn, "variant": name, **asdict(result)}
                    print(json.dumps({**told, "lengths": None}), flush=True)
                    rows.append(row_of(name, number, branch, result, truth))
                    times.setdefault((name, branch), []).append((number, result.cpu))
    print(f"\n{table(HEADER, rows)}\n")
    print(
        table(("way", "side branch", "CPU time grows with the power of"), [exponent(*item) for item in times.items()])
    )


HEADER = (
    "way", "tubes", "side branch", "objects/s", "objects per CPU s", "length ÷ truth p5 / median / p95",
    "peak memory grows by, bytes per object", "output, bytes per object", "imports, compilation: CPU s", "load",
)  # fmt: skip


def row_of(name: str, number: int, branch: bool, result: Result, truth: np.ndarray) -> list[str]:
    low, middle, high = np.percentile(np.array(result.lengths) / truth, (5, 50, 95))
    return [
        name,
        f"{number:,}",
        "yes" if branch else "no",
        f"{number / result.wall:.0f}",
        f"{number / result.cpu:.0f}",
        f"{low:.3f} / {middle:.3f} / {high:.3f}",
        f"{result.memory / number:,.0f}",
        f"{result.output / number:,.0f}",
        f"{result.start:.1f}",
        f"{result.load:.1f}",
    ]


def exponent(key: tuple[str, bool], points: list[tuple[int, float]]) -> list[str]:
    """Slope of the line through the logarithms."""
    numbers, seconds = np.log(np.array(points)).T
    slope = np.polyfit(numbers, seconds, 1)[0] if len(set(numbers)) > 1 else math.nan
    return [key[0], "yes" if key[1] else "no", f"{slope:.2f}"]


def use_library() -> None:
    sys.path[:0] = [str(SCRIPTS), str(ROOT / "tests" / "python")]


def one_core() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def draw(here: Path, number: int, branch: bool, seed: int) -> list[float]:
    """Write a volume as TIFF files and as the files of a task -> lengths of the centre lines, by id."""
    use_library()
    import tifffile

    from tubes import stage, tube, volume

    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    drawn = [tube(rng, rng.uniform(*LENGTHS), SPACING, branch=branch) for _ in range(number)]
    labels = volume(drawn)
    image = rng.poisson(400 + 800 * (labels > 0)).astype(np.uint16)
    tifffile.imwrite(here / "labels.tif", labels, photometric="minisblack")
    tifffile.imwrite(here / "image.tif", image, photometric="minisblack")
    stage(here / "task", SAMPLE, labels, image[None], SPACING, shard=(256, 256, 256))
    print(
        f"{number} tubes, {'' if branch else 'no '}side branches: {'x'.join(map(str, labels.shape))} voxels", flush=True
    )
    return [one.length for one in drawn]


def by_libraries(here: Path, number: int) -> Result:
    one_core()
    import dask.array
    import skan
    import tifffile
    import zarr
    from scipy import ndimage
    from skimage.morphology import skeletonize

    load = os.getloadavg()[0]
    labels = tifffile.imread(here / "labels.tif")
    boxes = ndimage.find_objects(labels)
    image = dask.array.from_zarr(zarr.open(tifffile.imread(here / "image.tif", aszarr=True), mode="r"))

    def measure(k: int) -> dict[str, object]:
        mask = labels[boxes[k]] == k + 1
        skeleton = skan.Skeleton(skeletonize(mask, method="lee"), spacing=SPACING)
        lengths = skeleton.path_lengths()
        longest = int(np.argmax(lengths))
        at = skeleton.path_coordinates(longest) + [side.start for side in boxes[k]]
        profile = image.vindex[tuple(at.T.tolist())].compute()
        return {"volume": int(mask.sum()), "length": float(lengths[longest]), "profile": profile.tolist()}

    for k in range(WARM):
        measure(k)
    before, start, wall, cpu = peak(), process_time(), perf_counter(), process_time()
    with ThreadPoolExecutor() as pool:
        found = dict(enumerate(pool.map(measure, range(number)), 1))
    (here / "axons.json").write_text(json.dumps(found))
    wall, cpu = perf_counter() - wall, process_time() - cpu
    size = (here / "axons.json").stat().st_size
    lengths = [float(found[k + 1]["length"]) for k in range(number)]
    return Result(start, wall, cpu, peak() - before, size, lengths, load)


def by_ours(here: Path, number: int) -> Result:
    one_core()
    use_library()
    import pyarrow.parquet as pq

    from voxelmill.objects.measure import compile_loops, measure_task
    from voxelmill.task import Task

    def measure(task: int, last: int) -> Path:
        header = "sample,task,first,last,memory_bytes"
        (folder / "batch.measures.csv").write_text(f"{header}\n{SAMPLE},{task},0,{last},0\n")
        measure_task("batch", task, [SAMPLE], folder, "longest_path", 4_000_000_000, Task("measure_objects", "batch"))
        return folder / SAMPLE / f"{SAMPLE}.m{task}.measures.parquet"

    load, folder = os.getloadavg()[0], here / "task"
    compile_loops()
    measure(1, WARM)
    before, start, wall, cpu = peak(), process_time(), perf_counter(), process_time()
    out = measure(0, number)
    wall, cpu = perf_counter() - wall, process_time() - cpu
    lengths = pq.read_table(out, columns=["longest_path"])["longest_path"].to_pylist()
    return Result(start, wall, cpu, peak() - before, out.stat().st_size, lengths, load)


if __name__ == "__main__":
    main()
