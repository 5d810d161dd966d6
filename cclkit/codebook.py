"""Stage 3: contrastive codebook learning (CCL), the paper's contribution.

A codebook of N prototypes per level is learned from all mask features of a scene. Each feature takes
the prototype with the largest cosine, j_i = argmax_j cos(F_i, T_j). Three losses move the prototypes:

    L_max  = mean over all i of                   1 - cos(F_i, T_{j_i})
    L_pull = mean over pairs of equal labels of   1 - cos(T_{j_i}, T_{j_k})
    L_push = mean over pairs of different labels  ReLU(cos(T_{j_i}, T_{j_k}) - m)
    L      = L_max + λ_pull L_pull + λ_push L_push

Pairs run over labelled masks only (y ≠ -1). Which average the paper takes over pairs is not
published; two separate means are the convention of protocol H.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .config import CodebookConfig
from .errors import CodebookError, FeatureError


@dataclass(frozen=True)
class CCLLoss:
    """The four losses, scalars with gradient."""

    max: Tensor
    pull: Tensor
    push: Tensor
    total: Tensor


def assign(prototypes: Tensor, features: Tensor) -> Tensor:
    """Code of each feature [B] int64: the prototype [N, d] with the largest cosine, first on ties."""
    with torch.no_grad():
        return (features @ _unit(prototypes).T).argmax(1)


def ccl_loss(
    prototypes: Tensor,  # [N, d]
    features: Tensor,  # [B, d]
    labels: Tensor,  # [B] int64, -1 = unlabelled
    *,
    lambda_pull: float,
    lambda_push: float,
    margin: float,
) -> CCLLoss:
    """The CCL losses of a batch; gradients reach the prototypes only (protocol H).

    A pair matters only through its two codes, so pairs are counted, not listed: with the table H of
    labels by codes and its column sums n, ordered pairs of distinct features with equal labels on
    codes (a, b) number (HᵀH - diag n)[a, b], with different labels (nnᵀ - HᵀH)[a, b]. That is exact,
    and O(B·N) instead of O(B²). A loss without any pair is 0 with zero gradient.
    Raises CodebookError on shapes that don't fit, FeatureError on zero or non-finite features.
    """
    _check(prototypes, features, labels)
    unit_features = _unit(features.to(prototypes.dtype))
    return _losses(prototypes, unit_features, _LabelTable(labels), lambda_pull, lambda_push, margin)


class _LabelTable:
    """Labels renumbered 0..L-1, made once per fit: counting pairs needs rows for them."""

    def __init__(self, labels: Tensor):
        self.rows = (labels != -1).nonzero()[:, 0]  # [B'] labelled features
        _, self.label = labels[self.rows].unique(return_inverse=True)  # [B']
        self.n_labels = int(self.label.max()) + 1 if len(self.rows) else 0

    def pair_counts(self, codes: Tensor, N: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Ordered pairs [N, N] with equal, and with different labels."""
        flat = self.label * N + codes[self.rows]
        H = torch.bincount(flat, minlength=self.n_labels * N).view(self.n_labels, N).to(dtype)
        n = H.sum(0)
        same = H.T @ H
        return same - torch.diag(n), torch.outer(n, n) - same


def _losses(prototypes: Tensor, unit_features: Tensor, table: _LabelTable, lambda_pull: float, lambda_push: float, margin: float) -> CCLLoss:
    N, T = len(prototypes), _unit(prototypes)
    with torch.no_grad():
        codes = (unit_features @ T.T).argmax(1)
        # Sum of the features of each code: L_max needs no [B, d] gather of prototypes.
        sums = torch.zeros_like(T).index_add_(0, codes, unit_features)
        same, different = table.pair_counts(codes, N, T.dtype)
        n_same, n_different = same.sum(), different.sum()
    l_max = 1 - (sums * T).sum() / len(unit_features)
    cos = T @ T.T
    zero = T.sum() * 0
    l_pull = (same * (1 - cos)).sum() / n_same if n_same > 0 else zero
    l_push = (different * torch.relu(cos - margin)).sum() / n_different if n_different > 0 else zero
    return CCLLoss(l_max, l_pull, l_push, l_max + lambda_pull * l_pull + lambda_push * l_push)


@dataclass(frozen=True)
class Codebook:
    """A learned codebook of one level."""

    prototypes: Tensor  # [N, d] float32, unit length
    initial: Tensor  # [N, d] float32, unit length: where they started
    curves: dict[str, np.ndarray]  # "max", "pull", "push", "total": [steps] float64

    def codes(self, features: Tensor) -> Tensor:  # [B] int64
        return assign(self.prototypes, features.to(self.prototypes.dtype))


