#include "moe/expert_store.h"

#include <algorithm>

#include "core/error.h"
#include "core/parallel.h"
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "store/store_impl.h"

namespace moe {
namespace {

constexpr int64_t kGraceDeadlineNs = 60'000'000'000;
constexpr int64_t kSpareSlots = 2;  // of each size class; committed when first needed

// The only way a copy changes state; anything else is a bug of the store.
void transition(ExpertCopy& copy, CopyState to) {
  [[maybe_unused]] const CopyState from = copy.state;
  assert((from == CopyState::empty && to == CopyState::loading) ||
         (from == CopyState::loading && (to == CopyState::verifying || to == CopyState::failed)) ||
         (from == CopyState::verifying && (to == CopyState::ready || to == CopyState::failed)) ||
         (from == CopyState::ready && to == CopyState::draining) ||
         (from == CopyState::draining && (to == CopyState::empty || to == CopyState::ready)) ||
         (from == CopyState::failed && to == CopyState::loading));
  copy.state = to;
}

// The specs of `wanted` (all if empty), or invalid_argument.
Result<std::vector<LayerSpec>> choose_layers(const WeightSource& source,
                                             const std::vector<int32_t>& wanted) {
  std::vector<LayerSpec> chosen;
  for (const LayerSpec& spec : source.layers())
    if (wanted.empty() || std::find(wanted.begin(), wanted.end(), spec.layer) != wanted.end())
      chosen.push_back(spec);
  for (int32_t layer : wanted)
    if (std::none_of(chosen.begin(), chosen.end(), [&](auto& s) { return s.layer == layer; }))
      return invalid_argument({.file = source.name(), .layer = layer},
                              "layer {} was asked for but is not an MoE layer of {}", layer,
                              source.name());
  if (chosen.empty())
    return invalid_argument({.file = source.name()}, "{} has no MoE layers", source.name());
  for (const LayerSpec& spec : chosen) MOE_RETURN_IF_ERROR(validate(spec));
  return chosen;
}

// Copies the tensor `id` to the end of `storage`; the offset where it begins, or -1 if the layer
// has none. The address may move until all tensors are in.
struct Stored {
  int64_t offset = -1;
  TensorShape shape;
  TensorView view(const std::vector<std::byte>& storage) const {
    return offset < 0 ? TensorView() : TensorView(storage.data() + offset, shape.dtype, shape.shape);
  }
};

Result<Stored> store_tensor(const WeightSource& source, const WeightId& id,
                            std::vector<std::byte>& storage) {
  Result<TensorShape> shape = source.describe(id);
  if (!shape.ok()) {
    if (shape.status().code() == StatusCode::not_found) return Stored{};
    return shape.status();
  }
  Stored stored{static_cast<int64_t>((storage.size() + 63) / 64 * 64), *shape};
  const size_t bytes =
      static_cast<size_t>(shape->shape.elements()) * static_cast<size_t>(bits_of(shape->dtype)) / 8;
  storage.resize(static_cast<size_t>(stored.offset) + bytes);
  MOE_RETURN_IF_ERROR(source.read(
      id, MutableTensorView(storage.data() + stored.offset, shape->dtype, shape->shape)));
  return stored;
}

}  // namespace

const char* to_string(CopyState state) {
  switch (state) {
    case CopyState::empty: return "empty";
    case CopyState::loading: return "loading";
    case CopyState::verifying: return "verifying";
    case CopyState::ready: return "ready";
    case CopyState::draining: return "draining";
    case CopyState::failed: return "failed";
  }
  return "unknown";
}

ExpertStore::Impl::~Impl() {
  for (auto& layer : layers) delete layer->table.load();
}

StoreLayer* ExpertStore::Impl::find(int32_t layer) {
  const auto at = std::lower_bound(specs.begin(), specs.end(), layer,
                                   [](const LayerSpec& s, int32_t l) { return s.layer < l; });
  return at != specs.end() && at->layer == layer ? layers[static_cast<size_t>(at - specs.begin())].get()
                                                 : nullptr;
}

Status ExpertStore::Impl::choose_backends() {
  auto choose = [&](const ExpertSpec& spec, Compute& compute) -> Status {
    if (options.expert_gemm) {
      MOE_RETURN_IF_ERROR(options.expert_gemm->supports(spec));
      compute.gemm = options.expert_gemm;
    } else {
      MOE_ASSIGN_OR_RETURN(auto made, make_expert_gemm(options.device, spec, options.gemm));
      compute.gemm = made.get();
      backends.push_back(std::move(made));
    }
    compute.layout = compute.gemm->layout(spec);
    return {};
  };
  for (auto& layer : layers) {
    const Place place{.file = source.name(), .layer = layer->spec.layer, .phase = Phase::plan};
    if (Status s = choose(layer->spec.expert, layer->routed); !s.ok()) return s.at(place);
    if (!layer->spec.shared) continue;
    if (Status s = choose(layer->spec.shared->expert, layer->shared); !s.ok()) return s.at(place);
  }
  return {};
}

Status ExpertStore::Impl::size_pools() {
  struct SizeClass {
    size_t bytes, alignment;
    int64_t slots;
  };
  std::vector<SizeClass> classes;
  auto add = [&](Compute& compute, int64_t slots) {
    auto found = std::find_if(classes.begin(), classes.end(), [&](const SizeClass& c) {
      return c.bytes == compute.layout.bytes && c.alignment == compute.layout.alignment;
    });
    if (found == classes.end())
      found = classes.insert(classes.end(), {compute.layout.bytes, compute.layout.alignment, 0});
    found->slots += slots;
    compute.slot_class = found - classes.begin();
  };
  for (auto& layer : layers) {
    add(layer->routed, layer->spec.router.num_experts);
    if (layer->shared.gemm) add(layer->shared, 1);
  }
  size_t needed = 0;
  pools.reserve(classes.size());
  for (const SizeClass& c : classes) {
    MOE_ASSIGN_OR_RETURN(auto pool, SlotPool::create(c.bytes, c.alignment, c.slots + kSpareSlots,
                                                     options.host.memory));
    needed += pool.slot_bytes() * static_cast<size_t>(c.slots);
    pools.push_back(std::move(pool));
  }
  if (options.expert_memory != 0 && options.expert_memory < needed)
    return error(StatusCode::resource_exhausted, {.file = source.name(), .phase = Phase::plan},
                 "expert_memory is {} bytes but the chosen layers need {} to be resident; raise "
                 "it, choose fewer layers, or pass 0",
                 options.expert_memory, needed);
  return {};
}

Status ExpertStore::Impl::load_copy(StoreLayer& layer, int32_t expert, ExpertCopy& copy) {
  const bool shared = expert == kSharedExpert;
  const Compute& compute = shared ? layer.shared : layer.routed;
  const ExpertSpec& spec = shared ? layer.spec.shared->expert : layer.spec.expert;
  transition(copy, CopyState::loading);
  std::byte* slot = address(copy);
  Status status = guarded({}, [&] {
    return compute.gemm->pack(spec, source, layer.spec.layer, expert, slot);
  });
  if (!status.ok()) {
    copy.reason = status.at({.file = source.name(), .layer = layer.spec.layer, .expert = expert,
                             .phase = Phase::load});
    transition(copy, CopyState::failed);
    return copy.reason;
  }
  transition(copy, CopyState::verifying);
  copy.digest = XXH3_64bits(slot, compute.layout.bytes);
  copy.version = 1;
  transition(copy, CopyState::ready);
  return {};
}

Status ExpertStore::Impl::load_all() {
  struct Item {
    StoreLayer* layer;
    int32_t expert;
    ExpertCopy* copy;
    size_t bytes;
  };
  std::vector<Item> items;
  for (auto& layer : layers) {
    layer->experts.resize(static_cast<size_t>(layer->spec.router.num_experts));
    for (size_t e = 0; e < layer->experts.size(); ++e)
      items.push_back({layer.get(), static_cast<int32_t>(e), &layer->experts[e],
                       layer->routed.layout.bytes});
    if (layer->shared.gemm)
      items.push_back({layer.get(), kSharedExpert, &layer->shared_copy,
                       layer->shared.layout.bytes});
  }
  int64_t total = 0, done = 0;
  for (Item& item : items) {
    const Compute& compute = item.expert == kSharedExpert ? item.layer->shared : item.layer->routed;
    item.copy->slot_class = compute.slot_class;
    MOE_ASSIGN_OR_RETURN(item.copy->slot, pools[static_cast<size_t>(compute.slot_class)].take());
    total += static_cast<int64_t>(item.bytes);
  }

  std::mutex progress_mutex;
  std::vector<Status> statuses(items.size());
  std::atomic<bool> stop{false};
  parallel_for(&services.executor(), static_cast<int64_t>(items.size()), [&](int64_t i, int) {
    if (stop.load(std::memory_order_relaxed)) return;
    Item& item = items[static_cast<size_t>(i)];
    Status& status = statuses[static_cast<size_t>(i)];
    status = load_copy(*item.layer, item.expert, *item.copy);
    if (status.ok() && options.progress) {
      std::lock_guard lock(progress_mutex);
      done += static_cast<int64_t>(item.bytes);
      if (!options.progress(options.progress_argument, done, total))
        status = Status(StatusCode::cancelled, "loading was cancelled by the progress callback",
                        {.phase = Phase::load});
    }
    if (!status.ok()) stop.store(true, std::memory_order_relaxed);
  });
  for (const Status& status : statuses) MOE_RETURN_IF_ERROR(status);
  return {};
}

Result<std::shared_ptr<const LayerBlock>> ExpertStore::Impl::load_block(
    const StoreLayer& layer) const {
  auto block = std::make_shared<LayerBlock>();
  block->version = 1;
  struct Part {
    WeightKind kind;
    TensorView* view;
    Stored stored;
  };
  RouterWeights& router = block->router;
  Part parts[] = {{WeightKind::router_weight, &router.weight, {}},
                  {WeightKind::router_bias, &router.logit_bias, {}},
                  {WeightKind::router_selection_bias, &router.selection_bias, {}},
                  {WeightKind::router_per_expert_scale, &router.per_expert_scale, {}},
                  {WeightKind::router_input_scale, &router.input_scale, {}},
                  {WeightKind::router_token_experts, &router.token_experts, {}},
                  {WeightKind::shared_gate, &block->shared_gate, {}}};
  for (Part& part : parts) {
    auto stored = store_tensor(source, {layer.spec.layer, part.kind}, block->storage);
    if (!stored.ok())
      return stored.status().at(
          {.file = source.name(), .layer = layer.spec.layer, .phase = Phase::load});
    part.stored = *stored;
  }
  for (const Part& part : parts) *part.view = part.stored.view(block->storage);
  if (layer.shared.gemm) block->shared = address(layer.shared_copy);
  return std::shared_ptr<const LayerBlock>(std::move(block));
}

Status ExpertStore::Impl::publish(StoreLayer& layer, std::unique_ptr<const ExpertTable> next) {
  std::unique_ptr<const ExpertTable> old(
      layer.table.exchange(next.release(), std::memory_order_seq_cst));
  if (!old) return {};
  Status grace = readers.wait_for_grace(services.clock(), kGraceDeadlineNs);
  if (!grace.ok()) old.release();  // a reader still holds it: leaking it beats freeing it
  return grace.at({.layer = layer.spec.layer});
}

Result<ExpertStore> ExpertStore::open(const WeightSource& source,
                                      const ExpertStoreOptions& options) {
  return guarded({.file = source.name(), .phase = Phase::load}, [&]() -> Result<ExpertStore> {
    if (options.device.kind != DeviceKind::cpu)
      return error(StatusCode::unimplemented, {}, "stores on cuda:{} are not built yet",
                   options.device.index);
    MOE_ASSIGN_OR_RETURN(auto services, Services::resolve(options.host));
    auto impl = std::make_unique<Impl>(source, options, std::move(services));
    MOE_ASSIGN_OR_RETURN(impl->specs, choose_layers(source, options.layers));
    for (const LayerSpec& spec : impl->specs) {
      impl->layers.push_back(std::make_unique<StoreLayer>());
      impl->layers.back()->spec = spec;
      impl->layers.back()->index = impl->layers.size() - 1;
    }
    MOE_RETURN_IF_ERROR(impl->choose_backends());
    MOE_RETURN_IF_ERROR(impl->size_pools());
    MOE_RETURN_IF_ERROR(impl->load_all());
    for (auto& layer : impl->layers) {
      auto table = std::make_unique<ExpertTable>();
      table->epoch = ++impl->epoch;
      MOE_ASSIGN_OR_RETURN(table->block, impl->load_block(*layer));
      for (const ExpertCopy& copy : layer->experts)
        table->experts.push_back({impl->address(copy), copy.slot, copy.version});
      MOE_RETURN_IF_ERROR(impl->publish(*layer, std::move(table)));
    }
    return ExpertStore(std::move(impl));
  });
}

ExpertStore::ExpertStore(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ExpertStore::ExpertStore(ExpertStore&&) noexcept = default;
ExpertStore& ExpertStore::operator=(ExpertStore&&) noexcept = default;
ExpertStore::~ExpertStore() = default;

const std::vector<LayerSpec>& ExpertStore::layers() const noexcept { return impl_->specs; }
Device ExpertStore::device() const noexcept { return impl_->options.device; }

Result<ExpertHealth> ExpertStore::health(int32_t layer, int32_t expert) const {
  StoreLayer* found = impl_->find(layer);
  if (!found)
    return invalid_argument({.layer = layer}, "layer {} is not an MoE layer of this store", layer);
  if (expert < 0 || expert >= found->spec.router.num_experts)
    return invalid_argument({.layer = layer, .expert = expert},
                            "expert {} of layer {}: the layer has experts 0 to {}", expert, layer,
                            found->spec.router.num_experts - 1);
  std::lock_guard lock(impl_->mutex);
  const ExpertCopy& copy = found->experts[static_cast<size_t>(expert)];
  return ExpertHealth{copy.state, copy.version, copy.digest, copy.reason};
}

ExpertStoreStats ExpertStore::stats() const {
  std::lock_guard lock(impl_->mutex);
  ExpertStoreStats stats;
  for (const SlotPool& pool : impl_->pools) {
    stats.pool_bytes += pool.committed_bytes();
    stats.slots += pool.capacity();
    stats.slot_bytes += pool.slot_bytes() * static_cast<size_t>(pool.used());
  }
  for (const auto& layer : impl_->layers)
    for (const ExpertCopy& copy : layer->experts) stats.ready += copy.state == CopyState::ready;
  stats.epoch = impl_->epoch.load();
  return stats;
}

}  // namespace moe
