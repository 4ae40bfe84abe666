// The default: the objective that limits the layer, and for each layer the best of all strategies.
#include <algorithm>
#include <limits>

#include "placement/balanced.h"
#include "placement/evaluate.h"

namespace moe {
namespace placement {
namespace {

constexpr double kEqual = 1 + 1e-9;  // values this close are one
constexpr int64_t kFewSlots = 4096;  // of all layers together; then every strategy is asked

bool has_steps(const UsageTrace& usage) {
  return std::any_of(usage.layers.begin(), usage.layers.end(),
                     [](const LayerUsage& layer) { return !layer.steps.empty(); });
}

// Those for the objective, and all that are cheap.
std::vector<Placement> candidates(const PlacementProblem& problem, Objective objective) {
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

// The best of the candidates for one layer; near a placement in place, the nearest that is as good
// as every strategy's.
class Chooser {
 public:
  Chooser(const LayerProblem& layer, Objective objective, const Samples& samples)
      : layer_(layer), objective_(objective), samples_(samples) {}

  // A strategy's placement, without its twins.
  void offer(const LayerPlacement& candidate) {
    limit_ = std::min(limit_, add(without_twins(layer_, candidate)));
  }

  LayerPlacement choose() {
    const auto least = [&](auto measure) {
      return std::ranges::min_element(choices_, {}, measure)->placement;
    };
    if (!layer_.previous) return least([](const Choice& c) { return c.value; });
    add(without_twins(layer_, *layer_.previous));
    if (objective_ == Objective::tokens) {
      add(balance_from_previous(layer_, limit_));
      add(balance_from_scratch(layer_.cluster, layer_.usage.tokens));  // may be nearer all the same
    }
    std::erase_if(choices_, [&](const Choice& c) { return c.value > limit_ * kEqual; });
    return least([&](const Choice& c) { return moved_copies(c.placement); });
  }

 private:
  struct Choice {
    LayerPlacement placement;
    double value;
  };

  double add(LayerPlacement placement) {
    const double value = value_of(objective_, layer_, placement, samples_);
    choices_.push_back({std::move(placement), value});
    return value;
  }

  int64_t moved_copies(const LayerPlacement& placement) const {
    Assignment before(layer_.cluster, layer_.usage.tokens);
    before.assign(layer_.previous->expert_of_slot);
    int64_t moved = 0;
    for (int32_t slot = 0; slot < before.slots(); ++slot) {
      const int32_t expert = placement.expert_of_slot[slot];
      moved += expert >= 0 && !before.holds(before.rank(slot), expert);
    }
    return moved;
  }

  const LayerProblem& layer_;
  Objective objective_;
  const Samples& samples_;
  std::vector<Choice> choices_;
  double limit_ = std::numeric_limits<double>::infinity();  // the best of the strategies
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
      return chooser.choose();
    });
  });
}

}  // namespace moe
