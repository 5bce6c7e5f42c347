"""Whether labels lie over their image: positions that files give, and formats that do not keep labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import SimpleITK

from images import noise
from voxelmill.errors import BadDataError
from voxelmill.formats import open_image
from voxelmill.formats.base import ImageSource
from voxelmill.overlay import compare_origins, refuse_position, refuse_type


def nifti(path: Path, affine: np.ndarray, *, code: int = 1) -> ImageSource:
    image = nib.Nifti1Image(noise((4, 5, 6), "u1").T, affine)
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    with open_image(path) as source:
        return source


def moved(affine: np.ndarray, voxels: tuple[float, float, float]) -> np.ndarray:
    """The affine of an image that begins so many voxels (x, y, z) further on."""
    found = affine.copy()
    found[:3, 3] += affine[:3, :3] @ np.array(voxels)
    return found


TURNED = np.array([[0.0, 0.0, 2.0, -90.0], [-0.5, 0.0, 0.0, 30.0], [0.0, 1.5, 0.0, 7.0], [0.0, 0.0, 0.0, 1.0]])


@pytest.mark.parametrize(("shift", "apart"), [((0.5, 0.0, 0.0), ""), ((0.0, 0.6, 0.0), "y +0.60"),
                                              ((0.0, 0.0, -1.0), "z -1.00"), ((0.1, -0.4, 0.3), "")])  # fmt: skip
def test_labels_that_begin_elsewhere(tmp_path: Path, shift: tuple, apart: str) -> None:
    image, labels = nifti(tmp_path / "a.nii", TURNED), nifti(tmp_path / "b.nii", moved(TURNED, shift))
    if apart:
        with pytest.raises(BadDataError) as caught:
            refuse_position(image, labels)
        assert apart in str(caught.value) and "mm (x, y, z)" in str(caught.value)
        refuse_position(image, nifti(tmp_path / "b.nii", moved(TURNED, shift), code=0))
    else:
        refuse_position(image, labels)


def test_nifti_and_metaimage_are_compared_in_one_world(tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(noise((4, 5, 6), "u1"))
    image.SetSpacing((0.5, 1.5, 2.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    for name in ("a.mha", "a.nii.gz", "a.nrrd"):
        SimpleITK.WriteImage(image, tmp_path / name)
    first, *others = (open_image(tmp_path / name) for name in ("a.mha", "a.nii.gz", "a.nrrd"))
    for other in others:
        refuse_position(first, other)
    image.SetOrigin((11.0, -20.0, 30.0))
    SimpleITK.WriteImage(image, tmp_path / "b.mha")
    with pytest.raises(BadDataError, match=r"x \+2.00"):
        refuse_position(others[0], open_image(tmp_path / "b.mha"))


def test_origins(tmp_path: Path) -> None:
    source = replace(nifti(tmp_path / "a.nii", np.eye(4)), affine=None, forms=(), spacing=(2.0, 1.0, 1.0))
    image, near, far = (replace(source, origin=at) for at in ((10.0, 5.0, 5.0), (11.0, 5.5, 5.0), (11.1, 5.0, 5.0)))
    refuse_position(image, near)
    assert compare_origins(image, near) == []
    with pytest.raises(BadDataError, match=r"z \+0.55(.|\n)*11.1, 5, 5 here, 10, 5, 5 there"):
        refuse_position(image, far)
    refuse_position(image, source)
    assert "only one file" in compare_origins(image, source)[0] and compare_origins(source, source) == []


def test_jpeg_labels_are_refused(tmp_path: Path) -> None:
    PIL.Image.fromarray(noise((40, 50), "u1")).save(tmp_path / "a.jpg")
    with open_image(tmp_path / "a.jpg") as source, pytest.raises(BadDataError, match="JPEG"):
        refuse_type(source, source)
