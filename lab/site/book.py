"""`make book`: the executed notebooks as a static site with navigation, search, the ledger and the
API reference.

This lays out the pages and calls Sphinx; `conf.py` says how they are built. Needs the extra
``book`` (Sphinx, myst-nb, furo).
"""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from cclkit.errors import DependencyError, NotebookError
from cclkit.files import atomic_write
from cclkit.notebook.execute import clean_copy, is_current, notebook_paths, title
from cclkit.notebook.tables import markdown_table
from cclkit.places import project_folder, results_folder

HERE = Path(__file__).parent
PAGES = (
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "docs/own_capture.md",
    "data/tabletop/README.md",
    "SECURITY.md",
    "LICENCES.md",
    "CHANGELOG.md",
)
EXTRA = ("sphinx", "myst_nb", "furo")


def build(profile: str, out: Path | None = None) -> Path:
    """Build the site into ``build/book/<profile>`` (or ``out``); returns its first page.

    Raises DependencyError without the extra, NotebookError where a notebook was not executed as it
    is now or where Sphinx finds something wrong with the pages.
    """
    missing = [m for m in EXTRA if find_spec(m) is None]
    if missing:
        raise DependencyError(
            f"building the book needs {', '.join(missing)}; run `make book`, or: pip install -c"
            " constraints.txt -e '.[book]'"
        )
    out = Path(out or project_folder() / "build" / "book" / profile)
    source = out.with_name(f"{out.name}.source")
    shutil.rmtree(source, ignore_errors=True)
    write_source(source, profile)
    problems = _sphinx(source, out)
    if problems:
        raise NotebookError(f"the book has {len(problems)} problems, the first: {problems[0]}")
    return out / "index.html"


def write_source(source: Path, profile: str) -> None:
    """Everything Sphinx reads: the project's own layout in small, so that links between
    files hold.
    """
    root, results = project_folder(), results_folder(profile)
    for path in notebook_paths():
        executed = results / "notebooks" / path.name
        if not is_current(path, profile):
            raise NotebookError(
                f"{executed}:"
                f" {'older than its notebook, code or data' if executed.exists() else 'not there'};"
                f" run `make figures PROFILE={profile}` first"
            )
        atomic_write(source / "notebooks" / path.name, clean_copy(executed))
    for name in PAGES:
        if (root / name).is_file():
            atomic_write(source / name, _linked(root / name, source).encode())
    for path in sorted((root / "notebooks" / "solutions").glob("*.py")):
        atomic_write(source / "notebooks" / "solutions" / path.name, path.read_bytes())
    atomic_write(source / "index.md", (_linked(root / "README.md", source) + _contents()).encode())
    atomic_write(source / "ledger.md", ledger_page(root / "results" / "ledger.csv").encode())


def _linked(page: Path, source: Path) -> str:
    """A page's text; files that it links to or shows are copied, links to folders become plain
    words.
    """

    def kept(m: re.Match) -> str:
        target = page.parent / m[2]
        if target.is_dir():
            return m[1]
        if target.is_file() and target.suffix not in (".md", ".ipynb"):
            atomic_write(
                source / target.resolve().relative_to(project_folder().resolve()),
                target.read_bytes(),
            )
        return m[0]

    return re.sub(r"\[([^\]]*)\]\(([^)#:\s]+)\)", kept, page.read_text(encoding="utf-8"))


def _contents() -> str:
    def tree(caption: str, *pages: str) -> str:
        return f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"

    return (
        tree(
            "Notebooks",
            *(f"{p.stem[:2]} {title(p)} <notebooks/{p.stem}>" for p in notebook_paths()),
        )
        + tree("Results", "ledger")
        + tree(
            "Reference",
            "api/modules",
            *(p.removesuffix(".md") for p in PAGES if (project_folder() / p).is_file()),
        )
    )


def ledger_page(path: Path) -> str:
    """The ledger of numbers reproduced and not reproduced, as a page; says how to make it where it
    is missing.
    """
    text = (
        "# Ledger\n\nEvery number of the paper beside ours: what was reproduced, what differs and"
        " by how much, what was not run and why.\n\n"
    )
    if not path.is_file():
        return (
            text
            + "There is no `results/ledger.csv` in this checkout, so there is nothing to show.\n"
        )
    with open(path, encoding="utf-8", newline="") as f:
        header, *rows = csv.reader(f)

    def shown(cell: str) -> str:
        if link := re.fullmatch(r"notebooks/(\w+)\.ipynb(#\S*)?", cell):
            return (  # the fragment is JupyterLab's: pages have no such anchors
                f"[{link[1][:2]}](notebooks/{link[1]}.ipynb)"
            )
        return re.sub(r"([|<*_`])", r"\\\1", cell)

    return text + markdown_table(header, [[shown(c) for c in row] for row in rows]) + "\n"


def _sphinx(source: Path, out: Path) -> list[str]:
    """Build as `conf.py` says; returns warnings and errors."""
    doctrees = out.with_name(f"{out.name}.doctrees")
    always = ("--fresh-env", "--write-all", "--quiet", "--no-color")
    where = ("--conf-dir", str(HERE), "--doctree-dir", str(doctrees), str(source), str(out))
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "--builder", "html", *always, *where],
        capture_output=True,
        text=True,
    )
    problems = [line for line in built.stderr.splitlines() if line.strip()]
    return problems or ([f"sphinx-build ended with {built.returncode}"] * (built.returncode != 0))
