"""Protocols langsplat (A) and langsplat_v2 (B): open vectors, and literal loops on random input."""

import dataclasses
import os
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cclkit.errors import EvaluationError
from cclkit.evaluation import lerf_ovs
from cclkit.evaluation.metrics import (
    box_mean,
    box_mean_cut,
    iou,
    majority,
    min_max,
    nearest_indices,
)
from cclkit.method.query import relevancy
from lab import reference


def unit_features(features):
    """Features divided by (length + 1e-10), as protocol B does before relevancy."""
    return features / (np.linalg.norm(features, axis=-1, keepdims=True) + np.float32(1e-10))


def oracle(name):
    folder = os.environ.get("CCLKIT_ORACLES")
    if not folder:
        pytest.skip("CCLKIT_ORACLES is not set: no published vectors to compare with")
    return np.load(Path(folder) / name, allow_pickle=False)


# ---- pieces ------------------------------------------------------------------------------------


def test_box_mean_is_exact_at_every_size():
    rng = np.random.default_rng(0)
    for n in range(60):
        h, w = rng.integers(1, 70, 2) if n else (1, 1)
        values = (
            rng.random((h, w), dtype=np.float32)
            if n % 2
            else rng.choice(rng.random(3).astype(np.float32), (h, w))
        )
        got = box_mean(values)
        assert got.dtype == np.float32
        if n < 12:
            np.testing.assert_array_equal(got, reference.box_mean(values))
        np.testing.assert_array_equal(
            got, cv2.filter2D(values, -1, np.ones((30, 30), np.float32) / 900)
        )


def test_box_mean_cut_is_average_pooling():
    rng = np.random.default_rng(2)
    for n in range(20):
        # torch refuses windows that leave a smaller image on both sides
        h, w = rng.integers(29, 70, 2)
        values = (
            rng.random((h, w), dtype=np.float32)
            if n % 2
            else np.full((h, w), rng.random(), np.float32)
        )
        pooled = torch.nn.functional.avg_pool2d(
            torch.tensor(values)[None], 29, 1, 14, count_include_pad=False
        )[0]
        np.testing.assert_array_equal(box_mean_cut(values), pooled)
    assert box_mean_cut(np.ones((1, 1))) == 1


def test_majority_equals_reference():
    rng = np.random.default_rng(1)
    for _ in range(30):
        h, w = rng.integers(1, 20, 2)
        mask = rng.random((h, w)) < rng.random()
        for last in (False, True):
            np.testing.assert_array_equal(
                majority(mask, last_votes=last), reference.majority(mask, last)
            )


def test_small_pieces():
    assert (
        np.isnan(iou(np.zeros((2, 2)), np.zeros((2, 2))))
        and iou(np.zeros((2, 2)), np.zeros((2, 2)), empty=0.0) == 0
    )
    assert iou([[1, 1]], [[1, 0]]) == 0.5
    with pytest.raises(EvaluationError, match="size of the ground truth"):
        iou(np.zeros((2, 2)), np.zeros((2, 3)))
    flat = np.full((40, 50), 0.25, np.float32)
    assert min_max(np.stack([flat, flat * 0])).max() == 0
    for size in range(1, 40):
        for target in range(1, 40):
            t = np.arange(target)
            assert nearest_indices(size, target, centres=True).tolist() == [
                int((i + Fraction(1, 2)) * size / target) for i in t.tolist()
            ]
            assert nearest_indices(size, target, centres=False).tolist() == [
                i * size // target for i in t.tolist()
            ]


# ---- open vectors ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("protocol", ["langsplat", "langsplat_v2"])
@pytest.mark.parametrize("start", ["stored relevancy", "features"])
def test_open_vectors(seed, protocol, start):
    a = oracle(f"A_langsplat_lerf_seed{seed}.npz")
    is_a = protocol == "langsplat"
    o = a if is_a else oracle(f"B_langsplatv2_lerf_seed{seed}.npz")
    np.testing.assert_array_equal(
        [majority(m, last_votes=not is_a) for m in o["filter7_in"]], o["filter7_out"]
    )
    np.testing.assert_array_equal(box_mean(a["box30_in"]), a["box30_out"])
    ious, hits = [], []
    for u, (frame, category) in enumerate(zip(a["unit_frame"], a["unit_category"])):
        maps = a["relevancy"][u]
        if start == "features":
            features = a["palette"][a["index"][frame]]
            maps = relevancy(
                features if is_a else unit_features(features),
                a["text_pos"][[category]],
                a["text_neg"],
            )[0]
        boxes = a["poly_box"][(a["poly_frame"] == frame) & (a["poly_category"] == category)]
        steps = lerf_ovs.query_steps(maps, protocol=protocol)
        result = lerf_ovs.evaluate_query(maps, a["gt_mask"][u], boxes, protocol=protocol)
        if is_a and start == "stored relevancy":
            np.testing.assert_array_equal(steps.smoothed, o["smoothed"][u])
            np.testing.assert_array_equal(steps.normalised, o["normalised"][u])
        np.testing.assert_allclose(
            steps.smoothed, o["smoothed"][u], atol=1e-6 if is_a else 1e-5, rtol=0
        )
        np.testing.assert_allclose(
            steps.box_mean[result.point_level],
            o["box_mean_chosen_loc"][u],
            atol=1e-6 if is_a else 1e-5,
            rtol=0,
        )
        np.testing.assert_array_equal(steps.raw, o["mask_raw"][u])
        np.testing.assert_array_equal(steps.mask, o["mask"][u])
        assert (
            result.level == o["chosen_level"][u]
            and result.point_level == o["loc_level"][u]
            and result.hit == o["loc_hit"][u]
        )
        np.testing.assert_array_equal(result.mask, o["mask"][u, result.level])
        np.testing.assert_allclose(
            result.ious, o["iou_per_level"][u], atol=1e-12 if is_a else 1e-6, rtol=0
        )
        if o["loc_gap"][u] > (1e-6 if is_a else 1e-5) or start == "stored relevancy":
            np.testing.assert_array_equal(
                result.points, o["loc_pixels_xy"][o["loc_pixels_unit"] == u]
            )
        ious.append(result.iou), hits.append(result.hit)
    assert np.mean(ious) == pytest.approx(float(o["scene_miou"]), abs=1e-12 if is_a else 1e-6)
    assert np.mean(hits) == pytest.approx(float(o["scene_accuracy"]), abs=1e-12)


