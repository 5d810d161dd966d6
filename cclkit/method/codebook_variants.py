"""Where a codebook starts: initial prototypes, and the shuffled labels of the control."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import CodebookError
from .codebook import label_centroids, label_ids, unit


def initialise(
    features: Tensor,
    N: int,
    how: str,
    generator: torch.Generator,
    labels: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Initial unit prototypes [N, d] for features [B, d].

    "random": uniform on the sphere. "kmeans": cosine k-means++ seeding and ten Lloyd rounds.
    "tracks": the centroids of the labels [B] (the N largest labels; equal centroids once), then
    k-means++ seeds and Lloyd rounds for the other prototypes around them. Seeds beyond the number
    of distinct features are random directions: codes that nothing uses. With all labels -1 "tracks"
    is "kmeans". Raises CodebookError on an unknown ``how``, or "tracks" without labels.
    """
    d = features.shape[1]
    random = unit(torch.randn(N, d, generator=generator, dtype=features.dtype))
    if how == "random":
        return random
    if how not in ("kmeans", "tracks"):
        raise CodebookError(f"codebook.init={how!r} is unknown; use 'kmeans', 'random' or 'tracks'")
    F = unit(features)
    seeds = F[:0] if how == "kmeans" else _largest_centroids(F, labels, groups)
    centres = random.clone()
    distance = torch.full((len(F),), torch.inf, dtype=F.dtype)
    used = 0

    def place(centre: Tensor) -> None:
        nonlocal used, distance
        centres[used] = centre
        used += 1
        distance = torch.minimum(distance, (1 - F @ centre).clamp_min(0))
        distance[distance < 1e-6] = 0  # rounding must not make duplicates of a centre eligible

    for seed in seeds:
        if used < N and (used == 0 or (centres[:used] @ seed).max() < 1 - 1e-6):
            place(seed)
    fixed = used  # Lloyd rounds would pull a track's seed towards its neighbours
    if used == 0:
        place(F[int(torch.randint(len(F), (1,), generator=generator))])
    while (distance > 0).any():
        chosen = int(torch.multinomial(distance, 1, generator=generator))
        if used == N:
            break
        place(F[chosen])
    for _ in range(10):
        codes = (F @ centres[:used].T).argmax(1)
        sums = torch.zeros(used, d, dtype=F.dtype).index_add_(0, codes, F)
        alive = sums.norm(dim=1) > 1e-6  # an empty cluster keeps its centre
        alive[:fixed] = False
        centres[:used][alive] = unit(sums[alive])
    return centres


def _largest_centroids(F: Tensor, labels: Tensor | None, groups: Tensor | None) -> Tensor:
    """Unit centroids [L', d] of all labels that have one, largest label first."""
    if labels is None:
        raise CodebookError(
            "codebook.init='tracks' needs labels to seed from; pass them, or use 'kmeans'"
        )
    ids, group_of = label_ids(labels, groups)
    centroids = label_centroids(F, ids, len(group_of))
    size = torch.bincount(ids[ids != -1], minlength=len(group_of))
    order = size.argsort(descending=True, stable=True)
    return centroids[order[centroids[order].norm(dim=1) > 0.5]]


def shuffled(labels: Tensor, generator: torch.Generator, groups: Tensor | None = None) -> Tensor:
    """Labels permuted among the labelled features (of a group); which are unlabelled stays."""
    out = labels.clone()
    groups = torch.zeros_like(labels) if groups is None else groups
    for g in groups.unique():
        rows = ((labels != -1) & (groups == g)).nonzero()[:, 0]
        out[rows] = labels[rows[torch.randperm(len(rows), generator=generator)]]
    return out
