"""The test profile in Apptainer, by hand: Debian stable has none for CI.

VOXELMILL_SIF names the folder of both images; as root Apptainer needs user namespaces, which VOXELMILL_APPTAINER says.
"""

from __future__ import annotations

import os
from pathlib import Path

from conftest import VERSION, assert_inside, finished


def test_apptainer_gives_the_same_bytes(local_digests: dict[str, str], tmp_path: Path) -> None:
    for name in (f"voxelmill-{VERSION}.sif", f"voxelmill-{VERSION}-light.sif"):
        (tmp_path / name).symlink_to(Path(os.environ["VOXELMILL_SIF"], name).resolve(strict=True))
    options = f"apptainer.runOptions = '{os.environ.get('VOXELMILL_APPTAINER', '')}'\n"
    # Tasks have the network of whoever starts them, so this one has none.
    run = finished("test,apptainer", tmp_path, options, before=["unshare", "--net", "--"])
    assert run.digests == local_digests
    assert_inside(run, user=os.getuid())
