"""Keys, atomic writes, resume, locks, damage."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from cclkit.errors import ArtefactError
from cclkit.files import atomic_write, save_npz
from cclkit.runs.keys import code_version, content_key
from cclkit.runs.store import Store, verify


def build_one(folder):
    save_npz(folder / "a.npz", x=np.arange(5))
    return {"n": 5}


def test_a_finished_stage_is_found_and_not_built_again(tmp_path):
    store, calls = Store(tmp_path / "run"), []

    def build(folder):
        calls.append(1)
        return build_one(folder)

    first = store.ensure("masks", "k1", build, about={"seed": 0})
    again = store.ensure("masks", "k1", build, about={"seed": 0})
    assert len(calls) == 1 and not first.reused and again.reused
    assert (
        again.record["n"] == 5
        and again.record["seed"] == 0
        and again.npz("a.npz")["x"].tolist() == [0, 1, 2, 3, 4]
    )
    store.ensure("masks", "k2", build, about={})
    # another key never replaces the first
    assert len(calls) == 2 and store.find("masks", "k1") is not None


def test_an_interrupted_stage_keeps_its_files_and_is_not_complete(tmp_path):
    store, built = Store(tmp_path), []

    def build(folder):
        for name in ("v1.npz", "v2.npz", "v3.npz"):
            if (folder / name).exists():
                continue
            if name == "v3.npz" and len(built) == 2:
                (folder / "v3.npz.tmp").write_bytes(b"half")
                raise KeyboardInterrupt
            built.append(name)
            save_npz(folder / name, x=np.ones(3))

    with pytest.raises(KeyboardInterrupt):
        store.ensure("masks", "k", build, about={})
    assert store.find("masks", "k") is None
    built.append("restart")
    artefact = store.ensure("masks", "k", build, about={})
    assert built == ["v1.npz", "v2.npz", "restart", "v3.npz"]
    assert not list(artefact.folder.glob("*.tmp")) and set(artefact.record["files"]) == {
        "v1.npz",
        "v2.npz",
        "v3.npz",
    }


def test_equal_arrays_give_equal_bytes(tmp_path):
    save_npz(tmp_path / "a.npz", x=np.arange(9.0), y=np.zeros(2, bool))
    save_npz(tmp_path / "b.npz", x=np.arange(9.0), y=np.zeros(2, bool))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_damage_is_noticed(tmp_path):
    store = Store(tmp_path)
    artefact = store.ensure("masks", "k", build_one, about={})
    assert verify(artefact) == []
    path = artefact.folder / "a.npz"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert verify(artefact) == ["a.npz"]
    # truncated: no longer complete, so it is built again
    path.write_bytes(content[: len(content) // 2])
    assert store.find("masks", "k") is None
    with pytest.raises(ArtefactError, match="damaged"):
        artefact.npz("a.npz")
    path.unlink()
    with pytest.raises(ArtefactError, match="missing from the 'masks' artefact"):
        artefact.npz("a.npz")


def test_clearing_deletes_artefacts_and_nothing_else(tmp_path):
    store = Store(tmp_path)
    store.ensure("masks", "0123456789abcdef", build_one, about={})
    for name in ("photos/0123456789abcdef", ".git", "masks/notes"):
        (tmp_path / name).mkdir(parents=True)
    store.clear(["masks", "features"])
    assert not (tmp_path / "masks/0123456789abcdef").exists()
    assert all((tmp_path / n).exists() for n in ("photos/0123456789abcdef", ".git", "masks/notes"))


def test_a_builder_that_keeps_files_does_not_keep_damaged_ones(tmp_path):
    store = Store(tmp_path)

    def build(folder):
        if not (folder / "a.npz").exists():
            save_npz(folder / "a.npz", x=np.arange(5))

    path = store.ensure("masks", "k", build, about={}).folder / "a.npz"
    good = path.read_bytes()
    path.write_bytes(good[:40])
    assert store.ensure("masks", "k", build, about={}).path("a.npz").read_bytes() == good


def test_the_lock_nests_within_one_store(tmp_path):
    store = Store(tmp_path)
    with store.lock():
        with store.lock():
            pass
        assert store._locked
    assert not store._locked


def test_damaged_records_tensors_and_json_are_one_error(tmp_path):
    def build(folder):
        (folder / "a.safetensors").write_bytes(b"12345678not tensors")
        (folder / "a.json").write_bytes(b"{")

    store = Store(tmp_path)
    artefact = store.ensure("field", "k", build, about={})
    with pytest.raises(ArtefactError, match="damaged"):
        artefact.safetensors("a.safetensors")
    with pytest.raises(ArtefactError, match="damaged"):
        artefact.json("a.json")
    (artefact.folder / "stage.json").write_text("[]")
    assert store.find("field", "k") is None


def test_pickles_are_refused(tmp_path):
    def build(folder):
        np.savez(folder / "a.npz", x=np.array([{"code": 1}], dtype=object))

    artefact = Store(tmp_path).ensure("masks", "k", build, about={})
    with pytest.raises(ArtefactError, match="damaged"):
        artefact.npz("a.npz")


def test_a_bundle_is_read_and_never_written(tmp_path):
    bundle = Store(tmp_path / "bundle")
    bundle.ensure("masks", "k", build_one, about={})
    store = Store(tmp_path / "run", bundle=tmp_path / "bundle")
    found = store.ensure("masks", "k", lambda folder: pytest.fail("built"), about={})
    assert found.reused and found.folder.is_relative_to(tmp_path / "bundle")
    before = sorted(p for p in (tmp_path / "bundle").rglob("*"))
    store.ensure("masks", "0123456789abcdef", build_one, about={})
    store.clear(["masks"])
    assert (
        sorted(p for p in (tmp_path / "bundle").rglob("*")) == before
        and store.find("masks", "0123456789abcdef") is None
    )


def test_an_unwritable_folder_is_one_clear_error(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(ArtefactError, match="cannot be written .*choose another --out"):
        Store(blocker / "run")


def test_a_failing_write_leaves_earlier_artefacts(tmp_path):
    store = Store(tmp_path)
    store.ensure("masks", "k", build_one, about={})

    def full(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(ArtefactError, match="No space left on device.*finished files are kept"):
        store.ensure("features", "k", full, about={})
    assert store.find("masks", "k") is not None and store.find("features", "k") is None


def test_a_second_run_on_the_folder_is_refused_by_name(tmp_path):
    script = textwrap.dedent("""
        import sys
        from cclkit.artefacts import Store
        with Store(sys.argv[1]).lock():
            print("locked", flush=True)
            sys.stdin.read()
        """)
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline().strip() == "locked"
        with pytest.raises(
            ArtefactError, match=f"in use by another run \\(process {holder.pid}\\)"
        ):
            with Store(tmp_path).lock():
                pass
    finally:
        holder.communicate("")
    with Store(tmp_path).lock():  # free again once the holder is gone
        pass


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    atomic_write(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"


def test_keys_depend_on_content_only():
    a = content_key(settings={"x": 1, "y": [2, 3]}, inputs={"m": "k"})
    assert a == content_key(inputs={"m": "k"}, settings={"y": [2, 3], "x": 1})
    assert a != content_key(settings={"x": 1, "y": [2, 4]}, inputs={"m": "k"})


def test_code_version_ignores_comments_and_docstrings_but_not_code():
    def versions(text):
        import ast

        from cclkit.runs.store import _canonical

        return _canonical(ast.parse(text))

    base = 'def f(x):\n    "doc"\n    return x + 1\n'
    assert versions(base) == versions(
        'def f(x):  # why\n    """Other\n    words."""\n\n    return x + 1\n'
    )
    assert versions(base) != versions(base.replace("+ 1", "+ 2"))
    assert (
        code_version(["masks.py"]) != code_version(["tracking.py"])
        and len(code_version(["gaussians"])) == 16
    )


def test_keys_are_those_of_the_code_that_runs_not_of_the_file_as_it_is_by_now(tmp_path):
    """A package is imported, then edited: its functions keep their version until it is imported
    again.
    """
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from cclkit.artefacts import code_version
        from cclkit.pipeline import Run
        path = Path(sys.argv[1]) / "cclkit/runs/run.py"
        before = code_version(["rle.py"], Run.codes, Run._build_field)
        text = path.read_text()
        old = "def codes(self, view: View | str)"
        new = "def codes(self, view: View | str, other=None)"
        path.write_text("# another line\\n" * 7 + text.replace(old, new))
        assert code_version(["rle.py"], Run.codes, Run._build_field) == before
        print(before)
        """)
    import shutil

    import cclkit

    shutil.copytree(
        os.path.dirname(cclkit.__file__),
        tmp_path / "cclkit",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        for _ in range(2)
    ]
    assert all(r.returncode == 0 for r in runs), runs[0].stderr + runs[1].stderr
    assert runs[0].stdout != runs[1].stdout  # imported again, the edit counts


