"""The disk below a data root: room, permission, one fetch at a time, what must not be used."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError
from .registry import human

try:
    import fcntl
except ImportError:  # Windows: two fetches at once are not noticed there
    fcntl = None


def unwritable_root(path: Path, err: OSError) -> DataError:
    """The error for a full disk or a read-only folder."""
    return DataError(
        f"{path}: cannot be written ({err.strerror or err}); free space or choose another folder"
        " with --root or CCLKIT_DATA, then run the same command again"
    )


def need_room(folder: Path, need: int, name: str) -> None:
    """Raise DataError unless so many bytes are free."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise DataError(
            f"{folder}: {name} needs about {human(need)}, {human(free)} are free; free space, or"
            " choose another folder with --root or CCLKIT_DATA"
        )


def set_aside(path: Path, target: Path, digest: str) -> Path:
    """Rename to NAME.bad-<12 digits>, with a number when that exists, so that nothing is ever
    overwritten.
    """
    bad = target.with_name(f"{target.name}.bad-{digest[:12]}")
    n = 1
    while bad.exists() and path.is_dir():
        n += 1
        bad = target.with_name(f"{target.name}.bad-{digest[:12]}-{n}")
    os.replace(path, bad)
    return bad


@contextlib.contextmanager
def only_one(root: Path) -> Iterator[None]:
    """One fetch at a time in a data root."""
    try:
        f = open(root / ".lock", "a")
    except OSError as err:
        raise unwritable_root(root, err) from err
    with f:
        if fcntl is not None:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DataError(
                    f"{root}: another fetch is under way in this folder; wait for it to end, or"
                    " choose another --root"
                ) from None
        yield
