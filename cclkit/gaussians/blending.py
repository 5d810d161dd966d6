"""Blending weights: which Gaussians make up a pixel, and with what share (alpha T)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import GaussiansError
from . import _cpu
from .rasterize import Projection, _array, _constants, splat_features


def blending_weights(
    projection: Projection, k: int, pixels: np.ndarray | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The k Gaussians with the largest weight alpha T in every pixel, largest first.

    Returns ids [H, W, k] int32, weights [H, W, k] float32, and residual [H, W] float32 in [0, 1]:
    1 - kept / total weight, the share of the pixel that k entries miss (0 where nothing is drawn).
    Unused entries have id 0 and weight 0. Of some pixels only (``pixels`` [P] int, y * width + x,
    each once), [P, k], [P, k] and [P], in less time. Raises GaussiansError if k < 1 or for pixels
    out of the image or twice.
    """
    if k < 1:
        raise GaussiansError(f"k is {k}, expected at least 1 Gaussian per pixel")
    h, w, tiles = projection.height, projection.width, projection.tiles
    wanted = np.arange(h * w) if pixels is None else np.asarray(pixels, np.int64)
    tile = wanted // w // _cpu.TILE * -(-w // _cpu.TILE) + wanted % w // _cpu.TILE
    order = np.lexsort((wanted, tile))
    outside = len(wanted) > 0 and not 0 <= wanted.min() <= wanted.max() < h * w
    twice = (np.diff(wanted[order])[np.diff(tile[order]) == 0] == 0).any()
    if outside or twice:
        raise GaussiansError(
            f"pixels: expected each once, from 0 to {h * w - 1} (y * width + x), got {len(wanted)}"
            f" from {wanted.min()} to {wanted.max()}"
        )
    first = np.concatenate([[0], np.cumsum(np.bincount(tile, minlength=len(tiles.start) - 1))])
    ids = np.zeros((len(wanted), k), np.int32)
    weights = np.zeros((len(wanted), k), np.float32)
    mass = np.zeros(len(wanted), np.float32)
    _cpu.run(
        _cpu.top_weights,
        tiles.start,
        tiles.gaussian,
        *(_array(t) for t in (projection.means2d, projection.conics, projection.opacities)),
        tiles.reach,
        _constants(tiles.reach.dtype),
        w,
        wanted,
        order,
        first,
        k,
        ids,
        weights,
        mass,
    )
    kept = weights.sum(axis=1)
    residual = (
        np.where(mass > 0, 1 - kept / np.maximum(mass, 1e-30), 0).clip(0, 1).astype(np.float32)
    )
    out = tuple(torch.from_numpy(a) for a in (ids, weights, residual))
    return out if pixels is not None else tuple(t.unflatten(0, (h, w)) for t in out)


def lift(
    projection: Projection,
    image: Tensor,  # [H, W, C]
) -> tuple[Tensor, Tensor]:  # [G, C], [G]
    """What the pixels of an image give back to the Gaussians that they are made of: sums of alpha T
    times pixel, and of alpha T.

    The transpose of splatting; summed over views, the first divided by the second is a Gaussian's
    mean pixel. In the projection's dtype. Raises GaussiansError if the image does not have the
    projection's size.
    """
    if image.ndim != 3 or image.shape[:2] != (projection.height, projection.width):
        raise GaussiansError(
            f"image has shape {tuple(image.shape)}, expected ({projection.height},"
            f" {projection.width}, C): the size of its camera"
        )
    with_ones = torch.cat([image, torch.ones_like(image[..., :1])], -1).to(projection.means2d.dtype)
    features = torch.zeros(
        len(projection), with_ones.shape[-1], dtype=with_ones.dtype, requires_grad=True
    )
    (sums,) = torch.autograd.grad(splat_features(projection, features), features, with_ones)
    return sums[:, :-1], sums[:, -1]


def splat_entries(
    features: Tensor,  # [G, C]
    ids: Tensor,  # [P, K] int32
    weights: Tensor,  # [P, K]
    gradient: Tensor | None = None,  # [G, C]
) -> Tensor:  # [P, C]
    """Sums of weights times features, differentiable in the features: rendered pixels, from entries
    as `blending_weights` gives them.

    ``gradient``: memory of the features' shape that the gradient on the CPU is written into, zeros
    at first and then left alone. New memory for all Gaussians would cost more than the sums. It
    holds the gradient of the last backward pass only, so it suits training steps that end before
    the next begins.
    """
    if gradient is None or features.is_cuda:
        return torch.nn.functional.embedding_bag(
            ids, features, per_sample_weights=weights, mode="sum"
        )
    return _Entries.apply(features, ids, weights, gradient)


class _Entries(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, ids: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(ids, weights)
        ctx.gradient = gradient
        return torch.nn.functional.embedding_bag(
            ids, features, per_sample_weights=weights, mode="sum"
        )

    @staticmethod
    def backward(ctx, upstream: Tensor):
        total = ctx.gradient.zero_()
        _cpu.run(
            _cpu.scatter_rows,
            *(_array(t) for t in ctx.saved_tensors),
            _array(upstream),
            total.numpy(),
        )
        # a view: autograd copies what has another owner
        return total.view_as(total), None, None, None
