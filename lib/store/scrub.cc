// Looks for bytes that changed since they were verified, and replaces what it finds.
#include <algorithm>

#include "core/error.h"
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "store/store_impl.h"

namespace moe {

// Whether the copy's bytes are those that were verified. It is leased meanwhile.
Result<bool> ExpertStore::Impl::intact(CopyRef ref, uint64_t digest, const std::byte* at,
                                       size_t bytes) {
  if (schedule) schedule->point("scrub");
  const Result<uint64_t> now =
      device ? device->digest(at, bytes) : Result<uint64_t>(XXH3_64bits(at, bytes));
  {
    auto lock = locked();
    --copy_at(ref).leases;
    ++changes;
  }
  changed.notify_all();
  if (!now.ok()) return now.status();
  return *now == digest;
}

// Kernels of a resident layer on a GPU find every expert: one that cannot be read again stays as it
// is, and the host is told.
bool ExpertStore::Impl::stays(CopyRef ref) const {
  const SlotClass& slots = classes[ref.slot_class];
  return device && !slots.paged() && !slots.pool->moving();
}

// A fresh copy takes the place of `ref`; if none can be read, a routed expert is without one.
Status ExpertStore::Impl::repair(CopyRef ref, int64_t end_ns) {
  bool shared;
  {
    auto lock = locked();
    shared = copy_at(ref).expert == kSharedExpert;
  }
  return shared ? replace_shared(ref, end_ns) : replace(ref, end_ns);
}

// Begins a move that fills a copy of what `ref` holds. False if it went by itself. Inside the gate.
bool ExpertStore::Impl::begin_replacement(CopyRef ref) {
  auto lock = locked();
  const ExpertCopy& copy = copy_at(ref);
  begin_move(1);
  if (copy.state != CopyState::ready) return false;
  move.filling.push_back({.layer = layers[static_cast<size_t>(copy.layer)].get(),
                          .need = {copy.expert, copy.version}});
  return true;
}

Status ExpertStore::Impl::replace(CopyRef ref, int64_t end_ns) {
  const FifoGate::Turn turn(gate, services.clock(), end_ns, schedule);
  if (!turn.entered())
    return Status(StatusCode::deadline_exceeded, "the deadline passed before a repair's turn");
  if (!begin_replacement(ref)) return {};
  const Status status = fill(move, end_ns, options.io_threads);
  if (!status.ok() && stays(ref)) return status;
  const Move::Filling& fresh = move.filling.front();
  {
    auto lock = locked();
    transition(copy_at(ref), CopyState::draining);
    if (!status.ok())
      classes[ref.slot_class].residency->drop({fresh.layer->spec.layer, fresh.need.expert},
                                              fresh.need.version);
    move.leaving.push_back(ref);
  }
  const Status drained = drain(move, end_ns);
  auto lock = locked();
  keep(move);
  return status.ok() ? drained : status;
}

// Forwards may read a shared expert between their waves, so the old copy goes when they have ended.
Status ExpertStore::Impl::replace_shared(CopyRef ref, int64_t end_ns) {
  {
    const FifoGate::Turn turn(gate, services.clock(), end_ns, schedule);
    if (!turn.entered())
      return Status(StatusCode::deadline_exceeded, "the deadline passed before a repair's turn");
    if (!begin_replacement(ref)) return {};
    MOE_RETURN_IF_ERROR(fill(move, end_ns, options.io_threads));  // else nothing can replace it
    const Move::Filling& fresh = move.filling.front();
    MOE_RETURN_IF_ERROR(
        renew_block(*fresh.layer, fresh.need.version, &copy_at({ref.slot_class, fresh.slot})));
  }
  return leave_old(end_ns);
}

// The versions that name the old shared expert name the fresh one.
Status ExpertStore::Impl::renew_block(StoreLayer& layer, uint32_t number, const ExpertCopy* fresh) {
  std::shared_ptr<Version> version;
  {
    auto lock = locked();
    version = find_version(number);
  }
  MOE_ASSIGN_OR_RETURN(const auto block, make_block(layer, *version, fresh));
  for (auto* versions : {&layer.serving, &layer.candidate, &layer.previous}) {
    if (!*versions || (*versions)->block->version != number) continue;
    auto next = std::make_shared<LayerVersions>(**versions);
    next->block = block;
    auto lock = locked();
    old_versions.push_back(*versions);
    *versions = std::move(next);
  }
  {
    auto lock = locked();
    MOE_RETURN_IF_ERROR(publish(layer));
  }
  return {};
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
    CopyRef ref = scrub_at;
    uint64_t digest = 0;
    const std::byte* at = nullptr;
    size_t bytes = 0;
    int32_t layer = -1, expert = -1;
    {
      auto lock = locked();
      if (ref.slot_class >= classes.size()) {
        scrub_at = {};
        report.wrapped = true;
        break;
      }
      SlotClass& slots = classes[ref.slot_class];
      ref.slot = std::max<int64_t>(ref.slot, 0);
      if (ref.slot >= static_cast<int64_t>(slots.copies.size())) {
        scrub_at = {ref.slot_class + 1, 0};
        continue;
      }
      scrub_at = {ref.slot_class, ref.slot + 1};
      ExpertCopy& copy = copy_at(ref);
      if (copy.state != CopyState::ready) continue;
      ++copy.leases;
      digest = copy.digest;
      at = slots.pool->address(ref.slot);
      layer = layers[static_cast<size_t>(copy.layer)]->spec.layer;
      expert = copy.expert;
      bytes = compute_of(*layers[static_cast<size_t>(copy.layer)], expert).layout.bytes;
    }
    ++report.copies;
    report.bytes += static_cast<int64_t>(bytes);
    const Result<bool> same = intact(ref, digest, at, bytes);
    status = same.status();
    if (!same.ok() || *same) continue;
    ++report.found;
    tell(StoreEventKind::scrub_found, layer, expert,
         Status(StatusCode::data_loss, "a slot's bytes are not those that were verified",
                {.layer = layer, .expert = expert}));
    const Status repaired = repair(ref, end_ns);
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
