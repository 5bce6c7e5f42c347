"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on success flush it to disk and give it the final name.

    Nothing is left under either name when the block raises.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """As `atomic_path` for a folder, which the block makes; what lies under the final name is replaced."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: UTF-8, sorted keys, a final newline, no NaN."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes, read in pieces."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_tree(path: Path) -> str:
    """Hex digest of a file, or of every file of a folder with its relative name."""
    return sha256_of_files(sha256_files(path))


def sha256_files(path: Path) -> dict[str, str]:
    """Relative path -> hex digest of every file of a folder, in the order of their paths; of a file just ``.``."""
    path = Path(path)
    if not path.is_dir():
        return {".": sha256_file(path)}
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): sha256_file(file) for file in files}


def sha256_of_files(digests: dict[str, str]) -> str:
    """The one digest of what `sha256_files` gives: a file's own, or over the lines of a folder's files."""
    if digests.keys() == {"."}:
        return digests["."]
    digest = hashlib.sha256()
    for name, value in digests.items():
        digest.update(f"{name}\0{value}\n".encode())
    return digest.hexdigest()


def disk_bytes(folder: Path) -> int:
    """Sizes of the files that were written below a folder.

    Links to what other tasks wrote are left out: symbolic ones (staged inputs), and files with several names, which a
    task makes only of another's (the shards of a label store). Each byte of a work folder is so counted once, by the
    task that wrote it. What may not be looked at counts as nothing.
    """
    total, folders = 0, [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                    elif entry.is_file(follow_symlinks=False):
                        found = entry.stat(follow_symlinks=False)
                        total += found.st_size if found.st_nlink == 1 else 0
        except OSError:
            continue
    return total
