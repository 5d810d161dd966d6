"""Checks of the notebooks' exercises: properties that every right answer has, with a hint where one
is missing.

``check_X(function)`` takes the reader's function and raises ExerciseError. In a notebook `attempt`
prints the outcome instead, so that an unsolved exercise stops nothing. Each exercise is a code cell
tagged "exercise" that defines the function and attempts it; ``notebooks/solutions/<notebook>.py``
holds a function of the same name. A test proves that solutions pass and that the blanks in the
notebooks don't.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch

from ..errors import ExerciseError
from ..evaluation import ovs3d
from ..evaluation.statistics import sign_flip_p
from ..method.codebook import assign, ccl_loss
from ..method.masks import mask_nms
from ..method.query import relevancy, select_level_by_mask_mean
from ..method.tracking import associate, iou_matrix
from ..scenes.scene import Camera

TOLERANCE = 1e-4


def attempt(check: Callable[[Callable], None], function: Callable) -> None:
    """Print whether the reader's function passes a check; never raises."""
    try:
        check(function)
    except ExerciseError as e:
        print(f"{function.__name__}: not yet. {e}")
    else:
        print(f"{function.__name__}: right, every property holds")


# ----------------------------------------------------------------- 00: a scene


def check_projection(function: Callable[[np.ndarray, np.ndarray, np.ndarray], Any]) -> None:
    """``function(K, world_to_camera, points)``: pixel positions [P, 2] (x, y) of world points [P,
    3]; K [3, 3], world_to_camera [4, 4], x right, y down, z forward.
    """
    K, here = np.array([[100.0, 0, 40], [0, 120.0, 30], [0, 0, 1]]), np.eye(4)
    at = lambda pose, *points: _array(
        function, K, pose, np.array(points, float), shape=(len(points), 2)
    )
    found = at(here, (0, 0, 2))[0]
    hint = "A point straight ahead falls on the principal point (K[0, 2], K[1, 2]). Its"
    _expect(found[0], 40, f"{hint} x")
    _expect(found[1], 30, f"{hint} y")
    found = at(here, (1, 0, 2), (0, 1, 2))
    _expect(
        found[0, 0],
        40 + 100 / 2,
        "One unit to the right at distance 2, focal length 100: things shrink with distance. The x",
    )
    hint = "One unit down at distance 2: y points down, and has a focal length of its own. The y"
    _expect(found[1, 1], 30 + 120 / 2, hint)
    moved = np.eye(4)
    moved[0, 3] = 1  # the camera stands at x = -1
    _expect(
        at(moved, (0, 0, 2))[0, 0],
        40 + 100 / 2,
        "world_to_camera says where the world's origin stands before the camera; this one puts it"
        " one unit to the right. The x of a point 2 before it",
    )
    rolled = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    _expect(
        at(rolled, (1, 0, 2))[0, 1],
        30 + 120 / 2,
        "A camera rolled by a quarter turn, before which the world's x points down: rotate with"
        " world_to_camera[:3, :3] itself, not with its transpose. The y",
    )
    rng = np.random.default_rng(12)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = np.linalg.qr(rng.normal(size=(3, 3)))[0], (0.3, -0.2, 6)
    points = rng.normal(size=(9, 3))
    value = at(pose, *points)
    _same(value, Camera(K, pose, 80, 60).project(points)[0], "Camera.project on random points")


# ----------------------------------------------------------------- 01: masks


def check_stability(function: Callable[[np.ndarray, float], Any]) -> None:
    """``function(logits, offset)``: stability [M] of masks given as logits [M, H, W], IoU of the
    mask cut at +offset with the one cut at -offset; 0 where the larger is empty.
    """
    logits = np.array(
        [
            [[3.0, 3, -3, -3]],
            [[3.0, 0.5, -3, -3]],
            [[3.0, 0.5, -0.5, -0.2]],
            [[0.5, -0.5, 0, -3]],
            [[-3.0, -3, -3, -3]],
        ]
    )
    found = _array(function, logits, 1.0, shape=(5,))
    hint = "A mask whose logits are all far from 0 is the same at both cuts. Its stability"
    _expect(found[0], 1.0, hint)
    _expect(found[1], 1 / 2, "One pixel above +1, two above -1. The stability")
    _expect(found[2], 1 / 4, "One pixel above +1, four above -1. The stability")
    _expect(found[3], 0.0, "Nothing above +1, three pixels above -1. The stability")
    _expect(found[4], 0.0, "Nothing above either cut: catch the division. The stability")
    _expect(
        _array(function, logits[2:3], 0.1, shape=(1,))[0],
        1.0,
        "Two pixels above +0.1 and the same two above -0.1: use the offset that is passed. The"
        " stability",
    )
    hint = "Logits of exactly +1 and -1 are not above the cuts at +1 and -1. The stability"
    _expect(_array(function, np.array([[[1.0, 2, -1]]]), 1.0, shape=(1,))[0], 1 / 2, hint)
    logits = np.random.default_rng(10).normal(size=(6, 9, 7)) * 3
    from segment_anything.utils.amg import calculate_stability_score

    by = "segment_anything's calculate_stability_score on random logits"
    value = _array(function, logits, 1.0, shape=(6,))
    _same(value, calculate_stability_score(torch.from_numpy(logits), 0.0, 1.0).numpy(), by)


