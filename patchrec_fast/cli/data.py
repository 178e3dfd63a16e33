# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast data`: download, prepare, look at and make up datasets."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import __version__
from .._text import printable
from ..data import generate, load, sample_tokenizer, save
from ..data.card import write
from ..data.columns import Columns
from ..data.download import NAMES, download
from ..data.folder import check_target
from ..data.goodreads import TIMES, Goodreads
from ..data.interactions import Source
from ..data.movielens import MovieLens
from ..data.prepare import RULES, Prepared, Rules, prepare
from ..data.sample import save_tokenizer
from ..data.splits import SPLITS
from ..data.stats import statistics

EXAMPLE = """  patchrec-fast data download ml-1m --out raw
  patchrec-fast data prepare ml-1m --raw raw/ml-1m --out data/ml-1m
  patchrec-fast data stats data/ml-1m --tokenizer path/to/tokenizer
  patchrec-fast data sample --out data/sample"""

_PREPARE_EXAMPLE = """  patchrec-fast data prepare ml-100k --raw raw/ml-100k --out data/ml-100k
  patchrec-fast data prepare goodreads --raw raw/goodreads --out data/goodreads --min-user 20
  patchrec-fast data prepare table --raw log.csv --out data/mine --user customer --item sku --title name --time at"""
_PREPARE = """Read raw ratings, keep what the rules say (by default the paper's for that source), and write the prepared
format with a card. A repeated interaction of a user with an item is dropped, the earliest stays."""
_DOWNLOAD = """Download a MovieLens set from GroupLens, check it and unpack it to OUT/NAME. An interrupted download goes
on from where it broke off. The data are for research: no redistribution, no commercial use (see the README inside)."""

SOURCES = (*NAMES, "ml-10m", "movielens", "goodreads", "table")


