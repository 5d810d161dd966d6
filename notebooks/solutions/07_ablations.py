"""Solutions of the exercises of notebook 07."""

import itertools

import numpy as np


def my_sign_flip_p(means):
    patterns = np.array(list(itertools.product((1, -1), repeat=len(means))))  # [2^n, n]
    sums = np.abs(patterns @ means)
    return (
        sums >= abs(means.sum()) - 1e-9 * np.abs(means).sum()
    ).mean()  # equally far counts, whatever the rounding


def my_draw(differences, rng):
    taken = rng.integers(len(differences), size=len(differences))
    return np.mean([rng.choice(differences[s], len(differences[s])).mean() for s in taken])
