// Looks for bytes that changed since they were verified, and replaces what it finds.
#include <algorithm>
#include <array>

#include "core/error.h"
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "store/store_impl.h"

namespace moe {

// Leases the next ready copy from `scrub_at` on. False at the end of the last pool.
bool ExpertStore::Impl::inspect_next(Inspected* next) {
  auto lock = locked();
  for (; scrub_at.slot_class < classes.size(); scrub_at = {scrub_at.slot_class + 1, 0}) {
    SlotClass& slots = classes[scrub_at.slot_class];
    for (int64_t at = std::max<int64_t>(scrub_at.slot, 0);
         at < static_cast<int64_t>(slots.copies.size()); ++at) {
      ExpertCopy& copy = slots.copies[static_cast<size_t>(at)];
      if (copy.state != CopyState::ready) continue;
      ++copy.leases;
      StoreLayer* const layer = layers[static_cast<size_t>(copy.layer)].get();
      *next = {.ref = {scrub_at.slot_class, at},
               .layer = layer,
               .need = {copy.expert, copy.version},
               .bytes = {slots.pool->address(at), compute_of(*layer, copy.expert).layout.bytes},
               .digest = copy.digest};
      scrub_at.slot = at + 1;
      return true;
    }
  }
  scrub_at = {};
  return false;
}

// Whether the bytes are those that were verified. Ends the lease.
Result<bool> ExpertStore::Impl::intact(const Inspected& copy) {
  if (schedule) schedule->point("scrub");
  const Result<uint64_t> now =
      device ? device->digest(copy.bytes.data(), copy.bytes.size())
             : Result<uint64_t>(XXH3_64bits(copy.bytes.data(), copy.bytes.size()));
  {
    auto lock = locked();
    --copy_at(copy.ref).leases;
    ++changes;
  }
  changed.notify_all();
  if (!now.ok()) return now.status();
  return *now == copy.digest;
}

// Kernels of a resident layer on a GPU find every expert: one that cannot be read again stays as it
// is, and the host is told.
bool ExpertStore::Impl::stays(CopyRef ref) const {
  const SlotClass& slots = classes[ref.slot_class];
  return device && !slots.paged() && !slots.pool->moving();
}

// A fresh copy takes the place of `bad`; if none can be read, a routed expert is without one.
Status ExpertStore::Impl::repair(const Inspected& bad, int64_t end_ns) {
  return bad.need.expert == kSharedExpert ? replace_shared(bad, end_ns) : replace(bad, end_ns);
}

// Begins a move that fills another copy, unless nobody names the version any more: its source may
// be gone. False if `bad` went by itself: its slot may hold anything since the lease ended. Inside
// the gate.
bool ExpertStore::Impl::begin_replacement(const Inspected& bad) {
  auto lock = locked();
  begin_move(1);
  const ExpertCopy& copy = copy_at(bad.ref);
  if (copy.state != CopyState::ready || copy.layer != static_cast<int32_t>(bad.layer->index) ||
      Need{copy.expert, copy.version} != bad.need)
    return false;
  if (find_version(bad.need.version))
    move.filling.push_back({.layer = bad.layer, .need = bad.need});
  return true;
}

// Beside the bad copy, or in its place where there is no slot for both.
Status ExpertStore::Impl::replace(const Inspected& bad, int64_t end_ns) {
  const FifoGate::Turn turn(gate, services.clock(), end_ns, schedule);
  if (!turn.entered())
    return Status(StatusCode::deadline_exceeded, "the deadline passed before a repair's turn");
  if (!begin_replacement(bad)) return {};
  Status status = fill(move, end_ns, options.io_threads, loader);
  if (!status.ok() && stays(bad.ref)) return status;
  {
    auto lock = locked();
    transition(copy_at(bad.ref), CopyState::draining);
    move.leaving.push_back(bad.ref);
  }
  const Status drained = drain(move, end_ns);
  if (!drained.ok()) {  // it stays until a later move, or until a fresh copy comes
    auto lock = locked();
    set_late(bad.ref);
    return status.ok() ? drained : status;
  }
  const bool in_place = status.code() == StatusCode::resource_exhausted;
  if (in_place) status = fill(move, end_ns, options.io_threads, loader);
  auto lock = locked();
  forget(*bad.layer, bad.need);
  if (in_place && status.ok()) status = publish(*bad.layer);
  return status;
}

// Forwards may read a shared expert between their waves, so the old copy goes when they have ended.
Status ExpertStore::Impl::replace_shared(const Inspected& bad, int64_t end_ns) {
  MOE_RETURN_IF_ERROR(make_room(bad.layer->shared, 1, 0, end_ns));
  {
    const FifoGate::Turn turn(gate, services.clock(), end_ns, schedule);
    if (!turn.entered())
      return Status(StatusCode::deadline_exceeded, "the deadline passed before a repair's turn");
    if (!begin_replacement(bad)) return {};
    MOE_RETURN_IF_ERROR(
        fill(move, end_ns, options.io_threads, loader));  // else nothing can replace it
    for (const Move::Filling& fresh : move.filling)
      MOE_RETURN_IF_ERROR(renew_block(*bad.layer, bad.need.version, fresh.slot));
  }
  return leave_old(false, end_ns);
}

// The versions that name the old shared expert name the one in slot `fresh`.
Status ExpertStore::Impl::renew_block(StoreLayer& layer, uint32_t number, int64_t fresh) {
  std::shared_ptr<Version> version;
  {
    auto lock = locked();
    version = find_version(number);
  }
  MOE_ASSIGN_OR_RETURN(const auto block, make_block(layer, *version, fresh));
  // All are made before the first one serves.
  using Slot = std::shared_ptr<const LayerVersions>;
  std::array<Slot*, 3> all = {&layer.serving, &layer.candidate, &layer.previous};
  std::array<Slot, 3> next;
  for (size_t i = 0; i < all.size(); ++i) {
    next[i] = *all[i];
    if (!next[i] || next[i]->block->version != number) continue;
    const auto made = make_versions(layer, *next[i]);
    made->block = block;
    next[i] = made;
  }
  auto lock = locked();
  reserve_tables();
  for (size_t i = 0; i < all.size(); ++i) *all[i] = std::move(next[i]);
  return publish(layer);
}

Status ExpertStore::Impl::start_scrubber() {
  if (options.scrub_bytes_per_second == 0) return {};
  if (options.scrub_bytes_per_second < 0)
    return invalid_argument({}, "scrub_bytes_per_second is {}; it must not be negative",
                            options.scrub_bytes_per_second);
  constexpr int64_t kPerSecond = 10, kDeadlineNs = 10'000'000'000;
  const int64_t bytes = std::max<int64_t>(1, options.scrub_bytes_per_second / kPerSecond);
  return scrubber.start("scrub", 1'000'000'000 / kPerSecond, services.clock(), [this, bytes] {
    (void)guarded({}, [&] { return scrub(bytes, kDeadlineNs); });  // events and stats() tell
  });
}

