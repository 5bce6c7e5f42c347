"""CHECK_INPUT: open every header, compare images with the model, and say what the run will take."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np

from voxelmill.errors import (
    BadDataError,
    FaultsError,
    InputMissingError,
    ModelMismatchError,
    VoxelmillError,
    WriteFailedError,
)
from voxelmill.files import read_json, sha256_tree
from voxelmill.formats import ImageSource, ZarrSource, missing_chunks, open_image
from voxelmill.formats.spacing import Triple, checked, micrometres_per
from voxelmill.image import Box
from voxelmill.model.config import ModelConfig
from voxelmill.planning import REORIENTING_READERS, Options, ras_orientation
from voxelmill.samplesheet import UNUSED, Rejected, Row, printable, read_sheet, rows_of_images
from voxelmill.schedule import estimate

SMALL_VOXELS = 2**21
BATCH_SAMPLES = 64
BATCH_VOXELS = 2**26

MISMATCH, REMARKABLE = 3.0, 1.5
"""Ratios of image and model spacing that are an error and worth a warning."""

DIFFERENT = 1.01
"""Ratio of a given spacing and the file's from which on the user is told."""

STEP_BYTES = 64 << 20
FIGURES = ("windows", "seconds", "memory_bytes", "work_bytes", "output_bytes")


@dataclass(frozen=True)
class CheckOptions:
    """What the user chose for all samples; a samplesheet's cells come first.

    ``spacing``, ``unit``, ``channel`` and ``box`` are the texts of the params, None where absent.
    """

    channel: str | None = None
    intensity: str = "none"
    flip: str = "none"
    spacing: str | None = None
    unit: str | None = None
    box: str | None = None
    preview: bool = False
    skip_bad: bool = False
    fill_missing: bool = False
    nonfinite: str = "error"
    full: bool = False
    allow_spacing_mismatch: bool = False
    plan: Options = field(default_factory=Options)


@dataclass(frozen=True)
class Checked:
    """Outcome of the check.

    Attributes
    ----------
    samples : list of dict
        Entries of ``samples.json``.
    skipped : list of dict
        Id and error of the rows that were left out.
    estimates : dict
        Sample -> windows, seconds, memory_bytes, work_bytes, output_bytes.
    """

    samples: list[dict[str, Any]]
    skipped: list[dict[str, str]]
    estimates: dict[str, dict[str, float]]

    @property
    def total(self) -> dict[str, float]:
        """Figures of the whole run: sums, and the largest memory of a task."""
        every = self.estimates.values()
        total = {name: sum(one[name] for one in every) for name in FIGURES}
        return total | {"memory_bytes": max(one["memory_bytes"] for one in every)}


class Faults:
    """Collects what is wrong with one sample, so that the user sees all of it at once."""

    def __init__(self, sample: str):
        self.sample = sample
        self.found: list[VoxelmillError] = []

    @contextmanager
    def collect(self, file: str | None = None) -> Iterator[None]:
        """Keep an error of the block, with the sample's id and the file as the user named it."""
        try:
            yield
        except FaultsError as error:
            self.found += error.faults
        except VoxelmillError as error:
            error.sample = self.sample
            error.file = file or error.file
            self.found.append(error)


def check_input(
    sheet: Path | None,
    staged: Path,
    schema: Path,
    config: ModelConfig,
    options: CheckOptions,
    *,
    images: int | None = None,
) -> Checked:
    """Check all samples of a run.

    Parameters
    ----------
    sheet : Path or None
        Samplesheet; without it every staged image is a sample, or a channel of one.
    staged : Path
        Folder with one numbered folder per image, which holds the image under its own name.
    schema : Path
        JSON schema of the samplesheet.
    config : ModelConfig
    options : CheckOptions
    images : int, optional
        How many images the reader of the sheet found that staged them, those that do not exist included.

    Raises
    ------
    FaultsError
        All faults of all samples, unless bad samples are to be skipped and a good one is left.
    BadDataError
        Where the images were staged by another reading of the sheet than the one here; this is never skipped.
    WriteFailedError
        Where the disk of the current folder cannot hold the work.
    """
    found = staged_images(staged)
    rejected: list[Rejected] = []
    if sheet is None:
        if not found:
            raise InputMissingError("no image was found", remedy="check the path, the folder or the glob in --input")
        rows = rows_of_images({number: path.name for number, path in found.items()})
    else:
        rows, rejected, named = read_sheet(sheet, read_json(schema))
        refuse_other_reading(sheet, rows, found, named, images)
    entries, estimates = [], {}
    for row in rows:
        try:
            entry, figures = check_row(row, found, config, options)
        except VoxelmillError as error:
            error.sample = row.sample
            rejected.append(Rejected(row.sample, error))
        else:
            entries.append(entry)
            estimates[row.sample] = figures
    if rejected and not (options.skip_bad and entries):
        raise several(one.error for one in rejected)
    name_batches(entries, separate=options.skip_bad)
    skipped = [{"id": one.sample, "error": str(one.error)} for one in rejected]
    result = Checked(entries, skipped, estimates)
    check_disk(Path.cwd(), result.total["work_bytes"])
    return result


