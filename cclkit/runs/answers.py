"""Answers to texts: where one is in a view, and which Gaussians it selects."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..errors import ConfigError
from ..evaluation import lerf_ovs, ovs3d
from ..files import atomic_write, save_json, unwritable
from ..gaussians.model import save_ply
from ..method.masks import LEVELS
from ..method.query import (
    SELECTION_SHARE,
    select,
    select_level_by_mask_mean,
    select_level_by_maximum,
    threshold_mask,
)
from ..progress import progress
from ..scenes.scene import View
from ..settings import as_dict
from ..video import write_video
from .keys import content_key
from .scoring import lifted_relevancy, text_vectors, view_relevancy
from .stages.gaussians import gaussians

if TYPE_CHECKING:
    from .engine import Engine


@dataclass(frozen=True)
class Answer:
    """Where a text is in a view."""

    relevancy: np.ndarray  # [2, H, W] float32 in 0..1, both levels
    scores: np.ndarray  # [2, H, W] float32: what the threshold was applied to
    level: int  # index into LEVELS
    mask: np.ndarray  # [H, W] bool


def answer(
    work: Engine,
    view: View | str,
    text: str,
    *,
    threshold: float | None = None,
    level: str | None = None,
    code_maps: np.ndarray | None = None,
) -> Answer:
    """Where a text is in a view. Mask and level follow the published protocol of the scene's layout
    unless given.

    LERF-OVS scenes (and captures without labels) smooth, normalise and vote; 3D-OVS scenes
    threshold the relevancy. ``code_maps`` as in `scoring.view_relevancy`. Raises QueryError for an
    unusable text, ConfigError for an unknown level.
    """
    if level not in (None, *LEVELS):
        raise ConfigError(
            f"level={level!r} is unknown; use one of {', '.join(map(repr, LEVELS))}, or None to"
            " let the relevancy choose"
        )
    maps = view_relevancy(work, view, [text], code_maps=code_maps)[0]
    if work.scene.classes:
        cut = ovs3d.LangSplat().threshold if threshold is None else threshold
        masks = threshold_mask(maps, cut)
        chosen = select_level_by_mask_mean(maps, masks)
        masks, scores = masks.numpy(), maps.numpy()
    else:
        rules = lerf_ovs.RULES["langsplat"]
        if threshold is not None:
            rules = replace(rules, threshold=threshold)
        steps = lerf_ovs.query_steps(maps.numpy(), protocol=rules)
        chosen = select_level_by_maximum(steps.smoothed)
        masks, scores = steps.mask, steps.normalised
    n = chosen if level is None else LEVELS.index(level)
    return Answer(maps.numpy(), scores, n, masks[n].astype(bool))


def select_gaussians(
    work: Engine, text: str, *, share: float = SELECTION_SHARE
) -> tuple[np.ndarray, str]:  # [G] bool, level
    """The Gaussians that answer a text, and the level they were chosen at; keep them with
    `Gaussians.select`. By `query.select`, from `lifted_relevancy`.
    """
    keep, level = select(lifted_relevancy(work, [text])[0], share=share)
    return keep.numpy(), LEVELS[level]


def answer_query(work: Engine, text: str, views: Sequence[View]) -> Path:
    """A text in some views and in 3D; returns the folder of what was written.

    ``VIEW_mask.png`` and ``VIEW_overlay.png`` for each view (see `answer`), ``overlays.webm``
    (or .gif) with all of them in order, ``selection.ply`` with the Gaussians that answer (see
    `select_gaussians`; none: no file), and ``answer.json``. The folder's name ends in a hash of
    text and settings, so that no answer replaces another.
    """
    text_vectors(work, [text])  # refuse an unusable text before anything is computed
    slug = "".join(c if c.isalnum() else "_" for c in text.lower()).strip("_")[:40]
    query = as_dict(work.config.query)
    key = content_key(text=text, field=work.key("field"), query=query)
    folder = work.store.root / "queries" / f"{slug}_{key[:6]}"
    answers, overlays = {}, []
    for view in progress(views, "query"):
        found = answer(work, view, text)
        overlays.append(_overlay(view.image(), found.mask))
        for name, picture in (
            ("mask", found.mask.astype(np.uint8) * 255),
            ("overlay", overlays[-1]),
        ):
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "PNG")
            _written(atomic_write, folder / f"{view.stem}_{name}.png", buffer.getvalue())
        answers[view.name] = {
            "level": LEVELS[found.level],
            "highest_relevancy": float(found.relevancy[found.level].max()),
            "mask_pixels": int(found.mask.sum()),
        }
    film = _written(lambda path: write_video(overlays, path), folder / "overlays")
    keep, level = select_gaussians(work, text)
    if keep.any():
        _written(
            lambda path: save_ply(gaussians(work).select(keep), path), folder / "selection.ply"
        )
    _written(
        save_json,
        folder / "answer.json",
        {
            "text": text,
            "front_end": work.front_end.label,
            "rule": work.config.query.rule,
            "unknown_words": work.front_end.encoder.unknown_words(text),
            "views": answers,
            "film": film.name,
            "selection": {
                "gaussians": int(keep.sum()),
                "of": len(keep),
                "level": level,
                "file": "selection.ply" if keep.any() else None,
            },
        },
    )
    return folder


def _written(write: Callable, path: Path, *content: Any) -> Any:
    try:
        return write(path, *content)
    except OSError as e:
        raise unwritable(path, e) from e


def _overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:  # [H, W, 3] uint8
    """The photograph with everything outside the mask dimmed."""
    return np.where(mask[..., None], image, (0.3 * image).astype(np.uint8))
