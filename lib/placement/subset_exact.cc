// Branch and bound over the ranks of each expert. Bound: experts not decided yet may be anywhere,
// so a set's time can only grow as they are decided.
#include <algorithm>
#include <numeric>

#include "placement/sample.h"
#include "placement/subset.h"
#include "placement/subset_bound.h"

namespace moe {
namespace placement {
namespace {

class Proof {
 public:
  Proof(const Cluster& cluster, const ExpertSets& sets, int32_t experts, int64_t max_nodes)
      : sets_(sets),
        index_(sets, experts),
        ranks_(cluster.ranks()),
        max_nodes_(max_nodes),
        timer_(ranks_),
        free_(cluster.slots),
        spare_(static_cast<int32_t>(cluster.total_slots()) - experts),
        holders_(experts, all()),
        time_(sets.size()),
        content_(ranks_, 0),
        order_(experts) {
    for (int64_t i = 0; i < sets.size(); ++i) time_[i] = timer_.time(sets[i], holders_);
    std::iota(order_.begin(), order_.end(), 0);
    std::vector<double> use(experts, 0.0);
    for (int32_t e = 0; e < experts; ++e)
      for (int32_t i : index_[e]) use[e] += sets.counts[i];
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int32_t a, int32_t b) { return use[a] > use[b]; });
  }

  // Improves on (`best`, `cost`) or proves it.
  void run(std::vector<RankMask>& best, double& cost) {
    best_ = &best;
    best_cost_ = &cost;
    double root = 0;
    for (int64_t i = 0; i < sets_.size(); ++i) root += sets_.counts[i] * time_[i];
    open_ = cost;
    descend(0, root);
  }
  int64_t nodes() const { return nodes_; }
  double lower_bound() const { return std::min(open_, *best_cost_); }

 private:
  struct Child {
    RankMask ranks;
    double bound;
  };

  RankMask all() const { return ranks_ == 64 ? ~RankMask{0} : (RankMask{1} << ranks_) - 1; }

  // Ranks with equal room and equal content are interchangeable: use the lower one first.
  bool canonical(RankMask ranks) const {
    for (int32_t r = 0; r + 1 < ranks_; ++r)
      if (free_[r] == free_[r + 1] && content_[r] == content_[r + 1] && ((ranks >> r) & 3) == 2)
        return false;
    return true;
  }

  bool fits(RankMask ranks) const {
    if (std::popcount(ranks) - 1 > spare_) return false;
    for (RankMask left = ranks; left != 0; left &= left - 1)
      if (free_[std::countr_zero(left)] == 0) return false;
    return true;
  }

  double bound_with(int32_t expert, RankMask ranks, double cost) {
    holders_[expert] = ranks;
    for (int32_t i : index_[expert])
      cost += sets_.counts[i] * (timer_.time(sets_[i], holders_) - time_[i]);
    holders_[expert] = all();
    return cost;
  }

  std::vector<Child> children(int32_t expert, double cost) {
    std::vector<Child> out;
    const auto consider = [&](RankMask ranks) {
      if (fits(ranks) && canonical(ranks)) out.push_back({ranks, bound_with(expert, ranks, cost)});
    };
    if (spare_ == 0)
      for (int32_t r = 0; r < ranks_; ++r) consider(RankMask{1} << r);
    else
      for (RankMask ranks = 1; ranks <= all(); ++ranks) consider(ranks);
    // Cheapest first; among equals the one that keeps more copies for others.
    std::stable_sort(out.begin(), out.end(), [](const Child& a, const Child& b) {
      return a.bound != b.bound ? a.bound < b.bound
                                : std::popcount(a.ranks) < std::popcount(b.ranks);
    });
    return out;
  }

  void descend(size_t depth, double cost) {
    ++nodes_;
    if (depth == order_.size()) {
      *best_cost_ = cost;
      *best_ = holders_;
      return;
    }
    const int32_t expert = order_[depth];
    for (const Child& child : children(expert, cost)) {
      if (child.bound >= *best_cost_ * (1 - 1e-12)) return;
      if (nodes_ >= max_nodes_) {
        open_ = std::min(open_, child.bound);
        return;
      }
      take(depth, expert, child.ranks);
      descend(depth + 1, child.bound);
      untake(depth, expert, child.ranks);
    }
  }

