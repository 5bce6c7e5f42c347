"""CHECK_INPUT: open every header, compare images with the model, and say what the run will take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np

from voxelmill.errors import (
    BadDataError,
    FaultsError,
    InputMissingError,
    VoxelmillError,
)
from voxelmill.files import read_json, sha256_tree
from voxelmill.fit import (
    CheckOptions,
    check_dimensions,
    choose_box,
    choose_channels,
    compare_shape,
    compare_spacing,
    model_spacing,
    resolve_spacing,
)
from voxelmill.forecast import FIGURES, Checked, check_disk, name_batches
from voxelmill.formats import ImageSource, ZarrSource, missing_chunks, open_image
from voxelmill.image import Box
from voxelmill.model.config import ModelConfig
from voxelmill.samplesheet import UNUSED, Rejected, Row, printable, read_sheet, rows_of_images
from voxelmill.schedule import estimate

STEP_BYTES = 64 << 20


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
