// SPDX-License-Identifier: Apache-2.0
// The C ABI: forward and the backwards, each a CSR and one segment sum.
#include "compress.h"

#include <new>
#include <utility>

#include "segments.h"

extern "C" int32_t patchrec_abi_version(void) { return PATCHREC_ABI_VERSION; }

extern "C" int32_t patchrec_compress(const patchrec_batch* batch, void* out, const void* weight, int64_t weight_stride,
                                     int64_t d, int32_t dtype, const patchrec_run* run) {
  Csr csr;
  const patchrec_status status = group(*batch, Grouping::kByRow, &csr);
  if (status != PATCHREC_OK) return status;
  segment_sum({&csr, out, d, weight, weight_stride, d, dtype, false}, *run);
  return PATCHREC_OK;
}

extern "C" int32_t patchrec_compress_backward(const patchrec_batch* batch, void* into, int64_t into_stride,
                                              const void* grad, int64_t grad_stride, int64_t d, int32_t dtype,
                                              int32_t accumulate, const patchrec_run* run) {
  Csr by_id;
  const patchrec_status status = group(*batch, Grouping::kById, &by_id);
  if (status != PATCHREC_OK) return status;
  segment_sum({&by_id, into, into_stride, grad, grad_stride, d, dtype, accumulate != 0}, *run);
  return PATCHREC_OK;
}

extern "C" int32_t patchrec_transpose(const patchrec_batch* batch, void** handle, int64_t* count) {
  std::unique_ptr<Csr> by_id(new (std::nothrow) Csr);
  if (!by_id) return PATCHREC_NO_MEMORY;
  const patchrec_status status = group(*batch, Grouping::kById, by_id.get());
  if (status != PATCHREC_OK) return status;
  *count = by_id->segments;
  *handle = by_id.release();
  return PATCHREC_OK;
}

extern "C" void patchrec_compress_backward_sparse(void* handle, int64_t* unique, void* out, const void* grad,
                                                  int64_t grad_stride, int64_t d, int32_t dtype,
                                                  const patchrec_run* run) {
  const std::unique_ptr<Csr> by_id(static_cast<Csr*>(handle));
  for (int64_t s = 0; s < by_id->segments; ++s) unique[by_id->rank[s]] = by_id->out[s];
  by_id->out = std::move(by_id->rank);
  segment_sum({by_id.get(), out, d, grad, grad_stride, d, dtype, false}, *run);
}
