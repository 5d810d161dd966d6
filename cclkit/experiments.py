"""Experiments: the arms of the paper's ablation, on a feature-level population and on whole scenes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .codebook import Codebook, colliding_labels, fit_codebook
from .config import CodebookConfig, SimulationConfig
from .errors import EvaluationError
from .evaluation import lerf_ovs, ovs3d
from .foundation.simulated import FeatureSpace, seeded
from .pipeline import Run

ARMS: dict[str, dict] = {
    "baseline": {"lambda_pull": 0.0, "lambda_push": 0.0},
    "pull": {"lambda_push": 0.0},
    "push": {"lambda_pull": 0.0},
    "both": {},
    "shuffled": {"shuffle_labels": True},
}
"""Rows of the paper's Table 2 as changes to the configured codebook, and a control whose track labels mean nothing."""

REMEDIES: dict[str, dict] = {
    "random": {"init": "random"},
    "random, split": {"init": "random", "collisions": "split"},
    "random, centroids": {"init": "random", "collisions": "centroids"},
    "random, revive": {"init": "random", "revive_every": 50},
    "random, load balance": {"init": "random", "load_balance": 3.0},
    "split": {"collisions": "split"},
    "centroids": {"collisions": "centroids"},
    "soft": {"collisions": "soft"},
    "load balance": {"load_balance": 1.0},
    "tracks": {"init": "tracks"},
    "label means": {"normalisation": "labels"},
    "ema": {"update": "ema"},
}
"""What the paper leaves open about two labels on one prototype and prototypes that win nothing, as changes to the configured codebook."""

PAPER_TABLE_2 = {"baseline": 56.4, "pull": 59.5, "push": 60.4, "both": 65.6}
"""mIoU % on LERF-OVS, mean of four scenes (paper, Table 2). Another data set: a yardstick for signs, not for sizes."""


# ----------------------------------------------------------------- feature-level population


@dataclass(frozen=True)
class Population:
    """Mask features of known classes: what the codebook stage sees, without images."""

    features: Tensor  # [B, d] float32
    classes: np.ndarray  # [B] int: 0..C-1
    labels: Tensor  # [B] int64: class + 1, or -1
    text: Tensor  # [C, d] float32: one query per class


def population(
    seed: int,
    *,
    n_classes: int = 20,
    n_views: int = 20,
    incomplete: float = 0.4,
    missing: tuple[float, float] = (0.4, 0.8),
    unlabelled: float = 0.3,
    observed: float = 1.0,
    split: float = 0.0,
    merged: float = 0.0,
    simulation: SimulationConfig = SimulationConfig(),
) -> Population:
    """Every class once per view; a share of the masks is incomplete and drifts towards its class's confuser.

    ``missing`` bounds the missing share of an incomplete mask (uniform), which is how far it drifts
    from its class (0) to its confuser (1). ``unlabelled``: share of masks that their track lost. ``observed``: share of
    the classes that are tracked at all, as those of the first view are; masks of the others have no label. ``split``:
    share of masks that come as two pieces. ``merged``: share of masks that swallow about as much of another class.
    """
    simulation = replace(simulation, seed=seed)
    space, rng = FeatureSpace(simulation), seeded(seed, "population")
    names = [f"class {chr(97 + c // 26)}{chr(97 + c % 26)}" for c in range(n_classes)]
    directions = [space.words(n.split()[-1]) for n in names]
    order, confuser = rng.permutation(n_classes), np.zeros(n_classes, np.int64)
    confuser[order] = np.roll(order, 1)  # one cycle, so that no class is its own confuser
    pieces = seeded(seed, "population, pieces")  # of their own, so that the masks without them stay the same
    tracked = set(pieces.permutation(n_classes)[: round(observed * n_classes)].tolist())
    features, classes, labels = [], [], []
    for _ in range(n_views):
        for c in range(n_classes):
            gone = rng.uniform(*missing) if rng.random() < incomplete else 0.0
            found = [space.drifted(directions[c], directions[confuser[c]], gone, rng)]
            label = -1 if rng.random() < unlabelled or c not in tracked else c + 1
            kind = pieces.random()
            if kind < split:
                first = pieces.uniform(0.35, 0.65)
                found = [space.drifted(directions[c], directions[confuser[c]], missing_here, pieces) for missing_here in (first, 1 - first)]
            elif kind < split + merged:
                other = (c + pieces.integers(1, n_classes)) % n_classes
                found = [space.drifted(directions[c], directions[other], pieces.uniform(0.35, 0.65), pieces)]
            features += found
            classes += [c] * len(found)
            labels += [label] * len(found)
    text = np.stack([space.text(n, d) for n, d in zip(names, directions)])
    return Population(torch.from_numpy(np.array(features)).float(), np.array(classes), torch.tensor(labels), torch.from_numpy(text).float())


def population_miou(book: Codebook, people: Population) -> float:
    """mIoU % over classes when every mask answers with the class whose text is nearest to its code's prototype."""
    predicted = (book.prototypes @ people.text.T).argmax(1)[book.codes(people.features)].numpy()
    ious = []
    for c in range(len(people.text)):
        a, b = predicted == c, people.classes == c
        ious.append((a & b).sum() / max(1, (a | b).sum()))
    return 100 * float(np.mean(ious))


def population_collisions(book: Codebook, people: Population) -> float:
    """Share in % of the labels whose commonest code is another label's commonest code too."""
    return 100 * colliding_labels(book.codes(people.features), people.labels) / max(1, len(people.labels[people.labels != -1].unique()))


