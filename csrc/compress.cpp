// SPDX-License-Identifier: Apache-2.0
// The C ABI: forward and the backwards, each a CSR and one segment sum.
#include "compress.h"

#include <new>

#include "segments.h"

namespace {

patchrec_status flatten_and_transpose(const patchrec_batch& batch, Transposed* by_id) {
  Csr flat;
  const patchrec_status status = flatten(batch, &flat);
  return status == PATCHREC_OK ? transpose(flat, batch.num_embeddings, by_id) : status;
}

}  // namespace

extern "C" int32_t patchrec_abi_version(void) { return PATCHREC_ABI_VERSION; }

extern "C" int32_t patchrec_compress(const patchrec_batch* batch, void* out, const void* weight, int64_t weight_stride,
                                     int64_t d, int32_t dtype, const patchrec_run* run) {
  Csr csr;
  const patchrec_status status = flatten(*batch, &csr);
  if (status != PATCHREC_OK) return status;
  segment_sum({&csr, nullptr, out, d, weight, weight_stride, d, dtype, false}, *run);
  return PATCHREC_OK;
}

extern "C" int32_t patchrec_compress_backward(const patchrec_batch* batch, void* into, int64_t into_stride,
                                              const void* grad, int64_t grad_stride, int64_t d, int32_t dtype,
                                              int32_t accumulate, const patchrec_run* run) {
  Transposed by_id;
  const patchrec_status status = flatten_and_transpose(*batch, &by_id);
  if (status != PATCHREC_OK) return status;
  segment_sum({&by_id, by_id.id.get(), into, into_stride, grad, grad_stride, d, dtype, accumulate != 0}, *run);
  return PATCHREC_OK;
}

extern "C" int32_t patchrec_transpose(const patchrec_batch* batch, void** handle, int64_t* count) {
  std::unique_ptr<Transposed> by_id(new (std::nothrow) Transposed);
  if (!by_id) return PATCHREC_NO_MEMORY;
  const patchrec_status status = flatten_and_transpose(*batch, by_id.get());
  if (status != PATCHREC_OK) return status;
  *count = by_id->segments;
  *handle = by_id.release();
  return PATCHREC_OK;
}

extern "C" void patchrec_compress_backward_sparse(void* handle, int64_t* unique, void* out, const void* grad,
                                                  int64_t grad_stride, int64_t d, int32_t dtype,
                                                  const patchrec_run* run) {
  const std::unique_ptr<Transposed> by_id(static_cast<Transposed*>(handle));
  for (int64_t s = 0; s < by_id->segments; ++s) unique[by_id->rank[s]] = by_id->id[s];
  segment_sum({by_id.get(), by_id->rank.get(), out, d, grad, grad_stride, d, dtype, false}, *run);
}
