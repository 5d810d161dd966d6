"""What the library finds of what was fetched: checkpoints and scenes by name."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from ..errors import DataError, SceneError
from ..places import data_root, registry_file
from .checks import check
from .records import known_digest, known_files, location
from .registry import entries, entry


def checkpoint(name: str, root: str | os.PathLike | None = None) -> Path | None:
    """The fetched checkpoint of an entry, its digest verified; None when it is not here (or there
    is no registry).

    Raises DataError when the file is not what it should be.
    """
    if not registry_file().is_file():
        return None
    e, where = entry(name), data_root(root)
    path = location(e, where)
    if not path.is_file():
        return None
    try:
        item = check(e, where)
    except DataError:
        if known_files(e, where):
            raise
        # a shared, read-only data root: nothing to compare with, and nothing can be recorded
        return path
    if item.bad:
        raise DataError(
            f"{path}: {item.detail}, so it is not used; run `cclkit data fetch {name}` to"
            " replace it"
        )
    return path


def digest_of_checkpoint(path: str | os.PathLike) -> str | None:
    """The digest that a file must have because it is a checkpoint of the registry in the data root,
    else None.
    """
    if not registry_file().is_file():
        return None
    where, path = data_root(), Path(path).absolute()
    for e in entries().values():
        if e.is_file and path == where / e.target:
            return known_digest(e, where)
    return None


def scene(name: str, root: str | os.PathLike | None = None) -> Path | None:
    """Folder of a fetched scene, e.g. "lerf_ovs/teatime"; None when the name does not begin with a
    data set of the registry.

    Raises SceneError when the data set is not here, naming the command that fetches it, or has no
    such scene.
    """
    first, _, rest = name.partition("/")
    if not rest or not registry_file().is_file():
        return None
    e, where = entries().get(first), data_root(root)
    if e is None or e.is_file:
        return None
    folder = location(e, where)
    if not folder.is_dir():
        raise SceneError(
            f"{name}: the data set {first} is not in {folder}; run `cclkit data fetch {first}`"
            f" ({e.size_text}), or give the path of a scene"
        )
    if ".." in PurePosixPath(rest).parts or not (folder / rest).is_dir():
        scenes = sorted(f"{first}/{p.name}" for p in folder.iterdir() if (p / "images").is_dir())
        raise SceneError(
            f"{folder / rest}: no such folder; {first} has {', '.join(scenes) or 'no scene'}: name"
            f" one of these, or run `cclkit data verify {first}`"
        )
    return folder / rest
