"""Stage 1: candidate masks -> filtering -> two non-overlapping label maps per view.

Level ``sp`` is subpart ∪ part, level ``wp`` is whole ∪ part (paper §3; SAM's outputs 0, 1, 2 are
subpart, part, whole). Within a level every pixel goes to the mask with the best IoU×stability.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from ..errors import MaskError
from ..settings import NOT_NEGATIVE, SHARE
from .interfaces import Candidates


@dataclass(frozen=True)
class MaskConfig:
    """Stage 1: candidates -> two-level label maps."""

    predicted_iou_min: Annotated[float, SHARE] = 0.7
    """Drop candidates whose predicted IoU is not above this. Paper: filters by predicted IoU, value
    not given (ours: 0.7, LangSplat's; 0.5 in the profile mini, whose small SAM is less sure of
    itself).
    """
    stability_min: Annotated[float, SHARE] = 0.85
    """Drop candidates whose stability is below this. Paper: filters by stability, value not given
    (ours: 0.85, LangSplat's; 0.5 in the profile mini, because a small SAM's outlines are softer).
    """
    overlap_iou_max: Annotated[float, SHARE] = 0.8
    """Within one SAM output, drop a mask whose IoU with a better one is above this. Paper: "overlap
    rate", value not given (ours: 0.8, LangSplat's).
    """
    score_min: Annotated[float, SHARE] = 0.7
    """Drop masks whose IoU×stability is not above this. Paper does not say (ours: 0.7, because
    LangSplat has it; 0.25 in the profile mini, the product of its other two).
    """
    inner_max: Annotated[float, SHARE] = 0.5
    """LangSplat's rule for a mask inside a much larger one of the same SAM output (protocol E).
    Paper does not say (ours: 0.5, because LangSplat has it).
    """
    overlap_across_outputs: bool = True
    """Apply the overlap rule to the union of two outputs too. Paper does not say (ours: on, because
    an object without parts is found by several outputs, and its twins would get two tracks, which
    push then drives apart).
    """
    inner_across_outputs: bool = False
    """Apply that rule to the union of two outputs too. Paper does not say (ours: off, because it
    would delete every part inside its whole).
    """
    min_area_px: Annotated[int, NOT_NEGATIVE] = 20
    """Drop masks that keep fewer visible pixels than this in their label map. Paper does not say
    (ours: 20, because smaller crops carry no feature).
    """


LEVELS = ("sp", "wp")
OUTPUTS_OF_LEVEL = {"sp": (0, 1), "wp": (2, 1)}
"""SAM outputs that make up a level."""
TILE = 64
"""Side in pixels of the squares in which masks are intersected; of no influence on results."""


@dataclass(frozen=True)
class ViewMasks:
    """Masks of one view: a table over both levels, and one label map per level into that table."""

    level: np.ndarray  # [M] int: index into LEVELS
    output: np.ndarray  # [M] int: SAM output the mask came from
    predicted_iou: np.ndarray  # [M] float64
    stability: np.ndarray  # [M] float64
    area: np.ndarray  # [M] int: pixels of the full mask
    bbox: np.ndarray  # [M, 4] int: x1 y1 x2 y2, all inside the mask
    # [M, H, W] bool: the full masks (label maps show what is left of them after overlap)
    masks: np.ndarray
    sp: np.ndarray  # [H, W] int32: row of the table, -1 = none
    wp: np.ndarray  # [H, W] int32

    def label_map(self, level: str) -> np.ndarray:  # [H, W] int32
        return {"sp": self.sp, "wp": self.wp}[level]

    def __len__(self) -> int:
        return len(self.level)


@dataclass(frozen=True)
class FilterCounts:
    """How many candidates of one view each rule removed, for the notebooks."""

    candidates: int
    low_score: int
    overlapping: int
    inside_larger: int
    across_outputs: int  # dropped from a level because its other output holds the same region
    covered: int  # lost all (or nearly all) pixels to better masks of the level
    kept: int


def build_view_masks(candidates: Candidates, config: MaskConfig) -> tuple[ViewMasks, FilterCounts]:
    """Filter the candidates of one view and paint both levels.

    Raises MaskError on arrays that do not belong together or scores that are not finite. No
    candidate at all is fine and gives empty tables and maps of -1.
    """
    c = candidates
    _check(c)
    h, w = c.masks.shape[1:]
    confident = (
        (c.predicted_iou > config.predicted_iou_min)
        & (c.stability >= config.stability_min)
        & c.masks.any((1, 2))
    )
    low_score = int((~confident).sum())

    # Each SAM output is filtered alone: across outputs, overlap is what hierarchy looks like.
    kept: dict[int, np.ndarray] = {}
    overlapping = inside = 0
    for output in (0, 1, 2):
        rows = np.flatnonzero(confident & (c.output == output))
        keep, by_rule = _nms(c.masks[rows], c.predicted_iou[rows], c.stability[rows], config)
        kept[output] = rows[keep]
        low_score += int(by_rule["score"].sum())
        overlapping += int((by_rule["overlap"] & ~by_rule["score"]).sum())
        inside += int((by_rule["inner"] & ~by_rule["overlap"] & ~by_rule["score"]).sum())

    table, maps, covered, wanted, twins = [], {}, 0, 0, 0
    for n, level in enumerate(LEVELS):
        rows = np.concatenate([kept[o] for o in OUTPUTS_OF_LEVEL[level]])
        if len(rows):
            _, by_rule = _nms(c.masks[rows], c.predicted_iou[rows], c.stability[rows], config)
            dropped = np.zeros(len(rows), bool)
            if config.overlap_across_outputs:
                dropped |= by_rule["overlap"]
            if config.inner_across_outputs:
                dropped |= by_rule["inner"]
            twins += int(dropped.sum())
            rows = rows[~dropped]
        wanted += len(rows)
        label, shown = paint(
            c.masks[rows], (c.predicted_iou * c.stability)[rows], config.min_area_px
        )
        covered += len(rows) - len(shown)
        offset = len(table)
        table += [(n, r) for r in rows[shown]]
        maps[level] = np.where(label >= 0, label + offset, -1).astype(np.int32)

    rows = np.array([r for _, r in table], np.int64)
    masks = c.masks[rows] if len(rows) else np.zeros((0, h, w), bool)
    out = ViewMasks(
        level=np.array([n for n, _ in table], np.int64),
        output=c.output[rows] if len(rows) else np.zeros(0, np.int64),
        predicted_iou=c.predicted_iou[rows] if len(rows) else np.zeros(0),
        stability=c.stability[rows] if len(rows) else np.zeros(0),
        area=masks.sum((1, 2)).astype(np.int64),
        bbox=np.array([mask_box(m) for m in masks], np.int64).reshape(-1, 4),
        masks=masks,
        **maps,
    )
    return out, FilterCounts(
        len(c.masks), low_score, overlapping, inside, twins, covered, wanted - covered
    )


def mask_nms(
    masks: np.ndarray,  # [M, H, W] bool
    predicted_iou: np.ndarray,  # [M]
    stability: np.ndarray,  # [M]
    *,
    iou_thr: float,
    score_thr: float,
    inner_thr: float,
) -> np.ndarray:  # [K] int64
    """Indices of the masks kept, in list order (protocol E, applied to one SAM output).

    A mask is dropped if its IoU with any mask of higher score exceeds ``iou_thr`` (a dropped mask
    still removes others: not greedy), if its score = predicted IoU × stability is not above
    ``score_thr``, or if at least 85 % of it lies in a mask of which it covers less than half and
    one minus the product of the two shares exceeds ``1 - inner_thr``. All by matrix products,
    exact. Empty masks are dropped; an empty list gives an empty result, where the published code
    fails.

    >>> import numpy as np
    >>> masks = np.zeros((3, 8, 8), bool)
    >>> masks[0, :4], masks[1, :4, 1:], masks[2, 5:] = True, True, True  # 1 is nearly 0
    >>> score = np.array([0.9, 0.95, 0.99])
    >>> mask_nms(masks, score, np.ones(3), iou_thr=0.8, score_thr=0.7, inner_thr=0.5).tolist()
    [1, 2]
    """
    config = MaskConfig(overlap_iou_max=iou_thr, score_min=score_thr, inner_max=inner_thr)
    scores = np.asarray(predicted_iou), np.asarray(stability)
    keep, _ = _nms(np.asarray(masks, bool), *scores, config)
    return np.flatnonzero(keep)


def _nms(
    masks: np.ndarray, predicted_iou: np.ndarray, stability: np.ndarray, config: MaskConfig
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Boolean keep [M], and for each rule ("score", "overlap", "inner") which masks it drops
    [M].
    """
    M = len(masks)
    if M == 0:
        none = np.zeros(0, bool)
        return none, {"score": none, "overlap": none, "inner": none}
    inter = _intersections(masks)
    area = np.diag(inter).copy()
    score = predicted_iou.astype(np.float64) * stability.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = np.nan_to_num(inter / (area[:, None] + area[None, :] - inter))
        share = np.nan_to_num(inter / area[:, None])  # share[j, i]: how much of j lies in i
    rank = np.empty(M, np.int64)
    rank[np.argsort(-score, kind="stable")] = np.arange(M)
    better = rank[None, :] < rank[:, None]  # better[j, i]: i has the higher score
    overlap = (np.where(better, iou, 0) > config.overlap_iou_max).any(1)
    low = ~(score > config.score_min)
    inside = (share >= 0.85) & (share.T < 0.5) & (1 - share * share.T > 1 - config.inner_max)
    np.fill_diagonal(inside, False)
    inner = inside.any(1)
    keep = ~(low | overlap | inner) & (area > 0)
    return keep, {"score": low, "overlap": overlap, "inner": inner}


