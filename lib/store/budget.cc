// The memory budget moves while forwards go on.
#include <algorithm>

#include "core/error.h"
#include "store/store_impl.h"

namespace moe {
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
  if (less) MOE_RETURN_IF_ERROR(sweep(true, end_ns));
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
