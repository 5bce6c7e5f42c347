"""Rows of samples: from a samplesheet, or made from the images themselves."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from voxelmill.errors import BadDataError, InputMissingError, VoxelmillError
from voxelmill.formats.base import Selection

ID_LENGTH = 64

DEVICES = {"con", "prn", "aux", "nul", *(f"{name}{n}" for name in ("com", "lpt") for n in range(1, 10))}
"""Names that Windows keeps for devices, with any extension."""

RESULTS = {"pipeline_info", "report", "report.html", "outputs.json"}
"""What a run publishes beside the folders of its samples."""

STARTS = {"semantic": "assemble", "instances": "analyze"}
"""Columns of labels that a row may bring along, and the stage that it then starts at; without them it is `predict`."""

TRUTH = "truth"
"""Column of the labels that others are compared with."""

EVALUATED = "evaluate"
"""Where a row with truth starts, and ends."""

UNUSED = ("particle_size",)

SUFFIXES = re.compile(
    r"(\.ome)?\.(tiff?|btf|tf[28]|zarr)$|\.nii(\.gz)?$|\.(mh[ad]|nrrd|nhdr|png|jpe?g|h5|hdf5)$", re.IGNORECASE
)
CHANNEL_SUFFIX = re.compile(r"_(\d{4})$")


@dataclass(frozen=True)
class LabelFile:
    """A label image that a row names.

    Attributes
    ----------
    kind : str
        Its column: ``semantic``, ``instances`` or ``truth``.
    name : str
        The file as the user names it.
    number : int
        Its position in the list of all files.
    """

    kind: str
    name: str
    number: int


@dataclass(frozen=True)
class Row:
    """One sample as the user gives it.

    Attributes
    ----------
    number : int
        Line of the sheet, or position of the image where there is no sheet.
    sample : str
    names : tuple of str
        The image files as the user names them.
    images : tuple of int
        Their positions in the list of all files, from 1; labels come after the images of their row, and truth after
        these. Only a row that is evaluated may have none.
    values : dict
        The other cells that are filled, by column.
    labels : LabelFile or None
        Labels that are given instead of predicted.
    truth : LabelFile or None
        What the labels are compared with; None where nothing is evaluated, whatever the cell says.
    """

    number: int
    sample: str
    names: tuple[str, ...]
    images: tuple[int, ...]
    values: Mapping[str, str]
    labels: LabelFile | None = None
    truth: LabelFile | None = None

    def get(self, column: str) -> str | None:
        return self.values.get(column)

    @property
    def start(self) -> str:
        """The stage that the sample starts at: ``predict``, ``assemble``, ``analyze`` or ``evaluate``."""
        if self.truth is not None:
            return EVALUATED
        return "predict" if self.labels is None else STARTS[self.labels.kind]

    @property
    def files(self) -> list[tuple[int, str]]:
        """Position and name of every file: the images, then the labels, then the truth."""
        images = list(zip(self.images, self.names, strict=True))
        return images + [(one.number, one.name) for one in (self.labels, self.truth) if one is not None]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many values a cell with one per file may have: for the images, up to the labels, up to the truth.

        A value for a truth that is not opened is allowed, so that one sheet serves several workflows.
        """
        behind = (self.labels is not None, self.truth is not None or TRUTH in self.values)
        counts = [len(self.images), len(self.images) + behind[0], len(self.images) + sum(behind)]
        return tuple(sorted({count for count in counts if count}))

    def selections(self, standard: Selection) -> list[Selection]:
        """Which part of every file is meant, in the order of `files`.

        A cell holds one value for all images, or one per file separated by ';', of which some may be empty. Labels and
        truth have the image's axes but for channels and time, and a choice of their own only where the cell has one for
        them. Without an image one value is for all files.

        Parameters
        ----------
        standard : Selection
            For the images of rows that leave the cell empty.

        Raises
        ------
        BadDataError
            Where a cell has another number of values than the row has files.
        """
        chosen: list[dict[str, Any]] = [{} for _ in self.files]
        for name, value in asdict(standard).items():
            parts = (self.values.get(name) or ("" if value is None else str(value))).split(";")
            if len(parts) == 1:
                alone = "".join(axis for axis in parts[0].lower() if axis in "zyx") if name == "axes" else ""
                rest = alone if self.images else parts[0]
                parts = parts * len(self.images) + [rest] * (len(self.files) - len(self.images))
            if len(parts) not in self.counts:
                raise BadDataError(
                    f"column {name} has {len(parts)} values for {len(self.files)} files",
                    expected="one for all images, or one per file in the order of the row",
                )
            for one, part in zip(chosen, parts, strict=False):
                if text := part.strip():
                    one[name] = text if name in ("axes", "dataset") else int(text)
        return [Selection(**one) for one in chosen]


