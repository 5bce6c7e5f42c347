"""CHECK_INPUT: open every header, compare images with the model, and say what the run will take."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np

from voxelmill.convert.mending import given_spacing, open_given
from voxelmill.errors import (
    BadDataError,
    Faults,
    FaultsError,
    InputMissingError,
    UsageError,
    VoxelmillError,
    several,
)
from voxelmill.files import read_json, sha256_tree, write_bytes
from voxelmill.fit import CheckOptions, Fit, fit_models
from voxelmill.forecast import FIGURES, Checked, check_disk, name_batches
from voxelmill.formats import ImageSource, Selection
from voxelmill.formats.base import damage_told
from voxelmill.image import Box
from voxelmill.model.config import ModelConfig
from voxelmill.overlay import fit_labels
from voxelmill.planning import label_names
from voxelmill.samplesheet import (
    TRUTH,
    UNUSED,
    LabelFile,
    Rejected,
    Row,
    plain_cell,
    printable,
    read_sheet,
    rows_of_images,
)

STEP_BYTES = 64 << 20

OPENERS = 4
"""Files whose headers are read at a time, however few the CPUs: this is waiting for disks and networks."""

FAULTS_FILE = Path("check") / "faults.csv"

Fitting = Callable[[Row, Sequence[ImageSource], CheckOptions, Faults], Fit]
"""What a sample's files are compared with: the model, each other, the format that they are to be converted to."""


def check_input(
    sheet: Path | None,
    staged: Path,
    schema: Path,
    config: ModelConfig | None,
    options: CheckOptions,
    *,
    others: Sequence[ModelConfig] = (),
    images: int | None = None,
) -> Checked:
    """Check all samples of a run.

    Parameters
    ----------
    sheet : Path or None
        Samplesheet; without it every staged image is a sample, or a channel of one.
    staged : Path
        Folder with one numbered folder per file, which holds the file under its own name.
    schema : Path
        JSON schema of the samplesheet.
    config : ModelConfig or None
        Needed as soon as one sample brings no labels along.
    others : sequence of ModelConfig
        Models whose probabilities are averaged with the first one's.
    options : CheckOptions
    images : int, optional
        How many files the reader of the sheet found that staged them, those that do not exist included.

    Raises
    ------
    FaultsError
        All faults of all samples, unless bad samples are to be skipped and a good one is left.
    UsageError
        Where a model is needed and there is none, or a sheet that names the truth; this is never skipped.
    BadDataError
        Where the images were staged by another reading of the sheet than the one here; this is never skipped.
    WriteFailedError
        Where the disk of the current folder cannot hold the work.
    """
    found = staged_images(staged)
    rejected: list[Rejected] = []
    if sheet is None:
        if options.evaluate is not None:
            raise UsageError(
                "there is no samplesheet, and only one can name labels and truth",
                expected="--input samples.csv with the columns sample, truth, and semantic or instances",
            )
        if not found:
            raise InputMissingError("no image was found", remedy="check the path, the folder or the glob in --input")
        rows = rows_of_images({number: path.name for number, path in found.items()})
    else:
        rows, rejected, named = read_sheet(sheet, read_json(schema), evaluate=options.evaluate is not None)
        refuse_other_reading(sheet, rows, found, named, images)
    entries, estimates = [], {}
    for outcome in check_rows(fittings(rows, config, others, options), found, options):
        if isinstance(outcome, Rejected):
            rejected.append(outcome)
        else:
            entry, figures = outcome
            entries.append(entry)
            estimates[entry["id"]] = figures
    if rejected and not (options.skip_bad and entries):
        raise with_all_faults(several(one.error for one in rejected))
    name_batches(entries, separate=options.skip_bad)
    skipped = [{"id": one.sample, "error": messages(one.error)} for one in rejected]
    result = Checked(entries, skipped, estimates, tuple(one.error for one in rejected))
    check_disk(Path.cwd(), result.total["work_bytes"])
    return result


def check_rows(
    rows: Sequence[tuple[Row, Fitting]], staged: Mapping[int, Path], options: CheckOptions
) -> list[tuple[dict[str, Any], dict[str, float]] | Rejected]:
    """Check several samples at a time -> entry and estimate of each, or what is wrong with it, in the rows' order.

    Threads, because the work is waiting for files and decoding them, which lets other threads run: 64 MB of deflate
    take 1.8 times less on two of them, and headers on a network disk as many times less as there are threads. Two
    hundred small files on a local disk take 0.3 s in one thread and 0.5 s in several.
    """

    def outcome(pair: tuple[Row, Fitting]) -> tuple[dict[str, Any], dict[str, float]] | Rejected:
        row, fitting = pair
        try:
            return check_row(row, staged, fitting, options)
        except VoxelmillError as error:
            error.sample = row.sample
            return Rejected(row.sample, error)

    threads = options.workers if options.full else max(options.workers, OPENERS)
    with ThreadPoolExecutor(max(1, min(threads, len(rows)))) as pool:
        return list(pool.map(outcome, rows))


