// SPDX-License-Identifier: Apache-2.0
// The weighted sum of table rows into one output row, and the loop over segments. Included once per instruction
// set, after simd.h; hence no include guard.

// Clang reads the GCC spelling too.
#define PATCHREC_UNROLL _Pragma("GCC unroll 16")

// Pairs of vectors in a tile of columns, whose sums stay in registers while the tokens of a row go by: 16 of
// AVX-512's 32 registers, 8 of the 16 elsewhere. Narrow tiles read a long row in runs too short, wider ones
// do not divide the usual widths.
constexpr int kTile = kWidth == 16 ? 8 : 4;
constexpr int kSmallTile = 4;
constexpr int64_t kPair = 2 * kWidth;

// How many bytes of rows ahead a row is fetched.
constexpr int64_t kAheadBytes = 32 << 10;

// A row's first line is asked for before the row is: the first access to a page takes the longest. So many terms ahead
// of the fetching, and so many rows ahead of the writing.
constexpr int64_t kTouchTerms = 3, kTouchRows = 2;

// What becomes of a sum.
enum class Sink {
  kStore,  // write the output row
  kAdd,    // add to the output row
};

// One row: its terms and where the sum goes.
template <class T>
struct Row {
  const T* table;
  int64_t table_stride;
  const Term* terms;
  int64_t begin, end;
  int64_t ahead, last_term;  // terms to fetch ahead, and where the fetching stops
  T* out;
  // The output row after this one is fetched too: a store waits for its line as a load does.
  const T* next_out;

  const T* of(int64_t t) const { return table + terms[t].index * table_stride; }

  // What to fetch while term t is read; `here` where there is nothing.
  const T* fetched_at(int64_t t, const T* here) const { return t + ahead < last_term ? of(t + ahead) : here; }
};

constexpr int kIntoL1 = 3, kIntoL2 = 2;

template <int kBytes, int kWhere, class T>
inline void prefetch(const T* p) {
  for (int b = 0; b < kBytes; b += 64) __builtin_prefetch(reinterpret_cast<const char*>(p) + b, 0, kWhere);
}

// A table row waits in L2: there it does not push out of L1 what the sums read again.
template <int kBytes, class T>
inline void prefetch_in(const T* p) {
  prefetch<kBytes, kIntoL2>(p);
}

template <int kBytes, class T>
inline void prefetch_out(const T* p) {
  prefetch<kBytes, kIntoL1>(p);
}

// A line of every 4 KB, a page.
template <class T>
inline void touch(const T* p, int64_t d) {
  for (int64_t c = 0; c < d; c += 4096 / static_cast<int64_t>(sizeof(T))) prefetch_in<64>(p + c);
}

// out[c : c + kPairs * kPair] for one row.
template <int kPairs, Sink kSink, class T>
inline void sum_tile(const Row<T>& row, int64_t c) {
  constexpr int kBytes = kPairs * kPair * sizeof(T);
  Pair sum[kPairs] = {};
  for (int64_t t = row.begin; t < row.end; ++t) {
    if (t + row.ahead + kTouchTerms < row.last_term) prefetch_in<64>(row.of(t + row.ahead + kTouchTerms) + c);
    if (t + row.ahead < row.last_term) prefetch_in<kBytes>(row.of(t + row.ahead) + c);
    const T* x = row.of(t) + c;
    const float w = row.terms[t].weight;
    PATCHREC_UNROLL for (int v = 0; v < kPairs; ++v) {
      const Pair read = load_pair(x + v * kPair);
      sum[v].first += w * read.first;
      sum[v].second += w * read.second;
    }
  }
  T* out = row.out + c;
  prefetch_out<kBytes>(row.next_out + c);
  if (kSink == Sink::kAdd) {
    PATCHREC_UNROLL for (int v = 0; v < kPairs; ++v) {
      const Pair before = load_pair(out + v * kPair);
      sum[v].first += before.first;
      sum[v].second += before.second;
    }
  }
  PATCHREC_UNROLL for (int v = 0; v < kPairs; ++v) store_pair(out + v * kPair, sum[v]);
}

