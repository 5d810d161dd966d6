"""Seeded problems that several benchmarks share: the same numbers on every machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cclkit.gaussians.model import Gaussians
from cclkit.scenes.scene import Camera, View


def gaussians_in_view(
    n_gaussians: int, width: int, height: int, *, sh_degree: int, seed: int
) -> tuple[Gaussians, Camera]:
    """Gaussians spread evenly over the image at depths 2..10, and the camera that sees them.

    Standard deviations are 1.5 to 8 pixels (log-uniform, per axis), opacities 0.1 to 0.9: at
    320x240 and 20,000 a Gaussian touches 5 to 8 tiles on average and pixels saturate in the densest
    places, as in a half-trained scene.
    """
    rng = torch.Generator().manual_seed(seed)

    def uniform(lo: float, hi: float, *shape: int) -> torch.Tensor:
        return lo + (hi - lo) * torch.rand(shape, generator=rng)

    focal = 0.9 * width
    z = uniform(2.0, 10.0, n_gaussians)
    x = (uniform(0, width, n_gaussians) - width / 2) / focal * z
    y = (uniform(0, height, n_gaussians) - height / 2) / focal * z
    sigma = torch.exp(uniform(np.log(1.5), np.log(8.0), n_gaussians, 3))  # pixels
    opacity = uniform(0.1, 0.9, n_gaussians)
    n_sh = (sh_degree + 1) ** 2
    gaussians = Gaussians(
        means=torch.stack([x, y, z], -1),
        quats=torch.randn((n_gaussians, 4), generator=rng),
        log_scales=torch.log(sigma * z[:, None] / focal),
        logit_opacities=torch.logit(opacity),
        sh=0.3 * torch.randn((n_gaussians, n_sh, 3), generator=rng),
    )
    K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    return gaussians, Camera(K, np.eye(4), width, height)


def field_of_stripes(
    n_gaussians: int, width: int, height: int, n_codes: int, *, levels: int = 1, seed: int
) -> tuple[Gaussians, View, np.ndarray]:
    """Gaussians as in `gaussians_in_view`, one view, and its index maps [levels, H, W] int32.

    The maps are ``n_codes`` stripes, upright at the first level and level at the second.
    """
    gaussians, camera = gaussians_in_view(n_gaussians, width, height, sh_degree=0, seed=seed)
    upright = np.broadcast_to(np.arange(width) * n_codes // width, (height, width))
    level = np.broadcast_to((np.arange(height) * n_codes // height)[:, None], (height, width))
    view = View("seeded", Path("seeded"), camera)
    return gaussians, view, np.stack([upright, level][:levels]).astype(np.int32)
