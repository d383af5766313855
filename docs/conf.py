"""The configuration of the documentation site.

    python -m sphinx -W docs docs/_build/html

builds the site, whose first page is docs/_build/html/index.html. Notebooks are shown with the
outputs that are stored in them. Formulas become MathML, which browsers draw themselves, so the
pages need no network.
"""

import gc
import inspect
import re
import shutil
from importlib import import_module
from itertools import groupby
from pathlib import Path
from pkgutil import iter_modules, walk_packages

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.domains.python import PythonDomain

import genjax

# Documents are millions of objects. Collecting after every 700 of them takes long.
gc.set_threshold(100_000)

HERE = Path(__file__).parent
NOTEBOOKS = HERE.parent / "notebooks"
PACKAGES = sorted(module.name for module in iter_modules(genjax.__path__) if module.ispkg)

project = "genjax"
author = "the authors of genjax"
copyright = "the authors of genjax"
version = release = genjax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]
suppress_warnings = ["mystnb.unknown_mime_type", "ref.python"]

html_theme = "furo"
html_title = "genjax"
html_favicon = "_static/icon.svg"
html_static_path = ["_static"]
html_css_files = ["genjax.css"]
html_math_renderer = "mathml"
html_show_copyright = False
html_copy_source = False

nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "attrs_inline"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80


def copy_notebooks() -> None:
    """Copy the notebooks and their pictures into the site's source folder."""
    target = HERE / "notebooks"
    target.mkdir(exist_ok=True)
    for notebook in NOTEBOOKS.glob("*.ipynb"):
        shutil.copy(notebook, target)
    shutil.copytree(NOTEBOOKS / "pictures", target / "pictures", dirs_exist_ok=True)


def public_modules(package: str) -> list[str]:
    """Return a package and its modules, by their dotted names."""
    parent = import_module(package)
    inside = (module.name for module in walk_packages(parent.__path__, f"{package}."))
    return [package, *(name for name in inside if not name.rpartition(".")[2].startswith("_"))]


def write_reference() -> None:
    """Write a page for each package of genjax, with the docstrings of its modules."""
    folder = HERE / "reference/packages"
    folder.mkdir(exist_ok=True)
    for package in PACKAGES:
        lines = [f"# genjax.{package}", ""]
        for name in public_modules(f"genjax.{package}"):
            if name != f"genjax.{package}":
                lines += [f"## {name.removeprefix(f'genjax.{package}.')}", ""]
            lines += ["```{eval-rst}", f".. automodule:: {name}"]
            if not hasattr(import_module(name), "__path__"):  # packages only gather names
                lines += ["   :members:", "   :special-members: __call__"]
            lines += ["```", ""]
        text = "\n".join(lines)
        page = folder / f"{package}.md"
        if not page.exists() or page.read_text() != text:
            page.write_text(text)


def keep_methods(app, what, name, obj, skip, options) -> bool | None:
    """Show methods without a docstring, too: their annotations say what they take and return."""
    if name == "setup":
        return True
    shown = name == "__call__" or (inspect.isfunction(obj) and not name.startswith("_"))
    return False if shown else None


SECTIONS = {"Args:": "Arguments"} | {
    f"{name}:": name for name in ("Attributes", "Returns", "Raises", "Yields")
}


def plain_text_to_rst(app, what, name, obj, options, lines: list[str]) -> None:
    """Turn a docstring, which is plain text, into reStructuredText.

    A section such as "Args:" becomes a list. Other indented lines, and tables, become code.
    """
    section, text = None, []
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines).strip("\n")):
        rows = paragraph.split("\n")
        if rows[0] in SECTIONS:
            section = SECTIONS[rows.pop(0)]
            text += [f".. rubric:: {section}", ""]
        elif not rows[0].startswith(" "):
            section = None
        if section:
            items = escape("\n".join(map(list_item, rows)))
            text += [*re.sub(r"^- ([\w, ]+):", r"- **\1**:", items, flags=re.M).split("\n"), ""]
            continue
        for is_code, group in groupby(rows, lambda row: row.startswith(("  ", "|"))):
            group = list(group)
            if is_code:
                text += [".. code-block:: text", "", *(f"    {row}" for row in group), ""]
            else:
                text += [*escape("\n".join(group)).split("\n"), ""]
    lines[:] = text


def list_item(row: str) -> str:
    """Return a row of a section as one of a list: 4 spaces start an item, more continue one."""
    spaces = len(row) - len(row.lstrip())
    return f"  {row.strip()}" if spaces > 4 else f"- {row.strip()}"


def escape(text: str) -> str:
    """Write `code` as reStructuredText does, and escape what it would read as markup elsewhere."""
    pieces = re.split(r"`([^`]+)`", text)
    for i, piece in enumerate(pieces):
        if i % 2:
            before = "\\ " if re.search(r"[^\s(\[{<'\"]$", pieces[i - 1]) else ""
            after = "\\ " if re.match(r"[^\s.,;:!?)\]}>'\"]", pieces[i + 1]) else ""
            pieces[i] = f"{before}``{' '.join(piece.split())}``{after}"
        else:
            pieces[i] = re.sub(r"([*|`]|(?<=\w)_(?!\w))", r"\\\1", piece)
    return "".join(pieces)


def shorten(app, what, name, obj, options, signature: str | None, returns: str | None):
    """Return a signature with types nearly as in the source, such as Float[jax.Array, 'batch']."""

    def short(text: str | None) -> str | None:
        text = text and re.sub(r"\b(jaxtyping|typing|numpy)\.", "", text)
        return text and text.replace("jaxlib._jax.", "jax.")

    return short(signature), short(returns)


class Objects(PythonDomain):
    """Python's objects; names of other libraries are not compared with each of them."""

    _names, _count = frozenset(), 0

    def find_obj(self, env, modname, classname, name, type, searchmode=0):
        if len(self.objects) != self._count:
            self._names = {each.rpartition(".")[2] for each in self.objects}
            self._count = len(self.objects)
        last = name.removesuffix("()").rpartition(".")[2]
        if last not in self._names:  # every match ends with it
            return []
        return super().find_obj(env, modname, classname, name, type, searchmode)


def shorten_navigation(app, page, template, context, doctree) -> None:
    """Let the sidebar's tree end at the pages' sections.

    The theme shows only titles of pages. Without an end, Sphinx copies the entries of all modules
    and functions for each page, and then deletes them.
    """
    if toctree := context.get("toctree"):
        context["toctree"] = lambda **options: toctree(**options | {"maxdepth": 2})


def visit_inline_math(self, node) -> None:
    self.body.append(latex2mathml.tex2mathml(node.astext()))
    raise nodes.SkipNode


def visit_block_math(self, node) -> None:
    self.body.append(
        f'<div class="math">{latex2mathml.tex2mathml(node.astext(), as_block=True)}</div>'
    )
    raise nodes.SkipNode


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (visit_inline_math, None), (visit_block_math, None))
    app.add_domain(Objects, override=True)
    app.connect("html-page-context", shorten_navigation, priority=100)  # before the theme reads it
    app.connect("autodoc-skip-member", keep_methods)
    app.connect("autodoc-process-signature", shorten)
    app.connect("autodoc-process-docstring", plain_text_to_rst, priority=100)
    copy_notebooks()
    write_reference()
