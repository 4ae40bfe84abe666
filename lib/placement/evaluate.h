// What evaluate() does to one layer, for strategies that compare candidates.
#pragma once

#include "placement/layer.h"

namespace moe::placement {

// The parts that do not depend on the placement, drawn once.
struct Samples {
  ExpertSets tokens;  // for rows
  ExpertSets steps;   // for active experts
};
Samples draw_samples(const LayerProblem& layer);
std::vector<Samples> draw_samples(const PlacementProblem& problem);  // valid; one per layer

// (ranks): tokens, copies sharing evenly.
std::vector<double> rank_tokens(const LayerProblem& layer, const LayerPlacement& placement);

// Mean over steps of the fewest experts on the busiest rank.
double mean_active(const LayerProblem& layer, const LayerPlacement& placement,
                   const ExpertSets& steps);

LayerPrediction predict(const LayerProblem& layer, const LayerPlacement& placement,
                        const Samples& samples);

// Of several copies on one rank the first; -1 where the others were.
LayerPlacement without_twins(const LayerProblem& layer, LayerPlacement placement);

double max_over_mean(const std::vector<double>& load);  // 1 if there is none

// Of one layer without its twins; what a sum over layers is to make small.
double value_of(Objective objective, const LayerProblem& layer, const LayerPlacement& placement,
                const Samples& samples);

// The problem's objective; automatic: what limits most layers if all were even.
Objective resolved_objective(const PlacementProblem& problem, const std::vector<Samples>& samples);

}  // namespace moe::placement