def several(errors: Iterable[VoxelmillError]) -> VoxelmillError:
    """One error for all; a single one as it is."""
    faults: list[VoxelmillError] = []
    for error in errors:
        faults += error.faults if isinstance(error, FaultsError) else [error]
    return faults[0] if len(faults) == 1 else FaultsError(faults)


def staged_images(folder: Path) -> dict[int, Path]:
    """Position -> image; positions of images that do not exist are absent."""
    found = {}
    for place in folder.iterdir() if folder.is_dir() else ():
        inside = sorted(place.iterdir()) if place.name.isdecimal() and place.is_dir() else []
        if inside:
            found[int(place.name)] = inside[0]
    return dict(sorted(found.items()))


def refuse_other_reading(
    sheet: Path, rows: Iterable[Row], staged: Mapping[int, Path], named: int, counted: int | None
) -> None:
    """Raise BadDataError where a number stands for another image than the one that the row names.

    Nextflow reads the sheet by itself to stage the images. Were the two readings to differ, an image would go to
    another sample.
    """
    remedy = "save the sheet as plain CSV: no line breaks inside cells, double quotes only around whole cells"
    for row in rows:
        for number, name in zip(row.images, row.names, strict=True):
            if number in staged and not is_staged_as(name, staged[number].name):
                taken = printable(staged[number].name)
                raise BadDataError(
                    f"{taken!r} was taken for image {number}, the sheet names {printable(name)!r}",
                    sample=row.sample,
                    file=sheet,
                    remedy=remedy,
                )
    if counted not in (None, named):
        raise BadDataError(
            f"{counted} images were found in the samplesheet, {named} are named in it", file=sheet, remedy=remedy
        )


def is_staged_as(name: str, staged: str) -> bool:
    """Whether the last part of a path is the staged name; of an address as well, however it is encoded."""
    if "://" in name:
        name, staged = (unquote(text.partition("?")[0]) for text in (name, staged))
    return PurePosixPath(name).name == PurePosixPath(staged).name


