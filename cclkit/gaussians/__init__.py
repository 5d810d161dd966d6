"""Gaussians: parameters and PLY files, the rasteriser, blending weights, RGB reconstruction."""

from .blending import blending_weights, lift, splat_entries
from .model import Gaussians, load_ply, save_ply
from .rasterize import Projection, Rendering, project, rasterize, splat_features
from .reconstruct import (
    Companion,
    fit_rgb,
    from_depth,
    from_frusta,
    from_points,
    from_scene,
    psnr,
    scene_extent,
    ssim,
)

__all__ = [
    "Companion",
    "Gaussians",
    "Projection",
    "Rendering",
    "blending_weights",
    "fit_rgb",
    "from_depth",
    "from_frusta",
    "from_points",
    "from_scene",
    "lift",
    "load_ply",
    "project",
    "psnr",
    "rasterize",
    "save_ply",
    "scene_extent",
    "splat_entries",
    "splat_features",
    "ssim",
]
