"""Checks of the notebooks' exercises: properties that every right answer has, with a hint where one is missing.

``check_X(function)`` takes the reader's function and raises ExerciseError. In a notebook `attempt` prints the
outcome instead, so that an unsolved exercise stops nothing. Each exercise is a code cell tagged "exercise" that
defines the function and attempts it; ``solutions/<notebook>.py`` holds a function of the same name. A test proves
that solutions pass and that the blanks in the notebooks don't.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .codebook import assign, ccl_loss
from .errors import ExerciseError
from .query import relevancy
from .tracking import associate, iou_matrix

TOLERANCE = 1e-4


def attempt(check: Callable[[Callable], None], function: Callable) -> None:
    """Print whether the reader's function passes a check; never raises."""
    try:
        check(function)
    except ExerciseError as e:
        print(f"{function.__name__}: not yet. {e}")
    else:
        print(f"{function.__name__}: right, every property holds")


# ----------------------------------------------------------------- 02: tracks


def check_iou(function: Callable[[np.ndarray, np.ndarray], Any]) -> None:
    """``function(a, b)``: IoU [M, K] of two sets of masks [M, H, W] and [K, H, W], bool."""
    a, b = _strip("110000", "001111", "000000"), _strip("111000", "000011", "000000", "110000")
    found = _array(function, a, b, shape=(3, 4))
    _expect(found[0, 3], 1.0, "The IoU of a mask with itself")
    _expect(found[0, 0], 2 / 3, "Two pixels inside three: intersection 2, union 3. Their IoU")
    _expect(found[1, 0], 1 / 6, "Four pixels and three that share one: the union counts the shared pixel once. Their IoU")
    _expect(found[0, 1], 0.0, "The IoU of masks that do not touch")
    _expect(found[2, 2], 0.0, "Two empty masks have the union 0: catch the division; their IoU here")
    if np.abs(_array(function, b, a, shape=(4, 3)) - found.T).max() > TOLERANCE:
        raise ExerciseError("IoU is symmetric, yours changes when the two sets change places.")
    a, b = np.random.default_rng(0).random((2, 5, 9, 7)) < 0.4
    _same(_array(function, a, b, shape=(5, 5)), iou_matrix(a, b), "cclkit.tracking.iou_matrix on random masks")


def check_association(function: Callable[[np.ndarray, np.ndarray, float], Any]) -> None:
    """``function(masks, propagated, iou_min)``: track label of each mask [M], 1..K or -1; masks [M, H, W], propagated [K, H, W], bool."""
    masks, carried = _strip("111100", "000011", "001100"), _strip("000011", "111000", "000000")
    found = _array(function, masks, carried, 0.5, shape=(3,))
    _expect(found[1], 1, "A mask equal to the first carried mask: tracks count from 1. Its label")
    _expect(found[0], 2, "A mask that overlaps the second carried mask with IoU 3/4. Its label")
    _expect(found[2], -1, "A mask whose best IoU is 1/4, below 0.5. Its label")
    _expect(_array(function, masks[:1], carried, 0.75, shape=(1,))[0], -1, "An IoU of exactly iou_min is not greater than iou_min. The label")
    _expect(_array(function, masks[:1], carried, 0.7, shape=(1,))[0], 2, "IoU 3/4 with iou_min = 0.7: use the threshold that is passed. The label")
    _expect(_array(function, _strip("000000"), carried, 0.5, shape=(1,))[0], -1, "A mask and a carried mask that are both empty match nothing. The label")
    rng = np.random.default_rng(1)
    carried = rng.random((6, 8, 8)) < 0.5
    masks = carried[[3, 0, 5, 5, 2]] ^ (rng.random((5, 8, 8)) < 0.15)
    _same(_array(function, masks, carried, 0.5, shape=(5,)), associate(masks, carried, 0.5)[0], "cclkit.tracking.associate on random masks")


# ----------------------------------------------------------------- 03: the codebook


