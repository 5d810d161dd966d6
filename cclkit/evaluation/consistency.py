"""View consistency: do pixels of two views that see the same surface get the same code?

The paper claims it and does not measure it. Raw agreement rewards a codebook that has collapsed to
one code, so agreement beyond chance is reported (Cohen's kappa), and how well the similarity of
features tells pixel pairs of the same surface from pairs of different objects (AUC), which needs no
codes. Both give a collapsed codebook nothing: kappa 0, AUC 0.5.
"""

from __future__ import annotations

import math

import numpy as np

from ..errors import EvaluationError
from ..scenes.correspondence import corresponding_pixels

__all__ = ["auc", "cohens_kappa", "corresponding_pixels", "similarity_auc"]


def cohens_kappa(codes_a, codes_b) -> float:
    """Agreement of two lists of codes [n] beyond chance: (p_observed - p_chance) / (1 - p_chance).

    Pairs in which either code is -1 (no mask) are left out. NaN if no pair is left, or if both
    lists hold one and the same code throughout, where chance alone agrees and kappa is undefined.
    """
    a, b = np.asarray(codes_a).ravel(), np.asarray(codes_b).ravel()
    if a.shape != b.shape:
        raise EvaluationError(
            f"codes: {a.size} against {b.size}; expected one pair per correspondence"
        )
    valid = (a >= 0) & (b >= 0)
    a, b = a[valid], b[valid]
    if not a.size:
        return math.nan
    codes, inverse = np.unique(np.concatenate([a, b]), return_inverse=True)
    share_a = np.bincount(inverse[: a.size], minlength=len(codes)) / a.size
    share_b = np.bincount(inverse[a.size :], minlength=len(codes)) / a.size
    chance = float(share_a @ share_b)
    return (float(np.mean(a == b)) - chance) / (1 - chance) if len(codes) > 1 else math.nan


def auc(positive, negative) -> float:
    """Area under the ROC curve: the chance that a positive score [n] exceeds a negative one [m],
    ties counting half.

    NaN without scores on either side. Raises EvaluationError on scores that are not finite.
    """
    p, q = (
        np.asarray(positive, np.float64).ravel(),
        np.sort(np.asarray(negative, np.float64).ravel()),
    )
    if not (np.isfinite(p).all() and np.isfinite(q).all()):
        raise EvaluationError(
            "scores hold values that are not finite; leave pixels without a score out"
        )
    if not p.size or not q.size:
        return math.nan
    below, not_above = np.searchsorted(q, p, "left"), np.searchsorted(q, p, "right")
    return float((below + not_above).mean() / (2 * q.size))


def similarity_auc(features_a, features_b, objects, *, seed: int, others: int = 8) -> float:
    """AUC of the cosine between features of two views, same-surface against other-object pixel
    pairs.

    Row i of both is one surface point, as from `corresponding_pixels`. Every row of a is also
    compared with ``others`` rows of b that lie on other objects, drawn uniformly; rows without such
    a one give no negative pair. 1 = every same-surface pair is the more similar one, 0.5 = chance,
    as for one and the same feature everywhere.

    Args:
        features_a, features_b: [n, d], any length; a zero row (no mask there) is left out with its
        partner. objects: [n] int, the object of each surface point; -1 (unknown) is left out. seed:
        of the draw.
    Returns:
        The AUC, NaN if no same-surface or no other-object pair is left.
    Raises:
        EvaluationError: shapes that do not fit, features that are not finite, ``others`` below 1.
    """
    a, b, objects = (
        np.asarray(features_a, np.float64),
        np.asarray(features_b, np.float64),
        np.asarray(objects),
    )
    if a.ndim != 2 or a.shape != b.shape or objects.shape != (len(a),):
        raise EvaluationError(
            f"features {a.shape} and {b.shape}, objects {objects.shape}: expected [n, d] twice and"
            " [n], a row per correspondence"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise EvaluationError(
            "features hold values that are not finite; recompute them, or write zeros where there"
            " is no mask"
        )
    if others < 1:
        raise EvaluationError(
            f"others is {others}; expected at least 1 other-object pair per pixel"
        )
    length_a, length_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    # pixels of one object lie together, so the others are two ranges
    order = np.argsort(objects, kind="stable")
    order = order[(objects[order] != -1) & (length_a[order] > 0) & (length_b[order] > 0)]
    a, b, objects = (
        a[order] / length_a[order, None],
        b[order] / length_b[order, None],
        objects[order],
    )
    _, start, of, count = np.unique(
        objects, return_index=True, return_inverse=True, return_counts=True
    )
    rows = np.flatnonzero(count[of] < len(a))
    first, own = start[of[rows]][:, None], count[of[rows]][:, None]
    drawn = np.random.default_rng(seed).integers(0, len(a) - own, (len(rows), others))
    drawn += np.where(drawn >= first, own, 0)  # step over the pixels of the object itself
    negative = [np.einsum("nd,nd->n", a[rows], b[column]) for column in drawn.T]
    # equal features tie in spite of rounding
    return auc(np.einsum("nd,nd->n", a, b).round(12), np.concatenate(negative).round(12))
