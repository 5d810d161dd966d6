"""SAM's role, by segment_anything: a grid of clicks, three outputs each, filtered
output by output.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.utils.amg import MaskData, calculate_stability_score, rle_to_mask

from ..errors import ModelError
from ..method.interfaces import Candidates
from ..method.masks import MaskConfig
from ..scenes.scene import View
from ..settings import POSITIVE, SHARE, OneOf, as_dict, at_most, out_of_range
from . import weights
from .mini_sam import CLICK_SIZE, build_mini_sam
from .roles import Model, Setup, kept
from .weights import MINI_SAM, bundled, fetched, fill, folder, load_weights, remedy

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
        fewest = self.crop_points_divisor**self.crop_layers
        if self.points_per_side < fewest:
            raise out_of_range(
                f"{prefix}crop_points_divisor",
                self.crop_points_divisor,
                f"a smaller divisor, fewer layers (at most 8) or more points_per_side: it leaves no"
                f" click of {self.points_per_side} per side in a crop of layer {self.crop_layers}",
            )


OUTPUTS = 3
APART = 2.0**17
"""Shift in pixels that keeps boxes of different outputs from overlapping; exact in single
precision.
"""


class SamMasks:
    """Candidates of a view from a Sam model (paper §3: 32 x 32 uniform prompts, three outputs)."""

    def __init__(
        self, sam: torch.nn.Module, config: SamConfig, masks: MaskConfig, device: str = "cpu"
    ):
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
        self._clicked, self._encoded = SamPredictor(sam), b""

    def propose(self, view: View) -> Candidates:
        return self.propose_image(view.image())

    def propose_image(self, image: np.ndarray) -> Candidates:  # [H, W, 3] uint8
        """Candidates of a picture, each with the output it came from; none at all is a result, not
        an error.
        """
        g = self.generator
        g.counts = dict.fromkeys(
            ("prompts", "outputs", "low_predicted_iou", "unstable", "crop_edge", "same_box"), 0
        )
        with torch.no_grad(), self._autocast():
            data = g._generate_masks(np.ascontiguousarray(image))
        kept = len(data["rles"])
        g.counts["same_box"] = (
            g.counts["outputs"]
            - kept
            - sum(g.counts[k] for k in ("low_predicted_iou", "unstable", "crop_edge"))
        )
        masks = (
            np.stack([rle_to_mask(r) for r in data["rles"]])
            if kept
            else np.zeros((0, *image.shape[:2]), bool)
        )
        return Candidates(
            masks.astype(bool),
            np.asarray(data["output"], np.int64),
            np.clip(np.asarray(data["iou_preds"], np.float64), 0, 1),  # the IoU head is not bounded
            np.clip(np.nan_to_num(np.asarray(data["stability_score"], np.float64)), 0, 1),
            dict(g.counts),
        )

    def click(self, image: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The three masks [P, 3, H, W] bool and predicted IoUs [P, 3] of single clicks [P, 2] (x, y
        in pixels).

        The picture's embedding is kept until another picture is clicked on: encoding takes nearly
        all of the time.
        """
        p, seen = self._clicked, hashlib.sha256(image.tobytes()).digest()
        with torch.no_grad(), self._autocast():
            if seen != self._encoded:
                p.set_image(np.ascontiguousarray(image))
                self._encoded = seen
            at = torch.as_tensor(
                p.transform.apply_coords(np.asarray(points, float), image.shape[:2]),
                device=self.device,
            )
            masks, scores, _ = p.predict_torch(
                at[:, None], torch.ones(len(at), 1, device=self.device), multimask_output=True
            )
        return masks.cpu().numpy(), scores.float().cpu().numpy()

    def _autocast(self):
        return torch.autocast(
            torch.device(self.device).type,
            torch.bfloat16,
            enabled=self.config.precision == "bfloat16",
        )


def sam_masks(config: SamConfig, masks: MaskConfig, device: str = "cpu") -> SamMasks:
    """The adapter with its weights loaded. Raises ModelError."""
    return SamMasks(load_sam(config.model, config.checkpoint), config, masks, device)


