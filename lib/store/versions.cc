// Which versions serve, and what leaves when they do no more.
#include "store/versions.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace moe {

namespace {
void drop_unused_sources(LayerVersions& versions) {
  std::erase_if(versions.sources, [&](const std::shared_ptr<Version>& source) {
    return versions.block->version != source->number &&
           std::find(versions.experts.begin(), versions.experts.end(), source->number) ==
               versions.experts.end();
  });
}
}  // namespace

std::shared_ptr<Version> Versions::add_version(uint32_t number, const WeightSource& from) {
  auto version = std::make_shared<Version>(number, from);
  for (const auto& layer : layers)
    version->digests.emplace_back(static_cast<size_t>(layer->spec.router.num_experts) + 1);
  std::lock_guard lock(mutex);
  versions.push_back(version);
  newest_version = std::max(newest_version, number);
  return version;
}

std::shared_ptr<LayerVersions> Versions::make_versions(StoreLayer& layer,
                                                       const LayerVersions& like) {
  auto versions = std::make_shared<LayerVersions>(like);
  auto lock = locked();
  std::erase_if(layer.made, [](const auto& made) { return made.expired(); });
  layer.made.push_back(versions);
  return versions;
}

// The versions of `layer` with what `target` names in `version`.
Result<std::shared_ptr<const LayerVersions>> Versions::next_versions(
    StoreLayer& layer, std::span<const int32_t> experts, bool block,
    const std::shared_ptr<Version>& version) {
  auto next = make_versions(layer, *layer.serving);
  for (const int32_t e : experts) next->experts[static_cast<size_t>(e)] = version->number;
  if (block) {
    const int64_t shared =
        layer.shared.gemm ? ready_slot(layer, {kSharedExpert, version->number}) : -1;
    MOE_ASSIGN_OR_RETURN(next->block, make_block(layer, *version, shared));
  }
  next->sources.push_back(version);
  drop_unused_sources(*next);
  return std::shared_ptr<const LayerVersions>(std::move(next));
}

// What serves `layer` now, but for some of `theirs`.
std::shared_ptr<const LayerVersions> Versions::mix(StoreLayer& layer, const LayerVersions& theirs,
                                                   std::span<const Need> experts, bool block) {
  auto next = make_versions(layer, *layer.serving);
  for (const Need& need : experts) next->experts[static_cast<size_t>(need.expert)] = need.version;
  if (block) next->block = theirs.block;
  for (const auto& source : theirs.sources)
    if (std::find(next->sources.begin(), next->sources.end(), source) == next->sources.end())
      next->sources.push_back(source);
  drop_unused_sources(*next);
  return next;
}

// Publishes `next` for all layers between two forwards of each; with a share below 1 as candidates.
Status Versions::switch_to(AllVersions next, double next_share, const AllVersions& before,
                           int64_t end_ns) {
  const FifoGate::Turn turn(gate, services.clock(), end_ns, schedule);
  if (!turn.entered())
    return Status(StatusCode::deadline_exceeded, "the deadline passed before a table's turn");
  auto lock = locked();
  reserve_tables();
  share = next_share;
  for (auto& layer : layers) {
    std::shared_ptr<const LayerVersions>& theirs = next[layer->index];
    if (next_share < 1) {
      layer->candidate = theirs == layer->serving ? layer->serving : std::move(theirs);
      continue;
    }
    layer->candidate.reset();
    layer->serving = std::move(theirs);
    layer->previous = before.empty() ? nullptr : before[layer->index];
    if (layer->previous == layer->serving) layer->previous.reset();
  }
  return publish_all();
}

Versions::AllVersions Versions::serving_now() const {
  AllVersions all;
  for (const auto& layer : layers) all.push_back(layer->serving);
  return all;
}

Versions::AllVersions Versions::previous_now() const {
  AllVersions all;
  for (const auto& layer : layers) all.push_back(layer->previous);
  return all;
}

void Versions::set_previous(AllVersions previous) {
  auto lock = locked();
  for (auto& layer : layers) {
    layer->previous = std::move(previous[layer->index]);
    if (layer->previous == layer->serving) layer->previous.reset();
  }
}

bool Versions::has(std::shared_ptr<const LayerVersions> StoreLayer::*what) const {
  return std::any_of(layers.begin(), layers.end(),
                     [&](const auto& layer) { return (*layer).*what != nullptr; });
}

