// What runs the layers of a model whose store lies on a device. The CPU needs none (layer.h);
// cuda/runtime implements it for a GPU.
#pragma once

#include <cstdint>
#include <memory>

#include "moe/metrics.h"
#include "store/forward_experts.h"
#include "store/store_impl.h"

namespace moe {

// A forward whose arguments have been checked, as far as the host can see.
struct DeviceForward {
  StoreLayer& layer;
  TensorView hidden;      // (tokens, hidden), also those past *valid_rows
  MutableTensorView out;  // (tokens, hidden)
  const ForwardOptions& options;
  int32_t top_k = 0;
  EpochReader& reader;      // the context's
  Wave& wave;               // the context's, empty between forwards
  ForwardExperts& experts;  // the context's; paged layers only
  int64_t deadline_at_ns = 0;
};

// Workspace on one stream.
class DeviceContext {
 public:
  virtual ~DeviceContext() = default;  // waits for its forwards
};

// Safe for concurrent use with different contexts. Must not outlive the store.
class DeviceModel {
 public:
  virtual ~DeviceModel() = default;

  // Of a context for batches of up to `tokens` rows, in bytes of device memory.
  virtual size_t workspace_bytes(int64_t tokens) const = 0;
  virtual Result<std::unique_ptr<DeviceContext>> make_context(const Stream& stream,
                                                              int64_t max_tokens) = 0;
  // Enqueues the forward; waits only for absent experts of paged layers.
  virtual Status forward(DeviceContext& context, const DeviceForward& forward) = 0;

  // What forwards of the store's layer `index` counted when they ran, replays of graphs included:
  // all but the layer and the time. `counts` has its expert rows.
  virtual Status read_counts(size_t index, LayerMetrics* counts) = 0;
};

// For a store on a GPU; `options` are the model's. unimplemented, with what no kernel serves.
Result<std::unique_ptr<DeviceModel>> make_cuda_model(ExpertStore::Impl& store,
                                                     const ModelOptions& options);

}  // namespace moe
