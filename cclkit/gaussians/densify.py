"""Densification: Gaussians are cloned, split and pruned while they are fitted (Kerbl et al. 2023).

The work is done by ``gsplat.strategy.DefaultStrategy``, which is plain torch and runs with the CPU
rasteriser as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import GaussiansError, needed


@dataclass(frozen=True)
class Densification:
    """When Gaussians are added and removed. Defaults: 3DGS, as gsplat has them, but for those that
    count iterations: they suit 30,000 steps and have to adapt to shorter fits.
    """

    max_gaussians: int | None = None
    """Growing stops once this many are reached, with one step's overshoot; pruning goes on."""
    grow_gradient: float = 2e-4
    """Mean gradient of a Gaussian's position, in units of half the image, above which it is cloned
    or split; 4e-4 gives fewer Gaussians.
    """
    prune_opacity: float = 0.005
    """Gaussians below this opacity are removed."""
    refine_every: int = 100
    """Iterations from one refinement to the next."""
    refine_start: int | None = None
    """First iteration that refines; None: 500, or a tenth of a shorter fit, because the statistics
    need a pass over the views first.
    """
    refine_stop: int | None = None
    """Iteration from which on nothing is refined; None: half of the fit as in 3DGS, because new
    Gaussians need time to settle.
    """
    reset_every: int = 3000
    """Iterations from one reset of all opacities to the next. They need a few hundred iterations to
    recover, so short fits never reset.
    """


class Densifier:
    """A densification under way, on parameters and optimisers that it changes in place."""

    def __init__(
        self,
        config: Densification,
        params: torch.nn.ParameterDict,  # by the names that gsplat looks for
        optimizers: dict[str, torch.optim.Optimizer],  # one a parameter
        *,
        iterations: int,
        extent: float,  # of the scene, world units
    ):
        self.config, self.params, self.optimizers = config, params, optimizers
        self.changed = {"cloned": 0, "split": 0, "pruned": 0}
        self.strategy = _counting_strategy(config, iterations, self.changed)
        self.strategy.check_sanity(params, optimizers)
        self.state = self.strategy.initialize_state(scene_scale=extent)

    def before_backward(self, step: int, info: dict) -> None:
        """To be called with what `rasterize` said of the picture, before gradients are computed."""
        self.strategy.step_pre_backward(self.params, self.optimizers, self.state, step, info)

    def after_step(self, step: int, info: dict) -> None:
        """To be called after the optimisers have moved the parameters.

        Raises GaussiansError if no Gaussian is left.
        """
        c, strategy = self.config, self.strategy
        if c.max_gaussians is not None:
            full = len(self.params["means"]) >= c.max_gaussians
            strategy.grow_grad2d = math.inf if full else c.grow_gradient
        strategy.step_post_backward(self.params, self.optimizers, self.state, step, info)
        # gsplat 1.5.3 never resets: `step % reset_every == 0 & step > 0` is always False in Python
        if step > 0 and step % c.reset_every == 0 and step < strategy.refine_stop_iter:
            self._reset_opacities()
        if len(self.params["means"]) == 0:
            raise GaussiansError(
                f"every Gaussian was pruned by iteration {step}; lower prune_opacity or check the"
                " poses"
            )

    def take_changes(self) -> dict[str, int]:
        """How many Gaussians were cloned, split and pruned since this was asked last."""
        taken = dict(self.changed)
        self.changed.update(dict.fromkeys(self.changed, 0))
        return taken

    def state_dict(self) -> dict[str, Any]:
        """What is known of the Gaussians so far; parameters and optimisers are the caller's."""
        return {"changed": dict(self.changed), "state": self.state}

    def load_state_dict(self, kept: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.changed.update(kept["changed"])
        self.state = kept["state"]

    def _reset_opacities(self) -> None:
        from gsplat.strategy.ops import reset_opa

        reset_opa(
            params=self.params,
            optimizers=self.optimizers,
            state=self.state,
            value=self.config.prune_opacity * 2,
        )


def _counting_strategy(config: Densification, iterations: int, changed: dict[str, int]):
    with needed("gsplat"):
        from gsplat.strategy import DefaultStrategy  # here: slow to import

    class Counting(DefaultStrategy):
        """Keeps the numbers that DefaultStrategy can only print."""

        def _grow_gs(self, *args):
            cloned, split = super()._grow_gs(*args)
            changed["cloned"] += cloned
            changed["split"] += split
            return cloned, split

        def _prune_gs(self, *args):
            pruned = super()._prune_gs(*args)
            changed["pruned"] += pruned
            return pruned

    start, stop = config.refine_start, config.refine_stop
    return Counting(
        grow_grad2d=config.grow_gradient,
        prune_opa=config.prune_opacity,
        refine_start_iter=min(500, iterations // 10) if start is None else start,
        refine_stop_iter=iterations // 2 if stop is None else stop,
        refine_every=config.refine_every,
        reset_every=config.reset_every,
    )
