"""Blending: what sampled pixels of all views are made of, for a field that is trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from ...gaussians.blending_cache import BlendingCache, build_blending_cache, open_blending_cache
from ...progress import quiet
from ..stage import Stage
from .gaussians import gaussians
from .masks import label_maps

if TYPE_CHECKING:
    from ..engine import Engine

SETTINGS = ("top_k", "pixels_per_mask", "area_weighted")
"""Settings of the field that decide what the cache holds."""


def build(work: Engine, folder: Path) -> dict:
    """``view``, ``pixel``, ``ids``, ``weights``, ``residual`` (``.npy``, a row per sampled pixel);
    ``cache.json``: what it was made from; while built, ``parts/VIEW.npz``.
    """
    c, views = work.config.field, work.scene.training_views
    maps = {v.name: label_maps(work, v) for v in views}
    with tqdm(total=len(views), desc="blending", disable=quiet()) as bar:
        cache = build_blending_cache(
            folder,
            gaussians(work),
            views,
            maps,
            **{k: getattr(c, k) for k in SETTINGS},
            seed=work.config.seed,
            progress=bar.update,
        )
    return {"n_pixels": len(cache), "truncation": cache.truncation()}


def blending_cache(work: Engine) -> BlendingCache:
    """Sampled pixels of the training views and what they are made of."""
    folder = work.ensure("blending").folder
    return work.keep("blending cache", lambda: open_blending_cache(folder))


STAGE = Stage(
    "blending",
    build,
    inputs=lambda config: ("masks", "gaussians"),
    settings=lambda config: {k: getattr(config.field, k) for k in SETTINGS},
    seeded=True,
    needed=lambda config: config.field.mode == "cached",
    told=("n_pixels",),
)
