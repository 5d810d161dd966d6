"""Image quality: PSNR and SSIM, as losses and as scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def psnr(a: Tensor, b: Tensor) -> Tensor:  # [..., 3] in [0, 1] -> scalar
    """Peak signal-to-noise ratio in dB for values in [0, 1]; inf for equal images."""
    return -10 * torch.log10(F.mse_loss(a, b))


def ssim(a: Tensor, b: Tensor) -> Tensor:  # [H, W, 3] in [0, 1] -> scalar
    """Structural similarity (Wang et al. 2004), mean over pixels and channels.

    Gaussian window of 11 with sigma 1.5, zero padding at the border as in 3D Gaussian Splatting.
    """
    x = torch.arange(11, dtype=a.dtype, device=a.device) - 5
    window = torch.exp(-(x**2) / (2 * 1.5**2))
    window = window / window.sum()

    def blur(maps: Tensor) -> Tensor:  # [n, H, W]
        n = len(maps)  # one group per channel: 10x faster on CPUs than channels as a batch
        maps = F.conv2d(
            maps[None], window.reshape(1, 1, 11, 1).expand(n, 1, 11, 1), padding=(5, 0), groups=n
        )
        return F.conv2d(
            maps, window.reshape(1, 1, 1, 11).expand(n, 1, 1, 11), padding=(0, 5), groups=n
        )[0]

    a, b = a.permute(2, 0, 1), b.permute(2, 0, 1)
    mu_a, aa, ab = blur(torch.cat([a, a * a, a * b])).chunk(3)
    # apart: no backward pass through the photograph
    mu_b, bb = blur(torch.cat([b, b * b])).chunk(2)
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mu_a * mu_b + c1) * (2 * (ab - mu_a * mu_b) + c2)
    denominator = (mu_a**2 + mu_b**2 + c1) * (aa - mu_a**2 + bb - mu_b**2 + c2)
    return (numerator / denominator).mean()