def mechanism(
    config: CodebookConfig, *, seeds: Sequence[int], arms: Sequence[str] = tuple(ARMS), measure: Callable[[Codebook, Population], float] = population_miou, **of_population
) -> dict[str, list[float]]:
    """mIoU % (or another ``measure``) of every arm of ARMS and REMEDIES, one value per seed; a seed draws the population and starts the codebook."""
    out: dict[str, list[float]] = {arm: [] for arm in arms}
    for seed in seeds:
        people = population(seed, **of_population)
        for arm in arms:
            book = fit_codebook(people.features, people.labels, replace(config, **(ARMS | REMEDIES)[arm]), seed=seed)
            out[arm].append(measure(book, people))
    return out


# ----------------------------------------------------------------- whole scenes


def index_map_miou(run: Run) -> float:
    """mIoU % of the scene's own protocol on the 2D index maps of labelled training views, before any field.

    What the codes alone are worth: no rendering between the codebook and the query. Labelled views
    that are held out have no index maps and are left out.
    """
    return scene_miou(run, lambda name, texts: run.relevancy(name, texts, code_maps=run.index_maps(name)), views="training")


def scene_miou(run: Run, relevancy: Callable[[str, Sequence[str]], Tensor], *, views: str = "all") -> float:
    """mIoU % of the scene's own protocol, the relevancy maps [P, 2, H, W] of a view's texts coming from a function."""
    if run.scene.labels:
        _, aggregates = lerf_ovs.evaluate_scene(run.scene, relevancy, protocol=run.config.evaluation.lerf_protocol, views=views)
    elif run.scene.classes:
        _, aggregates = ovs3d.evaluate_scene(run.scene, relevancy, protocol=run.config.evaluation.ovs_protocol, views=views)
    else:
        raise EvaluationError(f"{run.scene.path}: no labels to score against; use a LERF-OVS or 3D-OVS scene")
    return 100 * aggregates["pooled"]["miou"]


def scene_ablation(run: Run, *, seeds: Sequence[int], arms: Sequence[str] = tuple(ARMS)) -> dict[str, list[float]]:
    """mIoU % of every arm on the scene's 2D index maps, one value per seed.

    A seed drives whatever is simulated of the front end and the codebook's start, so its spread is that
    of repeating the experiment on this scene, not of scenes.
    """
    out: dict[str, list[float]] = {arm: [] for arm in arms}
    for seed in seeds:
        for arm in arms:
            changes = {f"codebook__{k}": v for k, v in ARMS[arm].items()}
            out[arm].append(index_map_miou(run.vary(seed=seed, front_end__simulation__seed=seed, **changes)))
    return out


@dataclass(frozen=True)
class Orbit:
    """One object's features over the training views in which it is seen: from its full mask, and from part of it."""

    views: list[str]
    full: np.ndarray  # [V, d] float32, unit
    incomplete: np.ndarray  # [V, d] float32, unit
    masks: list[tuple[np.ndarray, np.ndarray]]  # per view: full and incomplete mask [H, W] bool
    others: np.ndarray  # [O, d] float32: full masks of all other whole objects, over all views
    other_names: list[str]  # [O]


def orbit(run: Run, name: str, *, keep: float = 0.5, min_area: int = 400, seed: int = 0) -> Orbit:
    """Features of the whole object called ``name``, from true masks, and from masks that keep only a share ``keep`` of them.

    What is cut off, a side in a random direction, differs from view to view. Raises SceneError for a scene
    without ground truth or without such an object.
    """
    from .errors import SceneError
    from .foundation.simulated import cut

    truth = run.scene.ground_truth
    ids = [i for i, n in (truth.names if truth else {}).items() if n == name]
    if not ids:
        raise SceneError(f"{run.scene.path}: no object called {name!r} with ground truth; there are {', '.join(sorted(set(truth.names.values()))) if truth else 'none'}")
    rng, encoder = seeded(seed, "orbit", name), run.front_end.encoder
    views, full, incomplete, masks, others, other_names = [], [], [], [], [], []
    for view in run.scene.training_views:
        whole = truth.ids(view, "whole")
        found = [i for i in np.unique(whole[whole > 0]).tolist() if i not in truth.stuff and (whole == i).sum() >= min_area]
        own = next((i for i in ids if i in found), None)
        rest = [i for i in found if truth.names[i] != name]
        pieces = [whole == i for i in rest]
        if own is not None:
            mask = whole == own
            part = cut(mask, keep, rng)
            masks.append((mask, part))
            pieces = [mask, part, *pieces]
            views.append(view.name)
        f = encoder.encode_masks(view, np.stack(pieces)) if pieces else np.zeros((0, encoder.dim), np.float32)
        if own is not None:
            full.append(f[0])
            incomplete.append(f[1])
            f = f[2:]
        others.append(f)
        other_names += [truth.names[i] for i in rest]
    return Orbit(views, np.array(full), np.array(incomplete), masks, np.concatenate(others), other_names)


def code_purity(run: Run, level: str = "wp") -> float:
    """Share of masks whose code is the commonest one of their track, over labelled masks: 1 = every object keeps one code."""
    from .masks import LEVELS

    _, labels, levels = run.training_set()
    codes = run.ensure("codebook").npz("codes.npz")["codes"]
    keep = (labels != -1) & (levels == LEVELS.index(level))
    labels, codes = labels[keep], codes[keep]
    if not len(labels):
        return float("nan")
    return sum(np.bincount(codes[labels == y]).max() for y in np.unique(labels)) / len(labels)
