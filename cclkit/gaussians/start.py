"""Where a reconstruction starts: Gaussians from points, depth, or what the cameras see."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.spatial import cKDTree

from ..errors import GaussiansError
from ..scenes.scene import Scene, View
from .extent import focus_distance
from .model import SH_SIZES, Gaussians

SH_C0 = 0.28209479177387814
"""The constant SH basis function: colour = SH_C0 * sh[:, 0] + 0.5."""


def from_points(
    points: np.ndarray,  # [P, 3] world units
    colors: np.ndarray,  # [P, 3] uint8
    *,
    sh_degree: int = 3,
    seed: int = 0,
    opacity: float = 0.1,
    max_gaussians: int | None = None,
) -> Gaussians:
    """One round Gaussian per point: sigma = mean distance to the 3 nearest other points.

    With ``max_gaussians``, a random subset of that size (by ``seed``). Raises GaussiansError for no
    points, NaN, or colours that do not match.
    """
    points, colors = np.asarray(points, np.float64), np.asarray(colors)
    _check_points(points, colors, sh_degree)
    if max_gaussians is not None and len(points) > max_gaussians:
        keep = np.sort(np.random.default_rng(seed).permutation(len(points))[:max_gaussians])
        points, colors = points[keep], colors[keep]
    return _round_gaussians(points, colors / 255.0, _spacing(points), opacity, sh_degree)


def from_depth(
    scene: Scene, *, max_gaussians: int, seed: int = 0, sh_degree: int = 3, opacity: float = 0.5
) -> Gaussians:
    """Surface samples from the depth of the training views, at most ``max_gaussians``.

    Random pixels, equally many per view, back-projected: what fills the pictures gets the
    Gaussians, where samples evenly spread in space would spend most of them on far walls (measured
    on the bundled tea party: 23 against 28 dB on held-out views after 700 steps). Raises
    GaussiansError if the views have no depth, SceneError if a file is damaged.
    """
    if max_gaussians < 1:
        raise GaussiansError(f"max_gaussians is {max_gaussians}, expected at least 1")
    views = scene.training_views
    rng = np.random.default_rng(seed)
    points, colors = [], []
    for view in views:
        depth = scene.depth(view)
        measured = np.flatnonzero(depth > 0)
        pick = np.sort(rng.permutation(measured)[: -(-max_gaussians // len(views))])
        points.append(view.camera.backproject(depth).reshape(-1, 3)[pick])
        colors.append(view.image().reshape(-1, 3)[pick])
    if not sum(map(len, points)):
        raise GaussiansError(
            f"{scene.path}: no depth in any of {len(views)} training views; use from_points or"
            " from_frusta"
        )
    return from_points(
        np.concatenate(points),
        np.concatenate(colors),
        sh_degree=sh_degree,
        seed=seed,
        opacity=opacity,
        max_gaussians=max_gaussians,
    )


def from_frusta(
    views: Sequence[View],
    *,
    n_gaussians: int,
    seed: int = 0,
    sh_degree: int = 3,
    opacity: float = 0.1,
) -> Gaussians:
    """Random Gaussians in what the cameras see, for scenes with neither points nor depth.

    Each takes a random pixel of a random view, its colour, and a depth log-uniform in 0.3..2 times
    the distance at which the optical axes meet (10 camera spreads where they are parallel, at least
    1 world unit for a single camera).
    """
    if not views:
        raise GaussiansError("no views to place Gaussians in; give at least one")
    rng = np.random.default_rng(seed)
    distance = focus_distance(views)
    which = np.sort(rng.integers(len(views), size=n_gaussians))
    depth = distance * np.exp(rng.uniform(np.log(0.3), np.log(2.0), n_gaussians))
    points, colors = np.empty((n_gaussians, 3)), np.empty((n_gaussians, 3), np.uint8)
    for i, view in enumerate(views):
        mine = np.flatnonzero(which == i)
        if not len(mine):
            continue
        cam = view.camera
        x, y = rng.integers(cam.width, size=len(mine)), rng.integers(cam.height, size=len(mine))
        rays = np.stack(
            [
                (x + 0.5 - cam.K[0, 2]) / cam.K[0, 0],
                (y + 0.5 - cam.K[1, 2]) / cam.K[1, 1],
                np.ones(len(mine)),
            ],
            -1,
        )
        c2w = cam.camera_to_world
        points[mine] = (rays * depth[mine, None]) @ c2w[:3, :3].T + c2w[:3, 3]
        colors[mine] = view.image()[y, x]
    return from_points(points, colors, sh_degree=sh_degree, seed=seed, opacity=opacity)


def from_scene(
    scene: Scene, *, how: str = "auto", max_gaussians: int, seed: int = 0, sh_degree: int = 3
) -> tuple[Gaussians, str]:
    """Where reconstruction starts: "depth", "points", "random" in the frusta, or "auto", the best
    the scene allows in that order.

    Returns the Gaussians and which start was taken. Raises GaussiansError for an unknown start, or
    one the scene has no data for.
    """
    if how == "auto":
        without_depth = "points" if len(scene.points) else "random"
        how = "depth" if scene.depth_folder is not None else without_depth
    settings = dict(seed=seed, sh_degree=sh_degree)
    if how == "depth":
        return from_depth(scene, max_gaussians=max_gaussians, **settings), how
    if how == "points":
        settings["max_gaussians"] = max_gaussians
        return from_points(scene.points, scene.point_colors, **settings), how
    if how == "random":
        return from_frusta(scene.training_views, n_gaussians=max_gaussians, **settings), how
    raise GaussiansError(f"start {how!r} is unknown; use 'auto', 'depth', 'points' or 'random'")


def _check_points(points: np.ndarray, colors: np.ndarray, sh_degree: int) -> None:
    if sh_degree not in range(len(SH_SIZES)):
        raise GaussiansError(f"sh_degree is {sh_degree}, expected 0..{len(SH_SIZES) - 1}")
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
        raise GaussiansError(
            f"points have shape {points.shape}, expected (P, 3) with P > 0; use from_frusta without"
            " points"
        )
    if colors.shape != points.shape:
        raise GaussiansError(
            f"colors have shape {colors.shape}, expected {points.shape}: one RGB per point"
        )
    bad = ~np.isfinite(points).all(axis=1)
    if bad.any():
        raise GaussiansError(
            f"{int(bad.sum())} of {len(points)} points hold NaN or inf, first at"
            f" {int(bad.argmax())}; remove them"
        )


def _spacing(points: np.ndarray) -> np.ndarray:  # [P, 3] -> [P]
    """Mean distance to the 3 nearest other points (fewer if there are fewer); never zero."""
    size = float(np.linalg.norm(points.max(axis=0) - points.min(axis=0))) or 1.0
    k = min(4, len(points))
    if k == 1:
        return np.full(1, 0.01 * size)
    distance, _ = cKDTree(points).query(points, k=k)
    return np.maximum(distance[:, 1:].mean(axis=1), 1e-5 * size)  # duplicates have distance 0


def _round_gaussians(points, colors, sigma, opacity: float, sh_degree: int) -> Gaussians:
    """points [P, 3], colors [P, 3] in [0, 1], sigma [P] -> Gaussians of one opacity."""
    G = len(points)
    sh = torch.zeros((G, SH_SIZES[sh_degree], 3))
    sh[:, 0] = torch.from_numpy((colors - 0.5) / SH_C0)
    return Gaussians(
        means=torch.from_numpy(points).float(),
        quats=torch.tensor([1.0, 0, 0, 0]).repeat(G, 1),
        log_scales=torch.from_numpy(np.log(sigma)).float()[:, None].repeat(1, 3),
        logit_opacities=torch.full((G,), math.log(opacity / (1 - opacity))),
        sh=sh,
    )
