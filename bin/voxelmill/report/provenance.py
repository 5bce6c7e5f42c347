"""Where results come from, for machines: an RO-Crate around the results' folder.

It follows RO-Crate 1.1 and the profile Process Run Crate 0.5: one action (the run) that used a software with its
parameters, a model and images, and created files. The only thing in it that differs between two equal runs is the time
at which the run ended, which the profile asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from voxelmill import __version__
from voxelmill.files import sha256_file, write_bytes, write_json
from voxelmill.image import ImageInfo
from voxelmill.report.collect import Model, Run, Sample
from voxelmill.report.outputs import CHECKSUMS, Checksum, checksum_lines, outputs_list, published_files

CRATE = "ro-crate-metadata.json"
SPECIFICATION = "https://w3id.org/ro/crate/1.1"
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
CONTEXT = [f"{SPECIFICATION}/context", "https://w3id.org/ro/terms/workflow-run/context"]
NGFF = "https://ngff.openmicroscopy.org/0.5/"

RUN, SOFTWARE, MODEL = "#run", "#voxelmill", "#model"
ENGINE, PYTHON, PACKAGES = "https://www.nextflow.io/", "https://www.python.org/", "https://pypi.org/project/"

MEDIA_TYPES = {
    ".csv": "text/csv", ".geojson": "application/geo+json", ".gz": "application/gzip", ".h5": "application/x-hdf5",
    ".html": "text/html", ".json": "application/json", ".parquet": "application/vnd.apache.parquet",
    ".png": "image/png", ".sha256": "text/plain", ".svg": "image/svg+xml", ".tif": "image/tiff",
}  # fmt: skip

DESCRIPTIONS = {
    "axons": "Length, volume and intensity profile of every measured object",
    "chart": "Distribution of the lengths",
    "class_volumes": "Voxels and volume of every class",
    "cohort_chart": "Lengths by group",
    "cohort_objects": "Objects of all samples, one row each",
    "estimate": "What the run was expected to take",
    "label_binary": "Foreground after the filters",
    "label_instances": "Number of the object of every voxel",
    "label_outlines": "Outlines of the labels of a single plane",
    "label_raw": "Class of every voxel",
    "labels": "Labels as OME-Zarr (NGFF 0.5)",
    "objects": "Objects, one row each",
    "outputs": "List of what the run published",
    "params": "Parameters of the run",
    "plan": "Windows, tiles and blocks",
    "profiles": "Intensities along the path of every object",
    "report": "The run for people to read",
    "samples": "Samples as they were understood",
}
"""Kind (see `voxelmill.report.outputs`) -> what the file is."""

Entity = dict[str, Any]


def write_lists(run: Run, own: Mapping[str, Path], folder: Path, *, ended: str, nextflow: str | None) -> None:
    """Write ``outputs.json``, the RO-Crate and ``outputs.sha256``, which names the other two.

    Parameters
    ----------
    run : Run
    own : mapping
        Name -> file of what the report's task publishes besides.
    folder : Path
    ended, nextflow : str
        See `run_crate`.
    """
    made = {name: checksum_of(path) for name, path in own.items()}
    listed = outputs_list(run, {name: checksum.sha256 for name, checksum in made.items()})
    write_json(folder / "outputs.json", listed)
    files = published_files(run, made) | {"outputs.json": checksum_of(folder / "outputs.json")}
    rows = [*listed["outputs"], {"kind": "outputs", "sample": None, "path": "outputs.json"}]
    write_json(folder / CRATE, run_crate(run, rows, files, ended=ended, nextflow=nextflow))
    files = dict(sorted({**files, CRATE: checksum_of(folder / CRATE)}.items()))
    write_bytes(folder / PurePosixPath(CHECKSUMS).name, checksum_lines(files).encode())


def checksum_of(path: Path) -> Checksum:
    return Checksum(sha256_file(path), path.stat().st_size)


def run_crate(
    run: Run, rows: Sequence[Mapping[str, Any]], files: Mapping[str, Checksum], *, ended: str, nextflow: str | None
) -> Entity:
    """Value of ``ro-crate-metadata.json``.

    Parameters
    ----------
    run : Run
    rows : sequence of mapping
        Published files and folders: ``kind``, ``sample``, ``path``, as in ``outputs.json``.
    files : mapping
        Checksum of every file by its path.
    ended : str
        ISO 8601 with a time zone.
    nextflow : str or None
        Version.
    """
    results = [result_entity(row, files) for row in rows]
    checksums = {"@id": CHECKSUMS, "@type": "File", "name": "Checksums of all files", "encodingFormat": "text/plain"}
    inputs = [entity for sample in run.samples if sample.image for entity in input_entities(sample, sample.image)]
    model = model_entities(digests_of(run.models)) if run.models else []
    parameters = [
        {"@id": f"#parameter/{quote(p.name)}", "@type": "PropertyValue", "name": p.name, "value": p.value}
        for p in run.parameters
    ]
    software = software_entities(run, nextflow)
    used = [*references(inputs, "CreativeWork"), *references(model, "CreativeWork"), *references(parameters)]
    action: Entity = {
        "@id": RUN,
        "@type": "CreateAction",
        "name": "Run of Voxelmill",
        "description": run.command or "Run of Voxelmill",
        "endTime": ended,
        "instrument": {"@id": SOFTWARE},
        "object": used,
        "result": references([*results, checksums]),
        "actionStatus": f"http://schema.org/{'Failed' if run.failed else 'Completed'}ActionStatus",
    }
    if run.failed:
        action["error"] = f"no results, or not all, of {', '.join(sample.name for sample in run.failed)}"
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": "Results of Voxelmill",
        "description": f"{len(run.finished)} segmented samples: labels, tables, charts and a report",
        "datePublished": ended,
        "license": "The owner of the images decides on the licence of these results.",
        "conformsTo": {"@id": PROFILE},
        "hasPart": references([*results, checksums]),
        "mentions": {"@id": RUN},
    }
    descriptor = {
        "@id": CRATE, "@type": "CreativeWork", "conformsTo": {"@id": SPECIFICATION}, "about": {"@id": "./"},
    }  # fmt: skip
    profile = {"@id": PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"}
    ngff = {"@id": NGFF, "@type": "CreativeWork", "name": "OME-Zarr (NGFF) 0.5"}
    stores = [ngff] if any(row["kind"] == "labels" for row in rows) else []
    entities = [
        descriptor,
        root,
        profile,
        *stores,
        action,
        *software,
        *parameters,
        *model,
        *inputs,
        *results,
        checksums,
    ]
    return {"@context": CONTEXT, "@graph": entities}


def references(entities: Sequence[Entity], kind: str | None = None) -> list[Entity]:
    """``@id`` of every entity, of one type where it is given."""
    return [{"@id": entity["@id"]} for entity in entities if kind is None or entity["@type"] == kind]


def result_entity(row: Mapping[str, Any], files: Mapping[str, Checksum]) -> Entity:
    """A published file, or a folder with the number of its files; the checksums of those are in ``outputs.sha256``."""
    path, kind = str(row["path"]), str(row["kind"])
    entity: Entity = {"@id": quote(path), "name": path, "description": DESCRIPTIONS.get(kind, kind.replace("_", " "))}
    if row["sample"]:
        entity["about"] = {"@id": input_id(row["sample"])}
    if path in files:
        kinds = {"encodingFormat": MEDIA_TYPES.get(PurePosixPath(path).suffix, "application/octet-stream")}
        size = str(files[path].bytes)
        return {**entity, "@type": "File", **kinds, "contentSize": size, "sha256": files[path].sha256}
    inside = [checksum.bytes for name, checksum in files.items() if name.startswith(f"{path}/")]
    text = f"{entity['description']}; {len(inside)} files of together {sum(inside)} bytes"
    return {
        **entity, "@id": f"{quote(path)}/", "@type": "Dataset", "description": text, "conformsTo": {"@id": NGFF},
    }  # fmt: skip


def input_id(sample: str) -> str:
    return f"#input/{quote(sample)}"


def input_entities(sample: Sample, image: ImageInfo) -> list[Entity]:
    """A sample's image, which lies outside the crate, and the digest of its voxels."""
    here = input_id(sample.name)
    unit = "voxels" if image.unit == "pixel" else "µm"
    spacing = " x ".join(f"{length:g}" for length in image.spacing)
    return [
        {
            "@id": here,
            "@type": "CreativeWork",
            "name": sample.name,
            "alternateName": image.files[0] if len(image.files) == 1 else list(image.files),
            "description": (
                f"{image.format}, {' x '.join(map(str, image.shape))} voxels of {image.dtype} along z, y, x, "
                f"spacing {spacing} {unit}" + (f", box {sample.box}" if sample.box else "")
            ),
            "identifier": {"@id": f"{here}/voxels"},
        },
        digest_entity(f"{here}/voxels", "raw voxels", image.content_sha256),
    ]


