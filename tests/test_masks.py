"""Stage 1: filtering, levels, painting, storage."""

import numpy as np
import pytest

from cclkit.errors import MaskError
from cclkit.method.interfaces import Candidates
from cclkit.method.masks import (
    MaskConfig,
    build_view_masks,
    mask_box,
    mask_nms,
    paint,
    recall,
)
from cclkit.rle import rle_decode, rle_encode
from cclkit.runs.stages.masks import pack, unpack
from lab import reference


def boxes(*corners, shape=(20, 30)):
    out = np.zeros((len(corners), *shape), bool)
    for m, (x0, y0, x1, y1) in zip(out, corners):
        m[y0:y1, x0:x1] = True
    return out


@pytest.mark.parametrize("seed", range(8))
def test_nms_equals_the_rule(seed):
    rng = np.random.default_rng(seed)
    corners = []
    for _ in range(40):
        x, y = rng.integers(0, 24), rng.integers(0, 15)
        corners.append((x, y, x + rng.integers(2, 12), y + rng.integers(2, 10)))
    masks = boxes(*corners)
    iou, stability = rng.uniform(0.7, 1, 40), rng.uniform(0.8, 1, 40)
    settings = dict(iou_thr=0.6, score_thr=0.7, inner_thr=0.5)
    got = mask_nms(masks, iou, stability, **settings)
    assert np.array_equal(got, reference.mask_nms(masks, iou, stability, **settings))
    assert 0 < len(got) < 40


@pytest.mark.parametrize("seed", [0, 1])
def test_nms_equals_published_results(oracles, seed):
    data = np.load(oracles / f"E_langsplat_preprocess_seed{seed}.npz", allow_pickle=False)
    h, w = data["image_bgr"].shape[1:3]
    for image in (0, 1):
        lists = {}
        for k in "sml":
            packed = data[f"img{image}_{k}_masks_packed"]
            masks = np.unpackbits(packed, axis=1)[:, : h * w].reshape(-1, h, w).astype(bool)
            lists[k] = (
                masks,
                data[f"img{image}_{k}_predicted_iou"],
                data[f"img{image}_{k}_stability"],
            )
        lists["default"] = tuple(np.concatenate([lists[k][n] for k in "sml"]) for n in range(3))
        for k, (masks, iou, stability) in lists.items():
            got = mask_nms(masks, iou, stability, iou_thr=0.8, score_thr=0.7, inner_thr=0.5)
            assert np.array_equal(got, data[f"img{image}_{k}_kept"]), (image, k)


def test_nms_of_nothing_is_nothing():
    assert mask_nms(
        np.zeros((0, 4, 4), bool),
        np.zeros(0),
        np.zeros(0),
        iou_thr=0.8,
        score_thr=0.7,
        inner_thr=0.5,
    ).shape == (0,)


def candidates(masks, output, iou=None, stability=None):
    M = len(masks)
    return Candidates(
        masks,
        np.asarray(output),
        np.full(M, 0.95) if iou is None else np.asarray(iou, float),
        np.full(M, 0.95) if stability is None else np.asarray(stability, float),
    )


def test_a_nose_inside_its_head_survives_across_outputs_but_not_within_one():
    head, nose = boxes((0, 0, 16, 16), (4, 4, 9, 9))
    both = np.stack([head, nose])
    across, _ = build_view_masks(candidates(both, [1, 0], iou=[0.90, 0.95]), MaskConfig())
    # sp holds the head (a part) and the nose (a subpart)
    assert set(across.output[across.level == 0]) == {
        0,
        1,
    }
    within, counts = build_view_masks(candidates(both, [1, 1], iou=[0.90, 0.95]), MaskConfig())
    assert len(within.level[within.level == 0]) == 1 and counts.inside_larger == 1
    united, _ = build_view_masks(
        candidates(both, [1, 0], iou=[0.90, 0.95]), MaskConfig(inner_across_outputs=True)
    )
    assert set(united.output[united.level == 0]) == {1}


def test_levels_hold_the_right_outputs_and_best_score_wins():
    masks = boxes((0, 0, 10, 10), (5, 5, 15, 15), (0, 0, 30, 20))
    out, _ = build_view_masks(candidates(masks, [0, 1, 2], iou=[0.9, 0.99, 0.8]), MaskConfig())
    assert set(out.output[out.level == 0]) == {0, 1} and set(out.output[out.level == 1]) == {1, 2}
    row = {(int(n), int(o)): i for i, (n, o) in enumerate(zip(out.level, out.output))}
    assert out.sp[7, 7] == row[0, 1]  # overlap: 0.99 beats 0.9
    assert out.sp[1, 1] == row[0, 0] and out.sp[19, 29] == -1
    assert out.wp[7, 7] == row[1, 1] and out.wp[1, 1] == row[1, 2]


