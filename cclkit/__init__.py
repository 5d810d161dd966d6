"""cclkit: an open implementation of CCL-LGS, step by step."""

import os

# Before torch is imported: its idle threads must sleep, not spin, or two thread pools on a small
# machine (ours and torch's) wait for each other. Measured: a short training 14 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# But not at once: small models are made of short operations, and waking a thread for each of them
# took as long as the
# operation. Measured: tracks of tea_party in 17 s, not 34.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

__version__ = "0.1.0"
