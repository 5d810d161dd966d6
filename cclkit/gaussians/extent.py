"""How large a scene is, judged by its cameras and its Gaussians."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import GaussiansError
from ..scenes.scene import View
from .model import Gaussians


def focus_distance(views: Sequence[View]) -> float:
    """Median distance from the cameras to the point nearest to all optical axes."""
    centres = np.stack([v.camera.centre for v in views])
    axes = np.stack([v.camera.world_to_camera[2, :3] for v in views])
    spread = _camera_spread(views)
    fallback = max(10 * spread, 1.0 if spread == 0 else 0.0)
    # projects onto the plane across each axis
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    A = across.sum(axis=0)
    if np.linalg.eigvalsh(A)[0] < 1e-3 * len(views):  # (nearly) parallel axes meet nowhere
        return fallback
    meeting = np.linalg.solve(A, np.einsum("nij,nj->i", across, centres))
    ahead = ((meeting - centres) * axes).sum(axis=1)
    return float(np.median(ahead)) if np.median(ahead) > 0 else fallback


def _camera_spread(views: Sequence[View]) -> float:
    centres = np.stack([v.camera.centre for v in views])
    return float(np.linalg.norm(centres - centres.mean(axis=0), axis=1).max())


def scene_extent(gaussians: Gaussians, views: Sequence[View], *, depth_share: float = 0.3) -> float:
    """The length that learning rates and size limits of densification are relative to (world
    units).

    1.1 times the largest distance of a camera from their centre, as in 3D Gaussian Splatting, but
    at least ``depth_share`` of the median depth of the Gaussians: with cameras millimetres apart
    (video, RGB-D) the first alone would freeze the means and split every Gaussian.
    """
    means = gaussians.means.detach().double().cpu().numpy()
    depths = []
    for view in views:
        xy, z = view.camera.project(means)
        seen = (
            (z > 0.01)
            & (xy >= 0).all(axis=1)
            & (xy < [view.camera.width, view.camera.height]).all(axis=1)
        )
        depths.append(z[seen])
    depths = np.concatenate(depths)
    if not len(depths):
        raise GaussiansError(
            f"none of {len(means)} Gaussians is in front of any of {len(views)} cameras; check the"
            " poses"
        )
    return max(1.1 * _camera_spread(views), depth_share * float(np.median(depths)))
