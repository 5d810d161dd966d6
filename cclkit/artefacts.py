"""Stage artefacts on disk: content keys, atomic writes, resume, staleness, one writer per folder.

A run folder holds ``<stage>/<key>/…`` where the key is a hash of the stage's settings, the keys of
its inputs and the code that computes it. The key alone decides staleness: a stage whose key exists
is not run again, a changed setting gets a folder of its own (so nothing computed is ever lost), and
a killed run goes on with the files that are still missing.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import io
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import safetensors.torch

from . import __version__
from .errors import ArtefactError, reason

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
    """Artefacts of one scene below a run folder, with an optional read-only bundle to look in
    first.
    """

    def __init__(
        self, root: Path | str, bundle: Path | str | None = None, *, look_only: bool = False
    ):
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
            raise ArtefactError(
                f"{self.root}: cannot be written ({e.strerror or e}); choose another --out folder"
            ) from e

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


def unwritable(path: Path, e: OSError) -> ArtefactError:
    """The error for a full disk or a read-only folder."""
    return ArtefactError(
        f"{path}: cannot be written ({e.strerror or e}); free space or choose another --out folder,"
        " then run the same command again: finished files are kept"
    )


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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


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
        known = _FUNCTIONS.get((Path(function.__code__.co_filename), function.__qualname__))
        digest.update(
            (known or _canonical(ast.parse(textwrap.dedent(inspect.getsource(function))))).encode()
        )
    return digest.hexdigest()[:KEY_LENGTH]


def _canonical(node: Any) -> str:
    """A syntax tree as text, alike on all Python versions (`ast.dump` gains fields from one to the
    next).
    """
    if isinstance(node, ast.AST):
        parts = []
        for name, value in ast.iter_fields(node):
            if name == "body" and isinstance(
                value, list
            ):  # strings that stand alone are documentation
                value = [
                    s
                    for s in value
                    if not (
                        isinstance(s, ast.Expr)
                        and isinstance(s.value, ast.Constant)
                        and isinstance(s.value.value, str)
                    )
                ]
            if value is not None and value != []:
                parts.append(f"{name}={_canonical(value)}")
        return f"{type(node).__name__}({','.join(parts)})"
    if isinstance(node, list):
        return "[" + ",".join(map(_canonical, node)) + "]"
    return repr(node)


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
    except (
        Exception
    ) as e:  # the header is Python source, so a damaged one fails in any way that source can
        raise ValueError(reason(e)) from e
    if not isinstance(array, np.ndarray):
        raise ValueError("an archive of arrays, expected one array")
    return array


def file_digest(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


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
    """Every recorded file is there with its size (content is checked by `verify`, not on every
    start).
    """
    for name, about in record.get("files", {}).items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != about["bytes"]:
            return False
    return True


def verify(artefact: Artefact) -> list[str]:
    """Names of the files whose content differs from what was recorded."""
    return [
        n
        for n, about in artefact.record["files"].items()
        if file_digest(artefact.folder / n) != about["sha256"]
    ]


# Taken when the code is imported, not when a key is asked for: in a notebook that stays open, files
# may be edited
# while the old code still runs, and its results must not be filed under the new code's key.
_CODE_DIGESTS: dict[Path, str] = {}
_FUNCTIONS: dict[tuple[Path, str], str] = {}
"""(file, qualified name) -> canonical text of every function and method of the package: `inspect`
would read the file as it is by now.
"""


def _take(file: Path, tree: ast.AST, prefix: str = "") -> None:
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            _take(file, node, f"{prefix}{node.name}.")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            _FUNCTIONS[file, prefix + node.name] = _canonical(ast.Module([node], []))


for _file in sorted(Path(__file__).parent.rglob("*.py")):
    _tree = ast.parse(_file.read_text(encoding="utf-8"))
    _CODE_DIGESTS[_file] = hashlib.sha256(_canonical(_tree).encode()).hexdigest()
    _take(_file, _tree)
