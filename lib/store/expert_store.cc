#include "moe/expert_store.h"

#include <algorithm>

#include "core/error.h"
#include "store/layer_specs.h"
#include "store/store_impl.h"

namespace moe {
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

  // Room for two versions where memory is not limited: addresses only, until they are used.
  const bool twice = options.expert_memory == 0 && !device;
  for (const Need& n : needs) {
    classes.push_back({.wanted = n.routed, .shared = n.shared, .stride = n.bytes});
  }
  MOE_ASSIGN_OR_RETURN(const auto routed, routed_slots(options.expert_memory));
  for (size_t c = 0; c < needs.size(); ++c) {
    const Need& n = needs[c];
    const int64_t limit = routed[c] + n.shared * (twice ? 2 : 1) + kSpareSlots;
    SlotMemory memory = slot_memory();
    memory.moving = device && device->moves() && routed[c] < n.routed;
    const int64_t most =
        device && !memory.moving ? limit : std::max(limit, 2 * (n.routed + n.shared) + kSpareSlots);
    MOE_ASSIGN_OR_RETURN(auto pool, SlotPool::create(n.layout_bytes, n.alignment, most, memory));
    pool.set_limit(limit);
    classes[c].pool.emplace(std::move(pool));
  }
  return {};
}

Result<std::vector<int64_t>> ExpertStore::Impl::routed_slots(size_t expert_memory) const {
  // Shared experts always stay. What is left goes to the sizes in proportion to what they need.
  size_t fixed = 0, wanted = 0;
  for (const SlotClass& c : classes) {
    fixed += c.stride * static_cast<size_t>(c.shared);
    wanted += c.stride * static_cast<size_t>(c.wanted);
  }
  const bool all = expert_memory == 0 || expert_memory >= fixed + wanted;
  const size_t left = expert_memory > fixed ? expert_memory - fixed : 0;
  std::vector<int64_t> routed;
  size_t least = fixed;
  bool enough = true;
  for (const SlotClass& c : classes) {
    const double share = static_cast<double>(c.stride) * static_cast<double>(c.wanted) /
                         static_cast<double>(std::max<size_t>(wanted, 1));
    const auto fit =
        static_cast<int64_t>(static_cast<double>(left) * share / static_cast<double>(c.stride));
    int64_t slots = 2 * c.wanted;
    if (expert_memory > 0)
      slots =
          all ? std::min(slots, std::max(c.wanted, fit)) : std::min(c.wanted, fit - kSpareSlots);
    if (c.wanted == 0 || (device && expert_memory == 0)) slots = c.wanted;
    routed.push_back(slots);
    if (c.wanted == 0) continue;
    least += c.stride * static_cast<size_t>(kSpareSlots + 1);
    enough = enough && slots >= 1;
  }
  if (enough) return routed;
  return error(StatusCode::resource_exhausted, {.file = source.name(), .phase = Phase::plan},
               "expert_memory is {} bytes; the least is about {} (one expert of each size, {} "
               "spare slots of each, and the shared experts), {} keeps everything resident",
               expert_memory, least, kSpareSlots, fixed + wanted);
}

Status ExpertStore::Impl::make_policies() {
  MOE_ASSIGN_OR_RETURN(const auto routed, routed_slots(options.expert_memory));
  if (options.io_threads < 1 || options.io_threads > 256)
    return invalid_argument({}, "io_threads is {}; it must be from 1 to 256", options.io_threads);
  const auto sizes = std::count_if(classes.begin(), classes.end(),
                                   [](const SlotClass& c) { return c.wanted > 0; });
  if (options.eviction_policy && sizes > 1)
    return invalid_argument({.file = source.name(), .phase = Phase::plan},
                            "a host's eviction policy serves experts of one size, but these "
                            "layers have several; name a built-in policy");
  for (size_t c = 0; c < classes.size(); ++c) {
    EvictionOptions eviction;
    for (const auto& layer : layers)
      if (layer->routed.slot_class == c)
        eviction.layers.push_back({layer->spec.layer, layer->spec.router.num_experts});
    if (eviction.layers.empty()) continue;
    EvictionPolicy* policy = options.eviction_policy;
    if (!policy) {
      MOE_ASSIGN_OR_RETURN(classes[c].policy, make_eviction_policy(options.eviction, eviction));
      policy = classes[c].policy.get();
    }
    classes[c].residency = std::make_unique<Residency>(eviction.layers, routed[c], *policy);
  }
  return std::any_of(classes.begin(), classes.end(), [](auto& c) { return c.paged(); })
             ? start_loader()
             : Status();
}

Result<std::unique_ptr<ExpertStore::Impl>> ExpertStore::Impl::open(
    const WeightSource& source, const ExpertStoreOptions& options, DeviceMaker make_device,
    Schedule* schedule) {
  const Place place{.file = source.name(), .phase = Phase::load};
  return guarded(place, [&]() -> Result<std::unique_ptr<Impl>> {
    MOE_ASSIGN_OR_RETURN(auto services, Services::resolve(options.host));
    auto impl = std::make_unique<Impl>(source, options, std::move(services));
    impl->schedule = schedule;
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
    MOE_RETURN_IF_ERROR(impl->start_prefetching());
    MOE_RETURN_IF_ERROR(impl->start_scrubber());
    return impl;
  });
}

Result<ExpertStore> ExpertStore::Impl::open_scheduled(const WeightSource& source,
                                                      const ExpertStoreOptions& options,
                                                      Schedule* schedule) {
  MOE_ASSIGN_OR_RETURN(auto impl, Impl::open(source, options, nullptr, schedule));
  return ExpertStore(std::move(impl));
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

void ExpertStore::sequence_ended() {
  std::lock_guard lock(impl_->mutex);
  for (const SlotClass& slots : impl_->classes)
    if (slots.residency) slots.residency->policy().sequence_ended();
  if (impl_->prefetcher && impl_->prefetcher->predictor)
    impl_->prefetcher->predictor->sequence_ended();
}

Result<uint32_t> ExpertStore::reload(const WeightSource& from, const ReloadOptions& options) {
  return guarded({.file = from.name(), .phase = Phase::load},
                 [&] { return impl_->reload(from, options); });
}
Status ExpertStore::rollback(int64_t deadline_ns) {
  return guarded({}, [&] { return impl_->rollback(deadline_ns); });
}
Status ExpertStore::set_share(double share) {
  return guarded({}, [&] { return impl_->set_share(share); });
}
Status ExpertStore::forget_previous(int64_t deadline_ns) {
  return guarded({}, [&] { return impl_->forget_previous(deadline_ns); });
}

}  // namespace moe
