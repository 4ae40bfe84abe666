// New versions of experts, and the way back: load beside, verify, publish, keep or free the old.
#include <algorithm>
#include <map>
#include <utility>

#include "core/error.h"
#include "store/store_impl.h"

namespace moe {
namespace {

constexpr int64_t kReloadDeadlineNs = 600'000'000'000;

// Targets in the order of layers; everything if `wanted` is empty.
Result<std::vector<LayerTarget>> find_targets(ExpertStore::Impl& store,
                                              const std::vector<ExpertId>& wanted) {
  std::map<int32_t, LayerTarget> targets;
  if (wanted.empty()) {
    for (auto& layer : store.layers) {
      LayerTarget& target = targets[layer->spec.layer];
      target = {layer.get(), {}, true};
      for (int32_t e = 0; e < layer->spec.router.num_experts; ++e) target.experts.push_back(e);
    }
  }
  for (const ExpertId id : wanted) {
    StoreLayer* layer = store.find(id.layer);
    if (!layer)
      return invalid_argument({.layer = id.layer}, "layer {} is not an MoE layer of this store",
                              id.layer);
    if (id.expert != kSharedExpert &&
        (id.expert < 0 || id.expert >= layer->spec.router.num_experts))
      return invalid_argument({.layer = id.layer, .expert = id.expert},
                              "expert {} of layer {}: the layer has experts 0 to {}", id.expert,
                              id.layer, layer->spec.router.num_experts - 1);
    LayerTarget& target = targets[id.layer];
    target.layer = layer;
    if (id.expert == kSharedExpert)
      target.block = true;
    else
      target.experts.push_back(id.expert);
  }
  std::vector<LayerTarget> list;
  for (auto& [index, target] : targets) {
    std::sort(target.experts.begin(), target.experts.end());
    target.experts.erase(std::unique(target.experts.begin(), target.experts.end()),
                         target.experts.end());
    list.push_back(std::move(target));
  }
  return list;
}

Status check_layers(const ExpertStore::Impl& store, const WeightSource& from) {
  for (const LayerSpec& spec : store.specs) {
    const auto& theirs = from.layers();
    const auto same = std::find_if(theirs.begin(), theirs.end(),
                                   [&](const LayerSpec& s) { return s.layer == spec.layer; });
    if (same == theirs.end())
      return invalid_argument({.file = from.name(), .layer = spec.layer},
                              "{} has no MoE layer {}; a reload needs the same layers", from.name(),
                              spec.layer);
    if (!(*same == spec))
      return invalid_argument({.file = from.name(), .layer = spec.layer},
                              "layer {} of {} has another shape, format or routing rule than the "
                              "one that serves; open a store for it",
                              spec.layer, from.name());
  }
  return {};
}

// Steps of targets that are published together.
std::vector<std::vector<LayerTarget>> steps_of(std::vector<LayerTarget> targets, ReloadStep step) {
  std::vector<std::vector<LayerTarget>> steps;
  if (step == ReloadStep::all) return {std::move(targets)};
  for (LayerTarget& target : targets) {
    if (step == ReloadStep::layer) {
      steps.push_back({std::move(target)});
      continue;
    }
    if (target.block) steps.push_back({{target.layer, {}, true}});
    for (const int32_t e : target.experts) steps.push_back({{target.layer, {e}, false}});
  }
  return steps;
}

}  // namespace

// ---- loading beside

// Loads what `targets` name in `version` into free slots that no table names yet. Experts of a
// paged layer are read and verified, and not kept. On an error nothing stays.
Status ExpertStore::Impl::load_beside(std::span<const Need> needs, StoreLayer& layer,
                                      int64_t end_ns, int at_once) {
  for (size_t begin = 0; begin < needs.size();) {
    const FifoGate::Turn turn(gate, services.clock(), end_ns, schedule);
    if (!turn.entered())
      return Status(StatusCode::deadline_exceeded, "the deadline passed before a reload's turn");
    const size_t count = std::min(needs.size() - begin, static_cast<size_t>(at_once));
    {
      auto lock = locked();
      move.clear();
      move.reserve(count);
      for (const Need& need : needs.subspan(begin, count)) {
        const ExpertCopy* copy = find_copy(layer, need);
        if (!copy || copy->state != CopyState::ready) move.filling.push_back({&layer, need});
      }
    }
    begin += count;
    const Status status = fill(move, end_ns, at_once);
    auto lock = locked();
    SlotClass& routed = classes[layer.routed.slot_class];
    for (const Move::Filling& f : move.filling) {
      if (f.slot < 0) continue;
      const bool routed_one = f.need.expert != kSharedExpert;
      if (routed_one && routed.paged()) {
        const CopyRef ref{layer.routed.slot_class, f.slot};
        if (copy_at(ref).state != CopyState::ready) continue;  // late: the next sweep finds it
        transition(copy_at(ref), CopyState::draining);
        free_slot(ref);
      } else if (routed_one) {
        routed.residency->add({layer.spec.layer, f.need.expert}, f.need.version);
      }
    }
    MOE_RETURN_IF_ERROR(status);
  }
  return {};
}

// The versions of `layer` with what `target` names in `version`.
Result<std::shared_ptr<const LayerVersions>> ExpertStore::Impl::next_versions(
    StoreLayer& layer, std::span<const int32_t> experts, bool block,
    const std::shared_ptr<Version>& version) {
  auto next = std::make_shared<LayerVersions>(*layer.serving);
  for (const int32_t e : experts) next->experts[static_cast<size_t>(e)] = version->number;
  if (block) {
    const ExpertCopy* shared = nullptr;
    if (layer.shared.gemm) {
      auto lock = locked();
      shared = find_copy(layer, {kSharedExpert, version->number});
    }
    MOE_ASSIGN_OR_RETURN(next->block, make_block(layer, *version, shared));
  }
  next->sources.push_back(version);
  std::erase_if(next->sources, [&](const std::shared_ptr<Version>& s) {
    return next->block->version != s->number &&
           std::find(next->experts.begin(), next->experts.end(), s->number) == next->experts.end();
  });
  return std::shared_ptr<const LayerVersions>(std::move(next));
}

Status ExpertStore::Impl::load_target(const LayerTarget& target, const Version& version,
                                      int at_once, int64_t end_ns) {
  std::vector<Need> needs, shared;
  for (const int32_t e : target.experts) needs.push_back({e, version.number});
  if (target.block && target.layer->shared.gemm) shared.push_back({kSharedExpert, version.number});
  MOE_RETURN_IF_ERROR(load_needs(*target.layer, shared, 1, end_ns));
  return load_needs(*target.layer, needs, at_once, end_ns);
}

// ---- leaving old versions

namespace {
bool names(const std::shared_ptr<const LayerVersions>& versions, const ExpertCopy& copy) {
  if (!versions) return false;
  return copy.expert == kSharedExpert
             ? versions->block->version == copy.version
             : versions->experts[static_cast<size_t>(copy.expert)] == copy.version;
}
}  // namespace

Status ExpertStore::Impl::wait_for_old_forwards(int64_t end_ns) {
  {
    const FifoGate::Turn turn(gate, services.clock(), end_ns, schedule);
    if (!turn.entered())
      return Status(StatusCode::deadline_exceeded, "the deadline passed before a table's turn");
    MOE_RETURN_IF_ERROR(wait_for_grace(end_ns));
  }
  return wait(
      [&] {
        std::erase_if(old_versions, [](const auto& old) { return old.expired(); });
        const bool kept_in_use = std::any_of(layers.begin(), layers.end(), [](const auto& layer) {
          return layer->previous && layer->previous.use_count() > 1;
        });
        return old_versions.empty() && !kept_in_use;
      },
      end_ns);
}

Status ExpertStore::Impl::sweep(bool kept, int64_t end_ns) {
  const FifoGate::Turn turn(gate, services.clock(), end_ns, schedule);
  if (!turn.entered())
    return Status(StatusCode::deadline_exceeded, "the deadline passed before a sweep's turn");
  {
    auto lock = locked();
    reserve_tables();
    move.clear();
    size_t all = 0;
    for (const SlotClass& slots : classes) all += slots.copies.size();
    move.reserve(all);
    for (size_t c = 0; c < classes.size(); ++c)
      for (size_t i = 0; i < classes[c].copies.size(); ++i) {
        ExpertCopy& copy = classes[c].copies[i];
        if (copy.state != CopyState::ready || copy.leases > 0) continue;
        const StoreLayer& layer = *layers[static_cast<size_t>(copy.layer)];
        if (names(layer.serving, copy) || names(layer.candidate, copy)) continue;
        if (!kept && !classes[c].paged() && names(layer.previous, copy)) continue;
        if (copy.expert != kSharedExpert)
          classes[c].residency->drop({layer.spec.layer, copy.expert}, copy.version);
        transition(copy, CopyState::draining);
        move.leaving.push_back({c, static_cast<int64_t>(i)});
      }
  }
  const Status status = drain(move, end_ns);
  auto lock = locked();
  keep(move);
  // Sources that nobody names any more may go.
  std::erase_if(versions, [](const auto& v) { return v.use_count() == 1; });
  return status;
}

// Afterwards no forward holds anything but what tables name, and only that has slots.
Status ExpertStore::Impl::leave_old(int64_t end_ns) {
  MOE_RETURN_IF_ERROR(wait_for_old_forwards(end_ns));
  return sweep(false, end_ns);
}

// ---- what hosts call

Result<uint32_t> ExpertStore::Impl::reload(const WeightSource& from, const ReloadOptions& wanted) {
  const int64_t end_ns =
      services.clock().now_ns() + (wanted.deadline_ns > 0 ? wanted.deadline_ns : kReloadDeadlineNs);
  if (wanted.loads_at_once < 1 || wanted.loads_at_once > options.io_threads)
    return invalid_argument({}, "loads_at_once is {}; it must be from 1 to io_threads ({})",
                            wanted.loads_at_once, options.io_threads);
  if (!(wanted.share >= 0 && wanted.share <= 1))
    return invalid_argument({}, "share is {}; it must be from 0 to 1", wanted.share);
  if (wanted.share < 1 && (wanted.step != ReloadStep::all || device))
    return invalid_argument({}, "a share of {} needs ReloadStep::all and a store on the CPU",
                            wanted.share);
  if (device && std::any_of(classes.begin(), classes.end(), [](auto& c) { return c.paged(); }))
    return Status(StatusCode::unimplemented,
                  "layers that are paged on a GPU are not reloaded; keep all experts resident");
  MOE_RETURN_IF_ERROR(check_layers(*this, from));
  MOE_ASSIGN_OR_RETURN(auto targets, find_targets(*this, wanted.experts));
  const FifoGate::Turn turn(admin, services.clock(), end_ns, schedule);
  if (!turn.entered())
    return Status(StatusCode::deadline_exceeded, "the deadline passed before this reload's turn");
  if (has(&StoreLayer::candidate))
    return Status(StatusCode::failed_precondition,
                  "a version is being tried; end that first with set_share(1) or rollback()");
  MOE_RETURN_IF_ERROR(start_loader());
  // No expert has more than two versions at once: those kept for rollback() are read again then.
  MOE_RETURN_IF_ERROR(wait_for_old_forwards(end_ns));
  MOE_RETURN_IF_ERROR(sweep(true, end_ns));

  const std::shared_ptr<Version> version = add_version(from);
  version->check_finite = wanted.finite;
  AllVersions before = serving_now(), older = previous_now();
  Status status;
  for (const auto& step : steps_of(std::move(targets), wanted.step)) {
    for (const LayerTarget& t : step)
      if (status.ok()) status = load_target(t, *version, wanted.loads_at_once, end_ns);
    AllVersions next = serving_now();
    for (const LayerTarget& t : step) {
      if (!status.ok()) break;
      auto made = next_versions(*t.layer, t.experts, t.block, version);
      if (made.ok()) next[t.layer->index] = *std::move(made);
      status = made.status();
    }
    if (status.ok()) status = switch_to(std::move(next), wanted.share, before, end_ns);
    if (!status.ok()) break;
  }
  version->check_finite = false;
  if (!status.ok()) {
    const Status back = return_to(before, end_ns);
    if (!back.ok()) status = back;
    set_previous(std::move(older));
    before.clear();
    (void)leave_old(end_ns);
    tell(StoreEventKind::reload_failed, status.place().layer, status.place().expert, status);
    return status;
  }
  older.clear();
  before.clear();
  (void)leave_old(end_ns);  // whoever is late is waited for by the next call
  tell(StoreEventKind::reload_done, -1, -1, {});
  return version->number;
}

// Makes sure of `count` free slots of the size of `compute`: kept copies yield.
Status ExpertStore::Impl::make_room(const Compute& compute, int64_t count, int64_t end_ns) {
  const auto free = [&] {
    auto lock = locked();
    return classes[compute.slot_class].pool->free();
  };
  if (free() >= count) return {};
  MOE_RETURN_IF_ERROR(wait_for_old_forwards(end_ns));
  MOE_RETURN_IF_ERROR(sweep(true, end_ns));
  if (const int64_t left = free(); left < count)
    return error(StatusCode::resource_exhausted, {.phase = Phase::plan},
                 "{} experts of {} bytes do not fit beside those that serve: {} slots are free; "
                 "reload layer by layer or expert by expert, or raise expert_memory by {} bytes",
                 count, classes[compute.slot_class].stride, left,
                 static_cast<size_t>(count - left) * classes[compute.slot_class].stride);
  return {};
}

Status ExpertStore::Impl::load_needs(StoreLayer& layer, std::span<const Need> needs, int at_once,
                                     int64_t end_ns) {
  if (needs.empty()) return {};
  const Compute& compute = compute_of(layer, needs.front().expert);
  const bool passing = needs.front().expert != kSharedExpert && classes[compute.slot_class].paged();
  if (passing) at_once = std::min(at_once, static_cast<int>(kSpareSlots));
  const int64_t count = passing ? at_once : static_cast<int64_t>(needs.size());
  MOE_RETURN_IF_ERROR(make_room(compute, count, end_ns));
  return load_beside(needs, layer, end_ns, at_once);
}

// What serves again: read if it is not there any more.
Status ExpertStore::Impl::return_to(const AllVersions& versions_then, int64_t end_ns) {
  for (auto& layer : layers) {
    const LayerVersions& then = *versions_then[layer->index];
    std::vector<Need> missing;
    if (!classes[layer->routed.slot_class].paged()) {
      auto lock = locked();
      for (size_t e = 0; e < then.experts.size(); ++e) {
        const Need need{static_cast<int32_t>(e), then.experts[e]};
        const ExpertCopy* copy = find_copy(*layer, need);
        if (!copy || copy->state != CopyState::ready) missing.push_back(need);
      }
    }
    MOE_RETURN_IF_ERROR(load_needs(*layer, missing, 1, end_ns));
  }
  return switch_to(versions_then, 1, previous_now(), end_ns);
}

// Publishes `next` for all layers between two forwards of each; with a share below 1 as candidates.
Status ExpertStore::Impl::switch_to(AllVersions next, double next_share, const AllVersions& before,
                                    int64_t end_ns) {
  const FifoGate::Turn turn(gate, services.clock(), end_ns, schedule);
  if (!turn.entered())
    return Status(StatusCode::deadline_exceeded, "the deadline passed before a table's turn");
  auto lock = locked();
  reserve_tables();
  old_versions.reserve(old_versions.size() + 2 * layers.size());
  share = next_share;
  for (auto& layer : layers) {
    std::shared_ptr<const LayerVersions>& theirs = next[layer->index];
    if (next_share < 1) {
      layer->candidate = theirs == layer->serving ? layer->serving : std::move(theirs);
      continue;
    }
    if (layer->candidate) old_versions.push_back(layer->candidate);
    if (layer->previous) old_versions.push_back(layer->previous);
    if (theirs != layer->serving) old_versions.push_back(layer->serving);
    layer->candidate.reset();
    layer->serving = std::move(theirs);
    layer->previous = before.empty() ? nullptr : before[layer->index];
    if (layer->previous == layer->serving) layer->previous.reset();
  }
  // What rollback() keeps is no leftover.
  std::erase_if(old_versions, [&](const auto& old) {
    const auto held = old.lock();
    return !held || std::any_of(layers.begin(), layers.end(), [&](const auto& layer) {
      return layer->previous == held || layer->serving == held;
    });
  });
  return publish_all();
}

ExpertStore::Impl::AllVersions ExpertStore::Impl::serving_now() const {
  AllVersions all;
  for (const auto& layer : layers) all.push_back(layer->serving);
  return all;
}

ExpertStore::Impl::AllVersions ExpertStore::Impl::previous_now() const {
  AllVersions all;
  for (const auto& layer : layers)
    all.push_back(layer->previous ? layer->previous : layer->serving);
  return all;
}

void ExpertStore::Impl::set_previous(AllVersions previous) {
  auto lock = locked();
  for (auto& layer : layers) {
    layer->previous = std::move(previous[layer->index]);
    if (layer->previous == layer->serving) layer->previous.reset();
  }
}

bool ExpertStore::Impl::has(std::shared_ptr<const LayerVersions> StoreLayer::*what) const {
  return std::any_of(layers.begin(), layers.end(),
                     [&](const auto& layer) { return (*layer).*what != nullptr; });
}

Status ExpertStore::Impl::rollback(int64_t deadline_ns) {
  const int64_t end_ns =
      services.clock().now_ns() + (deadline_ns > 0 ? deadline_ns : kReloadDeadlineNs);
  const FifoGate::Turn turn(admin, services.clock(), end_ns, schedule);
  if (!turn.entered())
    return Status(StatusCode::deadline_exceeded, "the deadline passed before this call's turn");
  const bool trial = has(&StoreLayer::candidate);
  if (!trial && !has(&StoreLayer::previous))
    return Status(StatusCode::failed_precondition,
                  "there is nothing to roll back to: nothing was reloaded since the store was "
                  "opened or forget_previous() was called");
  MOE_RETURN_IF_ERROR(start_loader());
  if (trial) {
    AllVersions serving = serving_now(), kept = previous_now();
    MOE_RETURN_IF_ERROR(switch_to(std::move(serving), 1, kept, end_ns));
  } else {
    MOE_RETURN_IF_ERROR(wait_for_old_forwards(end_ns));
    AllVersions newer = serving_now();
    MOE_RETURN_IF_ERROR(return_to(previous_now(), end_ns));
    set_previous(std::move(newer));
  }
  (void)leave_old(end_ns);
  tell(StoreEventKind::rollback_done, -1, -1, {});
  return {};
}

Status ExpertStore::Impl::set_share(double wanted) {
  const int64_t end_ns = services.clock().now_ns() + kReloadDeadlineNs;
  if (!(wanted >= 0 && wanted <= 1))
    return invalid_argument({}, "share is {}; it must be from 0 to 1", wanted);
  const FifoGate::Turn turn(admin, services.clock(), end_ns, schedule);
  if (!turn.entered())
    return Status(StatusCode::deadline_exceeded, "the deadline passed before this call's turn");
  if (!has(&StoreLayer::candidate))
    return Status(StatusCode::failed_precondition,
                  "no version is being tried; reload with ReloadOptions::share below 1 first");
  AllVersions next, before = serving_now();
  for (const auto& layer : layers) next.push_back(layer->candidate);
  MOE_RETURN_IF_ERROR(switch_to(std::move(next), wanted, before, end_ns));
  before.clear();
  return wanted < 1 ? Status() : leave_old(end_ns);
}

Status ExpertStore::Impl::forget_previous(int64_t deadline_ns) {
  const int64_t end_ns =
      services.clock().now_ns() + (deadline_ns > 0 ? deadline_ns : kReloadDeadlineNs);
  const FifoGate::Turn turn(admin, services.clock(), end_ns, schedule);
  if (!turn.entered())
    return Status(StatusCode::deadline_exceeded, "the deadline passed before this call's turn");
  MOE_RETURN_IF_ERROR(wait_for_old_forwards(end_ns));
  {
    auto lock = locked();
    for (auto& layer : layers) layer->previous.reset();
  }
  MOE_RETURN_IF_ERROR(sweep(true, end_ns));
  return trim(end_ns);
}

Status ExpertStore::Impl::trim(int64_t) {
  auto lock = locked();
  for (SlotClass& slots : classes) slots.pool->trim(slots.pool->used() + kSpareSlots);
  return {};
}

// ---- the public face

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
