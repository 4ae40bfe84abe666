// Model::forward on one GPU: turns what a host asks for into the arguments of a layer's kernels.
#include <algorithm>
#include <chrono>
#include <mutex>
#include <numeric>
#include <thread>

#include "core/error.h"
#include "gemm/backend.h"
#include "model/device_model.h"
#include "router/topk.h"
#include "runtime/layer.h"
#include "runtime/scope.h"
#include "store/cuda_store.h"

namespace moe::cuda {
namespace {

constexpr size_t kAlignment = 256;
constexpr int64_t kDestroyWaitNs = 60'000'000'000;

// ---- what is known of a layer once its store is open

struct LayerPlan {
  Network routed;
  PoolMaps routed_maps;
  SharedNetwork shared;
  PoolMaps shared_maps;
  bool has_shared = false;
  LayerShape shape;
  bool paged = false;
};

Status plan_network(const ExpertStore::Impl& store, const Compute& compute, const ExpertSpec& spec,
                    int32_t candidates, Network* network, PoolMaps* maps) {
  const auto* gemm = dynamic_cast<const GpuGemm*>(compute.gemm);
  if (!gemm)
    return error(StatusCode::unimplemented, {.phase = Phase::plan},
                 "backend {} is the host's own: on a GPU the library runs its own backends alone",
                 compute.gemm->name());
  const SlotPool& pool = *store.classes[compute.slot_class].pool;
  network->pool.base = pool.address(0);
  network->pool.slots = pool.capacity();
  network->pool.slot_bytes = static_cast<int64_t>(pool.slot_bytes());
  network->pool.shape = gemm->shape(spec);
  network->pool.sections = slot_sections(network->pool.shape);
  network->pool.num_experts = candidates;
  network->activation = static_cast<int32_t>(spec.activation);
  network->alpha = spec.alpha;
  network->limit = spec.limit;
  network->kernel = &gemm->kernel();
  network->rows = gemm->rows();
  if (!network->kernel->copy_engine) return {};
  MOE_RETURN_IF_ERROR(check(make_pool_maps(network->pool, maps),
                            "describe a pool of experts to the copy engine",
                            {.phase = Phase::plan}));
  network->maps = maps;
  return {};
}

// unimplemented, with the number that no kernel serves.
Status check_router(const RouterSpec& router) {
  const Place place = {.phase = Phase::plan};
  if (router.candidates() > kMaxExperts)
    return error(StatusCode::unimplemented, place, "{} candidates; the GPU's router takes up to {}",
                 router.candidates(), kMaxExperts);
  if (router.top_k > kMaxTopK)
    return error(StatusCode::unimplemented, place, "top_k is {}; the GPU's router takes up to {}",
                 router.top_k, kMaxTopK);
  return {};
}

Status plan_layer(const ExpertStore::Impl& store, const StoreLayer& layer, LayerPlan* plan) {
  const LayerSpec& spec = layer.spec;
  MOE_RETURN_IF_ERROR(check_router(spec.router));
  MOE_RETURN_IF_ERROR(plan_network(store, layer.routed, spec.expert, spec.router.candidates(),
                                   &plan->routed, &plan->routed_maps));
  plan->shape.routed = plan->routed.pool.shape;
  plan->shape.num_experts = spec.router.candidates();
  plan->shape.from_table = true;
  plan->shape.weights_on_input = spec.router.weight_on_input;
  plan->shape.paged = plan->paged = store.classes[layer.routed.slot_class].paged();
  if (!spec.shared) return {};
  MOE_RETURN_IF_ERROR(
      plan_network(store, layer.shared, spec.shared->expert, 1, &plan->shared, &plan->shared_maps));
  plan->has_shared = true;
  plan->shared.gated_by_row = spec.shared->sigmoid_gate;
  plan->shared.scale = spec.shared->shared_scale;
  plan->shape.shared = plan->shared.pool.shape;
  return {};
}

// ---- one stream's workspace

class CudaContext final : public DeviceContext {
 public:
  CudaContext(CudaStore& store, cudaStream_t stream) : store_(store), stream_(stream) {}
  ~CudaContext() override {
    const DeviceScope scope(store_.index());
    if (last_) {
      (void)wait(default_clock(), default_clock().now_ns() + kDestroyWaitNs);
      (void)cudaEventDestroy(last_);
    }
    if (reader_) store_.remove_reader(reader_);
    if (host_) (void)cudaFreeHost(host_);
    if (cell_) (void)cudaFreeHost(cell_);
  }

