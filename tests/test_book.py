"""The book: what goes in, what stands on its pages, and that nothing is loaded from elsewhere."""

import re
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest

import cclkit
from cclkit.errors import DependencyError, NotebookError
from cclkit.notebook.figures.common import plots
from cclkit.notebook.show import FigureFolder
from lab.site import book

PACKAGE = Path(cclkit.__file__).parent
needs_extra = pytest.mark.skipif(
    any(find_spec(m) is None for m in book.EXTRA),
    reason="needs the extra `book` (pip install -c constraints.txt -e '.[book]')",
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one executed notebook, a ledger and a picture in the README."""
    monkeypatch.setenv("CCLKIT_RESULTS", str(tmp_path / "results"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "notebooks").mkdir()
    shown = draw(tmp_path)
    nb = nbformat.v4.new_notebook()
    nb.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    code = nbformat.v4.new_code_cell("nb.show(fig)", execution_count=1)
    code.outputs = [
        nbformat.v4.new_output(
            "execute_result",
            {"text/html": shown._repr_html_(), "text/plain": "x"},
            execution_count=1,
        ),
        nbformat.v4.new_output(
            "display_data", {"text/markdown": "| a | b |\n|---|---|\n| zebra | 2 |"}
        ),
    ]
    nb.cells = [
        nbformat.v4.new_markdown_cell(
            "# Pulling\n\nA wildebeest.\n\n$$ L = \\frac{1}{B} \\sum_i x_i"
            " $$\n\n[architecture](../ARCHITECTURE.md)"
        ),
        code,
    ]
    nbformat.write(nb, tmp_path / "notebooks/03_pull.ipynb")
    (tmp_path / "results/mini/notebooks").mkdir(parents=True)
    nbformat.write(nb, tmp_path / "results/mini/notebooks/03_pull.ipynb")
    (tmp_path / "results/ledger.csv").write_text(
        'what,paper,ours,status,cell\nTable 1 mean,65.6,,"not run: no |'
        ' GPU",notebooks/03_pull.ipynb#cell-id=a\n'
    )
    (tmp_path / "README.md").write_text(
        "# cclkit\n\n![A"
        " line](results/mini/figures/03_line.png)\n\n[pulling](notebooks/03_pull.ipynb), all"
        " [notebooks here](notebooks), [licence](LICENSE)\n"
    )
    (tmp_path / "LICENSE").write_text("free")
    (tmp_path / "ARCHITECTURE.md").write_text(
        "# Architecture\n\n```\ncclkit/\n  rle.py  run lengths\n  tracking.py  tracks\n```\n"
    )
    monkeypatch.setattr(book, "is_current", lambda path, profile: True)
    return tmp_path


def draw(root):
    fig, axes = plots(1, 1)
    axes[0, 0].plot([1, 2])
    return FigureFolder(
        root / "results/mini/figures", notebook="03_pull", profile="mini", footer="f", about={}
    ).show(fig, "line", alt="A line that rises.", caption="It rises.")


@needs_extra
def test_book_is_whole_and_offline(project):
    index = book.build("mini")
    out = index.parent
    assert index == project / "build/book/mini/index.html"
    page = (out / "notebooks/03_pull.html").read_text()
    assert (
        'alt="A line that rises."' in page
        and "<figcaption><em>It rises.</em></figcaption>" in page
        and 'id="03_line"' in page
    )
    assert (
        "<mfrac>" in page
        and "\\frac" not in page
        and "<td><p>zebra" in page.replace("<td>zebra", "<td><p>zebra")
    )
    assert "all notebooks here, <a" in index.read_text() and any(
        p.read_text() == "free" for p in out.rglob("LICENSE")
    )
    assert "03 Pulling" in page and 'href="../ledger.html"' in page, "navigation on every page"
    assert "wildebeest" in (out / "searchindex.js").read_text()
    assert (
        "Table 1 mean" in (out / "ledger.html").read_text()
        and "no | GPU" in (out / "ledger.html").read_text()
    )
    assert 'href="notebooks/03_pull.html"' in (out / "ledger.html").read_text().split("<table")[1]
    tracking = (out / "api/cclkit.method.tracking.html").read_text()
    assert 'id="cclkit.method.tracking.associate"' in tracking
    for module in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(("cclkit", *module.relative_to(PACKAGE).with_suffix("").parts))
        public = not module.name.startswith("_")
        assert (out / f"api/{name}.html").is_file() == public, "a page for every public module"
    for path in out.rglob("*.html"):
        loaded = re.findall(
            r"""<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=["'](?:https?:)?//[^"']+""",
            path.read_text(),
        )
        assert not loaded, f"{path.name} loads {loaded[0]}"


@needs_extra
def test_a_broken_link_fails_the_build(project):
    (project / "README.md").write_text("# cclkit\n\n[gone](notebooks/09_gone.ipynb)\n")
    with pytest.raises(NotebookError, match="1 problems.*09_gone"):
        book.build("mini")


def test_book_refuses_notebooks_not_executed_as_they_are(project, monkeypatch):
    monkeypatch.setattr(book, "is_current", lambda path, profile: False)
    with pytest.raises(NotebookError, match="older than its notebook.*make figures PROFILE=mini"):
        book.write_source(project / "source", "mini")
    (project / "results/mini/notebooks/03_pull.ipynb").unlink()
    with pytest.raises(NotebookError, match="not there"):
        book.write_source(project / "source", "mini")


def test_book_says_what_to_install(monkeypatch):
    monkeypatch.setattr(book, "EXTRA", ("nosuchpackage",))
    with pytest.raises(DependencyError, match="needs nosuchpackage; run `make book`"):
        book.build("mini")


def test_ledger_page_without_a_ledger_says_so(tmp_path):
    assert "no `results/ledger.csv`" in book.ledger_page(tmp_path / "ledger.csv")


@needs_extra
def test_every_formula_of_the_notebooks_can_be_shown():
    from lab.site.mathml import mathml

    found = 0
    for path in sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb")):
        for cell in (c for c in nbformat.read(path, 4).cells if c.cell_type == "markdown"):
            for block, inline in re.findall(
                r"\$\$(.+?)\$\$|(?<![\\$])\$([^$\n]+)\$",
                re.sub(r"```.*?```|`[^`]*`", "", cell.source, flags=re.S),
                re.S,
            ):
                assert mathml(block or inline, block=bool(block)).startswith("<math"), path.name
                found += 1
    assert found > 20
    with pytest.raises(NotebookError, match="simpler commands"):
        mathml(r"\nosuchcommand{x}", block=False)
