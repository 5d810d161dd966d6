"""Which models stand behind masks, tracks and features: a table a role, one line a model."""

from __future__ import annotations

from dataclasses import dataclass, field as nested, replace
from typing import Annotated, Any

from ..errors import SceneError
from ..settings import OneOf
from . import clip, geometric, no_tracks, sam, sam2, simulated
from .clip import ClipConfig
from .roles import FrontEnd, Model, Setup
from .sam import SamConfig
from .sam2 import Sam2Config
from .simulated import SimulationConfig

PROPOSERS: dict[str, Model] = {"sam": sam.PROPOSER, "simulated": simulated.PROPOSER}
"""What proposes masks."""
TRACKERS: dict[str, Model] = {
    "sam2": sam2.TRACKER,
    "simulated": simulated.TRACKER,
    "geometric": geometric.TRACKER,
    "none": no_tracks.TRACKER,
}
"""What carries masks from view to view."""
ENCODERS: dict[str, Model] = {"clip": clip.ENCODER, "simulated": simulated.ENCODER}
"""What embeds masks and texts."""


@dataclass(frozen=True)
class FrontEndConfig:
    """Which models stand behind masks, tracks and features."""

    masks: Annotated[str, OneOf(table=PROPOSERS)] = "sam"
    """What proposes masks: "sam" or "simulated" (ground truth with dialled-in imperfection). Paper:
    SAM.
    """
    features: Annotated[str, OneOf(table=ENCODERS)] = "clip"
    """What embeds masks and texts: "clip" or "simulated". Paper: CLIP."""
    sam: SamConfig = nested(default_factory=SamConfig)
    """Masks, with masks "sam"."""
    clip: ClipConfig = nested(default_factory=ClipConfig)
    """Features, with features "clip"."""
    propagation: Annotated[str, OneOf(table=TRACKERS)] = "sam2"
    """What carries the first view's masks to the others: "sam2", "simulated" (from ground truth),
    "geometric" (warped by the depth of the Gaussians) or "none" (only the first view's masks get
    labels). Paper: SAM2.
    """
    sam2: Sam2Config = nested(default_factory=Sam2Config)
    """Tracks, with propagation "sam2"."""
    simulation: SimulationConfig = nested(default_factory=SimulationConfig)
    """Settings of the simulated front end."""


ROLES = {
    "proposer": (PROPOSERS, "masks"),
    "tracker": (TRACKERS, "propagation"),
    "encoder": (ENCODERS, "features"),
}
"""Role -> its table, and the setting that names an entry of it."""


def model_of(settings: FrontEndConfig, role: str) -> Model:
    """What takes a role ("proposer", "tracker" or "encoder") under these settings."""
    table, setting = ROLES[role]
    return table[getattr(settings, setting)]


def build_front_end(setup: Setup) -> FrontEnd:
    """The front end of a run. A model that is asked for raises ModelError when its weights cannot
    be used.

    Raises SceneError for a simulation without ground truth.
    """
    models = {role: model_of(setup.settings, role) for role in ROLES}
    pretended = [m.label(setup.settings) for m in models.values() if m.truth]
    if pretended and setup.scene.ground_truth is None:
        raise SceneError(
            f"{setup.scene.path}: {' and '.join(pretended)} are made from ground truth ids under"
            " these settings, and the scene has none; use --set front_end.masks=sam,"
            " front_end.features=clip and front_end.propagation=sam2 (with a fetched checkpoint)"
            " or =none (only the first view's masks get track labels), or a scene that has"
            " ground_truth/ or instances/"
        )

    def build(role: str) -> Any:
        model = models[role]
        # what a model reads it has to name: it counts for keys
        allowed = setup if model.inputs else replace(setup, gaussians=None)
        return model.build(allowed)

    label = ", ".join(m.label(setup.settings) for m in models.values())
    return FrontEnd(
        "simulated front end" if len(pretended) == len(models) else label,
        lambda: build("proposer"),
        lambda: build("tracker"),
        lambda: build("encoder"),
    )
