"""How the tests of engines run the pipeline, and what they compare: the bytes of everything that it publishes."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from voxelmill import __version__

ROOT = Path(__file__).resolve().parents[2]
VERSION = __version__
WITH_TORCH = {
    module.parent.name.upper()
    for module in (ROOT / "modules").glob("*/main.nf")
    if "label 'process_torch'" in module.read_text()
}

# What tells of a run and not of its images: times, memory, machines, and checksums of such files.
ACCOUNTS = ("report.html", "outputs.json", "ro-crate-metadata.json", "pipeline_info/")


def run_pipeline(
    profiles: str,
    outdir: Path,
    work: Path,
    extra: Sequence[str | Path] = (),
    env: Mapping[str, str] | None = None,
    *,
    settings: str = "",
    environment: bool = False,
    pipeline: Path = ROOT,
    before: Sequence[str | Path] = (),
    timeout: float = 1800,
) -> subprocess.CompletedProcess[str]:
    """Run the checkout with profiles and wait for it.

    Parameters
    ----------
    profiles
        As for ``-profile``, say ``"test,podman"``.
    outdir, work
        Results and work folder; logs, caches and the settings lie in ``work``'s parent, where Nextflow is started.
    extra
        Further arguments of ``nextflow run``.
    env
        Further environment variables.
    settings
        Text of a configuration file that is read last.
    environment
        Whether tasks find the environment that runs the tests; without it nothing of it can stand in for an image.
    pipeline
        Another place of the checkout, for users who cannot reach it where it is.
    before
        A command that Nextflow's own is appended to, say one that changes the user.
    timeout
        Seconds after which the run is killed and the test fails.

    Returns
    -------
    subprocess.CompletedProcess
        Exit status, and what Nextflow printed; the caller judges.
    """
    folder = work.parent
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / "settings.config"
    last.write_text(settings)
    binaries = Path(sys.executable).parent
    path = os.pathsep.join(name for name in os.environ["PATH"].split(os.pathsep) if Path(name) != binaries)
    found = shutil.which("nextflow", path=f"{binaries}{os.pathsep}{path}")
    assert found is not None, "no nextflow: activate the environment that `make setup` makes"
    nextflow = pipeline / Path(found).relative_to(ROOT) if Path(found).is_relative_to(ROOT) else found
    command = [
        *before, nextflow, "-c", last, "run", pipeline, "-profile", profiles, "-ansi-log", "false", "-work-dir", work,
        "--outdir", outdir, *extra,
    ]  # fmt: skip
    variables = {**os.environ, "PATH": f"{binaries}{os.pathsep}{path}" if environment else path, **(env or {})}
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=variables, capture_output=True, text=True, check=False,
        timeout=timeout,
    )  # fmt: skip


def tasks(work: Path) -> dict[Path, str]:
    """Folders of all tasks of a run, with the text of the script that Nextflow wrote for each."""
    return {script.parent: script.read_text() for script in sorted(work.glob("??/*/.command.run"))}


def process_of(script: str) -> str:
    """Name of the process, without its workflows, of a task's ``.command.run``."""
    found = re.search(r"^### name: '(?:\w+:)*(\w+)", script, re.MULTILINE)
    assert found is not None, script[:500]
    return found[1]


def digests(outdir: Path) -> dict[str, str]:
    """SHA-256 of every published file that depends on images, model and parameters only, by its name in ``outdir``."""
    names = {str(path.relative_to(outdir)): path for path in outdir.rglob("*") if path.is_file()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(names.items())
        if not name.startswith(ACCOUNTS)
    }


# A site's patience with Slurm is minutes; a test's is seconds.
IMPATIENT = """
executor.pollInterval = '1 sec'
executor.queueStatInterval = '2 sec'
executor.exitReadTimeout = '8 sec'
executor.submitRateLimit = '20/1sec'
"""

# Bash reads the file that BASH_ENV names before a task's script, inside the container; beforeScript runs outside it.
WITNESS = """
cp /etc/voxelmill/requirements.lock .lock
{ command -v python; tail -n +3 /proc/net/dev | cut -d: -f1; } | tr -d ' ' > .inside
{ echo "$HOME"; echo "$TMPDIR"; id -u; } > .user
touch /etc/witness 2> .refused && exit 99
"""
SETTINGS = """
process.beforeScript = 'cp {witness} .witness'
env.BASH_ENV = '.witness'
"""
# More than the task may hold, and less than would hurt a machine whose engine does not stop it.
HUNGER = "head -c 3G /dev/zero | tail > .eaten || exit $?\n"
HUNGRY = """
process {{
    withName: 'TABULATE_OBJECTS' {{
        beforeScript = {{ task.attempt == 1 ? 'cp {hungry} .witness' : 'cp {witness} .witness' }}
    }}
}}
"""


@dataclass(frozen=True)
class Finished:
    """A run that went well, what it published, and its rows of Nextflow's trace."""

    work: Path
    digests: dict[str, str]
    trace: list[dict[str, str]]


def finished(profiles: str, folder: Path, settings: str, **options: object) -> Finished:
    """Run the test profile with the witness in `folder` and read what it left."""
    scripts = {"witness": WITNESS, "hungry": WITNESS + HUNGER}
    for name, text in scripts.items():
        (folder / name).write_text(text)
    text = (SETTINGS + settings).format(**{name: folder / name for name in scripts})
    run = run_pipeline(profiles, folder / "results", folder / "work", settings=text, **options)
    assert run.returncode == 0, run.stdout + run.stderr
    with (folder / "results" / "pipeline_info" / "trace.txt").open(newline="") as rows:
        trace = list(csv.DictReader(rows, delimiter="\t"))
    return Finished(folder / "work", digests(folder / "results"), trace)


def assert_inside(run: Finished, user: int, network: Sequence[str] = ("lo",)) -> None:
    """Every task ran in its image, as `user`, on this network, and could write nothing but its own folder."""
    found = tasks(run.work)
    assert len(found) >= 16
    locks = {name: (ROOT / "requirements" / f"{name}.lock").read_text() for name in ("runtime", "light")}
    for folder, script in found.items():
        process = process_of(script)
        expected = locks["runtime" if process in WITH_TORCH else "light"]
        assert (folder / ".lock").read_text() == expected, process
        assert (folder / ".inside").read_text().split() == ["/opt/venv/bin/python", *network], process
        assert (folder / ".user").read_text() == f"{folder}\n{folder}\n{user}\n", process
        assert "Read-only file system" in (folder / ".refused").read_text(), process


def assert_hungry_task_got_more(run: Finished) -> None:
    """The task of `HUNGRY` was killed by the engine's limit of memory, and its second attempt had a higher limit."""
    attempts = [row for row in run.trace if row["name"].split(":")[-1].startswith("TABULATE_OBJECTS")]
    first, second = sorted(attempts, key=lambda row: int(row["attempt"]))
    assert (first["status"], first["exit"]) == ("FAILED", "137")
    assert (second["status"], second["exit"]) == ("COMPLETED", "0")
    scripts = tasks(run.work)
    limits = [re.findall(r"--memory (\d+)m", scripts[Path(row["workdir"])]) for row in (first, second)]
    assert int(limits[1][0]) > int(limits[0][0])


@pytest.fixture(scope="session")
def local_digests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """`digests` of the test profile in the environment that runs the tests, without any engine."""
    folder = tmp_path_factory.mktemp("local")
    run = run_pipeline("test", folder / "results", folder / "work", environment=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return digests(folder / "results")
