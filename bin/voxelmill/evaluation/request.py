"""What is asked of an evaluation, for all samples of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Evaluation:
    """What the user chose.

    Attributes
    ----------
    ignore : int or None
        Value of the truth whose voxels count nowhere.
    """

    ignore: int | None = None
