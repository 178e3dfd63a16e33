# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/benchmarks.md that are of GPUs, from the record that `benchmarks.gpu` keeps."""

from collections.abc import Callable

from . import cells, gpu, markdown, results
from .figures import latest
from .markdown import Record
from .peers import OURS

NONE = "*Not measured on a GPU.*"
_CELL = ("gpu", "setting", "mode", "dtype", "model", "vocabulary", "users", "beams")


def checks() -> str:
    """A line a kind of checks: how many, the worst error, and those that failed."""
    recorded = [row for row in results.read(gpu.TABLE) if row["benchmark"] == "smoke"]
    newest = {(row["gpu"], row["setting"]): row["time"] for row in recorded}  # what failed before is not shown
    recorded = [row for row in recorded if row["time"] == newest[row["gpu"], row["setting"]]]
    found = [row for row in recorded if _number(row, "error") is not None or row["status"] != gpu.OK]
    lines = []
    for group in markdown.groups([{**row, "kind": row["setting"].split("/")[0]} for row in found], "gpu", "kind"):
        errors = [error for row in group if (error := _number(row, "error")) is not None]
        failed = [f"**{row['setting']}: {row['status']}**" for row in group if row["status"] != gpu.OK]
        worst = f"{max(errors):.3f}" if errors else ""
        lines.append([group[0]["gpu"], group[0]["kind"], str(len(group)), worst, "; ".join(failed)])
    return _table(["", "check", "ways", "worst error, of what rounding allows", "failed"], lines, found)


def ceilings() -> str:
    """The times by which others are read."""
    found = [row for row in _found("smoke") if _number(row, "median_ms") is not None]
    lines = [
        [
            row["gpu"],
            f"{row['contestant']}, {row['setting']}",
            f"{float(row['rows']):,.0f}",
            f"{float(row['median_ms']):.4g} ms",
            *(_shown(row, column) for column in ("gb_s", "tflops", "floor_ms")),
        ]
        for row in found
    ]
    return _table(["", "", "rows, or nodes", "time", "GB/s", "TFLOP/s", "ms of its bytes"], lines, found)


def compress() -> str:
    """Mode and shape down: ours, with the loader's plan and without, and the best peer."""
    found, lines = _found("compress"), []
    for cell in markdown.groups(found, *_CELL):
        own = {row["contestant"]: row for row in cell if _number(row, "median_ms") is not None}
        peers = [row for name, row in own.items() if name != cells.CEILING and not name.startswith(OURS)]
        if OURS not in own:
            continue
        ours, planless = own[OURS], own.get(f"{OURS}, no plan")
        best = min(peers, key=lambda row: float(row["median_ms"]), default=None)
        lines.append(
            [
                ours["gpu"],
                f"{ours['dtype']} {ours['mode']}, {ours['setting']}",
                markdown.milliseconds(ours),
                markdown.milliseconds(planless) if planless else "",
                f"{best['contestant']}, {markdown.milliseconds(best)}" if best else "",
                markdown.times(ours) if best else "",
                f"{float(ours['gb_s']):,.0f} GB/s, {float(ours['ceiling_share']):.0%}",
                f"{_shown(ours, 'floor_ms')} ms",
            ]
        )
    head = ["", "", "ours", "without a plan", "best peer", "faster", "of the copy's GB/s", "each row once"]
    return _table(head, lines, found)


def train() -> str:
    """A line a trainer."""
    return _contestants("train", {"mfu": "MFU, measured", "sheet_mfu": "MFU, data sheet"})


def decode() -> str:
    """A line a search; a figure of others is quoted, not measured here."""
    return _contestants("decode", {"prompt_ms": "prompts, ms", "decode_ms": "search, ms"})


def _contestants(benchmark: str, shown: dict[str, str]) -> str:
    found = [row for row in _found(benchmark) if row["mode"] not in ("", "agree")]
    lines = []
    for row in found:
        timed = _number(row, "median_ms") is not None
        peak = _number(row, "peak_mb")
        lines.append(
            [
                row["gpu"],
                f"{row['model']}, {row['users']} users, {row['setting']}",
                row["contestant"] if row["status"] == gpu.OK else f"{row['contestant']} ({row['status']})",
                markdown.milliseconds(row) if timed else "",
                markdown.times(row) if _number(row, "ratio") is not None else "",
                *(_shown(row, column) for column in shown),
                f"{peak / 1e3:.1f} GB" if peak is not None else "",
                _shown(row, "syncs"),
            ]
        )
    return _table(["", "", "", "a step or call", "faster", *shown.values(), "memory", "waits"], lines, found)


def _found(benchmark: str) -> list[Record]:
    """The last record of each cell and contestant."""
    rows = [row for row in results.read(gpu.TABLE) if row["benchmark"] == benchmark]
    return latest(rows, *_CELL, "contestant")


def _number(row: Record, column: str) -> float | None:
    value = float(row[column] or "nan")
    return value if value == value else None


def _shown(row: Record, column: str) -> str:
    value = _number(row, column)
    return "" if value is None else f"{value:,.4g}"


def _table(head: list[str], lines: list[list[str]], found: list[Record]) -> str:
    if not lines:
        return NONE
    shown = ["|".join(["", *(f" {entry} " for entry in line), ""]) for line in (head, *lines)]
    shown.insert(1, "|" + "---|" * len(head))
    return "\n".join([*shown, "", *dict.fromkeys(map(_origin, filter(lambda row: row["torch"], found)))])


def _origin(row: Record) -> str:
    """A device as its rows have it, and what it was measured to do at most."""
    software = (
        f"driver {row['driver']}, torch {row['torch']}, Triton {row['triton']}, transformers {row['transformers']}"
    )
    measured = f"copies {row['copy_gb_s']} GB/s, multiplies {row['matmul_tflops']} TFLOP/s"
    return f"*{row['gpu']}, {row['gpu_gb']} GB; {software}; {measured}; data {row['data']}; commit {row['commit']}.*"


TABLES: dict[str, Callable[[], str]] = {
    "gpu: checks": checks,
    "gpu: ceilings": ceilings,
    "gpu: compress": compress,
    "gpu: training": train,
    "gpu: decoding": decode,
}
