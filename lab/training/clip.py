"""Train mini-CLIP on complete, unmasked crops of random scenes and their captions.

Never on incomplete crops: a model that has learned to see past missing pieces would erase the very
problem that contrastive codebook learning addresses. What a region may be called is known, so every
text of the batch that fits a crop counts as its positive, not only the one drawn for it.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from cclkit.foundation.mini_clip import (
    IMAGE_SIZE,
    PIXEL_MEAN,
    PIXEL_STD,
    WordTokenizer,
    build_mini_clip,
    words_of,
)
from cclkit.method.query import CANONICAL

from ..tabletop.random_scenes import PIECE, SWATCH
from .data import Scenes
from .sam import degraded

BATCH = 192
MIN_AREA_PX = 60
TEMPLATES = (
    "{}",
    "{}",
    "a {}",
    "the {}",
    "a photo of a {}",
    "a picture of the {}",
    "a close photo of a {}",
    "one {}",
)
GENERIC_OBJECT = ("object", "things", "an object", "a thing")
GENERIC_STUFF = ("stuff", "texture", "surface", "background")
GENERIC_SHARE, GENERIC_WEIGHT = 0.06, 0.2
"""Share of captions that say nothing in particular, so that the canonical phrases of a query mean
what they say; and how much they count as positives beside a text that names the thing. Alike, no
name could ever win against "object".
"""
SHARES = {
    ("whole",): 0.42,
    ("part", "subpart"): 0.22,
    (PIECE,): 0.22,
    ("stuff",): 0.07,
    (SWATCH,): 0.07,
}
"""How often crops show whole objects, parts on their objects, parts alone, surfaces, and sheets of
them. A mask shows a part without its object.
"""
MATERIAL_SHARE = 0.5
"""How often a text beyond the plain name is drawn."""


def vocabulary(scenes: Scenes) -> tuple[str, ...]:
    """Every word of every caption, template and generic text, sorted."""
    words = {
        w for t in scenes.nodes for n in t.values() for text in n["texts"] for w in words_of(text)
    }
    for text in (*TEMPLATES, *GENERIC_OBJECT, *GENERIC_STUFF, *CANONICAL):
        words |= set(words_of(text.replace("{}", "")))
    return tuple(sorted(words))


def model(seed: int, tokenizer: WordTokenizer) -> torch.nn.Module:
    torch.manual_seed(seed)
    m = build_mini_clip(len(tokenizer))
    m.visual.to(memory_format=torch.channels_last)
    return m


def regions(scenes: Scenes) -> list[tuple[int, int, int]]:
    """(view, level, id) of all complete regions and of all stuff, each id once a view, MIN_AREA_PX
    and more.
    """
    out = []
    for v in range(len(scenes.images)):
        nodes, seen = scenes.nodes[scenes.scene[v]], set()
        for level in (2, 1, 0):
            ids, count = np.unique(scenes.ids[v, level], return_counts=True)
            for i, n in zip(ids.tolist(), count.tolist()):
                if (
                    i
                    and i not in seen
                    and n >= MIN_AREA_PX
                    and (i in scenes.complete[v] or nodes[i]["stuff"])
                ):
                    seen.add(i)
                    out.append((v, level, i))
    return out


class Losses:
    """The loss of one step, as a function of its number and its generator."""

    def __init__(self, clip, tokenizer: WordTokenizer, scenes: Scenes):
        self.clip, self.tokenizer, self.scenes = clip, tokenizer, scenes
        groups: dict[str, list] = {}
        for r in regions(scenes):
            node = self._node(r)
            kind = (
                "stuff"
                if node["stuff"]
                else node["family"]
                if node["family"] in (PIECE, SWATCH)
                else node["level"]
            )
            groups.setdefault((kind, node["family"], node["texts"][0]), []).append(r)
        # Drawn by name first: else bear paws would outnumber teapots five to one.
        self.pools = [
            (share, pool)
            for kinds, share in SHARES.items()
            if (pool := [g for k, g in sorted(groups.items()) if k[0] in kinds])
        ]

    def _node(self, region) -> dict:
        return self.scenes.nodes[self.scenes.scene[region[0]]][region[2]]

    def __call__(self, step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        crops, texts, fits = [], [], []
        shares = np.array([share for share, _ in self.pools])
        for k in rng.choice(len(shares), BATCH, p=shares / shares.sum()):
            pool = self.pools[k][1]
            group = pool[rng.integers(len(pool))]
            region = group[rng.integers(len(group))]
            node = self._node(region)
            crops.append(training_crop(self.scenes, region, node["stuff"], rng))
            generic = GENERIC_STUFF if node["stuff"] or node["family"] == SWATCH else GENERIC_OBJECT
            if rng.random() < GENERIC_SHARE:
                text = str(rng.choice(generic))
            else:
                options = node["texts"]
                text = options[0] if rng.random() > MATERIAL_SHARE else str(rng.choice(options))
            texts.append(text)
            fits.append(dict.fromkeys(node["texts"], 1.0) | dict.fromkeys(generic, GENERIC_WEIGHT))
        shown = [TEMPLATES[rng.integers(len(TEMPLATES))].format(t) for t in texts]
        x = normalised(np.stack(crops)).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):  # halves the time of a step
            image = self.clip.encode_image(x)
        image = F.normalize(image.float(), dim=-1)
        text = F.normalize(self.clip.encode_text(self.tokenizer(shown)), dim=-1)
        logits = self.clip.logit_scale.clamp(max=np.log(50.0)).exp() * image @ text.T
        positive = torch.tensor([[f.get(t, 0.0) for t in texts] for f in fits])
        loss = (_soft(logits, positive) + _soft(logits.T, positive.T)) / 2
        with torch.no_grad():
            right = (positive.gather(1, logits.argmax(1, keepdim=True)) == 1).float().mean()
        return {"total": loss, "batch_accuracy": right, "scale": self.clip.logit_scale.exp()}


def _soft(logits: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Cross-entropy to a target in proportion to each row's positives."""
    return -(logits.log_softmax(1) * positive / positive.sum(1, keepdim=True)).sum(1).mean()


