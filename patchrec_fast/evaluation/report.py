# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found: a table to read, a file to keep, and a pair of them to compare."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import _files, _json
from .intervals import Comparison, Estimate, compare, estimate
from .metrics import Values, check_ranks, values

_NONE = type(None)
FORMAT = 2
"""Of what a report is written as; in 1, ranks were counted from 0."""
_SHAPE = {
    "format": int,
    "metrics": dict,
    "name": str,
    "ks": [int],
    "ranks": [int],
    "users": [int],
    "identity": str,
    "shared_titles": int,
    "shared_targets": int,
}
_OPTIONAL = {
    "rows": (float, _NONE),
    "seconds": (dict, _NONE),
    "peak_memory": (int, _NONE),
    "memory_kind": (str, _NONE),
    "settings": dict,
}


@dataclass(frozen=True)
class Report:
    """Of S samples.

    Attributes:
        name: what was evaluated, in words.
        ks: the K of HR@K and NDCG@K.
        ranks: S ranks of the target's title in the recommendations, from 1; -1 is a miss.
        users: S numbers, whose sample each is.
        identity: a digest of the samples; only reports with equal ones are compared.
        shared_titles: titles that more than one item of the catalogue has; these are one answer.
        shared_targets: samples whose target has such a title.
        rows: mean rows of a prompt, the language model's tokens; None for a baseline, as the next three.
        seconds: mean seconds a sample, by part of the work: pack, prompt, decode.
        peak_memory: bytes.
        memory_kind: which memory that is.
        settings: whatever else says how it was made; JSON values.
    """

    name: str
    ks: tuple[int, ...]
    ranks: list[int]
    users: list[int]
    identity: str
    shared_titles: int
    shared_targets: int
    rows: float | None = None
    seconds: dict[str, float] | None = None
    peak_memory: int | None = None
    memory_kind: str | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def metrics(self, confidence: float = 0.95) -> dict[str, Estimate]:
        """The mean of each metric, such as "HR@10", with its bootstrap interval over users."""
        return estimate(self._values(), self.users, confidence=confidence)

    def compare(self, other: Report) -> dict[str, Comparison]:
        """How much better this one is than `other` on the same samples, by metric.

        Raises:
            ValueError: other samples, or no K that both have.
        """
        if self.identity != other.identity:
            raise ValueError(f"other: {other.name!r} has other samples than {self.name!r}, expected the same")
        mine, theirs = self._values(), other._values()
        common = [name for name in mine if name in theirs]
        if not common:
            raise ValueError(f"other: expected one of the K {self.ks}, got {other.ks}")
        return compare({name: theirs[name] for name in common}, {name: mine[name] for name in common}, self.users)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `metrics` are in it for readers, `from_dict` counts them again."""
        found = {name: value._asdict() for name, value in self.metrics().items()}
        return {"format": FORMAT, "metrics": found, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Report:
        """What `to_dict` gave.

        Raises:
            ValueError: it is something else, and what.
        """
        if fields.get("format") != FORMAT:
            raise ValueError(f"format {fields.get('format', 1)!r}, expected {FORMAT}: evaluate again")
        _json.check(fields, {**_SHAPE, **{name: kind for name, kind in _OPTIONAL.items() if name in fields}})
        _json.check(fields.get("seconds") or {}, {str: float}, "seconds")
        given = {name: value for name, value in fields.items() if name not in ("format", "metrics")}
        if unknown := given.keys() - {field.name for field in dataclasses.fields(cls)}:
            raise ValueError(f"unknown {', '.join(sorted(unknown))}")
        ranks, users = fields["ranks"], fields["users"]
        if not ranks or len(users) != len(ranks):
            raise ValueError(f"ranks, users: expected as many of each, and some, got {len(ranks)} and {len(users)}")
        if not fields["ks"] or min(fields["ks"]) < 1:
            raise ValueError(f"ks: expected every K above 0, got {fields['ks']}")
        check_ranks(ranks)
        return cls(**{**given, "ks": tuple(fields["ks"])})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON, whole or not at all."""
        _files.write(path, _json.dumps(self.to_dict()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """Reads what `save` wrote, or what `patchrec-fast evaluate` did: there the report is one entry of several.

        Raises:
            OSError: no such file.
            ValueError: it is not a report.
        """
        content = _json.load(path, dict, "a report of patchrec-fast evaluate")
        try:
            return cls.from_dict(content.get("report", content))
        except ValueError as error:
            raise ValueError(f"{path}: not a report of patchrec-fast evaluate, or damaged ({error})") from error

    def __repr__(self) -> str:
        found = ", ".join(f"{name} {each.mean():.4f}" for name, each in self._values().items())
        return f"Report({self.name!r}, {len(self.ranks)} samples of {len(set(self.users))} users: {found})"

    def __str__(self) -> str:
        users = len(set(self.users))
        lines = [f"{self.name}: {len(self.ranks)} samples of {users} users"]
        lines += [
            f"  {name:<8} {value:.4f}   95 % {low:.4f} to {high:.4f}"
            for name, (value, low, high) in self.metrics().items()
        ]
        if self.rows is not None:
            lines.append(f"  rows a prompt: {self.rows:.1f}")
        if self.seconds:
            parts = ", ".join(f"{part} {1000 * seconds:.2f}" for part, seconds in self.seconds.items())
            lines.append(f"  ms a sample: {1000 * sum(self.seconds.values()):.2f} ({parts})")
        if self.peak_memory is not None:
            lines.append(f"  peak memory: {self.peak_memory / 2**20:.0f} MiB {self.memory_kind}")
        lines.append(f"  titles that items share: {self.shared_titles}, targets among them: {self.shared_targets}")
        return "\n".join(lines)

    def _values(self) -> Values:
        return values(self.ranks, self.ks)


def table(reports: Sequence[Report]) -> str:
    """A line a report: each metric with its 95 % interval; all have the same ks."""
    rows = [
        [report.name, *(f"{value:.4f} [{low:.4f}, {high:.4f}]" for value, low, high in report.metrics().values())]
        for report in reports
    ]
    return _columns([["", *reports[0].metrics()], *rows])


def comparison_table(compared: Mapping[str, dict[str, Comparison]]) -> str:
    """A line for each report that was compared with: each difference with its p-value.

    Args:
        compared: name -> what `Report.compare` gave.
    """
    names = list(dict.fromkeys(metric for found in compared.values() for metric in found))
    rows = [
        [f"against {name}", *(_difference(found[metric]) if metric in found else "" for metric in names)]
        for name, found in compared.items()
    ]
    return _columns([["", *names], *rows])


def _difference(found: Comparison) -> str:
    return f"{found.difference.value:+.4f} (p = {found.p_value:.4f})"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Cells below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
