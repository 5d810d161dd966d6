"""Statistics of ablations, on cases with known answers."""

import math

import numpy as np
import pytest

from cclkit.errors import EvaluationError
from cclkit.evaluation.statistics import hierarchical_bootstrap, holm, sign_flip_p


def test_equal_differences_leave_no_doubt():
    assert hierarchical_bootstrap([[1.5, 1.5], [1.5, 1.5], [1.5, 1.5]]) == (1.5, 1.5)


def test_with_one_seed_it_is_the_bootstrap_of_a_mean():
    """100 scenes: the bootstrap's standard error is the population standard deviation over the root
    of n.
    """
    values = np.random.default_rng(0).normal(2.0, 3.0, 100)
    low, high = hierarchical_bootstrap([[v] for v in values])
    half = 1.96 * values.std() / 10
    assert low == pytest.approx(values.mean() - half, abs=0.06) and high == pytest.approx(
        values.mean() + half, abs=0.06
    )


def test_two_scenes_give_the_three_values_that_can_be_drawn():
    # 0, 1/2, 1 with chances 1/4, 1/2, 1/4
    assert hierarchical_bootstrap([[0.0], [1.0]]) == (
        0.0,
        1.0,
    )
    assert hierarchical_bootstrap([[0.0], [1.0]], level=0.4) == (0.5, 0.5)


def test_repeating_a_scene_does_not_make_more_scenes_of_it():
    scenes = [3.0, -1.0, 0.5, 2.0, -0.5]
    once = hierarchical_bootstrap([[v] for v in scenes])
    often = hierarchical_bootstrap([[v] * 50 for v in scenes])
    assert once == pytest.approx(often, abs=0.1)
    as_units = hierarchical_bootstrap([[v] for v in scenes for _ in range(50)])
    # what counting seeds as units would claim
    assert as_units[1] - as_units[0] < 0.25 * (often[1] - often[0])


def test_noise_of_seeds_widens_it():
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 4.0, (6, 2))
    noise -= noise.mean(1, keepdims=True)
    quiet, noisy = hierarchical_bootstrap(np.ones((6, 2))), hierarchical_bootstrap(1 + noise)
    assert quiet == (1.0, 1.0) and noisy[0] < 0.2 and noisy[1] > 1.8


def test_about_ninety_five_in_a_hundred_intervals_hold_the_truth():
    rng = np.random.default_rng(2)
    held = 0
    for n in range(200):
        of_scene = rng.normal(1.0, 2.0, 20)
        low, high = hierarchical_bootstrap(
            of_scene[:, None] + rng.normal(0, 1.0, (20, 3)), draws=500, seed=n
        )
        held += low <= 1.0 <= high
    assert 178 <= held <= 200


def test_scenes_with_different_numbers_of_seeds_weigh_alike():
    low, high = hierarchical_bootstrap([[1.0], [3.0] * 9, [2.0, 2.0]])
    assert low < 1.5 and high > 2.5 and (low + high) / 2 == pytest.approx(2.0, abs=0.05)


def test_one_scene_has_no_interval_and_bad_values_are_refused():
    assert all(math.isnan(v) for v in hierarchical_bootstrap([[1.0, 2.0, 3.0]]))
    for bad in ([[1.0], []], [[1.0], [float("nan")]]):
        with pytest.raises(EvaluationError, match="expected at least one, all finite"):
            hierarchical_bootstrap(bad)
    with pytest.raises(EvaluationError, match="at most 20"):
        sign_flip_p([1.0] * 21)


@pytest.mark.parametrize(
    "means, p",
    [
        ([1.0] * 7, 2 / 128),
        ([-2.0, -1.0, -3.0], 2 / 8),
        ([1.0, -1.0], 1.0),
        ([5.0], 1.0),
        ([3.0, 2.0, -1.0], 4 / 8),
        ([0.0, 0.0, 0.0], 1.0),
        ([0.1, 0.2, 0.3, -0.6], 1.0),
    ],
)
def test_sign_flips_by_hand(means, p):
    assert sign_flip_p(means) == p


def test_sign_flips_keep_their_level():
    """Under no effect p <= 6/128 happens in 6 of 128 tests, whatever the distribution."""
    rng = np.random.default_rng(3)
    assert np.mean(
        [sign_flip_p(rng.standard_t(3, 7)) < 0.05 for _ in range(1000)]
    ) == pytest.approx(6 / 128, abs=0.02)


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "c": 0.06, "b": 0.06}
    )
    assert holm({"a": 0.5, "b": 0.6}) == {"a": 1.0, "b": 1.0}
    assert holm({"a": 0.02}) == {"a": 0.02} and holm({}) == {}