def check_nms(function: Callable[[np.ndarray, np.ndarray, float], Any]) -> None:
    """``function(masks, score, iou_max)``: which masks [M] bool stay when each whose IoU with any
    mask of higher score exceeds iou_max goes; masks [M, H, W] bool of one output, score [M].
    """
    masks, score = _strip("111100", "111000", "000011", "110000"), np.array([0.9, 0.8, 0.7, 0.6])
    found = _array(function, masks, score, 0.7, shape=(4,))
    hint = "The mask with the highest score has nothing better beside it. Kept (1) or not (0)"
    _expect(found[0], 1, hint)
    hint = "A mask that overlaps a better one with IoU 3/4, limit 0.7. Kept (1) or not (0)"
    _expect(found[1], 0, hint)
    _expect(found[2], 1, "A mask that touches no other. Kept (1) or not (0)")
    _expect(
        _array(function, masks[::-1], score[::-1], 0.7, shape=(4,))[2],
        0,
        "The same masks in another order: the score decides, not the place in the list. Kept (1) or"
        " not (0)",
    )
    hint = "An IoU of exactly iou_max does not exceed it. Kept (1) or not (0)"
    _expect(_array(function, masks[:2], score[:2], 0.75, shape=(2,))[1], 1, hint)
    hint = "IoU 3/4 with iou_max = 0.8: use the limit that is passed. Kept (1) or not (0)"
    _expect(_array(function, masks[:2], score[:2], 0.8, shape=(2,))[1], 1, hint)
    chain = _array(function, masks[[0, 1, 3]], score[[0, 1, 3]], 0.6, shape=(3,))
    _expect(
        chain[2],
        0,
        "A mask whose only strong overlap (2/3, limit 0.6) is with a better mask that is dropped"
        " itself goes all the same: this rule is not greedy. Kept (1) or not (0)",
    )
    rng = np.random.default_rng(11)
    masks, score = (
        rng.random((4, 8, 8))[np.arange(20) % 4] + 0.25 * rng.random((20, 8, 8)) < 0.6,
        rng.permutation(20) / 20 + 0.05,
    )
    kept = np.isin(
        np.arange(20),
        mask_nms(masks, score, np.ones(20), iou_thr=0.7, score_thr=0.0, inner_thr=0.0),
    )
    value = _array(function, masks, score, 0.7, shape=(20,)).astype(int)
    _same(value, kept.astype(int), "cclkit.method.masks.mask_nms on random masks")


# ----------------------------------------------------------------- 02: tracks


def check_iou(function: Callable[[np.ndarray, np.ndarray], Any]) -> None:
    """``function(a, b)``: IoU [M, K] of two sets of masks [M, H, W] and [K, H, W], bool."""
    a, b = _strip("110000", "001111", "000000"), _strip("111000", "000011", "000000", "110000")
    found = _array(function, a, b, shape=(3, 4))
    _expect(found[0, 3], 1.0, "The IoU of a mask with itself")
    _expect(found[0, 0], 2 / 3, "Two pixels inside three: intersection 2, union 3. Their IoU")
    hint = "Four pixels and three that share one: the union counts the shared pixel once. Their IoU"
    _expect(found[1, 0], 1 / 6, hint)
    _expect(found[0, 1], 0.0, "The IoU of masks that do not touch")
    _expect(
        found[2, 2], 0.0, "Two empty masks have the union 0: catch the division; their IoU here"
    )
    if np.abs(_array(function, b, a, shape=(4, 3)) - found.T).max() > TOLERANCE:
        raise ExerciseError("IoU is symmetric, yours changes when the two sets change places.")
    a, b = np.random.default_rng(0).random((2, 5, 9, 7)) < 0.4
    value = _array(function, a, b, shape=(5, 5))
    _same(value, iou_matrix(a, b), "cclkit.method.tracking.iou_matrix on random masks")


def check_association(function: Callable[[np.ndarray, np.ndarray, float], Any]) -> None:
    """``function(masks, propagated, iou_min)``: track label of each mask [M], 1..K or -1; masks [M,
    H, W], propagated [K, H, W], bool.
    """
    masks, carried = _strip("111100", "000011", "001100"), _strip("000011", "111000", "000000")
    found = _array(function, masks, carried, 0.5, shape=(3,))
    _expect(found[1], 1, "A mask equal to the first carried mask: tracks count from 1. Its label")
    _expect(found[0], 2, "A mask that overlaps the second carried mask with IoU 3/4. Its label")
    _expect(found[2], -1, "A mask whose best IoU is 1/4, below 0.5. Its label")
    hint = "An IoU of exactly iou_min is not greater than iou_min. The label"
    _expect(_array(function, masks[:1], carried, 0.75, shape=(1,))[0], -1, hint)
    hint = "IoU 3/4 with iou_min = 0.7: use the threshold that is passed. The label"
    _expect(_array(function, masks[:1], carried, 0.7, shape=(1,))[0], 2, hint)
    hint = "A mask and a carried mask that are both empty match nothing. The label"
    _expect(_array(function, _strip("000000"), carried, 0.5, shape=(1,))[0], -1, hint)
    rng = np.random.default_rng(1)
    carried = rng.random((6, 8, 8)) < 0.5
    masks = carried[[3, 0, 5, 5, 2]] ^ (rng.random((5, 8, 8)) < 0.15)
    by = "cclkit.method.tracking.associate on random masks"
    _same(_array(function, masks, carried, 0.5, shape=(5,)), associate(masks, carried, 0.5)[0], by)


