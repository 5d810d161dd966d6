"""What the method asks of SAM, SAM2 and CLIP: propose masks, carry masks, embed masks and texts.

A stage only sees these interfaces. `foundation` implements them with the public models, with small
bundled ones, and with a simulation from ground truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import MaskError
from ..rle import pack_masks, unpack_masks
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

    def pack(self) -> dict[str, np.ndarray]:
        """Arrays to store, the masks as run lengths."""
        counts = {f"count_{k}": np.int64(v) for k, v in self.counts.items()}
        return (
            pack_masks(self.masks)
            | counts
            | {
                "shape": np.array(self.masks.shape[1:], np.int64),
                "output": self.output,
                "predicted_iou": self.predicted_iou,
                "stability": self.stability,
            }
        )

    @classmethod
    def unpack(cls, arrays: dict[str, np.ndarray]) -> Candidates:
        """Inverse of `pack`. Raises MaskError for run lengths that don't fill the view or columns
        of another length.
        """
        counts = {
            k.removeprefix("count_"): int(v) for k, v in arrays.items() if k.startswith("count_")
        }
        masks = unpack_masks(arrays, tuple(arrays["shape"].tolist()))
        columns = [arrays[k] for k in ("output", "predicted_iou", "stability")]
        if bad := [
            c.shape for c in columns if c.shape != (len(masks),) or c.dtype.kind not in "if"
        ]:
            raise MaskError(f"a column of {bad[0]} for {len(masks)} candidates; recompute them")
        return cls(masks, *columns, counts)


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
