"""What tasks ask for: by the data, more of what they lacked, within limits; and which codes are tried again."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import tifffile

from conftest import ROOT
from test_nextflow import nextflow, tasks
from voxelmill.needs import LEAST, MARGIN, Need, needs_of

GIB = 2**30

AGAIN = {75: 3, 76: 1, 137: 3, 104: 2, 134: 2, 139: 2, 140: 2, 143: 2, 175: 2, 247: 3}
FINAL = (1, 2, 65, 66, 67, 68, 69, 70, 74, 77, 78, 255)
HUNGRY, LATE = (134, 137, 139, 247), (140, 143)

FAILING = """
include {{ memoryFor; timeFor; sizeOf; largestCheckpoint; productOf; budgeted }} from '{functions}/resources'
include {{ needsOf }} from '{functions}/channels'

// Ends with one code after the other, then well.
process PLAIN {{
    tag "${{codes.join(' ')}}"
    input:
    val codes
    script:
    "exit ${{task.attempt <= codes.size() ? codes[task.attempt - 1] : 0}}"
    stub:
    "exit ${{task.attempt <= codes.size() ? codes[task.attempt - 1] : 0}}"
}}

process SIZED {{
    tag "${{codes.join(' ')}}"
    memory {{ memoryFor(bytes, task) }}
    time {{ timeFor(0, task) }}
    input:
    tuple val(codes), val(bytes)
    script:
    "exit ${{task.attempt <= codes.size() ? codes[task.attempt - 1] : 0}}"
    stub:
    "exit ${{task.attempt <= codes.size() ? codes[task.attempt - 1] : 0}}"
}}

process FILES {{
    memory {{ memoryFor(1e9 + sizeOf(two) + 10 * largestCheckpoint(folder) + productOf('--shape 64 256 256'), task) }}
    input:
    tuple path(two), path(folder)
    script:
    "true"
}}

process TOLD {{
    memory {{ memoryFor(budgeted(bytes, options), task) }}
    input:
    tuple val(bytes), val(options)
    script:
    "true"
}}

