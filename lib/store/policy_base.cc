#include "store/policy_base.h"

namespace moe {

PolicyBase::PolicyBase(const EvictionOptions& options)
    : index_(options.layers),
      last_use_(static_cast<size_t>(index_.experts())),
      visit_start_(static_cast<size_t>(index_.layers())),
      resident_(static_cast<size_t>(index_.experts())),
      missed_(static_cast<size_t>(index_.experts())) {}

void PolicyBase::accessed(const ExpertAccess& access) noexcept {
  const int32_t position = index_.position(access.layer);
  if (position < 0) return;
  current_ = position;
  visit_start_[static_cast<size_t>(position)] = clock_;
  visited(position, access);
  for (const int32_t expert : access.experts) {
    const int32_t i = index_.find({access.layer, expert});
    if (i < 0) continue;
    last_use_[static_cast<size_t>(i)] = ++clock_;
    missed_[static_cast<size_t>(i)] = !resident_[static_cast<size_t>(i)];
    used(i);
  }
}

void PolicyBase::inserted(ExpertId id) noexcept {
  const int32_t i = index_.find(id);
  if (i < 0 || resident_[static_cast<size_t>(i)]) return;
  resident_[static_cast<size_t>(i)] = true;
  const uint64_t visit = visit_start_[static_cast<size_t>(index_.position_of(i))];
  const bool for_last_visit = missed_[static_cast<size_t>(i)] && last_use(i) > visit;
  if (!for_last_visit) last_use_[static_cast<size_t>(i)] = ++clock_;
  missed_[static_cast<size_t>(i)] = false;
  add(i);
}

void PolicyBase::evicted(ExpertId id) noexcept {
  const int32_t i = index_.find(id);
  if (i < 0 || !resident_[static_cast<size_t>(i)]) return;
  resident_[static_cast<size_t>(i)] = false;
  remove(i);
}

ExpertId PolicyBase::victim(ExpertId /*incoming*/, const EvictionCandidates& candidates) noexcept {
  const int32_t i = choose(MayGo(index_, candidates));
  return i < 0 ? ExpertId{} : index_.id(i);
}

}  // namespace moe
