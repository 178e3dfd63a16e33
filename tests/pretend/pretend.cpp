// SPDX-License-Identifier: Apache-2.0
// A CUDA device whose memory is the host's: what torch dispatches to CUDA, done by the CPU and counted.
//
// An operator without a kernel here goes to torch's CPU fallback. Memory is poisoned when it is allocated (NaN, -1) and
// when it is freed. Between capture_begin and capture_end nothing that was there before is changed: operators are kept,
// with the tensors they read and wrote, and run by replay.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/NativeFunctions.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace {

constexpr auto CUDA = c10::DeviceType::CUDA;
const c10::DispatchKeySet KEYS(c10::DispatchKey::CUDA);
const c10::Device ONLY(CUDA, 0);

// ---------------------------------------------------------------------------------------------------------- counts

std::recursive_mutex state;  // autograd and loaders call from threads of their own
std::map<std::string, int64_t> counts;
thread_local int quiet = 0;  // inside the work of one launch
int64_t sync_mode = 0;       // torch.cuda.set_sync_debug_mode: 1 warns, 2 raises

struct Quiet {
  Quiet() { ++quiet; }
  ~Quiet() { --quiet; }
};

void count(const std::string& what) {
  std::lock_guard<std::recursive_mutex> lock(state);
  if (!quiet) counts[what] += 1;
}

struct Capture;
Capture* capture = nullptr;  // the one that is under way
void invalidate();

void refuse(const std::string& what) {  // in a capture
  if (!capture) return;
  invalidate();
  TORCH_CHECK(false, "CUDA error: operation not permitted when stream is capturing: ", what);
}

void asked_to_wait(const std::string& what) {  // by name: torch's debug mode is silent about it
  if (quiet) return;
  count("wait: " + what);
  refuse(what + " waits for the device");
}

void wait_for(const std::string& what) {
  if (quiet) return;
  asked_to_wait(what);
  if (sync_mode == 1) TORCH_WARN("called a synchronizing CUDA operation: ", what);
  TORCH_CHECK(sync_mode != 2, "called a synchronizing CUDA operation: ", what);
}

void launched(const std::string& name) {
  count("launches");
  count(name);
}

// ---------------------------------------------------------------------------------------------------------- memory

constexpr size_t HEAD = 512;  // before each block: its size; CUDA's own blocks begin at multiples of 512 too
int64_t allocated = 0, peak = 0, limit = int64_t(80) << 30;
std::set<char*> fresh;  // blocks of the capture under way

struct Memory final : c10::Allocator {
  static void drop(void* data) {
    if (!data) return;
    std::lock_guard<std::recursive_mutex> lock(state);
    char* block = static_cast<char*>(data);
    auto* head = reinterpret_cast<int64_t*>(block - HEAD);
    std::memset(block, 0xFB, head[0]);
    allocated -= head[0];
    fresh.erase(block);
    std::free(head);
  }
  c10::DataPtr allocate(size_t bytes) override {
    std::lock_guard<std::recursive_mutex> lock(state);
    const size_t size = (bytes + HEAD - 1) / HEAD * HEAD;
    TORCH_CHECK_WITH(OutOfMemoryError, allocated + int64_t(size) <= limit, "CUDA out of memory: tried ", size, " bytes");
    auto* head = static_cast<char*>(std::aligned_alloc(HEAD, size + HEAD));
    reinterpret_cast<int64_t*>(head)[0] = int64_t(size);
    char* block = head + HEAD;
    std::memset(block, 0xFF, size);
    allocated += int64_t(size);
    peak = std::max(peak, allocated);
    if (capture) fresh.insert(block);
    count("allocations");
    return {block, block, &drop, ONLY};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &drop; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Memory memory;
REGISTER_ALLOCATOR(CUDA, &memory)

std::set<const void*> pinned;  // blocks of page-locked host memory

struct Pinned final : c10::Allocator {
  static void drop(void* data) {
    std::lock_guard<std::recursive_mutex> lock(state);
    pinned.erase(data);
    std::free(data);
  }
  c10::DataPtr allocate(size_t bytes) override {
    std::lock_guard<std::recursive_mutex> lock(state);
    void* block = std::aligned_alloc(64, (bytes + 64) / 64 * 64);
    pinned.insert(block);
    return {block, block, &drop, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &drop; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Pinned pinned_memory;

bool is_pinned(const void* storage) {
  std::lock_guard<std::recursive_mutex> lock(state);
  return pinned.count(storage) > 0;
}

bool on_device(const at::Tensor& x) { return x.device().type() == CUDA; }

at::Tensor host(const at::Tensor& x) {  // the same memory as a CPU tensor
  if (!on_device(x)) return x;
  auto made = at::from_blob(x.data_ptr(), x.sizes(), x.strides(), [x](void*) {}, at::dtype(x.scalar_type()));
  made._set_conj(x.is_conj());
  made._set_neg(x.is_neg());
  return made;
}

// --------------------------------------------------------------------------------------------------------- capture

struct Step {  // an operator; without one, a mark where Python launched something
  std::optional<c10::OperatorHandle> op;
  std::vector<c10::IValue> inputs, outputs;
};

struct Capture {
  std::vector<Step> steps;
  std::map<char*, std::pair<c10::Storage, std::vector<char>>> before;  // of what was written: contents
  bool valid = true;
};
std::map<int64_t, Capture> graphs;
void invalidate() { capture->valid = false; }

template <class F>
void each_tensor(const c10::IValue& value, F f) {
  if (value.isTensor()) {
    if (value.toTensor().defined()) f(value.toTensor());
  } else if (value.isTensorList() || value.isOptionalTensorList() || value.isList()) {
    for (const c10::IValue& each : value.toListRef()) each_tensor(each, f);
  }
}

c10::IValue held(const c10::IValue& value) {  // sizes and strides as they are now
  if (value.isTensor()) return value.toTensor().defined() ? c10::IValue(value.toTensor().variable_data()) : value;
  if (value.isTensorList()) {
    c10::List<at::Tensor> copies;
    for (const at::Tensor& each : value.toTensorVector()) copies.push_back(each.variable_data());
    return copies;
  }
  return value;
}

void keep_contents(const at::Tensor& x) {
  auto* data = static_cast<char*>(x.storage().mutable_data());
  if (!on_device(x) || fresh.count(data) || capture->before.count(data)) return;
  capture->before.emplace(data, std::pair(x.storage(), std::vector<char>(data, data + x.storage().nbytes())));
}

void will_write(const c10::FunctionSchema& schema, const std::vector<c10::IValue>& inputs) {
  for (size_t i = 0; i < inputs.size(); ++i) {
    const auto* alias = schema.arguments()[i].alias_info();
    if (alias && alias->isWrite()) each_tensor(inputs[i], keep_contents);
  }
}

void replay(const Step& step) {
  torch::jit::Stack stack(step.inputs.begin(), step.inputs.end());
  step.op->redispatchBoxed(KEYS, &stack);
  for (size_t i = 0; i < stack.size(); ++i) {
    std::vector<at::Tensor> made, kept;
    each_tensor(stack[i], [&](const at::Tensor& x) { made.push_back(x); });
    each_tensor(step.outputs[i], [&](const at::Tensor& x) { kept.push_back(x); });
    for (size_t j = 0; j < made.size(); ++j)
      if (on_device(made[j]) && made[j].data_ptr() != kept[j].data_ptr()) host(kept[j]).copy_(host(made[j]));
  }
}

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
