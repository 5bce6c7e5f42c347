"""Whether an image fits a model: channels, axes, spacing, shape, and the part of it to work on."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from voxelmill.convert.request import Request
from voxelmill.errors import BadDataError, Faults, ModelMismatchError, UsageError
from voxelmill.evaluation.request import Evaluation
from voxelmill.formats import ImageSource, Selection
from voxelmill.formats.spacing import Triple, checked, micrometres_per
from voxelmill.image import Box
from voxelmill.model.config import ModelConfig
from voxelmill.planning import Options, Orientation
from voxelmill.probabilities import MEMBER_TYPE
from voxelmill.samplesheet import Row, printable
from voxelmill.schedule import Estimate, estimate, estimate_together

MISMATCH, REMARKABLE = 3.0, 1.5
"""Ratios of image and model spacing that are an error and worth a warning."""

DIFFERENT = 1.01
"""Ratio of a given spacing and the file's from which on the user is told."""

PREVIEW = 256
"""Voxels of a preview on each axis; with a model it is two of its windows."""


@dataclass(frozen=True)
class CheckOptions:
    """What the user chose for all samples; a samplesheet's cells come first.

    ``selection`` is for the images of rows that choose nothing; ``spacing``, ``unit``, ``channel`` and ``box`` are the
    texts of the params, None where absent; ``workers`` is the number of CPUs. With ``convert``
    images are compared with what they shall become, with ``evaluate`` labels with the truth, and neither with a model.
    """

    selection: Selection = field(default_factory=Selection)
    channel: str | None = None
    intensity: str = "none"
    flip: str = "none"
    spacing: str | None = None
    unit: str | None = None
    box: str | None = None
    preview: bool = False
    skip_bad: bool = False
    fill_missing: bool = False
    nonfinite: str = "error"
    full: bool = False
    workers: int = 1
    convert: Request | None = None
    evaluate: Evaluation | None = None
    min_object_volume: float = 0.0
    allow_spacing_mismatch: bool = False
    plan: Options = field(default_factory=Options)


@dataclass(frozen=True)
class Fit:
    """What the check decided about a sample.

    ``spacing`` along z, y, x in micrometres, or voxels where ``unit`` is ``pixel``; ``origin`` says where it comes
    from; ``box`` in voxels of the file, None for all of it.
    """

    channels: tuple[int, ...]
    spacing: Triple
    unit: str
    origin: str
    box: Box | None
    flip: str
    intensity: str
    estimate: Estimate
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Chosen:
    """What the user chose of a sample, or its file says; as in :class:`Fit`."""

    channels: tuple[int, ...] = ()
    spacing: Triple = (1.0, 1.0, 1.0)
    unit: str = "pixel"
    origin: str = ""
    box: Box | None = None
    warnings: tuple[str, ...] = ()

    def fit(self, estimate: Estimate, warnings: Sequence[str]) -> Fit:
        """What the check decided; the flip and the intensity rule are a network's and have no meaning here."""
        return Fit(
            channels=self.channels,
            spacing=self.spacing,
            unit=self.unit,
            origin=self.origin,
            box=self.box,
            flip="none",
            intensity="none",
            estimate=estimate,
            warnings=tuple(warnings),
        )


SpacingRule = Callable[[Row, CheckOptions, Sequence[ImageSource]], tuple[Triple, str, str, list[str]]]


def chosen_of(
    row: Row, images: Sequence[ImageSource], options: CheckOptions, rule: SpacingRule, faults: Faults
) -> Chosen:
    """What is chosen of a sample for which no model decides.

    Parameters
    ----------
    row : Row
    images : sequence of ImageSource
        One file with all channels, or one per channel.
    options : CheckOptions
    rule : callable
        Spacing (z, y, x), unit, origin and warnings out of row, options and images.
    faults : Faults
        Collects what is wrong.
    """
    chosen = Chosen()
    with faults.collect():
        channels = named_channels(images, row.get("channel") or options.channel)
        chosen = replace(chosen, channels=channels)
    with faults.collect():
        spacing, unit, origin, told = rule(row, options, images)
        chosen = replace(chosen, spacing=spacing, unit=unit, origin=origin, warnings=tuple(told))
    with faults.collect():
        box, told = choose_box(images[0].shape[1:], options, (PREVIEW,) * 3)
        chosen = replace(chosen, box=box, warnings=(*chosen.warnings, *told))
    return chosen


