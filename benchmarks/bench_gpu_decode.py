# SPDX-License-Identifier: Apache-2.0
"""Recommending on a GPU: `python -m benchmarks.bench_gpu_decode [--out DIR]`.

First, in float32 and with a small model, that all ways give the same titles: steps as a CUDA graph, steps from Python,
transformers' beam search, and for "diverse" the released protocol. Then wall times in bfloat16 with a Llama of random
weights, 20 beams: users of ML-1M with 100 items, and the paper's Figure 8, its longest users; and what serving engines
for semantic ids publish, one user of 1,000 tokens and 256 beams over three steps of a model of 1.7B, whose published
figure stands beside ours as a quotation. A part is a setting and a search: "beam" stands against transformers' beam
search, "diverse" against the released protocol. Each row of ours has the time by part of a call and how often the host
waits for the device; a profile shows where the time goes.

The head of the model has 128,320 rows, as for training (`bench_gpu_train`), whatever the tokenizer: the generated
sample's has a small vocabulary, which alone would make the head cost next to nothing. Its titles have other lengths
than ML-1M's, so for figures that mean something give --data and --tokenizer. `--device cpu --model tiny --users 1
--vocabulary 3000` tries the script.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch

from patchrec_fast import Packer, Recommender
from patchrec_fast.evaluation.profile import SETTINGS, Setting, long_histories
from patchrec_fast.models import SHAPES, random_model
from patchrec_fast.recommend.engine import PARTS
from patchrec_fast.recommend.recommender import Method

from . import bench_decode, device, gpu, harness, semantic_ids
from .bench_decode import BEAMS, ITEMS, POLICIES, histories_of
from .bench_gpu_train import OUT_OF_MEMORY, VOCABULARY, check_vocabulary, timing_row
from .gpu import Bench, Part
from .peers import OURS, decode_generate, decode_released
from .results import Row
from .source import Source, load

SEMANTIC_BEAMS, SEMANTIC_ROWS = 256, 1000
NAMES = {"Text()": "text", "SessionPatches(5)": "pft-s"} | {
    "text, 150 items": "long-text-150",
    "PFT-I, 350 items": "long-pft-i-350",
    "PFT-S, all items": "long-pft-s-all",
    "text, all items": "long-text-all",
}
ORDER = ("pft-s", "text", "long-pft-s-all", "long-text-150", "long-pft-i-350")  # the most telling first
WITHOUT_PEERS = "long-text-all"  # 20 prompts of 6,500 rows each


class Asked(NamedTuple):
    """A model, whom it is asked about, and how wide it searches."""

    model: Any
    packer: Packer
    histories: list[list[int]]
    beams: int


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.bench_gpu_decode", description=__doc__)
    parser.add_argument("--data", help="folder with ml-1m; default: the generated sample")
    parser.add_argument("--tokenizer", help="folder of the Llama-3 tokenizer; needed with --data")
    parser.add_argument("--model", choices=SHAPES, default="llama-1b")
    parser.add_argument("--semantic-model", choices=SHAPES, default="1.7b", help="of the part semantic-ids")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY, help="rows of the head")
    parser.add_argument("--users", type=int, default=16, help="at once, of 100 items")
    parser.add_argument("--long-users", type=int, default=4, help="at once, of Figure 8")
    parser.add_argument("--rounds", type=int, default=5)
    gpu.arguments(parser, minutes=5)
    options = parser.parse_args(arguments)
    if gpu.missing(parser, options):
        return 2
    source = load("ml-1m", options.data, options.tokenizer)
    check_vocabulary(parser, options.vocabulary, source)
    bench = Bench("decode", options, data=source.label, dtype="bf16")
    place = torch.device(options.device)
    model = cache(lambda: random_model(options.model, options.vocabulary, torch.bfloat16, place))
    newest = histories_of(source, options.users)
    longest = [each.tolist() for each in long_histories(source.dataset, more_than=ITEMS, limit=options.long_users)]
    hundred = [Setting(name, policy, ITEMS) for name, policy in POLICIES.items()]
    known = {NAMES[each.name]: (each, newest) for each in hundred}
    known |= {NAMES[each.name]: (each, longest) for each in SETTINGS}

    def asked(name: str) -> Asked:
        setting, histories = known[name]
        packer = Packer(source.catalogue, source.prompt, setting.policy, setting.max_items)
        return Asked(model(), packer, histories, BEAMS)

    def setting(name: str, method: Method, peers: bool = True) -> Iterator[Row]:
        about: Row = {"setting": name, "model": options.model, "vocabulary": options.vocabulary}
        for row in measure(bench, asked(name), method, peers):
            yield about | row

    parts = [Part("agree", partial(agree, source, newest[:2], options.device))]
    parts += [Part(f"{name}/beam", partial(setting, name, "beam")) for name in ORDER[:2]]
    parts += [Part("semantic-ids/beam", partial(semantic, bench, options.semantic_model))]
    parts += [Part(f"{name}/beam", partial(setting, name, "beam")) for name in ORDER[2:]]
    parts += [Part(f"{WITHOUT_PEERS}/beam", partial(setting, WITHOUT_PEERS, "beam", peers=False))]
    parts += [Part(f"{name}/diverse", partial(setting, name, "diverse")) for name in ORDER]
    return bench.run(parts)


def agree(source: Source, histories: list[list[int]], place: str) -> Iterator[Row]:
    """A row for each way that gives the titles and scores of the others.

    Raises:
        AssertionError: other titles or scores.
    """
    model = bench_decode.tiny(source.prompt.num_embeddings).to(place)
    for name, policy in POLICIES.items():
        rec = Recommender(model, Packer(source.catalogue, source.prompt, policy, ITEMS))
        about: Row = {"setting": NAMES[name], "mode": "agree", "dtype": "fp32", "users": len(histories)}
        grown = rec.recommend(histories, BEAMS, beams=BEAMS, cuda_graphs=False)
        bench_decode.check(grown, decode_generate.decode(model, rec.packer, histories, BEAMS))
        yield {**about, "contestant": "transformers generate"}
        diverse = rec.recommend(histories, BEAMS, "diverse", beams=BEAMS)
        bench_decode.check(diverse, decode_released.decode(model, rec.packer, histories, BEAMS))
        yield {**about, "contestant": "released protocol"}
        if place == "cuda":
            graphed = rec.recommend(histories * 3, BEAMS, beams=BEAMS, cuda_graphs=True, batch_size=2)
            for first in range(0, 3 * len(histories), len(histories)):
                part = slice(first, first + len(histories))
                assert graphed.items[part].tolist() == grown.items.tolist(), "other titles with a CUDA graph"
                assert abs(graphed.scores[part] - grown.scores).max() < 1e-3, "other scores with a CUDA graph"
            yield {**about, "contestant": f"{OURS} beam"}


def semantic(bench: Bench, shape: str) -> Iterator[Row]:
    """Ours, and the figure that was published."""
    packer, history = semantic_ids.packer_and_history(SEMANTIC_ROWS)
    model = random_model(shape, semantic_ids.VOCABULARY, torch.bfloat16, torch.device(bench.device))
    about: Row = {"setting": "semantic-ids", "model": shape, "data": "random semantic ids"}
    about |= {"vocabulary": semantic_ids.VOCABULARY}
    for row in measure(bench, Asked(model, packer, [history], SEMANTIC_BEAMS), "beam", peers=False):
        yield about | row
    known = semantic_ids.PUBLISHED
    about |= {"mode": "beam", "users": 1, "beams": SEMANTIC_BEAMS, "rows": SEMANTIC_ROWS}
    elsewhere = dict.fromkeys(("machine", "cpu", "torch", "gpu_gb", "driver", "triton", "transformers"), "")
    about |= {**elsewhere, "gpu": known.gpu, "matmul_tflops": gpu.NAN, "copy_gb_s": gpu.NAN}
    yield about | {"contestant": known.contestant, "median_ms": known.milliseconds, "status": known.status}


def measure(bench: Bench, asked: Asked, method: Method, peers: bool) -> Iterator[Row]:
    """A row for each contestant; times of those that fit the memory."""
    rec = Recommender(asked.model, asked.packer)
    with rec.engine():
        calls = contestants(rec, asked, method, bench.device, peers)
        peaks = {name: device.peak_megabytes(partial(call, 0), bench.device) for name, call in calls.items()}
        ours, peer = [name for name in calls if name.startswith(OURS)], list(calls)[-1]
        timed = {name: call for name, call in calls.items() if peaks[name] is not None}
        limits: dict[str, Any] = {"min_rounds": 1, "max_rounds": bench.options.rounds, "budget": 20.0}
        found = harness.measure(timed, sampler=device.wall_sampler(bench.device), **limits)
        ratios = harness.ratios(found, [peer] if peers else [])
        timings = {each.name: each for each in found}
        for name in calls:
            row: Row = {"mode": method, "users": len(asked.histories), "beams": asked.beams, "contestant": name}
            if name not in timings:
                yield row | {"status": OUT_OF_MEMORY}
                continue
            row |= timing_row(timings[name], ratios[name]) | {"peak_mb": round(peaks[name] or 0)}
            yield row | (costs(calls[name], bench.device) if name in ours else {})
        if ours[0] in timed:
            title = f"{asked.packer.policy}, {len(asked.histories)} users, {ours[0]}"
            bench.note(title, device.profile(timed[ours[0]], bench.device, 1))


def costs(call: harness.Call, place: str) -> Row:
    """The waits of a call of ours, and of another the milliseconds by its parts, and the rows of its prompts."""
    syncs, made = device.waits(call, place), call(0)
    by_part = {f"{part}_ms": round(1e3 * made.seconds[part], 3) for part in PARTS}  # type: ignore[attr-defined]
    return {"syncs": syncs, "rows": made.rows, **by_part}  # type: ignore[attr-defined]


def contestants(rec: Recommender, asked: Asked, method: Method, place: str, peers: bool) -> dict[str, harness.Call]:
    """By name: ours, the fastest first, and the peer last."""
    histories, beams = asked.histories, asked.beams

    def ours(**keywords: Any) -> harness.Call:
        return lambda round_: rec.recommend(
            histories, beams, method, beams=beams, batch_size=len(histories), **keywords
        )

    if method == "diverse":
        calls = {f"{OURS} diverse": ours()}
    else:
        calls = {f"{OURS} beam": ours(cuda_graphs=True)} if place == "cuda" else {}
        calls[f"{OURS} beam, no graph"] = ours(cuda_graphs=False)
    name, peer = bench_decode.PEERS[method]
    if peers:
        calls[name] = lambda round_: peer(rec.model, rec.packer, histories, beams)
    return calls


if __name__ == "__main__":
    sys.exit(main())
