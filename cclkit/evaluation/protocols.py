"""The table of evaluation protocols, and the evaluation of a scene under one of them.

The same metric name means different computations in this field, so nothing is scored except under
one of these names, and the constants that made a number stand beside it. A protocol runs on any
scene whose ground truth has what it needs; where the published data set had another layout, what
replaces it is ours and said in its constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from ..errors import EvaluationError
from ..scenes.scene import LabelledObject, Scene
from ..settings import SHARE, OneOf
from . import legaussians, lerf_ovs, opengaussian, ovs3d
from .protocol import Maps, Protocol, Reader
from .truth import evaluated_views, units_of

PROTOCOLS: dict[str, Protocol] = {
    "langsplat": lerf_ovs.LANGSPLAT,
    "langsplat_v2": lerf_ovs.LANGSPLAT_V2,
    "opengaussian": opengaussian.OPENGAUSSIAN,
    "ovs3d_argmax": ovs3d.ARGMAX,
    "ovs3d_occam": ovs3d.OCCAM,
    "legaussians": legaussians.LEGAUSSIANS,
    "paper": lerf_ovs.PAPER,
    "ovs3d_langsplat": ovs3d.LANGSPLAT,
}
"""The protocols, each from the file of its family: a new one is a `Protocol` and a line here. Two
are only partly published, and what is ours in them is named in their modules: paper and
ovs3d_langsplat.
"""

LABELS_AUTO, CLASSES_AUTO = "langsplat", "ovs3d_langsplat"
"""What "auto" means for LERF-OVS labels and for 3D-OVS class masks: LangSplat's own."""

Scores = Callable[[str, Sequence[str]], Maps]
"""A method of your own: (name of a view, P texts) -> what the protocol scores."""


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
        return CLASSES_AUTO if scene.classes and not scene.labels else LABELS_AUTO
    if _protocol(name).classes and not scene.classes:
        raise EvaluationError(
            f"{scene.path}: protocol {name} lets all classes compete for every pixel and needs a"
            " mask of every class, background included; this scene names some objects only, so any"
            " other pixel would count as wrong: use one of"
            f" {', '.join(n for n, p in PROTOCOLS.items() if not p.classes)}, or a scene in the"
            " 3D-OVS layout"
        )
    return name


def protocols_of(config: EvaluationConfig) -> dict[str, Protocol]:
    """The protocols that a configuration may mean on one scene or another, by name. Raises
    EvaluationError for an unknown one.
    """
    auto = (LABELS_AUTO, CLASSES_AUTO)
    names = auto if config.protocol == "auto" else (config.protocol,)
    return {name: _protocol(name) for name in names}


@dataclass(frozen=True)
class Evaluation:
    """Scores of a scene under one protocol."""

    protocol: str
    constants: dict
    rows: list[dict]
    aggregates: dict


def evaluate_scene(
    scene: Scene, scores: Scores | Reader, config: EvaluationConfig = EvaluationConfig()
) -> Evaluation:
    """Every (view, text) of a scene under ``config.protocol``, on the views and ground truth it
    names.

    Args:
        scores: a method of your own, called with a view's NAME (never its position) and P texts. It
            returns a row per text, at the size of the view: scores [P, L, H, W] of every level by
            the rule of the protocol, or pictures [P, H, W] for opengaussian. Or a `Reader` such as
            `Run.reader`, of which the protocol asks for its rule itself.
    Returns:
        Rows in capture order, then in the order of the view's ground truth.
    Raises:
        EvaluationError: unknown or unfit protocol, nothing to evaluate, maps that don't fit; names
        view and text.

    >>> import numpy as np
    >>> from cclkit import load_scene
    >>> scene = load_scene("tea_party")
    >>> camera = scene.views[0].camera
    >>> nothing = lambda view, texts: np.zeros((len(texts), 2, camera.height, camera.width))
    >>> found = evaluate_scene(scene, nothing)
    >>> found.protocol, found.aggregates["pooled"]["miou"]
    ('langsplat', 0.0)
    """
    name = protocol_for(scene, config.protocol)
    protocol = PROTOCOLS[name]
    rows = []
    for view in evaluated_views(scene, config.views, config.truth):
        for unit, row, mask in evaluate_view(scene, view, scores, config):
            about = {
                "scene": scene.name,
                "view": view,
                "query": unit.category,
                "held_out": view in scene.held_out,
            }
            if "iou" not in row:
                raise EvaluationError(
                    f"protocol {name!r}: a row of {view} has {', '.join(row) or 'no column'};"
                    ' expected "iou" among them (NaN where it is undefined)'
                )
            pixels = {"gt_pixels": int(unit.mask.sum()), "mask_pixels": int(mask.sum())}
            rows.append(about | row | pixels)
    if not rows:
        raise EvaluationError(
            f"{scene.path}: none of the {config.views} views shows anything that is asked for; use"
            " evaluation.views=all"
        )
    about = {"views": config.views, "truth": config.truth, "mean": protocol.over}
    constants = protocol.constants(config) | about
    if protocol.boxes and not (scene.labels and config.truth == "labels"):
        constants["boxes"] = "ours: tight boxes of the connected pieces of each mask"
    means = aggregate(rows, over=protocol.over, means=protocol.means)
    return Evaluation(name, constants, rows, means)


