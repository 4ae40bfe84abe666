#include "moe/model.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include <fmt/format.h>

#include "core/error.h"
#include "core/rows.h"
#include "model/check.h"
#include "model/layer.h"
#include "model/model_impl.h"

namespace moe {
namespace {

constexpr int64_t kDefaultDeadlineNs = 60'000'000'000;

ExpertStoreOptions store_options(const ModelOptions& options) {
  return {.device = options.device,
          .expert_memory = options.expert_memory,
          .eviction = options.eviction,
          .eviction_policy = options.eviction_policy,
          .prefetch = options.prefetch,
          .scrub_bytes_per_second = options.scrub_bytes_per_second,
          .format = options.format,
          .restore = options.restore,
          .layers = options.layers,
          .gemm = options.gemm,
          .gemm_options = options.gemm_options,
          .expert_gemm = options.expert_gemm,
          .host = options.host,
          .events = options.events,
          .progress = options.progress,
          .progress_argument = options.progress_argument};
}

// Counts a forward as in flight while it lives.
class InFlight {
 public:
  explicit InFlight(std::atomic<int64_t>& count) : count_(count) {
    count_.fetch_add(1, std::memory_order_acquire);
  }
  ~InFlight() { count_.fetch_sub(1, std::memory_order_release); }

 private:
  std::atomic<int64_t>& count_;
};

std::string list_layers(const std::vector<LayerSpec>& layers) {
  std::string text;
  for (const LayerSpec& spec : layers) {
    if (!text.empty()) text += ", ";
    text += fmt::format("{}", spec.layer);
  }
  return text;
}

Status no_such_layer(int32_t layer, const std::vector<LayerSpec>& layers) {
  return invalid_argument({.layer = layer}, "layer {} is not one of this model's MoE layers: {}",
                          layer, list_layers(layers));
}

}  // namespace

Model::Impl::~Impl() {
  const int64_t end = default_clock().now_ns() + kDefaultDeadlineNs;
  while (in_flight.load(std::memory_order_acquire) > 0 && default_clock().now_ns() < end)
    std::this_thread::sleep_for(std::chrono::microseconds(100));
}

Status Model::Impl::forward(Context::Impl& context, int32_t layer, const TensorView& hidden,
                            const MutableTensorView& out, const ForwardOptions& options) {
  const int64_t start = services.clock().now_ns();
  ExpertStore::Impl& inner = *store->impl();
  StoreLayer* found = inner.find(layer);
  if (!found) return no_such_layer(layer, inner.specs);
  int64_t rows = 0;
  MOE_RETURN_IF_ERROR(check_forward(found->spec, hidden, out, options, store->device(), &rows));

  const int32_t top_k = options.top_k > 0 ? options.top_k : found->spec.router.top_k;
  const int64_t limit = options.deadline_ns > 0 ? options.deadline_ns : kDefaultDeadlineNs;
  if (device) {
    if (rows == 0) return {};
    MOE_RETURN_IF_ERROR(device->forward(*context.device, {.layer = *found,
                                                          .hidden = hidden,
                                                          .out = out,
                                                          .options = options,
                                                          .top_k = top_k,
                                                          .reader = context.reader,
                                                          .wave = context.wave,
                                                          .experts = context.experts,
                                                          .deadline_at_ns = start + limit}));
    counters[found->index]->add_time(services.clock().now_ns() - start);
    return {};
  }
  LayerForward f{.store = inner,
                 .layer = *found,
                 .reader = context.reader,
                 .wave = context.wave,
                 .experts = context.experts,
                 .look_ahead = context.look_ahead,
                 .services = services,
                 .own_router = this->options.router,
                 .execution = this->options.execution,
                 .hidden = rows_of(hidden, 0, rows),
                 .out = rows_of(out, 0, rows),
                 .options = options,
                 .top_k = top_k};
  f.deadline_at_ns = start + limit;
  if (rows > 0) {
    MOE_ASSIGN_OR_RETURN(
        f.work, context.workspace(*found, {rows, top_k, services.executor().concurrency()}));
    MOE_RETURN_IF_ERROR(forward_layer(f));
    if (options.usage) MOE_RETURN_IF_ERROR(options.usage->record(layer, f.work.ids, top_k));
    if (options.routing_out) {
      std::copy(f.work.ids.begin(), f.work.ids.end(), options.routing_out->ids);
      std::copy(f.work.weights.begin(), f.work.weights.end(), options.routing_out->weights);
    }
  }
  counters[found->index]->add(f.report, f.work.ids, services.clock().now_ns() - start);
  if (options.report) *options.report = f.report;
  return {};
}

std::unique_ptr<Context::Impl> Model::Impl::borrow_context() {
  {
    std::lock_guard lock(idle_mutex);
    if (!idle.empty()) {
      auto context = std::move(idle.back());
      idle.pop_back();
      return context;
    }
    idle.reserve(idle.capacity() + 1);  // so that return_context() never allocates
  }
  return std::make_unique<Context::Impl>(*this);
}

void Model::Impl::return_context(std::unique_ptr<Context::Impl> context) {
  std::lock_guard lock(idle_mutex);
  idle.push_back(std::move(context));
}

// ---- making one

namespace {

Result<std::unique_ptr<Model::Impl>> make_impl(const ModelOptions& options) {
  auto impl = std::make_unique<Model::Impl>();
  impl->options = options;
  MOE_ASSIGN_OR_RETURN(impl->services, Services::resolve(options.host));
  impl->options.host.executor = &impl->services.executor();  // the store's too
  return impl;
}

Result<std::unique_ptr<Model::Impl>> with_store(std::unique_ptr<Model::Impl> impl,
                                                ExpertStore* store) {
  impl->store = store;
  impl->options.device = store->device();
  for (const LayerSpec& spec : store->layers())
    impl->counters.push_back(std::make_unique<LayerCounters>(spec.layer, spec.router.candidates()));
  if (store->device().kind == DeviceKind::cuda) {
    MOE_ASSIGN_OR_RETURN(impl->device, make_cuda_model(*store->impl(), impl->options));
  }
  return impl;
}

Result<std::unique_ptr<Model::Impl>> with_source(std::unique_ptr<Model::Impl> impl,
                                                 const WeightSource& source) {
  MOE_ASSIGN_OR_RETURN(impl->own_store, ExpertStore::open(source, store_options(impl->options)));
  ExpertStore* opened = &*impl->own_store;
  return with_store(std::move(impl), opened);
}

}  // namespace

Result<Model> Model::load(std::string_view directory, const ModelOptions& options) {
  return guarded({.file = directory}, [&]() -> Result<Model> {
    MOE_ASSIGN_OR_RETURN(auto impl, make_impl(options));
    MOE_ASSIGN_OR_RETURN(auto checkpoint,
                         Checkpoint::open(directory, {.direct_io = options.expert_memory > 0,
                                                      .log = options.host.log}));
    impl->checkpoint = std::make_unique<Checkpoint>(std::move(checkpoint));
    const WeightSource& source = *impl->checkpoint;
    MOE_ASSIGN_OR_RETURN(auto ready, with_source(std::move(impl), source));
    return Model(std::move(ready));
  });
}

Result<Model> Model::create(const WeightSource& source, const ModelOptions& options) {
  return guarded({.file = source.name()}, [&]() -> Result<Model> {
    MOE_ASSIGN_OR_RETURN(auto impl, make_impl(options));
    MOE_ASSIGN_OR_RETURN(auto ready, with_source(std::move(impl), source));
    return Model(std::move(ready));
  });
}

Result<Model> Model::create(ExpertStore& store, const ModelOptions& options) {
  return guarded({}, [&]() -> Result<Model> {
    ModelOptions own = options;
    if (!own.host.executor) own.host.executor = &store.impl()->services.executor();
    MOE_ASSIGN_OR_RETURN(auto impl, make_impl(own));
    MOE_ASSIGN_OR_RETURN(auto ready, with_store(std::move(impl), &store));
    return Model(std::move(ready));
  });
}

Model::Model(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;

// ---- using it

Status Model::forward(Context& context, int32_t layer, const TensorView& hidden,
                      const MutableTensorView& out, const ForwardOptions& options) {
  const Place place{.layer = layer, .phase = Phase::compute};
  const InFlight in_flight(impl_->in_flight);
  Status status = guarded(place, [&]() -> Status {
    if (&context.impl()->model != impl_.get())
      return invalid_argument({}, "the context belongs to another model");
    return impl_->forward(*context.impl(), layer, hidden, out, options);
  });
  if (!status.ok()) impl_->errors.fetch_add(1, std::memory_order_relaxed);
  return status.at(place);
}

Status Model::forward(int32_t layer, const TensorView& hidden, const MutableTensorView& out,
                      const ForwardOptions& options) {
  const Place place{.layer = layer, .phase = Phase::compute};
  const InFlight in_flight(impl_->in_flight);
  Status status = guarded(place, [&]() -> Status {
    if (impl_->device)
      return error(StatusCode::failed_precondition, {},
                   "a model on a GPU needs a context with a stream: Context::create(model, "
                   "{{.stream = cuda_stream(...)}})");
    auto context = impl_->borrow_context();
    Status inner = impl_->forward(*context, layer, hidden, out, options);
    impl_->return_context(std::move(context));
    return inner;
  });
  if (!status.ok()) impl_->errors.fetch_add(1, std::memory_order_relaxed);
  return status.at(place);
}

const std::vector<LayerSpec>& Model::layers() const noexcept { return impl_->store->layers(); }

Result<LayerSpec> Model::layer(int32_t layer) const {
  const StoreLayer* found = impl_->store->impl()->find(layer);
  if (!found) return no_such_layer(layer, layers());
  return found->spec;
}

ExpertStore& Model::store() noexcept { return *impl_->store; }
const ExpertStore& Model::store() const noexcept { return *impl_->store; }

std::string Model::describe() const { return impl_->store->impl()->describe(); }

}  // namespace moe
