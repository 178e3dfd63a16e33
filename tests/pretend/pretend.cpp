// SPDX-License-Identifier: Apache-2.0
// A CUDA device whose memory is the host's: what torch dispatches to CUDA, done by the CPU and counted.
//
// An operator without a kernel here goes to torch's CPU fallback. Memory is poisoned when it is allocated (NaN, -1) and
// when it is freed. Between capture_begin and capture_end nothing that was there before is changed: operators are kept,
// with the tensors they read and wrote, and run by replay.

#include "state.h"

namespace {

// ------------------------------------------------------------------------------------------------------- operators

// Those that tell the host something of the contents.
const std::set<std::string> WAITS = {
    "aten::nonzero", "aten::masked_select",  "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive",
    "aten::equal",   "aten::bincount",       "aten::_linalg_check_errors",
};
// The indices of `aten::index` are made ready, and waited for, before it comes here.
const std::string INDEX = "aten::index", INDEX_PUT = "aten::_index_put_impl_";

void check_devices(const std::string& name, const std::vector<c10::IValue>& inputs) {
  const bool index = name == INDEX || name == INDEX_PUT;
  for (size_t i = 0; i < inputs.size(); ++i)
    each_tensor(inputs[i], [&](const at::Tensor& x) {
      if (x.device().is_cpu() && x.dim() > 0) {
        TORCH_CHECK(index, "Expected all tensors to be on the same device, but ", name, " got one on cpu beside cuda:0");
        TORCH_CHECK(i == 1, "indices should be either on cpu or on the same device as the indexed tensor (cpu)");
        if (name == INDEX_PUT) wait_for(name + " with indices on the CPU");
      }
      const auto type = x.scalar_type();
      if (name == INDEX_PUT && i == 1 && (type == at::kBool || type == at::kByte)) wait_for(name + " by a mask");
    });
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const std::string& name = schema.name();
  const auto arguments = torch::jit::last(*stack, schema.arguments().size());
  const std::vector<c10::IValue> inputs(arguments.begin(), arguments.end());
  check_devices(name, inputs);
  if (WAITS.count(name)) wait_for(name);
  if (name == "aten::repeat_interleave" && inputs.back().isNone()) wait_for(name + " of an unknown size");
  launched(name);
  const bool recorded = capture && !quiet;
  Step step{op, {}, {}};
  if (recorded) {
    will_write(schema, inputs);
    for (const auto& each : inputs) step.inputs.push_back(held(each));
  }
  {
    Quiet inside;
    at::native::cpu_fallback(op, stack);
  }
  if (!recorded) return;
  for (const auto& each : torch::jit::last(*stack, schema.returns().size())) step.outputs.push_back(held(each));
  capture->steps.push_back(std::move(step));
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& source, bool non_blocking) {
  const bool to = on_device(self), from = on_device(source);
  if (to && from) {
    launched("aten::copy_");
  } else {
    const std::string way = to ? "copy to the device" : "copy to the host";
    count(way);
    if (!non_blocking) wait_for(way);
    if (!quiet && !is_pinned((to ? source : self).storage().data())) refuse(way + ", of pageable memory");
  }
  const bool recorded = capture && !quiet;
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::copy_", "");
  if (recorded) {
    Step step{op, {held(self), held(source), non_blocking}, {held(self)}};
    will_write(op.schema(), step.inputs);
    capture->steps.push_back(std::move(step));
  }
  Quiet inside;
  at::NoGradGuard without;
  host(self).copy_(host(source));
  return self;
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& target, bool) {
  host(target).copy_(host(self));
  return target;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& target) {
  if (target.sizes() != self.sizes()) target.resize_(self.sizes());
  return copy_from(self, target, false);
}

at::Scalar item(const at::Tensor& self) {
  wait_for("item");
  return host(self).item();
}

at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &memory, KEYS, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &memory,
                                           KEYS, c10::dtype_or_default(dtype));
}

