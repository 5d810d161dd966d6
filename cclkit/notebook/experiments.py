"""Experiments on whole scenes: arms of the ablation, protocols, incomplete masks, agreement of
views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..errors import EvaluationError, SceneError
from ..evaluation import lerf_ovs
from ..evaluation.consistency import cohens_kappa, similarity_auc
from ..evaluation.metrics import min_max
from ..evaluation.protocols import PROTOCOLS, Evaluation, evaluate_scene
from ..foundation.simulated import cut, seeded
from ..method.masks import LEVELS
from ..runs.run import Run
from ..scenes.correspondence import corresponding_pixels
from ..scenes.scene import LabelledObject, View
from .index_maps import index_map_miou
from .population import ARMS


def scene_ablation(
    run: Run, *, seeds: Sequence[int], arms: Sequence[str] = tuple(ARMS)
) -> dict[str, list[float]]:
    """mIoU % of every arm on the scene's 2D index maps, one value per seed.

    A seed drives whatever is simulated of the front end and the codebook's start, so its spread is
    that of repeating the experiment on this scene, not of scenes.
    """
    out: dict[str, list[float]] = {arm: [] for arm in arms}
    for seed in seeds:
        for arm in arms:
            changes = {f"codebook__{k}": v for k, v in ARMS[arm].items()}
            varied = run.vary(seed=seed, front_end__simulation__seed=seed, **changes)
            out[arm].append(index_map_miou(varied))
    return out


# ----------------------------------------------------------------- what a protocol does to a number


def every_protocol(run: Run, **settings) -> dict[str, Evaluation | str]:
    """One field under every protocol, with evaluation ``settings`` (views, truth, …): its
    evaluation, or why it can't be.
    """
    out: dict[str, Evaluation | str] = {}
    for name in PROTOCOLS:
        try:
            out[name] = evaluate_scene(
                run.scene, run.reader, replace(run.config.evaluation, protocol=name, **settings)
            )
        except EvaluationError as e:
            out[name] = str(e)
    return out


def protocol_traps(run: Run) -> list[tuple[str, float, float]]:
    """What happens to langsplat's numbers when one step is done another way: (step, mIoU %,
    localisation %), the protocol first.

    On a scene with LERF-OVS labels, all labelled views. Each variant has been somebody's mistake or
    another protocol's rule.
    """
    published = lerf_ovs.RULES["langsplat"]
    names = [v.name for v in run.scene.views if v.name in run.scene.labels]
    # a list without the held-out views, as renderings on disk are
    rendered = [v.name for v in run.scene.training_views]
    # what "frame number minus one" gives
    position = {v: run.scene.views.index(run.scene.view(v)) for v in names}

    def score(
        maps: Callable[[str, tuple[str, ...]], Tensor], p=published, level: int | None = None
    ) -> tuple[float, float]:
        ious, hits = [], []
        for name in names:
            units = run.scene.labels[name]
            for unit, stack in zip(units, maps(name, tuple(u.category for u in units))):
                r = lerf_ovs.evaluate_query(stack, unit.mask, unit.boxes, protocol=p)
                ious.append(r.iou if level is None else r.ious[level])
                hits.append(r.hit)
        return 100 * float(np.nanmean(ious)), 100 * float(np.mean(hits))

    def scaled(scale: float):
        return run.vary(query__rule="relevancy", query__scale=scale).relevancy

    cache: dict = {}

    def relevancy(name: str, texts):
        if (name, texts) not in cache:
            cache[name, texts] = run.scores(name, texts, protocol="langsplat")
        return cache[name, texts]

    def misplaced(name: str, texts):
        return relevancy(rendered[min(position[name], len(rendered) - 1)], texts)

    width = run.scene.views[0].camera.width
    in_proportion = max(1, round(published.box * width / 988))
    return [
        ("as published (langsplat)", *score(relevancy)),
        ("views by list position, not by name", *score(misplaced)),
        # every maximum is 1 then, so the first level wins
        ("maps stretched to 0..1 before choosing a level", *score(relevancy, level=0)),
        ("no smoothing, no vote", *score(relevancy, replace(published, box=0, vote=0))),
        (
            f"smoothing box of {in_proportion}, in proportion to the image",
            *score(relevancy, replace(published, box=in_proportion)),
        ),
        ("box and vote of langsplat_v2", *score(relevancy, lerf_ovs.RULES["langsplat_v2"])),
        ("factor 1 instead of 10", *score(scaled(1.0))),
        ("factor 100 instead of 10", *score(scaled(100.0))),
        (
            "threshold 0.4 on the plain stretched map",
            *score(relevancy, replace(published, stretch=False)),
        ),
        (
            "threshold 0.4 on the relevancy itself",
            *score(relevancy, replace(published, stretch=False, min_max=False)),
        ),
    ]


def best_threshold(
    values: np.ndarray, truth: np.ndarray, steps: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds [steps] in 0..1; IoU of ``values`` [H, W] above each with ``truth`` [H, W]."""
    at = np.arange(steps) / steps
    values = values.astype(np.float64)
    every, inside = np.sort(values, axis=None), np.sort(values[truth])
    above = len(every) - np.searchsorted(every, at, "right")
    hit = len(inside) - np.searchsorted(inside, at, "right")
    union = above + len(inside) - hit
    return at, np.where(union > 0, hit / np.maximum(union, 1), 0.0)


