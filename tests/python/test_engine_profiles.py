"""Profiles of container engines: images of this version, and flags of a GPU only for a task that has one."""

from __future__ import annotations

import re

import pytest

from conftest import ROOT
from voxelmill import __version__

FULL = {
    "docker": f"voxelmill:{__version__}",
    "podman": f"localhost/voxelmill:{__version__}",
    "apptainer": f"${{launchDir}}/voxelmill-{__version__}.sif",
    "singularity": f"${{launchDir}}/voxelmill-{__version__}.sif",
    "charliecloud": f"${{launchDir}}/voxelmill-{__version__}",
}
GPU = {
    "docker": "--gpus all",
    "podman": "--device nvidia.com/gpu=all",
    "apptainer": "--nv",
    "singularity": "--nv",
    "charliecloud": None,
}


def selected(text: str, label: str) -> list[str]:
    """Settings of the processes with a label."""
    found = re.search(rf"withLabel: '{label}' {{\n(.*?)\n    }}", text, re.DOTALL)
    return [line.strip() for line in found[1].splitlines()] if found else []


@pytest.mark.parametrize("engine", FULL)
def test_images_are_of_this_version_and_the_large_one_is_for_torch(engine: str) -> None:
    text = (ROOT / "conf" / f"{engine}.config").read_text()
    names = re.findall(r"container = [\"'](.*)[\"']", text)
    light = re.sub(r"(\.sif)?$", r"-light\1", FULL[engine], count=1)
    assert names == [light, FULL[engine]]
    assert any(line.startswith("container = ") and FULL[engine] in line for line in selected(text, "process_torch"))


@pytest.mark.parametrize("engine", GPU)
def test_flags_of_a_gpu_are_for_tasks_with_one(engine: str) -> None:
    text = (ROOT / "conf" / f"{engine}.config").read_text()
    lines = selected(text, "process_gpu")
    flags = [re.fullmatch(r"containerOptions = \{ params\.device == 'cuda' \? '(.+)' : '' \}", line) for line in lines]
    assert [found and found[1].startswith(str(GPU[engine])) for found in flags] == ([True] if GPU[engine] else [])
    assert len(re.findall(r"gpus|nvidia\.com|--nv\b", text)) == (GPU[engine] is not None)
    assert re.search(r"envWhitelist = '(\w+,)*CUDA_VISIBLE_DEVICES\b", text)
