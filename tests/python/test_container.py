"""The test profile in the container image: its mounts, its users without a home, and `bin/` brought to every task."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGE = os.environ.get("VOXELMILL_TEST_IMAGE", "localhost/voxelmill:test")
LOCK = (ROOT / "requirements" / "runtime.lock").read_text()

# Bash reads the file that BASH_ENV names before each task's script, inside the container; beforeScript runs outside it.
WITNESS = "cp /etc/voxelmill-image .image; ls /sys/class/net > .networks\n"
SETTINGS = """
process.container = '{image}'
process.beforeScript = 'cp {witness} .witness'
env.BASH_ENV = '.witness'
"""


@pytest.fixture(scope="module")
def image() -> str:
    """Name of an image that podman can run and that was built from this checkout's lock file."""
    podman = shutil.which("podman")
    if podman is None:
        pytest.skip("no podman: the container image is not tested")
    if subprocess.run([podman, "image", "exists", IMAGE], check=False).returncode:
        pytest.skip(f"no image {IMAGE}: the container image is not tested")
    command = [podman, "run", "--rm", "--network=none", IMAGE, "cat", "/etc/voxelmill-image"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip(f"podman cannot run {IMAGE}: {result.stderr.strip()[-200:]}")
    if result.stdout != LOCK:
        pytest.skip(f"{IMAGE} was built from another lock file: build it anew")
    return IMAGE


def test_image_runs_as_a_user_without_home_or_name(image: str) -> None:
    script = (
        "import torch, zarrs, dynamic_network_architectures, skimage, imagecodecs, matplotlib.pyplot as plt;"
        "plt.figure().savefig('/tmp/figure.png'); print(torch.ones(2).sum().item())"
    )
    command = ["podman", "run", "--rm", "--network=none", "--read-only", "--user=12345:12345", image]
    result = subprocess.run([*command, "python", "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "2.0\n"


def test_image_holds_no_project_code_and_hides_no_script(image: str) -> None:
    scripts = [path.name for path in (ROOT / "bin").glob("*.py")]
    look = "python -c 'import voxelmill' && exit 3; for name; do command -v $name && exit 4; done; exit 0"
    command = ["podman", "run", "--rm", "--network=none", image, "bash", "-c", look, "look", *scripts]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.nextflow
def test_every_task_of_the_test_profile_runs_inside_the_image(image: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    witness = tmp_path / "witness.sh"
    witness.write_text(WITNESS)
    settings = tmp_path / "settings.config"
    settings.write_text(SETTINGS.format(image=image, witness=witness))
    environment = Path(sys.executable).parent
    # Without the environment on PATH nothing of it can stand in for the image.
    path = os.pathsep.join(folder for folder in os.environ["PATH"].split(os.pathsep) if Path(folder) != environment)
    nextflow = shutil.which("nextflow", path=f"{environment}{os.pathsep}{path}")
    assert nextflow is not None
    subprocess.run(
        [
            nextflow, "-c", settings, "run", ROOT, "-profile", "test,podman", "-ansi-log", "false",
            "-work-dir", work, "--outdir", tmp_path / "results",
        ],
        cwd=tmp_path, env={**os.environ, "PATH": path}, check=True, timeout=1200,
    )  # fmt: skip
    tasks = [script.parent for script in work.glob("*/*/.command.sh")]
    assert len(tasks) >= 8
    assert all((task / ".image").read_text() == LOCK for task in tasks)
    assert all((task / ".networks").read_text() == "lo\n" for task in tasks)
    assert (tmp_path / "results" / "report.html").stat().st_size > 0
    stores = list((tmp_path / "results").glob("*/labels.ome.zarr/zarr.json"))
    assert stores
    assert all("ome" in json.loads(store.read_text())["attributes"] for store in stores)