@dataclass(frozen=True)
class Rejected:
    """A row that is no sample, by its id or line."""

    sample: str
    error: VoxelmillError


def read_sheet(
    path: Path, schema: Mapping[str, Any], *, evaluate: bool = False
) -> tuple[list[Row], list[Rejected], int]:
    """Read a samplesheet: UTF-8 (with or without BOM), commas, any line ends.

    Parameters
    ----------
    path : Path
    schema : mapping
        JSON schema of the rows; its properties are the columns.
    evaluate : bool
        Rows need labels and truth, and no image.

    Returns
    -------
    rows : list of Row
    rejected : list of Rejected
        Rows that cannot be used, each with all that is wrong.
    files : int
        How many files all rows name.

    Raises
    ------
    InputMissingError
        Where there is no sheet.
    BadDataError
        Where it is no table with the right columns, or has no rows.
    """
    shown = str(path)
    header, lines = read_table(path, shown)
    columns = schema["items"]["properties"]
    rules = {**schema["items"], **({"required": ["sample", TRUTH]} if evaluate else {})}
    check_header(header, columns, rules["required"], shown, one_of=tuple(STARTS) if evaluate else ())
    if not lines:
        raise BadDataError(
            "the samplesheet has no samples, only a header", file=shown, remedy="add one row per sample below it"
        )
    validator = Draft202012Validator(rules)
    twins = repeated([(number, cells[header.index("sample")]) for number, cells in lines if cells])
    rows, rejected, position = [], [], 1
    for number, cells in lines:
        values = {name: cell.strip() for name, cell in zip(header, cells, strict=False) if cell.strip()}
        names = tuple(name for part in values.get("image", "").split(";") if (name := part.strip()))
        images = tuple(range(position, position + len(names)))
        position += len(names)
        labels = [
            LabelFile(kind, values[kind], position + i) for i, kind in enumerate(k for k in STARTS if k in values)
        ]
        position += len(labels)
        truth = LabelFile(TRUTH, values[TRUTH], position) if evaluate and TRUTH in values else None
        position += truth is not None
        sample = values.get("sample", "")
        where = {"sample": printable(sample) or None, "file": f"{shown}, row {number}"}
        faults: list[VoxelmillError] = []
        if len(cells) > len(header):
            faults.append(
                BadDataError(
                    f"{len(cells)} cells under {len(header)} columns",
                    **where,
                    remedy="put cells that hold a comma in double quotes, or separate numbers by ';'",
                )
            )
        faults += [cell_fault(error, values, columns, where) for error in validator.iter_errors(values)]
        faults += id_faults(sample, twins, where)
        if len(labels) > 1:
            faults.append(
                BadDataError(
                    f"the row has labels in {' and in '.join(STARTS)}",
                    **where,
                    expected="one of both: semantic labels, whose objects are still to be found, or the objects",
                    remedy="leave one cell empty",
                )
            )
        if evaluate and not labels:
            faults.append(
                BadDataError(
                    "the row has no labels to compare with the truth",
                    **where,
                    expected=f"a label image in {' or in '.join(STARTS)}",
                )
            )
        if faults:
            rejected += [Rejected(printable(sample) or f"row {number}", fault) for fault in faults]
        else:
            opened = ("sample", "image", *STARTS, *((TRUTH,) if evaluate else ()))
            others = {name: cell for name, cell in values.items() if name not in opened}
            rows.append(Row(number, sample, names, images, others, labels[0] if labels else None, truth))
    return rows, rejected, position - 1


def id_faults(sample: str, twins: Mapping[str, Sequence[int]], where: Mapping[str, str | None]) -> list[VoxelmillError]:
    """What is wrong with an id that the schema allows; ``twins`` are the rows of ids that occur more than once."""
    faults: list[VoxelmillError] = []
    if sample.partition(".")[0].lower() in DEVICES:
        faults.append(BadDataError(f"the id {sample!r} is the name of a device in Windows", **where))
    if sample.lower() in RESULTS:
        faults.append(
            BadDataError(f"the id {sample!r} is the name of a result of every run", **where, remedy="rename the sample")
        )
    if sample.lower() in twins:
        faults.append(
            BadDataError(
                f"the id {printable(sample)!r} is in rows {' and '.join(map(str, twins[sample.lower()]))}",
                **where,
                expected="ids that differ in more than upper and lower case",
            )
        )
    return faults


