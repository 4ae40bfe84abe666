// A lower bound on the time of sets for layers that are too large for a proof.
#pragma once

#include "moe/placement.h"

namespace moe::placement {

// No placement without replicas on `ranks` equal ranks (ranks divides experts) has a smaller sum of
// count x time over the sets: the eigenvalue bound of graph partitioning (Donath and Hoffman 1973,
// with the diagonal improved by subgradient steps).
double partition_bound(const ExpertSets& sets, int32_t experts, int32_t ranks);

}  // namespace moe::placement
