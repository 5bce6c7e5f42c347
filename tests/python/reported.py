"""Fabricated results of a run, as BUILD_REPORT finds them, and its pages as a browser would read them."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from voxelmill.files import read_json, write_json
from voxelmill.image import ArrayLocation, ImageInfo, Intensity
from voxelmill.pictures import PictureBuilder, stretch
from voxelmill.report.arrival import PREDICTION
from voxelmill.report.collect import Run, collect_run
from voxelmill.report.render import render_report

WHEN = "2026-01-02 03:04 UTC"
VOID = {"meta", "link", "img", "input", "br", "hr", "rect", "path", "polyline"}
SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><rect width='1' height='1'/></svg>"

LENGTH = {
    "name": "longest_path_um", "label": "Length", "unit": "µm", "n": 3, "mean": 20.0, "sd": 8.164966, "min": 10.0,
    "p5": 11.0, "p25": 15.0, "median": 20.5, "p75": 25.0, "p95": 29.0, "max": 30.0,
    "edges": [10.0, 20.0, 30.0], "counts": [1, 2],
}  # fmt: skip
VOLUME = LENGTH | {"name": "volume_um3", "label": "Volume", "unit": "µm³", "mean": 2.5e6, "median": 2e6, "sd": None}
OBJECTS = {
    "unit": "um", "length": "longest_path", "objects": 5, "measured": 3, "components": 12,
    "dropped": {"below_min_voxels": 4, "below_min_volume": 0, "touches_border": 3},
    "dropped_voxels": {"below_min_voxels": 11, "below_min_volume": 0, "touches_border": 1234},
    "skeleton_empty": 1, "reduced_resolution": 1, "quantities": [LENGTH, VOLUME], "warnings": [],
    "classes": [
        {"value": 1, "name": "tube", "objects": 4, "voxels": 700},
        {"value": 2, "name": "blob", "objects": 1, "voxels": 77},
    ],
    "gallery": [
        {"key": "largest", "id": 7, "class": "blob", "voxels": 321, "volume": 642.0, "length": 30.0, "branches": 1},
        {"key": "smallest", "id": 2, "class": "tube", "voxels": 1, "volume": 2.0, "length": None, "branches": None},
    ],
}  # fmt: skip
"""What ``<sample>.objects.json`` holds."""

GROUPS = [
    {"name": "wild", "samples": ["s0"], "objects": 5, "measured": 3, "mean": 20.0, "sd": 8.0, "median": 20.5},
    {"name": "mutant", "samples": ["s1"], "objects": 9, "measured": 8, "mean": 30.0, "sd": None, "median": 31.0},
]  # fmt: skip
TEST = {
    "name": "Mann–Whitney U", "of": "sample means of length", "statistic": 3.5, "p": 0.0421,
    "effect": {"Cliff's delta": 0.6667}, "note": "Samples are the units.",
}  # fmt: skip


class Page(HTMLParser):
    """Tags of a page with their attributes, its text, the texts of its tables' cells by row, and a failure where tags
    do not close."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        self.rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.text += data
        if "tr" in self.open and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