def check_row(
    row: Row, images: Mapping[int, Path], config: ModelConfig, options: CheckOptions
) -> tuple[dict[str, Any], dict[str, float]]:
    """Check one sample -> its entry of ``samples.json`` (without its batch) and its estimate."""
    faults = Faults(row.sample)
    names = [printable(name) for name in row.names]
    sources: list[ImageSource] = []
    with ExitStack() as opened:
        for number, name in zip(row.images, names, strict=True):
            with faults.collect(name):
                if number not in images:
                    raise InputMissingError("the image does not exist", remedy="check the path in the samplesheet")
                source = open_image(images[number], axes=row.get("axes"))
                sources.append(opened.enter_context(source))
                if isinstance(source, ZarrSource) and not options.fill_missing:
                    refuse_missing_chunks(source)
                if options.full:
                    read_all(source)
        with faults.collect(names[0]):
            check_sums(row, [images.get(number) for number in row.images])
        if len(sources) < len(names):
            raise several(faults.found)
        first = sources[0]
        warnings = list(dict.fromkeys(text for source in sources for text in source.warnings))
        with faults.collect(names[0]):
            agree(sources, names)
        channels: tuple[int, ...] = ()
        with faults.collect(names[0]):
            channels = choose_channels(sources, row.get("channel") or options.channel, config)
        with faults.collect(names[0]):
            check_dimensions(first, config)
        spacing, unit, origin = (1.0, 1.0, 1.0), "pixel", ""
        with faults.collect(names[0]):
            spacing, unit, origin, told = resolve_spacing(row, options, sources)
            warnings += told
        model = model_spacing(config, first, spacing, unit)
        if origin:
            with faults.collect(names[0]):
                warnings += compare_spacing(spacing, model, options.allow_spacing_mismatch)
        box: Box | None = None
        with faults.collect(names[0]):
            box, told = choose_box(first, config, options, spacing, model)
            warnings += told
        if faults.found:
            raise several(faults.found)
        shape = first.shape[1:] if box is None else tuple(stop - start for start, stop in box)
        warnings += compare_shape(shape, first, config)
        warnings += [f"the column {name} is not used in this version" for name in UNUSED if row.get(name)]
        entry = {
            "id": row.sample,
            "images": list(row.images),
            "channel": list(channels),
            "format": first.format,
            "shape": [first.shape[0] if len(sources) == 1 else len(sources), *first.shape[1:]],
            "dtype": np.result_type(*(source.dtype for source in sources)).name,
            "spacing": list(spacing),
            "unit": unit,
            "spacing_origin": origin,
            "box": None if box is None else [list(pair) for pair in box],
            "flip": options.flip,
            "intensity": options.intensity,
            "missing_chunks": "fill" if options.fill_missing else "error",
            "nonfinite": options.nonfinite,
            "in_place": len(sources) == 1 and first.in_place is not None,
            "sha256": row.get("sha256"),
            "group": row.get("group"),
            "axes": row.get("axes"),
            "files": names,
            "warnings": list(dict.fromkeys(warnings)),
        }
        # Without a physical size nothing is resampled, as if the image had the model's spacing.
        measured = model_spacing(config, first, spacing, "um") if unit == "pixel" else spacing
        figures = asdict(estimate(config, (shape[0], shape[1], shape[2]), measured, options.plan))
        return entry, {name: figures[name] for name in FIGURES}


# The files


def refuse_missing_chunks(source: ZarrSource) -> None:
    """Raise BadDataError where chunk files are not there."""
    missing = missing_chunks(source)
    if missing:
        raise BadDataError(
            f"{len(missing)} chunks are missing, the first is {missing[0]}",
            expected="a file for every chunk",
            remedy="copy the image again, or pass --missing_chunks fill where its writer leaves out empty chunks",
        )


