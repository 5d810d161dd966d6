"""3D-OVS evaluation: protocols ``ovs3d_argmax`` (C), ``ovs3d_occam`` (D) and ``ovs3d_langsplat``.

C lets all classes of a scene compete for each pixel and needs one score map per class. The other
two look at the queried class alone, with one relevancy map per level, and choose a level. The
ground truth is read differently too: C takes only grey value 255 and samples at pixel centres, D
takes every non-zero value and samples without centres.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.signal import medfilt

from ..errors import EvaluationError
from ..method.masks import LEVELS
from ..method.query import code_cosine, select_level_by_mask_mean
from ..scenes.scene import LabelledObject
from .metrics import as_maps, iou, majority, min_max
from .protocol import PAIRWISE, Maps, Protocol, Reader, Scored, pairwise

if TYPE_CHECKING:
    from .protocols import EvaluationConfig


@dataclass(frozen=True)
class Argmax:
    """Protocol C, the metric of the 3D-OVS authors."""

    name: str = "ovs3d_argmax"
    source: str = "Kunhao-Liu/3D-OVS@f77e2fc, renderer.py and dataLoader/llff.py"
    # grey values below are background (the published code cuts value / 255 to an integer)
    foreground: int = 255
    centres: bool = True  # nearest neighbour with pixel centres


@dataclass(frozen=True)
class LangSplat:
    """LangSplat's supplement (section B): "only the query category", one binary map per level, 0.4.

    From the paper: threshold, and the level with the highest mean relevancy inside its mask. Ours,
    since no code exists: the threshold is on the relevancy itself, strictly greater, without
    smoothing, normalisation or vote; the ground truth is read as in C; two empty masks score 0.
    """

    name: str = "ovs3d_langsplat"
    source: str = "LangSplat supplement B; ours: no smoothing, no normalisation, ground truth as C"
    threshold: float = 0.4
    min_max: bool = False  # ours: the supplement mentions no normalisation for this data set
    foreground: int = 255
    centres: bool = True


@dataclass(frozen=True)
class Occam:
    """Protocol D, Occam's LGS with a threshold found on the curves of each level."""

    name: str = "ovs3d_occam"
    source: str = "insait-institute/OccamLGS@70d2e69, eval"
    stability: float = 0.4  # both slopes must stay below; the script's own default is 0.3
    smallest: float = 0.005  # share of pixels above the threshold, exclusive; default 0.001
    largest: float = 0.9  # default 0.95
    run: int = 5  # consecutive stable thresholds that make a region
    median: int = 5  # running median of the slopes, zeros beyond both ends
    fallback: float = 0.5  # threshold of a level without a region …
    fallback_sensitivity: float = 999.0  # … which is thereby the last to be chosen
    epsilon: float = 1e-9
    vote: int = 7
    foreground: int = 1
    centres: bool = False


Ovs3dRules = Argmax | LangSplat | Occam

RULES: dict[str, Ovs3dRules] = {p.name: p for p in (Argmax(), LangSplat(), Occam())}

THRESHOLDS = np.arange(0.01, 1.0, 0.01)  # [99] float64; D's grid, whose steps are not exactly equal
"""Thresholds tried by D."""


def rules_of(protocol: str | Ovs3dRules) -> Ovs3dRules:
    """The rules of a protocol by name; rules pass through. Raises EvaluationError listing the known
    names.
    """
    if isinstance(protocol, Ovs3dRules):
        return protocol
    if protocol not in RULES:
        raise EvaluationError(
            f"protocol {protocol!r} is unknown for the 3D-OVS layout; use one of {', '.join(RULES)}"
        )
    return RULES[protocol]


@dataclass(frozen=True)
class ViewResult:
    """Outcome of all classes in one view."""

    classes: tuple[str, ...]
    masks: np.ndarray  # [C, H, W] bool, predicted
    ious: np.ndarray  # [C] float64
    # share of pixels whose whole row over the classes is right (published for C only)
    accuracy: float
    label_map: np.ndarray | None  # [H, W] int64, index into ``classes`` (C only)
    levels: np.ndarray | None = None  # [C] int64, chosen levels (not C)
    thresholds: np.ndarray | None = None  # [C] float64 (not C)
    protocol: str = "ovs3d_argmax"

    @property
    def miou(self) -> float:
        """Mean over the classes; the scene's mIoU is the mean of these over its views."""
        return float(np.mean(self.ious))


