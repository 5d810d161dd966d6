"""Processes of one thread that train one model together: small steps leave no work for a second
thread.

They exchange through torch.distributed (gloo): two exchanges take 21 ms of a step's 295 (measured).
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta

import torch
from torch import distributed

from cclkit.errors import ModelError

PATIENCE_S = 600
"""How long a replica waits for the others, seconds; training ends with an error after that."""
LAST_S = 10
"""How long a replica that lost the others stays, seconds: what ended them is raised meanwhile."""
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
} | ({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {})
"""Settings of the replicas. Those of glibc keep freed memory and use large pages, which saves 5 %
of a step's time (measured); other C libraries ignore them. Gloo meets within the machine, whatever
its name resolves to.
"""


def rank() -> int:
    """Which replica this process is, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def count() -> int:
    """How many replicas there are; 1 outside of `in_replicas`."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def add_up(flat: torch.Tensor) -> None:
    """Replace a float32 vector [N] by its sum over all replicas, the same bits in each; N must be
    the same in all.

    Raises ModelError when another replica does not come.
    """
    if count() == 1:
        return
    try:
        distributed.all_reduce(flat)
    except RuntimeError as e:
        time.sleep(LAST_S)
        raise ModelError(
            f"replica {rank()} of {count()} waited up to {PATIENCE_S} s for the others in vain"
            f" ({e}); start the training again, it goes on from its last checkpoint"
        ) from e


def in_replicas(n: int, train: Callable, *args) -> None:
    """Run ``train(*args)`` in ``n`` processes of one thread; what they put into `add_up` is summed
    over them.

    An exception in one ends all and is raised here as torch's ProcessRaisedException.
    """
    before = {k: os.environ.get(k) for k in ENVIRONMENT}
    os.environ.update({k: v for k, v in ENVIRONMENT.items() if before[k] is None})
    try:
        with tempfile.TemporaryDirectory() as meeting:
            torch.multiprocessing.spawn(_replica, args=(n, meeting, train, args), nprocs=n)
    finally:
        for k, v in before.items():
            if v is None:
                os.environ.pop(k, None)


def _replica(which: int, n: int, meeting: str, train: Callable, args: tuple) -> None:
    # how torch ends replicas whose parent is gone; started with a shell script's & they would
    # ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    # averages of what no longer changes decay into numbers too small for the processor: a fifth of
    # a step's time (measured), for the same bits
    torch.set_flush_denormal(True)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{meeting}/replicas",
        rank=which,
        world_size=n,
        timeout=timedelta(seconds=PATIENCE_S),
    )
    train(*args)
    distributed.destroy_process_group()
