// Planning for sets of experts that are active together: one layer, at most kMaskRanks ranks.
#pragma once

#include <bit>

#include "placement/layer.h"
#include "placement/set_index.h"
#include "placement/set_time.h"

namespace moe::placement {

inline constexpr int64_t kSubsetWork = 150'000'000;  // experts looked at, all layers together

// A placement under change, and the time of every set.
class SetPlan {
 public:
  SetPlan(const Cluster& cluster, const ExpertSets& sets, int32_t experts);

  void assign(const std::vector<int32_t>& expert_of_slot);
  void put(int32_t slot, int32_t expert);  // updates the cost

  // Cost if slot `a` held `e` (and `b` held `f`; b < 0: only a).
  double cost_with(int32_t a, int32_t e, int32_t b = -1, int32_t f = -1);

  double cost() const { return cost_; }   // sum of count x time
  int64_t work() const { return work_; }  // experts looked at so far
  const std::vector<int32_t>& expert_of_slot() const { return expert_; }
  int32_t rank(int32_t slot) const { return rank_[slot]; }
  bool holds(int32_t rank, int32_t expert) const { return (holders_[expert] >> rank) & 1; }
  int32_t copies(int32_t expert) const { return std::popcount(holders_[expert]); }
  const std::vector<RankMask>& holders() const { return holders_; }
  const ExpertSets& sets() const { return sets_; }
  const SetIndex& index() const { return index_; }
  int32_t ranks() const { return ranks_; }

 private:
  void move(int32_t slot, int32_t expert);  // holders only
  template <class Visit>
  void visit_sets(std::initializer_list<int32_t> experts, Visit visit);

  const ExpertSets& sets_;
  SetIndex index_;
  int32_t ranks_;
  SetTimer timer_;
  std::vector<int32_t> rank_, expert_;  // (slots)
  std::vector<RankMask> holders_;       // (experts)
  std::vector<int32_t> time_, stamp_;   // (sets)
  int32_t round_ = 0;
  double cost_ = 0;
  int64_t work_ = 0;
};

// Marchal's greedy: again and again the copy that lowers the cost most, until memory is full.
void place_greedily(SetPlan& plan);

// Swaps and replacements while they help, with restarts from shaken placements, until `work` more
// experts have been looked at. Never ends worse than it began.
void improve(SetPlan& plan, int64_t work);

// The best of several starts, improved. `work` bounds the effort.
LayerPlacement plan_subsets(const LayerProblem& layer, const ExpertSets& sets, int64_t work);

}  // namespace moe::placement