def fit_model(
    config: ModelConfig, row: Row, files: Sequence[ImageSource], options: CheckOptions, faults: Faults
) -> Fit:
    """Compare a sample's image with the model.

    Parameters
    ----------
    config : ModelConfig
    row : Row
    files : sequence of ImageSource
        One file with all channels, or one per channel.
    options : CheckOptions
    faults : Faults
        Collects what is wrong; it is raised at the end.
    """
    first = files[0]
    warnings: list[str] = []
    channels: tuple[int, ...] = ()
    with faults.collect():
        channels = choose_channels(files, row.get("channel") or options.channel, config)
    with faults.collect():
        check_dimensions(first, config)
    spacing, unit, origin = (1.0, 1.0, 1.0), "pixel", ""
    with faults.collect():
        spacing, unit, origin, told = resolve_spacing(row, options, files)
        warnings += told
    model = model_spacing(config, first, spacing, unit)
    if origin:
        with faults.collect():
            warnings += compare_spacing(spacing, model, options.allow_spacing_mismatch)
    box: Box | None = None
    with faults.collect():
        box, told = choose_box(first.shape[1:], options, preview_size(first, config, spacing, model))
        warnings += told
    faults.raise_found()
    shape = extent_of(first, box)
    # Without a physical size nothing is resampled, as if the image had the model's spacing.
    measured = model_spacing(config, first, spacing, "um") if unit == "pixel" else spacing
    return Fit(
        channels=channels,
        spacing=spacing,
        unit=unit,
        origin=origin,
        box=box,
        flip=options.flip,
        intensity=options.intensity,
        estimate=estimate(config, shape, measured, options.plan),
        warnings=(*warnings, *compare_shape(shape, first, config)),
    )


def fit_models(
    configs: Sequence[ModelConfig], row: Row, files: Sequence[ImageSource], options: CheckOptions, faults: Faults
) -> Fit:
    """Compare a sample's image with every model; of several, the first says how it is worked on.

    Parameters
    ----------
    configs : sequence of ModelConfig
        At least one; several are averaged.
    row, files, options, faults
        As for :func:`fit_model`.
    """
    if len(configs) == 1:
        return fit_model(configs[0], row, files, options, faults)
    kept = replace(options, plan=replace(options.plan, probabilities=MEMBER_TYPE))
    fits = [fit_model(config, row, files, kept, faults) for config in configs]
    shape = extent_of(files[0], fits[0].box)
    together = estimate_together([fit.estimate for fit in fits], configs[0], shape, options.plan)
    told = tuple(dict.fromkeys(text for fit in fits for text in fit.warnings))
    return replace(fits[0], estimate=together, warnings=told)


def extent_of(source: ImageSource, box: Box | None) -> tuple[int, ...]:
    """Voxels along z, y, x that will be worked on."""
    return source.shape[1:] if box is None else tuple(stop - start for start, stop in box)


def choose_channels(sources: Sequence[ImageSource], wanted: str | None, config: ModelConfig) -> tuple[int, ...]:
    """Channels of the file in the model's order; their number must be the model's."""
    first = sources[0]
    if wanted is None and len(sources) == 1:
        if first.rgb and config.channels != 3:
            raise BadDataError(
                f"an RGB image, axes {first.axes.upper()}",
                expected=f"{config.channels} grey: {', '.join(config.channel_names)}",
                remedy="save it as a grey image, or choose one colour with --channel or the column channel",
            )
        refuse_order(first, config)
    chosen = named_channels(sources, wanted)
    if len(chosen) != config.channels:
        raise wrong_channels(describe(first, chosen) if len(sources) == 1 else [f"{len(sources)} files"], config)
    return chosen


def named_channels(sources: Sequence[ImageSource], wanted: str | None) -> tuple[int, ...]:
    """The wanted channels of a file, without a wish all of them; of several files each is one."""
    if len(sources) > 1:
        return channels_of_files(sources, wanted)
    count = sources[0].shape[0]
    return tuple(range(count)) if wanted is None else parse_channels(wanted, count, sources[0].channel_names)


def channels_of_files(sources: Sequence[ImageSource], wanted: str | None) -> tuple[int, ...]:
    """Every file is a channel."""
    if wanted is not None:
        raise BadDataError(
            "channel is given for a sample with one file per channel",
            remedy="leave out --channel and the column channel, or name a single file",
        )
    several_inside = [source.path.name for source in sources if source.shape[0] > 1]
    if several_inside:
        raise BadDataError(
            f"{printable(several_inside[0])} has several channels",
            expected="one channel per file where the sample lists several files",
        )
    return tuple(range(len(sources)))