# ----------------------------------------------------------------- 03: the codebook


def check_assign(function: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
    """``function(prototypes, features)``: code of each feature [B], the prototype [N, d] with the
    largest cosine.
    """
    T, F = _t([[1, 0], [0, 1], [-1, 0]]), _t([[0.9, 0.1], [0.2, 0.5], [-3, 0.1], [0, 2]])
    found = _array(function, T, F, shape=(4,))
    if (found != [0, 1, 2, 1]).any():
        raise ExerciseError(
            "Features at 6°, 68°, 178° and 90°, prototypes at 0°, 90° and 180°: expected the codes"
            f" [0, 1, 2, 1], found {found.tolist()}."
        )
    if (_array(function, T * _t([[1], [100], [1]]), F, shape=(4,)) != found).any():
        raise ExerciseError(
            "Making one prototype 100 times longer changes your codes. A cosine ignores lengths:"
            " divide the prototypes by theirs."
        )
    T, F = _random(7, 5, 0), _random(40, 5, 1)
    value = _array(function, T, F, shape=(40,))
    _same(value, assign(T, F).numpy(), "cclkit.method.codebook.assign on random vectors")


def check_l_max(function: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]) -> None:
    """``function(prototypes, features, codes)``: L_max, the mean over features [B, d] of 1 -
    cos(F_i, T_{j_i}); codes [B].
    """
    answer = partial(_scalar, function)
    T, F = _t([[1, 0], [0, 1]]), _t([[1, 0], [0, 1], [0, 1]])
    hint = "Every feature on its own prototype: no distance is left. The loss"
    _expect(answer(T, F, _i([0, 1, 1])), 0.0, hint)
    _expect(
        answer(T, F, _i([1, 0, 0])),
        1.0,
        "Every feature at right angles to its prototype: cosine 0, distance 1, and the loss is a"
        " mean, not a sum. The loss",
    )
    _expect(answer(T, F, _i([0, 0, 0])), 2 / 3, "Distances 0, 1 and 1. The loss")
    T, F, j = _random(6, 4, 2), _random(30, 4, 3), _i(np.random.default_rng(4).integers(0, 6, 30))
    value = answer(T, F, j)
    hint = "Other lengths of prototypes and features leave a cosine as it was. The loss"
    _expect(answer(3 * T, 0.5 * F, j), value, hint)
    codes = assign(T, F)
    _expect(
        answer(T, F, codes),
        float(
            ccl_loss(T, F, torch.full((30,), -1), lambda_pull=0.0, lambda_push=0.0, margin=0.7).max
        ),
        "Random vectors with their nearest prototypes. cclkit.method.codebook.ccl_loss says"
        " another value for L_max than yours. The loss",
    )
    _gradient(lambda t: function(t, F.clone(), j.clone()), T)


def check_l_pull(function: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]) -> None:
    """``function(prototypes, codes, labels)``: L_pull, the mean over pairs of masks with equal
    labels (not -1) of 1 - cos(T_{j_i}, T_{j_k}); codes, labels [B].
    """
    answer = partial(_scalar, function)
    T = _t([[1, 0], [0, 1], [1, 1]])
    value = answer(T, _i([0, 0, 1, 1]), _i([1, 1, 2, 2]))
    _expect(value, 0.0, "Each track on one prototype: nothing to pull. The loss")
    _expect(
        answer(T, _i([0, 1, 2]), _i([1, 1, 2])),
        1.0,
        "One pair of equal labels, on prototypes at right angles; the third mask is alone and no"
        " pair with itself. The loss",
    )
    hint = "Three masks of one track make three pairs, with distances 0, 1, 1. The loss"
    _expect(answer(T, _i([0, 0, 1]), _i([5, 5, 5])), 2 / 3, hint)
    hint = "Masks without a track (y = -1) belong to no pair, not even with each other. The loss"
    _expect(answer(T, _i([0, 1, 0, 0]), _i([1, 1, -1, -1])), 1.0, hint)
    value = answer(T, _i([0, 0, 1]), _i([1, 1, -1]))
    _expect(value, 0.0, "Masks without a track (y = -1) belong to no pair. The loss")
    value = answer(T, _i([0, 1]), _i([1, 2]))
    _expect(value, 0.0, "No two masks share a label: a mean over nothing would be nan. The loss")
    T, j, y = _contrast_case()
    value = answer(2 * T, j, y)
    _expect(value, answer(T, j, y), "Prototypes twice as long have the same cosines. The loss")
    value = answer(T, j.flip(0), y.flip(0))
    _expect(value, answer(T, j, y), "The order of the masks must not matter. The loss")
    value = answer(T, j, y)
    _expect(value, float(_reference(T, j, y).pull), "Random prototypes, codes and labels. The loss")
    _gradient(lambda t: function(t, j.clone(), y.clone()), T)


