"""Solutions of the exercises of notebook 06."""

import numpy as np


def my_class_ious(scores, truth):
    classes = np.arange(len(scores))[:, None, None]
    # [C, H, W]; the first of equals wins
    answered, true = (
        scores.argmax(0) == classes,
        truth == classes,
    )
    union = (answered | true).sum((1, 2))
    return np.where(union > 0, (answered & true).sum((1, 2)) / np.maximum(union, 1), 0.0)


def my_level(maps, threshold):
    inside = maps > threshold
    means = [m[i].mean() if i.any() else -np.inf for m, i in zip(maps, inside)]
    return int(np.argmax(means))
