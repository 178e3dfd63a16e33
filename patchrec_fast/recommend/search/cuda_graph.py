# SPDX-License-Identifier: Apache-2.0
"""Functions that do the same launches each time, as CUDA graphs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable

import torch


class CudaGraphs:
    """Runs functions that take and give nothing and whose tensors stay where they are, one after another.

    On CUDA each runs as it is once, on a stream of its own as captures ask for: kernels are compiled and chosen,
    workspaces allocated. At its second run it is captured, and from then on replayed. What the graphs need besides is
    in one pool of memory, where one may write over what another has left. On another device functions run as they are.
    """

    def __init__(self, device: torch.device, required: bool = False) -> None:
        """Set up.

        Args:
            required: what cannot be captured raises; else all run as they are from then on, with a warning.
        """
        on_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_cuda else None
        self._pool = torch.cuda.graph_pool_handle() if on_cuda else None
        self._required, self._capture = required, True
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}  # None of a function that ran once

    def __call__(self, key: Hashable, function: Callable[[], None]) -> None:
        """Runs a function once; the same one each time for a key."""
        if self._stream is None:
            function()
            return
        if key in self._graphs and self._graphs[key] is None and self._capture:
            self._graphs[key] = self._captured(function, self._stream)
        graph = self._graphs.setdefault(key, None)
        if graph is None:
            self._aside(function, self._stream)
        else:
            graph.replay()

    def _captured(self, function: Callable[[], None], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph | None:
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream(stream.device)
        try:
            # What other threads do (a server's, a loader that pins memory) is no part of it and no error.
            with torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
                function()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._capture = False
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
