"""SAM's role, by segment_anything: a grid of clicks, three outputs each (see `sam_generator`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch

from ..errors import ConfigError, ModelError, needed
from ..method.interfaces import Candidates
from ..settings import POSITIVE, SHARE, OneOf, as_dict, at_most
from . import weights
from .roles import Model, Setup, kept
from .weights import MINI_SAM, fetched, fill, folder, load_mini, load_weights, remedy

if TYPE_CHECKING:
    from ..method.masks import MaskConfig
    from ..scenes.scene import View
    from .front_end import FrontEndConfig

SAM_MODELS = ("mini", "vit_b", "vit_l", "vit_h")
"""The bundled small model and the three of segment_anything's registry."""


@dataclass(frozen=True)
class SamConfig:
    """The segment_anything model that proposes masks."""

    model: Annotated[str, OneOf(*SAM_MODELS)] = "mini"
    """"mini" (bundled, trained on random Tabletop scenes), "vit_b", "vit_l" or "vit_h". Paper:
    ViT-H.
    """
    checkpoint: str = ""
    """Path of the weights; empty: the bundled ones of mini, else what `cclkit data fetch` brought.
    The file's sha256 counts for artefact keys, not its path.
    """
    points_per_side: Annotated[int, POSITIVE] = 32
    """Clicks per side of the uniform grid; time grows with its square. Paper: 32; the profile mini
    clicks 24 × 24, which takes half the time.
    """
    points_per_batch: Annotated[int, POSITIVE] = 64
    """Clicks decoded at once; memory grows with it, results do not change."""
    crop_layers: Annotated[int, at_most(8)] = 0
    """Extra passes over 4, 16, … overlapping crops of the image. Paper does not say (ours: none,
    because each layer costs several times the pass before; 1, as LangSplat has, in the profile
    mini, whose photographs are small and whose small SAM finds small things only enlarged).
    """
    crop_points_divisor: Annotated[int, POSITIVE] = 1
    """Clicks per side of a crop: points_per_side divided by this, once per layer. Paper does not
    say (ours: 1, because LangSplat has it; 2 in the profile mini, which clicks the crops as densely
    as the image for a quarter of the time).
    """
    box_nms_iou: Annotated[float, SHARE] = 0.7
    """Within one output, of two masks whose boxes overlap more than this the one with the lower
    predicted IoU is dropped. Paper does not say (ours: 0.7, because segment_anything has it).
    """
    stability_offset: Annotated[float, POSITIVE] = 1.0
    """Stability is the IoU of the mask at logits above +offset and above -offset. Paper does not
    say (ours: 1, because segment_anything has it).
    """
    precision: Annotated[str, OneOf("float32", "bfloat16")] = "float32"
    """"float32" or "bfloat16" (autocast; half the memory on a GPU)."""

    def check(self, prefix: str) -> None:
        """Raise ConfigError when a crop would get no click."""
        divisor, layers = self.crop_points_divisor, self.crop_layers
        if self.points_per_side < divisor**layers:
            raise ConfigError(
                f"setting {prefix}crop_points_divisor={divisor} leaves no click of"
                f" {self.points_per_side} per side in a crop of layer {layers}; expected a smaller"
                " divisor, fewer layers (at most 8) or more points_per_side"
            )


class SamMasks:
    """Candidates of a view from a Sam model (paper §3: 32 x 32 uniform prompts, three outputs)."""

    def __init__(
        self, sam: torch.nn.Module, config: SamConfig, masks: MaskConfig, device: str = "cpu"
    ):
        with needed("segment_anything"):
            from .sam_generator import OutputKeepingGenerator

        self.config, self.device = config, device
        self.generator = OutputKeepingGenerator(
            sam.to(device),
            points_per_side=config.points_per_side,
            points_per_batch=config.points_per_batch,
            pred_iou_thresh=masks.predicted_iou_min,
            stability_score_thresh=masks.stability_min,
            stability_score_offset=config.stability_offset,
            box_nms_thresh=config.box_nms_iou,
            crop_n_layers=config.crop_layers,
            crop_n_points_downscale_factor=config.crop_points_divisor,
            crop_nms_thresh=config.box_nms_iou,
            output_mode="uncompressed_rle",
        )

    def propose(self, view: View) -> Candidates:
        """Candidates of a view."""
        return self.propose_image(view.image())

    def propose_image(self, image: np.ndarray) -> Candidates:  # [H, W, 3] uint8
        """Candidates of a picture, each with the output it came from; none at all is a result, not
        an error.
        """
        with torch.no_grad(), self.autocast():
            return self.generator.propose(image)

    def autocast(self) -> torch.autocast:
        """The precision that the settings ask for."""
        bfloat16 = self.config.precision == "bfloat16"
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=bfloat16)


def sam_masks(config: SamConfig, masks: MaskConfig, device: str = "cpu") -> SamMasks:
    """The adapter with its weights loaded. Raises ModelError, MissingPackageError."""
    return SamMasks(load_sam(config.model, config.checkpoint), config, masks, device)


def load_sam(model: str, checkpoint: str = "") -> torch.nn.Module:
    """A `segment_anything` Sam: "mini" (bundled unless a checkpoint is given), "vit_b", "vit_l" or
    "vit_h" (fetched unless given).
    """
    if model == "mini":
        return load_mini_sam(Path(checkpoint) if checkpoint else None)
    with needed("segment_anything"):
        from segment_anything import sam_model_registry

    what = f"SAM {model}"
    checkpoint = checkpoint or fetched(model)
    if not checkpoint:
        raise ModelError(
            f"front_end.sam.model={model!r} needs front_end.sam.checkpoint=PATH; {remedy(what)}"
        )
    tensors = load_weights(checkpoint, what)
    return fill(sam_model_registry[model](), tensors, checkpoint, what)


def load_mini_sam(path: Path | None = None) -> torch.nn.Module:
    """mini-SAM from a file (None: the bundled weights, whose digest is checked)."""
    with needed("segment_anything"):
        from .mini_sam import CLICK_SIZE, build_mini_sam

    tensors = load_mini(MINI_SAM, "mini-SAM", path)
    return fill(build_mini_sam(CLICK_SIZE), tensors, path or folder() / MINI_SAM, "mini-SAM")


def _build(setup: Setup) -> SamMasks:
    return sam_masks(setup.settings.sam, setup.masks, setup.device)


def _label(settings: FrontEndConfig) -> str:
    return weights.label("SAM", settings.sam.model)


def _settings(setup: Setup) -> dict:
    c = setup.settings.sam
    own = kept(as_dict(c), "checkpoint", "points_per_batch")
    own |= {"weights": weights.identity(c.model, c.checkpoint, MINI_SAM), "device": setup.device}
    # those that segment_anything's generator applies itself
    thresholds = {k: getattr(setup.masks, k) for k in ("predicted_iou_min", "stability_min")}
    return own | thresholds


PROPOSER = Model(_build, _label, _settings)
