"""Train mini-SAM2 on short clips of random orbits: masks of the first frame, followed through
`track_step` with memory.
"""

from __future__ import annotations

import numpy as np
import torch
from sam2.modeling.sam.transformer import RoPEAttention
from torch.nn import functional as F

from cclkit.foundation.mini_sam2 import IMAGE_SIZE, build_mini_sam2

from .data import LEVELS, Scenes
from .sam import DICE, FOCAL, SMALLEST_MATRIX, _balanced, _dice, _focal, _iou, _mean, degraded

FRAMES, LATE_FRAMES, OBJECTS = 3, 5, 6
"""Frames of a clip in the first and in the second half of the training, and objects
followed in it.
"""
LATE = 0.5
MIN_AREA_PX = 60
"""Masks smaller than this in the first frame are not followed in training."""
ON_STUFF = 0.1
"""Share of followed masks that are tables and walls."""
SKIP, MIRRORED, BACKWARDS, DEGRADED = 0.3, 0.5, 0.5, 0.25
"""Share of clips with every second view left out, mirrored, played backwards,
photographed worse.
"""
BALANCED = (1.0, 0.2)
"""Weight of a balanced cross-entropy at the first and at the last step; the focal loss takes its
place.
"""
ATTENTION = 1.5
MASK_STRIDE = 4
PIXEL_MEAN, PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What sam2's predictor normalises frames with."""


def model(seed: int, trunk: dict[str, torch.Tensor]) -> torch.nn.Module:
    """mini-SAM2 as training starts: mini-SAM's image trunk, and memory attention that already looks
    for likeness.

    Queries and keys of the cross-attention are projected alike, so that from the first step a place
    attends to what looked like it in the frames before.
    """
    torch.manual_seed(seed)
    m = build_mini_sam2()
    m.image_encoder.trunk.load_state_dict(trunk)
    with torch.no_grad():
        for layer in m.memory_attention.layers:
            a: RoPEAttention = layer.cross_attn_image
            torch.nn.init.orthogonal_(a.q_proj.weight, gain=ATTENTION)
            a.k_proj.weight.copy_(a.q_proj.weight)
            a.q_proj.bias.zero_()
            a.k_proj.bias.zero_()
    return m


