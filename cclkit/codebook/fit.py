"""Training of a codebook from all mask features of a scene."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..config import CodebookConfig
from ..errors import CodebookError
from .losses import LabelTable, assign, check, check_vectors, label_ids, losses, unit
from .repair import revive, split
from .start import initialise, shuffled


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
