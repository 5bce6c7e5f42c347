"""Stored probabilities are those of nnU-Net's exporter to half a step, and the same bytes for any partition."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from inprocess import Result, imported, predicted, textured
from models import make_model_folder
from reference import predict_reference
from test_exact import CASES, REGIONS, Case, packed, tree_digest
from voxelmill.ensemble import with_onednn
from voxelmill.errors import TemporaryError
from voxelmill.model.checkpoint import pack_model
from voxelmill.model.package import load_config
from voxelmill.planning import Options, label_names
from voxelmill.probabilities import largest_step, quantised
from voxelmill.probability_store import block_name, compose_probabilities, read_shard

FLOAT32 = 5e-6
"""What nnU-Net's softmax of float32 logits can be off: two roundings of logits up to 40, and those of its own sum."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def options_of(case: Case, **changes: object) -> Options:
    plain = Options(
        mirroring=case.mirroring,
        step_size=case.step_size,
        threads=1,
        shard_size=16,
        tile_size=case.tile,
        probabilities="uint16",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def stored(result: Result) -> np.ndarray:
    """Compose the store of a prediction -> level 0 (heads, z, y, x)."""
    folder = result.store.parent
    store = compose_probabilities(result.plan, folder / "blocks", folder)
    return np.asarray(zarr.open_array(str(store), path="0", mode="r")[:])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("isotropic", "uint8"),
        ("2d", "uint16"),
        ("transposed axes", "uint16"),
        ("folds and mirroring", "uint16"),
        ("overlapping regions", "uint16"),
        ("flipped", "uint16"),
        ("resampled apart", "uint16"),
        ("resampled regions", "uint8"),
    ],
)
def test_probabilities_are_those_of_nnunet(name: str, dtype: str, tmp_path: Path) -> None:
    case = CASES[name]
    model, config, networks = packed(case, tmp_path)
    image = textured(case.shape, case.channels, 1, case.border)
    info = imported(image, tmp_path / "s", tuple(1000 * s for s in case.spacing), flip=case.flip)
    result = predicted(config, networks, info, tmp_path / "s", options_of(case, probabilities=dtype), n_tasks=2)
    flips = (slice(None), *(slice(None, None, -1 if axis in case.flip else 1) for axis in "zyx"))
    reference = predict_reference(
        model,
        image[flips].copy(),
        case.spacing,
        [(s.mean, s.std) for s in info.statistics],
        case.folds,
        case.mirroring,
        case.step_size,
        with_onednn,
        stock=False,
    )
    assert reference.probabilities is not None
    theirs = reference.probabilities[flips]

    found = stored(result)
    assert found.dtype == dtype
    assert found.shape == theirs.shape
    off = np.abs(found / largest_step(dtype) - theirs)
    assert off.max() <= 0.5 / largest_step(dtype) + FLOAT32
    # the test says something only where probabilities are neither 0 nor 1
    assert ((theirs > 0.05) & (theirs < 0.95)).mean() > 0.1
    outside = found[:, : case.border[0][0]]
    assert (outside[1:] == 0).all()
    assert (outside[0] == (0 if config.has_regions else largest_step(dtype))).all()


@pytest.mark.parametrize("name", ["anisotropic patch", "resampled", "resampled regions"])
def test_same_bytes_for_any_partition(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    _, config, networks = packed(case, tmp_path)
    image = textured(case.shape, case.channels, 1, case.border)
    digests, tiles = set(), set()
    for number, (tile, n_tasks) in enumerate([((16, 16, 16), 5), ((32, 32, 32), 1), ((16, 48, 32), 1), (None, 1)]):
        out = tmp_path / str(number)
        info = imported(image, out, tuple(1000 * s for s in case.spacing))
        result = predicted(config, networks, info, out, options_of(case, tile_size=tile, mirroring=False), n_tasks)
        stored(result)
        tiles.add(len(result.plan.tiles))
        digests.add(tree_digest(out / "probabilities.ome.zarr"))
    assert len(tiles) >= 3
    assert len(digests) == 1


def test_pieces_and_labels_are_as_without_the_option(tmp_path: Path) -> None:
    case = replace(CASES["overlapping regions"], shape=(40, 40, 40))
    _, config, networks = packed(case, tmp_path)
    image = textured(case.shape, case.channels, 1, case.border)
    pieces, labels = [], []
    for dtype in (None, "uint8"):
        out = tmp_path / str(dtype)
        info = imported(image, out)
        result = predicted(config, networks, info, out, options_of(case, probabilities=dtype))
        labels.append(tree_digest(result.store))
        pieces.append(sorted((p.name, p.stat().st_size) for p in (out / "pieces" / "s").iterdir()))
        assert list((out / "blocks").glob("*.probabilities.zarr")) == [] or dtype
    assert labels[0] == labels[1]
    assert [name for name, _ in pieces[0]] == [name for name, _ in pieces[1]]
    assert sum(size for _, size in pieces[0]) < sum(size for _, size in pieces[1])


@pytest.mark.parametrize("regions", [False, True])
def test_steps(regions: bool) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 6, (5, 3, 7, 11))
    logits[:, 0, 0, :3] = [[-800, 800, 0]] * 5
    logits[1, 0, 0, :3] = 800
    tensor = torch.from_numpy(logits)
    theirs = (torch.sigmoid(tensor) if regions else torch.softmax(tensor, 0)).numpy()
    for dtype in ("uint8", "uint16"):
        found = quantised(logits, regions, dtype)
        assert np.abs(found / largest_step(dtype) - theirs).max() <= 0.5 / largest_step(dtype) + 1e-12
        assert found.max() == largest_step(dtype) == np.iinfo(dtype).max - 1


