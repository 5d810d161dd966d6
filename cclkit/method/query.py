"""Stage 5: from a text to a relevancy map, a level and a mask.

Two rules turn features into relevancy. ``relevancy`` is LERF's pairwise rule, which every
published LERF-OVS number uses (protocol A); ``softmax_relevancy`` is the one printed in the
CCL-LGS paper. A pixel of a coded field has relevancy only through its code, so
``code_relevancy`` scores the N prototypes once and gathers: no 512-d feature map is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch

from ..errors import FeatureError, QueryError
from ..settings import PHRASES, POSITIVE, OneOf


@dataclass(frozen=True)
class QueryConfig:
    """Stage 5: text -> relevancy -> mask."""

    rule: Annotated[str, OneOf("relevancy", "softmax")] = "relevancy"
    """"relevancy" (LERF's pairwise rule against canonical phrases) or "softmax", for looking at a
    scene. Paper: a softmax over phrases (ours: relevancy, because the phrase set is unpublished). A
    named evaluation protocol brings its own rule.
    """
    scale: Annotated[float, POSITIVE] = 10.0
    """Factor before the pairwise softmax, for looking at a scene. Paper does not say (ours: 10,
    because LERF's code has it, though no paper's formula does); evaluation protocols use that
    always.
    """
    decoding: Annotated[str, OneOf("hard", "soft")] = "hard"
    """"hard" (a pixel has its most likely code) or "soft" (the mean relevancy of the codes,
    weighted by the decoder's softmax; each query then decodes the view again). Paper: hard, the
    prototype at the index map's code.
    """
    canonical: Annotated[tuple[str, ...], PHRASES] = ("object", "things", "stuff", "texture")
    """Canonical phrases; also the phrase set of the protocol "paper". Paper does not say (ours:
    LERF's four, because the other protocols have them fixed).
    """
    temperature: Annotated[float, POSITIVE] = 0.1
    """Temperature of the softmax rule, in the protocol "paper" too. Paper shows none, which is 1
    (ours: 0.1, because over cosines a temperature of 1 is almost flat).
    """


CANONICAL = ("object", "things", "stuff", "texture")
"""LERF's canonical phrases (protocol A): what a pixel looks like when it is nothing in particular.
"""

SCALE = 10.0
"""Multiplier of the dot products in the pairwise rule. Protocol A: 10, in the published code only.
"""

TEMPERATURE = 0.1
"""Temperature of the paper's softmax. The paper shows none (ours: 0.1, because a temperature of 1
makes the softmax almost flat over cosines).
"""


def relevancy(features, text, canonical, *, scale: float = SCALE) -> torch.Tensor:
    """LERF's pairwise relevancy (protocol A): the weakest of the contests "query against phrase c".

    rel = min_c exp(s f·q) / (exp(s f·q) + exp(s f·c)) = sigmoid(s (f·q - max_c f·c)); the second
    form cannot overflow, and holds because the sigmoid grows with its argument.

    Args:
        features: [..., d], one unit vector per pixel (or per prototype); tensor or array.
        text: [P, d], one vector per query, used as given (published text vectors carry
            half-precision rounding; normalising them again moves relevancy by up to 1e-3).
        canonical: [C, d], vectors of the canonical phrases, used as given.
        scale: multiplier of the dot products.
    Returns:
        [P, ...] in 0..1, float32 (float64 if any input is), on the device of ``features``.
    Raises:
        FeatureError: a feature is zero or not finite.
        QueryError: shapes or text vectors do not fit.

    >>> import numpy as np
    >>> axes = np.eye(3)  # a query, and two canonical phrases
    >>> relevancy(axes, axes[:1], axes[1:], scale=1).round(decimals=2)
    tensor([[0.7300, 0.2700, 0.2700]], dtype=torch.float64)
    """
    features, text, canonical = _same_kind(features, text, canonical)
    _check_text(features, text, "text")
    _check_text(features, canonical, "canonical")
    if not np.isfinite(scale) or scale <= 0:
        raise QueryError(
            f"relevancy: scale is {scale!r}; expected a positive number (protocol A: {SCALE:g})"
        )
    _check_features(features)
    flat = features.reshape(-1, features.shape[-1])  # [M, d]
    against = (flat @ canonical.T).amax(dim=1)  # [M] the strongest canonical phrase
    out = torch.sigmoid(scale * (text @ flat.T - against))  # [P, M]
    return out.reshape(text.shape[0], *features.shape[:-1])


def softmax_relevancy(features, text, phrases, *, temperature: float = TEMPERATURE) -> torch.Tensor:
    """The paper's rule: p(q | v) = exp(cos(f, q) / T) / sum over phrases s of exp(cos(f, s) / T).

    The paper prints neither T nor the content of the phrase set. Ours: T is a setting, and a query
    that is not itself among the phrases joins the set for its own score, so that p stays a
    probability. With P = 1 and the canonical phrases this is "query against everything plain".

    Args:
        features: [..., d], any length but not zero.
        text: [P, d].
        phrases: [S, d].
        temperature: T > 0.
    Returns:
        [P, ...] in 0..1, float32 (float64 if any input is).
    Raises:
        FeatureError, QueryError: as ``relevancy``.

    >>> import numpy as np
    >>> axes = np.eye(3)  # three phrases
    >>> softmax_relevancy(axes, axes[:1], axes, temperature=1).round(decimals=2)
    tensor([[0.5800, 0.2100, 0.2100]], dtype=torch.float64)
    """
    features, text, phrases = _same_kind(features, text, phrases)
    _check_text(features, text, "text")
    _check_text(features, phrases, "phrases")
    if not np.isfinite(temperature) or temperature <= 0:
        raise QueryError(
            f"softmax_relevancy: temperature is {temperature!r}; expected a positive number (ours:"
            f" {TEMPERATURE:g})"
        )
    lengths = _check_features(features)
    flat = (features / lengths[..., None]).reshape(-1, features.shape[-1])  # [M, d]
    text = torch.nn.functional.normalize(text, dim=-1)
    phrases = torch.nn.functional.normalize(phrases, dim=-1)
    query = text @ flat.T / temperature  # [P, M]
    total = torch.logsumexp(phrases @ flat.T / temperature, dim=0)  # [M]
    is_member = (text @ phrases.T > 1 - 1e-6).any(dim=1)  # [P]
    total = torch.where(is_member[:, None], total[None], torch.logaddexp(total[None], query))
    return torch.exp(query - total).clamp(max=1).reshape(text.shape[0], *features.shape[:-1])


def code_relevancy(prototypes, code_map, text, canonical, *, scale: float = SCALE) -> torch.Tensor:
    """Relevancy of a map of codes: score every prototype once, then look up (design, idea 4).

    Args:
        prototypes: [N, d]; used at unit length, because the pairwise rule is defined on unit
            features.
        code_map: [...] integers, code of each pixel; -1 = none, which scores 0.
        text, canonical, scale: as ``relevancy``.
    Returns:
        [P, ...] in 0..1.
    Raises:
        QueryError: a code outside -1..N-1. FeatureError: a prototype in use is zero or not finite.
    """
    return by_code(
        lambda rows, text: relevancy(
            rows / _check_features(rows)[:, None], text, canonical, scale=scale
        ),
        prototypes,
        code_map,
        text,
    )


def code_softmax_relevancy(
    prototypes, code_map, text, phrases, *, temperature: float = TEMPERATURE
) -> torch.Tensor:
    """``softmax_relevancy`` of a map of codes [...], -1 = none scoring 0; returns [P, ...]. Raises
    as ``code_relevancy``.
    """
    return by_code(
        lambda rows, text: softmax_relevancy(rows, text, phrases, temperature=temperature),
        prototypes,
        code_map,
        text,
    )


def code_cosine(prototypes, code_map, text) -> torch.Tensor:
    """Cosine of prototype and text for a map of codes [...], -1 = none scoring 0; returns [P, ...].
    Raises as ``code_relevancy``.
    """
    return by_code(
        lambda rows, text: (
            torch.nn.functional.normalize(text, dim=-1) @ (rows / _check_features(rows)[:, None]).T
        ),
        prototypes,
        code_map,
        text,
    )


def by_code(score, prototypes, code_map, text) -> torch.Tensor:
    """Any score that a pixel has only through its code: ``score(rows [U, d], text [P, d]) -> [P,
    U]``, looked up.

    Returns [P, ...], codes -1 reading 0. Raises as ``code_relevancy``.
    """
    prototypes, text = _same_kind(prototypes, text)
    rows = _code_rows(prototypes, code_map)
    _check_text(prototypes, text, "text")
    table = text.new_zeros((text.shape[0], prototypes.shape[0] + 1))  # row 0 serves code -1
    usable = torch.isfinite(prototypes).all(dim=1) & (prototypes != 0).any(dim=1)
    if not bool(usable.all()):
        # one that no pixel has may be anything; the search for those in use costs as much as the
        # lookup, so it is done here only
        used = torch.zeros_like(table[0], dtype=torch.bool)
        usable = used.index_fill_(0, rows.flatten().long(), True)[1:]
    if bool(usable.any()):
        scores = torch.as_tensor(score(prototypes[usable], text))
        table = table.to(scores.dtype)
        table[:, 1:][:, usable] = scores
    return table.index_select(1, rows.flatten()).reshape(-1, *rows.shape)


def select_level_by_maximum(smoothed) -> int:
    """Level whose map has the largest maximum, lowest level on ties (protocol A).

    ``smoothed`` [L, H, W] must not be normalised yet: after a min-max step every maximum is 1 and
    the first level always wins.
    """
    return int(_maxima(_levels(smoothed, "smoothed"), "smoothed").argmax())


def select_level_by_mask_mean(relevancy_maps, masks) -> int:
    """Level with the largest mean relevancy inside its own mask (3D-OVS, LangSplat's supplement).

    ``relevancy_maps`` and ``masks`` are [L, H, W]. An empty mask has no mean and is chosen only if
    all are empty (ours; the supplement does not say); lowest level on ties.
    """
    maps = _levels(relevancy_maps, "relevancy_maps").double()
    _maxima(maps, "relevancy_maps")
    masks = _tensor(masks).bool()
    if masks.shape != maps.shape:
        raise QueryError(
            f"select_level_by_mask_mean: masks {tuple(masks.shape)} do not fit maps"
            f" {tuple(maps.shape)}; pass one mask per level"
        )
    count = masks.sum(dim=(1, 2))
    mean = torch.where(count > 0, (maps * masks).sum(dim=(1, 2)) / count.clamp(min=1), -torch.inf)
    return int(mean.argmax())


SELECTION_SHARE = 0.7
"""Where between the lowest and the highest relevancy a selection in 3D begins (ours): protocol A's
masks begin there on its stretched maps.
"""


def select(relevancy, *, share: float = SELECTION_SHARE) -> tuple[torch.Tensor, int]:
    """What answers a text in 3D: keep [G] bool, and the level that chose.

    As in protocol A's masks, the level with the largest relevancy answers (lowest on ties), with
    what lies above ``share`` of the way from its lowest value to its highest; nothing if all are
    equal.

    Args:
        relevancy: [L, G] of one text for every Gaussian, NaN in all levels for Gaussians that are
        never chosen.
    Raises:
        QueryError: another shape, or no Gaussian with a relevancy.
    """
    relevancy = _tensor(relevancy)
    seen = ~relevancy.isnan().any(0) if relevancy.ndim == 2 else torch.zeros(0)
    if not seen.any():
        raise QueryError(
            f"select: relevancy {tuple(relevancy.shape)} holds no Gaussian with a value at every"
            " level; expected [L, G]"
        )
    level = int(relevancy[:, seen].amax(1).argmax())
    low, high = relevancy[level, seen].aminmax()
    return seen & (relevancy[level] > low + share * (high - low)), level


def threshold_mask(values, threshold: float, *, strict: bool = True) -> torch.Tensor:
    """bool mask of values > threshold (protocols A, B, D), or >= with ``strict=False`` (protocol
    F).
    """
    values = _tensor(values)
    return values > threshold if strict else values >= threshold


# ---------------------------------------------------------------------------


def _tensor(values) -> torch.Tensor:
    return values if isinstance(values, torch.Tensor) else torch.as_tensor(np.asarray(values))


def _same_kind(*values) -> list[torch.Tensor]:
    """Tensors of one floating dtype (at least float32) on the device of the first."""
    tensors = [_tensor(v) for v in values]
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return [t.to(device=tensors[0].device, dtype=dtype) for t in tensors]


def _levels(maps, name: str) -> torch.Tensor:
    maps = _tensor(maps)
    if maps.ndim != 3 or maps.numel() == 0:
        raise QueryError(
            f"{name}: shape {tuple(maps.shape)}; expected maps [L, H, W], one per level"
        )
    return maps


def _maxima(maps: torch.Tensor, name: str) -> torch.Tensor:  # [L]
    out = maps.amax(dim=(1, 2))
    # a maximum is NaN if any value is: cheaper than a look at every value
    if not bool(torch.isfinite(out).all()):
        raise QueryError(
            f"{name}: values are not finite; recompute the relevancy from finite features"
        )
    return out


def _check_text(features: torch.Tensor, text: torch.Tensor, name: str) -> None:
    if (
        features.ndim < 1
        or text.ndim != 2
        or text.shape[0] == 0
        or text.shape[1] != features.shape[-1]
    ):
        raise QueryError(
            f"{name}: shape {tuple(text.shape)} does not fit features {tuple(features.shape)};"
            f" expected [n, {features.shape[-1] if features.ndim else 'd'}] with n >= 1: encode"
            " text and images with the same CLIP model"
        )
    bad = ~torch.isfinite(text).all(dim=1) | (text == 0).all(dim=1)
    if bool(bad.any()):
        raise QueryError(
            f"{name}: row {int(bad.nonzero()[0])} is zero or not finite; encode the phrase again"
        )


def _check_features(features: torch.Tensor) -> torch.Tensor:  # [...] lengths
    lengths = torch.linalg.vector_norm(features, dim=-1)
    if features.shape[-1] == 0 or not bool(torch.isfinite(lengths).all()):
        bad = int((~torch.isfinite(lengths)).sum())
        raise FeatureError(
            f"features: {bad} of {lengths.numel()} vectors of shape {tuple(features.shape)} are not"
            " finite; recompute them (a NaN usually comes from a diverged training step or a"
            " zero-length normalisation)"
        )
    if bool((lengths == 0).any()):
        raise FeatureError(
            f"features: {int((lengths == 0).sum())} of {lengths.numel()} vectors are zero and have"
            " no direction to compare; leave out pixels without a feature (code_relevancy takes"
            " them as code -1)"
        )
    return lengths


def _code_rows(prototypes: torch.Tensor, code_map) -> torch.Tensor:
    """Code + 1 of each pixel, int32, on the device of the prototypes."""
    if prototypes.ndim != 2:
        raise QueryError(f"prototypes: shape {tuple(prototypes.shape)}, expected [N, d]")
    codes = _tensor(code_map)
    if codes.is_floating_point() or codes.dtype == torch.bool:
        raise QueryError(
            f"code_map: dtype {codes.dtype}, expected integers (index of a prototype, -1 = none)"
        )
    n = prototypes.shape[0]
    if codes.numel():
        low, high = (int(v) for v in torch.aminmax(codes))
        if low < -1 or high >= n:
            raise QueryError(
                f"code_map: codes {low}..{high} with {n} prototypes; expected -1..{n - 1}: the map"
                " belongs to another codebook"
            )
    return codes.to(device=prototypes.device, dtype=torch.int32) + 1