def evaluate_view(
    scene: Scene, view: str, scores: Scores | Reader, config: EvaluationConfig = EvaluationConfig()
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
    found = scores(view, texts) if callable(scores) else protocol.asks(scores, view, texts)
    if len(found) != len(units):
        raise EvaluationError(
            f"{scene.path}: {view}: {len(found)} score maps for {len(units)} texts {texts}; return"
            " one per text"
        )
    try:
        scored = protocol.score(found, units, config)
    except EvaluationError as e:
        raise EvaluationError(f"{scene.path}: {view}: {e}") from e
    if len(scored) != len(units):
        raise EvaluationError(
            f"{scene.path}: {view}: the protocol scored {len(scored)} of {len(units)} units; a row"
            " and a mask are expected for each"
        )
    return [(unit, row, mask) for unit, (row, mask) in zip(units, scored)]


def aggregate(rows: list[dict], *, over: str = "units", means: Sequence[str] = ()) -> dict:
    """Means over rows with keys "scene", "view", "iou", where known "hit" (localisation) or
    "accuracy" (pixels), and the columns ``means``.

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
    per_scene = {name: _means(group, over, means) for name, group in scenes.items()}
    keys = next(iter(per_scene.values())).keys() - {"units", "undefined"}
    of_scenes = {k: float(np.mean([s[k] for s in per_scene.values()])) for k in sorted(keys)}
    return {"scenes": per_scene, "mean_of_scenes": of_scenes, "pooled": _means(rows, over, means)}


# ---------------------------------------------------------------------------


def _protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise EvaluationError(
            f"protocol {name!r} is unknown; use one of {', '.join(PROTOCOLS)}, or 'auto'"
        )
    return PROTOCOLS[name]


def _means(rows: list[dict], over: str, columns: Sequence[str]) -> dict:
    views: dict[tuple, list[int]] = {}
    for i, r in enumerate(rows):
        views.setdefault((r["scene"], r["view"]) if over == "views" else (), []).append(i)

    def mean(values: np.ndarray, kept: np.ndarray | None = None) -> float:
        """Of the values, or those that are kept: NaN if one of them is, or if there is none."""
        groups = [v if kept is None else [i for i in v if kept[i]] for v in views.values()]
        means = [values[i].mean() for i in groups if i]
        return float(np.mean(means)) if means else math.nan

    ious = np.array([r["iou"] for r in rows], np.float64)
    defined = ~np.isnan(ious)
    out = {
        "units": len(rows),
        "undefined": int((~defined).sum()),
        "miou": mean(ious),
        "miou_defined": mean(ious, defined),
    }
    accuracy = "hit" if all("hit" in r for r in rows) else "accuracy"
    for name, column in {"accuracy": accuracy, **{c: c for c in columns}}.items():
        if all(column in r for r in rows):
            out[name] = mean(np.array([float(r[column]) for r in rows]))
    return out
