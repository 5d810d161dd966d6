"""Foundation models behind three small interfaces: propose masks, propagate masks, embed masks and texts.

A stage only sees these interfaces. `simulated` implements all three from ground truth with
dialled-in imperfection; the real SAM, SAM2 and CLIP adapters implement the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import ConfigError
from ..scenes.scene import Scene, View


@dataclass(frozen=True)
class Candidates:
    """What a mask generator found in one view, before any filtering."""

    masks: np.ndarray  # [M, H, W] bool
    output: np.ndarray  # [M] int: which of SAM's three outputs, 0 subpart, 1 part, 2 whole
    predicted_iou: np.ndarray  # [M] float64 in 0..1
    stability: np.ndarray  # [M] float64 in 0..1


class MaskProposer(Protocol):
    """SAM's role."""

    def propose(self, view: View) -> Candidates: ...


class MaskPropagator(Protocol):
    """SAM2's role."""

    def propagate(self, views: Sequence[View], masks: np.ndarray) -> Iterator[tuple[View, np.ndarray]]:
        """Carry the masks [K, H, W] bool of views[0] to every view, in order; yields (view, [K, H, W] bool)."""
        ...


class ImageTextEncoder(Protocol):
    """CLIP's role."""

    dim: int

    def encode_masks(self, view: View, masks: np.ndarray) -> np.ndarray:
        """Masks [M, H, W] bool of one view -> unit features [M, dim] float32."""
        ...

    def encode_text(self, phrases: Sequence[str]) -> np.ndarray:
        """Phrases -> unit vectors [P, dim] float32."""
        ...


@dataclass(frozen=True)
class FrontEnd:
    """The three models of a run, and how figures must label what they produce."""

    masks: MaskProposer
    propagator: MaskPropagator
    encoder: ImageTextEncoder
    label: str  # e.g. "simulated front end"; printed in every figure's footer


def build_front_end(config: Any, scene: Scene) -> FrontEnd:
    """The front end of a configuration (`FrontEndConfig`). Raises ConfigError for an unknown kind."""
    if config.kind == "simulated":
        from .simulated import simulated_front_end

        return simulated_front_end(scene, config.simulation)
    raise ConfigError(f"front_end.kind={config.kind!r} is unknown; use 'simulated'")
