// SPDX-License-Identifier: Apache-2.0
// C ABI of the CPU kernels. Loaded with ctypes (patchrec_fast/ops/native.py): no Python, torch or OpenMP headers,
// so one build serves every Python and torch version.
//
// `compress`: out[r] = mean over the items of row r of the mean over each item's tokens of weight[id].
#pragma once

#include <stdint.h>

#define PATCHREC_ABI_VERSION 1  // native.py knows it too; raise both with any change below

enum patchrec_dtype { PATCHREC_F32 = 0, PATCHREC_BF16 = 1, PATCHREC_F16 = 2 };
enum patchrec_isa { PATCHREC_PORTABLE = 0, PATCHREC_AVX2 = 1, PATCHREC_AVX512 = 2 };

// Signature of libtorch's `torch_parallel_for` (torch >= 2.10), passed in by address so that the kernels run
// on torch's own thread pool without linking to it. Null runs on the calling thread.
typedef void (*patchrec_body)(int64_t begin, int64_t end, void* context);
typedef int32_t (*patchrec_parallel_for)(int64_t begin, int64_t end, int64_t grain, patchrec_body body,
                                         void* context);

// The batch: a two-level CSR over token ids. ids and the two offsets are int32 or int64, as *_bytes says.
typedef struct {
  const void* ids;            // (tokens,)
  const void* token_offsets;  // (items + 1,)
  const void* item_offsets;   // (rows + 1,), or null: every item is a row
  int64_t tokens;
  int64_t items;
  int64_t rows;
  int64_t num_embeddings;
  int32_t id_bytes;
  int32_t offset_bytes;
} patchrec_batch;

// How to run.
typedef struct {
  patchrec_parallel_for parallel_for;
  int32_t threads;
  int32_t isa;  // patchrec_isa, at most patchrec_best_isa()
} patchrec_run;

enum patchrec_status { PATCHREC_OK = 0, PATCHREC_MALFORMED = 1, PATCHREC_NO_MEMORY = 2 };

#ifdef __cplusplus
extern "C" {
#endif

int32_t patchrec_abi_version(void);
int32_t patchrec_best_isa(void);

// out (rows, d) from weight (num_embeddings, d). MALFORMED (an id out of range, offsets that are no partition) is
// found before anything is read through them, and leaves out as it was.
int32_t patchrec_compress(const patchrec_batch* batch, void* out, const void* weight, int64_t weight_stride, int64_t d,
                          int32_t dtype, const patchrec_run* run);

// into (num_embeddings, d), rows into_stride elements apart: the rows of ids that occur are overwritten with their
// gradient, or added to, read once and rounded once, if accumulate.
int32_t patchrec_compress_backward(const patchrec_batch* batch, void* into, int64_t into_stride, const void* grad,
                                   int64_t grad_stride, int64_t d, int32_t dtype, int32_t accumulate,
                                   const patchrec_run* run);

// The same for a table of the ids that occur. `transpose` groups the tokens by them and counts them, the other writes
// unique (U,) int64 ascending and out (U, d), and frees the handle.
int32_t patchrec_transpose(const patchrec_batch* batch, void** handle, int64_t* count);
void patchrec_compress_backward_sparse(void* handle, int64_t* unique, void* out, const void* grad, int64_t grad_stride,
                                       int64_t d, int32_t dtype, const patchrec_run* run);

#ifdef __cplusplus
}
#endif