def check_l_push(
    function: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], Any],
) -> None:
    """``function(prototypes, codes, labels, margin)``: L_push, the mean over pairs with different
    labels (neither -1) of max(0, cos(T_{j_i}, T_{j_k}) - margin).
    """
    answer = partial(_scalar, function)
    T = _t([[1, 0], [0, 1], [0.8, 0.6]])
    value = answer(T, _i([0, 1]), _i([1, 2]), 0.7)
    _expect(value, 0.0, "Two tracks at cosine 0, below the margin, are left alone. The loss")
    value = answer(T, _i([0, 2]), _i([1, 2]), 0.7)
    _expect(value, 0.1, "Two tracks at cosine 0.8 with margin 0.7. The loss")
    hint = "Two tracks at cosine 0.8 with margin 0.5: use the margin that is passed. The loss"
    _expect(answer(T, _i([0, 2]), _i([1, 2]), 0.5), 0.3, hint)
    value = answer(T, _i([0, 0]), _i([1, 2]), 0.7)
    _expect(value, 0.3, "Two tracks on one prototype: cosine 1 minus the margin. The loss")
    _expect(answer(T, _i([0, 0]), _i([1, 1]), 0.7), 0.0, "One track pushes nothing away. The loss")
    _expect(
        answer(T, _i([0, 1, 2]), _i([1, 2, 3]), 0.7),
        0.1 / 3,
        "Three pairs of different tracks, one above the margin: the mean is over all three. The"
        " loss",
    )
    value = answer(T, _i([0, 2, 0, 2]), _i([1, -1, -1, 1]), 0.7)
    _expect(value, 0.0, "Masks without a track (y = -1) push nothing. The loss")
    T, j, y = _contrast_case()
    value = answer(2 * T, j, y, 0.2)
    _expect(value, answer(T, j, y, 0.2), "Prototypes twice as long have the same cosines. The loss")
    hint = "Random prototypes, codes and labels, margin 0.2. The loss"
    _expect(answer(T, j, y, 0.2), float(_reference(T, j, y, 0.2).push), hint)
    _gradient(lambda t: function(t, j.clone(), y.clone(), 0.2), T)


# ----------------------------------------------------------------- 04: splatting


def check_weights(function: Callable[[torch.Tensor], Any]) -> None:
    """``function(alphas)``: weights [n] of the Gaussians of a pixel, from their alphas [n], nearest
    first.
    """
    found = _array(function, _t([0.5, 0.5, 0.5]), shape=(3,))
    _expect(found[0], 0.5, "Nothing is in front of the nearest Gaussian. Its weight")
    _expect(found[1], 0.25, "The second of three with alpha 1/2 sees half of the light. Its weight")
    _expect(
        found[2], 0.125, "The third sees what the first two let through, half of a half. Its weight"
    )
    found = _array(function, _t([0.2, 1.0, 0.9]), shape=(3,))
    _expect(found[1], 0.8, "An opaque Gaussian behind one with alpha 0.2. Its weight")
    _expect(found[2], 0.0, "Whatever is behind an opaque Gaussian. Its weight")
    _array(function, torch.zeros(0, dtype=torch.float64), shape=(0,))  # a pixel that nothing covers
    alphas = torch.from_numpy(np.random.default_rng(12).random(9)) * 0.8
    found = _array(function, alphas, shape=(9,))
    hint = "What nine Gaussians do not let through is what their weights sum to. The sum"
    _expect(found.sum(), 1 - float((1 - alphas).prod()), hint)
    hint = "The fifth weight is its alpha times the product of one minus the four before. It"
    _expect(found[4], float(alphas[4] * (1 - alphas[:4]).prod()), hint)
    mixed = torch.from_numpy(np.random.default_rng(13).random(9))
    _gradient(lambda a: (function(a) * mixed).sum(), alphas, "alphas")


