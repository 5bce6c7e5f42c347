"""Fixtures for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[2]

# a machine that is busy is no fault of the code
settings.register_profile("voxelmill", deadline=None)
settings.load_profile("voxelmill")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real images and models beside the checkout; tests that need it are skipped without it."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no shared data at {path}")
    return path
