// New versions of experts, and the way back: what a host asks for, and in which steps it is done.
#include <algorithm>
#include <map>
#include <utility>

#include "core/error.h"
#include "store/layer_specs.h"
#include "store/versions.h"

namespace moe {
namespace {

constexpr int64_t kReloadDeadlineNs = 600'000'000'000;

// Targets in the order of layers; everything if `wanted` is empty.
Result<std::vector<LayerTarget>> find_targets(Versions& store,
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

Result<uint32_t> Versions::reload(const WeightSource& from, const ReloadOptions& wanted) {
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
  MOE_RETURN_IF_ERROR(check_same_layers(from, specs, options.format));
  MOE_ASSIGN_OR_RETURN(auto targets, find_targets(*this, wanted.experts));
  const FifoGate::Turn turn(admin, services.clock(), end_ns, schedule);
  if (!turn.entered())
    return Status(StatusCode::deadline_exceeded, "the deadline passed before this reload's turn");
  if (has(&StoreLayer::candidate))
    return Status(StatusCode::failed_precondition,
                  "a version is being tried; end that first with set_share(1) or rollback()");
  MOE_RETURN_IF_ERROR(start_loader());
  // No expert has more than two versions at once: those kept for rollback() are read again then.
  MOE_RETURN_IF_ERROR(leave_old(true, end_ns));

  std::shared_ptr<Version> version = add_version(newest_version + 1, from);
  version->check_finite = wanted.finite;
  AllVersions before = serving_now(), older = previous_now();
  Status status;
  for (const auto& step : steps_of(std::move(targets), wanted.step)) {
    set_goal(serving_now(), step, version->number);
    for (const LayerTarget& t : step)
      if (status.ok()) status = load_target(t, *version, wanted.loads_at_once, end_ns);
    AllVersions next = serving_now();
    for (const LayerTarget& t : step) {
      if (!status.ok()) break;
      auto made = next_versions(*t.layer, t.experts, t.block, version);
      status = made.status();
      if (status.ok()) next[t.layer->index] = *std::move(made);
    }
    if (status.ok()) status = switch_to(std::move(next), wanted.share, before, end_ns);
    if (!status.ok()) break;
  }
  version->check_finite = false;
  clear_goal();
  if (!status.ok()) {
    AllVersions reached = serving_now();
    if (Status back = return_to(before, end_ns); !back.ok()) {
      if (!device) (void)settle_for(before, reached, end_ns);
      status = std::move(back);
    }
    set_previous(std::move(older));
    version.reset();
    reached.clear();
    before.clear();
    (void)leave_old(false, end_ns);
    tell(StoreEventKind::reload_failed, status.place().layer, status.place().expert, status);
    return status;
  }
  older.clear();
  before.clear();
  (void)leave_old(false, end_ns);
  tell(StoreEventKind::reload_done, -1, -1, {});
  return version->number;
}

Status Versions::rollback(int64_t deadline_ns) {
  const int64_t end_ns =
      services.clock().now_ns() + (deadline_ns > 0 ? deadline_ns : kReloadDeadlineNs);
  const FifoGate::Turn turn(admin, services.clock(), end_ns, schedule);
  MOE_RETURN_IF_ERROR(turn.status());
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
    AllVersions newer = serving_now(), older = newer;
    const AllVersions previous = previous_now();
    for (size_t i = 0; i < layers.size(); ++i)
      if (previous[i]) older[i] = previous[i];
    const Status status = return_to(older, end_ns);
    if (!status.ok() && !return_to(newer, end_ns).ok() && !device)  // as it was
      (void)settle_for(newer, older, end_ns);
    for (size_t i = 0; i < layers.size(); ++i)
      if (!previous[i]) newer[i].reset();
    set_previous(status.ok() ? newer : previous);
    if (!status.ok()) {
      (void)leave_old(false, end_ns);
      return status;
    }
  }
  (void)leave_old(false, end_ns);
  tell(StoreEventKind::rollback_done, -1, -1, {});
  return {};
}

Status Versions::set_share(double wanted) {
  const int64_t end_ns = services.clock().now_ns() + kReloadDeadlineNs;
  if (!(wanted >= 0 && wanted <= 1))
    return invalid_argument({}, "share is {}; it must be from 0 to 1", wanted);
  const FifoGate::Turn turn(admin, services.clock(), end_ns, schedule);
  MOE_RETURN_IF_ERROR(turn.status());
  if (!has(&StoreLayer::candidate))
    return Status(StatusCode::failed_precondition,
                  "no version is being tried; reload with ReloadOptions::share below 1 first");
  AllVersions next, before = serving_now();
  for (const auto& layer : layers) next.push_back(layer->candidate);
  MOE_RETURN_IF_ERROR(switch_to(std::move(next), wanted, before, end_ns));
  before.clear();
  return wanted < 1 ? Status() : leave_old(false, end_ns);
}

Status Versions::forget_previous(int64_t deadline_ns) {
  const int64_t end_ns =
      services.clock().now_ns() + (deadline_ns > 0 ? deadline_ns : kReloadDeadlineNs);
  const FifoGate::Turn turn(admin, services.clock(), end_ns, schedule);
  MOE_RETURN_IF_ERROR(turn.status());
  MOE_RETURN_IF_ERROR(wait_for_old_forwards(end_ns));
  {
    auto lock = locked();
    for (auto& layer : layers) layer->previous.reset();
  }
  MOE_RETURN_IF_ERROR(leave_old(true, end_ns));
  trim();
  return {};
}

}  // namespace moe
