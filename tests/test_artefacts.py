"""Keys, atomic writes, resume, locks, damage."""

import ast
import json
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from cclkit.errors import ArtefactError
from cclkit.files import atomic_write, save_npz
from cclkit.runs.keys import canonical, content_key
from cclkit.runs.store import Store, changed_files


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
    assert changed_files(artefact) == []
    path = artefact.folder / "a.npz"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert changed_files(artefact) == ["a.npz"]
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
        from cclkit.runs.store import Store
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


def test_comments_docstrings_and_layout_are_no_code():
    def read(text):
        return canonical(ast.parse(text))

    base = 'def f(x):\n    "doc"\n    return x + 1\n'
    assert read(base) == read('def f(x):  # why\n    """Other\n    words."""\n\n    return x + 1\n')
    assert read(base) != read(base.replace("+ 1", "+ 2"))


def test_an_artefact_of_another_layout_is_computed_again_and_never_half_read(tmp_path):
    """A run folder of an older version: other keys beside ours, records of other forms in ours."""
    store = Store(tmp_path)
    old = tmp_path / "masks" / "k"
    for record in (
        {"stage": "masks", "key": "other", "files": {}, "wall_time_s": 1.0},
        {"stage": "masks", "key": "k", "wall_time_s": 1.0},  # no digests
        {"stage": "masks", "key": "k", "files": {"a.npz": "0" * 64}, "wall_time_s": 1.0},
        {"stage": "masks", "key": "k", "files": {"gone.npz": {"bytes": 1, "sha256": "0"}}},
    ):
        old.mkdir(parents=True, exist_ok=True)
        (old / "stage.json").write_text(json.dumps(record))
        assert store.find("masks", "k") is None
        (old / "a.npz").write_bytes(b"of an older version")
        artefact = store.ensure("masks", "k", build_one, about={})
        assert not artefact.reused and artefact.npz("a.npz")["x"].tolist() == [0, 1, 2, 3, 4]
        shutil.rmtree(old)


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
