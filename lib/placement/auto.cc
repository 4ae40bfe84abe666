// The default: the objective that limits the layer, and for each layer the best of all strategies.
#include <algorithm>
#include <limits>

#include "placement/balanced.h"
#include "placement/evaluate.h"

namespace moe {
namespace placement {
namespace {

constexpr double kStay = 1.01;       // what is in place may be this much worse, rather than move
constexpr int64_t kFewSlots = 4096;  // of all layers together; then every strategy is asked

// A strategy's layer without its faults: of twins on one rank one goes.
LayerPlacement without_twins(const LayerProblem& layer, const LayerPlacement& placement) {
  Assignment a(layer.cluster, layer.usage.tokens);
  a.assign(placement.expert_of_slot);
  return {placement.layer, a.expert_of_slot()};
}

bool has_steps(const UsageTrace& usage) {
  return std::any_of(usage.layers.begin(), usage.layers.end(),
                     [](const LayerUsage& layer) { return !layer.steps.empty(); });
}

// Those for the objective, and all that are cheap.
std::vector<Placement> candidates(PlacementProblem problem, Objective objective) {
  problem.previous = nullptr;
  const auto layers = static_cast<int64_t>(problem.usage.layers.size());
  const bool all = problem.cluster.total_slots() * layers <= kFewSlots;
  std::vector<Strategy> asked = {place_balanced, place_linear, place_round_robin, place_eplb,
                                 place_eplb_global};
  if (all || has_steps(problem.usage)) asked.push_back(place_eplb_steps);
  if (all || objective == Objective::traffic) asked.push_back(place_traffic);
  if (all || objective == Objective::active) asked.push_back(place_subset);
  std::vector<Placement> out;
  for (Strategy strategy : asked)  // some do not apply to every cluster
    if (Result<Placement> placement = strategy(problem); placement.ok())
      out.push_back(*std::move(placement));
  return out;
}

// The best of the candidates for one layer.
class Chooser {
 public:
  Chooser(const LayerProblem& layer, Objective objective, const Samples& samples)
      : layer_(layer), objective_(objective), samples_(samples) {}

  double value_of(const LayerPlacement& placement) const {
    return placement::value_of(objective_, layer_, placement, samples_);
  }
  // Of a candidate as it is and, where it had twins, with their slots used for balance.
  void offer(const LayerPlacement& candidate) {
    LayerPlacement clean = without_twins(layer_, candidate);
    keep_better(clean);
    if (clean.expert_of_slot == candidate.expert_of_slot) return;
    Assignment a(layer_.cluster, layer_.usage.tokens);
    a.assign(clean.expert_of_slot);
    relieve_busiest(a, 1, false);
    keep_better({clean.layer, a.expert_of_slot()});
  }
  // Moving costs: what is near the placement in place serves if it is as good.
  LayerPlacement best_or_near() const {
    if (!layer_.previous) return best_;
    const bool tokens = objective_ == Objective::tokens;
    const double limit =
        tokens ? worthwhile_imbalance(layer_, value_) * (1 + 1e-9) : value_ * kStay;
    const LayerPlacement near =
        tokens ? balance_from_previous(layer_, limit) : without_twins(layer_, *layer_.previous);
    return value_of(near) <= limit ? near : best_;
  }

 private:
  // The earlier one on ties.
  void keep_better(const LayerPlacement& candidate) {
    const double value = value_of(candidate);
    if (value >= value_ * (1 - 1e-12)) return;
    value_ = value;
    best_ = candidate;
  }

  const LayerProblem& layer_;
  Objective objective_;
  const Samples& samples_;
  LayerPlacement best_;
  double value_ = std::numeric_limits<double>::infinity();
};

}  // namespace
}  // namespace placement

Result<Placement> place_auto(const PlacementProblem& problem) {
  using namespace placement;
  return guarded({.phase = Phase::plan}, [&]() -> Result<Placement> {
    MOE_RETURN_IF_ERROR(placement::validate(problem));
    std::vector<Samples> samples(problem.usage.layers.size());
    if (problem.objective != Objective::tokens) samples = draw_samples(problem);
    const Objective objective = resolved_objective(problem, samples);
    const std::vector<Placement> offers = candidates(problem, objective);

    size_t next = 0;
    return place_each_layer(problem, [&](const LayerProblem& layer) -> Result<LayerPlacement> {
      const size_t l = next++;
      Chooser chooser(layer, objective, samples[l]);
      for (const Placement& offer : offers) chooser.offer(offer.layers[l]);
      return chooser.best_or_near();
    });
  });
}

}  // namespace moe