def evaluate_view(
    scores, gt, *, protocol="ovs3d_argmax", classes=None, degenerate: str = "error"
) -> ViewResult:
    """Score all classes of one view.

    Args:
        scores: C: [C, H, W], cosine (or any increasing function of it, the same for all classes) of
            each class. D and ``ovs3d_langsplat``: [C, L, H, W], relevancy per class and level;
            [C, H, W] is taken as one level.
        gt: {class: mask [H, W]} or [C, H, W] booleans at the size of the scores.
        protocol: a name, or rules with settings of your own.
        classes: names of the rows of ``scores`` (and of an array ``gt``); default: the keys of
            ``gt`` in their order, or "0", "1", … for an array. Ties in C go to the first name by
            code point, or to the first row where there are no names.
        degenerate: D on a map on which no threshold gives an allowed share of pixels (a flat one):
            "error" stops, as the published code does; "zero" leaves the level out, and predicts an
            empty mask if no level remains (ours).
    Returns:
        ViewResult.
    Raises:
        EvaluationError: unknown protocol, shapes or names that do not fit, a degenerate map.
    """
    p = rules_of(protocol)
    names, truth = _truth(gt, classes)
    four = getattr(scores, "ndim", None) == 4
    maps = as_maps(scores, "scores", 4 if four else 3)
    if isinstance(p, Argmax) and four:
        raise EvaluationError(
            f"scores: shape {maps.shape}; {p.name} compares classes at one level, so choose one and"
            " pass [classes, H, W]"
        )
    if not isinstance(p, Argmax) and not four:
        maps = maps[:, None]
    if maps.shape[0] != len(names) or maps.shape[-2:] != truth.shape[1:]:
        raise EvaluationError(
            f"scores: shape {maps.shape} does not fit ground truth {truth.shape} of classes"
            f" {', '.join(names)}; give one map per class at the size of the masks"
        )
    label_map = levels = thresholds = None
    if isinstance(p, Argmax):
        unnamed = classes is None and not isinstance(gt, Mapping)
        label_map = _best_class(maps, None if unnamed else names)
        masks = label_map == np.arange(len(names))[:, None, None]
    elif isinstance(p, LangSplat):
        masks, levels, thresholds = _above_threshold(maps, p)
    else:
        masks, levels, thresholds = _above_found_threshold(maps, names, p, degenerate)
    if isinstance(p, Occam):
        both, either = (masks & truth).sum(axis=(1, 2)), (masks | truth).sum(axis=(1, 2))
        ious = both / (either + p.epsilon)
    else:
        ious = np.array([iou(m, t, empty=0.0) for m, t in zip(masks, truth)])
    accuracy = float((masks == truth).all(axis=0).mean())
    return ViewResult(names, masks, ious, accuracy, label_map, levels, thresholds, p.name)


@dataclass(frozen=True)
class LevelCurves:
    """Protocol D on one level: the curves over ``THRESHOLDS`` and what follows from them."""

    mean: np.ndarray  # [99] float64, mean of the values above each threshold, 0 if there are none
    fraction: np.ndarray  # [99] float64, share of pixels above
    mean_slope: np.ndarray  # [99] float64, absolute slope after the running median
    fraction_slope: np.ndarray  # [99]
    # (start, end) as recorded: end is one past the last member, except at the list's end
    regions: tuple[tuple[int, int], ...]
    threshold: float
    sensitivity: float


@dataclass(frozen=True)
class OccamResult:
    """Protocol D for one query."""

    level: int
    threshold: float
    mask: np.ndarray  # [H, W] bool after the vote
    raw: np.ndarray  # [H, W] bool before
    curves: tuple[LevelCurves | None, ...]  # per level; None where the level was left out


