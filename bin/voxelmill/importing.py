"""IMPORT_IMAGE: one streaming pass that stores an image and measures what is global about it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxelmill.errors import BadDataError
from voxelmill.formats import open_image
from voxelmill.formats.base import ImageSource, Selection
from voxelmill.image import ArrayLocation, Box, ImageInfo, Intensity, as_matrix, cut_box, slices, whole
from voxelmill.pictures import PictureBuilder, save_pictures, stretch
from voxelmill.statistics import Measurement, nonzero_box, percentile8
from voxelmill.store import create_array, multiscales, write_group
from voxelmill.task import Task

SHARD = (64, 256, 256)
PLANE_SHARD = (1, 2048, 2048)
STEP_BYTES = 32_000_000
"""A step reads whole shards up to this size: what bounds the memory of an import, whatever the image's size."""

EXACT_IN_FLOAT32 = 2**24

Step = tuple[int, Box, np.ndarray]
"""Channel (in the model's order), box (z, y, x) of the sample, raw voxels."""


@dataclass(frozen=True)
class SampleSpec:
    """What CHECK_INPUT decided about a sample; one entry of ``samples.json``.

    ``spacing`` (z, y, x) in micrometres, or voxels where ``unit`` is ``pixel``; ``box`` in voxels of the file or None.
    """

    id: str
    channel: tuple[int, ...]
    spacing: tuple[float, ...]
    unit: str
    spacing_origin: str
    box: Box | None = None
    flip: str = ""
    intensity: str = "none"
    nonfinite: str = "error"
    in_place: bool = False
    files: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> SampleSpec:
        """From an entry of ``samples.json``; what the import does not need is left out."""
        box = value["box"]
        return cls(
            id=value["id"],
            channel=tuple(value["channel"]),
            spacing=tuple(value["spacing"]),
            unit=value["unit"],
            spacing_origin=value["spacing_origin"],
            box=None if box is None else tuple(tuple(pair) for pair in box),
            flip="" if value["flip"] == "none" else value["flip"],
            intensity=value["intensity"],
            nonfinite=value["nonfinite"],
            in_place=value["in_place"],
            files=tuple(value["files"]),
            warnings=tuple(value["warnings"]),
        )


def import_image(sources: Sequence[ImageSource], spec: SampleSpec, out: Path) -> ImageInfo:
    """Store a sample's image, unless it is read in place, and measure it.

    Parameters
    ----------
    sources : sequence of ImageSource
        One file with all channels, or one file per channel in the model's order.
    spec : SampleSpec
        ``channel`` picks channels of a single file; of several files each has one.
    out : Path
        Folder of the sample: gets ``<id>.image.zarr`` (unless in place), ``<id>.image.json``, ``<id>.projections.npz``.

    Raises
    ------
    BadDataError
        Where a voxel is not finite, or an integer cannot be held by a float32.
    """
    channels = [(sources[0], c) for c in spec.channel] if len(sources) == 1 else [(s, 0) for s in sources]
    box = spec.box or tuple((0, n) for n in sources[0].shape[1:])
    shape = tuple(stop - start for start, stop in box)
    dtype = stored_dtype([source.dtype for source, _ in channels])
    replaced: Counter[str] = Counter()
    steps = read_steps(channels, box, shape, dtype, spec, replaced)
    if spec.in_place and sources[0].in_place is not None and not (spec.nonfinite == "zero" and dtype.kind == "f"):
        place = sources[0].in_place
        location = ArrayLocation(
            place.path, place.axes, spec.channel, tuple(start for start, _ in box), place.timepoint
        )
    else:
        location = ArrayLocation("0", "czyx", tuple(range(len(channels))))
        steps = stored(steps, out / f"{spec.id}.image.zarr", len(channels), shape, dtype, spec)
    pictures = PictureBuilder(shape, len(channels), dtype)
    digest = hashlib.sha256()
    steps = watched(steps, pictures, digest)
    if spec.intensity == "percentile8":
        rules = [percentile8(histogram) for histogram in histograms(steps, len(channels), spec)]
        steps = read_steps(channels, box, shape, dtype, spec, replaced)
    else:
        rules = [Intensity()] * len(channels)
    measured = [Measurement(shape) for _ in channels]
    for channel, at, raw in steps:
        measured[channel].update(at, rules[channel](raw))
    nonzero = nonzero_box(measured, shape)
    warnings = spec.warnings
    if replaced["voxels"]:
        warnings += (f"{replaced['voxels']} voxels that were NaN or infinite are read as 0 (--nonfinite zero)",)
    info = ImageInfo(
        sample=spec.id,
        shape=shape,
        dtype=dtype.name,
        spacing=spec.spacing,
        unit=spec.unit,
        spacing_origin=spec.spacing_origin,
        format=sources[0].format,
        files=spec.files,
        array=location,
        intensity=tuple(rules),
        flip=spec.flip,
        nonzero_box=nonzero,
        statistics=tuple(m.statistics(nonzero) for m in measured),
        content_sha256=digest.hexdigest(),
        affine=None if sources[0].affine is None else as_matrix(sources[0].affine),
        forms=tuple((code, as_matrix(form)) for code, form in sources[0].forms),
        origin=tuple(
            first + start * size
            for first, (start, _), size in zip(
                sources[0].origin if spec.unit == "um" else (0.0,) * 3, box, spec.spacing, strict=True
            )
        ),
        first=tuple(start for start, _ in box),
        warnings=warnings,
    )
    info.save(out / f"{spec.id}.image.json")
    save_pictures(out / f"{spec.id}.projections.npz", stretch(pictures.arrays()))
    return info


