"""Query rules: exact against the open A vectors, stable, and clear about bad input."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from cclkit.errors import FeatureError, QueryError
from cclkit.method.query import (
    code_relevancy,
    code_softmax_relevancy,
    relevancy,
    select,
    select_level_by_mask_mean,
    select_level_by_maximum,
    softmax_relevancy,
    threshold_mask,
)


def oracle(name):
    folder = os.environ.get("CCLKIT_ORACLES")
    if not folder:
        pytest.skip("CCLKIT_ORACLES is not set: no published vectors to compare with")
    return np.load(Path(folder) / name, allow_pickle=False)


def unit(rng, *shape):
    v = rng.normal(size=shape)
    return (v / np.linalg.norm(v, axis=-1, keepdims=True)).astype(np.float32)


def relevancy_reference(features, text, canonical, scale):
    """The printed rule, one exponential at a time, in double precision."""
    out = np.empty((len(text), len(features)))
    for p, q in enumerate(text.astype(float)):
        for m, f in enumerate(features.astype(float)):
            out[p, m] = min(
                np.exp(scale * f @ q) / (np.exp(scale * f @ q) + np.exp(scale * f @ c))
                for c in canonical.astype(float)
            )
    return out


@pytest.mark.parametrize("seed", [0, 1])
def test_relevancy_equals_published(seed):
    a = oracle(f"A_langsplat_lerf_seed{seed}.npz")
    for u, (frame, category) in enumerate(zip(a["unit_frame"], a["unit_category"])):
        r = relevancy(a["palette"][a["index"][frame]], a["text_pos"][[category]], a["text_neg"])
        np.testing.assert_allclose(r[0], a["relevancy"][u], atol=1e-6, rtol=0)
    # half precision, not normalised again
    r = relevancy(a["palette"], a["half_text_pos"], a["half_text_neg"])
    np.testing.assert_allclose(r, a["half_palette_relevancy"], atol=1e-6, rtol=0)


def test_relevancy_equals_reference():
    rng = np.random.default_rng(0)
    f, t, c = unit(rng, 50, 12), unit(rng, 3, 12), unit(rng, 4, 12)
    for scale in (1.0, 10.0, 100.0):
        np.testing.assert_allclose(
            relevancy(f, t, c, scale=scale), relevancy_reference(f, t, c, scale), atol=1e-5
        )
    assert relevancy(f.reshape(5, 10, 12), t, c).shape == (3, 5, 10)
    assert relevancy(torch.tensor(f), t, c).dtype == torch.float32
    assert relevancy(f.astype(np.float64), t, c).dtype == torch.float64
    extreme = relevancy(f, t, c, scale=1e5)
    assert torch.isfinite(extreme).all() and extreme.min() >= 0 and extreme.max() <= 1


def test_softmax_relevancy():
    rng = np.random.default_rng(1)
    f, phrases = 3 * unit(rng, 40, 8), unit(rng, 5, 8)
    # every query is a member: one softmax
    p = softmax_relevancy(f, phrases, phrases, temperature=0.2)
    cosine = f @ phrases.T / np.linalg.norm(f, axis=1, keepdims=True)
    e = np.exp(cosine / 0.2)
    np.testing.assert_allclose(p, (e / e.sum(1, keepdims=True)).T, rtol=1e-5)
    query = unit(rng, 1, 8)  # not a member: joins the set for its own score
    q = np.exp(f @ query[0] / np.linalg.norm(f, axis=1) / 0.2)
    np.testing.assert_allclose(
        softmax_relevancy(f, query, phrases, temperature=0.2)[0], q / (q + e.sum(1)), rtol=1e-5
    )


def test_code_relevancy_is_a_lookup():
    rng = np.random.default_rng(2)
    prototypes, t, c = unit(rng, 6, 8), unit(rng, 2, 8), unit(rng, 4, 8)
    codes = rng.integers(-1, 5, (7, 9))  # prototype 5 is never used
    prototypes[5] = 0  # a dead prototype does no harm as long as no pixel has its code
    for got, per_code in (
        (code_relevancy(prototypes, codes, t, c), relevancy(prototypes[:5], t, c)),
        (code_softmax_relevancy(prototypes, codes, t, c), softmax_relevancy(prototypes[:5], t, c)),
    ):
        expected = np.where(codes >= 0, per_code.numpy()[:, codes], 0)
        np.testing.assert_allclose(got, expected, atol=1e-6)
    assert code_relevancy(prototypes, np.full((2, 3), -1), t, c).abs().sum() == 0
    with pytest.raises(FeatureError, match="zero"):
        code_relevancy(prototypes, np.array([[5]]), t, c)
    with pytest.raises(QueryError, match=r"expected -1\.\.5.*another codebook"):
        code_relevancy(prototypes, np.array([[6]]), t, c)
    with pytest.raises(QueryError, match="integers"):
        code_relevancy(prototypes, np.zeros((2, 2)), t, c)


def test_bad_features_and_text():
    rng = np.random.default_rng(3)
    f, t, c = unit(rng, 4, 8), unit(rng, 2, 8), unit(rng, 4, 8)
    for rule in (lambda f: relevancy(f, t, c), lambda f: softmax_relevancy(f, t, c)):
        bad = f.copy()
        bad[1] = 0
        with pytest.raises(FeatureError, match="1 of 4 vectors are zero"):
            rule(bad)
        bad[1, 2] = np.nan
        with pytest.raises(FeatureError, match="not finite"):
            rule(bad)
    with pytest.raises(QueryError, match="same CLIP model"):
        relevancy(f, t[:, :7], c)
    with pytest.raises(QueryError, match="canonical"):
        relevancy(f, t, c[:0])
    with pytest.raises(QueryError, match="row 0 is zero"):
        relevancy(f, t * 0, c)
    with pytest.raises(QueryError, match="scale"):
        relevancy(f, t, c, scale=0)
    with pytest.raises(QueryError, match="temperature"):
        softmax_relevancy(f, t, c, temperature=float("nan"))


def test_levels_and_threshold():
    maps = np.zeros((3, 4, 5), np.float32)
    maps[1, 2, 2] = maps[2, 0, 0] = 0.9
    assert select_level_by_maximum(maps) == 1  # lowest on ties
    masks = maps > 0.5
    masks[0] = True
    masks[2, :] = False
    assert select_level_by_mask_mean(maps, masks) == 1
    assert select_level_by_mask_mean(maps, np.zeros_like(masks)) == 0
    values = np.array([0.3, 0.5, 0.7])
    assert threshold_mask(values, 0.5).tolist() == [False, False, True]
    assert threshold_mask(values, 0.5, strict=False).tolist() == [False, True, True]
    with pytest.raises(QueryError, match="not finite"):
        select_level_by_maximum(maps * np.nan)
    with pytest.raises(QueryError, match="one per level"):
        select_level_by_maximum(maps[0])


def test_selection_in_3d():
    nan = np.nan
    scores = np.array([[0.1, 0.5, nan, 0.2, 0.3], [0.0, 0.4, nan, 0.9, 0.64]])
    keep, level = select(scores, share=0.7)
    # above 0.63; what is never seen is never chosen
    assert level == 1 and keep.tolist() == [
        False,
        False,
        False,
        True,
        True,
    ]
    assert select(scores, share=0.75)[0].tolist() == [False, False, False, True, False]
    assert not select(scores, share=1.0)[0].any() and not select(np.full((2, 3), 0.8))[0].any()
    assert select(scores[[0, 0]])[1] == 0  # lowest on ties
    for bad in (np.full((2, 3), nan), np.zeros((2, 0)), np.zeros(3)):
        with pytest.raises(QueryError, match="holds no Gaussian"):
            select(bad)
