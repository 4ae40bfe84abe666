// The memory budget moves while forwards go on.
#include <algorithm>

#include "core/error.h"
#include "store/store_impl.h"

namespace moe {
namespace {

class Leased final : public Residency::Leases {
 public:
  explicit Leased(ExpertStore::Impl& store) : store_(store) {}
  bool leased(ExpertId id, uint32_t version) const noexcept override {
    const StoreLayer* layer = store_.find(id.layer);
    const ExpertCopy* copy = layer ? store_.find_copy(*layer, {id.expert, version}) : nullptr;
    return !copy || copy->state != CopyState::ready || copy->leases > 0;
  }

 private:
  ExpertStore::Impl& store_;
};

}  // namespace

// Evicts until the class fits its new size. Inside the gate.
Status ExpertStore::Impl::shrink(SlotClass& slots, int64_t end_ns) {
  const size_t slot_class = static_cast<size_t>(&slots - classes.data());
  while (true) {
    uint64_t seen;
    {
      auto lock = locked();
      const int64_t surplus = slots.residency->used() - slots.residency->slots();
      if (surplus <= 0) return {};
      begin_move(static_cast<size_t>(surplus));
      seen = changes;
      const Leased leased(*this);
      while (slots.residency->used() > slots.residency->slots()) {
        MOE_ASSIGN_OR_RETURN(const auto out, slots.residency->shrink(&leased));
        if (out.evicted.expert < 0) break;
        ExpertCopy& copy =
            *find_copy(*find(out.evicted.layer), {out.evicted.expert, out.evicted_version});
        transition(copy, CopyState::draining);
        move.leaving.push_back({slot_class, &copy - slots.copies.data()});
      }
    }
    if (move.leaving.empty()) {
      MOE_RETURN_IF_ERROR(wait([&] { return changes != seen; }, end_ns));
      continue;
    }
    const Status status = drain(move, end_ns);
    auto lock = locked();
    keep(move);
    if (status.ok()) paging.evictions += static_cast<int64_t>(move.leaving.size());
    if (!status.ok()) return status;
  }
}

Status ExpertStore::Impl::set_expert_memory(size_t bytes, int64_t deadline_ns) {
  constexpr int64_t kDeadlineNs = 60'000'000'000;
  const int64_t end_ns = services.clock().now_ns() + (deadline_ns > 0 ? deadline_ns : kDeadlineNs);
  const FifoGate::Turn turn(admin, services.clock(), end_ns, schedule);
  MOE_RETURN_IF_ERROR(turn.status());
  if (device &&
      std::none_of(classes.begin(), classes.end(), [](auto& c) { return c.pool->moving(); }))
    return Status(StatusCode::failed_precondition,
                  "the budget of this store does not move: on a GPU the store has to page, in the "
                  "library's own device memory; graphs of a resident model name its slots");
  MOE_ASSIGN_OR_RETURN(auto routed, routed_slots(bytes));
  for (size_t c = 0; c < classes.size(); ++c)
    if (device && !classes[c].pool->moving() && classes[c].residency)
      routed[c] = classes[c].residency->slots();
  MOE_RETURN_IF_ERROR(start_loader());
  bool less = false;
  {
    auto lock = locked();
    for (size_t c = 0; c < classes.size(); ++c)
      less = less || (classes[c].residency && routed[c] < classes[c].residency->used());
  }
  if (less) {
    MOE_RETURN_IF_ERROR(wait_for_old_forwards(end_ns));
    MOE_RETURN_IF_ERROR(sweep(true, end_ns));
  }
  const FifoGate::Turn inner(gate, services.clock(), end_ns, schedule);
  MOE_RETURN_IF_ERROR(inner.status());
  std::vector<int64_t> slots_before, limits_before;
  {
    // From now on no forward takes an expert for granted.
    auto lock = locked();
    reserve_tables();
    for (size_t c = 0; c < classes.size(); ++c) {
      limits_before.push_back(classes[c].pool->limit());
      slots_before.push_back(classes[c].residency ? classes[c].residency->slots() : 0);
    }
    for (size_t c = 0; c < classes.size(); ++c) {
      if (classes[c].residency) classes[c].residency->set_slots(routed[c]);
      classes[c].pool->set_limit(routed[c] + classes[c].shared * (bytes == 0 ? 2 : 1) +
                                 kSpareSlots);
    }
    MOE_RETURN_IF_ERROR(publish_all());
  }
  Status status = wait_for_grace(end_ns);
  for (SlotClass& slots : classes)
    if (status.ok() && slots.residency) status = shrink(slots, end_ns);
  auto lock = locked();
  if (!status.ok()) {  // as before, but for what is evicted already
    for (size_t c = 0; c < classes.size(); ++c) {
      if (classes[c].residency) classes[c].residency->set_slots(slots_before[c]);
      classes[c].pool->set_limit(limits_before[c]);
    }
    (void)publish_all();
    return status;
  }
  for (SlotClass& slots : classes) slots.pool->trim(slots.pool->limit());
  (void)publish_all();
  lock.unlock();
  if (less) tell(StoreEventKind::pressure, -1, -1, {});
  return {};
}

Status ExpertStore::set_expert_memory(size_t bytes, int64_t deadline_ns) {
  return guarded({}, [&] { return impl_->set_expert_memory(bytes, deadline_ns); });
}

}  // namespace moe
