"""SAM2's role by geometry alone: masks warped between views by the depth of the Gaussians. A check
that knows no images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..gaussians.rasterize import rasterize
from ..scenes.correspondence import corresponding_pixels
from .roles import Model, Setup

if TYPE_CHECKING:
    from ..scenes.scene import View

TOLERANCE = 0.03
"""Relative difference up to which two views' depths are the same surface. Rendered depth of a
fitted scene is no better than this at edges.
"""


class GeometricPropagation:
    """Carries what the first view shows of an object's surface: sides that it does not show stay
    empty.
    """

    def __init__(self, depth: Callable[[View], np.ndarray]):
        self.depth = depth  # view -> [H, W] depth along z, 0 = unknown

    def propagate(
        self, views: Sequence[View], masks: np.ndarray, keep: Path | None = None
    ) -> Iterator[tuple[View, np.ndarray]]:
        """Masks [K, H, W] bool of views[0] in every view, pixel by pixel through depth; yields
        (view, [K, H, W] bool).
        """
        first, first_depth = views[0], self.depth(views[0])
        for n, view in enumerate(views):
            if n == 0:
                yield view, masks
                continue
            here, there = corresponding_pixels(
                view.camera, self.depth(view), first.camera, first_depth, tolerance=TOLERANCE
            )
            out = np.zeros((len(masks), view.camera.height, view.camera.width), bool)
            out[:, here[:, 1], here[:, 0]] = masks[:, there[:, 1], there[:, 0]]
            yield view, out


def _build(setup: Setup) -> GeometricPropagation:
    gaussians = setup.gaussians()

    def depth(view: View) -> np.ndarray:  # [H, W]
        with torch.no_grad():
            seen = rasterize(gaussians, view.camera)
        return torch.where(seen.alpha > 0.5, seen.depth, 0).numpy()

    return GeometricPropagation(depth)


TRACKER = Model(_build, lambda settings: "geometric tracks", inputs=("gaussians",))
