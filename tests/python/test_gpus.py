"""GPUs of one machine shared out among tasks: no two on a card unless asked, and free again however a task ends.

No GPU is needed: a lease is a lock, and ``nvidia-smi``, ``docker`` and ``flock`` on PATH may be fakes.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from test_nextflow import nextflow

LEASE = ROOT / "conf" / "lease_gpu.sh"

CARDS = """GPU 0: NVIDIA A100 80GB PCIe (UUID: GPU-aa11-0001)
GPU 1: NVIDIA A100 80GB PCIe (UUID: GPU-aa22-0002)
GPU 2: NVIDIA A100 80GB PCIe (UUID: GPU-bb33-0003)
  MIG 3g.40gb     Device  0: (UUID: MIG-cc44-0001)
  MIG 3g.40gb     Device  1: (UUID: MIG-cc55-0002)
"""


class Machine:
    """A machine of the test's own: a folder for locks, one for fakes that come first on PATH, and its tasks."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.locks = folder / "locks"
        self.programs = folder / "programs"
        self.locks.mkdir(mode=0o777)
        self.locks.chmod(0o1777)
        self.programs.mkdir()
        self.tasks: list[subprocess.Popen[str]] = []

    def fake(self, name: str, script: str) -> None:
        """Puts a shell script on PATH."""
        path = self.programs / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        outside = {"PATH": f"{self.programs}:{os.environ['PATH']}", "VOXELMILL_LOCKS": str(self.locks)}
        return {**os.environ, **outside}

    def start(
        self, ids: str, body: str, share: int = 1, user: str | None = None, wrapper: str = "", **extra: str
    ) -> subprocess.Popen[str]:
        """Starts a task as Nextflow's wrapper does: it takes its lease, then runs `body`."""
        script = f"set -eu; {wrapper}\ntrap 'echo ended >&2' TERM; set +u; . '{LEASE}' '{ids}' {share}; set -u; {body}"
        command = [*(["setpriv", f"--reuid={user}", "--clear-groups"] if user else []), "bash", "-c", script]
        task = subprocess.Popen(
            command,
            env={**self.environment, **extra},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
        )
        self.tasks.append(task)
        return task

    def run(self, ids: str, body: str = "", share: int = 1, **extra: str) -> tuple[int, str, str]:
        """Exit status, stdout and stderr of a task that ends by itself."""
        task = self.start(ids, body or 'echo "$CUDA_VISIBLE_DEVICES"', share, **extra)
        out, err = task.communicate(timeout=60)
        return task.returncode, out.strip(), err

    def hold(self, ids: str, share: int = 1, **extra: Any) -> tuple[subprocess.Popen[str], str]:
        """A task that keeps its card until it is killed, and that card."""
        task = self.start(ids, 'echo "$CUDA_VISIBLE_DEVICES"; exec sleep 600', share, **extra)
        return task, read_line(task)

    def waits(self, ids: str, share: int = 1, **extra: Any) -> subprocess.Popen[str]:
        """A task that has said that it waits."""
        task = self.start(ids, 'echo "$CUDA_VISIBLE_DEVICES"', share, **extra)
        assert task.stderr is not None
        line = task.stderr.readline()
        assert line.startswith("GPU: waiting"), line
        return task


def read_line(task: subprocess.Popen[str]) -> str:
    assert task.stdout is not None
    return task.stdout.readline().strip()


def finish(task: subprocess.Popen[str]) -> str:
    """What a task that waited prints once it has a card."""
    out, err = task.communicate(timeout=60)
    assert task.returncode == 0, err
    return out.strip()


@pytest.fixture
def machine() -> Iterator[Machine]:
    # pytest's own folders are closed to other users
    with tempfile.TemporaryDirectory(prefix="voxelmill-test-") as name:
        Path(name).chmod(0o755)
        machine = Machine(Path(name))
        yield machine
        for task in machine.tasks:
            task.kill()
            task.communicate()


def most_at_once(intervals: list[tuple[float, float]]) -> int:
    """Largest number of intervals (start, end) that hold at one time; one that begins as another ends follows it."""
    events = sorted([(end, -1) for _, end in intervals] + [(start, 1) for start, _ in intervals])
    return max(itertools.accumulate(step for _, step in events))