def test_a_voxel_has_the_same_steps_wherever_it_is_cut() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (9, 70, 41, 37))
    for regions in (False, True):
        whole = quantised(logits, regions, "uint16")
        for at in ((slice(3, 4), slice(5, 6), slice(7, 8)), (slice(1, 60), slice(2, 41), slice(0, 35, 2))):
            assert np.array_equal(quantised(logits[(slice(None), *at)], regions, "uint16"), whole[(slice(None), *at)])


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Regions, several levels, and shards that no window reaches."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("regions")
    model = make_model_folder(folder / "nnunet", patch_size=(16, 16, 16), features=(2, 4), **REGIONS)
    pack_model(model, folder / "package", spacing_unit="mm")
    from voxelmill.model.network import load_networks

    config = load_config(folder / "package")
    image = textured((70, 100, 130), border=((40, 0), (0, 3), (5, 66)))
    info = imported(image, folder / "s", (3000.0, 2000.0, 1000.0))
    options = Options(
        threads=1, shard_size=32, tile_size=(32, 32, 32), mirroring=False, step_size=1.0, probabilities="uint8"
    )
    return predicted(config, load_networks(folder / "package", config), info, folder / "s", options)


def test_the_store_says_what_it_holds(regions: Result) -> None:
    values = stored(regions)
    store = regions.store.parent / "probabilities.ome.zarr"
    attributes = json.loads((store / "zarr.json").read_text())["attributes"]
    (multiscale,) = attributes["ome"]["multiscales"]
    assert [axis["name"] for axis in multiscale["axes"]] == ["c", "z", "y", "x"]
    assert [c["label"] for c in attributes["ome"]["omero"]["channels"]] == ["whole", "middle", "core"]
    about = attributes["probabilities"]
    assert about["activation"] == "sigmoid"
    assert about["heads"] == ["whole", "middle", "core"]
    assert about["scale"] * about["largest_step"] == 1
    assert about["never_written"] == 255
    assert len(multiscale["datasets"]) == 3
    for level, dataset in enumerate(multiscale["datasets"]):
        step = 2**level
        array = zarr.open_array(str(store), path=dataset["path"], mode="r")
        assert np.array_equal(array[:], values[:, ::step, ::step, ::step])
        assert dataset["coordinateTransformations"][0]["scale"] == [1.0, 3000.0 * step, 2000.0 * step, 1000.0 * step]
    files = {p.relative_to(store / "0/c") for p in (store / "0/c").rglob("*") if p.is_file()}
    assert files == {Path(f"{c}/{z}/{y}/{x}") for c in range(3) for z in range(3) for y in range(4) for x in range(5)}
    assert values.max() < 255


def test_names_of_regions_follow_the_network(tmp_path: Path) -> None:
    """A package keeps the order of the labels, by which nnU-Net tells which region an output is."""
    model = make_model_folder(tmp_path / "nnunet", patch_size=(16, 16, 16), features=(2, 4), **REGIONS)
    config, _ = pack_model(model, tmp_path / "package", spacing_unit="mm")
    expected = {"0": "background", "3": "whole", "1": "middle", "2": "core"}
    assert label_names(config) == expected
    assert label_names(load_config(tmp_path / "package")) == expected


def test_a_lost_shard_is_an_error(regions: Result, tmp_path: Path) -> None:
    plan = regions.plan
    blocks = regions.store.parent / "blocks"
    folder = blocks / block_name(plan.grid, plan.grid.reached[0], 0)
    away = tmp_path / "away"
    shard = next(p for p in (folder / "0" / "c" / "1").rglob("*") if p.is_file())
    for lost in (shard, folder):
        lost.rename(away)
        with pytest.raises(TemporaryError, match="incomplete"):
            compose_probabilities(plan, blocks, tmp_path / "out")
        away.rename(lost)
    array = zarr.open_array(str(folder), path="0", mode="r")
    box = plan.grid.shards_of(plan.grid.reached[0])[0]
    assert read_shard(array, 1, box, "s").shape == tuple(b - a for a, b in box)
    shard.write_bytes(shard.read_bytes()[:-40])
    at = tuple((32 * int(n), min(32 * int(n) + 32, size)) for n, size in zip(shard.parts[-3:], plan.shape, strict=True))
    with pytest.raises(TemporaryError, match="incomplete"):
        read_shard(array, 1, at, "s")
