"""Lists, checksums and RO-Crate of a run, held against the files, sha256sum and the rules of the specification."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from voxelmill.files import read_json, sha256_file, sha256_tree
from voxelmill.image import ArrayLocation, ImageInfo
from voxelmill.report.outputs import kind_of, published_files
from voxelmill.report.provenance import MEDIA_TYPES, PROFILE, write_lists
from voxelmill.task import task
from voxelmill.verify import verify_results

ENDED = "2026-01-02T03:04:05+00:00"

PUBLISHED = (
    "check/samples.json", "check/estimate.json", "s1/s1.labels.json", "s1/s1.label_raw.tif", "s1/s1.label_binary.tif",
    "s1/s1.label_instances.tif", "s1/s1.objects.csv", "s1/s1.objects.parquet", "s1/s1.profiles.parquet",
    "s1/s1.axons.json", "s1/s1.lengths.png", "s1/s1.lengths.svg", "s2/s2.label_raw.nii.gz", "objects.csv",
    "objects.parquet", "lengths_by_group.png", "lengths_by_group.svg",
)  # fmt: skip
STORE = ("zarr.json", "semantic/0/c/0/0/0", "semantic/0/c/0/0/10", "semantic/0/zarr.json")


def made(name: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"contents of {name}")
    return path


@pytest.fixture
def run(tmp_path, monkeypatch) -> SimpleNamespace:
    """A run of which the tasks' files lie in one folder."""
    monkeypatch.chdir(tmp_path)
    with task("all", "batch1") as record:
        for name in PUBLISHED:
            record.output(made(name))
        record.output(made("s1/s1.image.json"))  # not published
        for name in STORE:
            made(f"s1/labels.ome.zarr/{name}")
        record.output(Path("s1/labels.ome.zarr"))
    image = ImageInfo(
        sample="s1", shape=(64, 256, 256), dtype="uint16", spacing=(3.0, 2.0, 2.0), unit="um", spacing_origin="",
        format="OME-TIFF", files=("/data/mouse 1.tif",), array=ArrayLocation("0", "czyx", (0,)), intensity=(), flip="",
        nonzero_box=(), statistics=(), content_sha256="c" * 64,
    )  # fmt: skip
    samples = tuple(SimpleNamespace(name=name, image=image, box=None) for name in ("s1", "s2"))
    return SimpleNamespace(
        records=(read_json(Path("batch1/batch1.all.json")),),
        samples=samples,
        finished=samples,
        failed=(),
        planned_only=False,
        models=(SimpleNamespace(digests={"model.json": "1" * 64, "fold_0.safetensors": "2" * 64}),),
        parameters=(SimpleNamespace(name="step_size", value="0.5"), SimpleNamespace(name="box", value="")),
        versions={"voxelmill": ("0.1.0",), "numpy": ("2.2.0", "2.3.0")},
        command="nextflow run main.nf --step_size '0.5'",
        revision="abc",
    )


def published(run, ended=ENDED) -> Path:
    """Write the lists and lay all files out as publishing does."""
    own = {"params.json": made("params.json"), "report.html": made("report.html")}
    write_lists(run, own, Path(), ended=ended, nextflow="25.10.0")
    results = Path("results")
    for name in [*PUBLISHED, *own, *(f"s1/labels.ome.zarr/{part}" for part in STORE)]:
        of_run = name.startswith("check/") or name == "params.json"
        target = results / ("pipeline_info/" + Path(name).name if of_run else name)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(name, target)
    for name in ("outputs.json", "ro-crate-metadata.json"):
        os.link(name, results / name)
    os.link("outputs.sha256", results / "pipeline_info" / "outputs.sha256")
    return results


def test_every_published_file_is_in_the_checksums(run):
    results = published(run)
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "pipeline_info/outputs.sha256"],
        cwd=results,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = [line[66:] for line in (results / "pipeline_info" / "outputs.sha256").read_text().splitlines()]
    files = {path.relative_to(results).as_posix() for path in results.rglob("*") if path.is_file()}
    assert set(names) == files - {"pipeline_info/outputs.sha256"}
    assert names == sorted(names)
    found = verify_results(results)
    assert (found.missing, found.changed, found.unlisted) == ((), (), ())


def test_outputs_json_has_every_file_and_folder_with_its_kind(run):
    results = published(run)
    rows = read_json(results / "outputs.json")["outputs"]
    assert {row["path"]: row["sha256"] for row in rows} == {
        name: sha256_tree(results / name)
        for name in [
            *(f"pipeline_info/{Path(name).name}" if name.startswith("check") else name for name in PUBLISHED),
            "pipeline_info/params.json", "report.html", "s1/labels.ome.zarr",
        ]
    }  # fmt: skip
    kinds = {row["path"]: (row["kind"], row["sample"]) for row in rows}
    assert kinds["s1/s1.label_instances.tif"] == ("label_instances", "s1")
    assert kinds["objects.csv"] == ("cohort_objects", None)
    assert kinds["s1/s1.objects.csv"] == ("objects", "s1")
    assert kinds["s2/s2.label_raw.nii.gz"] == ("label_raw", "s2")
    assert kind_of(Path("s1/probabilities.ome.zarr"), False) == "probabilities"
    assert kind_of(Path("s1/s1.image.json"), False) is None


def test_a_plan_is_published_only_where_the_run_ends_with_it(run):
    with task("plan_tiles", "s1") as record:
        record.output(made("s1/s1.plan.json"))
    run.records += (read_json(Path("s1/s1.plan_tiles.json")),)
    assert "s1/s1.plan.json" not in published_files(run, {})
    run.planned_only = True
    assert published_files(run, {})["s1/s1.plan.json"].sha256 == sha256_file(Path("s1/s1.plan.json"))


