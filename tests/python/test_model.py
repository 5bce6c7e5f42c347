"""From untrusted nnU-Net folders to packages and networks; nnU-Net itself is the oracle."""

from __future__ import annotations

import importlib
import io
import json
import os
import pickle
import pkgutil
import stat
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from conftest import ROOT
from models import architecture, make_model_folder
from voxelmill.errors import (
    BadDataError,
    DeviceAbsentError,
    ModelMismatchError,
    RefusedError,
    UsageError,
    VoxelmillError,
)
from voxelmill.model import source as source_module
from voxelmill.model.checkpoint import check_torch, digest_of, pack_model
from voxelmill.model.config import LAYERS, NETWORKS, NORMALIZATIONS, READERS, RESAMPLINGS, ModelConfig, heads_and_values
from voxelmill.model.network import build_network, encode_weights, load_networks, read_weights
from voxelmill.model.package import load_config
from voxelmill.model.plans import (
    BATCH_NORM_TRAINER,
    DEFAULT_NETWORK_TRAINERS,
    OTHER_NETWORK_TRAINERS,
    channels_of,
    config_from_plans,
    read_architecture,
    resolve_configuration,
)
from voxelmill.model.source import find_model

SMALL = (8, 8, 8)
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"patch_size": (8, 16, 16)},
    "residual encoder": {"patch_size": (8, 16, 16), "arch": "ResidualEncoderUNet", "features": (4, 8, 8)},
    "residual": {"patch_size": SMALL, "arch": "ResidualUNet", "features": (4, 8)},
    "2d": {"patch_size": (32, 16), "configuration": "2d", "mirror_axes": (0, 1)},
    "lowres": {"patch_size": SMALL, "configuration": "3d_lowres", "configuration_changes": {"next_stage": "cascade"}},
    "two channels": {"patch_size": SMALL, "channels": 2, "normalization": ("CTNormalization", "NoNormalization")},
    "folds": {"patch_size": SMALL, "folds": ("0", "2", "all")},
    "regions": {"patch_size": SMALL, "labels": REGIONS, "regions_class_order": [1, 2, 3]},
    "ignore": {"patch_size": SMALL, "labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}},
    "batch norm": {"patch_size": SMALL, "trainer": BATCH_NORM_TRAINER},
    "transposed": {"patch_size": (8, 16, 8), "transpose_forward": (2, 0, 1), "spacing": (2.0, 0.5, 1.0)},
    "no mirroring": {"patch_size": SMALL, "mirror_axes": None, "trainer": "nnUNetTrainerNoMirroring"},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound model with one fold."""
    return make_model_folder(tmp_path / "in", patch_size=SMALL, features=(4, 8))


@pytest.fixture
def package(folder: Path, tmp_path: Path) -> Path:
    pack_model(folder, tmp_path / "model")
    return tmp_path / "model"


def predictor_of(folder: Path, folds: tuple[str, ...]) -> nnUNetPredictor:
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(folder), folds)
    predictor.network.eval()
    return predictor


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def edit_json(file: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def edit_checkpoint(folder: Path, changes: Mapping[str, Any]) -> None:
    file = folder / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(file, weights_only=False), **changes}, file)


def settings_of(plans: dict[str, Any]) -> dict[str, Any]:
    return next(iter(plans["configurations"].values()))


# Networks


@pytest.mark.parametrize("kind", KINDS)
def test_networks_give_nnunets_output_bit_for_bit(kind: str, tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "in", **KINDS[kind])
    pack_model(folder, tmp_path / "model")
    config = load_config(tmp_path / "model")
    networks = load_networks(tmp_path / "model", config)
    predictor = predictor_of(folder, config.folds)
    window = torch.randn(1, config.channels, *config.patch_size, generator=torch.Generator().manual_seed(5))
    assert len(networks) == len(predictor.list_of_parameters) == len(config.folds)
    for network, weights in zip(networks, predictor.list_of_parameters, strict=True):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
        predictor.network.load_state_dict(weights)
        with torch.inference_mode():
            expected = predictor.network(window)
            assert expected.std() > 0.5
            assert torch.equal(network(window), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_config_says_what_nnunets_managers_say(kind: str, tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "in", **KINDS[kind])
    config, _ = pack_model(folder, tmp_path / "model")
    predictor = predictor_of(folder, config.folds)
    settings, plans, labels = predictor.configuration_manager, predictor.plans_manager, predictor.label_manager
    assert list(config.patch_size) == settings.patch_size
    assert list(config.spacing) == settings.spacing
    assert list(config.transpose_forward) == plans.transpose_forward
    assert list(config.normalization) == settings.normalization_schemes
    assert config.resampling_data["kwargs"] == settings.resampling_fn_data.keywords
    assert config.resampling_data["name"] == settings.resampling_fn_data.func.__name__
    assert config.resampling_probabilities["kwargs"] == settings.resampling_fn_probabilities.keywords
    assert config.intensity_properties == plans.foreground_intensity_properties_per_channel
    assert config.reader == plans.image_reader_writer_class.__name__
    assert config.mirror_axes == (predictor.allowed_mirroring_axes or ())
    assert config.trainer == predictor.trainer_name
    assert config.heads == labels.num_segmentation_heads
    assert config.ignore_label == labels.ignore_label
    assert config.has_regions == labels.has_regions
    assert config == load_config(tmp_path / "model")


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ({"background": 0, "a": 1}, None),
        ({"background": 0, "b": 2, "a": 1, "c": 3}, None),
        ({"background": 0, "a": [1], "b": 2}, None),
        ({"background": 0, "a": 1, "ignore": 2}, None),
        (REGIONS, [1, 2, 3]),
        (REGIONS, [3, 1, 2]),
        ({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, [1, 2]),
        ({"background": 0, "whole": [1, 2]}, [1]),
    ],
)
def test_heads_and_values_are_the_label_managers(labels: dict[str, Any], order: list[int] | None) -> None:
    manager = LabelManager(labels, order)
    heads, values = heads_and_values(labels, order if manager.has_regions else None)
    assert heads == manager.num_segmentation_heads
    # Every combination of logits of one voxel with one head ahead, or none.
    logits = torch.cat([10 * torch.eye(heads) - 5, torch.full((heads, 1), -5.0)], dim=1)
    possible = {int(value) for value in manager.convert_logits_to_segmentation(logits)}
    assert {value for value in possible if value} == set(values)


def test_prediction_side_imports_no_nnunet(package: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from voxelmill.model.package import load_config\n"
        f"config = load_config(Path({str(package)!r}))\n"
        "assert 'torch' not in sys.modules\n"
        "from voxelmill.model.network import load_networks\n"
        f"assert len(load_networks(Path({str(package)!r}), config)) == 1\n"
        "assert not [name for name in sys.modules if name.startswith('nnunetv2')]\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "bin"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_shared_model_packs_and_predicts_as_nnunet(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "nnunet_model" / "tiny_ovule_nuclei"
    config, notes = pack_model(folder, tmp_path / "model", spacing_unit="um")
    assert (config.folds, config.heads, config.spacing_unit, notes) == (("all",), 3, "um", [])
    predictor = predictor_of(folder, ("all",))
    window = torch.randn(1, 1, *config.patch_size, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        assert torch.equal(load_networks(tmp_path / "model", config)[0](window), predictor.network(window))


def test_networks_hold_no_more_memory_than_their_weights() -> None:
    block = architecture(SMALL, (65536, 65536, 65536), None, "PlainConvUNet")
    network = build_network(sound_config(architecture=read_architecture({"architecture": block})))
    assert sum(parameter.numel() for parameter in network.parameters()) > 1 << 37
    assert all(parameter.is_meta for parameter in network.parameters())


def test_aliases_come_back_and_bytes_do_not_change() -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    weights = {
        "b": shared, "a": shared, "part": shared[0], "turned": shared.t(), "count": torch.tensor(3),
        "empty": torch.zeros(0), "none": torch.zeros(0), "half": torch.ones(2, dtype=torch.float16),
    }  # fmt: skip
    data = encode_weights(weights)
    back = read_weights(data, "x")
    assert set(back) == set(weights)
    for name, tensor in weights.items():
        assert torch.equal(back[name], tensor.float() if tensor.is_floating_point() else tensor)
    assert back["a"] is back["b"]
    assert back["half"].dtype == torch.float32
    assert data == encode_weights(dict(reversed(weights.items())))


def sound_config(**changes: Any) -> ModelConfig:
    plans, dataset = plans_and_dataset()
    config, _ = config_from_plans(
        plans, dataset, configuration="3d_fullres", trainer="nnUNetTrainer", mirror_axes=(0, 1), folds=("0",)
    )
    return ModelConfig(**{**vars(config), **changes})


def plans_and_dataset(**options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Contents of the JSON files of a model without checkpoints."""
    with tempfile.TemporaryDirectory() as path:
        make_model_folder(Path(path), **{"patch_size": SMALL, "features": (4, 8), "folds": (), **options})
        return tuple(json.loads((Path(path) / f"{name}.json").read_text()) for name in ("plans", "dataset"))


def test_channels_are_in_the_order_of_their_numbers() -> None:
    names = {str(channel): f"channel{channel}" for channel in (10, 2, *range(2), *range(3, 10))}
    assert channels_of({"channel_names": names}) == tuple(f"channel{channel}" for channel in range(11))
    assert channels_of({"modality": {"0": "CT"}}) == ("CT",)


# Names that nnU-Net itself knows


def test_trainer_lists_are_those_of_nnunet() -> None:
    from nnunetv2 import training
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    found: dict[str, type] = {}
    for module in pkgutil.walk_packages(training.__path__, "nnunetv2.training."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, type) and issubclass(value, nnUNetTrainer):
                found[name] = value
    default = {n for n, t in found.items() if t.build_network_architecture is nnUNetTrainer.build_network_architecture}
    assert default == DEFAULT_NETWORK_TRAINERS
    assert set(found) - default == OTHER_NETWORK_TRAINERS | {BATCH_NORM_TRAINER}


def test_other_names_are_found_by_nnunet() -> None:
    import pydoc

    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
    from nnunetv2.preprocessing.normalization import default_normalization_schemes as schemes
    from nnunetv2.preprocessing.resampling.utils import recursive_find_resampling_fn_by_name

    known = {
        name
        for name, value in vars(schemes).items()
        if isinstance(value, type) and issubclass(value, schemes.ImageNormalization)
    }
    assert known - {"ImageNormalization"} == NORMALIZATIONS
    assert all(recursive_find_resampling_fn_by_name(name).__name__ == name for name in RESAMPLINGS)
    assert all(recursive_find_reader_writer_by_name(name).__name__ == name for name in READERS)
    for spelling, name in [pair for layers in LAYERS.values() for pair in layers.items()]:
        assert pydoc.locate(spelling).__name__ == name
    for spelling, name in NETWORKS.items():
        if ".unet." in spelling:
            assert pydoc.locate(spelling).__name__ == name


def test_inherited_configurations_resolve_as_in_nnunet() -> None:
    plans, _ = plans_and_dataset()
    plans["configurations"]["child"] = {"inherits_from": "3d_fullres", "spacing": [3.0, 2.0, 1.0]}
    plans["configurations"]["grandchild"] = {"inherits_from": "child", "patch_size": [16, 8, 8]}
    expected = PlansManager(deepcopy(plans)).get_configuration("grandchild").configuration
    assert resolve_configuration(plans, "grandchild") == expected
    plans["configurations"]["child"]["inherits_from"] = "grandchild"
    with pytest.raises(BadDataError, match="inherits from itself"):
        resolve_configuration(plans, "grandchild")
    with pytest.raises(ModelMismatchError, match="no configuration"):
        resolve_configuration(plans, "2d")


@pytest.mark.parametrize("network", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_old_plans_describe_the_same_network_as_in_nnunet(network: str) -> None:
    settings = {
        "UNet_class_name": network,
        "UNet_base_num_features": 8,
        "unet_max_num_features": 20,
        "n_conv_per_stage_encoder": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "num_pool_per_axis": [2, 2, 2],
        "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "conv_kernel_sizes": [[3, 3, 3]] * 3,
        "patch_size": [16, 16, 16],
    }
    found = read_architecture(settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        block = ConfigurationManager(deepcopy(settings)).configuration["architecture"]
    assert NETWORKS[found["class"]] == NETWORKS[block["network_class_name"]] == network
    assert found["kwargs"] == block["arch_kwargs"]
    assert found["imports"] == block["_kw_requires_import"]
    build_network(sound_config(architecture=found, patch_size=(16, 16, 16)))


# Attacks


class Payload:
    """Pickles to a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def pickles(marker: Path) -> dict[str, dict[str, Any]]:
    touch = f"touch {marker}"
    return {
        "os.system": {"logging": Payload(os.system, touch)},
        "in the weights": {"network_weights": {"a": Payload(os.system, touch)}},
        "Popen": {"extra": Payload(subprocess.Popen, ["touch", str(marker)])},
        "eval": {"extra": Payload(eval, f"open({str(marker)!r}, 'w')")},
        "nested": {"init_args": {"configuration": [Payload(exec, f"open({str(marker)!r}, 'w')")]}},
        "loads": {"extra": Payload(pickle.loads, pickle.dumps(Payload(os.system, touch)))},
    }


def assert_refused(source: Path, target: Path, *words: str, error: type[VoxelmillError] = RefusedError) -> str:
    """Packing ends with the error, whose text has the words, and leaves nothing."""
    with pytest.raises(error) as caught:
        pack_model(source, target)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert len(text.splitlines()) <= 12
    assert not [p for p in target.parent.iterdir() if p.name.startswith((target.name, ".unpacked"))]
    return text


@pytest.mark.parametrize("attack", pickles(Path("x")))
def test_checkpoint_that_would_run_code_is_refused(attack: str, folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    edit_checkpoint(folder, pickles(marker)[attack])
    (tmp_path / "out").mkdir()
    assert_refused(folder, tmp_path / "out" / "model", "more than weights", "--trust_model sha256:")
    assert not marker.exists()
    # The attack is a real one: loading as nnU-Net does runs it.
    content = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
    if attack == "Popen":
        content["extra"].wait()
    assert marker.exists()


def hostile_plans(marker: Path) -> dict[str, Callable[[dict[str, Any]], None]]:
    def put(place: str, **entries: Any) -> Callable[[dict[str, Any]], None]:
        def change(plans: dict[str, Any]) -> None:
            settings = settings_of(plans)
            places = {
                "plans": plans,
                "settings": settings,
                "block": settings["architecture"],
                "kwargs": settings["architecture"]["arch_kwargs"],
            }
            places[place].update(entries)

        return change

    touch = ["touch", str(marker)]
    return {
        "class os.system": put("block", network_class_name="os.system"),
        "class Popen": put("block", network_class_name="subprocess.Popen"),
        "class elsewhere": put("block", network_class_name="dynamic_network_architectures.architectures.vgg.VGG"),
        "class not text": put("block", network_class_name=["os", "system"]),
        "dropout Popen": put("kwargs", dropout_op="subprocess.Popen", dropout_op_kwargs={"args": touch}),
        "nonlin Popen": put("kwargs", nonlin="subprocess.Popen", nonlin_kwargs={"args": touch}),
        "norm": put("kwargs", norm_op="builtins.exec"),
        "conv": put("kwargs", conv_op="os.system"),
        "conv none": put("kwargs", conv_op=None),
        "block": put("kwargs", block="os.system"),
        "other import": put("block", _kw_requires_import=["strides"]),
        "unknown argument": put("kwargs", evil=1),
        "text argument": put("kwargs", strides="os.system"),
        "nested options": put("kwargs", norm_op_kwargs={"eps": {"a": 1}}),
        "endless depth": put("kwargs", n_stages=10**9),
        "normalisation": put("settings", normalization_schemes=["os.system"]),
        "resampling": put("settings", resampling_fn_data="os.system"),
        "probabilities": put("settings", resampling_fn_probabilities="subprocess.Popen"),
        "preprocessor": put("settings", preprocessor_name="EvilPreprocessor"),
        "reader": put("plans", image_reader_writer="EvilIO"),
        "label manager": put("plans", label_manager="EvilLabels"),
    }


@pytest.mark.parametrize("attack", hostile_plans(Path("x")))
def test_plans_that_name_anything_unknown_are_refused(attack: str, folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    edit_json(folder / "plans.json", hostile_plans(marker)[attack])
    (tmp_path / "out").mkdir()
    assert_refused(folder, tmp_path / "out" / "model")
    assert not marker.exists()
    if attack in ("dropout Popen", "nonlin Popen"):
        # The attack is a real one: nnU-Net runs it and only then fails.
        with pytest.raises((TypeError, AttributeError)):
            predictor_of(folder, ("0",))
        deadline = time.monotonic() + 10
        while not marker.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert marker.exists()


@pytest.mark.parametrize("attack", ["pickle", "plans", "none"])
def test_script_ends_with_the_right_code(attack: str, folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    if attack == "pickle":
        edit_checkpoint(folder, pickles(marker)["os.system"])
    elif attack == "plans":
        edit_json(folder / "plans.json", hostile_plans(marker)["dropout Popen"])
    done = subprocess.run(
        [sys.executable, ROOT / "bin" / "pack_model.py", "--model", folder, "--out", "model"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == (0 if attack == "none" else 77), done.stderr
    assert "Traceback" not in done.stderr
    assert not marker.exists()
    assert (tmp_path / "model").exists() == (attack == "none")
    assert (tmp_path / "pack_model" / "pack_model.pack_model.json").exists() == (attack == "none")


def test_unknown_trainer_is_refused_and_own_networks_are_named(folder: Path, tmp_path: Path) -> None:
    edit_checkpoint(folder, {"trainer_name": "myTrainer"})
    trust = digest_of(find_model(folder, "all", "checkpoint_final.pth"))
    assert_refused(folder, tmp_path / "model", "myTrainer", f"--trust_model {trust}")
    edit_checkpoint(folder, {"trainer_name": "nnUNet_Primus_M_Trainer"})
    assert_refused(folder, tmp_path / "model", "nnUNet_Primus_M_Trainer", error=ModelMismatchError)


def test_a_named_hash_trusts_these_files_only(folder: Path, tmp_path: Path) -> None:
    edit_checkpoint(folder, {"trainer_name": "myTrainer", "extra": Payload(len, "abc")})
    trust = digest_of(find_model(folder, "all", "checkpoint_final.pth"))
    with pytest.raises(RefusedError, match="not the one that you trust"):
        pack_model(folder, tmp_path / "model", trust="sha256:" + "0" * 64)
    _, notes = pack_model(folder, tmp_path / "model", trust=trust)
    assert "myTrainer" in notes[0]
    (folder / "dataset.json").write_text((folder / "dataset.json").read_text() + "\n")
    with pytest.raises(RefusedError, match="not the one that you trust"):
        pack_model(folder, tmp_path / "again", trust=trust)


ODD_VALUES: list[Any] = [None, True, -1, 0, 10**12, 1.5, float("nan"), "", "os.system", [], [[]], [1, 2], {}, {"a": 1}]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(entry, (*path, key))


@pytest.mark.parametrize("which", ["plans", "dataset"])
def test_every_odd_value_ends_in_an_error_of_ours_or_a_sound_model(which: str) -> None:
    files = dict(zip(("plans", "dataset"), plans_and_dataset(), strict=True))
    for path in list(leaves(files[which]))[1:]:
        for odd in ODD_VALUES:
            changed = deepcopy(files)
            place = changed[which]
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = odd
            try:
                config, _ = config_from_plans(
                    changed["plans"],
                    changed["dataset"],
                    configuration="3d_fullres",
                    trainer="nnUNetTrainer",
                    mirror_axes=(0,),
                    folds=("0",),
                )
                json.dumps(config.to_dict(), allow_nan=False)
                build_network(config)
            except VoxelmillError:
                continue
            except Exception as error:
                pytest.fail(f"{which} {path} = {odd!r}: {error!r}")


# Checkpoints of other ages, damaged and incomplete ones


def rewrite_pickle(file: Path, change: Callable[[bytes], bytes]) -> None:
    """Put a changed pickle into a checkpoint's archive."""
    with zipfile.ZipFile(file) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members:
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)


def test_numpy_1_spelling_and_every_number_type_load(folder: Path, tmp_path: Path) -> None:
    names = ["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
    edit_checkpoint(folder, {"logging": [np.dtype(name).type(1) for name in names]})
    pack_model(folder, tmp_path / "two")

    def age(data: bytes) -> bytes:
        assert b"numpy._core.multiarray\n" in data
        return data.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")

    rewrite_pickle(folder / "fold_0" / "checkpoint_final.pth", age)
    pack_model(folder, tmp_path / "one")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("value", [np.dtype("O"), np.array([1.0]), np.datetime64("2020-01-01"), np.str_("a")])
def test_other_numpy_objects_are_refused(value: Any, folder: Path, tmp_path: Path) -> None:
    edit_checkpoint(folder, {"logging": value})
    assert_refused(folder, tmp_path / "model")


def test_old_file_format_of_torch_loads(folder: Path, tmp_path: Path) -> None:
    pack_model(folder, tmp_path / "new")
    file = folder / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(file, weights_only=False), file, _use_new_zipfile_serialization=False)
    pack_model(folder, tmp_path / "old")
    assert contents(tmp_path / "new") == contents(tmp_path / "old")


@pytest.mark.filterwarnings("ignore:.*TorchScript")
def test_torchscript_and_compressed_archives_are_refused(folder: Path, tmp_path: Path) -> None:
    file = folder / "fold_0" / "checkpoint_final.pth"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    assert_refused(folder, tmp_path / "model", "unpacks to")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/constants.pkl", b"x")
        archive.writestr("archive/data.pkl", b"x")
        archive.writestr("archive/version", b"3\n")
    assert_refused(folder, tmp_path / "model", "more than weights")


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_cut_checkpoint_is_an_error(keep: float, folder: Path, tmp_path: Path) -> None:
    file = folder / "fold_0" / "checkpoint_final.pth"
    file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])
    assert_refused(folder, tmp_path / "model", "damaged", error=BadDataError)


