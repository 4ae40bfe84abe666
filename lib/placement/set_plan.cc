#include "placement/subset.h"

namespace moe::placement {

SetPlan::SetPlan(const Cluster& cluster, const ExpertSets& sets, int32_t experts)
    : sets_(sets),
      index_(sets, experts),
      ranks_(cluster.ranks()),
      timer_(ranks_),
      rank_(cluster.rank_of_slot()),
      expert_(rank_.size(), -1),
      holders_(experts, 0),
      time_(sets.size()),
      stamp_(sets.size(), 0) {
  assign(expert_);
}

void SetPlan::assign(const std::vector<int32_t>& expert_of_slot) {
  std::fill(holders_.begin(), holders_.end(), RankMask{0});
  std::fill(expert_.begin(), expert_.end(), -1);
  for (size_t slot = 0; slot < expert_of_slot.size(); ++slot) {
    const int32_t e = expert_of_slot[slot];
    if (e < 0 || holds(rank_[slot], e)) continue;
    expert_[slot] = e;
    holders_[e] |= RankMask{1} << rank_[slot];
  }
  cost_ = 0;
  for (int64_t i = 0; i < sets_.size(); ++i) {
    time_[i] = timer_.time(sets_[i], holders_);
    cost_ += sets_.counts[i] * time_[i];
  }
}

void SetPlan::move(int32_t slot, int32_t expert) {
  const RankMask bit = RankMask{1} << rank_[slot];
  if (expert_[slot] >= 0) holders_[expert_[slot]] &= ~bit;
  if (expert >= 0) holders_[expert] |= bit;
  expert_[slot] = expert;
}

// Each set that contains any of `experts`, once.
template <class Visit>
void SetPlan::visit_sets(std::initializer_list<int32_t> experts, Visit visit) {
  ++round_;
  for (int32_t e : experts) {
    if (e < 0) continue;
    for (int32_t i : index_[e]) {
      if (stamp_[i] == round_) continue;
      stamp_[i] = round_;
      work_ += sets_.first[i + 1] - sets_.first[i];
      visit(i);
    }
  }
}

void SetPlan::put(int32_t slot, int32_t expert) {
  const int32_t old = expert_[slot];
  move(slot, expert);
  visit_sets({old, expert}, [&](int32_t i) {
    const int32_t time = timer_.time(sets_[i], holders_);
    cost_ += sets_.counts[i] * (time - time_[i]);
    time_[i] = time;
  });
}

double SetPlan::cost_with(int32_t a, int32_t e, int32_t b, int32_t f) {
  const int32_t old_a = expert_[a], old_b = b < 0 ? -1 : expert_[b];
  move(a, e);
  if (b >= 0) move(b, f);
  double cost = cost_;
  visit_sets({old_a, old_b, e, f}, [&](int32_t i) {
    cost += sets_.counts[i] * (timer_.time(sets_[i], holders_) - time_[i]);
  });
  if (b >= 0) move(b, old_b);
  move(a, old_a);
  return cost;
}

}  // namespace moe::placement
