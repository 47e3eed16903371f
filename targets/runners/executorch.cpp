// One .pte program behind a small C interface, which artifact.py loads by ctypes: ExecuTorch's own Python needs libtorch,
// which an emulated phone has no use for. Compiled by executorch.py, for this machine and for the emulated one.
//
// Functions that can fail return 0 when they do not, else ExecuTorch's error number, which planish_error puts into words.
// A runner belongs to the thread that opened it.

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/core/event_tracer.h>
#include <executorch/runtime/platform/platform.h>

#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::aten::Tensor;
using executorch::runtime::AllocatorID;
using executorch::runtime::ArrayRef;
using executorch::runtime::ChainID;
using executorch::runtime::DebugHandle;
using executorch::runtime::DelegateDebugIntId;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::Result;
using executorch::runtime::Tag;

// The thread pool's header is not in the wheel, its library is.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace {

constexpr int kMaxRank = 16;
constexpr size_t kReadAhead = 128;  // bytes that vector kernels may read past the end of a tensor
const char kMethod[] = "forward";

// Keeps what ran, a line each, which profiled.py reads, and calls getpid where an instruction of the program begins and
// ends, which arm/records.py looks for. XNNPACK reads the clock around its operators and names them when all have run.
class Tracer : public executorch::runtime::EventTracer {
 public:
  using Entry = executorch::runtime::EventTracerEntry;
  std::string lines;

  Entry start_profiling(const char* name, ChainID, DebugHandle) override {
    Entry entry{};
    entry.event_id = std::strcmp(name, "DELEGATE_CALL") == 0 || std::strcmp(name, "OPERATOR_CALL") == 0;
    lines.append("begin ").append(name).append("\n");
    if (entry.event_id) getpid();
    return entry;
  }
  void end_profiling(Entry entry) override {
    if (entry.event_id) getpid();
    lines.append("end\n");
  }
  void log_profiling_delegate(const char* name, DelegateDebugIntId, et_timestamp_t, et_timestamp_t, const void*,
                              size_t) override {
    lines.append("ran ").append(name ? name : "").append("\n");
  }

  void create_event_block(const char*) override {}
  Entry start_profiling_delegate(const char*, DelegateDebugIntId) override { return Entry(); }
  void end_profiling_delegate(Entry, const void*, size_t) override {}
  void track_allocation(AllocatorID, size_t) override {}
  AllocatorID track_allocator(const char*) override { return 0; }
  Result<bool> log_evalue(const EValue&, executorch::runtime::LoggedEValueType) override { return false; }
  Result<bool> log_intermediate_output_delegate(const char*, DelegateDebugIntId, const Tensor&) override {
    return false;
  }
  Result<bool> log_intermediate_output_delegate(const char*, DelegateDebugIntId, const ArrayRef<Tensor>) override {
    return false;
  }
  Result<bool> log_intermediate_output_delegate(const char*, DelegateDebugIntId, const int&) override { return false; }
  Result<bool> log_intermediate_output_delegate(const char*, DelegateDebugIntId, const bool&) override { return false; }
  Result<bool> log_intermediate_output_delegate(const char*, DelegateDebugIntId, const double&) override {
    return false;
  }
  void set_delegation_intermediate_output_filter(executorch::runtime::EventTracerFilterBase*) override {}
};

struct Runner {
  Runner(const char* path, std::unique_ptr<Tracer> profiler)
      : tracer(profiler.get()), module(path, Module::LoadMode::File, std::move(profiler)) {}

  Tracer* tracer;  // the module's; null where nothing is profiled
  Module module;
  std::vector<std::vector<uint8_t>> buffers;  // of the inputs
  std::vector<TensorPtr> tensors;             // over these buffers
  std::vector<EValue> inputs, outputs;
};

thread_local std::string complaint;  // the first error logged in this call; the later ones follow from it

// ExecuTorch would write to stderr, mostly how it counted the processors.
void keep_errors(et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t, const char* message,
                 size_t length) {
  if ((level == kError || level == kFatal) && complaint.empty()) complaint.assign(message, length);
}

const bool registered = executorch::runtime::register_pal(
    executorch::runtime::PalImpl::create(keep_errors, "planish"));

