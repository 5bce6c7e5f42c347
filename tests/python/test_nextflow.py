"""The pipeline as Nextflow sees it: params, what a re-run repeats, and that no text of a user reaches a shell."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT

PIPELINE = ("main.nf", "nextflow.config", "nextflow_schema.json", "assets", "bin", "conf", "functions", "modules",
            "subworkflows", "workflows")  # fmt: skip


def nextflow(folder: Path, *arguments: str | Path, parser: str = "v1") -> subprocess.CompletedProcess[str]:
    """Run the environment's Nextflow in a folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "NXF_SYNTAX_PARSER": parser, "NXF_ANSI_LOG": "false"}
    command = [shutil.which("nextflow", path=path) or "nextflow", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def tasks(log: str, how: str) -> set[str]:
    """Tasks that a run's log calls ``Submitted`` or ``Cached``, by process and tag."""
    return {name.split(":")[-1] for name in re.findall(rf"\] {how} process > (\S+(?: \([^)]*\))?)", log)}


def schema_properties() -> dict[str, dict[str, Any]]:
    schema = json.loads((ROOT / "nextflow_schema.json").read_text())
    return {name: rule for group in schema["$defs"].values() for name, rule in group["properties"].items()}


@pytest.mark.parametrize("parser", ["v1", "v2"])
def test_defaults_of_the_settings_are_those_of_the_schema(parser: str, tmp_path: Path) -> None:
    text = nextflow(tmp_path, "-q", "config", ROOT, "-flat", parser=parser).stdout
    found = dict(re.findall(r"^params\.(\w+) = (.*)$", text, re.MULTILINE))
    expected = {
        name: repr(value) if isinstance(value, str) else json.dumps(value)
        for name, rule in schema_properties().items()
        for value in [rule.get("default")]
    }
    assert found == expected


def test_every_param_has_help_and_a_type() -> None:
    for name, rule in schema_properties().items():
        assert rule["description"].endswith("."), name
        assert rule["type"] in ("string", "boolean", "integer", "number"), name


@pytest.mark.parametrize(
    ("text", "fits"),
    [("0", True), ("-1", True), ("2,0", True), ("-1;0", True), ("dapi", False), ("0,", False), ("0 1", False)],
)
def test_channels_that_the_param_takes(text: str, fits: bool) -> None:
    assert bool(re.fullmatch(schema_properties()["channel"]["pattern"], text)) == fits


def test_the_check_estimates_with_the_options_of_the_plan() -> None:
    text = (ROOT / "main.nf").read_text()
    lists = dict(re.findall(r"(check|plan): flags\(values, \[([^\]]*)\]", text))
    lists |= re.findall(r"def (conversion) = \[(.*)\]", text)
    names = {stage: set(re.findall(r"'(\w+)'", text)) for stage, text in lists.items()}
    assert names["plan"] <= names["check"]
    scripts = (
        ("check", "check_input"),
        ("plan", "plan_tiles"),
        ("conversion", "check_input"),
        ("conversion", "convert_images"),
    )
    for stage, script in scripts:
        text = (ROOT / "bin" / f"{script}.py").read_text()
        assert {f"--{name.replace('_', '-')}" for name in names[stage]} <= set(
            re.findall(r'option\("(--[\w-]+)"', text)
        )


FUNCTIONS = """
include {{ isImage }} from '{functions}/inputs'
include {{ failure }} from '{functions}/closing'
include {{ roomFaults }} from '{functions}/outdir'
include {{ readJson; mutualFaults }} from '{functions}/params'

workflow {{
    def names = ['a.TIF', 'a.ome.btf', 'a.tf2', 'a.tf8', 'a.nii.gz', 'a.txt'] +
        ['a.MHA', 'a.mhd', 'a.nrrd', 'a.nhdr', 'a.png', 'a.JPEG', 'a.h5', 'a.hdf5', 'a.raw', 'h5']
    def schema = readJson(file('{functions}/../nextflow_schema.json'))
    def lonely = ['a.tif', 'a.CSV'].collect {{ name -> mutualFaults([input: name, publish_dir_mode: ''], schema) }}
    println("modelless: ${{lonely}}")
    [['copy', 5], ['copy', 1e18], ['symlink', 1e18]].each {{ mode, needed ->
        println("room ${{mode}} ${{needed}}: ${{roomFaults('gone/results', mode, needed)}}")
    }}
    println('images: ' + names.findAll {{ name -> isImage(file(name)) }})
    ['faults', 'killed'].each {{ name ->
        def report = "Error executing process > 'CHECK_INPUT'\\n\\nWork dir:\\n  ${{projectDir}}/${{name}}"
        println(failure(report).join('\\n'))
    }}
}}
"""


@pytest.mark.nextflow
@pytest.mark.parametrize("parser", ["v1", "v2"])
def test_names_of_images_and_last_words(parser: str, tmp_path: Path) -> None:
    faults = "\n\n".join(f"error:    fault {n}\nsample:   s{n}\ndo:       mend it" for n in range(1, 51))
    for name, text in (("faults", f"warning: old\n{faults}"), ("killed", "\n".join(map(str, range(30))))):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".command.err").write_text(text)
    (tmp_path / "main.nf").write_text(FUNCTIONS.format(functions=ROOT / "functions"))
    said = nextflow(tmp_path, "-q", "run", "main.nf", parser=parser).stdout
    assert re.search(r"modelless: \[\[--model is missing: [^\]]*\], \[\]\]", said)
    assert (
        "images: [a.TIF, a.ome.btf, a.tf2, a.tf8, a.nii.gz, a.MHA, a.mhd, a.nrrd, a.nhdr, a.png, a.JPEG, a.h5, a.hdf5]"
        in said
    )
    first, second = said.split("Task CHECK_INPUT:")[1:]
    assert "warning: old" not in first and "fault 1\n" in first and "fault 30\n" in first and "fault 31" not in first
    assert f"79 more lines in {tmp_path}/faults/.command.err" in first
    assert "29" in second and " 17\n" not in second


