"""Fabricated objects of a sample, in all files that TABULATE_OBJECTS finds in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from voxelmill.files import write_json
from voxelmill.grid import LabelGrid
from voxelmill.image import ArrayLocation, ImageInfo, Intensity, cut_box, whole
from voxelmill.store import create_array, create_label_levels, write_label_shard

LINKED = (
    ("id", pa.int64()), ("class_value", pa.int32()), ("voxels", pa.int64()),
    *((f"{axis}_{bound}", pa.int64()) for axis in "zyx" for bound in ("start", "stop")),
    *((f"centroid_{axis}", pa.float64()) for axis in "zyx"),
    ("touches_border", pa.bool_()), ("measured", pa.bool_()),
)  # fmt: skip
MEASURES = (
    ("id", pa.int64()), ("longest_path", pa.float64()), ("longest_branch", pa.float64()), ("branches", pa.int32()),
    ("tortuosity", pa.float64()), ("mean_thickness", pa.float64()), ("skeleton_voxels", pa.int64()),
    ("skeleton_empty", pa.bool_()), ("length_resolution", pa.int32()),
    ("profile_distance", pa.list_(pa.float64())), *((f"profile_{axis}", pa.list_(pa.int32())) for axis in "zyx"),
)  # fmt: skip
VOLUME = (
    ("equivalent_diameter", pa.float64()), ("surface", pa.float64()), ("sphericity", pa.float64()),
    *((f"axis_{k}", pa.float64()) for k in (1, 2, 3)), ("elongation", pa.float64()), ("flatness", pa.float64()),
    ("neighbours", pa.int32()), ("contact_area", pa.float64()),
)  # fmt: skip
PLANE = (
    ("equivalent_diameter", pa.float64()), ("perimeter", pa.float64()), ("circularity", pa.float64()),
    *((f"axis_{k}", pa.float64()) for k in (1, 2)), ("elongation", pa.float64()),
    ("neighbours", pa.int32()), ("contact_length", pa.float64()),
)  # fmt: skip
STATISTICS = ("mean", "min", "max", "sd")
CLASSES = {1: "axon", 2: "=soma"}


def linked_schema(channels: int) -> pa.Schema:
    return pa.schema([*LINKED, *((f"{name}_c{c}", pa.float64()) for c in range(channels) for name in STATISTICS)])


def measures_schema(channels: int, measures: Sequence[str], plane: bool) -> pa.Schema:
    profiles = [(f"profile_c{c}", pa.list_(pa.float64())) for c in range(channels)]
    skeleton = [*MEASURES[1:], *profiles] if "skeleton" in measures else []
    shape = (PLANE if plane else VOLUME) if "shape" in measures else ()
    return pa.schema([MEASURES[0], *skeleton, *shape])


class Sample:
    """Boxes of voxels in a volume, each an object with a straight path along x through its middle.

    Attributes
    ----------
    rows : list of dict
        Rows of the linked table.
    measures : list of dict
        Rows of the measures; may be changed before :meth:`write`.
    """

    def __init__(
        self,
        name: str,
        boxes: Sequence[tuple[tuple[int, int], ...]],
        shape: tuple[int, int, int] = (12, 40, 48),
        spacing: tuple[float, float, float] = (3.0, 2.0, 1.5),
        origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
        unit: str = "um",
        channels: int = 1,
        dtype: str = "uint16",
        shard: tuple[int, int, int] = (16, 16, 16),
        seed: int = 0,
    ):
        self.name, self.unit, self.channels, self.dtype = name, unit, channels, dtype
        rng = np.random.default_rng(seed)
        self.image = rng.integers(100, 4000, (channels, *shape)).astype(dtype)
        if np.dtype(dtype).kind == "f":
            self.image += rng.random(self.image.shape).astype(dtype)
        self.labels = np.zeros(shape, np.uint16)
        cuts = tuple((0, n) for n in shape)
        self.grid = LabelGrid(
            sample=name, shape=shape, spacing=spacing, origin=origin, unit=unit, shard=shard, cuts=cuts, reached=(0,),
            values=tuple(CLASSES), label_names={str(v): text for v, text in CLASSES.items()}, windows=0,
            kind="semantic", dtype="uint8",
        )  # fmt: skip
        self.rows: list[dict] = []
        self.measures: list[dict] = []
        for number, box in enumerate(boxes, 1):
            self._add(number, box)

    def _add(self, number: int, box: tuple[tuple[int, int], ...]) -> None:
        where = tuple(slice(start, stop) for start, stop in box)
        self.labels[where] = number
        touches = any(a == 0 or b == n for (a, b), n in zip(box, self.labels.shape, strict=True) if n > 1)
        row = {
            "id": number, "class_value": 1 + (number % 3 == 0), "voxels": int(np.prod([b - a for a, b in box])),
            "touches_border": touches, "measured": not touches,
        }  # fmt: skip
        for axis, (start, stop) in zip("zyx", box, strict=True):
            row |= {f"{axis}_start": start, f"{axis}_stop": stop, f"centroid_{axis}": (start + stop - 1) / 2}
        for channel, image in enumerate(self.image):
            values = image[where].astype(np.float64)
            found = (values.mean(), values.min(), values.max(), values.std())
            row |= {f"{name}_c{channel}": float(v) for name, v in zip(STATISTICS, found, strict=True)}
        self.rows.append(row)
        if not touches:
            self.measures.append(self._measure(number, box))

    def _measure(self, number: int, box: tuple[tuple[int, int], ...]) -> dict:
        (z, _), (y, _), (left, right) = box
        x = np.arange(left, right)
        step = self.grid.spacing[2]
        row = {
            "id": number, "longest_path": (x.size - 1) * step, "longest_branch": (x.size - 1) * step / 2,
            "branches": 1 + number % 2, "tortuosity": 1 + number / 7, "mean_thickness": 2.0 + number / 3,
            "skeleton_voxels": x.size, "skeleton_empty": False, "length_resolution": 1,
            "profile_distance": (np.arange(x.size) * step).tolist(), "profile_z": [z] * x.size,
            "profile_y": [y] * x.size, "profile_x": x.tolist(),
        }  # fmt: skip
        row |= {"equivalent_diameter": 10.0 + number, "axis_1": 30.0 + number, "axis_2": 20.0 + number}
        row |= {"surface": 500.0 + number, "sphericity": 1 / number, "axis_3": 10.0 + number, "flatness": 2.0}
        row |= {"perimeter": 50.0 + number, "circularity": 1 / number, "elongation": 1.5 if number % 2 else None}
        row |= {"neighbours": number % 3, "contact_area": 4.0 * (number % 3), "contact_length": 2.0 * (number % 3)}
        return row | {f"profile_c{c}": self.image[c, z, y, x].astype(float).tolist() for c in range(self.channels)}

    def write(
        self, folder: Path, position: int = 1, tasks: int = 1, measures: Sequence[str] = ("skeleton", "shape")
    ) -> None:
        """All files of the sample; its label store is that of a position, from 1, in the batch."""
        schema = measures_schema(self.channels, measures, 1 in self.labels.shape)
        folder.mkdir(parents=True, exist_ok=True)
        self.grid.save(folder / f"{self.name}.grid.json")
        pq.write_table(
            pa.Table.from_pylist(self.rows, linked_schema(self.channels)), folder / f"{self.name}.linked.parquet"
        )
        removed = {"below_min_voxels": 2, "below_min_volume": 0, "below_mean_fraction": 1, "touches_border": 0}
        write_json(
            folder / f"{self.name}.linked.json",
            {
                "sample": self.name, "components": len(self.rows) + 3, "objects": len(self.rows), "dtype": "uint16",
                "connectivity": 26, "components_of": "class", "dropped": removed, "dropped_voxels": removed,
            },
        )  # fmt: skip
        for task, rows in enumerate(np.array_split(np.arange(len(self.measures)), tasks)):
            table = pa.Table.from_pylist([self.measures[row] for row in rows], schema)
            pq.write_table(table, folder / f"{self.name}.m{task}.measures.parquet")
        self._write_image(folder)
        self._write_labels(folder / "labels" / str(position) / "labels.ome.zarr" / "instances")

    def _write_image(self, folder: Path) -> None:
        shape = self.labels.shape
        info = ImageInfo(
            sample=self.name, shape=shape, dtype=self.dtype, spacing=self.grid.spacing, unit=self.unit,
            spacing_origin="", format="TIFF", files=(f"{self.name}.tif",),
            array=ArrayLocation("0", "czyx", tuple(range(self.channels))),
            intensity=(Intensity(),) * self.channels, flip="none", nonzero_box=tuple((0, n) for n in shape),
            statistics=(), content_sha256="c" * 64, origin=self.grid.origin,
        )  # fmt: skip
        info.save(folder / f"{self.name}.image.json")
        store = folder / "stores" / f"{self.name}.image.zarr"
        array = create_array(store / "0", self.image.shape, self.dtype, (1, *self.grid.shard), "czyx")
        array[:] = self.image

    def _write_labels(self, path: Path) -> None:
        levels = create_label_levels(path, self.labels.shape, self.grid.shard, "uint16")
        for box in cut_box(whole(self.labels.shape), self.grid.shard):
            write_label_shard(levels, box, self.labels[tuple(slice(a, b) for a, b in box)])
