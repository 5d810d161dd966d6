"""Stage 3: the three losses of contrastive codebook learning, as the paper has them (§3).

A codebook is N prototypes T_j. Each mask feature F_i takes the prototype with the largest cosine,
its code j_i = argmax_j cos(F_i, T_j). With track labels y:

    L_max  = mean over all i of                   1 - cos(F_i, T_{j_i})             `matching_loss`
    L_pull = mean over pairs of equal labels of   1 - cos(T_{j_i}, T_{j_k})         `pull_loss`
    L_push = mean over pairs of different labels  ReLU(cos(T_{j_i}, T_{j_k}) - m)   `push_loss`
    L      = L_max + λ_pull L_pull + λ_push L_push                                  `ccl_loss`

Pairs run over labelled masks only (y ≠ -1). Which average the paper takes over pairs is not
published; ours is the plain mean.

A pair matters only through its two codes. So pairs are counted, not listed (`count_pairs`): for B
masks that is O(B + N²) instead of O(B²), and exact in value and gradient. Pull and push are then
sums over a table of pairs of codes: weight of the pair times its penalty. What `codebook_variants`
adds to the paper's form are other weights in that table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import CodebookError, FeatureError


@dataclass(frozen=True)
class CCLLoss:
    """The losses of a batch, scalars with gradient."""

    max: Tensor
    pull: Tensor
    push: Tensor
    total: Tensor


@dataclass(frozen=True)
class Pairs:
    """Ordered pairs of labelled masks, by the codes (or other vectors) that stand for the two."""

    same: Tensor  # [M, N] float64: weight of the pairs of equal labels
    different: Tensor  # [M, N] float64: of those of different labels
    n_same: float  # what pull is divided by: how many pairs there are
    n_different: float
    others: Tensor | None = None  # [M, d] unit vectors of the rows; None: the prototypes, M = N


def ccl_loss(
    prototypes: Tensor,  # [N, d]
    features: Tensor,  # [B, d]
    labels: Tensor,  # [B] int64, -1 = unlabelled
    *,
    lambda_pull: float,
    lambda_push: float,
    margin: float,
) -> CCLLoss:
    """The CCL losses of a batch; gradients reach the prototypes only.

    Lengths of features and prototypes don't matter. A loss without any pair is 0 with zero
    gradient. Raises CodebookError on shapes that don't fit, FeatureError on zero or non-finite
    vectors.

    >>> import torch
    >>> prototypes = torch.tensor([[1.0, 0.0], [0.8, 0.6]], requires_grad=True)
    >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.8, 0.6]])
    >>> labels = torch.tensor([1, 1, 2])
    >>> weights = {"lambda_pull": 0.25, "lambda_push": 0.25}
    >>> loss = ccl_loss(prototypes, features, labels, margin=0.7, **weights)
    >>> print(f"{loss.pull:.2f} {loss.push:.2f} {loss.total:.3f}")  # cos(T_0, T_1) = 0.8
    0.00 0.10 0.025
    """
    check_batch(prototypes, features, labels)
    F = unit(features.to(prototypes.dtype))
    codes = assign(prototypes, F)
    pairs = count_pairs(codes, numbered(labels), len(prototypes))
    return losses(
        unit(prototypes),
        F,
        codes,
        pairs,
        lambda_pull=lambda_pull,
        lambda_push=lambda_push,
        margin=margin,
    )


def losses(
    T: Tensor,  # [N, d] unit prototypes
    F: Tensor,  # [B, d] unit features
    codes: Tensor,  # [B] int64
    pairs: Pairs,
    *,
    lambda_pull: float,
    lambda_push: float,
    margin: float,
) -> CCLLoss:
    """The losses of masks whose codes and pairs are known."""
    l_max = matching_loss(T, F, codes)
    cos = (T if pairs.others is None else pairs.others) @ T.T
    l_pull = pull_loss(cos, pairs)
    l_push = push_loss(cos, pairs, margin)
    return CCLLoss(l_max, l_pull, l_push, l_max + lambda_pull * l_pull + lambda_push * l_push)


def matching_loss(T: Tensor, F: Tensor, codes: Tensor) -> Tensor:
    """L_max: every feature near its prototype."""
    # by the sum of each code's features, not by a prototype for each of B features
    return 1 - (sums_by_code(F, codes, len(T)) * T).sum() / len(F)


def pull_loss(cos: Tensor, pairs: Pairs) -> Tensor:
    """L_pull: prototypes of one label together. ``cos`` [M, N]: the cosines of `Pairs`' table."""
    return _mean(pairs.same, pairs.n_same, 1 - cos)


