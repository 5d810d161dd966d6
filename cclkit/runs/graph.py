"""The stages of a run in order: a line each.

candidates -> masks -> features ┐
                    -> tracks   ┴> codebook ┐
                            gaussians ──────┴> field -> evaluation

With `field.mode` "cached", masks and gaussians also make the blending cache that the field is
trained on. With "joint" there is no stage gaussians (but for tracks carried by depth): field makes
the Gaussians too.
"""

from ..errors import ConfigError
from .stage import Stage
from .stages import (
    blending,
    candidates,
    codebook,
    evaluation,
    features,
    field,
    gaussians,
    masks,
    tracks,
)

GRAPH: dict[str, Stage] = {
    module.STAGE.name: module.STAGE
    for module in (
        candidates,
        masks,
        features,
        tracks,
        codebook,
        gaussians,
        blending,
        field,
        evaluation,
    )
}


def known_stage(name: str) -> Stage:
    """A stage by name. Raises ConfigError if there is none."""
    if name not in GRAPH:
        raise ConfigError(f"unknown stage {name!r}; stages are {', '.join(GRAPH)}")
    return GRAPH[name]
