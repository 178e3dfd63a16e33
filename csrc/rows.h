// SPDX-License-Identifier: Apache-2.0
// The weighted sum of table rows into one output row, and the loop over segments. Included once per instruction
// set, after simd.h; hence no include guard.

// Clang reads the GCC spelling too.
#define PATCHREC_UNROLL _Pragma("GCC unroll 16")

// Pairs of vectors in a tile of columns, whose sums stay in registers while the tokens of a row go by: 24 of
// AVX-512's 32 registers, 8 of the 16 elsewhere. The wider, the longer the runs that are read: 16 measured 5 % slower.
constexpr int kTile = kWidth == 16 ? 12 : 4;
constexpr int kSmallTile = 4;
constexpr int64_t kPair = 2 * kWidth;

// How many bytes of rows ahead a row is fetched: what L1 holds beside the tile.
constexpr int64_t kAheadBytes = 32 << 10;

// What becomes of a sum.
enum class Sink {
  kStore,   // write the output row
  kStream,  // write it past the caches: an output larger than they are would only push the table out of them
  kAdd,     // add to the output row
};

// One row: its tokens and where the sum goes.
template <class T>
struct Row {
  const T* table;
  int64_t table_stride;
  const int32_t* index;
  const float* weight;
  int64_t begin, end;
  int64_t ahead, last_token;  // tokens to fetch ahead, and where the fetching stops
  T* out;
  const T* next_out;  // the output row after this one, which kAdd will read
};

template <int kBytes, class T>
inline void prefetch(const T* p) {
  for (int b = 0; b < kBytes; b += 64) __builtin_prefetch(reinterpret_cast<const char*>(p) + b);
}

// out[c : c + kPairs * kPair] for one row.
template <int kPairs, Sink kSink, class T>
inline void sum_tile(const Row<T>& row, int64_t c) {
  constexpr int kBytes = kPairs * kPair * sizeof(T);
  Pair sum[kPairs] = {};
  for (int64_t t = row.begin; t < row.end; ++t) {
    if (t + row.ahead < row.last_token) prefetch<kBytes>(row.table + row.index[t + row.ahead] * row.table_stride + c);
    const T* x = row.table + row.index[t] * row.table_stride + c;
    const float w = row.weight[t];
    PATCHREC_UNROLL for (int v = 0; v < kPairs; ++v) {
      const Pair term = load_pair(x + v * kPair);
      sum[v].first += w * term.first;
      sum[v].second += w * term.second;
    }
  }
  T* out = row.out + c;
  if (kSink == Sink::kAdd) {
    prefetch<kBytes>(row.next_out + c);
    PATCHREC_UNROLL for (int v = 0; v < kPairs; ++v) {
      const Pair before = load_pair(out + v * kPair);
      sum[v].first += before.first;
      sum[v].second += before.second;
    }
  }
  PATCHREC_UNROLL for (int v = 0; v < kPairs; ++v)
    kSink == Sink::kStream ? stream_pair(out + v * kPair, sum[v]) : store_pair(out + v * kPair, sum[v]);
}

// The last n < kPair columns, through padded copies so that they are rounded by the same code.
template <Sink kSink, class T>
void sum_tail(const Row<T>& row, int64_t c, int64_t n) {
  Pair sum = {};
  T space[kPair] = {};
  const auto add = [&](const T* from, float w) {
    memcpy(space, from, n * sizeof(T));
    const Pair term = load_pair(space);
    sum.first += w * term.first;
    sum.second += w * term.second;
  };
  for (int64_t t = row.begin; t < row.end; ++t)
    add(row.table + row.index[t] * row.table_stride + c, row.weight[t]);
  if (kSink == Sink::kAdd) add(row.out + c, 1.0f);
  store_pair(space, sum);
  memcpy(row.out + c, space, n * sizeof(T));
}

