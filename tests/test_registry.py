"""The registry, downloads and the offline route, against a server on this machine: no test uses the
network.
"""

import errno
import hashlib
import http.server
import io
import json
import re
import shutil
import sys
import tarfile
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import write_plane_scene

from cclkit import cli, config, places
from cclkit.downloads import (
    archives,
    bundled,
    checks,
    disk,
    fetching,
    lookup,
    records,
    registry,
    status,
    transfer,
)
from cclkit.errors import DataError, ModelError, SceneError
from cclkit.foundation import clip as clip_model, sam as sam_model, weights
from cclkit.foundation.front_end import model_of
from cclkit.foundation.roles import Setup
from cclkit.places import bundled_scenes
from cclkit.scenes.load import load_scene

BLOB = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(BLOB).hexdigest()


# ---------------------------------------------------------------- a server, and registries of its
# files


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ``server.files``; ``server.cut`` counts answers that end half way, ``server.seen`` the
    ranges asked for.
    """

    def do_GET(self):
        server = self.server
        name = self.path.partition("?")[0].strip("/")
        server.seen.append((name, self.headers.get("Range")))
        if server.busy > 0:
            server.busy -= 1
            return self.send_error(503)
        if name not in server.files:
            return self.send_error(404)
        body, start = server.files[name], 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked and server.ranges and self.headers.get("If-Range") in (None, server.etag):
            start = int(asked[1])
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", server.types.get(name, "application/octet-stream"))
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("ETag", server.etag)
        self.end_headers()
        if server.cut > 0:
            server.cut -= 1
            self.wfile.write(body[start : start + (len(body) - start) // 2])
            self.close_connection = True
            return None
        return self.wfile.write(body[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(transfer, "PAUSE", 0.001)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as s:
        s.files, s.types, s.seen, s.cut, s.busy, s.ranges, s.etag = (
            {"blob": BLOB},
            {},
            [],
            0,
            0,
            True,
            '"one"',
        )
        s.url = f"http://127.0.0.1:{s.server_port}"
        thread = threading.Thread(
            target=s.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        thread.start()
        yield s
        s.shutdown()
        thread.join()


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """A function that writes a registry of the given tables and returns the data root."""
    root = tmp_path / "root"
    monkeypatch.setenv("CCLKIT_DATA", str(root))
    calls = []

    def write(**tables):
        calls.append(None)
        path = tmp_path / f"registry_{len(calls)}.toml"
        lines = []
        for name, changes in tables.items():
            fields = {
                "title": f"title of {name}",
                "kind": "checkpoint",
                "urls": [],
                "manual": "use a browser",
                "size": 0,
                "size_is": "unknown",
                "sha256": "",
                "licence": "a licence",
                "use": "tests",
                "blocks": f"work with {name}",
                "without": "the rest",
                "target": f"checkpoints/{name}.pth",
                "expected": [],
                **changes,
            }
            lines += [f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in fields.items())]
        path.write_text("\n".join(lines))
        monkeypatch.setenv("CCLKIT_REGISTRY", str(path))
        return root

    return write


def archive(kind="zip", *, wrap="set/", extra=()):
    """A data set with two files, as zip or tar, with further (name, content) members."""
    members = [(f"{wrap}a/images/1.txt", b"one"), (f"{wrap}a/cameras.bin", b"cameras"), *extra]
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
            for name, content in members:
                z.writestr(name, content)
    else:
        with tarfile.open(fileobj=out, mode="w:gz") as t:
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                t.addfile(info, io.BytesIO(content))
    return out.getvalue()


SET = {"kind": "dataset", "target": "set", "expected": ["a/cameras.bin", "a/images"]}


# ---------------------------------------------------------------- registry.toml itself


def test_the_registry_is_complete():
    entries = registry.entries()
    assert {
        "lerf_ovs",
        "3d_ovs",
        "3d_ovs_room_labels",
        "sam_vit_b",
        "sam_vit_l",
        "sam_vit_h",
        "openclip_vit_b_16",
        "sam2.1_hiera_large",
    } <= set(entries)
    for e in entries.values():
        assert (
            e.kind in ("dataset", "checkpoint")
            and e.size_is in ("exact", "approximate", "unknown")
            and (e.size > 0) == (e.size_is != "unknown")
        )
        assert (
            all(u.startswith("https://") for u in e.urls) and e.sha256 == e.sha256.strip().lower()
        )
        assert re.fullmatch(r"([0-9a-f]{64})?", e.sha256), e.name
        assert all((e.title, e.manual, e.licence, e.use, e.blocks, e.without, e.target)), e.name
        for path in (e.target, *e.expected):
            assert not Path(path).is_absolute() and ".." not in Path(path).parts
        assert not (e.kind == "checkpoint" and e.expected)
    for many in (
        [e.target for e in entries.values()],
        [e.sha256 for e in entries.values() if e.sha256],
    ):
        assert len(set(many)) == len(many)
    assert (
        entries["sam_vit_h"].sha256.startswith("a7bf3b02f3eb")
        and "lerf_ovs" in entries["lerf_ovs"].target
    )
    assert not entries["3d_ovs"].urls  # a folder of Google Drive


def test_the_registry_serves_the_models_that_need_it():
    assert set(weights.FETCHED.values()) <= set(registry.entries())
    assert bundled.BUNDLED_MODELS == (weights.MINI_SAM, weights.MINI_CLIP, weights.MINI_SAM2)
    paper = config.profile("paper").front_end
    assert {paper.sam.model, paper.clip.model} <= set(weights.FETCHED)


def test_a_registry_that_cannot_be_used_is_one_error(tmp_path, monkeypatch):
    for n, (text, match) in enumerate(
        [
            ("[a", "cannot be read"),
            ('[a]\ntitle = "x"', r"\[a\] has missing or unknown fields \(blocks"),
        ]
    ):
        path = tmp_path / f"{n}.toml"
        path.write_text(text)
        monkeypatch.setenv("CCLKIT_REGISTRY", str(path))
        with pytest.raises(DataError, match=match):
            registry.entries()
    # an installed package has no registry: look-ups find nothing, commands say so
    monkeypatch.setenv("CCLKIT_REGISTRY", str(tmp_path / "none.toml"))
    monkeypatch.delenv("CCLKIT_DATA", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert (
        lookup.checkpoint("sam_vit_h") is None
        and lookup.scene("lerf_ovs/teatime") is None
        and lookup.digest_of_checkpoint("x.pth") is None
    )
    assert places.data_root() == tmp_path / "share" / "cclkit"
    with pytest.raises(DataError, match="work from a checkout"):
        status.status()


def test_only_transfer_touches_the_network():
    package = Path(cli.__file__).parent
    users = {
        p.name
        for p in package.rglob("*.py")
        if re.search(
            r"^\s*(import|from) (urllib|http|requests|socket|huggingface_hub)", p.read_text(), re.M
        )
    }
    assert users == {"transfer.py"}


def test_root_comes_from_option_then_variable_then_checkout(monkeypatch, tmp_path):
    monkeypatch.setenv("CCLKIT_DATA", str(tmp_path / "v"))
    assert (
        places.data_root(tmp_path / "o") == tmp_path / "o" and places.data_root() == tmp_path / "v"
    )
    assert bundled_scenes()  # the variable moves fetched data, not the bundled scenes
    monkeypatch.delenv("CCLKIT_DATA")
    assert places.data_root() == places.DATA / "public"


# ---------------------------------------------------------------- downloads


def test_fetch_and_verify(server, listed):
    root = listed(
        net={"urls": [server.url + "/blob"], "size": len(BLOB), "size_is": "exact", "sha256": SHA}
    )
    path = fetching.fetch("net")
    assert path == root / "checkpoints" / "net.pth" and path.read_bytes() == BLOB
    assert sorted(p.name for p in path.parent.iterdir()) == ["net.pth"]
    assert lookup.checkpoint("net") == path and lookup.digest_of_checkpoint(path) == SHA
    requests = len(server.seen)
    assert fetching.fetch("net") == path and len(server.seen) == requests  # what is here stays
    path.write_bytes(BLOB[:-1] + b"x")
    # same size: only verify reads it
    assert checks.look(registry.entry("net"), root).state == "here"
    (item,) = status.verify_digests(["net"])
    assert item.state == "damaged" and "sha256" in item.detail
    with pytest.raises(DataError, match="not used; run `cclkit data fetch net`"):
        lookup.checkpoint("net")
    with pytest.raises(ModelError, match="sha256"):
        weights.load_weights(path, "SAM vit_b")
    fetching.fetch("net")
    assert path.read_bytes() == BLOB
    path.write_bytes(BLOB[:100])
    assert checks.look(registry.entry("net"), root).state == "damaged"


@pytest.mark.parametrize("ranges", (True, False))
def test_an_interrupted_download_goes_on(server, listed, ranges):
    root = listed(net={"urls": [server.url + "/blob"], "sha256": SHA})
    server.ranges, server.cut = ranges, 1
    assert fetching.fetch("net").read_bytes() == BLOB
    assert [r for _, r in server.seen] == [None, f"bytes={len(BLOB) // 2}-"]
    assert not list(root.rglob("*.part*"))


def test_a_later_run_goes_on_too(server, listed, monkeypatch):
    root = listed(net={"urls": [server.url + "/blob"], "sha256": SHA})
    monkeypatch.setattr(transfer, "TRIES", 1)
    server.cut = 1
    with pytest.raises(DataError, match="ended at byte 150000 of 300000.*150 kB are kept.*again"):
        fetching.fetch("net")
    assert "150 kB downloaded so far" in status.as_text([checks.look(registry.entry("net"), root)])
    assert fetching.fetch("net").read_bytes() == BLOB and server.seen[-1][1] == "bytes=150000-"


def test_a_complete_part_needs_no_further_byte(server, listed):
    root = listed(net={"urls": [server.url + "/blob"], "sha256": SHA})
    part = records.part_file(registry.entry("net"), root)
    part.parent.mkdir(parents=True)
    part.write_bytes(BLOB)
    part.with_name(part.name + ".json").write_text(
        json.dumps({"url": server.url + "/blob", "validator": server.etag})
    )
    assert fetching.fetch("net").read_bytes() == BLOB


def test_a_file_that_changed_meanwhile_is_not_mixed(server, listed, monkeypatch):
    listed(net={"urls": [server.url + "/blob"]})
    monkeypatch.setattr(transfer, "TRIES", 1)
    server.cut = 1
    with pytest.raises(DataError):
        fetching.fetch("net")
    server.files["blob"], server.etag = BLOB[::-1], '"two"'
    assert fetching.fetch("net").read_bytes() == BLOB[::-1]


def test_half_of_one_address_is_not_continued_from_another(server, listed, monkeypatch):
    monkeypatch.setattr(transfer, "TRIES", 1)
    listed(net={"urls": [server.url + "/blob"]})
    server.cut = 1
    with pytest.raises(DataError):
        fetching.fetch("net")
    server.files["other"] = bytes(len(BLOB))
    listed(net={"urls": [server.url + "/other"]})
    assert fetching.fetch("net").read_bytes() == bytes(len(BLOB))


def test_passing_faults_are_tried_again_others_are_not(server, listed, capsys):
    listed(
        net={"urls": [server.url + "/blob"]},
        gone={"urls": [server.url + "/gone"]},
        two={"urls": [server.url + "/gone", server.url + "/blob"]},
    )
    server.busy = 2
    assert fetching.fetch("net").read_bytes() == BLOB
    assert "503" in capsys.readouterr().err
    server.seen.clear()
    with pytest.raises(
        DataError,
        match=(
            "gone could not be fetched.*404.*use a browser, then run `cclkit data fetch gone --from"
            " FILE`"
        ),
    ):
        fetching.fetch("gone")
    assert len(server.seen) == 1
    server.busy = 99
    with pytest.raises(DataError, match=f"503.*{transfer.TRIES} times"):
        fetching.fetch("gone")
    server.busy = 0
    assert fetching.fetch("two").read_bytes() == BLOB  # the mirror


def test_no_network_is_one_error(listed, monkeypatch):
    monkeypatch.setattr(transfer, "PAUSE", 0)
    monkeypatch.setenv("no_proxy", "*")
    listed(net={"urls": ["http://127.0.0.1:9/blob"]})
    with pytest.raises(DataError, match="could not be fetched.*--from FILE"):
        fetching.fetch("net")


def test_wrong_size_is_refused(server, listed):
    root = listed(net={"urls": [server.url + "/blob"], "size": 5, "size_is": "exact"})
    with pytest.raises(DataError, match="offers 300000 bytes, the registry says 5"):
        fetching.fetch("net")
    assert not list(root.rglob("net.pth*"))


def test_a_wrong_digest_is_kept_aside_and_never_used(server, listed):
    root = listed(net={"urls": [server.url + "/blob"], "sha256": "0" * 64})
    with pytest.raises(
        DataError,
        match=f"sha256 of the download is {SHA}.*not used and kept as .*net.pth.bad-{SHA[:12]}",
    ):
        fetching.fetch("net")
    assert sorted(p.name for p in (root / "checkpoints").iterdir()) == [f"net.pth.bad-{SHA[:12]}"]
    assert lookup.checkpoint("net") is None


@pytest.mark.parametrize("by_type", (True, False))
def test_a_web_page_is_never_saved(server, listed, by_type):
    server.files["page"] = (
        b"\n<!DOCTYPE html><html>Google Drive can't scan this file for viruses</html>"
    )
    if by_type:
        server.types["page"] = "text/html; charset=utf-8"
    root = listed(
        net={"urls": [server.url + "/page?id=google"]}, set={**SET, "urls": [server.url + "/page"]}
    )
    with pytest.raises(
        DataError, match="web page came instead.*Google Drive.*by hand: use a browser"
    ):
        fetching.fetch("net")
    with pytest.raises(DataError, match="web page"):
        fetching.fetch("set")
    assert not any(p.stat().st_size for p in root.rglob("*") if p.is_file() and p.suffix != ".json")
    assert checks.look(registry.entry("net"), root).state == "missing"


def test_an_encrypted_address_stays_encrypted():
    request = SimpleNamespace(full_url="https://a.example/x")
    with pytest.raises(DataError, match="not encrypted"):
        transfer._StaySecure().redirect_request(
            request, None, 302, "Found", {}, "http://b.example/x"
        )


def test_an_unknown_digest_is_recorded_and_compared_from_then_on(server, listed):
    root = listed(net={"urls": [server.url + "/blob"]})
    path = fetching.fetch("net")
    assert (
        json.loads((root / "checksums.json").read_text())["net"]["files"]["net.pth"]["sha256"]
        == SHA
    )
    path.write_bytes(BLOB[::-1])
    assert status.verify_digests(["net"])[0].state == "damaged"
    path.unlink()
    server.files["blob"] = BLOB[::-1]
    with pytest.raises(
        DataError, match=r"recorded at first use.*checksums.json.*remove 'net' from that file"
    ):
        fetching.fetch("net")
    assert not path.exists()
    # a file copied there by hand is recorded when it is first used
    hand = listed(hand={})
    (hand / "checkpoints" / "hand.pth").write_bytes(BLOB)
    assert lookup.checkpoint("hand") == hand / "checkpoints" / "hand.pth"
    (hand / "checkpoints" / "hand.pth").write_bytes(BLOB[1:] + b"x")
    with pytest.raises(DataError, match="not used"):
        lookup.checkpoint("hand")


def test_a_full_disk_is_one_error(server, listed, monkeypatch):
    root = listed(net={"urls": [server.url + "/blob"]}, set={**SET, "urls": [server.url + "/set"]})
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda p: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match="needs about 300 kB, 1.0 kB are free"):
        fetching.fetch("net")
    monkeypatch.setattr(shutil, "disk_usage", usage)

    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    real = open
    monkeypatch.setattr(
        transfer,
        "open",
        lambda p, mode="r", *a: Full(p, "w") if str(p).endswith(".part") else real(p, mode, *a),
        raising=False,
    )
    with pytest.raises(DataError, match="No space left on device.*free space"):
        fetching.fetch("net")
    # while unpacking: the download stays, and the next run needs no second one
    server.files["set"] = archive()
    monkeypatch.setattr(transfer, "open", real, raising=False)
    monkeypatch.setattr(
        archives,
        "open",
        lambda p, mode="r", *a: Full(p, "w") if mode == "xb" else real(p, mode, *a),
        raising=False,
    )
    with pytest.raises(DataError, match="No space left on device"):
        fetching.fetch("set")
    assert (
        (root / "set.part").is_file()
        and not (root / "set").exists()
        and not (root / "set.unpacking").exists()
    )
    monkeypatch.setattr(archives, "open", real, raising=False)
    fetching.fetch("set")
    assert server.seen[-1][1] is not None


def test_one_fetch_at_a_time(listed):
    pytest.importorskip("fcntl")
    root = listed(net={"urls": ["http://127.0.0.1:9/x"]})
    root.mkdir()
    with disk.only_one(root), pytest.raises(DataError, match="another fetch is under way"):
        fetching.fetch("net")


# ---------------------------------------------------------------- archives


@pytest.mark.parametrize(
    "kind, wrap", [("zip", "set/"), ("zip", ""), ("tar", "other name/"), ("tar", "./set/")]
)
def test_archives_are_unpacked_and_verified(server, listed, kind, wrap):
    server.files["set"] = archive(kind, wrap=wrap)
    root = listed(set={**SET, "urls": [server.url + "/set"]})
    assert fetching.fetch("set") == root / "set"
    assert (root / "set/a/images/1.txt").read_bytes() == b"one"
    assert sorted(p.name for p in root.iterdir()) == [".lock", "checksums.json", "set"]
    assert status.verify_digests(["set"])[0].state == "here"
    (root / "set/a/cameras.bin").write_bytes(b"CAMERAS")
    assert status.verify_digests(["set"])[0].state == "damaged"
    (root / "set/a/cameras.bin").unlink()
    item = checks.look(registry.entry("set"), root)
    assert item.state == "incomplete" and "cameras.bin" in item.detail
    fetching.fetch("set")  # the damaged folder is kept: it may hold someone's results
    assert (
        status.verify_digests(["set"])[0].state == "here" and len(list(root.glob("set.bad-*"))) == 1
    )


def link_tar(kind):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        info = tarfile.TarInfo("set/a/link")
        info.type, info.linkname = kind, "/etc/passwd"
        t.addfile(info)
    return out.getvalue()


def link_zip():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        info = zipfile.ZipInfo("set/a/link")
        info.external_attr = 0o120777 << 16
        z.writestr(info, "/etc/passwd")
    return out.getvalue()


EVIL = {
    "zip above": (lambda: archive(extra=[("../evil.txt", b"x")]), "outside"),
    "zip deep above": (lambda: archive(extra=[("set/../../evil.txt", b"x")]), "outside"),
    "zip absolute": (lambda: archive(extra=[("/evil.txt", b"x")]), "outside"),
    "zip drive": (lambda: archive(extra=[("C:\\evil.txt", b"x")]), "outside"),
    "zip backslash": (lambda: archive(extra=[("..\\evil.txt", b"x")]), "outside"),
    "zip link": (link_zip, "link or device"),
    "zip file and folder": (lambda: archive(extra=[("set/a/cameras.bin/x", b"x")]), "twice"),
    "tar above": (lambda: archive("tar", extra=[("../evil.txt", b"x")]), "outside"),
    "tar absolute": (lambda: archive("tar", extra=[("/evil.txt", b"x")]), "outside"),
    "tar twice": (lambda: archive("tar", extra=[("set/a/cameras.bin", b"x")]), "twice"),
    "tar symlink": (lambda: link_tar(tarfile.SYMTYPE), "link or device"),
    "tar hardlink": (lambda: link_tar(tarfile.LNKTYPE), "link or device"),
    "tar device": (lambda: link_tar(tarfile.CHRTYPE), "link or device"),
    "tar pipe": (lambda: link_tar(tarfile.FIFOTYPE), "link or device"),
    "cut zip": (lambda: archive(extra=[("set/z", BLOB)])[:-2000], "neither zip nor tar"),
    "cut tar": (lambda: archive("tar", extra=[("set/z", BLOB)])[:-2000], "damaged"),
    "flipped zip": (
        lambda: archive(extra=[("set/z", BLOB)]).replace(BLOB[1000:1010], b"0123456789"),
        "damaged",
    ),
    "no archive": (lambda: BLOB, "neither zip nor tar"),
    "empty": (lambda: b"PK\x05\x06" + bytes(18), "holds no file"),
    "another set": (lambda: archive(wrap="x/y/"), "does not hold set"),
}


@pytest.mark.parametrize("case", EVIL)
def test_archives_that_cannot_be_trusted_leave_nothing(server, listed, tmp_path, case):
    make, match = EVIL[case]
    server.files["set"] = make()
    root = listed(set={**SET, "urls": [server.url + "/set"]})
    with pytest.raises(DataError, match=match) as caught:
        fetching.fetch("set")
    assert "kept as" in str(caught.value)
    assert not list(tmp_path.rglob("evil*")) and not list(tmp_path.rglob("*evil.txt"))
    assert (
        not (root / "set").exists()
        and not (root / "set.unpacking").exists()
        and not (root / "set.part").exists()
    )
    assert (
        len(list(root.glob("set.bad-*"))) == 1
        and checks.look(registry.entry("set"), root).state == "missing"
    )


def test_archives_that_grow_too_much_are_refused(server, listed, monkeypatch):
    root = listed(set={**SET, "urls": [server.url + "/set"]})
    monkeypatch.setattr(archives, "UNPACKED_EXTRA", 100_000)
    for kind in ("zip", "tar"):
        server.files["set"] = archive(kind, extra=[("set/zeros", bytes(3_000_000))])
        with pytest.raises(DataError, match="grows beyond"):
            fetching.fetch("set")
    monkeypatch.setattr(archives, "MAX_FILES", 5)
    for kind in ("zip", "tar"):
        server.files["set"] = archive(kind, extra=[(f"set/{n}", b"") for n in range(9)])
        with pytest.raises(DataError, match="more than 5 files"):
            fetching.fetch("set")
    assert not (root / "set").exists()


def test_what_a_killed_fetch_left_is_no_data_set(server, listed):
    server.files["set"] = archive()
    root = listed(set={**SET, "urls": [server.url + "/set"]})
    (root / "set.unpacking" / "set" / "a").mkdir(parents=True)
    (root / "set.unpacking" / "set" / "a" / "cameras.bin").write_bytes(b"half")
    assert checks.look(registry.entry("set"), root).state == "missing"
    fetching.fetch("set")
    assert (root / "set/a/cameras.bin").read_bytes() == b"cameras" and not (
        root / "set.unpacking"
    ).exists()


# ---------------------------------------------------------------- offline


def test_offline_file(listed, tmp_path):
    root = listed(net={"sha256": SHA}, set=SET)
    good, bad, page = tmp_path / "good.pth", tmp_path / "bad.pth", tmp_path / "page.pth"
    good.write_bytes(BLOB)
    bad.write_bytes(BLOB[1:])
    page.write_bytes(b"<html>sign in</html>")
    for path, match in (
        (bad, "expected " + SHA),
        (page, "is a web page"),
        (tmp_path / "none", "no such file or folder"),
    ):
        with pytest.raises(DataError, match=match):
            fetching.fetch("net", source=path)
    assert checks.look(registry.entry("net"), root).state == "missing" and not list(
        (root / "checkpoints").iterdir()
    )
    assert (
        fetching.fetch("net", source=good) == root / "checkpoints/net.pth"
        and good.read_bytes() == BLOB
    )
    assert lookup.checkpoint("net").read_bytes() == BLOB
    shutil.copy(good, tmp_path / "net.pth")
    assert fetching.fetch("net", source=tmp_path).is_file()  # a folder that holds it
    (tmp_path / "set.zip").write_bytes(archive())
    assert (
        fetching.fetch("set", source=tmp_path / "set.zip") == root / "set"
        and (tmp_path / "set.zip").is_file()
    )
    (tmp_path / "evil.zip").write_bytes(archive(extra=[("../x", b"")]))
    with pytest.raises(DataError, match="outside"):
        fetching.fetch("set", source=tmp_path / "evil.zip")
    assert (tmp_path / "evil.zip").is_file() and status.verify_digests(["set"])[
        0
    ].state == "here"  # neither is touched


def test_offline_folder_is_linked(listed, tmp_path):
    root = listed(set=SET)
    with pytest.raises(
        DataError,
        match=(
            "set is no single download; by hand: use a browser, then run `cclkit data fetch set"
            " --from FOLDER_OR_ARCHIVE`"
        ),
    ):
        fetching.fetch("set")
    folder = tmp_path / "elsewhere" / "set"
    (folder / "a" / "images").mkdir(parents=True)
    with pytest.raises(
        DataError, match="not the unpacked set: 1 of 2 expected files lack, e.g. a/cameras.bin"
    ):
        fetching.fetch("set", source=folder)
    (folder / "a" / "cameras.bin").write_bytes(b"cameras")
    assert fetching.fetch("set", source=folder.parent) == folder  # the folder around it will do
    assert (
        json.loads((root / "sources.json").read_text()) == {"set": str(folder)}
        and not (root / "set").exists()
    )
    item = checks.look(registry.entry("set"), root)
    assert item.state == "here" and str(folder) in item.detail
    assert lookup.scene("set/a") == folder / "a"
    (folder / "notes.txt").write_text("mine")  # further files are no damage
    assert status.verify_digests(["set"])[0].state == "here"
    shutil.rmtree(folder)
    item = checks.look(registry.entry("set"), root)
    assert item.state == "missing" and "gone" in item.detail


# ---------------------------------------------------------------- the library finds what was
# fetched


def test_models_use_a_fetched_checkpoint(listed, tmp_path):
    names = {"sam_vit_b": {}, "sam_vit_h": {}, "openclip_vit_b_16": {}}
    root = listed(**names)
    with pytest.raises(
        ModelError, match="needs front_end.sam.checkpoint=PATH; run `cclkit data fetch sam_vit_h`"
    ):
        sam_model.load_sam("vit_h")
    with pytest.raises(
        ModelError,
        match="needs front_end.clip.checkpoint=PATH; run `cclkit data fetch openclip_vit_b_16`",
    ):
        clip_model.load_clip("ViT-B-16")
    paper = config.profile("paper", **{"front_end.propagation": "none"})  # SAM2 is not listed here
    sam = Setup(paper.front_end, paper.masks, paper.device)
    identity = lambda: model_of(paper.front_end, "proposer").settings(sam)["weights"]
    assert identity() == "vit_h:none"
    source = tmp_path / "weights.pth"
    torch.save({"x": torch.zeros(2)}, source)
    fetching.fetch("sam_vit_h", source=source)
    explicit = weights.identity("vit_h", str(source), "")
    # by content, wherever it lies
    assert identity() == explicit == f"vit_h:{records.digest(source)}"
    assert weights.load_weights(lookup.checkpoint("sam_vit_h"), "SAM vit_h")["x"].shape == (2,)
    with pytest.raises(ModelError, match="needs front_end.sam.checkpoint"):
        sam_model.load_sam("vit_b")  # another one
    path = root / "checkpoints" / "sam_vit_h.pth"
    torch.save({"x": torch.ones(2)}, path)
    for use in (lambda: sam_model.load_sam("vit_h"), identity):
        with pytest.raises(DataError, match="cclkit data fetch sam_vit_h"):
            use()
    with pytest.raises(ModelError, match="sha256"):
        weights.load_weights(path, "SAM vit_h")


def test_fetched_scenes_are_found_by_name(listed, tmp_path):
    listed(
        lerf_ovs={
            "kind": "dataset",
            "target": "lerf_ovs",
            "size": 746_000_000,
            "size_is": "approximate",
        }
    )
    with pytest.raises(
        SceneError,
        match=(
            r"lerf_ovs/plane: the data set lerf_ovs is not in .*; run `cclkit data fetch lerf_ovs`"
            r" \(about 746 MB\)"
        ),
    ):
        load_scene("lerf_ovs/plane")
    write_plane_scene(tmp_path / "sets")
    fetching.fetch("lerf_ovs", source=tmp_path / "sets")
    assert load_scene("lerf_ovs/plane").layout == "lerf_ovs"
    for name in ("lerf_ovs/bed", "lerf_ovs/../../etc"):
        with pytest.raises(SceneError, match="lerf_ovs has lerf_ovs/plane"):
            load_scene(name)
    with pytest.raises(SceneError, match="nowhere/x: no such folder"):
        load_scene("nowhere/x")


# ---------------------------------------------------------------- the command


def test_status_needs_no_network_and_says_what_runs(listed, tmp_path, capsys, monkeypatch):
    listed(net={"sha256": SHA, "size": 2_564_550_879, "size_is": "exact"}, big={}, set=SET)
    monkeypatch.setattr(transfer, "_opener", lambda: pytest.fail("status used the network"))
    assert cli.main(["data", "status"]) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"net +missing +2.6 GB +a licence\n +blocks: work with net; still runs: the rest\n", out
    )
    assert re.search(r"tabletop/tea_party +here", out) and "models/mini_sam" in out
    assert cli.main(["data", "status", "--json", "--root", str(tmp_path / "x")]) == 0
    rows = {r["name"]: r for r in json.loads(capsys.readouterr().out)}
    assert rows["net"]["state"] == "missing" and rows["net"]["path"].startswith(str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()  # looking makes nothing


def test_fetch_shows_licence_and_size_and_asks(server, listed, capsys, monkeypatch):
    root = listed(
        net={"urls": [server.url + "/blob"], "size": len(BLOB), "size_is": "exact"}, set=SET
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert cli.main(["data", "fetch", "net"]) == 1
    out, err = capsys.readouterr()
    assert (
        "licence: a licence" in out
        and "size: 300 kB" in out
        and err.count("\n") == 1
        and "--yes" in err
        and not server.seen
    )
    terminal = io.StringIO("n\n")
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    assert (
        cli.main(["data", "fetch", "net"]) == 0
        and "left out" in capsys.readouterr().out
        and not server.seen
    )
    # one that cannot be fetched does not stop the other
    assert cli.main(["data", "fetch", "set", "net", "--yes"]) == 1
    out, err = capsys.readouterr()
    assert "by hand" in err and (root / "checkpoints/net.pth").is_file()
    assert cli.main(["data", "fetch", "net"]) == 0 and "already in" in capsys.readouterr().out
    assert cli.main(["data", "fetch", "net", "--yes", "--root", str(root / "other")]) == 0
    assert f"CCLKIT_DATA={root / 'other'}" in capsys.readouterr().out
    assert (
        cli.main(["data", "fetch", "net", "set", "--from", "x"]) == 1
        and "one by one" in capsys.readouterr().err
    )


def test_unknown_names_list_the_known_ones(listed, capsys):
    listed(net={}, other={})
    assert cli.main(["data", "fetch", "nett"]) == 1
    err = capsys.readouterr().err
    assert "did you mean 'net'" in err and "known names: net, other" in err
    assert cli.main(["data", "verify", "nothing"]) == 1
    assert "tabletop/tea_party" in capsys.readouterr().err


def test_verify_reports_and_fails_on_damage(listed, capsys, tmp_path, monkeypatch):
    root = listed(net={"sha256": SHA}, other={})
    (tmp_path / "net.pth").write_bytes(BLOB)
    fetching.fetch("net", source=tmp_path / "net.pth")
    assert cli.main(["data", "verify", "net", "other", "tabletop/window_shelf"]) == 0
    out = capsys.readouterr().out
    assert "net: ok" in out and "other: missing" in out and "tabletop/window_shelf: ok" in out
    (root / "checkpoints/net.pth").write_bytes(BLOB[::-1])
    assert cli.main(["data", "verify", "net"]) == 1 and "net: damaged" in capsys.readouterr().out
    # bundled weights, by the record beside them
    monkeypatch.setattr(bundled, "DATA", tmp_path)
    (tmp_path / "models").mkdir()
    weights = tmp_path / "models" / "mini_sam.safetensors"
    weights.write_bytes(BLOB)
    assert (
        cli.main(["data", "verify", "models/mini_sam"]) == 1
        and "incomplete" in capsys.readouterr().out
    )
    weights.with_suffix(".json").write_text(json.dumps({"sha256": SHA, "bytes": len(BLOB)}))
    assert (
        cli.main(["data", "verify", "models"]) == 0
        and "models/mini_sam: ok" in capsys.readouterr().out
    )
    weights.write_bytes(BLOB[::-1])
    assert (
        cli.main(["data", "verify", "models"]) == 1
        and "models/mini_sam: damaged" in capsys.readouterr().out
    )


@pytest.mark.parametrize("text", ("{", "[]", '{"net": {"files": {"net.pth": 5}}}'))
def test_records_that_cannot_be_read_are_one_error(listed, text):
    root = listed(net={})
    (root / "checkpoints").mkdir(parents=True)
    (root / "checkpoints/net.pth").write_bytes(BLOB)
    (root / "checksums.json").write_text(text)
    with pytest.raises(DataError, match="checksums.json.*(delete|remove)"):
        status.verify_digests(["net"])


def test_a_folder_of_downloads_serves_many_names(listed, tmp_path, capsys):
    folder = tmp_path / "downloads"
    folder.mkdir()
    root = listed(
        net={"urls": ["https://a.example/public_name.bin"]},
        other={},
        set=SET,
        loose={**SET, "target": "loose", "expected": []},
    )
    (folder / "public_name.bin").write_bytes(BLOB)
    (folder / "other.pth").write_bytes(BLOB[::-1])
    (folder / "set.zip").write_bytes(archive())
    # what it is decides, not what it is called
    (folder / "loose.zip").write_bytes(archive("tar", wrap="x/"))
    assert cli.main(["data", "fetch", "net", "other", "set", "loose", "--from", str(folder)]) == 0
    assert (root / "checkpoints/net.pth").read_bytes() == BLOB and (
        root / "checkpoints/other.pth"
    ).read_bytes() == BLOB[::-1]
    assert (root / "set/a/cameras.bin").is_file() and (root / "loose/x/a/cameras.bin").is_file()
    assert not (root / "sources.json").exists()  # the folder of downloads itself is no data set
    assert [i.state for i in status.verify_digests(["net", "other", "set", "loose"])] == [
        "here"
    ] * 4
    capsys.readouterr()
    (folder / "other.pth").unlink()
    # the others still come
    assert cli.main(["data", "fetch", "net", "other", "--from", str(folder)]) == 1
    assert "holds no other.pth" in capsys.readouterr().err