  void take(size_t depth, int32_t expert, RankMask ranks) { change(depth, expert, ranks, true); }
  void untake(size_t depth, int32_t expert, RankMask ranks) { change(depth, expert, ranks, false); }
  void change(size_t depth, int32_t expert, RankMask ranks, bool taken) {
    for (RankMask left = ranks; left != 0; left &= left - 1) {
      free_[std::countr_zero(left)] += taken ? -1 : 1;
      content_[std::countr_zero(left)] ^= uint64_t{1} << depth;
    }
    spare_ += (taken ? -1 : 1) * (std::popcount(ranks) - 1);
    holders_[expert] = taken ? ranks : all();
    for (int32_t i : index_[expert]) time_[i] = timer_.time(sets_[i], holders_);
  }

  const ExpertSets& sets_;
  SetIndex index_;
  int32_t ranks_;
  int64_t max_nodes_, nodes_ = 0;
  SetTimer timer_;
  std::vector<int32_t> free_;      // (ranks): slots
  int32_t spare_;                  // slots beyond one per undecided expert
  std::vector<RankMask> holders_;  // (experts): all ranks while undecided
  std::vector<int32_t> time_;      // (sets): under holders_
  std::vector<uint64_t> content_;  // (ranks): bit per decided expert
  std::vector<int32_t> order_;     // most used first
  double open_ = 0;                // lowest bound that was left unexplored
  std::vector<RankMask>* best_ = nullptr;
  double* best_cost_ = nullptr;
};

std::vector<int32_t> slots_of(const std::vector<RankMask>& holders, const Cluster& cluster) {
  std::vector<int32_t> out;
  for (int32_t r = 0; r < cluster.ranks(); ++r) {
    const size_t end = out.size() + cluster.slots[r];
    for (int32_t e = 0; e < static_cast<int32_t>(holders.size()); ++e)
      if ((holders[e] >> r) & 1) out.push_back(e);
    out.resize(end, -1);
  }
  return out;
}

Result<ExactLayer> solve(const LayerProblem& layer, const ExpertSets& sets, int64_t max_nodes) {
  constexpr int32_t kMaxExperts = 64, kMaxRanks = 12;
  const Cluster& cluster = layer.cluster;
  if (layer.experts() > kMaxExperts || cluster.ranks() > kMaxRanks)
    return error(StatusCode::unimplemented, {},
                 "{} experts on {} ranks; proofs are for at most {} on {}: use \"subset\"",
                 layer.experts(), cluster.ranks(), kMaxExperts, kMaxRanks);
  SetPlan start(cluster, sets, layer.experts());
  start.assign(plan_subsets(layer, sets, 20'000'000).expert_of_slot);
  std::vector<RankMask> best = start.holders();
  double cost = start.cost();
  Proof proof(cluster, sets, layer.experts(), max_nodes);
  proof.run(best, cost);
  const double total = std::max(sets.total(), 1e-300);
  ExactLayer out;
  out.placement = {layer.usage.layer, slots_of(best, cluster)};
  out.cost = cost / total;
  out.nodes = proof.nodes();
  out.proved = proof.lower_bound() >= cost * (1 - 1e-12);
  double bound = proof.lower_bound();
  const auto [least, most] = std::minmax_element(cluster.slots.begin(), cluster.slots.end());
  if (!out.proved && *least == *most && cluster.total_slots() == layer.experts())
    bound =
        std::max(bound, std::min(partition_bound(sets, layer.experts(), cluster.ranks()), cost));
  out.lower_bound = bound / total;
  return out;
}

}  // namespace
}  // namespace placement

Result<ExactLayer> solve_subset_exact(const LayerUsage& usage, const Cluster& cluster,
                                      int64_t max_nodes) {
  return guarded({.layer = usage.layer, .phase = Phase::plan}, [&]() -> Result<ExactLayer> {
    const UsageTrace trace{0, {usage}};
    MOE_RETURN_IF_ERROR(placement::validate(PlacementProblem{trace, cluster}));
    return placement::solve({usage, cluster, {}}, usage.sets, max_nodes);
  });
}

Result<Placement> place_subset_exact(const PlacementProblem& problem) {
  constexpr int64_t kNodes = 20'000'000;  // all layers together
  const auto layers = static_cast<int64_t>(problem.usage.layers.size());
  return placement::place_each_layer(
      problem, [&](const placement::LayerProblem& layer) -> Result<LayerPlacement> {
        MOE_ASSIGN_OR_RETURN(ExactLayer exact, placement::solve(layer, placement::draw_steps(layer),
                                                                kNodes / layers));
        if (!exact.proved)
          return error(StatusCode::resource_exhausted, {},
                       "no proof within {} nodes: between {:.6f} and {:.6f}; use \"subset\"",
                       exact.nodes, exact.lower_bound, exact.cost);
        return std::move(exact.placement);
      });
}

}  // namespace moe
