# SPDX-License-Identifier: Apache-2.0
"""The masks of packed and of plain calls: what transformers is given, and what layers hand on.

A packed call has a mask in name only, so that transformers makes none of (R, R); it carries the packing past layers
that drop keyword arguments. A plain call has sdpa's own.
"""

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

NAME = "patchrec_varlen"
# What makes a call packed, by its names among the model's keyword arguments.
_PACKING = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "segments", "kv_cache")

# Set while `check` tries a model: the masks of its plain calls say which window they have.
checking: ContextVar[bool] = ContextVar("checking", default=False)


def is_ours(name: str | None) -> bool:
    """Whether a configuration's attention implementation is one of ours."""
    return name is not None and name.partition(".")[0] == NAME


def mark(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """A forward pre-hook of the decoder: a packed call gets a mask that is made already.

    Four dimensions tell transformers so; it would make one of (R, R) otherwise. It is the decoder that gets it, not the
    model: a mixture of experts, for one, reads the model's own mask to balance its experts over all rows.

    Layers that drop keyword arguments (StableLM, Nemotron) still hand on the mask, so it carries them. A compiler does
    not see them there: such a model, compiled, is an error of `attend`.
    """
    packing = {name: kwargs[name] for name in _PACKING if kwargs.get(name) is not None}
    if not packing.keys() & {"cu_seq_lens_q", "kv_cache"} or kwargs.get("attention_mask") is not None:
        return None
    if not is_ours(decoder.config._attn_implementation):
        return None
    like = next(each for each in (*args, *kwargs.values()) if isinstance(each, Tensor))
    mask = torch.zeros((1, 1, 1, 1), dtype=torch.bool, device=like.device)
    if not torch.compiler.is_compiling():
        mask.packing = packing  # type: ignore[attr-defined]
    return args, {**kwargs, "attention_mask": mask}


def check_mask(module: nn.Module, mask: Tensor | None, rows: int, packed: bool) -> None:
    """That a packed call has the mask of `mark`, or none, and that no other has it."""
    if mask is None:
        return
    marked = tuple(mask.shape) == (1, 1, 1, 1) and mask.dtype == torch.bool
    if packed and not marked:
        raise ValueError(
            f"{type(module).__name__} makes a mask of its own, {tuple(mask.shape)} {mask.dtype}, which {NAME} does not "
            "read when packed"
        )
    if marked and rows > 1 and not packed:
        raise ValueError(
            f"{type(module).__name__} is not told of the packing: its layers drop keyword arguments, and what the mask "
            "carries is lost under a compiler or reentrant checkpointing; leave these, or attach with attention='sdpa'"
        )


def watched() -> bool:
    return not torch.compiler.is_compiling() and checking.get()


def unpacked_mask(*args: Any, config: Any = None, allow_is_causal_skip: bool = True, **kwargs: Any) -> Tensor | None:
    """sdpa's mask for an unpacked call: (B, 1, L, S) bool, or None where plain causality says it all.

    Soft-capped attention is not sdpa's and gets the mask always.
    """
    from transformers.masking_utils import sdpa_mask

    watching = watched()
    skip = allow_is_causal_skip and not watching and getattr(config, "attn_logit_softcapping", None) is None
    mask = sdpa_mask(*args, config=config, allow_is_causal_skip=skip, **kwargs)
    if watching and mask is not None:
        mask.window = kwargs.get("local_size")
    return mask
