"""Speed of the contrastive losses and of a codebook's training."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cclkit.errors import CodebookError
from cclkit.machine import peak_memory_mb
from cclkit.method.codebook import ccl_loss
from cclkit.method.codebook_fit import CodebookConfig, fit_codebook
from cclkit.notebook.tables import markdown_table

from .. import reference
from .base import Benchmark, option, timed

WEIGHTS = {"lambda_pull": 0.25, "lambda_push": 0.25, "margin": 0.7}


@dataclass(frozen=True)
class Codebook(Benchmark):
    """Time the CCL losses (forward + backward, input checks included), and a whole training.

    The losses are timed against all pairs and over growing batches; these come first, so that the
    peak of memory, which is the process's, is theirs. Times are medians of ``repeats`` after one
    warm-up; all pairs run three times. Measuring raises CodebookError when both forms disagree.
    """

    name = "codebook"
    help = "the CCL losses against all pairs, over growing batches, and a training"

    masks: int = option(4096, "batch that is compared with all pairs")
    prototypes: int = option(128)
    dim: int = option(512)
    largest: int = option(100_000, "largest of the growing batches", least=8)
    scene_masks: int = option(2000, "masks of the training")
    steps: int = option(2000, "steps of the training")
    repeats: int = option(9)
    seed: int = option(0, least=0)

    def measure(self) -> dict:
        growing, peak = self._growing()
        _, features, labels = self.problem(self.scene_masks)
        config = CodebookConfig(n_prototypes=self.prototypes, steps=self.steps)
        start = time.perf_counter()
        fit_codebook(features, labels, config, seed=self.seed)
        training = time.perf_counter() - start
        prototypes, features, labels = self.problem(self.masks)
        counted, value, gradient = _measured(
            lambda T: ccl_loss(T, features, labels, **WEIGHTS).total, self.repeats, prototypes
        )
        pairs, slowly, its_gradient = _measured(
            lambda T: reference.ccl_loss(T, features, labels, **WEIGHTS), 3, prototypes
        )
        gradients_differ = (gradient - its_gradient).norm() > 1e-2 * its_gradient.norm()
        if abs(value - slowly) > 1e-4 or gradients_differ:  # float32 over B² terms
            raise CodebookError(
                f"the losses are {value:.6f} counted and {slowly:.6f} over all pairs, or their"
                " gradients differ; one of them is wrong, so a timing means nothing"
            )
        return {
            "benchmark": self.name,
            "masks": self.masks,
            "prototypes": self.prototypes,
            "dim": self.dim,
            "seed": self.seed,
            "threads": torch.get_num_threads(),
            "repeats": self.repeats,
            "histogram_s": round(counted, 5),
            "all_pairs_s": round(pairs, 4),
            "times_faster": round(pairs / counted, 1),
            "growing": growing,
            "peak_memory_mb": round(peak),
            "scene_masks": self.scene_masks,
            "steps": self.steps,
            "training_s": round(training, 2),
        }

    def _growing(self) -> tuple[list[dict], float]:
        """Rows over growing batches, and the peak of memory in MB so far."""
        rows = []
        for B in (self.largest // 8, self.largest // 4, self.largest // 2, self.largest):
            prototypes, features, labels = self.problem(B)
            s, *_ = _measured(
                lambda T: ccl_loss(T, features, labels, **WEIGHTS).total, self.repeats, prototypes
            )
            rows.append(
                {"masks": B, "step_s": round(s, 5), "microseconds_per_mask": round(1e6 * s / B, 3)}
            )
        # the start of a training holds most memory
        start = CodebookConfig(n_prototypes=self.prototypes, steps=3)
        fit_codebook(features, labels, start, seed=self.seed)
        return rows, peak_memory_mb()

    def problem(self, n_masks: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Prototypes [N, d], unit features [B, d], labels [B].

        As many labels as prototypes, whose directions have a common part, so that push acts; every
        mask is labelled, which is the most pairs there can be.
        """
        n, dim = self.prototypes, self.dim
        rng = torch.Generator().manual_seed(self.seed)
        directions = torch.randn(1, dim, generator=rng) + 0.5 * torch.randn(n, dim, generator=rng)
        labels = torch.randint(n, (n_masks,), generator=rng)
        features = directions[labels]
        features += 0.5 * torch.randn(n_masks, dim, generator=rng)
        features /= features.norm(dim=1, keepdim=True)
        return directions + 0.3 * torch.randn(n, dim, generator=rng), features, labels

    @staticmethod
    def describe(result: dict) -> str:
        r = result
        caption = (
            f"CCL losses, forward + backward, N = {r['prototypes']}, d = {r['dim']},"
            f" {r['threads']} threads, median of {r['repeats']}. All pairs of"
            f" {r['masks']:,} masks: {r['all_pairs_s']:.3f} s,"
            f" {r['times_faster']:.0f} times the histogram form. {r['steps']:,} training"
            f" steps on {r['scene_masks']:,} masks: {r['training_s']:.1f} s. Peak memory"
            f" at the most masks, data and training included: {r['peak_memory_mb']:,} MB."
        )
        first = {
            "masks": r["masks"],
            "step_s": r["histogram_s"],
            "microseconds_per_mask": 1e6 * r["histogram_s"] / r["masks"],
        }
        rows = [
            [f"{b['masks']:,}", f"{1e3 * b['step_s']:.1f}", f"{b['microseconds_per_mask']:.2f}"]
            for b in (first, *r["growing"])
        ]
        return f"{caption}\n\n" + markdown_table(
            ["masks", "histogram form, ms", "µs per mask"], rows
        )

    @staticmethod
    def summarise(result: dict) -> list[tuple[str, str, str]]:
        r, largest = result, result["growing"][-1]
        return [
            (
                f"CCL losses of {r['masks']:,} masks, {r['prototypes']} prototypes, forward and"
                " backward",
                f"{1e3 * r['histogram_s']:.1f} ms, {r['times_faster']:.0f} × as fast as all pairs",
                "≥ 100 ×",
            ),
            (
                f"the same for {largest['masks']:,} masks",
                f"{1e3 * largest['step_s']:.0f} ms, {r['peak_memory_mb'] / 1024:.1f} GB",
                "≤ 2 GB",
            ),
            (
                f"{r['steps']:,} steps on a scene of {r['scene_masks']:,} masks",
                f"{r['training_s']:.0f} s",
                "≤ 30 s",
            ),
        ]


def _measured(
    loss: Callable[[torch.Tensor], torch.Tensor], repeats: int, prototypes: torch.Tensor
) -> tuple[float, float, torch.Tensor]:
    """Median seconds of forward + backward, total, gradient."""
    T = prototypes.clone().requires_grad_()

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        total = loss(T)
        (gradient,) = torch.autograd.grad(total, T)
        return total, gradient

    seconds, (total, gradient) = timed(step, repeats)
    return seconds, float(total.detach()), gradient