// A row of one whole token is a copy, bit for bit.
template <Sink kSink, class T>
void copy_row(const Row<T>& row, int64_t d) {
  constexpr int64_t kLine = 64 / sizeof(T);
  const T* from = row.table + row.index[row.begin] * row.table_stride;
  const int64_t at = row.begin + row.ahead;
  const T* ahead = at < row.last_token ? row.table + row.index[at] * row.table_stride : from;
  T* out = row.out;
  int64_t c = 0;
  for (; c + kLine <= d; c += kLine) {
    prefetch<64>(ahead + c);
    kSink == Sink::kStream ? stream_line(out + c, from + c) : static_cast<void>(memcpy(out + c, from + c, 64));
  }
  memcpy(out + c, from + c, (d - c) * sizeof(T));
}

template <Sink kSink, class T>
void sum_row(const Row<T>& row, int64_t d) {
  if (row.end - row.begin == 1 && kSink != Sink::kAdd && row.weight[row.begin] == 1.0f) return copy_row<kSink>(row, d);
  int64_t c = 0;
  for (; c + kTile * kPair <= d; c += kTile * kPair) sum_tile<kTile, kSink>(row, c);
  for (; c + kSmallTile * kPair <= d; c += kSmallTile * kPair) sum_tile<kSmallTile, kSink>(row, c);
  for (; c + kPair <= d; c += kPair) sum_tile<1, kSink>(row, c);
  if (c < d) sum_tail<kSink>(row, c, d - c);
}

template <Sink kSink, class T>
void sum_rows(const SegmentSum& a, int64_t first, int64_t last) {
  const auto out_row = [&](int64_t s) {
    return static_cast<T*>(a.out) + (a.out_index ? a.out_index[s] : s) * a.out_stride;
  };
  const int64_t* offsets = a.csr->offsets.get();
  Row<T> row;
  row.table = static_cast<const T*>(a.table);
  row.table_stride = a.table_stride;
  row.index = a.csr->index;
  row.weight = a.csr->weight.get();
  row.ahead = kAheadBytes / (a.d * static_cast<int64_t>(sizeof(T))) + 1;
  row.last_token = offsets[last];
  for (int64_t s = first; s < last; ++s) {
    row.begin = offsets[s];
    row.end = offsets[s + 1];
    row.out = out_row(s);
    row.next_out = out_row(s + 1 < last ? s + 1 : s);
    sum_row<kSink>(row, a.d);
  }
}

template <class T>
void sum_rows(const SegmentSum& a, Sink sink, int64_t first, int64_t last) {
  switch (sink) {
    case Sink::kStore: return sum_rows<Sink::kStore, T>(a, first, last);
    case Sink::kStream: return sum_rows<Sink::kStream, T>(a, first, last);
    case Sink::kAdd: return sum_rows<Sink::kAdd, T>(a, first, last);
  }
}

// The stream sink wants rows that start on a cache line, and pays once output and table rows together outgrow the
// caches, which 16 MiB of output stand for (half of 32 MiB of L3). Below, the next layer finds the rows in the cache.
constexpr int64_t kStreamBytes = int64_t{16} << 20;

inline Sink sink_for(const SegmentSum& a) {
  if (a.accumulate) return Sink::kAdd;
  const int64_t row_bytes = a.out_stride * (a.dtype == PATCHREC_F32 ? 4 : 2);
  const bool on_lines = reinterpret_cast<uintptr_t>(a.out) % 64 == 0 && row_bytes % 64 == 0;
  return on_lines && !a.partial && a.csr->segments * row_bytes >= kStreamBytes ? Sink::kStream : Sink::kStore;
}

void sum_rows(const SegmentSum& a, int64_t first, int64_t last) {
  const Sink sink = sink_for(a);
  switch (a.dtype) {
    case PATCHREC_F32: sum_rows<float>(a, sink, first, last); break;
    case PATCHREC_BF16: sum_rows<bf16>(a, sink, first, last); break;
    default: sum_rows<f16>(a, sink, first, last);
  }
#if PATCHREC_WIDTH > 4
  if (sink == Sink::kStream) _mm_sfence();
#endif
}
