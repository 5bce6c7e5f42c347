"""The demo's generator says the truth about what it draws, and the demo's model finds it."""

from __future__ import annotations

import csv
from pathlib import Path

import cc3d
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from scipy import ndimage, spatial

from make_demo import main as make_demo
from voxelmill.phantom import (
    CAMERA_OFFSET,
    LABELS,
    LEAST_WIDTH,
    PARTICLE_LABELS,
    Curve,
    Particles,
    Phantom,
    Tube,
    draw,
    grow,
    particles,
    photograph,
    touching,
    tubes,
)

ROOT = Path(__file__).resolve().parents[2]
SPACING = (3.0, 2.0, 2.0)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return tubes((40, 96, 90), SPACING, seed=3, n=24)


def straight(start: tuple[float, float, float], end: tuple[float, float, float], radius: float) -> Tube:
    """A tube of one straight centre line with a point every half micrometre, ends included."""
    count = round(2 * float(np.linalg.norm(np.subtract(end, start)))) + 1
    points = np.linspace(start, end, count)
    return Tube(1, (Curve(points, np.full(count, radius), np.full(count, 1000.0)),))


def test_equal_seeds_give_equal_volumes_and_other_seeds_do_not(phantom: Phantom) -> None:
    again = tubes((40, 96, 90), SPACING, seed=3, n=24)
    other = tubes((40, 96, 90), SPACING, seed=4, n=24)
    for name in ("image", "labels", "instances"):
        assert getattr(again, name).tobytes() == getattr(phantom, name).tobytes()
        assert getattr(other, name).tobytes() != getattr(phantom, name).tobytes()


@pytest.mark.parametrize("seed", range(4))
def test_table_and_volumes_name_the_same_objects(seed: int) -> None:
    volume = tubes((40, 96, 90), SPACING, seed=seed, n=16)
    assert (volume.image.dtype, volume.labels.dtype, volume.instances.dtype) == (np.uint16, np.uint8, np.uint32)
    assert [tube.id for tube in volume.tubes] == list(range(1, 17))
    assert set(np.unique(volume.instances)) == set(range(17))
    assert np.array_equal(volume.labels == LABELS["axon"], volume.instances > 0)


def test_edge_is_the_rim_of_one_voxel_in_the_plane(phantom: Phantom) -> None:
    axon, edge = phantom.labels == LABELS["axon"], phantom.labels == LABELS["edge"]
    for axon_slice, edge_slice in zip(axon, edge, strict=True):
        away = ndimage.distance_transform_cdt(~axon_slice, metric="chessboard") if axon_slice.any() else None
        assert np.array_equal(edge_slice, np.zeros_like(edge_slice) if away is None else away == 1)


@pytest.mark.parametrize(
    ("start", "end"),
    [((15.7, 40.4, 41.1), (105.7, 40.4, 41.1)), ((60.7, 20, 40.4), (60.7, 140, 40.4)), ((30, 30, 30), (90, 110, 130))],
    ids=["along z", "along y", "oblique"],
)
def test_straight_tubes_have_the_length_and_volume_of_geometry(
    start: tuple[float, float, float], end: tuple[float, float, float]
) -> None:
    radius = 8.0
    tube = straight(start, end, radius)
    length = float(np.linalg.norm(np.subtract(end, start)))
    assert tube.length_um == pytest.approx(length, rel=1e-9)
    assert tube.radius_um == pytest.approx(radius, rel=1e-9)
    instances, _ = draw([tube], (41, 81, 81), SPACING)
    assert (instances > 0).sum() * np.prod(SPACING) == pytest.approx(
        np.pi * radius**2 * length + 4 / 3 * np.pi * radius**3, rel=0.02
    )
    # The drawn body reaches one radius beyond either end.
    axis = np.subtract(end, start) / length
    along = (np.argwhere(instances) * SPACING - start) @ axis
    assert np.ptp(along) == pytest.approx(length + 2 * radius, abs=2 * max(SPACING))


def test_grown_lengths_are_those_of_the_centre_lines_and_stay_inside(phantom: Phantom) -> None:
    extent = (np.array(phantom.image.shape) - 1) * SPACING
    for tube in phantom.tubes:
        steps = [np.linalg.norm(np.diff(curve.points, axis=0), axis=1) for curve in tube.curves]
        assert tube.length_um == pytest.approx(sum(step.sum() for step in steps))
        for curve in tube.curves[1:]:
            assert np.linalg.norm(tube.curves[0].points - curve.points[0], axis=1).min() == pytest.approx(0)
        for curve in tube.curves:
            # The point at which a curve leaves the volume is dropped, unless nothing would be left of it.
            inside = ((curve.points >= 0) & (curve.points <= extent)).all(axis=1)
            assert inside[1:-1].all()