def test_weights_that_are_not_finite_or_do_not_fit_are_errors(folder: Path, tmp_path: Path) -> None:
    file = folder / "fold_0" / "checkpoint_final.pth"
    weights = torch.load(file, weights_only=False)["network_weights"]
    name = next(iter(weights))
    edit_checkpoint(folder, {"network_weights": {key: tensor * float("nan") for key, tensor in weights.items()}})
    assert_refused(folder, tmp_path / "model", "not finite", error=BadDataError)
    edit_checkpoint(folder, {"network_weights": {**weights, name: weights[name][:1]}})
    assert_refused(folder, tmp_path / "model", "do not fit", name, error=ModelMismatchError)
    edit_checkpoint(folder, {"network_weights": weights})
    edit_json(folder / "dataset.json", lambda dataset: dataset["labels"].update(more=3))
    assert_refused(folder, tmp_path / "model", "do not fit", error=ModelMismatchError)


@pytest.mark.parametrize(
    "content", [[], {"state_dict": {}}, {"network_weights": {}}, {"network_weights": {"a": 1}, "trainer_name": "x"}]
)
def test_checkpoints_of_something_else_are_errors(content: Any, folder: Path, tmp_path: Path) -> None:
    torch.save(content, folder / "fold_0" / "checkpoint_final.pth")
    with pytest.raises((BadDataError, ModelMismatchError)):
        pack_model(folder, tmp_path / "model")


