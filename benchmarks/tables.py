# SPDX-License-Identifier: Apache-2.0
"""Results as text."""

import math
from collections.abc import Callable

from .results import Row

COMPRESS_NOTES = """\
Each entry: median ms | times faster than the best peer, the median of per-round ratios (above 1 is
faster) | GB/s of gathered and written rows | share of the ceiling's GB/s in the same cell; `!n`:
n samples in which other processes took more than 4 % of the time.
Peers get their indices and weights ready made. `sparse`: ours is coalesced, embedding_bag's is not.
`dense`: our gradient comes in pages that the system zeroes at their first touch, so part of the bill
comes with the first full read; `dense+sgd` reads the gradient once, table.add_(gradient, alpha=..),
and pays all of it. Outputs over 32 MB: ours reuse memory that a freed one gave back, glibc maps the
peers' anew each time; with a warm heap (`make bench`) nobody maps any. `ceiling`: the same rows read
by torch's fastest reader of rows into 512 sums, and as many rows as the
output has filled in memory touched before; nothing big allocated, forward only."""


def compress(rows: list[Row], speeds: dict[str, float]) -> str:
    """A block for each dtype and mode: contestants down, shapes across, the losing rows too."""
    lines = [_origin(rows)]
    lines += [f"{name}: {speed:.1f} GB/s read and written" for name, speed in speeds.items()]
    lines += ["", COMPRESS_NOTES]
    for dtype, mode in _distinct(rows, "dtype", "mode"):
        block = [row for row in rows if (row["dtype"], row["mode"]) == (dtype, mode)]
        shapes = [shape for (shape,) in _distinct(block, "shape")]
        lines += ["", f"{dtype} {mode}".ljust(22) + "".join(f"{shape:^31}" for shape in shapes)]
        for (name,) in _distinct(block, "contestant"):
            found = {row["shape"]: row for row in block if row["contestant"] == name}
            entries = [_entry(found[shape]) if shape in found else " " * 31 for shape in shapes]
            lines.append(f"{name:22}" + "".join(entries))
    return "\n".join(lines)


def _entry(row: Row) -> str:
    contended = f"!{row['contended']}" if row["contended"] else ""
    ms, ratio = float(row["median_ms"]), float(row["ratio"])
    times = f"{ratio:.0f}x" if ratio >= 100 else f"{ratio:.2f}x" if ratio >= 0.01 else f"{ratio:.1g}x"
    share = f"{float(row['ceiling_share']):.0%}"
    return f"{ms:9.4g} {times:>7} {float(row['gb_s']):5.3g} {share:>4}{contended:3}"


def packing(rows: list[Row], speeds: dict[str, float]) -> str:
    """Policies down, contestants across."""
    names = [name for (name,) in _distinct(rows, "contestant")]
    lines = [_origin(rows), "histories a second, median (20 % and 80 % quantiles of the rounds)", ""]
    lines.append(f"{'policy':24}" + "".join(f"{name:>30}" for name in names))
    for (policy,) in _distinct(rows, "policy"):
        found = {row["contestant"]: row for row in rows if row["policy"] == policy}
        entries = [_speeds(found[name]) for name in names]
        lines.append(f"{policy:24}" + "".join(f"{entry:>30}" for entry in entries))
    return "\n".join(lines)


def train(rows: list[Row], speeds: dict[str, float]) -> str:
    """Model and stage down, a line a trainer."""
    lines = [
        _origin(rows),
        "forward and backward of one step; `faster`: than the best peer, median of per-round ratios; peak: resident",
        "memory that the step adds at its highest",
        "",
        f"{'model':6}{'stage':8}{'rows':>7}  {'':24}{'median ms':>12}{'faster':>10}{'peak MB':>10}{'rounds':>8}",
    ]
    for row in rows:
        faster = float(row["ratio"])
        lines.append(
            f"{row['model']:6}{row['stage']:8}{row['rows']:>7}  {row['contestant']:24}{float(row['median_ms']):>12,.1f}"
            f"{f'{faster:.2f}x' if math.isfinite(faster) else '':>10}{float(row['peak_mb']):>10,.0f}{row['rounds']:>8}"
        )
    return "\n".join(lines)


