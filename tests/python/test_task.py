"""The record that every task leaves: digests of what it publishes, and what it wrote on disk."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from voxelmill.files import disk_bytes, read_json, sha256_tree
from voxelmill.task import task


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(name: str, size: int) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    return path


def test_every_file_of_a_published_folder_is_recorded():
    names = {"a/store/c/0/10": 100, "a/store/c/0/9": 10, "a/store-b": 5, "a/store/zarr.json": 3, "a/table.csv": 7}
    for name, size in names.items():
        written(name, size)
    with task("compose_store", "a") as record:
        record.output(Path("a/store"))
        record.output(Path("a/table.csv"))
    made = read_json(Path("a/a.compose_store.json"))
    listed = [name for name in names if name != "a/store-b"]
    assert made["files"] == {
        name: {"sha256": hashlib.sha256(Path(name).read_bytes()).hexdigest(), "bytes": names[name]} for name in listed
    }
    assert made["outputs"] == {"a/store": sha256_tree(Path("a/store")), "a/table.csv": sha256_tree(Path("a/table.csv"))}


def test_the_digest_of_a_folder_is_over_the_lines_of_its_files():
    for name in ("s/b/1", "s/a-b", "s/a/2"):
        written(name, 4)
    lines = "".join(
        f"{name}\0{hashlib.sha256(Path('s', name).read_bytes()).hexdigest()}\n" for name in ("a/2", "a-b", "b/1")
    )
    assert sha256_tree(Path("s")) == hashlib.sha256(lines.encode()).hexdigest()


def test_disk_is_what_the_task_wrote(tmp_path):
    other = written("other/shard", 1000)
    task_folder = tmp_path / "task"
    os.chdir(written("task/own/data", 300).parent.parent)
    os.link(tmp_path / other, "own/linked")
    os.symlink(tmp_path / other, "staged")
    os.symlink(tmp_path / "other", "staged_folder")
    with task("compose_store", "a"):
        written("deep/er/file", 50)
    assert read_json(Path("a/a.compose_store.json"))["disk_bytes"] == 350
    # Oracle: du of the files with one name.
    found = subprocess.run(
        ["find", task_folder, "-type", "f", "-links", "1", "-printf", "%s\n"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert sum(map(int, found.stdout.split())) == disk_bytes(task_folder)


def test_a_folder_that_cannot_be_read_stops_no_task(tmp_path, monkeypatch):
    written("locked/file", 10)
    written("open/file", 20)
    scandir = os.scandir

    def refused(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert disk_bytes(tmp_path) == 20
