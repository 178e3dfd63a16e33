// SPDX-License-Identifier: Apache-2.0
// The one operation behind forward and backward: a weighted sum of table rows for each segment of a flat CSR.
//
//     out[csr.out[s]] (+)= sum of weight * table[index] over the terms [csr.offsets[s], csr.offsets[s+1])
//
// Forward: segments are rows, their terms token ids of weight 1 / (items of the row * tokens of the item).
// Backward: segments are the ids that occur, their terms the rows they occur in, of the same weights; the table is the
// gradient.
#pragma once

#include <memory>

#include "compress.h"

struct Term {
  int32_t index;
  float weight;
};

struct Csr {
  int64_t segments = 0;
  std::unique_ptr<int64_t[]> offsets;  // (segments + 1,)
  std::unique_ptr<Term[]> terms;       // (T,)
  std::unique_ptr<int32_t[]> out;      // (segments,)
  std::unique_ptr<int32_t[]> rank;     // (segments,) by id: the place of the id among all of them in ascending order
};

enum class Grouping {
  // Rows of one token, which are copies, come last and those of one id together: the others then find more of their ids
  // in the cache, and a copied row is read from memory once.
  kByRow,
  // Ids come in the order in which they occur: the tokens of a title share its rows, which are then still in the cache.
  // The terms of an id stay in order.
  kById,
};

// Checks the batch and flattens its two levels; nothing is read through an id or offset before it is checked.
patchrec_status group(const patchrec_batch& batch, Grouping grouping, Csr* csr);

struct SegmentSum {
  const Csr* csr;
  void* out;
  int64_t out_stride;  // in elements, as table_stride
  const void* table;
  int64_t table_stride;
  int64_t d;
  int32_t dtype;
  bool accumulate;
};

void segment_sum(const SegmentSum& sum, const patchrec_run& run);