def check_bag(function: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]) -> None:
    """``function(features, ids, weights)``: pixels [P, d], each the weighted sum of K rows of
    features [G, d]; ids [P, K] int64, weights [P, K], weight 0 where unused.
    """
    f, ids, w = (
        _t([[1, 0], [0, 1], [10, 10]]),
        _i([[0, 1], [2, 2], [1, 0]]),
        _t([[0.5, 0.25], [0.1, 0.2], [1.0, 0.0]]),
    )
    found = _array(function, f, ids, w, shape=(3, 2))
    _expect(
        found[0, 0],
        0.5,
        "Half of row 0 (1, 0) and a quarter of row 1 (0, 1): a sum with the weights as they are,"
        " not a mean. The pixel's first number",
    )
    hint = "Half of row 0 (1, 0) and a quarter of row 1 (0, 1). The pixel's second number"
    _expect(found[0, 1], 0.25, hint)
    _expect(
        found[1, 0],
        3.0,
        "A row that stands in a pixel twice counts twice: 0.1 and 0.2 of 10. The pixel's first"
        " number",
    )
    hint = "An entry of weight 0 is unused, whatever its id. The pixel's first number"
    _expect(found[2, 0], 0.0, hint)
    f, ids, w = (
        _random(12, 5, 14),
        _i(np.random.default_rng(15).integers(0, 12, (30, 4))),
        torch.from_numpy(np.random.default_rng(16).random((30, 4))),
    )
    wanted = torch.nn.functional.embedding_bag(ids, f, per_sample_weights=w, mode="sum").numpy()
    value = _array(function, f, ids, w, shape=(30, 5))
    _same(value, wanted, "torch's embedding_bag on random features")
    _gradient(lambda x: (function(x, ids.clone(), w.clone()) ** 2).sum(), f, "features")


# ----------------------------------------------------------------- 05: queries


def check_relevancy(
    function: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], Any],
) -> None:
    """``function(features, text, canonical, scale)``: LERF's relevancy [M] of one text vector [d]
    for features [M, d], against phrases [C, d].
    """
    e = torch.eye(4, dtype=torch.float64)
    found = _array(function, e[:3], e[0], e[1:2], 10.0, shape=(3,))
    _expect(
        found[0],
        1 / (1 + np.exp(-10)),
        "A feature equal to the text, at right angles to the only phrase: 1 / (1 + exp(-10)). The"
        " relevancy",
    )
    hint = "A feature equal to the phrase, at right angles to the text. The relevancy"
    _expect(found[1], 1 / (1 + np.exp(10)), hint)
    _expect(found[2], 0.5, "A feature that is nothing of either: an even contest. The relevancy")
    _expect(
        _array(function, e[:1], e[0], e[:2], 10.0, shape=(1,))[0],
        0.5,
        "One of the phrases is the text itself, and the weakest contest counts (a minimum, not a"
        " mean). The relevancy",
    )
    _expect(
        _array(function, e[3:], e[0], e[1:3], 10.0, shape=(1,))[0],
        0.5,
        "A feature that is nothing of text or phrases: every contest is one against one, and even."
        " The relevancy",
    )
    F, text, phrases = (
        x / x.norm(dim=-1, keepdim=True)
        for x in (_random(50, 8, 7), _random(1, 8, 8)[0], _random(4, 8, 9))
    )
    some, more = (
        _array(function, F, text, phrases[:3], 10.0, shape=(50,)),
        _array(function, F, text, phrases, 10.0, shape=(50,)),
    )
    if (more > some + TOLERANCE).any():
        raise ExerciseError(
            "One more canonical phrase is one more opponent: it can lower the relevancy, never"
            " raise it. Yours rises somewhere."
        )
    if (some.min() < 0) or (some.max() > 1):
        raise ExerciseError(
            f"A relevancy is a probability; yours runs from {some.min():.3g} to {some.max():.3g}."
        )
    # _array refuses what is not finite
    hot = _array(function, F, text, phrases, 2000.0, shape=(50,))
    if (hot < -TOLERANCE).any() or (hot > 1 + TOLERANCE).any():
        raise ExerciseError(
            "With a scale of 2000 your relevancy leaves 0..1: exp overflows; write the quotient as"
            " a sigmoid of a difference."
        )
    for scale in (10.0, 3.0):
        _same(
            _array(function, F, text, phrases, scale, shape=(50,)),
            relevancy(F, text[None], phrases, scale=scale)[0].numpy(),
            f"cclkit.method.query.relevancy on random vectors at scale {scale:g}",
        )


# ----------------------------------------------------------------- 06: classes


def check_class_ious(function: Callable[[np.ndarray, np.ndarray], Any]) -> None:
    """``function(scores, truth)``: IoU [C] of every class when all compete for every pixel; scores
    [C, H, W], truth [H, W] the index of the true class.
    """
    truth = np.array([[0, 0, 1, 1, 1, 2]])
    scores = np.array(
        [
            [[0.9, 0.2, 0.1, 0.1, 0.6, 0.3]],
            [[0.1, 0.1, 0.8, 0.3, 0.2, 0.4]],
            [[0.0, 0.1, 0.1, 0.2, 0.1, 0.1]],
            [[-1.0] * 6],
        ]
    )
    found = _array(function, scores, truth, shape=(4,))
    hint = "Class 0 has two pixels, is answered in three, and two of these are right. Its IoU"
    _expect(found[0], 2 / 3, hint)
    hint = "Class 1 has three pixels, is answered in three, and two of these are right. Its IoU"
    _expect(found[1], 2 / 4, hint)
    _expect(found[2], 0.0, "Class 2 is never answered where it is. Its IoU")
    _expect(
        found[3],
        0.0,
        "A class that is neither there nor answered: catch the division; the protocol counts 0."
        " Its IoU",
    )
    shifted = _array(
        function, scores - 5 * np.random.default_rng(17).random((1, 1, 6)), truth, shape=(4,)
    )
    if np.abs(shifted - found).max() > TOLERANCE:
        raise ExerciseError(
            "The same number added to all classes of a pixel changes your answer. There is no"
            " threshold here: only the classes compete."
        )
    hint = "Two classes tie everywhere: the first one wins. The IoU of class 0"
    _expect(_array(function, np.zeros((2, 1, 2)), np.array([[0, 1]]), shape=(2,))[0], 1 / 2, hint)
    rng = np.random.default_rng(18)
    scores, truth = rng.random((5, 12, 9)), rng.integers(0, 5, (12, 9))
    wanted = ovs3d.evaluate_view(
        scores, np.arange(5)[:, None, None] == truth, protocol="ovs3d_argmax"
    ).ious
    value = _array(function, scores, truth, shape=(5,))
    _same(value, wanted, "cclkit.evaluation.ovs3d.evaluate_view on random scores")


