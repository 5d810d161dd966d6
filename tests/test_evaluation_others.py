"""LEGaussians (F), OpenGaussian (G) and view consistency."""

import os
from pathlib import Path

import numpy as np
import pytest

from cclkit.errors import EvaluationError, FeatureError
from cclkit.evaluation import consistency, legaussians, opengaussian
from cclkit.evaluation.legaussians import LEGAUSSIANS
from cclkit.evaluation.opengaussian import OPENGAUSSIAN
from cclkit.evaluation.protocols import EvaluationConfig, aggregate
from cclkit.scenes.scene import Camera, LabelledObject


def oracle(name):
    folder = os.environ.get("CCLKIT_ORACLES")
    if not folder:
        pytest.skip("CCLKIT_ORACLES is not set: no published vectors to compare with")
    return np.load(Path(folder) / name, allow_pickle=False)


@pytest.mark.parametrize("seed", [0, 1])
def test_legaussians_open_vectors(seed):
    f = oracle(f"F_legaussians_seed{seed}.npz")
    # features of a pixel: the row with the largest decoder output, or the mean of all rows; of a
    # row the first 512 numbers are CLIP's
    rows = f["palette"][:, : legaussians.TEXT_WIDTH]
    outputs = np.exp(f["logits_half"].astype(np.float64))
    mixed = (outputs / outputs.sum(-1, keepdims=True)) @ rows
    for form, features in (("argmax", f["palette"][f["index"]]), ("softmax", mixed)):
        for scale in (10, 100):
            r = legaussians.unnormalised_relevancy(
                features, f["text_pos"], f["text_neg"], scale=scale
            )
            np.testing.assert_allclose(r, f[f"relevancy_{form}_scale{scale}"], atol=1e-5, rtol=0)
            np.testing.assert_array_equal(legaussians.mask(r), f[f"mask_{form}_scale{scale}"])
    for p, t, name in (
        (f["pred"][0], f["gt"][0], "pair_scores"),
        (f["pred"][0] * 0, f["gt"][0] * 0, "pair_scores_both_empty"),
    ):
        s = legaussians.mask_scores(p, t)
        np.testing.assert_allclose(
            [s.iou, s.accuracy, s.precision, s.recall], f[name], atol=1e-7, rtol=0
        )


def test_legaussians_equals_literal_loops():
    rng = np.random.default_rng(0)
    features, text = rng.normal(size=(30, 6)), rng.normal(size=(2, 6))
    canonical = rng.normal(size=(4, 6))
    got = legaussians.unnormalised_relevancy(features, text, canonical, scale=10).numpy()

    def cosine(a, b):
        return a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-6)

    for p in range(2):
        for m in range(30):
            q = np.exp(10 * cosine(features[m], text[p]))
            expected = min(q / (q + np.exp(10 * cosine(features[m], c))) for c in canonical)
            assert got[p, m] == pytest.approx(expected, abs=1e-5)
    assert legaussians.mask(np.array([0.5, 0.4999])).tolist() == [True, False]
    with pytest.raises(FeatureError, match="not finite"):
        legaussians.unnormalised_relevancy(
            np.full((2, 3), np.nan), np.ones((1, 3)), np.ones((4, 3))
        )
    with pytest.raises(EvaluationError, match="do not fit"):
        legaussians.unnormalised_relevancy(features, text[:, :5], canonical)


def test_legaussians_means_over_texts_then_images():
    row = lambda view, v: {"scene": "s", "view": view, "iou": v, "precision": v, "recall": v}
    rows = [row("a", 1.0), row("b", 0.0), row("b", 0.0), row("b", 0.5)]
    got = aggregate(rows, over=LEGAUSSIANS.over, means=LEGAUSSIANS.means)["pooled"]
    wanted = pytest.approx((1 + 0.5 / 3) / 2)
    assert got["miou"] == wanted and got["precision"] == wanted and got["recall"] == wanted