@pytest.mark.nextflow
@pytest.mark.parametrize("parser", ["v1", "v2"])
def test_all_faults_of_a_command_line_come_in_one_message(parser: str, tmp_path: Path) -> None:
    (tmp_path / "table.txt").touch()
    run = nextflow(
        tmp_path, "run", ROOT, "--imput", "x.tif", "--step_size", "2", "--engine", "fast", "--threads", "0.5",
        "--box", "$(touch evil)", "--channel", "dapi", "--outdir", "table.txt/results", "--cleanup",
        "--publish_dir_mode", "symlink", "--cpu_fallback", "--max_memory", "3 GB", parser=parser,
    )  # fmt: skip
    assert run.returncode == 1
    for fault in (
        "--input is missing",
        "--cleanup would delete what the results of --publish_dir_mode symlink point to",
        "--cpu_fallback has no effect without --device cuda",
        "--max_memory 3 GB is less than --memory_budget 4 GB, to which tasks are cut: lower --memory_budget as well",
        "--imput is not a param; did you mean --input?",
        "--step_size must be at most 1, not 2",
        "--engine must be one of float32, compile, bfloat16, not 'fast'",
        "--threads must be a whole number, not '0.5'",
        "--box cannot be read: '$(touch evil)'",
        "--channel cannot be read: 'dapi'",
        f"--outdir: {tmp_path}/table.txt is a file; name another folder",
    ):
        assert fault in run.stdout
    assert "Submitted" not in run.stdout
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.nextflow
def test_a_rerun_repeats_what_depends_on_a_change_and_nothing_else(tmp_path: Path) -> None:
    for name in PIPELINE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, tmp_path / name)
    chunk = tmp_path / "volume.zarr" / "0" / "c" / "0"
    chunk.parent.mkdir(parents=True)
    chunk.write_text("before")
    (tmp_path / "volume.zarr" / "zarr.json").write_text("{}")
    (tmp_path / "a $(touch evil).tif").write_text("image")
    (tmp_path / "samples.csv").write_text("sample,image\none,a $(touch evil).tif\ntwo,volume.zarr\n")
    (tmp_path / "model").mkdir()
    command = ["run", "main.nf", "-stub-run", "-resume", "--input", "samples.csv", "--model", "model"]

    first = nextflow(tmp_path, *command)
    labels = [
        "IMPORT_IMAGE",
        "PLAN_TILES",
        "PREDICT_TILES",
        "STITCH_BLOCKS",
        "LABEL_BLOCKS",
        "LINK_OBJECTS",
        "RELABEL_BLOCKS",
    ]
    after = ["COMPOSE_STORE", "MEASURE_OBJECTS", "TABULATE_OBJECTS", "EXPORT_LABELS"]
    parts = ("PREDICT_TILES", "STITCH_BLOCKS", "LABEL_BLOCKS", "RELABEL_BLOCKS", "MEASURE_OBJECTS")
    before, behind = (
        {n: {f"{process} (stub{n}{' 0' if process in parts else ''})" for process in chain} for n in (1, 2)}
        for chain in (labels, after)
    )
    ends = {"COMPARE_SAMPLES", "BUILD_REPORT"}
    everything = set.union(*before.values(), *behind.values())
    assert tasks(first.stdout, "Submitted") == {"PACK_MODEL", "CHECK_INPUT"} | ends | everything
    assert first.returncode == 0
    assert not list(tmp_path.rglob("evil"))

    chunk.write_text("behind")
    with open(tmp_path / "bin" / "voxelmill" / "compose.py", "a") as library:
        library.write("# changed\n")
    second = nextflow(tmp_path, *command)
    assert second.returncode == 0
    assert tasks(second.stdout, "Submitted") == {"CHECK_INPUT"} | ends | before[2] | behind[2] | behind[1]
    assert tasks(second.stdout, "Cached") == {"PACK_MODEL"} | before[1]

    third = nextflow(tmp_path, *command)
    assert tasks(third.stdout, "Submitted") == set()
    assert "Report: " in third.stdout
