// A model's MoE layers behind one call per batch and layer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moe/checkpoint.h"
#include "moe/expert_gemm.h"
#include "moe/expert_store.h"
#include "moe/export.h"
#include "moe/host.h"
#include "moe/router.h"
#include "moe/status.h"
#include "moe/stream.h"
#include "moe/tensor.h"
#include "moe/usage.h"
#include "moe/weights.h"

namespace moe {

// How the experts of one batch are computed on the CPU.
enum class Execution : int32_t {
  grouped,     // all experts of the batch share one parallel job
  sequential,  // one expert after another with one expert's workspace; the same bits
};

// How a model is loaded and run. On a GPU a forward only enqueues, and may be captured in a graph,
// unless expert_memory makes it wait for experts.
struct ModelOptions {
  Device device = {};  // where the layers are computed

  // Bytes for expert slots. 0 keeps every expert resident; with fewer than the experts take, they
  // are loaded when a forward needs them, and `eviction` (a policy's name; empty: the default)
  // decides which ones make room.
  size_t expert_memory = 0;
  std::string eviction;                        // ignored while everything is resident
  EvictionPolicy* eviction_policy = nullptr;   // host's own; not owned, must outlive the model
  EventSink* events = nullptr;                 // of the store; not owned, must outlive the model
  PrefetchKind prefetch = PrefetchKind::none;  // as ExpertStoreOptions says
  int64_t scrub_bytes_per_second = 0;          // ditto
  RestoreOptions restore;                      // ditto; ignored over a store that is given

  // How experts are kept; empty: as the source has them. int8 and int4 quantise while they load, so
  // that a bf16 model takes half or a quarter of its memory. Ignored over a store that is given.
  std::optional<Format> format;

  // Layer indices to load. Empty: all MoE layers.
  std::vector<int32_t> layers;

  Execution execution = Execution::grouped;  // CPU only
  std::string gemm;  // name of a row of expert_gemm_rows(); empty: the best one that fits
  ExpertGemmOptions gemm_options;  // how exact the rows must be

  // Host's own parts; not owned, must outlive the model. Null: the library's.
  const Router* router = nullptr;           // used for every layer
  const ExpertGemm* expert_gemm = nullptr;  // also says how slots are laid out
  HostServices host;                        // not owned; must outlive the model

  Progress progress = nullptr;        // called while experts load; false cancels
  void* progress_argument = nullptr;  // passed through to `progress`
};

// Late news of one forward. Written before forward() returns on the CPU, by the last kernel on a
// GPU (then it must lie in pinned memory and be read after the stream has passed).
struct ForwardReport {
  uint64_t epoch = 0;                 // of the table that served the batch
  int64_t rows = 0;                   // rows computed (valid_rows applied)
  int64_t degraded_rows = 0;          // rows computed with fewer experts than routed
  int64_t nonfinite_rows = 0;         // rows with a non-finite router logit
  int64_t short_rows = 0;             // rows with fewer than top_k candidates
  int64_t candidate_rows = 0;         // rows served by a version that is being tried
  int64_t dropped = 0;                // choices lost to the router's capacity
  StatusCode error = StatusCode::ok;  // found after launch

  // Time of the stages, by the model's clock. 0 on a GPU.
  int64_t route_ns = 0;
  int64_t experts_ns = 0;  // waiting for absent experts included
  int64_t shared_ns = 0;   // what was not computed in one pass with the chosen experts
  int64_t combine_ns = 0;  // the weighted sum
};

// All optional. Arrays lie where the model computes: on a GPU they are device memory, read and
// written when the stream comes to it.
struct ForwardOptions {
  int32_t top_k = 0;                     // 0: the model's
  const uint8_t* expert_mask = nullptr;  // (tokens, candidates), 1 = allowed

  // Replay and record. (tokens, top_k). routing_in skips the router; ids of -1 are no expert.
  const Routing* routing_in = nullptr;
  Routing* routing_out = nullptr;  // filled by the call; arrays are the host's

