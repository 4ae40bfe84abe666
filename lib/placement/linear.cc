#include "placement/layer.h"

namespace moe {
using placement::LayerProblem;

namespace {
// Expert 0, 1, ... in order of slots, and again from 0: vLLM's initial map. A rank with more slots
// than experts leaves the rest empty.
Result<LayerPlacement> linear_layer(const LayerProblem& layer) {
  LayerPlacement out;
  int64_t next = 0;
  for (int32_t slots : layer.cluster.slots)
    for (int32_t local = 0; local < slots; ++local)
      out.expert_of_slot.push_back(
          local < layer.experts() ? static_cast<int32_t>(next++ % layer.experts()) : -1);
  return out;
}
}  // namespace

Result<Placement> place_linear(const PlacementProblem& problem) {
  return placement::place_each_layer(problem, linear_layer);
}

}  // namespace moe
