"""LEGaussians (protocol F): relevancy of unnormalised features, and mask scores.

Differs from A in the cosine (1e-6 in the denominator), in the mask rule (relevancy >= 0.5, no
smoothing, no normalisation), and in averaging over the texts of an image first, then over images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import EvaluationError, FeatureError
from ..method.masks import LEVELS
from ..method.query import CANONICAL, by_code
from ..scenes.scene import LabelledObject
from .protocol import Maps, Protocol, Reader, Scored, naming

if TYPE_CHECKING:
    from .protocols import EvaluationConfig

# in the supplied settings; 100 by default. Without influence on the mask at THRESHOLD.
SCALE = 10.0
THRESHOLD = 0.5  # a pixel belongs to the mask if its relevancy is at least this
EPSILON = 1e-6  # added to products of lengths, unions and counts
TEXT_WIDTH = 512  # numbers of a codebook row that belong to CLIP; the rest is DINO's

CONSTANTS = {
    "protocol": "legaussians",
    "source": "buaavrcg/LEGaussians@c2230af, utils/lem_utils.py and eval.py",
    "scale": SCALE,
    "threshold": THRESHOLD,
    "epsilon": EPSILON,
    "text_width": TEXT_WIDTH,
}


def unnormalised_relevancy(features, text, canonical, *, scale: float = SCALE) -> torch.Tensor:
    """Pairwise relevancy [P, ...] of features [..., d] of any length; text [P, d], canonical [C,
    d].

    Raises FeatureError when a feature is not finite, EvaluationError when shapes do not fit.
    """
    features, text, canonical = (torch.as_tensor(v).float() for v in (features, text, canonical))
    if (
        text.ndim != 2
        or canonical.ndim != 2
        or not features.shape[-1] == text.shape[1] == canonical.shape[1]
    ):
        raise EvaluationError(
            f"features {tuple(features.shape)}, text {tuple(text.shape)} and canonical"
            f" {tuple(canonical.shape)} do not fit; expected [..., d], [P, d], [C, d]"
        )
    if not bool(torch.isfinite(features).all()):
        raise FeatureError("features: some are not finite; recompute them")
    flat = features.reshape(-1, features.shape[-1])
    against = _cosine(flat, canonical).amax(dim=1)  # [M]
    out = torch.sigmoid(scale * (_cosine(flat, text).T - against))
    return out.reshape(text.shape[0], *features.shape[:-1])


def mask(relevancy_map) -> torch.Tensor:
    """bool mask: relevancy >= 0.5, not strictly greater."""
    return torch.as_tensor(relevancy_map) >= THRESHOLD


@dataclass(frozen=True)
class MaskScores:
    """Scores of one mask, each a single-precision quotient. Two empty masks give IoU 0."""

    iou: float
    accuracy: float
    precision: float
    recall: float


def mask_scores(prediction, truth) -> MaskScores:
    """Scores of bool masks of one shape. Raises EvaluationError on different shapes."""
    p, t = np.asarray(prediction).astype(bool), np.asarray(truth).astype(bool)
    if p.shape != t.shape or not p.size:
        raise EvaluationError(
            f"masks of shape {p.shape} and {t.shape} cannot be compared; render at the size of the"
            " ground truth"
        )

    def quotient(a: int, b: int) -> float:
        return float(np.float32(a) / (np.float32(b) + np.float32(EPSILON)))

    both = np.count_nonzero(p & t)
    return MaskScores(
        quotient(both, np.count_nonzero(p | t)),
        float(np.float32(np.count_nonzero(p == t)) / np.float32(p.size)),
        quotient(both, np.count_nonzero(p)),
        quotient(both, np.count_nonzero(t)),
    )


# ---------------------------------------------------------------------------


def _asks(reader: Reader, view: str, texts: Sequence[str]) -> torch.Tensor:  # [P, L, H, W]
    canonical = reader.text_vectors(CANONICAL)

    def score(rows: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return unnormalised_relevancy(rows, text, canonical)

    return reader.look_up(lambda T, c, text: by_code(score, T, c, text), view, texts)


def _score(maps: Maps, units: Sequence[LabelledObject], config: EvaluationConfig) -> Scored:
    out = []
    for stack, unit in zip(maps, units):
        answer = mask(stack[LEVELS.index(config.level)]).numpy()
        with naming(unit):
            out.append((asdict(mask_scores(answer, unit.mask)), answer))
    return out


def _constants(config: EvaluationConfig) -> dict:
    own = {"canonical": list(CANONICAL), "form": "argmax", "level": config.level}
    return CONSTANTS | own


LEGAUSSIANS = Protocol(
    "text beats all canonical phrases; mean per view",
    _asks,
    _score,
    _constants,
    means=("precision", "recall"),
    over="views",
)


def _cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:  # [M, N]
    return a @ b.T / (a.norm(dim=1)[:, None] * b.norm(dim=1)[None] + EPSILON)