def check_level(function: Callable[[np.ndarray, float], Any]) -> None:
    """``function(maps, threshold)``: index of the level whose relevancy is highest on average
    inside its own mask, map > threshold; maps [L, H, W]. Without any mask, 0.
    """
    answer = partial(_scalar, function)
    maps = np.array([[[0.9, 0.5, 0.5, 0.1]], [[0.8, 0.8, 0.0, 0.0]]])
    _expect(
        answer(maps, 0.4),
        1,
        "Level 0 has 0.9, 0.5 and 0.5 above 0.4, mean 0.63; level 1 has 0.8 twice. The mean counts,"
        " not the maximum, and only what is inside the mask. The level",
    )
    _expect(
        answer(maps, 0.6),
        0,
        "Above 0.6 level 0 keeps one pixel of 0.9, level 1 two of 0.8: use the threshold that is"
        " passed. The level",
    )
    _expect(answer(maps[::-1], 0.4), 0, "The same two levels in the other order. The level")
    value = answer(np.array([[[0.3, 0.39]], [[0.0, 0.41]]]), 0.4)
    _expect(value, 1, "Only level 1 has anything above 0.4. The level")
    hint = "Level 0 has 0.9 and 0.4, and 0.4 is not above 0.4; level 1 has 0.8. The level"
    _expect(answer(np.array([[[0.9, 0.4]], [[0.8, 0.0]]]), 0.4), 0, hint)
    _expect(
        answer(np.zeros((3, 2, 2)), 0.4), 0, "No level has a mask: nothing to average. The level"
    )
    for seed in range(20):
        maps = np.random.default_rng(100 + seed).random((3, 5, 4)) ** 2
        _expect(
            answer(maps, 0.4),
            select_level_by_mask_mean(maps, maps > 0.4),
            "Random maps. cclkit.method.query.select_level_by_mask_mean says another level than"
            " yours. The level",
        )


# ----------------------------------------------------------------- 07: statistics


def check_sign_flip(function: Callable[[np.ndarray], Any]) -> None:
    """``function(means)``: exact two-sided p of the sign-flip test: the share of all 2^n sign
    patterns whose sum is at least as far from 0 as that of the means [n].
    """
    answer = partial(_scalar, function)
    a = lambda *x: np.array(x, float)
    _expect(answer(a(2.0)), 1.0, "One scene: +2 and -2 are equally far from 0. p")
    _expect(
        answer(a(1.0, 2, 3)),
        2 / 8,
        "Three scenes that all gain: of 8 patterns only all plus and all minus are as far from 0 as"
        " 6. p",
    )
    _expect(answer(a(-1.0, -2, -3)), 2 / 8, "Three scenes that all lose: the test is two-sided. p")
    _expect(
        answer(a(3.0, -1)),
        1.0,
        "Gains of 3 and -1 sum to 2: the sums 4, 2, -2, -4 are all at least as far from 0; equally"
        " far counts. p",
    )
    hint = "Gains of 3, 2 and -1 sum to 4; the sums ±6 and ±4 are at least as far from 0. p"
    _expect(answer(a(3.0, 2, -1)), 4 / 8, hint)
    _expect(answer(a(0.0, 0, 0)), 1.0, "No scene differs: every pattern sums to 0. p")
    x = np.random.default_rng(19).normal(0.5, 1, 7)
    _expect(answer(1000 * x), answer(x), "In other units p is the same. p")
    for seed in range(5):
        x = np.random.default_rng(20 + seed).normal(0.7, 1, 9)
        _expect(
            answer(x),
            sign_flip_p(x),
            "Nine random gains. cclkit.evaluation.statistics.sign_flip_p says another value than"
            " yours. p",
        )


