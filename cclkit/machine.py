"""The machine: threads, and memory that this process has held."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path

try:
    import resource
except ImportError:  # Windows has none
    resource = None

PATIENT_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "30000"}
"""Environment in which idle threads of torch sleep instead of spinning, but not at once.

Two thread pools on a small machine (ours and torch's) would wait for each other: a short training
took 14 times as long. But small models are made of short operations, and waking a thread for each
took as long as the operation: tracks of tea_party in 34 s, with 30,000 turns before sleeping 17 s.
"""


def be_patient() -> None:
    """Set PATIENT_THREADS where they are not set. For programs, before torch is imported: OpenMP
    reads them once.
    """
    for name, value in PATIENT_THREADS.items():
        os.environ.setdefault(name, value)


def reset_peak_memory() -> None:
    """Begin a new measurement of `peak_memory_mb`, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Most memory this process has held at once since the last reset; elsewhere than on Linux,
    since it began.
    """
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) / 2**10
    if resource is None:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
