"""The test profile as jobs of a real Slurm: what jobs ask for, how they die, and that the bytes are a local run's."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import IMPATIENT, ROOT, digests, process_of, run_pipeline, tasks

# Read before a task's own script, outside any container.
WITNESS = """
env | grep -E '^(SLURM|CUDA)_' > .job
scontrol -o show job $SLURM_JOB_ID > .request
"""
HOG = "import sys, time; held = b'x' * int(sys.argv[1]); time.sleep(6)"

# There is no GPU: prediction gets what --device cuda gives it as far as Slurm can see, and computes on the CPU.
JOBS = """
process {
    beforeScript = 'source FOLDER/witness.sh'
    withLabel: 'process_gpu' {
        accelerator = 1
    }
}
"""

# First attempts that end badly: more memory than asked for, cancelled by somebody, and gone without a last word. The
# first takes the same memory again at its second attempt, so that only a larger request saves it.
DEATHS = """
process {
    withName: 'COMPOSE_STORE' {
        beforeScript = { "source FOLDER/witness.sh; PYTHON FOLDER/hog.py ${(task.memory.toBytes() * 1.5 / 2 ** (task.attempt - 1)) as long}" }
    }
    withName: 'LINK_OBJECTS' {
        beforeScript = { task.attempt == 1 ? 'scancel $SLURM_JOB_ID; sleep 60 & wait $!' : '' }
    }
    withName: 'TABULATE_OBJECTS' {
        beforeScript = { task.attempt == 1 ? 'scancel --signal=KILL --full $SLURM_JOB_ID; sleep 60' : '' }
    }
}
"""  # noqa: E501


def settings(text: str, folder: Path) -> str:
    """Settings with the scripts that they call, which are written to a folder."""
    (folder / "witness.sh").write_text(WITNESS)
    (folder / "hog.py").write_text(HOG)
    return IMPATIENT + text.replace("FOLDER", str(folder)).replace("PYTHON", sys.executable)


@dataclass(frozen=True)
class Job:
    """One task as its job saw itself."""

    folder: Path
    process: str
    script: str
    variables: dict[str, str]
    request: str


def slurm(*command: str) -> str:
    """What a command of Slurm prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture(scope="session", autouse=True)
def cluster() -> str:
    """Settings of the Slurm that runs here; without one there is nothing to test, and no pass."""
    try:
        return slurm("scontrol", "show", "config")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.fail(f"no Slurm answers here: start these tests with .ci/slurm ({error})")


def queued(work: Path, *options: str) -> list[str]:
    """Names of a run's jobs that are in the queue."""
    rows = [line.split(" ", 1) for line in slurm("squeue", "-h", "-o", "%Z %j", *options).splitlines()]
    return [name for folder, name in rows if Path(folder).is_relative_to(work)]


def jobs(work: Path) -> list[Job]:
    """All tasks of a run whose jobs wrote down what they are."""
    return [
        Job(
            folder,
            process_of(script),
            script,
            dict(line.split("=", 1) for line in (folder / ".job").read_text().splitlines()),
            (folder / ".request").read_text(),
        )
        for folder, script in tasks(work).items()
        if (folder / ".job").exists()
    ]


def trace(outdir: Path) -> list[dict[str, str]]:
    """Rows of a run's trace."""
    with (outdir / "pipeline_info" / "trace.txt").open() as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def attempts(outdir: Path, process: str) -> list[tuple[str, str]]:
    """Status and exit code of a process's attempts, in order."""
    rows = [row for row in trace(outdir) if row["name"].split(":")[-1].split(" ")[0] == process]
    return [(row["status"], row["exit"]) for row in sorted(rows, key=lambda row: int(row["attempt"]))]


