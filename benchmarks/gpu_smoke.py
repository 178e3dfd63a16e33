# SPDX-License-Identifier: Apache-2.0
"""Whether a GPU computes what it should, and what it can do at most: `python -m benchmarks.gpu_smoke [--out DIR]`.

The first thing to run on a new device, in some two minutes: a line a check, each on its own. First correctness
(`gpu_checks`; `error` is the largest error over what rounding allows, at most 1), then the few times by which other
figures are read: a product with the head's weight whose rows are aligned and not, the log-sum-exp of its logits against
their bytes, and a node of a CUDA graph.

`--tiny` is the kernels alone on small inputs, for `compute-sanitizer --tool memcheck python -m benchmarks.gpu_smoke
--tiny`. `--device cpu --tiny` tries what can be tried without a GPU.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from patchrec_fast import info
from patchrec_fast.ops.log_sum_exp import log_sum_exp

from . import device, gpu, gpu_checks
from .gpu import Bench, Part
from .peers import OURS
from .results import Row
from .source import load

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_WIDTHS = (40, 2048, 4096)
_TREES: dict[str, dict[str, int | float]] = {
    "bf16/64": {"d": 64},
    "bf16/128": {"d": 128},
    "bf16/256": {"d": 256},
    "bf16/window": {"d": 64, "window": 20},
    "bf16/softcap": {"d": 128, "window": 30, "softcap": 2.0},
    "fp16/64": {"d": 64},
    "fp32/64": {"d": 64},
    "fp32/128": {"d": 128},
}
_SPLITS = (1, 2, 8, 32)
_ROWS = 320  # of a step of 16 users and 20 beams
_WIDTH = 2048  # Llama-3.2-1B's
_VOCABULARIES = {"odd": 128_259, "aligned": 128_320}
_NODES = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu_smoke", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="the kernels alone, on small inputs")
    gpu.arguments(parser, minutes=2.5)
    options = parser.parse_args(arguments)
    if gpu.missing(parser, options):
        return 2
    bench = Bench("smoke", options, peaks=not options.tiny)
    return bench.run([Part(part.name, partial(named, part)) for part in parts(bench, options.device, options.tiny)])


def named(part: Part) -> Iterator[Row]:
    """The part's rows, whose setting is its name."""
    for row in part.measure():
        yield {"setting": part.name, **row}


def parts(bench: Bench, place: str, tiny: bool) -> list[Part]:
    """The checks, the most telling first."""
    on_gpu, rows = place == "cuda", 20 if tiny else 300
    found = [Part("versions", partial(versions, bench))]
    found += [
        Part(f"compress/{name}/{d}", partial(gpu_checks.compress_modes, place, dtype, d, rows))
        for name, dtype in _DTYPES.items()
        for d in (_WIDTHS[:2] if tiny else _WIDTHS)
    ]
    for name, rules in _TREES.items():
        dtype = _DTYPES[name.split("/")[0]]
        found.append(Part(f"tree/{name}", partial(gpu_checks.trees, place, dtype, **rules)))  # type: ignore[arg-type]
    if on_gpu:
        for splits in _SPLITS:
            made = partial(gpu_checks.trees, place, torch.bfloat16, 64, splits)
            found.append(Part(f"tree/splits/{splits}", made))
    for name, dtype in _DTYPES.items():
        for softcap in (None, 30.0):
            checked = partial(gpu_checks.log_sums, place, dtype, softcap)
            found.append(Part(f"log-sum-exp/{name}/{'plain' if softcap is None else 'capped'}", checked))
    for window in (None, 20):
        made_ = partial(gpu_checks.varlen, place, torch.bfloat16, 64, window)
        found.append(Part(f"varlen/{'causal' if window is None else 'window'}", made_))
    if tiny:
        return found
    found.append(Part("varlen/wide", partial(gpu_checks.varlen, place, torch.bfloat16, 128, 20)))
    source = load("ml-1m", None, None)
    for name, share in (("packed", False), ("shared", True)):
        found.append(Part(f"step/{name}", partial(gpu_checks.step, place, source, share)))
    found.append(Part("beams", partial(gpu_checks.beams, place, source)))
    if on_gpu:
        found.append(Part("waiting-model", partial(gpu_checks.waiting_model, place, source)))
        found.append(Part("compress/large", partial(gpu_checks.compress_large, place)))
    found.append(Part("ceilings", partial(ceilings, bench)))
    found += [Part(f"head/{name}", partial(head, place, size)) for name, size in _VOCABULARIES.items()]
    found.append(Part("logsumexp", partial(logsumexp, bench)))
    return [*found, Part("graph-node", partial(graph_node, place))] if on_gpu else found


