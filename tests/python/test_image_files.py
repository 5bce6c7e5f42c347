"""What the container images are built from: who needs torch, and what the build says before it starts."""

from __future__ import annotations

import ast
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / "bin"
# What the light image does not hold.
HEAVY = {"torch", "dynamic_network_architectures"}
# It asks for torch through voxelmill.probe, and only after it has seen a GPU.
LATE = BIN / "probe_device.py"
MODULES = sorted((ROOT / "modules").glob("*/main.nf"))


@functools.cache
def imported(path: Path, *, within_functions: bool) -> frozenset[str]:
    """Dotted names of what a file imports when it is imported itself, or also when its functions are called.

    What is imported for annotations alone does not count.
    """
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.FunctionDef) and not within_functions:
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        waiting += ast.iter_child_nodes(node)
    return frozenset(found)


def files_of(module: str) -> Iterator[Path]:
    """Files of the library that run when a module of it is imported: its own, and those of the packages around it."""
    parts = module.split(".")
    for n in range(1, len(parts) + 1):
        place = BIN.joinpath(*parts[:n])
        yield from (file for file in (place.with_suffix(".py"), place / "__init__.py") if file.exists())


def third_party(script: Path) -> set[str]:
    """Top-level modules outside the library that a script imports, itself or through the library."""
    waiting, seen, found = [script], set(), set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in imported(path, within_functions=path == script):
            if name.split(".")[0] == "voxelmill":
                waiting += files_of(name)
            else:
                found.add(name.split(".")[0])
    return found


@functools.cache
def needs_torch(script: Path) -> bool:
    """Whether a script cannot run in the light image."""
    return script == LATE or bool(third_party(script) & HEAVY)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.parent.name)
def test_processes_that_need_torch_say_so_and_no_others(module: Path) -> None:
    text = module.read_text()
    called = {BIN / name for name in re.findall(r"\b\w+\.py\b", text) if (BIN / name).exists()}
    assert any(map(needs_torch, called)) == ("label 'process_torch'" in text)


def test_only_those_scripts_need_torch_that_open_or_run_a_network() -> None:
    scripts = {path.name for path in BIN.glob("*.py") if needs_torch(path)}
    assert scripts == {"pack_model.py", "predict_tiles.py", "probe_device.py"}


def test_two_modules_alone_import_torch_when_they_are_called() -> None:
    # What the walk above does not see: PLAN_TILES, without torch, takes from them only what reads a file.
    late = {
        path.name
        for path in (BIN / "voxelmill").rglob("*.py")
        if (imported(path, within_functions=True) - imported(path, within_functions=False)) & HEAVY
    }
    assert late == {"device.py", "probe.py"}


def test_versions_of_the_light_image_are_those_of_the_full_one() -> None:
    light, full = (
        dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements" / name).read_text(), re.MULTILINE))
        for name in ("light.lock", "runtime.lock")
    )
    assert light.items() <= full.items()
    assert {"torch", "dynamic-network-architectures"} <= full.keys() - light.keys()


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with the programs that the build script calls; its podman and df are none."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("bash", "dirname", "sed", "tail", "tr"):
        (folder / name).symlink_to(shutil.which(name) or name)
    script(folder / "podman", f'[[ $1 == info ]] && echo {tmp_path} || echo "$@" >>{tmp_path}/calls')
    return folder


def script(path: Path, text: str) -> None:
    """Write a program of bash."""
    path.write_text(f"#!{shutil.which('bash')}\n{text}\n")
    path.chmod(0o755)


def build(programs: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the build script with nothing but these programs."""
    return subprocess.run(
        [ROOT / "containers" / "build.sh", *arguments],
        env={"PATH": str(programs), "TMPDIR": str(programs), **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(("target", "free"), [("light", 3), ("full", 12)])
def test_a_disk_that_is_too_small_ends_the_build_before_it_starts(programs: Path, target: str, free: int) -> None:
    script(programs / "df", f"printf 'Avail\\n {free}G\\n'")
    result = build(programs, target)
    assert result.returncode == 74
    assert f"{free} GB are free" in result.stderr
    assert not (programs.parent / "calls").exists()


def test_both_images_are_built_with_their_names(programs: Path) -> None:
    script(programs / "df", "printf 'Avail\\n 100G\\n'")
    assert build(programs, "--pull=never", VOXELMILL_IMAGE="site/mill:1").returncode == 0
    calls = (programs.parent / "calls").read_text().splitlines()
    assert [re.findall(r"--target (\w+)|--tag (\S+)|--pull=(\w+)", call) for call in calls] == [
        [("light", "", ""), ("", "site/mill:1-light", ""), ("", "", "never")],
        [("full", "", ""), ("", "site/mill:1", ""), ("", "", "never")],
    ]


def test_an_absent_engine_is_named(programs: Path) -> None:
    os.remove(programs / "podman")
    result = build(programs)
    assert result.returncode == 69
    assert "install podman or docker" in result.stderr
