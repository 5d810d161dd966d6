"""LEGaussians (protocol F): relevancy of unnormalised features, code assignment, mask scores.

Differs from A in the cosine (1e-6 in the denominator), in the mask rule (relevancy >= 0.5, no
smoothing, no normalisation), and in averaging over the texts of an image first, then over images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..errors import EvaluationError, FeatureError

SCALE = (
    10.0  # in the supplied settings; 100 by default. Without influence on the mask at THRESHOLD.
)
THRESHOLD = 0.5  # a pixel belongs to the mask if its relevancy is at least this
EPSILON = 1e-6  # added to products of lengths, unions, counts and shares
TEXT_WIDTH = 512  # numbers of a codebook row that belong to CLIP; the rest is DINO's
DINO_WEIGHT = 0.1  # of the second part in the split form; 0.5 in a supplied setting

CONSTANTS = {
    "protocol": "legaussians",
    "source": "buaavrcg/LEGaussians@c2230af, utils/lem_utils.py and eval.py",
    "scale": SCALE,
    "threshold": THRESHOLD,
    "epsilon": EPSILON,
    "text_width": TEXT_WIDTH,
}


def pixel_features(logits, codebook, *, form: str = "softmax") -> torch.Tensor:
    """Features [..., d] from decoder outputs [..., N] and codebook rows [N, >= d].

    "argmax": the row with the largest output, first on ties; "softmax": the mean of all rows
    weighted by the softmax of the outputs. Only the first 512 numbers of a row are used.
    """
    logits, codebook = (
        torch.as_tensor(logits).float(),
        torch.as_tensor(codebook).float()[:, :TEXT_WIDTH],
    )
    if logits.shape[-1] != codebook.shape[0]:
        raise EvaluationError(
            f"logits: {logits.shape[-1]} outputs for a codebook of {codebook.shape[0]} rows; they"
            " belong to different fields"
        )
    if form == "argmax":
        return codebook[logits.argmax(dim=-1)]
    if form == "softmax":
        return logits.softmax(dim=-1) @ codebook
    raise EvaluationError(f"form {form!r} is unknown; use 'argmax' or 'softmax'")


def relevancy(features, text, canonical, *, scale: float = SCALE) -> torch.Tensor:
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


def mean_scores(per_image: dict[str, list[MaskScores]]) -> MaskScores:
    """Mean over the texts of each image first, then over images (keyed by view name)."""
    if not per_image or not all(per_image.values()):
        raise EvaluationError("no scores to average; evaluate at least one text in every image")
    means = [
        [
            np.mean([getattr(s, k) for s in scores])
            for k in ("iou", "accuracy", "precision", "recall")
        ]
        for scores in per_image.values()
    ]
    return MaskScores(*(float(v) for v in np.mean(means, axis=0)))


@dataclass(frozen=True)
class Assignment:
    """Descriptors assigned to codebook rows."""

    index: torch.Tensor  # [...] int64, row with the largest similarity
    similarity: torch.Tensor  # [M, N] float32
    loss_cosine: float
    load_balance: float
    perplexity: float


def assign(
    descriptors,
    codebook,
    *,
    form: str = "joint",
    weight: float = DINO_WEIGHT,
    split: int = TEXT_WIDTH,
) -> Assignment:
    """Assign descriptors [..., d] to rows [N, d] and compute the published training terms.

    Each part of a row (first ``split`` numbers, rest) is divided by its own length; descriptors are
    not. "joint": cosine over the whole; "split": cosine of the first parts plus ``weight`` times
    that of the second.
    """
    descriptors, codebook = torch.as_tensor(descriptors).float(), torch.as_tensor(codebook).float()
    if (
        codebook.ndim != 2
        or descriptors.shape[-1] != codebook.shape[1]
        or not 0 < split < codebook.shape[1]
    ):
        raise EvaluationError(
            f"descriptors {tuple(descriptors.shape)} and codebook {tuple(codebook.shape)} do not"
            f" fit with a split at {split}; expected [..., d] and [N, d] of two parts"
        )
    rows = torch.cat(
        [
            torch.nn.functional.normalize(part, dim=1)
            for part in (codebook[:, :split], codebook[:, split:])
        ],
        dim=1,
    )
    flat = descriptors.reshape(-1, descriptors.shape[-1])  # [M, d]
    if form == "joint":
        parts = [(slice(None), 1.0)]
    elif form == "split":
        parts = [(slice(0, split), 1.0), (slice(split, None), weight)]
    else:
        raise EvaluationError(f"form {form!r} is unknown; use 'joint' or 'split'")
    similarity = sum(w * _cosine(flat[:, s], rows[:, s]) for s, w in parts)
    index = similarity.argmax(dim=1)
    chosen = rows[index]
    loss = sum(
        w * (1 - torch.nn.functional.cosine_similarity(flat[:, s], chosen[:, s], dim=1).mean())
        for s, w in parts
    )
    share = torch.bincount(index, minlength=len(rows)).float() / len(index)
    balance = (share * similarity.softmax(dim=1).mean(dim=0)).sum()
    perplexity = torch.exp(-(share * torch.log(share + EPSILON)).sum())
    return Assignment(
        index.reshape(descriptors.shape[:-1]),
        similarity,
        float(loss),
        float(balance),
        float(perplexity),
    )


def _cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:  # [M, N]
    return a @ b.T / (a.norm(dim=1)[:, None] * b.norm(dim=1)[None] + EPSILON)