  Status start() {
    MOE_RETURN_IF_ERROR(
        check(cudaEventCreateWithFlags(&last_, cudaEventDisableTiming), "make an event"));
    MOE_ASSIGN_OR_RETURN(reader_, store_.add_reader());
    return {};
  }

  Status reserve(size_t bytes, bool capturing) {
    if (bytes <= buffer_.size()) return {};
    if (capturing || captured_)
      return error(
          StatusCode::failed_precondition, {.phase = Phase::plan},
          "this forward needs {} bytes of workspace and the context has {}; a context that "
          "a graph was captured with cannot grow: set ContextOptions::max_tokens",
          bytes, buffer_.size());
    MOE_RETURN_IF_ERROR(wait(default_clock(), default_clock().now_ns() + kDestroyWaitNs));
    buffer_ = {};  // the old one first: both need not fit
    auto bigger = Buffer::allocate(store_.memory(), bytes, "a forward's workspace", kAlignment);
    if (!bigger.ok())
      return error(StatusCode::resource_exhausted, {.phase = Phase::plan},
                   "no memory on cuda:{} for a forward's workspace: asked {} bytes, free {}",
                   store_.index(), bytes, store_.free_bytes());
    buffer_ = std::move(*bigger);
    return {};
  }

  // Pinned memory for what a paged forward exchanges with the host.
  Result<int32_t*> host_ints(int64_t count) {
    if (count > host_count_) {
      if (host_) (void)cudaFreeHost(std::exchange(host_, nullptr));
      host_count_ = 0;
      MOE_RETURN_IF_ERROR(check(cudaHostAlloc(reinterpret_cast<void**>(&host_),
                                              static_cast<size_t>(count) * 4, cudaHostAllocDefault),
                                "allocate pinned memory", {.phase = Phase::plan}));
      host_count_ = count;
    }
    return host_;
  }

  // A cell of the context's own, in pinned memory, that names `table`.
  Result<const DeviceTable* const*> cell_of(const DeviceTable* table) {
    if (!cell_)
      MOE_RETURN_IF_ERROR(check(
          cudaHostAlloc(reinterpret_cast<void**>(&cell_), sizeof *cell_, cudaHostAllocDefault),
          "allocate pinned memory", {.phase = Phase::plan}));
    *cell_ = table;
    return cell_;
  }

  // As wait(). What is on the GPU cannot be recalled: past the deadline, what it reads must stay
  // until it has ended all the same.
  Status finish(const Clock& clock, int64_t end_ns) {
    const Status status = wait(clock, end_ns);
    if (status.code() == StatusCode::deadline_exceeded)
      (void)wait(default_clock(), default_clock().now_ns() + kDestroyWaitNs);
    return status;
  }

  // Until everything recorded so far has passed.
  Status wait(const Clock& clock, int64_t end_ns) {
    for (;;) {
      const cudaError_t result = cudaEventQuery(last_);
      if (result == cudaSuccess) return {};
      if (result != cudaErrorNotReady)
        return check(result, "finish a forward", {.phase = Phase::compute});
      if (clock.now_ns() > end_ns)
        return error(StatusCode::deadline_exceeded, {.phase = Phase::compute},
                     "the deadline passed while cuda:{} computed", store_.index());
      std::this_thread::sleep_for(std::chrono::microseconds(10));
    }
  }
  Status record() { return check(cudaEventRecord(last_, stream_), "record an event"); }

  cudaStream_t stream() const { return stream_; }
  EpochCounters* reader() const { return reader_; }
  std::byte* memory() const { return buffer_.data(); }
  void note_capture() { captured_ = true; }

