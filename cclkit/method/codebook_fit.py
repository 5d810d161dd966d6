"""Training of a codebook from all mask features of a scene."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from ..errors import CodebookError
from ..settings import BELOW_ONE, BETAS, NOT_NEGATIVE, POSITIVE, SHARE, OneOf, at_most
from .codebook import LabelTable, assign, check, check_vectors, label_ids, losses, unit
from .codebook_repair import revive, split
from .codebook_variants import initialise, shuffled


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
    load_balance: Annotated[float, NOT_NEGATIVE] = 0.0
    """Weight of LEGaussians' term against uneven use of the codes: share of masks on a code times
    its mean softmax weight, summed. Paper does not say (it names no such term; ours: 0, because
    from a k-means start it changed little in the mechanism experiment; from a random start it
    helps).
    """
    temperature: Annotated[float, POSITIVE] = 0.02
    """Temperature of the softmax over cosines, with collisions "soft" or a load balance. Paper does
    not say (ours: 0.02, because cosines of masks lie so close that LEGaussians' 1 gives all codes
    nearly the same weight; of 0.01 to 0.1 the small ones did best in the mechanism experiment).
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

    def codes(self, features: Tensor) -> Tensor:  # [B] int64
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
    Raises CodebookError without any feature or on an unknown setting, FeatureError on zero or
    non-finite features. With all labels -1 only L_max acts.
    """
    _check_settings(config)
    if len(features) == 0:
        raise CodebookError(
            "no mask features to learn a codebook from; check that the masks stage found masks at"
            " this level"
        )
    generator = torch.Generator().manual_seed(seed)
    features = features.float()
    check_vectors(features, "feature")  # before anything is drawn from them
    check(features[:1], features, labels, groups)
    initial = initialise(features, config.n_prototypes, config.init, generator, labels, groups)
    if (
        config.shuffle_labels
    ):  # after the start was drawn, so that all arms of an ablation start alike
        labels = shuffled(labels, generator, groups)
    prototypes = initial.clone().requires_grad_(True)
    unit_features, (ids, group_of) = unit(features), label_ids(labels, groups)
    del features
    optimiser = torch.optim.Adam([prototypes], lr=config.lr, betas=tuple(config.betas))
    curves = {k: np.zeros(config.steps) for k in ("max", "pull", "push", "total")}
    with _threads(1 if unit_features.numel() < 2**20 else None):
        for step, (F, table) in enumerate(
            _batches(unit_features, ids, group_of, config, generator)
        ):
            moved = []
            if config.revive_every and step and step % config.revive_every == 0:
                moved.append(revive(prototypes.data, unit_features))
            if config.collisions == "split" and step and step % config.split_every == 0:
                moved.append(
                    split(prototypes.data, unit_features, ids, group_of, cosine=config.split_cosine)
                )
            for rows in moved:
                _forget(optimiser, prototypes, rows)
            loss, codes, sums = losses(
                prototypes,
                F,
                table,
                config.lambda_pull,
                config.lambda_push,
                config.margin,
                soft=config.collisions == "soft",
                load_balance=config.load_balance,
                temperature=config.temperature,
            )
            for k, curve in curves.items():
                curve[step] = float(getattr(loss, k).detach())
            optimiser.zero_grad(set_to_none=True)
            if config.update == "adam":
                loss.total.backward()
                optimiser.step()
            else:
                (gradient,) = torch.autograd.grad(loss.total - loss.max, prototypes)
                _average(prototypes.data, gradient, codes, sums, config.ema_decay)
    with torch.no_grad():
        learned = unit(prototypes)
    if not torch.isfinite(learned).all():
        raise CodebookError(
            "the codebook is not finite after training; lower codebook.lr or check the features"
        )
    return Codebook(learned.detach(), initial, curves)


def _batches(
    unit_features: Tensor,
    ids: Tensor,
    group_of: Tensor,
    config: CodebookConfig,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, LabelTable]]:
    """Features and labels of every step: all masks, or minibatches that go through them in random
    order, epoch by epoch.
    """
    B, size = len(unit_features), config.batch

    def table(F: Tensor, ids: Tensor) -> LabelTable:
        return LabelTable(
            ids, group_of, config.normalisation, F if config.collisions == "centroids" else None
        )

    if size == 0 or size >= B:
        whole = unit_features, table(unit_features, ids)
        for _ in range(config.steps):
            yield whole
        return
    order = torch.zeros(0, dtype=torch.int64)
    for _ in range(config.steps):
        if not len(order):
            order = torch.randperm(B, generator=generator)
        rows, order = order[:size], order[size:]
        yield unit_features[rows], table(unit_features[rows], ids[rows])


def _average(
    prototypes: Tensor, gradient: Tensor, codes: Tensor, sums: Tensor, decay: float
) -> None:
    """One step of exponential averaging, in place: T_j <- unit(decay T_j + (1 - decay) (mean of its
    features - B/n_j g_j)).

    g is the gradient of the total without L_max. Since L_max's is -n_j/B times the mean (up to the
    part along T_j), the factor B/n_j puts both on one scale: a prototype rests exactly where the
    gradient of the total loss vanishes. Prototypes without a feature stay.
    """
    n = torch.bincount(codes, minlength=len(prototypes))[:, None]
    target = (sums - len(codes) * gradient) / n.clamp_min(1)
    mixed = decay * prototypes + (1 - decay) * target
    length = mixed.norm(dim=1, keepdim=True)
    prototypes.copy_(
        torch.where((n > 0) & (length > 1e-6), mixed / length.clamp_min(1e-6), prototypes)
    )


def _forget(optimiser: torch.optim.Adam, prototypes: Tensor, rows: Tensor) -> None:
    """Clear Adam's moments of rows that were placed anew: they belong to another place."""
    for moment in ("exp_avg", "exp_avg_sq"):
        if moment in optimiser.state[prototypes]:
            optimiser.state[prototypes][moment][rows] = 0


@contextlib.contextmanager
def _threads(n: int | None):
    """Run with n torch threads: on small problems starting threads costs more than the
    arithmetic.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_settings(config: CodebookConfig) -> None:
    """Raise CodebookError on settings that were not read through `Config`, which checks
    them too.
    """
    for name, choices in (
        ("update", ("adam", "ema")),
        ("collisions", ("ignore", "split", "centroids", "soft")),
    ):
        if getattr(config, name) not in choices:
            raise CodebookError(
                f"codebook.{name}={getattr(config, name)!r} is unknown; use one of"
                f" {', '.join(map(repr, choices))}"
            )
    for name, least in (("batch", 0), ("revive_every", 0), ("split_every", 1)):
        if getattr(config, name) < least:
            raise CodebookError(
                f"codebook.{name}={getattr(config, name)} is out of range; expected at least"
                f" {least}"
            )
    if not config.load_balance >= 0 or not config.temperature > 0:
        raise CodebookError(
            f"codebook.load_balance={config.load_balance} or"
            f" codebook.temperature={config.temperature} is out of range; expected a number of at"
            " least 0, and one above 0"
        )
    if not 0 <= config.ema_decay < 1:
        raise CodebookError(
            f"codebook.ema_decay={config.ema_decay} is out of range; expected a number of at least"
            " 0 and below 1"
        )
