# SPDX-License-Identifier: Apache-2.0
"""Numbers -> an SVG element whose colours are the page's CSS variables, legible on light and on dark.

Text that comes from outside (names of runs) is left to the page's legend: matplotlib gets only labels of ours.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

COLOURS = 6
"""Lines of more series than this begin again with the first colour, dashed."""
_INK = "#0000c9"
_SERIES = tuple(f"#0000c{number}" for number in range(COLOURS))
_SIZE = (4.4, 3.0)  # inches at 72 units: 317 wide, so that 10 units of text are 10 pixels or more on a phone
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "patchrec_fast",  # the same numbers give the same file
    "text.parse_math": False,
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
}


class Series(NamedTuple):
    """One line, or points without a line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None  # the ends of each point's interval
    high: Sequence[float] | None = None
    line: bool = True
    dots: bool = True


class Plot(NamedTuple):
    """What the page shows: an SVG element, a sentence, and a legend of (CSS colour, whether dashed, name)."""

    svg: str
    caption: str
    legend: list[tuple[str, bool, str]]


def plot(
    series: Sequence[Series],
    caption: str,
    *,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    level: float | None = None,
) -> Plot:
    """Draws series into one pair of axes.

    Args:
        series: at least one.
        caption: said below, and to those who cannot see it.
        x, y: labels of the axes.
        log_x, log_y: logarithmic axes; a linear y axis begins at 0.
        level: a horizontal line there.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install matplotlib") from error
    with rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        for number, each in enumerate(series):
            _draw(axes, each, _SERIES[number % COLOURS], "-" if number < COLOURS else "--")
        if level is not None:
            axes.axhline(level, color=_INK, linewidth=0.8)
        _axes(axes, x, y, log_x, log_y)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA))
    legend = [(f"var(--c{number % COLOURS})", number >= COLOURS, each.name) for number, each in enumerate(series)]
    return Plot(_inline(text.getvalue()), caption, legend if len(legend) > 1 else [])


_METADATA = ("Date", "Creator", "Format", "Type")


def _draw(axes: Any, series: Series, colour: str, style: str) -> None:
    axes.plot(
        series.x,
        series.y,
        color=colour,
        linestyle=style if series.line else "none",
        marker="o" if series.dots else None,
        markersize=4,
        linewidth=1.6,
    )
    if series.low is not None and series.high is not None:
        axes.vlines(series.x, series.low, series.high, color=colour, linewidth=1.2)


def _axes(axes: Any, x: str, y: str, log_x: bool, log_y: bool) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.05 * axes.dataLim.y1 or 1)
    for axis, logarithmic in ((axes.xaxis, log_x), (axes.yaxis, log_y)):
        if logarithmic:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axis.set_minor_formatter(lambda *_: "")
    axes.margins(x=0.08)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.2, linewidth=0.6)


def _inline(svg: str) -> str:
    """The element alone: no prologue, no namespaces (HTML knows them), no fixed size, CSS variables for colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # alike in every plot, and nothing refers to them
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    for number, colour in enumerate(_SERIES):
        svg = svg.replace(colour, f"var(--c{number})")
    return svg.replace(_INK, "var(--ink)")