def digests_of(models: Sequence[Model]) -> dict[str, str]:
    """Digest of each file of all models; from the second on, the number of the model is before a file's name."""
    return {
        f"{f'model {number}/' if number > 1 else ''}{name}": digest
        for number, model in enumerate(models, start=1)
        for name, digest in model.digests.items()
    }


def model_entities(digests: Mapping[str, str]) -> list[Entity]:
    """The packed model and the digest of each of its files."""
    parts = [digest_entity(f"{MODEL}/{quote(name)}", name, digest) for name, digest in sorted(digests.items())]
    return [
        {"@id": MODEL, "@type": "CreativeWork", "name": "Packed model", "identifier": references(parts)},
        *parts,
    ]


def digest_entity(identifier: str, name: str, digest: str) -> Entity:
    return {
        "@id": identifier, "@type": "PropertyValue", "name": f"SHA-256 of {name}", "propertyID": "sha256",
        "value": digest,
    }  # fmt: skip


def software_entities(run: Run, nextflow: str | None) -> list[Entity]:
    """Voxelmill, and what it needs: Nextflow and the packages that the tasks used."""
    needed = [
        {
            **software_entity(PYTHON if name == "python" else f"{PACKAGES}{quote(name)}/", name),
            "softwareVersion": ", ".join(used),
        }
        for name, used in run.versions.items()
        if name != "voxelmill"
    ]
    if nextflow is not None:
        needed = [{**software_entity(ENGINE, "Nextflow"), "softwareVersion": nextflow}, *needed]
    return [
        {
            "@id": SOFTWARE,
            "@type": "SoftwareApplication",
            "name": "Voxelmill",
            "softwareVersion": __version__,
            "description": f"revision {run.revision}" if run.revision else "nnU-Net segmentation of images of any size",
            "softwareRequirements": references(needed),
        },
        *needed,
    ]


def software_entity(url: str, name: str) -> Entity:
    return {"@id": url, "@type": "SoftwareApplication", "name": name, "url": url}