def epoch(rows: list[Row], speeds: dict[str, float]) -> str:
    """Model and stage down, a line a contestant."""
    lines = [
        _origin(rows),
        "a step: packing, forward, backward, AdamW; `faster`: targets a second, median of per-round ratios; an epoch's",
        "rows are counted, its hours extrapolated; `floor`: the fewest rows that its layout can be read in; peak:",
        "resident memory that a step adds at its highest",
        "",
        f"{'model':12}{'stage':7}{'':38}{'targets/s':>10}{'faster':>9}{'rows/s':>9}{'epoch rows':>13}{'of floor':>10}"
        f"{'hours':>8}{'peak MB':>9}{'rounds':>8}",
    ]
    for row in rows:
        of_floor = float(row["epoch_rows"]) / float(row["floor_rows"])
        lines.append(
            f"{row['model']:12}{row['stage']:7}{row['contestant']:38}{float(row['median_per_s']):>10,.1f}"
            f"{float(row['ratio']):>8.2f}x{float(row['rows_per_s']):>9,.0f}{int(row['epoch_rows']):>13,}{of_floor:>9.2f}x"
            f"{float(row['epoch_s']) / 3600:>8.2f}{float(row['peak_mb']):>9,.0f}{row['rounds']:>8}"
        )
    return "\n".join(lines)


def segments(rows: list[Row], speeds: dict[str, float]) -> str:
    """Shape and mode down, a line a contestant."""
    lines = [
        _origin(rows),
        "one layer's attention; `faster`: than the best peer, median of per-round ratios; peak: resident memory",
        "that the call adds",
        "",
        f"{'shape':42}{'mode':18}{'rows':>7}  {'':24}{'median ms':>12}{'faster':>13}{'peak MB':>10}{'rounds':>8}",
    ]
    for row in rows:
        ms = float(row["median_ms"])
        lines.append(
            f"{row['shape']:42}{row['mode']:18}{row['rows']:>7}  {row['contestant']:24}{ms:>12,.1f}"
            f"{float(row['ratio']):>12.2f}x{float(row['peak_mb']):>10,.0f}{row['rounds']:>8}"
        )
    return "\n".join(lines)


def visits(rows: list[Row], speeds: dict[str, float]) -> str:
    """Policy down, a line a contestant."""
    lines = [
        _origin(rows),
        "one user's visit; reused: share of the prompts' rows that were not read; `faster`: than a fresh call, median",
        "of per-visit ratios",
        "",
        f"{'policy':38}{'items':>6}{'rows':>6}  {'':16}{'median ms':>11}{'faster':>9}{'reused':>9}{'visits':>8}",
    ]
    for row in rows:
        lines.append(
            f"{row['policy']:38}{row['items']:>6}{row['rows']:>6}  {row['contestant']:16}"
            f"{float(row['median_ms']):>11,.1f}{float(row['ratio']):>8.2f}x{float(row['reused_share']):>9.1%}{row['rounds']:>8}"
        )
    return "\n".join(lines)


def decode(rows: list[Row], speeds: dict[str, float]) -> str:
    """A line a contestant; a block's last is the peer that its answers were compared with."""
    lines = [
        _origin(rows),
        "a user's titles; `faster`: than the last of the block, median of per-round ratios; peak: resident memory",
        "that all users of the call add at its highest",
        "",
        f"{'policy':20}{'':36}{'beams':>6}{'ms a user':>12}{'faster':>10}{'peak MB':>9}{'rounds':>8}",
    ]
    for row in rows:
        lines.append(
            f"{row['policy']:20}{row['contestant']:36}{row['beams']:>6}{float(row['median_ms']):>12,.1f}"
            f"{float(row['ratio']):>9.2f}x{float(row['peak_mb']):>9,.0f}{row['rounds']:>8}"
        )
    return "\n".join(lines)


def _speeds(row: Row) -> str:
    median, low, high = (float(row[f"{name}_per_s"]) for name in ("median", "p20", "p80"))
    return f"{median:,.0f} ({low:,.0f} to {high:,.0f})"


def _origin(rows: list[Row]) -> str:
    data = ", ".join(str(name) for (name,) in _distinct(rows, "data"))
    return (
        "data: {data}. {cpu}, {machine}, {threads} thread(s), torch {torch}, {allocator}, "
        "commit {commit}, load {load} at the start"
    ).format(**{**rows[0], "data": data})


def _distinct(rows: list[Row], *columns: str) -> list[tuple[str | int | float, ...]]:
    return list(dict.fromkeys(tuple(row[column] for column in columns) for row in rows))


FORMATS: dict[str, Callable[[list[Row], dict[str, float]], str]] = {
    "compress": compress,
    "decode": decode,
    "epoch": epoch,
    "packing": packing,
    "segments": segments,
    "train": train,
    "visits": visits,
}
