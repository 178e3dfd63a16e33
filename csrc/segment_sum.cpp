// SPDX-License-Identifier: Apache-2.0
// Chooses the instruction set and shares the segments out over torch's threads.
#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "segments.h"

namespace {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

using std::memcpy;
using std::memset;

namespace portable {
#define PATCHREC_WIDTH 4
#include "simd.h"
#include "rows.h"
#undef PATCHREC_WIDTH
}  // namespace portable

// x86-64-v3 and -v4 as in the psABI. A CPU-model name (haswell, skylake-avx512) would be refused on AMD.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace avx2 {
#define PATCHREC_WIDTH 8
#include "simd.h"
#include "rows.h"
#undef PATCHREC_WIDTH
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
namespace avx512 {
#define PATCHREC_WIDTH 16
#include "simd.h"
#include "rows.h"
#undef PATCHREC_WIDTH
}  // namespace avx512
#pragma GCC pop_options

#elif defined(__x86_64__) && defined(__clang__)

#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
namespace avx2 {
#define PATCHREC_WIDTH 8
#include "simd.h"
#include "rows.h"
#undef PATCHREC_WIDTH
}  // namespace avx2
#pragma clang attribute pop

#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
namespace avx512 {
#define PATCHREC_WIDTH 16
#include "simd.h"
#include "rows.h"
#undef PATCHREC_WIDTH
}  // namespace avx512
#pragma clang attribute pop

#else
namespace avx2 = portable;
namespace avx512 = portable;
#endif

void sum_rows(const SegmentSum& sum, int32_t isa, int64_t first, int64_t last) {
  switch (isa) {
    case PATCHREC_AVX512: return avx512::sum_rows(sum, first, last);
    case PATCHREC_AVX2: return avx2::sum_rows(sum, first, last);
    default: return portable::sum_rows(sum, first, last);
  }
}

struct Work {
  const SegmentSum* sum;
  int32_t isa;
  int64_t parts;
};

// A segment costs its tokens and one row written.
int64_t cost_before(const Csr& csr, int64_t segment) { return csr.offsets[segment] + segment; }

// First segment of share `part`. A segment is never split, so a row is summed in the same order on any number of
// threads.
int64_t first_of(const Csr& csr, int64_t part, int64_t parts) {
  if (part == parts) return csr.segments;
  const int64_t total = cost_before(csr, csr.segments);
  const int64_t target = total / parts * part + total % parts * part / parts;
  int64_t low = 0, high = csr.segments;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (cost_before(csr, middle) < target) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

void run_parts(int64_t begin, int64_t end, void* context) {
  const Work& work = *static_cast<const Work*>(context);
  const Csr& csr = *work.sum->csr;
  for (int64_t part = begin; part < end; ++part)
    sum_rows(*work.sum, work.isa, first_of(csr, part, work.parts), first_of(csr, part + 1, work.parts));
}

}  // namespace

extern "C" int32_t patchrec_best_isa(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return PATCHREC_AVX512;
  if (avx2) return PATCHREC_AVX2;  // every AVX2 CPU has F16C
#endif
  return PATCHREC_PORTABLE;
}

void segment_sum(const SegmentSum& sum, const patchrec_run& run) {
  if (sum.d == 0) return;
  // Below about 64 Ki multiply-adds a share, waking a thread costs more than it saves.
  const int64_t work = cost_before(*sum.csr, sum.csr->segments) * sum.d;
  const int64_t parts = run.parallel_for ? std::max<int64_t>(1, std::min<int64_t>(run.threads, work >> 16)) : 1;
  Work context = {&sum, run.isa, parts};
  if (parts == 1) {
    run_parts(0, 1, &context);
  } else {
    run.parallel_for(0, parts, 1, run_parts, &context);
  }
}