def check_assign(function: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
    """``function(prototypes, features)``: code of each feature [B], the prototype [N, d] with the largest cosine."""
    T, F = _t([[1, 0], [0, 1], [-1, 0]]), _t([[0.9, 0.1], [0.2, 0.5], [-3, 0.1], [0, 2]])
    found = _array(function, T, F, shape=(4,))
    if (found != [0, 1, 2, 1]).any():
        raise ExerciseError(f"Features at 6°, 68°, 178° and 90°, prototypes at 0°, 90° and 180°: expected the codes [0, 1, 2, 1], found {found.tolist()}.")
    if (_array(function, T * _t([[1], [100], [1]]), F, shape=(4,)) != found).any():
        raise ExerciseError("Making one prototype 100 times longer changes your codes. A cosine ignores lengths: divide the prototypes by theirs.")
    T, F = _random(7, 5, 0), _random(40, 5, 1)
    _same(_array(function, T, F, shape=(40,)), assign(T, F).numpy(), "cclkit.codebook.assign on random vectors")


def check_l_max(function: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]) -> None:
    """``function(prototypes, features, codes)``: L_max, the mean over features [B, d] of 1 - cos(F_i, T_{j_i}); codes [B]."""
    T, F = _t([[1, 0], [0, 1]]), _t([[1, 0], [0, 1], [0, 1]])
    _expect(_scalar(function, T, F, _i([0, 1, 1])), 0.0, "Every feature on its own prototype: no distance is left. The loss")
    _expect(_scalar(function, T, F, _i([1, 0, 0])), 1.0, "Every feature at right angles to its prototype: cosine 0, distance 1, and the loss is a mean, not a sum. The loss")
    _expect(_scalar(function, T, F, _i([0, 0, 0])), 2 / 3, "Distances 0, 1 and 1. The loss")
    T, F, j = _random(6, 4, 2), _random(30, 4, 3), _i(np.random.default_rng(4).integers(0, 6, 30))
    value = _scalar(function, T, F, j)
    _expect(_scalar(function, 3 * T, 0.5 * F, j), value, "Other lengths of prototypes and features leave a cosine as it was. The loss")
    codes = assign(T, F)
    _expect(_scalar(function, T, F, codes), float(ccl_loss(T, F, torch.full((30,), -1), lambda_pull=0.0, lambda_push=0.0, margin=0.7).max), "Random vectors with their nearest prototypes. cclkit.codebook.ccl_loss says another value for L_max than yours. The loss")
    _gradient(lambda t: function(t, F.clone(), j.clone()), T)


def check_l_pull(function: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]) -> None:
    """``function(prototypes, codes, labels)``: L_pull, the mean over pairs of masks with equal labels (not -1) of 1 - cos(T_{j_i}, T_{j_k}); codes, labels [B]."""
    T = _t([[1, 0], [0, 1], [1, 1]])
    _expect(_scalar(function, T, _i([0, 0, 1, 1]), _i([1, 1, 2, 2])), 0.0, "Each track on one prototype: nothing to pull. The loss")
    _expect(_scalar(function, T, _i([0, 1, 2]), _i([1, 1, 2])), 1.0, "One pair of equal labels, on prototypes at right angles; the third mask is alone and no pair with itself. The loss")
    _expect(_scalar(function, T, _i([0, 0, 1]), _i([5, 5, 5])), 2 / 3, "Three masks of one track make three pairs, with distances 0, 1, 1. The loss")
    _expect(_scalar(function, T, _i([0, 1, 0, 0]), _i([1, 1, -1, -1])), 1.0, "Masks without a track (y = -1) belong to no pair, not even with each other. The loss")
    _expect(_scalar(function, T, _i([0, 0, 1]), _i([1, 1, -1])), 0.0, "Masks without a track (y = -1) belong to no pair. The loss")
    _expect(_scalar(function, T, _i([0, 1]), _i([1, 2])), 0.0, "No two masks share a label: a mean over nothing would be nan. The loss")
    T, j, y = _contrast_case()
    _expect(_scalar(function, 2 * T, j, y), _scalar(function, T, j, y), "Prototypes twice as long have the same cosines. The loss")
    _expect(_scalar(function, T, j.flip(0), y.flip(0)), _scalar(function, T, j, y), "The order of the masks must not matter. The loss")
    _expect(_scalar(function, T, j, y), float(_reference(T, j, y).pull), "Random prototypes, codes and labels. The loss")
    _gradient(lambda t: function(t, j.clone(), y.clone()), T)