def occam_curves(relevancy: np.ndarray, p: Occam = Occam()) -> LevelCurves:
    """Curves, stable regions, threshold and sensitivity of one map [H, W] (protocol D).

    Raises EvaluationError if no threshold gives an allowed share of pixels, where the published
    code stops as well.
    """
    values = np.sort(min_max(np.asarray(relevancy, np.float32), epsilon=p.epsilon), axis=None)
    # [99] values strictly above
    above = values.size - np.searchsorted(values, THRESHOLDS, side="right")
    # sums of the largest values
    tail = np.concatenate([[0.0], np.cumsum(values[::-1], dtype=np.float64)])
    mean = np.where(above > 0, tail[above] / np.maximum(above, 1), 0.0)
    fraction = above / values.size
    allowed = (fraction > p.smallest) & (fraction < p.largest)
    if not allowed.any():
        raise EvaluationError(
            f"no threshold keeps between {p.smallest:g} and {p.largest:g} of the pixels (relevancy"
            f" spans {np.min(relevancy):g} … {np.max(relevancy):g}); the dynamic threshold needs a"
            " map that is not flat: use another protocol, or degenerate='zero' to score it as"
            " empty"
        )
    slopes = [
        medfilt(np.abs(np.gradient(curve, THRESHOLDS)), p.median) for curve in (mean, fraction)
    ]
    stable = allowed & (slopes[0] < p.stability) & (slopes[1] < p.stability)
    regions = _regions(stable, p.run)
    if regions:
        start, end = regions[-1]
        threshold = (THRESHOLDS[start] + THRESHOLDS[end]) / 2
        sensitivity = abs(mean[end] - mean[start]) / (
            THRESHOLDS[end] - THRESHOLDS[start] + p.epsilon
        )
    else:
        threshold, sensitivity = p.fallback, p.fallback_sensitivity
    return LevelCurves(
        mean, fraction, slopes[0], slopes[1], regions, float(threshold), float(sensitivity)
    )


def occam_mask(relevancy, p: Occam = Occam(), *, degenerate: str = "error") -> OccamResult:
    """Level, threshold and mask of one query from maps [L, H, W] (protocol D). Raises as
    ``occam_curves``.
    """
    if degenerate not in ("error", "zero"):
        raise EvaluationError(f"degenerate {degenerate!r} is unknown; use 'error' or 'zero'")
    maps = as_maps(relevancy, "relevancy", 3)
    curves: list[LevelCurves | None] = []
    for number, level in enumerate(maps):
        try:
            curves.append(occam_curves(level, p))
        except EvaluationError as e:
            if degenerate == "error":
                raise EvaluationError(f"level {number}: {e}") from e
            curves.append(None)
    sensitivities = [np.inf if c is None else c.sensitivity for c in curves]
    level = int(np.argmin(sensitivities))
    chosen = curves[level]
    if chosen is None:
        empty = np.zeros(maps.shape[1:], bool)
        return OccamResult(level, p.fallback, empty, empty, tuple(curves))
    raw = min_max(maps[level].astype(np.float32), epsilon=p.epsilon) > chosen.threshold
    return OccamResult(level, chosen.threshold, majority(raw, p.vote), raw, tuple(curves))


# ---------------------------------------------------------------------------


def _protocol(
    name: str,
    what: str,
    asks: Callable[[Reader, str, Sequence[str]], Maps],
    settings: Callable[[EvaluationConfig], dict],
) -> Protocol:
    """A protocol that scores all classes of a view by `evaluate_view`; ``settings`` stand beside
    the constants of its rules.
    """
    rules = RULES[name]
    one_level = isinstance(rules, Argmax)

    def score(maps: Maps, units: Sequence[LabelledObject], config: EvaluationConfig) -> Scored:
        scores = np.stack([np.asarray(m) for m in maps])
        r = evaluate_view(
            scores[:, LEVELS.index(config.level)] if one_level else scores,
            {u.category: u.mask for u in units},
            protocol=rules,
            degenerate="zero" if config.flat_maps == "empty" else "error",
        )
        rows = [{"iou": float(value), "accuracy": r.accuracy} for value in r.ious]
        if not one_level:
            for row, level, threshold in zip(rows, r.levels, r.thresholds):
                row |= {"level": int(level), "threshold": float(threshold)}
        return list(zip(rows, r.masks))

    return Protocol(
        what,
        asks,
        score,
        lambda config: asdict(rules) | settings(config),
        classes=one_level,
        absent=True,
        foreground=rules.foreground,
        centres=rules.centres,
    )