def check_draw(
    function: Callable[[list[np.ndarray], np.random.Generator], Any], draws: int = 4000
) -> None:
    """``function(differences, rng)``: mean of one hierarchical bootstrap draw: scenes with
    replacement, then for each one taken its seeds with replacement; every scene weighs alike.

    Draws are random, so their frequencies are compared, with a tolerance of five standard errors.
    """
    rng = np.random.default_rng(21)

    def frequency(differences: list[list[float]], value: float) -> float:
        drawn = np.array(
            [_draw(function, [np.array(d, float) for d in differences], rng) for _ in range(draws)]
        )
        return float((np.abs(drawn - value) < 1e-9).mean())

    def often(differences, value: float, expected: float, what: str) -> None:
        found = frequency(differences, value)
        if abs(found - expected) > 5 * np.sqrt(expected * (1 - expected) / draws) + 1e-12:
            raise ExerciseError(
                f"{what} A draw should be {value:g} in {100 * expected:.1f} % of the cases, found"
                f" {100 * found:.1f} %."
            )

    often([[3.0]], 3.0, 1.0, "One scene with one seed: nothing else can be drawn.")
    often(
        [[0.0], [1.0]],
        0.5,
        1 / 2,
        "Two scenes, one seed each: scenes are drawn with replacement, so both are 0, both 1, or"
        " one of each.",
    )
    often(
        [[0.0, 1.0]], 0.5, 1 / 2, "One scene with two seeds: its seeds are drawn with replacement."
    )
    often(
        [[0.0], [1.0] * 9],
        0.5,
        1 / 2,
        "A scene with one seed beside one with nine: scenes weigh alike, however many seeds they"
        " have.",
    )
    often(
        [[0.0, 1.0], [0.0, 1.0]],
        0.0,
        1 / 16,
        "Two scenes with the seeds 0 and 1: each time that a scene is taken its seeds are drawn"
        " anew.",
    )


# ----------------------------------------------------------------- 08: a codebook and its tracks


def check_own_prototypes(function: Callable[[np.ndarray, np.ndarray, int], Any]) -> None:
    """``function(codes, labels, n)``: which of n prototypes [n] bool serve exactly one track; codes
    [M] of all masks, labels [M] their tracks, -1 without one.
    """
    case = lambda codes, labels, n=5: _array(
        function, np.array(codes), np.array(labels), n, shape=(n,)
    )
    found = case([0, 0, 1, 1, 2, 3], [7, 7, 7, 8, -1, 9])
    _expect(found[0], 1, "Two masks of one track. Whether their prototype serves exactly one track")
    _expect(found[1], 0, "Masks of two tracks. Whether their prototype serves exactly one track")
    _expect(
        found[2],
        0,
        "A single mask without a track (-1 names none). Whether its prototype serves exactly one"
        " track",
    )
    _expect(found[3], 1, "One mask, with a track. Whether its prototype serves exactly one track")
    _expect(found[4], 0, "No mask at all. Whether that prototype serves exactly one track")
    _expect(
        case([0, 0], [7, -1])[0],
        1,
        "A mask of a track beside one without: -1 is no second track. Whether the prototype serves"
        " exactly one track",
    )
    hint = "A track that is spread over two prototypes: each serves that track alone. The second"
    _expect(case([0, 1], [7, 7])[1], 1, hint)
    rng = np.random.default_rng(13)
    codes, labels = rng.integers(0, 12, 40), rng.integers(0, 9, 40) - 1
    labels[labels == 0] = -1
    wanted = np.array(
        [len(set(labels[(codes == c) & (labels > 0)].tolist())) == 1 for c in range(12)]
    )
    value = case(codes, labels, 12).astype(int)
    _same(value, wanted.astype(int), "a count of different tracks per prototype on random codes")


# ----------------------------------------------------------------- 90: scoring a tracker


def check_j(function: Callable[[np.ndarray, np.ndarray, int], Any]) -> None:
    """``function(carried, truth, min_px)``: mean IoU of carried masks [V, H, W] with the true ones
    over the views after the first in which the object is visible with min_px pixels or more; NaN
    without such a view.
    """
    truth, carried = (
        _strip("1111", "1110", "1000", "0000")[:, 0][:, None],
        _strip("0000", "1100", "1000", "0110")[:, 0][:, None],
    )
    score = lambda a, b, n: _score(function, a, b, n)
    value = score(carried[:2], truth[:2], 1)
    _expect(value, 2 / 3, "Two views; in the first the mask is given, so only the second counts. J")
    value = score(carried[:3], truth[:3], 1)
    _expect(value, (2 / 3 + 1) / 2, "Three views, IoU 2/3 and 1 in the two that count. J")
    hint = "The same with min_px = 2: a view that shows one pixel of the object does not count. J"
    _expect(score(carried[:3], truth[:3], 2), 2 / 3, hint)
    _expect(
        score(carried, truth, 1),
        (2 / 3 + 1) / 2,
        "A fourth view hides the object, and something is answered there: J leaves it out (false"
        " answers are counted apart). J",
    )
    value = score(carried[:, :, ::-1][:2], truth[:2], 1)
    _expect(value, 1 / 4, "A mask that is one pixel too far to the right in the second view. J")
    if not np.isnan(score(carried[[0, 3]], truth[[0, 3]], 1)):
        raise ExerciseError(
            "Where no later view shows the object there is nothing to take a mean of: return NaN."
        )
    rng = np.random.default_rng(14)
    carried, truth = rng.random((2, 6, 5, 5)) < 0.5
    hint = "On random masks J, the mean IoU of views 2 to 6,"
    value = score(carried, truth, 3)
    _expect(value, float(np.mean(np.diagonal(iou_matrix(carried[1:], truth[1:])))), hint)


