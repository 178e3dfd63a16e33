# SPDX-License-Identifier: Apache-2.0
"""Who sees whom in a forest of segments, as a predicate of two rows."""

from collections.abc import Callable

import torch
from torch import Tensor

from .segments import Segments


def sees(segments: Segments, window: int | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of the numbers of the query's row and of the key's row, integers of any shapes that broadcast.

    A query sees a key if that lies in the range that the query's segment sees at the depth of the key's segment, not
    after the query and, by position, inside the window. Everything is looked up, so a compiler can take it in.
    """
    depths, ranges = segments.ranges()
    counts = segments.cu_seqlens.diff()
    rows = segments.position_ids.shape[0]
    owner = torch.repeat_interleave(torch.arange(len(segments), device=counts.device), counts, output_size=rows)
    depth, position = depths[owner], segments.position_ids

    def predicate(query: Tensor, key: Tensor) -> Tensor:
        segment, at = owner[query], depth[key]
        seen = (key <= query) & (key >= ranges[segment, at, 0]) & (key < ranges[segment, at, 1])
        return seen if window is None else seen & (position[query] - position[key] < window)

    return predicate
