"""What the method asks of SAM, SAM2 and CLIP: propose masks, carry masks, embed masks and texts.

A stage only sees these interfaces. `foundation` implements them with the public models, with small
bundled ones, and with a simulation from ground truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from ..scenes.scene import View


@dataclass(frozen=True)
class Candidates:
    """What a mask generator found in one view, before any filtering."""

    masks: np.ndarray  # [M, H, W] bool
    output: np.ndarray  # [M] int: which of SAM's three outputs, 0 subpart, 1 part, 2 whole
    predicted_iou: np.ndarray  # [M] float64 in 0..1
    stability: np.ndarray  # [M] float64 in 0..1
    # prompts, outputs, and what the generator's own filters removed, for the notebooks
    counts: dict[str, int] = field(default_factory=dict)


class MaskProposer(Protocol):
    """SAM's role."""

    def propose(self, view: View) -> Candidates: ...


class MaskPropagator(Protocol):
    """SAM2's role."""

    def propagate(
        self, views: Sequence[View], masks: np.ndarray, keep: Path | None = None
    ) -> Iterator[tuple[View, np.ndarray]]:
        """Carry the masks [K, H, W] bool of views[0] to every view, in order; yields (view, [K, H,
        W] bool).

        ``keep``: a folder for what is worth keeping of a long propagation, so that a stopped one
        goes on.
        """
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

    def unknown_words(self, phrase: str) -> list[str]:
        """Words of a phrase that mean nothing to the model."""
        ...