def test_one_region_found_by_two_outputs_counts_once_per_level():
    region = boxes((0, 0, 12, 12), (0, 0, 12, 12), (0, 0, 12, 12))
    out, counts = build_view_masks(
        candidates(region, [0, 1, 2], iou=[0.9, 0.95, 0.92]), MaskConfig()
    )
    assert sorted(out.level) == [0, 1] and set(out.output) == {1} and counts.across_outputs == 2
    out, counts = build_view_masks(
        candidates(region, [0, 1, 2], iou=[0.9, 0.95, 0.92]),
        MaskConfig(overlap_across_outputs=False),
    )
    assert counts.across_outputs == 0 and counts.covered == 2  # identical masks cannot both be seen


def test_label_maps_and_table_belong_together():
    rng = np.random.default_rng(0)
    masks = boxes(*[(x, y, x + 8, y + 6) for x, y in rng.integers(0, 20, (30, 2))])
    out, counts = build_view_masks(
        candidates(masks, rng.integers(0, 3, 30), iou=rng.uniform(0.8, 1, 30)),
        MaskConfig(min_area_px=12),
    )
    for n, level in enumerate(("sp", "wp")):
        shown = np.unique(out.label_map(level)[out.label_map(level) >= 0])
        assert np.array_equal(shown, np.flatnonzero(out.level == n))
        for i in shown:
            assert (out.label_map(level) == i).sum() >= 12
            assert (out.masks[i] | (out.label_map(level) != i)).all()  # never outside its full mask
    assert counts.candidates == 30 and counts.kept == len(out)
    assert np.array_equal(out.area, out.masks.sum((1, 2))) and tuple(out.bbox[0]) == mask_box(
        out.masks[0]
    )


def test_small_remainders_give_their_pixels_back():
    big, small = boxes((0, 0, 20, 20), (18, 0, 22, 1))
    label, shown = paint(np.stack([big, small]), np.array([0.8, 0.9]), min_area=10)
    assert shown.tolist() == [0] and (label[0, 18:20] == 0).all()


def test_low_scores_and_empty_masks_are_dropped():
    masks = boxes((0, 0, 9, 9), (0, 0, 0, 0), (10, 0, 19, 9), (20, 0, 29, 9))
    out, counts = build_view_masks(
        candidates(masks, [1] * 4, iou=[0.6, 0.95, 0.95, 0.95], stability=[0.95, 0.95, 0.8, 0.95]),
        MaskConfig(),
    )
    assert counts.low_score == 3 and len(out) == 2  # one mask, in both levels


def test_a_view_without_masks_is_an_empty_set():
    out, _ = build_view_masks(candidates(np.zeros((0, 6, 7), bool), np.zeros(0, int)), MaskConfig())
    assert len(out) == 0 and (out.sp == -1).all() and out.wp.shape == (6, 7)
    again = unpack(pack(out))
    assert len(again) == 0 and again.masks.shape == (0, 6, 7)


def test_storage_round_trip():
    rng = np.random.default_rng(1)
    masks = rng.random((5, 11, 13)) < 0.5
    masks[0, 0, 0], masks[1, 0, 0], masks[2, -1, -1], masks[3, -1, -1] = True, False, True, False
    for m in masks:
        assert np.array_equal(rle_decode(rle_encode(m), m.shape), m)
    out, _ = build_view_masks(candidates(masks, [0, 1, 2, 0, 1]), MaskConfig())
    again = unpack(pack(out))
    for name in (
        "level",
        "output",
        "predicted_iou",
        "stability",
        "area",
        "bbox",
        "masks",
        "sp",
        "wp",
    ):
        assert np.array_equal(getattr(out, name), getattr(again, name)), name
    with pytest.raises(MaskError, match="recompute the masks"):
        rle_decode(rle_encode(masks[0]), (11, 14))


def test_malformed_candidates_are_refused():
    masks = boxes((0, 0, 9, 9))
    with pytest.raises(MaskError, match="stability of mask 0 is not finite"):
        build_view_masks(candidates(masks, [0], stability=[np.nan]), MaskConfig())
    with pytest.raises(MaskError, match="outputs 0, 1, 2"):
        build_view_masks(candidates(masks, [3]), MaskConfig())
    with pytest.raises(MaskError, match=r"predicted_iou has shape \(2,\)"):
        build_view_masks(candidates(masks, [0], iou=[0.9, 0.9]), MaskConfig())
    with pytest.raises(MaskError, match="bool"):
        build_view_masks(
            Candidates(masks.astype(float), np.array([0]), np.array([0.9]), np.array([0.9])),
            MaskConfig(),
        )


def test_recall_counts_regions_found():
    truth = np.zeros((20, 30), int)
    truth[0:10, 0:10], truth[12:18, 12:20] = 3, 5
    out, _ = build_view_masks(candidates(boxes((0, 0, 9, 10)), [1]), MaskConfig())
    assert recall(out, "sp", truth) == (1, 2)
    assert recall(out, "sp", truth, min_area=60) == (1, 1)
