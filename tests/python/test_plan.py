"""Arithmetic of the plan: nnU-Net's grid and orientation, and partitions without gap or overlap."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIOWithReorient
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

from inprocess import imported, textured
from models import make_model_folder
from voxelmill.errors import UsageError
from voxelmill.grid import block_cuts, shard_cuts
from voxelmill.model.checkpoint import pack_model
from voxelmill.model.config import ModelConfig
from voxelmill.model.resample import Resampling
from voxelmill.plan import Axis, Plan
from voxelmill.planning import Options, make_plan, ras_orientation, window_starts
from voxelmill.rows import BlockRow, TileRow, read_rows, write_rows
from voxelmill.schedule import estimate, estimate_together, schedule


@given(st.integers(1, 700), st.integers(1, 160), st.floats(0.1, 1.0))
def test_windows_are_those_of_nnunet(length: int, patch: int, step: float) -> None:
    padded = max(length, patch)
    theirs = compute_steps_for_sliding_window((padded,), (patch,), step)[0]
    assert [s + (padded - length) // 2 for s in window_starts(length, patch, step)] == theirs


def axis_of(
    size: int, crop: tuple[int, int], patch: int, shard: int, tile: int, length: int, kind: str, slab: int | None
) -> Axis:
    cuts = shard_cuts(size, shard, False)
    return Axis(
        source=0,
        flipped=False,
        size=size,
        crop=crop,
        length=length,
        patch=patch,
        starts=window_starts(length, patch, 0.5),
        data=Resampling(kind),
        logits=Resampling(kind),
        shards=cuts,
        blocks=block_cuts(cuts, tile, patch),
        slab=slab,
    )


@settings(max_examples=200)
@given(st.data())
def test_segments_partition_an_axis(data: st.DataObject) -> None:
    """Every cropped voxel is in one segment, which names exactly the tiles whose windows its value depends on."""
    size = data.draw(st.integers(1, 300))
    low = data.draw(st.integers(0, size - 1))
    high = data.draw(st.integers(low + 1, size))
    kind = data.draw(st.sampled_from(["same", "linear", "nearest"]))
    length = high - low if kind == "same" else data.draw(st.integers(1, 400))
    patch, tile = data.draw(st.integers(1, 64)), data.draw(st.integers(1, 128))
    axis = axis_of(size, (low, high), patch, 16, tile, length, kind, data.draw(st.sampled_from([None, 8])))

    assert [w for a, b in axis.tiles for w in range(a, b)] == list(range(len(axis.starts)))
    assert [v for s in axis.segments for v in range(s.start, s.stop)] == list(range(low, high))
    for segment in axis.segments:
        assert axis.shards[segment.shard] <= segment.start < segment.stop <= axis.shards[segment.shard + 1]
        assert axis.blocks[segment.block] <= segment.start < segment.stop <= axis.blocks[segment.block + 1]
        for voxel in (segment.start, segment.stop - 1):
            needed, _ = axis.logits.taps(np.array([voxel - low]), axis.cropped, length)
            touching = {
                tile
                for tile, (a, b) in enumerate(axis.tiles)
                for start in axis.starts[a:b]
                for position in needed.ravel()
                if start <= position < start + patch
            }
            assert touching == {
                t for t in range(segment.first, segment.last + 1) if axis.tiles[t][0] < axis.tiles[t][1]
            }


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = tmp_path_factory.mktemp("model")
    model = make_model_folder(folder / "nnunet", patch_size=(16, 16, 16))
    return pack_model(model, folder / "package", spacing_unit="mm")[0]


def plan_of(config: ModelConfig, folder: Path, shape: tuple[int, int, int], **options: object) -> Plan:
    info = imported(textured(shape), folder)
    return make_plan(config, info, Options(shard_size=16, threads=1, **options))  # type: ignore[arg-type]


def test_cells_and_pieces_agree(config: ModelConfig, tmp_path: Path) -> None:
    """What tiles send is what blocks expect: each cell once per tile that reaches it, in the piece for its block."""
    plan = plan_of(config, tmp_path, (60, 50, 70), tile_size=(16, 32, 16))
    sent = {
        (tile, tuple(s.block for s in cell.segments), cell.name)
        for tile in plan.tiles
        for cell in plan.cells(tile=tile)
    }
    expected = {
        (tile, block, cell.name) for block in plan.pieces for cell in plan.cells(block=block) for tile in cell.tiles
    }
    assert sent == expected
    assert {(tile, block) for tile, block, _ in sent} == {(t, b) for b, tiles in plan.pieces.items() for t in tiles}
    shards = [shard for block in plan.pieces for shard in plan.shards_of(block)]
    assert len(shards) == len(set(shards)) == 4 * 4 * 5
    assert sum(plan.windows(tile) for tile in plan.tiles) == plan.n_windows


def test_plan_survives_its_file(config: ModelConfig, tmp_path: Path) -> None:
    plan = plan_of(config, tmp_path, (40, 40, 40), tile_size=(16, 16, 16))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    tiles, blocks = schedule([plan], 1800.0)
    write_rows(tmp_path / "tiles.csv", TileRow, tiles)
    write_rows(tmp_path / "blocks.csv", BlockRow, blocks)
    assert read_rows(tmp_path / "tiles.csv", TileRow) == tiles
    assert read_rows(tmp_path / "blocks.csv", BlockRow) == blocks
    assert all(plan.number(plan.block(row.block)) == row.block for row in blocks)


def test_tiles_fit_the_memory_budget(config: ModelConfig) -> None:
    """Smaller budgets give smaller tiles, long along the first axis; one that is too small is refused."""
    shape, spacing = (2048, 2048, 2048), (1000.0, 1000.0, 1000.0)
    figures = {
        budget: estimate(config, shape, spacing, Options(memory_budget=budget)) for budget in (2**31, 2**33, 2**36)
    }
    tiles = [figure.tiles for figure in figures.values()]
    assert tiles == sorted(tiles, reverse=True) and tiles[0] > tiles[-1]
    assert all(figure.memory_bytes <= budget for budget, figure in figures.items())
    with pytest.raises(UsageError, match="memory"):
        estimate(config, shape, spacing, Options(memory_budget=800_000_000))


def test_ids_of_separated_objects_are_part_of_the_estimate(config: ModelConfig) -> None:
    shape, spacing = (256, 256, 256), (1000.0, 1000.0, 1000.0)
    none, one, two = (estimate(config, shape, spacing, Options(id_layers=n)) for n in range(3))
    assert one.work_bytes - none.work_bytes == two.work_bytes - one.work_bytes == 256**3 // 4
    assert none.output_bytes == two.output_bytes


def test_probabilities_are_part_of_the_estimate(config: ModelConfig, tmp_path: Path) -> None:
    shape, spacing = (256, 256, 256), (1000.0, 1000.0, 1000.0)
    values = config.heads * 256**3
    plain, small, large = (
        estimate(config, shape, spacing, Options(probabilities=dtype)) for dtype in (None, "uint8", "uint16")
    )
    for other, of_one in ((small, 0.4), (large, 1.5)):
        assert other.output_bytes - plain.output_bytes == pytest.approx(of_one * values)
        assert of_one * values < other.work_bytes - plain.work_bytes <= 2 * of_one * values
        assert other.memory_bytes > plain.memory_bytes
    plan = replace(plan_of(config, tmp_path, (40, 40, 40)), probabilities="uint8", member=2)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert plan.head_names == ("background", "core", "border")


def test_several_models_are_part_of_the_estimate(config: ModelConfig) -> None:
    shape, spacing, options = (256, 256, 256), (1000.0, 1000.0, 1000.0), Options(tile_size=(128, 128, 128))
    other = replace(config, spacing=(2.0, 2.0, 2.0))
    kept = replace(options, probabilities="uint16")
    one, two = (estimate(model, shape, spacing, kept) for model in (config, other))
    both = estimate_together([one, two], config, shape, options)
    assert both.windows == one.windows + two.windows > one.windows
    assert both.seconds == pytest.approx(one.seconds + two.seconds)
    assert both.memory_bytes == max(one.memory_bytes, two.memory_bytes)
    assert both.output_bytes == estimate(config, shape, spacing, options).output_bytes
    # the image and the labels are counted once
    assert max(one.work_bytes, two.work_bytes) < both.work_bytes < one.work_bytes + two.work_bytes
    assert estimate_together([one, two], config, shape, kept).output_bytes == one.output_bytes


@pytest.mark.parametrize("reader", [NibabelIOWithReorient, SimpleITKIOWithReorient])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
def test_orientation_is_that_of_nnunets_readers(
    reader: type, order: tuple[int, ...], signs: tuple[int, ...], tmp_path: Path
) -> None:
    """Data stored in any orientation reach the network as nnU-Net's reorienting readers give them."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for voxel, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, voxel] = sign * (voxel + 1.5)
    volume = np.random.default_rng(0).integers(0, 1000, (4, 5, 6)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "image.nii.gz")
    theirs, properties = reader().read_images([str(tmp_path / "image.nii.gz")])

    stored = volume.transpose(2, 1, 0)
    axes, flips = ras_orientation(tuple(map(tuple, affine)))
    ours = stored.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    assert np.array_equal(ours, theirs[0])
    spacing = (3.5, 2.5, 1.5)
    assert [spacing[axis] for axis in axes] == pytest.approx(properties["spacing"])
