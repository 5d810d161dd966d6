"""Where a figure comes from: what is written beside it, the manifest, and two commands that read
them.

Beside each PNG lies a JSON with the same record (the PNG holds it as text, too): notebook, scene,
seed, settings, versions, commit, a hash of the plotted data, and the keys of the artefacts used.
``manifest.json`` maps every figure and table of the notebooks to its notebook, cell and counterpart
in the paper. `verify` compares figures as they are with those of a commit; `explain` tells what is
known of one.
"""

from __future__ import annotations

import ast
import difflib
import io
import json
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import nbformat
import numpy as np
import torch
from PIL import Image

from .. import __version__
from ..config import Config, profile as settings_of
from ..errors import NotebookError
from ..files import save_json
from ..places import project_folder, results_folder
from ..settings import describe

PAPER = {
    "05_summary": "Table 1",
    "05_lerf": "Table 1",
    "05_lerf_iou": "Table 1",
    "07_ablation": "Table 2",
    "06_summary": "Table 3",
    "06_3dovs": "Table 3",
}
"""Figures and tables of the notebooks that show what a table of the paper shows. The paper's
figures are not listed: they show its own scenes, and no notebook draws one of them again.
"""

TOLERANCE = 0.02
"""`verify`: share of the drawn pixels that may differ visibly. Fonts and antialiasing differ
between builds of matplotlib.
"""
VISIBLE = 32
"""`verify`: a channel's difference out of 255 above which a pixel counts as different."""


# ----------------------------------------------------------------- what is written beside a figure


@cache
def versions() -> dict[str, str]:
    """Of what can change a picture or a number."""
    return {
        "cclkit": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__.split("+")[0],
        "matplotlib": matplotlib.__version__,
    }


def commit(notebook: str) -> str:
    """The checkout's commit, with "+changes" where code, data or this notebook differ from it;
    "unknown" outside of git.

    Outputs don't count: results/ and the other notebooks change while figures are made.
    """
    try:
        head = _git("rev-parse", "--short=12", "HEAD").decode().strip()
        counted = ("cclkit", "data", "pyproject.toml", "constraints.txt")
        status = ("--no-optional-locks", "status", "--porcelain", "--")
        changed = _git(*status, *counted, f"notebooks/{notebook}.ipynb")
    except NotebookError:
        return "unknown"
    return head + ("+changes" if changed.strip() else "")


def changed_settings(config: Config) -> dict[str, Any]:
    """Settings that differ from the profile's own, by name; the seed and the profile are recorded
    apart.
    """
    own = {name: value for name, value, _ in describe(settings_of(config.profile))}
    now = {name: value for name, value, _ in describe(config) if name != "seed"}
    return {name: value for name, value in now.items() if value != own[name]}


# ----------------------------------------------------------------- manifest


def write_manifest(profile: str) -> Path:
    """``results/<profile>/manifest.json`` from the executed notebooks; entries of notebooks not
    executed here stay.
    """
    root = results_folder(profile)
    path = root / "manifest.json"
    entries: dict[str, dict] = _json(path)["outputs"] if path.is_file() else {}
    sources = {p.stem for p in (project_folder() / "notebooks").glob("[0-9][0-9]_*.ipynb")}
    for notebook in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        if notebook.stem in sources:
            others = {k: e for k, e in entries.items() if e["notebook"] != notebook.stem}
            entries = others | notebook_outputs(notebook)
    kept = {k: e for k, e in entries.items() if e["notebook"] in sources}
    save_json(path, {"profile": profile, "outputs": kept})
    return path


def notebook_outputs(path: Path) -> dict[str, dict]:
    """Figures and tables that an executed notebook shows: "figures/NAME" or "tables/NAME" -> kind,
    notebook, cell and what the paper calls it.

    ``cell`` counts code cells from 1 as Jupyter does, without the cell that papermill injects;
    ``cell_id`` is nbformat's.
    """
    found: dict[str, dict] = {}
    cells = [
        c
        for c in nbformat.read(path, 4).cells
        if c.cell_type == "code" and "injected-parameters" not in c.metadata.get("tags", [])
    ]
    for number, cell in enumerate(cells, 1):
        for kind, name in _shown(cell):
            found[f"{kind}s/{name}"] = {
                "kind": kind,
                "notebook": path.stem,
                "cell": number,
                "cell_id": cell.get("id"),
                "paper": PAPER.get(name),
            }
    return found


