# SPDX-License-Identifier: Apache-2.0
"""Records -> the sections of the report. Each is a function; what was not given leaves the command that makes it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..evaluation import Report
from ..evaluation.profile import Profile
from .inputs import Benchmark, Profiles, Run
from .names import told_apart
from .page import Section, Table
from .plots import Plot, Series, plot
from .savings import TEXT, Group

_MEASURED = {"median_ms", "p20_ms", "p80_ms", "median_per_s", "p20_per_s", "p80_per_s", "rounds", "contended", "ratio"}
_MEASURED |= {"peak_mb", "gb_s", "ceiling_share"}
_MACHINE = {"time", "machine", "cpu", "torch", "commit", "load"}
_OURS = "patchrec_fast"
_MANY = 25  # points that are drawn as a line only


def savings(groups: Sequence[Group]) -> Section:
    """Rows of a prompt by length of the history, under text, item and session patches."""
    title = "Tokens saved, by length of the history"
    if not groups:
        return Section(title, missing="patchrec-fast report --data path/to/ml-1m ...")
    policies = list(groups[0].rows)
    drawn = plot(
        [Series(name, [each.items for each in groups], [each.rows[name] for each in groups]) for name in policies],
        "Mean rows of a whole prompt, template and separators included. Both axes are logarithmic.",
        x="items of the history",
        y="rows of the prompt",
        log_x=True,
        log_y=True,
    )
    rows = [
        [each.name, f"{each.users:,}", *(_rows(each, name) for name in policies)]
        for each in groups
    ]  # fmt: skip
    table = Table("Mean rows of a prompt, and how many times fewer than as text", ["items", "users", *policies], rows)
    return Section(title, plots=[drawn], tables=[table])


def _rows(group: Group, policy: str) -> str:
    rows = group.rows[policy]
    return f"{rows:,.0f}" if policy == TEXT else f"{rows:,.0f} ({group.rows[TEXT] / rows:.2f}x)"


def quality(reports: Sequence[Report]) -> Section:
    """HR@K against the compression ratio, and every metric with its interval; samples that differ are kept apart."""
    title = "Quality against compression"
    if not reports:
        return Section(title, missing="patchrec-fast evaluate --model runs/pft-s --data DIR --out runs/pft-s/test")
    reports = told_apart(reports)
    plots, tables, text = [], [], []
    for identity in dict.fromkeys(report.identity for report in reports):
        alike = [report for report in reports if report.identity == identity]
        ratios = [_ratio(report, alike) for report in alike]
        samples = f"{len(alike[0].ranks):,} samples of {len(set(alike[0].users)):,} users"
        tables.append(_quality_table(alike, ratios, samples))
        common = set.intersection(*(set(report.ks) for report in alike))
        if common and any(ratios):
            plots.append(_quality_plot(alike, ratios, f"HR@{max(common)}", samples))
        left_out = [report.name for report, ratio in zip(alike, ratios, strict=True) if report.rows and not ratio]
        if left_out or not common:
            names = "; ".join(left_out) or "anything"
            text.append(
                f"Not drawn: {names}. It takes an evaluation of text prompts of as many items, with the same K."
            )
    made = [[report.name, _settings(report.settings)] for report in reports if report.settings]
    if made:
        tables.append(Table("How each was made", ("", "settings"), made, prose=True))
    return Section(title, text, plots, tables)


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _ratio(report: Report, alike: Sequence[Report]) -> float | None:
    """How many times fewer rows than text prompts of as many items have, where such a report is there."""
    for other in alike:
        same = other.settings.get("max_items") == report.settings.get("max_items")
        if report.rows and other.rows and same and other.settings.get("policy") == "Text()":
            return other.rows / report.rows
    return None


def _quality_plot(reports: Sequence[Report], ratios: Sequence[float | None], metric: str, samples: str) -> Plot:
    series = []
    for report, ratio in zip(reports, ratios, strict=True):
        if ratio is not None:
            value, low, high = report.metrics()[metric]
            series.append(Series(report.name, [ratio], [value], [low], [high], line=False))
    caption = f"{metric} on {samples}, with 95 % intervals over users. The ratio is that of whole prompts."
    baselines = {report.name: report.metrics()[metric].value for report in reports if not report.rows}
    best = max(baselines, key=baselines.__getitem__, default=None)
    if best is not None:
        caption += f" The line is {best}, {baselines[best]:.4f}."
    level = None if best is None else baselines[best]
    return plot(series, caption, x="times fewer rows than text", y=metric, level=level)


def _quality_table(reports: Sequence[Report], ratios: Sequence[float | None], samples: str) -> Table:
    names = list(dict.fromkeys(name for report in reports for name in report.metrics()))
    rows = []
    for report, ratio in zip(reports, ratios, strict=True):
        found = report.metrics()
        metrics = [_interval(*found[name]) if name in found else "" for name in names]
        seconds = sum(report.seconds.values()) if report.seconds else None
        peak = report.peak_memory / 2**20 if report.peak_memory is not None else None
        numbers = [(report.rows, ",.1f"), (ratio, ".2f"), (seconds and 1000 * seconds, ",.2f"), (peak, ",.0f")]
        rows.append([report.name, *metrics, *("" if value is None else f"{value:{form}}" for value, form in numbers)])
    head = ["", *names, "rows a prompt", "times fewer", "ms a sample", "peak MiB"]
    told = [column for column in range(len(head)) if column == 0 or any(row[column] for row in rows)]
    head, rows = [head[column] for column in told], [[row[column] for column in told] for row in rows]
    return Table(f"{samples}; metrics with 95 % intervals over users", head, rows)


def _interval(value: float, low: float, high: float) -> list[str]:
    """Two lines, so that four metrics fit beside each other."""
    return [f"{value:.4f}", f"[{low:.4f}, {high:.4f}]"]


def cost(found: Sequence[Profiles]) -> Section:
    """Time and memory of one user against the length of the history, and Figure 8's settings side by side."""
    title = "Time and memory, by length of the history"
    if not found:
        return Section(title, missing="patchrec-fast profile --model runs/pft-s --data DIR --out runs/profile")
    plots, tables = [], []
    for each in found:
        memory = each.growth[0].memory if each.growth else ""
        for field, label in (("total_ms", "ms a user"), ("peak_mib", "peak MiB")):
            if each.growth:
                plots.append(_growth(each.growth, field, label, f"{each.name}: {label}{_measure(field, memory)}."))
        tables.append(_cost_table(each))
    return Section(title, plots=plots, tables=tables)


