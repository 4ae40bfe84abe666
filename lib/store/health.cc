// What a host may ask of a store: states of copies, sizes, signs of life.
#include <algorithm>

#include "core/error.h"
#include "moe/expert_store.h"
#include "store/store_impl.h"

namespace moe {
namespace {

Result<StoreLayer*> find_expert(ExpertStore::Impl& store, int32_t layer, int32_t expert) {
  StoreLayer* found = store.find(layer);
  if (!found)
    return invalid_argument({.layer = layer}, "layer {} is not an MoE layer of this store", layer);
  if (expert == kSharedExpert && found->shared.gemm) return found;
  if (expert < 0 || expert >= found->spec.router.num_experts)
    return invalid_argument({.layer = layer, .expert = expert},
                            "expert {} of layer {}: the layer has experts 0 to {}{}", expert, layer,
                            found->spec.router.num_experts - 1,
                            found->shared.gemm ? " and a shared one (-1)" : "");
  return found;
}

uint32_t version_of(const LayerVersions& versions, int32_t expert) {
  return expert == kSharedExpert ? versions.block->version
                                 : versions.experts[static_cast<size_t>(expert)];
}

bool serves(const StoreLayer& layer, const ExpertCopy& copy) {
  return copy.state == CopyState::ready &&
         (version_of(*layer.serving, copy.expert) == copy.version ||
          (layer.candidate && version_of(*layer.candidate, copy.expert) == copy.version));
}

}  // namespace

Result<ExpertHealth> ExpertStore::health(int32_t layer, int32_t expert) const {
  MOE_ASSIGN_OR_RETURN(StoreLayer* const found, find_expert(*impl_, layer, expert));
  std::lock_guard lock(impl_->mutex);
  const uint32_t version = version_of(*found->serving, expert);
  const Status& reason = impl_->record(*found, expert).reason;
  if (const ExpertCopy* copy = impl_->find_copy(*found, {expert, version}))
    return ExpertHealth{copy->state, version, copy->digest, reason};
  return ExpertHealth{reason.ok() ? CopyState::empty : CopyState::failed, version, 0, reason};
}

Result<std::vector<ExpertCopyInfo>> ExpertStore::copies(int32_t layer, int32_t expert) const {
  return guarded({.layer = layer, .expert = expert}, [&]() -> Result<std::vector<ExpertCopyInfo>> {
    MOE_ASSIGN_OR_RETURN(StoreLayer* const found, find_expert(*impl_, layer, expert));
    const auto& slots = impl_->classes[impl_->compute_of(*found, expert).slot_class];
    std::vector<ExpertCopyInfo> all;
    std::lock_guard lock(impl_->mutex);
    for (int64_t at = impl_->record(*found, expert).first; at >= 0;) {
      const ExpertCopy& copy = slots.copies[static_cast<size_t>(at)];
      all.push_back({copy.version, copy.state, copy.digest, at, serves(*found, copy), copy.leases});
      at = copy.next;
    }
    return all;
  });
}

ExpertStoreStats ExpertStore::stats() const {
  std::lock_guard lock(impl_->mutex);
  ExpertStoreStats stats;
  for (const SlotClass& slots : impl_->classes) {
    const SlotPool& pool = *slots.pool;
    stats.pool_bytes += pool.committed_bytes();
    stats.slots += pool.limit();
    stats.used_bytes += pool.slot_bytes() * static_cast<size_t>(pool.used());
    stats.slot_bytes = std::max(stats.slot_bytes, pool.slot_bytes());
    stats.largest_free_bytes = std::max(
        stats.largest_free_bytes, pool.slot_bytes() * static_cast<size_t>(pool.largest_free_run()));
    if (slots.residency) stats.capacity += std::min(slots.residency->slots(), slots.wanted);
    stats.thrashing = stats.thrashing || slots.thrash.thrashing();
    for (const ExpertCopy& copy : slots.copies) {
      if (copy.state == CopyState::empty) continue;
      const bool named = serves(*impl_->layers[static_cast<size_t>(copy.layer)], copy);
      stats.ready += named && copy.expert != kSharedExpert;
      size_t& use = named                            ? stats.serving_bytes
                    : copy.state == CopyState::ready ? stats.kept_bytes
                                                     : stats.moving_bytes;
      use += pool.slot_bytes();
    }
  }
  stats.free_bytes = stats.pool_bytes - stats.used_bytes;
  stats.epoch = impl_->epoch;
  stats.paging = impl_->paging;
  stats.scrub = impl_->scrubbed;
  if (const Prefetcher* prefetcher = impl_->prefetcher.get()) {
    const PrefetchGovernor::Stats& judged = prefetcher->governor.stats();
    stats.prefetch = prefetcher->stats;
    stats.prefetch.saved_ns = judged.saved_ns;
    stats.prefetch.cost_ns = judged.cost_ns;
    stats.prefetch.won = judged.won;
    stats.prefetch.lost = judged.lost;
    stats.prefetch.enabled = prefetcher->governor.enabled();
  }
  return stats;
}

std::vector<Heartbeat> ExpertStore::heartbeats() const {
  const Clock& clock = impl_->services.clock();
  std::vector<Heartbeat> all = impl_->loader.heartbeats(clock);
  for (Heartbeat& beat : impl_->quiet_loader.heartbeats(clock)) all.push_back(std::move(beat));
  for (Heartbeat& beat : impl_->prefetch_thread.heartbeats(clock)) all.push_back(std::move(beat));
  if (impl_->scrubber.started()) all.push_back(impl_->scrubber.heartbeat(clock));
  return all;
}

std::vector<VersionInfo> ExpertStore::versions() const {
  std::vector<VersionInfo> all;
  std::lock_guard lock(impl_->mutex);
  for (const auto& version : impl_->versions) {
    VersionInfo info{.version = version->number, .source = std::string(version->source.name())};
    const auto count = [&](const std::shared_ptr<const LayerVersions>& of, int64_t& into) {
      if (of) into += std::count(of->experts.begin(), of->experts.end(), version->number);
    };
    for (const auto& layer : impl_->layers) {
      count(layer->serving, info.serving);
      count(layer->candidate, info.candidate);
      count(layer->previous, info.kept);
    }
    all.push_back(std::move(info));
  }
  return all;
}

EventSink::~EventSink() = default;

const char* to_string(StoreEventKind kind) {
  switch (kind) {
    case StoreEventKind::load_failed: return "load_failed";
    case StoreEventKind::reload_done: return "reload_done";
    case StoreEventKind::reload_failed: return "reload_failed";
    case StoreEventKind::rollback_done: return "rollback_done";
    case StoreEventKind::scrub_found: return "scrub_found";
    case StoreEventKind::scrub_repaired: return "scrub_repaired";
    case StoreEventKind::scrub_failed: return "scrub_failed";
    case StoreEventKind::thrash_began: return "thrash_began";
    case StoreEventKind::thrash_ended: return "thrash_ended";
    case StoreEventKind::pressure: return "pressure";
    case StoreEventKind::background_late: return "background_late";
  }
  return "unknown";
}

double share_point(uint64_t request_id) {
  uint64_t z = request_id + 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return static_cast<double>((z ^ z >> 31) >> 11) * 0x1p-53;
}

}  // namespace moe