def parse_channels(text: str, count: int, names: Sequence[str]) -> tuple[int, ...]:
    """``0``, ``-1``, ``0;2`` or names of channels -> indices from 0."""
    parts = [text] if text in names else [part.strip() for part in re.split("[;,]", text)]
    chosen = []
    for part in parts:
        index = names.index(part) if part in names else int(part) if re.fullmatch(r"-?\d{1,4}", part) else None
        if index is None or not -count <= index < count:
            raise BadDataError(
                f"there is no channel {printable(part)!r}",
                expected=f"{-count} to {count - 1}"
                + (f", or in the samplesheet one of {', '.join(map(printable, names))}" if names else ""),
            )
        chosen.append(index % count)
    return tuple(chosen)


def describe(source: ImageSource, chosen: Sequence[int]) -> list[str]:
    return [printable(source.channel_names[i]) if i < len(source.channel_names) else f"channel {i}" for i in chosen]


def refuse_order(source: ImageSource, config: ModelConfig) -> None:
    """Refuse channels that have the model's names in another order."""
    here = [name.lower() for name in source.channel_names]
    there = [name.lower() for name in config.channel_names]
    if here != there and sorted(here) == sorted(there):
        raise ModelMismatchError(
            f"the image's channels are {', '.join(source.channel_names)}",
            expected=f"{', '.join(config.channel_names)}, in this order",
            remedy=channel_remedy(here.index(name) for name in there),
        )


def channel_remedy(order: Iterable[int]) -> str:
    numbers = [str(index) for index in order]
    return f"--channel {','.join(numbers)}, or {';'.join(numbers)} in the column channel"


def wrong_channels(found: Sequence[str], config: ModelConfig) -> ModelMismatchError:
    return ModelMismatchError(
        f"{len(found)} channels in the image: {', '.join(found[:20])}",
        expected=f"{config.channels} channels of the model: {', '.join(config.channel_names)}",
        remedy=f"choose channels in the model's order, as in: {channel_remedy((0, 2))}",
    )


def check_dimensions(source: ImageSource, config: ModelConfig) -> None:
    """A plane without z goes to a 2d model only."""
    if "z" not in source.axes and config.dimensions == 3:
        raise BadDataError(
            f"a 2D image, axes {source.axes.upper()}",
            expected="axes ZYX: the model is 3D",
            remedy="use a 2d model, or name the axes of a stack in the column axes",
        )


def model_spacing(config: ModelConfig, source: ImageSource, spacing: Triple, unit: str) -> Triple:
    """The model's spacing along the image's z, y, x in micrometres; the image's own where nothing is resampled."""
    factor = micrometres_per(config.spacing_unit)
    if factor is None or unit == "pixel":
        return spacing
    own = list(spacing)
    for axis, length in zip(
        reversed(Orientation.of(config, source.affine).axes), reversed(config.spacing), strict=False
    ):
        own[axis] = length * factor
    return own[0], own[1], own[2]


def resolve_spacing(
    row: Row, options: CheckOptions, sources: Sequence[ImageSource]
) -> tuple[Triple, str, str, list[str]]:
    """Spacing (z, y, x), unit, origin and warnings: the sheet's, the param's, or the file's."""
    unit = row.get("unit") or options.unit or "um"
    text, origin = row.get("spacing"), "samplesheet"
    if text is None:
        text, origin = options.spacing, "--spacing"
    if text == "pixel" or (unit == "pixel" and text is None):
        if options.min_object_volume > 0:
            raise UsageError(
                "--min_object_volume is in cubic micrometres, and this image has no physical size",
                remedy="use --min_object_voxels",
            )
        return (1.0, 1.0, 1.0), "pixel", "no physical size", []
    file = next((source for source in sources if source.spacing is not None), None)
    if text is not None:
        if unit == "pixel":
            raise BadDataError(f"spacing {printable(text)} with unit pixel", expected="one or the other")
        spacing = parse_spacing(text, unit, origin)
        told = []
        if file is not None and ratio(spacing, file.spacing or spacing) > DIFFERENT:
            told = [
                f"{origin} gives {shown_spacing(spacing)}, the file {shown_spacing(file.spacing)}: the first is used"
            ]
        return spacing, "um", origin, told
    if file is None or file.spacing is None:
        raise BadDataError(
            "the file gives no voxel size" + "".join(f"; {text}" for text in sources[0].warnings),
            remedy="give spacing: the columns spacing (z;y;x) and unit, or --spacing z,y,x --unit um; --unit pixel for "
            "an image without physical size",
        )
    return file.spacing, "um", file.spacing_origin, []