def units(truths):
    return [LabelledObject(str(n), t > 10, np.zeros((0, 4))) for n, t in enumerate(truths)]


@pytest.mark.parametrize("seed", [0, 1])
def test_opengaussian_open_vectors(seed):
    g = oracle(f"G_opengaussian_iou_seed{seed}.npz")
    predictions = [p if there else None for p, there in zip(g["pred_grey"], g["has_prediction"])]
    ious = [opengaussian.unit_iou(p, t) for p, t in zip(predictions, g["gt_jpeg_decoded"])]
    np.testing.assert_allclose(ious, g["iou"], atol=1e-12, rtol=0)
    # the protocol's own rows and means; to it, no prediction is an empty picture
    pictures = [p * there for p, there in zip(g["pred_grey"], g["has_prediction"])]
    scored = OPENGAUSSIAN.score(pictures, units(g["gt_jpeg_decoded"]), EvaluationConfig())
    rows = [{"scene": "s", "view": "v"} | row for row, _ in scored]
    got = aggregate(rows, over=OPENGAUSSIAN.over, means=OPENGAUSSIAN.means)["pooled"]
    np.testing.assert_allclose([r["iou"] for r in rows], g["iou"], atol=1e-12, rtol=0)
    assert (got["miou"], got["acc_025"], got["acc_050"]) == pytest.approx(
        (float(g["miou"]), float(g["acc_025"]), float(g["acc_05"])), abs=1e-12
    )


def test_opengaussian_rules():
    truth = np.array([[10, 11, 255, 0]], np.uint8)
    assert opengaussian.unit_iou(np.array([[11, 11, 10, 0]]), truth) == 1 / 3
    assert (
        opengaussian.unit_iou(None, truth) == 0 and opengaussian.unit_iou(truth * 0, truth * 0) == 0
    )
    quarter = np.array([[255, 0, 0, 0]])
    ((row, mask),) = OPENGAUSSIAN.score([quarter], units([quarter * 0 + 255]), EvaluationConfig())
    assert row == {"iou": 0.25, "acc_025": False, "acc_050": False}  # strictly greater
    assert mask.tolist() == [[True, False, False, False]]
    assert opengaussian.silhouette([[0.7, 0.71]]).tolist() == [[0, 255]]
    with pytest.raises(EvaluationError, match="expected grey"):
        opengaussian.unit_iou(np.zeros((2, 2, 3)), np.zeros((2, 2)))


def camera(x):
    """Looks along z at a wall at z = 2 from (x, 0, 0); one pixel is 0.1 wide there."""
    pose = np.eye(4)
    pose[0, 3] = -x
    return Camera(np.array([[20.0, 0, 8], [0, 20.0, 6], [0, 0, 1]]), pose, 16, 12)


def test_corresponding_pixels():
    wall = np.full((12, 16), 2.0)
    a, b = consistency.corresponding_pixels(camera(0), wall, camera(0.3), wall)
    assert len(a) == 12 * 13 and (b[:, 0] == a[:, 0] - 3).all() and (b[:, 1] == a[:, 1]).all()
    hidden = wall.copy()
    hidden[:, :5] = 1.0  # something stands before the wall in view b
    hidden[0] = 0  # and a row has no measurement
    a2, b2 = consistency.corresponding_pixels(camera(0), wall, camera(0.3), hidden)
    assert b2[:, 0].min() == 5 and b2[:, 1].min() == 1 and len(a2) == 8 * 11
    a3, _ = consistency.corresponding_pixels(camera(0), wall, camera(0), wall, stride=4)
    assert len(a3) == 3 * 4
    with pytest.raises(EvaluationError, match="depth_b"):
        consistency.corresponding_pixels(camera(0), wall, camera(0), wall[:3])
    with pytest.raises(EvaluationError, match="stride"):
        consistency.corresponding_pixels(camera(0), wall, camera(0), wall, stride=0)


