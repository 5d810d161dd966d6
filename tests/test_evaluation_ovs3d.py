"""Protocols C and D and ovs3d_langsplat: open vectors, and literal loops on random input."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from cclkit.errors import EvaluationError
from cclkit.evaluation import ovs3d
from cclkit.evaluation.metrics import resize_nearest


def oracle(name):
    folder = os.environ.get("CCLKIT_ORACLES")
    if not folder:
        pytest.skip("CCLKIT_ORACLES is not set: no published vectors to compare with")
    return np.load(Path(folder) / name, allow_pickle=False)


def class_mask(grey, shape, *, protocol="ovs3d_argmax"):
    """Ground truth of one class at size (h, w) by a protocol's reading rule, as `units_of` does."""
    rules = ovs3d.RULES[protocol]
    return resize_nearest(np.asarray(grey), shape, centres=rules.centres) >= rules.foreground


def unit(v):
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


@pytest.mark.parametrize("seed", [0, 1])
def test_argmax_open_vectors(seed):
    c = oracle(f"C_3dovs_argmax_seed{seed}.npz")
    w, h = c["image_wh"].tolist()
    height, width = c["gt_png"].shape[2:]
    factor = float(c["downsample"])
    assert (int(width / factor), int(height / factor)) == (w, h)
    names = sorted(str(n) for n in c["classes_in_file"])
    assert names == [str(n) for n in c["classes_sorted"]]
    ious, accuracies = [], []
    for i in range(len(c["index"])):
        truth = {n: class_mask(c["gt_png"][i, k], (h, w)) for k, n in enumerate(names)}
        np.testing.assert_array_equal(
            np.stack(list(truth.values()), -1).reshape(-1, len(names)), c["gt_onehot"][i]
        )
        scores = np.moveaxis(unit(c["palette"][c["index"][i]]) @ unit(c["text"]).T, -1, 0)
        result = ovs3d.evaluate_view(scores, truth)
        np.testing.assert_array_equal(result.label_map, c["label_map"][i])
        np.testing.assert_allclose(result.ious, c["iou"][i], atol=1e-12, rtol=0)
        assert result.accuracy == pytest.approx(c["accuracy"][i], abs=1e-12)
        ious.append(result.miou), accuracies.append(result.accuracy)
        # The order in which classes are passed must not matter, ties included.
        order = np.random.default_rng(i).permutation(len(names))
        shuffled = ovs3d.evaluate_view(
            torch.tensor(scores[order]), {names[k]: truth[names[k]] for k in order}
        )
        np.testing.assert_array_equal(order[shuffled.label_map], result.label_map)
        np.testing.assert_array_equal(shuffled.ious, result.ious[order])
    assert np.mean(ious) == pytest.approx(float(c["miou"]), abs=1e-12)
    assert np.mean(accuracies) == pytest.approx(float(c["mean_accuracy"]), abs=1e-12)


def test_argmax_equals_literal_loops():
    rng = np.random.default_rng(0)
    for _ in range(10):
        C, h, w = rng.integers(1, 5), rng.integers(1, 9), rng.integers(1, 9)
        scores = rng.integers(0, 3, (C, h, w)).astype(np.float32)  # many ties
        truth = rng.random((C, h, w)) < 0.4
        got = ovs3d.evaluate_view(scores, truth)
        right, both, either = 0, np.zeros(C), np.zeros(C)
        for y in range(h):
            for x in range(w):
                row = [int(c == int(np.argmax(scores[:, y, x]))) for c in range(C)]
                right += row == [int(t) for t in truth[:, y, x]]
                for c in range(C):
                    both[c] += row[c] and truth[c, y, x]
                    either[c] += row[c] or truth[c, y, x]
        assert got.accuracy == pytest.approx(right / (h * w), abs=1e-12)
        np.testing.assert_allclose(
            got.ious, [b / e if e else 0 for b, e in zip(both, either)], atol=1e-12
        )


def test_ground_truth_reading_rules():
    grey = np.array([[0, 1, 254, 255]], np.uint8)
    # 254 is background
    assert class_mask(grey, (1, 4)).tolist() == [[False, False, False, True]]
    assert class_mask(grey, (1, 4), protocol="ovs3d_occam").tolist() == [[False, True, True, True]]
    rng = np.random.default_rng(1)
    big = rng.integers(0, 2, (37, 53)).astype(np.uint8) * 255
    for h, w in ((9, 13), (37, 53), (18, 26)):
        pillow = np.asarray(Image.fromarray(big).resize((w, h), Image.Resampling.NEAREST))
        np.testing.assert_array_equal(class_mask(big, (h, w)), pillow == 255)
        opencv = cv2.resize(big, (w, h), interpolation=cv2.INTER_NEAREST)
        np.testing.assert_array_equal(class_mask(big, (h, w), protocol="ovs3d_occam"), opencv > 0)


