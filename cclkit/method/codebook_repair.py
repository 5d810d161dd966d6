"""Moves of prototypes that no gradient makes.

A prototype that wins no mask has no gradient; two labels on one prototype have none from push,
which is constant there (cos = 1), and none from pull. Both are repaired by placing an unused
prototype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .codebook import LabelTable, assign, label_centroids, label_ids, unit


def revive(prototypes: Tensor, unit_features: Tensor) -> Tensor:
    """Move each prototype [N, d] that wins no feature [B, d] onto the feature farthest from its
    prototype, in place.

    One after the other, each counting for the next, until every feature lies on a prototype.
    Returns the moved rows [R] int64.
    """
    with torch.no_grad():
        codes = assign(prototypes, unit_features)
        dead = (torch.bincount(codes, minlength=len(prototypes)) == 0).nonzero()[:, 0]
        nearest = (unit_features @ unit(prototypes).T).max(1).values  # [B] cosine
        for n, row in enumerate(dead):
            farthest = nearest.argmin()
            if nearest[farthest] > 1 - 1e-6:  # fewer distinct features than prototypes
                return dead[:n]
            prototypes[row] = unit_features[farthest]
            nearest = torch.maximum(nearest, unit_features @ unit_features[farthest])
    return dead


def _homes(H: Tensor) -> Tensor:
    """Code [L] on which most masks of each label sit (first on ties), from labels by
    codes [L, N].
    """
    return H.argmax(1)


def colliding_labels(codes: Tensor, labels: Tensor) -> int:
    """How many labels have their commonest code in common with another label. ``codes``, ``labels``
    [B] int64, -1 = unlabelled.
    """
    ids, group_of = label_ids(labels, None)
    if not len(group_of):
        return 0
    sharing = torch.bincount(
        _homes(LabelTable(ids, group_of).histogram(codes, int(codes.max()) + 1))
    )
    return int(sharing[sharing > 1].sum())


def split(
    prototypes: Tensor, unit_features: Tensor, ids: Tensor, group_of: Tensor, *, cosine: float
) -> Tensor:
    """Give labels that share their prototype with a larger label an unused prototype at their
    centroid, in place.

    A label sits on the prototype [N, d] that most of its masks take; among those of one group on
    one prototype the one with most masks there keeps it. Another one leaves if its centroid's
    cosine with the keeper's is below ``cosine`` (above, they may be one object tracked twice).
    Labels with most masks go first; without an unused prototype nothing moves. ``ids`` [B] and
    ``group_of`` [L] as from `label_ids`. The masks follow by the next assignment. Returns the moved
    rows [R] int64.
    """
    with torch.no_grad():
        N, L = len(prototypes), len(group_of)
        codes = assign(prototypes, unit_features)
        unused = (torch.bincount(codes, minlength=N) == 0).nonzero()[:, 0].tolist()
        if not unused or L < 2:
            return torch.zeros(0, dtype=torch.int64)
        H, centroids = (
            LabelTable(ids, group_of).histogram(codes, N),
            label_centroids(unit_features, ids, L),
        )
        home, keeper, moved = _homes(H), {}, []
        for y in (
            H.max(1).values.argsort(descending=True, stable=True).tolist()
        ):  # most masks on its prototype first
            first = keeper.setdefault((int(home[y]), int(group_of[y])), y)
            if (
                first != y
                and unused
                and centroids[y].any()
                and centroids[first] @ centroids[y] < cosine
            ):
                moved.append(unused.pop(0))
                prototypes[moved[-1]] = centroids[y]
    return torch.tensor(moved, dtype=torch.int64)