# RO-Crate 1.1 and Process Run Crate 0.5


@pytest.fixture
def results(run) -> Path:
    return published(run)


@pytest.fixture
def graph(results) -> dict[str, dict]:
    crate = read_json(results / "ro-crate-metadata.json")
    assert crate["@context"][0] == "https://w3id.org/ro/crate/1.1/context"
    entities = crate["@graph"]
    assert len({entity["@id"] for entity in entities}) == len(entities)
    return {entity["@id"]: entity for entity in entities}


def values(entity: dict, key: str) -> list:
    value = entity.get(key, [])
    return value if isinstance(value, list) else [value]


def targets(entity: dict, key: str) -> list[str]:
    return [value["@id"] for value in values(entity, key)]


def test_the_graph_is_flat_and_every_reference_has_its_entity(graph):
    for entity in graph.values():
        assert entity["@type"]
        for key in entity.keys() - {"@id", "@type"}:
            for value in values(entity, key):
                if isinstance(value, dict):
                    assert value.keys() == {"@id"}
                    assert value["@id"] in graph or value["@id"] == "https://w3id.org/ro/crate/1.1"


def test_descriptor_and_root(graph):
    descriptor, root = graph["ro-crate-metadata.json"], graph["./"]
    assert descriptor["@type"] == "CreativeWork"
    assert targets(descriptor, "about") == ["./"]
    assert targets(descriptor, "conformsTo") == ["https://w3id.org/ro/crate/1.1"]
    assert root["@type"] == "Dataset"
    assert targets(root, "conformsTo") == [PROFILE]
    for name in ("name", "description", "datePublished", "license"):
        assert root[name]


def test_data_entities_are_the_published_files(graph, results):
    parts = targets(graph["./"], "hasPart")
    data = {key for key, entity in graph.items() if entity["@type"] in ("File", "Dataset")} - {"./"}
    assert set(parts) == data
    assert len(parts) == len(set(parts))
    listed = {row["path"] for row in read_json(results / "outputs.json")["outputs"]}
    assert {name.rstrip("/") for name in parts} == listed | {"outputs.json", "pipeline_info/outputs.sha256"}
    for name in parts:
        entity, path = graph[name], results / name
        assert path.is_dir() if entity["@type"] == "Dataset" else path.is_file()
        if "sha256" in entity:
            assert entity["sha256"] == sha256_file(path)
            assert int(entity["contentSize"]) == path.stat().st_size
    assert graph["s1/labels.ome.zarr/"]["@type"] == "Dataset"
    assert "4 files" in graph["s1/labels.ome.zarr/"]["description"]
    assert graph["s2/s2.label_raw.nii.gz"]["encodingFormat"] == "application/gzip"
    assert {Path(name).suffix for name in PUBLISHED} <= MEDIA_TYPES.keys()


def test_the_run_is_an_action_with_software_inputs_parameters_and_results(graph):
    (action,) = (entity for entity in graph.values() if entity["@type"] == "CreateAction")
    assert targets(graph["./"], "mentions") == [action["@id"]]
    assert targets(action, "result") == targets(graph["./"], "hasPart")
    (software,) = (graph[name] for name in targets(action, "instrument"))
    assert (software["@type"], software["name"]) == ("SoftwareApplication", "Voxelmill")
    assert software["softwareVersion"]
    needed = {graph[name]["name"]: graph[name]["softwareVersion"] for name in targets(software, "softwareRequirements")}
    assert needed == {"Nextflow": "25.10.0", "numpy": "2.2.0, 2.3.0"}
    used = {name: graph[name] for name in targets(action, "object")}
    assert {entity["@type"] for entity in used.values()} == {"CreativeWork", "PropertyValue"}
    assert used["#parameter/step_size"]["value"] == "0.5"
    assert used["#input/s1"]["alternateName"] == "/data/mouse 1.tif"
    assert [graph[name]["value"] for name in targets(used["#input/s1"], "identifier")] == ["c" * 64]
    assert {graph[name]["value"] for name in targets(used["#model"], "identifier")} == {"1" * 64, "2" * 64}
    assert action["description"] == "nextflow run main.nf --step_size '0.5'"
    assert datetime.fromisoformat(action["endTime"]).tzinfo is not None
    assert action["actionStatus"] == "http://schema.org/CompletedActionStatus"
    assert "error" not in action


def test_a_run_with_failed_samples_says_so(run):
    run.failed = (SimpleNamespace(name="s2"),)
    graph = {entity["@id"]: entity for entity in read_json(published(run) / "ro-crate-metadata.json")["@graph"]}
    assert graph["#run"]["actionStatus"] == "http://schema.org/FailedActionStatus"
    assert "s2" in graph["#run"]["error"]


def test_a_run_on_given_labels_has_no_model(run):
    run.models = ()
    crate = read_json(published(run) / "ro-crate-metadata.json")
    assert "#model" not in json.dumps(crate)


def test_only_the_time_differs_between_equal_runs(run, tmp_path):
    own = {"params.json": made("params.json")}
    texts = []
    for ended in (ENDED, ENDED, "2027-01-02T03:04:05+00:00"):
        write_lists(run, own, tmp_path, ended=ended, nextflow="25.10.0")
        texts.append((tmp_path / "ro-crate-metadata.json").read_text())
    assert texts[0] == texts[1]
    assert texts[2].replace("2027-", "2026-") == texts[0]