def test_tubes_taper_branch_and_touch(phantom: Phantom) -> None:
    trunks = [tube.curves[0] for tube in phantom.tubes]
    assert all(trunk.radii[0] > trunk.radii[-1] for trunk in trunks)
    assert sum(tube.branches for tube in phantom.tubes) > 0
    pairs = touching(phantom.instances)
    assert len(pairs) >= 3
    assert (pairs[:, 0] < pairs[:, 1]).all()
    # Touching tubes make fewer connected bodies than there are tubes, which is what the demo shows.
    assert cc3d.connected_components(phantom.instances > 0).max() < len(phantom.tubes)


def test_a_third_of_the_tubes_starts_on_another_one() -> None:
    contacts = 0
    for seed in range(60):
        first, second = (tube.curves[0] for tube in grow((64, 256, 256), SPACING, 2, np.random.default_rng(seed)))
        distance = spatial.distance.cdist(first.points, second.points)
        contacts += bool((distance <= first.radii[:, None] + second.radii).any())
    assert 0.25 * 60 < contacts < 0.6 * 60


def test_touching_is_contact_by_a_face() -> None:
    instances = np.zeros((3, 3, 4), dtype=np.uint32)
    instances[0, 0, 0], instances[0, 0, 1], instances[1, 0, 1] = 7, 2, 5
    instances[2, 1, 1] = 9
    assert touching(instances).tolist() == [[2, 5], [2, 7]]


