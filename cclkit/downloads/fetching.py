"""Bringing in what the registry lists: download or the offline route, check, unpack. The only code
that uses the network.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import http.client
import lzma
import os
import re
import shutil
import ssl
import stat
import struct
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from .. import __version__
from ..errors import DataError
from ..files import save_json
from . import registry
from .registry import SOURCES, Entry, human

try:
    import fcntl
except ImportError:  # Windows: two fetches at once are not noticed there
    fcntl = None

TRIES = 4
PAUSE = 1.0
"""Seconds before the second try; doubled before each further one."""
TIMEOUT = 30
PIECE = 1 << 20
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""HTTP answers after which another try makes sense."""
MAX_FILES = 200_000
UNPACKED_FACTOR, UNPACKED_EXTRA = 20, 2 * 10**9
"""An archive may not grow beyond factor × its size + extra: photographs hardly compress, so more is
a bomb.
"""


class _Passing(Exception):
    """A fault that may be gone at the next try."""


class _Page(DataError):
    """A web page came instead of the file."""


class _Interrupted(DataError):
    """Several tries failed, and what came so far is kept."""


def fetch(
    name: str, root: str | os.PathLike | None = None, source: str | os.PathLike | None = None
) -> Path:
    """Bring in one entry and return where it is; what is here and intact is left alone.

    ``source``: a file, archive or unpacked folder on this machine instead of the network, or a
    folder of downloads that holds it under its own name. An unpacked folder is linked, not copied.
    Raises DataError: unknown name, no single download, network, no space, a digest that differs
    (the file is then kept as NAME.bad-…), an archive that is damaged or reaches outside its folder.
    """
    e, where = registry.entry(name), registry.data_root(root)
    if source is None and not e.urls and registry.check(e, where).state != "here":
        raise DataError(f"{e.name} is no single download; {by_hand(e)}")
    try:
        (where / e.target).parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise DataError(
            f"{where}: cannot be written ({err.strerror or err}); choose another folder with --root"
            " or CCLKIT_DATA"
        ) from err
    with _lock(where):
        if source is not None:
            return _from_here(e, where, Path(source).expanduser().absolute())
        if registry.check(e, where).state == "here":
            return registry.location(e, where)
        return _from_network(e, where)


def by_hand(e: Entry) -> str:
    """The route by browser, in words."""
    what = "FOLDER_OR_ARCHIVE" if e.kind == "dataset" else "FILE"
    return f"by hand: {e.manual}, then run `cclkit data fetch {e.name} --from {what}`"


# ---------------------------------------------------------------- network


def _from_network(e: Entry, root: Path) -> Path:
    part, failures = registry.part_file(e, root), []
    for url in e.urls:
        try:
            _download(url, part, e)
        except _Interrupted:
            raise  # worth going on with; another address would start over
        except DataError as err:
            failures.append(str(err))
            continue
        found = registry.digest(part)
        want = e.sha256 or registry.recorded(e, root)["downloads"].get(url)
        if e.kind == "checkpoint" and not want:
            want = registry.known_files(e, root).get(Path(e.target).name, {}).get("sha256")
        if want and found != want:
            bad = _aside(part, root / e.target, found)
            _note(part).unlink(missing_ok=True)
            why = (
                "the registry says"
                if e.sha256
                else f"recorded at first use in {root / registry.CHECKSUMS} was"
            )
            raise DataError(
                f"{url}: sha256 of the download is {found}, {why} {want}; it is not used and kept"
                f" as {bad}. "
                + (
                    "Try again later, or "
                    if e.sha256
                    else (
                        f"If its owners published a new version, remove {e.name!r} from that file"
                        " and fetch again; or "
                    )
                )
                + by_hand(e)
            )
        path = _install(part, e, root, url, found)
        _note(part).unlink(missing_ok=True)
        return path
    raise DataError(f"{e.name} could not be fetched: {'; '.join(failures)}; {by_hand(e)}")


