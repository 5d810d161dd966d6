"""Stage 3: contrastive codebook learning (CCL), the paper's contribution.

``losses``: the CCL losses of a batch, exactly and without listing pairs. ``start``: initial
prototypes. ``fit``: training. ``repair``: moves of prototypes that no gradient makes (dead codes,
collisions).
"""

from .fit import Codebook, fit_codebook
from .losses import CCLLoss, assign, ccl_loss
from .repair import colliding_labels, revive, split
from .start import initialise, shuffled
from .usage import index_map, perplexity, usage

__all__ = [
    "CCLLoss",
    "Codebook",
    "assign",
    "ccl_loss",
    "colliding_labels",
    "fit_codebook",
    "index_map",
    "initialise",
    "perplexity",
    "revive",
    "shuffled",
    "split",
    "usage",
]
