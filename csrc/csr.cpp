// SPDX-License-Identifier: Apache-2.0
// Checking, flattening and transposing the CSR.
#include <algorithm>
#include <new>

#include "segments.h"

namespace {

template <class T>
std::unique_ptr<T[]> array(int64_t size) {
  return std::unique_ptr<T[]>(new (std::nothrow) T[size > 0 ? size : 1]);
}

template <class Offset>
bool is_partition(const Offset* offsets, int64_t segments, int64_t end) {
  if (segments < 0 || offsets[0] != 0 || offsets[segments] != end) return false;
  bool increasing = true;
  for (int64_t s = 0; s < segments; ++s) increasing &= offsets[s] <= offsets[s + 1];
  return increasing;
}

// A negative id is a huge unsigned one.
template <class Id, class Unsigned>
bool in_range(const void* ids, int64_t tokens, int64_t num_embeddings) {
  const auto* id = static_cast<const Id*>(ids);
  bool ok = true;
  for (int64_t t = 0; t < tokens; ++t) ok &= static_cast<Unsigned>(id[t]) < static_cast<Unsigned>(num_embeddings);
  return ok;
}

template <class Offset>
patchrec_status flatten_offsets(const patchrec_batch& batch, Csr* csr) {
  const auto* of_tokens = static_cast<const Offset*>(batch.token_offsets);
  const auto* of_items = static_cast<const Offset*>(batch.item_offsets);
  if (!is_partition(of_tokens, batch.items, batch.tokens)) return PATCHREC_MALFORMED;
  if (of_items ? !is_partition(of_items, batch.rows, batch.items) : batch.rows != batch.items)
    return PATCHREC_MALFORMED;
  csr->segments = batch.rows;
  csr->offsets = array<int64_t>(batch.rows + 1);
  csr->weight = array<float>(batch.tokens);
  if (!csr->offsets || !csr->weight) return PATCHREC_NO_MEMORY;
  int64_t* offsets = csr->offsets.get();
  float* weight = csr->weight.get();
  offsets[0] = 0;
  for (int64_t r = 0; r < batch.rows; ++r) {
    const int64_t first = of_items ? of_items[r] : r;
    const int64_t last = of_items ? of_items[r + 1] : r + 1;
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = of_tokens[i], end = of_tokens[i + 1];
      const float w = 1.0f / (static_cast<float>(last - first) * static_cast<float>(end - begin));
      for (int64_t t = begin; t < end; ++t) weight[t] = w;
    }
    offsets[r + 1] = of_tokens[last];
  }
  return PATCHREC_OK;
}

}  // namespace

patchrec_status flatten(const patchrec_batch& batch, Csr* csr) {
  if (batch.id_bytes == 4) {
    if (!in_range<int32_t, uint32_t>(batch.ids, batch.tokens, batch.num_embeddings)) return PATCHREC_MALFORMED;
    csr->index = static_cast<const int32_t*>(batch.ids);
  } else {
    if (!in_range<int64_t, uint64_t>(batch.ids, batch.tokens, batch.num_embeddings)) return PATCHREC_MALFORMED;
    csr->index_space = array<int32_t>(batch.tokens);
    if (!csr->index_space) return PATCHREC_NO_MEMORY;
    const auto* wide = static_cast<const int64_t*>(batch.ids);
    for (int64_t t = 0; t < batch.tokens; ++t) csr->index_space[t] = static_cast<int32_t>(wide[t]);
    csr->index = csr->index_space.get();
  }
  return batch.offset_bytes == 4 ? flatten_offsets<int32_t>(batch, csr) : flatten_offsets<int64_t>(batch, csr);
}

// Segments are numbered as their ids are met, so that one pass counts their tokens and another places them. The number
// of an id stands in a table of V that is not cleared: a bit says whether it is there. A radix sort of the tokens took
// 1.3 to 2 times as long.
patchrec_status transpose(const Csr& flat, int64_t num_embeddings, Transposed* by_id) {
  const int64_t tokens = flat.offsets[flat.segments], words = num_embeddings / 64 + 1;
  std::unique_ptr<uint64_t[]> met = array<uint64_t>(words);  // a bit an id
  std::unique_ptr<int32_t[]> segment_of_id = array<int32_t>(num_embeddings);
  std::unique_ptr<int32_t[]> segment_of_token = array<int32_t>(tokens);
  std::unique_ptr<int64_t[]> next = array<int64_t>(tokens);  // of a segment: first its tokens, then where the next goes
  by_id->index_space = array<int32_t>(tokens);
  by_id->weight = array<float>(tokens);
  by_id->id = array<int32_t>(tokens);
  if (!met || !segment_of_id || !segment_of_token || !next || !by_id->index_space || !by_id->weight || !by_id->id)
    return PATCHREC_NO_MEMORY;
  std::fill_n(met.get(), words, 0);
  int32_t used = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    const int32_t id = flat.index[t];
    uint64_t& word = met[id >> 6];
    const uint64_t bit = uint64_t{1} << (id & 63);
    if (!(word & bit)) {
      word |= bit;
      by_id->id[used] = id;
      next[used] = 0;
      segment_of_id[id] = used++;
    }
    segment_of_token[t] = segment_of_id[id];
    ++next[segment_of_id[id]];
  }
  by_id->segments = used;
  by_id->offsets = array<int64_t>(used + 1);
  by_id->rank = array<int32_t>(used);
  if (!by_id->offsets || !by_id->rank) return PATCHREC_NO_MEMORY;
  int64_t at = 0;
  for (int32_t s = 0; s < used; ++s) {
    by_id->offsets[s] = at;
    at += next[s];
    next[s] = by_id->offsets[s];
  }
  by_id->offsets[used] = at;
  for (int64_t r = 0; r < flat.segments; ++r)
    for (int64_t t = flat.offsets[r]; t < flat.offsets[r + 1]; ++t) {
      const int64_t to = next[segment_of_token[t]]++;
      by_id->index_space[to] = static_cast<int32_t>(r);
      by_id->weight[to] = flat.weight[t];
    }
  int32_t rank = 0;
  for (int64_t w = 0; w < words; ++w)
    for (uint64_t left = met[w]; left; left &= left - 1)
      by_id->rank[segment_of_id[w * 64 + __builtin_ctzll(left)]] = rank++;
  by_id->index = by_id->index_space.get();
  return PATCHREC_OK;
}
