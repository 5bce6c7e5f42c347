"""How the tests of engines run the pipeline, and what they compare: the bytes of everything that it publishes."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

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


@pytest.fixture(scope="session")
def local_digests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """`digests` of the test profile in the environment that runs the tests, without any engine."""
    folder = tmp_path_factory.mktemp("local")
    run = run_pipeline("test", folder / "results", folder / "work", environment=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return digests(folder / "results")