def _cosine(reader: Reader, view: str, texts: Sequence[str]) -> torch.Tensor:  # [P, L, H, W]
    """Asks for the plain cosine: no canonical phrases take part."""
    return reader.look_up(code_cosine, view, texts)


ARGMAX = _protocol(
    "ovs3d_argmax", "all classes compete for each pixel", _cosine, lambda c: {"level": c.level}
)
OCCAM = _protocol(
    "ovs3d_occam",
    "stretch, a threshold found on each map",
    pairwise,
    lambda c: PAIRWISE | {"flat_maps": c.flat_maps},
)
LANGSPLAT = _protocol(
    "ovs3d_langsplat",
    "relevancy above 0.4; level by the mean inside",
    pairwise,
    lambda c: PAIRWISE,
)


# ---------------------------------------------------------------------------


def _best_class(maps: np.ndarray, names: tuple[str, ...] | None) -> np.ndarray:  # [H, W] int64
    """The class with the largest score in maps [C, H, W]. Ties go to the first name by code point,
    or to the first row where rows carry no names.
    """
    count = len(maps)
    order = range(count) if names is None else sorted(range(count), key=names.__getitem__)
    order = np.array(order)
    return order[maps[order].argmax(axis=0)]


def _above_threshold(
    maps: np.ndarray, p: LangSplat
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # masks [C, H, W], levels [C], thresholds [C]
    used = min_max(maps) if p.min_max else maps
    levels = [select_level_by_mask_mean(r, r > p.threshold) for r in used]
    masks = np.stack([r[level] > p.threshold for r, level in zip(used, levels)])
    return masks, np.array(levels), np.full(len(maps), p.threshold)


def _above_found_threshold(
    maps: np.ndarray, names: tuple[str, ...], p: Occam, degenerate: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # masks [C, H, W], levels [C], thresholds [C]
    found = []
    for name, stack in zip(names, maps):
        try:
            found.append(occam_mask(stack, p, degenerate=degenerate))
        except EvaluationError as e:
            raise EvaluationError(f"class {name!r}: {e}") from e
    masks = np.stack([r.mask for r in found])
    return masks, np.array([r.level for r in found]), np.array([r.threshold for r in found])


def _truth(gt, classes) -> tuple[tuple[str, ...], np.ndarray]:
    """Names [C] and masks [C, H, W] bool in the order of the scores."""
    if isinstance(gt, Mapping):
        names = tuple(gt) if classes is None else tuple(classes)
        if set(names) != set(gt) or len(names) != len(gt):
            raise EvaluationError(
                f"gt: has classes {', '.join(gt)}, scores are of {', '.join(names)}; give the same"
                " classes"
            )
        masks = [_bool(gt[n]) for n in names]
        if not masks or masks[0].ndim != 2 or len({m.shape for m in masks}) != 1:
            raise EvaluationError(
                f"gt: masks of shapes {[m.shape for m in masks]}; expected [H, W], one size for all"
                " classes"
            )
        return names, np.stack(masks)
    masks = _bool(gt)
    names = tuple(str(i) for i in range(len(masks))) if classes is None else tuple(classes)
    if masks.ndim != 3 or len(names) != len(masks) or not len(masks):
        raise EvaluationError(
            f"gt: shape {masks.shape} with {len(names)} classes; expected [classes, H, W]"
        )
    return names, masks


def _bool(mask) -> np.ndarray:
    return np.asarray(mask.cpu() if hasattr(mask, "cpu") else mask).astype(bool)


def _regions(stable: np.ndarray, shortest: int) -> tuple[tuple[int, int], ...]:
    """Runs of stable thresholds as D records them: up to the first unstable one, which is one step
    too far.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[0], stable.astype(np.int8), [0]])))
    runs = [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2]) if b - a >= shortest]
    return tuple((a, min(b, len(stable) - 1)) for a, b in runs)