def test_record_is_json_with_digests(tmp_path):
    artefact = Store(tmp_path).ensure("masks", "k", build_one, about={"settings": {"a": 1}})
    record = json.loads((artefact.folder / "stage.json").read_text())
    # order included: what is computed and what is found look alike
    assert json.dumps(record) == json.dumps(artefact.record)
    assert (
        record["key"] == "k"
        and len(record["files"]["a.npz"]["sha256"]) == 64
        and record["wall_time_s"] >= 0
    )


def test_runs_share_a_folder_but_not_an_artefact(tmp_path):
    one, other = Store(tmp_path), Store(tmp_path)
    with one.lock("field/a"):
        with (
            other.lock("field/b"),
            one.lock("codebook/c"),
        ):  # another arm; a stage that the first one needs
            pass
        with (
            pytest.raises(
                ArtefactError, match=f"in use by another run \\(process {os.getpid()}\\)"
            ),
            other.lock("field/a"),
        ):
            pass
        with (
            pytest.raises(ArtefactError, match="in use"),
            other.lock(),
        ):  # nobody clears a folder that is being written
            pass
    with other.lock():
        with pytest.raises(ArtefactError, match="in use"), one.lock("field/a"):
            pass


def test_looking_makes_nothing(tmp_path):
    assert (
        Store(tmp_path / "x", look_only=True).find("masks", "k") is None
        and not (tmp_path / "x").exists()
    )
