"""nnU-Net's built-in normalisation of one channel, with the constants of the plan.

Source: ``default_normalization_schemes.py`` of nnU-Net 2.8.1. The order of the float32 operations is nnU-Net's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

EPSILON = 1e-8


def normalise(values: np.ndarray, scheme: dict[str, Any]) -> np.ndarray:
    """Normalise float32 values in place and return them.

    Parameters
    ----------
    values : ndarray of float32, any shape
    scheme : dict
        ``name`` and the constants that this scheme needs; those of the whole image, never of ``values``.
    """
    name = scheme["name"]
    if name == "ZScoreNormalization":
        values -= np.float32(scheme["mean"])
        values /= np.float32(max(scheme["std"], EPSILON))
    elif name == "CTNormalization":
        np.clip(values, scheme["percentile_00_5"], scheme["percentile_99_5"], out=values)
        values -= scheme["mean"]
        values /= max(scheme["std"], EPSILON)
    elif name == "RescaleTo01Normalization":
        low = np.float32(scheme["minimum"])
        values -= low
        values /= np.maximum(np.float32(scheme["maximum"]) - low, np.float32(EPSILON))
    elif name == "RGBTo01Normalization":
        values /= np.float32(255)
    return values
