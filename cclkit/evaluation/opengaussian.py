"""OpenGaussian (protocol G): silhouettes of selected Gaussians against ground-truth pictures.

The text picks Gaussians in 3D, and only those are rendered, so these numbers must not share a table
with A or B. Every ground-truth picture is a unit; one without a prediction scores 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import EvaluationError
from ..scenes.scene import LabelledObject
from .metrics import iou
from .protocol import PAIRWISE, Maps, Protocol, Reader, Scored, naming

if TYPE_CHECKING:
    from .protocols import EvaluationConfig

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


# ---------------------------------------------------------------------------


def _asks(reader: Reader, view: str, texts: Sequence[str]) -> np.ndarray:  # [P, H, W] uint8
    return reader.silhouettes(view, texts)


def _score(pictures: Maps, units: Sequence[LabelledObject], config: EvaluationConfig) -> Scored:
    out = []
    for picture, unit in zip(pictures, units):
        picture = np.asarray(picture)
        with naming(unit):
            value = unit_iou(picture, unit.mask.astype(np.uint8) * 255)
        shares = {column: value > t for column, t in zip(_COLUMNS, ACCURACIES)}
        out.append(({"iou": value} | shares, picture > GREY_THRESHOLD))
    return out


def _constants(config: EvaluationConfig) -> dict:
    selection = (
        "ours: Gaussians by the mean relevancy of the training pixels that they make up, at the"
        " level with the largest"
    )
    return (
        CONSTANTS
        | {"selection": selection}
        | PAIRWISE
        | {"selection_share": config.selection_share}
    )


_COLUMNS = tuple(f"acc_{100 * t:03.0f}" for t in ACCURACIES)

OPENGAUSSIAN = Protocol(
    "silhouettes of Gaussians selected in 3D",
    _asks,
    _score,
    _constants,
    means=_COLUMNS,
    foreground=GREY_THRESHOLD + 1,
)