def test_cohens_kappa():
    # 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: observed 0.7, chance 0.5
    a = [1] * 25 + [0] * 25
    b = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert consistency.cohens_kappa(a, b) == pytest.approx(0.4)
    # pairs without a code are left out
    assert consistency.cohens_kappa(a + [-1, 3], b + [2, -1]) == pytest.approx(0.4)
    assert consistency.cohens_kappa([1, 2, 3], [1, 2, 3]) == 1
    assert np.isnan(consistency.cohens_kappa([4, 4], [4, 4])) and np.isnan(
        consistency.cohens_kappa([-1], [0])
    )
    # a collapsed codebook earns nothing
    assert consistency.cohens_kappa([4, 4, 4, 4], [4, 4, 5, 5]) == 0
    with pytest.raises(EvaluationError, match="one pair"):
        consistency.cohens_kappa([1], [1, 2])


def test_auc_counts_pairs():
    rng = np.random.default_rng(0)
    p, q = rng.integers(0, 6, 40), rng.integers(0, 5, 30)  # many ties
    assert consistency.auc(p, q) == pytest.approx(
        np.mean([[(x > y) + 0.5 * (x == y) for y in q] for x in p])
    )
    assert (
        consistency.auc([2, 3], [0, 1]) == 1
        and consistency.auc([0], [1]) == 0
        and consistency.auc([1, 1], [1]) == 0.5
    )
    assert np.isnan(consistency.auc([], [1])) and np.isnan(consistency.auc([1], []))
    with pytest.raises(EvaluationError, match="not finite"):
        consistency.auc([np.nan], [1])


def test_similarity_auc_tells_same_surface_from_other_objects():
    rng = np.random.default_rng(1)
    objects = rng.integers(0, 4, 300)
    own = np.eye(4)[objects]
    score = lambda a, b, o=objects: consistency.similarity_auc(a, b, o, seed=0)
    assert score(own, 3 * own) == 1  # lengths don't matter
    assert score(np.ones((300, 4)), np.ones((300, 4))) == 0.5  # a collapsed codebook
    # nothing in common
    assert abs(score(rng.normal(size=(300, 8)), rng.normal(size=(300, 8))) - 0.5) < 0.06
    merged = own.copy()
    merged[objects == 1] = own[objects == 0][0]  # two objects share a code: their pairs tie
    share = np.bincount(objects) / 300
    ties = share[0] / (1 - share[0]) * share[1] + share[1] / (1 - share[1]) * share[0]
    assert score(merged, merged) == pytest.approx(1 - ties / 2, abs=0.02)
    noisy = own + rng.normal(size=(300, 4)) * 0.7
    exact = consistency.auc(
        (noisy * own).sum(1) / np.linalg.norm(noisy, axis=1),
        (noisy @ own.T / np.linalg.norm(noisy, axis=1)[:, None])[objects[:, None] != objects],
    )
    assert score(noisy, own) == pytest.approx(exact, abs=0.02) and score(noisy, own) == score(
        noisy, own
    )


def test_similarity_auc_leaves_out_what_has_no_feature_or_object():
    objects = np.array([0, 0, 1, 1, 2, -1])
    a = np.eye(3)[[0, 0, 1, 1, 2, 2]]
    b = a.copy()
    b[1], b[5] = 0, [1, 0, 0]  # no mask; no object, and it would be wrong
    assert consistency.similarity_auc(a, b, objects, seed=0) == 1
    one = np.zeros(6, int)  # without another object there is no negative pair
    assert np.isnan(consistency.similarity_auc(a, a, one, seed=0)) and np.isnan(
        consistency.similarity_auc(a[:0], a[:0], one[:0], seed=0)
    )
    with pytest.raises(EvaluationError, match="a row per correspondence"):
        consistency.similarity_auc(a, b[:3], objects, seed=0)
    with pytest.raises(EvaluationError, match="not finite"):
        consistency.similarity_auc(a * np.nan, b, objects, seed=0)
    with pytest.raises(EvaluationError, match="others is 0"):
        consistency.similarity_auc(a, b, objects, seed=0, others=0)
