"""A small Segment Anything Model: segment_anything's own `Sam` with a convolutional encoder.

Prompt encoder, two-way transformer and mask decoder are the package's classes, only narrower, so
the predictor and the automatic generator work on it unchanged. Output k answers for granularity k
(0 subpart, 1 part, 2 whole), because that is how it is trained.
"""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import nn
from torch.nn import functional as F

IMAGE_SIZE, CLICK_SIZE = 256, 320
"""Longest side of the image the encoder sees, pixels: in training, and in use. On 32 views of scenes that neither trained nor score
the weights, IoU of clicks was .43/.47/.68 (subpart/part/whole) at 256 and .45/.49/.69 at 320: small regions gain from larger maps."""
STRIDE, COARSEST = 8, 32
"""Pixels of one cell of the image embedding, and of the encoder's coarsest level."""
WIDTH = 64
"""Channels of the image embedding and of the mask decoder."""
PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def build_mini_sam(image_size: int = IMAGE_SIZE) -> Sam:
    """The architecture, with fresh weights from torch's global generator (seed it for training)."""
    sam = Sam(
        image_encoder=ConvEncoder(image_size),
        prompt_encoder=PromptEncoder(
            embed_dim=WIDTH, image_embedding_size=(image_size // STRIDE,) * 2, input_image_size=(image_size,) * 2, mask_in_chans=16
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3, transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=256, num_heads=4),
            transformer_dim=WIDTH, iou_head_depth=3, iou_head_hidden_dim=128,
        ),
        pixel_mean=list(PIXEL_MEAN), pixel_std=list(PIXEL_STD),
    )
    return sam.eval()


def _norm(width: int) -> nn.Module:
    # over one image, not over a batch: training can then take single views, and many small steps learn faster than few large ones
    return nn.InstanceNorm2d(width, affine=True)


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), _norm(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False), _norm(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, width, H, W] twice
        return F.relu(x + self.body(x))


class Place(nn.Module):
    """Adds to every cell what its place in the image says, so that two equal objects get unequal embeddings."""

    def __init__(self, width: int):
        super().__init__()
        self.project = nn.Conv2d(10, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, width, H, W] twice
        y, x_ = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=x.dtype, device=x.device) for n in x.shape[-2:]), indexing="ij")
        waves = [f(k * torch.pi * a) for k in (1, 2) for a in (x_, y) for f in (torch.sin, torch.cos)]
        return x + self.project(torch.stack([x_, y, *waves])[None])


def _down(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), _norm(b), nn.ReLU(inplace=True))


class Pyramid(nn.Module):
    """A residual pyramid whose coarse levels are added back to the finer ones."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 128, 144)):
        super().__init__()
        w2, w4, w8, w16, w32 = widths
        self.channel_list = [w32, w16, w8, w4]  # sam2's neck reads it under this name, coarse first
        # No residual block at stride 4: with one, the same training groups pixels far worse (measured).
        self.stem = nn.Sequential(_down(3, w2), _down(w2, w4))
        self.stage8 = nn.Sequential(_down(w4, w8), Block(w8), Block(w8))
        self.stage16 = nn.Sequential(_down(w8, w16), Place(w16), Block(w16), Block(w16))
        self.stage32 = nn.Sequential(_down(w16, w32), Block(w32), Block(w32))
        self.from32 = nn.Conv2d(w32, w16, 1)
        self.from16 = nn.Conv2d(w16, w8, 1)
        self.merge16, self.merge8 = Block(w16), Block(w8)
        self.fine = nn.Conv2d(w4, w8, 2, stride=2)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:  # [B, 3, S, S] -> maps at strides 4, 8, 16, 32
        a = self.stem(x)
        b = self.stage8(a)
        c = self.stage16(b)
        d = self.stage32(c)
        c = self.merge16(c + F.interpolate(self.from32(d), scale_factor=2, mode="nearest"))
        b = self.merge8(b + self.fine(a) + F.interpolate(self.from16(c), scale_factor=2, mode="nearest"))
        return [a, b, c, d]


class ConvEncoder(Pyramid):
    """The pyramid's map at stride 8, as SAM's decoder wants it: [B, 3, S, S] -> [B, WIDTH, S/8, S/8]."""

    def __init__(self, image_size: int = IMAGE_SIZE):
        super().__init__()
        self.img_size = image_size  # segment_anything reads it under this name
        w8 = self.channel_list[-2]
        self.neck = nn.Sequential(Place(w8), nn.Conv2d(w8, WIDTH, 1, bias=False), LayerNorm2d(WIDTH), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), LayerNorm2d(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, w = _filled(x)  # what `Sam.preprocess` padded is worth no time, and would count in the norms
        y = self.neck(super().forward(x[..., :h, :w])[1])
        return F.pad(y, (0, (x.shape[-1] - w) // STRIDE, 0, (x.shape[-2] - h) // STRIDE))


def _filled(x: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of [B, 3, H, W] before its zero padding, in whole cells of the coarsest level."""
    there = (x != 0).any(1).any(0)  # no photograph's pixel is exactly zero after normalisation: the means are no whole numbers
    if not there.any():
        return tuple(x.shape[-2:])
    rows, columns = (int(there.any(d).nonzero().max()) + 1 for d in (1, 0))
    return tuple(min(n, -(-m // COARSEST) * COARSEST) for m, n in zip((rows, columns), x.shape[-2:]))
