# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast baseline`: a recommender without a language model, learnt and evaluated."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from .models import add_data_argument
from .numbers import whole
from .samples import add_arguments as add_sample_arguments
from .samples import chosen

EXAMPLE = """  patchrec-fast baseline ease --data path/to/ml-1m --out runs/ease
  patchrec-fast baseline sasrec --data path/to/ml-1m --recipe strong --seed 1 --out runs/sasrec-1
  patchrec-fast report --evaluation runs/ease runs/sasrec-1 --out report.html

Each evaluation is made twice, with the titles of the history allowed and left out. Titles are compared as strings, so
that no tokenizer is needed."""
NAMES = ("chance", "popularity", "transitions", "item-knn", "ease", "sasrec", "gru4rec")  # baselines.NAMES, lazily
_REPORT, _TABLE = "report.json", "report.txt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    add_data_argument(parser)
    add("--out", required=True, metavar="DIR", help="folder for the report and what was learnt; a killed run goes on")
    add("--recipe", default="strong", choices=("paper", "strong"), help="as published or as strong (default: strong)")
    add("--seed", type=whole(0), default=0, metavar="N", help="of what is drawn (default: 0)")
    add_sample_arguments(parser)
    add("--batch-size", type=whole(1), default=256, metavar="N", help="samples scored at once (default: 256)")
    add("--device", default="auto", help='such as "cpu" or "cuda:1" (default: the GPU where there is one)')
    add("--json", action="store_true", help="print a line of JSON instead of a table")


def run(options: argparse.Namespace) -> int:
    try:
        return _run(options)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("the same command goes on") from error


def _run(options: argparse.Namespace) -> int:
    import dataclasses

    from .. import _files
    from .._lock import only_one
    from ..baselines import baseline
    from ..evaluation import Report, evaluate
    from ..evaluation.report import table
    from ..layout import Catalogue
    from ..train.start import open_data
    from .models import device

    told = {key: getattr(options, key) for key in ("name", "recipe", "seed", "split", "limit", "k")}
    out = Path(options.out)
    if (out / _REPORT).exists():
        before = Report.load(out / _REPORT).settings.get("baseline")
        if before != told:
            raise ValueError(f"--out: {out} holds the report of {before}, expected {told}; give another folder")
    dataset = open_data(options.data)
    samples, users = chosen(options, dataset)
    start, processor = time.perf_counter(), time.process_time()
    ranker = baseline(
        options.name,
        dataset,
        Catalogue.of_bytes(dataset.titles),
        recipe=options.recipe,
        seed=options.seed,
        out=out,
        device=device(options.device),
    )
    seconds = {"wall": time.perf_counter() - start, "processor": time.process_time() - processor}
    words = [options.name, *([options.recipe] if options.name not in ("chance", "popularity") else [])]
    name = ", ".join([*words, *([f"seed {options.seed}"] if options.name in ("chance", "sasrec", "gru4rec") else [])])
    reports = []
    for unseen in (False, True):
        report = evaluate(
            ranker,
            samples,
            options.k,
            by="rank",
            batch_size=options.batch_size,
            users=users,
            name=f"{name}, unseen" if unseen else name,
            exclude_seen=unseen,
        )
        settings = {**report.settings, "baseline": told, "seconds to learn, in this run": seconds}
        reports.append(dataclasses.replace(report, settings=settings))
    content = json.dumps({"report": reports[0].to_dict(), "baselines": [reports[1].to_dict()]})
    text = table(reports)
    with only_one(out):
        _files.write(out / _REPORT, content + "\n")
        _files.write(out / _TABLE, text + "\n")
    print(content if options.json else text)
    return 0