void Versions::set_goal(const AllVersions& versions_then, std::span<const LayerTarget> targets,
                        uint32_t version) {
  std::vector<LayerGoal> next;
  for (const auto& then : versions_then) next.push_back({then->experts, then->block->version});
  for (const LayerTarget& target : targets) {
    LayerGoal& mine = next[target.layer->index];
    for (const int32_t e : target.experts) mine.experts[static_cast<size_t>(e)] = version;
    if (target.block) mine.shared = version;
  }
  auto lock = locked();
  goal = std::move(next);
}

void Versions::clear_goal() {
  auto lock = locked();
  goal.clear();
}

// ---- leaving old versions

namespace {
bool names(const std::shared_ptr<const LayerVersions>& versions, const ExpertCopy& copy,
           int64_t slot) {
  if (!versions) return false;
  return copy.expert == kSharedExpert
             ? versions->block->version == copy.version && versions->block->shared_slot == slot
             : versions->experts[static_cast<size_t>(copy.expert)] == copy.version;
}

bool wants(const LayerGoal& goal, const ExpertCopy& copy) {
  return copy.version == (copy.expert == kSharedExpert
                              ? goal.shared
                              : goal.experts[static_cast<size_t>(copy.expert)]);
}

// Whether a forward holds versions that do not serve any more.
bool old_held(const StoreLayer& layer) {
  return std::any_of(layer.made.begin(), layer.made.end(), [&](const auto& made) {
    const auto versions = made.lock();
    return versions && versions != layer.serving && versions != layer.candidate &&
           versions->holders.count.load(std::memory_order_acquire) > 0;
  });
}
}  // namespace

Status Versions::wait_for_old_forwards(int64_t end_ns) {
  {
    const FifoGate::Turn turn(gate, services.clock(), end_ns, schedule);
    if (!turn.entered())
      return Status(StatusCode::deadline_exceeded, "the deadline passed before a table's turn");
    MOE_RETURN_IF_ERROR(wait_for_grace(end_ns));
  }
  if (breaks(Rule::wait_for_versions)) return {};
  return wait(
      [&] {
        return std::none_of(layers.begin(), layers.end(),
                            [](const auto& layer) { return old_held(*layer); });
      },
      end_ns);
}

Status Versions::sweep(bool kept, int64_t end_ns) {
  MOE_RETURN_IF_ERROR(wait_for_old_forwards(end_ns));
  const FifoGate::Turn turn(gate, services.clock(), end_ns, schedule);
  if (!turn.entered())
    return Status(StatusCode::deadline_exceeded, "the deadline passed before a sweep's turn");
  {
    auto lock = locked();
    size_t all = 0;
    for (const SlotClass& slots : classes) all += slots.copies.size();
    begin_move(all);
    for (size_t c = 0; c < classes.size(); ++c)
      for (size_t i = 0; i < classes[c].copies.size(); ++i) {
        ExpertCopy& copy = classes[c].copies[i];
        if (copy.state != CopyState::ready || copy.leases > 0) continue;
        const StoreLayer& layer = *layers[static_cast<size_t>(copy.layer)];
        const auto slot = static_cast<int64_t>(i);
        const Need need{copy.expert, copy.version};
        const bool routed = copy.expert != kSharedExpert;
        const bool twin = routed && &copy != find_copy(layer, need);
        const bool keeps = !kept && !(routed && classes[c].paged());
        if (!goal.empty() && wants(goal[layer.index], copy)) continue;
        if (!twin && (names(layer.serving, copy, slot) || names(layer.candidate, copy, slot) ||
                      (keeps && names(layer.previous, copy, slot))))
          continue;
        transition(copy, CopyState::draining);
        if (routed) forget(layer, need);
        move.leaving.push_back({c, slot});
      }
  }
  const Status status = drain(move, end_ns);
  auto lock = locked();
  keep(move);
  // Sources that nobody names any more may go.
  std::erase_if(versions, [](const auto& v) { return v.use_count() == 1; });
  return status;
}

Status Versions::leave_old(bool kept, int64_t end_ns) {
  MOE_RETURN_IF_ERROR(sweep(kept, end_ns));
  const FifoGate::Turn turn(gate, services.clock(), end_ns, schedule);
  MOE_RETURN_IF_ERROR(turn.status());
  for (SlotClass& slots : classes)
    if (slots.paged()) MOE_RETURN_IF_ERROR(shrink(slots, end_ns));
  return {};
}

void Versions::trim() {
  auto lock = locked();
  for (SlotClass& slots : classes) slots.pool->trim(slots.pool->used() + kSpareSlots);
}

}  // namespace moe
