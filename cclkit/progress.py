"""Progress bars."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tqdm.auto import tqdm


def quiet() -> bool:
    """No progress bars: CCLKIT_QUIET is set, as where outputs are kept and compared."""
    return bool(os.environ.get("CCLKIT_QUIET"))


def progress(items: Sequence, what: str) -> tqdm:
    """The items, with a bar while they are gone through."""
    return tqdm(items, desc=what, disable=quiet(), leave=False)


def byte_progress(total: int | None, what: str, done: int = 0) -> tqdm:
    """A bar in bytes with the time left; ``done`` of them were there before."""
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit="B",
        unit_scale=True,
        leave=False,
        disable=quiet(),
    )
