"""What can be fetched, what of it is here, and whether it is what it claims to be.

``data/registry.toml`` lists public data sets and checkpoints. They live below the data root; beside
them ``checksums.json`` holds the digests of what was brought in, ``sources.json`` the folders that
were linked rather than copied. Nothing here touches the network: `fetching` does, and only for
``cclkit data fetch``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import tomllib
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path, PurePosixPath

from tqdm.auto import tqdm

from ..errors import DataError, SceneError
from ..files import file_digest, is_below, save_json
from ..places import DATA, bundled_scenes, data_root, registry_file

CHECKSUMS, SOURCES = "checksums.json", "sources.json"
BUNDLED_MODELS = ("mini_sam.safetensors", "mini_clip.safetensors", "mini_sam2.safetensors")


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


# ---------------------------------------------------------------- the list


def entries() -> dict[str, Entry]:
    """The registry by name. Raises DataError when it is not there or does not hold what
    it should.
    """
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
    return {
        n: Entry(n, **{k: tuple(v) if isinstance(v, list) else v for k, v in t.items()})
        for n, t in tables.items()
    }


def _fits(field: str, value) -> bool:
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
            f"nothing called {name!r} can be fetched{_near(name, known)}; known names:"
            f" {', '.join(known)}"
        )
    return known[name]


def _near(name: str, known) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


# ---------------------------------------------------------------- digests and links


def digest(path: str | os.PathLike) -> str:
    """sha256 (hex) of a file, computed once a process as long as its size and time of
    change stay.
    """
    stat = os.stat(path)
    return _digest(os.path.abspath(path), stat.st_size, stat.st_mtime_ns)


@cache
def _digest(path: str, size: int, changed_ns: int) -> str:
    return file_digest(Path(path))


def manifest(folder: Path, what: str) -> dict[str, dict]:
    """{name below folder: {"bytes", "sha256"}} of all files, with a progress bar."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    out = {}
    with progress(sum(p.stat().st_size for p in paths), f"digests of {what}") as bar:
        for p in paths:
            out[p.relative_to(folder).as_posix()] = {"bytes": p.stat().st_size, "sha256": digest(p)}
            bar.update(p.stat().st_size)
    return out


def progress(total: int | None, what: str, done: int = 0) -> tqdm:
    """A bar in bytes with the time left, on stderr."""
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit="B",
        unit_scale=True,
        leave=False,
        disable=bool(os.environ.get("CCLKIT_QUIET")),
    )


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
    record = {k: v for k, v in before.items() if k != name} | (
        {name: value} if value is not None else {}
    )
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


def known_files(e: Entry, root: Path) -> dict[str, dict]:
    """{file: {"bytes", "sha256"}} an entry must consist of: the registry's digest, else what was
    recorded; {} if neither.
    """
    if e.kind == "checkpoint" and e.sha256:
        return {
            PurePosixPath(e.target).name: {
                "bytes": e.size if e.size_is == "exact" else None,
                "sha256": e.sha256,
            }
        }
    return recorded(e, root)["files"]


def recorded(e: Entry, root: Path) -> dict:
    """What checksums.json holds of an entry: its files, the digests of its downloads, where it came
    from.
    """
    record = {
        "files": {},
        "downloads": {},
        "source": "",
        "source_sha256": "",
        **_table(read_record(root).get(e.name, {})),
    }
    files = _table(record["files"])
    if not all(
        isinstance(f, dict) and isinstance(f.get("bytes"), int) and isinstance(f.get("sha256"), str)
        for f in files.values()
    ):
        raise DataError(
            f"{root / CHECKSUMS}: what it holds of {e.name!r} cannot be read; remove {e.name!r}"
            " from it, and its digests are recorded anew"
        )
    return {**record, "files": files, "downloads": _table(record["downloads"])}


def _table(value) -> dict:
    return value if isinstance(value, dict) else {}


# ---------------------------------------------------------------- what is here