def check_l_push(function: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], Any]) -> None:
    """``function(prototypes, codes, labels, margin)``: L_push, the mean over pairs with different labels (neither -1) of max(0, cos(T_{j_i}, T_{j_k}) - margin)."""
    T = _t([[1, 0], [0, 1], [0.8, 0.6]])
    _expect(_scalar(function, T, _i([0, 1]), _i([1, 2]), 0.7), 0.0, "Two tracks at cosine 0, below the margin, are left alone. The loss")
    _expect(_scalar(function, T, _i([0, 2]), _i([1, 2]), 0.7), 0.1, "Two tracks at cosine 0.8 with margin 0.7. The loss")
    _expect(_scalar(function, T, _i([0, 2]), _i([1, 2]), 0.5), 0.3, "Two tracks at cosine 0.8 with margin 0.5: use the margin that is passed. The loss")
    _expect(_scalar(function, T, _i([0, 0]), _i([1, 2]), 0.7), 0.3, "Two tracks on one prototype: cosine 1 minus the margin. The loss")
    _expect(_scalar(function, T, _i([0, 0]), _i([1, 1]), 0.7), 0.0, "One track pushes nothing away. The loss")
    _expect(_scalar(function, T, _i([0, 1, 2]), _i([1, 2, 3]), 0.7), 0.1 / 3, "Three pairs of different tracks, one above the margin: the mean is over all three. The loss")
    _expect(_scalar(function, T, _i([0, 2, 0, 2]), _i([1, -1, -1, 1]), 0.7), 0.0, "Masks without a track (y = -1) push nothing. The loss")
    T, j, y = _contrast_case()
    _expect(_scalar(function, 2 * T, j, y, 0.2), _scalar(function, T, j, y, 0.2), "Prototypes twice as long have the same cosines. The loss")
    _expect(_scalar(function, T, j, y, 0.2), float(_reference(T, j, y, 0.2).push), "Random prototypes, codes and labels, margin 0.2. The loss")
    _gradient(lambda t: function(t, j.clone(), y.clone(), 0.2), T)


# ----------------------------------------------------------------- 05: queries


