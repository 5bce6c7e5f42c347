"""Real images and models through Nextflow: right labels, published whole, and the same after a kill."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cc3d
import numpy as np
import pytest
import tifffile
import zarr

from conftest import ROOT
from inprocess import predicted
from test_nextflow import tasks
from voxelmill.files import read_json, sha256_file, sha256_tree
from voxelmill.formats import open_image
from voxelmill.importing import SampleSpec, import_image
from voxelmill.model.checkpoint import pack_model
from voxelmill.model.network import load_networks
from voxelmill.planning import Options

pytestmark = [pytest.mark.nextflow, pytest.mark.slow]

SMALL = ("--mirroring", "off", "--threads", "1", "--memory_budget", "2 GB")


@contextmanager
def started(folder: Path, *arguments: str | Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A run of the pipeline in a process group of its own, and the file that gets its log; none outlives the block."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "NXF_ANSI_LOG": "false"}
    command = [shutil.which("nextflow", path=path) or "nextflow", "run", str(ROOT), *map(str, arguments)]
    log = folder / f"run{len(list(folder.glob('run*.log')))}.log"
    with open(log, "wb") as out:
        run = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield run, log
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()


def finished(folder: Path, *arguments: str | Path) -> str:
    """The log of a run that ends well."""
    with started(folder, *arguments) as (run, log):
        code = run.wait()
    text = log.read_text()
    assert code == 0, text
    return text


def files(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file below a folder."""
    return {str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_nuclei_agree_with_nnunet(shared_data: Path, tmp_path: Path) -> None:
    model = shared_data / "nnunet_model" / "tiny_ovule_nuclei"
    case = shared_data / "nnunet_model" / "test_case"
    spacing = read_json(case / "nuc_d.json")["spacing"]
    row = f"nuc_d,{case / 'nuc_d_0000.tif'},{';'.join(map(str, spacing))}"
    (tmp_path / "samples.csv").write_text(f"sample,image,spacing\n{row}\n")
    finished(tmp_path, "--input", "samples.csv", "--model", model, "--model_spacing_unit", "um", *SMALL)

    results = tmp_path / "results"
    semantic = results / "nuc_d" / "labels.ome.zarr" / "semantic"
    labels = np.asarray(zarr.open_array(str(semantic), path="0", mode="r")[:])
    expected = tifffile.imread(case / "nuc_d_expected_pred_notta.tif")
    print(f"{(labels != expected).sum()} of {labels.size} voxels differ from nnU-Net's own prediction")
    assert labels.shape == expected.shape
    for value in (0, 1, 2):
        found, wanted = labels == value, expected == value
        assert wanted.any()
        assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) >= 0.999

    image = read_json(semantic / "zarr.json")["attributes"]["ome"]["multiscales"][0]
    assert [axis["unit"] for axis in image["axes"]] == ["micrometer"] * 3
    assert image["datasets"][0]["coordinateTransformations"] == [{"type": "scale", "scale": spacing}]

    outputs = json.loads((results / "outputs.json").read_text())["outputs"]
    published = {row["path"]: row["sha256"] for row in outputs}
    assert {"report.html", "nuc_d/labels.ome.zarr", "nuc_d/nuc_d.labels.json"} <= set(published)
    assert published == {path: sha256_tree(results / path) for path in published}


def test_given_labels_become_objects_without_a_model(tmp_path: Path) -> None:
    """Images that are read in place, one with classes, one with objects; an object is dust, another at the border."""
    image = np.random.default_rng(0).integers(1000, 2000, (40, 64, 72)).astype(np.uint16)
    labels = np.zeros(image.shape, np.uint8)
    labels[10:20, 10:60, 30:40] = 1
    labels[20:30, 40:50, 30:70] = 2
    labels[5, 5, 5:8] = 1
    labels[30:40, 5:15, 5:15] = 1
    ids = np.select([labels == 2, labels == 1], [70_000, 9]).astype(np.uint32)
    for name, array in (("image", image), ("classes", labels), ("ids", ids)):
        scale = [{"type": "scale", "scale": [2.0, 1.0, 1.0]}]
        axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
        images = [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}]
        group = zarr.open_group(str(tmp_path / f"{name}.zarr"), mode="w")
        group.attrs["ome"] = {"version": "0.5", "multiscales": images}
        # a chunk of the fill value would not be written
        settings = {"shape": array.shape, "dtype": array.dtype, "chunks": (16, 32, 32), "fill_value": 200}
        group.create_array("0", **settings)[:] = array
    rows = ["a,image.zarr,classes.zarr,", "b,image.zarr,,ids.zarr"]
    (tmp_path / "samples.csv").write_text("\n".join(["sample,image,semantic,instances", *rows]) + "\n")
    rules = ("--min_object_voxels", "10", "--border_objects", "keep", "--export", "tiff", "--shard_size", "32")
    finished(tmp_path, "--input", "samples.csv", *rules)

    results = tmp_path / "results"
    expected = {"a": cc3d.dust(cc3d.connected_components(labels), 10), "b": ids}
    expected["a"] = np.searchsorted(np.unique(expected["a"]), expected["a"])
    for sample, wanted in expected.items():
        found = zarr.open_array(str(results / sample / "labels.ome.zarr"), path="instances/0", mode="r")[:]
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(tifffile.imread(results / sample / f"{sample}.label_instances.tif"), wanted)
        numbers = [int(n) for n in np.unique(wanted) if n]
        with open(results / sample / f"{sample}.objects.csv", newline="") as handle:
            rows_found = list(csv.DictReader(handle))
        assert [int(row["id"]) for row in rows_found] == numbers
        for number, row in zip(numbers, rows_found, strict=True):
            mask = wanted == number
            assert int(row["voxels"]) == mask.sum()
            assert float(row["volume_um3"]) == 2 * mask.sum()
            assert float(row["mean_c0"]) == pytest.approx(image[mask].mean())
            at_border = bool(mask[-1].any())
            assert (row["touches_border"], row["measured"]) == (("true", "false") if at_border else ("false", "true"))
            assert (row["longest_path_um"] == "") == at_border
    with open(results / "objects.csv", newline="") as handle:
        assert [row["sample"] for row in csv.DictReader(handle)] == ["a"] * 3 + ["b"] * 2
    script = [sys.executable, ROOT / "bin" / "verify_outputs.py", results]
    assert subprocess.run(script, check=False).returncode == 0
    (results / "b" / "b.objects.csv").write_text("id\n")
    assert subprocess.run(script, check=False, capture_output=True).returncode == 65


