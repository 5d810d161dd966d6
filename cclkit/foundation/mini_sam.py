"""A small Segment Anything Model: segment_anything's own `Sam` with a convolutional encoder.

Prompt encoder, tokens and heads are the package's; the mask decoder is its class with one method of
its own (see ClickDecoder), so the predictor and the automatic generator work on it unchanged.
Output k answers for granularity k (0 subpart, 1 part, 2 whole), because that is how it is trained.
"""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MLP
from segment_anything.modeling.transformer import Attention
from torch import nn
from torch.nn import functional as F

from .pyramid import Place, Pyramid, norm

IMAGE_SIZE, CLICK_SIZE = 256, 320
"""Longest side of the image the encoder sees, pixels: in training, and in use. Small regions gain
from larger maps.
"""
STRIDE, COARSEST = 4, 32
"""Pixels of one cell of the image embedding, and of the encoder's coarsest level."""
WIDTH = 64
"""Channels of the image embedding and of the mask decoder."""
READERS, HEADS = 2, 4
"""Layers in which the tokens of a click look at the image, and heads of their attention."""
SHARPNESS = 4.0
"""Natural logarithm of how much more the cell under a click counts than one with nothing in common
with its place.
"""
PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def build_mini_sam(image_size: int = IMAGE_SIZE) -> Sam:
    """The architecture, with fresh weights from torch's global generator (seed it for training)."""
    sam = Sam(
        image_encoder=ConvEncoder(image_size),
        prompt_encoder=PromptEncoder(
            embed_dim=WIDTH,
            image_embedding_size=(image_size // STRIDE,) * 2,
            input_image_size=(image_size,) * 2,
            mask_in_chans=16,
        ),
        mask_decoder=ClickDecoder(),
        pixel_mean=list(PIXEL_MEAN),
        pixel_std=list(PIXEL_STD),
    )
    return sam.eval()


class ConvEncoder(Pyramid):
    """The pyramid's maps at strides 8 and 4 in one, as the decoder wants it: [B, 3, S, S] -> [B,
    WIDTH, S/4, S/4].
    """

    def __init__(self, image_size: int = IMAGE_SIZE):
        super().__init__()
        self.img_size = image_size  # segment_anything reads it under this name
        w8, w4 = self.channel_list[-2:]
        self.neck = nn.ModuleDict(
            {
                "from8": nn.Sequential(Place(w8), nn.Conv2d(w8, WIDTH, 1)),
                "from4": nn.Conv2d(w4, WIDTH, 1),
                "mixed": nn.Sequential(
                    norm(WIDTH),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
                    LayerNorm2d(WIDTH),
                ),
            }
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # what `Sam.preprocess` padded is worth no time, and would count in the norms
        h, w = _filled(x)
        a, b, *_ = super().forward(x[..., :h, :w])
        y = self.neck["mixed"](
            self.neck["from4"](a)
            + F.interpolate(self.neck["from8"](b), scale_factor=2, mode="nearest")
        )
        return F.pad(y, (0, (x.shape[-1] - w) // STRIDE, 0, (x.shape[-2] - h) // STRIDE))


class ClickDecoder(MaskDecoder):
    """SAM's mask decoder in which the tokens learn from the image, but the image not from the
    tokens.

    All clicks into one image then share its maps: a click costs a dot product of a few numbers with
    every cell, not a pass over the image, so training sees dozens of clicks for the price of a
    view. The tokens of a click start from what the image embedding holds under it. Prompts beyond
    the first are seen, but mini-SAM is not trained for them; masks as prompts are not.
    """

    def __init__(self):
        super().__init__(
            transformer_dim=WIDTH,
            transformer=nn.ModuleList(Reader() for _ in range(READERS)),
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=128,
        )
        # nothing to scale up: the embedding is fine enough
        self.output_upscaling = nn.Conv2d(WIDTH, WIDTH, 1)
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(WIDTH, WIDTH, WIDTH, 3) for _ in range(self.num_mask_tokens)
        )
        self.under = nn.Linear(WIDTH, WIDTH)
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS))

    def predict_masks(
        self,
        image_embeddings: torch.Tensor,
        image_pe: torch.Tensor,
        sparse_prompt_embeddings: torch.Tensor,
        dense_prompt_embeddings: torch.Tensor,
    ):
        """Masks [P, 4, h, w] and their predicted IoU [P, 4] of P prompts into one image [1, WIDTH,
        h, w].
        """
        cells, places = image_embeddings[0].flatten(1).T, image_pe[0].flatten(1).T  # [h w, WIDTH]
        nearness = sparse_prompt_embeddings[:, 0] @ places.T * (self.sharpness.exp() / (WIDTH / 2))
        under = self.under(nearness.softmax(-1) @ cells)
        tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight]) + under[:, None]
        tokens = torch.cat([tokens, sparse_prompt_embeddings], 1)
        coarse, coarse_places = (
            F.avg_pool2d(m, 2)[0].flatten(1).T[None] for m in (image_embeddings, image_pe)
        )
        for reader in self.transformer:
            tokens = reader(tokens, coarse, coarse_places)
        masks = torch.stack(
            [mlp(tokens[:, 1 + k]) for k, mlp in enumerate(self.output_hypernetworks_mlps)], 1
        )
        maps = self.output_upscaling(image_embeddings)[0]
        return (masks @ maps.flatten(1)).unflatten(-1, maps.shape[1:]), self.iou_prediction_head(
            tokens[:, 0]
        )


class Reader(nn.Module):
    """Tokens [P, T, WIDTH] look at each other and at the image [1, N, WIDTH] with its places."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.among, self.image = Attention(WIDTH, HEADS), Attention(WIDTH, HEADS)
        self.mlp = MLP(WIDTH, 4 * WIDTH, WIDTH, 2)

    def forward(
        self, tokens: torch.Tensor, image: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        t = self.norms[0](tokens)
        tokens = tokens + self.among(t, t, t)
        t = self.norms[1](tokens).flatten(0, 1)[None]  # tokens of all clicks ask the same image
        tokens = tokens + self.image(t, image + places, image)[0].view_as(tokens)
        return tokens + self.mlp(self.norms[2](tokens))


def _filled(x: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of [B, 3, H, W] before its zero padding, in whole cells of the coarsest
    level.
    """
    # no photograph's pixel is exactly zero after normalisation: the means are no whole numbers
    there = (x != 0).any(1).any(0)
    if not there.any():
        return tuple(x.shape[-2:])
    rows, columns = (int(there.any(d).nonzero().max()) + 1 for d in (1, 0))
    return tuple(
        min(n, -(-m // COARSEST) * COARSEST) for m, n in zip((rows, columns), x.shape[-2:])
    )