def _download(url: str, part: Path, e: Entry) -> None:
    """Grow ``part`` to the whole file, over interruptions and earlier runs."""
    tries = 0
    while True:
        before = _size(part)
        try:
            return _stream(url, part, e)
        except urllib.error.HTTPError as err:
            if err.code not in PASSING:
                raise DataError(f"{url}: the server answers {err.code} {err.reason}") from err
            fault = f"the server answers {err.code} {err.reason}"
        except urllib.error.URLError as err:
            fault = str(err.reason)
        except (
            _Passing,
            TimeoutError,
            ConnectionError,
            ssl.SSLError,
            http.client.HTTPException,
        ) as err:
            fault = str(err) or type(err).__name__
        except OSError as err:  # the disk's
            raise _full(part, err) from err
        tries = 1 if _size(part) >= before + PIECE else tries + 1
        if tries >= TRIES:
            if not _size(part):
                raise DataError(f"{url}: {fault}, {TRIES} times")
            raise _Interrupted(
                f"{url}: {fault}, {TRIES} times; {human(_size(part))} are kept as {part}: run the"
                " same command again to go on"
            )
        pause = PAUSE * 2 ** (tries - 1)
        print(f"{e.name}: {fault}; trying again in {pause:g} s", file=sys.stderr)
        time.sleep(pause)


