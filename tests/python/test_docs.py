"""The documentation says what the code does: parameters, columns, exit codes and links are compared with it."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from conftest import ROOT
from voxelmill import __version__, errors

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

OTHER_FLAGS = {
    *("out", "spacing-unit", "image", "micron2mm"),  # scripts, ours and others'
    *("plugin", "cors"),  # viewers
    *("batch", "constraint", "cpus-per-task", "exclude", "exclusive", "gpus", "gpus-per-node", "gres"),  # Slurm
    *("job-name", "me", "mem", "nice", "output", "signal", "time"),  # Slurm
    *("network", "nv", "nvidia", "read-only", "rm", "runtime", "security-opt", "tmpfs", "userns"),  # container engines
}
"""Flags on the pages that are other programs'."""


def anchors(text: str) -> set[str]:
    """Anchors that a Markdown host makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def first_column(text: str, heading: str) -> list[str]:
    """First cells of the table below a heading."""
    part = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [line.split("|")[1].strip() for line in part.splitlines() if line.startswith("| ")][2:]


def test_parameters_page_is_what_its_script_makes() -> None:
    spec = importlib.util.spec_from_file_location("make_parameters", ROOT / "docs" / "make_parameters.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    schema = json.loads((ROOT / "nextflow_schema.json").read_text())
    assert (ROOT / "docs" / "04_parameters.md").read_text() == script.page(schema)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_parameters_that_pages_name_exist(page: Path) -> None:
    schema = json.loads((ROOT / "nextflow_schema.json").read_text())
    known = {name for group in schema["$defs"].values() for name in group["properties"]}
    known |= OTHER_FLAGS
    assert set(re.findall(r"(?<![\w-])--([a-z][\w-]*)", page.read_text())) <= known


def test_samplesheet_columns_are_those_of_the_schema() -> None:
    cells = first_column((ROOT / "docs" / "02_input.md").read_text(), "The samplesheet")
    schema = json.loads((ROOT / "assets" / "schema_input.json").read_text())
    assert sorted(re.findall(r"`(\w+)`", " ".join(cells))) == sorted(schema["items"]["properties"])


def test_images_of_the_containers_are_those_of_this_version() -> None:
    files = [*(ROOT / "conf").rglob("*.config"), ROOT / "containers" / "README.md", *PAGES]
    named = {file: set(re.findall(r"\bvoxelmill[:-](\d[\w.-]*\w)", file.read_text())) for file in files}
    light, full = f"{__version__}-light", __version__
    known = {light, full, f"{light}.sif", f"{full}.sif", f"{light}.tar", f"{full}.tar", f"{full}.cdx.json"}
    assert set().union(*named.values()) <= known
    for engine in ("apptainer", "charliecloud", "docker", "podman", "singularity"):
        assert {name.removesuffix(".sif") for name in named[ROOT / "conf" / f"{engine}.config"]} == {light, full}


def test_every_exit_code_has_its_remedy() -> None:
    cells = first_column((ROOT / "docs" / "05_output.md").read_text(), "When something fails")
    codes = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
    layout = {errors.MAX_LINES, errors.TABLE_WIDTH, errors.TABLE_ROWS, errors.SAMPLE_ROWS, errors.CELL_LINES}
    assert {int(cell) for cell in cells} == codes - layout - {errors.OK}


def test_tests_that_pages_name_exist() -> None:
    text = (ROOT / "docs" / "08_developing.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    known = {
        name
        for file in (ROOT / "tests" / "python").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    assert named
    assert named <= known