# Folders


def test_missing_pieces_name_what_is_there_and_what_to_pass(folder: Path, tmp_path: Path) -> None:
    def refused(source: Path, *words: str, **options: Any) -> None:
        with pytest.raises(ModelMismatchError) as caught:
            pack_model(source, tmp_path / "model", **options)
        assert all(word in str(caught.value) for word in words), str(caught.value)

    refused(folder / "fold_0", "checkpoint_final.pth", f"--model {folder}")
    refused(folder / "fold_0" / "checkpoint_final.pth", f"--model {folder}")
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "staged").symlink_to(folder / "fold_0")
    refused(tmp_path / "task" / "staged", f"--model {folder}")
    refused(tmp_path, "pass one of", str(folder))
    refused(folder, "no fold 3", "folds out of 0", folds="3")
    refused(folder, "no checkpoint_best.pth", "checkpoint_final.pth", checkpoint="checkpoint_best.pth")
    (folder / "fold_1").mkdir()
    (folder / "fold_1" / "checkpoint_best.pth").touch()
    refused(folder, "fold_1 has no checkpoint_final.pth", "checkpoint_best.pth", "--folds 0")
    pack_model(folder, tmp_path / "good", folds="0")
    for options in ({"folds": "0,x"}, {"folds": "0,0"}, {"folds": "../0"}, {"checkpoint": "../a.pth"}):
        with pytest.raises(UsageError):
            pack_model(folder, tmp_path / "model", **options)
    (folder / "dataset.json").rename(folder / "other.json")
    refused(folder, "lacks dataset.json", "other.json")
    (folder / "plans.json").unlink()
    refused(folder, "lacks plans.json, dataset.json")
    with pytest.raises(VoxelmillError) as caught:
        pack_model(tmp_path / "nowhere", tmp_path / "model")
    assert caught.value.code == 66