def _measure(field: str, kind: str) -> str:
    return f", {kind}" if field == "peak_mib" else ", packing, prompt and decoding"


def _growth(growth: Sequence[Profile], field: str, label: str, caption: str) -> Plot:
    series = []
    for setting in dict.fromkeys(each.setting for each in growth):
        own = [each for each in growth if each.setting == setting]
        series.append(Series(setting, [each.items for each in own], [getattr(each, field) for each in own]))
    return plot(series, caption, x="items of the history", y=label)


def _cost_table(found: Profiles) -> Table:
    head = ["", "users", "items", "rows", "pack ms", "prompt ms", "decode ms", "ms a user", "peak MiB"]
    rows = [
        [each.setting, f"{each.users:,}", f"{each.items:,.0f}", f"{each.rows:,.0f}"]
        + [f"{value:,.2f}" for value in (each.pack_ms, each.prompt_ms, each.decode_ms, each.total_ms)]
        + [f"{each.peak_mib:,.0f}"]
        for each in found.compared
    ]
    return Table(f"{found.name}: the longest users, means of one user", head, rows)


def losses(runs: Sequence[Run]) -> Section:
    """Training and validation losses against the rows learnt from."""
    title = "Losses"
    if not runs:
        return Section(title, missing="patchrec-fast train --model tiny --data DIR --stage text --out runs/text")
    plots = []
    for split, name in (("train", "Training"), ("val", "Validation")):
        series = [_curve(run, split) for run in runs if any(point.split == split for point in run.points)]
        if series:
            caption = f"{name} loss, nats a supervised token, against the rows that the model has learnt from."
            plots.append(plot(series, caption, x="million rows", y="loss"))
    rows = [[run.name, *_outcome(run)] for run in runs]
    head = ["", "stage", "steps", "first validation loss", "last", "million rows", "seconds", "rows a second"]
    tables = [Table("Training runs", head, rows)]
    made = [[run.name, _settings(run.settings)] for run in runs if run.settings]
    if made:
        tables.append(Table("What differs from the defaults of a recipe", ("", "settings"), made, prose=True))
    return Section(title, plots=plots, tables=tables)