# ---- D -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_occam_open_vectors(seed):
    d = oracle(f"D_occam_dynamic_seed{seed}.npz")
    shape = d["relevancy"].shape[-2:]
    np.testing.assert_array_equal(ovs3d.THRESHOLDS, d["threshold_grid"])
    truth = np.stack([class_mask(g, shape, protocol="ovs3d_occam") for g in d["gt_png"]])
    np.testing.assert_array_equal(truth, d["gt_mask"] > 0)
    regions = []
    for q, maps in enumerate(d["relevancy"]):
        got = ovs3d.occam_mask(maps)
        for level, c in enumerate(got.curves):
            regions += [(q, level, *r) for r in c.regions]
            np.testing.assert_allclose(c.mean, d["mean_score"][q, level], atol=1e-6, rtol=0)
            np.testing.assert_allclose(c.fraction, d["mask_fraction"][q, level], atol=1e-12, rtol=0)
            # differences / 0.01
            np.testing.assert_allclose(c.mean_slope, d["score_slope"][q, level], atol=1e-4, rtol=0)
            np.testing.assert_allclose(
                c.fraction_slope, d["mask_slope"][q, level], atol=1e-12, rtol=0
            )
            assert c.threshold == d["level_threshold"][q, level] and c.sensitivity == pytest.approx(
                d["sensitivity"][q, level], abs=3e-6
            )
        assert got.level == d["chosen_level"][q] and got.threshold == d["threshold"][q]
        np.testing.assert_array_equal(got.raw, d["mask_raw"][q])
        np.testing.assert_array_equal(got.mask, d["mask"][q])
    np.testing.assert_array_equal(regions, d["stable_regions"])
    result = ovs3d.evaluate_view(d["relevancy"], truth, protocol="ovs3d_occam")
    np.testing.assert_allclose(result.ious, d["iou"], atol=1e-12, rtol=0)
    assert result.miou == pytest.approx(float(d["mean_iou"]), abs=1e-12)
    script = ovs3d.Occam(stability=0.3, smallest=0.001, largest=0.95)
    result = ovs3d.evaluate_view(d["relevancy"], truth, protocol=script)
    np.testing.assert_array_equal(result.levels, d["defaults_chosen_level"])
    np.testing.assert_array_equal(result.thresholds, d["defaults_threshold"])
    np.testing.assert_allclose(result.ious, d["defaults_iou"], atol=1e-12, rtol=0)


def occam_reference(maps):
    """Protocol D, sentence by sentence. Returns level, threshold, recorded regions per level."""
    best = (np.inf, None, None)
    all_regions = []
    for level, r in enumerate(maps):
        n = (r - r.min()) / (r.max() - r.min() + 1e-9)
        grid = [float(t) for t in np.arange(0.01, 1.0, 0.01)]
        mean, share = [], []
        for t in grid:
            above = [float(v) for v in n.ravel() if v > t]
            mean.append(sum(above) / len(above) if above else 0.0)
            share.append(len(above) / n.size)

        def slope(curve):
            raw = []
            for i in range(99):
                if i == 0:
                    g = (curve[1] - curve[0]) / (grid[1] - grid[0])
                elif i == 98:
                    g = (curve[98] - curve[97]) / (grid[98] - grid[97])
                else:
                    a, b = grid[i] - grid[i - 1], grid[i + 1] - grid[i]
                    g = (
                        a * a * curve[i + 1] + (b * b - a * a) * curve[i] - b * b * curve[i - 1]
                    ) / (a * b * (a + b))
                raw.append(abs(g))
            padded = [0, 0, *raw, 0, 0]
            return [sorted(padded[i : i + 5])[2] for i in range(99)]

        s, m = slope(mean), slope(share)
        stable = [s[i] < 0.4 and m[i] < 0.4 and 0.005 < share[i] < 0.9 for i in range(99)]
        regions, i = [], 0
        while i < 99:
            if stable[i]:
                j = i
                while j < 99 and stable[j]:
                    j += 1
                if j - i >= 5:
                    regions.append((i, j if j < 99 else 98))
                i = j
            i += 1
        all_regions.append(tuple(regions))
        threshold, sensitivity = 0.5, 999
        if regions:
            a, b = regions[-1]
            threshold = (grid[a] + grid[b]) / 2
            sensitivity = abs(mean[b] - mean[a]) / (grid[b] - grid[a] + 1e-9)
        if sensitivity < best[0]:
            best = (sensitivity, level, threshold)
    return best[1], best[2], all_regions