def stored_dtype(dtypes: Sequence[np.dtype]) -> np.dtype:
    """The one dtype that holds all channels; half precision and truth values become the next kind Zarr readers know."""
    common = np.result_type(*dtypes)
    return np.dtype({"float16": "float32", "bool": "uint8"}.get(common.name, common.name))


def read_steps(
    channels: Sequence[tuple[ImageSource, int]],
    box: Box,
    shape: Sequence[int],
    dtype: np.dtype,
    spec: SampleSpec,
    replaced: Counter[str],
) -> Iterator[Step]:
    """All voxels of a sample in steps of a fixed size, checked; ``replaced`` counts those that were not finite."""
    for channel, (source, index) in enumerate(channels):
        for at in step_boxes(shape, PLANE_SHARD if shape[0] == 1 else SHARD, dtype.itemsize):
            inside = tuple((a + start, b + start) for (a, b), (start, _) in zip(at, box, strict=True))
            raw = source.read(index, inside).astype(dtype, copy=False)
            yield channel, at, checked(raw, channel, at, spec, source, replaced)


def step_boxes(shape: Sequence[int], shard: Sequence[int], itemsize: int, limit: int = STEP_BYTES) -> list[Box]:
    """Boxes of whole shards, of up to ``limit`` bytes, that follow each other along x, y, then z.

    They depend on the image alone. A step is as wide as the image where it can be, because most files hold whole rows
    together.
    """
    depth, height, width = shard
    across = max(1, limit // (depth * height * width * itemsize))
    step_width = min(across, -(-shape[2] // width)) * width
    rows = max(1, limit // (depth * height * step_width * itemsize))
    return cut_box(whole(shape), (depth, height * rows, step_width))


def checked(
    raw: np.ndarray, channel: int, box: Box, spec: SampleSpec, source: ImageSource, replaced: Counter[str]
) -> np.ndarray:
    """Finite voxels that a float32 holds, or an error."""
    if raw.dtype.kind == "f":
        good = np.isfinite(raw)
        if not good.all():
            if spec.nonfinite == "zero":
                replaced["voxels"] += int((~good).sum())
                return np.where(good, raw, 0)
            first = np.argwhere(~good)[0] + [start for start, _ in box]
            raise BadDataError(
                f"{int((~good).sum())} voxels are NaN or infinite in planes {box[0][0]} to {box[0][1] - 1} of channel "
                f"{channel}, the first at z, y, x = {', '.join(map(str, first))}",
                sample=spec.id,
                file=name_of(source, spec),
                expected="finite values: one NaN would empty the whole mask",
                remedy="repair the image, or pass --nonfinite zero to read them as 0",
            )
    elif raw.dtype.itemsize >= 4 and raw.size:
        largest = max(abs(int(raw.min())), abs(int(raw.max())))
        if largest > EXACT_IN_FLOAT32:
            raise BadDataError(
                f"the value {largest} cannot be held by the network's 32-bit numbers",
                sample=spec.id,
                file=name_of(source, spec),
                expected=f"integers up to {EXACT_IN_FLOAT32}",
                remedy="scale the image to 16 bits",
            )
    return raw


def name_of(source: ImageSource, spec: SampleSpec) -> str:
    """The file as the user named it."""
    return spec.files[0] if len(spec.files) == 1 else str(source.path)


def stored(
    steps: Iterable[Step], path: Path, channels: int, shape: Sequence[int], dtype: np.dtype, spec: SampleSpec
) -> Iterator[Step]:
    """Pass the steps on and write them to an OME-Zarr image (c, z, y, x)."""
    plane = shape[0] == 1
    shard = (1, *(PLANE_SHARD if plane else SHARD))
    chunk = (1, 1, 512, 512) if plane else (1, 64, 64, 64)
    array = create_array(path / "0", (channels, *shape), dtype.name, shard, "czyx", chunk=chunk)
    write_group(path, {"multiscales": [multiscales(spec.id, shape, spec.spacing, spec.unit, (0, 0, 0), 1, "czyx")]})
    for channel, box, raw in steps:
        array[(slice(channel, channel + 1), *slices(box))] = raw[None]
        yield channel, box, raw


def watched(steps: Iterable[Step], pictures: PictureBuilder, digest: Any) -> Iterator[Step]:
    """Pass the steps on, into the report's pictures and the hash of the raw voxels."""
    for channel, box, raw in steps:
        pictures.update(box, raw, channel)
        digest.update(np.ascontiguousarray(raw).data)
        yield channel, box, raw


def histograms(steps: Iterable[Step], channels: int, spec: SampleSpec) -> list[np.ndarray]:
    """Counts of the values 0..65535 per channel."""
    counts = [np.zeros(65536, np.int64) for _ in range(channels)]
    for channel, _, raw in steps:
        if raw.dtype.kind == "f" or (raw.size and (raw.min() < 0 or raw.max() > 65535)):
            raise BadDataError(
                f"--intensity percentile8 counts whole numbers from 0 to 65535; this image is {raw.dtype}",
                sample=spec.id,
                file=", ".join(spec.files),
                expected="8- or 16-bit unsigned integers",
                remedy="use --intensity none, or convert the image to 16 bits",
            )
        counts[channel] += np.bincount(raw.ravel(), minlength=65536)
    return counts


def import_batch(entries: Sequence[dict[str, Any]], images: Path, out: Path, record: Task) -> None:
    """Import the samples of a batch.

    Parameters
    ----------
    entries : sequence of dict
        The batch's entries of ``samples.json``.
    images : Path
        Staged files ``<n>/<file>``; the entries' ``images`` are their numbers.
    out : Path
        Each sample gets a folder of its own in it.
    record : Task
    """
    for entry in entries:
        spec = SampleSpec.from_dict(entry)
        sources = [
            open_image(staged_file(images, number), Selection(**chosen))
            for number, chosen in zip(entry["images"][: len(entry["files"])], entry["selections"], strict=False)
        ]
        info = import_image(sources, spec, out / spec.id)
        for source in sources:
            source.close()
        for warning in info.warnings:
            record.warn(warning, sample=spec.id)
        store = out / spec.id / f"{spec.id}.image.zarr"
        record.counts[spec.id] = {
            "voxels": info.voxels,
            "store_bytes": tree_bytes(store),
            "in_place": not store.exists(),
        }


def staged_file(folder: Path, number: int) -> Path:
    """The only file in a numbered folder."""
    (path,) = (folder / str(number)).iterdir()
    return path


def tree_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
