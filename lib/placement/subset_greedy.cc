#include "placement/subset.h"

namespace moe::placement {
namespace {

// gain(e, r): how much a copy of e on r would lower the cost. Kept up to date set by set: a new
// copy changes only what the sets that contain its expert contribute.
class Gains {
 public:
  explicit Gains(const SetPlan& plan)
      : plan_(plan),
        ranks_(plan.ranks()),
        holders_(plan.holders()),
        timer_(ranks_),
        gain_(holders_.size() * ranks_, 0.0) {
    for (int64_t i = 0; i < plan.sets().size(); ++i) contribute(i, +1);
  }

  double operator()(int32_t expert, int32_t rank) const {
    return gain_[static_cast<size_t>(expert) * ranks_ + rank];
  }

  void place(int32_t expert, int32_t rank) {
    for (int32_t i : plan_.index()[expert]) contribute(i, -1);
    holders_[expert] |= RankMask{1} << rank;
    for (int32_t i : plan_.index()[expert]) contribute(i, +1);
  }

 private:
  void contribute(int64_t i, double sign) {
    const auto set = plan_.sets()[i];
    const int32_t now = timer_.time(set, holders_);
    for (int32_t e : set) {
      const RankMask before = holders_[e];
      for (int32_t r = 0; r < ranks_; ++r) {
        holders_[e] = before | RankMask{1} << r;
        if (holders_[e] == before) continue;
        const int32_t saved = now - timer_.time(set, holders_);
        gain_[static_cast<size_t>(e) * ranks_ + r] += sign * plan_.sets().counts[i] * saved;
      }
      holders_[e] = before;
    }
  }

  const SetPlan& plan_;
  int32_t ranks_;
  std::vector<RankMask> holders_;
  SetTimer timer_;
  std::vector<double> gain_;
};

}  // namespace

void place_greedily(SetPlan& plan) {
  const auto experts = static_cast<int32_t>(plan.holders().size());
  plan.assign(std::vector<int32_t>(plan.expert_of_slot().size(), -1));
  Gains gains(plan);
  std::vector<std::vector<int32_t>> free(plan.ranks());  // slots, last first
  auto left = static_cast<int32_t>(plan.expert_of_slot().size());
  for (int32_t slot = left - 1; slot >= 0; --slot) free[plan.rank(slot)].push_back(slot);
  for (int32_t unplaced = experts; left > 0; --left) {
    int32_t best_expert = -1, best_rank = -1;
    double best = -1;
    for (int32_t e = 0; e < experts; ++e) {
      if (left == unplaced && plan.copies(e) > 0) continue;  // every expert needs its first slot
      for (int32_t r = 0; r < plan.ranks(); ++r) {
        if (free[r].empty() || plan.holds(r, e)) continue;
        // Among equal gains, first copies and emptier ranks first.
        if (const double gain = gains(e, r);
            gain > best + 1e-9 ||
            (gain > best - 1e-9 && best_expert >= 0 && plan.copies(e) < plan.copies(best_expert)) ||
            (gain > best - 1e-9 && e == best_expert && free[r].size() > free[best_rank].size()))
          best = std::max(best, gain), best_expert = e, best_rank = r;
      }
    }
    if (best_expert < 0) return;  // every rank holds everything
    if (plan.copies(best_expert) == 0) --unplaced;
    const int32_t slot = free[best_rank].back();
    free[best_rank].pop_back();
    gains.place(best_expert, best_rank);
    plan.put(slot, best_expert);
  }
}

}  // namespace moe::placement