def test_fold_all_is_a_fold_of_that_name(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "in", patch_size=SMALL, features=(4, 8), folds=("10", "2", "all"))
    assert pack_model(folder, tmp_path / "a")[0].folds == ("2", "10", "all")
    assert pack_model(folder, tmp_path / "b", folds="fold_all")[0].folds == ("all",)
    assert pack_model(folder, tmp_path / "c", folds="10,2")[0].folds == ("2", "10")


def test_folds_of_different_trainings_are_an_error(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "in", patch_size=SMALL, features=(4, 8), folds=("0", "1"))
    edit_checkpoint(folder, {"trainer_name": "nnUNetTrainerNoDA"})
    assert_refused(folder, tmp_path / "model", "differ in trainer", "nnUNetTrainerNoDA", error=ModelMismatchError)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"previous_stage": "3d_lowres"}, ("cascade", "3d_lowres")),
        ({"use_mask_for_norm": [True]}, ("use_mask_for_norm",)),
        ({"patch_size": [8, 8]}, ("Conv3d", "2d")),
    ],
)
def test_models_of_other_kinds_are_refused_by_name(
    changes: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    folder = make_model_folder(tmp_path / "in", patch_size=SMALL, features=(4, 8), configuration_changes=changes)
    assert_refused(folder, tmp_path / "model", *words, error=ModelMismatchError)


@pytest.mark.parametrize(
    ("reader", "spacing", "wanted", "unit"),
    [
        ("SimpleITKIO", (1, 1, 1), "auto", "mm"),
        ("NibabelIOWithReorient", (2, 1, 1), "auto", "mm"),
        ("NibabelIO", (2, 1, 1), "um", "um"),
        ("Tiff3DIO", (2, 1, 1), "um", "um"),
        ("Tiff3DIO", (2, 1, 1), "mm", "mm"),
        ("Tiff3DIO", (2, 1, 1), "none", "none"),
        ("Tiff3DIO", (1, 1, 1), "auto", "none"),
        ("Tiff3DIO", (2, 1, 1), "auto", None),
        ("NaturalImage2DIO", (2, 1, 1), "auto", None),
    ],
)
def test_spacing_unit(reader: str, spacing: tuple[float, ...], wanted: str, unit: str | None, tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "in", patch_size=SMALL, features=(4, 8), reader=reader, spacing=spacing)
    if unit is None:
        assert_refused(folder, tmp_path / "model", "--model_spacing_unit um", error=ModelMismatchError)
        return
    config, notes = pack_model(folder, tmp_path / "model", spacing_unit=wanted)
    assert config.spacing_unit == unit
    assert bool(notes) == (unit == "none" and wanted == "auto")


# Zips


def zip_of(folder: Path, file: Path, prefix: str = "Dataset900_Random/nnUNetTrainer__nnUNetPlans__3d_fullres/") -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents(folder).items():
            archive.writestr(prefix + name, data)
    return file


@pytest.mark.parametrize("prefix", ["", "model/", "Dataset900_Random/nnUNetTrainer__nnUNetPlans__3d_fullres/"])
def test_zip_of_a_model_packs_to_the_same_bytes(prefix: str, folder: Path, tmp_path: Path) -> None:
    pack_model(folder, tmp_path / "a")
    pack_model(zip_of(folder, tmp_path / "m.zip", prefix), tmp_path / "b")
    pack_model(zip_of(tmp_path / "a", tmp_path / "p.zip", prefix), tmp_path / "c")
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")
    assert not list(tmp_path.glob(".unpacked*"))


def member(name: str, kind: int = stat.S_IFREG) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o644) << 16
    return info


