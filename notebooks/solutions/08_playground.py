"""Solutions of the exercises of notebook 08."""

import numpy as np


def my_own_prototypes(codes, labels, n):
    labelled = labels > 0
    # every (prototype, track) once
    pairs = np.unique(np.stack([codes[labelled], labels[labelled]], 1), axis=0)
    return np.bincount(pairs[:, 0], minlength=n) == 1
