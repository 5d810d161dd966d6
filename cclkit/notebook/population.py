"""The feature-level population: mask features of known classes, as the codebook stage sees them,
and the arms of the paper's ablation on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..evaluation.codes import colliding_labels
from ..foundation.simulated import FeatureSpace, SimulationConfig, seeded
from ..method.codebook_fit import Codebook, CodebookConfig, fit_codebook

ARMS: dict[str, dict] = {
    "baseline": {"lambda_pull": 0.0, "lambda_push": 0.0},
    "pull": {"lambda_push": 0.0},
    "push": {"lambda_pull": 0.0},
    "both": {},
    "shuffled": {"shuffle_labels": True},
}
"""Rows of the paper's Table 2 as changes to the configured codebook, and a control whose track
labels mean nothing.
"""

REMEDIES: dict[str, dict] = {
    "random": {"init": "random"},
    "random, split": {"init": "random", "collisions": "split"},
    "random, centroids": {"init": "random", "collisions": "centroids"},
    "random, revive": {"init": "random", "revive_every": 50},
    "split": {"collisions": "split"},
    "centroids": {"collisions": "centroids"},
    "soft": {"collisions": "soft"},
    "tracks": {"init": "tracks"},
    "label means": {"normalisation": "labels"},
    "ema": {"update": "ema"},
}
"""What the paper leaves open about two labels on one prototype and prototypes that win nothing, as
changes to the configured codebook.
"""

PAPER_TABLE_2 = {"baseline": 56.4, "pull": 59.5, "push": 60.4, "both": 65.6}
"""mIoU % on LERF-OVS, mean of four scenes (paper, Table 2). Another data set: a yardstick for
signs, not for sizes.
"""


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
    """Every class once per view; a share of the masks is incomplete and drifts towards its class's
    confuser.

    ``missing`` bounds the missing share of an incomplete mask (uniform), which is how far it drifts
    from its class (0) to its confuser (1). ``unlabelled``: share of masks that their track lost.
    ``observed``: share of the classes that are tracked at all, as those of the first view are;
    masks of the others have no label. ``split``: share of masks that come as two pieces.
    ``merged``: share of masks that swallow about as much of another class.
    """
    simulation = replace(simulation, seed=seed)
    space, rng = FeatureSpace(simulation), seeded(seed, "population")
    names = [f"class {chr(97 + c // 26)}{chr(97 + c % 26)}" for c in range(n_classes)]
    directions = [space.words(n.split()[-1]) for n in names]
    order, confuser = rng.permutation(n_classes), np.zeros(n_classes, np.int64)
    confuser[order] = np.roll(order, 1)  # one cycle, so that no class is its own confuser
    # of their own, so that the masks without them stay the same
    pieces = seeded(seed, "population, pieces")
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
                found = [
                    space.drifted(directions[c], directions[confuser[c]], missing_here, pieces)
                    for missing_here in (first, 1 - first)
                ]
            elif kind < split + merged:
                other = (c + pieces.integers(1, n_classes)) % n_classes
                found = [
                    space.drifted(
                        directions[c], directions[other], pieces.uniform(0.35, 0.65), pieces
                    )
                ]
            features += found
            classes += [c] * len(found)
            labels += [label] * len(found)
    text = np.stack([space.text(n, d) for n, d in zip(names, directions)])
    return Population(
        torch.from_numpy(np.array(features)).float(),
        np.array(classes),
        torch.tensor(labels),
        torch.from_numpy(text).float(),
    )


def population_miou(book: Codebook, people: Population) -> float:
    """mIoU % over classes when every mask answers with the class whose text is nearest to its
    code's prototype.
    """
    predicted = (book.prototypes @ people.text.T).argmax(1)[book.codes(people.features)].numpy()
    ious = []
    for c in range(len(people.text)):
        a, b = predicted == c, people.classes == c
        ious.append((a & b).sum() / max(1, (a | b).sum()))
    return 100 * float(np.mean(ious))


def population_collisions(book: Codebook, people: Population) -> float:
    """Share in % of the labels whose commonest code is another label's commonest code too."""
    return (
        100
        * colliding_labels(book.codes(people.features), people.labels)
        / max(1, len(people.labels[people.labels != -1].unique()))
    )


def mechanism(
    config: CodebookConfig,
    *,
    seeds: Sequence[int],
    arms: Sequence[str] = tuple(ARMS),
    measure: Callable[[Codebook, Population], float] = population_miou,
    **of_population,
) -> dict[str, list[float]]:
    """mIoU % (or another ``measure``) of every arm of ARMS and REMEDIES, one value per seed; a seed
    draws the population and starts the codebook.
    """
    out: dict[str, list[float]] = {arm: [] for arm in arms}
    for seed in seeds:
        people = population(seed, **of_population)
        for arm in arms:
            book = fit_codebook(
                people.features, people.labels, replace(config, **(ARMS | REMEDIES)[arm]), seed=seed
            )
            out[arm].append(measure(book, people))
    return out
