"""What a codebook's codes are used for: counts, perplexity, labels that share one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..method.codebook import labels_by_codes, numbered


def usage(codes: Tensor, N: int) -> Tensor:
    """How many features use each code [N] int64."""
    return torch.bincount(codes, minlength=N)


def perplexity(counts: Tensor) -> float:
    """exp of the entropy of code usage: the number of codes in effective use."""
    p = counts.double() / counts.sum().clamp_min(1)
    return float(torch.exp(-(p * torch.log(p.clamp_min(1e-300))).sum()))


def colliding_labels(codes: Tensor, labels: Tensor) -> int:
    """How many labels have their commonest code in common with another label. ``codes``, ``labels``
    [B] int64, -1 = unlabelled.
    """
    ids = numbered(labels)
    if (ids == -1).all():
        return 0
    commonest = labels_by_codes(codes, ids, int(codes.max()) + 1).argmax(1)  # first on ties
    sharing = torch.bincount(commonest)
    return int(sharing[sharing > 1].sum())
