"""The test profile in Apptainer, by hand: Debian stable has none for CI.

VOXELMILL_SIF names the folder of both images; as root Apptainer needs user namespaces, which VOXELMILL_APPTAINER says.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from conftest import IMPATIENT, VERSION, assert_inside, finished, tasks


@pytest.fixture
def options(tmp_path: Path) -> str:
    """Settings of a run that is started in a folder where both images are."""
    for name in (f"voxelmill-{VERSION}.sif", f"voxelmill-{VERSION}-light.sif"):
        (tmp_path / name).symlink_to(Path(os.environ["VOXELMILL_SIF"], name).resolve(strict=True))
    return f"apptainer.runOptions = '{os.environ.get('VOXELMILL_APPTAINER', '')}'\n"


def test_apptainer_gives_the_same_bytes(local_digests: dict[str, str], options: str, tmp_path: Path) -> None:
    # Tasks have the network of whoever starts them, so this one has none.
    run = finished("test,apptainer", tmp_path, options, before=["unshare", "--net", "--"])
    assert run.digests == local_digests
    assert_inside(run, user=os.getuid())


def slurm_answers() -> bool:
    found = shutil.which("scontrol")
    return found is not None and not subprocess.run([found, "ping"], capture_output=True, check=False).returncode


@pytest.mark.skipif(not slurm_answers(), reason="no Slurm answers here: start these tests with .ci/slurm")
def test_apptainer_in_jobs_of_slurm_gives_the_same_bytes(
    local_digests: dict[str, str], options: str, tmp_path: Path
) -> None:
    run = finished("test,apptainer,slurm", tmp_path, options + IMPATIENT)
    assert run.digests == local_digests
    assert_inside(run, user=os.getuid(), network=[name for _, name in socket.if_nameindex()])
    assert all("#SBATCH" in script for script in tasks(run.work).values())
