"""A small CLIP: open_clip's own `CLIP` (modified ResNet, causal text transformer) by custom
configuration.

Its vocabulary is the words of the Tabletop captions; any other word reads as "unknown".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from ..errors import needed

IMAGE_SIZE = 96
DIM = 128
CONTEXT = 14
"""Words a text may have, start and end tokens included; longer texts are cut."""
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def build_mini_clip(vocabulary_size: int) -> torch.nn.Module:
    """The architecture, with fresh weights from torch's global generator (seed it for training).
    Raises MissingPackageError without open_clip.
    """
    with needed("open_clip"):
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=(1, 1, 1, 1), width=16, head_width=32, image_size=IMAGE_SIZE)
    text = CLIPTextCfg(
        context_length=CONTEXT, vocab_size=vocabulary_size, width=96, heads=4, layers=3
    )
    return CLIP(DIM, vision, text).eval()


class WordTokenizer:
    """Texts -> token rows [n, CONTEXT]: start, one token a word, end (the highest id, which
    open_clip looks for), zeros.
    """

    PAD, START, UNKNOWN, FIRST = 0, 1, 2, 3

    def __init__(self, words: Sequence[str]):
        self.words = tuple(words)
        self.ids = {w: k + self.FIRST for k, w in enumerate(self.words)}
        self.end = self.FIRST + len(self.words)

    def __len__(self) -> int:
        return self.end + 1

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:  # [n, CONTEXT] int64
        out = torch.full((len(texts), CONTEXT), self.PAD, dtype=torch.int64)
        for row, text in zip(out, texts):
            ids = [self.START, *(self.ids.get(w, self.UNKNOWN) for w in words_of(text))]
            ids = [*ids[: CONTEXT - 1], self.end]
            row[: len(ids)] = torch.tensor(ids)
        return out

    def unknown(self, text: str) -> list[str]:
        """Words of a text that are not in the vocabulary."""
        return [w for w in words_of(text) if w not in self.ids]


def words_of(text: str) -> list[str]:
    """Words of a text in small letters, without the genitive's ending."""
    return re.findall(r"[^\W_]+", text.lower().replace("'s", ""))
