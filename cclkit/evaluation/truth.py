"""What there is to find in a view: the units of evaluation, from whichever ground truth a scene
carries.

Labelled polygons (LERF-OVS), full class masks (3D-OVS), or exact ids of every view (rendered and
RGB-D scenes), which let views be scored that nobody labelled and nothing was trained on. Published
protocols score training views.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ..errors import EvaluationError, SceneError
from ..scenes.common import open_image
from ..scenes.scene import LabelledObject, Scene
from .metrics import resize_nearest

VIEWS = ("all", "held_out", "training")
SOURCES = ("labels", "dense")

SMALLEST = 40
"""Pixels of a queried region below which a view does not ask for it, with dense ids (as the bundled
labels were drawn).
"""


def read_grey(path: Path) -> np.ndarray:  # [H, W] uint8
    """A mask picture turned to grey. Raises EvaluationError when it cannot be read."""
    try:
        return open_image(path, lambda im: np.asarray(im.convert("L")))
    except SceneError as e:
        raise EvaluationError(f"{str(e).rpartition(';')[0]}; restore the mask") from e


def boxes_of(mask: np.ndarray) -> np.ndarray:  # [n, 4] float64 x1 y1 x2 y2
    """Tight boxes of the connected pieces of a mask [H, W], borders included: for ground truth that
    carries no boxes (ours).
    """
    _, _, stats, _ = cv2.connectedComponentsWithStats(np.asarray(mask, np.uint8), connectivity=8)
    x, y, w, h = stats[1:, :4].T
    return np.stack([x, y, x + w - 1, y + h - 1], axis=1).astype(np.float64)


def evaluated_views(scene: Scene, views: str = "all", source: str = "labels") -> list[str]:
    """Names of the views with ground truth, in capture order, restricted to "all", "held_out" or
    "training" views.

    Raises EvaluationError when there is no such ground truth or nothing is left to evaluate.
    """
    if views not in VIEWS:
        raise EvaluationError(f"views {views!r} is unknown; use {', '.join(map(repr, VIEWS))}")
    if source not in SOURCES:
        raise EvaluationError(
            f"ground truth {source!r} is unknown; use {', '.join(map(repr, SOURCES))}"
        )
    if source == "dense":
        if scene.ground_truth is None or not scene.ground_truth.queries:
            raise EvaluationError(
                f"{scene.path}: has no dense ground truth with queries (ground_truth/objects.json),"
                " so only labelled views can be scored: use evaluation.truth=labels"
            )
        names = [v.name for v in scene.views]
    else:
        labelled = scene.labels or scene.class_masks
        if not labelled:
            raise EvaluationError(
                f"{scene.path}: the scene has neither LERF-OVS labels nor 3D-OVS class masks, so"
                " there is nothing to score; use `cclkit query` to look at it"
            )
        names = [v.name for v in scene.views if v.name in labelled]
    left = [n for n in names if views == "all" or (n in scene.held_out) == (views == "held_out")]
    if not left:
        raise EvaluationError(
            f"{scene.path}: no view with ground truth among the {views} views; ground truth exists"
            f" for {', '.join(names)}, held out are {', '.join(sorted(scene.held_out)) or 'none'}"
        )
    return left


def units_of(
    scene: Scene,
    name: str,
    source: str = "labels",
    *,
    foreground: int = 255,
    centres: bool = True,
    absent: bool = False,
) -> tuple[LabelledObject, ...]:
    """What a view is asked for: texts with mask [H, W] and boxes, in the ground truth's order.

    Args:
        source: "labels": LERF-OVS polygons, or 3D-OVS class masks, whose boxes are ``boxes_of`` the
        mask;
            "dense": the scene's queries wherever they cover SMALLEST pixels.
        foreground, centres: how class mask pictures are read: grey value from which a pixel belongs
        to
            the class, and whether resizing samples at pixel centres. Protocols differ.
        absent: keep texts that the view does not show, with an empty mask, as 3D-OVS protocols
        count them.
    """
    view = scene.view(name)
    shape = (view.camera.height, view.camera.width)
    if source == "dense":
        truth, out = scene.ground_truth, []
        # a 3D-OVS scene is asked for its classes
        queries = [q for q in truth.queries if not scene.classes or q["text"] in scene.classes]
        if scene.classes and (missing := set(scene.classes) - {q["text"] for q in queries}):
            raise EvaluationError(
                f"{scene.path}: class {min(missing)!r} is no query of the dense ground truth; use"
                " evaluation.truth=labels, or add it to ground_truth/objects.json"
            )
        for q in queries:
            mask = np.isin(truth.ids(view, q["granularity"]), q["ids"])
            if absent or mask.sum() >= SMALLEST:
                out.append(LabelledObject(q["text"], mask, boxes_of(mask)))
        return tuple(out)
    if name in scene.labels:
        return scene.labels[name]
    out = []
    for c in scene.classes:
        mask = (
            resize_nearest(read_grey(scene.class_masks[name][c]), shape, centres=centres)
            >= foreground
        )
        if absent or mask.any():
            out.append(LabelledObject(c, mask, boxes_of(mask)))
    return tuple(out)
