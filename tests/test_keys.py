"""Keys by import closure: an edit that a stage reaches changes its key, an edit elsewhere none."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cclkit.config import profile
from cclkit.errors import ArtefactError
from cclkit.runs import keys
from cclkit.runs.graph import GRAPH
from cclkit.runs.run import Run
from cclkit.scenes.load import load_scene

ROOT = Path(__file__).resolve().parents[1]
SCENE = ROOT / "data" / "tabletop" / "lerf_ovs" / "tea_party"
GEOMETRIC = {"front_end.propagation": "geometric"}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of the package to edit, from which keys read code while the original runs."""
    for name in ("cclkit", "lab"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    where = keys._file_of_loaded
    # a process parses its code once; here files change, so what is remembered knows their text
    for name in ("_parsed", "_digest_once", "_imports_of"):
        monkeypatch.setattr(keys, name, by_text(getattr(keys, name), MEMORY.setdefault(name, {})))
    monkeypatch.setattr(keys, "PACKAGE", tmp_path / "cclkit")
    monkeypatch.setattr("cclkit.runs.engine.content_hash", lambda scene: "photographs")
    monkeypatch.setattr(
        keys, "_file_of_loaded", lambda name: tmp_path / where(name).relative_to(ROOT)
    )
    yield tmp_path
    forget()


@pytest.fixture(scope="module")
def scene():
    return load_scene(SCENE)


MEMORY: dict[str, dict] = {}


def by_text(function, memory: dict):
    """A function of a path, remembered while the file has the same text."""

    def remembered(path):
        where = (path, path.read_bytes())
        if where not in memory:
            memory[where] = function.__wrapped__(path)
        return memory[where]

    return remembered


def forget() -> None:
    """What a process remembers of its code: it never changes but here."""
    keys._loaded_digest.cache_clear()


def keys_of(scene, **settings) -> dict[str, str]:
    forget()
    run = Run.planned(scene, profile("mini", **settings), Path("none"))
    return {s: run.key(s) for s in GRAPH}


class Edited:
    """A file of the copy with one more statement, for a while."""

    def __init__(self, path: Path, text: str = "\n_EDITED = True\n"):
        self.path, self.text = path, text

    def __enter__(self):
        self.before = self.path.read_text()
        self.path.write_text(self.before + self.text)

    def __exit__(self, *_):
        self.path.write_text(self.before)


REACHED = {
    # file of the package -> the first stages whose keys an edit must change
    "scenes/scene.py": {"candidates", "gaussians"},
    "scenes/colmap.py": {"candidates", "gaussians"},  # the reader of this scene's layout
    "scenes/side_data.py": {"candidates", "gaussians"},
    "rle.py": {"candidates"},
    "foundation/sam.py": {"candidates"},
    "foundation/mini_sam.py": {"candidates"},
    "foundation/pyramid.py": {"candidates", "tracks"},  # both small models have this trunk
    "foundation/sam_generator.py": {"candidates"},
    "foundation/clip.py": {"features", "evaluation"},
    "foundation/mini_clip.py": {"features", "evaluation"},
    "foundation/sam2.py": {"tracks"},
    "method/masks.py": {"masks"},
    "method/tracking.py": {"tracks"},
    "method/codebook.py": {"codebook"},
    "method/codebook_variants.py": {"codebook"},
    "gaussians/start.py": {"gaussians"},
    "gaussians/reconstruct.py": {"gaussians"},
    "gaussians/densify.py": {"gaussians"},
    "method/field_cached.py": {"field"},
    "gaussians/blending_cache.py": {"blending", "field"},
    "method/field.py": {"field"},
    "method/query.py": {"evaluation"},
    "evaluation/metrics.py": {"evaluation"},
    "runs/scoring.py": {"evaluation"},
    "runs/stages/gaussians.py": {"gaussians"},
}
UNTOUCHED = {
    # and those that it must leave alone
    "foundation/sam.py": {"gaussians"},
    "foundation/clip.py": {"candidates", "masks", "tracks", "gaussians"},
    "foundation/sam2.py": {"candidates", "masks", "features", "gaussians"},
    "method/codebook.py": {"candidates", "masks", "features", "tracks", "gaussians", "blending"},
    "method/query.py": set(GRAPH) - {"evaluation"},
    "gaussians/reconstruct.py": {"candidates", "masks", "features", "tracks", "codebook"},
}


@pytest.mark.parametrize("file", REACHED)
def test_an_edit_that_a_stage_reaches_changes_its_key(checkout, scene, file):
    before = keys_of(scene)
    with Edited(checkout / "cclkit" / file):
        changed = {s for s, k in keys_of(scene).items() if k != before[s]}
    assert REACHED[file] <= changed
    assert not changed & UNTOUCHED.get(file, set())


def test_every_module_that_a_stage_reaches_counts(checkout, scene):
    """Each file that the walk finds from a stage's own, one after the other."""
    before = keys_of(scene)
    reached = {s: keys.closure(keys._file_of_loaded(GRAPH[s].build.__module__)) for s in GRAPH}
    for file in sorted({f for files in reached.values() for f in files}):
        with Edited(file):
            after = keys_of(scene)
        for stage, files in reached.items():
            assert file not in files or after[stage] != before[stage], (stage, file)


@pytest.mark.parametrize(
    "file",
    [
        "cclkit/__init__.py",
        "cclkit/cli.py",
        "cclkit/notebook/execute.py",
        "cclkit/notebook/widgets.py",
        "cclkit/notebook/provenance.py",
        "cclkit/runs/run.py",
        "cclkit/runs/answers.py",
        "cclkit/foundation/simulated.py",
        "cclkit/foundation/geometric.py",
        "cclkit/scenes/ovs3d.py",
        "cclkit/downloads/fetching.py",
        "lab/__main__.py",
        "lab/training/loop.py",
        "lab/training/sam.py",
        "lab/tabletop/render.py",
    ],
)
def test_an_edit_elsewhere_changes_none(checkout, scene, file):
    before = keys_of(scene)
    with Edited(checkout / file):
        assert keys_of(scene) == before


def test_figures_are_nobodys_input(checkout, scene):
    before = keys_of(scene)
    for path in sorted((checkout / "cclkit" / "notebook").rglob("*.py")):
        path.write_text(path.read_text() + "\n_EDITED = True\n")
    assert keys_of(scene) == before


def test_comments_and_docstrings_are_no_edit(checkout, scene):
    before = keys_of(scene)
    with Edited(checkout / "cclkit/method/masks.py", '\n# why\n\n"""More words."""\n'):
        assert keys_of(scene) == before


def test_tracks_by_depth_know_the_code_that_warps_them(checkout, scene):
    """The hole of the lists that were kept by hand: correspondence.py does the work."""
    first = keys_of(scene, **GEOMETRIC)
    with Edited(checkout / "cclkit/scenes/correspondence.py"):
        changed = keys_of(scene, **GEOMETRIC)
    assert {s for s in GRAPH if changed[s] != first[s]} >= {"tracks", "codebook", "field"}
    assert changed["candidates"] == first["candidates"]


# ----------------------------------------------------------------- the walk itself


def package(folder: Path, **files: str) -> Path:
    for name, text in {"__init__": "", **files}.items():
        path = folder / f"{name.replace('__in__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return folder


def test_imports_inside_functions_count_and_those_for_types_do_not(tmp_path):
    folder = package(
        tmp_path / "plugin",
        a="""
        from typing import TYPE_CHECKING
        from . import b
        if TYPE_CHECKING:
            from .only_types import T
        def f():
            from plugin.late import g
            import numpy
        """,
        b="from .c import x as y\n",
        c="x = 1\n",
        late="def g(): pass\n",
        only_types="T = int\n",
        elsewhere="z = 1\n",
    )
    found = [p.name for p in keys.closure(folder / "a.py")]
    assert found == ["__init__.py", "a.py", "b.py", "c.py", "late.py"]


def test_a_lone_module_may_import_others_beside_it(tmp_path):
    (tmp_path / "mine.py").write_text("import beside\nfrom cclkit.rle import pack_masks\n")
    (tmp_path / "beside.py").write_text("x = 1\n")
    found = {p.name for p in keys.closure(tmp_path / "mine.py")}
    assert {"mine.py", "beside.py", "rle.py", "errors.py"} <= found


@pytest.mark.parametrize(
    "line",
    [
        "import importlib\nimportlib.import_module(name)",
        "from importlib import import_module\nimport_module('x')",
        "__import__('x')",
        "import runpy\nrunpy.run_path('x.py')",
        "from importlib import import_module as other\nother('x')",
    ],
)
def test_an_import_by_a_computed_name_is_refused(tmp_path, line):
    (tmp_path / "plugin.py").write_text(line + "\n")
    with pytest.raises(ArtefactError, match="plugin.py:.*computed name.*import statement"):
        keys.closure(tmp_path / "plugin.py")


def test_code_without_a_file_is_refused():
    space = {"__name__": "no_such_module"}
    exec("def f(): pass", space)
    with pytest.raises(ArtefactError, match="'no_such_module'.*put it into a module"):
        keys.code_key(space["f"])


EDIT = """
import sys
from pathlib import Path
import {module} as module
import cclkit.runs.keys as keys

if sys.argv[1] == "edit":
    path = Path(module.__file__)
    path.write_text(path.read_text() + "y = 2\\n")
try:
    print(keys.code_key(module.{function}))
except keys.ArtefactError as e:
    print(e)
"""


@pytest.mark.parametrize(
    "module, function", [("cclkit.rle", "pack_masks"), ("plugin", "f")], ids=["ours", "a plugin"]
)
def test_a_file_that_changed_after_it_was_imported_is_refused(tmp_path, module, function):
    """Results of the old code would be filed under the key of the new one."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "cclkit", tmp_path / "cclkit", ignore=ignore)
    (tmp_path / "plugin.py").write_text("def f(): pass\n")
    os.utime(tmp_path / "plugin.py", (1e9, 1e9))
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}

    def said(how: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", EDIT.format(module=module, function=function), how],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    first = said("look")
    assert len(first) == keys.KEY_LENGTH
    name = f"{module.rpartition('.')[2]}.py"
    assert f"{name}: was changed after this process imported it" in said("edit")
    second = said("look")  # imported again, the edit counts
    assert len(second) == keys.KEY_LENGTH and second != first


def test_every_file_of_a_plugin_counts(tmp_path, monkeypatch):
    """Its own and those beside it, whichever is first by name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for n, (own, beside) in enumerate((("1", "1"), ("2", "1"), ("1", "2"))):
        name = f"aa_tracker_{n}"
        (tmp_path / f"{name}.py").write_text(
            f"from zz_helper_{n} import y\ndef f():\n    return {own} + y\n"
        )
        (tmp_path / f"zz_helper_{n}.py").write_text(f"y = {beside}\n")
        module = __import__(name)
        code = keys._loaded_digest(name, str(keys._file_of_loaded(name)))
        found.append(sorted(d for f, d in code.items()))
        assert {f"{tmp_path.name}/{m}.py" for m in (name, f"zz_helper_{n}")} <= set(code)
        assert len(keys.code_key(module.f)) == keys.KEY_LENGTH
    assert len({tuple(f) for f in found}) == 3


def test_two_functions_of_one_file_are_two_codes():
    assert keys.code_key(keys.code_key) != keys.code_key(keys.closure)


def test_names_of_the_public_face_are_followed(tmp_path):
    (tmp_path / "one.py").write_text("from cclkit import rasterize\n")
    (tmp_path / "all.py").write_text("import cclkit\n")
    one, every = ({p.name for p in keys.closure(tmp_path / f"{n}.py")} for n in ("one", "all"))
    assert {"rasterize.py", "_cpu.py"} <= one and "run.py" not in one
    assert {"rasterize.py", "run.py", "codebook.py", "load.py"} <= every


def test_what_is_not_for_types_runs(tmp_path):
    (tmp_path / "a.py").write_text(
        "from typing import TYPE_CHECKING\nif not TYPE_CHECKING:\n    from cclkit import rle\n"
    )
    assert "rle.py" in {p.name for p in keys.closure(tmp_path / "a.py")}


def test_notebooks_follow_what_they_import():
    lines = "from cclkit.rle import pack_masks\nimport numpy as np\n"
    assert keys.code_of_imports(lines) == keys.code_of_imports(lines + "x = 1\n")
    more = lines + "from cclkit.method import masks\n"
    assert keys.code_of_imports(lines) != keys.code_of_imports(more)
