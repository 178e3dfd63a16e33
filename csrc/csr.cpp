// SPDX-License-Identifier: Apache-2.0
// Checks a batch and groups its tokens: by row for the forward, by id for the backward.
#include <algorithm>
#include <new>
#include <numeric>
#include <type_traits>

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

template <class Id, class Offset>
struct Batch {
  const patchrec_batch& given;
  const Id* ids = static_cast<const Id*>(given.ids);
  const Offset* token_offsets = static_cast<const Offset*>(given.token_offsets);
  const Offset* item_offsets = static_cast<const Offset*>(given.item_offsets);

  bool well_formed() const {
    if (!is_partition(token_offsets, given.items, given.tokens)) return false;
    if (item_offsets ? !is_partition(item_offsets, given.rows, given.items) : given.rows != given.items) return false;
    using Unsigned = std::make_unsigned_t<Id>;  // in which a negative id is a huge one
    const auto end = static_cast<Unsigned>(given.num_embeddings);
    bool ok = true;
    for (int64_t t = 0; t < given.tokens; ++t) ok &= static_cast<Unsigned>(ids[t]) < end;
    return ok;
  }

  int64_t first_item(int64_t row) const { return item_offsets ? item_offsets[row] : row; }
  int32_t id(int64_t token) const { return static_cast<int32_t>(ids[token]); }

  // Calls visit(token, weight) for the tokens of a row.
  template <class Visit>
  void each_token(int64_t row, Visit visit) const {
    const int64_t first = first_item(row), last = first_item(row + 1);
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = token_offsets[i], end = token_offsets[i + 1];
      const float weight = 1.0f / (static_cast<float>(last - first) * static_cast<float>(end - begin));
      for (int64_t t = begin; t < end; ++t) visit(t, weight);
    }
  }
};

// popcnt is no part of the baseline that this file is compiled for, and libgcc's substitute is a call.
inline int32_t bits_set(uint64_t x) {
  x -= x >> 1 & 0x5555555555555555;
  x = (x & 0x3333333333333333) + (x >> 2 & 0x3333333333333333);
  return static_cast<int32_t>(((x + (x >> 4)) & 0x0f0f0f0f0f0f0f0f) * 0x0101010101010101 >> 56);
}

// The ids that occur, as a bit each: 16 KB for 128,000 ids, so that ranks come from L1. For the tokens of 16 users a
// table of V numbers took 15 % longer, and a radix sort 1.3 to 2 times as long as that table.
struct IdSet {
  int64_t words;
  std::unique_ptr<uint64_t[]> bits;
  std::unique_ptr<int32_t[]> before;  // (words,) ids in earlier words
  int64_t size = 0;

  explicit IdSet(int64_t num_embeddings)
      : words(num_embeddings / 64 + 1), bits(array<uint64_t>(words)), before(array<int32_t>(words)) {
    if (bits) std::fill_n(bits.get(), words, 0);
  }

  explicit operator bool() const { return bits && before; }
  void add(int32_t id) { bits[id >> 6] |= uint64_t{1} << (id & 63); }

  // To be called when all are added.
  void count() {
    for (int64_t w = 0; w < words; ++w) {
      before[w] = static_cast<int32_t>(size);
      size += bits_set(bits[w]);
    }
  }

  // The place of an id among all in ascending order.
  int32_t rank(int32_t id) const {
    return before[id >> 6] + bits_set(bits[id >> 6] & ((uint64_t{1} << (id & 63)) - 1));
  }
};