def versions(bench: Bench) -> Iterator[Row]:
    """What is installed, and which backend serves which operator."""
    report = info.report()
    print(report)
    bench.note("versions", report)
    yield {"contestant": "patchrec_fast.info"}


def ceilings(bench: Bench) -> Iterator[Row]:
    """What the device was measured to do at most, which all rows have beside them."""
    yield {"contestant": "copy", "gb_s": bench.facts["copy_gb_s"]}
    yield {"contestant": "bfloat16 product of squares", "tflops": bench.facts["matmul_tflops"], "dtype": "bf16"}


def head(place: str, vocabulary: int) -> Iterator[Row]:
    """The product of a decode step's rows with the head's weight, logits in bfloat16."""
    rows, width = (_ROWS, _WIDTH) if place == "cuda" else (8, 16)
    hidden = torch.randn(rows, width, device=place, dtype=torch.bfloat16)
    weight = torch.randn(vocabulary, width, device=place, dtype=torch.bfloat16)
    seconds = device.median_seconds(lambda: torch.nn.functional.linear(hidden, weight), place)
    moved = weight.nbytes + hidden.nbytes + 2 * rows * vocabulary
    rates = {
        "tflops": round(2 * rows * width * vocabulary / seconds / 1e12, 2),
        "gb_s": round(moved / seconds / 1e9, 1),
    }
    about: Row = {"rows": rows, "vocabulary": vocabulary, "dtype": "bf16", "contestant": "torch linear"}
    yield {**about, "median_ms": round(seconds * 1e3, 4), **rates}


def logsumexp(bench: Bench) -> Iterator[Row]:
    """Of a decode step's bfloat16 logits; `floor_ms` is to read them once, as fast as the device copies."""
    rows, vocabulary = (_ROWS if bench.device == "cuda" else 8), _VOCABULARIES["aligned"]
    logits = torch.randn(rows, vocabulary, device=bench.device).bfloat16()
    peak = float(bench.facts["copy_gb_s"])
    about: Row = {"rows": rows, "vocabulary": vocabulary, "dtype": "bf16"}
    calls = {OURS: lambda: log_sum_exp(logits), "torch logsumexp": lambda: logits.float().logsumexp(1)}
    for name, call in calls.items():
        seconds = device.median_seconds(call, bench.device)
        rate = logits.nbytes / seconds / 1e9
        told: Row = {"gb_s": round(rate, 1), "ceiling_share": round(rate / peak, 3)}
        told["floor_ms"] = round(logits.nbytes / peak / 1e6, 4)
        yield {**about, "contestant": name, "median_ms": round(seconds * 1e3, 4), **told}


def graph_node(place: str) -> Iterator[Row]:
    """A replay of so many nodes that do next to nothing, each behind the last, over their number; and launched."""
    x = torch.zeros(1, device=place)

    def nodes() -> None:
        for _ in range(_NODES):
            x.add_(1)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        nodes()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        nodes()
    for name, call in (("CUDA graph", graph.replay), ("launched from Python", nodes)):
        milliseconds = device.wall_ms(lambda round_, call=call: call(), place) / _NODES  # type: ignore[misc]
        yield {"contestant": name, "rows": _NODES, "median_ms": float(f"{milliseconds:.4g}")}


if __name__ == "__main__":
    sys.exit(main())
