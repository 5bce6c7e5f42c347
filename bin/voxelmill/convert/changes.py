"""What a request does to the image and the labels of one sample, as views: nothing is read but headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxelmill.convert.align import align
from voxelmill.convert.border_core import BorderCore, border_core
from voxelmill.convert.geometry import Geometry, disagree, repaired, rescaled, respaced
from voxelmill.convert.request import Request
from voxelmill.convert.resampling import resample, resample_labels
from voxelmill.convert.views import crop, describe, pick, reorient, without_size
from voxelmill.formats.base import ImageSource
from voxelmill.formats.spacing import Triple
from voxelmill.formats.world import orientation
from voxelmill.image import Box

GIVEN = ("samplesheet", "--spacing")
"""Where a spacing comes from that replaces the file's."""

UNIT = "--unit"
"""The file's own numbers, in another unit."""

STEEP = 2.0
"""Times larger voxels from which interpolation leaves out voxels of the old image."""


@dataclass(frozen=True)
class Spec:
    """What CHECK_INPUT decided about a sample.

    Attributes
    ----------
    channels : tuple of int
        Of a single file; of several files each is one.
    spacing : tuple of float
        Micrometres along z, y, x.
    unit : str
        ``um``, or ``pixel`` for an image without physical size.
    origin : str
        Where the spacing comes from.
    box : tuple or None
        In voxels of the file.
    """

    channels: tuple[int, ...]
    spacing: Triple
    unit: str
    origin: str
    box: Box | None

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Spec:
        """From an entry of ``samples.json``."""
        z, y, x = entry["spacing"]
        box = entry["box"]
        return cls(
            channels=tuple(entry["channel"]),
            spacing=(z, y, x),
            unit=entry["unit"],
            origin=entry["spacing_origin"],
            box=None if box is None else tuple((start, stop) for start, stop in box),
        )


@dataclass(frozen=True)
class Changed:
    """An image and its labels as they will be written, and what was done, in words."""

    image: ImageSource
    labels: ImageSource | None
    changes: tuple[str, ...]
    warnings: tuple[str, ...]

    def seen(self) -> list[str]:
        """Warnings about what the labels turned out to be; to be asked once they were read."""
        if not isinstance(self.labels, BorderCore):
            return []
        bare, every = self.labels.without_core()
        if not bare:
            return []
        return [
            f"{bare} of {every} instances are too thin for a core: a model learns nothing of them; a smaller "
            "--border_core, or a smaller --target_spacing, leaves more of them one"
        ]


def change(images: Sequence[ImageSource], labels: ImageSource | None, request: Request, spec: Spec) -> Changed:
    """All changes of a sample, in a fixed order: header, spacing, box, labels onto the image, orientation, resampling,
    cores and borders.

    Parameters
    ----------
    images : sequence of ImageSource
        One file with all channels, or one per channel.
    labels : ImageSource or None
        On the image's voxels, unless they are to be aligned.
    request : Request
    spec : Spec

    Raises
    ------
    BadDataError
        Where something that is asked for has no meaning for this image.
    """
    done: list[str] = []
    warnings: list[str] = []
    image = pick(images, spec.channels)
    if list(spec.channels) != list(range(images[0].shape[0])) and len(images) == 1:
        done.append(f"channels {', '.join(map(str, spec.channels))}")
    if disagree(image.forms, image.shape[1:]) and request.repair_header is None:
        warnings.append(
            "qform and sform of the header put the image at different places: the sform is used; --repair_header "
            "qform or sform writes one of them into both"
        )
    if request.repair_header is not None:
        image = describe(image, repaired(Geometry.of(image), request.repair_header))
        done.append(f"header from {request.repair_header}")
    image, told = with_spacing(image, spec)
    done += told
    aligned = labels is not None and request.align_labels
    if labels is not None and not aligned:
        labels = describe(labels, Geometry.of(image))
    if spec.box is not None:
        image = crop(image, spec.box)
        labels = labels if labels is None or aligned else crop(labels, spec.box)
        done.append("box " + ",".join(f"{start}:{stop}" for start, stop in spec.box))
    if labels is not None and aligned:
        image, labels, told = align(image, labels, request.label_resampling)
        done.append("labels and image on one grid")
        warnings += told
    before = orientation(image.affine)
    if request.codes is not None and request.codes != before:
        image = reorient(image, request.codes)
        labels = None if labels is None else reorient(labels, request.codes)
        done.append(f"orientation {before} to {request.codes}")
    target = request.target
    if target is not None:
        other = resample(image, target, request.order)
        if other is not image:
            done.append(f"spacing {shown(image.spacing)} to {shown(other.spacing)} um (order {request.order})")
            warnings += steep(image.spacing, other.spacing, request.order)
            if labels is not None:
                labels = resample_labels(labels, target, request.label_resampling)
                done.append(f"labels by {request.label_resampling}")
        image = other
    thickness = request.thickness
    if labels is not None and thickness is not None:
        labels = border_core(labels, thickness)
        done.append(f"instances to core and border ({thickness})")
    return Changed(image, labels, tuple(done), tuple(warnings))


def with_spacing(image: ImageSource, spec: Spec) -> tuple[ImageSource, list[str]]:
    """The image with the spacing that was chosen for it, and what that changed."""
    if spec.unit == "pixel":
        return (image, []) if image.spacing is None else (without_size(image), ["physical size removed"])
    if spec.origin == UNIT and image.spacing is not None:
        factor = spec.spacing[0] / image.spacing[0]
        return describe(image, rescaled(Geometry.of(image), factor)), [f"unit: all lengths times {factor:g}"]
    if spec.origin in GIVEN:
        changed = describe(image, respaced(Geometry.of(image), spec.spacing))
        same = image.affine is None or changed.affine is None or np.allclose(image.affine, changed.affine, atol=0)
        if spec.spacing != image.spacing or not same:
            return changed, [f"spacing set to {shown(spec.spacing)} um"]
    return image, []


def steep(old: Triple | None, new: Triple | None, order: str) -> list[str]:
    """A warning where points are taken out of an image so far apart that voxels between them do not count."""
    if order == "area" or old is None or new is None:
        return []
    factor = max(b / a for a, b in zip(old, new, strict=True))
    if factor <= STEEP:
        return []
    return [
        f"voxels become {factor:.3g} times larger and --order {order} looks at the old ones around each centre only; "
        "--order area takes the mean of all underneath"
    ]


def shown(spacing: Triple | None) -> str:
    return " x ".join(f"{size:.6g}" for size in spacing or ())
