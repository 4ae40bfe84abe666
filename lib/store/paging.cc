// Waves: making the experts of a forward resident where there are fewer slots than experts.
//
// A wave whose experts are all resident leases them at once. Otherwise one wave at a time goes
// through a first-come-first-served gate: it chooses victims, publishes tables without them, waits
// until no reader can still use their slots, fills the slots, publishes again, and leases its
// experts. What it waits for (readers that compute, reads, leases of waves that compute) never
// waits for it: so there is no deadlock.
#include <algorithm>
#include <utility>

#include "core/error.h"
#include "store/store_impl.h"

namespace moe {
namespace {

// The experts that one size class may lose now; `own`: of that layer alone.
class Evictable final : public EvictionCandidates {
 public:
  Evictable(ExpertStore::Impl& store, size_t slot_class, uint64_t plan, const StoreLayer* own)
      : store_(store), slot_class_(slot_class), plan_(plan), own_(own) {}
  bool contains(ExpertId id) const noexcept override {
    const StoreLayer* layer = store_.find(id.layer);
    if (!layer || layer->routed.slot_class != slot_class_ || !layer->paged) return false;
    if (own_ && layer != own_) return false;
    if (id.expert < 0 || static_cast<size_t>(id.expert) >= layer->experts.size()) return false;
    const ExpertCopy& copy = layer->experts[static_cast<size_t>(id.expert)];
    return copy.state == CopyState::ready && copy.leases == 0 && copy.needed_by != plan_;
  }