 private:
  CudaStore& store_;
  cudaStream_t stream_;
  cudaEvent_t last_ = nullptr;  // after the newest forward that was not captured
  EpochCounters* reader_ = nullptr;
  Buffer buffer_;
  bool captured_ = false;
  const DeviceTable** cell_ = nullptr;
  int32_t* host_ = nullptr;
  int64_t host_count_ = 0;
};

// ---- the model

class CudaModel final : public DeviceModel {
 public:
  CudaModel(ExpertStore::Impl& store, CudaStore& device) : store_(store), device_(device) {}

  Status start() {
    const DeviceScope scope(device_.index());
    MOE_RETURN_IF_ERROR(check(
        cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device_.index()),
        "ask for the GPU's size"));
    for (const auto& layer : store_.layers) {
      plans_.push_back(std::make_unique<LayerPlan>());
      MOE_RETURN_IF_ERROR(plan_layer(store_, *layer, plans_.back().get())
                              .at({.layer = layer->spec.layer, .phase = Phase::plan}));
    }
    return make_counts();
  }

  size_t workspace_bytes(int64_t tokens) const override {
    size_t bytes = 0;
    for (size_t i = 0; i < plans_.size(); ++i)
      bytes = std::max(bytes, layer_workspace_bytes(plans_[i]->shape, tokens,
                                                    store_.layers[i]->spec.router.top_k));
    return bytes;
  }

  Result<std::unique_ptr<DeviceContext>> make_context(const Stream& stream,
                                                      int64_t max_tokens) override {
    const DeviceScope scope(device_.index());
    auto context = std::make_unique<CudaContext>(device_, static_cast<cudaStream_t>(stream.handle));
    MOE_RETURN_IF_ERROR(context->start());
    if (max_tokens > 0) MOE_RETURN_IF_ERROR(context->reserve(workspace_bytes(max_tokens), false));
    return std::unique_ptr<DeviceContext>(std::move(context));
  }

  Status forward(DeviceContext& any_context, const DeviceForward& f) override;
  Status read_counts(size_t index, LayerMetrics* counts) override;

 private:
  Status make_counts();
  Status check_asked(const LayerPlan& plan, const DeviceForward& f, bool capturing) const;
  Status run_waves(CudaContext& context, const DeviceForward& f, LayerArgs& args,
                   TableReader& reader);
  Status route_paged(CudaContext& context, const DeviceForward& f, LayerArgs& args,
                     TableReader& reader, int32_t* host, VersionsHold& held,
                     const LayerVersions** versions);
  Status run_wave(CudaContext& context, const DeviceForward& f, const LayerArgs& args,
                  int32_t* slots);