workflow {{
    def texts = params.codes.toString().tokenize(';')
    def codes = texts.collect {{ few -> few.tokenize(',').collect {{ code -> code as int }} }}
    PLAIN(channel.fromList(codes))
    SIZED(channel.fromList(codes.take(1)).map {{ few -> [few, params.bytes as long] }})
    if (params.folder) {{
        TOLD(channel.of([5_000_000_000, "--memory-budget '3000000000' --more '1'"]))
        FILES(channel.of([[file("${{params.folder}}/a"), file("${{params.folder}}/b/c")], file(params.folder)]))
    }}
    println("needs: " + needsOf(
        [[id: 'a'], [id: 'b'], [id: 'c']],
        [
            a: [memory_bytes: 5, seconds: 1.5, needs: [x: [memory: 10, seconds: 1.0], y: [memory: 3, seconds: 2]]],
            b: [memory_bytes: 9, seconds: 2, needs: [x: [memory: 4, seconds: 0.5]]],
            c: [memory_bytes: 7, seconds: 4],
        ],
    ))
}}
"""

SETTINGS = """
params {{
    codes = ''
    bytes = 0
    folder = null
    max_cpus = null
    max_memory = null
    max_time = null
    on_bad_sample = 'skip'
    threads = 1
    device = 'cpu'
}}
includeConfig '{conf}/base.config'
trace {{
    enabled = true
    overwrite = true
    raw = true
    file = 'trace.txt'
    fields = 'name,exit,attempt,memory,time'
}}
"""

Attempts = dict[str, list[tuple[int, int, int]]]
"""Task -> exit code, bytes and milliseconds asked for, of every attempt."""


def run(folder: Path, codes: list[tuple[int, ...]], *options: str | Path, parser: str = "v1") -> tuple[Attempts, str]:
    """Run tasks that end with the codes, attempt by attempt."""
    (folder / "main.nf").write_text(FAILING.format(functions=ROOT / "functions"))
    (folder / "nextflow.config").write_text(SETTINGS.format(conf=ROOT / "conf"))
    text = ";".join(",".join(map(str, few)) for few in codes)
    done = nextflow(folder, "-q", "run", "main.nf", "--codes", text, *options, parser=parser)
    attempts: dict[str, dict[int, tuple[int, int, int]]] = defaultdict(dict)
    with open(folder / "trace.txt", newline="") as handle:
        for row in csv.DictReader(handle, delimiter="\t"):
            figures = (row["exit"], row["memory"], row["time"])
            attempts[row["name"]][int(row["attempt"])] = tuple(int(n) if n not in ("-", "0") else 0 for n in figures)
    return {name: [found[i] for i in sorted(found)] for name, found in attempts.items()}, done.stdout + done.stderr


def name_of(codes: tuple[int, ...], process: str = "PLAIN") -> str:
    return f"{process} ({' '.join(map(str, codes))})"


@pytest.mark.nextflow
@pytest.mark.parametrize("parser", ["v1", "v2"])
def test_codes_are_tried_again_with_more_of_what_was_lacking(parser: str, tmp_path: Path) -> None:
    """Every code until its tries are used up; a death for want of memory between others; files as a measure."""
    (tmp_path / "data" / "b").mkdir(parents=True)
    (tmp_path / "data" / "a").write_bytes(bytes(1_000_000))
    (tmp_path / "data" / "b" / "c").write_bytes(bytes(300_000))
    (tmp_path / "data" / "b" / "d.pth").write_bytes(bytes(200_000))
    every = [(137, 75, 137), *((code,) * 4 for code in AGAIN), *((code,) * 2 for code in FINAL)]
    found, said = run(tmp_path, every, "--bytes", "3000000000", "--folder", tmp_path / "data", parser=parser)
    for code, times in AGAIN.items():
        tries = found[name_of((code,) * 4)]
        assert [exit for exit, _, _ in tries] == [code] * (times + 1)
        growth = 2 if code in HUNGRY else 1
        assert [memory for _, memory, _ in tries] == [GIB * growth**i for i in range(times + 1)]
    for code in FINAL:
        assert [exit for exit, _, _ in found[name_of((code,) * 2)]] == [code]
    # a temporary error in between keeps what was gained
    assert found[name_of((137, 75, 137))] == [(137, GIB, 0), (75, 2 * GIB, 0), (137, 2 * GIB, 0), (0, 4 * GIB, 0)]
    # this machine's memory is the most that it is asked for, and nothing here has a time limit
    sized = [memory for _, memory, _ in found[name_of((137, 75, 137), "SIZED")]]
    most = min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 6_000_000_000)
    assert sized[0] == 3_000_000_000 and sized[1] == sized[2] == max(sized[0], most)
    assert found["FILES (1)"][0][1] == 1_000_000_000 + 1_300_000 + 10 * 200_000 + 64 * 256 * 256
    assert found["TOLD (1)"][0][1] == 3_000_000_000
    assert "x:[memory:10, seconds:1.5]" in said and "y:[memory:3, seconds:2.0]" in said
    assert "whole:[memory:7, seconds:4.0]" in said


@pytest.mark.nextflow
def test_limits_cap_what_is_asked_for(tmp_path: Path) -> None:
    """What no attempt may exceed; a task that lacked memory and had all that is allowed is not tried again."""
    codes = [(137, 137, 137, 137), (75, 75, 75, 75)]
    found, _ = run(tmp_path, codes, "--max_memory", "1500 MB", "--bytes", "9000000000000")
    most = 1500 * 2**20
    assert [memory for _, memory, _ in found[name_of(codes[0])]] == [GIB, most]
    assert len(found[name_of(codes[1])]) == 4
    assert [memory for _, memory, _ in found[name_of(codes[0], "SIZED")]] == [most]


@pytest.mark.nextflow
def test_more_than_the_machine_has_is_told(tmp_path: Path) -> None:
    """Not a task that hangs, but both figures."""
    _, said = run(tmp_path, [(0,)], "--bytes", "9000000000000", "--on_bad_sample", "stop")
    assert "exceeds available memory -- req: 8.2 TB; avail:" in said


@pytest.mark.nextflow
def test_other_resources_repeat_no_import(tmp_path: Path) -> None:
    """What a task asks for is no part of what it computes."""
    tifffile.imwrite(tmp_path / "a.tif", np.arange(40**3, dtype=np.uint16).reshape(40, 40, 40))
    command = [
        "run", ROOT, "-resume", "--input", "a.tif", "--model", ROOT / "assets" / "demo_model", "--stop_after", "split",
        "--model_spacing_unit", "um", "--spacing", "3,2,2", "--unit", "um", "--outdir", "results",
    ]  # fmt: skip
    first = nextflow(tmp_path, *command)
    assert first.returncode == 0, first.stdout
    assert "IMPORT_IMAGE (a)" in tasks(first.stdout, "Submitted")
    other = ("--memory_budget", "3 GB", "--threads", "1", "--task_minutes", "5", "--mirroring", "off")
    second = nextflow(tmp_path, *command, *other)
    assert second.returncode == 0, second.stdout
    assert {"PACK_MODEL", "IMPORT_IMAGE (a)"} <= tasks(second.stdout, "Cached")
    assert {"CHECK_INPUT", "PLAN_TILES (a)"} <= tasks(second.stdout, "Submitted")


SBATCH = """#!/bin/bash
# Takes a job, keeps what it asks for, and lets it vanish, or end with a code at once.
script=${@: -1}
grep -h '^#SBATCH' "$script" | grep -E -- ' (-t|--mem) ' | tr '\\n' ' ' >> "$FAKE/asked"
echo >> "$FAKE/asked"
n=$(( $(cat "$FAKE/n" 2>/dev/null || echo 0) + 1 )); echo $n > "$FAKE/n"
code=$(echo "$FAKE_CODES" | cut -d' ' -f$n)
cd "$(dirname "$script")"
touch .command.begin
if [ "$code" != gone ]; then echo "$code" > .exitcode; fi
echo "Submitted batch job $n"
"""


@pytest.mark.nextflow
def test_jobs_of_a_cluster_get_more_time_or_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that vanishes has code 2147483647, which no process can end with; a fake scheduler lets one vanish."""
    (tmp_path / "fake").mkdir()
    for name, text in {"sbatch": SBATCH, "squeue": "#!/bin/bash\n", "scancel": "#!/bin/bash\n"}.items():
        (tmp_path / "fake" / name).write_text(text)
        (tmp_path / "fake" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'fake'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path))
    monkeypatch.setenv("FAKE_CODES", "140 gone 0")
    settings = "executor { name = 'slurm'; pollInterval = '200ms'; queueStatInterval = '1s'; exitReadTimeout = '2s' }"
    (tmp_path / "fast.config").write_text(settings)
    tail = ("--bytes", "3000000000", "-c", "fast.config")
    text = FAILING.replace("PLAIN(channel.fromList(codes))", "")
    monkeypatch.setitem(globals(), "FAILING", text)
    run(tmp_path, [(0,)], *tail)
    asked = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    assert [line[line.index("-t") + 1] for line in asked] == ["01:00:00", "02:00:00", "02:00:00"]
    assert [line[line.index("--mem") + 1] for line in asked] == ["2861M", "2861M", "5722M"]