FAILURES = (
    "found",
    "the other level has it",
    "another threshold has it",
    "something else answers",
    "no map has it",
)
"""What became of a unit under langsplat, first that applies; found is IoU of at least one half."""


def failure(stack: np.ndarray, unit: LabelledObject) -> str:
    """Which of FAILURES a unit is, from its relevancy [L, H, W]. "something else answers": the
    answer misses the region altogether.
    """
    result = lerf_ovs.evaluate_query(stack, unit.mask, unit.boxes)
    if result.iou >= 0.5:
        return FAILURES[0]
    if result.ious.max() >= 0.5:
        return FAILURES[1]
    smoothed = lerf_ovs.query_steps(stack).smoothed
    if max(best_threshold(min_max(s), unit.mask)[1].max() for s in smoothed) >= 0.5:
        return FAILURES[2]
    return FAILURES[3] if not (result.mask & unit.mask).any() else FAILURES[4]


# ----------------------------------------------------------------- features and codes over views


@dataclass(frozen=True)
class Orbit:
    """One object's features over the training views in which it is seen: from its full mask, and
    from part of it.
    """

    views: list[str]
    full: np.ndarray  # [V, d] float32, unit
    incomplete: np.ndarray  # [V, d] float32, unit
    masks: list[tuple[np.ndarray, np.ndarray]]  # per view: full and incomplete mask [H, W] bool
    others: np.ndarray  # [O, d] float32: full masks of all other whole objects, over all views
    other_names: list[str]  # [O]


def orbit(run: Run, name: str, *, keep: float = 0.5, min_area: int = 400, seed: int = 0) -> Orbit:
    """Features of the whole object called ``name``, from true masks, and from masks that keep only
    a share ``keep`` of them.

    What is cut off, a side in a random direction, differs from view to view. Raises SceneError for
    a scene without ground truth or without such an object.
    """
    truth = run.scene.ground_truth
    ids = [i for i, n in (truth.names if truth else {}).items() if n == name]
    if not ids:
        raise SceneError(
            f"{run.scene.path}: no object called {name!r} with ground truth; there are"
            f" {', '.join(sorted(set(truth.names.values()))) if truth else 'none'}"
        )
    rng, encoder = seeded(seed, "orbit", name), run.front_end.encoder
    views, full, incomplete, masks, others, other_names = [], [], [], [], [], []
    for view in run.scene.training_views:
        whole = truth.ids(view, "whole")
        found = [
            i
            for i in np.unique(whole[whole > 0]).tolist()
            if i not in truth.stuff and (whole == i).sum() >= min_area
        ]
        own = next((i for i in ids if i in found), None)
        rest = [i for i in found if truth.names[i] != name]
        pieces = [whole == i for i in rest]
        if own is not None:
            mask = whole == own
            part = cut(mask, keep, rng)
            masks.append((mask, part))
            pieces = [mask, part, *pieces]
            views.append(view.name)
        f = np.zeros((0, encoder.dim), np.float32)
        if pieces:
            f = encoder.encode_masks(view, np.stack(pieces))
        if own is not None:
            full.append(f[0])
            incomplete.append(f[1])
            f = f[2:]
        others.append(f)
        other_names += [truth.names[i] for i in rest]
    return Orbit(
        views, np.array(full), np.array(incomplete), masks, np.concatenate(others), other_names
    )


