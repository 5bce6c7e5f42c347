"""Blocks into a store: metadata as NGFF wants them, every chunk there, and nothing lost in silence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from inprocess import Result, imported, predicted, textured
from models import make_model_folder
from voxelmill.archive import Archive, create_archive
from voxelmill.compose import compose_store
from voxelmill.errors import TemporaryError
from voxelmill.model.checkpoint import pack_model
from voxelmill.model.network import load_networks
from voxelmill.planning import Options
from voxelmill.stitch import stitch_block

SHAPE = (70, 100, 130)
BORDER = ((40, 0), (0, 3), (5, 66))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A prediction whose first and last shards no window reaches."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("store")
    model = make_model_folder(folder / "nnunet", patch_size=(16, 16, 16), features=(2, 4))
    config, _ = pack_model(model, folder / "package", spacing_unit="mm")
    info = imported(textured(SHAPE, border=BORDER), folder / "s", (3000.0, 2000.0, 1000.0), box=None)
    options = Options(threads=1, shard_size=32, tile_size=(32, 32, 32), mirroring=False, step_size=1.0)
    return predicted(config, load_networks(folder / "package", config), info, folder / "s", options)


def test_levels_keep_every_second_voxel(result: Result) -> None:
    group = json.loads((result.store / "semantic" / "zarr.json").read_text())["attributes"]["ome"]
    (multiscale,) = group["multiscales"]
    assert [axis["name"] for axis in multiscale["axes"]] == ["z", "y", "x"]
    assert {axis["unit"] for axis in multiscale["axes"]} == {"micrometer"}
    assert group["version"] == "0.5"
    assert len(multiscale["datasets"]) == 3
    for level, dataset in enumerate(multiscale["datasets"]):
        step = 2**level
        array = zarr.open_array(str(result.store), path=f"semantic/{dataset['path']}", mode="r")
        assert np.array_equal(array[:], result.labels[::step, ::step, ::step])
        assert dataset["coordinateTransformations"][0]["scale"] == [3000.0 * step, 2000.0 * step, 1000.0 * step]
        assert array.metadata.dimension_names == ("z", "y", "x")
    labels = json.loads((result.store / "zarr.json").read_text())["attributes"]["ome"]["labels"]
    assert labels == ["semantic"]


def test_every_shard_is_on_disk(result: Result) -> None:
    files = {
        p.relative_to(result.store / "semantic" / "0" / "c")
        for p in (result.store / "semantic/0/c").rglob("*")
        if p.is_file()
    }
    assert files == {Path(f"{z}/{y}/{x}") for z in range(3) for y in range(4) for x in range(5)}
    # background is written: the fill value is no label
    array = zarr.open_array(str(result.store), path="semantic/0", mode="r")
    assert array.fill_value == 255
    assert result.labels.max() <= 2
    assert not result.labels[:40].any()


def test_class_voxels_are_counted(result: Result) -> None:
    summary = json.loads((result.store.parent / "s.labels.json").read_text())
    counts = np.bincount(result.labels.ravel(), minlength=3)
    assert [entry["voxels"] for entry in summary["classes"]] == counts.tolist()
    assert summary["classes"][1]["volume_um3"] == pytest.approx(counts[1] * 6e9)
    pictures = np.load(result.store.parent / "s.label_pictures.npz")
    assert np.array_equal(pictures["max_z"][0], result.labels.max(axis=0))
    assert np.array_equal(pictures["mid_y"][0], result.labels[:, 50])


def test_lost_or_damaged_pieces_are_errors(result: Result, tmp_path: Path) -> None:
    plan, pieces = result.plan, result.store.parent / "pieces" / "s"
    block = next(iter(plan.pieces))
    path = pieces / plan.piece_name(plan.pieces[block][0], block)
    good = path.read_bytes()
    try:
        for bad in (None, good[: len(good) // 2], good[:60] + bytes([good[60] ^ 255]) + good[61:]):
            path.unlink(missing_ok=True)
            if bad is not None:
                path.write_bytes(bad)
            with pytest.raises(TemporaryError, match="missing or damaged"):
                stitch_block(plan, block, pieces, tmp_path / "block")
        path.write_bytes(good)
        stitch_block(plan, block, pieces, tmp_path / "block")
    finally:
        path.write_bytes(good)


def test_a_lost_block_or_shard_is_an_error(result: Result, tmp_path: Path) -> None:
    blocks = result.store.parent / "blocks"
    block = next(iter(result.plan.pieces))
    folder = blocks / result.plan.grid.block_name(result.plan.number(block))
    away = tmp_path / "away"
    shard = next(p for p in (folder / "0" / "c").rglob("*") if p.is_file())
    for lost in (shard, folder):
        lost.rename(away)
        with pytest.raises(TemporaryError, match="incomplete"):
            compose_store(result.plan.grid, blocks, tmp_path / "out")
        away.rename(lost)


def test_a_piece_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), create_archive(tmp_path / "a.piece") as piece:
        piece.add("0_0_0", np.zeros(3, np.int64))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):
        with create_archive(tmp_path / "b.piece") as piece:
            piece.add("0_0_0", np.arange(6, dtype=np.int64).reshape(2, 3))
    assert np.array_equal(Archive(tmp_path / "b.piece").read("0_0_0", (2, 3), "int64"), [[0, 1, 2], [3, 4, 5]])
    with pytest.raises(TemporaryError, match="6 values instead of 4"):
        Archive(tmp_path / "b.piece").read("0_0_0", (2, 2), "int64")