def _shown(cell: Mapping) -> Iterator[tuple[str, str]]:
    """Kind and name of what a cell's outputs show: `Shown` marks figures, `Notebook.table` marks
    tables.
    """
    for output in cell["outputs"]:
        for name in re.findall(
            r'<figure id="([\w-]+)"', output.get("data", {}).get("text/html", "")
        ):
            yield "figure", name
        table = output.get("metadata", {}).get("text/markdown", {}).get("cclkit_table")
        if table:
            yield "table", table


# ----------------------------------------------------------------- verify


def verify(profile: str, against: str = "HEAD", *, strict: bool = False, report=print) -> int:
    """Compare figures as they are now with a commit's (or a folder's): 0 if all agree, 1 if not.

    A figure agrees if its plotted data has the same hash, or if at most `TOLERANCE` of its drawn
    pixels differ visibly; ``strict`` asks for both. Missing and additional figures disagree. Raises
    NotebookError where there is nothing to compare with.
    """
    here = _Folder(results_folder(profile) / "figures")
    folder = Path(against).is_dir()
    there = _Folder(Path(against)) if folder else _Commit(against, f"results/{profile}/figures")
    names = sorted(here.names() | there.names())
    if not there.names() or not here.names():
        raise NotebookError(
            f"{there if here.names() else here}: no figures to compare; run `make figures`, or name"
            " a commit or folder with --against"
        )
    same = bad = 0
    for name in names:
        if name not in here.names() or name not in there.names():
            ok, text = False, f"only in {here if name in here.names() else there}"
        else:
            ok, text = _compare(here, there, name, strict)
        same += text == "same data"
        bad += not ok
        if text != "same data":
            report(f"{name:<28} {'ok       ' if ok else 'DIFFERENT'} {text}")
    report(
        f"{len(names) - bad} of {len(names)} figures agree with {there}; {same} with the same data"
        " hash and the same drawing"
    )
    return int(bad > 0)


def _compare(here, there, name: str, strict: bool) -> tuple[bool, str]:
    """Whether two versions of a figure agree, and how in words."""
    record, other = json.loads(here.read(f"{name}.json")), json.loads(there.read(f"{name}.json"))
    png = here.read(f"{name}.png")
    written = Image.open(io.BytesIO(png)).text.get("cclkit:data_sha256")
    if written != record["data_sha256"]:
        return False, f"{name}.png and {name}.json were not written together; draw the figure again"
    data = record["data_sha256"] == other["data_sha256"]
    share = pixels_differ(png, there.read(f"{name}.png"))
    drawn = share <= TOLERANCE
    text = "same data" if data else "other data"
    if data and share == 0:
        return True, text
    percent = f"{100 * share:.{2 if data and drawn else 1}f} %"
    agree = (data and drawn) or ((data or drawn) and not strict)
    return agree, f"{text}, {percent} of the drawing differs"


def pixels_differ(a: bytes, b: bytes) -> float:
    """Share of the pixels drawn in either of two PNGs (all that aren't white) that differ visibly;
    1 if their sizes differ by more than two pixels.
    """
    a, b = (np.asarray(Image.open(io.BytesIO(x)).convert("RGB")).astype(np.int16) for x in (a, b))
    if max(abs(a.shape[0] - b.shape[0]), abs(a.shape[1] - b.shape[1])) > 2:
        return 1.0
    h, w = min(a.shape[0], b.shape[0]), min(a.shape[1], b.shape[1])
    a, b = a[:h, :w], b[:h, :w]
    # of a thin line on white, white would hide any change
    drawn = (np.minimum(a, b) < 255 - VISIBLE).any(-1)
    return float((np.abs(a - b).max(-1) > VISIBLE).sum() / max(1, drawn.sum()))


class _Folder:
    def __init__(self, path: Path):
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> set[str]:
        return {p.stem for p in self.path.glob("*.png")}

    def read(self, name: str) -> bytes:
        if not (self.path / name).is_file():
            raise NotebookError(f"{self.path / name}: missing; run `make figures`")
        return (self.path / name).read_bytes()


class _Commit:
    """Files of a folder as git keeps them."""

    def __init__(self, revision: str, folder: str):
        self.revision, self.folder = revision, folder
        listed = _git("ls-tree", "--name-only", revision, f"{folder}/").decode().split()
        self._names = {Path(n).stem for n in listed if n.endswith(".png")}

    def __str__(self) -> str:
        return f"{self.revision}:{self.folder}"

    def names(self) -> set[str]:
        return self._names

    def read(self, name: str) -> bytes:
        return _git("show", f"{self.revision}:{self.folder}/{name}")