SPELL = 'echo "$CUDA_VISIBLE_DEVICES $(date +%s.%N)"; sleep 0.2; date +%s.%N'


def intervals_by_card(texts: list[str]) -> dict[str, list[tuple[float, float]]]:
    """Intervals of tasks that ran `SPELL`."""
    cards: dict[str, list[tuple[float, float]]] = {}
    for text in texts:
        card, start, end = text.split()
        cards.setdefault(card, []).append((float(start), float(end)))
    return cards


def test_most_at_once() -> None:
    assert most_at_once([(0, 1), (1, 2), (3, 4)]) == 1
    assert most_at_once([(0, 2), (1, 3), (1.5, 4), (3, 5)]) == 3


@pytest.mark.parametrize("share", [1, 2])
def test_no_more_tasks_on_a_card_than_asked_for(machine: Machine, share: int) -> None:
    tasks = [machine.start("0,1", SPELL, share) for _ in range(8)]
    cards = intervals_by_card([finish(task) for task in tasks])
    assert sorted(cards) == ["0", "1"]
    assert [most_at_once(intervals) for intervals in cards.values()] == [share, share]


def test_an_empty_card_before_a_shared_one(machine: Machine) -> None:
    assert [machine.hold("0,1", share=2)[1] for _ in range(4)] == ["0", "1", "0", "1"]


def test_a_task_alone_and_tasks_that_share_exclude_each_other(machine: Machine) -> None:
    first, _ = machine.hold("0", share=2)
    second, _ = machine.hold("0", share=3)
    waiting = machine.waits("0")
    first.kill()
    time.sleep(1.5)
    assert waiting.poll() is None
    second.kill()
    assert finish(waiting) == "0"
    machine.hold("0")
    machine.waits("0", share=16)


def test_a_killed_task_frees_its_card_and_the_file_it_leaves_says_nothing(machine: Machine) -> None:
    task, _ = machine.hold("0")
    waiting = machine.waits("0")
    task.kill()
    assert finish(waiting) == "0"
    assert list(machine.locks.iterdir())
    assert machine.run("0")[1] == "0"


def test_a_card_is_leased_as_long_as_any_process_of_the_task_lives(machine: Machine) -> None:
    task = machine.start("0", "(exec 1>&- 2>&-; sleep 600) & echo $!; wait")
    child = int(read_line(task))
    waiting = machine.waits("0")
    task.kill()
    task.wait()
    time.sleep(1.5)
    assert waiting.poll() is None
    os.kill(child, signal.SIGKILL)
    assert finish(waiting) == "0"


def test_who_waits_says_who_holds(machine: Machine) -> None:
    task, _ = machine.hold("0")
    _, _, err = machine.run("0,1")
    assert "waiting" not in err
    waiting = machine.waits("0")
    assert waiting.stderr is not None
    assert re.search(rf"0: process {task.pid} of \S+ in {machine.folder}", waiting.stderr.readline())


def test_the_locks_lie_in_tmp() -> None:
    # by the text alone: a test that held them would stop a real run on this machine
    assert "\nlease_folder=${VOXELMILL_LOCKS:-/tmp}\n" in LEASE.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_two_users_share_a_machine(machine: Machine) -> None:
    first, _ = machine.hold("0", user="12345")
    waiting = machine.waits("0", user="23456")
    first.kill()
    assert finish(waiting) == "0"
    assert machine.run("0")[1] == "0"


def test_a_lock_on_a_removed_file_keeps_nobody_out(machine: Machine) -> None:
    # the file vanishes between opening and locking, once
    machine.fake(
        "flock", f'[[ -e removed ]] || {{ touch removed; rm "$VOXELMILL_LOCKS"/*; }}; {shutil.which("flock")} "$@"'
    )
    machine.hold("0")
    machine.waits("0")


def test_a_card_has_one_name_however_it_is_called(machine: Machine) -> None:
    machine.fake("nvidia-smi", f"cat <<'X'\n{CARDS}X")
    assert machine.hold("0")[1] == "GPU-aa11-0001"
    machine.waits("GPU-aa11")
    assert machine.run("GPU-aa11-0001,1,0")[1] == "GPU-aa22-0002"
    assert machine.run("MIG-cc44-0001")[1] == "MIG-cc44-0001"
    machine.hold("MIG-cc44-0001")
    assert machine.run("MIG-cc44-0001,MIG-cc55")[1] == "MIG-cc55-0002"


