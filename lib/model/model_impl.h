// The inside of Model and Context.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "core/buffer.h"
#include "core/services.h"
#include "metrics/counters.h"
#include "model/device_model.h"
#include "model/layer.h"
#include "model/workspace.h"
#include "moe/model.h"
#include "store/forward_experts.h"
#include "store/store_impl.h"

namespace moe {

struct Context::Impl {
  explicit Impl(Model::Impl& owner);
  ~Impl();

  // Makes room for `batch` on `layer`; allocates only if it is larger than any before.
  Result<Workspace> workspace(const StoreLayer& layer, const BatchShape& batch);

  Model::Impl& model;
  EpochReader reader;
  Wave wave;
  ForwardExperts experts;
  LookAhead look_ahead;
  Stream stream;
  Buffer buffer;
  std::unique_ptr<DeviceContext> device;  // null: the CPU
};

struct Model::Impl {
  ~Impl();

  Status forward(Context::Impl& context, int32_t layer, const TensorView& hidden,
                 const MutableTensorView& out, const ForwardOptions& options);

  // A context for a caller that brought none: one per concurrent caller, kept for reuse.
  std::unique_ptr<Context::Impl> borrow_context();
  void return_context(std::unique_ptr<Context::Impl> context);

  std::unique_ptr<Checkpoint> checkpoint;  // if this model opened it
  std::optional<ExpertStore> own_store;    // if no store was given
  ExpertStore* store = nullptr;
  ModelOptions options;
  Services services;
  std::unique_ptr<DeviceModel> device;                   // null: the CPU
  std::vector<std::unique_ptr<LayerCounters>> counters;  // parallel to store layers
  std::atomic<int64_t> errors{0};
  std::atomic<int64_t> in_flight{0};

  std::mutex idle_mutex;
  std::vector<std::unique_ptr<Context::Impl>> idle;
};

}  // namespace moe
