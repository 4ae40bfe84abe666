#include "placement/match.h"

#include <algorithm>

#include "core/error.h"

namespace moe {
namespace placement {

Matcher::Matcher(const ReplicaTable& table)
    : table_(table),
      load_(table.ranks),
      flexible_(table.ranks),
      via_expert_(table.ranks),
      via_copy_(table.ranks) {}

int32_t Matcher::run(std::span<const int32_t> active) {
  active_ = active;
  assign_greedily();
  const auto ideal = static_cast<int32_t>((active.size() + load_.size() - 1) / load_.size());
  while (true) {
    const auto busiest = std::max_element(load_.begin(), load_.end());
    if (*busiest <= ideal || !relieve(static_cast<int32_t>(busiest - load_.begin())))
      return *busiest;
  }
}

// Experts with the fewest choices first, each to the emptiest of its ranks.
void Matcher::assign_greedily() {
  std::fill(load_.begin(), load_.end(), 0);
  for (auto& list : flexible_) list.clear();
  copy_.resize(active_.size());
  order_.clear();
  const auto choices = [&](int32_t i) {
    return table_.first[active_[i] + 1] - table_.first[active_[i]];
  };
  for (int32_t i = 0; i < static_cast<int32_t>(active_.size()); ++i) {
    if (choices(i) > 1) {
      order_.push_back(i);
      continue;
    }
    copy_[i] = table_.first[active_[i]];
    ++load_[table_.rank[copy_[i]]];
  }
  std::stable_sort(order_.begin(), order_.end(),
                   [&](int32_t a, int32_t b) { return choices(a) < choices(b); });
  for (int32_t i : order_) {
    int32_t best = table_.first[active_[i]];
    for (int32_t copy = best + 1; copy < table_.first[active_[i] + 1]; ++copy)
      if (load_[table_.rank[copy]] < load_[table_.rank[best]]) best = copy;
    copy_[i] = best;
    ++load_[table_.rank[best]];
    flexible_[table_.rank[best]].push_back(i);
  }
}

// Finds a chain of moves from `rank` to one that has at least two experts less, and makes them.
// If there is none, everything within reach is full and no assignment does better.
bool Matcher::relieve(int32_t rank) {
  std::fill(via_expert_.begin(), via_expert_.end(), -1);
  queue_.assign(1, rank);
  for (size_t head = 0; head < queue_.size(); ++head) {
    for (int32_t i : flexible_[queue_[head]]) {
      for (int32_t copy = table_.first[active_[i]]; copy < table_.first[active_[i] + 1]; ++copy) {
        const int32_t next = table_.rank[copy];
        if (next == rank || via_expert_[next] >= 0) continue;
        via_expert_[next] = i;
        via_copy_[next] = copy;
        if (load_[next] + 2 <= load_[rank]) {
          --load_[rank];
          ++load_[next];
          flip(next);
          return true;
        }
        queue_.push_back(next);
      }
    }
  }
  return false;
}

// Walks the chain back from its end.
void Matcher::flip(int32_t rank) {
  while (via_expert_[rank] >= 0) {
    const int32_t i = via_expert_[rank], from = table_.rank[copy_[i]];
    std::erase(flexible_[from], i);
    flexible_[rank].push_back(i);
    copy_[i] = via_copy_[rank];
    rank = from;
  }
}

}  // namespace placement

Result<int32_t> match_replicas(const ReplicaTable& table, std::span<const int32_t> active,
                               std::span<int32_t> copies) {
  return guarded({.phase = Phase::dispatch}, [&]() -> Result<int32_t> {
    if (copies.size() != active.size())
      return invalid_argument({}, "{} active experts, room for {} copies", active.size(),
                              copies.size());
    for (int32_t expert : active)
      if (expert < 0 || expert >= table.experts() || table.first[expert] == table.first[expert + 1])
        return invalid_argument({.expert = expert}, "is not in the table of {} or has no copy",
                                table.experts());
    placement::Matcher matcher(table);
    const int32_t busiest = matcher.run(active);
    std::copy(matcher.copies().begin(), matcher.copies().end(), copies.begin());
    return busiest;
  });
}

}  // namespace moe
