"""Blending weights: which Gaussians make up a pixel, and with what share (alpha T)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import GaussiansError
from . import _cpu
from .rasterize import Projection, _array, _constants


def blending_weights(projection: Projection, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k Gaussians with the largest weight alpha T in every pixel, largest first.

    Returns ids [H, W, k] int32, weights [H, W, k] float32, and residual [H, W] float32 in [0, 1]:
    1 - kept / total weight, the share of the pixel that k entries miss (0 where nothing is drawn).
    Unused entries have id 0 and weight 0. Raises GaussiansError if k < 1.
    """
    if k < 1:
        raise GaussiansError(f"k is {k}, expected at least 1 Gaussian per pixel")
    h, w, tiles = projection.height, projection.width, projection.tiles
    ids = np.zeros((h, w, k), np.int32)
    weights = np.zeros((h, w, k), np.float32)
    mass = np.zeros((h, w), np.float32)
    _cpu.run(
        _cpu.top_weights, tiles.start, tiles.gaussian,
        *(_array(t) for t in (projection.means2d, projection.conics, projection.opacities)), tiles.reach,
        _constants(tiles.reach.dtype), w, h, k, ids, weights, mass,
    )  # fmt: skip
    kept = weights.sum(axis=2)
    residual = np.where(mass > 0, 1 - kept / np.maximum(mass, 1e-30), 0).clip(0, 1).astype(np.float32)
    return torch.from_numpy(ids), torch.from_numpy(weights), torch.from_numpy(residual)
