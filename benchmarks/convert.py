#!/usr/bin/env python3
"""Conversions of large images in little memory, and the speed of readers and writers beside their libraries'."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from measure import ROOT, SCRIPTS, Use, apart, machine, run, table

sys.path.insert(0, str(ROOT / "bin"))

BIGTIFF = "5 GiB sparse BigTIFF"
GIGAVOXEL = "1 gigavoxel Zarr"
BUDGET = 1_000_000_000
LARGE = [
    (BIGTIFF, "ome-zarr", ()),
    (BIGTIFF, "nifti", ()),
    (GIGAVOXEL, "ome-tiff", ()),
    (GIGAVOXEL, "nifti", ()),
    (GIGAVOXEL, "ome-zarr", ("--target-spacing", "2,2,2", "--order", "area")),
    (GIGAVOXEL, "ome-zarr", ("--target-spacing", "2,2,2", "--order", "3")),
]
SHAPE = (256, 512, 512)
FORMATS = ["ome-zarr", "ome-zarr levels", "ome-tiff", "nii", "nifti", "mha", "nrrd", "hdf5"]


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default="work/convert", show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Of the speeds; the large ones run once.")
@click.option("--large/--no-large", default=True, show_default=True)
@click.option("--speed/--no-speed", default=True, show_default=True)
@click.option("--only", default="", help="Number of a large conversion from 0.")
def main(folder: Path, rounds: int, large: bool, speed: bool, only: str) -> None:
    """Print wall seconds, peak memory and speeds, with ratios to the libraries."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    print(machine(), flush=True)
    if speed:
        print(table(*speeds(folder, rounds)), flush=True)
    if large:
        rows = []
        for source, target, options in LARGE if not only else [LARGE[int(only)]]:
            use, voxels, size = converted(folder, source, target, options)
            rows.append(large_row(source, target, options, use, voxels, size))
            print(json.dumps({"source": source, "target": target, "options": options, **vars(use)}), flush=True)
        header = [
            "image", "to", "options", "wall s", "CPU s", "million voxels per s", "largest process GB", "tree PSS GB",
            "output GB", "load",
        ]  # fmt: skip
        print(table(header, rows), flush=True)


# Large images


def large_row(source: str, target: str, options: Sequence[str], use: Use, voxels: int, size: int) -> list[str]:
    return [
        source, target, " ".join(options), f"{use.wall:.0f}", f"{use.cpu:.0f}", f"{voxels / 1e6 / use.wall:.0f}",
        f"{use.largest / 1e9:.2f}", f"{use.tree / 1e9:.2f}", f"{size / 1e9:.2f}", f"{use.load:.1f}",
    ]  # fmt: skip


def converted(folder: Path, source: str, target: str, options: Sequence[str]) -> tuple[Use, int, int]:
    """Convert an image by the task's own script -> what it took, its voxels, bytes of the output."""
    staged = folder / source.replace(" ", "_") / "1"
    shape = apart(big_tiff if source == BIGTIFF else big_zarr, staged)
    here = folder / "out"
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir()
    entry = {
        "id": "a", "images": [1], "channel": [0], "files": ["image"], "labels": None, "box": None, "group": None,
        "spacing": [1.0, 1.0, 1.0], "unit": "um", "spacing_origin": "", "selections": [{}], "warnings": [],
    }  # fmt: skip
    command = [SCRIPTS / "convert_images.py", "--batch", "a", "--images", staged.parent, "--format", target]
    command += ["--memory-budget", str(BUDGET), *options]
    use = run([sys.executable, *command], log=folder / "convert.log", folder=here, stdin=json.dumps([entry]), tree=True)
    size = sum(file.stat().st_size for file in here.rglob("*") if file.is_file())
    shutil.rmtree(here)
    return use, int(np.prod(shape)), size


