"""Texts against the field: relevancy of pixels, of Gaussians, and what protocols read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import EvaluationError, QueryError
from ..evaluation import legaussians, opengaussian
from ..gaussians.blending import lift
from ..gaussians.rasterize import project, rasterize
from ..method.masks import LEVELS
from ..method.query import (
    CANONICAL,
    by_code,
    code_cosine,
    code_relevancy,
    code_softmax_relevancy,
    select,
)
from ..progress import progress
from ..scenes.scene import View
from .stages.codebook import codebooks
from .stages.field import codes, field
from .stages.gaussians import gaussians

if TYPE_CHECKING:
    from .engine import Engine

Rule = Callable[[torch.Tensor, np.ndarray, np.ndarray], torch.Tensor]
"""(prototypes [N, d], codes [...], text [P, d]) -> scores [P, ...]."""


def text_vectors(work: Engine, texts: Sequence[str]) -> np.ndarray:  # [P, d]
    """Unit vectors of texts. Raises QueryError for one that is empty or not printable."""
    for t in texts:
        if not t.strip():
            raise QueryError(f"query {t!r} is empty; write what to look for")
        if not t.isprintable():
            raise QueryError(
                f"query {t!r} holds characters that are no text; write it in UTF-8, on one line"
            )
    return work.front_end.encoder.encode_text(list(texts))


def relevancy(
    work: Engine, view: View | str, texts: Sequence[str], *, code_maps: np.ndarray | None = None
) -> torch.Tensor:  # [P, 2, H, W]
    """Relevancy of texts in a view, at both levels, by the configured rule.

    ``code_maps`` [2, H, W] replaces the field's codes.
    """
    q = work.config.query
    canonical = text_vectors(work, q.canonical)
    rule: Rule = {
        "relevancy": lambda T, c, text: code_relevancy(T, c, text, canonical, scale=q.scale),
        "softmax": lambda T, c, text: code_softmax_relevancy(
            T, c, text, canonical, temperature=q.temperature
        ),
    }[q.rule]
    if code_maps is not None or q.decoding == "hard":
        return looked_up(work, rule, view, texts, code_maps)
    text = text_vectors(work, texts)
    every = [
        rule(T, np.arange(len(T)), text) if len(T) else torch.zeros(len(texts), 1)
        for T in (book.prototypes for book in codebooks(work).values())
    ]
    return field(work).expected(gaussians(work), work.view(view).camera, every)


def looked_up(
    work: Engine,
    rule: Rule,
    view: View | str,
    texts: Sequence[str],
    code_maps: np.ndarray | None = None,
) -> torch.Tensor:  # [P, 2, H, W]
    """A rule at both levels of a view; a level without masks scores 0."""
    text, books = text_vectors(work, texts), codebooks(work)
    maps = codes(work, view) if code_maps is None else code_maps
    levels = [
        rule(books[n].prototypes, c, text)
        if len(books[n].prototypes)
        else torch.zeros(len(texts), *c.shape)
        for n, c in zip(LEVELS, maps)
    ]
    return torch.stack(levels, 1)


def lifted_relevancy(
    work: Engine, texts: Sequence[str], relevancy_of: Callable | None = None
) -> torch.Tensor:  # [P, 2, G]
    """Relevancy of Gaussians: each one's mean over the training pixels that it makes up, by its
    weights in them. NaN where no training view shows one.

    A Gaussian's own feature says less: only sums over a ray were trained. ``relevancy_of(view,
    texts)`` [P, 2, H, W] replaces the configured rule. Raises QueryError if no Gaussian is seen at
    all.
    """
    g, shape = gaussians(work), (len(texts), len(LEVELS))
    rule = relevancy_of or (lambda view, texts: relevancy(work, view, texts))
    sums, weights = torch.zeros(len(g), shape[0] * shape[1]), torch.zeros(len(g))
    for view in progress(work.scene.training_views, "select"):
        maps = rule(view, texts).flatten(0, 1).permute(1, 2, 0)  # [H, W, 2P]
        more = lift(project(g, view.camera), maps)
        sums, weights = sums + more[0], weights + more[1]
    if not (weights > 0).any():
        raise QueryError(
            f"{work.scene.path}: no Gaussian is seen by any training view, so none can answer"
            f" {', '.join(map(repr, texts))}; check the gaussians stage"
        )
    mean = (sums / weights[:, None]).where(weights[:, None] > 0, torch.nan)
    return mean.T.reshape(*shape, len(g))


def scores(
    work: Engine,
    reads: str,
    view: View | str,
    texts: Sequence[str],
    *,
    code_maps: np.ndarray | None = None,
) -> torch.Tensor | np.ndarray:
    """What an evaluation protocol reads (`evaluation.protocols.READS`), with the protocols' own
    constants: [P, 2, H, W], or [P, H, W] silhouettes.

    ``code_maps`` [2, H, W] replaces the field's codes; silhouettes can't be made of them.
    """
    if reads in ("silhouette", "cosine") and code_maps is not None:
        why = (
            "it selects Gaussians in 3D"
            if reads == "silhouette"
            else "it gives every pixel a class, and pixels outside all masks have no code"
        )
        raise EvaluationError(
            f"this protocol can't score index maps: {why}; choose another evaluation.protocol"
        )
    if reads == "silhouette":
        return silhouettes(work, view, texts)
    q = work.config.query
    canonical = text_vectors(work, q.canonical if reads == "softmax" else CANONICAL)
    rule: Rule = {
        "relevancy": lambda T, c, text: code_relevancy(T, c, text, canonical),
        "softmax": lambda T, c, text: code_softmax_relevancy(
            T, c, text, canonical, temperature=q.temperature
        ),
        "cosine": code_cosine,
        "legaussians": lambda T, c, text: by_code(
            lambda rows, text: legaussians.relevancy(rows, text, canonical), T, c, text
        ),
    }[reads]
    return looked_up(work, rule, view, texts, code_maps)


def silhouettes(
    work: Engine, view: View | str, texts: Sequence[str]
) -> np.ndarray:  # [P, H, W] uint8, 0 or 255
    """Pictures of the Gaussians that a text selects, and of no others: what opengaussian scores.

    The selection belongs to a method and not to its metric, so it is that of `lifted_relevancy`,
    with the protocols' own relevancy.
    """
    g, camera = gaussians(work), work.view(view).camera
    selected = work.keep("selected Gaussians by text", dict)
    if new := [t for t in dict.fromkeys(texts) if t not in selected]:
        found = lifted_relevancy(work, new, lambda v, t: scores(work, "relevancy", v, t))
        share = work.config.evaluation.selection_share
        selected.update({t: select(r, share=share)[0] for t, r in zip(new, found)})
    out = np.zeros((len(texts), camera.height, camera.width), np.uint8)
    for picture, text in zip(out, texts):
        if selected[text].any():
            with torch.no_grad():
                alpha = rasterize(g.select(selected[text]), camera).alpha
            picture[:] = opengaussian.silhouette(alpha)
    return out
