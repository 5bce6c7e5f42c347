"""Objects that touch, through Nextflow: separated in several blocks as in the whole volume, measured, and evaluated."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr
from scipy import ndimage

from test_border_core import whole_array
from test_nextflow import tasks
from test_pipeline import finished
from voxelmill.files import read_json
from voxelmill.objects.separation.watershed import watershed_instances
from voxelmill.phantom import particles

pytestmark = [pytest.mark.nextflow, pytest.mark.slow]

# blocks of 2 x 2 x 2 shards
CUT = ("--shard_size", "16", "--spacing", "1", "--unit", "um", "--memory_budget", "1 GB")


def instances(results: Path, sample: str) -> np.ndarray:
    return np.asarray(zarr.open_array(str(results / sample / "labels.ome.zarr"), path="instances/0", mode="r")[:])


def write_particles(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """500 particles, some of which touch, as ``labels.tif`` (1 core, 2 border), ``truth.tif`` and ``grey.tif``."""
    drawn = particles(500, touching=(0.3, 0.3, 0.3))
    bands = list(drawn.bands())
    labels, truth = (np.concatenate(of) for of in zip(*bands, strict=True))
    grey = ndimage.gaussian_filter(1000.0 * (labels > 0), 1).astype(np.uint16)
    for name, array in (("labels", labels), ("truth", truth), ("grey", grey)):
        tifffile.imwrite(folder / f"{name}.tif", array)
    return labels, truth


def test_particles_are_separated_measured_and_evaluated(tmp_path: Path) -> None:
    labels, truth = write_particles(tmp_path)
    (tmp_path / "samples.csv").write_text("sample,image,semantic\np,grey.tif,labels.tif\n")
    given = ("--input", "samples.csv", "--measure", "shape", *CUT)
    cores = ("--instances", "border_core", "--core_label", "1", "--border_label", "2")
    log = finished(tmp_path, *given, *cores, "--outdir", "cores")
    blocks = [name for name in tasks(log, "Submitted") if name.startswith("SEPARATE_OBJECTS")]
    assert len(blocks) == 8

    found = instances(tmp_path / "cores", "p")
    np.testing.assert_array_equal(found, whole_array(labels))
    assert found.max() == 500
    pairs = np.unique(np.stack([found[labels > 0], truth[labels > 0]]), axis=1)
    assert pairs.shape == (2, 500)
    table = pq.read_table(tmp_path / "cores" / "p" / "p.objects.parquet")
    assert table["voxels"].to_pylist() == np.bincount(found.ravel())[1:].tolist()
    assert set(table["class"].to_pylist()) == {"object"}
    assert "surface_um2" in table.column_names and "longest_path_um" not in table.column_names
    assert sum(table["neighbours"].to_pylist()) > 0

    pictures = next(tmp_path.glob("work/*/*/p/p.label_pictures.npz"))
    np.testing.assert_array_equal(np.load(pictures)["objects_mid_z"][0], found[found.shape[0] // 2])

    basins = ("--instances", "watershed", "--components_of", "foreground", "--seed_distance", "3")
    again = finished(tmp_path, *given, *basins, "--outdir", "basins", "-resume")
    assert {"CHECK_INPUT", "IMPORT_IMAGE (p)"} & tasks(again, "Cached") == {"IMPORT_IMAGE (p)"}
    cut = instances(tmp_path / "basins", "p")
    np.testing.assert_array_equal(cut, watershed_instances(labels, seed_distance=3, components_of="foreground"))

    names = ("cores", "basins")
    rows = [f"{name},{name}/p/labels.ome.zarr/instances,truth.tif" for name in names]
    (tmp_path / "pairs.csv").write_text("\n".join(["sample,instances,truth", *rows]) + "\n")
    finished(tmp_path, "--workflow", "evaluate", "--input", "pairs.csv", "--unit", "pixel", "--outdir", "scores")
    scores = {name: read_json(tmp_path / "scores" / name / f"{name}.evaluation.json")["objects"] for name in names}
    assert scores["cores"]["panoptic"]["pq"] == 1.0 and scores["cores"]["mean_ap"] == 1.0
    assert scores["cores"]["predicted"] == scores["cores"]["truth"] == 500
    assert scores["basins"]["predicted"] == int(cut.max())
    assert scores["basins"]["thresholds"][0]["tp"] == brute_force_hits(cut, truth)
    with open(tmp_path / "scores" / "evaluation.csv", newline="") as handle:
        assert {row["sample"] for row in csv.DictReader(handle)} >= set(names)
    assert (tmp_path / "scores" / "report.html").stat().st_size > 10_000


def brute_force_hits(found: np.ndarray, truth: np.ndarray) -> int:
    """Objects of the truth that share more than half of their union with an object that was found."""
    overlaps = np.zeros((int(found.max()) + 1, int(truth.max()) + 1), np.int64)
    np.add.at(overlaps, (found.ravel(), truth.ravel()), 1)
    unions = overlaps.sum(axis=1, keepdims=True) + overlaps.sum(axis=0, keepdims=True) - overlaps
    return int((overlaps[1:, 1:] / unions[1:, 1:] > 0.5).sum())


def test_nuclei_of_a_model_of_cores_and_borders(shared_data: Path, tmp_path: Path) -> None:
    """Predicted, separated and evaluated: the objects are those of the published labels as a whole."""
    case = shared_data / "nnunet_model" / "test_case"
    spacing = ";".join(map(str, read_json(case / "nuc_d.json")["spacing"]))
    (tmp_path / "samples.csv").write_text(f"sample,image,spacing\nn,{case / 'nuc_d_0000.tif'},{spacing}\n")
    model = ("--model", shared_data / "nnunet_model" / "tiny_ovule_nuclei", "--model_spacing_unit", "um")
    rules = ("--instances", "border_core", "--mirroring", "off", "--threads", "1", "--shard_size", "32")
    finished(tmp_path, "--input", "samples.csv", *model, *rules)
    store = tmp_path / "results" / "n" / "labels.ome.zarr"
    semantic = np.asarray(zarr.open_array(str(store), path="semantic/0", mode="r")[:])
    assert {1, 2} <= set(np.unique(semantic).tolist())
    np.testing.assert_array_equal(instances(tmp_path / "results", "n"), whole_array(semantic))
