"""Gaussians: the RGB reconstruction of the scene."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...files import save_npz
from ...gaussians.densify import Densification
from ...gaussians.model import Gaussians, load_ply, save_ply
from ...gaussians.reconstruct import FitConfig, fit_rgb
from ...gaussians.start import from_scene
from ...progress import quiet
from ...settings import as_dict
from ..stage import Stage

if TYPE_CHECKING:
    from ...config import Config
    from ..engine import Engine


def build(work: Engine, folder: Path) -> dict:
    """``gaussians.ply`` in the layout of 3DGS, ``history.npz``."""
    g, how = start(work)
    history: dict = {}
    if work.config.gaussians.iterations:
        g, history = fit_rgb(
            g.to(work.config.device),
            work.scene.training_views,
            fit_config(work.config),
            checkpoint=folder / "checkpoint.pt",
            progress=not quiet(),
        )
    save_gaussians(folder, g, history)
    return {"start": how, "n_gaussians": len(g)}


def start(work: Engine) -> tuple[Gaussians, str]:
    """Gaussians to start from, and how they were made."""
    c = work.config.gaussians
    return from_scene(
        work.scene,
        how=c.init,
        max_gaussians=c.start_gaussians,
        sh_degree=c.sh_degree,
        seed=work.config.seed,
    )


def fit_config(config: Config) -> FitConfig:
    """How they are fitted."""
    c = config.gaussians
    return FitConfig(
        iterations=c.iterations,
        seed=config.seed,
        sh_degree=c.sh_degree,
        densification=Densification(max_gaussians=c.max_gaussians) if c.densify else None,
    )


def save_gaussians(folder: Path, gaussians: Gaussians, history: dict) -> None:
    """The two files of a reconstruction. Times are recorded once, beside the artefact, so that its
    content repeats bit for bit.
    """
    save_ply(gaussians.to("cpu"), folder / "gaussians.ply")
    kept = {k: np.asarray(v) for k, v in history.items() if k != "seconds"}
    save_npz(folder / "history.npz", **kept)


def stage_with_gaussians(config: Config) -> str:
    """The stage that makes the Gaussians: field where they are trained together."""
    return "field" if config.field.mode == "joint" else "gaussians"


def gaussians(work: Engine) -> Gaussians:
    """The Gaussians of the scene: those that the field was trained on, or with."""
    return load_gaussians(work, stage_with_gaussians(work.config))


def load_gaussians(work: Engine, stage: str) -> Gaussians:
    """The Gaussians that a stage made, read once."""
    read = lambda: load_ply(work.ensure(stage).path("gaussians.ply"))
    return work.keep(f"{stage}/gaussians.ply", read)


def reconstruction_history(work: Engine) -> dict[str, np.ndarray]:
    """Curves of the reconstruction: history.npz."""
    return work.read(stage_with_gaussians(work.config), "history.npz", dict)


def _needed(config: Config) -> bool:
    """Not where the field makes the Gaussians, unless they carry the masks."""
    return config.field.mode != "joint" or config.front_end.propagation == "geometric"


STAGE = Stage(
    "gaussians",
    build,
    settings=lambda config: as_dict(config.gaussians) | {"device": config.device},
    seeded=True,
    needed=_needed,
    told=("start", "n_gaussians"),
)
