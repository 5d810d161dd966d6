"""The short form of `fuzz`, and what a mutation would find only by luck."""

import json
import tarfile
import zipfile

import fuzz
import numpy as np
import pytest
import torch
from PIL import Image

from cclkit.downloads import archives
from cclkit.downloads.archives import unpack
from cclkit.downloads.registry import entry
from cclkit.errors import (
    ArtefactError,
    ConfigError,
    DataError,
    GaussiansError,
    ModelError,
    SceneError,
)
from cclkit.files import save_npz
from cclkit.foundation.weights import load_weights
from cclkit.gaussians.model import load_ply
from cclkit.notebook.measured import load_sweep
from cclkit.runs.store import Store
from cclkit.scenes.load import load_scene

SHORT = {n: max(4, t.share // 60) for n, t in fuzz.TARGETS.items()}


def test_mutated_files_are_read_or_refused(tmp_path):
    outcomes, broken = fuzz.run(SHORT, tmp_path, report=lambda _: None)
    assert not broken, "\n".join(b[:400] for b in broken[:5])
    assert sum(sum(o.values()) for o in outcomes.values()) >= 380
    # neither all nor nothing
    assert (
        sum(o["refused"] for o in outcomes.values()) > 200
        and sum(o["read"] for o in outcomes.values()) > 20
    )


def test_the_full_form_is_large_enough_and_covers_every_reader():
    assert sum(t.share for t in fuzz.TARGETS.values()) >= 20_000
    for kind in (
        "colmap",
        "ply",
        "label json",
        "poses_bounds.npy",
        "classes.txt",
        "safetensors",
        "registry.toml",
        "settings",
        "sweep toml",
        "zip",
        "tar",
        "artefact",
        "sealed",
    ):
        assert any(kind in name for name in fuzz.TARGETS), kind


@pytest.mark.parametrize(
    "harm, seen",
    [
        (lambda out: (out.parent / "beside").write_text("x"), "open"),
        (lambda out: __import__("pickle").loads(b"cbuiltins\nprint\n."), "pickle.find_class"),
        (lambda out: __import__("subprocess").run(["true"]), "subprocess.Popen"),
        (lambda out: np.zeros(1)["x"], "IndexError"),
        (lambda out: 1 / 0, "ZeroDivisionError"),
        (lambda out: (_ for _ in ()).throw(SceneError("bad")), "names no file"),
    ],
)
def test_the_harness_notices(tmp_path, monkeypatch, harm, seen):
    """A reader that misbehaves is reported: otherwise a clean result would say nothing."""
    target = fuzz.Target(
        "f",
        lambda c, rng: c,
        lambda folder: (folder / "f").write_bytes(b"x"),
        lambda folder, out: harm(out),
    )
    monkeypatch.setitem(fuzz.TARGETS, "bad", target)
    outcomes, broken = fuzz.run({"bad": 1}, tmp_path, report=lambda _: None)
    assert outcomes["bad"]["broken"] == 1 and seen in broken[0], broken


def test_the_harness_survives_a_reader_that_ends_the_process_or_hangs(tmp_path, monkeypatch):
    import os
    import time

    monkeypatch.setattr(fuzz, "HANGS", 1.0)
    for n, harm in enumerate((lambda *_: os._exit(3), lambda *_: time.sleep(60))):
        monkeypatch.setitem(
            fuzz.TARGETS,
            "bad",
            fuzz.Target(
                "f", lambda c, rng: c, lambda folder: (folder / "f").write_bytes(b"x"), harm
            ),
        )
        _, broken = fuzz.run({"bad": 1}, tmp_path / str(n), report=lambda _: None)
        assert len(broken) == 1 and ("ended the process (3)", "hangs")[n] in broken[0]


def test_a_photograph_that_is_a_program_is_not_run(plane_scene):
    """Pillow hands EPS to Ghostscript, by content and not by name."""
    path = plane_scene / "images/frame_00001.jpg"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(SceneError, match="frame_00001.jpg: cannot be read as an image"):
        load_scene(plane_scene)


def test_a_record_cannot_name_files_outside_its_folder(tmp_path):
    """stage.json names files whose digest is wrong to be deleted: only its own."""
    store = Store(tmp_path / "run")
    folder = store.ensure(
        "masks", "k", lambda f: save_npz(f / "a.npz", x=np.zeros(1)), about={}
    ).folder
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    record = json.loads((folder / "stage.json").read_text())
    for name in ("../../../precious.txt", str(precious), "x/../../../../precious.txt"):
        (folder / "stage.json").write_text(
            json.dumps(record | {"files": record["files"] | {name: {"bytes": 1, "sha256": "0"}}})
        )
        assert store.find("masks", "k") is None
        store.ensure("masks", "k", lambda f: save_npz(f / "a.npz", x=np.zeros(1)), about={})
        assert precious.read_text() == "mine"


def test_a_changed_artefact_is_refused_although_it_can_be_read(tmp_path):
    artefact = Store(tmp_path).ensure(
        "masks", "k", lambda f: save_npz(f / "a.npz", x=np.zeros(3)), about={}
    )
    save_npz(artefact.folder / "a.npz", x=np.ones(3))
    with pytest.raises(ArtefactError, match=r"a\.npz: damaged \(its sha256 is"):
        artefact.npz("a.npz")


def test_counts_in_headers_allocate_nothing(tmp_path):
    """Claims of terabytes in files of bytes: refused before memory is asked for."""
    ply = tmp_path / "g.ply"
    fuzz.splat(tmp_path)
    for count in (2**31, 2**62, 10**30):
        ply.write_bytes(ply.read_bytes().replace(b"vertex 20\n", b"vertex %d\n" % count))
        with pytest.raises(GaussiansError, match="not a complete PLY"):
            load_ply(ply)
        fuzz.splat(tmp_path)
    fuzz.forward_facing(tmp_path)
    poses = tmp_path / "plane/poses_bounds.npy"
    good = poses.read_bytes()
    for count in (2**31, 2**60):
        poses.write_bytes(
            good.replace(b"(3, 17), }" + b" " * (len(str(count)) - 1), b"(%d, 17), }" % count)
        )
        assert poses.read_bytes() != good
        with pytest.raises(SceneError, match="poses_bounds.npy: cannot be read"):
            load_scene(tmp_path / "plane")


def test_a_grid_of_too_many_runs_is_refused_at_once(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(
        'kind = "population"\n[grid]\n'
        + "".join(
            f'"{n}" = {list(range(1, 101))}\n'
            for n in (
                "codebook.steps",
                "codebook.n_prototypes",
                "seed",
                "population.n_views",
                "population.n_classes",
            )
        )
    )
    with pytest.raises(ConfigError, match="the grid has 10000000000 runs"):
        load_sweep(path)


class Payload:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_in_weights_is_not_run(tmp_path, capsys, zipped):
    torch.save({"a": Payload()}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match="w.pth: holds more than tensors"):
        load_weights(tmp_path / "w.pth", "a test")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "name", ["../beside", "/beside", "a/../../beside", "C:\\beside", "..\\beside"]
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_stay_inside(tmp_path, name, kind):
    archive = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as z:
            z.writestr(name, b"x")
    else:
        with tarfile.open(archive, "w") as t:
            t.addfile(tarfile.TarInfo(name))
    with pytest.raises(DataError, match="written outside"):
        unpack(archive, tmp_path / "out/in", entry("lerf_ovs"))
    assert {p.name for p in tmp_path.iterdir()} == {archive.name, "out"} and not list(
        (tmp_path / "out/in").iterdir()
    )


def test_an_archive_may_not_explode(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "UNPACKED_EXTRA", 10**6)
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("zeros", bytes(30 * 10**6))
    with pytest.raises(DataError, match="grows beyond"):
        unpack(archive, tmp_path / "out", entry("lerf_ovs"))
    assert (
        sum(p.stat().st_size for p in (tmp_path / "out").rglob("*"))
        <= 10**6 + 20 * archive.stat().st_size
    )


def test_a_picture_bomb_is_refused(plane_scene):
    path = plane_scene / "depth/frame_00001.png"
    Image.new("L", (20_000, 20_000)).save(path)
    with pytest.raises(SceneError, match="frame_00001.png"):
        load_scene(plane_scene)
