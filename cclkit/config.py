"""Everything a run depends on beside the scene, and the two profiles.

The settings of a component stand in its own file, with meaning, source and bounds; here they are
put together. The profile changes values, never code.
"""

from __future__ import annotations

from dataclasses import dataclass, field as nested
from typing import Annotated, Any

from . import settings
from .errors import ConfigError
from .evaluation.protocols import EvaluationConfig
from .foundation.clip import ClipConfig
from .foundation.front_end import FrontEndConfig
from .foundation.sam import SamConfig
from .foundation.sam2 import Sam2Config
from .gaussians.reconstruct import GaussiansConfig
from .method.codebook_fit import CodebookConfig
from .method.field import FieldConfig
from .method.masks import MaskConfig
from .method.query import QueryConfig
from .method.tracking import TrackConfig
from .settings import OneOf


@dataclass(frozen=True)
class Config:
    """Everything a run depends on beside the scene."""

    profile: str = "mini"
    """"mini" (bundled scenes, CPU, minutes) or "paper" (public data and checkpoints, CUDA)."""
    seed: int = 0
    """Seed of every random choice that is not part of the simulated data."""
    device: Annotated[str, OneOf("cpu", "cuda")] = "cpu"
    """Where tensors live."""
    front_end: FrontEndConfig = nested(default_factory=FrontEndConfig)
    """Models behind masks, tracks and features."""
    masks: MaskConfig = nested(default_factory=MaskConfig)
    """Stage 1."""
    tracks: TrackConfig = nested(default_factory=TrackConfig)
    """Stage 2."""
    codebook: CodebookConfig = nested(default_factory=CodebookConfig)
    """Stage 3."""
    gaussians: GaussiansConfig = nested(default_factory=GaussiansConfig)
    """RGB reconstruction."""
    field: FieldConfig = nested(default_factory=FieldConfig)
    """Stage 4."""
    query: QueryConfig = nested(default_factory=QueryConfig)
    """Stage 5."""
    evaluation: EvaluationConfig = nested(default_factory=EvaluationConfig)
    """Stage 6."""

    def with_settings(self, changes: dict[str, Any]) -> Config:
        """A copy with dotted settings replaced, e.g. ``{"codebook.lambda_pull": 0}``.

        Another CLIP than mini-CLIP gets no cone unless one is set with it. Text values are parsed
        to the field's type. Raises ConfigError on an unknown name or an unusable value.
        """
        out = self
        for name, value in changes.items():
            if name == "profile":
                raise ConfigError(
                    "the profile is not a setting: it names a set of values; choose it with"
                    " --profile"
                )
            out = settings.replaced(out, name, value)
        cone = "front_end.clip.cone"
        if changes.get("front_end.clip.model", "mini") != "mini" and cone not in changes:
            out = settings.replaced(out, cone, 0.0)  # public CLIPs have a cone of their own
        settings.check(out)
        return out

    def check(self, prefix: str) -> None:
        """Raise ConfigError for settings of two stages that forbid each other."""
        joint = self.field.mode == "joint"
        if joint and not self.gaussians.iterations:
            raise ConfigError(
                "setting gaussians.iterations=0 leaves nothing to train with field.mode=joint;"
                " expected a number above 0, or another mode"
            )
        if joint and self.field.init == "votes":
            raise ConfigError(
                "setting field.init=votes needs Gaussians to vote for, and with field.mode=joint"
                " there are none yet; use field.mode=rasterised or cached, or field.init=random"
            )


def _mini() -> Config:
    return Config(
        front_end=FrontEndConfig(
            sam=SamConfig(points_per_side=24, crop_layers=1, crop_points_divisor=2),
            clip=ClipConfig(cone=0.5),
        ),
        masks=MaskConfig(predicted_iou_min=0.5, stability_min=0.5, score_min=0.25),
        tracks=TrackConfig(both_ways=True),
    )


def _paper() -> Config:
    return Config(
        profile="paper",
        device="cuda",
        front_end=FrontEndConfig(
            sam=SamConfig(model="vit_h", precision="bfloat16"),
            clip=ClipConfig(model="ViT-B-16", precision="bfloat16"),
            sam2=Sam2Config(model="sam2.1_hiera_large", precision="bfloat16"),
        ),
        gaussians=GaussiansConfig(
            start_gaussians=1_000_000, max_gaussians=5_000_000, iterations=30_000, sh_degree=3
        ),
        field=FieldConfig(
            mode="joint", hidden=(128, 256), iterations=30_000, lr=1e-3, feature_lr=1e-3
        ),
    )


PROFILES = {"mini": _mini, "paper": _paper}


def profile(name: str = "mini", **changes: Any) -> Config:
    """The settings of a profile, with dotted settings replaced.

    Raises ConfigError if the profile does not exist or a setting can't be used.

    >>> profile("paper").codebook.margin
    0.7
    >>> profile("mini", **{"codebook.margin": 0.5}).codebook.margin
    0.5
    """
    if name not in PROFILES:
        raise ConfigError(f"unknown profile {name!r}; use {' or '.join(map(repr, PROFILES))}")
    return PROFILES[name]().with_settings(changes)
