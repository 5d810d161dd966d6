"""Bringing in what the registry lists: download or the offline route, check, unpack, record."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..errors import DataError
from ..places import data_root
from .archives import unpack
from .checks import check
from .disk import need_room, only_one, set_aside, unwritable_root
from .records import (
    CHECKSUMS,
    SOURCES,
    digest,
    known_digest,
    location,
    manifest,
    part_file,
    recorded,
    write_record,
)
from .registry import Entry, entry
from .transfer import Interrupted, download, looks_like_html, note

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz")


def fetch(
    name: str, root: str | os.PathLike | None = None, source: str | os.PathLike | None = None
) -> Path:
    """Bring in one entry and return where it is; what is here and intact is left alone.

    ``source``: a file, archive or unpacked folder on this machine instead of the network, or a
    folder of downloads that holds it under its own name. An unpacked folder is linked, not copied.
    Raises DataError: unknown name, no single download, network, no space, a digest that differs
    (the file is then kept as NAME.bad-…), an archive that is damaged or reaches outside its folder.
    """
    e, where = entry(name), data_root(root)
    if source is None and not e.urls and check(e, where).state != "here":
        raise DataError(f"{e.name} is no single download; {by_hand(e)}")
    try:
        (where / e.target).parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise unwritable_root(where, err) from err
    with only_one(where):
        if source is not None:
            return _from_here(e, where, Path(source).expanduser().absolute())
        if check(e, where).state == "here":
            return location(e, where)
        return _from_network(e, where)


def by_hand(e: Entry) -> str:
    """The route by browser, in words."""
    what = "FILE" if e.is_file else "FOLDER_OR_ARCHIVE"
    return f"by hand: {e.manual}, then run `cclkit data fetch {e.name} --from {what}`"


# ---------------------------------------------------------------- by network


def _from_network(e: Entry, root: Path) -> Path:
    part, failures = part_file(e, root), []
    for url in e.urls:
        try:
            download(url, part, e)
        except Interrupted:
            raise  # worth going on with; another address would start over
        except DataError as err:
            failures.append(str(err))
            continue
        found = digest(part)
        _check_download(e, root, url, part, found)
        path = _install(part, e, root, url, found)
        note(part).unlink(missing_ok=True)
        return path
    raise DataError(f"{e.name} could not be fetched: {'; '.join(failures)}; {by_hand(e)}")


def _check_download(e: Entry, root: Path, url: str, part: Path, found: str) -> None:
    """Raise DataError, and set the download aside, when its digest is not the one that is known."""
    want = e.sha256 or recorded(e, root)["downloads"].get(url) or known_digest(e, root)
    if not want or found == want:
        return
    bad = set_aside(part, root / e.target, found)
    note(part).unlink(missing_ok=True)
    why, remedy = "the registry says", "Try again later, or "
    if not e.sha256:
        why = f"recorded at first use in {root / CHECKSUMS} was"
        remedy = (
            f"If its owners published a new version, remove {e.name!r} from that file and fetch"
            " again; or "
        )
    raise DataError(
        f"{url}: sha256 of the download is {found}, {why} {want}; it is not used and kept as {bad}."
        f" {remedy}{by_hand(e)}"
    )


# ---------------------------------------------------------------- from this machine


def _from_here(e: Entry, root: Path, source: Path) -> Path:
    if source.is_dir():
        file = _only_file(e, source) if e.is_file else _archive_in(e, source)
        return _link(e, root, source) if file is None else _from_here(e, root, file)
    if not source.is_file():
        raise DataError(f"{source}: no such file or folder; give what was downloaded for {e.name}")
    with open(source, "rb") as f:
        if looks_like_html(f.read(512)):
            raise DataError(f"{source}: is a web page, not {e.name}; {by_hand(e)}")
    found, want = digest(source), known_digest(e, root)
    if not e.is_file:
        return _install(source, e, root, "offline", found)
    if want and found != want:
        raise DataError(
            f"{source}: sha256 is {found}, expected {want} for {e.name}, so it is not used;"
            f" {by_hand(e)}"
        )
    need_room(root, source.stat().st_size, e.name)
    copy = (root / e.target).with_name(e.file_name + ".copying")
    try:
        shutil.copyfile(source, copy)
    except OSError as err:
        copy.unlink(missing_ok=True)
        raise unwritable_root(copy, err) from err
    return _install(copy, e, root, "offline", found)


def _archive_in(e: Entry, folder: Path) -> Path | None:
    """The archive of a data set in a folder of downloads, by its name."""
    named = [folder / (e.file_name + ending) for ending in ARCHIVES]
    return next((p for p in named if p.is_file()), None)


def _only_file(e: Entry, folder: Path) -> Path:
    """A checkpoint in a folder of downloads, by its name here or at its source."""
    for name in (e.file_name, *(url.rsplit("/", 1)[1] for url in e.urls)):
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"{folder}: holds no {e.file_name}; give the file itself: cclkit data fetch"
        f" {e.name} --from FILE"
    )


def _link(e: Entry, root: Path, source: Path) -> Path:
    """Use an unpacked data set where it lies."""
    base = _base(source, e)
    if base is None:
        lacking = [x for x in e.expected if not (source / x).exists()]
        raise DataError(
            f"{source}: not the unpacked {e.name}: {len(lacking)} of {len(e.expected)} expected"
            f" files lack, e.g. {lacking[0]}; give the folder that holds them, or use single scenes"
            " by path (--scene)"
        )
    if not any(base.iterdir()):
        raise DataError(f"{base}: is empty; give the unpacked folder of {e.name}")
    files = manifest(base, e.name)
    downloads = recorded(e, root)["downloads"]
    write_record(root, e.name, {"files": files, "source": "offline", "downloads": downloads})
    here = base.resolve() == (root / e.target).resolve()
    write_record(root, e.name, None if here else str(base.resolve()), SOURCES)
    return base


# ---------------------------------------------------------------- installing


def _install(file: Path, e: Entry, root: Path, origin: str, found: str) -> Path:
    """Put a checked file (or what an archive holds) in its place and record its digests; a killed
    fetch leaves nothing half.

    ``origin``: the address it came from, then an archive is used up; or "offline", then it is the
    user's and stays.
    """
    target = root / e.target
    downloads = recorded(e, root)["downloads"]
    if origin != "offline":
        downloads = downloads | {origin: found}
    if e.is_file:
        files = {target.name: {"bytes": file.stat().st_size, "sha256": found}}
        os.replace(file, target)
    else:
        files = _install_archive(file, e, root, origin, found)
    about = {"files": files, "source": origin, "source_sha256": found, "downloads": downloads}
    write_record(root, e.name, about)
    write_record(root, e.name, None, SOURCES)
    return target


def _install_archive(file: Path, e: Entry, root: Path, origin: str, found: str) -> dict[str, dict]:
    """Unpack beside the target and rename; returns the digests of all files."""
    target = root / e.target
    temporary = target.with_name(target.name + ".unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed fetch
    try:
        unpack(file, temporary, e)
        base = _base(temporary, e)
        if base is None:
            lacking = [x for x in e.expected if not (temporary / x).exists()]
            raise DataError(
                f"{file}: does not hold {e.name}: {lacking[0]} is not in it; {by_hand(e)}"
            )
        files = manifest(base, e.name)
        if target.exists():
            set_aside(target, target, recorded(e, root)["source_sha256"] or "earlier")
        os.rename(base, target)
    except DataError as err:
        if origin == "offline":
            raise
        bad = set_aside(file, target, found)
        raise DataError(f"{err}. The download is not used and kept as {bad}") from err
    except OSError as err:
        raise unwritable_root(temporary, err) from err
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if origin != "offline":
        file.unlink()
    return files


def _base(folder: Path, e: Entry) -> Path | None:
    """The folder with the expected files: this one, or one that an archive wraps around them."""
    inside = [p for p in folder.iterdir() if p.is_dir()]
    for base in (folder, folder / e.file_name, *(inside if len(inside) == 1 else ())):
        if base.is_dir() and all((base / x).exists() for x in e.expected):
            return base
    return None