def push_loss(cos: Tensor, pairs: Pairs, margin: float) -> Tensor:
    """L_push: prototypes of different labels apart, while their cosine exceeds the margin.

    Where two labels share a prototype the penalty is 1 - m whatever it does: no gradient.
    """
    return _mean(pairs.different, pairs.n_different, torch.relu(cos - margin))


def count_pairs(codes: Tensor, ids: Tensor, N: int) -> Pairs:
    """How many ordered pairs of masks have which two of N codes, for equal and different labels.

    ``codes`` [B]; ``ids`` [B] labels from `numbered`. With H the table of labels by codes, all
    pairs of one label number HᵀH, all pairs s sᵀ with s the masks on each code.
    """
    H = labels_by_codes(codes, ids, N)
    on_code = H.sum(0)
    same_label = H.T @ H
    same = same_label - torch.diag(on_code)  # a mask is no pair with itself
    different = torch.outer(on_code, on_code) - same_label
    return Pairs(same, different, float(same.sum()), float(different.sum()))


def labels_by_codes(codes: Tensor, ids: Tensor, N: int) -> Tensor:
    """How many masks of each label have each code: [L, N] float64, L the largest id + 1.

    float64 counts exactly up to 2^53; float32 would lose pairs of large labels.
    """
    labelled = (ids != -1).nonzero()[:, 0]
    row = ids[labelled]
    L = int(row.max()) + 1 if len(row) else 0
    return torch.bincount(row * N + codes[labelled], minlength=L * N).view(L, N).double()


def assign(prototypes: Tensor, features: Tensor) -> Tensor:
    """Code of each feature [B] int64: the prototype [N, d] with the largest cosine, first on ties.

    ``features`` [B, d] of one type with the prototypes.
    """
    with torch.no_grad():
        return (features @ unit(prototypes).T).argmax(1)


def sums_by_code(F: Tensor, codes: Tensor, N: int) -> Tensor:
    """Sum of the features [B, d] of each code: [N, d]."""
    return torch.zeros(N, F.shape[1], dtype=F.dtype).index_add_(0, codes, F)


def numbered(labels: Tensor) -> Tensor:
    """Labels [B] renumbered 0..L-1; -1 stays."""
    ids = torch.full_like(labels, -1, dtype=torch.int64)
    rows = (labels != -1).nonzero()[:, 0]
    ids[rows] = labels[rows].unique(return_inverse=True)[1]
    return ids


def unit(x: Tensor) -> Tensor:
    """Vectors [..., d] at length 1."""
    return x / x.norm(dim=-1, keepdim=True)


def index_map(label_map: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Label map [H, W] (-1 none) and the code of each mask [M] -> code index map [H, W] int32, -1 =
    no mask.
    """
    table = np.append(np.asarray(codes, np.int32), np.int32(-1))
    return table[label_map]


def check_batch(
    prototypes: Tensor, features: Tensor, labels: Tensor, groups: Tensor | None = None
) -> None:
    """Raise CodebookError or FeatureError on input without defined losses."""
    flat = prototypes.ndim == features.ndim == 2
    if not flat or prototypes.shape[1] != features.shape[1] or len(prototypes) == 0:
        raise CodebookError(
            f"prototypes {tuple(prototypes.shape)} and features {tuple(features.shape)} must be [N,"
            " d] and [B, d] with N > 0"
        )
    for name, x in (("labels", labels), ("groups", groups)):
        if x is not None and (x.shape != (len(features),) or x.dtype.is_floating_point):
            raise CodebookError(
                f"{name} have shape {tuple(x.shape)} and type {x.dtype}, expected"
                f" ({len(features)},) integers"
            )
    if len(features) == 0:
        raise CodebookError("an empty batch has no loss; pass at least one feature")
    check_vectors(features, "feature")
    check_vectors(prototypes, "prototype")


def check_vectors(x: Tensor, name: str) -> None:
    """Raise FeatureError on a row without a finite direction, and on half precision, in which
    counts of pairs overflow.
    """
    if x.dtype not in (torch.float32, torch.float64):
        raise FeatureError(f"{name}s are {x.dtype}, expected float32; use .float()")
    norm = x.detach().norm(dim=1)
    bad = ~torch.isfinite(norm) | (norm < 1e-12)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise FeatureError(
            f"{name} {row} has length {float(norm[row])}; every {name} needs a finite direction:"
            " drop or recompute it"
        )


def _mean(weights: Tensor, total: float, penalty: Tensor) -> Tensor:
    if total == 0:
        return penalty.sum() * 0  # no pair: zero, with zero gradient
    return (weights.to(penalty.dtype) * penalty).sum() / total
