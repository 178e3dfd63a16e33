# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast profile`."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _files
from .._options import INSTRUCTION, LONG, SAMPLE
from ..models.shapes import SHAPES
from .folders import folder
from .models import (
    add_data_argument,
    add_device_arguments,
    add_prompt_arguments,
    device,
    overridden,
    placed,
    tell,
)
from .numbers import whole
from .search import METHODS

if TYPE_CHECKING:
    from ..data import Dataset
    from ..evaluation.profile import Profile, Profiler
    from ..layout.config import PromptConfig

EXAMPLE = """  patchrec-fast profile --data sample --shape tiny --users 3 --out runs/profile
  patchrec-fast profile --data path/to/ml-1m --shape llama-1b --tokenizer path/to/Llama-3.2-1B --out runs/profile"""
JSON = "profile.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", type=folder(), metavar="DIR", help="a folder of a Hugging Face causal language model")
    model.add_argument("--shape", choices=SHAPES, help="a model of random weights")
    add_data_argument(parser)
    add_device_arguments(parser)
    add_prompt_arguments(parser)
    add = parser.add_argument
    add(
        "--tokenizer",
        type=folder(SAMPLE),
        metavar="DIR",
        help=f'for --shape: a folder, or "{SAMPLE}" for a small one trained on the titles (default: with --data '
        f"{SAMPLE}, that)",
    )
    add("--out", required=True, help="folder for profile.csv, growth.csv, growth.png and profile.json")
    add(
        "--more-than",
        type=whole(0),
        metavar="N",
        help=f"users with more interactions than this (default: {LONG}; of data without any, the ten longest)",
    )
    add("--users", type=whole(1), metavar="N", help="only the N longest of them")
    add(
        "--lengths",
        type=whole(1),
        nargs="+",
        metavar="N",
        help="history lengths of the growth table (default: by the longest)",
    )
    add("--batch-size", type=whole(1), default=1, metavar="N", help="users decoded at once (default: 1)")
    add("--k", type=whole(1), default=20, help="how many titles (default: 20)")
    add("--method", default="beam", choices=METHODS, help="how titles are searched (default: beam)")
    add("--trace", metavar="FILE", help="also a torch.profiler trace of the longest user under each policy")
    add("--json", action="store_true", help="print a line of JSON instead of tables")


def run(options: argparse.Namespace) -> int:
    from ..evaluation.profile import Setting, growth_for, lengths_for, long_histories, plot, settings_for, to_csv
    from ..train.start import open_data

    out = Path(options.out)
    settings, own = _settings(options)
    dataset = open_data(options.data)
    histories = long_histories(dataset, options.more_than, options.users)
    longest = len(histories[0])
    lengths = options.lengths or lengths_for(longest)
    if max(lengths) > longest:
        raise ValueError(f"--lengths: expected at most {longest}, the items of the longest history, got {max(lengths)}")
    for file in [out / JSON, *([Path(options.trace)] if options.trace else [])]:
        _check_place(file)
    profiler = _profiler(options, dataset, settings)
    compare, grow = settings_for(longest), growth_for(longest)
    if own:
        tell(settings.policy, settings.max_items, settings.step)
        mine = Setting("own prompt", settings.policy, settings.max_items)
        compare, grow = (mine, *compare), (mine, *grow)
    compared = _shown(profiler.compare(histories, compare, options.batch_size), quiet=options.json)
    growth = _shown(profiler.grow(histories[0], lengths, grow), quiet=options.json)
    prompt = settings.to_dict()
    content = json.dumps({"prompt": prompt, "compared": _plain(compared), "growth": _plain(growth), "k": options.k})
    if options.json:  # first: a full disk takes the files, not what was measured
        print(content, flush=True)
    _files.write(out / JSON, content + "\n")
    _files.write(out / "profile.csv", to_csv(compared))
    _files.write(out / "growth.csv", to_csv(growth))
    plot(growth, out / "growth.png")
    if options.trace:
        profiler.trace(histories[0], options.trace, compare)
    return 0


def _settings(options: argparse.Namespace) -> tuple[PromptConfig, bool]:
    """The prompts of the model, with the flags; and whether a policy of its own is to be measured too."""
    from ..layout.config import FILE, PromptConfig

    trained = options.model is not None and (Path(options.model) / FILE).is_file()
    settings = PromptConfig.load(options.model) if trained else PromptConfig(INSTRUCTION, max_items=None)
    changed = overridden(settings, options)
    return changed, trained or changed != settings


def _check_place(file: Path) -> None:
    """An error now, and not after all was measured, where a file cannot be written."""
    if file.is_dir():
        raise ValueError(f"{file}: a folder, expected a file or none")
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=file.parent):
        pass


def _profiler(options: argparse.Namespace, dataset: Dataset, settings: PromptConfig) -> Profiler:
    import torch

    from ..evaluation.profile import Profiler
    from ..layout import Catalogue
    from ..layout.config import FILE
    from ..models import fit_vocabulary, open_model, open_trained, random_model, tokenizer_for

    place = device(options.device)
    if options.model is not None:
        if options.tokenizer is not None:
            raise ValueError("--tokenizer: --model has its own, expected none")
        trained = (Path(options.model) / FILE).is_file()
        model, tokenizer = (open_trained if trained else open_model)(options.model, options.dtype or "auto")
        prompt = settings.prompt(tokenizer)
        fit_vocabulary(model, prompt)
    else:
        name = options.tokenizer or (SAMPLE if options.data == SAMPLE else None)
        if name is None:
            raise ValueError("--tokenizer: expected a folder, since --shape has none")
        tokenizer = tokenizer_for(name, dataset.titles)
        prompt = settings.prompt(tokenizer)
        dtype = getattr(torch, options.dtype or ("float32" if place.type == "cpu" else "bfloat16"))
        model = random_model(options.shape, prompt.num_embeddings, dtype, place)
    catalogue = Catalogue.from_titles(dataset.titles, tokenizer)
    return Profiler(placed(model, options), catalogue, prompt, options.k, options.method)


def _shown(profiles: Iterable[Profile], quiet: bool) -> list[Profile]:
    """All of them, each printed as it comes."""
    found: list[Profile] = []
    for profile in profiles:
        if not found and not quiet:
            print(f"{'':20}{'items':>7}{'rows':>8}{'pack':>9}{'prompt':>10}{'decode':>10} ms{'peak':>8} MiB")
        found.append(profile)
        if not quiet:
            print(
                f"{profile.setting:20}{profile.items:7.0f}{profile.rows:8.0f}{profile.pack_ms:9.2f}"
                f"{profile.prompt_ms:10.2f}{profile.decode_ms:10.2f}   {profile.peak_mib:8.0f}"
            )
    return found


def _plain(profiles: Iterable[Profile]) -> list[dict[str, Any]]:
    return [profile._asdict() for profile in profiles]
