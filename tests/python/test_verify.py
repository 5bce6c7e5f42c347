"""Published results are checked against their list; sha256sum is the oracle."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from voxelmill.errors import MAX_LINES, BadDataError, InputMissingError
from voxelmill.verify import check_results, verify_results

SCRIPT = Path(__file__).resolve().parents[2] / "bin" / "verify_outputs.py"
FILES = ("a/labels.ome.zarr/semantic/0/c/0/0/0", "a/labels.ome.zarr/zarr.json", "a/a.objects.csv", "report.html")


@pytest.fixture
def results(tmp_path) -> Path:
    lines = []
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        lines.append(f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n")
    (tmp_path / "pipeline_info").mkdir()
    (tmp_path / "pipeline_info" / "outputs.sha256").write_text("".join(lines))
    (tmp_path / "pipeline_info" / "trace.txt").write_text("of Nextflow")
    return tmp_path


def run(results: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, results], capture_output=True, text=True, check=False)


def sha256sum(results: Path) -> int:
    command = ["sha256sum", "--check", "--quiet", "--strict", "pipeline_info/outputs.sha256"]
    return subprocess.run(command, cwd=results, capture_output=True, check=False).returncode


def test_results_as_published_pass(results):
    done = run(results)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4 files are as they were published\n", "")
    assert sha256sum(results) == 0


def test_missing_and_changed_files_are_named(results):
    (results / FILES[0]).unlink()
    (results / FILES[2]).write_text("other")
    done = run(results)
    assert done.returncode == 65
    assert f"of 4 published files 1 missing ({FILES[0]}), 1 changed ({FILES[2]})" in done.stderr
    assert "-resume" in done.stderr
    assert len(done.stderr.splitlines()) <= MAX_LINES
    assert sha256sum(results) != 0


@pytest.mark.parametrize("name", FILES)
def test_one_byte_is_enough(results, name):
    data = bytearray((results / name).read_bytes())
    data[-1] ^= 1
    (results / name).write_bytes(data)
    found = verify_results(results)
    assert (found.changed, found.missing) == ((name,), ())
    with pytest.raises(BadDataError):
        check_results(results)


def test_a_store_that_is_gone_does_not_fill_the_screen(results):
    names = [f"a/labels.ome.zarr/{n}" for n in range(1000)]
    with open(results / "pipeline_info" / "outputs.sha256", "a") as handle:
        handle.writelines(f"{'0' * 64}  {name}\n" for name in names)
    done = run(results)
    assert "1000 missing" in done.stderr
    assert len(done.stderr) < 1000


def test_files_that_are_not_listed_are_a_warning(results):
    (results / "a" / "notes.txt").write_text("mine")
    done = run(results)
    assert done.returncode == 0
    assert "1 files are not of this run: a/notes.txt" in done.stderr
    assert verify_results(results).unlisted == ("a/notes.txt",)


def test_without_a_list_nothing_is_verified(tmp_path):
    with pytest.raises(InputMissingError, match=r"not there"):
        verify_results(tmp_path)
    assert run(tmp_path).returncode == 66


@pytest.mark.parametrize("line", ["", "abc", f"{'0' * 64}  /etc/passwd", f"{'0' * 64}  ../x", f"{'g' * 64}  a"])
def test_a_damaged_list_is_an_error(results, line):
    with open(results / "pipeline_info" / "outputs.sha256", "a") as handle:
        handle.write(f"{line}\n")
    with pytest.raises(BadDataError, match="line 5"):
        verify_results(results)


def test_an_empty_list_verifies_nothing(results):
    (results / "pipeline_info" / "outputs.sha256").write_text("")
    with pytest.raises(BadDataError, match="empty"):
        verify_results(results)
