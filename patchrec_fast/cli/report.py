# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast report`: one HTML file of everything that other commands measured."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from .._options import SAMPLE
from .._text import printable
from .folders import folder

if TYPE_CHECKING:
    from ..report.savings import Group

EXAMPLE = """  patchrec-fast report --out report.html --run runs/text runs/pft-s --evaluation runs/*/test
  patchrec-fast report --out r.html --profile runs/profile --bench benchmarks/results/compress.csv --data sample"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", required=True, metavar="FILE.html", help="the report; it needs no other file")
    add("--run", nargs="+", default=[], type=folder(), metavar="DIR", help="outputs of train: losses")
    add("--evaluation", nargs="+", default=[], metavar="PATH", help="outputs of evaluate, folders or JSON: quality")
    add("--profile", nargs="+", default=[], metavar="PATH", help="outputs of profile, folders or JSON: time and memory")
    add("--bench", nargs="+", default=[], metavar="CSV", help="results of the benchmarks: ratios")
    add("--data", type=folder(SAMPLE), metavar="DIR", help=f'a prepared dataset, or "{SAMPLE}": tokens saved')
    add(
        "--tokenizer",
        type=folder(SAMPLE),
        metavar="DIR",
        help="counts the tokens of --data: a folder of a tokenizer or model (default: $PATCHREC_FAST_TOKENIZER, else "
        "a small one trained on the titles)",
    )
    add("--title", default="patchrec_fast report", help="default: patchrec_fast report")


def run(options: argparse.Namespace) -> int:
    from .. import report
    from ..report import inputs

    sections = [
        report.savings(_groups(options)),
        report.quality(inputs.evaluations(options.evaluation)),
        report.cost(inputs.profiles(options.profile)),
        report.losses(inputs.runs(options.run)),
        report.benchmarks(inputs.benchmarks(options.bench)),
    ]
    report.write(options.out, options.title, sections)
    print(printable(options.out))
    return 0


def _groups(options: argparse.Namespace) -> list[Group]:
    if options.data is None:
        return []
    from ..models import tokenizer_for
    from ..report.savings import by_length
    from ..train.start import open_data

    dataset = open_data(options.data)
    name = options.tokenizer or os.environ.get("PATCHREC_FAST_TOKENIZER") or SAMPLE
    return list(by_length(dataset, tokenizer_for(name, dataset.titles)))
