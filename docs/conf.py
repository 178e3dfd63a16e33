# SPDX-License-Identifier: Apache-2.0
"""Sphinx's settings: `make docs`."""

import re
from typing import Any

from patchrec_fast import __version__

project = "patchrec_fast"
copyright = "the patchrec_fast authors, Apache-2.0"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
default_role = "code"  # single backticks in docstrings
html_theme = "furo"
html_title = f"patchrec_fast {version}"


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", _as_markup, priority=400)  # before napoleon


def _as_markup(app: Any, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Our docstrings are plain text: bars and keyword stars stand for themselves, and a hanging indent among the names
    of a result is no quotation."""
    made: list[str] = []
    returns = False
    for line in lines:
        if line and not line.startswith(" "):
            returns = line == "Returns:"
        if returns and line.startswith(" " * 8):
            made[-1] += " " + line.strip()
        else:
            made.append(re.sub(r"(\||\*\*(?=\w+\())", lambda found: "".join("\\" + mark for mark in found[0]), line))
    lines[:] = made
