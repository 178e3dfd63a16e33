# SPDX-License-Identifier: Apache-2.0
"""Records as the cells and tables of a page in Markdown."""

from . import results

Record = dict[str, str]


def newest(name: str, *columns: str) -> list[list[Record]]:
    """The last record of each cell, whose rows have one time; cells in the order of their first."""
    cells = groups(results.read(name), *columns)
    return [[row for row in cell if row["time"] == cell[-1]["time"]] for cell in cells]


def groups(found: list[Record], *columns: str) -> list[list[Record]]:
    """In the order of each group's first row."""
    made: dict[tuple[str, ...], list[Record]] = {}
    for row in found:
        made.setdefault(tuple(row[column] for column in columns), []).append(row)
    return list(made.values())


def quotient(one: Record, other: Record) -> float:
    return float(one["median_ms"]) / float(other["median_ms"])


def number(row: Record) -> str:
    value = float(row["median_ms"])
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def milliseconds(row: Record) -> str:
    return f"{number(row)} ms"


def seconds(row: Record) -> str:
    value = float(row["median_ms"]) / 1e3
    return f"{value:,.1f} s" if value >= 10 else f"{value:.2f} s"


def step(row: Record) -> str:
    return f"{seconds(row)}, {float(row['peak_mb']) / 1e3:.1f} GB"


def times(row: Record) -> str:
    """Bold where we lose."""
    value = float(row["ratio"])
    text = f"{value:,.0f}x" if value >= 100 else f"{value:.1f}x" if value >= 20 else f"{value:.2f}x"
    return f"**{text}**" if value < 1 else text


def interval(row: Record) -> str:
    """A metric and its bounds."""
    value, low, high = (f"{float(row[name]):.{digits}f}" for name, digits in (("value", 4), ("low", 3), ("high", 3)))
    return f"{value.removeprefix('0')} [{low.removeprefix('0')}, {high.removeprefix('0')}]"


def table(head: list[str], lines: list[list[str]], found: list[Record]) -> str:
    """Markdown, and under it the records' origins."""
    if not lines:
        return "*Not recorded yet.*"
    shown = ["|".join(["", *(f" {entry} " for entry in line), ""]) for line in (head, *lines)]
    shown.insert(1, "|" + "---|" * len(head))
    return "\n".join([*shown, "", origin(found)])


def origin(found: list[Record]) -> str:
    commits = ", ".join(dict.fromkeys(row["commit"] for row in found))
    places = dict.fromkeys(", ".join(row[key] for key in ("cpu", "machine") if key in row) for row in found)
    versions = ", ".join(
        dict.fromkeys(f"{name} {row[name]}" for row in found for name in ("torch", "triton") if name in row)
    )
    where = "; ".join(filter(None, [*places, versions]))
    return f"*{where + '; ' if where else ''}commits {commits}.*"