def test_light_spreads_further_along_z() -> None:
    signal = np.zeros((41, 61, 61), dtype=np.float32)
    signal[20, 30, 30] = 8e5
    grey = photograph(signal, SPACING, np.random.default_rng(0)).astype(float)
    grey -= np.median(grey)
    widths = []
    for axis, size in enumerate(SPACING):
        line = np.moveaxis(grey, axis, -1)[tuple(n // 2 for n in np.delete(grey.shape, axis))]
        place = np.arange(len(line)) * size
        weight = np.where(line > 0.02 * line.max(), line, 0)
        centre = (weight * place).sum() / weight.sum()
        widths.append(float(np.sqrt((weight * (place - centre) ** 2).sum() / weight.sum())))
    assert widths == pytest.approx([4.5, 1.8, 1.8], rel=0.12)


def test_noise_grows_with_light() -> None:
    dark = photograph(np.zeros((24, 64, 64), np.float32), SPACING, np.random.default_rng(1)).astype(float)
    bright = photograph(np.full((24, 64, 64), 4000, np.float32), SPACING, np.random.default_rng(1)).astype(float)
    assert dark.mean() > CAMERA_OFFSET

    def noise(grey: np.ndarray) -> float:
        return float(np.diff(grey, n=2, axis=2).std())

    assert noise(bright) > 1.8 * noise(dark)


def test_a_demo_is_made_twice_alike_and_names_its_spacing(tmp_path: Path) -> None:
    arguments = ["--shape", "16", "40", "40", "--tubes", "5"]
    for folder in ("first", "second"):
        result = CliRunner().invoke(make_demo, ["--out", str(tmp_path / folder), *arguments])
        assert result.exit_code == 0, result.output
    names = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*.*"))
    assert [str(name) for name in names] == [
        "demo.ome.tif",
        "truth/demo.instances.ome.tif",
        "truth/demo.labels.ome.tif",
        "truth/demo.objects.csv",
    ]
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    expected = tubes((16, 40, 40), SPACING, seed=1, n=5)
    with tifffile.TiffFile(tmp_path / "first" / "demo.ome.tif") as tiff:
        assert np.array_equal(tiff.asarray(), expected.image)
        assert tiff.series[0].axes == "ZYX"
        pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
    assert [pixels[f"PhysicalSize{axis}"] for axis in "ZYX"] == list(SPACING)
    assert {pixels[f"PhysicalSize{axis}Unit"] for axis in "ZYX"} == {"µm"}
    with open(tmp_path / "first" / "truth" / "demo.objects.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [float(row["length_um"]) for row in rows] == pytest.approx([t.length_um for t in expected.tubes], abs=0.01)
    assert [int(row["voxels"]) for row in rows] == np.bincount(expected.instances.ravel())[1:].tolist()


def test_the_demo_model_finds_the_tubes_of_a_volume_it_never_saw() -> None:
    torch = pytest.importorskip("torch")
    inference = pytest.importorskip("nnunetv2.inference.predict_from_raw_data")
    volume = tubes((32, 72, 64), SPACING, seed=77, n=12)
    predictor = inference.nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(ROOT / "assets" / "demo_model"), ("all",))
    labels = predictor.predict_single_npy_array(volume.image[None].astype(np.float32), {"spacing": list(SPACING)})
    for name, least in (("axon", 0.70), ("edge", 0.60)):
        found, truth = labels == LABELS[name], volume.labels == LABELS[name]
        assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > least, name


LATTICES = [
    particles(101, (4, 5, 6), touching=(0.4, 0.3, 0.5), seed=1),
    particles(60, (3, 5, 4), cell=9, touching=(0.2, 0.6, 0.1), seed=2),
    particles(26, cell=13, touching=(0.5, 0.5, 0.5), seed=3),
    particles(7, (1, 1, 9), touching=(0.0, 0.0, 1.0), seed=4),
]


def whole(volume: Particles) -> tuple[np.ndarray, np.ndarray]:
    """Labels and ids of all layers."""
    labels, ids = zip(*volume.bands(), strict=True)
    return np.concatenate(labels), np.concatenate(ids)


def adjacent(ids: np.ndarray) -> set[tuple[int, int]]:
    """Pairs of ids that have voxels among each other's 26 neighbours, by comparing the volume with itself shifted."""
    padded = np.pad(ids, 1)
    found = set()
    for shift in np.ndindex(3, 3, 3):
        other = padded[tuple(slice(s, s + n) for s, n in zip(shift, ids.shape, strict=True))]
        meet = (ids > 0) & (other > ids)
        found |= set(zip(ids[meet].tolist(), other[meet].tolist(), strict=True))
    return found


@pytest.mark.parametrize("volume", LATTICES, ids=str)
def test_particles_are_as_many_as_large_and_touch_as_told(volume: Particles) -> None:
    labels, ids = whole(volume)
    assert labels.shape == volume.shape
    assert (labels.dtype, ids.dtype) == (np.uint8, np.int64)
    assert np.array_equal(labels > 0, ids > 0)
    counts = np.bincount(ids.ravel())[1:]
    assert counts.tolist() == volume.volumes().tolist()
    assert len(counts) == volume.count
    assert adjacent(ids) == set(map(tuple, volume.contacts().tolist()))
    assert cc3d.connected_components(labels > 0).max() == volume.components() < volume.count
    assert cc3d.connected_components(ids).max() == volume.count
    for box in ndimage.find_objects(ids):
        assert min(side.stop - side.start for side in box) >= LEAST_WIDTH


@pytest.mark.parametrize("volume", LATTICES, ids=str)
def test_nearest_cores_are_the_particles(volume: Particles) -> None:
    labels, ids = whole(volume)
    core = labels == PARTICLE_LABELS["core"]
    cores, n = ndimage.label(core)
    assert n == volume.count
    of_core = ndimage.maximum(ids, cores, np.arange(1, n + 1))
    assert sorted(of_core) == list(range(1, n + 1))
    # every border voxel sees voxels of one core, its own
    cores = np.where(core, ids, 0)
    border = labels == PARTICLE_LABELS["border"]
    largest = ndimage.maximum_filter(cores, 3)
    smallest = ndimage.minimum_filter(np.where(core, ids, ids.max() + 1), 3)
    assert np.array_equal(largest[border], ids[border])
    assert np.array_equal(smallest[border], ids[border])
    # and no core is so thin that it would not count as one
    distance = ndimage.distance_transform_edt(core)
    thin = ndimage.sum_labels(distance <= 1, cores, of_core) / ndimage.sum_labels(core, cores, of_core)
    assert thin.max() < 0.95


def test_layers_of_particles_depend_on_the_seed_alone() -> None:
    first, again, other = (particles(101, (4, 5, 6), seed=seed) for seed in (1, 1, 2))
    labels, ids = whole(first)
    for layer in (2, 0, 3, 1):
        planes = slice(layer * 8, layer * 8 + 8)
        assert again.band(layer)[0].tobytes() == labels[planes].tobytes()
        assert np.array_equal(again.band(layer)[1], ids[planes])
        assert again.grey(labels[planes], layer).tobytes() == first.grey(labels[planes], layer).tobytes()
        assert other.band(layer)[0].tobytes() != labels[planes].tobytes()
        assert other.grey(labels[planes], layer).tobytes() != first.grey(labels[planes], layer).tobytes()


def test_shares_of_touching_particles() -> None:
    alone, all_touch = (particles(512, touching=(share,) * 3) for share in (0.0, 1.0))
    assert (alone.components(), all_touch.components()) == (512, 1)
    volume = particles(20**3, touching=(0.1, 0.2, 0.3))
    steps = np.diff(volume.contacts(), axis=1)[:, 0]
    shares = [np.mean(steps == step) * len(steps) / (19 * 20 * 20) for step in (400, 20, 1)]
    assert shares == pytest.approx([0.1, 0.2, 0.3], abs=0.015)


def test_grey_values_of_particles_tell_the_labels() -> None:
    volume = particles(64)
    labels, _ = volume.band(0)
    grey = volume.grey(labels, 0).astype(float)
    assert [grey[labels == value].mean() for value in range(3)] == pytest.approx([60, 190, 140], abs=1)
    assert [grey[labels == value].std() for value in range(3)] == pytest.approx([7.2] * 3, abs=0.5)


@pytest.mark.parametrize("wrong", [{"cells": (2, 2, 2)}, {"cell": 7}], ids=str)
def test_particles_need_room(wrong: dict) -> None:
    with pytest.raises(ValueError, match="too few cells"):
        particles(9, **wrong)