def trunk_of(sam: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights of mini-SAM's pyramid."""
    return {k: v for k, v in sam.image_encoder.state_dict().items() if not k.startswith("neck.")}


def matrices(m: torch.nn.Module) -> list[torch.nn.Parameter]:
    """What Muon trains: convolutions over several channels, but for the first, and linear maps."""
    inner = (m.image_encoder, m.memory_attention, m.memory_encoder, m.sam_mask_decoder)
    named = {
        f"{k} {name}": p for k, part in enumerate(inner) for name, p in part.named_parameters()
    }
    wanted = lambda name, p: (
        p.ndim == 4
        and p.shape[1] > 1
        and "stem.0" not in name
        or p.ndim == 2
        and min(p.shape) >= SMALLEST_MATRIX
        and not name.endswith(("token.weight", "tokens.weight"))
    )
    return [p for name, p in named.items() if wanted(name, p)]


class Losses:
    """The loss of one step, as a function of its number and its generator. ``scenes``: views of a
    clip one after another.
    """

    def __init__(self, sam2, scenes: Scenes, steps: int):
        self.sam2, self.scenes, self.steps = sam2, scenes, steps
        self.clips = [np.flatnonzero(scenes.scene == s) for s in range(len(scenes.nodes))]
        self.stuff = [
            np.array([n["stuff"] for n in [{"stuff": False}, *(t[i] for i in sorted(t))]])
            for t in scenes.nodes
        ]

    def __call__(self, step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        images, masks = self.clip(FRAMES if step < LATE * self.steps else LATE_FRAMES, rng)
        # [T, P, 64, 64]
        target = F.avg_pool2d(
            masks,
            (
                masks.shape[-2] * MASK_STRIDE // IMAGE_SIZE,
                masks.shape[-1] * MASK_STRIDE // IMAGE_SIZE,
            ),
        )
        logit = follow(self.sam2, images, masks[0])
        t = step / self.steps
        balanced = BALANCED[0] + (BALANCED[1] - BALANCED[0]) * t
        target = target[1:]
        # where an object is hidden, dice would only ask for nothing at all
        there = target.sum((-1, -2)) > 0.5
        everywhere = torch.ones_like(there)
        out = {
            "balanced": _mean(_balanced(logit, target), everywhere),
            "focal": _mean(_focal(logit, target), everywhere),
            "dice": _mean(_dice(logit.sigmoid(), target), there),
        }
        out["total"] = (
            balanced * out["balanced"] + (1 - balanced) * FOCAL * out["focal"] + DICE * out["dice"]
        )
        iou = _iou(logit, target)
        out["iou"] = _mean(iou, there)
        with torch.no_grad():  # what the mask of the frame before would have reached
            before = masks[:-1]
            before = F.avg_pool2d(
                before,
                (
                    before.shape[-2] * MASK_STRIDE // IMAGE_SIZE,
                    before.shape[-1] * MASK_STRIDE // IMAGE_SIZE,
                ),
            )
            out["iou_of_frame_before"] = _mean(_iou(before - 0.5, target), there)
        return out

    def clip(self, frames: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [T, 3, S, S] normalised, and masks [T, P, H, W] float of objects that the first
        frame shows.
        """
        while True:
            s = int(rng.integers(len(self.clips)))
            step = 2 if rng.random() < SKIP and 2 * frames - 1 <= len(self.clips[s]) else 1
            start = int(rng.integers(len(self.clips[s]) - step * (frames - 1)))
            views = self.clips[s][start : start + step * (frames - 1) + 1 : step]
            if rng.random() < BACKWARDS:
                views = views[::-1]
            ids, images = self.scenes.ids[views], self.scenes.images[views]
            if rng.random() < MIRRORED:
                ids, images = ids[..., ::-1], images[:, :, ::-1]
            objects = sample_objects(ids[0], self.stuff[s], OBJECTS, rng)
            if len(objects):
                break
        if rng.random() < DEGRADED:
            images = np.stack([degraded(i, rng) for i in images])
        masks = np.stack([ids[:, level] == i for level, i in objects], 1)
        return frames_of(images), torch.from_numpy(masks).float()


def frames_of(images: np.ndarray) -> torch.Tensor:
    """Images [T, H, W, 3] uint8 as sam2's predictor loads them: [T, 3, S, S] float."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    x = F.interpolate(
        x, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False, antialias=True
    )
    return (x - torch.tensor(PIXEL_MEAN)[:, None, None]) / torch.tensor(PIXEL_STD)[:, None, None]


def follow(sam2, images: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Mask logits [T - 1, P, S / 4, S / 4] of the objects whose masks in frame 0 are ``first`` [P,
    H, W].
    """
    backbone = sam2.forward_image(images.contiguous(memory_format=torch.channels_last))
    _, features, places, sizes = sam2._prepare_backbone_features(backbone)
    P = len(first)
    prompt = (
        F.interpolate(
            first[:, None],
            size=(IMAGE_SIZE, IMAGE_SIZE),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        >= 0.5
    )
    memory: dict[str, dict] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    logits = []
    for t in range(len(images)):
        of_objects = lambda maps: [m[:, t : t + 1].expand(-1, P, -1) for m in maps]
        out = sam2.track_step(
            frame_idx=t,
            is_init_cond_frame=t == 0,
            current_vision_feats=of_objects(features),
            current_vision_pos_embeds=of_objects(places),
            feat_sizes=sizes,
            point_inputs=None,
            mask_inputs=prompt.float() if t == 0 else None,
            output_dict=memory,
            num_frames=len(images),
        )
        memory["cond_frame_outputs" if t == 0 else "non_cond_frame_outputs"][t] = out
        if t:
            logits.append(out["pred_masks"][:, 0])
    return torch.stack(logits)


def sample_objects(
    ids: np.ndarray, stuff: np.ndarray, n: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Up to ``n`` (level, id) of a frame's ids [3, H, W], each level equally often; few of them
    stuff.
    """
    found = []
    for level in range(len(LEVELS)):
        values, count = np.unique(ids[level], return_counts=True)
        large = values[(values > 0) & (count >= MIN_AREA_PX)]
        found.append({False: large[~stuff[large]], True: large[stuff[large]]})
    out = []
    for _ in range(n):
        level, on_stuff = int(rng.integers(len(LEVELS))), bool(rng.random() < ON_STUFF)
        pool = found[level][on_stuff] if len(found[level][on_stuff]) else found[level][not on_stuff]
        if len(pool):
            out.append((level, int(pool[rng.integers(len(pool))])))
    return out
