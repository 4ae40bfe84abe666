// Placements for links, of one layer.
#pragma once

#include "placement/layer.h"

namespace moe::placement {

inline constexpr int64_t kTrafficPairs = 400'000'000;  // looked at, all layers together

// Fewest visits to nodes (to ranks, in one node) by `tokens`, with every rank's load close to the
// that of `even`, the best balance that was found. `max_pairs` bounds the effort.
LayerPlacement traffic_layer(const LayerProblem& layer, const ExpertSets& tokens,
                             const LayerPlacement& even, int64_t max_pairs);

}  // namespace moe::placement