def code_purity(run: Run, level: str = "wp") -> float:
    """Share of masks whose code is the commonest one of their track, over labelled masks: 1 = every
    object keeps one code.
    """
    _, labels, levels = run.training_set()
    codes = run.ensure("codebook").npz("codes.npz")["codes"]
    keep = (labels != -1) & (levels == LEVELS.index(level))
    labels, codes = labels[keep], codes[keep]
    if not len(labels):
        return float("nan")
    return sum(np.bincount(codes[labels == y]).max() for y in np.unique(labels)) / len(labels)


Seen = tuple[Tensor, np.ndarray]
"""A view at one level: features [R, d], and for every pixel the row it shows [H, W] int, -1 = none.
"""
SurfacePair = tuple[str, np.ndarray, str, np.ndarray, np.ndarray]
"""Two views' names and pixels [n, 2] (x, y) that see one surface, and the whole object there [n],
-1 = unknown.
"""


def surface_pairs(run: Run, *, gaps: Sequence[int] = (1, 4), stride: int = 6) -> list[SurfacePair]:
    """Pairs of training views that lie ``gaps`` apart, by true depth, from every ``stride``-th
    pixel.

    Raises EvaluationError for a scene without true depth and ids.
    """
    if run.scene.ground_truth is None or run.scene.depth_folder is None:
        raise EvaluationError(
            f"{run.scene.path}: consistency needs true depth and ids, the scene lacks them; compare"
            " on a bundled scene"
        )
    views, out = run.scene.training_views, []
    for a, b in ((a, b) for gap in gaps for a, b in zip(views, views[gap:])):
        at_a, at_b = corresponding_pixels(
            a.camera, run.scene.depth(a), b.camera, run.scene.depth(b), stride=stride
        )
        whole = run.scene.ground_truth.ids(a, "whole")[at_a[:, 1], at_a[:, 0]]
        out.append((a.name, at_a, b.name, at_b, np.where(whole > 0, whole, -1)))
    return out


def view_consistency(
    see: Callable[[View], Seen],
    views: Sequence[View],
    pairs: Sequence[SurfacePair],
    *,
    codes: Callable[[np.ndarray], np.ndarray] | None = None,
    seed: int = 0,
) -> tuple[float, float]:
    """Cohen's kappa of codes and AUC of feature similarity, means over pairs of views.

    ``see``: features and rows of a view at one level. ``codes``: rows -> codes; without it kappa is
    NaN.
    """
    found: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
    for v in views:  # a view is rendered once, and only the pixels of its pairs are kept
        table, rows = see(v)
        table = torch.cat([table, torch.zeros(1, table.shape[1])])  # row -1: no feature
        for n, (a, at_a, b, at_b, _) in enumerate(pairs):
            for side, name, at in ((0, a, at_a), (1, b, at_b)):
                if name == v.name:
                    here = rows[at[:, 1], at[:, 0]]
                    found[n, side] = here, table[torch.from_numpy(here).long()].numpy()
    kappas, aucs = [], []
    for n, (*_, whole) in enumerate(pairs):
        (rows_a, features_a), (rows_b, features_b) = found[n, 0], found[n, 1]
        kappas.append(cohens_kappa(codes(rows_a), codes(rows_b)) if codes else np.nan)
        aucs.append(similarity_auc(features_a, features_b, whole, seed=seed))
    return _mean(kappas), _mean(aucs)


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else float("nan")
