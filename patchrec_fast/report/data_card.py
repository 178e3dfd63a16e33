# SPDX-License-Identifier: Apache-2.0
"""What the data are: figures of a data set, and what its card says of where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..data import Dataset, statistics
from .page import Section, Table

_HEAD = ("", "value")
_FIGURES, _MARKS = "statistics", ("set", "outputs")  # those the data have too; marks of the files


def data_card(name: str | None, dataset: Dataset | None, card: Mapping[str, Any] | None) -> Section:
    """Figures of the data, and the entries of `card.json` where there is one."""
    title = "Data"
    if dataset is None:
        return Section(title, missing="patchrec-fast report --data path/to/ml-1m ...")
    tables = [Table(f"{name}: figures", _HEAD, _entries(statistics(dataset)))]
    if card is not None:
        kept = {key: value for key, value in card.items() if key not in (_FIGURES, *_MARKS)}
        tables.append(Table("card.json: how they were made", _HEAD, _entries(kept), prose=True))
    text = [] if card is not None else ["Without a card.json, which patchrec-fast data prepare writes."]
    return Section(title, text, tables=tables)


def _entries(values: Mapping[str, Any], before: str = "") -> list[list[str]]:
    """A row an entry; those of an entry that has entries under its name."""
    rows = []
    for key, value in values.items():
        name = f"{before}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            rows += _entries(value, f"{name}: ")
        else:
            rows.append([name, _shown(value)])
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(map(_shown, value)) if isinstance(value, list | tuple) else str(value)
