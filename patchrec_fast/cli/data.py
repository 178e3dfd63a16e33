# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast data`: download, prepare, look at and make up datasets."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from .. import __version__
from .._options import BOOK_TIMES, MOVIELENS, Articles, Parentheses, Split
from .._text import printable

if TYPE_CHECKING:
    from ..data import Rules
    from ..data.interactions import Source

EXAMPLE = """  patchrec-fast data download ml-1m --out raw
  patchrec-fast data prepare ml-1m --raw raw/ml-1m --out data/ml-1m
  patchrec-fast data stats data/ml-1m --tokenizer path/to/tokenizer
  patchrec-fast data sample --out data/sample"""

_PREPARE_EXAMPLE = """  patchrec-fast data prepare ml-100k --raw raw/ml-100k --out data/ml-100k
  patchrec-fast data prepare goodreads --raw raw/goodreads --out data/goodreads --min-user 20
  patchrec-fast data prepare table --raw log.csv --out data/mine --user customer --item sku --title name --time at
  patchrec-fast data prepare table --raw log.tsv.gz --out data/mine --titles items.csv --time-format %d.%m.%y"""
_PREPARE = """Read raw ratings, keep what the rules say (by default the paper's for that source), and write the prepared
format with a card. A table is CSV or another text with a separator, JSON lines or Parquet, one interaction a row. What
is dropped, merged or changed is counted, with examples, on stderr and in the card."""
_DOWNLOAD = """Download a MovieLens set from GroupLens, check it and unpack it to OUT/NAME. An interrupted download goes
on from where it broke off. The data are for research: no redistribution, no commercial use (see the README inside)."""

SOURCES = (*MOVIELENS, "ml-10m", "movielens", "goodreads", "table")


_ACTIONS = "The options of each: patchrec-fast data ACTION --help"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="ACTION", title="actions", description=_ACTIONS
    )
    _prepare_arguments(_action(actions, "prepare", _prepare, "raw ratings to the prepared format", _PREPARE_EXAMPLE))
    adding = _action(actions, "download", _download, "fetch MovieLens", "  patchrec-fast data download ml-1m --out raw")
    adding.description = _DOWNLOAD
    adding.add_argument("name", choices=MOVIELENS, metavar="NAME", help=", ".join(MOVIELENS))
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
    example = "  patchrec-fast data shop --out shop"
    adding = _action(actions, "shop", _shop, "invent a grocer's orders.csv and products.csv, for prepare", example)
    adding.add_argument("--out", required=True, metavar="DIR", help="gets the two files")
    adding.add_argument("--customers", type=int, default=400, metavar="N", help="default: 400")
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
    rules.add_argument("--keep-repeats", action="store_true", help="keep repeated interactions of a user with an item")
    rules.add_argument("--catalogue", choices=("all", "used"), help="titles of all items, or of those used")
    add = parser.add_argument_group("splits").add_argument
    help = "at two moments, the last two of each user, or --raw, --val and --test of a table (default: time)"
    add("--split", choices=get_args(Split), help=help)
    add("--shares", type=float, nargs=3, metavar=("TRAIN", "VAL", "TEST"), help="by time (default: 48 1 1)")
    add("--val", metavar="FILE", help="a table as --raw, whose rows are then train alone")
    add("--test", metavar="FILE", help="the same")
    titles = parser.add_argument_group("titles (default: MovieLens's without parentheses, others as they are)")
    titles.add_argument(
        "--parentheses",
        choices=get_args(Parentheses),
        help="keep them, drop all from the first one on, or all but the year",
    )
    titles.add_argument(
        "--keep-year", dest="parentheses", action="store_const", const="year", help="--parentheses year"
    )
    titles.add_argument(
        "--articles", choices=get_args(Articles), help='which to move to the front: "Postino, Il" with all'
    )
    table = parser.add_argument_group("names of a table's columns (of JSON lines: keys)")
    for name in ("user", "item", "title", "time"):
        table.add_argument(f"--{name}", default=name, metavar="COLUMN", help=f"default: {name}")
    table.add_argument("--rating", metavar="COLUMN", help="default: none")
    table = parser.add_argument_group("how a table is written (default: seen in it)")
    table.add_argument("--sep", metavar="CHAR", help="comma, semicolon, tab, pipe or another character")
    table.add_argument("--encoding", metavar="NAME", help="latin-1, cp1252, utf-16, ... (default: utf-8)")
    form = "of times, such as '%%d.%%m.%%Y %%H:%%M' (default: numbers, dates or ISO 8601)"
    table.add_argument("--time-format", metavar="FORMAT", help=form)
    table.add_argument("--titles", metavar="FILE", help="a second table, with a title for each item")
    table.add_argument("--titles-item", metavar="COLUMN", help="of the second table (default: as --item)")
    table.add_argument("--titles-title", metavar="COLUMN", help="of the second table (default: as --title)")
    goodreads = parser.add_argument_group("goodreads")
    goodreads.add_argument(
        "--date", choices=BOOK_TIMES, default=BOOK_TIMES[0], help=f"what orders books (default: {BOOK_TIMES[0]})"
    )


