"""Statistics of an ablation: scenes are the units, seeds repeat a scene.

Repeating a scene tells how noisy its value is, nothing about other scenes, so more seeds must not
narrow what is said about scenes. Hence an interval that draws scenes first and seeds within them,
and a test on the scenes' means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import EvaluationError

MOST_SCENES = 20
"""The sign-flip test lists all 2^scenes sign patterns."""


def hierarchical_bootstrap(
    differences: Sequence[Sequence[float]],
    *,
    draws: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the mean over scenes of paired differences [scenes][seeds].

    Each draw takes scenes with replacement, and for every one taken its seeds with replacement.
    Scenes may have different numbers of seeds and weigh alike. With few scenes percentile intervals
    are somewhat too narrow. (NaN, NaN) for less than two scenes: one unit says nothing about
    others. Raises EvaluationError on a scene without values and on values that are not finite.
    """
    d = [_finite(scene) for scene in differences]
    if len(d) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    taken = rng.integers(len(d), size=(draws, len(d)))
    sampled = np.empty(taken.shape)
    for s, scene in enumerate(d):
        here = taken == s
        sampled[here] = scene[rng.integers(len(scene), size=(here.sum(), len(scene)))].mean(1)
    low, high = np.quantile(sampled.mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def sign_flip_p(means: Sequence[float]) -> float:
    """Exact two-sided p of the sign-flip test: the share of all 2^n sign patterns of n scene means
    whose sum is at least as far from 0.

    It asks whether the sign of the differences carries anything, and can be no smaller than 2 /
    2^n.
    """
    m = _finite(means)
    if len(m) > MOST_SCENES:
        raise EvaluationError(
            f"sign-flip test of {len(m)} scenes; expected at most {MOST_SCENES}, since all 2^n"
            " patterns are listed"
        )
    signs = 1 - 2 * ((np.arange(2 ** len(m))[:, None] >> np.arange(len(m))) & 1)
    sums = np.abs(signs @ m)
    return float((sums >= abs(m.sum()) * (1 - 1e-12) - 1e-12).mean())


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p values: the k-th smallest of n times n - k + 1, never below the one before,
    at most 1.
    """
    out, before = {}, 0.0
    for k, name in enumerate(sorted(p, key=p.__getitem__)):
        before = max(before, min(1.0, (len(p) - k) * p[name]))
        out[name] = before
    return {name: out[name] for name in p}


def _finite(values: Sequence[float]) -> np.ndarray:
    out = np.asarray(values, float)
    if out.ndim != 1 or not len(out) or not np.isfinite(out).all():
        raise EvaluationError(
            f"differences {out.tolist()}: expected at least one, all finite; leave scenes that"
            " failed out and say so"
        )
    return out
