"""OpenGaussian (protocol G): silhouettes of selected Gaussians against ground-truth pictures.

The text picks Gaussians in 3D, and only those are rendered, so these numbers must not share a table
with A or B. Every ground-truth picture is a unit; one without a prediction scores 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import EvaluationError
from .metrics import iou

GREY_THRESHOLD = 10  # strictly greater is foreground; absorbs JPEG noise around edges
SILHOUETTE_THRESHOLD = 0.7  # accumulated opacity at which published silhouettes were cut
ACCURACIES = (0.25, 0.5)  # shares of units with IoU strictly greater

CONSTANTS = {
    "protocol": "opengaussian",
    "source": "yanmin-wu/OpenGaussian@b70dcc6, scripts/compute_lerf_iou.py",
    "grey_threshold": GREY_THRESHOLD,
    "silhouette_threshold": SILHOUETTE_THRESHOLD,
    "accuracies": list(ACCURACIES),
}


@dataclass(frozen=True)
class Result:
    """Scores over all units."""

    ious: np.ndarray  # [U] float64
    miou: float
    accuracy_025: float
    accuracy_05: float


def silhouette(alpha) -> np.ndarray:  # [H, W] uint8, 0 or 255
    """Prediction picture from the accumulated opacity [H, W] of the selected Gaussians."""
    return np.where(np.asarray(alpha) > SILHOUETTE_THRESHOLD, 255, 0).astype(np.uint8)


def unit_iou(prediction: np.ndarray | None, truth: np.ndarray) -> float:
    """IoU of two grey pictures [H, W] cut at 10; 0 without a prediction or with an empty union.

    Raises EvaluationError for a colour picture (the published script cannot read one either) or
    another size.
    """
    if np.ndim(truth) != 2 or (prediction is not None and np.ndim(prediction) != 2):
        raise EvaluationError(
            f"pictures of shape {np.shape(prediction)} and {np.shape(truth)}; expected grey [H, W]:"
            " convert them first"
        )
    if prediction is None:
        return 0.0
    return iou(
        np.asarray(prediction) > GREY_THRESHOLD, np.asarray(truth) > GREY_THRESHOLD, empty=0.0
    )


def evaluate_units(
    predictions: Sequence[np.ndarray | None], truths: Sequence[np.ndarray]
) -> Result:
    """All units, predictions in the order of the ground truth, None where there is none."""
    if len(predictions) != len(truths) or not len(truths):
        raise EvaluationError(
            f"{len(predictions)} predictions for {len(truths)} ground-truth pictures; give one per"
            " unit, None where there is none"
        )
    ious = np.array([unit_iou(p, t) for p, t in zip(predictions, truths)], np.float64)
    low, high = (float(np.mean(ious > t)) for t in ACCURACIES)
    return Result(ious, float(np.mean(ious)), low, high)
