"""The set-up: what it pins, what it says when something is absent, and how it starts Nextflow."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from voxelmill import __version__

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"
BASIC_PROGRAMS = ("bash", "cat", "cut", "dirname", "grep", "head", "mkdir", "readlink", "sed", "sha256sum", "sort")
DISTRIBUTIONS = {
    "cc3d": "connected-components-3d",
    "PIL": "pillow",
    "markdown_it": "markdown-it-py",
    "nrrd": "pynrrd",
    "skimage": "scikit-image",
}


def pins(lock: str) -> dict[str, str]:
    """Versions by name of a lock file."""
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ;]+)", (REQUIREMENTS / lock).read_text(), flags=re.MULTILINE))


def asked_for(source: str) -> set[str]:
    """Names that a requirements source lists, as imports spell them."""
    lines = (REQUIREMENTS / source).read_text().splitlines()
    names = {re.split(r"[=<> ]", line)[0].lower().replace("-", "_") for line in lines if line and line[0] not in "#-"}
    return names.union(*(asked_for(line.removeprefix("-r ")) for line in lines if line.startswith("-r ")))


def third_party_imports(path: Path) -> set[str]:
    """Top-level modules outside the standard library that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"voxelmill"}


@pytest.mark.parametrize("lock", ["light.lock", "runtime.lock", "dev.lock", "uv.lock", "sbom.lock"])
def test_lock_pins_hashes_and_names_no_registry(lock: str) -> None:
    text = (REQUIREMENTS / lock).read_text()
    entries = [entry for entry in re.split(r"\n(?=\S)", text) if not entry.startswith("#")]
    assert entries
    assert all("==" in entry and "--hash=sha256:" in entry for entry in entries)
    assert not re.search(r"index-url|find-links|://", text)


def test_tests_run_with_the_versions_of_the_image() -> None:
    dev = pins("dev.lock")
    assert {name: dev[name] for name in pins("runtime.lock")} == pins("runtime.lock")


def test_image_has_all_that_the_tasks_import() -> None:
    imported = set().union(*(third_party_imports(path) for path in (ROOT / "bin").rglob("*.py")))
    wanted = {DISTRIBUTIONS.get(name, name).lower().replace("-", "_") for name in imported}
    assert wanted <= asked_for("runtime.in")


def test_version_is_told_once() -> None:
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_absent_programs_are_named_with_their_debian_packages(tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in BASIC_PROGRAMS:
        (programs / name).symlink_to(shutil.which(name) or name)
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "setup", checkout / "setup")
    shutil.copytree(REQUIREMENTS, checkout / "requirements")
    result = subprocess.run(
        [checkout / "setup" / "install.sh"], env={"PATH": str(programs)}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 69
    for package in ("python3 python3-venv", "openjdk-17-jre-headless", "maven"):
        assert f"apt-get install {package}" in result.stderr
    assert not (checkout / ".venv").exists()


@pytest.fixture
def java(tmp_path: Path) -> Path:
    """A java that prints its arguments, one a line, and ends with 7."""
    path = tmp_path / "java home" / "bin" / "java"
    path.parent.mkdir(parents=True)
    path.write_text('#!/bin/bash\nprintf "%s\\n" "$@" "offline $NXF_OFFLINE"\nexit 7\n')
    path.chmod(0o755)
    return path


def test_launcher_passes_arguments_options_and_exit_code(java: Path) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("NXF_", "JAVA_"))},
        "JAVA_HOME": str(java.parents[1]),
        "NXF_OPTS": "-Xms1m -Xmx2m",
        "NXF_JVM_ARGS": "-ea",
    }
    result = subprocess.run(
        [ROOT / "setup" / "nextflow", "run", "main.nf", "--name", "a b"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    given = result.stdout.splitlines()
    assert result.returncode == 7
    assert given[0] == "-ea"
    assert "--add-opens=java.base/java.util=ALL-UNNAMED" in given
    assert given.index("-Xmx2m") < given.index("nextflow.cli.Launcher")
    assert given[-6:] == ["nextflow.cli.Launcher", "run", "main.nf", "--name", "a b", "offline true"]


def test_nextflow_of_the_environment_is_new_enough() -> None:
    nextflow = shutil.which("nextflow", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert nextflow, "make setup leaves a nextflow"
    text = subprocess.run([nextflow, "-v"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"version (\d+)\.(\d+)", text)
    assert version and tuple(map(int, version.groups())) >= (25, 4)
