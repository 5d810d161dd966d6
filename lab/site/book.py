"""`make book`: the executed notebooks as a static site with navigation, search, the ledger and the
API reference.

The site needs no network, neither to build nor to read: formulas become MathML, the search index
and all scripts are files beside the pages, and it opens from a folder. Needs the extra ``book``
(Sphinx, myst-nb, furo).
"""

from __future__ import annotations

import csv
import re
import shutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from cclkit import __version__
from cclkit.errors import DependencyError, NotebookError
from cclkit.files import atomic_write
from cclkit.notebook.execute import clean_copy, is_current, notebook_paths, title
from cclkit.notebook.tables import markdown_table
from cclkit.places import project_folder, results_folder

PAGES = ("ARCHITECTURE.md", "data/tabletop/README.md", "CHANGELOG.md", "CONTRIBUTING.md")
EXTRA = ("sphinx", "myst_nb", "furo")
CSS = """.content { width: 52em; }
div.math { overflow-x: auto; padding: 0.4em 0; }
figure img { background: white; }
"""
"""Beside the theme's: room for code of the length that notebooks have; a wide formula scrolls by
itself.
"""


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
    atomic_write(source / "_static" / "book.css", CSS.encode())
    for name, text in api_pages().items():
        atomic_write(source / "api" / f"{name}.rst", text.encode())


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
            "api/index",
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


def api_pages() -> dict[str, str]:
    """A page per module or subpackage of the library, in the order in which they are imported, and
    an index.
    """
    names = api_modules()
    index = (
        _title("API reference")
        + "Modules in the order in which they import each other.\n\n.. toctree::\n   :maxdepth:"
        " 1\n\n" + "".join(f"   {n}\n" for n in names)
    )
    pages = {"index": index}
    for n in names:
        parent, _, leaf = f"cclkit.{n}".rpartition(".")
        # a function of the package has the module's name: only that is indexed
        shadowed = callable(getattr(import_module(parent), leaf, None))
        pages[n] = (
            _title(n)
            + f".. automodule:: cclkit.{n}\n   :members:\n   :member-order: bysource\n"
            + "   :no-index:\n" * shadowed
        )
    return pages


def api_modules() -> list[str]:
    """Public modules by dotted name below cclkit, in ARCHITECTURE.md's order, what it does not list
    last.
    """
    package = Path(__file__).parent
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if (
            any(p.startswith("_") and p != "__init__" for p in parts)
            or parts[0] in ("tabletop", "training")
            or parts == ("__init__",)
        ):
            continue
        found.append(".".join(p for p in parts if p != "__init__"))
    text = (project_folder() / "ARCHITECTURE.md").read_text(encoding="utf-8")
    listed = re.search(r"```\ncclkit/\n(.*?)```", text, re.S)
    order = re.findall(r"\b(\w+)(?:\.py|/)", listed[1]) if listed else []
    return sorted(
        found,
        key=lambda n: (order.index(n.split(".")[0]) if n.split(".")[0] in order else len(order), n),
    )


def _title(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n\n"


# ----------------------------------------------------------------- Sphinx


def _sphinx(source: Path, out: Path) -> list[str]:
    """Build; returns warnings and errors."""
    import io

    from sphinx.application import Sphinx
    from sphinx.errors import SphinxError
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    warnings = io.StringIO()
    settings = {
        "project": "cclkit",
        "version": __version__,
        "release": __version__,
        "author": "the cclkit authors",
        "language": "en",
        "extensions": ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "lab.site.book"],
        "html_theme": "furo",
        "html_title": f"cclkit {__version__}",
        "html_copy_source": False,
        "html_show_sphinx": False,
        "html_show_copyright": False,
        "html_static_path": [str(source / "_static")],
        "html_css_files": ["book.css"],
        "html_math_renderer": "mathml",
        "default_role": "literal",
        "nb_execution_mode": "off",
        "nb_render_markdown_format": "gfm",
        "nb_ipywidgets_js": {},
        "myst_enable_extensions": ["dollarmath"],
        "myst_heading_anchors": 3,
        "autodoc_typehints": "signature",
        "autodoc_preserve_defaults": True,
        # docstrings are plain text, not all of it is reStructuredText
        "suppress_warnings": [
            "docutils",
            "myst.header",
            "misc.highlighting_failure",
            "ref.python",
        ],
    }
    try:
        with patch_docutils(), docutils_namespace():
            app = Sphinx(
                str(source),
                None,
                str(out),
                str(out.with_name(f"{out.name}.doctrees")),
                "html",
                settings,
                status=None,
                warning=warnings,
                freshenv=True,
            )
            app.build(force_all=True)
    except SphinxError as e:
        return [str(e)]
    return [
        re.sub(r"\x1b\[[\d;]*m", "", line)
        for line in warnings.getvalue().splitlines()
        if line.strip()
    ]


def setup(app) -> dict:
    """Sphinx calls this: formulas as MathML, which browsers draw without a script."""
    app.add_html_math_renderer(
        "mathml", inline_renderers=(_inline_math, None), block_renderers=(_block_math, None)
    )
    return {"version": __version__, "parallel_read_safe": True}


def mathml(latex: str, *, block: bool) -> str:
    """LaTeX as MathML. Raises NotebookError naming a formula that cannot be converted."""
    converter = import_module("docutils.utils.math.latex2mathml")
    try:
        return converter.tex2mathml(
            latex.replace(r"\operatorname*", r"\operatorname").strip(), as_block=block
        )
    except Exception as e:  # docutils has one error type of its own and lets some others through
        raise NotebookError(
            f"the formula {latex.strip()!r} cannot be turned into MathML: {e}; write it with"
            " simpler commands"
        ) from e


def _inline_math(self, node) -> None:
    from docutils import nodes

    self.body.append(mathml(node.astext(), block=False))
    raise nodes.SkipNode


def _block_math(self, node) -> None:
    from docutils import nodes

    self.body.append(f'<div class="math">{mathml(node.astext(), block=True)}</div>')
    raise nodes.SkipNode
