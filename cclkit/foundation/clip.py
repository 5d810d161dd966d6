"""CLIP's role, by open_clip: one square crop a mask, black outside it (paper eq. 3), and texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cv2
import numpy as np
import torch

from ..errors import FeatureError, ModelError, needed, reason
from ..settings import BELOW_ONE, POSITIVE, OneOf, as_dict
from . import weights
from .mini_clip import PIXEL_MEAN, PIXEL_STD, WordTokenizer, build_mini_clip
from .roles import Model, Setup, kept
from .weights import (
    MINI_CLIP,
    MINI_CLIP_WORDS,
    fetched,
    fill,
    folder,
    load_mini,
    load_weights,
    remedy,
)

if TYPE_CHECKING:
    from ..scenes.scene import View
    from .front_end import FrontEndConfig

CLIP_MODELS = ("mini", "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14", "ViT-g-14", "ViT-bigG-14")
"""Those of open_clip whose pictures are normalised as CLIP's and whose tokenizer needs
no download.
"""


@dataclass(frozen=True)
class ClipConfig:
    """The open_clip model that embeds masks and texts."""

    model: str = "mini"
    """"mini" (bundled) or a name of open_clip. Paper: ViT-B-16."""
    checkpoint: str = ""
    """Path of the weights; empty: the bundled ones of mini, else what `cclkit data fetch` brought.
    The file's sha256 counts for artefact keys, not its path.
    """
    crop: Annotated[str, OneOf("complete", "langsplat")] = "complete"
    """"complete" (the whole box of a mask, averaged when it shrinks) or "langsplat" (its published
    pixels exactly, which lose the last row and column). Paper does not say (ours: complete, because
    nothing is gained by losing pixels).
    """
    prompts: Annotated[str, OneOf("raw", "ensemble")] = "raw"
    """"raw" (the query itself, as LERF and LangSplat do) or "ensemble" (mean over a few templates).
    Paper does not say (ours: raw, because the methods it compares with do).
    """
    cone: Annotated[float, BELOW_ONE] = 0.0
    """Component that all features of crops share, and all texts at a right angle to it, as a share
    of a unit feature's square: cosines of crops grow from x to cone + (1 - cone) x, those with
    texts shrink to (1 - cone) x. Paper: none, since CLIP's features lie in a narrow cone by
    themselves (0, also where the profile mini gets another model; 0.5 with mini-CLIP, which spreads
    features four times as wide, so that neither the push margin nor LERF's scale would mean what
    they mean with CLIP).
    """
    batch: Annotated[int, POSITIVE] = 64
    """Crops encoded at once."""
    precision: Annotated[str, OneOf("float32", "bfloat16")] = "float32"
    """"float32" or "bfloat16"."""


ENSEMBLE = (
    "{}",
    "a {}",
    "the {}",
    "a photo of a {}",
    "a picture of the {}",
    "a close photo of a {}",
)
"""Prompts averaged under front_end.clip.prompts=ensemble."""


class ClipEncoder:
    """Unit features of masked crops and of texts, from an open_clip model and its tokenizer."""

    def __init__(self, model: torch.nn.Module, tokenizer, config: ClipConfig, device: str = "cpu"):
        self.model, self.tokenizer = model.to(device), tokenizer
        self.config, self.device = config, device
        size = model.visual.image_size
        self.size = int(size[0] if isinstance(size, (tuple, list)) else size)
        self._texts: dict[str, np.ndarray] = {}
        self.dim = self.encode_text(["object"]).shape[1]

    def encode_masks(self, view: View, masks: np.ndarray) -> np.ndarray:
        """Masks [M, H, W] bool of one view -> unit features [M, dim] float32."""
        image = view.image()
        return self.encode_crops(masked_crop(image, m, self.size, self.config.crop) for m in masks)

    def encode_crops(self, crops) -> np.ndarray:  # iterable of [S, S, 3] uint8 -> [M, dim] float32
        """Unit features of square pictures of the model's size, in batches."""
        out, batch = [np.zeros((0, self.dim), np.float32)], []
        for crop in crops:
            batch.append(crop)
            if len(batch) == self.config.batch:
                out.append(self._encode(batch))
                batch = []
        if batch:
            out.append(self._encode(batch))
        return np.concatenate(out)

    def _encode(self, batch: list[np.ndarray]) -> np.ndarray:
        x = torch.from_numpy(np.stack(batch)).to(self.device).permute(0, 3, 1, 2).float() / 255
        mean, std = (
            torch.tensor(v, device=self.device)[:, None, None] for v in (PIXEL_MEAN, PIXEL_STD)
        )
        with torch.no_grad(), self._autocast():
            f = self.model.encode_image((x - mean) / std).float()
        return in_cone(torch.nn.functional.normalize(f, dim=-1), self.config.cone, 0).cpu().numpy()

    def encode_text(self, phrases: Sequence[str]) -> np.ndarray:
        """Phrases -> unit vectors [P, dim] float32; each phrase is encoded once."""
        if not phrases:
            return np.zeros((0, self.dim), np.float32)
        forms = ENSEMBLE if self.config.prompts == "ensemble" else ("{}",)
        for phrase in dict.fromkeys(phrases):
            if phrase not in self._texts:
                # one at a time: the last bits of a batched product depend on what else is in it
                self._texts[phrase] = self._encode_text([f.format(phrase) for f in forms])
        return np.stack([self._texts[p] for p in phrases])

    def _encode_text(self, forms: list[str]) -> np.ndarray:
        """Unit mean [dim] over the forms of one phrase."""
        tokens = self.tokenizer(forms).to(self.device)
        with torch.no_grad(), self._autocast():
            f = torch.nn.functional.normalize(self.model.encode_text(tokens).float(), dim=-1)
        mean = torch.nn.functional.normalize(f.mean(0), dim=-1)
        return in_cone(mean, self.config.cone, 1).cpu().numpy()

    def unknown_words(self, phrase: str) -> list[str]:
        """Words of a phrase that the model has never seen (only mini-CLIP has such)."""
        return self.tokenizer.unknown(phrase) if hasattr(self.tokenizer, "unknown") else []

    def _autocast(self) -> torch.autocast:
        bfloat16 = self.config.precision == "bfloat16"
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=bfloat16)


