"""The oracle: nnU-Net's own preprocessing, grid, weights, network and export, with float64 sums of the whole volume."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ZScoreNormalization
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

HALF_UNIT = 2.0**-11
HALF_SUBNORMAL = 2.0**-25


@dataclass
class Reference:
    """Labels (z, y, x) of the oracle and of stock nnU-Net, and how sure the oracle is.

    ``margin`` is the distance of each voxel's logits to a change of label, on the source grid; ``rounding`` the largest
    error that summing in float16 can put on the difference of two of its logits. ``probabilities`` (heads, z, y, x) are
    those that nnU-Net's exporter makes of the oracle's logits.
    """

    labels: np.ndarray
    stock: np.ndarray
    margin: np.ndarray
    rounding: np.ndarray
    means: list[float]
    stds: list[float]
    probabilities: np.ndarray | None = None


def predictor(folder: Path, folds: tuple[str, ...], mirroring: bool, step_size: float) -> nnUNetPredictor:
    """nnU-Net's predictor on the CPU."""
    result = nnUNetPredictor(
        tile_step_size=step_size,
        use_gaussian=True,
        use_mirroring=mirroring,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        verbose=False,
        allow_tqdm=False,
    )
    use = tuple("all" if fold == "all" else int(fold) for fold in folds)
    result.initialize_from_trained_model_folder(str(folder), use, "checkpoint_final.pth")
    return result


class PlannedZScore(ZScoreNormalization):
    """nnU-Net's z-score with the mean and standard deviation of our plan."""

    constants: ClassVar[list[tuple[float, float]]] = []
    measured: ClassVar[list[tuple[float, float]]] = []

    def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
        type(self).measured.append((float(image.mean()), float(image.std())))
        mean, std = type(self).constants[len(type(self).measured) - 1]
        image = image.astype(np.float32, copy=False)
        image -= np.float32(mean)
        image /= np.float32(max(std, 1e-8))
        return image


class PlannedPreprocessor(DefaultPreprocessor):
    """nnU-Net's preprocessor with :class:`PlannedZScore` in place of its z-score."""

    def _normalize(self, data, seg, configuration_manager, properties):  # type: ignore[no-untyped-def]
        for channel, scheme in enumerate(configuration_manager.normalization_schemes):
            if scheme == "ZScoreNormalization":
                normalizer = PlannedZScore(False, properties[str(channel)])
                data[channel] = normalizer.run(data[channel], seg[0])
            else:
                one = type(configuration_manager)(
                    {**configuration_manager.configuration, "normalization_schemes": [scheme]}
                )
                data[channel : channel + 1] = super()._normalize(
                    data[channel : channel + 1], seg, one, {"0": properties[str(channel)]}
                )
        return data


@torch.inference_mode()
def predict_reference(
    folder: Path,
    image: np.ndarray,
    spacing: tuple[float, float, float],
    statistics: list[tuple[float, float]],
    folds: tuple[str, ...] = ("0",),
    mirroring: bool = False,
    step_size: float = 0.5,
    kernels: Callable[[torch.nn.Module], torch.nn.Module] = lambda network: network,
    stock: bool = True,
) -> Reference:
    """Whole-volume prediction.

    Parameters
    ----------
    folder : Path
        nnU-Net result folder.
    image : ndarray (channels, z, y, x)
    spacing : tuple
        Of z, y, x in the model's unit.
    statistics : list of (mean, std)
        The plan's, one per channel with z-score.
    kernels : callable
        Makes the oracle's network run in the convolution kernels that the tiles use; stock nnU-Net keeps its own.
    stock : bool
        Whether to predict with stock nnU-Net as well, which takes several times as long.
    """
    nnunet = predictor(folder, folds, mirroring, step_size)
    plans, configuration, labels = nnunet.plans_manager, nnunet.configuration_manager, nnunet.label_manager
    network = nnunet.network
    PlannedZScore.constants, PlannedZScore.measured = list(statistics), []
    data, _, properties = PlannedPreprocessor(verbose=False).run_case_npy(
        image.astype(np.float32), None, {"spacing": list(spacing)}, plans, configuration, nnunet.dataset_json
    )
    tensor, revert = pad_nd_image(torch.from_numpy(data), configuration.patch_size, "constant", {"value": 0}, True)
    gaussian = compute_gaussian(tuple(configuration.patch_size), value_scaling_factor=10, device=torch.device("cpu"))
    total = error = None
    for parameters in nnunet.list_of_parameters:
        network.load_state_dict(parameters)
        nnunet.network = kernels(copy.deepcopy(network).eval())
        sums = torch.zeros((labels.num_segmentation_heads, *tensor.shape[1:]), dtype=torch.float64)
        sizes = torch.zeros_like(sums)
        weights = torch.zeros(tensor.shape[1:], dtype=torch.float64)
        terms = torch.zeros_like(weights)
        for window in nnunet._internal_get_sliding_window_slicers(tensor.shape[1:]):
            x = torch.clone(tensor[window][None], memory_format=torch.contiguous_format)
            logits = nnunet._internal_maybe_mirror_and_predict(x)[0]
            sums[window] += logits.double() * gaussian.double()
            sizes[window] += logits.double().abs() * gaussian.double()
            weights[window[1:]] += gaussian.double()
            terms[window[1:]] += 1
        normalised = sums / weights
        # every addition rounds to 11 bits or to the spacing of subnormals; then the quotient and the fold mean round
        added = terms * (HALF_UNIT * sizes + HALF_SUBNORMAL) / weights + 3 * HALF_UNIT * normalised.abs()
        total = normalised if total is None else total + normalised
        error = added if error is None else error + added
    assert total is not None and error is not None
    total = (total / len(nnunet.list_of_parameters))[(slice(None), *revert[1:])]
    error = (error / len(nnunet.list_of_parameters))[(slice(None), *revert[1:])]

    def export(logits: torch.Tensor, probabilities: bool = False):  # type: ignore[no-untyped-def]
        return convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, plans, configuration, labels, dict(properties), probabilities, num_threads_torch=1
        )

    nnunet.network = network
    half = nnunet.predict_logits_from_preprocessed_data(torch.from_numpy(data)) if stock else total
    margin = margins(total, labels.has_regions)
    rounding = 2 * error.amax(0).numpy()
    as_source = _to_source(plans, properties)
    return Reference(
        labels=export(total),
        stock=export(half),
        margin=as_source(margin),
        rounding=as_source(rounding),
        means=[mean for mean, _ in PlannedZScore.measured],
        stds=[std for _, std in PlannedZScore.measured],
        probabilities=export(total.clone(), probabilities=True)[1],
    )


def margins(logits: torch.Tensor, regions: bool) -> np.ndarray:
    """Distance to another label, per voxel of the network grid."""
    if regions:
        return logits.abs().amin(0).numpy()
    best = logits.topk(2, dim=0).values
    return (best[0] - best[1]).numpy()


def _to_source(plans, properties):  # type: ignore[no-untyped-def]
    """Nearest-neighbour paste of a network-grid array into the source grid (z, y, x); infinite outside the crop."""

    def convert(array: np.ndarray) -> np.ndarray:
        shape = properties["shape_after_cropping_and_before_resampling"]
        index = [
            np.minimum((np.arange(n) + 0.5) * m / n, m - 1).astype(int) for n, m in zip(shape, array.shape, strict=True)
        ]
        result = np.full(properties["shape_before_cropping"], np.inf)
        box = tuple(slice(a, b) for a, b in properties["bbox_used_for_cropping"])
        result[box] = array[np.ix_(*index)]
        return result.transpose(plans.transpose_backward)

    return convert
