"""Files: written in one piece or not at all, read without running what they hold."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from .errors import ArtefactError, reason


def atomic_write(path: Path, content: bytes) -> None:
    """Write to a temporary name beside the target and rename, so that a reader never sees half a
    file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def save_npz(path: Path, *, compress: bool = True, **arrays: np.ndarray) -> None:
    """An .npz, written atomically; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, **arrays)
    atomic_write(path, buffer.getvalue())


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file. Raises ArtefactError when it is none, or holds pickles."""
    try:
        with np.load(path, allow_pickle=False) as data:
            return {k: data[k] for k in data.files}
    except Exception as e:  # zipfile, zlib and numpy each raise their own on a damaged file
        raise ArtefactError(
            f"{path}: damaged ({reason(e)}); delete {path.parent} and run again"
        ) from e


def save_json(path: Path, value: Any) -> None:
    atomic_write(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_array(path: Path) -> np.ndarray:
    """The array of an .npy file, memory-mapped and read-only. Raises ValueError with the reason for
    anything else.

    Mapped, because NumPy allocates what a header claims before it looks whether the file holds it.
    """
    try:
        with np.errstate(over="ignore"):  # of a size that cannot be: refused all the same
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as e:  # the header is Python source: damaged, it fails in any way
        raise ValueError(reason(e)) from e
    if not isinstance(array, np.ndarray):
        raise ValueError("an archive of arrays, expected one array")
    return array


def file_digest(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def is_below(name: str) -> bool:
    """Whether a name leads to a place below the folder it is joined to."""
    path = PurePosixPath(name)
    return (
        path.parts != ()
        and not path.is_absolute()
        and ".." not in path.parts
        and "\0" not in name
        and "\\" not in name
        and ":" not in name
        and all(len(p.encode("utf-8", "replace")) < 256 for p in path.parts)
    )


def unwritable(path: Path, e: OSError) -> ArtefactError:
    """The error for a full disk or a read-only folder."""
    return ArtefactError(
        f"{path}: cannot be written ({e.strerror or e}); free space or choose another --out folder,"
        " then run the same command again: finished files are kept"
    )
