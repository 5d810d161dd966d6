"""Pixels of two views that see the same surface, by the depth of both."""

from __future__ import annotations

import numpy as np

from ..errors import EvaluationError


def corresponding_pixels(
    camera_a, depth_a, camera_b, depth_b, *, tolerance: float = 0.01, stride: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Pixel pairs that see the same surface point.

    Pixels of view a (every ``stride``-th row and column) are carried into view b by their depth. A
    pair counts if the point falls into view b, in front of it, and its depth there equals the depth
    map of b at that pixel within ``tolerance`` (relative); otherwise something hides it.

    Args:
        camera_a, camera_b: scenes.Camera.
        depth_a [Ha, Wa], depth_b [Hb, Wb]: depth along z in world units, 0 = no measurement.
    Returns:
        pixels_a, pixels_b: [n, 2] int64 (x, y), in row order of view a.
    Raises:
        EvaluationError: a depth map of another size, a stride below 1, a tolerance not positive.
    """
    for name, camera, depth in (("depth_a", camera_a, depth_a), ("depth_b", camera_b, depth_b)):
        if np.shape(depth) != (camera.height, camera.width):
            raise EvaluationError(
                f"{name}: shape {np.shape(depth)}, its camera is {camera.height} x {camera.width}"
                " (rows x columns); pass the depth of that view"
            )
    if stride < 1 or not tolerance > 0:
        raise EvaluationError(
            f"stride {stride} and tolerance {tolerance}: expected stride >= 1 and tolerance > 0"
        )
    depth_a, depth_b = np.asarray(depth_a, np.float64), np.asarray(depth_b, np.float64)
    points = camera_a.backproject(depth_a)[::stride, ::stride].reshape(-1, 3)
    y, x = np.mgrid[: camera_a.height : stride, : camera_a.width : stride]
    pixels_a = np.stack([x.ravel(), y.ravel()], axis=1)
    known = depth_a[::stride, ::stride].ravel() > 0
    position, z = camera_b.project(points)
    ahead = known & (z > 0)
    inside = (
        ahead
        & (position >= 0).all(axis=1)
        & (position < [camera_b.width, camera_b.height]).all(axis=1)
    )
    # pixel centres lie at +0.5
    pixels_b = np.floor(np.where(inside[:, None], position, 0)).astype(np.int64)
    there = depth_b[pixels_b[:, 1], pixels_b[:, 0]]
    same = inside & (there > 0) & (np.abs(z - there) <= tolerance * there)
    return pixels_a[same], pixels_b[same]
