"""Exit codes of every task and the errors that carry them.

Nextflow's retry rule (``conf/base.config``) reads the same codes: 2, 65-70, 74, 77 and 78 are final, 75 is tried
again as it is, 76 once as it is (another program may have held the GPU's memory; what the task can do without it, it
has done), 137 with more memory.
"""

from __future__ import annotations

import errno
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OK = 0
USAGE = 2
BAD_DATA = 65
INPUT_MISSING = 66
DEVICE_ABSENT = 69
INTERNAL = 70
WRITE_FAILED = 74
TEMPORARY = 75
GPU_MEMORY = 76
REFUSED = 77
MODEL_MISMATCH = 78
HOST_MEMORY = 137

MAX_LINES = 12

FULL = re.compile(
    "|".join(
        rf"os error {n}\b|errno = {n}\b" for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
    )
)
"""How zarrs and HDF5, which keep no number of the system's error, tell of a disk that is full or broken."""

TABLE_WIDTH = 118
"""Of a table of faults in letters: Nextflow moves it to the right by two, and a terminal has 120."""

TABLE_ROWS, SAMPLE_ROWS, CELL_LINES = 50, 5, 8
"""How much of it is shown: faults in all, faults of one sample, lines of a cell. More than that is not read."""


class VoxelmillError(Exception):
    """A failure that a user can act on.

    Parameters
    ----------
    found : str
        What is wrong, in one sentence.
    sample, file : str, optional
        Where: the sample's id and the file as the user named it.
    expected : str, optional
        What was expected instead.
    remedy : str, optional
        What to do now.
    """

    code = INTERNAL

    def __init__(
        self,
        found: str,
        *,
        sample: str | None = None,
        file: str | Path | None = None,
        expected: str | None = None,
        remedy: str | None = None,
    ):
        super().__init__(found)
        self.found = found
        self.sample = sample
        self.file = None if file is None else str(file)
        self.expected = expected
        self.remedy = remedy

    def __str__(self) -> str:
        rows = [
            ("error", self.found),
            ("sample", self.sample),
            ("file", self.file),
            ("expected", self.expected),
            ("do", self.remedy),
        ]
        lines = [f"{name + ':':<10}{text}" for name, text in rows if text]
        return "\n".join("\n".join(lines).splitlines()[:MAX_LINES])


class UsageError(VoxelmillError):
    code = USAGE


class BadDataError(VoxelmillError):
    code = BAD_DATA


class InputMissingError(VoxelmillError):
    code = INPUT_MISSING


class DeviceAbsentError(VoxelmillError):
    code = DEVICE_ABSENT


class WriteFailedError(VoxelmillError):
    code = WRITE_FAILED


class TemporaryError(VoxelmillError):
    code = TEMPORARY


class GpuMemoryError(VoxelmillError):
    code = GPU_MEMORY


class RefusedError(VoxelmillError):
    code = REFUSED


class ModelMismatchError(VoxelmillError):
    code = MODEL_MISMATCH


class FaultsError(VoxelmillError):
    """All faults of an input at once; the exit code is that of the first.

    Attributes
    ----------
    faults : list of VoxelmillError
    place : Path or None
        File that holds all of them, named where some are not shown.
    """

    def __init__(self, faults: Iterable[VoxelmillError]):
        self.faults = list(faults)
        self.place: Path | None = None
        super().__init__(f"{len(self.faults)} faults")
        self.code = self.faults[0].code

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.faults,)

    @property
    def messages(self) -> str:
        """Every fault as a message of its own."""
        return "\n\n".join(str(fault) for fault in self.faults)

    @property
    def shown(self) -> list[VoxelmillError]:
        """The faults that have a place in the table."""
        shown: list[VoxelmillError] = []
        rows: Counter[str | None] = Counter()
        for fault in self.faults:
            rows[fault.sample] += 1
            if len(shown) < TABLE_ROWS and (fault.sample is None or rows[fault.sample] <= SAMPLE_ROWS):
                shown.append(fault)
        return shown

    @property
    def hidden(self) -> int:
        """How many faults the table leaves out."""
        return len(self.faults) - len(self.shown)

    def __str__(self) -> str:
        samples = len({fault.sample for fault in self.faults if fault.sample})
        told = f"{'error:':<10}{len(self.faults)} faults" + (f" in {samples} samples" if samples > 1 else "")
        where = f"; all are in {self.place}" if self.place else ""
        more = [f"and {self.hidden} more{where}"] if self.hidden else []
        return "\n\n".join([told, fault_table(self.shown), *more])