def parse_spacing(text: str, unit: str, origin: str) -> Triple:
    """``z,y,x`` or one number for all axes, in a unit -> micrometres."""
    factor = micrometres_per(unit)
    try:
        numbers = [float(part) for part in re.split(r"[;,\s]+", text.strip())]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or factor is None:
        raise BadDataError(f"spacing {printable(text)!r} {unit}", expected="three lengths z,y,x or one for all axes")
    lengths = numbers * 3 if len(numbers) == 1 else numbers
    return checked([length * factor for length in lengths], origin=origin)


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """Largest factor between two spacings on an axis."""
    return max(max(a / b, b / a) for a, b in zip(one, other, strict=True))


def shown_spacing(spacing: Sequence[float] | None) -> str:
    return " x ".join(f"{length:.4g}" for length in spacing or ()) + " um (z, y, x)"


def compare_spacing(spacing: Triple, model: Triple, allow: bool) -> list[str]:
    """Warnings, or ModelMismatchError, where the image's voxels are not those that the model learned from."""
    factor = ratio(spacing, model)
    found = f"the spacing is {shown_spacing(spacing)}, the model's {shown_spacing(model)}: a factor of {factor:.3g}"
    if factor > MISMATCH and not allow:
        raise ModelMismatchError(
            found,
            expected=f"at most a factor of {MISMATCH:g} on each axis",
            remedy="correct --spacing, --unit or --model_spacing_unit; --allow_spacing_mismatch if both are right",
        )
    return [found] if factor > REMARKABLE else []


def compare_shape(shape: Sequence[int], source: ImageSource, config: ModelConfig) -> list[str]:
    """A warning where the image is much smaller than all that the model learned from; larger is what tiling is for."""
    trained = (config.fingerprint or {}).get("shapes_after_crop") or []
    sizes = np.array([size for size in trained if len(size) == 3], dtype=float).reshape(-1, 3)
    if not len(sizes):
        return []
    smallest = sizes.min(axis=0)
    axes = [i for i in range(3) if (i > 0 or "z" in source.axes) and shape[i] < smallest[i] / 4]
    if not axes:
        return []
    named = ", ".join(f"{'zyx'[i]} {shape[i]} (smallest {smallest[i]:g})" for i in axes)
    return [f"the image is much smaller than the model's training images: {named}"]


def preview_size(source: ImageSource, config: ModelConfig, spacing: Triple, model: Triple) -> tuple[int, ...]:
    """Two windows on each axis, in voxels of the image (z, y, x)."""
    patch = [1, *config.patch_size][-3:]
    wanted = [1, 1, 1]
    for axis, length in zip(Orientation.of(config, source.affine).axes, patch, strict=True):
        wanted[axis] = max(1, math.ceil(2 * length * model[axis] / spacing[axis]))
    return tuple(wanted)


def choose_box(size: Sequence[int], options: CheckOptions, preview: Sequence[int]) -> tuple[Box | None, list[str]]:
    """The part of an image (z, y, x) to work on, None for all of it, and warnings."""
    if options.box is not None:
        return parse_box(options.box, size)
    if not options.preview:
        return None, []
    pairs = []
    for length, wish in zip(size, preview, strict=True):
        kept = min(length, wish)
        start = (length - kept) // 2
        pairs.append((start, start + kept))
    return (pairs[0], pairs[1], pairs[2]), []


def parse_box(text: str, size: Sequence[int]) -> tuple[Box, list[str]]:
    """``z0:z1,y0:y1,x0:x1``, ends optional -> box inside the image, and a warning where it was clipped."""
    match = re.fullmatch(r"(\d*):(\d*),(\d*):(\d*),(\d*):(\d*)", text)
    if not match:
        raise BadDataError(f"box {printable(text)!r}", expected="z0:z1,y0:y1,x0:x1 in voxels")
    numbers = [int(part) if part else None for part in match.groups()]
    pairs = []
    clipped = False
    for start, stop, length in zip(numbers[::2], numbers[1::2], size, strict=True):
        first, last = start or 0, length if stop is None else min(stop, length)
        clipped |= stop is not None and stop > length
        if first >= last:
            raise BadDataError(
                f"box {text} holds no voxel of the image", expected=f"a part of {' x '.join(map(str, size))} (z, y, x)"
            )
        pairs.append((first, last))
    told = [f"box {text} reaches beyond the image: it was clipped"] if clipped else []
    return (pairs[0], pairs[1], pairs[2]), told