# What the data need

MEASURED = {
    # process -> MB of the largest task in runs of which benchmarks/README.md tells: sparse tubes in 1,074 Mvoxel, and a
    # million touching particles in 512 Mvoxel; shards of 256 voxels
    "import_image": 559,
    "gather_blocks": 142,
    "mark_cores": 676,
    "separate_objects": 796,
    "label_blocks": 552,
    "relabel_blocks": 621,
    "compose_store": 217,
    "export_labels": 152,
    "stitch_blocks": 269,
}


def needs(side: int = 800, shard: int = 256, channels: int = 1) -> dict[str, Need]:
    return needs_of((side,) * 3, channels, (shard,) * 3)


@pytest.mark.parametrize("process", MEASURED)
def test_needs_hold_what_was_measured(process: str) -> None:
    assert needs()[process].memory >= MARGIN * 1e6 * MEASURED[process]


def test_needs_grow_with_what_is_held_and_not_with_the_volume() -> None:
    """A shard eight times as large, a wide plane; a terabyte on the same nodes as a gigabyte."""
    small, large = needs(1024), needs(10_240)
    for process in set(small) - {"import_image", "export_labels", "separate_objects", "save_patches"}:
        assert small[process].memory == large[process].memory, process
    shards = needs(1024, shard=512)
    for process in ("label_blocks", "relabel_blocks", "mark_cores"):
        assert shards[process].memory >= 24 * 512**3, process
    assert large["import_image"].memory > small["import_image"].memory
    assert needs(4096, channels=3)["import_image"].memory > needs(4096)["import_image"].memory
    assert large["label_blocks"].seconds <= 2000 and large["import_image"].seconds > 1e4
    # small samples need the least that anything does
    assert {need.memory for need in needs(64).values()} == {LEAST}