def messages(error: VoxelmillError) -> str:
    """One message per fault, which the report shows sample by sample."""
    return error.messages if isinstance(error, FaultsError) else str(error)


def with_all_faults(error: VoxelmillError) -> VoxelmillError:
    """The error; where it is a table that leaves some faults out, all of them are written to a file that it names."""
    if isinstance(error, FaultsError) and error.hidden:
        error.place = FAULTS_FILE.absolute()
        write_faults(FAULTS_FILE, error.faults)
    return error


def write_faults(path: Path, faults: Iterable[VoxelmillError]) -> None:
    """All faults as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("sample", "file", "what is wrong", "what was expected", "what to do"))
    for fault in faults:
        cells = (str(cell or "") for cell in (fault.sample, fault.file, fault.found, fault.expected, fault.remedy))
        writer.writerow(map(plain_cell, cells))
    write_bytes(path, text.getvalue().encode())


def fittings(
    rows: Iterable[Row], config: ModelConfig | None, others: Sequence[ModelConfig], options: CheckOptions
) -> list[tuple[Row, Fitting]]:
    """Every row with what its files are compared with; UsageError where that is a model and there is none."""
    # Below is what a segmentation need not load.
    if options.convert is not None:
        from voxelmill.convert.check import fit_conversion

        return [(row, partial(fit_conversion, options.convert)) for row in rows]
    if options.evaluate is not None:
        from voxelmill.evaluation.check import fit_evaluation

        return [(row, fit_evaluation) for row in rows]
    chosen: list[tuple[Row, Fitting]] = []
    without = []
    for row in rows:
        if row.labels is not None:
            chosen.append((row, fit_labels))
        elif config is not None:
            chosen.append((row, partial(fit_models, (config, *others))))
        else:
            without.append(row.sample)
    if without:
        named = ", ".join(without[:5]) + (", ..." if len(without) > 5 else "")
        raise UsageError(
            f"there is no model, and no labels are given for {named}",
            expected="a model, or labels for every sample",
            remedy="pass --model, or name label images in the samplesheet's column semantic or instances",
        )
    return chosen


def refuse_cores(config: ModelConfig, core: str, border: str) -> None:
    """Raise UsageError unless a model has these two labels: told here, and not after the prediction."""
    # numba, which other runs need not load
    from voxelmill.objects.separation.cores import find_label

    names = label_names(config)
    if find_label(names, core) == find_label(names, border):
        raise UsageError(
            f"{core} and {border} are the same label",
            remedy="give cores and borders labels of their own with --core_label and --border_label",
        )


def staged_images(folder: Path) -> dict[int, Path]:
    """Position -> file; positions of files that do not exist are absent."""
    found = {}
    for place in folder.iterdir() if folder.is_dir() else ():
        inside = sorted(place.iterdir()) if place.name.isdecimal() and place.is_dir() else []
        if inside:
            found[int(place.name)] = inside[0]
    return dict(sorted(found.items()))


def refuse_other_reading(
    sheet: Path, rows: Iterable[Row], staged: Mapping[int, Path], named: int, counted: int | None
) -> None:
    """Raise BadDataError where a number stands for another file than the one that the row names.

    Nextflow reads the sheet by itself to stage the files. Were the two readings to differ, an image would go to
    another sample.
    """
    remedy = "save the sheet as plain CSV: no line breaks inside cells, double quotes only around whole cells"
    for row in rows:
        for number, name in row.files:
            if number in staged and not is_staged_as(name, staged[number].name):
                taken = printable(staged[number].name)
                raise BadDataError(
                    f"{taken!r} was taken for file {number}, the sheet names {printable(name)!r}",
                    sample=row.sample,
                    file=sheet,
                    remedy=remedy,
                )
    if counted not in (None, named):
        raise BadDataError(
            f"{counted} files were found in the samplesheet, {named} are named in it", file=sheet, remedy=remedy
        )


def is_staged_as(name: str, staged: str) -> bool:
    """Whether the last part of a path is the staged name; of an address as well, however it is encoded."""
    if "://" in name:
        name, staged = (unquote(text.partition("?")[0]) for text in (name, staged))
    return PurePosixPath(name).name == PurePosixPath(staged).name


def check_row(
    row: Row, staged: Mapping[int, Path], fitting: Fitting, options: CheckOptions
) -> tuple[dict[str, Any], dict[str, float]]:
    """Check one sample -> its entry of ``samples.json`` (without its batch) and its estimate."""
    names = [printable(name) for name in row.names]
    faults = Faults(row.sample, printable(row.files[0][1]))
    files: list[ImageSource] = []
    with ExitStack() as opened:
        selections = [Selection()] * len(row.files)
        with faults.collect():
            selections = row.selections(options.selection)
        given = given_spacing(row, options) if options.convert or options.evaluate else None
        for (number, name), selection in zip(row.files, selections, strict=True):
            with faults.collect(printable(name)):
                if number not in staged:
                    what = "image" if number in row.images else "label image"
                    raise InputMissingError(f"the {what} does not exist", remedy="check the path in the samplesheet")
                source = open_given(staged[number], selection, given)
                files.append(opened.enter_context(source))
                if not options.fill_missing:
                    refuse_missing_chunks(source)
                if options.full:
                    read_all(source)
        check_sums(row, staged, faults)
        if len(files) < len(row.files):
            raise several(faults.found)
        # Only a row that is evaluated may be without an image.
        sources = files[: len(names)] or files[:1]
        first = sources[0]
        with faults.collect():
            agree(sources, names)
        fit = fitting(row, files, options, faults)
        warnings = [
            *(text for source in (sources if row.truth is None else files) for text in source.warnings),
            *fit.warnings,
            *(f"the column {name} is not used in this version" for name in UNUSED if row.get(name)),
            *(["the column truth is not used here: --workflow evaluate compares with it"] if row.get(TRUTH) else []),
        ]
        entry = {
            "id": row.sample,
            "start": row.start,
            "images": [number for number, _ in row.files],
            "channel": list(fit.channels),
            "format": first.format,
            "shape": [first.shape[0] if len(sources) == 1 else len(sources), *first.shape[1:]],
            "dtype": np.result_type(*(source.dtype for source in sources)).name,
            "spacing": list(fit.spacing),
            "unit": fit.unit,
            "spacing_origin": fit.origin,
            "box": None if fit.box is None else [list(pair) for pair in fit.box],
            "flip": fit.flip,
            "intensity": fit.intensity,
            "missing_chunks": "fill" if options.fill_missing else "error",
            "nonfinite": options.nonfinite,
            "in_place": len(sources) == 1 and first.in_place is not None,
            "sha256": row.get("sha256"),
            "group": row.get("group"),
            "selections": [asdict(selection) for selection in selections],
            "files": names,
            "labels": None if row.labels is None else labels_entry(row.labels),
            "warnings": list(dict.fromkeys(warnings)),
        }
        if row.truth is not None:
            entry[TRUTH] = {"file": printable(row.truth.name)}
        figures = asdict(fit.estimate)
        return entry, {name: figures[name] for name in FIGURES}


def labels_entry(labels: LabelFile) -> dict[str, str]:
    """What the import needs to know of labels that are given; their file comes after the images of the row."""
    return {"kind": labels.kind, "file": printable(labels.name)}


# The files


def refuse_missing_chunks(source: ImageSource) -> None:
    """Raise BadDataError where chunks are not there."""
    with damage_told(source.path, "the list of the image's chunks cannot be read, the file is damaged"):
        missing = source.missing_chunks()
    if missing:
        raise BadDataError(
            f"{len(missing)} chunks are missing, the first is {missing[0]}",
            expected="every chunk that the image's shape asks for",
            remedy="copy the image again, or pass --missing_chunks fill where its writer leaves out empty chunks",
        )


def read_all(source: ImageSource) -> None:
    """Read every voxel once, to see whether it can be read."""
    for channel, box in every_box(source):
        source.read(channel, box)


def every_box(source: ImageSource) -> Iterator[tuple[int, Box]]:
    """All voxels of an image as channels and boxes of whole chunks, of about `STEP_BYTES` where chunks are smaller."""
    _, depth, length, width = source.shape
    deep, long, _ = source.chunk
    row = width * source.dtype.itemsize * deep
    rows = min(length, max(long, STEP_BYTES // row // long * long))
    for channel in range(source.shape[0]):
        for z in range(0, depth, deep):
            for y in range(0, length, rows):
                yield channel, ((z, min(z + deep, depth)), (y, min(y + rows, length)), (0, width))


def check_sums(row: Row, staged: Mapping[int, Path], faults: Faults) -> None:
    """Compare files with the digests in the sheet: one for every image, one more for labels and one more for truth.

    The digest of a folder is that of `voxelmill.files.sha256_tree`.
    """
    text = row.get("sha256")
    if text is None:
        return
    digests = text.lower().split(";")
    if len(digests) not in row.counts:
        with faults.collect():
            raise BadDataError(f"{len(digests)} sha256 for {len(row.files)} files")
    for (number, name), expected in zip(row.files, digests, strict=False):
        with faults.collect(printable(name)):
            if number in staged and (found := sha256_tree(staged[number])) != expected:
                raise BadDataError(
                    f"the SHA-256 of {printable(staged[number].name)} is {found}",
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
