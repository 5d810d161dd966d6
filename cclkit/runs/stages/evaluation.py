"""Evaluation: scores of the field under a named protocol."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from ...evaluation.metrics import write_results
from ...evaluation.protocols import PROTOCOLS, evaluate_scene, protocols_of
from ...evaluation.truth import evaluated_views
from ...progress import quiet
from ...scenes.scene import Scene
from ...settings import as_dict
from ..scoring import scores
from ..stage import Stage, require

if TYPE_CHECKING:
    from ...config import Config
    from ..engine import Engine


def build(work: Engine, folder: Path) -> dict:
    """``evaluation.json``, ``evaluation.csv``: rows per (view, query), aggregates, protocol and its
    constants.
    """
    c, q = work.config.evaluation, as_dict(work.config.query)
    views = evaluated_views(work.scene, c.views, c.truth)
    with tqdm(total=len(views), desc="evaluation", disable=quiet(), leave=False) as bar:

        def counted(view: str, texts: Sequence[str]):
            answer = scores(work, view, texts)
            bar.update()
            return answer

        e = evaluate_scene(work.scene, counted, c)
    constants = e.constants | {k: q[k] for k in PROTOCOLS[e.protocol].query}
    write_results(e.rows, e.aggregates, e.protocol, constants, folder)
    return {"protocol": e.protocol}


def evaluation(work: Engine) -> dict:
    """Protocol, constants, rows and aggregates, as in evaluation.json."""

    def parse(e):
        number = (int, float, type(None))  # JSON has no NaN: None is what is undefined
        named = isinstance(e["protocol"], str) and isinstance(e["constants"], dict)
        pooled = isinstance(e["aggregates"]["pooled"]["miou"], number)
        require(named and pooled, "no protocol or no aggregates")
        scored = [isinstance(r["query"], str) and isinstance(r["iou"], number) for r in e["rows"]]
        require(all(scored), "rows without query and IoU")
        return e | {k: defined(e[k]) for k in ("rows", "aggregates")}

    def defined(value):
        if isinstance(value, dict):
            return {k: defined(v) for k, v in value.items()}
        if isinstance(value, list):
            return [defined(v) for v in value]
        return math.nan if value is None else value

    return work.read("evaluation", "evaluation.json", parse, "json")


def _settings(config: Config) -> dict:
    """With what the protocol was made with; of the query's settings only those that it reads."""
    query, protocols = as_dict(config.query), protocols_of(config.evaluation)
    read = sorted({name for p in protocols.values() for name in p.query})
    return as_dict(config.evaluation) | {
        "device": config.device,
        "query": {name: query[name] for name in read},
        "protocols": {n: p.settings(config.evaluation) for n, p in protocols.items()},
    }


def _code(config: Config) -> tuple[Callable, ...]:
    """Of the protocol, which may have been registered from outside."""
    return tuple(f for p in protocols_of(config.evaluation).values() for f in p.code)


def _inputs(config: Config) -> tuple[str, ...]:
    """No stage of their own for Gaussians that the field makes."""
    return ("codebook", *(() if config.field.mode == "joint" else ("gaussians",)), "field")


def _unfit(scene: Scene) -> str:
    return "" if scene.labels or scene.classes else "the scene has no labels"


STAGE = Stage(
    "evaluation",
    build,
    inputs=_inputs,
    settings=_settings,
    code=_code,
    role="encoder",
    unfit=_unfit,
    told=("protocol",),
)
