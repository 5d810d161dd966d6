"""What codes alone are worth: mIoU of a scene's own protocol on 2D code maps.

In a file of its own, so that rows of the benchmark and of sweeps depend on no more than this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..evaluation.protocols import evaluate_scene

if TYPE_CHECKING:
    from ..runs.run import Run


def index_map_miou(run: Run) -> float:
    """mIoU % of the scene's own protocol on the 2D index maps of labelled training views, before
    any field.

    What the codes alone are worth: no rendering between the codebook and the query. Labelled views
    that are held out have no index maps and are left out.
    """
    return codes_miou(run, run.index_maps, views="training")


def codes_miou(
    run: Run, codes_of: Callable[[str], np.ndarray], *, views: str = "all"
) -> float:  # view name -> [2, H, W] int
    """mIoU % of the scene's own protocol on any code maps of its labelled views. Raises
    EvaluationError for a scene without labels.
    """
    e = evaluate_scene(
        run.scene,
        lambda name, texts: run.scores(name, texts, code_maps=codes_of(name)),
        replace(run.config.evaluation, views=views),
    )
    return 100 * e.aggregates["pooled"]["miou"]
