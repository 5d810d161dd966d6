"""View consistency: do pixels of two views that see the same surface get the same code?

The paper claims it and does not measure it. Raw agreement rewards a codebook that has collapsed to
one code, so agreement beyond chance is reported (Cohen's kappa).
"""

from __future__ import annotations

import math

import numpy as np

from ..correspondence import corresponding_pixels
from ..errors import EvaluationError

__all__ = ["cohens_kappa", "corresponding_pixels"]


def cohens_kappa(codes_a, codes_b) -> float:
    """Agreement of two lists of codes [n] beyond chance: (p_observed - p_chance) / (1 - p_chance).

    Pairs in which either code is -1 (no mask) are left out. NaN if no pair is left, or if both lists
    hold one and the same code throughout, where chance alone agrees and kappa is undefined.
    """
    a, b = np.asarray(codes_a).ravel(), np.asarray(codes_b).ravel()
    if a.shape != b.shape:
        raise EvaluationError(f"codes: {a.size} against {b.size}; expected one pair per correspondence")
    valid = (a >= 0) & (b >= 0)
    a, b = a[valid], b[valid]
    if not a.size:
        return math.nan
    codes, inverse = np.unique(np.concatenate([a, b]), return_inverse=True)
    share_a = np.bincount(inverse[: a.size], minlength=len(codes)) / a.size
    share_b = np.bincount(inverse[a.size :], minlength=len(codes)) / a.size
    chance = float(share_a @ share_b)
    return (float(np.mean(a == b)) - chance) / (1 - chance) if len(codes) > 1 else math.nan
