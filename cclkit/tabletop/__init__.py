"""Tabletop: a path-traced benchmark with the structure of LERF-OVS and 3D-OVS and exact ground truth.

``generate(name, out)`` renders one scene from its seed; ``python -m cclkit.tabletop NAME OUT`` does
the same from a shell. Mitsuba 3 is needed for that only, never to use the committed scenes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .recipes import RECIPES
from .recipes import plan as plan_scene

SCENES = tuple(RECIPES)


def render_view(scene, plan, shot, *, spp: int | None = None, seed: int = 0, photo: bool = True):
    """One view of a built scene as an ``export.Rendered`` (black photograph if ``photo`` is False)."""
    from .export import Rendered
    from .layout import LEVELS, nodes
    from .render import buffers, develop, photograph
    from ..scenes.scene import DEPTH_UNIT

    _, rows = nodes(plan)
    b = buffers(scene, shot.camera)
    hit = b.leaf >= 0
    ids = {level: np.where(hit, rows[b.leaf, k], 0).astype(np.int32) for k, level in enumerate(LEVELS)}
    image = np.zeros((*b.depth.shape, 3), np.uint8)
    if photo:
        glass = any(l.material.kind == "glass" for l in plan.leaves)
        image = develop(photograph(scene, shot, spp or plan.spp, seed, glass=glass), shot, plan.exposure, seed)
    return Rendered(shot, image, ids, np.rint(b.depth / DEPTH_UNIT) * DEPTH_UNIT)


def generate(name: str, out: str | Path, *, spp: int | None = None, progress: bool = True) -> Path:
    """Render a benchmark scene below ``out`` (out/lerf_ovs/NAME or out/3d_ovs/NAME); returns its folder.

    ``spp`` overrides the recipe's paths per pixel (the photographs then differ from the committed ones).

    Raises ConfigError for an unknown name and DependencyError without Mitsuba.
    """
    plan = plan_scene(name)
    from .export import write
    from .render import build

    scene = build(plan)
    shots = plan.shots
    if progress:
        from tqdm.auto import tqdm

        shots = tqdm(shots, desc=name, unit="view")
    views = [render_view(scene, plan, s, spp=spp, seed=plan.seed * 1000 + k) for k, s in enumerate(shots)]
    return write(plan, views, Path(out))
