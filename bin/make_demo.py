#!/usr/bin/env python3
"""The demo's input: a generated light-sheet volume, and beside it the truth about its tubes."""

from __future__ import annotations

import csv
import hashlib
import io
import uuid
from pathlib import Path

import click
import numpy as np
import tifffile

from voxelmill.files import atomic_path, write_bytes
from voxelmill.phantom import Phantom, touching, tubes


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write to.")
@click.option("--name", default="demo", show_default=True, help="The files' first name.")
@click.option("--shape", type=(int, int, int), default=(64, 256, 256), show_default=True, help="Voxels z y x.")
@click.option("--tubes", "number", default=40, show_default=True, help="Number of tubes.")
@click.option("--seed", default=1, show_default=True, help="Equal seeds give equal files.")
def main(out: Path, name: str, shape: tuple[int, int, int], number: int, seed: int) -> None:
    """Write NAME.ome.tif and truth/NAME.labels.ome.tif, .instances.ome.tif and .objects.csv below the folder."""
    phantom = tubes(shape, seed=seed, n=number)
    write_ome(out / f"{name}.ome.tif", phantom.image, phantom.spacing)
    write_ome(out / "truth" / f"{name}.labels.ome.tif", phantom.labels, phantom.spacing)
    write_ome(out / "truth" / f"{name}.instances.ome.tif", phantom.instances, phantom.spacing)
    write_bytes(out / "truth" / f"{name}.objects.csv", table(phantom).encode())


def write_ome(path: Path, volume: np.ndarray, spacing: tuple[float, float, float]) -> None:
    """Write a volume (z, y, x) as OME-TIFF with its spacing in micrometres."""
    # tifffile would draw the file's UUID by chance.
    identity = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, hashlib.sha256(volume.tobytes()).hexdigest())}"
    sizes = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX", spacing, strict=True)}
    units = {f"PhysicalSize{axis}Unit": "µm" for axis in "ZYX"}
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary,
            volume,
            ome=True,
            compression="zlib",
            metadata={"axes": "ZYX", "Name": path.name, "UUID": identity, **sizes, **units},
        )


def table(phantom: Phantom) -> str:
    """One row per tube: centre-line length over all its branches, mean radius, branches, touching tubes, voxels."""
    pairs = touching(phantom.instances)
    voxels = np.bincount(phantom.instances.ravel(), minlength=len(phantom.tubes) + 1)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["id", "length_um", "radius_um", "branches", "touches", "voxels"])
    for tube in phantom.tubes:
        others = sorted(int(other) for pair in pairs if tube.id in pair for other in pair if other != tube.id)
        rows.writerow(
            [
                tube.id,
                f"{tube.length_um:.2f}",
                f"{tube.radius_um:.3f}",
                tube.branches,
                " ".join(map(str, others)),
                voxels[tube.id],
            ]
        )
    return text.getvalue()


if __name__ == "__main__":
    main()
