// SPDX-License-Identifier: Apache-2.0
// The one operation behind forward and backward: a weighted sum of table rows for each segment of a flat CSR.
//
//     out[out_index[s]] (+)= sum over t in [offsets[s], offsets[s+1]) of weight[t] * table[index[t]]
//
// Forward: segments are rows, index the token ids, weight 1 / (items of the row * tokens of the item).
// Backward: the same CSR transposed. Segments are the ids that occur, index their rows, table the gradient.
#pragma once

#include <memory>

#include "compress.h"

struct Csr {
  int64_t segments = 0;
  std::unique_ptr<int64_t[]> offsets;      // (segments + 1,)
  std::unique_ptr<int32_t[]> index_space;  // (T,), unused where index is the caller's own array
  const int32_t* index = nullptr;          // (T,)
  std::unique_ptr<float[]> weight;         // (T,)
  std::unique_ptr<int32_t[]> out_index;    // (segments,), or null: segment s writes row s
};

// Checks the batch and flattens its two levels; nothing is read through an id or offset before it is checked.
patchrec_status flatten(const patchrec_batch& batch, Csr* csr);

// Groups the tokens of a flattened batch by id, in ascending order and stably.
patchrec_status transpose(const Csr& flat, int64_t num_embeddings, Csr* by_id);

struct SegmentSum {
  const Csr* csr;
  bool indexed;  // through csr->out_index
  void* out;
  int64_t out_stride;  // in elements, as table_stride
  const void* table;
  int64_t table_stride;
  int64_t d;
  int32_t dtype;
  bool accumulate;
};

void segment_sum(const SegmentSum& sum, const patchrec_run& run);
