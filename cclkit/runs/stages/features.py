"""Features: one unit vector a mask, from CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...files import load_npz, save_npz
from ...method.features import view_features
from ...progress import progress
from ...scenes.scene import View
from ..stage import Stage, array_of, view_file
from .masks import masks

if TYPE_CHECKING:
    from ..engine import Engine


def build(work: Engine, folder: Path) -> dict:
    """``VIEW.npz``: float16 unit vectors, a row per mask."""
    n = 0
    for view in progress(work.scene.training_views, "features"):
        path = folder / view_file(view)
        if not path.exists():
            found = view_features(view, masks(work, view), work.front_end.encoder)
            save_npz(path, features=found)
        n += len(load_npz(path)["features"])
    return {"n_features": n, "dim": work.front_end.encoder.dim}


def features(work: Engine, view: View | str) -> np.ndarray:  # [M, d] float32
    """Unit features of a training view's masks."""
    dim, view = work.ensure("features").record["dim"], work.training_view(view)

    def parse(arrays):
        return array_of(arrays["features"], "f", None, dim).astype(np.float32)

    return work.read("features", view_file(view), parse, view=view)


STAGE = Stage(
    "features",
    build,
    inputs=lambda config: ("masks",),
    role="encoder",
    told=("n_features",),
)
