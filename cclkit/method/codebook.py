"""The CCL losses of a batch, exact in value and gradient without listing a pair.

Each feature takes the prototype with the largest cosine, j_i = argmax_j cos(F_i, T_j). With labels
y:

    L_max  = mean over all i of                   1 - cos(F_i, T_{j_i})
    L_pull = mean over pairs of equal labels of   1 - cos(T_{j_i}, T_{j_k})
    L_push = mean over pairs of different labels  ReLU(cos(T_{j_i}, T_{j_k}) - m)
    L      = L_max + λ_pull L_pull + λ_push L_push

Pairs run over labelled masks only (y ≠ -1). Which average the paper takes over pairs is not
published: protocol H takes a mean over pairs ("pairs"); "labels" takes the mean over labels (pull)
or over pairs of labels (push) of each one's own mean, so that a label's weight does not grow with
the square of its size.

Two options leave the paper's form. Soft assignment: a mask stands in a pair for every prototype,
weighted by p_i = softmax_j(cos(F_i, T_j) / temperature), instead of for its nearest alone; the
weights are no more differentiated than the paper's argmax is (with a gradient through them the
mechanism experiment gained less). Load balance, as in LEGaussians (protocol F): weight times the
sum over codes of (share of masks on it) (mean p on it), 1/N at even use, 1 at collapse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import CodebookError, FeatureError

NORMALISATIONS = ("pairs", "labels")


@dataclass(frozen=True)
class CCLLoss:
    """The four losses, scalars with gradient."""

    max: Tensor
    pull: Tensor
    push: Tensor
    balance: Tensor
    total: Tensor


def assign(prototypes: Tensor, features: Tensor) -> Tensor:
    """Code of each feature [B] int64: the prototype [N, d] with the largest cosine,
    first on ties.
    """
    with torch.no_grad():
        return (features @ unit(prototypes).T).argmax(1)


def ccl_loss(
    prototypes: Tensor,  # [N, d]
    features: Tensor,  # [B, d]
    labels: Tensor,  # [B] int64, -1 = unlabelled
    *,
    lambda_pull: float,
    lambda_push: float,
    margin: float,
    normalisation: str = "pairs",
    centroids: bool = False,
    soft: bool = False,
    load_balance: float = 0.0,
    temperature: float = 0.02,
    groups: Tensor | None = None,  # [B] int64
) -> CCLLoss:
    """The CCL losses of a batch; gradients reach the prototypes only (protocol H).

    A pair matters only through its two codes, so pairs are counted, not listed: O(B·N) instead of
    O(B²), see `LabelTable`. A loss without any pair is 0 with zero gradient.

    ``centroids`` replaces the second prototype T_{j_k} of every pair by the centroid of k's label
    in feature space, a constant. Two labels on one prototype then have a gradient, which the
    paper's form lacks: it goes to the larger label, until the smaller one's masks are nearer to
    another one. ``soft``, ``load_balance`` and ``temperature``: see the module; a collision then
    has a gradient from the other prototypes near it. With ``groups``, only pairs within one group
    count and a label means something within its group only (levels that share a codebook). Raises
    CodebookError on shapes that don't fit or an unknown normalisation, FeatureError on zero or
    non-finite features.
    """
    check(prototypes, features, labels, groups)
    unit_features = unit(features.to(prototypes.dtype))
    ids, group_of = label_ids(labels, groups)
    table = LabelTable(ids, group_of, normalisation, unit_features if centroids else None)
    return losses(
        prototypes,
        unit_features,
        table,
        lambda_pull,
        lambda_push,
        margin,
        soft=soft,
        load_balance=load_balance,
        temperature=temperature,
    )[0]


def label_ids(labels: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor]:
    """Labels renumbered 0..L-1 [B] (-1 stays), one number per label and group, and the group 0..G-1
    of each number [L].
    """
    rows = (labels != -1).nonzero()[:, 0]
    ids = torch.full_like(labels, -1, dtype=torch.int64)
    if groups is None:
        _, ids[rows] = labels[rows].unique(return_inverse=True)
        return ids, torch.zeros(int(ids.max()) + 1, dtype=torch.int64)
    keys, ids[rows] = torch.stack([groups[rows], labels[rows]], 1).unique(
        dim=0, return_inverse=True
    )
    return ids, keys[:, 0].unique(return_inverse=True)[1]


class LabelTable:
    """What counting pairs needs to know about labels; it stays while codes change.

    H is the table of labels by codes. With weights a_y per pair inside label y and b_y b_z per pair
    between y and z, ordered pairs on codes (α, β) weigh in total (A = diag a, B = diag b)

        equal labels:      Hᵀ A H - diag(Hᵀ a)                       a mask is no pair with itself
        different labels:  Σ_g (H_gᵀ b)(H_gᵀ b)ᵀ - Hᵀ B² H           all pairs of a group minus
        those of equal labels

    "pairs": a = b = 1. "labels": a = 1 / (n(n-1)), b = 1 / n for a label of n masks.
    """

    def __init__(
        self,
        ids: Tensor,
        group_of: Tensor,
        normalisation: str = "pairs",
        unit_features: Tensor | None = None,
    ):
        if normalisation not in NORMALISATIONS:
            raise CodebookError(
                f"codebook.normalisation={normalisation!r} is unknown; use"
                f" {' or '.join(map(repr, NORMALISATIONS))}"
            )
        self.rows = (ids != -1).nonzero()[:, 0]  # [B'] labelled features
        self.label, L = ids[self.rows], len(group_of)
        self.group_of = group_of  # [L]
        # float64 counts integers exactly up to 2^53; float32 would lose pairs of large labels
        self.size = n = torch.bincount(
            self.label, minlength=L
        ).double()  # [L], 0 for a label that a minibatch lacks
        n_groups = int(group_of.max()) + 1 if L else 0
        self.member = torch.zeros(n_groups, L, dtype=torch.float64)  # [G, L] label in group
        self.member[group_of, torch.arange(L)] = 1
        if normalisation == "pairs":
            self.inside, self.between = torch.ones_like(n), torch.ones_like(n)
            self.n_same, per_group = float((n * (n - 1)).sum()), self.member @ n
            self.n_different = float((per_group**2).sum() - (n**2).sum())
        else:
            self.inside, self.between = (
                (n > 1) / (n * (n - 1)).clamp_min(1),
                (n > 0) / n.clamp_min(1),
            )
            self.n_same, per_group = float((n > 1).sum()), self.member @ (n > 0).double()
            self.n_different = float((per_group**2).sum() - (n > 0).sum())
        self.centroids = None if unit_features is None else label_centroids(unit_features, ids, L)

    def histogram(self, codes: Tensor, N: int) -> Tensor:
        """H [L, N] float64: labelled features of each label on each code."""
        L = len(self.group_of)
        return (
            torch.bincount(self.label * N + codes[self.rows], minlength=L * N).view(L, N).double()
        )

    def soft_histogram(self, P: Tensor) -> Tensor:  # [B', N] -> [L, N]
        """Labelled features of each label on each code, each split over all codes by
        its weights P.
        """
        return torch.zeros(len(self.group_of), P.shape[1], dtype=P.dtype).index_add(
            0, self.label, P
        )

    def pairs_of_codes(self, H: Tensor, alone: Tensor) -> tuple[Tensor, Tensor]:
        """Weight of ordered pairs on each pair of codes, equal and different labels: [N, N] float64
        each.

        ``alone`` [N, N]: what Hᵀ A H counts of masks paired with themselves.
        """
        same = H.T @ (self.inside[:, None] * H) - alone
        weighted = self.between[:, None] * H
        sums = self.member @ weighted  # [G, N]
        return same, sums.T @ sums - weighted.T @ weighted

    def pairs_with_labels(self, H: Tensor) -> tuple[Tensor, Tensor]:
        """The same pairs by label of the one and code of the other mask: [L, N] float64 each."""
        same = (self.inside * (self.size - 1).clamp_min(0))[:, None] * H
        weighted = self.between[:, None] * H
        return same, (self.between * self.size)[:, None] * (
            (self.member @ weighted)[self.group_of] - weighted
        )

    def contrast(
        self, T: Tensor, codes: Tensor, margin: float, P: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """L_pull and L_push of unit prototypes T [N, d]: the cosine table, weighted by pairs; by
        soft ones with P [B', N].
        """
        with torch.no_grad():
            if P is None:
                H = self.histogram(codes, len(T))
                alone = torch.diag(self.inside @ H)
            else:
                P = P.double()
                H = self.soft_histogram(P)
                alone = P.T @ (self.inside[self.label][:, None] * P)
            same, different = (
                w.to(T.dtype)
                for w in (
                    self.pairs_of_codes(H, alone)
                    if self.centroids is None
                    else self.pairs_with_labels(H)
                )
            )
        cos = (T if self.centroids is None else self.centroids) @ T.T
        zero = T.sum() * 0
        l_pull = (same * (1 - cos)).sum() / self.n_same if self.n_same > 0 else zero
        l_push = (
            (different * torch.relu(cos - margin)).sum() / self.n_different
            if self.n_different > 0
            else zero
        )
        return l_pull, l_push


def losses(
    prototypes: Tensor,
    unit_features: Tensor,
    table: LabelTable,
    lambda_pull: float,
    lambda_push: float,
    margin: float,
    *,
    soft: bool = False,
    load_balance: float = 0.0,
    temperature: float = 0.02,
) -> tuple[CCLLoss, Tensor, Tensor]:
    """The losses, the code of each feature [B], and the sum of the unit features of each code [N,
    d].
    """
    T = unit(prototypes)
    with torch.no_grad():
        codes = (unit_features @ T.T).argmax(1)
        # Sum of the features of each code: L_max needs no [B, d] gather of prototypes.
        sums = torch.zeros_like(T).index_add_(0, codes, unit_features)
    l_max = 1 - (sums * T).sum() / len(unit_features)
    # [B, N]
    P = torch.softmax(unit_features @ T.T / temperature, 1) if soft or load_balance else None
    l_pull, l_push = table.contrast(T, codes, margin, P[table.rows] if soft else None)
    l_balance = (
        torch.bincount(codes, minlength=len(T)).to(T.dtype) @ P.mean(0) / len(codes)
        if load_balance
        else T.sum() * 0
    )
    return (
        CCLLoss(
            l_max,
            l_pull,
            l_push,
            l_balance,
            l_max + lambda_pull * l_pull + lambda_push * l_push + load_balance * l_balance,
        ),
        codes,
        sums,
    )


def label_centroids(unit_features: Tensor, ids: Tensor, L: int) -> Tensor:
    """Unit centroid of each label [L, d]; zero for a label whose features are missing or cancel,
    which then has no direction.
    """
    # the unlabelled go to a row of their own: no [B, d] copy of the others
    row = torch.where(ids == -1, L, ids)
    sums = torch.zeros(L + 1, unit_features.shape[1], dtype=unit_features.dtype).index_add_(
        0, row, unit_features
    )[:L]
    length = sums.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-6, sums / length.clamp_min(1e-6), 0)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def check(
    prototypes: Tensor, features: Tensor, labels: Tensor, groups: Tensor | None = None
) -> None:
    """Raise CodebookError or FeatureError on input without defined losses."""
    if (
        prototypes.ndim != 2
        or features.ndim != 2
        or prototypes.shape[1] != features.shape[1]
        or len(prototypes) == 0
    ):
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


def index_map(label_map: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Label map [H, W] (-1 none) and the code of each mask [M] -> code index map [H, W] int32, -1 =
    no mask.
    """
    table = np.append(np.asarray(codes, np.int32), np.int32(-1))
    return table[label_map]
