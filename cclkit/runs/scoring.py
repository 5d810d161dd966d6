"""Texts against the field: relevancy of pixels, of Gaussians, and what protocols ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import EvaluationError, QueryError
from ..evaluation.opengaussian import silhouette
from ..evaluation.protocol import Maps, Rule, pairwise
from ..evaluation.protocols import PROTOCOLS, protocol_for
from ..gaussians.blending import lift
from ..gaussians.rasterize import project, rasterize
from ..method.masks import LEVELS
from ..method.query import QueryConfig, code_relevancy, code_softmax_relevancy, select
from ..progress import progress
from ..scenes.scene import View
from .stages.codebook import codebooks
from .stages.field import codes, field
from .stages.gaussians import gaussians

if TYPE_CHECKING:
    from .engine import Engine


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


def view_relevancy(
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
    rule = relevancy_of or (lambda view, texts: view_relevancy(work, view, texts))
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


@dataclass(frozen=True)
class FieldReader:
    """What a protocol asks of a run's field: an `evaluation.protocol.Reader`.

    ``code_maps`` [2, H, W] replaces the field's codes of a view. They have no silhouettes, and say
    nothing of pixels outside all masks.
    """

    work: Engine
    code_maps: np.ndarray | None = None
    settings: tuple[str, ...] | None = None  # of the query, what a protocol reads; None: all

    @property
    def query(self) -> QueryConfig | SimpleNamespace:
        """The query settings that the protocol names, since only those count for its key."""
        q = self.work.config.query
        if self.settings is None:
            return q
        return SimpleNamespace(**{k: getattr(q, k) for k in self.settings})

    def text_vectors(self, texts: Sequence[str]) -> np.ndarray:  # [P, d]
        return text_vectors(self.work, texts)

    def look_up(
        self, rule: Rule, view: View | str, texts: Sequence[str]
    ) -> torch.Tensor:  # [P, 2, H, W]
        return looked_up(self.work, rule, view, texts, self.code_maps)

    def silhouettes(
        self, view: View | str, texts: Sequence[str]
    ) -> np.ndarray:  # [P, H, W] uint8, 0 or 255
        if self.code_maps is not None:
            raise _no_index_maps("it selects Gaussians in 3D")
        return silhouettes(self.work, view, texts)


def scores(
    work: Engine,
    view: View | str,
    texts: Sequence[str],
    *,
    protocol: str | None = None,
    code_maps: np.ndarray | None = None,
) -> Maps:
    """What an evaluation protocol scores, by default the configured one: [P, 2, H, W], or pictures
    [P, H, W].

    ``code_maps`` [2, H, W] replaces the field's codes. Raises EvaluationError for a protocol that
    is unknown, that the scene has no ground truth for, or that can't score such maps.
    """
    name = protocol or work.config.evaluation.protocol
    chosen = PROTOCOLS[protocol_for(work.scene, name)]
    if code_maps is not None and chosen.classes:
        raise _no_index_maps(
            "it gives every pixel a class, and pixels outside all masks have no code"
        )
    return chosen.asks(FieldReader(work, code_maps, chosen.query), work.view(view).name, texts)


def _no_index_maps(why: str) -> EvaluationError:
    return EvaluationError(
        f"this protocol can't score index maps: {why}; choose another evaluation.protocol"
    )


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
        reader = FieldReader(work)
        found = lifted_relevancy(work, new, lambda v, t: pairwise(reader, v.name, t))
        share = work.config.evaluation.selection_share
        selected.update({t: select(r, share=share)[0] for t, r in zip(new, found)})
    out = np.zeros((len(texts), camera.height, camera.width), np.uint8)
    for picture, text in zip(out, texts):
        if selected[text].any():
            with torch.no_grad():
                alpha = rasterize(g.select(selected[text]), camera).alpha
            picture[:] = silhouette(alpha)
    return out