def _curve(run: Run, split: str) -> Series:
    points = [point for point in run.points if point.split == split]
    millions = [point.tokens / 1e6 for point in points]
    return Series(run.name, millions, [point.loss for point in points], dots=len(points) < _MANY)


def _outcome(run: Run) -> list[str]:
    found = run.result
    if found is None:
        return ["not finished", f"{run.points[-1].step:,}" if run.points else "0", *[""] * 5]
    return [
        found["stage"],
        f"{found['steps']:,}",
        *("none" if (loss := found[key]) is None else f"{loss:.4f}" for key in ("first_val_loss", "val_loss")),
        f"{found['tokens'] / 1e6:,.2f}",
        f"{found['seconds']:,.1f}",
        f"{found['rows_per_second']:,.0f}",
    ]


def benchmarks(found: Sequence[Benchmark]) -> Section:
    """How many times faster than each cell's best peer; cells where we lose are marked."""
    title = "Benchmarks"
    if not found:
        return Section(title, missing="patchrec-fast bench --record")
    text, plots, tables = [], [], []
    for each in found:
        cells = list(_cells(each.rows))
        ratios = sorted(ratio for _, _, ratio in cells)
        lost = sum(ratio < 1 for ratio in ratios)
        text.append(f"{each.name}: {len(cells):,} cells, {lost:,} of them lost (below 1x).")
        plots.append(_ratio_plot(each.name, ratios))
        tables.append(_ratio_table(each, cells))
    return Section(title, text, plots, tables)


def _cells(rows: Iterable[dict[str, str]]) -> Iterable[tuple[dict[str, str], str, float]]:
    """What was compared, our median, and how many times faster than the best peer; the last recorded of each cell."""
    last: dict[tuple[str, ...], tuple[dict[str, str], str, float]] = {}
    for row in rows:
        ratio = float(row["ratio"])
        if not (row["contestant"].startswith(_OURS) and math.isfinite(ratio)):
            continue
        cell = {key: value for key, value in row.items() if key not in _MEASURED | _MACHINE}
        median = f"{row['median_ms']} ms" if "median_ms" in row else f"{row['median_per_s']}/s"
        last[tuple(cell.values())] = (cell, median, ratio)
    return last.values()


def _ratio_plot(name: str, ratios: Sequence[float]) -> Plot:
    places = {
        "won": [place for place, ratio in enumerate(ratios, 1) if ratio >= 1],
        "lost": [place for place, ratio in enumerate(ratios, 1) if ratio < 1],
    }
    series = [Series(name, at, [ratios[place - 1] for place in at], line=False) for name, at in places.items() if at]
    return plot(series, f"{name}: every cell, sorted.", x="cell", y="times faster", log_y=True, level=1)


def _ratio_table(found: Benchmark, cells: Sequence[tuple[dict[str, str], str, float]]) -> Table:
    rows = [
        [*cell.values(), median, f"{ratio:.2f}x" + (" lost" if ratio < 1 else "")]
        for cell, median, ratio in cells
    ]  # fmt: skip
    head = [*cells[0][0], "our median", "times faster"] if cells else []
    place = {key: found.rows[-1].get(key, "") for key in ("cpu", "torch", "commit")}
    caption = f"{found.name}: {place['cpu']}, torch {place['torch']}, commit {place['commit']}"
    return Table(caption, head, rows, frozenset(at for at, (_, _, ratio) in enumerate(cells) if ratio < 1))
