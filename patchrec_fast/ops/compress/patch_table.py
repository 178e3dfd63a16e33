# SPDX-License-Identifier: Apache-2.0
"""One embedding an item, for inference."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .api import compress

if TYPE_CHECKING:
    from ...layout import Catalogue


@torch.no_grad()
def patch_table(catalogue: "Catalogue", weight: Tensor | nn.Module | None = None) -> Tensor:
    """Every item's patch, so that pooling reads one row an item instead of one a token.

    For inference, where the embeddings stand still. `Packer(..., patch_base=len(weight))` gives each item in a
    patch the single id `patch_base + its place in the catalogue`, to be looked up in
    `torch.cat([weight, patch_table(catalogue, weight)])`. A session patch then rounds twice.

    Args:
        catalogue: I items.
        weight: (V, d) table or embedding module; None takes the one bound by `use_embedding`.

    Returns:
        (I, d) in weight's dtype, in the catalogue's order, without a gradient.
    """
    device = weight.device if isinstance(weight, Tensor) else _device_of(weight)
    ids = torch.from_numpy(catalogue.token_ids).to(device)
    offsets = torch.from_numpy(catalogue.offsets).to(device)
    return compress(ids, offsets, weight)


def _device_of(module: nn.Module | None) -> torch.device:
    from .embedding import bound_embedding

    bound = bound_embedding() if module is None else module
    return bound.device if isinstance(bound, Tensor) else next(bound.parameters()).device