@pytest.mark.parametrize("protocol", ["langsplat", "langsplat_v2"])
def test_equals_literal_loops(protocol):
    rng = np.random.default_rng(5)
    for n in range(4):
        h, w = rng.integers(33, 44, 2)
        blobs = cv2.GaussianBlur(rng.random((h, w, 3), dtype=np.float32), (0, 0), 3)
        maps = np.ascontiguousarray(np.moveaxis(blobs, -1, 0))
        if n == 3:
            maps[:] = np.round(maps, 1)  # flat regions
            maps[1] = maps[0]  # a tie between levels
        truth = rng.random((h, w)) < 0.3
        boxes = rng.integers(0, 30, (2, 4)).astype(float)
        level, mask, score, hit, points = reference.evaluate_query(maps, truth, boxes, protocol)
        got = lerf_ovs.evaluate_query(torch.tensor(maps), truth, boxes, protocol=protocol)
        assert got.level == level and got.hit == hit and got.protocol == protocol
        np.testing.assert_array_equal(got.mask, mask)
        assert got.iou == pytest.approx(score, abs=1e-12 if protocol == "langsplat" else 1e-6)
        assert [tuple(p) for p in got.points.tolist()] == points


# ---- behaviour -----------------------------------------------------------------------------------


def test_hit_rules_and_empty_masks():
    r = np.zeros((1, 60, 60), np.float32)
    r[0, 30, 20] = 1
    truth = np.zeros((60, 60), bool)
    points = lerf_ovs.evaluate_query(r, truth, []).points
    x, y = points.max(axis=0)
    assert lerf_ovs.evaluate_query(r, truth, [[x, y, 59, 59]]).hit  # the border counts
    assert lerf_ovs.evaluate_query(r, truth, [[59, 59, x, y]]).hit  # swapped corners
    assert not lerf_ovs.evaluate_query(r, truth, [[x + 0.5, y, 59, 59]]).hit
    flat = lerf_ovs.evaluate_query(np.full((2, 20, 20), 0.5), np.zeros((20, 20)), [[0, 0, 5, 5]])
    assert np.isnan(flat.iou) and not flat.mask.any() and flat.level == 0 and flat.hit


def test_paper_protocol_is_a_plain_threshold():
    rng = np.random.default_rng(2)
    p = rng.random((2, 20, 30), dtype=np.float32)
    p[1] *= 0.9
    truth = np.zeros((20, 30), bool)
    truth[:10] = True
    got = lerf_ovs.evaluate_query(p, truth, np.zeros((0, 4)), protocol="paper")
    m = (p[0] - p[0].min()) / (p[0].max() - p[0].min() + 1e-9) > 0.5
    np.testing.assert_array_equal(got.mask, m)
    own = dataclasses.replace(lerf_ovs.RULES["paper"], threshold=0.8, min_max=False)
    np.testing.assert_array_equal(
        lerf_ovs.evaluate_query(p, truth, [], protocol=own).mask, p[0] > 0.8
    )


def test_bad_input():
    r, truth = np.full((2, 9, 8), 0.5), np.ones((9, 8))
    with pytest.raises(EvaluationError, match="'lerf' is unknown.*langsplat, langsplat_v2"):
        lerf_ovs.evaluate_query(r, truth, [], protocol="lerf")
    with pytest.raises(EvaluationError, match=r"\(8, 9\).*size of its labels"):
        lerf_ovs.evaluate_query(r, truth.T, [])
    with pytest.raises(EvaluationError, match="boxes"):
        lerf_ovs.evaluate_query(r, truth, [[0, 1, 2]])
    with pytest.raises(EvaluationError, match=r"expected \[levels"):
        lerf_ovs.evaluate_query(r[0], truth, [])
    with pytest.raises(EvaluationError, match="72 values are not finite"):
        lerf_ovs.evaluate_query(np.stack([r[0], r[1] * np.nan]), truth, [])
