"""Archives: unpacked only if they are what a data set can be."""

from __future__ import annotations

import errno
import gzip
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from ..errors import DataError
from .registry import Entry, human

PIECE = 1 << 20
MAX_FILES = 200_000
UNPACKED_FACTOR, UNPACKED_EXTRA = 20, 2 * 10**9
"""An archive may not grow beyond factor × its size + extra: photographs hardly compress, so more is
a bomb.
"""
DAMAGED = (
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
)
"""What reading a damaged archive raises."""


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
        for path, stream in _members(archive):
            count += 1
            target = into / path
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
    except DAMAGED as err:
        raise DataError(f"{archive}: damaged ({err}); download it again") from err
    except OSError as err:
        # these come of what the archive says, all others of the disk
        if err.errno not in (errno.EINVAL, errno.ENAMETOOLONG, errno.EILSEQ):
            raise
        raise DataError(f"{archive}: damaged ({err.strerror}); download it again") from err
    if count == 0:
        raise DataError(f"{archive}: holds no file; expected {e.title}")


Member = tuple[str, str, Callable[[], IO[bytes]]]
"""Name, kind ("file", "folder" or "other"), and what opens it."""


def _members(archive: Path) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    """Path and content of every file of a zip or tar that holds only files and folders."""
    if zipfile.is_zipfile(archive):
        members = _zip_members(archive)
    elif tarfile.is_tarfile(archive):
        members = _tar_members(archive)
    else:
        raise DataError(
            f"{archive}: is neither zip nor tar; give the archive as downloaded, or its unpacked"
            " folder"
        )
    for n, (name, kind, opened) in enumerate(members):
        if n >= MAX_FILES:
            raise DataError(f"{archive}: holds more than {MAX_FILES} files")
        if kind == "other":
            raise DataError(
                f"{archive}: {name!r} is a link or device; only files and folders are unpacked"
            )
        path = _safe(name, archive)
        if kind == "file":
            with opened() as stream:
                yield path, stream


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as z:
        for info in z.infolist():
            if info.flag_bits & 1:
                raise DataError(
                    f"{archive}: {info.filename!r} is encrypted; give an archive without a password"
                )
            kind = "folder" if info.is_dir() else "file"
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                kind = "other"
            yield info.filename, kind, lambda: z.open(info)


def _tar_members(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive) as t:
        for member in t:
            kind = "folder" if member.isdir() else "file" if member.isreg() else "other"
            yield member.name, kind, lambda: t.extractfile(member)


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
