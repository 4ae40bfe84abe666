// One layer of a placement problem, and the loop over layers that every strategy shares.
#pragma once

#include <utility>

#include "core/error.h"
#include "moe/placement.h"

namespace moe::placement {

struct LayerProblem {
  const LayerUsage& usage;
  const Cluster& cluster;
  const Workload& workload;  // resolved
  const LayerPlacement* previous = nullptr;

  int32_t experts() const { return usage.experts(); }
};

Status validate(const PlacementProblem& problem);

// With the numbers that "0" stands for.
Workload resolved(const PlacementProblem& problem);

LayerProblem layer_problem(const PlacementProblem& problem, const Workload& workload, size_t layer);

// Runs `place(LayerProblem) -> Result<LayerPlacement>` for each layer of a valid problem.
template <class Place>
Result<Placement> place_each_layer(const PlacementProblem& problem, Place place) {
  return guarded({.phase = Phase::plan}, [&]() -> Result<Placement> {
    MOE_RETURN_IF_ERROR(validate(problem));
    const Workload workload = resolved(problem);
    Placement placement;
    for (size_t i = 0; i < problem.usage.layers.size(); ++i) {
      const LayerProblem one = layer_problem(problem, workload, i);
      Result<LayerPlacement> layer = place(one);
      if (!layer.ok()) return layer.status().at({.layer = one.usage.layer, .phase = Phase::plan});
      layer->layer = one.usage.layer;
      placement.layers.push_back(*std::move(layer));
    }
    return placement;
  });
}

}  // namespace moe::placement
