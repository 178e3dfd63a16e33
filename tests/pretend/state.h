// SPDX-License-Identifier: Apache-2.0
// The pretended device's state: counts, memory, and what a capture keeps. Of pretend.cpp alone.

#pragma once

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

}  // namespace
