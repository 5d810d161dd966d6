"""What was brought in: its digests, where it came from, and which folders were linked.

Beside the fetched things in the data root, ``checksums.json`` holds the digests of what was brought
in, ``sources.json`` the folders that were linked rather than copied.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import file_digest, save_json
from ..progress import byte_progress
from .registry import Entry

CHECKSUMS, SOURCES = "checksums.json", "sources.json"


def digest(path: str | os.PathLike) -> str:
    """sha256 (hex) of a file, computed once a process while its size and time of change stay."""
    stat = os.stat(path)
    return _digest(os.path.abspath(path), stat.st_size, stat.st_mtime_ns)


@cache
def _digest(path: str, size: int, changed_ns: int) -> str:
    return file_digest(Path(path))


def manifest(folder: Path, what: str) -> dict[str, dict]:
    """{name below folder: {"bytes", "sha256"}} of all files, with a progress bar."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    out = {}
    with byte_progress(sum(p.stat().st_size for p in paths), f"digests of {what}") as bar:
        for p in paths:
            out[p.relative_to(folder).as_posix()] = {"bytes": p.stat().st_size, "sha256": digest(p)}
            bar.update(p.stat().st_size)
    return out


def read_record(root: Path, file: str = CHECKSUMS) -> dict:
    """checksums.json or sources.json of a data root; {} when there is none. Raises DataError on
    anything else.
    """
    path = root / file
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as e:
        raise DataError(
            f"{path}: cannot be read ({e}); delete it, and digests are recorded (or folders linked)"
            " anew"
        ) from e
    if not isinstance(record, dict):
        raise DataError(
            f"{path}: holds a {type(record).__name__}, expected an object; delete it, and digests"
            " are recorded (or folders linked) anew"
        )
    return record


def write_record(root: Path, name: str, value: dict | str | None, file: str = CHECKSUMS) -> None:
    """Set (None: remove) what is recorded under a name."""
    before = read_record(root, file)
    record = {k: v for k, v in before.items() if k != name}
    if value is not None:
        record[name] = value
    if record == before:
        return
    try:
        save_json(root / file, record)
    except OSError as e:
        raise DataError(
            f"{root / file}: cannot be written ({e.strerror or e}); choose another --root"
        ) from e


def location(e: Entry, root: Path) -> Path:
    """Where an entry's folder or file is, or would be."""
    linked = read_record(root, SOURCES).get(e.name)
    return Path(linked) if isinstance(linked, str) else root / e.target


def part_file(e: Entry, root: Path) -> Path:
    """Where a download grows."""
    target = root / e.target
    return target.with_name(target.name + ".part")


def known_files(e: Entry, root: Path) -> dict[str, dict]:
    """{file: {"bytes", "sha256"}} an entry must consist of: the registry's digest, else what was
    recorded; {} if neither.
    """
    if e.is_file and e.sha256:
        size = e.size if e.size_is == "exact" else None
        return {e.file_name: {"bytes": size, "sha256": e.sha256}}
    return recorded(e, root)["files"]


def known_digest(e: Entry, root: Path) -> str | None:
    """The digest that the one file of an entry must have, if any is known."""
    if not e.is_file:
        return None
    return known_files(e, root).get(e.file_name, {}).get("sha256")


def recorded(e: Entry, root: Path) -> dict:
    """What checksums.json holds of an entry: its files, the digests of its downloads, where it came
    from.
    """
    empty = {"files": {}, "downloads": {}, "source": "", "source_sha256": ""}
    record = empty | _table(read_record(root).get(e.name))
    files = _table(record["files"])
    fits = lambda f: isinstance(f.get("bytes"), int) and isinstance(f.get("sha256"), str)
    if not all(isinstance(f, dict) and fits(f) for f in files.values()):
        raise DataError(
            f"{root / CHECKSUMS}: what it holds of {e.name!r} cannot be read; remove {e.name!r}"
            " from it, and its digests are recorded anew"
        )
    return {**record, "files": files, "downloads": _table(record["downloads"])}


def _table(value: Any) -> dict:
    return value if isinstance(value, dict) else {}