// All whole pairs of columns of a row of few tokens, from left to right: nothing to start anew for each tile. Returns
// the first column left.
template <int kTokens, Sink kSink, class T>
int64_t sum_few(const Row<T>& row, int64_t d) {
  constexpr int kBytes = kPair * sizeof(T);
  const T* x[kTokens];
  const T* ahead[kTokens];
  float w[kTokens];
  for (int k = 0; k < kTokens; ++k) {
    const int64_t t = row.begin + k;
    x[k] = row.of(t);
    ahead[k] = row.fetched_at(t, x[k]);
    w[k] = row.terms[t].weight;
  }
  int64_t c = 0;
  for (; c + kPair <= d; c += kPair) {
    Pair sum = {};
    PATCHREC_UNROLL for (int k = 0; k < kTokens; ++k) {
      prefetch_in<kBytes>(ahead[k] + c);
      const Pair read = load_pair(x[k] + c);
      sum.first += w[k] * read.first;
      sum.second += w[k] * read.second;
    }
    T* out = row.out + c;
    prefetch_out<kBytes>(row.next_out + c);
    if (kSink == Sink::kAdd) {
      const Pair before = load_pair(out);
      sum.first += before.first;
      sum.second += before.second;
    }
    store_pair(out, sum);
  }
  return c;
}

// The last n < kPair columns, through padded copies so that they are rounded by the same code.
template <Sink kSink, class T>
void sum_tail(const Row<T>& row, int64_t c, int64_t n) {
  Pair sum = {};
  T space[kPair] = {};
  const auto add = [&](const T* from, float w) {
    memcpy(space, from, n * sizeof(T));
    const Pair read = load_pair(space);
    sum.first += w * read.first;
    sum.second += w * read.second;
  };
  for (int64_t t = row.begin; t < row.end; ++t)
    add(row.of(t) + c, row.terms[t].weight);
  if (kSink == Sink::kAdd) add(row.out + c, 1.0f);
  store_pair(space, sum);
  memcpy(row.out + c, space, n * sizeof(T));
}

// A row of one whole token is a copy, bit for bit.
template <class T>
void copy_row(const Row<T>& row, int64_t d) {
  constexpr int64_t kLine = 64 / sizeof(T);
  const T* from = row.of(row.begin);
  const T* ahead = row.fetched_at(row.begin, from);
  int64_t c = 0;
  for (; c + kLine <= d; c += kLine) {
    prefetch_in<64>(ahead + c);
    prefetch_out<64>(row.next_out + c);
    memcpy(row.out + c, from + c, 64);
  }
  memcpy(row.out + c, from + c, (d - c) * sizeof(T));
}

template <Sink kSink, class T>
void sum_row(const Row<T>& row, int64_t d) {
  int64_t c = 0;
  switch (row.end - row.begin) {
    case 1:
      if (kSink == Sink::kStore && row.terms[row.begin].weight == 1.0f) return copy_row(row, d);
      c = sum_few<1, kSink>(row, d);
      break;
    case 2: c = sum_few<2, kSink>(row, d); break;
    case 3: c = sum_few<3, kSink>(row, d); break;
    case 4: c = sum_few<4, kSink>(row, d); break;
  }
  for (; c + kTile * kPair <= d; c += kTile * kPair) sum_tile<kTile, kSink>(row, c);
  for (; c + kSmallTile * kPair <= d; c += kSmallTile * kPair) sum_tile<kSmallTile, kSink>(row, c);
  for (; c + kPair <= d; c += kPair) sum_tile<1, kSink>(row, c);
  if (c < d) sum_tail<kSink>(row, c, d - c);
}

template <Sink kSink, class T>
void sum_rows(const SegmentSum& a, int64_t first, int64_t last) {
  const auto out_row = [&](int64_t s) {
    return static_cast<T*>(a.out) + a.csr->out[std::min(s, last - 1)] * a.out_stride;
  };
  const int64_t* offsets = a.csr->offsets.get();
  Row<T> row;
  row.table = static_cast<const T*>(a.table);
  row.table_stride = a.table_stride;
  row.terms = a.csr->terms.get();
  row.ahead = kAheadBytes / (a.d * static_cast<int64_t>(sizeof(T))) + 1;
  row.last_term = offsets[last];
  for (int64_t s = first; s < last; ++s) {
    row.begin = offsets[s];
    row.end = offsets[s + 1];
    row.out = out_row(s);
    row.next_out = out_row(s + 1);
    touch(out_row(s + kTouchRows), a.d);
    sum_row<kSink>(row, a.d);
  }
}

template <class T>
void sum_rows_of(const SegmentSum& a, int64_t first, int64_t last) {
  a.accumulate ? sum_rows<Sink::kAdd, T>(a, first, last) : sum_rows<Sink::kStore, T>(a, first, last);
}

void sum_rows(const SegmentSum& a, int64_t first, int64_t last) {
  switch (a.dtype) {
    case PATCHREC_F32: return sum_rows_of<float>(a, first, last);
    case PATCHREC_BF16: return sum_rows_of<bf16>(a, first, last);
    default: return sum_rows_of<f16>(a, first, last);
  }
}