def big_tiff(staged: Path) -> tuple[int, ...]:
    """A BigTIFF of 5 GiB in one piece, of which the disk holds a few planes."""
    import tifffile

    shape = (2560, 1024, 1024)
    path = staged / "image.tif"
    if not path.exists():
        staged.mkdir(parents=True, exist_ok=True)
        array = tifffile.memmap(
            path, shape=shape, dtype=np.uint16, bigtiff=True, imagej=False, metadata={"axes": "ZYX"},
            resolution=(10_000, 10_000), resolutionunit="CENTIMETER",
        )  # fmt: skip
        rng = np.random.default_rng(0)
        for z in range(0, shape[0], 256):
            array[z] = rng.integers(0, 4000, shape[1:])
        array.flush()
    return shape


def big_zarr(staged: Path) -> tuple[int, ...]:
    """An OME-Zarr of 1024 voxels cubed, 16 bits, with noise as of a microscope."""
    shape = (1024, 1024, 1024)
    path = staged / "image.ome.zarr"
    if not path.exists():
        from voxelmill.store import create_array, multiscales, write_group

        write_group(path, {"multiscales": [multiscales("a", shape, (1.0, 1.0, 1.0), "um", (0, 0, 0), 1, "czyx")]})
        array = create_array(path / "0", (1, *shape), "uint16", (1, 64, 256, 256), "czyx", chunk=(1, 64, 64, 64))
        for z in range(0, shape[0], 64):
            array[:, z : z + 64] = noise((64, *shape[1:]), z)[None]
    return shape


def noise(shape: Sequence[int], seed: int) -> np.ndarray:
    """Smooth structures and eight levels of noise."""
    rng = np.random.default_rng(seed)
    z, y, x = np.ogrid[tuple(slice(0, n) for n in shape)]
    smooth = 400 * (np.sin(z / 19.0) * np.sin(y / 23.0) * np.sin(x / 17.0) > 0.5) + 100
    return (smooth + rng.integers(0, 8, shape, dtype=np.uint8)).astype(np.uint16)


# Readers and writers


def speeds(folder: Path, rounds: int) -> tuple[list[str], list[list[str]]]:
    """Megabytes of voxels per second: our writer and reader, those of the format's library, and ratios."""
    rows = []
    for name in FORMATS:
        found = apart(speed_of, folder / "speed", name, rounds)
        ours, theirs = ({way: median(found[who, way]) for way in ("write", "read")} for who in ("ours", "theirs"))
        cells = []
        for way in ("write", "read"):
            cells += [f"{ours[way]:.0f}", f"{theirs[way]:.0f}", f"{ours[way] / theirs[way]:.2f}"]
        rows.append([name, PEERS[name][3], *cells])
        print(json.dumps({"format": name, **{f"{a} {b}": v for (a, b), v in found.items()}}), flush=True)
    header = ["format", "library", "write MB/s", "its own", "ratio", "read MB/s", "its own", "ratio"]
    return header, rows