def zip_attacks() -> dict[str, list[tuple[zipfile.ZipInfo, bytes]]]:
    link = member("fold_0/checkpoint_best.pth", stat.S_IFLNK)
    return {
        "parent": [(member("../plans.json"), b"{}")],
        "parent inside": [(member("a/../../plans.json"), b"{}")],
        "absolute": [(member("/tmp/voxelmill_marker.pth"), b"{}")],
        "drive": [(member("C:/x.pth"), b"{}")],
        "backslash": [(member("..\\x.pth"), b"{}")],
        "newline": [(member("a\nb.pth"), b"{}")],
        "dot": [(member("./plans.json"), b"{}")],
        "empty part": [(member("a//plans.json"), b"{}")],
        "link": [(link, b"/etc/passwd")],
        "fifo": [(member("fold_0/x.pth", stat.S_IFIFO), b"")],
        "duplicate": [(member("plans.json"), b"{}")],
        "case clash": [(member("Plans.json"), b"{}")],
        "unicode clash": [(member("caf\u00e9.pth"), b"1"), (member("cafe\u0301.pth"), b"2")],
        "file and folder": [(member("fold_0"), b"{}")],
        "many": [(member(f"f{i}"), b"") for i in range(source_module.MAX_MEMBERS)],
    }


@pytest.mark.parametrize("attack", zip_attacks())
def test_hostile_zip_is_refused_and_nothing_is_written(attack: str, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    target.mkdir(parents=True)
    file = zip_of(folder, tmp_path / "m.zip", "")
    with warnings.catch_warnings(), zipfile.ZipFile(file, "a") as archive:
        warnings.simplefilter("ignore")
        for info, data in zip_attacks()[attack]:
            archive.writestr(info, data)
    before = set(contents(tmp_path))
    assert_refused(file, target / "model")
    assert set(contents(tmp_path)) == before
    assert not Path("/tmp/voxelmill_marker.pth").exists()


def test_zip_bombs_are_refused_and_inner_zips_stay_closed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = zip_of(folder, tmp_path / "inner.zip", "")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.write(inner, "inner.zip")
    assert_refused(tmp_path / "outer.zip", tmp_path / "model", "no model", error=ModelMismatchError)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("fold_0/checkpoint_final.pth", bytes(4 << 20))
    monkeypatch.setattr(source_module, "MAX_EXTRA_BYTES", 1 << 20)
    assert_refused(tmp_path / "bomb.zip", tmp_path / "model", "unpacks to")


def test_zip_that_lies_about_its_sizes_or_is_damaged_is_an_error(folder: Path, tmp_path: Path) -> None:
    file = zip_of(folder, tmp_path / "m.zip")
    data = bytearray(file.read_bytes())
    data[200:260] = bytes(60)
    file.write_bytes(data)
    assert_refused(file, tmp_path / "model", error=BadDataError)


def test_zip_with_two_models_names_them(folder: Path, tmp_path: Path) -> None:
    file = zip_of(folder, tmp_path / "m.zip", "one/")
    with zipfile.ZipFile(file, "a") as archive:
        for name, data in contents(folder).items():
            archive.writestr("two/" + name, data)
    assert_refused(file, tmp_path / "model", "one", "two", "unzip", error=ModelMismatchError)


# Packages


def test_packing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "in", patch_size=SMALL, features=(4, 8), folds=("0", "1"))
    (folder / "README.md").write_text("A model.\n")
    for name in ("a", "b"):
        pack_model(folder, tmp_path / name)
    pack_model(tmp_path / "a", tmp_path / "c")
    first = contents(tmp_path / "a")
    assert first == contents(tmp_path / "b") == contents(tmp_path / "c")
    assert sorted(first) == [
        "card.md", "dataset.json", "fingerprint.json", "fold_0.safetensors", "fold_1.safetensors", "manifest.json",
        "model.json", "plans.json",
    ]  # fmt: skip
    assert first["plans.json"] == (folder / "plans.json").read_bytes()