_ACTIONS = "The options of each: patchrec-fast data ACTION --help"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="ACTION", title="actions", description=_ACTIONS
    )
    _prepare_arguments(_action(actions, "prepare", _prepare, "raw ratings to the prepared format", _PREPARE_EXAMPLE))
    adding = _action(actions, "download", _download, "fetch MovieLens", "  patchrec-fast data download ml-1m --out raw")
    adding.description = _DOWNLOAD
    adding.add_argument("name", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    adding.add_argument("--out", required=True, metavar="DIR", help="gets NAME.zip and the folder NAME")
    example = "  patchrec-fast data stats data/ml-1m --tokenizer path/to/tokenizer"
    adding = _action(actions, "stats", _stats, "figures of a prepared dataset (the paper's Table 1)", example)
    adding.add_argument("folder", metavar="DIR", help="in the prepared format")
    adding.add_argument("--tokenizer", metavar="DIR", help="also count tokens of the titles with this one")
    example = "  patchrec-fast data sample --out data/sample --tokenizer data/tokenizer"
    adding = _action(actions, "sample", _sample, "invent a dataset with MovieLens-1M's statistics", example)
    adding.add_argument("--out", required=True, metavar="DIR", help="gets the dataset")
    adding.add_argument("--tokenizer", metavar="DIR", help="also train a small tokenizer and save it here")
    adding.add_argument("--users", type=int, default=1000, metavar="N", help="default: 1000")
    adding.add_argument("--items", type=int, default=2000, metavar="N", help="default: 2000")
    adding.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")


def run(options: argparse.Namespace) -> int:
    result = options.perform(options)
    print(json.dumps(result) if options.json else "\n".join(_lines(result)))
    return 0


def _action(actions: Any, name: str, perform: Callable[..., Any], text: str, example: str) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog="example:\n" + example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the result as a line of JSON")
    # Without a default: that would take away the one given before the action.
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show an error's traceback")
    parser.set_defaults(perform=perform)
    return parser


def _prepare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _PREPARE
    parser.add_argument("source", choices=SOURCES, metavar="SOURCE", help=", ".join(SOURCES))
    parser.add_argument("--raw", required=True, metavar="PATH", help="folder of the raw files; for table the file")
    parser.add_argument("--out", required=True, metavar="DIR", help="gets the dataset and card.json")
    rules = parser.add_argument_group("rules (default: the paper's for the source; everything for a table)")
    rules.add_argument("--above-rating", type=float, metavar="X", help="keep ratings above this")
    rules.add_argument("--min-user", type=int, metavar="N", help="fewest interactions of a user")
    rules.add_argument("--min-item", type=int, metavar="N", help="fewest interactions of an item")
    rules.add_argument("--counted", choices=("kept", "all"), help="which interactions these two count")
    rules.add_argument("--untitled", choices=("error", "drop"), help="what to do with an item without a title")
    rules.add_argument("--catalogue", choices=("all", "used"), help="titles of all items, or of those used")
    rules.add_argument("--shares", type=float, nargs=3, metavar=("TRAIN", "VAL", "TEST"), help="default: 48 1 1")
    table = parser.add_argument_group("names of a table's columns")
    for name in ("user", "item", "title", "time"):
        table.add_argument(f"--{name}", default=name, metavar="COLUMN", help=f"default: {name}")
    table.add_argument("--rating", metavar="COLUMN", help="default: none")
    goodreads = parser.add_argument_group("goodreads")
    goodreads.add_argument("--date", choices=TIMES, default=TIMES[0], help=f"what orders books (default: {TIMES[0]})")


def _prepare(options: argparse.Namespace) -> dict[str, Any]:
    check_target(options.out)  # before hours of reading
    source = _source(options)
    rules = _rules(options)
    with _bar(f"reading {printable(source.files[0].name)}", source.files[0].stat().st_size) as bar:
        prepared: Prepared = prepare(source, rules, bar.update)
    card = write(prepared, options.out, name=options.source, files=source.files, version=__version__)
    if prepared.cleaned:
        _note(f"{prepared.cleaned:,} titles had control characters, line ends or repeated spaces, which are gone")
    _note_empty(card["statistics"])
    return card


def _source(options: argparse.Namespace) -> Source:
    if options.source == "goodreads":
        return Goodreads(options.raw, options.date)
    if options.source == "table":
        names = {name: getattr(options, name) for name in ("user", "item", "title", "time", "rating")}
        return Columns(options.raw, **names)
    return MovieLens(options.raw)


def _rules(options: argparse.Namespace) -> Rules:
    names = ("above_rating", "min_user", "min_item", "counted", "untitled", "catalogue")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.shares is not None:
        given["shares"] = tuple(options.shares)
    return replace(RULES.get(options.source, RULES["movielens"]), **given)


def _download(options: argparse.Namespace) -> dict[str, Any]:
    with _bar(options.name) as bar:
        return {"folder": str(download(options.name, options.out, bar=bar))}


def _stats(options: argparse.Namespace) -> dict[str, Any]:
    from ..models import open_tokenizer

    figures = statistics(load(options.folder), None if options.tokenizer is None else open_tokenizer(options.tokenizer))
    _note_empty(figures)
    return figures


def _sample(options: argparse.Namespace) -> dict[str, Any]:
    check_target(options.out)
    dataset = generate(options.seed, options.users, options.items)
    if options.tokenizer is not None:
        save_tokenizer(sample_tokenizer(dataset.titles.values()), options.tokenizer)
    save(dataset, options.out)
    figures = statistics(dataset)
    _note_empty(figures)
    return {"folder": str(Path(options.out)), **figures}


def _note_empty(figures: dict[str, float]) -> None:
    counts = {name: int(figures[name]) for name in SPLITS}
    for name, count in counts.items():
        if not count:
            _note(f"the split {name} is empty, it has no target at position 3 or later ({_counts(counts)})")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _note(text: str) -> None:
    print(f"patchrec-fast data: note: {text}", file=sys.stderr)


def _bar(text: str, total: int | None = None) -> Any:
    from tqdm import tqdm

    return tqdm(desc=text, total=total, unit="B", unit_scale=True, disable=None)


def _lines(result: dict[str, Any], indent: str = "") -> list[str]:
    """The result for people: one figure a line, groups indented."""
    lines = []
    width = max(map(len, result), default=0)
    for name, value in result.items():
        if isinstance(value, dict):
            lines += [f"{indent}{printable(name)}", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{printable(name):{width}}  {_shown(value)}")
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(f"{part:g}" for part in value)
    if isinstance(value, int | float):
        return f"{value:.3f}" if isinstance(value, float) else f"{value:,}"
    return printable(str(value))
