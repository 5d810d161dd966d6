"""A semantic field without training: every Gaussian takes the code that most of its pixels vote
for.

A pixel votes with its code for each Gaussian that it is made of, weighted by alpha T: with the
blending weights as a matrix A (a row per pixel, a column per Gaussian), votes = Aᵀ onehot(codes).
Neither features nor a decoder are needed, so this is a baseline for the field of `field.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import FieldError
from ..gaussians.blending_cache import BlendingCache
from ..gaussians.model import Gaussians
from ..gaussians.rasterize import project, splat_features
from ..scenes.scene import Camera

VOTERS_AT_ONCE = 1 << 18
"""Sampled pixels counted at once; like the next one it bounds memory and does not change
results.
"""
CODES_AT_ONCE = 16
"""Codes splatted at once."""


@dataclass(frozen=True)
class VotedField:
    """The code of each Gaussian at each level, and how sure the votes were."""

    code: Tensor  # [levels, G] int64, -1 = no vote
    share: Tensor  # [levels, G] float32 share of a Gaussian's votes that its code got, 0 = no vote

    def codes(self, gaussians: Gaussians, camera: Camera) -> np.ndarray:  # [levels, H, W] int32
        """Code with the largest weight in every pixel, of equals the smallest; -1 where no Gaussian
        with a code is seen.

        Raises FieldError for other Gaussians than those that were voted for.
        """
        if self.code.shape[1] != len(gaussians):
            raise FieldError(
                f"the field has codes of {self.code.shape[1]} Gaussians, the reconstruction has"
                f" {len(gaussians)}; vote again with these Gaussians"
            )
        projection = project(gaussians, camera)
        out = []
        for own in self.code:
            best = torch.zeros(camera.height, camera.width)
            code = torch.full(best.shape, -1, dtype=torch.int32)
            for some in torch.unique(own[own >= 0]).split(CODES_AT_ONCE):
                weight, place = splat_features(projection, (own[:, None] == some).float()).max(-1)
                better = weight > best
                best = torch.where(better, weight, best)
                code = torch.where(better, some[place].int(), code)
            out.append(code)
        return torch.stack(out).numpy()


def code_votes(
    cache: BlendingCache,
    codes: np.ndarray,  # [S] int, one level of BlendingCache.codes; -1 = no vote
    n_gaussians: int,
    n_codes: int,
) -> Tensor:
    """Votes for each code that each Gaussian got from the sampled pixels: [G, N] float32, sums of
    alpha T.

    Raises FieldError for a code that is not in 0..n_codes - 1.
    """
    if codes.max(initial=-1) >= n_codes:
        raise FieldError(
            f"the index maps hold code {codes.max()}, the codebook has {n_codes}; use the maps of"
            " this codebook"
        )
    votes = torch.zeros(n_gaussians * n_codes)
    voters = np.flatnonzero(codes >= 0)
    for start in range(0, len(voters), VOTERS_AT_ONCE):
        rows = voters[start : start + VOTERS_AT_ONCE]
        place = cache.ids[rows].astype(np.int64) * n_codes + codes[rows, None]
        votes.index_add_(
            0, torch.from_numpy(place).flatten(), torch.from_numpy(cache.weights[rows]).flatten()
        )
    return votes.view(n_gaussians, n_codes)


def vote_field(
    gaussians: Gaussians,
    cache: BlendingCache,
    index_maps: Mapping[str, np.ndarray],  # view name -> [levels, H, W] int, -1 = no mask
    n_codes: Sequence[int],  # N of each level
) -> VotedField:
    """Top code of every Gaussian at each level; nothing is drawn and nothing optimised.

    A stratified cache gives the masks of a view about equal numbers of votes, an area-weighted one
    gives them by size. Raises FieldError for index maps of other masks or codes, ArtefactError for
    other Gaussians than the cache's.
    """
    cache.check(gaussians)
    sampled = cache.codes(index_maps)
    if len(sampled) != len(n_codes):
        raise FieldError(
            f"the index maps have {len(sampled)} levels and {len(n_codes)} codebook sizes were"
            " given; pass one size per level"
        )
    code, share = [], []
    for codes, n in zip(sampled, n_codes):
        votes = code_votes(cache, codes, len(gaussians), n)
        total = votes.sum(1)
        most, winner = votes.max(1)
        code.append(torch.where(total > 0, winner, -1))
        share.append(most / total.clamp_min(torch.finfo(torch.float32).tiny))
    return VotedField(torch.stack(code), torch.stack(share))
