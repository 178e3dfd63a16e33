# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/gpu.md: what the compiler made, and times that are predicted."""

from collections.abc import Callable

from . import markdown, results


def binaries() -> str:
    """Kernel, type and columns down, architectures across; the worst of a cell's binaries in each number."""
    found = results.read("binaries")
    architectures = list(dict.fromkeys(row["arch"] for row in found))
    lines = []
    for cell in markdown.groups(found, "kernel", "dtype", "d"):
        shown = []
        for arch in architectures:
            own = [row for row in cell if row["arch"] == arch]
            registers, shared, spilled = (
                max((int(row[name]) for row in own), default=0)
                for name in ("registers", "shared_bytes", "spilled_bytes")
            )
            least = min((int(row["blocks"]) for row in own), default=0)
            entry = f"{registers}, {shared / 1024:.0f} KB, {least}" if own else ""
            shown.append(entry + (f", **{spilled} B**" if spilled else ""))
        lines.append([f"`{cell[0]['kernel']}`", cell[0]["dtype"], cell[0]["d"], *shown])
    return markdown.table(["", "", "columns", *architectures], lines, found)


def predicted(work: str) -> str:
    """Cards down, what is done across: predicted, and a place for what is measured."""
    found = [row for row in results.read("predictions") if row["work"].startswith(work)]
    works = list(dict.fromkeys(row["work"] for row in found))
    lines = []
    for cell in markdown.groups(found, "card"):
        own = {row["work"]: row for row in cell}
        entries = [
            entry
            for name in works
            for entry in (f"{float(own[name]['low_us']):,.1f} to {float(own[name]['high_us']):,.1f}", "")
        ]
        lines.append([f"{cell[0]['card']} ({cell[0]['arch']})", f"{int(cell[0]['gb_s']):,}", *entries])
    head = [part for name in works for part in (f"{name.removeprefix(work).strip(': ')}, predicted µs", "measured")]
    return markdown.table(["", "GB/s, data sheet", *head], lines, found)


TABLES: dict[str, Callable[[], str]] = {
    "binaries": binaries,
    "compress predicted": lambda: predicted("compress"),
    "decode predicted": lambda: predicted("decode step"),
}