def fit_codebook(features: Tensor, labels: Tensor, config: CodebookConfig, *, seed: int) -> Codebook:
    """Learn one level's codebook from all masks of a scene as one batch.

    ``features`` [B, d], ``labels`` [B] int64. Raises CodebookError without any feature, FeatureError
    on zero or non-finite ones. With all labels -1 only L_max acts.
    """
    if len(features) == 0:
        raise CodebookError("no mask features to learn a codebook from; check that the masks stage found masks at this level")
    generator = torch.Generator().manual_seed(seed)
    features = features.float()
    _check_vectors(features, "feature")  # before anything is drawn from them
    initial = initialise(features, config.n_prototypes, config.init, generator)
    _check(initial, features, labels)
    if config.shuffle_labels:  # after the start was drawn, so that all arms of an ablation start alike
        labels = shuffled(labels, generator)
    prototypes = initial.clone().requires_grad_(True)
    unit_features, table = _unit(features), _LabelTable(labels)
    optimiser = torch.optim.Adam([prototypes], lr=config.lr, betas=tuple(config.betas))
    curves = {k: np.zeros(config.steps) for k in ("max", "pull", "push", "total")}
    with _threads(1 if features.numel() < 2**20 else None):
        for step in range(config.steps):
            loss = _losses(prototypes, unit_features, table, config.lambda_pull, config.lambda_push, config.margin)
            for k, curve in curves.items():
                curve[step] = float(getattr(loss, k).detach())
            optimiser.zero_grad(set_to_none=True)
            loss.total.backward()
            optimiser.step()
    with torch.no_grad():
        learned = _unit(prototypes)
    if not torch.isfinite(learned).all():
        raise CodebookError("the codebook is not finite after training; lower codebook.lr or check the features")
    return Codebook(learned.detach(), initial, curves)


@contextlib.contextmanager
def _threads(n: int | None):
    """Run with n torch threads: on small problems starting threads costs more than the arithmetic."""
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def shuffled(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Labels permuted among the labelled features; which are unlabelled stays."""
    out = labels.clone()
    rows = (labels != -1).nonzero()[:, 0]
    out[rows] = labels[rows[torch.randperm(len(rows), generator=generator)]]
    return out


def initialise(features: Tensor, N: int, how: str, generator: torch.Generator) -> Tensor:
    """Initial unit prototypes [N, d].

    "random": uniform on the sphere. "kmeans": cosine k-means++ seeding and ten Lloyd rounds. Seeds
    beyond the number of distinct features are random directions: codes that nothing uses.
    """
    d = features.shape[1]
    random = _unit(torch.randn(N, d, generator=generator, dtype=features.dtype))
    if how == "random":
        return random
    if how != "kmeans":
        raise CodebookError(f"codebook.init={how!r} is unknown; use 'kmeans' or 'random'")
    F = _unit(features)
    centres = random.clone()
    chosen = int(torch.randint(len(F), (1,), generator=generator))
    distance = torch.full((len(F),), torch.inf, dtype=F.dtype)
    used = 0
    while used < N:
        centres[used] = F[chosen]
        used += 1
        distance = torch.minimum(distance, (1 - F @ centres[used - 1]).clamp_min(0))
        distance[distance < 1e-6] = 0  # rounding must not make duplicates of a centre eligible
        if not (distance > 0).any():
            break
        chosen = int(torch.multinomial(distance, 1, generator=generator))
    for _ in range(10):
        codes = (F @ centres[:used].T).argmax(1)
        sums = torch.zeros(used, d, dtype=F.dtype).index_add_(0, codes, F)
        alive = sums.norm(dim=1) > 1e-6  # an empty cluster keeps its centre
        centres[:used][alive] = _unit(sums[alive])
    return centres


def usage(codes: Tensor, N: int) -> Tensor:
    """How many features use each code [N] int64."""
    return torch.bincount(codes, minlength=N)


def perplexity(counts: Tensor) -> float:
    """exp of the entropy of code usage: the number of codes in effective use."""
    p = counts.double() / counts.sum().clamp_min(1)
    return float(torch.exp(-(p * torch.log(p.clamp_min(1e-300))).sum()))


def index_map(label_map: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Label map [H, W] (-1 none) and the code of each mask [M] -> code index map [H, W] int32, -1 = no mask."""
    table = np.append(np.asarray(codes, np.int32), np.int32(-1))
    return table[label_map]


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def _check(prototypes: Tensor, features: Tensor, labels: Tensor) -> None:
    if prototypes.ndim != 2 or features.ndim != 2 or prototypes.shape[1] != features.shape[1] or len(prototypes) == 0:
        raise CodebookError(f"prototypes {tuple(prototypes.shape)} and features {tuple(features.shape)} must be [N, d] and [B, d] with N > 0")
    if labels.shape != (len(features),) or labels.dtype.is_floating_point:
        raise CodebookError(f"labels have shape {tuple(labels.shape)} and type {labels.dtype}, expected ({len(features)},) integers")
    if len(features) == 0:
        raise CodebookError("an empty batch has no loss; pass at least one feature")
    _check_vectors(features, "feature")
    _check_vectors(prototypes, "prototype")


def _check_vectors(x: Tensor, name: str) -> None:
    norm = x.detach().norm(dim=1)
    bad = ~torch.isfinite(norm) | (norm < 1e-12)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise FeatureError(f"{name} {row} has length {float(norm[row])}; every {name} needs a finite direction: drop or recompute it")
