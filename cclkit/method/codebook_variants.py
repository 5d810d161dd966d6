"""Codebooks beyond the paper's form, all of it ours: what `CodebookConfig` can turn on.

init        starts: k-means, random, track centroids                    `initialise`
normalisation, collisions "centroids" and "soft", shared codebooks      `pair_weights`
collisions "split", revive_every   unused prototypes placed anew        `repair`
update "ema"                       averages instead of gradients        `average`
shuffle_labels                     the control of the ablation          `shuffled`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import CodebookError
from .codebook import Pairs, assign, labels_by_codes, numbered, sums_by_code, unit

if TYPE_CHECKING:
    from .codebook_fit import CodebookConfig


# ----------------------------------------------------------------- starts and labels


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
        sums = sums_by_code(F, codes, used)
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
    ids, group_of = numbered_in_groups(labels, groups)
    centroids = label_centroids(F, ids, len(group_of))
    size = torch.bincount(ids[ids != -1], minlength=len(group_of))
    order = size.argsort(descending=True, stable=True)
    return centroids[order[centroids[order].norm(dim=1) > 0.5]]


def label_centroids(F: Tensor, ids: Tensor, L: int) -> Tensor:
    """Unit centroid of each label [L, d]; zero for a label whose features are missing or cancel,
    which then has no direction.
    """
    # the unlabelled go to a row of their own: no [B, d] copy of the others
    sums = sums_by_code(F, torch.where(ids == -1, L, ids), L + 1)[:L]
    length = sums.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-6, sums / length.clamp_min(1e-6), 0)


def numbered_in_groups(labels: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor]:
    """Labels [B] renumbered 0..L-1, one number per label and group (-1 stays), and the group
    0..G-1 of each number [L].
    """
    if groups is None:
        ids = numbered(labels)
        return ids, torch.zeros(int(ids.max()) + 1, dtype=torch.int64)
    ids = torch.full_like(labels, -1, dtype=torch.int64)
    rows = (labels != -1).nonzero()[:, 0]
    keys = torch.stack([groups[rows], labels[rows]], 1)
    keys, ids[rows] = keys.unique(dim=0, return_inverse=True)
    return ids, keys[:, 0].unique(return_inverse=True)[1]


def shuffled(labels: Tensor, generator: torch.Generator, groups: Tensor | None = None) -> Tensor:
    """Labels permuted among the labelled features (of a group); which are unlabelled stays."""
    out = labels.clone()
    groups = torch.zeros_like(labels) if groups is None else groups
    for g in groups.unique():
        rows = ((labels != -1) & (groups == g)).nonzero()[:, 0]
        out[rows] = labels[rows[torch.randperm(len(rows), generator=generator)]]
    return out


# ----------------------------------------------------------------- other weights of pairs


def pair_weights(
    T: Tensor,  # [N, d] unit prototypes
    F: Tensor,  # [B, d] unit features
    codes: Tensor,  # [B] int64
    ids: Tensor,  # [B] int64, from `numbered_in_groups`
    group_of: Tensor,  # [L] int64
    *,
    normalisation: str = "pairs",
    collisions: str = "ignore",
    temperature: float = 0.02,
) -> Pairs:
    """Other tables of pairs than `codebook.count_pairs`', for the same penalties.

    Groups (levels that share a codebook): only pairs within one group count, and a label means
    something within its group only.

    ``normalisation`` "labels": the mean over labels (pull) or pairs of labels (push) of each one's
    own mean, so that a label's weight does not grow with the square of its size.

    ``collisions`` "soft": a mask stands in a pair for every prototype, weighted by p_i =
    softmax_j(cos(F_i, T_j) / ``temperature``), instead of for its nearest alone. The weights are no
    more differentiated than the paper's argmax is (with a gradient through them the mechanism
    experiment gained less). A collision then has a gradient from the other prototypes near it.

    ``collisions`` "centroids": instead of the second mask's prototype stands the centroid of its
    label in feature space, a constant. Two labels on one prototype then have a gradient, which the
    paper's form lacks: it goes to the larger label, until the smaller one's masks are nearer to
    another one.

    With weights a_y per pair inside label y and b_y b_z per pair between y and z, H the table of
    labels by codes, A = diag a, B = diag b, ordered pairs on codes (α, β) weigh in total

        equal labels:      Hᵀ A H minus what it counts of masks paired with themselves
        different labels:  Σ_g (H_gᵀ b)(H_gᵀ b)ᵀ - Hᵀ B² H    pairs of a group minus equal labels

    "pairs": a = b = 1. "labels": a = 1 / (n(n-1)), b = 1 / n for a label of n masks.
    """
    with torch.no_grad():
        L, N = len(group_of), len(T)
        labelled = (ids != -1).nonzero()[:, 0]
        label = ids[labelled]
        # [L]; 0 for a label that a minibatch lacks
        size = torch.bincount(label, minlength=L).double()
        inside, between, n_same, n_different, member = _weights(size, group_of, normalisation)
        if collisions == "soft":
            P = torch.softmax(F @ T.T / temperature, 1)[labelled].double()  # [B', N]
            H = torch.zeros(L, N, dtype=P.dtype).index_add_(0, label, P)
            alone = P.T @ (inside[label][:, None] * P)
        else:
            H = torch.bincount(label * N + codes[labelled], minlength=L * N).view(L, N).double()
            alone = torch.diag(inside @ H)
        weighted = between[:, None] * H
        of_group = member @ weighted  # [G, N]
        if collisions == "centroids":
            same = (inside * (size - 1).clamp_min(0))[:, None] * H
            different = (between * size)[:, None] * (of_group[group_of] - weighted)
            return Pairs(same, different, n_same, n_different, label_centroids(F, ids, L))
        same = H.T @ (inside[:, None] * H) - alone
        different = of_group.T @ of_group - weighted.T @ weighted
        return Pairs(same, different, n_same, n_different)


def _weights(
    n: Tensor, group_of: Tensor, normalisation: str
) -> tuple[Tensor, Tensor, float, float, Tensor]:
    """For labels of n [L] masks: a and b of `pair_weights`, both [L], their totals over all pairs
    of equal and of different labels, and which label is in which group [G, L].
    """
    L = len(group_of)
    member = torch.zeros(int(group_of.max()) + 1 if L else 0, L, dtype=torch.float64)
    member[group_of, torch.arange(L)] = 1
    if normalisation == "pairs":
        one = torch.ones_like(n)
        n_same = float((n * (n - 1)).sum())
        n_different = float(((member @ n) ** 2).sum() - (n**2).sum())
        return one, one, n_same, n_different, member
    inside = (n > 1) / (n * (n - 1)).clamp_min(1)
    between = (n > 0) / n.clamp_min(1)
    there = (n > 0).double()
    n_different = float(((member @ there) ** 2).sum() - there.sum())
    return inside, between, float((n > 1).sum()), n_different, member


# ----------------------------------------------------------------- moves that no gradient makes


def repair(
    step: int,
    config: CodebookConfig,
    prototypes: Tensor,
    F: Tensor,
    ids: Tensor,
    group_of: Tensor,
    optimiser: torch.optim.Adam,
) -> None:
    """Place unused prototypes anew, in place, at the steps that the settings name.

    A prototype that wins no mask has no gradient; two labels on one prototype have none from push,
    which is constant there (cos = 1), and none from pull.
    """
    moved = []
    if config.revive_every and step and step % config.revive_every == 0:
        moved.append(revive(prototypes.data, F))
    if config.collisions == "split" and step and step % config.split_every == 0:
        moved.append(split(prototypes.data, F, ids, group_of, cosine=config.split_cosine))
    for rows in moved:  # Adam's moments of these rows belong to another place
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in optimiser.state[prototypes]:
                optimiser.state[prototypes][moment][rows] = 0


def revive(prototypes: Tensor, F: Tensor) -> Tensor:
    """Move each prototype [N, d] that wins no feature [B, d] onto the feature farthest from its
    prototype, in place.

    One after the other, each counting for the next, until every feature lies on a prototype.
    Returns the moved rows [R] int64.
    """
    with torch.no_grad():
        codes = assign(prototypes, F)
        dead = (torch.bincount(codes, minlength=len(prototypes)) == 0).nonzero()[:, 0]
        nearest = (F @ unit(prototypes).T).max(1).values  # [B] cosine
        for n, row in enumerate(dead):
            farthest = nearest.argmin()
            if nearest[farthest] > 1 - 1e-6:  # fewer distinct features than prototypes
                return dead[:n]
            prototypes[row] = F[farthest]
            nearest = torch.maximum(nearest, F @ F[farthest])
    return dead


def split(prototypes: Tensor, F: Tensor, ids: Tensor, group_of: Tensor, *, cosine: float) -> Tensor:
    """Give labels that share their prototype with a larger label an unused prototype at their
    centroid, in place.

    A label sits on the prototype [N, d] that most of its masks take; among those of one group on
    one prototype the one with most masks there keeps it. Another one leaves if its centroid's
    cosine with the keeper's is below ``cosine`` (above, they may be one object tracked twice).
    Labels with most masks go first; without an unused prototype nothing moves. ``ids`` [B] and
    ``group_of`` [L] as from `numbered_in_groups`. The masks follow by the next assignment. Returns
    the moved rows [R] int64.
    """
    with torch.no_grad():
        N, L = len(prototypes), len(group_of)
        codes = assign(prototypes, F)
        unused = (torch.bincount(codes, minlength=N) == 0).nonzero()[:, 0].tolist()
        if not unused or L < 2:
            return torch.zeros(0, dtype=torch.int64)
        most, home = labels_by_codes(codes, ids, N).max(1)  # first on ties
        centroids = label_centroids(F, ids, L)
        keeper: dict[tuple[int, int], int] = {}
        moved = []
        for y in most.argsort(descending=True, stable=True).tolist():
            first = keeper.setdefault((int(home[y]), int(group_of[y])), y)
            if first == y or not unused or not centroids[y].any():
                continue
            if centroids[first] @ centroids[y] < cosine:
                moved.append(unused.pop(0))
                prototypes[moved[-1]] = centroids[y]
    return torch.tensor(moved, dtype=torch.int64)


# ----------------------------------------------------------------- averages instead of gradients


def average(
    prototypes: Tensor, gradient: Tensor, F: Tensor, codes: Tensor, *, decay: float
) -> None:
    """One step of exponential averaging, in place: T_j <- unit(decay T_j + (1 - decay) (mean of its
    features - B/n_j g_j)).

    g is the gradient of the total without L_max. Since L_max's is -n_j/B times the mean (up to the
    part along T_j), the factor B/n_j puts both on one scale: a prototype rests exactly where the
    gradient of the total loss vanishes. Prototypes without a feature stay.
    """
    n = torch.bincount(codes, minlength=len(prototypes))[:, None]
    target = (sums_by_code(F, codes, len(prototypes)) - len(codes) * gradient) / n.clamp_min(1)
    mixed = decay * prototypes + (1 - decay) * target
    length = mixed.norm(dim=1, keepdim=True)
    prototypes.copy_(
        torch.where((n > 0) & (length > 1e-6), mixed / length.clamp_min(1e-6), prototypes)
    )