Error prepare_inputs(Runner& runner) {
  auto meta = runner.module.method_meta(kMethod);
  if (!meta.ok()) return meta.error();
  for (size_t i = 0; i < meta->num_inputs(); ++i) {
    auto info = meta->input_tensor_meta(i);  // fails for an input that is no tensor
    if (!info.ok()) return info.error();
    if (info->sizes().size() > kMaxRank) return Error::NotSupported;
    std::vector<executorch::aten::SizesType> sizes(info->sizes().begin(), info->sizes().end());
    std::vector<executorch::aten::DimOrderType> order(info->dim_order().begin(), info->dim_order().end());
    runner.buffers.emplace_back(info->nbytes() + kReadAhead);
    runner.tensors.push_back(executorch::extension::make_tensor_ptr(
        sizes, runner.buffers.back().data(), order, {}, info->scalar_type()));
    runner.inputs.emplace_back(runner.tensors.back());
  }
  return Error::Ok;
}

}  // namespace

extern "C" {

// A tensor as artifact.py's ctypes.Structure declares it; memory holds the dimensions in `order`, slowest first.
struct PlanishTensor {
  int32_t type;  // ExecuTorch's ScalarType
  int32_t rank;
  int32_t sizes[kMaxRank];
  int32_t order[kMaxRank];
  const void* data;
  uint64_t bytes;
};

// Good until the next call.
const char* planish_error(int error) {
  complaint = std::string(executorch::runtime::to_string(static_cast<Error>(error))) +
              (complaint.empty() ? "" : ": " + complaint);
  return complaint.c_str();
}

int planish_open(const char* path, int threads, int profiled, void** opened) {
  complaint.clear();
  auto* pool = executorch::extension::threadpool::get_threadpool();
  // Delegates keep the pool they were loaded with, so its size is set before the method is loaded.
  if (pool->get_thread_count() != static_cast<size_t>(threads) && !pool->_unsafe_reset_threadpool(threads))
    return static_cast<int>(Error::Internal);
  auto runner = std::make_unique<Runner>(path, profiled ? std::make_unique<Tracer>() : nullptr);
  Error error = runner->module.load_method(kMethod);
  if (error == Error::Ok) error = prepare_inputs(*runner);
  if (error == Error::Ok) *opened = runner.release();
  return static_cast<int>(error);
}

void planish_close(void* opened) { delete static_cast<Runner*>(opened); }

int planish_inputs(void* opened) { return static_cast<Runner*>(opened)->inputs.size(); }

// After an inference; 0 before the first.
int planish_outputs(void* opened) { return static_cast<Runner*>(opened)->outputs.size(); }

// Describes input or output `index`; an output's data is good until the next inference.
int planish_tensor(void* opened, int output, int index, PlanishTensor* described) {
  auto* runner = static_cast<Runner*>(opened);
  const EValue& value = (output ? runner->outputs : runner->inputs).at(index);
  if (!value.isTensor() || value.toTensor().dim() > kMaxRank) return static_cast<int>(Error::NotSupported);
  const auto& tensor = value.toTensor();
  described->type = static_cast<int32_t>(tensor.scalar_type());
  described->rank = tensor.dim();
  for (int d = 0; d < described->rank; ++d) {
    described->sizes[d] = tensor.sizes()[d];
    described->order[d] = tensor.dim_order()[d];
  }
  described->data = tensor.const_data_ptr();
  described->bytes = tensor.nbytes();
  return 0;
}

// Copies `data`, in the memory order that planish_tensor says, into the input's buffer.
void planish_feed(void* opened, int index, const void* data) {
  auto* runner = static_cast<Runner*>(opened);
  std::memcpy(runner->buffers[index].data(), data, runner->tensors[index]->nbytes());
}

// One inference as an app's `module.forward(inputs)`, which hands the inputs over each time: the program may use their
// memory for something else.
int planish_invoke(void* opened) {
  complaint.clear();
  auto* runner = static_cast<Runner*>(opened);
  if (runner->tracer) runner->tracer->lines.clear();
  auto outputs = runner->module.execute(kMethod, runner->inputs);
  if (!outputs.ok()) return static_cast<int>(outputs.error());
  runner->outputs = std::move(*outputs);
  return 0;
}

// What a profiled runner ran in the last inference: "begin NAME", "ran NAME" and "end", a line each.
const char* planish_operators(void* opened) { return static_cast<Runner*>(opened)->tracer->lines.c_str(); }

}  // extern "C"
