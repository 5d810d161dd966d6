"""What a codebook's codes are used for: counts, perplexity, index maps."""

from __future__ import annotations

import torch
from torch import Tensor


def usage(codes: Tensor, N: int) -> Tensor:
    """How many features use each code [N] int64."""
    return torch.bincount(codes, minlength=N)


def perplexity(counts: Tensor) -> float:
    """exp of the entropy of code usage: the number of codes in effective use."""
    p = counts.double() / counts.sum().clamp_min(1)
    return float(torch.exp(-(p * torch.log(p.clamp_min(1e-300))).sum()))
