"""cclkit: an open implementation of CCL-LGS, step by step.

What users call stands here, each name with an example in its docstring. A name is imported when it
is first asked for: ``import cclkit`` loads no torch and changes nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Camera": "scenes.scene",
    "CclkitError": "errors",
    "CodebookConfig": "method.codebook_fit",
    "Config": "config",
    "EvaluationConfig": "evaluation.protocols",
    "Gaussians": "gaussians.model",
    "Run": "runs.run",
    "Scene": "scenes.scene",
    "View": "scenes.scene",
    "associate": "method.tracking",
    "bundled_scenes": "places",
    "ccl_loss": "method.codebook",
    "evaluate_query": "evaluation.lerf_ovs",
    "evaluate_scene": "evaluation.protocols",
    "fit_codebook": "method.codebook_fit",
    "load_ply": "gaussians.model",
    "load_scene": "scenes.load",
    "mask_nms": "method.masks",
    "profile": "config",
    "rasterize": "gaussians.rasterize",
    "relevancy": "method.query",
    "save_ply": "gaussians.model",
    "softmax_relevancy": "method.query",
}
"""Public name -> the module where it stands."""

__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:  # what editors and type checkers see
    from .config import Config, profile
    from .errors import CclkitError
    from .evaluation.lerf_ovs import evaluate_query
    from .evaluation.protocols import EvaluationConfig, evaluate_scene
    from .gaussians.model import Gaussians, load_ply, save_ply
    from .gaussians.rasterize import rasterize
    from .method.codebook import ccl_loss
    from .method.codebook_fit import CodebookConfig, fit_codebook
    from .method.masks import mask_nms
    from .method.query import relevancy, softmax_relevancy
    from .method.tracking import associate
    from .places import bundled_scenes
    from .runs.run import Run
    from .scenes.load import load_scene
    from .scenes.scene import Camera, Scene, View


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .errors import needed
    from .machine import be_patient
    from .runs import keys

    be_patient()  # before a name brings torch with it
    with needed():
        found = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
