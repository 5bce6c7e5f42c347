"""The test profile in real container engines: each task inside the right image, without a network, on a root file
system that cannot be written, and with the bytes of the run that used no engine."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import HUNGRY, ROOT, VERSION, Finished, assert_hungry_task_got_more, assert_inside, finished

FULL = f"localhost/voxelmill:{VERSION}"
LIGHT = f"{FULL}-light"
NOBODY = 65534


@pytest.fixture(scope="module")
def podman() -> str:
    """Path of podman, which has both images of this version."""
    program = shutil.which("podman")
    assert program is not None, "no podman: .ci/containers installs it"
    for image in (FULL, LIGHT):
        exists = subprocess.run([program, "image", "exists", image], check=False).returncode == 0
        assert exists, f"no image {image}: .ci/images builds it"
    return program


@pytest.fixture(scope="module")
def podman_run(podman: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The test profile in podman; one of its tasks wants more memory than it may have, once."""
    return finished("test,podman", tmp_path_factory.mktemp("podman"), HUNGRY)


def test_podman_gives_the_same_bytes(podman_run: Finished, local_digests: dict[str, str]) -> None:
    assert podman_run.digests == local_digests


def test_podman_runs_every_task_inside_its_image(podman_run: Finished) -> None:
    assert_inside(podman_run, user=0)


def test_task_that_exceeds_its_memory_is_killed_and_gets_more(podman_run: Finished) -> None:
    assert_hungry_task_got_more(podman_run)


# Mounts made here end with the run; ch-run gives its tasks the network of whoever starts it, so this one has none.
AS_NOBODY = """
set -euo pipefail
for name in {names}; do mount --bind "$(readlink "$name.mounted")" "$name"; done
mount --bind {root} checkout
exec setpriv --reuid={user} --regid={user} --clear-groups -- "$@"
"""


@pytest.fixture
def shelter(podman: str) -> Iterator[Path]:
    """A folder of a plain user with both images as folders, as Charliecloud wants them, and a place for the checkout.

    podman's own mounts of fresh containers serve as the folders, which saves a copy of 8 GB.
    """
    folder = Path(tempfile.mkdtemp(prefix="voxelmill-plain-"))
    containers = []
    try:
        for name, image in ((f"voxelmill-{VERSION}", FULL), (f"voxelmill-{VERSION}-light", LIGHT)):
            container = subprocess.check_output([podman, "create", image, "true"], text=True).strip()
            containers.append(container)
            mounted = Path(subprocess.check_output([podman, "mount", container], text=True).strip())
            # Inputs are mounted by the first folder of their path, and in an image that is read-only it must be there.
            (mounted / folder.parts[1]).mkdir(exist_ok=True)
            (folder / name).mkdir()
            (folder / f"{name}.mounted").symlink_to(mounted)
        (folder / "checkout").mkdir()
        folder.chmod(0o755)
        os.chown(folder, NOBODY, NOBODY)
        yield folder
    finally:
        for container in containers:
            subprocess.run([podman, "umount", container], check=False, capture_output=True)
            subprocess.run([podman, "rm", container], check=False, capture_output=True)
        shutil.rmtree(folder)


# Debian's Charliecloud is older than the option that Nextflow gives by default for images that are not to be written.
OLD_CHARLIECLOUD = """
charliecloud.writeFake = false
charliecloud.readOnlyInputs = true
"""


def test_charliecloud_as_a_plain_user_gives_the_same_bytes(shelter: Path, local_digests: dict[str, str]) -> None:
    assert os.geteuid() == 0, "mounts need root; the run itself is a plain user's"
    names = " ".join(path.stem for path in shelter.glob("*.mounted"))
    script = AS_NOBODY.format(names=names, root=ROOT, user=NOBODY)
    before = ["unshare", "--mount", "--net", "--", "bash", "-c", script, "as-nobody"]
    run = finished(
        "test,charliecloud",
        shelter,
        OLD_CHARLIECLOUD,
        before=before,
        pipeline=shelter / "checkout",
        # Java asks the list of users where the home is, and nobody has none.
        env={"HOME": str(shelter), "NXF_HOME": str(shelter / ".nextflow"), "USER": "nobody"},
    )
    assert run.digests == local_digests
    assert_inside(run, user=NOBODY)
    assert {path.stat().st_uid for path in (shelter / "results").rglob("*")} == {NOBODY}