 private:
  ExpertStore::Impl& store_;
  size_t slot_class_;
  uint64_t plan_;
  const StoreLayer* own_;
};

struct Victim {
  StoreLayer* layer;
  int32_t expert;
  ExpertCopy& copy() const { return layer->experts[static_cast<size_t>(expert)]; }
};

// What one wave does.
struct Plan {
  std::vector<int32_t> hits;    // leased already
  std::vector<int32_t> loads;   // state empty or failed; counted as resident
  std::vector<Victim> victims;  // draining
};

// A slot for `expert`: a free one, or that of a victim. False if neither can be had now.
bool make_room(ExpertStore::Impl& store, StoreLayer& layer, int32_t expert, uint64_t serial,
               Plan& plan) {
  SlotClass& slots = store.classes[layer.routed.slot_class];
  const ExpertId incoming{layer.spec.layer, expert};
  const int64_t limit = std::max<int64_t>(1, slots.policy->limit(layer.spec.layer, slots.capacity));
  const bool at_limit = layer.resident >= limit;
  if (at_limit || slots.resident >= slots.capacity) {
    const Evictable evictable(store, layer.routed.slot_class, serial, at_limit ? &layer : nullptr);
    const ExpertId id = slots.policy->victim(incoming, evictable);
    if (!evictable.contains(id)) return false;
    const Victim victim{store.find(id.layer), id.expert};
    transition(victim.copy(), CopyState::draining);
    slots.policy->evicted(id);
    --victim.layer->resident;
    --slots.resident;
    plan.victims.push_back(victim);
  }
  slots.policy->inserted(incoming);
  ++layer.resident;
  ++slots.resident;
  plan.loads.push_back(expert);
  return true;
}

// Chooses what the wave computes with. False if nothing of `needed` can be had now.
bool make_plan(ExpertStore::Impl& store, StoreLayer& layer, std::span<const int32_t> needed,
               Plan& plan) {
  const uint64_t serial = ++store.plans;
  for (int32_t e : needed) layer.experts[static_cast<size_t>(e)].needed_by = serial;
  for (int32_t e : needed) {
    ExpertCopy& copy = layer.experts[static_cast<size_t>(e)];
    if (copy.state != CopyState::ready) continue;
    ++copy.leases;
    plan.hits.push_back(e);
  }
  for (int32_t e : needed) {
    const CopyState state = layer.experts[static_cast<size_t>(e)].state;
    if (state != CopyState::empty && state != CopyState::failed) continue;
    if (!make_room(store, layer, e, serial, plan)) break;
  }
  return !plan.hits.empty() || !plan.loads.empty();
}

void sort_members(Wave* wave) {
  std::sort(wave->members.begin(), wave->members.end(),
            [](const Wave::Member& a, const Wave::Member& b) { return a.expert < b.expert; });
}

// Leases all of `needed` if they are resident.
bool lease_all(ExpertStore::Impl& store, StoreLayer& layer, std::span<const int32_t> needed,
               Wave* wave) {
  std::lock_guard lock(store.mutex);
  auto copy_of = [&](int32_t e) -> ExpertCopy& { return layer.experts[static_cast<size_t>(e)]; };
  if (std::any_of(needed.begin(), needed.end(),
                  [&](int32_t e) { return copy_of(e).state != CopyState::ready; }))
    return false;
  wave->members.clear();
  for (int32_t e : needed) {
    ++copy_of(e).leases;
    wave->members.push_back({e, store.address(layer, e, copy_of(e))});
  }
  sort_members(wave);
  store.paging.hits += static_cast<int64_t>(needed.size());
  return true;
}

// Publishes every layer that `victims` belong to.
Status publish_layers(ExpertStore::Impl& store, const std::vector<Victim>& victims) {
  StoreLayer* last = nullptr;
  for (const Victim& victim : victims)
    if (victim.layer != last) MOE_RETURN_IF_ERROR(store.publish(*(last = victim.layer)));
  return {};
}

// The victims stay after all.
void keep_victims(ExpertStore::Impl& store, const Plan& plan) {
  for (const Victim& victim : plan.victims) {
    SlotClass& slots = store.classes[victim.layer->routed.slot_class];
    transition(victim.copy(), CopyState::ready);
    slots.policy->inserted({victim.layer->spec.layer, victim.expert});
    ++victim.layer->resident;
    ++slots.resident;
  }
  (void)publish_layers(store, plan.victims);  // else a table without them goes on to serve
}

// `expert` is not resident after all.
void forget_load(ExpertStore::Impl& store, StoreLayer& layer, int32_t expert) {
  SlotClass& slots = store.classes[layer.routed.slot_class];
  ExpertCopy& copy = layer.experts[static_cast<size_t>(expert)];
  if (copy.slot >= 0) slots.pool.give_back(std::exchange(copy.slot, -1));
  slots.policy->evicted({layer.spec.layer, expert});
  --layer.resident;
  --slots.resident;
}

void drop_leases(StoreLayer& layer, const std::vector<int32_t>& experts) {
  for (int32_t e : experts) --layer.experts[static_cast<size_t>(e)].leases;
}

// Frees the victims' slots once nobody can read them.
Status drain(ExpertStore::Impl& store, const Plan& plan, int64_t end_ns) {
  if (plan.victims.empty()) return {};
  {
    std::lock_guard lock(store.mutex);
    MOE_RETURN_IF_ERROR(publish_layers(store, plan.victims));
  }
  MOE_RETURN_IF_ERROR(store.wait_for_grace(end_ns));
  std::lock_guard lock(store.mutex);
  for (const Victim& victim : plan.victims) {
    ExpertCopy& copy = victim.copy();
    store.classes[victim.layer->routed.slot_class].pool.give_back(std::exchange(copy.slot, -1));
    transition(copy, CopyState::empty);
    ++store.paging.evictions;
  }
  return {};
}

// Gives every load of the plan a slot and starts reading.
Status start_loads(ExpertStore::Impl& store, StoreLayer& layer, const Plan& plan) {
  std::lock_guard lock(store.mutex);
  SlotPool& pool = store.classes[layer.routed.slot_class].pool;
  for (int32_t e : plan.loads) {
    ExpertCopy& copy = layer.experts[static_cast<size_t>(e)];
    MOE_ASSIGN_OR_RETURN(copy.slot, pool.take());
    transition(copy, CopyState::loading);
    store.loader.submit([&store, &layer, e, &copy] {
      (void)store.load_copy(layer, e, copy);  // the outcome is the copy's state and reason
      store.changed.notify_all();
    });
  }
  return {};
}

bool in_flight(const ExpertCopy& copy) {
  return copy.state == CopyState::loading || copy.state == CopyState::verifying;
}

// Waits for the reads of the plan. The first failure by expert index is returned; what was read
// well stays resident.
Status finish_loads(ExpertStore::Impl& store, StoreLayer& layer, const Plan& plan, int64_t end_ns) {
  std::unique_lock lock(store.mutex);
  auto copy_of = [&](int32_t e) -> ExpertCopy& { return layer.experts[static_cast<size_t>(e)]; };
  const bool done = wait_until(store.changed, lock, store.services.clock(), end_ns, [&] {
    return std::none_of(plan.loads.begin(), plan.loads.end(),
                        [&](int32_t e) { return in_flight(copy_of(e)); });
  });
  Status status;
  for (int32_t e : plan.loads) {
    ExpertCopy& copy = copy_of(e);
    if (copy.state == CopyState::ready) {
      ++store.paging.misses;
      store.paging.bytes_loaded += static_cast<int64_t>(layer.routed.layout.bytes);
    } else if (copy.state == CopyState::failed || copy.state == CopyState::empty) {
      if (copy.state == CopyState::failed) {
        ++store.paging.load_errors;
        if (status.ok()) status = copy.reason;
      }
      forget_load(store, layer, e);
    }
  }
  if (Status published = store.publish(layer); status.ok()) status = std::move(published);
  if (!done)
    return Status(StatusCode::deadline_exceeded, "the deadline passed while experts were read",
                  {.layer = layer.spec.layer, .phase = Phase::load});
  return status;
}

}  // namespace

void ExpertStore::Impl::accessed(const StoreLayer& layer, std::span<const int32_t> experts,
                                 std::span<const float> probabilities) {
  std::lock_guard lock(mutex);
  classes[layer.routed.slot_class].policy->accessed({layer.spec.layer, experts, probabilities});
}

Status ExpertStore::Impl::acquire(StoreLayer& layer, std::span<const int32_t> needed,
                                  int64_t end_ns, Wave* wave) {
  if (lease_all(*this, layer, needed, wave)) return {};
  const Clock& clock = services.clock();
  const Status late(StatusCode::deadline_exceeded, "the deadline passed while waiting for slots",
                    {.layer = layer.spec.layer, .phase = Phase::load});
  const int64_t start = clock.now_ns();
  if (!gate.enter(clock, end_ns)) return late;
  struct Leave {
    FifoGate& gate;
    ~Leave() { gate.leave(); }
  } leave{gate};

  Plan plan;
  {
    std::unique_lock lock(mutex);
    if (!wait_until(changed, lock, clock, end_ns,
                    [&] { return make_plan(*this, layer, needed, plan); }))
      return late;
  }
  Status status = drain(*this, plan, end_ns);
  if (!status.ok()) {
    std::lock_guard lock(mutex);
    keep_victims(*this, plan);
    for (int32_t e : plan.loads) forget_load(*this, layer, e);
    drop_leases(layer, plan.hits);
    return status;
  }
  if (!plan.loads.empty()) {
    status = start_loads(*this, layer, plan);
    if (Status finished = finish_loads(*this, layer, plan, end_ns); status.ok())
      status = std::move(finished);
  }

  std::lock_guard lock(mutex);
  if (!status.ok()) {
    drop_leases(layer, plan.hits);
    return status;
  }
  for (int32_t e : plan.loads) ++layer.experts[static_cast<size_t>(e)].leases;
  wave->members.clear();
  for (const std::vector<int32_t>* part : {&plan.hits, &plan.loads})
    for (int32_t e : *part)
      wave->members.push_back({e, address(layer, e, layer.experts[static_cast<size_t>(e)])});
  sort_members(wave);
  paging.hits += static_cast<int64_t>(plan.hits.size());
  paging.stall_ns += clock.now_ns() - start;
  ++paging.waves;
  return {};
}

void ExpertStore::Impl::release(StoreLayer& layer, Wave* wave) {
  {
    std::lock_guard lock(mutex);
    for (const Wave::Member& member : wave->members)
      --layer.experts[static_cast<size_t>(member.expert)].leases;
  }
  wave->members.clear();
  changed.notify_all();
}

}  // namespace moe
