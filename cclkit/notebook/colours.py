"""Colours that are told apart with any colour vision.

Named colours are Okabe and Ito's. `label_colors` picks as many as asked for, each as far as
possible from those before it as seen with normal colour vision and with protanopia, deuteranopia
and tritanopia (simulated as Machado, Oliveira and Fernandes 2009 do, at full severity); distances
are those of CIELAB. An object of a scene has one colour in every figure of the series.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from ..evaluation.track_quality import GRANULARITIES, best_region
from ..scenes.scene import Scene, View

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
)
UNLABELLED = (0.25, 0.25, 0.25)

VISIONS = {  # linear RGB -> linear RGB
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}


def label_colors(n: int) -> np.ndarray:  # [n, 3] in 0..1
    """Distinct colours; the first k of n are those of ``label_colors(k)``. Far from `UNLABELLED`,
    which stands for "none".
    """
    candidates = _candidates()
    order = _order()
    return candidates[order[np.arange(n) % len(order)]]


def seen(colors: np.ndarray, vision: str) -> np.ndarray:  # [..., 3] sRGB in 0..1 -> [..., 3] CIELAB
    """Colours as they appear to a vision of `VISIONS`."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ VISIONS[vision].T, 0, 1)
    xyz = (
        linear
        @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
        / np.array([0.9505, 1.0, 1.089])
    )
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack(
        [116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1
    )


@cache
def _candidates() -> np.ndarray:  # [C, 3]
    """A grid of colours: not so dark that an edge drawn on them is lost, not so light that paper
    hides them, not so grey as what has no label.
    """
    steps = np.linspace(0, 1, 11)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    lab = seen(grid, "normal")
    return grid[(lab[:, 0] > 35) & (lab[:, 0] < 88) & (np.linalg.norm(lab[:, 1:], axis=1) > 25)]


@cache
def _order() -> np.ndarray:  # [200]
    """Indices of candidates, each the farthest from all before it; the first is the blue nearest to
    `BLUE`.
    """
    grid = _candidates()
    views = [seen(grid, v) for v in VISIONS]
    distance = lambda of: np.min(
        [np.linalg.norm(view - point, axis=1) for view, point in zip(views, of)], axis=0
    )
    near = distance([seen(np.array(UNLABELLED), v) for v in VISIONS])
    chosen = [int(np.abs(grid - np.array([0.0, 0.45, 0.70])).sum(1).argmin())]
    while len(chosen) < 200:
        near = np.minimum(near, distance([view[chosen[-1]] for view in views]))
        chosen.append(int(near.argmax()))
    return np.array(chosen)


# ----------------------------------------------------------------- one colour per object


def region_colors(scene: Scene) -> dict[int, np.ndarray]:
    """Colour [3] of every region of a scene's ground truth, by id; whole objects get the first
    colours, which are farthest apart.
    """
    truth = scene.ground_truth
    ids = sorted(truth.names, key=lambda i: (i in truth.parents, i))
    return dict(zip(ids, label_colors(len(ids))))


def class_colors(scene: Scene) -> np.ndarray:  # [C, 3]
    """Colour of every class: that of the object of its name, else (and without ground truth) one
    that no object has.
    """
    truth = scene.ground_truth
    own = {} if truth is None else region_colors(scene)
    # of several objects of one name the first counts
    named = {truth.names[i]: own[i] for i in sorted(own, reverse=True) if i not in truth.parents}
    others = iter(label_colors(len(own) + len(scene.classes))[len(own) :])
    colors = [named[c] if c in named else next(others) for c in scene.classes]
    return np.array(colors).reshape(-1, 3)


def track_colors(
    scene: Scene, starts: Sequence[tuple[View, np.ndarray]], level: str
) -> np.ndarray:  # [K, 3]
    """Colour of every track, from the view and the mask [H, W] that it starts with: that of the
    region which the mask overlaps most.

    A region gives its colour to one track, the one that fits best; the others, and all where a
    scene has no ground truth, get colours of their own.
    """
    if scene.ground_truth is None:
        return label_colors(len(starts))
    own, maps = region_colors(scene), {}
    for v, _ in starts:
        if v.name not in maps:
            maps[v.name] = [scene.ground_truth.ids(v, g) for g in GRANULARITIES[level]]
    region, iou = (
        zip(*(best_region(mask, maps[v.name]) for v, mask in starts)) if starts else ((), ())
    )
    others = iter(label_colors(len(own) + len(starts))[len(own) :])
    out, given = np.zeros((len(starts), 3)), set()
    for k in np.argsort(-np.array(iou), kind="stable"):
        out[k] = own[region[k]] if region[k] in own and region[k] not in given else next(others)
        given.add(region[k])
    return out