def _git(*args: str) -> bytes:
    try:
        done = subprocess.run(["git", *args], cwd=project_folder(), capture_output=True)
    except OSError as e:
        why = f"git cannot be run ({e.strerror}); name a folder with --against"
        raise NotebookError(why) from e
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["failed"]
        raise NotebookError(
            f"git {' '.join(args)}: {said}"[:400]
            + "; name a commit of this checkout, or a folder, with --against"
        )
    return done.stdout


# ----------------------------------------------------------------- explain


def explain(figure: str, profile: str) -> str:
    """What is known of a figure or table, for reading. Raises NotebookError for an unknown name."""
    root = results_folder(profile)
    name = Path(figure).stem
    path = root / "manifest.json"
    entries = _json(path)["outputs"] if path.is_file() else {}
    record_path = root / "figures" / f"{name}.json"
    asked = ("tables",) if "tables" in Path(figure).parts else ("figures", "tables")
    kinds = [k for k in asked if f"{k}/{name}" in entries]
    if not kinds and not record_path.is_file():
        drawn = {p.stem for p in (root / "figures").glob("*.png")}
        known = sorted(drawn | {Path(k).name for k in entries})
        near = ", ".join(difflib.get_close_matches(name, known, 3, 0.4) or known[:5])
        hint = f"did you mean {near}?" if near else "run `make figures`"
        raise NotebookError(f"no figure or table {name!r} in {root}; {hint}")
    entry = entries[f"{kinds[0]}/{name}"] if kinds else {}
    record = _json(record_path) if record_path.is_file() and kinds[:1] != ["tables"] else {}
    notebook = entry.get("notebook") or record["notebook"]
    source = f"notebooks/{notebook}.ipynb"
    cell = f", cell [{entry['cell']}] (id {entry['cell_id']})" if entry else ""
    lines = [("notebook", source + cell)]
    if entry.get("cell_id"):
        lines.append(("made by", _call_in(project_folder() / source, entry["cell_id"])))
    lines.append(("in the paper", entry.get("paper") or "no counterpart"))
    if record:
        lines += _of_record(record, root / "runs")
    lines.append(("make again", f"cclkit figures --profile {profile} --only {notebook[:2]}"))
    return "\n".join([name, *(f"  {k:<13}{v}" for k, v in lines)])


def _of_record(record: Mapping, runs: Path) -> list[tuple[str, str]]:
    """What a figure's side file says, as lines for reading."""
    settings = record.get("settings") or {}
    front_end = record["front_end"]
    scene = f"scene {record['scene']}, {front_end}" if front_end else record["scene"]
    return [
        ("caption", record["caption"]),
        ("profile", f"{record['profile']}, {scene}, seed {record['seed']}"),
        ("settings", ", ".join(f"{k}={v}" for k, v in settings.items()) or "the profile's"),
        ("commit", record.get("commit", "unknown")),
        ("versions", ", ".join(f"{k} {v}" for k, v in record.get("versions", {}).items())),
        ("data", f"sha256 {record['data_sha256']}"),
        *(
            ("artefact", f"{a}{'' if (runs / a).is_dir() else '  (not here)'}")
            for a in record.get("artefacts", [])
        ),
    ]


def _call_in(notebook: Path, cell_id: str) -> str:
    """Names of the figure functions that a cell calls, as a reader would look them up."""
    if not notebook.is_file():
        return "(the notebook is gone)"
    cells = [c for c in nbformat.read(notebook, 4).cells if c.cell_type == "code"]
    cell = next((c for c in cells if c.get("id") == cell_id), None)
    if cell is None:
        return "(the notebook has changed since)"
    modules = {
        a.asname or a.name: f"{n.module}.{a.name}"
        for c in cells
        for n in ast.walk(ast.parse(c.source))
        if isinstance(n, ast.ImportFrom)
        for a in n.names
    }
    attributes = [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Attribute)]
    called = [(n.value.id, n.attr) for n in attributes if isinstance(n.value, ast.Name)]
    names = {f"{modules[m]}.{f}" for m, f in called if m in modules and f.endswith("_figure")}
    return ", ".join(sorted(names)) or "the cell itself"


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise NotebookError(f"{path}: damaged ({e}); delete it and run `make figures`") from e
