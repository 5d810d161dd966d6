"""Stage 2: carry the first view's masks to all views and give every mask a track label.

Per level, mask M_i of a view takes the label of the propagated mask with the largest IoU if that
IoU exceeds 0.5, else -1 (paper §3; labels are 1..K in the order of the first view's masks).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .config import TrackConfig
from .errors import MaskError
from .foundation import MaskPropagator
from .masks import LEVELS, ViewMasks
from .scenes.scene import View


@dataclass(frozen=True)
class ViewTracks:
    """Track labels of one view's masks, row by row of its mask table."""

    label: np.ndarray  # [M] int64: 1..K or -1
    match: np.ndarray  # [M] int64: propagated mask with the largest IoU, -1 if none overlaps
    iou: np.ndarray  # [M] float64: that IoU


def associate(masks: np.ndarray, propagated: np.ndarray, iou_min: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks [M, H, W] and propagated masks [K, H, W] -> label, match, IoU, each [M].

    Label k+1 where the largest IoU, with propagated mask k, is greater than ``iou_min``; else -1. The
    first of equals wins. Empty propagated masks (lost objects) never match.
    """
    M, K = len(masks), len(propagated)
    if M == 0 or K == 0:
        return np.full(M, -1, np.int64), np.full(M, -1, np.int64), np.zeros(M)
    iou = iou_matrix(masks, propagated)
    match = iou.argmax(1)
    best = iou[np.arange(M), match]
    label = np.where(best > iou_min, match + 1, -1)
    return label.astype(np.int64), np.where(best > 0, match, -1).astype(np.int64), best


def iou_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU [M, K] float64 of two mask sets [M, H, W], [K, H, W]; 0 where both are empty."""
    fa, fb = a.reshape(len(a), -1).astype(np.float32), b.reshape(len(b), -1).astype(np.float32)
    inter = (fa @ fb.T).astype(np.float64)
    union = fa.sum(1, dtype=np.float64)[:, None] + fb.sum(1, dtype=np.float64)[None, :] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def track_masks(
    views: Sequence[View],
    masks: Mapping[str, ViewMasks],  # view name -> masks
    propagator: MaskPropagator,
    config: TrackConfig,
    progress=lambda views: views,
    keep: Path | None = None,
) -> tuple[dict[str, ViewTracks], dict[str, int]]:
    """Labels of all masks of all views, and K per level.

    The first view of ``views`` is the one whose masks are propagated; ``keep`` is a folder in which the
    propagator may leave what a stopped run goes on from. A first view without masks is
    no error: all labels are -1 and the codebook learns from the matching loss alone. Raises
    MaskError when a view has no entry in ``masks``.
    """
    for v in views:
        if v.name not in masks:
            raise MaskError(f"view {v.name!r} has no masks, so nothing can be tracked through it; recompute the masks")
    first = masks[views[0].name]
    rows = {level: np.flatnonzero(first.level == n) for n, level in enumerate(LEVELS)}
    out = {v.name: {} for v in views}
    for n, level in enumerate(LEVELS):
        if len(rows[level]) == 0:
            continue
        for view, carried in propagator.propagate(views, first.masks[rows[level]], keep and keep / level):
            m = masks[view.name]
            mine = np.flatnonzero(m.level == n)
            out[view.name][level] = (mine, *associate(m.masks[mine], carried, config.iou_min))
            progress(1)
    tracks = {}
    for v in views:
        M = len(masks[v.name])
        t = ViewTracks(np.full(M, -1, np.int64), np.full(M, -1, np.int64), np.zeros(M))
        for mine, label, match, iou in out[v.name].values():
            t.label[mine], t.match[mine], t.iou[mine] = label, match, iou
        tracks[v.name] = t
    return tracks, {level: len(rows[level]) for level in LEVELS}