class Folder:
    """Fabricated results of a run, as BUILD_REPORT finds them."""

    def __init__(self, path: Path):
        self.path = path
        self.samples: list[dict] = []
        self.skipped: list[dict] = []
        self.params = {"params": {"folds": "0", "input": "samples.csv", "stop_after": None, "on_bad_sample": "stop"}}
        self.params["defaults"] = {"folds": "all", "input": None, "stop_after": None, "on_bad_sample": "stop"}
        self.params |= {"command": "nextflow run main.nf", "revision": "abc123", "profile": "test"}
        for folder in ("staged", "records", "model"):
            (path / folder).mkdir()
        self.model()
        self.record("pack_model", "pack_model", wall=2.0, cpu=3.0, memory=400_000_000)

    def model(self, **changes: object) -> None:
        resampling = {"name": "resample_data_or_seg_to_shape", "kwargs": {}}
        network = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
        config = {
            "configuration": "3d_fullres", "trainer": "nnUNetTrainer", "dataset_name": "Dataset001_Tubes",
            "patch_size": [16, 32, 32], "spacing": [2.0, 1.0, 1.0], "spacing_unit": "um",
            "transpose_forward": [0, 1, 2], "normalization": ["ZScoreNormalization"], "intensity_properties": {},
            "resampling_data": resampling, "resampling_probabilities": resampling, "channel_names": ["signal"],
            "labels": {"background": 0, "tube": 1, "blob": 2}, "regions_class_order": None, "heads": 3,
            "foreground_values": [1, 2], "ignore_label": None, "mirror_axes": [0, 1, 2],
            "architecture": {"class": network, "kwargs": {}, "imports": []}, "reader": "Tiff3DIO", "folds": ["0"],
            "fingerprint": None, "licence": "CC BY 4.0",
        } | changes  # fmt: skip
        write_json(self.path / "model" / "model.json", config)
        write_json(self.path / "model" / "manifest.json", {"format": 1, "files": {"fold_0.safetensors": "5" * 64}})
        (self.path / "model" / "card.md").write_text("# Tubes\n\nFinds *tubes*.\n")

    def record(
        self,
        process: str,
        name: str,
        wall: float = 1.0,
        cpu: float = 1.0,
        memory: int = 1_000_000,
        part: str | None = None,
        **more: object,
    ) -> None:
        value = {
            "process": process, "name": name, "part": part, "voxelmill": "0.1.0", "python": "3.11.2",
            "wall_seconds": wall, "cpu_seconds": cpu, "peak_memory_bytes": memory, "counts": {}, "warnings": [],
            "device": "cpu" if process == PREDICTION else None, "outputs": {}, "versions": {"numpy": "2.2.0"},
        } | more  # fmt: skip
        file = ".".join(filter(None, (str(len(list((self.path / "records").iterdir()))), process, part, "json")))
        write_json(self.path / "records" / file, value)

    def sample(
        self, name: str, shape: tuple[int, int, int] = (6, 20, 24), labels: bool = True, noise: int = 0, **entry: object
    ) -> None:
        """A sample with all files, or with none of its labels."""
        index = len(self.samples)
        self.samples.append({"id": name, "batch": name, "box": None, "warnings": [], **entry})
        self.image(name, shape)
        rng = np.random.default_rng(index)
        volume = rng.integers(0, 4000, shape).astype(np.uint16) if noise else gradient(shape)
        save_pictures(self.path / "staged" / f"{name}.projections.npz", stretch(pictures_of(volume)))
        if labels:
            mask = label_volume(shape)
            save_pictures(self.path / "staged" / f"{name}.label_pictures.npz", pictures_of(mask))
            voxels = np.bincount(mask.ravel(), minlength=3)
            classes = [
                {"value": v, "name": text, "voxels": int(voxels[v]), "volume_um3": 2.0 * int(voxels[v])}
                for v, text in enumerate(("background", "tube", "blob"))
            ]
            write_json(
                self.path / "staged" / f"{name}.labels.json",
                {"sample": name, "classes": classes, "windows": 12, "warnings": []},
            )
            counts = {name: {"windows": 12, "computed": 9, "reused": 3, "piece_bytes": 7_000}}
            self.record("predict_tiles", name, wall=30.0, cpu=50.0, memory=2_000_000_000, part="0", counts=counts)

    def objects(self, name: str, **changes: object) -> None:
        """What TABULATE_OBJECTS leaves of a sample: three objects in the table, two in the gallery."""
        value = OBJECTS | {"sample": name} | changes
        write_json(self.path / "staged" / f"{name}.objects.json", value)
        grey = np.arange(200, dtype=np.uint8).reshape(10, 20)
        mask = np.zeros((10, 20), bool)
        mask[2:8, 3:17] = True
        path = {"largest": np.array([[5.0, 3.5], [5.0, 16.5]], np.float32), "smallest": np.zeros((0, 2), np.float32)}
        save_pictures(
            self.path / "staged" / f"{name}.gallery.npz",
            {
                f"{key}_{layer}": array
                for key in ("largest", "smallest")
                for layer, array in (
                    ("grey", grey), ("mask", mask), ("path", path[key]), ("extent", np.array([40.0, 80.0]))
                )
            },
        )  # fmt: skip
        (self.path / "staged" / f"{name}.lengths.svg").write_bytes(SVG)
        outputs = {f"{name}/{name}.{ending}": "8" * 64 for ending in ("objects.csv", "axons.json", "objects.parquet")}
        self.record("tabulate_objects", name, outputs=outputs)
        labels = self.path / "staged" / f"{name}.labels.json"
        if labels.exists():
            write_json(labels, read_json(labels) | {"objects": value["objects"]})

    def cohort(self, *names: str, **changes: object) -> None:
        """What COMPARE_SAMPLES leaves."""
        row = {"group": "wild", "objects": 5, "measured": 3}
        means = {"mean": 20.25, "median": None, "volume_mean": 2.5e6}
        samples = [{"id": name, **row, **means} for name in names]
        value = {"length": "longest_path", "unit": "um", "groups": GROUPS, "test": TEST, "note": "In no group: s9."}
        value = value | {"samples": samples} | changes
        write_json(self.path / "staged" / "cohort.json", value)
        (self.path / "staged" / "lengths_by_group.svg").write_bytes(SVG)
        self.record("compare_samples", "compare_samples", outputs={"objects.csv": "9" * 64})

    def image(self, name: str, shape: tuple[int, int, int], **changes: object) -> None:
        info = ImageInfo(
            sample=name, shape=shape, dtype="uint16", spacing=(2.0, 1.0, 1.0), unit="um", spacing_origin="OME-XML",
            format="OME-TIFF", files=(f"{name}.ome.tif",), array=ArrayLocation("0", "zyx", (0,)),
            intensity=(Intensity(),), flip="none", nonzero_box=tuple((0, n) for n in shape), statistics=(),
            content_sha256="c" * 64,
        )  # fmt: skip
        replace(info, **changes).save(self.path / "staged" / f"{name}.image.json")

    def write(self) -> list[Path | None]:
        """Write the JSON files that CHECK_INPUT and Nextflow make -> arguments of `collect_run`."""
        write_json(self.path / "samples.json", {"samples": self.samples, "skipped": self.skipped})
        write_json(
            self.path / "estimate.json",
            {"windows": 12, "seconds": 40.0, "memory_bytes": 2_500_000_000, "work_bytes": 60_000, "output_bytes": 900},
        )
        write_json(self.path / "params.json", self.params)
        package = self.path / "model" if (self.path / "model").exists() else None
        return [*(self.path / f"{name}.json" for name in ("samples", "estimate", "params")), package]

    def collect(self) -> Run:
        return collect_run(*self.write(), [self.path / "staged", self.path / "records"])

    def pages(self) -> dict[str, str]:
        return dict(render_report(self.collect(), WHEN))


def gradient(shape: tuple[int, int, int]) -> np.ndarray:
    return np.add.outer(np.add.outer(np.arange(shape[0]) * 50, np.arange(shape[1]) * 7), np.arange(shape[2])).astype(
        np.uint16
    )


def label_volume(shape: tuple[int, int, int]) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[:, 3:9, 4:15] = 1
    labels[shape[0] // 2 :, 7:14, 10:20] = 2
    return labels


def pictures_of(volume: np.ndarray, size: int = 1024) -> dict[str, np.ndarray]:
    builder = PictureBuilder(volume.shape, 1, volume.dtype, size)
    builder.update(tuple((0, n) for n in volume.shape), volume)
    return builder.arrays()


def save_pictures(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(path, **arrays)