template <class Id, class Offset>
patchrec_status group_by_row(const Batch<Id, Offset>& batch, Csr* csr) {
  const int64_t rows = batch.given.rows;
  IdSet ids(batch.given.num_embeddings);
  auto copied = array<int32_t>(rows), id_of = array<int32_t>(rows);  // of each copy: its row and its id
  csr->terms = array<Term>(batch.given.tokens);
  csr->offsets = array<int64_t>(rows + 1);
  csr->out = array<int32_t>(rows);
  if (!ids || !copied || !id_of || !csr->terms || !csr->offsets || !csr->out) return PATCHREC_NO_MEMORY;
  int64_t sums = 0, copies = 0, at = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t first = batch.first_item(r), last = batch.first_item(r + 1);
    const int64_t begin = batch.token_offsets[first], end = batch.token_offsets[last];
    if (last - first == 1 && end - begin == 1) {
      copied[copies] = static_cast<int32_t>(r);
      id_of[copies] = batch.id(begin);
      ids.add(id_of[copies++]);
    } else {
      csr->out[sums] = static_cast<int32_t>(r);
      csr->offsets[sums++] = at;
      batch.each_token(r, [&](int64_t t, float weight) { csr->terms[at++] = {batch.id(t), weight}; });
    }
  }
  ids.count();
  auto next = array<int32_t>(ids.size);  // by rank: the id's copies, then its next place
  if (!next) return PATCHREC_NO_MEMORY;
  std::fill_n(next.get(), ids.size, 0);
  for (int64_t c = 0; c < copies; ++c) ++next[ids.rank(id_of[c])];
  std::exclusive_scan(next.get(), next.get() + ids.size, next.get(), 0);
  for (int64_t c = 0; c < copies; ++c) {
    const int64_t place = next[ids.rank(id_of[c])]++;
    csr->out[sums + place] = copied[c];
    csr->terms[at + place] = {id_of[c], 1.0f};
  }
  for (int64_t c = 0; c <= copies; ++c) csr->offsets[sums + c] = at + c;
  csr->segments = rows;
  return PATCHREC_OK;
}

template <class Id, class Offset>
patchrec_status group_by_id(const Batch<Id, Offset>& batch, Csr* csr) {
  const int64_t tokens = batch.given.tokens;
  IdSet ids(batch.given.num_embeddings);
  if (!ids) return PATCHREC_NO_MEMORY;
  for (int64_t t = 0; t < tokens; ++t) ids.add(batch.id(t));
  ids.count();
  auto rank = array<int32_t>(tokens);    // of each token's id
  auto next = array<int64_t>(ids.size);  // by rank: the id's tokens, then its next place
  csr->segments = ids.size;
  csr->offsets = array<int64_t>(ids.size + 1);
  csr->terms = array<Term>(tokens);
  csr->out = array<int32_t>(ids.size + 1);
  csr->rank = array<int32_t>(ids.size + 1);
  if (!rank || !next || !csr->offsets || !csr->terms || !csr->out || !csr->rank) return PATCHREC_NO_MEMORY;
  std::fill_n(next.get(), ids.size, 0);
  int64_t used = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    const int32_t id = batch.id(t), r = ids.rank(id);
    rank[t] = r;
    csr->out[used] = id;  // stays where the id is new
    csr->rank[used] = r;
    used += next[r]++ == 0;
  }
  int64_t place = 0;
  for (int64_t s = 0; s < ids.size; ++s) {
    int64_t& count = next[csr->rank[s]];
    csr->offsets[s] = place;
    place += count;
    count = csr->offsets[s];
  }
  csr->offsets[ids.size] = place;
  for (int64_t r = 0; r < batch.given.rows; ++r)
    batch.each_token(r, [&](int64_t t, float weight) {
      csr->terms[next[rank[t]]++] = {static_cast<int32_t>(r), weight};
    });
  return PATCHREC_OK;
}

template <class Id, class Offset>
patchrec_status group_as(const patchrec_batch& given, Grouping grouping, Csr* csr) {
  const Batch<Id, Offset> batch{given};
  if (!batch.well_formed()) return PATCHREC_MALFORMED;
  return grouping == Grouping::kByRow ? group_by_row(batch, csr) : group_by_id(batch, csr);
}

}  // namespace

patchrec_status group(const patchrec_batch& batch, Grouping grouping, Csr* csr) {
  if (batch.id_bytes == 4)
    return batch.offset_bytes == 4 ? group_as<int32_t, int32_t>(batch, grouping, csr)
                                   : group_as<int32_t, int64_t>(batch, grouping, csr);
  return batch.offset_bytes == 4 ? group_as<int64_t, int32_t>(batch, grouping, csr)
                                 : group_as<int64_t, int64_t>(batch, grouping, csr);
}
