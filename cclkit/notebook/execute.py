"""Notebooks run headlessly, in order, again only where something changed: `run_notebooks`."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from ..config import profile as settings_of
from ..errors import ArtefactError, NotebookError
from ..files import atomic_write, file_digest, save_json
from ..machine import PATIENT_THREADS
from ..places import project_folder, results_folder
from ..runs.graph import GRAPH
from ..runs.keys import code_of_imports, content_key
from ..runs.store import Store
from .provenance import write_manifest
from .tables import markdown_table, readme_with_tables

MEASURED = {"07": ("sweeps/*.csv", "tables/benchmark_rows.csv", "tables/comparison.md")}
"""Results of other commands that a notebook reads, by its number: with others it is run again."""


# ----------------------------------------------------------------- running them


def notebook_paths(only: Sequence[str] | None = None) -> list[Path]:
    """The notebooks in order, or those whose number is named. Raises NotebookError for an unknown
    number.
    """
    folder = project_folder() / "notebooks"
    every = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not every:
        raise NotebookError(f"{folder}: no notebooks found; run from a checkout of the project")
    if only is None:
        return every
    wanted = []
    for number in only:
        found = [p for p in every if p.name.startswith(number.zfill(2) + "_")]
        if not found:
            raise NotebookError(
                f"no notebook with number {number!r}; there are {', '.join(p.stem for p in every)}"
            )
        wanted += found
    return wanted


def run_notebooks(
    profile: str,
    *,
    fresh: bool = False,
    only: Sequence[str] | None = None,
    write_back: bool = False,
    parameters: dict | None = None,
) -> int:
    """Execute notebooks through papermill, in order; returns the number of failures (capped at 1).

    Executed copies go to ``results/<profile>/notebooks``, figures and tables beside them. A copy
    made from the same notebook, parameters, code and data is kept. ``fresh`` deletes run folders
    and copies first. A failing notebook is named with its cell and error; the others still run.
    Waits for another one that writes there.
    """
    settings_of(profile)  # an unknown profile is an error before anything is deleted
    paths, root = notebook_paths(only), results_folder(profile)
    with Store(root).lock(wait=True):
        return _run_notebooks(profile, paths, root, fresh, write_back, parameters)


def _run_notebooks(
    profile: str,
    paths: Sequence[Path],
    root: Path,
    fresh: bool,
    write_back: bool,
    parameters: dict | None,
) -> int:
    out = root / "notebooks"
    if fresh:
        for folder in sorted((root / "runs").glob("*")):
            store = Store(folder)
            with store.lock():
                store.clear(GRAPH)
        for path in paths:
            (out / path.name).unlink(missing_ok=True)
    failures, total = [], time.monotonic()
    for path in paths:
        target = out / path.name
        try:
            sources = _sources_key(path, profile, parameters or {}, root)
        except (SyntaxError, ArtefactError) as e:  # the others still run
            print(f"{path.stem:<24} FAILED", flush=True)
            print(f"  {e}", file=sys.stderr, flush=True)
            failures.append(f"{path.name}: its code cannot be read ({e})")
            continue
        if _executed_key(target) == [sources, _outputs_key(path, root)]:
            print(f"{path.stem:<24} unchanged", flush=True)
        else:
            begin = time.monotonic()
            problem = _execute(path, target, {"profile": profile, **(parameters or {})})
            seconds = time.monotonic() - begin
            print(
                f"{path.stem:<24} {'FAILED' if problem else 'done  '}  {seconds:7.1f} s", flush=True
            )
            if problem is None:
                _note_time(out, path.stem, "fresh" if fresh else "kept", seconds)
                # what went in was hashed before the run, so that an edit during it is not taken for
                # executed
                _stamp(target, [sources, _outputs_key(path, root)])
            else:
                failures.append(f"{path.name}: {problem}")
                print(f"  {problem}", file=sys.stderr, flush=True)
                continue
        if write_back:
            atomic_write(path, clean_copy(target, run_time(out, path.stem)))
    write_manifest(profile)
    readme = project_folder() / "README.md"
    if write_back and not failures and readme.is_file():
        atomic_write(root / "tables" / "notebooks.md", (series_table(out) + "\n").encode())
        atomic_write(
            readme,
            readme_with_tables(readme.read_text(encoding="utf-8"), project_folder()).encode(),
        )
    print(
        f"{len(paths) - len(failures)} of {len(paths)} notebooks, {time.monotonic() - total:.0f} s;"
        f" figures in {_shown(root / 'figures')}",
        flush=True,
    )
    if failures:
        print("failed: " + "; ".join(failures), file=sys.stderr)
    return 1 if failures else 0


def _execute(path: Path, target: Path, parameters: dict) -> str | None:
    """Run one notebook; None, or one line that says which cell failed and how."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    known = papermill.inspect_notebook(str(path))
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise NotebookError(
            f"{path.name}: no parameter {unknown[0]!r}; it has {', '.join(known) or 'none'}"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.running.ipynb")
    try:
        papermill.execute_notebook(
            str(path),
            str(temporary),
            parameters=parameters,
            cwd=str(path.parent),
            kernel_name="python3",
            progress_bar=False,
            kernel_manager_class=_kernels(),
            request_save_on_cell_execute=False,
            # no notices of the local transport or of shutting down
            extra_arguments=["--IPKernelApp.log_level=50"],
        )
    except PapermillExecutionError as e:
        kept = target.with_name(f"{target.stem}.failed.ipynb")
        os.replace(temporary, kept)
        return f"cell {e.cell_index} raised {e.ename}: {e.evalue} (see {_shown(kept)})"
    except Exception as e:  # a kernel that died or never came up
        temporary.unlink(missing_ok=True)
        return f"{type(e).__name__}: {e}"
    os.replace(temporary, target)
    target.with_name(f"{target.stem}.failed.ipynb").unlink(missing_ok=True)
    return None


@cache
def _kernels() -> type:
    """Kernels as headless runs need them, told by the environment they start in."""
    from jupyter_client.manager import AsyncKernelManager

    # kernels start in notebooks/: they import the package that runs them, not another one that is
    # installed
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    # progress bars would stand in the outputs
    told = {"CCLKIT_QUIET": "1", "PYTHONPATH": path}

    class Kernels(AsyncKernelManager):
        async def start_kernel(self, **kwargs):
            kwargs["env"] = PATIENT_THREADS | dict(os.environ) | kwargs.get("env", {}) | told
            await super().start_kernel(**kwargs)

    return Kernels


def _outputs_key(path: Path, root: Path) -> str:
    """Hash of the figures and tables that a notebook left."""
    mine = f"{path.stem[:2]}_*"
    files = [p for f in ("figures", "tables") for p in sorted((root / f).glob(mine))]
    return content_key(files={p.name: file_digest(p) for p in files})


def _sources_key(path: Path, profile: str, parameters: dict, root: Path) -> str:
    """Hash of everything an executed notebook depends on."""
    import nbformat

    nb = nbformat.read(path, 4)
    code = "\n".join(c.source for c in nb.cells if c.cell_type == "code")
    measured = [p for m in MEASURED.get(path.stem[:2], ()) for p in sorted(root.glob(m))]
    return content_key(
        # the measured time is no reason to run again
        cells=[[c.cell_type, RUN_TIME.sub("", c.source)] for c in nb.cells],
        profile=profile,
        parameters=parameters,
        measured={p.name: file_digest(p) for p in measured},
        code=code_of_imports(code),
        data=_bundled_data(project_folder() / "data"),
        python=sys.version_info[:2],
        numpy=np.__version__,
    )


@cache
def _bundled_data(folder: Path) -> dict[str, str]:
    """Digests of what the project brings; what was fetched (``data/public``) has its own."""
    tops = [folder / name for name in ("models", "sweeps", "tabletop")]
    files = [p for top in tops for p in sorted(top.rglob("*"))]
    return {p.relative_to(folder).as_posix(): file_digest(p) for p in files if p.is_file()}


def _executed_key(target: Path) -> list[str] | None:
    import nbformat

    try:
        return nbformat.read(target, 4).metadata.get("cclkit", {}).get("key")
    except Exception:  # absent, or not a notebook any more: run it
        return None


def is_current(path: Path, profile: str) -> bool:
    """Whether a notebook's executed copy was made from the notebook, code and data as they are."""
    key = _executed_key(results_folder(profile) / "notebooks" / path.name)
    return key is not None and key[0] == _sources_key(path, profile, {}, results_folder(profile))


def _stamp(target: Path, key: list[str]) -> None:
    import nbformat

    nb = nbformat.read(target, 4)
    nb.metadata["cclkit"] = {
        "key": key,
        "seconds": round(nb.metadata.get("papermill", {}).get("duration") or 0.0, 1),
    }
    atomic_write(target, nbformat.writes(nb).encode())


def clean_copy(target: Path, measured: str = "") -> bytes:
    """An executed copy without papermill's traces, for committing: outputs kept, times and injected
    cell dropped.

    ``measured`` takes the place of what its first cell says of its run time.
    """
    import nbformat

    nb = nbformat.read(target, 4)
    nb.cells = [c for c in nb.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    for n, cell in enumerate((c for c in nb.cells if c.cell_type == "code"), 1):
        cell.execution_count = n
        for output in cell.outputs:
            if "execution_count" in output:
                output["execution_count"] = n
    if measured:
        nb.cells[0].source = RUN_TIME.sub(f"**Run time.** {measured}", nb.cells[0].source)
    for cell in nb.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags" and v}
    nb.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return nbformat.writes(nb).encode() + b"\n"


# ----------------------------------------------------------------- what a run costs

RUN_TIME = re.compile(r"\*\*Run time\.\*\*.*")


def _note_time(out: Path, stem: str, how: str, seconds: float) -> None:
    """Keep a measured time beside the executed copies: ``how`` is "fresh" (all stages computed) or
    "kept" (stages reused where possible).
    """
    times = _times(out)
    times.setdefault(stem, {})[how] = round(seconds, 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    save_json(out / "times.json", times | {"cores": cores})


def _times(out: Path) -> dict:
    path = out / "times.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def run_time(out: Path, stem: str) -> str:
    """The measured cost of a notebook in words, or nothing if it was not measured here."""
    times = _times(out)
    words = {"fresh": "from the photographs", "kept": "from kept artefacts"}
    parts = [f"{in_words(times[stem][k])} {words[k]}" for k in words if k in times.get(stem, {})]
    if not parts:
        return ""
    cores = f"{times['cores']} CPU core{'s' * (times['cores'] != 1)}"
    return f"{', '.join(parts)} (measured on {cores})."


def in_words(seconds: float) -> str:
    """A duration as coarse as it repeats: 10 s, 45 s, 3 min."""
    if seconds < 57.5:
        return f"{max(5, 5 * round(seconds / 5))} s"
    return f"{max(1, round(seconds / 60))} min"


def series_table(out: Path) -> str:
    """The README's table of notebooks: title, first objective, measured times of the runs in
    ``out``.
    """
    times, rows = _times(out), []
    for path in notebook_paths():
        measured = times.get(path.stem, {})
        objective = _in_first_cell(path, r"\*\*Objectives\.\*\* ([^;.]+)", "**Objectives.**")
        rows.append(
            [
                f"[{path.stem[:2]} {title(path)}](notebooks/{path.name})",
                objective,
                *(in_words(measured[k]) if k in measured else "–" for k in ("fresh", "kept")),
            ]
        )
    every = [times.get(p.stem, {}) for p in notebook_paths()]
    total = lambda k: in_words(sum(t[k] for t in every)) if all(k in t for t in every) else "–"
    rows.append(["all", "", total("fresh"), total("kept")])
    header = ["notebook", "what you do", "from the photographs", "from kept artefacts"]
    return markdown_table(header, rows)


def title(path: Path) -> str:
    """A notebook's H1. Raises NotebookError if its first cell has none."""
    return _in_first_cell(path, r"^# (.+)", "# title")


def _in_first_cell(path: Path, pattern: str, what: str) -> str:
    import nbformat

    found = re.search(pattern, nbformat.read(path, 4).cells[0].source, re.M)
    if not found:
        raise NotebookError(f"{path.name}: its first cell has no {what!r}; see the other notebooks")
    return found[1]


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
