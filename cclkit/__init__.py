"""cclkit: an open implementation of CCL-LGS, step by step."""

import os

# Before torch is imported: its idle threads must sleep, not spin, or two thread pools on a small
# machine (ours and torch's) wait for each other. Measured: a short training 14 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