class _OneOutput(SamPredictor):
    """A predictor that decodes a batch of clicks once and hands out one of its outputs
    at a time.
    """

    def __init__(self, model):
        super().__init__(model)
        self.output: int | None = None
        self.decoded = None

    def predict_torch(self, *args, **kwargs):
        if self.decoded is None:
            self.decoded = super().predict_torch(*args, **kwargs)
        return tuple(x[:, self.output : self.output + 1].float() for x in self.decoded)


class OutputKeepingGenerator(SamAutomaticMaskGenerator):
    """segment_anything's generator, run on each output of a click as if the others did not exist.

    The package flattens the three outputs and lets box-NMS choose among them; the paper's two
    levels need to know which output a mask came from, and a part must not lose to the whole that
    shares its box.
    """

    def __init__(self, model, **kwargs):
        super().__init__(model, **kwargs)
        self.predictor = _OneOutput(model)
        self.counts: dict[str, int] = {}

    def _process_batch(self, points, im_size, crop_box, orig_size) -> MaskData:
        self.predictor.decoded = None
        out = MaskData()
        for k in range(OUTPUTS):
            self.predictor.output = k
            data = super()._process_batch(points, im_size, crop_box, orig_size)
            n = len(data["rles"])
            data["output"] = torch.full((n,), k)
            data["boxes"] = data["boxes"] + k * APART  # the NMS that follows compares boxes
            masks, scores = (x[:, k].float() for x in self.predictor.decoded[:2])
            confident = (
                scores > self.pred_iou_thresh
                if self.pred_iou_thresh > 0
                else torch.ones_like(scores, dtype=torch.bool)
            )
            stable = (
                calculate_stability_score(
                    masks[confident],
                    self.predictor.model.mask_threshold,
                    self.stability_score_offset,
                )
                >= self.stability_score_thresh
            )
            stable = int(stable.sum()) if self.stability_score_thresh > 0 else int(confident.sum())
            self.counts["low_predicted_iou"] += len(points) - int(confident.sum())
            self.counts["unstable"] += int(confident.sum()) - stable
            self.counts["crop_edge"] += stable - n
            out.cat(data)
        self.counts["prompts"] += len(points)
        self.counts["outputs"] += OUTPUTS * len(points)
        self.predictor.decoded = None
        return out

    def _process_crop(self, *args, **kwargs) -> MaskData:
        data = super()._process_crop(*args, **kwargs)
        # where nothing was found the package leaves no second axis
        data["crop_boxes"] = data["crop_boxes"].reshape(-1, 4)
        return data


def load_sam(model: str, checkpoint: str = "") -> torch.nn.Module:
    """A `segment_anything` Sam: "mini" (bundled unless a checkpoint is given), "vit_b", "vit_l" or
    "vit_h" (fetched unless given).
    """
    if model == "mini":
        return load_mini_sam(Path(checkpoint) if checkpoint else None)
    from segment_anything import sam_model_registry

    what = f"SAM {model}"
    checkpoint = checkpoint or fetched(model)
    if not checkpoint:
        raise ModelError(
            f"front_end.sam.model={model!r} needs front_end.sam.checkpoint=PATH; {remedy(what)}"
        )
    weights = load_weights(checkpoint, what)
    return fill(sam_model_registry[model](), weights, checkpoint, what)


def load_mini_sam(path: Path | None = None) -> torch.nn.Module:
    """mini-SAM from a file (None: the bundled weights, whose digest is checked)."""
    weights = (
        load_weights(*bundled(MINI_SAM, "mini-SAM"))
        if path is None
        else load_weights(path, "mini-SAM")
    )
    return fill(build_mini_sam(CLICK_SIZE), weights, path or folder() / MINI_SAM, "mini-SAM")


def _settings(setup: Setup) -> dict:
    c = setup.settings.sam
    own = kept(as_dict(c), "checkpoint", "points_per_batch")
    own |= {"weights": weights.identity(c.model, c.checkpoint, MINI_SAM), "device": setup.device}
    # those that segment_anything's generator applies itself
    thresholds = {k: getattr(setup.masks, k) for k in ("predicted_iou_min", "stability_min")}
    return own | thresholds


PROPOSER = Model(
    build=lambda setup: sam_masks(setup.settings.sam, setup.masks, setup.device),
    label=lambda settings: weights.label("SAM", settings.sam.model),
    settings=_settings,
)