def test_every_task_is_a_job_that_asks_for_what_the_user_said(tmp_path: Path) -> None:
    work, outdir = tmp_path / "work", tmp_path / "results"
    options = (
        "--queue", "cpu", "--gpu_queue", "gpu", "--account", "lab", "--qos", "low", "--gpu_request=--gres=gpu:1",
        "--cluster_options=--comment=by_the_user --nice=7", "--array_size", "2",
        "--demo_shape", "24,128,128", "--shard_size", "64", "--tile_size", "64", "--task_minutes", "0.0001",
    )  # fmt: skip
    run = run_pipeline("test,slurm", outdir, work, options, settings=settings(JOBS, tmp_path), environment=True)
    assert run.returncode == 0, run.stdout + run.stderr

    found = jobs(work)
    assert len(found) == len(trace(outdir)) >= 15
    ids = [job.variables["SLURM_JOB_ID"] for job in found]
    assert len(set(ids)) == len(ids) and all(ids)
    for job in found:
        for part in ("Account=lab", "Comment=by_the_user", "Nice=7", "TimeLimit="):
            assert part in job.request, (job.process, part)
        assert "TimeLimit=UNLIMITED" not in job.request, job.process
        assert int(job.variables["SLURM_MEM_PER_NODE"]) > 0
    # A Slurm without accounting forgets the quality of service.
    assert all("--qos=low" in script for script in tasks(work).values() if "#SBATCH" in script)

    predictions = [job for job in found if job.process == "PREDICT_TILES"]
    others = [job for job in found if job.process != "PREDICT_TILES"]
    assert predictions and others
    for job in predictions:
        assert job.variables["CUDA_VISIBLE_DEVICES"] == "0"
        assert job.variables["SLURM_JOB_PARTITION"] == "gpu"
        assert "TresPerNode=gres:gpu:1" in job.request
    for job in others:
        assert "CUDA_VISIBLE_DEVICES" not in job.variables
        assert job.variables["SLURM_JOB_PARTITION"] == "cpu"
        assert "TresPerNode" not in job.request

    arrays = {job.process for job in found if "SLURM_ARRAY_JOB_ID" in job.variables}
    assert {"PREDICT_TILES", "LABEL_BLOCKS", "RELABEL_BLOCKS"} <= arrays
    assert not arrays & {"MAKE_DEMO", "CHECK_INPUT", "LINK_OBJECTS", "COMPOSE_STORE", "BUILD_REPORT"}


def test_jobs_that_die_are_repeated_and_change_nothing(
    tmp_path: Path, local_digests: dict[str, str], cluster: str
) -> None:
    work, outdir = tmp_path / "work", tmp_path / "results"
    run = run_pipeline("test,slurm", outdir, work, settings=settings(DEATHS, tmp_path), environment=True)
    assert run.returncode == 0, run.stdout + run.stderr
    # A cluster without cgroups kills the whole job for its memory, and no exit code is left; asked by scancel for a
    # SIGKILL, it is seen to send a SIGTERM.
    killed, gone = ("-", "143") if "OverMemoryKill" in cluster else ("137", "-")
    assert attempts(outdir, "COMPOSE_STORE") == [("FAILED", killed), ("COMPLETED", "0")]
    assert attempts(outdir, "LINK_OBJECTS") == [("FAILED", "143"), ("COMPLETED", "0")]
    assert attempts(outdir, "TABULATE_OBJECTS") == [("FAILED", gone), ("COMPLETED", "0")]
    first, second = sorted(
        int(job.variables["SLURM_MEM_PER_NODE"]) for job in jobs(work) if job.process == "COMPOSE_STORE"
    )
    assert second >= 1.9 * first
    assert digests(outdir) == local_digests
    assert not queued(work)


def wait_until(what: Callable[[], bool], seconds: float) -> None:
    """Return as soon as something is so; fail after a while."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.2)


def test_a_run_goes_on_after_its_head_was_stopped_and_killed(tmp_path: Path, local_digests: dict[str, str]) -> None:
    work, outdir = tmp_path / "work", tmp_path / "results"
    last = tmp_path / "settings.config"
    last.write_text(IMPATIENT)
    command = [
        Path(sys.executable).with_name("nextflow"), "-c", last, "run", ROOT, "-profile", "test,slurm",
        "-ansi-log", "false", "-work-dir", work, "--outdir", outdir, "-resume",
    ]  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def start_and_end(process: str, how: signal.Signals) -> None:
        """Start a run, and end it as soon as a job of a process runs."""
        with (tmp_path / f"{how.name}.log").open("w") as log:
            head = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PATH": path}, stdout=log, stderr=log)
        try:
            wait_until(lambda: any(process in name for name in queued(work, "--states=RUNNING")), 300)
            head.send_signal(how)
            head.wait(60)
        finally:
            head.kill()

    # Asked to end, Nextflow takes its jobs with it.
    start_and_end("CHECK_INPUT", signal.SIGTERM)
    wait_until(lambda: not queued(work), 20)
    # Killed, it leaves them alone, and nobody waits for them.
    start_and_end("PREDICT_TILES", signal.SIGKILL)
    assert any("PREDICT_TILES" in name for name in queued(work))

    run = run_pipeline("test,slurm", outdir, work, ["-resume"], settings=IMPATIENT, environment=True)
    assert run.returncode == 0, run.stdout + run.stderr
    log = re.findall(r"\] (Submitted|Cached) process > (?:\w+:)*(\w+)", run.stdout)
    before = {"MAKE_DEMO", "PACK_MODEL", "CHECK_INPUT", "IMPORT_IMAGE", "PLAN_TILES"}
    assert {process for how, process in log if how == "Cached"} == before
    assert not before & {process for how, process in log if how == "Submitted"}
    assert digests(outdir) == local_digests