def test_same_bytes_after_a_kill_as_in_one_process(shared_data: Path, tmp_path: Path) -> None:
    image = shared_data / "axons_lightsheet" / "lightsheet_chunk_128x256x256.ome.tif"
    model = ROOT / "assets" / "demo_model"
    (tmp_path / "samples.csv").write_text(f"sample,image\ns,{image}\n")
    # a task of its own for each of the 2 x 2 x 2 tiles, and one for each of the blocks
    cut = ("--shard_size", "64", "--tile_size", "64,128,128", "--task_minutes", "0.001")
    arguments = ("--input", "samples.csv", "--model", model, "--model_spacing_unit", "um", *cut, *SMALL)
    numbered = ("PREDICT_TILES", "STITCH_BLOCKS", "LABEL_BLOCKS", "RELABEL_BLOCKS")
    predictions, stitches, *later = ({f"{name} (s {n})" for n in range(8)} for name in numbered)
    before = {"PACK_MODEL", "CHECK_INPUT", "IMPORT_IMAGE (s)"}
    once = ("PLAN_TILES", "LINK_OBJECTS", "COMPOSE_STORE", "TABULATE_OBJECTS", "EXPORT_LABELS")
    others = {f"{name} (s)" for name in once} | {"MEASURE_OBJECTS (s 0)", "COMPARE_SAMPLES", "BUILD_REPORT"}
    others = others.union(*later)

    seed = int.from_bytes(os.urandom(4), "big")
    moment = random.Random(seed)
    n_tasks, seconds = moment.randint(1, len(predictions | stitches)), moment.uniform(0, 1)
    print(f"seed {seed}: killed {seconds:.2f} s after the submission of task {n_tasks} after the plan")
    with started(tmp_path, *arguments) as (run, log):
        while len(tasks(log.read_text(), "Submitted") & (predictions | stitches)) < n_tasks:
            assert run.poll() is None, log.read_text()
            time.sleep(0.1)
        time.sleep(seconds)
        os.killpg(run.pid, signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
    first = tasks(log.read_text(), "Submitted")

    second = finished(tmp_path, *arguments, "-resume")
    cached, repeated = tasks(second, "Cached"), tasks(second, "Submitted")
    print(f"{len(first)} tasks before the kill, {len(cached)} of them cached, {len(repeated)} after it")
    # the plan's own entry in the cache may come a moment after its first prediction was submitted
    assert before <= cached <= first
    assert cached.isdisjoint(repeated)
    assert cached | repeated == before | predictions | stitches | others

    config, _ = pack_model(
        model, tmp_path / "package", folds="all", checkpoint="checkpoint_final.pth", spacing_unit="um"
    )
    with open_image(image) as source:
        assert source.spacing is not None
        spec = SampleSpec("s", (0,), source.spacing, "um", "file")
        info = import_image([source], spec, tmp_path / "one")
    options = Options(mirroring=False, threads=1, shard_size=64)
    one = predicted(config, load_networks(tmp_path / "package", config), info, tmp_path / "one", options)
    assert len(one.plan.tiles) == 1
    assert 0 < (one.labels > 0).mean() < 1
    store = tmp_path / "results" / "s" / "labels.ome.zarr"
    assert files(store / "semantic") == files(one.store / "semantic")
    instances = np.asarray(zarr.open_array(str(store), path="instances/0", mode="r")[:])
    np.testing.assert_array_equal(instances, cc3d.connected_components(one.labels, connectivity=26))