@pytest.mark.parametrize(
    ("ids", "told"),
    [("7", "'7'"), ("GPU-aa", "'GPU-aa'"), ("2", "MIG-cc44-0001,MIG-cc55-0002"), ("0,GPU-ff", "'GPU-ff'")],
)
def test_an_unknown_or_ambiguous_card_is_an_error(machine: Machine, ids: str, told: str) -> None:
    machine.fake("nvidia-smi", f"cat <<'X'\n{CARDS}X")
    status, out, err = machine.run(ids)
    assert (status, out) == (69, "")
    assert told in err


@pytest.mark.parametrize(
    ("answer", "told"),
    [("echo 'Failed to initialize NVML'; exit 18", "Failed to initialize NVML"), ("echo No devices found.", "'0'")],
)
def test_a_driver_that_does_not_answer_is_an_error(machine: Machine, answer: str, told: str) -> None:
    machine.fake("nvidia-smi", answer)
    status, out, err = machine.run("0")
    assert (status, out) == (69, "")
    assert told in err


def test_a_folder_without_room_for_locks_is_an_error(machine: Machine) -> None:
    status, out, err = machine.run("0", VOXELMILL_LOCKS=str(machine.folder / "absent"))
    assert (status, out) == (69, "")
    assert "VOXELMILL_LOCKS" in err


def test_the_users_own_choice_of_cards_is_not_taken_for_a_lease(machine: Machine) -> None:
    assert machine.run("1", CUDA_VISIBLE_DEVICES="0")[1] == "1"


def test_a_container_that_outlives_its_task_keeps_the_card(machine: Machine) -> None:
    machine.fake("docker", 'echo "$*" >>asked; [[ ! -e running ]] || echo 0123456789ab')
    (machine.folder / "running").touch()
    # as Nextflow's wrapper ends a container
    task, _ = machine.hold("0", wrapper="on_term() { docker stop $NXF_BOXID; }", NXF_BOXID="nxf-Ab12")
    task.kill()
    task.wait()
    assert machine.run("0,1")[1] == "1"
    waiting = machine.waits("0")
    (machine.folder / "running").unlink()
    assert finish(waiting) == "0"
    assert "name=nxf-Ab12" in (machine.folder / "asked").read_text()


def test_a_task_that_waits_ends_with_the_run(machine: Machine) -> None:
    machine.hold("0")
    waiting = machine.waits("0")
    waiting.terminate()
    assert waiting.wait(timeout=30) == 143


def test_a_task_that_waits_ends_when_nextflow_was_killed(machine: Machine) -> None:
    machine.hold("0")
    script = f". '{LEASE}' 0 1; echo leased"
    command = ["bash", "-c", f'bash -c "{script}" & wait']
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    parent = subprocess.Popen(command, env=machine.environment, **pipes)
    assert parent.stderr is not None
    assert parent.stderr.readline().startswith("GPU: waiting")
    parent.kill()
    # both ends of the pipe are closed once the task has ended
    assert parent.communicate(timeout=30)[0] == ""


def test_the_wrappers_handlers_are_those_of_before(machine: Machine) -> None:
    # Whoever started the tests may ignore SIGINT, and so do all of their children.
    ignored = subprocess.check_output(["bash", "-c", "trap -p INT"], text=True).splitlines()
    assert machine.run("0", "trap -p TERM INT")[1].splitlines() == ["trap -- 'echo ended >&2' SIGTERM", *ignored]


PIPELINE = """
process WORK {
    tag "$number"
    label 'process_gpu'
    cpus 1
    memory '100 MB'

    input:
    val number

    script:
    \"\"\"
    echo "\\$CUDA_VISIBLE_DEVICES \\$(date +%s.%N)" >>'${launchDir}/${number}.${task.attempt}'
    while [[ -e .command.sh && ! -e '${launchDir}/../go' ]]; do sleep 0.1; done
    sleep 0.2
    date +%s.%N >>'${launchDir}/${number}.${task.attempt}'
    [[ ${number} != 1 || ${task.attempt} != 1 ]] || kill -KILL \\$\\$
    \"\"\"
}

workflow {
    WORK(channel.of(1..params.tasks))
}
"""