# ----------------------------------------------------------------- calling a reader's function


def _score(function: Callable, *args: Any) -> float:
    """A number that may be NaN."""
    value = _call(function, *args)
    if np.shape(value) != () or np.asarray(value).dtype.kind not in "biuf":
        raise ExerciseError(
            f"For inputs of shapes {_shapes(args)} the result should be one number, found"
            f" {value!r:.80}."
        )
    return float(value)


def _call(function: Callable, *args: Any) -> Any:
    """Its answer to copies of the arguments; whatever it raises becomes a hint."""
    try:
        value = function(*deepcopy(args))
    except Exception as e:
        raise ExerciseError(f"It raised {type(e).__name__}: {e}") from e
    if value is None or value is Ellipsis:
        raise ExerciseError("It returns nothing so far: put your code where the dots are.")
    return value


def _array(function: Callable, *args: Any, shape: tuple[int, ...]) -> np.ndarray:
    value = _call(function, *args)
    value = np.asarray(value.detach() if isinstance(value, torch.Tensor) else value)
    if value.shape != shape:
        raise ExerciseError(
            f"For inputs of shapes {_shapes(args)} the result should have the shape {shape}, found"
            f" {value.shape}."
        )
    if value.dtype.kind not in "biuf" or not np.isfinite(value).all():
        raise ExerciseError(
            f"For inputs of shapes {_shapes(args)} the result holds something that is no finite"
            " number (an overflow, or a division by zero?)."
        )
    return value


def _scalar(function: Callable, *args: Any) -> float:
    return float(_array(function, *args, shape=()))


def _expect(found: float, expected: float, what: str) -> None:
    if abs(float(found) - expected) > TOLERANCE:
        raise ExerciseError(f"{what} should be {expected:.4g}, found {float(found):.4g}.")


def _same(found: np.ndarray, expected: np.ndarray, by: str) -> None:
    wrong = np.argwhere(np.abs(found - expected) > TOLERANCE)
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        raise ExerciseError(
            f"{len(wrong)} of {found.size} values differ from {by}; the first at {list(at)}:"
            f" expected {expected[at]:.4g}, found {found[at]:.4g}."
        )


def _draw(function: Callable, differences: list[np.ndarray], rng: np.random.Generator) -> float:
    value = np.asarray(_call(lambda: function([d.copy() for d in differences], rng)))
    if value.shape != () or value.dtype.kind not in "biuf" or not np.isfinite(value):
        raise ExerciseError(
            f"For {len(differences)} scenes the result should be one finite number, found"
            f" {value!r}."
        )
    return float(value)


def _gradient(
    loss: Callable[[torch.Tensor], Any],
    inputs: torch.Tensor,
    what: str = "prototypes",
    step: float = 1e-5,
) -> None:
    """The gradient that autograd finds is the slope that small steps measure, for every entry of
    the inputs, called ``what``.
    """
    T = inputs.clone().requires_grad_()
    value = _call(lambda: loss(T))
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        raise ExerciseError(
            f"No gradient reaches the {what}: stay in torch, without .item(), .numpy() or no_grad."
        )
    (found,) = torch.autograd.grad(value, T, allow_unused=True)
    if found is None:
        raise ExerciseError(
            f"No gradient reaches the {what}: the result must be computed from them."
        )
    for at in np.ndindex(*T.shape):
        move = torch.zeros_like(inputs)
        move[at] = step
        slope = (float(loss(inputs + move)) - float(loss(inputs - move))) / (2 * step)
        if abs(slope - float(found[at])) > TOLERANCE:
            raise ExerciseError(
                f"The gradient of entry {', '.join(map(str, at))} of the {what} is"
                f" {float(found[at]):.4g}, small steps measure {slope:.4g}: is a part of the loss"
                " detached?"
            )


def _shapes(args: tuple) -> str:
    return ", ".join(str(tuple(a.shape)) for a in args if hasattr(a, "shape"))


def _strip(*rows: str) -> np.ndarray:  # [n, 1, W] bool
    """Masks one pixel high, written as text."""
    return np.array([[[c == "1" for c in row]] for row in rows])


def _t(x: Any) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def _i(x: Any) -> torch.Tensor:
    return torch.as_tensor(x, dtype=torch.int64)


def _random(rows: int, d: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, d)))


def _contrast_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prototypes, and codes and labels of 24 masks, some without a track."""
    rng = np.random.default_rng(6)
    return _random(5, 3, 5), _i(rng.integers(0, 5, 24)), _i(rng.choice([-1, 1, 2, 3], 24))


def _reference(T: torch.Tensor, codes: torch.Tensor, labels: torch.Tensor, margin: float = 0.7):
    """The library's losses with features that lie on their prototypes, so that these codes are the
    nearest.
    """
    return ccl_loss(T, T[codes], labels, lambda_pull=0.25, lambda_push=0.25, margin=margin)
