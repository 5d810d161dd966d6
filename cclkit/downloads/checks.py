"""What is here of an entry of the registry, and whether it is what it claims to be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DataError
from ..progress import byte_progress
from .records import (
    SOURCES,
    digest,
    known_files,
    location,
    manifest,
    part_file,
    recorded,
    write_record,
)
from .registry import Entry, human


@dataclass(frozen=True)
class Item:
    """What is known of one thing: fetched or to be fetched, or bundled."""

    name: str
    state: str  # "here", "missing", "incomplete" (files lack) or "damaged" (files differ)
    path: Path
    size: str
    licence: str
    detail: str = ""
    blocks: str = ""
    without: str = ""
    bundled: bool = False

    @property
    def bad(self) -> bool:
        return self.state in ("incomplete", "damaged")


def look(e: Entry, root: Path) -> Item:
    """State of an entry by names and sizes of its files, without reading them."""
    path = location(e, root)
    try:
        there = path.is_file() if e.is_file else path.is_dir()
    except OSError as err:
        raise DataError(
            f"{root / SOURCES}: what it holds of {e.name!r} is no path ({err.strerror or err});"
            f" remove {e.name!r} from it"
        ) from err
    item = Item(e.name, "here", path, e.size_text, e.licence, blocks=e.blocks, without=e.without)
    if not there:
        return replace(item, state="missing", detail=_how_far(e, root, path))
    folder, files = _folder(e, path), known_files(e, root)
    for name, about in files.items():
        file, want = folder / name, about["bytes"]
        if want is not None and file.is_file() and (size := file.stat().st_size) != want:
            detail = f"{name} has {size} bytes, expected {want}"
            return replace(item, state="damaged", detail=detail)
    lacking = [x for x in e.expected if not (path / x).exists()]
    lacking += [name for name in files if not (folder / name).is_file()]
    if lacking:
        detail = f"{len(lacking)} files lack, e.g. {lacking[0]}"
        return replace(item, state="incomplete", detail=detail)
    own = [path] if e.is_file else [folder / name for name in files]
    size = human(sum(p.stat().st_size for p in own)) if own else e.size_text
    return replace(item, size=size, detail=f"linked: {path}" if path != root / e.target else "")


def check(e: Entry, root: Path) -> Item:
    """State of an entry with every digest computed again; unknown digests are recorded now and
    compared from then on.
    """
    item = look(e, root)
    if item.state != "here":
        return item
    folder, known = _folder(e, item.path), known_files(e, root)
    if not known:
        if e.is_file:
            about = {"bytes": item.path.stat().st_size, "sha256": digest(item.path)}
            found = {e.file_name: about}
        else:
            found = manifest(folder, e.name)
        write_record(root, e.name, recorded(e, root) | {"files": found})
        return replace(item, detail="no digest was known: recorded now")
    wrong = []
    sizes = {name: (folder / name).stat().st_size for name in known}
    with byte_progress(sum(sizes.values()), f"digests of {e.name}") as bar:
        for name, about in known.items():
            if (found := digest(folder / name)) != about["sha256"]:
                wrong.append(f"{name} has sha256 {found[:12]}…, expected {about['sha256'][:12]}…")
            bar.update(sizes[name])
    if not wrong:
        return item
    detail = wrong[0] if len(wrong) == 1 else f"{len(wrong)} files changed: {wrong[0]}"
    return replace(item, state="damaged", detail=detail)


def _folder(e: Entry, path: Path) -> Path:
    """The folder that the names of an entry's files are relative to."""
    return path.parent if e.is_file else path


def _how_far(e: Entry, root: Path, path: Path) -> str:
    """Of what is not here: a link that leads nowhere, or a download that was begun."""
    if path != root / e.target:
        return f"the linked folder {path} is gone"
    part = part_file(e, root)
    return f"{human(part.stat().st_size)} downloaded so far" if part.is_file() else ""