def look(e: Entry, root: Path) -> Item:
    """State of an entry by names and sizes of its files, without reading them."""
    path = location(e, root)
    try:
        path.exists()
    except OSError as err:
        raise DataError(
            f"{root / SOURCES}: what it holds of {e.name!r} is no path ({err.strerror or err});"
            f" remove {e.name!r} from it"
        ) from err
    item = lambda state, detail="", size=e.size_text: Item(
        e.name, state, path, size, e.licence, detail, e.blocks, e.without
    )  # noqa: E731
    there = path.is_file() if e.kind == "checkpoint" else path.is_dir()
    linked = path != root / e.target
    if not there:
        part = part_file(e, root)
        detail = (
            f"the linked folder {path} is gone"
            if linked
            else f"{human(part.stat().st_size)} downloaded so far"
            if part.is_file()
            else ""
        )
        return item("missing", detail)
    folder = path.parent if e.kind == "checkpoint" else path
    lacking = [x for x in e.expected if not (path / x).exists()]
    files, total = known_files(e, root), 0
    for name, about in files.items():
        file = folder / name
        if not file.is_file():
            lacking.append(name)
            continue
        size = file.stat().st_size
        total += size
        if about["bytes"] is not None and size != about["bytes"]:
            return item("damaged", f"{name} has {size} bytes, expected {about['bytes']}")
    if lacking:
        return item("incomplete", f"{len(lacking)} files lack, e.g. {lacking[0]}")
    size = (
        human(path.stat().st_size if e.kind == "checkpoint" else total)
        if files or e.kind == "checkpoint"
        else e.size_text
    )
    return item("here", f"linked: {path}" if linked else "", size)


def check(e: Entry, root: Path) -> Item:
    """State of an entry with every digest computed again; unknown digests are recorded now and
    compared from then on.
    """
    item = look(e, root)
    if item.state != "here":
        return item
    folder = item.path.parent if e.kind == "checkpoint" else item.path
    known = known_files(e, root)
    if not known:
        name = PurePosixPath(e.target).name
        found = (
            {name: {"bytes": item.path.stat().st_size, "sha256": digest(item.path)}}
            if e.kind == "checkpoint"
            else manifest(folder, e.name)
        )
        write_record(root, e.name, {**recorded(e, root), "files": found})
        return replace(item, detail="no digest was known: recorded now")
    wrong = []
    with progress(sum((folder / n).stat().st_size for n in known), f"digests of {e.name}") as bar:
        for name, about in known.items():
            if (found := digest(folder / name)) != about["sha256"]:
                wrong.append(f"{name} has sha256 {found[:12]}…, expected {about['sha256'][:12]}…")
            bar.update((folder / name).stat().st_size)
    if wrong:
        return replace(
            item,
            state="damaged",
            detail=f"{len(wrong)} files changed: {wrong[0]}" if len(wrong) > 1 else wrong[0],
        )
    return item


def part_file(e: Entry, root: Path) -> Path:
    """Where a download grows."""
    target = root / e.target
    return target.with_name(target.name + ".part")


def status(root: str | os.PathLike | None = None) -> list[Item]:
    """Everything bundled and everything that can be fetched, by names and sizes."""
    where = data_root(root)
    return [*_bundled_items(thorough=False), *(look(e, where) for e in entries().values())]


def verify(names: list[str] | None = None, root: str | os.PathLike | None = None) -> list[Item]:
    """The same (or the named ones) with every digest computed again. Raises DataError for an
    unknown name.

    "tabletop" and "models" stand for all bundled scenes and weights.
    """
    where = data_root(root)
    bundled = [i.name for i in _bundled_items(thorough=False)]
    known = [*bundled, *entries()]
    wanted = lambda name: not names or name in names or name.partition("/")[0] in names  # noqa: E731
    for name in names or ():
        if not any(name in (k, k.partition("/")[0]) for k in known):
            raise DataError(
                f"nothing called {name!r} can be verified{_near(name, known)}; known names:"
                f" {', '.join(known)}"
            )
    return [
        *_bundled_items(thorough=True, wanted=wanted),
        *(check(e, where) for n, e in entries().items() if wanted(n)),
    ]


def _bundled_items(thorough: bool, wanted=lambda name: True) -> list[Item]:
    """Bundled scenes by their SHA256SUMS, bundled weights by the sha256 in the record
    beside them.
    """
    items = []
    for scene, folder in bundled_scenes().items():
        if wanted(name := f"tabletop/{scene}"):
            items.append(_bundled_scene(name, folder, thorough))
    for file in BUNDLED_MODELS:
        if wanted(name := f"models/{Path(file).stem}"):
            items.append(_bundled_model(name, DATA / "models" / file, thorough))
    return items