  ExpertStore::Impl& store_;
  CudaStore& device_;
  int multiprocessors_ = 0;
  std::vector<std::unique_ptr<LayerPlan>> plans_;  // parallel to the store's layers
  Buffer counts_;                                  // of all layers; where each begins:
  std::vector<LayerTotals*> totals_;               // its rows of experts follow
};

uint64_t* expert_rows(LayerTotals* totals) { return reinterpret_cast<uint64_t*>(totals + 1); }

Rows rows_of(const TensorView& view) { return {view.data, view.dtype, view.strides[0]}; }

// The kernels' arguments for a forward, but for the workspace.
void fill_args(const LayerPlan& plan, const DeviceForward& f, const TableReader& reader,
               LayerArgs* args) {
  const LayerSpec& spec = f.layer.spec;
  const ForwardOptions& options = f.options;
  static_cast<Network&>(*args) = plan.routed;
  if (plan.has_shared && !options.skip_shared) args->shared = &plan.shared;
  args->reader = &reader;
  args->tokens = f.hidden.shape[0];
  args->top_k = f.top_k;
  args->rule = rule::make_rule(spec.router, f.top_k);
  args->zero_experts = spec.router.num_zero_experts;
  args->capacity = spec.router.capacity;
  args->weights_on_input = spec.router.weight_on_input;
  args->normalize_input = spec.router.normalize_input;
  args->input_norm_epsilon = spec.router.input_norm_epsilon;
  if (spec.shared) args->routed_scale = spec.shared->routed_scale;
  args->hidden = rows_of(f.hidden);
  args->out = {f.out.data, f.out.dtype, f.out.strides[0]};
  args->accumulate = options.accumulate;
  args->batch_invariant = options.batch_invariant;
  args->router_rows = options.router_input.data ? rows_of(options.router_input) : args->hidden;
  if (options.router_logits.data) args->logits = rows_of(options.router_logits);
  if (options.routing_in) {
    args->ids_in = options.routing_in->ids;
    args->weights_in = options.routing_in->weights;
  }
  if (options.routing_out) {
    args->ids_out = options.routing_out->ids;
    args->weights_out = options.routing_out->weights;
  }
  args->mask = options.expert_mask;
  args->token_ids = options.token_ids;
  args->paged = plan.paged;
}

// What the newest block of the layer holds, as the host knows it.
void fill_rule(const LayerBlock& block, rule::Rule* rule, TableReader* reader) {
  const TensorView& table = block.router.token_experts;
  reader->bf16_router = block.router.weight.dtype == DType::bf16;
  reader->has_selection_bias = block.router.selection_bias.data != nullptr;
  reader->has_per_expert_scale = block.router.per_expert_scale.data != nullptr;
  if (!table.data) return;
  rule->token_experts_wide = table.dtype == DType::i64;
  rule->token_experts_stride = table.strides[0];
  rule->vocabulary = table.shape[0];
}

Status check_report(const ForwardReport* report) {
  if (!report) return {};
  cudaPointerAttributes attributes;
  const cudaError_t result = cudaPointerGetAttributes(&attributes, report);
  if (result == cudaSuccess && attributes.type == cudaMemoryTypeHost) return {};
  return invalid_argument({.phase = Phase::plan},
                          "the report is not in pinned memory; the GPU writes it: allocate it with "
                          "cudaHostAlloc");
}

Status CudaModel::check_asked(const LayerPlan& plan, const DeviceForward& f, bool capturing) const {
  const Place place = {.phase = Phase::plan};
  if (f.top_k > kMaxTopK)
    return error(StatusCode::unimplemented, place, "top_k is {}; the GPU takes up to {}", f.top_k,
                 kMaxTopK);
  if (f.layer.spec.router.selection == Selection::sparsemixer && f.top_k > 2)
    return invalid_argument(place, "top_k is {}; sparsemixer chooses at most 2", f.top_k);
  if (f.options.batch_invariant && plan.shape.routed.element_bytes == 1)
    return error(StatusCode::unimplemented, place,
                 "batch_invariant: the GPU's fp8 kernels choose their rows' type by their number");
  if (f.hidden.shape[0] * f.top_k >= INT32_MAX)
    return error(StatusCode::unimplemented, place,
                 "{} rows of top_k {}; one forward on a GPU takes fewer than 2^31 pairs: split it",
                 f.hidden.shape[0], f.top_k);
  if (capturing && plan.paged)
    return error(StatusCode::failed_precondition, place,
                 "a graph cannot be captured of layer {}: expert_memory keeps {} of its {} experts "
                 "out, and loading one takes the host; keep all resident",
                 f.layer.spec.layer,
                 f.layer.spec.router.num_experts -
                     static_cast<int32_t>(std::min<int64_t>(
                         store_.classes[f.layer.routed.slot_class].residency->slots(),
                         f.layer.spec.router.num_experts)),
                 f.layer.spec.router.num_experts);
  return check_report(f.options.report);
}

Status CudaModel::forward(DeviceContext& any_context, const DeviceForward& f) {
  auto& context = static_cast<CudaContext&>(any_context);
  const LayerPlan& plan = *plans_[f.layer.index];
  const DeviceScope scope(device_.index());
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  MOE_RETURN_IF_ERROR(check(cudaStreamIsCapturing(context.stream(), &capture), "ask a stream"));
  const bool capturing = capture != cudaStreamCaptureStatusNone;
  MOE_RETURN_IF_ERROR(check_asked(plan, f, capturing));

  TableReader reader;
  reader.counters = context.reader();
  reader.cell = device_.cell(f.layer.index);
  reader.report = f.options.report;
  reader.valid_rows = f.options.valid_rows;
  reader.totals = totals_[f.layer.index];
  LayerArgs args;
  fill_args(plan, f, reader, &args);
  args.expert_rows = expert_rows(reader.totals);
  {
    std::lock_guard lock(store_.mutex);
    fill_rule(*f.layer.serving->block, &args.rule, &reader);
  }
  args.multiprocessors = multiprocessors_;
  MOE_RETURN_IF_ERROR(
      context.reserve(layer_workspace_bytes(plan.shape, args.tokens, args.top_k), capturing));
  args.workspace = context.memory();
  const Status status = plan.paged ? run_waves(context, f, args, reader)
                                   : check(enqueue_layer(args, context.stream()), "enqueue a layer",
                                           {.phase = Phase::compute});
  if (!status.ok()) {  // whatever was enqueued stays; nobody may wait for its end in vain
    (void)launch_leave(context.reader(), context.stream());
    return status;
  }
  if (capturing) return context.note_capture(), Status();
  return context.record();
}

// ---- what was counted

Status CudaModel::make_counts() {
  std::vector<size_t> begins;
  size_t bytes = 0;
  for (const auto& plan : plans_) {
    begins.push_back(bytes);
    bytes += sizeof(LayerTotals) + static_cast<size_t>(plan->shape.num_experts) * sizeof(uint64_t);
  }
  if (bytes == 0) return {};
  MOE_ASSIGN_OR_RETURN(counts_,
                       Buffer::allocate(device_.memory(), bytes, "a model's counters", kAlignment));
  for (const size_t begin : begins)
    totals_.push_back(reinterpret_cast<LayerTotals*>(counts_.data() + begin));
  return device_.clear(counts_.data(), bytes);
}

Status CudaModel::read_counts(size_t index, LayerMetrics* counts) {
  const DeviceScope scope(device_.index());
  std::vector<uint64_t> values(sizeof(LayerTotals) / sizeof(uint64_t) + counts->expert_rows.size());
  MOE_RETURN_IF_ERROR(
      device_.read(totals_[index], values.data(), values.size() * sizeof(uint64_t)));
  const LayerTotals totals{values[0], values[1], values[2], values[3]};
  counts->forwards = static_cast<int64_t>(totals.forwards);
  counts->rows = static_cast<int64_t>(totals.rows);
  counts->nonfinite_rows = static_cast<int64_t>(totals.nonfinite_rows);
  counts->dropped = static_cast<int64_t>(totals.dropped);
  const auto rows = values.begin() + sizeof(LayerTotals) / sizeof(uint64_t);
  counts->expert_rows.assign(rows, values.end());
  counts->assignments =
      std::accumulate(counts->expert_rows.begin(), counts->expert_rows.end(), int64_t{0});
  return {};
}

// ---- paged layers: ids go to the host, slots come back, wave after wave

Status CudaModel::run_wave(CudaContext& context, const DeviceForward& f, const LayerArgs& args,
                           int32_t* slots) {
  const int32_t candidates = args.pool.num_experts;
  std::fill_n(slots, candidates, -1);
  for (const Wave::Member& member : f.wave.members)
    slots[member.need.expert] =
        static_cast<int32_t>((member.slot - args.pool.base) / args.pool.slot_bytes);
  MOE_RETURN_IF_ERROR(
      check(cudaMemcpyAsync(workspace_slots(args), slots, static_cast<size_t>(candidates) * 4,
                            cudaMemcpyHostToDevice, context.stream()),
            "copy a wave's slots", {.phase = Phase::compute}));
  MOE_RETURN_IF_ERROR(
      check(enqueue_experts(args, context.stream()), "enqueue a wave", {.phase = Phase::compute}));
  MOE_RETURN_IF_ERROR(context.record());
  return context.finish(store_.services.clock(), f.deadline_at_ns);
}

// Routes by the table that is newest now; its versions are held for the waves.
Status CudaModel::route_paged(CudaContext& context, const DeviceForward& f, LayerArgs& args,
                              TableReader& reader, int32_t* host, VersionsHold& held,
                              const LayerVersions** versions) {
  const int64_t pairs = args.tokens * args.top_k;
  const EpochPin pin(f.reader, store_.schedule);
  const ExpertTable& table = ExpertStore::Impl::table(f.layer);
  held.hold(table.versions);
  *versions = table.versions.get();
  fill_rule(*table.block, &args.rule, &reader);
  MOE_ASSIGN_OR_RETURN(reader.cell, context.cell_of(CudaStore::copy_of(table)));
  MOE_RETURN_IF_ERROR(
      check(enqueue_route(args, context.stream()), "enqueue a router", {.phase = Phase::route}));
  MOE_RETURN_IF_ERROR(
      check(cudaMemcpyAsync(host, workspace_ids(args), static_cast<size_t>(pairs) * 4,
                            cudaMemcpyDeviceToHost, context.stream()),
            "copy a routing", {.phase = Phase::route}));
  MOE_RETURN_IF_ERROR(context.record());
  return context.finish(store_.services.clock(), f.deadline_at_ns);
}

// The host pins one table, as on the CPU: which experts the rows chose must come back before it is
// known what to load, so that a forward of a paged layer waits for the GPU anyway.
Status CudaModel::run_waves(CudaContext& context, const DeviceForward& f, LayerArgs& args,
                            TableReader& reader) {
  const int64_t pairs = args.tokens * args.top_k;
  const int32_t experts = f.layer.spec.router.num_experts;
  MOE_ASSIGN_OR_RETURN(int32_t* const host, context.host_ints(pairs + args.pool.num_experts));
  int32_t* const slots = host + pairs;
  VersionsHold held;  // one choice for all waves, and for the shared expert
  const LayerVersions* versions = nullptr;
  MOE_RETURN_IF_ERROR(route_paged(context, f, args, reader, host, held, &versions));

  f.experts.gather(host, nullptr, args.tokens, args.top_k, experts);
  store_.accessed(f.layer, f.experts.distinct());
  std::vector<Need> needed;
  for (const int32_t e : f.experts.distinct())
    needed.push_back({e, versions->experts[static_cast<size_t>(e)]});
  LayerArgs wave = args;
  while (!needed.empty()) {
    MOE_RETURN_IF_ERROR(store_.acquire(f.layer, needed, f.deadline_at_ns, &f.wave));
    const Status status = run_wave(context, f, wave, slots);
    wave.expert_rows = nullptr;  // the first wave counts all
    std::erase_if(needed, [&](const Need& need) {
      return std::any_of(f.wave.members.begin(), f.wave.members.end(),
                         [&](const Wave::Member& m) { return m.need == need; });
    });
    store_.release(f.layer, &f.wave);
    MOE_RETURN_IF_ERROR(status);
  }
  MOE_RETURN_IF_ERROR(check(enqueue_rest(args, context.stream()), "enqueue a weighted sum",
                            {.phase = Phase::combine}));
  MOE_RETURN_IF_ERROR(context.record());
  return context.finish(store_.services.clock(), f.deadline_at_ns);
}

}  // namespace
}  // namespace moe::cuda

namespace moe {

Result<std::unique_ptr<DeviceModel>> make_cuda_model(ExpertStore::Impl& store,
                                                     const ModelOptions& options) {
  if (options.router)
    return error(StatusCode::unimplemented, {.phase = Phase::plan},
                 "ModelOptions::router computes on the CPU and this model is on cuda:{}; give "
                 "ForwardOptions::routing_in or router_logits instead",
                 options.device.index);
  auto model =
      std::make_unique<cuda::CudaModel>(store, static_cast<cuda::CudaStore&>(*store.device));
  MOE_RETURN_IF_ERROR(model->start());
  return std::unique_ptr<DeviceModel>(std::move(model));
}

}  // namespace moe
