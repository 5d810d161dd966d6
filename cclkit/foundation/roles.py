"""What can take a role of the front end, and the three that a run works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..gaussians.model import Gaussians
    from ..method.interfaces import ImageTextEncoder, MaskPropagator, MaskProposer
    from ..method.masks import MaskConfig
    from ..scenes.scene import Scene
    from .front_end import FrontEndConfig


@dataclass(frozen=True)
class Setup:
    """What a model may be built from."""

    settings: FrontEndConfig
    masks: MaskConfig  # of them the thresholds that a mask generator applies itself
    device: str = "cpu"
    scene: Scene | None = None
    gaussians: Callable[[], Gaussians] | None = None  # the scene's reconstruction
    shared: dict[str, Any] = field(default_factory=dict)  # what several roles are made from


@dataclass(frozen=True)
class Model:
    """One way to take a role: an entry of PROPOSERS, TRACKERS or ENCODERS (`front_end`).

    ``build`` must stand in the file whose code makes the results: that file and what it imports
    count for artefact keys.
    """

    build: Callable[[Setup], Any]  # -> MaskProposer, MaskPropagator or ImageTextEncoder
    label: Callable[[FrontEndConfig], str]  # how figures name it, e.g. "mini-SAM"
    settings: Callable[[Setup], dict] = lambda setup: {}  # what its results depend on
    truth: bool = False  # made from ground truth ids, which a scene must have
    inputs: tuple[str, ...] = ()  # stages it reads through the setup: "gaussians"


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


def kept(settings: dict, *neutral: str) -> dict:
    """Settings without those that change speed or memory, never results."""
    return {k: v for k, v in settings.items() if k not in neutral}