FAULT_COLUMNS = ("sample", "what is wrong", "what was expected", "what to do")


def fault_cells(fault: VoxelmillError) -> tuple[str, str, str, str]:
    """Cells of a fault under `FAULT_COLUMNS`; the file stands before what is wrong with it."""
    found = f"{fault.file}: {fault.found}" if fault.file else fault.found
    return fault.sample or "", found, fault.expected or "", fault.remedy or ""


def fault_table(faults: Iterable[VoxelmillError]) -> str:
    """Faults as columns of wrapped text with an empty line between them, no wider than `TABLE_WIDTH`."""
    rows = [FAULT_COLUMNS, *map(fault_cells, faults)]
    widths = column_widths([max(len(row[i]) for row in rows) for i in range(len(FAULT_COLUMNS))])
    blocks = []
    for row in rows:
        cells = [wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
        height = max(map(len, cells))
        lines = zip(*(cell + [""] * (height - len(cell)) for cell in cells), strict=True)
        texts = ("  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)) for line in lines)
        blocks.append("\n".join(text.rstrip() for text in texts))
    return "\n\n".join(blocks)


def column_widths(wanted: Sequence[int]) -> list[int]:
    """Letters of each column: what it needs where that is less than an even part of what is left, else that part."""
    left, widths = TABLE_WIDTH - 2 * (len(wanted) - 1), [0] * len(wanted)
    for done, i in enumerate(sorted(range(len(wanted)), key=lambda i: wanted[i])):
        widths[i] = min(wanted[i], left // (len(wanted) - done))
        left -= widths[i]
    return widths


def wrapped(text: str, width: int) -> list[str]:
    """Lines of a cell; what is beyond `CELL_LINES` is left out aloud."""
    return textwrap.wrap(
        " ".join(text.split()), max(width, 1), max_lines=CELL_LINES, placeholder=" ..." if width > 4 else ""
    ) or [""]


class Faults:
    """Collects what is wrong with one sample, so that the user sees all of it at once.

    Parameters
    ----------
    sample : str
    file : str
        The file that an error is about unless it is told otherwise, as the user named it.
    """

    def __init__(self, sample: str, file: str):
        self.sample = sample
        self.file = file
        self.found: list[VoxelmillError] = []

    @contextmanager
    def collect(self, file: str | None = None) -> Iterator[None]:
        """Keep an error of the block, with the sample's id and the file."""
        try:
            yield
        except FaultsError as error:
            self.found += error.faults
        except VoxelmillError as error:
            error.sample = self.sample
            error.file = file or self.file
            self.found.append(error)

    def raise_found(self) -> None:
        """Raise what was collected, if anything."""
        if self.found:
            raise several(self.found)


def several(errors: Iterable[VoxelmillError]) -> VoxelmillError:
    """One error for all; a single one as it is."""
    faults: list[VoxelmillError] = []
    for error in errors:
        faults += error.faults if isinstance(error, FaultsError) else [error]
    return faults[0] if len(faults) == 1 else FaultsError(faults)


def code_of(error: BaseException) -> int:
    """Exit code for any exception: ours by class, the operating system's by what it says."""
    if isinstance(error, VoxelmillError):
        return error.code
    if isinstance(error, MemoryError):
        return HOST_MEMORY
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS):
            return WRITE_FAILED
        if error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM):
            return INPUT_MISSING
        if error.errno == errno.ESTALE:
            return TEMPORARY
        if error.errno == errno.ENOMEM:
            return HOST_MEMORY
    if isinstance(error, OSError | RuntimeError) and FULL.search(str(error)):
        return WRITE_FAILED
    return INTERNAL
