// Copies of a version that is to serve: loaded beside those that serve now, or as they leave.
#include <algorithm>
#include <utility>

#include "core/error.h"
#include "store/versions.h"

namespace moe {

// The quiet one, unless forwards page: those may wait for their turn behind what it does.
Result<Loader*> Versions::loader_beside() {
  if (std::any_of(classes.begin(), classes.end(), [](auto& c) { return c.paged(); }))
    return &loader;
  MOE_RETURN_IF_ERROR(start_quiet_loader());
  return &quiet_loader;
}

// Loads what `targets` name in `version` into free slots that no table names yet. Of a paged layer
// those stay whose place in memory they are to take, as long as the spare slots allow: the others
// are read and verified, and read again when somebody needs them. On an error nothing stays.
Status Versions::load_beside(std::span<const Need> needs, StoreLayer& layer, int64_t end_ns,
                             int at_once) {
  MOE_ASSIGN_OR_RETURN(Loader* const by, loader_beside());
  for (size_t begin = 0; begin < needs.size();) {
    const FifoGate::Turn turn(gate, services.clock(), end_ns, schedule);
    if (!turn.entered())
      return Status(StatusCode::deadline_exceeded, "the deadline passed before a reload's turn");
    const size_t count = std::min(needs.size() - begin, static_cast<size_t>(at_once));
    {
      auto lock = locked();
      begin_move(count);
      for (const Need& need : needs.subspan(begin, count)) {
        const ExpertCopy* copy = find_copy(layer, need);
        if (!copy || copy->state != CopyState::ready) move.filling.push_back({&layer, need});
      }
    }
    begin += count;
    MOE_RETURN_IF_ERROR(drain(move, end_ns));
    const Status status = fill(move, end_ns, at_once, *by);
    auto lock = locked();
    SlotClass& routed = classes[layer.routed.slot_class];
    for (const Move::Filling& f : move.filling) {
      if (f.slot < 0) continue;
      const CopyRef ref{layer.routed.slot_class, f.slot};
      if (f.need.expert == kSharedExpert) continue;
      if (copy_at(ref).state != CopyState::ready) continue;  // late: settle_late() finds it
      const ExpertId id{layer.spec.layer, f.need.expert};
      if (routed.paged()) {
        const bool follows = routed.residency->versions(id) == 1 && routed.pool->free() >= at_once;
        if (follows) {
          routed.residency->add(id, f.need.version);
        } else {
          transition(copy_at(ref), CopyState::draining);
          free_slot(ref);
        }
      } else if (!routed.residency->resident(id, f.need.version)) {
        if (routed.residency->versions(id) < Residency::kVersions)
          routed.residency->add(id, f.need.version);
        else
          set_late(ref);  // a third one is counted when another has gone
      }
    }
    MOE_RETURN_IF_ERROR(status);
  }
  return {};
}

Status Versions::load_target(const LayerTarget& target, const Version& version, int at_once,
                             int64_t end_ns) {
  std::vector<Need> needs, shared;
  for (const int32_t e : target.experts) needs.push_back({e, version.number});
  if (target.block && target.layer->shared.gemm) shared.push_back({kSharedExpert, version.number});
  MOE_RETURN_IF_ERROR(load_needs(*target.layer, shared, 1, end_ns));
  return load_needs(*target.layer, needs, at_once, end_ns);
}

// Free slots of the size of `compute`; where there are fewer than `count`, kept copies yield.
Result<int64_t> Versions::free_slots(const Compute& compute, int64_t count, int64_t end_ns) {
  const auto free = [&] {
    auto lock = locked();
    return classes[compute.slot_class].pool->free();
  };
  if (const int64_t now = free(); now >= count) return now;
  MOE_RETURN_IF_ERROR(sweep(true, end_ns));
  return free();
}

namespace {
bool comes_late(const ExpertCopy* copy) { return copy && copy->late && in_flight(*copy); }
}  // namespace

// Makes sure of `count` free slots of the size of `compute`, and tries for `more`.
Status Versions::make_room(const Compute& compute, int64_t count, int64_t more, int64_t end_ns) {
  MOE_ASSIGN_OR_RETURN(int64_t left, free_slots(compute, count + more, end_ns));
  if (left < count) {  // what comes late, of reloads that had no time, has slots
    const auto& copies = classes[compute.slot_class].copies;
    MOE_RETURN_IF_ERROR(wait(
        [&] {
          return std::none_of(copies.begin(), copies.end(),
                              [](const ExpertCopy& copy) { return comes_late(&copy); });
        },
        end_ns));
    MOE_ASSIGN_OR_RETURN(left, free_slots(compute, count, end_ns));
  }
  if (left < count)
    return error(StatusCode::resource_exhausted, {.phase = Phase::plan},
                 "{} experts of {} bytes do not fit beside those that serve: {} slots are free; "
                 "reload layer by layer or expert by expert, or raise expert_memory by {} bytes",
                 count, classes[compute.slot_class].stride, left,
                 static_cast<size_t>(count - left) * classes[compute.slot_class].stride);
  return {};
}

Status Versions::load_needs(StoreLayer& layer, std::span<const Need> needs, int at_once,
                            int64_t end_ns) {
  // What comes late is waited for, and not read twice.
  MOE_RETURN_IF_ERROR(wait(
      [&] {
        return std::none_of(needs.begin(), needs.end(),
                            [&](const Need& need) { return comes_late(find_copy(layer, need)); });
      },
      end_ns));
  int64_t missing;
  {
    auto lock = locked();
    missing = std::count_if(needs.begin(), needs.end(), [&](const Need& need) {
      const ExpertCopy* copy = find_copy(layer, need);
      return !copy || copy->state != CopyState::ready;
    });
  }
  if (missing == 0) return {};
  const Compute& compute = compute_of(layer, needs.front().expert);
  const bool passing = needs.front().expert != kSharedExpert && classes[compute.slot_class].paged();
  if (passing) at_once = std::min(at_once, static_cast<int>(kSpareSlots));
  const int64_t count = passing ? at_once : missing;
  MOE_RETURN_IF_ERROR(make_room(compute, count, passing ? kSpareSlots - count : 0, end_ns));
  return load_beside(needs, layer, end_ns, at_once);
}

// The shared expert of `then` is read again if its copy is gone; its block names the copy.
Result<std::shared_ptr<const LayerVersions>> Versions::revive(
    StoreLayer& layer, const std::shared_ptr<const LayerVersions>& then, int64_t end_ns) {
  if (!layer.shared.gemm) return then;
  const Need need{kSharedExpert, then->block->version};
  if (ready_slot(layer, need) < 0) MOE_RETURN_IF_ERROR(load_needs(layer, {&need, 1}, 1, end_ns));
  const int64_t slot = ready_slot(layer, need);
  if (slot == then->block->shared_slot) return then;
  std::shared_ptr<Version> version;
  {
    auto lock = locked();
    version = find_version(need.version);
  }
  auto next = make_versions(layer, *then);
  MOE_ASSIGN_OR_RETURN(next->block, make_block(layer, *version, slot));
  return std::shared_ptr<const LayerVersions>(std::move(next));
}

// What `then` names serves again. What is not there any more is read: all of it beside what serves
// now, or, where that does not fit, piece by piece.
Status Versions::return_to(const AllVersions& then, int64_t end_ns) {
  set_goal(then, {}, 0);
  Status status = return_at_once(then, end_ns);
  if (status.code() == StatusCode::resource_exhausted) status = return_by_pieces(then, end_ns);
  clear_goal();
  return status;
}

// Where no return could be read to its end: every layer serves what `wanted` names, or else, where
// its shared expert cannot be read, what `otherwise` names. Routed experts without a copy are read
// when a forward needs them.
Status Versions::settle_for(AllVersions wanted, const AllVersions& otherwise, int64_t end_ns) {
  set_goal(wanted, {}, 0);
  for (auto& layer : layers) {
    auto& theirs = wanted[layer->index];
    auto revived = revive(*layer, theirs, end_ns);
    if (!revived.ok()) revived = revive(*layer, otherwise[layer->index], end_ns);
    theirs = revived.ok() ? *std::move(revived) : layer->serving;
  }
  clear_goal();
  return switch_to(std::move(wanted), 1, previous_now(), end_ns);
}

// The routed experts of `then` that have a ready copy, or that have none.
std::vector<Need> Versions::needs_of(StoreLayer& layer, const LayerVersions& then,
                                     bool ready) const {
  std::vector<Need> needs;
  auto lock = locked();
  for (size_t e = 0; e < then.experts.size(); ++e) {
    const Need need{static_cast<int32_t>(e), then.experts[e]};
    const ExpertCopy* copy = find_copy(layer, need);
    if ((copy && copy->state == CopyState::ready) == ready) needs.push_back(need);
  }
  return needs;
}

Status Versions::return_at_once(AllVersions then, int64_t end_ns) {
  for (auto& layer : layers) {
    auto& theirs = then[layer->index];
    MOE_ASSIGN_OR_RETURN(theirs, revive(*layer, theirs, end_ns));
    if (classes[layer->routed.slot_class].paged()) continue;
    MOE_RETURN_IF_ERROR(load_needs(*layer, needs_of(*layer, *theirs, false), 1, end_ns));
  }
  return switch_to(std::move(then), 1, previous_now(), end_ns);
}

Status Versions::return_by_pieces(AllVersions then, int64_t end_ns) {
  // First those that are there, so that what serves in their place makes room.
  AllVersions next = serving_now();
  for (auto& layer : layers) {
    const LayerVersions& theirs = *then[layer->index];
    next[layer->index] = mix(*layer, theirs, needs_of(*layer, theirs, true), false);
  }
  MOE_RETURN_IF_ERROR(switch_to(std::move(next), 1, previous_now(), end_ns));
  for (auto& layer : layers) {
    auto& theirs = then[layer->index];
    MOE_ASSIGN_OR_RETURN(theirs, revive(*layer, theirs, end_ns));
    next = serving_now();
    next[layer->index] = mix(*layer, *theirs, {}, true);
    MOE_RETURN_IF_ERROR(switch_to(std::move(next), 1, previous_now(), end_ns));
    if (classes[layer->routed.slot_class].paged()) continue;
    for (const Need& need : needs_of(*layer, *theirs, false)) {
      MOE_RETURN_IF_ERROR(load_needs(*layer, {&need, 1}, 1, end_ns));
      next = serving_now();
      next[layer->index] = mix(*layer, *theirs, {&need, 1}, false);
      MOE_RETURN_IF_ERROR(switch_to(std::move(next), 1, previous_now(), end_ns));
    }
  }
  return switch_to(std::move(then), 1, previous_now(), end_ns);
}

}  // namespace moe
