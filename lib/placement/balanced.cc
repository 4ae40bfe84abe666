#include "placement/balanced.h"

#include <limits>

#include "placement/eplb.h"
#include "placement/evaluate.h"

namespace moe {
namespace placement {
namespace {

// Close enough to even that no measurement shows the rest.
constexpr double kEven = 1.001;

double imbalance(const Assignment& a) { return a.mean() > 0 ? a.load(a.busiest()) / a.mean() : 1; }

std::vector<float> in_floats(const std::vector<double>& weight) {
  return {weight.begin(), weight.end()};
}

std::vector<int32_t> global_eplb(const Cluster& cluster, const std::vector<double>& weight) {
  return eplb(in_floats(weight), static_cast<int32_t>(cluster.total_slots()), 1, 1,
              cluster.ranks());
}

}  // namespace

LayerPlacement balance_from_scratch(const Cluster& cluster, const std::vector<double>& weight) {
  Assignment a(cluster, weight);
  pack_greedily(a);
  relieve_busiest(a, kEven, false);
  if (!eplb_applies(cluster, false).ok()) return {-1, a.expert_of_slot()};
  // EPLB's own packing as a second start: what comes out is never worse than either.
  Assignment b(cluster, weight);
  b.assign(global_eplb(cluster, weight));
  relieve_busiest(b, kEven, false);
  return {-1, imbalance(b) < imbalance(a) ? b.expert_of_slot() : a.expert_of_slot()};
}

LayerPlacement balance_from_previous(const LayerProblem& layer, double target) {
  Assignment a(layer.cluster, layer.usage.tokens);
  a.assign(layer.previous->expert_of_slot);
  relieve_busiest(a, std::max(target, kEven), true);
  return {-1, a.expert_of_slot()};
}

double eplb_imbalance(const LayerProblem& layer) {
  if (!eplb_applies(layer.cluster, false).ok()) return std::numeric_limits<double>::infinity();
  return max_over_mean(
      rank_tokens(layer, {-1, global_eplb(layer.cluster, layer.usage.tokens)}));  // twins and all
}

double worthwhile_imbalance(const LayerProblem& layer, double best) {
  return std::max(best, std::min(eplb_imbalance(layer), best * 1.02));
}

namespace {

Result<LayerPlacement> balanced_layer(const LayerProblem& layer) {
  if (!layer.previous) return balance_from_scratch(layer.cluster, layer.usage.tokens);
  Samples none;
  const LayerPlacement fresh = balance_from_scratch(layer.cluster, layer.usage.tokens);
  const double best = value_of(Objective::tokens, layer, fresh, none);
  const double target = worthwhile_imbalance(layer, best);
  LayerPlacement near = balance_from_previous(layer, target);
  return value_of(Objective::tokens, layer, near, none) <= target * (1 + 1e-9) ? near : fresh;
}

}  // namespace
}  // namespace placement

Result<Placement> place_balanced(const PlacementProblem& problem) {
  return placement::place_each_layer(problem, placement::balanced_layer);
}

}  // namespace moe