def read_table(path: Path, shown: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and rows (with their line numbers) of a CSV file; empty lines are left out."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, PermissionError) as error:
        raise InputMissingError(
            f"the samplesheet cannot be read: {error.strerror}", file=shown, remedy="check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise BadDataError(
            f"the samplesheet is not UTF-8 at byte {error.start}", file=shown, remedy="save it as CSV UTF-8"
        ) from error
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise BadDataError(f"the samplesheet is no CSV: {error}", file=shown) from error
    if not lines:
        raise BadDataError(
            "the samplesheet is empty: no samples", file=shown, expected="a header and one row per sample"
        )
    return [cell.strip() for cell in lines[0][1]], lines[1:]


def check_header(
    header: Sequence[str],
    columns: Iterable[str],
    required: Iterable[str],
    shown: str,
    *,
    one_of: Sequence[str] = (),
) -> None:
    """Refuse columns that are missing, unknown or there twice, suggesting the nearest name."""
    known = list(columns)
    faults = []
    for name in header:
        if name not in known:
            near = get_close_matches(name.lower(), known, 1, 0.5)
            faults.append(f"unknown column {printable(name)!r}" + (f", did you mean {near[0]!r}?" if near else ""))
    faults += [f"column {name!r} is there twice" for name in known if header.count(name) > 1]
    faults += [f"column {name!r} is missing" for name in required if name not in header]
    if one_of and not set(one_of) & set(header):
        faults.append(f"column {' or '.join(map(repr, one_of))} is missing")
    if faults:
        semicolons = len(header) == 1 and ";" in header[0]
        raise BadDataError(
            "; ".join(faults[:5]),
            file=shown,
            expected=f"columns out of {', '.join(known)}, separated by commas",
            remedy="separate the columns by commas, not semicolons" if semicolons else "correct the first line",
        )


def cell_fault(
    error: Any, values: Mapping[str, str], columns: Mapping[str, Any], where: Mapping[str, str | None]
) -> BadDataError:
    """A fault that the schema found in a row, in words."""
    if not error.path:
        missing = [name for name in error.schema.get("required", []) if name not in values]
        return BadDataError(f"the row has no {' and no '.join(missing)}", **where, expected="a value in these columns")
    column = str(error.path[0])
    return BadDataError(
        f"column {column}: {printable(values[column])!r}",
        **where,
        expected=columns[column].get("description"),
        remedy=f"one of {', '.join(error.validator_value)}" if error.validator == "enum" else None,
    )


def repeated(ids: Iterable[tuple[int, str]]) -> dict[str, list[int]]:
    """Ids (lower case) that occur more than once, with their row numbers."""
    seen: dict[str, list[int]] = {}
    for number, name in ids:
        seen.setdefault(name.strip().lower(), []).append(number)
    return {name: numbers for name, numbers in seen.items() if name and len(numbers) > 1}


def rows_of_images(names: Mapping[int, str]) -> list[Row]:
    """One row per image, its id made from the file's name.

    Files that differ only in nnU-Net's channel suffix, ``_0000`` upwards without a gap, are the channels of one sample.

    Parameters
    ----------
    names : mapping
        Position from 1 -> file name.
    """
    stems = {position: SUFFIXES.sub("", name) for position, name in names.items()}
    channels: dict[str, dict[int, int]] = {}
    for position, stem in stems.items():
        if match := CHANNEL_SUFFIX.search(stem):
            channels.setdefault(stem[: match.start()], {})[int(match[1])] = position
    groups = {stem: found for stem, found in channels.items() if sorted(found) == list(range(len(found)))}
    rows: list[Row] = []
    taken: set[str] = set()
    done: set[int] = set()
    for position in sorted(names):
        if position in done:
            continue
        stem = stems[position]
        base = CHANNEL_SUFFIX.sub("", stem)
        group = groups.get(base, {})
        members = tuple(group[c] for c in sorted(group)) if position in group.values() else (position,)
        done.update(members)
        sample = unique_id(safe_id(base if len(members) > 1 or position in group.values() else stem), taken)
        taken.add(sample.lower())
        rows.append(Row(position, sample, tuple(names[m] for m in members), members, {}))
    return rows


def safe_id(name: str) -> str:
    """An id out of any text; the same for both Unicode forms of a name."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    text = re.sub(r"[^A-Za-z0-9._-]+", "_", plain).lstrip("._-").rstrip(".")[:ID_LENGTH] or "sample"
    taken = text.partition(".")[0].lower() in DEVICES or text.lower() in RESULTS
    return f"s_{text}"[:ID_LENGTH] if taken else text


def unique_id(name: str, taken: set[str]) -> str:
    """The id, with a number behind it where another sample has it already."""
    number, unique = 1, name
    while unique.lower() in taken:
        number += 1
        tail = f"-{number}"
        unique = name[: ID_LENGTH - len(tail)] + tail
    return unique


def plain_cell(text: str) -> str:
    """A user's text for a cell of a table, with an apostrophe in front of what a spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def printable(text: str) -> str:
    """A user's text for one line of a message: no control characters, at most 100 characters, valid UTF-8."""
    clean = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    clean = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in clean)
    return clean if len(clean) <= 100 else clean[:97] + "..."
