// SPDX-License-Identifier: Apache-2.0
// The one operation behind forward and backward: a weighted sum of table rows for each segment of a flat CSR.
//
//     out[out_index[s]] (+)= sum over t in [offsets[s], offsets[s+1]) of weight[t] * table[index[t]]
//
// Forward: segments are rows, index the token ids, weight 1 / (items of the row * tokens of the item).
// Backward: the same CSR transposed. Segments are the ids that occur, index their rows, table the gradient. They come
// in the order of their first rows, not of their ids: the tokens of a title share its rows, which are then still in
// the cache (2 to 8 % less time than in the order of ids).
#pragma once

#include <memory>

#include "compress.h"

struct Csr {
  int64_t segments = 0;
  std::unique_ptr<int64_t[]> offsets;      // (segments + 1,)
  std::unique_ptr<int32_t[]> index_space;  // (T,), unused where index is the caller's own array
  const int32_t* index = nullptr;          // (T,)
  std::unique_ptr<float[]> weight;         // (T,)
};

struct Transposed : Csr {
  std::unique_ptr<int32_t[]> id;    // (segments,)
  std::unique_ptr<int32_t[]> rank;  // (segments,) the place of the id among all of them in ascending order
};

// Checks the batch and flattens its two levels; nothing is read through an id or offset before it is checked.
patchrec_status flatten(const patchrec_batch& batch, Csr* csr);

// Groups the tokens of a flattened batch by id, stably.
patchrec_status transpose(const Csr& flat, int64_t num_embeddings, Transposed* by_id);

struct SegmentSum {
  const Csr* csr;
  const int32_t* out_index;  // (segments,), or null: segment s writes row s
  void* out;
  int64_t out_stride;  // in elements, as table_stride
  const void* table;
  int64_t table_stride;
  int64_t d;
  int32_t dtype;
  bool accumulate;
};

void segment_sum(const SegmentSum& sum, const patchrec_run& run);
