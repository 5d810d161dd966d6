"""Downloads: a file from an address, over interruptions. The only code that uses the network."""

from __future__ import annotations

import http.client
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from http.client import HTTPResponse
from pathlib import Path

from .. import __version__
from ..errors import DataError
from ..files import save_json
from ..progress import byte_progress
from .disk import need_room, unwritable_root
from .records import read_record
from .registry import Entry, human

TRIES = 4
PAUSE = 1.0
"""Seconds before the second try; doubled before each further one."""
TIMEOUT = 30
PIECE = 1 << 20
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""HTTP answers after which another try makes sense."""


class _Passing(Exception):
    """A fault that may be gone at the next try."""


FAULTS = (_Passing, TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException)
"""What a connection raises that breaks, beside what urllib makes of it."""


class Interrupted(DataError):
    """Several tries failed, and what came so far is kept."""


def download(url: str, part: Path, e: Entry) -> None:
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
        except FAULTS as err:
            fault = str(err) or type(err).__name__
        except OSError as err:  # the disk's
            raise unwritable_root(part, err) from err
        tries = 1 if _size(part) >= before + PIECE else tries + 1
        if tries >= TRIES:
            if not _size(part):
                raise DataError(f"{url}: {fault}, {TRIES} times")
            raise Interrupted(
                f"{url}: {fault}, {TRIES} times; {human(_size(part))} are kept as {part}: run the"
                " same command again to go on"
            )
        pause = PAUSE * 2 ** (tries - 1)
        print(f"{e.name}: {fault}; trying again in {pause:g} s", file=sys.stderr)
        time.sleep(pause)


def note(part: Path) -> Path:
    """Where a half download came from, beside it."""
    return part.with_name(part.name + ".json")


def looks_like_html(start: bytes) -> bool:
    """Whether the first bytes of a file are those of a web page."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")[:100].lower()
    return text.startswith((b"<!doctype html", b"<html", b"<head", b"<!--"))


# ---------------------------------------------------------------- one try


def _stream(url: str, part: Path, e: Entry) -> None:
    """One try: go on where ``part`` ends if the server can, else from the start."""
    start, known = _size(part), read_record(part.parent, note(part).name)
    if known.get("url") != url:
        start = 0  # halves of two servers' files do not make one
    try:
        response = _ask(url, start, known.get("validator"))
    except urllib.error.HTTPError as err:
        if err.code != 416 or not start:
            raise
        if (err.headers.get("Content-Range") or "").strip() == f"bytes */{start}":
            return  # all of it was here already
        part.unlink()
        raise _Passing(
            f"the server does not go on at byte {start}, so the download starts over"
        ) from err
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
        size = total or e.size
        need_room(part.parent, size - start + (0 if e.is_file else size), e.name)  # once unpacked
        save_json(note(part), {"url": url, "validator": _validator(response)})
        _save(response, part, start, total, url, e.name)
    if total is not None and _size(part) != total:
        raise _Passing(f"the connection ended at byte {_size(part)} of {total}")


def _ask(url: str, start: int, validator: str | None) -> HTTPResponse:
    headers = {"User-Agent": f"cclkit/{__version__}"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator  # a file that changed meanwhile comes whole
    return _opener().open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)


def _save(
    response: HTTPResponse, part: Path, start: int, total: int | None, url: str, name: str
) -> None:
    """Write what comes to ``part``, from byte ``start`` on."""
    mode = "r+b" if start else "wb"
    with open(part, mode) as f, byte_progress(total, name, start) as bar:
        f.seek(start)
        while piece := response.read(PIECE):
            if f.tell() == 0 and looks_like_html(piece):
                raise _page(url)
            f.write(piece)
            bar.update(len(piece))
        f.truncate()


def _validator(response: HTTPResponse) -> str | None:
    """What tells this version of a file from others: a strong ETag, or the time of change."""
    changed = response.headers.get("Last-Modified")
    tag = response.headers.get("ETag") or changed
    return changed if tag and tag.startswith("W/") else tag


def _total(response: HTTPResponse, start: int) -> int | None:
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
    length = response.headers.get("Content-Length") or ""
    if not length.isdecimal():
        return None
    return int(length) + (start if response.status == 206 else 0)


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


def _page(url: str) -> DataError:
    why = ""
    if "google" in url:
        why = " (Google Drive asks for a confirmation, or its daily quota is used up)"
    return DataError(f"{url}: a web page came instead of the file{why}; nothing was saved")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