def _stream(url: str, part: Path, e: Entry) -> None:
    start, note = _size(part), registry.read_record(part.parent, _note(part).name)
    if note.get("url") != url:
        start = 0  # halves of two servers' files do not make one
    headers = {"User-Agent": f"cclkit/{__version__}"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if note.get("validator"):
            headers["If-Range"] = note["validator"]  # a file that changed meanwhile comes whole
    try:
        response = _opener().open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as err:
        if err.code == 416 and start:
            if (err.headers.get("Content-Range") or "").strip() == f"bytes */{start}":
                return  # all of it was here already
            part.unlink()
            raise _Passing(
                f"the server does not go on at byte {start}, so the download starts over"
            ) from err
        raise
    with response:
        if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise _page(url)
        total = _total(response, start)
        if response.status != 206:
            start = 0
        if e.size_is == "exact" and total is not None and total != e.size:
            part.unlink(missing_ok=True)
            raise DataError(
                f"{url}: the server offers {total} bytes, the registry says {e.size}; it is not the"
                " file that is meant"
            )
        _room(
            part.parent,
            (total or e.size) - start + (total or e.size) * (e.kind == "dataset"),
            e.name,
        )
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if validator and validator.startswith("W/"):
            validator = response.headers.get("Last-Modified")
        save_json(_note(part), {"url": url, "validator": validator})
        with (
            open(part, "r+b" if start else "wb") as f,
            registry.progress(total, e.name, start) as bar,
        ):
            f.seek(start)
            while piece := response.read(PIECE):
                if f.tell() == 0 and looks_like_html(piece):
                    raise _page(url)
                f.write(piece)
                bar.update(len(piece))
            f.truncate()
    if total is not None and _size(part) != total:
        raise _Passing(f"the connection ended at byte {_size(part)} of {total}")


def _total(response, start: int) -> int | None:
    """Size of the whole file as the server states it. Raises _Passing when it goes on at another
    byte than asked.
    """
    if response.status == 206:
        match = re.fullmatch(
            r"bytes (\d+)-\d+/(\d+|\*)", (response.headers.get("Content-Range") or "").strip()
        )
        if not match or int(match[1]) != start:
            raise _Passing(
                f"the server goes on at {response.headers.get('Content-Range')!r}, asked for byte"
                f" {start}"
            )
        if match[2] != "*":
            return int(match[2])
    length = response.headers.get("Content-Length")
    return (
        int(length) + (start if response.status == 206 else 0)
        if length and length.isdigit()
        else None
    )


class _StaySecure(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise DataError(
                f"{req.full_url}: the server sends on to {newurl}, which is not encrypted; not"
                " followed"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_StaySecure)


def looks_like_html(start: bytes) -> bool:
    """Whether the first bytes of a file are those of a web page."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")[:100].lower()
    return text.startswith((b"<!doctype html", b"<html", b"<head", b"<!--"))


def _page(url: str) -> _Page:
    drive = (
        " (Google Drive asks for a confirmation, or its daily quota is used up)"
        if "google" in url
        else ""
    )
    return _Page(f"{url}: a web page came instead of the file{drive}; nothing was saved")


def _note(part: Path) -> Path:
    """Where a half download came from, beside it."""
    return part.with_name(part.name + ".json")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


# ---------------------------------------------------------------- offline


def _from_here(e: Entry, root: Path, source: Path) -> Path:
    if source.is_dir():
        file = _archive_in(e, source) if e.kind == "dataset" else _only_file(e, source)
        return _link(e, root, source) if file is None else _from_here(e, root, file)
    if not source.is_file():
        raise DataError(f"{source}: no such file or folder; give what was downloaded for {e.name}")
    with open(source, "rb") as f:
        if looks_like_html(f.read(512)):
            raise DataError(f"{source}: is a web page, not {e.name}; {by_hand(e)}")
    if e.kind == "dataset":
        return _install(source, e, root, "offline", registry.digest(source))
    found = registry.digest(source)
    want = registry.known_files(e, root).get(Path(e.target).name, {}).get("sha256")
    if want and found != want:
        raise DataError(
            f"{source}: sha256 is {found}, expected {want} for {e.name}, so it is not used;"
            f" {by_hand(e)}"
        )
    _room(root, source.stat().st_size, e.name)
    copy = (root / e.target).with_name(Path(e.target).name + ".copying")
    try:
        shutil.copyfile(source, copy)
    except OSError as err:
        copy.unlink(missing_ok=True)
        raise _full(copy, err) from err
    return _install(copy, e, root, "offline", found)


def _archive_in(e: Entry, folder: Path) -> Path | None:
    """The archive of a data set in a folder of downloads, by its name."""
    return next(
        (
            p
            for ending in (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz")
            if (p := folder / (Path(e.target).name + ending)).is_file()
        ),
        None,
    )


def _only_file(e: Entry, folder: Path) -> Path:
    for name in (Path(e.target).name, *(url.rsplit("/", 1)[1] for url in e.urls)):
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"{folder}: holds no {Path(e.target).name}; give the file itself: cclkit data fetch"
        f" {e.name} --from FILE"
    )


def _link(e: Entry, root: Path, source: Path) -> Path:
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
    files = registry.manifest(base, e.name)
    registry.write_record(
        root,
        e.name,
        {"files": files, "source": "offline", "downloads": registry.recorded(e, root)["downloads"]},
    )
    registry.write_record(
        root,
        e.name,
        None if base.resolve() == (root / e.target).resolve() else str(base.resolve()),
        SOURCES,
    )
    return base


# ---------------------------------------------------------------- installing


def _install(file: Path, e: Entry, root: Path, origin: str, found: str) -> Path:
    """Put a checked file (or what an archive holds) in its place and record its digests; a killed
    fetch leaves nothing half.

    ``origin``: the address it came from, then an archive is used up; or "offline", then it is the
    user's and stays.
    """
    target = root / e.target
    downloads = registry.recorded(e, root)["downloads"]
    if origin != "offline":
        downloads = {**downloads, origin: found}
    if e.kind == "checkpoint":
        files = {target.name: {"bytes": file.stat().st_size, "sha256": found}}
        os.replace(file, target)
    else:
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
            files = registry.manifest(base, e.name)
            if target.exists():
                _aside(target, target, registry.recorded(e, root)["source_sha256"] or "earlier")
            os.rename(base, target)
        except DataError as err:
            if origin == "offline":
                raise
            bad = _aside(file, target, found)
            raise DataError(f"{err}. The download is not used and kept as {bad}") from err
        except OSError as err:
            raise _full(temporary, err) from err
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        if origin != "offline":
            file.unlink()
    registry.write_record(
        root,
        e.name,
        {"files": files, "source": origin, "source_sha256": found, "downloads": downloads},
    )
    registry.write_record(root, e.name, None, SOURCES)
    return target


def _base(folder: Path, e: Entry) -> Path | None:
    """The folder with the expected files: this one, or the one that an archive wraps
    around them.
    """
    inside = [p for p in folder.iterdir() if p.is_dir()]
    for base in (folder, folder / Path(e.target).name, *(inside if len(inside) == 1 else ())):
        if base.is_dir() and all((base / x).exists() for x in e.expected):
            return base
    return None


def _aside(path: Path, target: Path, digest: str) -> Path:
    """Rename to NAME.bad-<12 digits>, with a number when that exists, so that nothing is ever
    overwritten.
    """
    bad = target.with_name(f"{target.name}.bad-{digest[:12]}")
    n = 1
    while bad.exists() and path.is_dir():
        n += 1
        bad = target.with_name(f"{target.name}.bad-{digest[:12]}-{n}")
    os.replace(path, bad)
    return bad


def unpack(archive: Path, into: Path, e: Entry) -> None:
    """Unpack a zip or tar of regular files and folders, all of them inside ``into``.

    Raises DataError, possibly with ``into`` half filled, on anything else: a path that leads
    outside, a link or device, an encrypted or damaged archive, more files or bytes than a data set
    has.
    """
    limit = UNPACKED_FACTOR * archive.stat().st_size + UNPACKED_EXTRA
    into.mkdir(parents=True)
    count = total = 0
    try:
        for name, stream in _members(archive):
            count += 1
            if count > MAX_FILES:
                raise DataError(f"{archive}: holds more than {MAX_FILES} files; expected {e.title}")
            target = into / _safe(name, archive)
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "xb") as f:
                while piece := stream.read(PIECE):
                    total += len(piece)
                    if total > limit:
                        raise DataError(
                            f"{archive}: grows beyond {human(limit)} when unpacked"
                            f" ({human(archive.stat().st_size)} packed); expected {e.title}"
                        )
                    f.write(piece)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as err:
        raise DataError(
            f"{archive}: holds {Path(err.filename).name!r} twice; download it again"
        ) from err
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        gzip.BadGzipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        IndexError,
        struct.error,
    ) as err:
        raise DataError(f"{archive}: damaged ({err}); download it again") from err
    except OSError as err:
        if err.errno not in (
            errno.EINVAL,
            errno.ENAMETOOLONG,
            errno.EILSEQ,
        ):  # those come of what the archive says, all others of the disk
            raise
        raise DataError(f"{archive}: damaged ({err.strerror}); download it again") from err
    if count == 0:
        raise DataError(f"{archive}: holds no file; expected {e.title}")


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, content) of every regular file of a zip or tar."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as z:
            if len(z.infolist()) > MAX_FILES:
                raise DataError(f"{archive}: holds more than {MAX_FILES} files")
            for info in z.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise DataError(
                        f"{archive}: {info.filename!r} is a link or device; only files and folders"
                        " are unpacked"
                    )
                if info.flag_bits & 1:
                    raise DataError(
                        f"{archive}: {info.filename!r} is encrypted; give an archive without a"
                        " password"
                    )
                if info.is_dir():
                    _safe(info.filename, archive)
                    continue
                with z.open(info) as stream:
                    yield info.filename, stream
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as t:
            for n, member in enumerate(t):
                if n > MAX_FILES:
                    raise DataError(f"{archive}: holds more than {MAX_FILES} files")
                if member.isdir():
                    _safe(member.name, archive)
                elif member.isreg():
                    yield member.name, t.extractfile(member)
                else:
                    raise DataError(
                        f"{archive}: {member.name!r} is a link or device; only files and folders"
                        " are unpacked"
                    )
    else:
        raise DataError(
            f"{archive}: is neither zip nor tar; give the archive as downloaded, or its unpacked"
            " folder"
        )


def _safe(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if (
        path.is_absolute()
        or PureWindowsPath(name).drive
        or ".." in path.parts
        or "\0" in name
        or not path.parts
    ):
        if name in (".", "./"):
            return path
        raise DataError(
            f"{archive}: {name!r} would be written outside its folder; nothing of this archive is"
            " used"
        )
    return path


def _full(path: Path, err: OSError) -> DataError:
    return DataError(
        f"{path}: cannot be written ({err.strerror or err}); free space or choose another --root,"
        " then run the same command again"
    )


def _room(folder: Path, need: int, name: str) -> None:
    free = shutil.disk_usage(folder).free
    if need > free:
        raise DataError(
            f"{folder}: {name} needs about {human(need)}, {human(free)} are free; free space, or"
            " choose another folder with --root or CCLKIT_DATA"
        )


@contextlib.contextmanager
def _lock(root: Path) -> Iterator[None]:
    """One fetch at a time in a data root."""
    try:
        f = open(root / ".lock", "a")
    except OSError as err:
        raise DataError(
            f"{root}: cannot be written ({err.strerror or err}); choose another folder with --root"
            " or CCLKIT_DATA"
        ) from err
    with f:
        if fcntl is not None:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DataError(
                    f"{root}: another fetch is under way in this folder; wait for it to end, or"
                    " choose another --root"
                ) from None
        yield
