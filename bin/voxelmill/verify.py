"""Are published results still what they were? Held against ``pipeline_info/outputs.sha256``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from voxelmill.errors import BadDataError, InputMissingError
from voxelmill.files import sha256_file

RUN = "pipeline_info"
CHECKSUMS = f"{RUN}/outputs.sha256"
LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
SHOWN = 5


@dataclass(frozen=True)
class Verification:
    """Relative paths of the files of a results' folder.

    Attributes
    ----------
    intact, missing, changed : tuple of str
        Files of the list: as published, gone, with other contents.
    unlisted : tuple of str
        Other files below the folder, without those of ``pipeline_info``.
    """

    intact: tuple[str, ...]
    missing: tuple[str, ...]
    changed: tuple[str, ...]
    unlisted: tuple[str, ...]


def verify_results(results: Path) -> Verification:
    """Compare every file of the list with its checksum.

    Raises
    ------
    InputMissingError
        Where there is no list.
    BadDataError
        Where the list is damaged.
    """
    expected = read_checksums(results)
    found: dict[str, list[str]] = {"intact": [], "missing": [], "changed": []}
    for name, digest in expected.items():
        path = results / name
        state = "missing" if not path.is_file() else "intact" if sha256_file(path) == digest else "changed"
        found[state].append(name)
    others = (path.relative_to(results) for path in results.rglob("*") if path.is_file())
    unlisted = sorted(p.as_posix() for p in others if p.parts[0] != RUN and p.as_posix() not in expected)
    return Verification(tuple(found["intact"]), tuple(found["missing"]), tuple(found["changed"]), tuple(unlisted))


def read_checksums(results: Path) -> dict[str, str]:
    """Relative path -> SHA-256 (hex), in the order of the list."""
    path = results / CHECKSUMS
    if not path.is_file():
        raise InputMissingError(
            "the list of checksums is not there",
            file=path,
            expected="the folder that was given as --outdir, after a run that ended with a report",
            remedy="check the folder's name, or run again with -resume",
        )
    expected: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        match = LINE.fullmatch(line)
        if match is None or not _inside(match[2]):
            raise BadDataError(
                f"line {number} of the list of checksums is no checksum of a file in this folder",
                file=path,
                expected="64 hexadecimal digits, two spaces, a relative path",
                remedy="run again with -resume, which publishes the list again",
            )
        expected[match[2]] = match[1]
    if not expected:
        raise BadDataError("the list of checksums is empty", file=path, remedy="run again with -resume")
    return expected


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def check_results(results: Path) -> Verification:
    """As `verify_results`; BadDataError where a file is missing or has changed."""
    found = verify_results(results)
    faults = {"missing": found.missing, "changed": found.changed}
    if any(faults.values()):
        total = len(found.intact) + len(found.missing) + len(found.changed)
        raise BadDataError(
            f"of {total} published files "
            + ", ".join(f"{len(names)} {state} ({first(names)})" for state, names in faults.items() if names),
            file=results,
            expected=f"the files and checksums of {CHECKSUMS}",
            remedy="run the same command again with -resume, which publishes them again, or copy the results again",
        )
    return found


def first(names: Sequence[str]) -> str:
    """The first few of some names."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
