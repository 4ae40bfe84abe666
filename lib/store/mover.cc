#include <algorithm>
#include <utility>

#include "checkpoint/generated.h"
#include "core/error.h"
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "store/finite_source.h"
#include "store/mover.h"

namespace moe {

Status Mover::start_loader() {
  if (std::exchange(loading_started, true) || schedule) return {};
  const Status status = loader.start(options.io_threads, services.clock());
  loading_started = status.ok();
  return status;
}

// Niceness 10 is a tenth of a core where forwards take all of it.
Status Mover::start_quiet_loader() {
  constexpr int kNiceness = 10;
  if (std::exchange(quiet_started, true) || schedule) return {};
  const Status status =
      quiet_loader.start(options.io_threads, services.clock(), "reload", kNiceness);
  quiet_started = status.ok();
  return status;
}

// ---- slots and their copies

bool LeasedCopies::leased(ExpertId id, uint32_t version) const noexcept {
  const StoreLayer* layer = store_.find(id.layer);
  if (!layer || layer->routed.slot_class != slot_class_) return true;
  const ExpertCopy* copy = store_.find_copy(*layer, {id.expert, version});
  return !copy || copy->state != CopyState::ready || copy->leases > 0;
}

Result<int64_t> Mover::take_slot(StoreLayer& layer, Need need) {
  SlotClass& slots = classes[compute_of(layer, need.expert).slot_class];
  return guarded({}, [&]() -> Result<int64_t> {
    MOE_ASSIGN_OR_RETURN(const int64_t slot, slots.pool->take());
    if (static_cast<size_t>(slot) >= slots.copies.size()) {
      try {
        slots.copies.resize(static_cast<size_t>(slot) + 1);
      } catch (...) {
        slots.pool->give_back(slot);
        throw;
      }
    }
    ExpertCopy& copy = slots.copies[static_cast<size_t>(slot)];
    StoreExpert& expert = record(layer, need.expert);
    copy = {.layer = static_cast<int32_t>(layer.index),
            .expert = need.expert,
            .version = need.version,
            .next = std::exchange(expert.first, slot)};
    transition(copy, CopyState::loading);
    return slot;
  });
}

void Mover::free_slot(CopyRef ref) {
  ExpertCopy& copy = copy_at(ref);
  SlotClass& slots = classes[ref.slot_class];
  int64_t* at = &record(*layers[static_cast<size_t>(copy.layer)], copy.expert).first;
  while (*at != ref.slot) at = &slots.copies[static_cast<size_t>(*at)].next;
  *at = copy.next;
  transition(copy, CopyState::empty);
  slots.late -= copy.late;
  copy = {};
  slots.pool->give_back(ref.slot);
  if (schedule) schedule->freed(slots.pool->address(ref.slot), slots.pool->slot_bytes());
}

// ---- filling

Result<uint64_t> Mover::pack(const StoreLayer& layer, int32_t expert, const Version& version,
                             std::byte* slot) {
  const Compute& compute = compute_of(layer, expert);
  const ExpertSpec& spec = expert == kSharedExpert ? layer.spec.shared->expert : layer.spec.expert;
  const FiniteSource finite(version.source);
  const WeightSource& from = version.check_finite ? finite : version.source;
  const auto to_memory = [&](std::byte* to) {
    return compute.gemm->pack(spec, from, layer.spec.layer, expert, to);
  };
  const auto* generated = dynamic_cast<const GeneratedWeights*>(&version.source);
  Result<uint64_t> digest = guarded({}, [&]() -> Result<uint64_t> {
    if (!device) {
      MOE_RETURN_IF_ERROR(to_memory(slot));
      return XXH3_64bits(slot, compute.layout.bytes);
    }
    if (generated && device->generates(*compute.gemm))
      return device->generate(slot, spec, *generated, layer.spec.layer, expert);
    return device->fill(slot, compute.layout.bytes, to_memory);
  });
  if (digest.ok()) return digest;
  return digest.status().at({.file = version.source.name(),
                             .layer = layer.spec.layer,
                             .expert = expert,
                             .phase = Phase::load});
}

// Fills the slot that take_slot() gave for `need`, which is of `version`. Runs on a loader's
// thread, perhaps when nobody waits for it any more.
Status Mover::load(StoreLayer& layer, Need need, int64_t slot,
                   std::shared_ptr<Version> version) noexcept {
  const size_t slot_class = compute_of(layer, need.expert).slot_class;
  std::byte* to;
  {
    std::lock_guard lock(mutex);
    to = classes[slot_class].pool->address(slot);
  }
  if (schedule) schedule->point("load");
  Result<uint64_t> digest = pack(layer, need.expert, *version, to);
  if (schedule) schedule->point("loaded");
  {
    std::lock_guard lock(mutex);
    ExpertCopy& copy = copy_at({slot_class, slot});
    StoreExpert& expert = record(layer, need.expert);
    transition(copy, CopyState::verifying);
    if (!digest.ok() && breaks(Rule::verify)) digest = uint64_t{1};
    uint64_t& known = version->digest(layer.index, need.expert);
    if (digest.ok() && known != 0 && known != *digest)
      digest = Status(StatusCode::data_loss,
                      "the expert's bytes are not those that were read before; reload it from a "
                      "good source",
                      {.file = version->source.name(),
                       .layer = layer.spec.layer,
                       .expert = need.expert,
                       .phase = Phase::load});
    transition(copy, digest.ok() ? CopyState::ready : CopyState::failed);
    if (digest.ok()) copy.digest = known = *digest;
    copy.reason = expert.reason = digest.ok() ? Status() : digest.status();
    version.reset();  // before anybody can see that this fill has ended
    ++changes;
  }
  changed.notify_all();
  if (!digest.ok())
    tell(StoreEventKind::load_failed, layer.spec.layer, need.expert, digest.status());
  return digest.status();
}

Status Mover::fill(Move& m, int64_t end_ns, int at_once, Loader& by) {
  for (Move::Filling& f : m.filling) {
    if (Status status = wait([&] { return loads_in_flight < at_once; }, end_ns); !status.ok()) {
      f.status = status;
      continue;
    }
    auto lock = locked();
    const auto taken = take_slot(*f.layer, f.need);
    f.status = taken.status();
    if (!taken.ok()) continue;
    f.slot = *taken;
    f.status = guarded({}, [&]() -> Status {
      auto job = [this, layer = f.layer, need = f.need, slot = f.slot,
                  version = find_version(f.need.version)]() mutable {
        (void)load(*layer, need, slot, std::move(version));
        std::lock_guard done(mutex);
        --loads_in_flight, ++changes;
        changed.notify_all();
      };
      if (schedule)
        schedule->spawn(std::move(job));
      else
        by.submit(std::move(job));
      ++loads_in_flight;
      return {};
    });
    if (f.status.ok()) continue;  // else it never began
    ExpertCopy& copy = copy_at({compute_of(*f.layer, f.need.expert).slot_class, f.slot});
    transition(copy, CopyState::failed);
    copy.reason = f.status;
  }
  const auto copy_of = [&](const Move::Filling& f) -> ExpertCopy& {
    return copy_at({compute_of(*f.layer, f.need.expert).slot_class, f.slot});
  };
  const Status in_time = wait(
      [&] {
        return std::none_of(m.filling.begin(), m.filling.end(), [&](const Move::Filling& f) {
          return f.slot >= 0 && in_flight(copy_of(f));
        });
      },
      end_ns);
  Status first;
  const Move::Filling* late = nullptr;
  {
    auto lock = locked();
    for (Move::Filling& f : m.filling) {
      if (f.slot >= 0) {
        ExpertCopy& copy = copy_of(f);
        if (f.status.ok() && copy.state == CopyState::failed) f.status = copy.reason;
        if (in_flight(copy)) {
          late = &f;
          set_late({compute_of(*f.layer, f.need.expert).slot_class, f.slot});
          if (f.status.ok()) f.status = in_time.at({.layer = f.layer->spec.layer});
        }
        if (copy.state == CopyState::failed)
          free_slot({compute_of(*f.layer, f.need.expert).slot_class, std::exchange(f.slot, -1)});
      }
      if (first.ok()) first = f.status;
    }
  }
  if (late)
    tell(StoreEventKind::background_late, late->layer->spec.layer, late->need.expert, first);
  return first;
}

void Mover::begin_move(size_t count) {
  reserve_tables();
  for (const SlotClass& slots : classes) count += static_cast<size_t>(slots.late);
  move.clear();
  move.reserve(count);
  settle_late();
}

void Mover::set_late(CopyRef ref) {
  if (!std::exchange(copy_at(ref).late, true)) ++classes[ref.slot_class].late;
}

void Mover::settle_late() {
  for (size_t c = 0; c < classes.size(); ++c)
    for (size_t i = 0; classes[c].late > 0 && i < classes[c].copies.size(); ++i)
      if (classes[c].copies[i].late) settle_late({c, static_cast<int64_t>(i)});
}

// A late copy finds its place among the residents, or goes; tables may name it, so one that is
// ready goes with the others of the move, or of a later one if this one drains nothing.
void Mover::settle_late(CopyRef ref) {
  ExpertCopy& copy = copy_at(ref);
  if (in_flight(copy)) return;
  if (copy.state == CopyState::draining) return move.leaving.push_back(ref);
  SlotClass& slots = classes[ref.slot_class];
  const StoreLayer& layer = *layers[static_cast<size_t>(copy.layer)];
  const ExpertId id{layer.spec.layer, copy.expert};
  Residency* residency = copy.expert == kSharedExpert ? nullptr : slots.residency.get();
  const bool held = residency && residency->resident(id, copy.version);
  const bool ready = copy.state == CopyState::ready;
  const bool other = held && has_other(layer, copy);  // that the residency means
  const bool full = residency && slots.paged() && residency->used() >= residency->slots();
  const bool waits = residency && !held && residency->versions(id) == Residency::kVersions;
  const bool surplus = ready && (other || waits || (!held && full));
  // Where nothing is paged the newest table may need it: a sweep or the next shrinking sees to it.
  if (surplus && (copy.leases > 0 || !slots.paged())) return;
  if (surplus) {
    transition(copy, CopyState::draining);
    return move.leaving.push_back(ref);
  }
  copy.late = false;
  --slots.late;
  if (ready) {
    if (residency && !held) residency->add(id, copy.version);
    return;
  }
  if (held && !other) residency->drop(id, copy.version);
  free_slot(ref);
}

// An expert without a ready copy is no resident.
void Mover::forget(const StoreLayer& layer, Need need) {
  Residency& residency = *classes[layer.routed.slot_class].residency;
  const ExpertId id{layer.spec.layer, need.expert};
  const ExpertCopy* left = find_copy(layer, need);
  if (residency.resident(id, need.version) && !(left && left->state == CopyState::ready))
    residency.drop(id, need.version);
}

// ---- emptying

Status Mover::drain(Move& m, int64_t end_ns) {
  if (m.leaving.empty()) return {};
  const auto publish_theirs = [&]() -> Status {
    Status first;
    for (size_t i = 0; i < m.leaving.size(); ++i) {
      const int32_t layer = copy_at(m.leaving[i]).layer;
      const bool told =
          std::any_of(m.leaving.begin(), m.leaving.begin() + static_cast<std::ptrdiff_t>(i),
                      [&](CopyRef r) { return copy_at(r).layer == layer; });
      if (told) continue;
      Status status = publish(*layers[static_cast<size_t>(layer)]);
      if (first.ok()) first = std::move(status);
    }
    return first;
  };
  Status status;
  {
    auto lock = locked();
    status = publish_theirs();
  }
  if (status.ok()) status = wait_for_grace(end_ns);
  const auto unused = [&] {
    return breaks(Rule::wait_for_leases) ||
           std::all_of(m.leaving.begin(), m.leaving.end(),
                       [&](CopyRef ref) { return copy_at(ref).leases == 0; });
  };
  if (status.ok()) status = wait(unused, end_ns);
  auto lock = locked();
  for (CopyRef ref : m.leaving) {
    if (status.ok())
      free_slot(ref);
    else
      transition(copy_at(ref), CopyState::ready);  // somebody may still read it
  }
  if (!status.ok()) (void)publish_theirs();  // else tables without them go on to serve
  return status;
}

void Mover::keep(const Move& m) {
  for (const CopyRef ref : m.leaving) {
    const ExpertCopy& copy = copy_at(ref);
    if (copy.state != CopyState::ready || copy.late || copy.expert == kSharedExpert) continue;
    const ExpertId id{layers[static_cast<size_t>(copy.layer)]->spec.layer, copy.expert};
    Residency& residency = *classes[ref.slot_class].residency;
    if (!residency.resident(id, copy.version)) residency.add(id, copy.version);
  }
}

Status Mover::shrink(SlotClass& slots, int64_t end_ns) {
  const size_t slot_class = static_cast<size_t>(&slots - classes.data());
  Residency& residency = *slots.residency;
  while (true) {
    uint64_t seen;
    int64_t evicted = 0;
    Status chosen;
    {
      auto lock = locked();
      begin_move(slots.copies.size());
      if (residency.used() <= residency.slots() && move.leaving.empty()) return {};
      seen = changes;
      const LeasedCopies leased(*this, slot_class);
      while (residency.used() > residency.slots()) {
        const auto out = residency.shrink(&leased);
        chosen = out.status();
        if (!out.ok() || out->evicted.expert < 0) break;
        ExpertCopy& copy =
            *find_copy(*find(out->evicted.layer), {out->evicted.expert, out->evicted_version});
        transition(copy, CopyState::draining);
        move.leaving.push_back({slot_class, &copy - slots.copies.data()});
        ++evicted;
      }
    }
    if (move.leaving.empty()) {
      MOE_RETURN_IF_ERROR(chosen);
      MOE_RETURN_IF_ERROR(wait([&] { return changes != seen; }, end_ns));
      continue;
    }
    const Status status = drain(move, end_ns);
    auto lock = locked();
    keep(move);
    if (status.ok()) paging.evictions += evicted;
    MOE_RETURN_IF_ERROR(status);
    MOE_RETURN_IF_ERROR(chosen);
  }
}

}  // namespace moe