  // Counts what the rows chose as one step of the layer; not owned. Several forwards may share it.
  // CPU only: on a GPU take routing_out and record() it once the stream has passed.
  UsageWindow* usage = nullptr;

  TensorView router_logits;  // (tokens, candidates): skips the router's matrix product
  TensorView router_input;   // (tokens, hidden): rows the router reads; empty: `hidden`

  const int64_t* token_ids = nullptr;     // (tokens), for token-lookup layers
  const int64_t* valid_rows = nullptr;    // one value, on the stream's device; rows past it are
                                          // neither read nor written. Null: all
  const uint64_t* request_ids = nullptr;  // (tokens): stable shares between versions

  bool accumulate = false;       // out += result
  bool skip_shared = false;      // leave shared experts out
  bool batch_invariant = false;  // a row's bits depend on that row alone; refused where the layer
                                 // drops rows beyond a capacity
  int64_t deadline_ns = 0;       // most time this call may take, from its entry; 0: 60 s

  ForwardReport* report = nullptr;  // written by the call
};

class Model;

// Where a context works, and how much it takes at once.
struct ContextOptions {
  Stream stream;           // of the model's device
  int64_t max_tokens = 0;  // workspace for this many rows is taken at once; 0: grows when needed
};

// Workspace of forwards on one stream or captured graph. Movable; never used by two calls at once.
// A context with which a graph was captured does not grow: set ContextOptions::max_tokens.
// Grows on the first larger batch, so that later forwards allocate nothing.
class MOE_API Context {
 public:
  // A context for `model`, which must outlive it. resource_exhausted if there is no memory.
  static Result<Context> create(const Model& model, const ContextOptions& options = {});
  Context(Context&&) noexcept;
  Context& operator=(Context&&) noexcept;
  ~Context();  // must not outlive its model

  // What create() would take for batches of up to `max_tokens` rows, in bytes.
  static Result<size_t> workspace_bytes(const Model& model, int64_t max_tokens);

  struct Impl;
  Impl* impl() const noexcept { return impl_.get(); }  // used by the library alone

 private:
  explicit Context(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Safe for concurrent use; several threads may forward at once, each with its own Context.
// Destroying a model waits for forwards in flight.
class MOE_API Model {
 public:
  // Opens the checkpoint and makes every expert of the chosen layers resident.
  static Result<Model> load(std::string_view directory, const ModelOptions& options = {});

  // From any source, which must outlive the model.
  static Result<Model> create(const WeightSource& source, const ModelOptions& options = {});

  // Over a store that several models share. `store` must outlive the model; options.expert_memory
  // and options.layers are the store's.
  static Result<Model> create(ExpertStore& store, const ModelOptions& options = {});

  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  // out = block(hidden): routed experts, combined, plus shared experts, for every row.
  // `layer` is the checkpoint's own index. hidden and out: (tokens, hidden), f32, bf16 or f16,
  // rows may be strided; out may be hidden itself, but not overlap it otherwise.
  // After an error `out` is unspecified and everything else is as before.
  Status forward(Context& context, int32_t layer, const TensorView& hidden,
                 const MutableTensorView& out, const ForwardOptions& options = {});

  // The same with a workspace that the model keeps per concurrent caller. CPU only.
  Status forward(int32_t layer, const TensorView& hidden, const MutableTensorView& out,
                 const ForwardOptions& options = {});

  // The loaded MoE layers, ascending in LayerSpec::layer.
  const std::vector<LayerSpec>& layers() const noexcept;
  // The spec of `layer`, or invalid_argument listing the MoE layers.
  Result<LayerSpec> layer(int32_t layer) const;

  ExpertStore& store() noexcept;              // the one that holds the experts
  const ExpertStore& store() const noexcept;  // ditto

  // Text: which backend runs what, and why the others were passed over.
  std::string describe() const;

  struct Impl;
  Impl* impl() const noexcept { return impl_.get(); }  // used by the library alone

 private:
  explicit Model(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace moe
