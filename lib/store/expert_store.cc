#include "moe/expert_store.h"

#include <algorithm>

#include "core/error.h"
#include "core/parallel.h"
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "store/layer_block.h"
#include "store/store_impl.h"

namespace moe {
namespace {

constexpr int64_t kSpareSlots = 2;  // of each size class; committed when first needed

// The specs of `wanted` (all if empty), or invalid_argument; experts in `format` if it is given.
Result<std::vector<LayerSpec>> choose_layers(const WeightSource& source,
                                             const std::vector<int32_t>& wanted,
                                             const std::optional<Format>& format) {
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
  for (LayerSpec& spec : chosen) {
    if (format) spec.expert.format = *format;
    if (format && spec.shared) spec.shared->expert.format = *format;
    MOE_RETURN_IF_ERROR(validate(spec));
  }
  return chosen;
}

}  // namespace

ExpertStore::Impl::~Impl() {
  for (auto& layer : layers) delete layer->table.load();
}

StoreLayer* ExpertStore::Impl::find(int32_t layer) {
  const auto at = std::lower_bound(specs.begin(), specs.end(), layer,
                                   [](const LayerSpec& s, int32_t l) { return s.layer < l; });
  return at != specs.end() && at->layer == layer
             ? layers[static_cast<size_t>(at - specs.begin())].get()
             : nullptr;
}

Status ExpertStore::Impl::choose_backends() {
  auto choose = [&](const ExpertSpec& spec, Compute& compute) -> Status {
    if (options.expert_gemm) {
      MOE_RETURN_IF_ERROR(options.expert_gemm->supports(spec));
      compute.gemm = options.expert_gemm;
    } else {
      MOE_ASSIGN_OR_RETURN(
          auto made, make_expert_gemm(options.device, spec, options.gemm, options.gemm_options));
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
  struct Need {
    size_t layout_bytes, alignment;
    size_t bytes;                    // of a slot, as the pool cuts them
    int64_t routed = 0, shared = 0;  // slots
  };
  std::vector<Need> needs;
  auto add = [&](Compute& compute, int64_t Need::*count, int64_t slots) {
    auto found = std::find_if(needs.begin(), needs.end(), [&](const Need& n) {
      return n.layout_bytes == compute.layout.bytes && n.alignment == compute.layout.alignment;
    });
    if (found == needs.end())
      found = needs.insert(
          needs.end(),
          {compute.layout.bytes, compute.layout.alignment,
           SlotPool::stride(compute.layout.bytes, compute.layout.alignment, slot_memory())});
    (*found).*count += slots;
    compute.slot_class = static_cast<size_t>(found - needs.begin());
  };
  for (auto& layer : layers) {
    add(layer->routed, &Need::routed, layer->spec.router.num_experts);
    if (layer->shared.gemm) add(layer->shared, &Need::shared, 1);
  }

  // Shared experts always stay. What is left goes to the sizes in proportion to what they need.
  size_t fixed = 0, wanted = 0;
  for (const Need& n : needs) {
    fixed += n.bytes * static_cast<size_t>(n.shared);
    wanted += n.bytes * static_cast<size_t>(n.routed);
  }
  const bool all = options.expert_memory == 0 || options.expert_memory >= fixed + wanted;
  size_t least = fixed;
  classes.reserve(needs.size());
  for (const Need& n : needs) {
    int64_t routed = n.routed;
    if (!all && n.routed > 0) {
      const double share = static_cast<double>(n.bytes) * static_cast<double>(n.routed) /
                           static_cast<double>(wanted);
      const size_t left = options.expert_memory > fixed ? options.expert_memory - fixed : 0;
      routed = std::min(n.routed, static_cast<int64_t>(static_cast<double>(left) * share /
                                                       static_cast<double>(n.bytes)) -
                                      kSpareSlots);
      least += n.bytes * static_cast<size_t>(kSpareSlots + 1);
    }
    if (routed < 1 && n.routed > 0) continue;
    MOE_ASSIGN_OR_RETURN(
        auto pool, SlotPool::create(n.layout_bytes, n.alignment, routed + n.shared + kSpareSlots,
                                    slot_memory()));
    classes.push_back({std::move(pool), routed});
  }
  if (classes.size() < needs.size())
    return error(StatusCode::resource_exhausted, {.file = source.name(), .phase = Phase::plan},
                 "expert_memory is {} bytes; the least is about {} (one expert of each size, {} "
                 "spare slots of each, and the shared experts), {} keeps everything resident",
                 options.expert_memory, least, kSpareSlots, fixed + wanted);
  for (auto& layer : layers) {
    const Need& n = needs[layer->routed.slot_class];
    layer->paged = classes[layer->routed.slot_class].capacity < n.routed;
  }
  return {};
}

Status ExpertStore::Impl::make_policies() {
  int paged = 0;
  for (size_t c = 0; c < classes.size(); ++c) {
    EvictionOptions eviction;
    for (const auto& layer : layers)
      if (layer->paged && layer->routed.slot_class == c)
        eviction.layers.push_back({layer->spec.layer, layer->spec.router.num_experts});
    if (eviction.layers.empty()) continue;
    if (options.eviction_policy) {
      if (++paged > 1)
        return invalid_argument({.file = source.name(), .phase = Phase::plan},
                                "a host's eviction policy serves experts of one size, but these "
                                "layers have several; name a built-in policy");
      classes[c].policy = options.eviction_policy;
    } else {
      MOE_ASSIGN_OR_RETURN(classes[c].own_policy, make_eviction_policy(options.eviction, eviction));
      classes[c].policy = classes[c].own_policy.get();
    }
  }
  const bool any = std::any_of(layers.begin(), layers.end(), [](auto& l) { return l->paged; });
  if (!any) return {};
  if (options.io_threads < 1 || options.io_threads > 256)
    return invalid_argument({}, "io_threads is {}; it must be from 1 to 256", options.io_threads);
  return loader.start(options.io_threads);
}

Status ExpertStore::Impl::load_copy(StoreLayer& layer, int32_t expert, ExpertCopy& copy) {
  const Compute& compute = compute_of(layer, expert);
  const ExpertSpec& spec = expert == kSharedExpert ? layer.spec.shared->expert : layer.spec.expert;
  std::byte* slot;
  {
    std::lock_guard lock(mutex);
    slot = address(layer, expert, copy);
  }
  uint64_t digest = 0;
  const auto pack = [&](std::byte* to) -> Status {
    MOE_RETURN_IF_ERROR(compute.gemm->pack(spec, source, layer.spec.layer, expert, to));
    {
      std::lock_guard lock(mutex);
      transition(copy, CopyState::verifying);
    }
    digest = XXH3_64bits(to, compute.layout.bytes);
    return {};
  };
  const Status status = guarded(
      {}, [&] { return device ? device->fill(slot, compute.layout.bytes, pack) : pack(slot); });
  if (status.ok()) {
    std::lock_guard lock(mutex);
    copy.digest = digest;
    copy.version = 1;
    transition(copy, CopyState::ready);
    return {};
  }
  std::lock_guard lock(mutex);
  copy.reason = status.at(
      {.file = source.name(), .layer = layer.spec.layer, .expert = expert, .phase = Phase::load});
  transition(copy, CopyState::failed);
  return copy.reason;
}

Status ExpertStore::Impl::load_all() {
  struct Item {
    StoreLayer* layer;
    int32_t expert;
    ExpertCopy* copy;
  };
  std::vector<Item> items;
  for (auto& layer : layers) {
    layer->experts.resize(static_cast<size_t>(layer->spec.router.num_experts));
    for (size_t e = 0; e < layer->experts.size() && !layer->paged; ++e)
      items.push_back({layer.get(), static_cast<int32_t>(e), &layer->experts[e]});
    if (layer->shared.gemm) items.push_back({layer.get(), kSharedExpert, &layer->shared_copy});
  }
  int64_t total = 0, done = 0;
  for (Item& item : items) {
    SlotClass& slots = classes[compute_of(*item.layer, item.expert).slot_class];
    MOE_ASSIGN_OR_RETURN(item.copy->slot, slots.pool.take());
    if (item.expert != kSharedExpert) ++slots.resident;
    transition(*item.copy, CopyState::loading);
    total += static_cast<int64_t>(compute_of(*item.layer, item.expert).layout.bytes);
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
      done += static_cast<int64_t>(compute_of(*item.layer, item.expert).layout.bytes);
      if (!options.progress(options.progress_argument, done, total))
        status = Status(StatusCode::cancelled, "loading was cancelled by the progress callback",
                        {.phase = Phase::load});
    }
    if (!status.ok()) stop.store(true, std::memory_order_relaxed);
  });
  for (const Status& status : statuses) MOE_RETURN_IF_ERROR(status);
  return {};
}

Status ExpertStore::Impl::load_blocks() {
  for (auto& layer : layers) {
    const std::byte* shared =
        layer->shared.gemm ? address(*layer, kSharedExpert, layer->shared_copy) : nullptr;
    MOE_ASSIGN_OR_RETURN(auto block, load_layer_block(source, layer->spec.layer, shared));
    block->shared_slot = layer->shared_copy.slot;
    if (device) {
      MOE_ASSIGN_OR_RETURN(block->copy, device->copy(layer->spec, *block));
    }
    layer->block = std::move(block);
    MOE_RETURN_IF_ERROR(publish(*layer));
  }
  return {};
}

Status ExpertStore::Impl::publish(StoreLayer& layer) {
  auto next = std::make_unique<ExpertTable>();
  next->epoch = ++epoch;
  next->block = layer.block;
  next->experts.resize(layer.experts.size());
  for (size_t e = 0; e < layer.experts.size(); ++e) {
    const ExpertCopy& copy = layer.experts[e];
    if (copy.state == CopyState::ready)
      next->experts[e] = {address(layer, static_cast<int32_t>(e), copy), copy.slot, copy.version};
  }
  retired.reserve(retired.size() + 1);
  if (device) MOE_RETURN_IF_ERROR(device->publish(layer.index, *next));
  if (auto* old = layer.table.exchange(next.release(), std::memory_order_seq_cst))
    retired.emplace_back(old);
  return {};
}

Status ExpertStore::Impl::wait_for_grace(int64_t end_ns) {
  std::vector<std::unique_ptr<const ExpertTable>> unused;
  {
    std::lock_guard lock(mutex);
    unused.swap(retired);
  }
  Status status = readers.wait_for_grace(services.clock(), end_ns);
  if (status.ok() && device) status = device->wait_for_grace(services.clock(), end_ns);
  if (!status.ok()) {  // somebody may still read them
    std::lock_guard lock(mutex);
    for (auto& table : unused) retired.push_back(std::move(table));
  }
  return status;
}

Result<std::unique_ptr<ExpertStore::Impl>> ExpertStore::Impl::open(
    const WeightSource& source, const ExpertStoreOptions& options, DeviceMaker make_device) {
  const Place place{.file = source.name(), .phase = Phase::load};
  return guarded(place, [&]() -> Result<std::unique_ptr<Impl>> {
    MOE_ASSIGN_OR_RETURN(auto services, Services::resolve(options.host));
    auto impl = std::make_unique<Impl>(source, options, std::move(services));
    MOE_ASSIGN_OR_RETURN(impl->specs, choose_layers(source, options.layers, options.format));
    if (make_device) {
      MOE_ASSIGN_OR_RETURN(impl->device,
                           make_device(options.device.index, impl->specs.size(), impl->services));
    }
    for (const LayerSpec& spec : impl->specs) {
      impl->layers.push_back(std::make_unique<StoreLayer>());
      impl->layers.back()->spec = spec;
      impl->layers.back()->index = impl->layers.size() - 1;
    }
    MOE_RETURN_IF_ERROR(impl->choose_backends());
    MOE_RETURN_IF_ERROR(impl->size_pools());
    MOE_RETURN_IF_ERROR(impl->make_policies());
    MOE_RETURN_IF_ERROR(impl->load_all());
    MOE_RETURN_IF_ERROR(impl->load_blocks());
    return impl;
  });
}

Result<ExpertStore> ExpertStore::open(const WeightSource& source,
                                      const ExpertStoreOptions& options) {
  const bool on_gpu = options.device.kind == DeviceKind::cuda;
  MOE_ASSIGN_OR_RETURN(auto impl, Impl::open(source, options, on_gpu ? open_cuda_store : nullptr));
  return ExpertStore(std::move(impl));
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

void ExpertStore::sequence_ended() {
  std::lock_guard lock(impl_->mutex);
  for (const SlotClass& slots : impl_->classes)
    if (slots.policy) slots.policy->sequence_ended();
}

ExpertStoreStats ExpertStore::stats() const {
  std::lock_guard lock(impl_->mutex);
  ExpertStoreStats stats;
  for (const SlotClass& slots : impl_->classes) {
    stats.pool_bytes += slots.pool.committed_bytes();
    stats.slots += slots.pool.capacity();
    stats.used_bytes += slots.pool.slot_bytes() * static_cast<size_t>(slots.pool.used());
    stats.slot_bytes = std::max(stats.slot_bytes, slots.pool.slot_bytes());
    stats.capacity += slots.capacity;
  }
  for (const auto& layer : impl_->layers)
    for (const ExpertCopy& copy : layer->experts) stats.ready += copy.state == CopyState::ready;
  stats.epoch = impl_->epoch;
  stats.paging = impl_->paging;
  return stats;
}

}  // namespace moe
