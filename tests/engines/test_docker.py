"""The test profile in Docker; `.ci/docker` makes a daemon and its images, and CI has none."""

from __future__ import annotations

import os
from pathlib import Path

from conftest import HUNGRY, assert_hungry_task_got_more, assert_inside, finished


def test_docker_gives_the_same_bytes(local_digests: dict[str, str], tmp_path: Path) -> None:
    run = finished("test,docker", tmp_path, HUNGRY)
    assert run.digests == local_digests
    assert_inside(run, user=os.getuid())
    assert_hungry_task_got_more(run)
