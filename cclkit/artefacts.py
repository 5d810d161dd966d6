"""Stage artefacts on disk: content keys, atomic writes, resume, staleness, one writer per folder.

A run folder holds ``<stage>/<key>/…`` where the key is a hash of the stage's settings, the keys of
its inputs and the code that computes it. The key alone decides staleness: a stage whose key exists
is not run again, a changed setting gets a folder of its own (so nothing computed is ever lost), and
a killed run goes on with the files that are still missing.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import inspect
import io
import json
import os
import re
import shutil
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch

from . import __version__
from .errors import ArtefactError

try:
    import fcntl
except ImportError:  # Windows has no flock; runs there are not protected against each other
    fcntl = None

KEY_LENGTH = 16  # hex digits of a key: 64 bits, no collisions at any number of runs a person makes
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
        path = self.folder / name
        if not path.exists():
            raise ArtefactError(f"{path}: missing from the {self.stage!r} artefact; delete {self.folder} and run again")
        return path

    def npz(self, name: str) -> dict[str, np.ndarray]:
        """All arrays of an .npz file (pickles are refused)."""
        path = self.path(name)
        try:
            with np.load(path, allow_pickle=False) as data:
                return {k: data[k] for k in data.files}
        except Exception as e:  # zipfile, zlib and numpy each raise their own on a damaged file
            raise ArtefactError(f"{path}: damaged ({e}); delete {self.folder} and run again") from e


    def safetensors(self, name: str) -> dict:
        """All tensors of a .safetensors file."""
        path = self.path(name)
        try:
            return safetensors.torch.load(path.read_bytes())
        except Exception as e:  # the format's own error type is not public in all versions
            raise ArtefactError(f"{path}: damaged ({e}); delete {self.folder} and run again") from e

    def json(self, name: str) -> Any:
        path = self.path(name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as e:
            raise ArtefactError(f"{path}: damaged ({e}); delete {self.folder} and run again") from e


class Store:
    """Artefacts of one scene below a run folder, with an optional read-only bundle to look in first."""

    def __init__(self, root: Path | str, bundle: Path | str | None = None, *, look_only: bool = False):
        self.root = Path(root)
        self.bundle = Path(bundle) if bundle is not None else None
        self._locked = False
        if look_only:  # to `find` what is there; nothing is made
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as e:
            raise ArtefactError(f"{self.root}: cannot be written ({e.strerror or e}); choose another --out folder") from e

    def find(self, stage: str, key: str) -> Artefact | None:
        """The finished artefact of this key, here or in the bundle, or None."""
        for base in filter(None, (self.root, self.bundle)):
            folder = base / stage / key
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
            for left in folder.glob("*.tmp"):  # half-written files of a killed run
                left.unlink()
            start = time.monotonic()
            extra = build(folder) or {}
            record = {
                "stage": stage,
                "key": key,
                "cclkit": __version__,
                **about,
                **extra,
                "wall_time_s": round(time.monotonic() - start, 3),
                "files": {
                    p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": file_digest(p)}
                    for p in sorted(folder.rglob("*"))
                    if p.is_file()
                },
            }
            atomic_write(folder / RECORD, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
            record = _read_record(folder)  # computed or found, a caller gets the same thing
        except OSError as e:
            raise ArtefactError(
                f"{folder}: cannot be written ({e.strerror or e}); free space or choose another --out folder, "
                "then run the same command again: finished files are kept"
            ) from e
        return Artefact(stage, key, folder, record, reused=False)

    def clear(self, stages: Iterable[str]) -> None:
        """Delete the artefacts of these stages: folders named like keys, and nothing else that may lie there."""
        for stage in stages:
            for child in (self.root / stage).glob("*"):
                if child.is_dir() and re.fullmatch(rf"[0-9a-f]{{{KEY_LENGTH}}}", child.name):
                    shutil.rmtree(child)

    @contextlib.contextmanager
    def lock(self, artefact: str = "") -> Iterator[None]:
        """Hold the folder, or one artefact "stage/key" of it, for one run at a time; a second one is refused with the holder's process id.

        Jobs that compute different artefacts share a folder. Within one store the folder's lock nests: a stage
        may need another one computed first.
        """
        if self._locked:
            yield
            return
        with contextlib.ExitStack() as held:
            held.enter_context(self._flock(self.root / ".lock", shared=bool(artefact)))
            if artefact:
                held.enter_context(self._flock(self.root / ".locks" / artefact.replace("/", "-")))
            self._locked = not artefact
            try:
                yield
            finally:
                self._locked = False

    @contextlib.contextmanager
    def _flock(self, path: Path, *, shared: bool = False) -> Iterator[None]:
        path.parent.mkdir(exist_ok=True)
        with open(path, "a+", encoding="utf-8") as f:
            if fcntl is not None:
                try:
                    fcntl.flock(f, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                except OSError:
                    f.seek(0)
                    raise ArtefactError(
                        f"{self.root}: in use by another run (process {f.read().strip() or 'unknown'}); "
                        "wait for it to end or choose another --out folder"
                    ) from None
            if not shared:
                f.truncate(0)
                f.write(str(os.getpid()))
                f.flush()
            try:
                yield
            finally:
                if not shared:
                    f.truncate(0)


def content_key(**parts: Any) -> str:
    """Key of anything that JSON can hold: equal parts give equal keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:KEY_LENGTH]


