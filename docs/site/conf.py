"""The documentation site: ``make docs`` builds it from docs/, the docstrings and conf/."""

import os
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

sys.path.insert(0, str(Path(__file__).parent))
from check_site import faults

from robustcert import _PUBLIC, __version__

ROOT = Path(__file__).parents[2]

project = "robustcert"
author = copyright = "The robustcert developers"
release = version = __version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxcontrib.programoutput",
    "configuration",
]
exclude_patterns = ["site"]

# A reference to a public name leads to it; what is internal, or of another package, is only named.
ROOMS = ("activations", "attacks", "certifiers", "data", "export", "layers", "lipschitz", "metrics")
ROOMS += ("models", "objectives")
PUBLIC = [import_module(f"robustcert.{room}") for room in (*ROOMS, "spectral")]
nitpicky = True
nitpick_ignore_regex = [
    ("py:mod", ".*"),
    ("py:.*", rf"(?!robustcert\.({'|'.join(ROOMS)})\.[A-Za-z]\w*$).*"),
]
# autodoc sees what a module has, not what it would resolve on first use.
for module in PUBLIC:
    vars(module).update({name: getattr(module, name) for name in module.__all__})
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
myst_heading_anchors = 4
# Formulas of notebooks.
myst_enable_extensions = ["dollarmath"]
# Notebooks are shown with the outputs that they hold; a test executes them.
nb_execution_mode = "off"

html_theme = "furo"
html_title = f"robustcert {release}"
html_css_files = ["site.css"]
html_static_path = ["static"]
html_copy_source = html_show_sourcelink = False
html_math_renderer = "mathml"

# Pages of the site that are files elsewhere in the repository; what the page has itself comes last.
PAGES = {
    "index": "README.md",
    "project/contributing": "CONTRIBUTING.md",
    "project/changelog": "CHANGELOG.md",
    "project/proofs": "proofs/README.md",
}
# Where links to folders lead.
FOLDERS = {
    "conf": "reference/configuration.rst",
    "robustcert/check": "reference/check.rst",
    "robustcert/check/activations": "reference/check.rst",
    "tests": "project/contributing.md",
}
PLACES = {file: f"{page}.md" for page, file in PAGES.items()} | FOLDERS
# Targets in brackets, and of definitions at the start of a line.
LINK = re.compile(r"(\]\(|^\[[\w.]+\]: )([\w./-]+)(?=[#)\n])", re.MULTILINE)


def read_page(_: Sphinx, page: str, source: list[str]) -> None:
    """Put a page's file in its place, and let links lead to what the site has of the repository."""
    here = ROOT / "docs" / page
    file = ROOT / PAGES[page] if page in PAGES else here

    def moved(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(file.parent / link[2]))
        if not target.exists() or not target.is_relative_to(ROOT):
            return link[0]
        place = PLACES.get(target.relative_to(ROOT).as_posix())
        found = os.path.relpath(ROOT / "docs" / place if place else target, here.parent)
        return link[1] + found

    text = f"{file.read_text()}\n{source[0]}" if page in PAGES else source[0]
    source[0] = LINK.sub(moved, text)


def write_inline(writer: Any, node: nodes.math) -> None:
    """A formula as MathML, which browsers show without a script."""
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def write_display(writer: Any, node: nodes.math_block) -> None:
    """A formula on a line of its own."""
    writer.body.append(convert(node.astext(), display="block"))
    raise nodes.SkipNode


def check(app: Sphinx, error: Exception | None) -> None:
    """Refuse a site without a public name, with a broken link, or that loads from elsewhere."""
    if error is not None or app.builder.name != "html":
        return
    told = {entry[0] for entry in app.env.get_domain("py").get_objects()}
    names = [f"{module.__name__}.{name}" for module in PUBLIC for name in module.__all__]
    found = [f"{name}: not in the reference" for name in names if name not in told]
    # Those of the package itself stand under the module that defines them.
    last = {entry.rpartition(".")[2] for entry in told}
    found += [f"robustcert.{name}: not in the reference" for name in _PUBLIC if name not in last]
    found += faults(Path(app.outdir))
    if found:
        raise ExtensionError("\n".join(found))


def setup(app: Sphinx) -> None:
    """Register what is above."""
    app.connect("source-read", read_page)
    app.connect("build-finished", check)
    app.add_html_math_renderer("mathml", (write_inline, None), (write_display, None))
