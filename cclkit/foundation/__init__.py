"""Foundation models behind three small interfaces: propose masks, propagate masks, embed masks and
texts.

A stage only sees these interfaces. `simulated` implements all three from ground truth with
dialled-in imperfection; the real SAM, SAM2 and CLIP adapters implement the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from ..config import Config
from ..errors import MaskError, SceneError
from ..rle import pack_masks, unpack_masks
from ..scenes.scene import Scene, View


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


class FrontEnd:
    """The three models of a run, each loaded when it is first asked for, and how figures must label
    what they produce.
    """

    def __init__(
        self,
        label: str,
        masks: Callable[[], MaskProposer],
        propagator: Callable[[], MaskPropagator],
        encoder: Callable[[], ImageTextEncoder],
    ):
        self.label = label  # e.g. "simulated front end"; printed in every figure's footer
        self._load = {"masks": masks, "propagator": propagator, "encoder": encoder}

    @cached_property
    def masks(self) -> MaskProposer:
        return self._load["masks"]()

    @cached_property
    def propagator(self) -> MaskPropagator:
        return self._load["propagator"]()

    @cached_property
    def encoder(self) -> ImageTextEncoder:
        return self._load["encoder"]()


def build_front_end(config: Config, scene: Scene) -> FrontEnd:
    """The front end of a configuration. Raises SceneError for a simulation without ground truth; a
    model that is asked for raises ModelError when its weights cannot be used.
    """
    from .simulated import NoPropagation, simulated_front_end

    f = config.front_end
    roles = {"masks": f.masks, "tracks": f.propagation, "features": f.features}
    pretended = [role for role, by in roles.items() if by == "simulated"]
    if pretended and scene.ground_truth is None:
        raise SceneError(
            f"{scene.path}: {' and '.join(pretended)} are simulated from ground truth ids under"
            " these settings, and the scene has none; use --set front_end.masks=sam,"
            " front_end.features=clip and front_end.propagation=sam2 (with a fetched checkpoint)"
            " or =none (only the first view's masks get track labels), or a scene that has"
            " ground_truth/ or instances/"
        )
    simulated = simulated_front_end(scene, f.simulation) if pretended else None

    def masks():
        if f.masks == "simulated":
            return simulated.masks
        from .sam import sam_masks

        return sam_masks(f.sam, config.masks, config.device)

    def encoder():
        if f.features == "simulated":
            return simulated.encoder
        from .clip import clip_encoder

        return clip_encoder(f.clip, config.device)

    def propagator():
        if f.propagation == "sam2":
            from .sam2 import sam2_propagation

            return sam2_propagation(f.sam2, config.device)
        # "geometric" needs the Gaussians: the pipeline's
        return simulated.propagator if f.propagation == "simulated" else NoPropagation()

    name = lambda kind, model: f"mini-{kind}" if model == "mini" else f"{kind} {model}"  # noqa: E731
    names = {
        "masks": name("SAM", f.sam.model),
        "features": name("CLIP", f.clip.model),
        "tracks": (
            {
                "sam2": (
                    "mini-SAM2"
                    if f.sam2.model == "mini"
                    else f.sam2.model.replace("sam2", "SAM2", 1)
                ),
                "geometric": "geometric tracks",
                "none": "no tracks",
            }.get(f.propagation, "")
        ),
    }
    told = [f"simulated {role}" if by == "simulated" else names[role] for role, by in roles.items()]
    return FrontEnd(
        "simulated front end" if len(pretended) == 3 else ", ".join(told),
        masks,
        propagator,
        encoder,
    )


def identities(config: Config) -> dict[str, str]:
    """What the weights of a configuration are, for artefact keys: digests of their files."""
    from . import models

    f = config.front_end
    used = {
        "sam": (f.masks == "sam", f.sam, models.MINI_SAM),
        "clip": (f.features == "clip", f.clip, models.MINI_CLIP),
        "propagation": (f.propagation == "sam2", f.sam2, models.MINI_SAM2),
    }
    return {
        role: models.identity(c.model, c.checkpoint, bundled)
        for role, (is_used, c, bundled) in used.items()
        if is_used
    }
