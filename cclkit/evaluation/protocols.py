"""Every evaluation protocol by name: what it asks the field for, how it scores a view, and how
scores are averaged.

The same metric name means different computations in this field, so nothing is scored except under
one of these names, and the constants that made a number stand beside it. A protocol runs on any
scene whose ground truth has what it needs; where the published data set had another layout, what
replaces it is ours and said in its constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from ..errors import EvaluationError
from ..method.masks import LEVELS
from ..method.query import CANONICAL, SCALE
from ..scenes.scene import LabelledObject, Scene
from ..settings import SHARE, OneOf
from . import legaussians, lerf_ovs, opengaussian, ovs3d
from .truth import evaluated_views, units_of

READS = ("relevancy", "softmax", "cosine", "legaussians", "silhouette")
"""What a protocol may ask a field for, given a view's name and P texts: [P, L, H, W] scores of
every level, by the pairwise rule, the paper's softmax, plain cosine or LEGaussians' rule;
"silhouette": [P, H, W] uint8 pictures of the Gaussians that were selected in 3D.
"""

Scores = Callable[[str, str, tuple[str, ...]], np.ndarray]


@dataclass(frozen=True)
class Protocol:
    """One protocol. ``score`` turns what was read and the units of a view into a row and a mask [H,
    W] per unit.
    """

    what: str  # what is scored, in a few words
    reads: str
    score: Callable[
        [np.ndarray, Sequence[LabelledObject], EvaluationConfig], list[tuple[dict, np.ndarray]]
    ]
    constants: Callable[[EvaluationConfig], dict]
    classes: bool = False  # every pixel must have a class, background included: 3D-OVS class masks
    absent: bool = False  # a class that a view does not show counts there
    foreground: int = 255  # how class mask pictures are read; see truth.units_of
    centres: bool = True
    # the published mean: over all units, or over the units of a view and then over views
    over: str = "units"


def _lerf(name: str, what: str) -> Protocol:
    def score(maps, units, config):
        rows = []
        for stack, unit in zip(maps, units):
            r = _named(
                unit,
                lerf_ovs.evaluate_query,
                stack,
                unit.mask,
                unit.boxes,
                protocol=_lerf_constants(name, config),
            )
            rows.append(
                (
                    {
                        "iou": r.iou,
                        "hit": r.hit,
                        "level": r.level,
                        "point_level": r.point_level,
                        "points": len(r.points),
                    },
                    r.mask,
                )
            )
        return rows

    rule = {"relevancy": {"scale": SCALE, "canonical": list(CANONICAL)}, "softmax": {}}
    reads = "softmax" if name == "paper" else "relevancy"
    return Protocol(
        what,
        reads,
        score,
        lambda config: lerf_ovs.constants(_lerf_constants(name, config)) | rule[reads],
    )


def _lerf_constants(name: str, config: EvaluationConfig) -> lerf_ovs.Protocol:
    p = lerf_ovs.PROTOCOLS[name]
    return (
        replace(p, threshold=config.paper_threshold, min_max=config.paper_min_max)
        if name == "paper"
        else p
    )


def _ovs3d(name: str, what: str) -> Protocol:
    p = ovs3d.PROTOCOLS[name]
    one_level = name == "ovs3d_argmax"  # and no canonical phrases

    def score(maps, units, config):
        scores = np.stack([np.asarray(m) for m in maps])
        if one_level:
            scores = scores[:, LEVELS.index(config.level)]
        r = ovs3d.evaluate_view(
            scores,
            {u.category: u.mask for u in units},
            protocol=p,
            degenerate="zero" if config.flat_maps == "empty" else "error",
        )
        rows = [{"iou": float(iou), "accuracy": r.accuracy} for iou in r.ious]
        if not one_level:
            for i, row in enumerate(rows):
                row |= {"level": int(r.levels[i]), "threshold": float(r.thresholds[i])}
        return list(zip(rows, r.masks))

    def constants(config):
        own = (
            {"level": config.level} if one_level else {"scale": SCALE, "canonical": list(CANONICAL)}
        )
        return (
            ovs3d.constants(p)
            | own
            | ({"flat_maps": config.flat_maps} if name == "ovs3d_occam" else {})
        )

    return Protocol(
        what,
        "cosine" if one_level else "relevancy",
        score,
        constants,
        classes=one_level,
        absent=True,
        foreground=p.foreground,
        centres=p.centres,
    )


def _legaussians() -> Protocol:
    def score(maps, units, config):
        rows = []
        for stack, unit in zip(maps, units):
            mask = legaussians.mask(stack[LEVELS.index(config.level)]).numpy()
            s = _named(unit, legaussians.mask_scores, mask, unit.mask)
            rows.append(
                (
                    {
                        "iou": s.iou,
                        "accuracy": s.accuracy,
                        "precision": s.precision,
                        "recall": s.recall,
                    },
                    mask,
                )
            )
        return rows

    return Protocol(
        "text beats all canonical phrases; mean per view",
        "legaussians",
        score,
        lambda config: (
            legaussians.CONSTANTS
            | {
                "canonical": list(CANONICAL),
                "form": "argmax",
                "level": config.level,
            }
        ),
        over="views",
    )


def _opengaussian() -> Protocol:
    def score(pictures, units, config):
        rows = []
        for picture, unit in zip(pictures, units):
            value = _named(
                unit, opengaussian.unit_iou, np.asarray(picture), unit.mask.astype(np.uint8) * 255
            )
            rows.append(
                (
                    {"iou": value}
                    | {f"acc_{100 * t:03.0f}": value > t for t in opengaussian.ACCURACIES},
                    np.asarray(picture) > opengaussian.GREY_THRESHOLD,
                )
            )
        return rows

    ours = {
        "selection": (
            "ours: Gaussians by the mean relevancy of the training pixels that they make up, at the"
            " level with the largest"
        ),
        "scale": SCALE,
        "canonical": list(CANONICAL),
    }
    return Protocol(
        "silhouettes of Gaussians selected in 3D",
        "silhouette",
        score,
        lambda config: opengaussian.CONSTANTS | ours | {"selection_share": config.selection_share},
        foreground=opengaussian.GREY_THRESHOLD + 1,
    )


PROTOCOLS: dict[str, Protocol] = {
    "langsplat": _lerf("langsplat", "smooth, stretch, cut at 0.4; level by the largest maximum"),
    "langsplat_v2": _lerf("langsplat_v2", "the same with other windows at the borders"),
    "opengaussian": _opengaussian(),
    "ovs3d_argmax": _ovs3d("ovs3d_argmax", "all classes compete for each pixel"),
    "ovs3d_occam": _ovs3d("ovs3d_occam", "stretch, a threshold found on each map"),
    "legaussians": _legaussians(),
    "paper": _lerf("paper", "softmax, stretch, cut at 0.5 (the last two ours)"),
    "ovs3d_langsplat": _ovs3d("ovs3d_langsplat", "relevancy above 0.4; level by the mean inside"),
}
"""The protocols. Two are only partly published, and what is ours in them is named in their modules:
paper and ovs3d_langsplat.
"""


@dataclass(frozen=True)
class EvaluationConfig:
    """Stage 6: what is scored against what, under which protocol."""

    protocol: Annotated[str, OneOf("auto", table=PROTOCOLS)] = "auto"
    """langsplat, langsplat_v2, opengaussian, ovs3d_argmax, ovs3d_occam, legaussians, paper or
    ovs3d_langsplat. Paper does not say (ours: "auto", langsplat on LERF-OVS labels and
    ovs3d_langsplat on 3D-OVS masks, because the paper prints LangSplat's numbers beside its own).
    """
    views: Annotated[str, OneOf("all", "held_out", "training")] = "all"
    """"all" views with ground truth, as every published protocol does, training views included;
    "held_out": those no stage has seen; "training". Paper does not say (ours: "all", because
    published numbers are so).
    """
    truth: Annotated[str, OneOf("labels", "dense")] = "labels"
    """"labels" of the data set, or "dense": exact ids of every view, in scenes that have them.
    Paper: labels.
    """
    level: Annotated[str, OneOf("sp", "wp")] = "wp"
    """Level that protocols for fields of one level score (ovs3d_argmax, legaussians). Paper does
    not say (ours: wp, because classes are mostly whole objects).
    """
    paper_threshold: Annotated[float, SHARE] = 0.5
    """Threshold of the protocol "paper". Paper does not say (ours: 0.5, because it is the middle of
    a map after min-max).
    """
    paper_min_max: bool = True
    """Stretch each level's map to 0..1 before that threshold. Paper does not say (ours: yes,
    because the height of a softmax depends on the unpublished temperature and phrase set).
    """
    selection_share: Annotated[float, SHARE] = 0.7
    """How far from the lowest to the highest relevancy opengaussian's selection of Gaussians
    begins. Paper does not say (ours: 0.7, because protocol A cuts its stretched maps there).
    """
    flat_maps: Annotated[str, OneOf("error", "empty")] = "error"
    """What ovs3d_occam does with a map on which no threshold keeps an allowed share of pixels:
    "error", as its code does, or "empty": leave the level out, and answer nothing if none remains.
    Paper does not say (ours: "error", because a skipped failure would flatter the mean).
    """


def protocol_for(scene: Scene, name: str = "auto") -> str:
    """The name of the protocol that a scene is scored with; "auto" is the one of LangSplat's
    numbers for its layout.

    Raises EvaluationError for an unknown name, or one that needs what the scene has not.
    """
    if name == "auto":
        return "ovs3d_langsplat" if scene.classes and not scene.labels else "langsplat"
    if name not in PROTOCOLS:
        raise EvaluationError(
            f"protocol {name!r} is unknown; use one of {', '.join(PROTOCOLS)}, or 'auto'"
        )
    if PROTOCOLS[name].classes and not scene.classes:
        raise EvaluationError(
            f"{scene.path}: protocol {name} lets all classes compete for every pixel and needs a"
            " mask of every class, background included; this scene names some objects only, so any"
            " other pixel would count as wrong: use one of"
            f" {', '.join(n for n, p in PROTOCOLS.items() if not p.classes)}, or a scene in the"
            " 3D-OVS layout"
        )
    return name


@dataclass(frozen=True)
class Evaluation:
    """Scores of a scene under one protocol."""

    protocol: str
    constants: dict
    rows: list[dict]
    aggregates: dict


def evaluate_scene(
    scene: Scene, scores: Scores, config: EvaluationConfig = EvaluationConfig()
) -> Evaluation:
    """Every (view, text) of a scene under ``config.protocol``, on the views and ground truth it
    names.

    Args:
        scores: called with what the protocol reads (READS), a view's NAME (never its position) and
        the
            texts [P]; returns an array with a row per text, at the size of the view.
    Returns:
        Rows in capture order, then in the order of the view's ground truth.
    Raises:
        EvaluationError: unknown or unfit protocol, nothing to evaluate, maps that don't fit; names
        view and text.
    """
    name = protocol_for(scene, config.protocol)
    rows = []
    for view in evaluated_views(scene, config.views, config.truth):
        for unit, row, mask in evaluate_view(scene, view, scores, config):
            about = {
                "scene": scene.name,
                "view": view,
                "query": unit.category,
                "held_out": view in scene.held_out,
            }
            rows.append(
                about | row | {"gt_pixels": int(unit.mask.sum()), "mask_pixels": int(mask.sum())}
            )
    if not rows:
        raise EvaluationError(
            f"{scene.path}: none of the {config.views} views shows anything that is asked for; use"
            " evaluation.views=all"
        )
    boxes = (
        {}
        if scene.labels and config.truth == "labels"
        else {"boxes": "ours: tight boxes of the connected pieces of each mask"}
    )
    constants = (
        PROTOCOLS[name].constants(config)
        | {"views": config.views, "truth": config.truth, "mean": PROTOCOLS[name].over}
        | (boxes if "hit" in rows[0] else {})
    )
    return Evaluation(name, constants, rows, aggregate(rows, over=PROTOCOLS[name].over))


def evaluate_view(
    scene: Scene, view: str, scores: Scores, config: EvaluationConfig = EvaluationConfig()
) -> list[tuple[LabelledObject, dict, np.ndarray]]:
    """One view of ``evaluate_scene``: for every unit what was asked, its scores, and the mask [H,
    W] that was answered. Raises as there.
    """
    protocol = PROTOCOLS[protocol_for(scene, config.protocol)]
    units = units_of(
        scene,
        view,
        config.truth,
        foreground=protocol.foreground,
        centres=protocol.centres,
        absent=protocol.absent and bool(scene.classes),
    )
    if not units:
        return []  # dense ground truth of a view that shows nothing that is asked for
    texts = tuple(u.category for u in units)
    found = scores(protocol.reads, view, texts)
    if len(found) != len(units):
        raise EvaluationError(
            f"{scene.path}: {view}: {len(found)} score maps for {len(units)} texts {texts}; return"
            " one per text"
        )
    try:
        return [
            (unit, row, mask)
            for unit, (row, mask) in zip(units, protocol.score(found, units, config))
        ]
    except EvaluationError as e:
        raise EvaluationError(f"{scene.path}: {view}: {e}") from e


MEANS = ("precision", "recall", *(f"acc_{100 * t:03.0f}" for t in opengaussian.ACCURACIES))
"""Columns that are averaged beside IoU and accuracy, where a protocol has them."""


def aggregate(rows: list[dict], *, over: str = "units") -> dict:
    """Means over rows with keys "scene", "iou", and others where known: "hit" (localisation) or
    "accuracy" (pixels), and MEANS.

    ``miou`` of a scene is the plain mean over its units, not over categories or views (protocols A
    to D and G), or with ``over="views"`` the mean over the units of each view and then over views
    (F); ``mean_of_scenes`` averages scenes (what papers print), ``pooled`` takes all rows as one
    scene. A unit whose IoU is 0/0 makes ``miou`` NaN, as published; ``undefined`` counts such units
    and ``miou_defined`` leaves them out. Raises EvaluationError without rows.
    """
    if not rows:
        raise EvaluationError("no rows to average; evaluate at least one labelled view")
    scenes: dict[str, list[dict]] = {}
    for row in rows:
        scenes.setdefault(row["scene"], []).append(row)
    per_scene = {name: _means(group, over) for name, group in scenes.items()}
    keys = next(iter(per_scene.values())).keys() - {"units", "undefined"}
    of_scenes = {k: float(np.mean([s[k] for s in per_scene.values()])) for k in sorted(keys)}
    return {"scenes": per_scene, "mean_of_scenes": of_scenes, "pooled": _means(rows, over)}


# ---------------------------------------------------------------------------


def _means(rows: list[dict], over: str) -> dict:
    views: dict[tuple, list[int]] = {}
    for i, r in enumerate(rows):
        views.setdefault((r["scene"], r["view"]) if over == "views" else (), []).append(i)

    def mean(values: np.ndarray) -> float:  # NaN if a value is, or if there is none
        groups = [values[i] for i in views.values()]
        return (
            float(np.mean([g.mean() for g in groups if g.size]))
            if any(g.size for g in groups)
            else math.nan
        )

    ious = np.array([r["iou"] for r in rows], np.float64)
    undefined = np.isnan(ious)
    kept = {k: [i for i in v if not undefined[i]] for k, v in views.items()}
    out = {
        "units": len(rows),
        "undefined": int(undefined.sum()),
        "miou": mean(ious),
        "miou_defined": (
            float(np.mean([ious[i].mean() for i in kept.values() if i]))
            if any(kept.values())
            else math.nan
        ),
    }
    columns = {"accuracy": "hit" if all("hit" in r for r in rows) else "accuracy"} | {
        k: k for k in MEANS
    }
    return out | {
        k: mean(np.array([float(r[column]) for r in rows]))
        for k, column in columns.items()
        if all(column in r for r in rows)
    }


def _named(unit: LabelledObject, function: Callable, *args, **kwargs):
    try:
        return function(*args, **kwargs)
    except EvaluationError as e:
        raise EvaluationError(f"query {unit.category!r}: {e}") from e
