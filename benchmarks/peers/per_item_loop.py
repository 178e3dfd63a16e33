# SPDX-License-Identifier: Apache-2.0
"""The loop of the paper's released code: one embedding call and one mean for each compressed item.

In its backward each of those calls has a (V, d) gradient of its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from patchrec_fast import PackedBatch

from .csr import levels

Prepared = tuple[Tensor, list[list[Tensor]], Tensor]


def prepare(batch: PackedBatch, dtype: torch.dtype) -> Prepared:
    """The ids of plain rows; of each patch, those of its items; and every row's place in those."""
    ids, token_offsets, item_offsets = levels(batch)
    titles = ids.split(token_offsets.diff().tolist())
    plain, patches = [], []
    for first, last in zip(item_offsets[:-1].tolist(), item_offsets[1:].tolist(), strict=True):
        raw = last - first == 1 and len(titles[first]) == 1
        plain.append(raw)
        if not raw:
            patches.append(list(titles[first:last]))
    is_plain = torch.tensor(plain, device=ids.device)
    starts = (token_offsets[item_offsets])[:-1]
    place = torch.where(is_plain, is_plain.cumsum(0) - 1, is_plain.sum() + (~is_plain).cumsum(0) - 1)
    return ids[starts[is_plain]], patches, place


def compress(weight: Tensor, prepared: Prepared) -> Tensor:
    plain, patches, place = prepared
    rows = [F.embedding(plain, weight)]  # (plain rows, d)
    for titles in patches:
        items = [F.embedding(title, weight).mean(0) for title in titles]
        rows.append(torch.stack(items).mean(0, keepdim=True))
    return torch.cat(rows)[place]  # (R, d)