def check_relevancy(function: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], Any]) -> None:
    """``function(features, text, canonical, scale)``: LERF's relevancy [M] of one text vector [d] for features [M, d], against phrases [C, d]."""
    e = torch.eye(4, dtype=torch.float64)
    found = _array(function, e[:3], e[0], e[1:2], 10.0, shape=(3,))
    _expect(found[0], 1 / (1 + np.exp(-10)), "A feature equal to the text, at right angles to the only phrase: 1 / (1 + exp(-10)). The relevancy")
    _expect(found[1], 1 / (1 + np.exp(10)), "A feature equal to the phrase, at right angles to the text. The relevancy")
    _expect(found[2], 0.5, "A feature that is nothing of either: an even contest. The relevancy")
    _expect(_array(function, e[:1], e[0], e[:2], 10.0, shape=(1,))[0], 0.5, "One of the phrases is the text itself, and the weakest contest counts (a minimum, not a mean). The relevancy")
    _expect(_array(function, e[3:], e[0], e[1:3], 10.0, shape=(1,))[0], 0.5, "A feature that is nothing of text or phrases: every contest is one against one, and even. The relevancy")
    F, text, phrases = (x / x.norm(dim=-1, keepdim=True) for x in (_random(50, 8, 7), _random(1, 8, 8)[0], _random(4, 8, 9)))
    some, more = _array(function, F, text, phrases[:3], 10.0, shape=(50,)), _array(function, F, text, phrases, 10.0, shape=(50,))
    if (more > some + TOLERANCE).any():
        raise ExerciseError("One more canonical phrase is one more opponent: it can lower the relevancy, never raise it. Yours rises somewhere.")
    if (some.min() < 0) or (some.max() > 1):
        raise ExerciseError(f"A relevancy is a probability; yours runs from {some.min():.3g} to {some.max():.3g}.")
    hot = _array(function, F, text, phrases, 2000.0, shape=(50,))  # _array refuses what is not finite
    if (hot < -TOLERANCE).any() or (hot > 1 + TOLERANCE).any():
        raise ExerciseError("With a scale of 2000 your relevancy leaves 0..1: exp overflows; write the quotient as a sigmoid of a difference.")
    for scale in (10.0, 3.0):
        _same(_array(function, F, text, phrases, scale, shape=(50,)), relevancy(F, text[None], phrases, scale=scale)[0].numpy(), f"cclkit.query.relevancy on random vectors at scale {scale:g}")


# ----------------------------------------------------------------- calling a reader's function


def _call(function: Callable, *args: Any) -> Any:
    """Its answer to copies of the arguments; whatever it raises becomes a hint."""
    try:
        value = function(*(a.clone() if isinstance(a, torch.Tensor) else a.copy() if isinstance(a, np.ndarray) else a for a in args))
    except Exception as e:
        raise ExerciseError(f"It raised {type(e).__name__}: {e}") from e
    if value is None or value is Ellipsis:
        raise ExerciseError("It returns nothing so far: put your code where the dots are.")
    return value


def _array(function: Callable, *args: Any, shape: tuple[int, ...]) -> np.ndarray:
    value = _call(function, *args)
    value = np.asarray(value.detach() if isinstance(value, torch.Tensor) else value)
    if value.shape != shape:
        raise ExerciseError(f"For inputs of shapes {_shapes(args)} the result should have the shape {shape}, found {value.shape}.")
    if value.dtype.kind not in "biuf" or not np.isfinite(value).all():
        raise ExerciseError(f"For inputs of shapes {_shapes(args)} the result holds something that is no finite number (an overflow, or a division by zero?).")
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
        raise ExerciseError(f"{len(wrong)} of {found.size} values differ from {by}; the first at {list(at)}: expected {expected[at]:.4g}, found {found[at]:.4g}.")


def _gradient(loss: Callable[[torch.Tensor], Any], prototypes: torch.Tensor, step: float = 1e-5) -> None:
    """The gradient that autograd finds is the slope that small steps measure, for every entry of the prototypes."""
    T = prototypes.clone().requires_grad_()
    value = loss(T)
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        raise ExerciseError("No gradient reaches the prototypes: stay in torch, without .item(), .numpy() or no_grad.")
    (found,) = torch.autograd.grad(value, T, allow_unused=True)
    if found is None:
        raise ExerciseError("No gradient reaches the prototypes: the loss must be computed from them.")
    for n, d in np.ndindex(*T.shape):
        move = torch.zeros_like(prototypes)
        move[n, d] = step
        slope = (float(loss(prototypes + move)) - float(loss(prototypes - move))) / (2 * step)
        if abs(slope - float(found[n, d])) > TOLERANCE:
            raise ExerciseError(f"The gradient of entry {n}, {d} of the prototypes is {float(found[n, d]):.4g}, small steps measure {slope:.4g}: is a part of the loss detached?")


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
    """The library's losses with features that lie on their prototypes, so that these codes are the nearest."""
    return ccl_loss(T, T[codes], labels, lambda_pull=0.25, lambda_push=0.25, margin=margin)
