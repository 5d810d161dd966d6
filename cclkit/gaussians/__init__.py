"""Gaussians: parameters and PLY files, the rasteriser, blending weights, RGB reconstruction."""

from .blending import blending_weights
from .model import Gaussians, load_ply, save_ply
from .rasterize import Projection, Rendering, project, rasterize, splat_features

__all__ = [
    "Gaussians",
    "Projection",
    "Rendering",
    "blending_weights",
    "load_ply",
    "project",
    "rasterize",
    "save_ply",
    "splat_features",
]
