"""What can be fetched: ``data/registry.toml``, a table for each public data set and checkpoint.

Nothing here touches the network: `fetching` does, and only for ``cclkit data fetch``.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import DataError
from ..files import is_below
from ..places import registry_file


@dataclass(frozen=True)
class Entry:
    """One table of registry.toml, whose head says what the fields mean."""

    name: str
    title: str
    kind: str  # "dataset" or "checkpoint"
    urls: tuple[str, ...]
    manual: str
    size: int
    size_is: str  # "exact", "approximate" or "unknown"
    sha256: str
    licence: str
    use: str
    blocks: str
    without: str
    target: str
    expected: tuple[str, ...]

    @property
    def size_text(self) -> str:
        return (
            {"exact": "", "approximate": "about "}.get(self.size_is, "") + human(self.size)
            if self.size
            else "size not known"
        )

    @property
    def is_file(self) -> bool:
        """A single file (a checkpoint) rather than a folder."""
        return self.kind == "checkpoint"

    @property
    def file_name(self) -> str:
        """Name of the file or folder, without where it lies."""
        return PurePosixPath(self.target).name


def entries() -> dict[str, Entry]:
    """The registry by name. Raises DataError when it is not there or not what it should be."""
    return _load(registry_file())


@lru_cache(maxsize=4)
def _load(path: Path) -> dict[str, Entry]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; the registry belongs to a checkout of the project, an installed"
            " package has none: work from a checkout, or give paths (--scene,"
            " front_end.sam.checkpoint)"
        ) from None
    except (OSError, ValueError, RecursionError) as e:
        raise DataError(f"{path}: cannot be read ({e}); restore it from the repository") from e
    wanted = set(Entry.__dataclass_fields__) - {"name"}
    for name, table in tables.items():
        if not isinstance(table, dict) or set(table) != wanted:
            odd = sorted(wanted ^ set(table if isinstance(table, dict) else ()))
            raise DataError(
                f"{path}: [{name}] has missing or unknown fields ({', '.join(odd)}); restore the"
                " file from the repository"
            )
        if bad := [k for k, v in table.items() if not _fits(k, v)]:
            raise DataError(
                f"{path}: [{name}] {bad[0]} is {str(table[bad[0]])[:80]!r}, which it cannot be;"
                " restore the file from the repository"
            )
    as_field = lambda v: tuple(v) if isinstance(v, list) else v
    return {n: Entry(n, **{k: as_field(v) for k, v in t.items()}) for n, t in tables.items()}


def _fits(field: str, value: Any) -> bool:
    """Whether a field of registry.toml has its type and, for places on disk, stays below the data
    root.
    """
    match field:
        case "size":
            return type(value) is int and 0 <= value < 2**53
        case "kind":
            return value in ("dataset", "checkpoint")
        case "size_is":
            return value in ("exact", "approximate", "unknown")
        case "urls":
            return isinstance(value, list) and all(isinstance(v, str) for v in value)
        case "target" | "expected":
            places = value if field == "expected" else [value]
            return isinstance(places, list) and all(
                isinstance(p, str) and is_below(p) for p in places
            )
    return isinstance(value, str)


def entry(name: str) -> Entry:
    """An entry by name. Raises DataError that lists the known names."""
    known = entries()
    if name not in known:
        raise DataError(
            f"nothing called {name!r} can be fetched{near(name, known)}; known names:"
            f" {', '.join(known)}"
        )
    return known[name]


def near(name: str, known: Iterable[str]) -> str:
    """What a message adds when a known name looks like the one that was given."""
    found = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def human(size: int) -> str:
    """ "746 MB": decimal units, as download pages state them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.{1 if size < 10 * factor else 0}f} {unit}"
    return f"{size} B"
