#include "store/policy_base.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

namespace moe {
namespace {

constexpr double kMostCount = 9007199254740992;  // 2^53: doubles below are exact

template <class T>
bool can_hold(double value) {
  if constexpr (std::is_same_v<T, double>) return std::isfinite(value);
  const double most = std::is_same_v<T, bool> ? 1 : kMostCount;
  return value >= 0 && value <= most && value == std::floor(value);
}

}  // namespace

PolicyBase::PolicyBase(const EvictionOptions& options)
    : index_(options.layers),
      last_use_(static_cast<size_t>(index_.experts())),
      visit_start_(static_cast<size_t>(index_.layers())),
      resident_(static_cast<size_t>(index_.experts())),
      missed_(static_cast<size_t>(index_.experts())) {
  keep("now", &now_);
  keep("last_use", &last_use_);
  keep("visit_start", &visit_start_);
  keep("missed", &missed_);
}

void PolicyBase::accessed(const ExpertAccess& access) noexcept {
  const int32_t position = index_.position(access.layer);
  if (position < 0) return;
  now_[kPosition] = static_cast<uint64_t>(position);
  visit_start_[static_cast<size_t>(position)] = now_[kClock];
  visited(position, access);
  for (const int32_t expert : access.experts) {
    const int32_t i = index_.find({access.layer, expert});
    if (i < 0) continue;
    last_use_[static_cast<size_t>(i)] = ++now_[kClock];
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
  if (!for_last_visit) last_use_[static_cast<size_t>(i)] = ++now_[kClock];
  missed_[static_cast<size_t>(i)] = false;
  arrived(i);
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

PolicyMemory PolicyBase::memory() const {
  PolicyMemory memory;
  for (const Kept& kept : kept_)
    std::visit(
        [&](const auto* array) {
          memory.parts.push_back({kept.name, {array->begin(), array->end()}});
        },
        kept.array);
  return memory;
}

Status PolicyBase::restore(const PolicyMemory& memory) {
  if (memory.parts.size() != kept_.size())
    return invalid_argument({}, "the memory has {} arrays; '{}' keeps {}", memory.parts.size(),
                            name(), kept_.size());
  for (size_t k = 0; k < kept_.size(); ++k) {
    const std::string& name = memory.parts[k].name;
    const auto& values = memory.parts[k].values;
    const bool fits = std::visit(
        [&](const auto* array) {
          using T = typename std::decay_t<decltype(*array)>::value_type;
          return array->size() == values.size() &&
                 std::all_of(values.begin(), values.end(), can_hold<T>);
        },
        kept_[k].array);
    if (name != kept_[k].name || !fits)
      return invalid_argument({}, "array {} ('{}', {} values) is not what '{}' keeps as '{}'", k,
                              name, values.size(), this->name(), kept_[k].name);
  }
  if (memory.parts[0].values[kPosition] >= index_.layers())
    return invalid_argument({}, "the memory is of a forward in layer {} of {}",
                            memory.parts[0].values[kPosition], index_.layers());

  const auto residents = [&](void (PolicyBase::*tell)(int32_t) noexcept) {
    for (int32_t i = 0; i < index_.experts(); ++i)
      if (resident_[static_cast<size_t>(i)]) (this->*tell)(i);
  };
  residents(&PolicyBase::remove);
  for (size_t k = 0; k < kept_.size(); ++k) {
    const std::vector<double>& values = memory.parts[k].values;
    std::visit(
        [&](auto* array) {
          using T = typename std::decay_t<decltype(*array)>::value_type;
          for (size_t i = 0; i < values.size(); ++i) (*array)[i] = static_cast<T>(values[i]);
        },
        kept_[k].array);
  }
  residents(&PolicyBase::add);
  return {};
}

}  // namespace moe