def code_version(modules: Sequence[str], *functions: Callable) -> str:
    """Hash of what the given code does: comments, docstrings and layout don't count.

    ``modules`` are paths below the package ("masks.py") or folders ("gaussians").
    """
    digest = hashlib.sha256()
    for name in modules:
        path = Path(__file__).parent / name
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            digest.update(_CODE_DIGESTS[file].encode())
    for function in functions:
        digest.update(_source(function).encode())
    return digest.hexdigest()[:KEY_LENGTH]


@functools.cache
def _source(function: Callable) -> str:
    """What a function does, as text; read once, since a plan asks for hundreds of keys."""
    return _canonical(ast.parse(textwrap.dedent(inspect.getsource(function))))


def _canonical(node: Any) -> str:
    """A syntax tree as text, alike on all Python versions (`ast.dump` gains fields from one to the next)."""
    if isinstance(node, ast.AST):
        parts = []
        for name, value in ast.iter_fields(node):
            if name == "body" and isinstance(value, list):  # strings that stand alone are documentation
                value = [s for s in value if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) and isinstance(s.value.value, str))]
            if value is not None and value != []:
                parts.append(f"{name}={_canonical(value)}")
        return f"{type(node).__name__}({','.join(parts)})"
    if isinstance(node, list):
        return "[" + ",".join(map(_canonical, node)) + "]"
    return repr(node)


def atomic_write(path: Path, content: bytes) -> None:
    """Write to a temporary name beside the target and rename, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def save_npz(path: Path, **arrays: np.ndarray) -> None:
    """Compressed .npz, written atomically; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    atomic_write(path, buffer.getvalue())


def save_json(path: Path, value: Any) -> None:
    atomic_write(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def file_digest(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _read_record(folder: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("files"), dict) else None


def _drop_damaged(folder: Path) -> None:
    """Before a stage is built again: delete its record, and the files that no longer are what it recorded."""
    record = _read_record(folder)
    (folder / RECORD).unlink(missing_ok=True)
    for name, about in (record or {"files": {}})["files"].items():
        path = folder / name
        if path.is_file() and file_digest(path) != about["sha256"]:
            path.unlink()


def _intact(folder: Path, record: dict[str, Any]) -> bool:
    """Every recorded file is there with its size (content is checked by `verify`, not on every start)."""
    for name, about in record.get("files", {}).items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != about["bytes"]:
            return False
    return True


def verify(artefact: Artefact) -> list[str]:
    """Names of the files whose content differs from what was recorded."""
    return [n for n, about in artefact.record["files"].items() if file_digest(artefact.folder / n) != about["sha256"]]


# Taken when the code is imported, not when a key is asked for: in a notebook that stays open, files may be edited
# while the old code still runs, and its results must not be filed under the new code's key.
_CODE_DIGESTS = {
    file: hashlib.sha256(_canonical(ast.parse(file.read_text(encoding="utf-8"))).encode()).hexdigest()
    for file in sorted(Path(__file__).parent.rglob("*.py"))
}
