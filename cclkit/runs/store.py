"""Stage artefacts on disk: content keys, atomic writes, resume, staleness, one writer per folder.

A run folder holds ``<stage>/<key>/…`` where the key is a hash of the stage's settings, the keys of
its inputs and the code that computes it. The key alone decides staleness: a stage whose key exists
is not run again, a changed setting gets a folder of its own (so nothing computed is ever lost), and
a killed run goes on with the files that are still missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch

from .. import __version__
from ..errors import ArtefactError, reason
from ..files import atomic_write, file_digest, is_below, load_npz, unwritable
from ..machine import peak_memory_mb, reset_peak_memory
from .keys import KEY_LENGTH

try:
    import fcntl
except ImportError:  # Windows has no flock; runs there are not protected against each other
    fcntl = None

RECORD = "stage.json"  # written last: its presence is what makes an artefact complete


@dataclass(frozen=True)
class Artefact:
    """A finished stage: its folder, key, and what was recorded about it."""

    stage: str
    key: str
    folder: Path
    record: dict[str, Any]
    reused: bool  # found on disk, as opposed to computed by this call

    def path(self, name: str) -> Path:
        """A file that is what was recorded. Raises ArtefactError when it is missing or was changed
        since.
        """
        path = self.folder / name
        if not path.is_file():
            raise ArtefactError(
                f"{path}: missing from the {self.stage!r} artefact; delete {self.folder} and run"
                " again"
            )
        if (found := file_digest(path)) != (
            wanted := self.record["files"].get(name, {}).get("sha256")
        ):
            raise self.damaged(
                name, f"its sha256 is {found[:12]}…, {str(wanted)[:12]}… was recorded"
            )
        return path

    def damaged(self, name: str, why: object) -> ArtefactError:
        """The error for a file that does not hold what its stage writes."""
        return ArtefactError(
            f"{self.folder / name}: damaged ({why}); delete {self.folder} and run again"
        )

    def npz(self, name: str) -> dict[str, np.ndarray]:
        """All arrays of an .npz file (pickles are refused)."""
        return load_npz(self.path(name))

    def safetensors(self, name: str) -> dict:
        """All tensors of a .safetensors file."""
        path = self.path(name)
        try:
            return safetensors.torch.load(path.read_bytes())
        except Exception as e:  # the format's own error type is not public in all versions
            raise self.damaged(name, reason(e)) from e

    def json(self, name: str) -> Any:
        path = self.path(name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as e:
            raise self.damaged(name, reason(e)) from e


class Store:
    """Artefacts of one scene below a run folder."""

    def __init__(self, root: Path | str, *, look_only: bool = False):
        self.root = Path(root)
        self._locked = False
        if look_only:  # to `find` what is there; nothing is made
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as e:
            raise ArtefactError(
                f"{self.root}: cannot be written ({e.strerror or e}); choose another --out folder"
            ) from e

    def find(self, stage: str, key: str) -> Artefact | None:
        """The finished artefact of this key, or None."""
        folder = self.root / stage / key
        record = _read_record(folder)
        if record is not None and record.get("key") == key and _intact(folder, record):
            return Artefact(stage, key, folder, record, reused=True)
        return None

    def ensure(
        self,
        stage: str,
        key: str,
        build: Callable[[Path], Mapping[str, Any] | None],
        *,
        about: Mapping[str, Any],
    ) -> Artefact:
        """The artefact of this key, computed by ``build(folder)`` if it does not exist.

        ``build`` writes files into the folder, each through `atomic_write`; files it finds there
        come from an interrupted run with the same key and may be kept. What it returns is recorded,
        with ``about``, in stage.json, which is written last.
        """
        found = self.find(stage, key)
        if found is not None:
            return found
        folder = self.root / stage / key
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _drop_damaged(folder)
            for left in folder.rglob("*.tmp"):  # half-written files of a killed run
                left.unlink()
            reset_peak_memory()
            start = time.monotonic()
            extra = build(folder) or {}
            record = {
                "stage": stage,
                "key": key,
                "cclkit": __version__,
                **about,
                **extra,
                "wall_time_s": round(time.monotonic() - start, 3),
                "peak_memory_mb": round(peak_memory_mb()),
                "files": {
                    p.relative_to(folder).as_posix(): {
                        "bytes": p.stat().st_size,
                        "sha256": file_digest(p),
                    }
                    for p in sorted(folder.rglob("*"))
                    if p.is_file()
                },
            }
            atomic_write(
                folder / RECORD, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()
            )
            record = _read_record(folder)  # computed or found, a caller gets the same thing
        except OSError as e:
            raise unwritable(folder, e) from e
        return Artefact(stage, key, folder, record, reused=False)

    def clear(self, stages: Iterable[str]) -> None:
        """Delete the artefacts of these stages: folders named like keys, and nothing else that may
        lie there.
        """
        for stage in stages:
            for child in (self.root / stage).glob("*"):
                if child.is_dir() and re.fullmatch(rf"[0-9a-f]{{{KEY_LENGTH}}}", child.name):
                    shutil.rmtree(child)

    @contextlib.contextmanager
    def lock(self, artefact: str = "", *, wait: bool = False) -> Iterator[None]:
        """Hold the folder, or one artefact "stage/key" of it, for one run at a time; a second one
        is refused with the holder's process id, or waits.

        Jobs that compute different artefacts share a folder. Within one store the folder's lock
        nests: a stage may need another one computed first.
        """
        if self._locked:
            yield
            return
        with contextlib.ExitStack() as held:
            held.enter_context(self._flock(self.root / ".lock", shared=bool(artefact), wait=wait))
            if artefact:
                held.enter_context(
                    self._flock(self.root / ".locks" / artefact.replace("/", "-"), wait=wait)
                )
            self._locked = not artefact
            try:
                yield
            finally:
                self._locked = False

    @contextlib.contextmanager
    def _flock(self, path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
        try:
            path.parent.mkdir(exist_ok=True)
            f = open(path, "a+", encoding="utf-8", errors="replace")
        except OSError as e:
            raise unwritable(path, e) from e
        with f:
            if fcntl is not None:
                kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
                try:
                    fcntl.flock(f, kind | fcntl.LOCK_NB)
                except OSError:
                    f.seek(0)
                    used = (
                        f"{self.root}: in use by another run (process"
                        f" {f.read().strip() or 'unknown'})"
                    )
                    if not wait:
                        raise ArtefactError(
                            f"{used}; wait for it to end or choose another --out folder"
                        ) from None
                    print(f"{used}; waiting for it", file=sys.stderr, flush=True)
                    fcntl.flock(f, kind)
            if not shared:
                self._sign(f, str(os.getpid()))
            try:
                yield
            finally:
                if not shared:
                    self._sign(f, "")

    @staticmethod
    def _sign(f, who: str) -> None:
        with contextlib.suppress(OSError):  # a full disk: the number is only for a message
            f.truncate(0)
            f.write(who)
            f.flush()


def _read_record(folder: Path) -> dict[str, Any] | None:
    """What stage.json says; None when there is none, or it holds anything but what `Store.ensure`
    writes.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if (
        not isinstance(record, dict)
        or not isinstance(record.get("files"), dict)
        or not isinstance(record.get("wall_time_s"), (int, float))
    ):
        return None
    for name, about in record["files"].items():
        # a name must stay inside the folder: damaged files are deleted by the names that stand here
        if (
            not isinstance(about, dict)
            or type(about.get("bytes")) is not int
            or type(about.get("sha256")) is not str
            or not is_below(name)
        ):
            return None
    return record


def _drop_damaged(folder: Path) -> None:
    """Before a stage is built again: delete its record, and the files that no longer are what it
    recorded.
    """
    record = _read_record(folder)
    (folder / RECORD).unlink(missing_ok=True)
    for name, about in (record or {"files": {}})["files"].items():
        path = folder / name
        if path.is_file() and file_digest(path) != about["sha256"]:
            path.unlink()


def _intact(folder: Path, record: dict[str, Any]) -> bool:
    """Every recorded file is there with its size. Its content is checked by `Artefact.path` when it
    is read, not on every start.
    """
    for name, about in record.get("files", {}).items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != about["bytes"]:
            return False
    return True


def changed_files(artefact: Artefact) -> list[str]:
    """Names of the files whose content differs from what was recorded."""
    return [
        n
        for n, about in artefact.record["files"].items()
        if file_digest(artefact.folder / n) != about["sha256"]
    ]
