// Waves: making the experts of a forward resident where there are fewer slots than experts.
//
// A wave whose experts are all resident leases them at once. Otherwise one wave at a time goes
// through a first-come-first-served gate: Residency decides who comes and who goes, the mover does
// it, and the wave leases its experts. What it waits for (readers that compute, reads, leases of
// waves that compute) never waits for it: so there is no deadlock.
#include <algorithm>
#include <utility>

#include "core/error.h"
#include "store/store_impl.h"

namespace moe {
namespace {

// Leases all of `needed` if they are resident. With the mutex.
bool lease_all(ExpertStore::Impl& store, StoreLayer& layer, std::span<const Need> needed,
               Wave* wave) {
  SlotClass& slots = store.classes[layer.routed.slot_class];
  wave->members.clear();
  for (const Need& need : needed) {
    const ExpertCopy* copy = store.find_copy(layer, need);
    if (!copy || copy->state != CopyState::ready) return wave->members.clear(), false;
    const int64_t slot = store.slot_of(layer.routed, *copy);
    wave->members.push_back({need, slots.pool->address(slot), slot});
  }
  for (const Wave::Member& member : wave->members)
    ++slots.copies[static_cast<size_t>(member.slot_index)].leases;
  return true;
}

}  // namespace

void ExpertStore::Impl::accessed(StoreLayer& layer, std::span<const int32_t> experts,
                                 std::span<const float> probabilities) {
  auto lock = locked();
  classes[layer.routed.slot_class].residency->policy().accessed(
      {layer.spec.layer, experts, probabilities});
  for (const int32_t e : experts) ++layer.experts[static_cast<size_t>(e)].uses;
  if (!prefetcher) return;
  if (prefetcher->layer == layer.index) prefetcher->experts.clear();  // it is a guess no more
  prefetcher->used(layer.spec.layer, experts);
}

// Decides the next wave of `needed`: who is leased now, who leaves, who comes. False if nothing can
// be had before somebody else's lease or load ends. With the mutex.
Result<bool> ExpertStore::Impl::plan_wave(StoreLayer& layer, std::span<const Need> needed,
                                          bool early) {
  SlotClass& slots = classes[layer.routed.slot_class];
  Residency& residency = *slots.residency;
  begin_move(needed.size());
  wave_slots.clear();
  wave_slots.reserve(needed.size());
  pending.clear();
  pending.reserve(needed.size());
  for (const Need& need : needed) {
    // A copy that comes late is waited for: it is neither ready nor to be read twice.
    const ExpertCopy* copy = find_copy(layer, need);
    if (!copy || !in_flight(*copy)) pending.push_back(need);
  }
  const LeasedCopies leased(*this, layer.routed.slot_class);
  MOE_RETURN_IF_ERROR(residency.take_wave(layer.spec.layer, &leased, pending, wave));
  for (const Residency::Decision& taken : wave) {
    StoreExpert& expert = layer.experts[static_cast<size_t>(taken.need.expert)];
    if (!early)
      thrash_news =
          std::max(thrash_news, slots.thrash.used(taken.hit, expert.evicted_at, residency.slots()));
    if (taken.hit) {
      ++paging.hits;
      ExpertCopy& copy = *find_copy(layer, taken.need);
      ++copy.leases;
      wave_slots.push_back(slot_of(layer.routed, copy));
      continue;
    }
    wave_slots.push_back(-1);
    move.filling.push_back({.layer = &layer, .need = taken.need});
    if (early) prefetcher->ledger.prefetched({layer.spec.layer, taken.need.expert}, taken.evicted);
    if (!early && prefetcher) prefetcher->ledger.evicted(taken.evicted);
    if (taken.evicted.expert < 0) continue;
    StoreLayer& theirs = *find(taken.evicted.layer);
    ExpertCopy& victim = *find_copy(theirs, {taken.evicted.expert, taken.evicted_version});
    transition(victim, CopyState::draining);
    slots.thrash.evicted(record(theirs, taken.evicted.expert).evicted_at);
    move.leaving.push_back({layer.routed.slot_class, slot_of(layer.routed, victim)});
  }
  return !wave.empty();
}

// Forgets the fillings that have no copy, and counts the others.
void ExpertStore::Impl::settle(const Move& m, bool early) {
  for (const Move::Filling& f : m.filling) {
    SlotClass& slots = classes[f.layer->routed.slot_class];
    if (f.slot < 0) {
      slots.residency->drop({f.layer->spec.layer, f.need.expert}, f.need.version);
      paging.load_errors += f.status.code() != StatusCode::deadline_exceeded;
    } else if (f.status.ok()) {
      ++(early ? prefetcher->stats.loads : paging.misses);
      paging.bytes_loaded += static_cast<int64_t>(f.layer->routed.layout.bytes);
    }
  }
}

Status ExpertStore::Impl::acquire(StoreLayer& layer, std::span<const Need> needed, int64_t end_ns,
                                  Wave* held) {
  held->members.reserve(needed.size());
  bool resident, news = false;
  {
    auto lock = locked();
    resident = lease_all(*this, layer, needed, held);
    if (resident) {
      paging.hits += static_cast<int64_t>(needed.size());
      SlotClass& slots = classes[layer.routed.slot_class];
      for (size_t i = 0; i < needed.size(); ++i)
        thrash_news = std::max(thrash_news, slots.thrash.used(true, -1, slots.residency->slots()));
      news = thrash_news != Thrash::News::none;
    }
  }
  if (news) tell_thrash(layer);
  if (resident) return {};
  const Clock& clock = services.clock();
  const int64_t start = clock.now_ns();
  const Place place{.layer = layer.spec.layer, .phase = Phase::load};
  const bool behind = prefetching;
  const FifoGate::Turn turn(gate, clock, end_ns, schedule);
  const Status late(StatusCode::deadline_exceeded, "the deadline passed while waiting for slots",
                    place);
  if (behind) {
    auto lock = locked();
    prefetcher->sample.cost_ns += clock.now_ns() - start;
  }
  if (!turn.entered()) return late;
  const Status status = make_wave(layer, needed, end_ns);
  tell_thrash(layer);
  auto lock = locked();
  if (status.ok()) {
    SlotClass& slots = classes[layer.routed.slot_class];
    auto filled = move.filling.begin();
    for (size_t i = 0; i < wave.size(); ++i) {
      int64_t slot = wave_slots[i];
      if (!wave[i].hit) {
        slot = (filled++)->slot;
        ++slots.copies[static_cast<size_t>(slot)].leases;
      }
      held->members.push_back({wave[i].need, slots.pool->address(slot), slot});
    }
    paging.stall_ns += clock.now_ns() - start;
    ++paging.waves;
  }
  return status.code() == StatusCode::deadline_exceeded ? late : status;
}

// Inside the gate. On an error no hit stays leased.
Status ExpertStore::Impl::make_wave(StoreLayer& layer, std::span<const Need> needed,
                                    int64_t end_ns) {
  while (true) {
    uint64_t seen;
    {
      auto lock = locked();
      MOE_ASSIGN_OR_RETURN(const bool planned, plan_wave(layer, needed));
      seen = changes;
      if (planned) break;
    }
    MOE_RETURN_IF_ERROR(wait([&] { return changes != seen; }, end_ns));
  }
  const Status status = carry_out(layer, end_ns, false);
  if (status.ok()) return {};
  auto lock = locked();
  for (const int64_t slot : wave_slots)
    if (slot >= 0) --copy_at({layer.routed.slot_class, slot}).leases;
  ++changes;
  changed.notify_all();
  return status;
}

// What was planned. On an error, what was read well stays resident.
Status ExpertStore::Impl::carry_out(StoreLayer& layer, int64_t end_ns, bool early) {
  Status status = drain(move, end_ns);
  if (!status.ok()) {
    for (Move::Filling& f : move.filling) f.status = status;
    auto lock = locked();
    settle(move, early);
    keep(move);
    return status;
  }
  const int64_t start = services.clock().now_ns();
  if (!move.filling.empty()) status = fill(move, end_ns, options.io_threads, loader);
  auto lock = locked();
  for (const Residency::Decision& taken : wave) paging.evictions += taken.evicted.expert >= 0;
  settle(move, early);
  if (prefetcher && status.ok() && !move.filling.empty()) {
    const int64_t each =
        (services.clock().now_ns() - start) / static_cast<int64_t>(move.filling.size());
    int64_t& mean = prefetcher->load_ns;
    mean = mean == 0 ? each : mean + (each - mean) / 8;
  }
  if (!move.filling.empty())
    if (Status published = publish(layer); status.ok()) status = std::move(published);
  return status;
}

void ExpertStore::Impl::tell_thrash(const StoreLayer& layer) {
  Thrash::News news;
  {
    std::lock_guard lock(mutex);
    news = std::exchange(thrash_news, Thrash::News::none);
  }
  if (news == Thrash::News::none) return;
  tell(news == Thrash::News::began ? StoreEventKind::thrash_began : StoreEventKind::thrash_ended,
       layer.spec.layer, -1, {});
}

void ExpertStore::Impl::release(StoreLayer& layer, Wave* wave) {
  {
    auto lock = locked();
    for (const Wave::Member& member : wave->members)
      --copy_at({layer.routed.slot_class, member.slot_index}).leases;
    ++changes;
  }
  wave->members.clear();
  changed.notify_all();
}

}  // namespace moe