def _intersections(masks: np.ndarray) -> np.ndarray:
    """Pixels that every two of the masks [M, H, W] have in common: [M, M] float64, exact."""
    M = len(masks)
    inter = np.zeros((M, M))
    for y in range(0, masks.shape[1], TILE):
        for x in range(0, masks.shape[2], TILE):
            tile = masks[:, y : y + TILE, x : x + TILE].reshape(M, -1)
            here = np.flatnonzero(tile.any(1))  # most masks are small: few meet in a tile
            part = tile[here].astype(np.float32)
            inter[np.ix_(here, here)] += part @ part.T
    return inter


def paint(masks: np.ndarray, score: np.ndarray, min_area: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks [M, H, W] and scores [M] -> label map [H, W] (position among the shown masks, -1 none)
    and shown [K].

    Every pixel goes to its best mask (first on ties). Masks left with fewer than ``min_area``
    pixels give them back to the next best, smallest first, until every mask shown is large enough.
    """
    h, w = masks.shape[1:]
    alive = np.ones(len(masks), bool)
    order = np.argsort(-score, kind="stable")
    while True:
        label = np.full((h, w), -1, np.int64)
        for m in order[::-1]:  # worst first, so that better ones overpaint
            if alive[m]:
                label[masks[m]] = m
        visible = np.bincount(label[label >= 0], minlength=len(masks))
        small = alive & (visible < min_area)
        if not small.any():
            break
        alive[np.flatnonzero(small)[np.argmin(visible[small])]] = False
    shown = np.flatnonzero(alive)
    position = np.full(len(masks) + 1, -1, np.int64)
    position[shown] = np.arange(len(shown))
    return position[label], shown


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Smallest box (x1, y1, x2, y2), ends included, of a mask [H, W] with at least one pixel."""
    x, y = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return int(x[0]), int(y[0]), int(x[-1]), int(y[-1])


def _check(c: Candidates) -> None:
    M = len(c.masks)
    if c.masks.ndim != 3 or c.masks.dtype != bool:
        raise MaskError(
            f"candidate masks have shape {c.masks.shape} and type {c.masks.dtype}, expected [M, H,"
            " W] bool"
        )
    for name in ("output", "predicted_iou", "stability"):
        value = getattr(c, name)
        if value.shape != (M,):
            raise MaskError(
                f"candidates: {name} has shape {value.shape}, expected ({M},) as there are {M}"
                " masks"
            )
        if not np.isfinite(value).all():
            raise MaskError(
                f"candidates: {name} of mask {int(np.flatnonzero(~np.isfinite(value))[0])} is not"
                " finite; scores must be numbers in 0..1"
            )
    if M and not np.isin(c.output, (0, 1, 2)).all():
        raise MaskError(
            f"candidates: output holds {sorted(set(c.output.tolist()) - {0, 1, 2})}, expected SAM's"
            " outputs 0, 1, 2"
        )


def recall(
    view_masks: ViewMasks, level: str, truth: np.ndarray, *, iou_min: float = 0.5, min_area: int = 1
) -> tuple[int, int]:
    """How many regions of an id map [H, W] (0 = none) are found in a level's label map: (found,
    all).

    A region counts as found when some label covers it with IoU above ``iou_min``. Used to watch
    that subparts survive in ``sp``.
    """
    label = view_masks.label_map(level)
    found = total = 0
    for i in np.unique(truth[truth > 0]):
        region = truth == i
        if region.sum() < min_area:
            continue
        total += 1
        ids, inter = np.unique(label[region], return_counts=True)
        for k, n in zip(ids, inter):
            if k >= 0 and n / (region.sum() + (label == k).sum() - n) > iou_min:
                found += 1
                break
    return found, total