@pytest.fixture
def pipeline(machine: Machine) -> Path:
    """A pipeline of one process, with this project's settings; its folder's name needs quotes."""
    folder = machine.folder / "it's one"
    folder.mkdir()
    (folder / "main.nf").write_text(PIPELINE)
    shutil.copy(ROOT / "nextflow.config", folder)
    (folder / "conf").symlink_to(ROOT / "conf")
    return folder


def start_run(
    machine: Machine, pipeline: Path, name: str, parser: str, tasks: int
) -> tuple[Path, subprocess.Popen[str]]:
    """Starts Nextflow in a folder of its own; the folder, and the process."""
    folder = machine.folder / name
    folder.mkdir()
    path = f"{Path(sys.executable).parent}:{machine.environment['PATH']}"
    environment = {**machine.environment, "PATH": path, "NXF_SYNTAX_PARSER": parser, "NXF_ANSI_LOG": "false"}
    options = ["--device", "cuda", "--gpu_ids", "4,7,4", "--tasks", str(tasks), "--max_cpus", "2"]
    run = subprocess.Popen(
        ["nextflow", "run", str(pipeline), "-profile", "gpus", *options],
        env={**environment, "TMPDIR": str(folder)},
        cwd=folder,
        stdout=(folder / "log").open("w"),
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    machine.tasks.append(run)
    return folder, run


def wait_until(what: Callable[[], Any], machine: Machine, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "\n".join(path.read_text() for path in machine.folder.glob("*/log"))
        time.sleep(0.1)


def test_runs_that_meet_on_a_machine_and_one_that_was_killed(machine: Machine, pipeline: Path) -> None:
    killed, run = start_run(machine, pipeline, "killed", "v1", 3)
    wait_until(lambda: len(list(killed.glob("*.1"))) == 2, machine)
    run.kill()
    run.wait()
    others = [start_run(machine, pipeline, name, name, 4) for name in ("v1", "v2")]
    logs = [folder / "work" for folder, _ in others]
    wait_until(lambda: all(len([*log.glob("*/*/.command.log")]) == 2 for log in logs), machine)
    for log in logs:
        for path in log.glob("*/*/.command.log"):
            wait_until(lambda path=path: f" in {killed}/work/" in path.read_text(), machine)
    assert [len(list(folder.glob("*.1"))) for folder, _ in others] == [0, 0]

    (machine.folder / "go").touch()
    for folder, run in others:
        assert run.wait(timeout=600) == 0, (folder / "log").read_text()
    records = [path for folder in (killed, *(folder for folder, _ in others)) for path in folder.glob("[0-9].[0-9]")]
    assert sorted(path.name for path in records) == sorted(["1.1", "2.1", *2 * ["1.1", "1.2", "2.1", "3.1", "4.1"]])
    cards = intervals_by_card([path.read_text() for path in records])
    assert sorted(cards) == ["4", "7"]
    assert [most_at_once(intervals) for intervals in cards.values()] == [1, 1]
    assert most_at_once([spell for spells in cards.values() for spell in spells]) == 2


@pytest.mark.parametrize("parser", ["v1", "v2"])
def test_without_a_gpu_nothing_is_leased(parser: str, tmp_path: Path) -> None:
    run = nextflow(tmp_path, "-q", "config", ROOT, "-profile", "gpus", "-flat", parser=parser)
    settings = re.findall(r"^process\..*process_gpu.*\.(\w+) = (.*)$", run.stdout, re.MULTILINE)
    assert {("maxForks", "0"), ("beforeScript", "''")} <= set(settings)


@pytest.mark.parametrize("parser", ["v1", "v2"])
def test_nextflow_reads_the_examples_for_clouds(parser: str, tmp_path: Path) -> None:
    examples = sorted((ROOT / "conf" / "examples").glob("*.config"))
    files = [part for path in examples for part in ("-c", path)]
    run = nextflow(tmp_path, "-q", *files, "config", ROOT, "-flat", parser=parser)
    assert run.returncode == 0, run.stderr
    # the last one's, over what those before it say
    assert len(examples) == 3
    assert "process.executor = 'k8s'" in run.stdout
    assert "process.'withLabel:process_gpu'.queue = 'CPU-QUEUE'" in run.stdout
