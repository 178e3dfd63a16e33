# SPDX-License-Identifier: Apache-2.0
"""A function that does the same launches each time, as a CUDA graph; and what it says, heard without waiting for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

_WARM = 2  # runs before the capture: kernels are compiled and chosen, workspaces allocated


class CudaGraph:
    """Runs one function, which takes and gives nothing and whose tensors stay where they are.

    On CUDA it runs as it is twice, on a stream of its own as captures ask for, and is then captured and replayed. On
    another device it runs as it is.
    """

    def __init__(self, device: torch.device, required: bool = False) -> None:
        """Set up.

        Args:
            required: what cannot be captured raises; else it runs as it is, with a warning.
        """
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._required, self._runs = required, 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, function: Callable[[], None]) -> None:
        """Runs it once; the same function each time."""
        if self._stream is None:
            function()
            return
        if self._runs == _WARM:
            self._graph = self._captured(function, self._stream)
        if self._graph is None:
            self._aside(function, self._stream)
        else:
            self._graph.replay()
        self._runs += 1

    def _captured(self, function: Callable[[], None], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph | None:
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream(stream.device)
        try:
            # What other threads do (a server's, a loader that pins memory) is no part of it and no error.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                function()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = f"the model's step cannot be captured as a CUDA graph: {error}"
            if self._required:
                raise RuntimeError(f"cuda_graphs=True: {reason}") from error
            warnings.warn(f"{reason}; it is launched from Python", stacklevel=2)
            return None
        finally:
            torch.cuda.set_stream(here)  # up to torch 2.13 a capture that fails leaves its own stream the current one
        return graph

    def _aside(self, function: Callable[[], None], stream: torch.cuda.Stream) -> None:
        here = torch.cuda.current_stream(stream.device)
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            function()
        here.wait_stream(stream)


class LaggedFlag:
    """Whether a flag was set, one run late: the device has a run in its queue while the host waits for the last."""

    def __init__(self, flag: Tensor) -> None:
        """Set up; `flag` is () bool, written anew by each run."""
        self._flag = flag
        self._last: tuple[Tensor, torch.cuda.Event] | None = None

    def previous(self) -> bool:
        """After each run: what the flag was after the run before it, True after the first. On a CPU, what it is."""
        if self._flag.device.type != "cuda":
            return bool(self._flag)
        last = self._last
        copy, event = torch.empty((), dtype=torch.bool, pin_memory=True), torch.cuda.Event()
        copy.copy_(self._flag, non_blocking=True)
        event.record(torch.cuda.current_stream(self._flag.device))
        self._last = copy, event
        if last is None:
            return True
        last[1].synchronize()
        return bool(last[0])
