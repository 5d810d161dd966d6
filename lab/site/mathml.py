"""A Sphinx extension: formulas as MathML, which browsers draw without a script."""

from __future__ import annotations

from docutils import nodes
from docutils.utils.math import latex2mathml

from cclkit import __version__
from cclkit.errors import NotebookError


def mathml(latex: str, *, block: bool) -> str:
    """LaTeX as MathML. Raises NotebookError naming a formula that cannot be converted."""
    latex = latex.replace(r"\operatorname*", r"\operatorname").strip()
    try:
        return latex2mathml.tex2mathml(latex, as_block=block)
    except Exception as e:  # docutils has one error type of its own and lets some others through
        raise NotebookError(
            f"the formula {latex!r} cannot be turned into MathML: {e}; write it with simpler"
            " commands"
        ) from e


def setup(app) -> dict:
    """Sphinx calls this."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"version": __version__, "parallel_read_safe": True, "parallel_write_safe": True}


def _inline(translator, node: nodes.Element) -> None:
    translator.body.append(mathml(node.astext(), block=False))
    raise nodes.SkipNode


def _block(translator, node: nodes.Element) -> None:
    translator.body.append(f'<div class="math">{mathml(node.astext(), block=True)}</div>')
    raise nodes.SkipNode