def test_package_can_be_passed_on_with_fewer_folds_and_another_unit(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "in", patch_size=SMALL, features=(4, 8), folds=("0", "1"))
    pack_model(folder, tmp_path / "a")
    config, _ = pack_model(tmp_path / "a", tmp_path / "b", folds="1", spacing_unit="um")
    assert (config.folds, config.spacing_unit) == (("1",), "um")
    assert load_config(tmp_path / "b") == config
    assert "fold_0.safetensors" not in contents(tmp_path / "b")
    with pytest.raises(ModelMismatchError, match="no fold 7"):
        pack_model(tmp_path / "a", tmp_path / "c", folds="7")


def postprocessing(*labels: int) -> str:
    """What nnU-Net writes, in short."""
    names = ["remove_all_but_largest_component_from_segmentation"] * len(labels)
    kwargs = [{"labels_or_regions": label} for label in labels]
    return json.dumps({"postprocessing_fns": names, "postprocessing_kwargs": kwargs, "input_folder": {"mean": {}}})


def test_post_processing_is_packed_from_where_nnunet_leaves_it(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "in", patch_size=SMALL, features=(4, 8), folds=("0", "1"))
    crossval = {name: folder / f"crossval_results_folds_{name}" for name in ("0_1", "0_1_2_3_4", "0")}
    for path in crossval.values():
        path.mkdir()
        # opening it would fail
        (path / "postprocessing.pkl").write_bytes(b"no pickle")
    packed: list[list[str]] = []

    def steps(source: Path = folder, **options: Any) -> str:
        target = tmp_path / f"packed{len(packed)}"
        packed.append(pack_model(source, target, **options)[1])
        file = target / "postprocessing.json"
        if not file.exists():
            return ""
        assert sorted(json.loads(file.read_text())) == ["postprocessing_fns", "postprocessing_kwargs"]
        assert json.loads((target / "manifest.json").read_text())["files"]["postprocessing.json"]
        return ",".join(
            str(kwargs["labels_or_regions"]) for kwargs in json.loads(file.read_text())["postprocessing_kwargs"]
        )

    assert steps() == "" and "not opened" in packed[-1][0]
    (crossval["0_1_2_3_4"] / "postprocessing.json").write_text(postprocessing(1, 2))
    assert steps() == "[1],[2]" and "folds 0,1,2,3,4" in packed[-1][0]
    (crossval["0"] / "postprocessing.json").write_text(postprocessing(2))
    assert steps() == "" and "2 post-processings" in packed[-1][0]
    assert steps(folds="0") == "[2]" and packed[-1] == []
    (crossval["0_1"] / "postprocessing.json").write_text(postprocessing(2, 1))
    assert steps() == "[2],[1]" and packed[-1] == []
    (folder / "postprocessing.json").write_text(postprocessing(1))
    assert steps() == "[1]" and packed[-1] == []
    before = len(packed) - 1
    steps(zip_of(folder, tmp_path / "m.zip"))
    steps(tmp_path / f"packed{before}")
    steps(zip_of(tmp_path / f"packed{before}", tmp_path / "p.zip"))
    assert contents(tmp_path / f"packed{before}") == contents(tmp_path / f"packed{before + 1}")
    assert contents(tmp_path / f"packed{before}") == contents(tmp_path / f"packed{before + 2}")
    assert contents(tmp_path / f"packed{before}") == contents(tmp_path / f"packed{before + 3}")


