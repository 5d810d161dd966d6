"""Stage 1b: one unit feature per mask, F_i = CLIP(I ⊙ M_i) (paper eq. 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import FeatureError

if TYPE_CHECKING:
    from ..scenes.scene import View
    from .interfaces import ImageTextEncoder
    from .masks import ViewMasks


def view_features(
    view: View, masks: ViewMasks, encoder: ImageTextEncoder
) -> np.ndarray:  # [M, d] float16
    """Features of all masks of a view, row by row of its mask table, unit length, half precision.

    The full mask is encoded, not what overlap left of it in the label map: the paper does not say
    (ours: the full mask, because LangSplat's crops are taken so). Raises FeatureError on a feature
    that is zero or not finite.
    """
    if len(masks) == 0:
        return np.zeros((0, encoder.dim), np.float16)
    features = np.asarray(encoder.encode_masks(view, masks.masks), np.float32)
    check_features(features, f"features of view {view.name!r}")
    if features.shape != (len(masks), encoder.dim):
        raise FeatureError(
            f"features of view {view.name!r} have shape {features.shape}, expected"
            f" {(len(masks), encoder.dim)}; the encoder is at fault"
        )
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)


def check_features(features: np.ndarray, what: str) -> None:
    """Raise FeatureError naming the first row of [M, d] that is not finite or has length zero."""
    finite = np.isfinite(features).all(1)
    if not finite.all():
        raise FeatureError(
            f"{what}: row {int(np.flatnonzero(~finite)[0])} is not finite; check the encoder's"
            " precision and its input crop"
        )
    zero = np.linalg.norm(features, axis=1) < 1e-6
    if zero.any():
        raise FeatureError(
            f"{what}: row {int(np.flatnonzero(zero)[0])} is zero and has no direction; drop that"
            " mask or check its crop"
        )