def test_occam_equals_literal_loops():
    rng = np.random.default_rng(4)
    for n in range(6):
        noise = rng.random((28, 31, 3), dtype=np.float32)
        maps = np.moveaxis(cv2.GaussianBlur(noise, (0, 0), 1.5 + n), -1, 0).copy()
        maps[0, 5:15, 5:15] += 0.5
        maps[1, 8:20, 8:20] += 0.2 * n
        level, threshold, regions = occam_reference(maps)
        got = ovs3d.occam_mask(maps)
        assert got.level == level and got.threshold == pytest.approx(threshold, abs=1e-12)
        assert [c.regions for c in got.curves] == regions


def test_occam_flat_map():
    maps = np.full((2, 3, 20, 20), 0.5, np.float32)
    maps[0, 1, 4:12, 4:12] = 0.9  # class 0 has one level that is not flat
    truth = maps[:, 1] > 0.7
    with pytest.raises(
        EvaluationError, match="class 'a': level 0: no threshold keeps.*degenerate='zero'"
    ):
        ovs3d.evaluate_view(maps, {"a": truth[0], "b": truth[1]}, protocol="ovs3d_occam")
    got = ovs3d.evaluate_view(maps, truth, protocol="ovs3d_occam", degenerate="zero")
    assert got.levels[0] == 1 and got.ious[0] > 0.6 and got.ious[1] == 0 and not got.masks[1].any()
    with pytest.raises(EvaluationError, match="degenerate"):
        ovs3d.evaluate_view(maps, truth, protocol="ovs3d_occam", degenerate="skip")


# ---- ovs3d_langsplat, scenes, bad input ----------------------------------------------------------


def test_langsplat_level_by_mean_inside_mask():
    scores = np.zeros((2, 3, 6, 6), np.float32)
    scores[0, 0] = 0.45  # large and weak
    scores[0, 1, :2] = 0.8
    scores[0, 2, 0, 0] = 0.7
    truth = np.zeros((2, 6, 6), bool)
    truth[0, :3] = True
    got = ovs3d.evaluate_view(scores, truth, protocol="ovs3d_langsplat")
    assert (
        got.levels.tolist() == [1, 0]
        and got.ious.tolist() == [12 / 18, 0]
        and got.label_map is None
    )
    one_level = ovs3d.evaluate_view(scores[:, 1], truth, protocol="ovs3d_langsplat")
    np.testing.assert_array_equal(one_level.masks[0], got.masks[0])


def langsplat_reference(stack):
    """LangSplat's supplement for one class, one pixel at a time: level and mask [H, W]."""
    best, level, mask = -1.0, 0, None
    for n, r in enumerate(stack):
        above = [[float(v) > 0.4 for v in row] for row in r]
        inside = [float(v) for row, keep in zip(r, above) for v, k in zip(row, keep) if k]
        mean = sum(inside) / len(inside) if inside else -0.5
        if mean > best or mask is None:
            best, level, mask = mean, n, above
    return level, np.array(mask)


def test_langsplat_equals_literal_loops():
    rng = np.random.default_rng(6)
    for _n in range(12):
        scores = rng.random((3, 2, 9, 11), dtype=np.float32) * rng.choice(
            [0.3, 0.6, 1.0], (3, 2, 1, 1)
        ).astype(np.float32)
        truth = rng.random((3, 9, 11)) < 0.4
        got = ovs3d.evaluate_view(scores, truth, protocol="ovs3d_langsplat")
        for c in range(3):
            level, mask = langsplat_reference(scores[c])
            assert got.levels[c] == level
            np.testing.assert_array_equal(got.masks[c], mask)
            both, either = (mask & truth[c]).sum(), (mask | truth[c]).sum()
            assert got.ious[c] == pytest.approx(both / either if either else 0, abs=1e-12)


def test_bad_input():
    scores, truth = np.zeros((2, 4, 5)), np.zeros((2, 4, 5))
    with pytest.raises(
        EvaluationError, match="'argmax' is unknown.*ovs3d_argmax, ovs3d_langsplat, ovs3d_occam"
    ):
        ovs3d.evaluate_view(scores, truth, protocol="argmax")
    with pytest.raises(EvaluationError, match="does not fit ground truth"):
        ovs3d.evaluate_view(scores, truth[:, :3])
    with pytest.raises(EvaluationError, match="does not fit ground truth"):
        ovs3d.evaluate_view(scores, {"a": truth[0]})
    with pytest.raises(EvaluationError, match="same classes"):
        ovs3d.evaluate_view(scores, {"a": truth[0], "b": truth[1]}, classes=("a", "c"))
    with pytest.raises(EvaluationError, match="one level"):
        ovs3d.evaluate_view(scores[:, None], truth)
    with pytest.raises(EvaluationError, match="not finite"):
        ovs3d.evaluate_view(scores * np.nan, truth)
    with pytest.raises(EvaluationError, match="one size"):
        ovs3d.evaluate_view(scores, {"a": truth[0], "b": truth[0, :3]})