const at::Tensor& resize_(const at::Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat>) {
  int64_t elements = self.storage_offset();
  elements += c10::multiply_integers(size);
  const size_t bytes = elements * self.element_size(), had = self.storage().nbytes();
  if (had < bytes) {
    auto block = memory.allocate(bytes);
    if (had) std::memcpy(block.get(), self.storage().data(), had);
    self.storage().unsafeGetStorageImpl()->set_data_ptr(std::move(block));
    self.storage().unsafeGetStorageImpl()->set_nbytes(bytes);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return self;
}

at::Tensor& set_storage(at::Tensor& self, at::Storage storage, int64_t offset, at::IntArrayRef size,
                        at::IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}

at::Tensor& set_whole(at::Tensor& self, at::Storage storage) {
  const int64_t elements = int64_t(storage.nbytes()) / self.element_size();
  return set_storage(self, std::move(storage), 0, {elements}, {1});
}

at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  return set_storage(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

void record_stream(at::Tensor&, at::Stream) {}

// ------------------------------------------------------------------------------------------------------------ hooks

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, ONLY); }
  c10::DeviceType type() const override { return CUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return ONLY; }
  c10::Device getDevice() const override { return ONLY; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

}  // namespace

namespace at {
struct PretendHooks final : CUDAHooksInterface {
  explicit PretendHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }
  Device getDeviceFromPtr(void*) const override { return ONLY; }
  const Generator& getDefaultGenerator(DeviceIndex) const override { return detail::getDefaultCPUGenerator(); }
  Generator getNewGenerator(DeviceIndex) const override { return detail::createCPUGenerator(); }
};
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, PretendHooks)
}  // namespace at

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("copy_", copy_);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", item);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("resize_", resize_);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("set_.source_Storage", set_whole);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("record_stream", record_stream);
}

// Sparse tensors are a pair of dense ones; nothing is computed of them here.
TORCH_LIBRARY_IMPL(aten, SparseCUDA, m) {
  m.impl("_sparse_coo_tensor_with_dims_and_tensors", at::native::new_with_dims_and_tensor_sparse_symint);
  m.impl("_indices", at::native::_indices_sparse);
  m.impl("_values", at::native::_values_sparse);
  m.impl("indices", at::native::indices_sparse);
  m.impl("values", at::native::values_sparse);
  m.impl("is_coalesced", at::native::is_coalesced_sparse);
  m.impl("_coalesced_", at::native::_coalesced_sparse_);
  m.impl("_nnz", at::native::_nnz_sparse);
  m.impl("sparse_dim", at::native::sparse_dim_sparse);
  m.impl("dense_dim", at::native::dense_dim_sparse);
}

// ----------------------------------------------------------------------------------------------- for device.py only

TORCH_LIBRARY(pretend, m) {
  m.def("counts() -> Dict(str, int)", [] {
    c10::Dict<std::string, int64_t> made;
    for (const auto& [name, times] : counts) made.insert(name, times);
    return made;
  });
  m.def("reset_counts() -> ()", [] { counts.clear(); });
  m.def("wait(str what) -> ()", [](std::string what) { asked_to_wait(what); });
  m.def("launched(str name) -> ()", [](std::string name) { launched(name); });
  m.def("set_sync_mode(int mode) -> ()", [](int64_t mode) { sync_mode = mode; });
  m.def("set_limit(int bytes) -> ()", [](int64_t bytes) { limit = bytes; });
  m.def("memory() -> int[]", [] { return std::vector<int64_t>{allocated, peak, limit}; });
  m.def("reset_peak() -> ()", [] { peak = allocated; });
  m.def("host(Tensor x) -> Tensor", [](const at::Tensor& x) { return host(x); });
  m.def("capturing() -> bool", [] { return capture != nullptr; });
  m.def("capture_begin(int graph) -> ()", [](int64_t graph) {
    TORCH_CHECK(!capture, "a capture is under way");
    capture = &graphs[graph];
    *capture = Capture();
  });
  m.def("capture_end() -> ()", [] {
    Capture& made = *capture;
    capture = nullptr;
    for (char* block : fresh) std::memset(block, 0xFF, reinterpret_cast<int64_t*>(block - HEAD)[0]);
    for (auto& [data, old] : made.before) std::memcpy(data, old.second.data(), old.second.size());
    fresh.clear();
    made.before.clear();
    TORCH_CHECK(made.valid, "CUDA error: operation failed due to a previous error during capture");
  });
  m.def("mark(Tensor[] written) -> ()", [](std::vector<at::Tensor> written) {
    for (const auto& each : written) keep_contents(each);
    capture->steps.push_back({});
  });
  m.def("replay(int graph, int start) -> int", [](int64_t graph, int64_t start) {  // up to a mark; one past it
    const auto& steps = graphs.at(graph).steps;
    Quiet inside;
    at::AutoDispatchBelowADInplaceOrView below;
    while (start < int64_t(steps.size()) && steps[start].op) replay(steps[start++]);
    return start + 1;
  });
  m.def("drop(int graph) -> ()", [](int64_t graph) { graphs.erase(graph); });
}
