# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast evaluate`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _files
from .._lock import only_one
from .._text import printable
from . import search
from .models import add_model_arguments, open_recommender, plain, tell
from .numbers import whole
from .samples import add_arguments as add_sample_arguments
from .samples import chosen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..baselines import Baseline
    from ..data import Dataset, Samples
    from ..evaluation import Report
    from ..layout import Catalogue

EXAMPLE = """  patchrec-fast evaluate --model runs/pft-s --data path/to/ml-1m --out runs/pft-s/test --baselines
  patchrec-fast evaluate --model runs/text --data path/to/ml-1m --compare runs/pft-s/test/report.json"""
_BASELINE_BATCH = 256  # samples at once
_EASE_MOST = 10_000  # items; its time grows with their cube, its memory with their square


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add = parser.add_argument
    add_sample_arguments(parser)
    search.add_arguments(parser, method="beam", normalize="vocab")
    add("--batch-size", type=whole(1), default=16, metavar="N", help="samples decoded at once (default: 16)")
    add("--out", help="folder for each batch's results and the report; a killed run goes on there")
    add("--compare", metavar="REPORT.JSON", help="another report over the same samples")
    add("--baselines", action="store_true", help="also popularity, EASE and chance")
    add("--json", action="store_true", help="print a line of JSON instead of tables")


def run(options: argparse.Namespace) -> int:
    try:
        return _run(options)
    except KeyboardInterrupt as error:
        if options.out is None:
            raise
        raise KeyboardInterrupt("the same command goes on") from error


def _run(options: argparse.Namespace) -> int:
    from ..evaluation import Report, evaluate
    from ..evaluation.report import comparison_table, table
    from ..evaluation.run import REPORT, TABLE

    asked = search.asked(options, max(options.k), method="beam")
    others = [_named(Report.load(options.compare))] if options.compare else []
    rec, dataset = open_recommender(options)
    samples, users = chosen(options, dataset)
    tell(rec.packer.policy, rec.packer.max_items, rec.packer.step)
    report = evaluate(
        rec,
        samples,
        options.k,
        batch_size=options.batch_size,
        out=options.out,
        users=users,
        name=printable(f"{Path(options.model).name}, {rec.packer.policy}, {_in_words(options, asked)}"),
        **asked,
    )
    baselines = _baselines(dataset, rec.catalogue, samples, options.k, users) if options.baselines else []
    compared = {other.name: report.compare(other) for other in [*others, *baselines]}
    found = {"prompt": plain(rec.packer), "report": report, "baselines": baselines, "compared": compared}
    content = json.dumps(_plain(found))
    tables = ([table(baselines)] if baselines else []) + ([comparison_table(compared)] if compared else [])
    text = "\n\n".join([str(report), *tables])
    if options.out is not None:  # in place of what the library wrote: that and the rest
        with only_one(options.out):
            _files.write(Path(options.out) / REPORT, content + "\n")
            _files.write(Path(options.out) / TABLE, text + "\n")
    print(content if options.json else text)
    return 0


def _in_words(options: argparse.Namespace, asked: dict[str, Any]) -> str:
    """The method, and what of the search is not as ever."""
    beams = [] if options.beams is None else [f"{options.beams} beams"]
    return ", ".join([asked["method"], *beams, *([] if options.normalize == "vocab" else [options.normalize])])


def _named(report: Report) -> Report:
    """Its name comes from a file and goes to a terminal."""
    return dataclasses.replace(report, name=printable(str(report.name)))


def _baselines(
    dataset: Dataset, catalogue: Catalogue, samples: Samples, ks: list[int], users: NDArray[np.integer]
) -> list[Report]:
    """A report of each, with titles of the history and without; what they cost is not worth a column."""
    from ..baselines import EASE, Chance, Popularity
    from ..evaluation import evaluate

    rankers: dict[str, Baseline] = {"popularity": Popularity(dataset, catalogue)}
    if len(catalogue) <= _EASE_MOST:
        rankers["ease"] = EASE(dataset, catalogue)
    else:
        print(f"baselines: without EASE, which takes minutes for {len(catalogue):,} items", file=sys.stderr)
    rankers["random"] = Chance(catalogue)
    reports = [
        evaluate(
            ranker,
            samples,
            ks,
            by="rank",
            batch_size=_BASELINE_BATCH,
            progress=False,
            users=users,
            name=f"{name}, unseen" if unseen else name,
            exclude_seen=unseen,
        )
        for name, ranker in rankers.items()
        for unseen in (False, True)
    ]
    cost: dict[str, Any] = {"seconds": None, "peak_memory": None, "memory_kind": None, "settings": {}}
    return [dataclasses.replace(report, **cost) for report in reports]


def _plain(value: Any) -> Any:
    """JSON values."""
    from ..evaluation import Report

    if isinstance(value, Report):
        return value.to_dict()
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value
