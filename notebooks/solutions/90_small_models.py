"""Solutions of the exercises of notebook 90."""

import numpy as np


def my_j(carried, truth, min_px):
    # in the first view the mask was given
    counts = [v for v in range(1, len(truth)) if truth[v].sum() >= min_px]
    return (
        np.mean([(carried[v] & truth[v]).sum() / (carried[v] | truth[v]).sum() for v in counts])
        if counts
        else float("nan")
    )
