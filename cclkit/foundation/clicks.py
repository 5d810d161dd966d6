"""Single clicks: what a person who clicks gets, and what click scores measure."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from ..errors import MaskError, needed
from .sam import SamMasks

if TYPE_CHECKING:
    from segment_anything import SamPredictor

EDGE_PX = 2
"""A mask that comes this near to where a crop ends within the image may go on beyond it."""
OUTPUTS = 3
"""Masks that SAM answers to a click."""


class SamClicks:
    """Masks of single clicks by the model of an adapter.

    Like everything mode, a click looks at the crops of every crop layer too, in which small things
    are large: logits and predicted IoU are means over the image and the crops that hold the mask
    whole. ``crop_layers``: those of the adapter unless given; with 0, and all pieces, it is SAM's
    own click, one look at the image.
    """

    def __init__(self, masks: SamMasks, crop_layers: int | None = None):
        self.masks = masks
        self.crop_layers = masks.config.crop_layers if crop_layers is None else crop_layers
        self._seen: bytes = b""
        self._looks: list[tuple[tuple[int, int, int, int], SamPredictor]] = []

    def click(
        self, image: np.ndarray, points: np.ndarray, *, one_piece: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """The three masks [P, 3, H, W] bool and predicted IoUs [P, 3] of single clicks [P, 2] (x, y
        in pixels) into an image [H, W, 3] uint8.

        ``one_piece`` keeps of a mask what hangs together with the clicked pixel, because a small
        SAM adds look-alikes elsewhere; things that something in front divides lose by it. A mask
        that does not hold its click is left as it is. Embeddings are kept until another picture is
        clicked on: encoding takes nearly all of the time.

        Raises MaskError for a click outside of the image.
        """
        points, (h, w) = np.asarray(points, float).reshape(-1, 2), image.shape[:2]
        for x, y in points[~((points >= 0) & (points < (w, h))).all(1)]:
            raise MaskError(
                f"a click at x={x:g}, y={y:g} lies outside of the picture; expected 0 <= x < {w}"
                f" and 0 <= y < {h}"
            )
        P = len(points)
        logits = np.zeros((P, OUTPUTS, h, w), np.float32)
        looks = np.zeros((P, OUTPUTS, h, w), np.uint8)
        scores = np.zeros((P, OUTPUTS), np.float32)
        asked = np.zeros((P, OUTPUTS), np.uint8)
        for (x0, y0, x1, y1), predictor in self._look_at(image):
            inside = np.flatnonzero(((points >= (x0, y0)) & (points < (x1, y1))).all(1))
            if not len(inside):
                continue
            here, crop = points[inside] - (x0, y0), (x0 > 0, y0 > 0, x1 < w, y1 < h)
            said, predicted = self._ask(predictor, here, (y1 - y0, x1 - x0))
            masks = said > predictor.model.mask_threshold
            use = _not_cut(piece_under(masks, here) if one_piece else masks, crop)
            if any(crop):
                use &= masks.any((2, 3))  # a crop in which nothing is found has no say
            logits[inside, :, y0:y1, x0:x1] += said * use[..., None, None]
            looks[inside, :, y0:y1, x0:x1] += use[..., None, None]
            scores[inside] += predicted * use
            asked[inside] += use
        masks = logits > np.float32(self.masks.generator.predictor.model.mask_threshold) * looks
        return piece_under(masks, points) if one_piece else masks, scores / asked

    def _ask(
        self, predictor: SamPredictor, points: np.ndarray, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits [P, 3, h, w] and predicted IoUs [P, 3] of clicks [P, 2] into one crop (h, w)."""
        device = self.masks.device
        with torch.no_grad(), self.masks.autocast():
            at = torch.as_tensor(predictor.transform.apply_coords(points, size), device=device)
            said, predicted, _ = predictor.predict_torch(
                at[:, None],
                torch.ones(len(at), 1, device=device),
                multimask_output=True,
                return_logits=True,
            )
        return said.float().cpu().numpy(), predicted.float().cpu().numpy()

    def _look_at(self, image: np.ndarray) -> list[tuple[tuple[int, int, int, int], SamPredictor]]:
        """The image and its crops, x0 y0 x1 y1 each, with predictors that hold their embeddings."""
        seen = hashlib.sha256(str(image.shape).encode() + image.tobytes()).digest()
        if seen != self._seen:
            with needed("segment_anything"):
                from segment_anything import SamPredictor
                from segment_anything.utils.amg import generate_crop_boxes

            # an interruption must not leave these with the old digest
            self._seen, self._looks = b"", []
            g = self.masks.generator
            # the image itself comes first
            boxes, _ = generate_crop_boxes(image.shape[:2], self.crop_layers, g.crop_overlap_ratio)
            for x0, y0, x1, y1 in boxes:
                predictor = SamPredictor(g.predictor.model)
                with torch.no_grad(), self.masks.autocast():
                    predictor.set_image(np.ascontiguousarray(image[y0:y1, x0:x1]))
                self._looks.append(((x0, y0, x1, y1), predictor))
            self._seen = seen
        return self._looks


def piece_under(masks: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Of masks [P, K, H, W] bool the 4-connected pieces that hold their clicks [P, 2]; all of a
    mask that does not hold its click.
    """
    out = masks.copy()
    for own, (x, y) in zip(out, points.astype(int)):
        for k in np.flatnonzero(own[:, y, x]):
            pieces = cv2.connectedComponents(own[k].astype(np.uint8), connectivity=4)[1]
            own[k] = pieces == pieces[y, x]
    return out


def _not_cut(masks: np.ndarray, crop: tuple[bool, bool, bool, bool]) -> np.ndarray:
    """Which masks [P, 3, H, W] stay away from the edges (left, top, right, bottom) that lie within
    the image, bool [P, 3].
    """
    edges = (
        masks[..., :EDGE_PX],
        masks[..., :EDGE_PX, :],
        masks[..., -EDGE_PX:],
        masks[..., -EDGE_PX:, :],
    )
    cut = np.zeros(masks.shape[:2], bool)
    for inner, edge in zip(crop, edges):
        cut |= inner & edge.any((2, 3))
    return ~cut
