"""Sphinx builds the documentation from the pages of this folder: `make docs`."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from docutils import nodes
from docutils.parsers.rst import Directive

from tfdeblend import __version__
from tfdeblend.app.cli import build_parser
from tfdeblend.startup import start_tensorflow

start_tensorflow()

project = "tfdeblend"
author = "the tfdeblend developers"
copyright = author
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

DOCS = Path(__file__).parent
ELSEWHERE = {  # pages that are files of other folders
    "development/contributing": "CONTRIBUTING.md",
    "development/changelog": "CHANGELOG.md",
    "development/training": "training/README.md",
    "development/export": "export/README.md",
    "development/serving": "export/serving/README.md",
    "development/benchmarks": "benchmarks/README.md",
}

# Docstrings write code between single backticks, mathematics as plain text, and name arguments under "Args:".
default_role = "py:obj"
nitpick_ignore_regex = [("py:obj", ".*")]  # much of that code names no object
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True
nitpicky = True
toc_object_entries_show_parents = "hide"

html_theme = "pydata_sphinx_theme"
html_title = "tfdeblend"
html_static_path = ["_static"]
html_css_files = ["tfdeblend.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options: dict[str, Any] = {
    "logo": {"text": "tfdeblend"},
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_prev_next": True,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-light",
    "pygments_dark_style": "a11y-dark",
}
html_sidebars = {"index": [], "five-minutes": [], "changelog": [], "citing": [], "glossary": []}


def from_elsewhere(app: Any, page: str, source: list[str]) -> None:
    """Take a page's text from another folder, with its links to files turned into links to pages."""
    if page not in ELSEWHERE:
        return
    file = DOCS.parent / ELSEWHERE[page]
    app.env.note_dependency(str(file))
    pages = {(DOCS.parent / name).resolve(): DOCS / f"{other}.md" for other, name in ELSEWHERE.items()}

    def relative(link: re.Match[str]) -> str:
        target = (file.parent / link[1]).resolve()
        return f"]({os.path.relpath(pages.get(target, target), (DOCS / page).parent)}{link[2] or ''})"

    source[0] = re.sub(r"\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)", relative, file.read_text())


class CommandHelp(Directive):
    """Show what `--help` says of every command."""

    def run(self) -> list[nodes.Node]:
        """Make a section a command."""
        os.environ["COLUMNS"] = "80"
        (commands,) = (action for action in build_parser()._actions if isinstance(action.choices, dict))
        sections: list[nodes.Node] = []
        for name, command in commands.choices.items():
            section = nodes.section(ids=[f"command-{name}"], names=[f"command-{name}"])
            section += nodes.title(text=f"tfdeblend {name}")
            section += nodes.literal_block(text=command.format_help(), language="none")
            sections.append(section)
        return sections


def parameters(obj: Any) -> list[str]:
    """List the names of what a class or a function takes."""
    try:
        return list(inspect.signature(obj).parameters)
    except (TypeError, ValueError):
        return []


def in_sections(text: str, names: list[str]) -> str:
    """Give each argument and each error of a docstring a line of its own, where several share one."""
    head, args, rest = text.partition("Args:\n")
    if args and names:
        indent = re.match(" *", rest)[0]  # type: ignore[index]
        several = rf"(?<=[.;])\s+((?:{'|'.join(names)})(?:, (?:{'|'.join(names)}))*): "
        rest = re.sub(several, rf"\n{indent}\1: ", rest)
    paragraphs = (head + args + rest).split("\n\n")
    for number, paragraph in enumerate(paragraphs):
        said, raises, errors = paragraph.partition("Raises: ")
        if raises:
            each = re.split(r"(?<=[.;]) (?=\w+Error\b)", " ".join(errors.split()))
            section = "\n".join(re.sub(r"^(\w+Error)", r"    \1:", one.rstrip(";")) for one in each)
            paragraphs[number] = f"{said.rstrip()}\n\nRaises:\n{section}"
    return "\n\n".join(paragraphs)


def as_restructured_text(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape in docstrings what is mathematics to their reader and markup to Sphinx, such as |x| or x_.

    Of the code between single backticks, names stay so, and become links where there is a page; the rest is literal.
    """
    text = re.split(r"`([^`]+)`", in_sections("\n".join(lines), parameters(obj)))
    text[::2] = [re.sub(r"[|*]|(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in text[::2]]
    text[1::2] = [f"`{code}`" if re.fullmatch(r"[A-Za-z_][\w.]*", code) else f"``{code}``" for code in text[1::2]]
    lines[:] = "".join(text).split("\n")


def without_fields(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples, of which the class's docstring tells."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app: Any) -> None:
    """Connect what prepares pages and docstrings."""
    app.add_directive("command-help", CommandHelp)
    app.connect("source-read", from_elsewhere)
    app.connect("autodoc-process-docstring", as_restructured_text, priority=100)
    app.connect("autodoc-skip-member", without_fields)
