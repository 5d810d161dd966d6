"""Processes of one thread that train one model together: small steps leave no work for a second
thread.

The processes share one machine, so they exchange through memory; two exchanges by a message library
took 21 ms of a step's 295 (measured).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from threading import BrokenBarrierError

import torch

from cclkit.errors import ModelError

PIECE = 1 << 20
"""Numbers exchanged at once: what fits into a processor's cache."""
PATIENCE_S = 600
"""How long a replica waits for the others, seconds; training ends with an error after that."""
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Settings of glibc for the replicas: freed memory is kept and comes in large pages, which saves 5
% of a step's time (measured). Other C libraries ignore them.
"""

_rank, _rows, _meeting = 0, torch.zeros(1, 0), None


def rank() -> int:
    """Which replica this process is, from 0."""
    return _rank


def count() -> int:
    """How many replicas there are; 1 outside of `in_replicas`."""
    return len(_rows)


def add_up(flat: torch.Tensor) -> None:
    """Replace a float32 vector [N] by its sum over all replicas, the same bits in each; N must be
    the same in all.

    Raises ModelError when another replica does not come.
    """
    for piece in flat.split(PIECE) if count() > 1 else ():
        _rows[_rank, : len(piece)] = piece
        _wait()  # until all have written
        piece.copy_(_rows[:, : len(piece)].sum(0))
        _wait()  # until all have read


def _wait() -> None:
    try:
        _meeting.wait(PATIENCE_S)
    except BrokenBarrierError as e:
        raise ModelError(
            f"replica {_rank} of {count()} waited {PATIENCE_S} s for the others in vain; start the"
            " training again, it goes on from its last checkpoint"
        ) from e


def in_replicas(n: int, train: Callable, *args) -> None:
    """Run ``train(*args)`` in ``n`` processes of one thread; what they put into `add_up` is summed
    over them.

    An exception in one ends all and is raised here as torch's ProcessRaisedException.
    """
    before = {k: os.environ.get(k) for k in KEEP_MEMORY}
    os.environ.update({k: v for k, v in KEEP_MEMORY.items() if before[k] is None})
    try:
        rows, meeting = (
            torch.zeros(n, PIECE).share_memory_(),
            torch.multiprocessing.get_context("spawn").Barrier(n),
        )
        torch.multiprocessing.spawn(_replica, args=(rows, meeting, train, args), nprocs=n)
    finally:
        for k, v in before.items():
            if v is None:
                os.environ.pop(k, None)


def _replica(which: int, rows: torch.Tensor, meeting, train: Callable, args: tuple) -> None:
    global _rank, _rows, _meeting
    _rank, _rows, _meeting = which, rows, meeting
    signal.signal(
        signal.SIGINT,
        signal.default_int_handler,
        # how torch ends replicas whose parent is gone; started with a shell script's & they would
        # ignore it
    )
    torch.set_num_threads(1)
    torch.set_flush_denormal(
        True
        # averages of what no longer changes decay into numbers too small for the processor: a fifth
        # of
        # a step's time (measured), for the same bits
    )
    train(*args)
