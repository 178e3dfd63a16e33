# SPDX-License-Identifier: Apache-2.0
"""A CUDA device that is the host: `install()` puts it in place for the rest of the process.

Tensors on "cuda" are real ones, in memory of their own: mixing devices raises, autograd and torch.cuda's streams,
events, graphs and memory counters work. What is launched runs at once, on the CPU. So it tells what Python does with a
device, never how fast: how often it waits, what it copies, and whether the results are the CPU's.

Not modelled: a second device; the order of streams (a launch is done when it returns, so a missing wait is not seen);
random numbers of the device's own; waits inside operators other than those that `pretend.cpp` lists.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import time
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

NAME = "NVIDIA H100, pretended"
MULTIPROCESSORS, SHARED_BYTES = 132, 227 * 1024  # the second of a program at most
ops: Any = torch.ops.pretend
_ASK_FIRST = (  # what they find in torch.cuda as they are imported must be torch's own
    "torch._dynamo",
    "torch.distributed.tensor",
    "torch.nn.attention.varlen",
    "torch.nn.attention.flex_attention",
    "transformers",
)


class Stream:
    """The order of launches, which is that of the program here."""

    made = 0

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.device, self.device_index, self.stream_id = torch.device("cuda", 0), 0, Stream.made
        Stream.made += 1

    @property
    def cuda_stream(self) -> int:
        return self.stream_id

    def wait_stream(self, other: Stream) -> None: ...

    def wait_event(self, event: Event) -> None: ...

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        ops.wait("stream.synchronize")


class Event:
    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self.time: float | None = None

    def record(self, stream: Stream | None = None) -> None:
        self.time = time.perf_counter()

    def wait(self, stream: Stream | None = None) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        ops.wait("event.synchronize")

    def elapsed_time(self, end: Event) -> float:
        if self.time is None or end.time is None:
            raise RuntimeError("Both events must be recorded before calculating elapsed time.")
        return max((end.time - self.time) * 1e3, 1e-6)


class CUDAGraph:
    """What `torch.cuda.graph` captures into; kept in order by `pretend.cpp`, what Python launches here."""

    made = 0
    under_way: CUDAGraph | None = None

    def __init__(self, keep_graph: bool = False) -> None:
        CUDAGraph.made += 1
        self._number, self._launches = CUDAGraph.made, list[Callable[[], object]]()
        self.replays = 0
        weakref.finalize(self, ops.drop, self._number)

    def capture_begin(self, *pool: Any, **_: Any) -> None:
        ops.capture_begin(self._number)
        CUDAGraph.under_way, self._launches = self, []

    def capture_end(self) -> None:
        CUDAGraph.under_way = None
        ops.capture_end()

    def replay(self) -> None:
        ops.launched("graph")
        self.replays, at = self.replays + 1, 0
        for launch in (*self._launches, None):
            at = ops.replay(self._number, at)
            if launch is not None:
                launch()

    def launched(self, function: Callable[[], object], tensors: list[Tensor]) -> None:
        """Keeps what Python launches while this is captured, with the tensors that it may write."""
        ops.mark(tensors)
        self._launches.append(function)

    def pool(self) -> tuple[int, int]:
        return 0, 0

    def reset(self) -> None:
        ops.drop(self._number)


def launch(name: str, function: Callable[[], object], tensors: list[Tensor]) -> None:
    """Runs what a kernel does, and runs it again with a graph that captures it now. It may write these tensors."""
    ops.launched(name)
    if CUDAGraph.under_way is not None:
        CUDAGraph.under_way.launched(function, tensors)
    function()


def host(x: Any) -> Any:
    """A tensor's memory as a CPU tensor, for who runs a kernel's work; anything else as it is."""
    return ops.host(x.detach()) if isinstance(x, Tensor) else x


def counts() -> dict[str, int]:
    """Since `reset`: launches, also by name; allocations; "copy to the device", "copy to the host"; "wait: ..."."""
    return dict(ops.counts())


def waits() -> dict[str, int]:
    """How often the host waited for the device since `reset`, by what made it wait."""
    return {name.removeprefix("wait: "): times for name, times in counts().items() if name.startswith("wait: ")}


def reset() -> None:
    ops.reset_counts()


@contextlib.contextmanager
def memory_of(more: int) -> Iterator[None]:
    """Inside, the device has room for so many more bytes."""
    allocated, _, limit = ops.memory()
    ops.set_limit(allocated + more)
    try:
        yield
    finally:
        ops.set_limit(limit)


def install() -> None:
    """For the rest of the process, which has `pretend.cpp` in it already."""
    for name in _ASK_FIRST:
        importlib.import_module(name)
    _torch_cuda()
    _profiler()
    _copies()


def _torch_cuda() -> None:
    current = [Stream()]
    modes = {"default": 0, "warn": 1, "error": 2}
    properties = SimpleNamespace(
        name=NAME,
        major=9,
        minor=0,
        total_memory=80 << 30,
        multi_processor_count=MULTIPROCESSORS,
        warp_size=32,
        L2_cache_size=50 << 20,
        shared_memory_per_block_optin=SHARED_BYTES,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        gcnArchName="",
        uuid="pretended",
    )

    def always(value: Any) -> Callable[..., Any]:
        return lambda *args, **options: value

    def synchronize(device: Any = None) -> None:
        ops.wait("synchronize")

    def set_stream(stream: Stream | None) -> None:
        current[0] = stream or current[0]

    def set_sync_debug_mode(mode: int | str) -> None:
        ops.set_sync_mode(modes[mode] if isinstance(mode, str) else mode)

    nothing, no_state = always(None), torch.zeros(16, dtype=torch.uint8)
    parts = {
        **dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported"), always(True)),
        **dict.fromkeys(("current_device", "_exchange_device", "_maybe_exchange_device"), always(0)),
        **dict.fromkeys(("_lazy_init", "set_device", "empty_cache", "ipc_collect", "_sleep"), nothing),
        **dict.fromkeys(("manual_seed", "manual_seed_all", "set_rng_state", "set_rng_state_all"), nothing),
        **dict.fromkeys(("memory_allocated", "memory_reserved"), lambda device=None: ops.memory()[0]),
        **dict.fromkeys(("max_memory_allocated", "max_memory_reserved"), lambda device=None: ops.memory()[1]),
        "reset_peak_memory_stats": lambda device=None: ops.reset_peak(),
        "mem_get_info": lambda device=None: (ops.memory()[2] - ops.memory()[0], ops.memory()[2]),
        "memory_stats": always({}),
        "get_rng_state": always(no_state),
        "get_rng_state_all": always([no_state]),
        "device_count": always(1),
        "_is_in_bad_fork": always(False),
        "get_device_name": always(NAME),
        "get_device_capability": always((9, 0)),
        "get_device_properties": always(properties),
        "get_arch_list": always(["sm_90"]),
        "graph_pool_handle": always((0, 0)),
        "synchronize": synchronize,
        "set_sync_debug_mode": set_sync_debug_mode,
        "current_stream": lambda device=None: current[0],
        "default_stream": always(current[0]),
        "set_stream": set_stream,
        "is_current_stream_capturing": lambda: ops.capturing(),
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": CUDAGraph,
    }
    for name, part in parts.items():
        setattr(torch.cuda, name, part)
    for name in ("get_rng_state", "get_rng_state_all", "set_rng_state", "set_rng_state_all"):
        setattr(torch.cuda.random, name, parts[name])
    for name in ("range_push", "range_pop"):
        setattr(torch.cuda.nvtx, name, always(0))
    torch.cuda.nvtx.range = lambda *args, **options: contextlib.nullcontext()
    torch._C._host_emptyCache = nothing
    torch._C._cuda_getCurrentRawStream = always(0)
    accelerator = {
        "is_available": always(True),
        "current_accelerator": always(torch.device("cuda")),
        "device_count": always(1),
        "current_device_index": always(0),
        "set_device_index": nothing,
        "synchronize": synchronize,
    }
    for name, part in accelerator.items():
        setattr(torch.accelerator, name, part)


def _profiler() -> None:
    """Without the device's side, which asks a driver."""
    import torch.profiler

    profile, activity = torch.profiler.profile, torch.profiler.ProfilerActivity

    @functools.wraps(profile, updated=())
    def on_the_host(*, activities: Any = None, **options: Any) -> Any:
        kept = None if activities is None else [each for each in activities if each != activity.CUDA]
        return profile(activities=kept, **options)

    torch.profiler.profile = on_the_host


def _copies() -> None:
    """A tensor is copied by way of a storage that only another build of torch makes."""
    theirs = Tensor.__deepcopy__

    def deepcopy(x: Tensor, memo: dict[int, Any]) -> Tensor:
        if not x.is_cuda or not x.is_leaf:
            return theirs(x, memo)
        if id(x) not in memo:
            memo[id(x)] = x.detach().clone().requires_grad_(x.requires_grad)
        return memo[id(x)]

    Tensor.__deepcopy__ = deepcopy