Result<ScrubReport> ExpertStore::Impl::scrub(int64_t max_bytes, int64_t deadline_ns) {
  constexpr int64_t kDeadlineNs = 600'000'000'000;
  const int64_t end_ns = services.clock().now_ns() + (deadline_ns > 0 ? deadline_ns : kDeadlineNs);
  const FifoGate::Turn turn(admin, services.clock(), end_ns, schedule);
  if (!turn.entered())
    return Status(StatusCode::deadline_exceeded, "the deadline passed before this scrub's turn");
  MOE_RETURN_IF_ERROR(start_loader());
  ScrubReport report;
  Status status;
  while (status.ok() && (max_bytes <= 0 || report.bytes < max_bytes)) {
    Inspected copy;
    report.wrapped = !inspect_next(&copy);
    if (report.wrapped) break;
    ++report.copies;
    report.bytes += static_cast<int64_t>(copy.bytes.size());
    const Result<bool> same = intact(copy);
    status = same.status();
    if (!same.ok() || *same) continue;
    ++report.found;
    const int32_t layer = copy.layer->spec.layer, expert = copy.need.expert;
    tell(StoreEventKind::scrub_found, layer, expert,
         Status(StatusCode::data_loss, "a slot's bytes are not those that were verified",
                {.layer = layer, .expert = expert}));
    const Status repaired = repair(copy, end_ns);
    report.repaired += repaired.ok();
    tell(repaired.ok() ? StoreEventKind::scrub_repaired : StoreEventKind::scrub_failed, layer,
         expert, repaired);
  }
  auto lock = locked();
  scrubbed.copies += report.copies;
  scrubbed.bytes += report.bytes;
  scrubbed.found += report.found;
  scrubbed.repaired += report.repaired;
  scrubbed.wrapped = scrubbed.wrapped || report.wrapped;
  if (!status.ok()) return status;
  return report;
}

Result<ScrubReport> ExpertStore::scrub(int64_t max_bytes, int64_t deadline_ns) {
  return guarded({}, [&] { return impl_->scrub(max_bytes, deadline_ns); });
}

}  // namespace moe
