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

// Another thread may write ids and offsets meanwhile. So each is read once, by this load, and what is checked is what is
// used: a plain one the compiler may repeat.
template <class T>
inline int64_t read_once(const T* p) {
  return __atomic_load_n(p, __ATOMIC_RELAXED);
}

// The bounds of one segment after the other, from 0 to `end`. Once one is malformed all later ones are empty.
template <class Offset>
class Partition {
 public:
  Partition(const Offset* offsets, int64_t segments, int64_t end)
      : next_(offsets), left_(segments), end_(end), ok_(read_once(next_++) == 0) {}

  int64_t begin() const { return at_; }

  // The end of the segment that starts at begin(), which then is the start of the next.
  int64_t advance() {
    const int64_t end = read_once(next_++);
    --left_;
    ok_ &= end >= at_ && end <= end_;
    return at_ = ok_ ? end : at_;
  }

  // To be asked after the last segment.
  bool well_formed() const { return ok_ && left_ == 0 && at_ == end_; }

 private:
  const Offset* next_;
  int64_t left_, end_, at_ = 0;
  bool ok_;
};

template <class Id, class Offset>
struct Batch {
  const patchrec_batch& given;
  const Id* ids = static_cast<const Id*>(given.ids);
  const Offset* token_offsets = static_cast<const Offset*>(given.token_offsets);
  const Offset* item_offsets = static_cast<const Offset*>(given.item_offsets);

  bool has_sizes() const {
    return given.items >= 0 && given.rows >= 0 && given.tokens >= 0 && (item_offsets || given.rows == given.items);
  }

  // The id of a token; -1 where it is not in the table.
  int32_t id(int64_t token) const {
    const int64_t id = read_once(ids + token);
    return id >= 0 && id < given.num_embeddings ? static_cast<int32_t>(id) : -1;
  }

  // Calls visit(row, items, tokens) for each row, `tokens` giving the bounds of its items one after the other. False
  // where the offsets are malformed.
  template <class Visit>
  bool each_row(Visit visit) const {
    Partition<Offset> tokens(token_offsets, given.items, given.tokens);
    if (!item_offsets) {
      for (int64_t r = 0; r < given.rows; ++r) visit(r, 1, tokens);
      return tokens.well_formed();
    }
    Partition<Offset> items(item_offsets, given.rows, given.items);
    for (int64_t r = 0; r < given.rows; ++r) {
      const int64_t first = items.begin();
      visit(r, items.advance() - first, tokens);
    }
    return items.well_formed() && tokens.well_formed();
  }
};

inline float share(int64_t items, int64_t tokens) {
  return 1.0f / (static_cast<float>(items) * static_cast<float>(tokens));
}

// popcnt is no part of the baseline that this file is compiled for, and libgcc's substitute is a call.
inline int32_t bits_set(uint64_t x) {
  x -= x >> 1 & 0x5555555555555555;
  x = (x & 0x3333333333333333) + (x >> 2 & 0x3333333333333333);
  return static_cast<int32_t>(((x + (x >> 4)) & 0x0f0f0f0f0f0f0f0f) * 0x0101010101010101 >> 56);
}

// The ids that occur, as a bit each: 16 KB for 128,000 ids, so that ranks come from L1, where a table of V
// numbers does not fit; a radix sort reads all tokens several times.
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
  int32_t bad = 0;  // negative once an id is
  const bool ok = batch.each_row([&](int64_t r, int64_t items, Partition<Offset>& tokens) {
    int64_t begin = tokens.begin();
    if (items == 1) {
      const int64_t end = tokens.advance();
      if (end - begin == 1) {
        const int32_t id = batch.id(begin);
        bad |= id;
        copied[copies] = static_cast<int32_t>(r);
        id_of[copies++] = id;
        ids.add(id < 0 ? 0 : id);
        return;
      }
      csr->out[sums] = static_cast<int32_t>(r);
      csr->offsets[sums++] = at;
      const float weight = share(1, end - begin);
      for (int64_t t = begin; t < end; ++t) bad |= (csr->terms[at++] = {batch.id(t), weight}).index;
      return;
    }
    csr->out[sums] = static_cast<int32_t>(r);
    csr->offsets[sums++] = at;
    for (int64_t i = 0; i < items; ++i) {
      const int64_t end = tokens.advance();
      const float weight = share(items, end - begin);
      for (int64_t t = begin; t < end; ++t) bad |= (csr->terms[at++] = {batch.id(t), weight}).index;
      begin = end;
    }
  });
  if (!ok || bad < 0) return PATCHREC_MALFORMED;
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
  auto rank = array<int32_t>(tokens);  // each token's id, then that id's rank
  if (!rank) return PATCHREC_NO_MEMORY;
  int32_t bad = 0;  // negative once an id is
  for (int64_t t = 0; t < tokens; ++t) {
    const int32_t id = rank[t] = batch.id(t);
    bad |= id;
    ids.add(id < 0 ? 0 : id);
  }
  if (bad < 0) return PATCHREC_MALFORMED;
  ids.count();
  auto next = array<int64_t>(ids.size);  // by rank: the id's tokens, then its next place
  csr->segments = ids.size;
  csr->offsets = array<int64_t>(ids.size + 1);
  csr->terms = array<Term>(tokens);
  csr->out = array<int32_t>(ids.size + 1);
  csr->rank = array<int32_t>(ids.size + 1);
  if (!next || !csr->offsets || !csr->terms || !csr->out || !csr->rank) return PATCHREC_NO_MEMORY;
  std::fill_n(next.get(), ids.size, 0);
  int64_t used = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    const int32_t id = rank[t], r = ids.rank(id);
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
  const bool ok = batch.each_row([&](int64_t r, int64_t items, Partition<Offset>& offsets) {
    for (int64_t i = 0; i < items; ++i) {
      const int64_t begin = offsets.begin(), end = offsets.advance();
      const float weight = share(items, end - begin);
      for (int64_t t = begin; t < end; ++t) csr->terms[next[rank[t]]++] = {static_cast<int32_t>(r), weight};
    }
  });
  return ok ? PATCHREC_OK : PATCHREC_MALFORMED;
}

template <class Id, class Offset>
patchrec_status group_as(const patchrec_batch& given, Grouping grouping, Csr* csr) {
  const Batch<Id, Offset> batch{given};
  if (!batch.has_sizes()) return PATCHREC_MALFORMED;
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
