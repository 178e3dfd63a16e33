# SPDX-License-Identifier: Apache-2.0
"""Sections -> one HTML file that needs no other: styles and plots are in it, and it asks for nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import _files
from .._text import printable
from .._version import __version__
from .plots import Plot

_TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Table:
    """Cells as they are to be read, text or lines of it; the rows in `losing` are marked.

    Columns of `prose` are read from the left and wrap; of numbers, the first.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Sequence[str]]]
    losing: frozenset[int] = frozenset()
    prose: bool = False


@dataclass(frozen=True)
class Section:
    """A heading and what is under it; `missing` is the command that makes what was not given."""

    title: str
    text: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = field(default=())
    missing: str | None = None


def render(title: str, sections: Sequence[Section], when: str = "") -> str:
    """The page; every text is escaped, for HTML and as `printable` does.

    Args:
        title: its heading.
        sections: in order; their plots are SVG that `plots.plot` made.
        when: it was made, in words.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=shown
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    origin = f"patchrec_fast {__version__}{when and f', {when}'}"
    return template.render(title=title, origin=origin, sections=sections)


def write(path: str | os.PathLike[str], title: str, sections: Sequence[Section], when: str = "") -> None:
    """Writes the page, whole or not at all."""
    _files.write(path, render(title, sections, when))
