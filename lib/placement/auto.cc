// The default: the objective that limits the layer, and for each layer the best of all candidates.
#include <limits>

#include "placement/balanced.h"
#include "placement/eplb.h"
#include "placement/evaluate.h"
#include "placement/subset.h"
#include "placement/traffic.h"

namespace moe {
namespace placement {
namespace {
constexpr int64_t kSubsetWork = 200'000'000;  // all layers together
constexpr double kStay = 1.01;  // what is in place may be this much worse, rather than move

// A strategy's layer without its faults: of twins on one rank one goes.
LayerPlacement without_twins(const LayerProblem& layer, const LayerPlacement& placement) {
  Assignment a(layer.cluster, layer.usage.tokens);
  a.assign(placement.expert_of_slot);
  return {placement.layer, a.expert_of_slot()};
}

class Chooser {
 public:
  Chooser(const LayerProblem& layer, Objective objective, const Samples& samples)
      : layer_(layer), objective_(objective), samples_(samples) {}

  // Keeps the better one; the earlier on ties.
  void offer(const LayerPlacement& candidate) {
    const double value = value_of(objective_, layer_, candidate, samples_);
    if (value >= value_ * (1 - 1e-12)) return;
    value_ = value;
    best_ = candidate;
  }
  double value() const { return value_; }
  LayerPlacement best() const { return best_; }

 private:
  const LayerProblem& layer_;
  Objective objective_;
  const Samples& samples_;
  LayerPlacement best_;
  double value_ = std::numeric_limits<double>::infinity();
};

}  // namespace
}  // namespace placement

namespace placement {
namespace {

// The simple strategies, where they apply.
std::vector<Placement> simple_placements(const PlacementProblem& problem) {
  std::vector<Placement> out;
  for (Strategy strategy : {place_linear, place_round_robin, place_eplb, place_eplb_global})
    if (Result<Placement> placement = strategy(problem); placement.ok())
      out.push_back(*std::move(placement));
  return out;
}

// Moving costs: what is near the placement in place serves if it is as good.
LayerPlacement near_previous(const LayerProblem& layer, Objective objective, const Samples& samples,
                             const Chooser& chooser) {
  const bool tokens = objective == Objective::tokens;
  const double limit =
      tokens ? worthwhile_imbalance(layer, chooser.value()) * (1 + 1e-9) : chooser.value() * kStay;
  const LayerPlacement near =
      tokens ? balance_from_previous(layer, limit) : without_twins(layer, *layer.previous);
  return value_of(objective, layer, near, samples) <= limit ? near : chooser.best();
}

}  // namespace
}  // namespace placement

Result<Placement> place_auto(const PlacementProblem& problem) {
  using namespace placement;
  return guarded({.phase = Phase::plan}, [&]() -> Result<Placement> {
    MOE_RETURN_IF_ERROR(placement::validate(problem));
    std::vector<Samples> samples(problem.usage.layers.size());
    if (problem.objective != Objective::tokens) samples = draw_samples(problem);
    const Objective objective = resolved_objective(problem, samples);
    const std::vector<Placement> others = simple_placements(problem);
    const auto layers = static_cast<int64_t>(samples.size());

    size_t next = 0;
    return place_each_layer(problem, [&](const LayerProblem& layer) -> Result<LayerPlacement> {
      const size_t l = next++;
      Chooser chooser(layer, objective, samples[l]);
      const LayerPlacement even = balance_from_scratch(layer.cluster, layer.usage.tokens);
      if (objective == Objective::active)
        chooser.offer(plan_subsets(layer, samples[l].steps, kSubsetWork / layers));
      if (objective == Objective::traffic)
        chooser.offer(traffic_layer(layer, samples[l].tokens, even, kTrafficPairs / layers));
      chooser.offer(even);
      for (const Placement& other : others) chooser.offer(without_twins(layer, other.layers[l]));
      if (!layer.previous) return chooser.best();
      return near_previous(layer, objective, samples[l], chooser);
    });
  });
}

}  // namespace moe
