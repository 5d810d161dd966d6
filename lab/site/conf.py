"""What Sphinx reads: how the book is made from the pages that `lab.site.book` lays out.

The site needs no network, neither to build nor to read: formulas become MathML, the search index
and all scripts are files beside the pages, and it opens from a folder.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # the laboratory is not installed

import cclkit

project = "cclkit"
author = "the cclkit authors"
version = release = cclkit.__version__
language = "en"
extensions = [
    "myst_nb",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "lab.site.mathml",
]
default_role = "literal"

html_theme = "furo"
html_title = f"cclkit {release}"
html_static_path = ["book.css"]
html_css_files = ["book.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

nb_execution_mode = "off"  # the notebooks were executed by `cclkit figures`
nb_render_markdown_format = "gfm"
nb_ipywidgets_js = {}
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

apidoc_modules = [
    {
        "path": str(Path(cclkit.__file__).parent),
        "destination": "api",
        "separate_modules": True,
        "module_first": True,
        "automodule_options": {"members"},
    }
]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

# docstrings are plain text, not all of it is reStructuredText
suppress_warnings = ["docutils", "myst.header", "misc.highlighting_failure", "ref.python"]
