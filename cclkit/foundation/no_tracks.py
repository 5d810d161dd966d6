"""SAM2's role left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..scenes.scene import View
from .roles import Model


class NoPropagation:
    """Carries nothing: only the first view's masks get a track label."""

    def propagate(
        self, views: Sequence[View], masks: np.ndarray, keep=None
    ) -> Iterator[tuple[View, np.ndarray]]:
        for n, view in enumerate(views):
            nothing = np.zeros((len(masks), view.camera.height, view.camera.width), bool)
            yield view, masks if n == 0 else nothing


TRACKER = Model(lambda setup: NoPropagation(), lambda settings: "no tracks")
