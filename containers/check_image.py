"""Shows that an image is whole: every package of its lock file is there and can be imported, and the main ones work.

The build ends with it; later it says in the same way whether an image that was moved or converted still works.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import re
import subprocess
import sys
import warnings
from pathlib import Path

LOCK = Path("/etc/voxelmill/requirements.lock")


def pins(lock: str) -> dict[str, str]:
    """Versions by name of the entries of a lock file whose markers hold here."""
    from packaging.markers import Marker

    entries = re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)(?: ; ([^\\\n]+))?", lock, flags=re.MULTILINE)
    return {name: version for name, version, marker in entries if not marker or Marker(marker).evaluate()}


def modules() -> list[str]:
    """Public top-level modules of all installed packages."""
    return sorted(
        name for name in importlib.metadata.packages_distributions() if name.isidentifier() and name[0] != "_"
    )


def draw() -> None:
    """A figure with text: fonts and caches are where matplotlib can use them."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure = plt.figure()
    figure.text(0.5, 0.5, "µm")
    figure.savefig(io.BytesIO(), format="png")


def torch_words() -> str:
    """What torch says of itself after one sum; empty where the image has no torch."""
    try:
        import torch
    except ModuleNotFoundError:
        return ", no torch"
    if torch.ones(2).sum().item() != 2:
        sys.exit("torch computes nonsense")
    where = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none visible"
    return f", torch {torch.__version__} with CUDA {torch.version.cuda}, GPU {where}"


def main() -> None:
    """Print one line, or end with what is wrong."""
    wanted = pins(LOCK.read_text())
    found = {
        re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower(): package.version
        for package in importlib.metadata.distributions()
    }
    if found != wanted:
        wrong = sorted(set(found.items()) ^ set(wanted.items()))
        sys.exit(f"the packages are not those of {LOCK}: {wrong}")
    names = modules()
    with warnings.catch_warnings(action="ignore"):
        for name in names:
            importlib.import_module(name)
    draw()
    subprocess.run(["ps", "--version"], check=True, stdout=subprocess.DEVNULL)
    print(f"whole: {len(wanted)} packages, {len(names)} modules imported{torch_words()}")


if __name__ == "__main__":
    main()