def verify_sums(scene: Path) -> list[str]:
    """Check every file of a scene folder against SHA256SUMS; returns their paths, relative to the
    folder.

    Raises SceneError naming the first file that is missing or was edited.
    """
    sums = scene / "SHA256SUMS"
    remedy = "restore it, or regenerate the scene with python -m lab.tabletop render"
    if not sums.is_file():
        raise SceneError(f"{sums}: missing; {remedy}")
    names = []
    for line in sums.read_text().splitlines():
        want, _, rel = line.partition("  ")
        p = scene / rel
        if not p.is_file():
            raise SceneError(f"{p}: missing but listed in {sums}; {remedy}")
        got = hashlib.sha256(p.read_bytes()).hexdigest()
        if got != want:
            raise SceneError(f"{p}: edited (sha256 {got[:12]}…, expected {want[:12]}…); {remedy}")
        names.append(rel)
    return names


def _bundled_scene(name: str, folder: Path, thorough: bool) -> Item:
    state, detail, size = "here", "", 0
    try:
        listed = [
            folder / line.partition("  ")[2]
            for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
        ]
        if gone := [p for p in listed if not p.is_file()]:
            state, detail = (
                "incomplete",
                f"{len(gone)} files lack, e.g. {gone[0].name}; restore them from the repository",
            )
        size = sum(p.stat().st_size for p in listed if p.is_file())
        if thorough and state == "here":
            verify_sums(folder)
    except OSError:
        state, detail = "incomplete", "SHA256SUMS is missing; restore it from the repository"
    except SceneError as e:
        state, detail = "damaged", str(e)
    return Item(
        name,
        state,
        folder,
        human(size),
        "CC BY 4.0",
        detail,
        "this scene",
        "the other scenes",
        bundled=True,
    )


def _bundled_model(name: str, path: Path, thorough: bool) -> Item:
    item = lambda state, detail="", size="": Item(
        name,
        state,
        path,
        size,
        "Apache-2.0",
        detail,
        "the profile mini with its real models",
        "the simulated front end (front_end.masks=simulated front_end.propagation=simulated"
        " front_end.features=simulated)",
        bundled=True,
    )  # noqa: E731
    if not path.is_file():
        return item(
            "missing", "restore it from the repository, or train it: python -m lab.training"
        )
    size = human(path.stat().st_size)
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        want, length = record["sha256"], record["bytes"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        return item(
            "incomplete",
            f"{path.with_suffix('.json').name} cannot be read ({e!r}); restore it from the"
            " repository",
            size,
        )
    if path.stat().st_size != length:
        return item(
            "damaged",
            f"{path.stat().st_size} bytes, expected {length}; restore it from the repository",
            size,
        )
    if thorough and (found := digest(path)) != want:
        return item(
            "damaged",
            f"sha256 {found[:12]}…, expected {want[:12]}…; restore it from the repository",
            size,
        )
    return item("here", size=size)


# ---------------------------------------------------------------- for the library


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


def known_digest(path: str | os.PathLike) -> str | None:
    """The digest that a file must have because it is a checkpoint of the registry in the data root,
    else None.
    """
    if not registry_file().is_file():
        return None
    where, path = data_root(), Path(path).absolute()
    for e in entries().values():
        if e.kind == "checkpoint" and path == where / e.target:
            return known_files(e, where).get(path.name, {}).get("sha256")
    return None


def scene(name: str, root: str | os.PathLike | None = None) -> Path | None:
    """Folder of a fetched scene, e.g. "lerf_ovs/teatime"; None when the name does not begin with a
    data set of the registry.

    Raises SceneError when the data set is not here, naming the command that fetches it, or has no
    such scene.
    """
    first, _, rest = name.partition("/")
    if (
        not rest
        or not registry_file().is_file()
        or first not in entries()
        or entries()[first].kind != "dataset"
    ):
        return None
    e, where = entries()[first], data_root(root)
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


# ---------------------------------------------------------------- as text


def human(size: int) -> str:
    """ "746 MB": decimal units, as download pages state them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.{1 if size < 10 * factor else 0}f} {unit}"
    return f"{size} B"


def as_text(items: list[Item]) -> str:
    """A table of items; under those that are not here, what that blocks and what still runs."""
    width = max((len(i.name) for i in items), default=0)
    lines = []
    for i, following in zip(items, [*items[1:], None]):
        lines.append(f"{i.name:{width}}  {i.state:10}  {i.size:>14}  {i.licence}".rstrip())
        if i.detail:
            lines.append(f"{'':{width}}  {i.detail}")
        same = following is not None and (following.state, following.blocks, following.without) == (
            i.state,
            i.blocks,
            i.without,
        )
        if i.state != "here" and not same:
            lines.append(f"{'':{width}}  blocks: {i.blocks}; still runs: {i.without}")
    return "\n".join(lines)
