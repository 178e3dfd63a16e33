# SPDX-License-Identifier: Apache-2.0
"""The schema of every operator that torch knows; each one's folder or file registers what it does."""

from torch.library import Library

LIBRARY = Library("patchrec_fast", "DEF")

_CSR = "Tensor ids, Tensor token_offsets, Tensor? item_offsets"
_HOW = "Tensor[] plan, str impl"  # the tensors of a Plan, or none; a backend or "auto"
LIBRARY.define(f"compress(Tensor weight, {_CSR}, {_HOW}) -> Tensor")
LIBRARY.define(f"compress_backward(Tensor grad, {_CSR}, SymInt num_embeddings, {_HOW}) -> Tensor")
LIBRARY.define(f"compress_backward_sparse(Tensor grad, {_CSR}, SymInt num_embeddings, {_HOW}) -> (Tensor, Tensor)")
LIBRARY.define(f"compress_backward_(Tensor(a!) into, Tensor grad, {_CSR}, {_HOW}) -> ()")

_QKV = "Tensor query, Tensor key, Tensor value"
_SEQUENCES = "Tensor cu_seqlens, Tensor cu_seqlens_k, float scale, int? window"
LIBRARY.define(f"varlen_attention({_QKV}, {_SEQUENCES}) -> (Tensor, Tensor)")
LIBRARY.define(
    f"varlen_attention_backward(Tensor grad, {_QKV}, Tensor out, Tensor lse, {_SEQUENCES}) -> (Tensor, Tensor, Tensor)"
)

_FOREST = "Tensor cu_seqlens, Tensor parent, Tensor visible, float scale, int? window, float? softcap"
LIBRARY.define(f"segment_attention({_QKV}, {_FOREST}) -> (Tensor, Tensor)")
LIBRARY.define(
    f"segment_attention_backward(Tensor grad, {_QKV}, Tensor out, Tensor lse, {_FOREST}) -> (Tensor, Tensor, Tensor)"
)

_LINEAR = "Tensor hidden, Tensor weight, Tensor? bias, Tensor labels"
LIBRARY.define(f"linear_cross_entropy({_LINEAR}, int? block, bool keep) -> (Tensor, Tensor, Tensor)")
LIBRARY.define(
    f"linear_cross_entropy_backward(Tensor grad, {_LINEAR}, Tensor lse, Tensor kept, int? block, bool[3] wanted)"
    " -> (Tensor, Tensor, Tensor)"
)
