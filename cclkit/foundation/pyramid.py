"""The image trunk that mini-SAM and mini-SAM2 share: a residual pyramid of convolutions."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Norm(nn.InstanceNorm2d):
    """Over one image, not over a batch: training can then take single views, and many small steps
    learn faster than few large ones.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 1:
            return super().forward(x)
        # the same of one image, and three times as fast
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)


def norm(width: int) -> nn.Module:
    """The norm of all layers."""
    return Norm(width, affine=True)


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            norm(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            norm(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, width, H, W] twice
        return F.relu(x + self.body(x))


class Place(nn.Module):
    """Adds to every cell what its place in the image says, so that two equal objects get unequal
    embeddings.
    """

    def __init__(self, width: int):
        super().__init__()
        self.project = nn.Conv2d(10, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, width, H, W] twice
        y, x_ = torch.meshgrid(
            *(torch.linspace(-1, 1, n, dtype=x.dtype, device=x.device) for n in x.shape[-2:]),
            indexing="ij",
        )
        waves = [
            f(k * torch.pi * a) for k in (1, 2) for a in (x_, y) for f in (torch.sin, torch.cos)
        ]
        return x + self.project(torch.stack([x_, y, *waves])[None])


def _down(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), norm(b), nn.ReLU(inplace=True)
    )


class Pyramid(nn.Module):
    """A residual pyramid whose coarse levels are added back to the finer ones."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 128, 144)):
        super().__init__()
        w2, w4, w8, w16, w32 = widths
        self.channel_list = [w32, w16, w8, w4]  # sam2's neck reads it under this name, coarse first
        # no residual block at stride 4: with one, the same training groups pixels far worse
        self.stem = nn.Sequential(_down(3, w2), _down(w2, w4))
        self.stage8 = nn.Sequential(_down(w4, w8), Block(w8), Block(w8))
        self.stage16 = nn.Sequential(_down(w8, w16), Place(w16), Block(w16), Block(w16))
        self.stage32 = nn.Sequential(_down(w16, w32), Block(w32), Block(w32))
        self.from32 = nn.Conv2d(w32, w16, 1)
        self.from16 = nn.Conv2d(w16, w8, 1)
        self.merge16, self.merge8 = Block(w16), Block(w8)
        self.fine = nn.Conv2d(w4, w8, 2, stride=2)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Images [B, 3, S, S] -> maps at strides 4, 8, 16, 32."""
        a = self.stem(x)
        b = self.stage8(a)
        c = self.stage16(b)
        d = self.stage32(c)
        c = self.merge16(c + F.interpolate(self.from32(d), scale_factor=2, mode="nearest"))
        b = self.merge8(
            b + self.fine(a) + F.interpolate(self.from16(c), scale_factor=2, mode="nearest")
        )
        return [a, b, c, d]
