// Placements for tokens, of one layer.
#pragma once

#include "placement/assignment.h"

namespace moe::placement {

// The best balance that is found from scratch. `weight` is what counts as load.
LayerPlacement balance_from_scratch(const Cluster& cluster, const std::vector<double>& weight);

// The fewest moves from `layer.previous` to a busiest rank of at most `target` times the mean.
// Falls short of it rather than move everything; the caller compares.
LayerPlacement balance_from_previous(const LayerProblem& layer, double target);

// Busiest rank over mean of published EPLB (global), or infinity where it does not apply.
double eplb_imbalance(const LayerProblem& layer);

// The balance that is worth moving experts for: EPLB's, which would move nearly all of them, or the
// best that was found.
double worthwhile_imbalance(const LayerProblem& layer, double best);

}  // namespace moe::placement
