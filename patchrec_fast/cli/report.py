# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast report`: one HTML file of everything that other commands measured."""

from __future__ import annotations

import argparse
import os
import platform
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from .._options import SAMPLE
from .._text import printable
from .folders import folder
from .models import add_device_arguments, placed
from .numbers import whole

if TYPE_CHECKING:
    from ..data import Dataset
    from ..report import Section
    from ..report.examples import Example
    from ..report.savings import Group

EXAMPLE = """  patchrec-fast report --out report.html --run runs/text runs/pft-s --evaluation runs/*/test
  patchrec-fast report --out r.html --data path/to/ml-1m --model runs/pft-s --evaluation runs/pft-s/test
  patchrec-fast report --out r.html --profile runs/profile --bench benchmarks/results/compress.csv --data sample"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", required=True, metavar="FILE.html", help="the report; it needs no other file")
    add("--run", nargs="+", default=[], type=folder(), metavar="DIR", help="outputs of train: losses")
    add("--evaluation", nargs="+", default=[], metavar="PATH", help="outputs of evaluate, folders or JSON: quality")
    add("--profile", nargs="+", default=[], metavar="PATH", help="outputs of profile, folders or JSON: time and memory")
    add("--bench", nargs="+", default=[], metavar="CSV", help="results of the benchmarks: ratios")
    add(
        "--data",
        type=folder(SAMPLE),
        metavar="DIR",
        help=f'a prepared dataset, or "{SAMPLE}": figures, tokens saved',
    )
    add(
        "--tokenizer",
        type=folder(SAMPLE),
        metavar="DIR",
        help="counts the tokens of --data: a folder of a tokenizer or model (default: $PATCHREC_FAST_TOKENIZER, else "
        "a small one trained on the titles)",
    )
    add("--model", type=folder(), metavar="DIR", help="a trained one: what it recommends to some users of --data")
    add("--users", type=whole(1), default=10, metavar="N", help="how many of them (default: 10)")
    add_device_arguments(parser)
    add("--title", default="patchrec_fast report", help="default: patchrec_fast report")


def run(options: argparse.Namespace) -> int:
    from .. import report
    from ..report import inputs
    from ..train.start import open_data

    dataset = open_data(options.data) if options.data else None
    if options.model and dataset is None:
        raise ValueError("--model: expected --data too, whose users it answers")
    sections = [
        report.data_card(options.data, dataset, inputs.card(options.data)),
        report.savings(_groups(options, dataset) if dataset else []),
        report.quality(inputs.evaluations(options.evaluation)),
        report.recommendations(_examples(options, dataset) if options.model and dataset else [], options.model),
        report.cost(inputs.profiles(options.profile)),
        report.losses(inputs.runs(options.run)),
        report.benchmarks(inputs.benchmarks(options.bench)),
        _machine(),
    ]
    report.write(options.out, options.title, sections, f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    print(printable(options.out))
    return 0


def _groups(options: argparse.Namespace, dataset: Dataset) -> list[Group]:
    from ..models import tokenizer_for
    from ..report.savings import by_length

    name = options.tokenizer or os.environ.get("PATCHREC_FAST_TOKENIZER") or SAMPLE
    return list(by_length(dataset, tokenizer_for(name, dataset.titles)))


def _examples(options: argparse.Namespace, dataset: Dataset) -> list[Example]:
    from ..layout.config import PromptConfig
    from ..models import open_trained
    from ..recommend import Recommender
    from ..report import examples

    settings = PromptConfig.load(options.model)
    model, tokenizer = open_trained(options.model, options.dtype or "auto")
    rec = Recommender(placed(model, options), settings.packer(dataset.titles, tokenizer))
    return examples(rec, dataset, options.users)


def _machine() -> Section:
    import torch

    from .. import info
    from ..report import Section, Table

    facts = {**info.versions(), "machine": platform.machine(), "threads": str(torch.get_num_threads())}
    facts |= {kind: getattr(torch, kind).get_device_name() for kind in info.devices()[1:]}
    return Section(
        "Where this report was made", tables=[Table("Versions and machine", ("", "value"), list(facts.items()))]
    )