def test_post_processing_that_is_not_known_or_not_the_models_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "postprocessing.json").write_text(postprocessing(1).replace("remove_all_but", "os.system"))
    assert "os.system" in assert_refused(folder, tmp_path / "a", "post-processing function")
    (folder / "postprocessing.json").write_text(postprocessing(7))
    assert_refused(folder, tmp_path / "a", "has not: 7", error=ModelMismatchError)
    (folder / "postprocessing.json").write_text("[" * 100_000)
    assert_refused(folder, tmp_path / "a", "not readable as JSON", error=BadDataError)
    (folder / "postprocessing.json").write_text(postprocessing(1))
    pack_model(folder, tmp_path / "b")
    text = (tmp_path / "b" / "postprocessing.json").read_bytes()
    (tmp_path / "b" / "postprocessing.json").write_bytes(text.replace(b"1", b"2"))
    assert_refused(tmp_path / "b", tmp_path / "c", "changed after packing")


@pytest.mark.parametrize("name", ["model.json", "plans.json", "fold_0.safetensors"])
def test_flipped_byte_is_noticed(name: str, package: Path, tmp_path: Path) -> None:
    config = load_config(package)
    data = bytearray((package / name).read_bytes())
    data[len(data) // 2] ^= 1
    (package / name).write_bytes(data)
    with pytest.raises(RefusedError, match="changed after packing"):
        load_networks(package, load_config(package))
    with pytest.raises(RefusedError, match="changed after packing"):
        pack_model(package, tmp_path / "again")
    if name.endswith("safetensors"):
        with pytest.raises(RefusedError, match="changed after packing"):
            load_networks(package, config)


def test_incomplete_or_hostile_packages_are_errors(package: Path, tmp_path: Path) -> None:
    def edited(change: Callable[[dict[str, Any]], None]) -> Path:
        """A copy with another model.json and a manifest that agrees with it."""
        from voxelmill.model.package import new_package

        copy = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        with new_package(copy) as writer:
            for name, data in contents(package).items():
                if name != "manifest.json":
                    value = json.loads(data) if name == "model.json" else None
                    if value is not None:
                        change(value)
                    writer.add(name, data if value is None else json.dumps(value).encode())
        return copy

    def hostile(value: dict[str, Any]) -> None:
        value["architecture"]["kwargs"]["nonlin"] = "subprocess.Popen"

    with pytest.raises(RefusedError, match="unknown class for nonlin"):
        load_config(edited(hostile))
    with pytest.raises(BadDataError, match="fields missing or unknown"):
        load_config(edited(lambda value: value.pop("labels")))
    with pytest.raises(BadDataError, match="wrong kind"):
        load_config(edited(lambda value: value.update(resampling_data=None)))
    with pytest.raises(ModelMismatchError, match=r"lacks fold_1\.safetensors"):
        load_config(edited(lambda value: value.update(folds=["0", "1"])))
    with pytest.raises(BadDataError):
        load_config(edited(lambda value: value.update(folds=["../0"])))
    manifest = json.loads((package / "manifest.json").read_text())
    manifest["files"]["../../evil"] = "0"
    (package / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RefusedError, match="evil"):
        load_config(package)
    with pytest.raises(ModelMismatchError, match="not a packed model"):
        load_config(tmp_path)


def test_missing_file_of_a_package_is_named(package: Path) -> None:
    (package / "fold_0.safetensors").unlink()
    with pytest.raises(ModelMismatchError, match=r"lacks fold_0\.safetensors"):
        load_config(package)


def test_existing_target_is_not_touched(folder: Path, package: Path) -> None:
    before = contents(package)
    with pytest.raises(UsageError, match="exists already"):
        pack_model(folder, package)
    assert contents(package) == before


@pytest.mark.parametrize("version", ["2.9.1", "2.5.0+cu121", "1.13.1"])
def test_old_torch_opens_nothing(version: str) -> None:
    with pytest.raises(DeviceAbsentError, match="too old"):
        check_torch(version)
    check_torch("2.10.0a0")
    check_torch("2.15.0+cpu")


def test_damaged_safetensors_is_an_error() -> None:
    for data in (b"", bytes(8), encode_weights({"a": torch.ones(3)})[:-1], io.BytesIO(b"{}").getvalue()):
        with pytest.raises(BadDataError, match="not a weights file"):
            read_weights(data, "x")


@pytest.mark.parametrize("plans", sorted((ROOT / "assets").rglob("plans.json")), ids=lambda plans: plans.parent.name)
def test_models_that_come_along_are_what_their_pages_say(plans: Path, tmp_path: Path) -> None:
    config = pack_model(plans.parent, tmp_path / "package", spacing_unit="um")[0]
    (network,) = load_networks(tmp_path / "package", config)
    page = (plans.parent / "README.md").read_text()
    assert f" {sum(weights.numel() for weights in network.parameters()):,} float32 weights" in page
    assert f"patch {config.patch_size[0]}" in page