def speed_of(folder: Path, name: str, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Both ways of one format, in turn; each reads what the library wrote."""
    from dataclasses import dataclass

    from voxelmill.formats import open_image
    from voxelmill.formats.base import ImageSource
    from voxelmill.formats.writing import FORMATS as TARGETS
    from voxelmill.formats.writing import write_image
    from voxelmill.image import slices

    @dataclass(kw_only=True)
    class InMemory(ImageSource):
        array: np.ndarray

        def _read(self, channel: int, box: Any) -> np.ndarray:
            return self.array[slices(box)]

    folder.mkdir(parents=True, exist_ok=True)
    array = noise(SHAPE, 1)
    known = {"path": folder / "array", "format": "array", "spacing": (1.0, 1.0, 1.0)}
    source = InMemory(shape=(1, *SHAPE), dtype=array.dtype, array=array, **known)
    target, write, read, _ = PEERS[name]
    suffix = TARGETS[target].suffix
    ours, theirs = folder / f"ours{suffix}", folder / f"theirs{suffix}"

    def in_slabs(path: Path) -> None:
        with open_image(path) as opened:
            step = max(64, opened.chunk[0])
            for z in range(0, SHAPE[0], step):
                opened.read(0, ((z, min(z + step, SHAPE[0])), (0, SHAPE[1]), (0, SHAPE[2])))

    ways = [(who, way) for who in ("ours", "theirs") for way in ("write", "read")]
    times: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for path in (ours, theirs):
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
        times["ours", "write"].append(speed(lambda: write_image(source, ours, target), array.nbytes))
        times["theirs", "write"].append(speed(lambda: write(theirs, array), array.nbytes))
        times["ours", "read"].append(speed(lambda: in_slabs(theirs), array.nbytes))
        times["theirs", "read"].append(speed(lambda: read(theirs), array.nbytes))
    return times


def speed(work: Callable[[], Any], size: int) -> float:
    start = time.monotonic()
    work()
    return size / 1e6 / (time.monotonic() - start)


def write_zarr(path: Path, array: np.ndarray, levels: int = 1) -> None:
    """An NGFF image; further levels are means of 2 x 2 x 2 voxels, by NumPy, of the array in memory."""
    import zarr

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    group = zarr.open_group(str(path), mode="w")
    for level in range(levels):
        if level:
            z, y, x = (n // 2 for n in array.shape)
            means = array.reshape(z, 2, y, 2, x, 2).mean(axis=(1, 3, 5), dtype=np.float32)
            array = np.rint(means).astype(array.dtype)
        side = [min(n, s) for n, s in zip(array.shape, (64, 256, 256), strict=True)]
        made = group.create_array(
            str(level), shape=array.shape, dtype=array.dtype, chunks=[min(64, n) for n in side], shards=side
        )
        made[:] = array
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [
            {
                "axes": [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"],
                "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]}],
            }
        ],
    }


def read_zarr(path: Path) -> np.ndarray:
    import zarr

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    return zarr.open_array(str(path), path="0", mode="r")[:]


def write_tiff(path: Path, array: np.ndarray) -> None:
    import tifffile

    tifffile.imwrite(path, array, ome=True, compression="zlib", metadata={"axes": "ZYX"})


def read_tiff(path: Path) -> np.ndarray:
    import tifffile

    return tifffile.imread(path)


def write_nifti(path: Path, array: np.ndarray) -> None:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(array.T, np.eye(4)), path)


def read_nifti(path: Path) -> np.ndarray:
    import nibabel

    return np.array(nibabel.load(path).dataobj)


def write_itk(path: Path, array: np.ndarray) -> None:
    import SimpleITK as sitk  # noqa: N813

    sitk.WriteImage(sitk.GetImageFromArray(array), str(path), useCompression=True)


def read_itk(path: Path) -> np.ndarray:
    import SimpleITK as sitk  # noqa: N813

    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def write_hdf5(path: Path, array: np.ndarray) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", data=array, chunks=(64, 64, 64), compression="gzip", shuffle=True)
        data.attrs["element_size_um"] = (1.0, 1.0, 1.0)


def read_hdf5(path: Path) -> np.ndarray:
    import h5py

    with h5py.File(path) as file:
        return file["data"][:]


PEERS: dict[str, tuple[str, Callable[[Path, np.ndarray], None], Callable[[Path], np.ndarray], str]] = {
    "ome-zarr": ("ome-zarr", write_zarr, read_zarr, "zarr with zarrs, one level"),
    "ome-zarr levels": ("ome-zarr", partial(write_zarr, levels=4), read_zarr, "zarr with zarrs and NumPy, all levels"),
    "ome-tiff": ("ome-tiff", write_tiff, read_tiff, "tifffile, zlib"),
    "nii": ("nii", write_nifti, read_nifti, "nibabel"),
    "nifti": ("nifti", write_nifti, read_nifti, "nibabel, gzip"),
    "mha": ("mha", write_itk, read_itk, "SimpleITK, zlib"),
    "nrrd": ("nrrd", write_itk, read_itk, "SimpleITK, gzip"),
    "hdf5": ("hdf5", write_hdf5, read_hdf5, "h5py, gzip and shuffle"),
}


if __name__ == "__main__":
    main()