def _prepare(options: argparse.Namespace) -> dict[str, Any]:
    from ..data.card import write
    from ..data.folder import check_target
    from ..data.prepare import prepare
    from .tallies import sentences

    check_target(options.out)  # before hours of reading
    _check_split(options)
    source = _source(options)
    rules = _rules(options)
    read = source.files[: 3 if options.split == "files" else 1]
    with _bar(f"reading {printable(read[0].name)}", sum(file.stat().st_size for file in read)) as bar:
        prepared = prepare(source, rules, bar.update)
    card = write(prepared, options.out, name=options.source, files=source.files, version=__version__)
    for sentence in sentences(prepared.tallies, prepared.counts["read"]):
        _note(printable(sentence))
    _note_empty(card["statistics"])
    counted = {"found": {name: tally.count for name, tally in prepared.tallies.items()}}
    return card if options.json else card | counted


_OF_TABLES = ("rating", "sep", "encoding", "time_format", "titles", "titles_item", "titles_title")


def _check_split(options: argparse.Namespace) -> None:
    """Raises ValueError for flags of other splits than the one that was chosen."""
    files = options.split == "files"
    if files and options.source != "table":
        raise ValueError(f"--split: expected files only for a table, not for {options.source}")
    for name in ("val", "test"):
        if files != (getattr(options, name) is not None):
            raise ValueError(f"--{name}: expected a file {'with' if files else 'only with'} --split files")
    if options.shares is not None and options.split not in (None, "time"):
        raise ValueError(f"--shares: expected only with --split time, not with {options.split}")


def _source(options: argparse.Namespace) -> Source:
    from ..data import Columns, Goodreads, MovieLens, SplitFiles

    if options.source != "table" and (given := [name for name in _OF_TABLES if getattr(options, name) is not None]):
        raise ValueError(f"--{given[0].replace('_', '-')}: expected only for a table, not for {options.source}")
    if options.source == "goodreads":
        return Goodreads(options.raw, options.date)
    if options.source == "table":
        names = ("user", "item", "title", "time", *_OF_TABLES)
        columns = {name: getattr(options, name) for name in names}
        train, *held_out = (
            Columns(file, **columns) for file in (options.raw, options.val, options.test) if file is not None
        )
        return SplitFiles(train, *held_out) if held_out else train
    return MovieLens(options.raw)


def _rules(options: argparse.Namespace) -> Rules:
    from ..data import RULES

    names = ("above_rating", "min_user", "min_item", "counted", "untitled", "catalogue", "parentheses", "articles")
    given = {name: value for name in (*names, "split") if (value := getattr(options, name)) is not None}
    if options.keep_repeats:
        given["repeats"] = "keep"
    if options.shares is not None:
        given["shares"] = tuple(options.shares)
    return replace(RULES.get(options.source, RULES["movielens"]), **given)


def _download(options: argparse.Namespace) -> dict[str, Any]:
    from ..data import download

    with _bar(options.name) as bar:
        return {"folder": str(download(options.name, options.out, bar=bar))}


def _stats(options: argparse.Namespace) -> dict[str, Any]:
    from ..data import load, statistics
    from ..data.tables import OLDER
    from ..models import open_tokenizer

    dataset = load(options.folder)
    if dataset.item_ids.first:
        _note(OLDER)
    figures = statistics(dataset, None if options.tokenizer is None else open_tokenizer(options.tokenizer))
    _note_empty(figures)
    return figures


def _sample(options: argparse.Namespace) -> dict[str, Any]:
    from ..data import generate, sample_tokenizer, save, statistics
    from ..data.folder import check_target
    from ..data.sample import save_tokenizer

    check_target(options.out)
    dataset = generate(options.seed, options.users, options.items)
    if options.tokenizer is not None:
        save_tokenizer(sample_tokenizer(dataset.titles.values()), options.tokenizer)
    save(dataset, options.out)
    figures = statistics(dataset)
    _note_empty(figures)
    return {"folder": str(Path(options.out)), **figures}


def _shop(options: argparse.Namespace) -> dict[str, Any]:
    from ..data.shop import write_shop

    return {"files": list(map(str, write_shop(options.out, seed=options.seed, customers=options.customers)))}


def _note_empty(figures: dict[str, Any]) -> None:
    from ..data.splits import SPLITS

    counts = {name: figures[name]["samples"] for name in SPLITS}
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
