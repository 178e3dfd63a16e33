# SPDX-License-Identifier: Apache-2.0
"""`segment_attention`, defined: one softmax over all rows of the batch, with what a row does not see masked."""

import torch
from torch import Tensor

from .mask import sees
from .segments import Segments


def segment_attention(
    query: Tensor,  # (R, Hq, D)
    key: Tensor,  # (R, Hk, D)
    value: Tensor,  # (R, Hk, Dv)
    segments: Segments,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:  # (R, Hq, Dv)
    """In any floating dtype and on any device, summed in at least float32; memory grows with R * R."""
    row = torch.arange(query.shape[0], device=query.device)
    seen = sees(segments, window)(row.unsqueeze(1), row)  # (R, R)
    wide = torch.promote_types(query.dtype, torch.float32)
    q = query.to(wide).unflatten(1, (key.shape[1], -1))  # (R, Hk, G, D)
    with torch.autocast(query.device.type, enabled=False):
        logits = torch.einsum("nkgd,mkd->kgnm", q, key.to(wide)) * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
        out = torch.einsum("kgnm,mkd->nkgd", weights, value.to(wide))
    return out.flatten(1, 2).to(query.dtype)