def training_crop(
    scenes: Scenes, region: tuple[int, int, int], stuff: bool, rng: np.random.Generator
) -> np.ndarray:  # [S, S, 3] uint8
    """A square around a complete region, with what is around it; of stuff, all of it or a patch
    that is mostly it.
    """
    v, level, i = region
    image, mask = scenes.images[v], scenes.ids[v, level] == i
    h, w = mask.shape
    y, x = np.nonzero(mask)
    if stuff and rng.random() < 0.5:  # all of it, with what stands on it
        x0, x1, y0, y1 = x.min(), x.max() + 1, y.min(), y.max() + 1
        side = max(x1 - x0, y1 - y0)
        crop = _square(image, (x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side)
    elif stuff:
        for _ in range(8):
            k = rng.integers(len(y))
            side = int(rng.uniform(0.2, 1) * h)
            x0, y0 = (
                int(np.clip(x[k] - side // 2, 0, w - side)),
                int(np.clip(y[k] - side // 2, 0, h - side)),
            )
            if mask[y0 : y0 + side, x0 : x0 + side].mean() > 0.5:
                break
        crop = image[y0 : y0 + side, x0 : x0 + side]
    else:
        x0, x1, y0, y1 = x.min(), x.max() + 1, y.min(), y.max() + 1
        side = max(x1 - x0, y1 - y0) * rng.uniform(1.0, 1.4)
        cx, cy = (
            (x0 + x1) / 2 + rng.uniform(-0.06, 0.06) * side,
            (y0 + y1) / 2 + rng.uniform(-0.06, 0.06) * side,
        )
        crop = _square(image, cx - side / 2, cy - side / 2, side)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    return degraded(
        cv2.resize(
            np.ascontiguousarray(crop),
            (IMAGE_SIZE, IMAGE_SIZE),
            interpolation=cv2.INTER_AREA if crop.shape[0] > IMAGE_SIZE else cv2.INTER_LINEAR,
        ),
        rng,
    )


def _square(image: np.ndarray, x: float, y: float, side: float) -> np.ndarray:
    """A square of the image; beyond its borders, black, as a padded crop is."""
    x, y, side = int(round(x)), int(round(y)), max(4, int(round(side)))
    h, w = image.shape[:2]
    out = np.zeros((side, side, 3), np.uint8)
    xa, ya, xb, yb = max(x, 0), max(y, 0), min(x + side, w), min(y + side, h)
    out[ya - y : yb - y, xa - x : xb - x] = image[ya:yb, xa:xb]
    return out


def normalised(images: np.ndarray) -> torch.Tensor:  # [B, S, S, 3] uint8 -> [B, 3, S, S]
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(PIXEL_MEAN)[:, None, None]) / torch.tensor(PIXEL_STD)[:, None, None]
