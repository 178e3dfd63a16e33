# SPDX-License-Identifier: Apache-2.0
"""Functions that do the same launches each time, as CUDA graphs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch

_WARM = 2  # runs before the capture: kernels are compiled and chosen, workspaces allocated


class CudaGraph:
    """Runs one function, which takes and gives nothing and whose tensors stay where they are.

    On CUDA it runs as it is twice, on a stream of its own as captures ask for, and is then captured and replayed. On
    another device it runs as it is.
    """

    def __init__(self, stream: torch.cuda.Stream | None, pool: Any = None, required: bool = False) -> None:
        """Set up.

        Args:
            stream: of runs that are no replays, and of the capture; None where there is no CUDA.
            pool: of the memory that the graph takes; others of the same pool may write over what it leaves there.
            required: what cannot be captured raises; else it runs as it is, with a warning.
        """
        self._stream, self._pool = stream, pool
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
            with torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
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


class CudaGraphs(dict[Hashable, CudaGraph]):
    """A graph for each of several functions that run one after another: all in one pool of memory."""

    def __init__(self, device: torch.device, required: bool = False) -> None:
        """Set up, empty; `required` as of `CudaGraph`."""
        super().__init__()
        on_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_cuda else None
        self._pool, self._required = torch.cuda.graph_pool_handle() if on_cuda else None, required

    def __missing__(self, key: Hashable) -> CudaGraph:
        """A new one, for a function that has not run."""
        self[key] = CudaGraph(self._stream, self._pool, self._required)
        return self[key]