def read_all(source: ImageSource) -> None:
    """Read every voxel once, to see whether it can be read."""
    _, depth, length, width = source.shape
    deep, long, _ = source.chunk
    row = width * source.dtype.itemsize * deep
    rows = min(length, max(long, STEP_BYTES // row // long * long))
    for channel in range(source.shape[0]):
        for z in range(0, depth, deep):
            for y in range(0, length, rows):
                source.read(channel, ((z, min(z + deep, depth)), (y, min(y + rows, length)), (0, width)))


def check_sums(row: Row, paths: Sequence[Path | None]) -> None:
    """Compare files with the digests in the sheet."""
    text = row.get("sha256")
    if text is None:
        return
    digests = text.lower().split(";")
    if len(digests) != len(paths):
        raise BadDataError(f"{len(digests)} sha256 for {len(paths)} files")
    for path, expected in zip(paths, digests, strict=True):
        if path is not None and (found := sha256_tree(path)) != expected:
            raise BadDataError(
                f"the SHA-256 of {printable(path.name)} is {found}",
                expected=expected,
                remedy="copy the file again from its origin",
            )


def agree(sources: Sequence[ImageSource], names: Sequence[str]) -> None:
    """Refuse channel files that differ in shape, type or spacing."""
    first = sources[0]
    for source, name in zip(sources[1:], names[1:], strict=True):
        pairs = [
            ("shape (z, y, x)", first.shape[1:], source.shape[1:]),
            ("type", first.dtype.name, source.dtype.name),
            ("spacing", first.spacing, source.spacing),
        ]
        for what, one, other in pairs:
            same = np.allclose(one, other, rtol=1e-4) if what == "spacing" and one and other else one == other  # type: ignore[arg-type]
            if not same:
                raise BadDataError(
                    f"the channel files differ in {what}: {one} here, {other} in {name}",
                    expected="files of one shape, type and spacing",
                )


# The model


def choose_channels(sources: Sequence[ImageSource], wanted: str | None, config: ModelConfig) -> tuple[int, ...]:
    """Channels of the file in the model's order; their number must be the model's."""
    if len(sources) > 1:
        return channels_of_files(sources, wanted, config)
    source = sources[0]
    count = source.shape[0]
    if wanted is None:
        if source.rgb and config.channels != 3:
            raise BadDataError(
                f"an RGB image, axes {source.axes.upper()}",
                expected=f"{config.channels} grey: {', '.join(config.channel_names)}",
                remedy="save it as a grey image, or choose one colour with --channel or the column channel",
            )
        refuse_order(source, config)
        chosen = tuple(range(count))
    else:
        chosen = parse_channels(wanted, count, source.channel_names)
    if len(chosen) != config.channels:
        raise wrong_channels(describe(source, chosen), config)
    return chosen


def channels_of_files(sources: Sequence[ImageSource], wanted: str | None, config: ModelConfig) -> tuple[int, ...]:
    """Every file is a channel."""
    if wanted is not None:
        raise BadDataError(
            "channel is given for a sample with one file per channel",
            remedy="leave out --channel and the column channel, or name a single file",
        )
    several_inside = [source.path.name for source in sources if source.shape[0] > 1]
    if several_inside:
        raise BadDataError(
            f"{printable(several_inside[0])} has several channels",
            expected="one channel per file where the sample lists several files",
        )
    if len(sources) != config.channels:
        raise wrong_channels([f"{len(sources)} files"], config)
    return tuple(range(len(sources)))


def parse_channels(text: str, count: int, names: Sequence[str]) -> tuple[int, ...]:
    """``0``, ``-1``, ``0;2`` or names of channels -> indices from 0."""
    parts = [text] if text in names else [part.strip() for part in re.split("[;,]", text)]
    chosen = []
    for part in parts:
        index = names.index(part) if part in names else int(part) if re.fullmatch(r"-?\d{1,4}", part) else None
        if index is None or not -count <= index < count:
            raise BadDataError(
                f"there is no channel {printable(part)!r}",
                expected=f"{-count} to {count - 1}"
                + (f", or in the samplesheet one of {', '.join(map(printable, names))}" if names else ""),
            )
        chosen.append(index % count)
    return tuple(chosen)


def describe(source: ImageSource, chosen: Sequence[int]) -> list[str]:
    return [printable(source.channel_names[i]) if i < len(source.channel_names) else f"channel {i}" for i in chosen]


def refuse_order(source: ImageSource, config: ModelConfig) -> None:
    """Refuse channels that have the model's names in another order."""
    here = [name.lower() for name in source.channel_names]
    there = [name.lower() for name in config.channel_names]
    if here != there and sorted(here) == sorted(there):
        raise ModelMismatchError(
            f"the image's channels are {', '.join(source.channel_names)}",
            expected=f"{', '.join(config.channel_names)}, in this order",
            remedy=channel_remedy(here.index(name) for name in there),
        )


def channel_remedy(order: Iterable[int]) -> str:
    numbers = [str(index) for index in order]
    return f"--channel {','.join(numbers)}, or {';'.join(numbers)} in the column channel"


def wrong_channels(found: Sequence[str], config: ModelConfig) -> ModelMismatchError:
    return ModelMismatchError(
        f"{len(found)} channels in the image: {', '.join(found[:20])}",
        expected=f"{config.channels} channels of the model: {', '.join(config.channel_names)}",
        remedy=f"choose channels in the model's order, as in: {channel_remedy((0, 2))}",
    )


def check_dimensions(source: ImageSource, config: ModelConfig) -> None:
    """A plane without z goes to a 2d model only."""
    if "z" not in source.axes and config.dimensions == 3:
        raise BadDataError(
            f"a 2D image, axes {source.axes.upper()}",
            expected="axes ZYX: the model is 3D",
            remedy="use a 2d model, or name the axes of a stack in the column axes",
        )


def network_axes(config: ModelConfig, source: ImageSource) -> tuple[int, ...]:
    """Image axis (z, y, x) behind each axis of the network."""
    axes: Sequence[int] = (0, 1, 2)
    if config.reader in REORIENTING_READERS and source.affine is not None:
        axes, _ = ras_orientation(tuple(tuple(map(float, row)) for row in source.affine))
    return tuple(axes[i] for i in config.transpose_forward)


def model_spacing(config: ModelConfig, source: ImageSource, spacing: Triple, unit: str) -> Triple:
    """The model's spacing along the image's z, y, x in micrometres; the image's own where nothing is resampled."""
    factor = micrometres_per(config.spacing_unit)
    if factor is None or unit == "pixel":
        return spacing
    own = list(spacing)
    for axis, length in zip(reversed(network_axes(config, source)), reversed(config.spacing), strict=False):
        own[axis] = length * factor
    return own[0], own[1], own[2]


def resolve_spacing(
    row: Row, options: CheckOptions, sources: Sequence[ImageSource]
) -> tuple[Triple, str, str, list[str]]:
    """Spacing (z, y, x), unit, origin and warnings: the sheet's, the param's, or the file's."""
    unit = row.get("unit") or options.unit or "um"
    text, origin = row.get("spacing"), "samplesheet"
    if text is None:
        text, origin = options.spacing, "--spacing"
    if text == "pixel" or (unit == "pixel" and text is None):
        return (1.0, 1.0, 1.0), "pixel", "no physical size", []
    file = next((source for source in sources if source.spacing is not None), None)
    if text is not None:
        if unit == "pixel":
            raise BadDataError(f"spacing {printable(text)} with unit pixel", expected="one or the other")
        spacing = parse_spacing(text, unit, origin)
        told = []
        if file is not None and ratio(spacing, file.spacing or spacing) > DIFFERENT:
            told = [
                f"{origin} gives {shown_spacing(spacing)}, the file {shown_spacing(file.spacing)}: the first is used"
            ]
        return spacing, "um", origin, told
    if file is None or file.spacing is None:
        raise BadDataError(
            "the file gives no voxel size" + "".join(f"; {text}" for text in sources[0].warnings),
            remedy="give spacing: the columns spacing (z;y;x) and unit, or --spacing z,y,x --unit um; --unit pixel for "
            "an image without physical size",
        )
    return file.spacing, "um", file.spacing_origin, []


def parse_spacing(text: str, unit: str, origin: str) -> Triple:
    """``z,y,x`` or one number for all axes, in a unit -> micrometres."""
    factor = micrometres_per(unit)
    try:
        numbers = [float(part) for part in re.split(r"[;,\s]+", text.strip())]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or factor is None:
        raise BadDataError(f"spacing {printable(text)!r} {unit}", expected="three lengths z,y,x or one for all axes")
    lengths = numbers * 3 if len(numbers) == 1 else numbers
    return checked([length * factor for length in lengths], origin=origin)


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """Largest factor between two spacings on an axis."""
    return max(max(a / b, b / a) for a, b in zip(one, other, strict=True))


def shown_spacing(spacing: Sequence[float] | None) -> str:
    return " x ".join(f"{length:.4g}" for length in spacing or ()) + " um (z, y, x)"


def compare_spacing(spacing: Triple, model: Triple, allow: bool) -> list[str]:
    """Warnings, or ModelMismatchError, where the image's voxels are not those that the model learned from."""
    factor = ratio(spacing, model)
    found = f"the spacing is {shown_spacing(spacing)}, the model's {shown_spacing(model)}: a factor of {factor:.3g}"
    if factor > MISMATCH and not allow:
        raise ModelMismatchError(
            found,
            expected=f"at most a factor of {MISMATCH:g} on each axis",
            remedy="correct --spacing, --unit or --model_spacing_unit; --allow_spacing_mismatch if both are right",
        )
    return [found] if factor > REMARKABLE else []


def compare_shape(shape: Sequence[int], source: ImageSource, config: ModelConfig) -> list[str]:
    """A warning where the image is much smaller than all that the model learned from; larger is what tiling is for."""
    trained = (config.fingerprint or {}).get("shapes_after_crop") or []
    sizes = np.array([size for size in trained if len(size) == 3], dtype=float).reshape(-1, 3)
    if not len(sizes):
        return []
    smallest = sizes.min(axis=0)
    axes = [i for i in range(3) if (i > 0 or "z" in source.axes) and shape[i] < smallest[i] / 4]
    if not axes:
        return []
    named = ", ".join(f"{'zyx'[i]} {shape[i]} (smallest {smallest[i]:g})" for i in axes)
    return [f"the image is much smaller than the model's training images: {named}"]


# Boxes, batches, estimate


def choose_box(
    source: ImageSource, config: ModelConfig, options: CheckOptions, spacing: Triple, model: Triple
) -> tuple[Box | None, list[str]]:
    """The part of the image to work on, None for all of it, and warnings."""
    size = source.shape[1:]
    if options.box is not None:
        return parse_box(options.box, size)
    if not options.preview:
        return None, []
    patch = [1, *config.patch_size][-3:]
    wanted = [1, 1, 1]
    for axis, length in zip(network_axes(config, source), patch, strict=True):
        wanted[axis] = max(1, math.ceil(2 * length * model[axis] / spacing[axis]))
    pairs = []
    for length, wish in zip(size, wanted, strict=True):
        kept = min(length, wish)
        start = (length - kept) // 2
        pairs.append((start, start + kept))
    return (pairs[0], pairs[1], pairs[2]), []


def parse_box(text: str, size: Sequence[int]) -> tuple[Box, list[str]]:
    """``z0:z1,y0:y1,x0:x1``, ends optional -> box inside the image, and a warning where it was clipped."""
    match = re.fullmatch(r"(\d*):(\d*),(\d*):(\d*),(\d*):(\d*)", text)
    if not match:
        raise BadDataError(f"box {printable(text)!r}", expected="z0:z1,y0:y1,x0:x1 in voxels")
    numbers = [int(part) if part else None for part in match.groups()]
    pairs = []
    clipped = False
    for start, stop, length in zip(numbers[::2], numbers[1::2], size, strict=True):
        first, last = start or 0, length if stop is None else min(stop, length)
        clipped |= stop is not None and stop > length
        if first >= last:
            raise BadDataError(
                f"box {text} holds no voxel of the image", expected=f"a part of {' x '.join(map(str, size))} (z, y, x)"
            )
        pairs.append((first, last))
    told = [f"box {text} reaches beyond the image: it was clipped"] if clipped else []
    return (pairs[0], pairs[1], pairs[2]), told


def extent(entry: Mapping[str, Any]) -> tuple[int, int, int]:
    """Voxels along z, y, x that a sample will be worked on."""
    box = entry["box"] or [(0, n) for n in entry["shape"][1:]]
    z, y, x = (stop - start for start, stop in box)
    return z, y, x


def name_batches(entries: Sequence[dict[str, Any]], *, separate: bool) -> None:
    """Put small samples into shared batches, in the order of the sheet; every other sample is a batch of its own.

    Samples that may be skipped are kept apart: a batch fails as a whole.
    """
    batches: list[list[dict[str, Any]]] = []
    room = 0
    for entry in entries:
        entry["batch"] = entry["id"]
        voxels = math.prod(extent(entry))
        if separate or entry["in_place"] or voxels >= SMALL_VOXELS:
            continue
        if not batches or len(batches[-1]) == BATCH_SAMPLES or voxels > room:
            batches.append([])
            room = BATCH_VOXELS
        batches[-1].append(entry)
        room -= voxels
    ids = {entry["id"].lower() for entry in entries}
    names = (name for number in range(1, 2 * len(entries) + 2) if (name := f"batch{number}") not in ids)
    for batch in batches:
        if len(batch) > 1:
            name = next(names)
            for entry in batch:
                entry["batch"] = name


def check_disk(folder: Path, needed: float) -> None:
    """Refuse work that the disk of the work folder cannot hold."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise WriteFailedError(
            f"the work folder needs {shown_bytes(needed)}, the disk has {shown_bytes(free)} free",
            file=folder,
            remedy="put the work folder on a larger disk (-work-dir), free space, or start with --box",
        )


def table(result: Checked) -> str:
    """The estimate, one sample a line, and the whole run below."""
    rows = [("sample", "z, y, x", "spacing", "windows", "time", "memory", "work", "output")]
    for entry in result.samples:
        spacing = "pixel" if entry["unit"] == "pixel" else " ".join(f"{length:.4g}" for length in entry["spacing"])
        rows.append((entry["id"], " ".join(map(str, extent(entry))), spacing, *shown(result.estimates[entry["id"]])))
    if len(result.samples) > 1:
        rows.append((f"all {len(result.samples)}", "", "", *shown(result.total)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def shown(figures: Mapping[str, float]) -> tuple[str, str, str, str, str]:
    """Cells of the table."""
    sizes = [shown_bytes(figures[name]) for name in ("memory_bytes", "work_bytes", "output_bytes")]
    return f"{figures['windows']:.0f}", shown_time(figures["seconds"]), sizes[0], sizes[1], sizes[2]


def shown_bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def shown_time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
