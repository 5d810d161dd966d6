"""The semantic field, ours beside the paper's form: pixels from a cache, and a start by votes.

Both rest on frozen geometry, where a rendered feature is a fixed sum over Gaussians, F = A X: X
holds a feature per Gaussian, a row of A the weights alpha T of one pixel.

A *cached* step takes random pixels of all views, whose rows of A were computed once
(`gaussians.blending_cache`), instead of rendering a view. A *start by votes* gives every Gaussian
the mean of what its pixels ask for, the closed form of `lifting`, before any step is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import FieldError
from ..gaussians.blending_cache import BlendingCache
from ..gaussians.model import Gaussians
from ..scenes.scene import View
from .field import FieldConfig, SemanticField, WholeViews, optimise, start_field, with_codes
from .lifting import VOTERS_AT_ONCE

Pixels = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Features [G, C] -> rendered features [P, C] and codes [L, P] of some pixels."""


def train_field_variant(
    gaussians: Gaussians,
    views: Sequence[View],
    index_maps: Mapping[str, np.ndarray],  # view name -> [levels, H, W] int, -1 = no mask
    n_codes: Sequence[int],  # N of each level
    config: FieldConfig,
    *,
    seed: int,
    cache: BlendingCache | None = None,
    progress: Callable[[dict], None] = lambda state: None,
) -> tuple[SemanticField, dict[str, np.ndarray]]:
    """As `field.train_field`, with what the settings change in it.

    Mode "cached": ``config.batch`` pixels per step, drawn with replacement from the ``cache``;
    "rasterised": one view per step. Init "votes": features start as `voted_start` makes them.

    Raises FieldError when no pixel of any view carries a code, when the cache is missing or was
    made from other masks, and for mode "joint"; ArtefactError when the cache was made from other
    Gaussians or cameras; GaussiansError for Gaussians that cannot be rendered.
    """
    if config.mode == "joint":
        raise FieldError(
            "field.mode is 'joint', which trains the Gaussians too; call field.train_joint, or"
            " choose 'rasterised' or 'cached'"
        )
    usable = with_codes(views, index_maps)
    gaussians = gaussians.detach().validate()
    generator = torch.Generator().manual_seed(seed)
    device = gaussians.means.device
    features, decoders = start_field(len(gaussians), n_codes, config, generator, device)
    pixels, everything = (
        _from_cache(gaussians, views, index_maps, config, generator, cache)
        if config.mode == "cached"
        else _from_views(gaussians, usable, index_maps, generator)
    )
    if config.init == "votes":
        features = voted_start(features, everything, n_codes, generator)
    return optimise(features, decoders, pixels, config, progress)


def pixels_of_all_views(
    cache: BlendingCache,
    codes: np.ndarray,  # [L, S] int, as `BlendingCache.codes` gives them
    batch: int,
    generator: torch.Generator,
) -> Pixels:
    """``batch`` random pixels of the cache, others at every call."""
    gradient = None

    def next_pixels(features: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal gradient
        if gradient is None:
            gradient = torch.zeros_like(features, requires_grad=False)
        # sorted: neighbours share Gaussians, which then are still in the processor's own cache
        rows = np.sort(torch.randint(len(cache), (batch,), generator=generator).numpy())
        rendered = cache.splat(features, rows, gradient)
        return rendered, torch.from_numpy(codes[:, rows]).long().to(features.device)

    return next_pixels


def voted_start(
    features: Tensor,  # [G, L * d_f], which Gaussians without votes keep
    everything: Iterable[Pixels],  # all pixels, some at a time
    n_codes: Sequence[int],  # N of each level
    generator: torch.Generator,
) -> Tensor:  # [G, L * d_f]
    """The closed form as a start: every code gets a random unit vector, every Gaussian the mean of
    its pixels' vectors, weighted by alpha T.

    Rendering is linear in the features, F = A X, so its gradient is the transpose: one backward
    pass gives the sums of votes.
    """
    G, L, dim = len(features), len(n_codes), features.shape[1] // len(n_codes)
    vectors = [_code_vectors(n, dim, generator).to(features.device) for n in n_codes]
    votes = features.new_zeros(G, L * (dim + 1), requires_grad=True)
    for pixels in everything:
        rendered, codes = pixels(votes)
        wanted = torch.cat([v[own] for v, own in zip(vectors, codes)], 1)
        (rendered * wanted).sum().backward()
    sums = votes.grad.view(G, L, dim + 1)
    total = sums[..., -1:]
    mean = sums[..., :-1] / total.clamp_min(torch.finfo(sums.dtype).tiny)
    return torch.where(total > 0, mean, features.view(G, L, dim)).flatten(1)


def _code_vectors(n: int, dim: int, generator: torch.Generator) -> Tensor:  # [n + 1, dim + 1]
    """A random unit vector per code and a 1 that counts the vote; the last row, code -1, is zero:
    it votes for nothing.
    """
    unit = nn.functional.normalize(torch.randn(n, dim, generator=generator), dim=1)
    counted = torch.cat([unit, torch.ones(n, 1)], 1)
    return torch.cat([counted, torch.zeros_like(counted[:1])])


def _from_cache(
    gaussians: Gaussians,
    views: Sequence[View],
    index_maps: Mapping[str, np.ndarray],
    config: FieldConfig,
    generator: torch.Generator,
    cache: BlendingCache | None,
) -> tuple[Pixels, Iterable[Pixels]]:
    """Pixels of a step, and all pixels in pieces."""
    if cache is None:
        raise FieldError(
            "field.mode is 'cached' and no cache was given; make one with build_blending_cache"
        )
    cache.check(gaussians, views)
    codes = cache.codes(index_maps)

    def piece(first: int) -> Pixels:
        rows = np.arange(first, min(first + VOTERS_AT_ONCE, len(cache)))
        wanted = torch.from_numpy(codes[:, rows]).long().to(gaussians.means.device)
        return lambda features: (cache.splat(features, rows), wanted)

    everything = (piece(first) for first in range(0, len(cache), VOTERS_AT_ONCE))
    return pixels_of_all_views(cache, codes, config.batch, generator), everything


def _from_views(
    gaussians: Gaussians,
    views: Sequence[View],
    index_maps: Mapping[str, np.ndarray],
    generator: torch.Generator,
) -> tuple[Pixels, Iterable[Pixels]]:
    """Pixels of a step, and all pixels view by view."""
    pixels = WholeViews(gaussians, views, index_maps, generator)
    return pixels, ((lambda features, v=v: pixels.of_view(v, features)) for v in views)
