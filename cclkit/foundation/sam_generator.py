"""segment_anything's everything mode, output by output."""

from __future__ import annotations

import numpy as np
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.utils.amg import MaskData, calculate_stability_score, rle_to_mask

from ..method.interfaces import Candidates

OUTPUTS = 3
"""Masks that SAM answers to a click: subpart, part, whole."""
APART = 2.0**17
"""Shift in pixels that keeps boxes of different outputs from overlapping; exact in single
precision.
"""


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

    def propose(self, image: np.ndarray) -> Candidates:
        """Candidates of an image [H, W, 3] uint8, each with the output it came from, and what was
        dropped why.
        """
        self.counts = dict.fromkeys(
            ("prompts", "outputs", "low_predicted_iou", "unstable", "crop_edge", "same_box"), 0
        )
        data = self._generate_masks(np.ascontiguousarray(image))
        masks = np.zeros((len(data["rles"]), *image.shape[:2]), bool)
        for mask, runs in zip(masks, data["rles"]):
            mask[:] = rle_to_mask(runs)
        dropped = sum(self.counts[k] for k in ("low_predicted_iou", "unstable", "crop_edge"))
        self.counts["same_box"] = self.counts["outputs"] - len(masks) - dropped
        return Candidates(
            masks,
            np.asarray(data["output"], np.int64),
            np.clip(np.asarray(data["iou_preds"], np.float64), 0, 1),  # the IoU head is not bounded
            np.clip(np.nan_to_num(np.asarray(data["stability_score"], np.float64)), 0, 1),
            dict(self.counts),
        )

    def _process_batch(self, points, im_size, crop_box, orig_size) -> MaskData:
        self.predictor.decoded = None
        out = MaskData()
        for k in range(OUTPUTS):
            self.predictor.output = k
            data = super()._process_batch(points, im_size, crop_box, orig_size)
            n = len(data["rles"])
            data["output"] = torch.full((n,), k)
            data["boxes"] = data["boxes"] + k * APART  # the NMS that follows compares boxes
            confident, stable = self._passing(k)
            self.counts["low_predicted_iou"] += len(points) - confident
            self.counts["unstable"] += confident - stable
            self.counts["crop_edge"] += stable - n
            out.cat(data)
        self.counts["prompts"] += len(points)
        self.counts["outputs"] += OUTPUTS * len(points)
        self.predictor.decoded = None
        return out

    def _passing(self, k: int) -> tuple[int, int]:
        """How many clicks' output k has a predicted IoU, and of those a stability, that passes."""
        masks, scores = (x[:, k].float() for x in self.predictor.decoded[:2])
        if self.pred_iou_thresh > 0:
            masks = masks[scores > self.pred_iou_thresh]
        if self.stability_score_thresh <= 0:
            return len(masks), len(masks)
        stability = calculate_stability_score(
            masks, self.predictor.model.mask_threshold, self.stability_score_offset
        )
        return len(masks), int((stability >= self.stability_score_thresh).sum())

    def _process_crop(self, *args, **kwargs) -> MaskData:
        data = super()._process_crop(*args, **kwargs)
        # where nothing was found the package leaves no second axis
        data["crop_boxes"] = data["crop_boxes"].reshape(-1, 4)
        return data


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
