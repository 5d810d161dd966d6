"""LERF-OVS evaluation of one (view, category): protocols ``langsplat`` (A), ``langsplat_v2`` (B)
and ``paper``.

A and B take the relevancy of one query at every level, smooth it, min-max it, cut it at 0.4, let a
7 x 7 window vote, and score the level whose smoothed map has the largest maximum. They differ in
the window of the mean and in who votes, which is enough to change masks, levels and hits: numbers
of the two do not belong in one column. ``paper`` is what CCL-LGS prints, a threshold on its
softmax; everything else about it is ours and a setting.

The published code looks rendered maps up by position in a sorted list; here views are matched by
file name only (``protocols.evaluate_scene``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import EvaluationError
from ..method.query import code_softmax_relevancy
from ..scenes.scene import LabelledObject
from .metrics import as_maps, box_mean, box_mean_cut, iou, majority, min_max
from .protocol import PAIRWISE, Maps, Protocol, Reader, Scored, naming, pairwise

if TYPE_CHECKING:
    from .protocols import EvaluationConfig


@dataclass(frozen=True)
class LerfRules:
    """Constants of one protocol. ``source`` says where they come from."""

    name: str
    source: str
    box: int  # side of the box mean, pixels; 0 = no smoothing at all
    # True: mirrored borders, window off centre (A); False: window cut at the borders (B)
    mirrored: bool
    last_votes: bool  # do the last row and column vote in the majority
    threshold: float  # on the normalised map, strictly greater
    vote: int = 7  # side of the majority window, pixels; 0 = no vote
    min_max: bool = True  # shift by the minimum, divide by the range, each level alone
    stretch: bool = True  # then clip(2 n - 1, 0, 1), which turns the threshold 0.4 into 0.7 on n
    epsilon: float = 1e-9  # added to the range in the min-max step
    single: bool = False  # IoU as a single-precision quotient


RULES = {
    "langsplat": LerfRules(
        "langsplat",
        "minghanqin/LangSplat@d70edb8, eval",
        box=30,
        mirrored=True,
        last_votes=False,
        threshold=0.4,
    ),
    "langsplat_v2": LerfRules(
        "langsplat_v2",
        "ZhaoYujie2002/LangSplatV2@9a513cf, eval_lerf.py",
        box=29,
        mirrored=False,
        last_votes=True,
        threshold=0.4,
        single=True,
    ),
    # The paper says "threshold -> mask" of its softmax and no more. Ours: min-max per map, the
    # threshold 0.5, no smoothing, the level with the largest maximum. Change with
    # dataclasses.replace.
    "paper": LerfRules(
        "paper",
        "paper: threshold on the softmax; ours: everything else",
        box=0,
        mirrored=False,
        last_votes=True,
        threshold=0.5,
        vote=0,
        stretch=False,
    ),
}


def rules_of(protocol: str | LerfRules) -> LerfRules:
    """The rules of a protocol by name; rules pass through. Raises EvaluationError listing the known
    names.
    """
    if isinstance(protocol, LerfRules):
        return protocol
    if protocol not in RULES:
        raise EvaluationError(
            f"protocol {protocol!r} is unknown for the LERF-OVS layout; use one of"
            f" {', '.join(RULES)}"
        )
    return RULES[protocol]


@dataclass(frozen=True)
class Steps:
    """Every intermediate map of one query, all [L, H, W]: what a notebook shows step by step."""

    box_mean: np.ndarray  # float32; the map itself where a protocol does not smooth
    smoothed: np.ndarray  # float32, half of (box mean + relevancy); its maximum chooses the level
    normalised: np.ndarray  # float32, what the threshold is applied to
    raw: np.ndarray  # bool, normalised > threshold
    mask: np.ndarray  # bool, after the vote


@dataclass(frozen=True)
class QueryResult:
    """Outcome of one (view, category)."""

    level: int  # chosen for segmentation, 0-based
    mask: np.ndarray  # [H, W] bool at that level
    iou: float  # against the ground truth; NaN if both are empty
    hit: bool  # localisation: some candidate lies in some box
    # [n, 2] int32 (x, y): pixels equal to the maximum of the box mean, row by row
    points: np.ndarray
    point_level: int  # chosen for localisation; may differ from ``level``
    ious: np.ndarray  # [L] float64, IoU at every level
    level_scores: np.ndarray  # [L] float32, maxima of the smoothed maps
    point_scores: np.ndarray  # [L] float32, maxima of the box means
    protocol: str = "langsplat"


def query_steps(relevancy, *, protocol: str | LerfRules = "langsplat") -> Steps:
    """Segmentation steps of a protocol on relevancy maps [L, H, W] (float32; tensor or array)."""
    p = rules_of(protocol)
    maps = as_maps(relevancy, "relevancy", 3).astype(np.float32, copy=False)
    smooth = box_mean if p.mirrored else box_mean_cut
    mean = np.stack([smooth(m, p.box) for m in maps]) if p.box else maps
    smoothed = np.float32(0.5) * (mean + maps)  # without smoothing this is the map itself, exactly
    normalised = min_max(smoothed, epsilon=p.epsilon) if p.min_max else smoothed
    if p.stretch:
        normalised = np.clip(normalised * 2 - 1, 0, 1)
    raw = normalised > p.threshold
    mask = np.stack([majority(m, p.vote, last_votes=p.last_votes) for m in raw]) if p.vote else raw
    return Steps(mean, smoothed, normalised, raw, mask)


def evaluate_query(
    relevancy, gt_mask, boxes, *, protocol: str | LerfRules = "langsplat"
) -> QueryResult:
    """Score one query in one view (protocols A and B, or ``paper``).

    Args:
        relevancy: [L, H, W] float32 in 0..1, one map per level; tensor or array. B divides a
            rendered feature by (its length + 1e-10) before it computes this.
        gt_mask: [H, W], union of the category's polygons.
        boxes: [n, 4] corners x1 y1 x2 y2 in pixels, in any order; borders count as inside.
        protocol: "langsplat", "langsplat_v2", "paper", or LerfRules with settings of your own.
    Returns:
        QueryResult. Its IoU is NaN where mask and ground truth are both empty, as published.
    Raises:
        EvaluationError: unknown protocol, shapes that do not fit, values that are not finite.

    >>> import numpy as np
    >>> relevancy = np.zeros((1, 40, 40), np.float32)
    >>> relevancy[0, 5:25, 5:25] = 0.9
    >>> found = evaluate_query(relevancy, relevancy[0] > 0, [[5, 5, 24, 24]])
    >>> found.hit, round(found.iou, 2)
    (True, 0.95)
    """
    p = rules_of(protocol)
    maps = as_maps(relevancy, "relevancy", 3)
    gt_mask = np.asarray(gt_mask.cpu() if hasattr(gt_mask, "cpu") else gt_mask).astype(bool)
    if gt_mask.shape != maps.shape[1:]:
        raise EvaluationError(
            f"gt_mask: shape {gt_mask.shape}, relevancy maps are {maps.shape[1:]}; render the view"
            " at the size of its labels"
        )
    boxes = np.asarray(boxes.cpu() if hasattr(boxes, "cpu") else boxes, np.float64)
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise EvaluationError(
            f"boxes: shape {boxes.shape} or values do not fit; expected finite [n, 4] rows x1 y1"
            " x2 y2"
        )
    steps = query_steps(maps, protocol=p)
    ious = np.array([_iou(m, gt_mask, p) for m in steps.mask])
    level_scores, point_scores = steps.smoothed.max(axis=(1, 2)), steps.box_mean.max(axis=(1, 2))
    # as query.select_level_by_maximum: before normalisation, lowest on ties
    level = int(level_scores.argmax())
    # Localisation starts afresh: the box mean alone, its own level, exact single-precision ties.
    point_level = int(point_scores.argmax())
    y, x = np.nonzero(steps.box_mean[point_level] == point_scores[point_level])
    points = np.stack([x, y], axis=1).astype(np.int32)
    return QueryResult(
        level=level,
        mask=steps.mask[level],
        iou=float(ious[level]),
        hit=_any_inside(points, boxes),
        points=points,
        point_level=point_level,
        ious=ious,
        level_scores=level_scores,
        point_scores=point_scores,
        protocol=p.name,
    )


# ---------------------------------------------------------------------------


def _protocol(
    what: str,
    rules: Callable[[EvaluationConfig], LerfRules],
    *,
    asks: Callable[[Reader, str, Sequence[str]], Maps] = pairwise,
    of_asking: dict = PAIRWISE,
    query: tuple[str, ...] = (),
) -> Protocol:
    """A protocol that scores every unit by `evaluate_query`, under rules that follow the
    settings.
    """

    def score(maps: Maps, units: Sequence[LabelledObject], config: EvaluationConfig) -> Scored:
        out = []
        for stack, unit in zip(maps, units):
            with naming(unit):
                r = evaluate_query(stack, unit.mask, unit.boxes, protocol=rules(config))
            row = {
                "iou": r.iou,
                "hit": r.hit,
                "level": r.level,
                "point_level": r.point_level,
                "points": len(r.points),
            }
            out.append((row, r.mask))
        return out

    return Protocol(
        what, asks, score, lambda c: asdict(rules(c)) | of_asking, query=query, boxes=True
    )


def _softmax(reader: Reader, view: str, texts: Sequence[str]) -> torch.Tensor:  # [P, L, H, W]
    """Asks for the paper's softmax, over the run's own phrases and at its own temperature: the
    paper prints neither.
    """
    q = reader.query
    phrases = reader.text_vectors(q.canonical)
    return reader.look_up(
        lambda T, c, text: code_softmax_relevancy(T, c, text, phrases, temperature=q.temperature),
        view,
        texts,
    )


def _paper_rules(config: EvaluationConfig) -> LerfRules:
    return replace(RULES["paper"], threshold=config.paper_threshold, min_max=config.paper_min_max)


LANGSPLAT = _protocol(
    "smooth, stretch, cut at 0.4; level by the largest maximum", lambda c: RULES["langsplat"]
)
LANGSPLAT_V2 = _protocol(
    "the same with other windows at the borders", lambda c: RULES["langsplat_v2"]
)
PAPER = _protocol(
    "softmax, stretch, cut at 0.5 (the last two ours)",
    _paper_rules,
    asks=_softmax,
    of_asking={},
    query=("canonical", "temperature"),
)


def _iou(mask: np.ndarray, truth: np.ndarray, p: LerfRules) -> float:
    value = iou(mask, truth)
    return float(np.float32(value)) if p.single else value


def _any_inside(points: np.ndarray, boxes: np.ndarray) -> bool:
    low, high = np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])
    inside = (points[:, None] >= low) & (points[:, None] <= high)  # [points, n, 2]
    return bool(inside.all(axis=-1).any())
