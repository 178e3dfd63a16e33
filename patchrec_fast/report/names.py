# SPDX-License-Identifier: Apache-2.0
"""Names that tell two evaluations of one model apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..evaluation import Report


def told_apart(reports: Sequence[Report]) -> list[Report]:
    """The same reports; where several have one name, each gets the settings in which they differ, else a number."""
    named = []
    for report in reports:
        others = [other.settings for other in reports if other.name == report.name]
        differ = [
            f"{key} {value}"
            for key, value in report.settings.items()
            if any(other.get(key) != value for other in others)
        ]
        named.append(dataclasses.replace(report, name=", ".join([report.name, *differ])))
    names = [report.name for report in named]
    return [
        report
        if names.count(report.name) == 1
        else dataclasses.replace(report, name=f"{report.name} ({names[: at + 1].count(report.name)})")
        for at, report in enumerate(named)
    ]
