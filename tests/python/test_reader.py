"""The image as the network sees it equals nnU-Net's preprocessing, in every brick and for every cut."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from inprocess import imported, textured
from models import make_model_folder
from reference import PlannedPreprocessor, PlannedZScore
from voxelmill import reader
from voxelmill.image import StoredImage
from voxelmill.model.checkpoint import pack_model
from voxelmill.planning import Options, make_plan


@pytest.mark.parametrize("spacing", [(1.3, 1.1, 0.7), (3.4, 0.8, 1.2), (0.6, 2.1, 1.0)])
@pytest.mark.parametrize("brick", [20, 96])
def test_resampled_image_is_that_of_nnunet(
    spacing: tuple[float, ...], brick: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(reader, "BRICK", brick)
    model = make_model_folder(tmp_path / "nnunet", patch_size=(16, 16, 16), transpose_forward=(1, 2, 0))
    config, _ = pack_model(model, tmp_path / "package", spacing_unit="mm")
    image = textured((50, 60, 90), border=((2, 0), (0, 3), (4, 1)))
    info = imported(image, tmp_path, tuple(1000 * s for s in spacing))
    plan = make_plan(config, info, Options(mirroring=False))
    grid = reader.NetworkImage(plan, StoredImage(tmp_path / "s.image.zarr", info))
    whole = tuple((0, axis.length) for axis in plan.axes)
    ours = grid.read(whole)

    plans = PlansManager(json.loads((model / "plans.json").read_text()))
    PlannedZScore.constants = [(info.statistics[0].mean, info.statistics[0].std)]
    PlannedZScore.measured = []
    theirs, _, _ = PlannedPreprocessor(verbose=False).run_case_npy(
        image.astype(np.float32),
        None,
        {"spacing": list(spacing)},
        plans,
        plans.get_configuration("3d_fullres"),
        json.loads((model / "dataset.json").read_text()),
    )
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-5
    part = ((3, 25), (5, 35), (-4, 20))
    cut = grid.read(part)
    assert np.array_equal(cut[:, :, :, 4:], ours[:, 3:25, 5:35, :20])
    assert not cut[:, :, :, :4].any()
