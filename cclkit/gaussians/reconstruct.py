"""RGB reconstruction: Gaussians fitted to photographs.

Source of the recipe (loss, learning rates, densification): Kerbl et al. 2023.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import GaussiansError
from ..files import atomic_write
from ..scenes.scene import View
from ..settings import NOT_NEGATIVE, POSITIVE, OneOf, at_most
from .densify import Densification, Densifier
from .extent import scene_extent
from .model import SH_SIZES, Gaussians
from .quality import psnr, ssim
from .rasterize import Rendering, rasterize


@dataclass(frozen=True)
class GaussiansConfig:
    """RGB reconstruction."""

    init: Annotated[str, OneOf("auto", "depth", "points", "random")] = "auto"
    """"points" (the scene's points, what 3DGS starts from), "depth" (back-projected depth),
    "random", or "auto": depth, else points, else random. Paper does not say (3DGS starts from
    points; ours: auto, because rendered scenes have depth, which needs fewer steps).
    """
    start_gaussians: Annotated[int, POSITIVE] = 12_000
    """Number of Gaussians to start from at most, by sampling depth, points or random places. Paper
    does not say (ours: 12,000 in mini, because its photographs are small and a CPU has to keep up).
    """
    max_gaussians: Annotated[int, POSITIVE] = 30_000
    """Densification stops growing once this many are reached, with one step's overshoot. Paper does
    not say (ours: 30,000 in mini, because its photographs are small and a CPU has to keep up).
    """
    iterations: Annotated[int, NOT_NEGATIVE] = 700
    """Optimisation steps, one view each. Paper: 30,000 (jointly with semantics)."""
    sh_degree: Annotated[int, NOT_NEGATIVE, at_most(3)] = 1
    """Degree of the spherical harmonics. Paper does not say (3DGS uses 3; ours: 1 in mini, because
    that saves 3/4 of the coefficients).
    """
    densify: bool = True
    """Clone, split and prune as 3DGS does (gsplat's DefaultStrategy). Paper does not say (ours: on,
    because it builds on 3DGS).
    """


# --------------------------------------------------------------------------- the recipe of 3DGS
SSIM_WEIGHT = 0.2
"""Loss: (1 - w) L1 + w (1 - SSIM)."""
LEARNING_RATES = {
    "means": 1.6e-4,  # times the extent of the scene
    "scales": 5e-3,
    "quats": 1e-3,
    "opacities": 5e-2,
    "sh0": 2.5e-3,
    "shN": 1.25e-4,
}
"""Adam's rates, by the names that gsplat's strategies look for."""
MEANS_FINAL = 0.01
"""The rate of the means decays exponentially, to this share of it."""
ADAM_EPS = 1e-15
"""Gradients per Gaussian are tiny; the usual 1e-8 would damp them."""
SH_EVERY = 1000
"""Iterations from one band of spherical harmonics to the next; a quarter of a shorter fit."""

HISTORY = ("iteration", "loss", "psnr", "ssim", "count", "cloned", "split", "pruned", "seconds")
_NO_CHANGES = {"cloned": 0, "split": 0, "pruned": 0}


@dataclass(frozen=True)
class FitConfig:
    """How Gaussians are fitted to photographs."""

    iterations: int
    """Steps, one view each."""
    seed: int
    """Decides the order of views and where split Gaussians go. Same seed, same machine and same
    number of torch threads: same bits.
    """
    sh_degree: int | None = None
    """Highest degree of spherical harmonics to fit, at most that of the Gaussians; None: theirs.
    Bands are switched on one by one, see `SH_EVERY`.
    """
    densification: Densification | None = Densification()
    """How Gaussians are added and removed; None: their number stays."""
    log_every: int = 50
    """Iterations that one entry of the history is a mean of."""


@dataclass
class JointFeatures:
    """Feature channels that `fit_rgb` trains beside the colours; densification carries them
    along.
    """

    features: Tensor  # [G, C]; after the fit a row for each Gaussian that it returned
    # view, rendered features [H, W, C] -> what is added to the colour's loss, and a score
    loss: Callable[[View, Tensor], tuple[Tensor, float]]
    optimisers: tuple[torch.optim.Optimizer, ...]  # of whatever else the loss trains
    lr: float
    betas: tuple[float, float]
    into_geometry: bool  # whether this loss also moves, shapes and densifies the Gaussians
    # a value per iteration
    curves: dict[str, list[float]] = field(default_factory=lambda: {"loss": [], "score": []})

    def trained(self) -> list[Tensor]:
        """What its optimisers train, in order."""
        return [p for o in self.optimisers for group in o.param_groups for p in group["params"]]


def fit_rgb(
    gaussians: Gaussians,
    views: Sequence[View],
    config: FitConfig,
    *,
    joint: JointFeatures | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 1000,
    progress: bool = True,
) -> tuple[Gaussians, dict[str, list]]:
    """Fit Gaussians to photographs, one random view per iteration; on the device of the Gaussians.

    joint: features that are trained beside the colours; it holds the result.
    checkpoint: file to which everything is written every ``checkpoint_every`` iterations. The same
        call goes on from it if it is there (on the CPU to the same bits), and deletes it at the
        end.

    Returns the fitted Gaussians (detached) and the history: lists iteration, loss (that of the
    joint features included), psnr (dB) and ssim of the training views, count, and how many were
    cloned, split and pruned since the last entry, seconds. The global random state is left as it
    was. Raises GaussiansError for no views, when training diverges, or for a damaged checkpoint.
    """
    gaussians = gaussians.detach().validate()
    if not views:
        raise GaussiansError("no views to fit; give at least one training view")
    degree = _degree(gaussians, config)
    if config.iterations < 1:
        return gaussians, {name: [] for name in HISTORY}
    device, every = gaussians.means.device, checkpoint_every
    trainer = Trainer(gaussians, views, config, joint)
    # densification draws from torch's global generator: seed it, and give it back as it was
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        if checkpoint is not None and checkpoint.exists():
            _resume(trainer, checkpoint)
        bar = tqdm(
            range(trainer.iteration, config.iterations),
            desc="fit RGB",
            initial=trainer.iteration,
            total=config.iterations,
            disable=not progress,
        )
        for step in bar:
            trainer.step()
            if checkpoint is not None and (step + 1) % every == 0 and step + 1 < config.iterations:
                _save(trainer, checkpoint)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    if joint is not None:
        joint.features = trainer.params["features"].detach()
    result = trainer.gaussians().detach()
    if degree < gaussians.sh_degree:  # keep the stored size: a PLY of one scene has one layout
        missing = SH_SIZES[gaussians.sh_degree] - SH_SIZES[degree]
        empty = result.sh.new_zeros((len(result), missing, 3))
        result = result.with_sh(torch.cat([result.sh, empty], dim=1))
    return result.validate(), trainer.history


class Trainer:
    """A fit under way: what it changes, and one step of it.

    `fit_rgb` is the loop around it. Densification draws from torch's global generator, whose state
    is a part of `state_dict`.
    """

    def __init__(
        self,
        gaussians: Gaussians,
        views: Sequence[View],
        config: FitConfig,
        joint: JointFeatures | None = None,
    ):
        self.config, self.views, self.joint = config, views, joint
        self.degree = _degree(gaussians, config)
        self.device = gaussians.means.device
        extent = scene_extent(gaussians, views)
        self.images = [torch.from_numpy(v.image().copy()) for v in views]  # [H, W, 3] uint8
        self.rates = LEARNING_RATES | {"means": LEARNING_RATES["means"] * extent}
        self.params = _parameters(gaussians, self.degree)
        self.optimizers = {
            name: torch.optim.Adam([p], lr=self.rates[name], eps=ADAM_EPS)
            for name, p in self.params.items()
        }
        if joint is not None:
            features = joint.features.detach().to(self.device).clone()
            self.params["features"] = torch.nn.Parameter(features)
            self.optimizers["features"] = torch.optim.Adam(
                [self.params["features"]], lr=joint.lr, betas=joint.betas
            )
        self.densifier = None
        if config.densification is not None:
            self.densifier = Densifier(
                config.densification,
                self.params,
                self.optimizers,
                iterations=config.iterations,
                extent=extent,
            )
        self.iteration = 0
        self.history: dict[str, list] = {name: [] for name in HISTORY}
        self._rng = torch.Generator().manual_seed(config.seed)
        self._queue: list[int] = []  # views whose turn comes before any comes again
        self._sums = [0.0, 0.0, 0.0, 0]  # loss, PSNR, SSIM and their number since the last entry
        self._spent, self._began = 0.0, time.perf_counter()  # seconds before this process, and now

    def gaussians(self) -> Gaussians:
        """The Gaussians as they are now, on the path of the gradient."""
        p = self.params
        sh = torch.cat([p["sh0"], p["shN"]], dim=1) if self.degree else p["sh0"]
        return Gaussians(p["means"], p["quats"], p["scales"], p["opacities"], sh)

    def step(self) -> None:
        """Render one view, compare it with its photograph, and move everything a little.

        Raises GaussiansError when the loss is not finite or no Gaussian is left.
        """
        step, total = self.iteration, self.config.iterations
        rate = self.rates["means"] * MEANS_FINAL ** (step / total)
        self.optimizers["means"].param_groups[0]["lr"] = rate
        view, target = self._next_view()
        out = self._render(view)
        similarity = ssim(out.color, target)
        loss = (1 - SSIM_WEIGHT) * F.l1_loss(out.color, target) + SSIM_WEIGHT * (1 - similarity)
        if self.joint is not None:
            loss = loss + self._joint_loss(view, out)
        if self.densifier is not None:
            self.densifier.before_backward(step, out.info)
        loss.backward()
        quality = psnr(out.color.detach().clamp(0, 1), target)
        self._count(loss, quality, similarity)
        for optimizer in self._all_optimizers():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.densifier is not None:
            self.densifier.after_step(step, out.info)
        self.iteration += 1
        if self.iteration % self.config.log_every == 0 or self.iteration == total:
            self._log()

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the rest of the fit."""
        kept = {
            "iteration": self.iteration,
            "history": self.history,
            "queue": self._queue,
            "sums": self._sums,
            "spent": self._spent + time.perf_counter() - self._began,
            "params": {name: p.detach() for name, p in self.params.items()},
            "optimizers": [o.state_dict() for o in self._all_optimizers()],
            "rng": self._rng.get_state(),
            "global_rng": torch.get_rng_state(),
        }
        if self.densifier is not None:
            kept["densifier"] = self.densifier.state_dict()
        if self.joint is not None:
            kept["curves"] = self.joint.curves
            kept["trained"] = [p.detach() for p in self.joint.trained()]
        return kept

    def load_state_dict(self, kept: dict[str, Any]) -> None:
        """Go on from `state_dict`; sets torch's global generator too."""
        self.iteration, self.history = kept["iteration"], kept["history"]
        self._queue, self._sums, self._spent = kept["queue"], kept["sums"], kept["spent"]
        for name, p in self.params.items():
            p.data = kept["params"][name]  # in place: optimizers know parameters by identity
        for optimizer, values in zip(self._all_optimizers(), kept["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        if self.densifier is not None:
            self.densifier.load_state_dict(kept["densifier"])
        if self.joint is not None:
            self.joint.curves = kept["curves"]
            for p, value in zip(self.joint.trained(), kept["trained"], strict=True):
                p.data.copy_(value)
        self._rng.set_state(kept["rng"].cpu())
        torch.set_rng_state(kept["global_rng"].cpu())

    def _all_optimizers(self) -> list[torch.optim.Optimizer]:
        return [*self.optimizers.values(), *(self.joint.optimisers if self.joint else ())]

    def _next_view(self) -> tuple[View, Tensor]:
        """A view and its photograph [H, W, 3] in [0, 1]."""
        if not self._queue:
            self._queue = torch.randperm(len(self.views), generator=self._rng).tolist()
        i = self._queue.pop()
        return self.views[i], self.images[i].to(self.device).float() / 255

    def _render(self, view: View) -> Rendering:
        """Colours with the bands that are switched on, and the joint features if their loss may
        move the geometry.
        """
        every = max(1, min(SH_EVERY, self.config.iterations // 4))
        bands = min(self.degree, self.iteration // every)
        joint = self.joint is not None and self.joint.into_geometry
        features = self.params["features"] if joint else None
        return rasterize(self.gaussians(), view.camera, features, sh_degree=bands)

    def _joint_loss(self, view: View, out: Rendering) -> Tensor:
        joint = self.joint
        if not joint.into_geometry:  # apart, so that colours come out as they do without features
            frozen = self.gaussians().detach()
            out = rasterize(frozen, view.camera, self.params["features"], sh_degree=0)
        extra, score = joint.loss(view, out.features)
        joint.curves["loss"].append(float(extra.detach()))
        joint.curves["score"].append(score)
        return extra

    def _count(self, loss: Tensor, quality: Tensor, similarity: Tensor) -> None:
        values = (float(loss.detach()), float(quality), float(similarity.detach()), 1)
        self._sums = [a + b for a, b in zip(self._sums, values)]
        if not math.isfinite(self._sums[0]):
            raise GaussiansError(
                f"the loss is not finite at iteration {self.iteration}; lower the learning rates or"
                " check the poses"
            )

    def _log(self) -> None:
        loss, quality, similarity, n = self._sums
        row = {
            "iteration": self.iteration,
            "loss": loss / n,
            "psnr": quality / n,
            "ssim": similarity / n,
            "count": len(self.params["means"]),
            **(self.densifier.take_changes() if self.densifier else _NO_CHANGES),
            "seconds": round(self._spent + time.perf_counter() - self._began, 3),
        }
        for name, value in row.items():
            self.history[name].append(value)
        self._sums = [0.0, 0.0, 0.0, 0]


def _degree(gaussians: Gaussians, config: FitConfig) -> int:
    stored = gaussians.sh_degree
    degree = stored if config.sh_degree is None else config.sh_degree
    if degree not in range(stored + 1):
        raise GaussiansError(f"sh_degree is {degree}, these Gaussians store degree 0..{stored}")
    return degree


def _parameters(gaussians: Gaussians, degree: int) -> torch.nn.ParameterDict:
    """Copies to be trained, by the names that gsplat's strategies look for."""
    start = {
        "means": gaussians.means,
        "scales": gaussians.log_scales,
        "quats": gaussians.quats,
        "opacities": gaussians.logit_opacities,
        "sh0": gaussians.sh[:, :1],
    }
    if degree:
        start["shN"] = gaussians.sh[:, 1 : SH_SIZES[degree]]
    return torch.nn.ParameterDict(
        {name: torch.nn.Parameter(t.clone().contiguous()) for name, t in start.items()}
    )


def _save(trainer: Trainer, checkpoint: Path) -> None:
    buffer = io.BytesIO()
    torch.save(trainer.state_dict(), buffer)
    atomic_write(checkpoint, buffer.getvalue())


def _resume(trainer: Trainer, checkpoint: Path) -> None:
    try:
        kept = torch.load(checkpoint, map_location=trainer.device, weights_only=True)
        trainer.load_state_dict(kept)
    except Exception as e:  # zipfile, pickle and torch each raise their own on a damaged file
        raise GaussiansError(
            f"{checkpoint}: damaged ({e}); delete it, and the fit starts over"
        ) from e
