"""Stage 3: learning a codebook from all mask features of a scene."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from .. import settings
from ..errors import CodebookError
from ..settings import BELOW_ONE, BETAS, NOT_NEGATIVE, POSITIVE, SHARE, OneOf, at_most
from .codebook import Pairs, assign, check_batch, check_vectors, count_pairs, losses, unit
from .codebook_variants import (
    average,
    initialise,
    numbered_in_groups,
    pair_weights,
    repair,
    shuffled,
)


@dataclass(frozen=True)
class CodebookConfig:
    """Stage 3: contrastive codebook learning."""

    n_prototypes: Annotated[int, POSITIVE, at_most(2**16)] = 64
    """Codebook size N per level. Paper does not say (ours: 64, because LangSplatV2 has as many per
    level).
    """
    lambda_pull: Annotated[float, NOT_NEGATIVE] = 0.25
    """Weight of the pull loss. Paper: 0.25."""
    lambda_push: Annotated[float, NOT_NEGATIVE] = 0.25
    """Weight of the push loss. Paper: 0.25."""
    margin: float = 0.7
    """Push margin m: prototypes of different labels are pushed apart while their cosine exceeds it.
    Paper: 0.7.
    """
    normalisation: Annotated[str, OneOf("pairs", "labels")] = "pairs"
    """Mean that pull and push take: "pairs" (over all pairs of masks, so a label weighs by the
    square of its size) or "labels" (of each label's, or pair of labels', own mean). Paper does not
    say (ours: pairs, because its formulas sum over pairs).
    """
    init: Annotated[str, OneOf("kmeans", "random", "tracks")] = "kmeans"
    """Initial prototypes: "kmeans" (cosine k-means++, Lloyd), "random" (random unit vectors) or
    "tracks" (centroids of the track labels, then k-means++ for the rest). Paper does not say (ours:
    kmeans, because random prototypes that win no mask never move).
    """
    update: Annotated[str, OneOf("adam", "ema")] = "adam"
    """"adam" (the gradient of all losses) or "ema" (exponential averages of each prototype's
    features, corrected by the gradient of pull and push). Paper does not say (ours: adam, because
    the paper names betas).
    """
    ema_decay: Annotated[float, BELOW_ONE] = 0.99
    """Share of a prototype that one step of "ema" keeps. Paper does not say (ours: 0.99, because
    vector quantisers commonly use it).
    """
    steps: Annotated[int, NOT_NEGATIVE] = 400
    """Optimisation steps. Paper does not say (not for this stage; ours: 400, because from a k-means
    start the losses are flat after about 100).
    """
    batch: Annotated[int, NOT_NEGATIVE] = 0
    """Masks per step, drawn without repetition until all were seen; 0 = all. Memory falls with it;
    a minibatch's mean over pairs is noisier than the whole's. Paper does not say (ours: 0, because
    counting pairs makes all masks affordable).
    """
    lr: Annotated[float, POSITIVE] = 1e-3
    """Adam learning rate. Paper: 0.001, without saying for which stage."""
    betas: Annotated[tuple[float, float], BETAS] = (0.9, 0.999)
    """Adam betas. Paper: (0.9, 0.999), without saying for which stage."""
    revive_every: Annotated[int, NOT_NEGATIVE] = 0
    """Every so many steps a prototype that wins no mask moves to the feature farthest from its
    prototype; 0 = never. Paper does not say (ours: 0, because a k-means start leaves hardly any).
    """
    collisions: Annotated[str, OneOf("ignore", "split", "centroids", "soft")] = "ignore"
    """Two labels on one prototype, where push has no gradient: "ignore" (the paper's form), "split"
    (a label that shares gets an unused prototype at its centroid) "centroids" (pull and push
    compare prototypes with label centroids instead of with each other) or "soft" (a mask stands in
    a pair for all prototypes, weighted by a softmax of its cosines, instead of for its nearest).
    Paper does not say (ours: ignore, because its formulas do, a k-means start leaves split no
    unused prototype, and at the paper's weights centroids gained less in the mechanism experiment;
    at weights of 1 they gained more).
    """
    temperature: Annotated[float, POSITIVE] = 0.02
    """Temperature of the softmax over cosines, with collisions "soft". Paper does not say (ours:
    0.02, because cosines of masks lie so close that LEGaussians' 1 gives all codes nearly the same
    weight; of 0.01 to 0.1 the small ones did best in the mechanism experiment).
    """
    split_every: Annotated[int, POSITIVE] = 50
    """Steps between two splits. Paper does not say (ours: 50, because the losses settle in about
    100).
    """
    split_cosine: Annotated[float, SHARE] = 0.95
    """Labels whose centroids have a larger cosine than this may share a prototype: they may be one
    object tracked twice. Paper does not say (ours: 0.95, because crops of different objects reach
    0.8).
    """
    shared: bool = False
    """One codebook for both levels, instead of one each; pairs count within a level only, because a
    part may sit in both under different labels. Paper does not say (ours: false, because levels are
    queried apart).
    """
    shuffle_labels: bool = False
    """Control: permute the track labels among the labelled masks, which keeps their number and
    sizes and destroys their meaning. The start keeps the true ones, so that all arms start alike.
    """


@dataclass(frozen=True)
class Codebook:
    """A learned codebook of one level."""

    prototypes: Tensor  # [N, d] float32, unit length
    initial: Tensor  # [N, d] float32, unit length: where they started
    curves: dict[str, np.ndarray]  # "max", "pull", "push", "total": [steps] float64

    def codes(self, features: Tensor) -> Tensor:
        """Code of each feature [B, d]: [B] int64."""
        return assign(self.prototypes, features.to(self.prototypes.dtype))


def fit_codebook(
    features: Tensor,
    labels: Tensor,
    config: CodebookConfig,
    *,
    seed: int,
    groups: Tensor | None = None,
) -> Codebook:
    """Learn a codebook from masks of a scene.

    ``features`` [B, d], ``labels`` [B] int64 (-1 = unlabelled), ``groups`` [B] int64: pairs count
    within a group only (levels of a shared codebook). Curves hold the losses of each step's batch.
    Raises CodebookError without any feature, ConfigError on an unknown setting, FeatureError on
    zero or non-finite features. With all labels -1 only L_max acts.

    >>> import torch
    >>> features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    >>> labels = torch.tensor([1, 1, 2, 2])
    >>> book = fit_codebook(features, labels, CodebookConfig(n_prototypes=2), seed=0)
    >>> codes = book.codes(features)
    >>> bool(codes[0] == codes[1] != codes[2] == codes[3])
    True
    """
    settings.check(config)
    if len(features) == 0:
        raise CodebookError(
            "no mask features to learn a codebook from; check that the masks stage found masks at"
            " this level"
        )
    generator = torch.Generator().manual_seed(seed)
    features = features.float()
    check_vectors(features, "feature")  # before anything is drawn from them
    check_batch(features[:1], features, labels, groups)
    initial = initialise(features, config.n_prototypes, config.init, generator, labels, groups)
    if config.shuffle_labels:  # after the start was drawn: all arms of an ablation start alike
        labels = shuffled(labels, generator, groups)
    prototypes = initial.clone().requires_grad_(True)
    unit_features, (ids, group_of) = unit(features), numbered_in_groups(labels, groups)
    del features
    optimiser = torch.optim.Adam([prototypes], lr=config.lr, betas=tuple(config.betas))
    curves = {k: np.zeros(config.steps) for k in ("max", "pull", "push", "total")}
    batches = _batches(len(unit_features), config, generator)
    with _threads(1 if unit_features.numel() < 2**20 else None):
        for step, rows in enumerate(batches):
            repair(step, config, prototypes, unit_features, ids, group_of, optimiser)
            F = unit_features[rows]
            T, codes = unit(prototypes), assign(prototypes, F)
            loss = losses(
                T,
                F,
                codes,
                _pairs(T, F, codes, ids[rows], group_of, config),
                lambda_pull=config.lambda_pull,
                lambda_push=config.lambda_push,
                margin=config.margin,
            )
            for k, curve in curves.items():
                curve[step] = float(getattr(loss, k).detach())
            optimiser.zero_grad(set_to_none=True)
            if config.update == "adam":
                loss.total.backward()
                optimiser.step()
            else:
                (gradient,) = torch.autograd.grad(loss.total - loss.max, prototypes)
                average(prototypes.data, gradient, F, codes, decay=config.ema_decay)
    with torch.no_grad():
        learned = unit(prototypes)
    if not torch.isfinite(learned).all():
        raise CodebookError(
            "the codebook is not finite after training; lower codebook.lr or check the features"
        )
    return Codebook(learned.detach(), initial, curves)


def _pairs(
    T: Tensor, F: Tensor, codes: Tensor, ids: Tensor, group_of: Tensor, config: CodebookConfig
) -> Pairs:
    """The paper's pairs, or the weights of a variant."""
    one_group = not group_of.any()
    if one_group and config.normalisation == "pairs" and config.collisions in ("ignore", "split"):
        return count_pairs(codes, ids, len(T))
    return pair_weights(
        T,
        F,
        codes,
        ids,
        group_of,
        normalisation=config.normalisation,
        collisions=config.collisions,
        temperature=config.temperature,
    )


def _batches(
    B: int, config: CodebookConfig, generator: torch.Generator
) -> Iterator[slice | Tensor]:
    """Rows of every step: all masks, or minibatches that go through them in random order, epoch by
    epoch.
    """
    size = config.batch
    if size == 0 or size >= B:
        for _ in range(config.steps):
            yield slice(None)
        return
    order = torch.zeros(0, dtype=torch.int64)
    for _ in range(config.steps):
        if not len(order):
            order = torch.randperm(B, generator=generator)
        rows, order = order[:size], order[size:]
        yield rows


@contextlib.contextmanager
def _threads(n: int | None) -> Iterator[None]:
    """Run with n torch threads: on small problems starting threads costs more than the
    arithmetic.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