def in_cone(features: torch.Tensor, share: float, axis: int) -> torch.Tensor:
    """Unit features [..., D] in a cone about a direction of their own: [..., D + 2], still of unit
    length; for a share of 0 as they are.

    Crops take axis 0 and texts axis 1. Contrastive training at CLIP's temperature of 1/100 leaves
    both in narrow cones that are turned away from each other; mini-CLIP's temperature ends near
    1/24. Which text is nearest to a crop does not change.
    """
    if not share:
        return features
    own = torch.zeros(2, device=features.device)
    own[axis] = share**0.5
    return torch.cat([(1 - share) ** 0.5 * features, own.expand(*features.shape[:-1], 2)], -1)


def clip_encoder(config: ClipConfig, device: str = "cpu") -> ClipEncoder:
    """The adapter with its weights loaded. Raises ModelError, MissingPackageError."""
    return ClipEncoder(*load_clip(config.model, config.checkpoint), config, device)


def masked_crop(
    image: np.ndarray, mask: np.ndarray, size: int, rule: str = "complete"
) -> np.ndarray:  # [size, size, 3] uint8
    """The mask's box of an image [H, W, 3] uint8, black outside the mask [H, W], padded to a
    square, resized.

    ``rule`` "langsplat" is protocol E to the last grey level: the box loses its last row and
    column, and shrinking takes no low-pass filter. "complete" (ours) keeps them and averages when
    it shrinks, because a small mask's last row matters and fine texture should not alias. Raises
    FeatureError on an empty mask, and under "langsplat" on a mask of a single pixel, at which the
    published code fails.
    """
    y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(y) == 0:
        raise FeatureError("a mask without pixels has no crop; filter such masks before encoding")
    keep = 0 if rule == "langsplat" else 1
    y0, y1, x0, x1 = y[0], y[-1] + keep, x[0], x[-1] + keep
    side = max(y1 - y0, x1 - x0)
    if side == 0:
        raise FeatureError(
            "a mask of a single pixel has no crop under rule 'langsplat'; use"
            " front_end.clip.crop=complete or a larger masks.min_area_px"
        )
    square = np.zeros((side, side, 3), np.uint8)
    top, left = (side - (y1 - y0)) // 2, (side - (x1 - x0)) // 2
    cut = image[y0:y1, x0:x1] * mask[y0:y1, x0:x1, None]
    square[top : top + (y1 - y0), left : left + (x1 - x0)] = cut
    if side == size:
        return square
    shrink = rule != "langsplat" and side > size
    return cv2.resize(
        square, (size, size), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
    )


def load_mini_clip(path: Path | None = None):
    """mini-CLIP and its tokenizer from a file beside its word list (None: the bundled one, whose
    digest is checked).
    """
    words = (path or folder() / MINI_CLIP).with_name(MINI_CLIP_WORDS)
    if not words.is_file():
        raise ModelError(
            f"{words}: the vocabulary of mini-CLIP is missing; restore it from the repository"
        )
    try:
        tokenizer = WordTokenizer(words.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as e:
        raise ModelError(
            f"{words}: the vocabulary of mini-CLIP cannot be read ({reason(e)}); restore it from"
            " the repository"
        ) from e
    tensors = load_mini(MINI_CLIP, "mini-CLIP", path)
    model = build_mini_clip(len(tokenizer))
    return fill(model, tensors, path or folder() / MINI_CLIP, "mini-CLIP"), tokenizer


def load_clip(model: str, checkpoint: str = ""):
    """An open_clip model and its tokenizer: "mini", or a name of open_clip with a checkpoint
    (ViT-B-16: fetched unless given).
    """
    if model == "mini":
        return load_mini_clip(Path(checkpoint) if checkpoint else None)
    with needed("open_clip"):
        import open_clip

    what = f"OpenCLIP {model}"
    if model not in CLIP_MODELS:
        raise ModelError(
            f"front_end.clip.model={model!r} is not supported; use one of {', '.join(CLIP_MODELS)}"
        )
    checkpoint = checkpoint or fetched(model)
    if not checkpoint:
        raise ModelError(
            f"front_end.clip.model={model!r} needs front_end.clip.checkpoint=PATH; {remedy(what)}"
        )
    tensors = load_weights(checkpoint, what)
    clip = open_clip.create_model(model, pretrained=None)
    own = clip.state_dict()
    for k in ("logit_bias", "attn_mask"):  # files of other versions of open_clip differ in these
        if k in tensors and k not in own:
            tensors.pop(k)
    return fill(clip, tensors, checkpoint, what), open_clip.get_tokenizer(model)


def _build(setup: Setup) -> ClipEncoder:
    return clip_encoder(setup.settings.clip, setup.device)


def _label(settings: FrontEndConfig) -> str:
    return weights.label("CLIP", settings.clip.model)


def _settings(setup: Setup) -> dict:
    c = setup.settings.clip
    own = kept(as_dict(c), "checkpoint", "batch")
    own |= {"weights": weights.identity(c.model, c.checkpoint, MINI_CLIP), "device": setup.device}
    return own


ENCODER = Model(_build, _label, _settings)
