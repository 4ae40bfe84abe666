#include <algorithm>

#include "placement/layer.h"

namespace moe {
using placement::LayerProblem;

namespace {

// Slots left over get experts 0, 1, ... again: rank by rank in turn, the lowest index that the rank
// does not hold yet and that has the fewest copies.
void fill_rest(const LayerProblem& layer, const std::vector<int64_t>& first,
               std::vector<int32_t>& used, LayerPlacement& out) {
  const int32_t ranks = layer.cluster.ranks();
  int64_t next = layer.experts();
  for (int32_t idle = 0, rank = layer.experts() % ranks; idle < ranks; rank = (rank + 1) % ranks) {
    const auto begin = out.expert_of_slot.begin() + first[rank];
    if (used[rank] == std::min(layer.cluster.slots[rank], layer.experts())) {
      ++idle;
      continue;
    }
    idle = 0;
    while (std::find(begin, begin + used[rank], static_cast<int32_t>(next % layer.experts())) !=
           begin + used[rank])
      ++next;
    begin[used[rank]++] = static_cast<int32_t>(next++ % layer.experts());
  }
}

Result<LayerPlacement> round_robin_layer(const LayerProblem& layer) {
  const int32_t ranks = layer.cluster.ranks();
  std::vector<int64_t> first(ranks, 0);
  for (int32_t r = 1; r < ranks; ++r) first[r] = first[r - 1] + layer.cluster.slots[r - 1];
  LayerPlacement out;
  out.expert_of_slot.assign(layer.cluster.total_slots(), -1);
  std::vector<int32_t> used(ranks, 0);
  for (int32_t expert = 0; expert < layer.experts(); ++expert) {
    const int32_t rank = expert % ranks;
    if (used[rank] == layer.cluster.slots[rank])
      return error(StatusCode::failed_precondition, {.rank = rank, .expert = expert},
                   "round robin puts expert {} on rank {}, whose {} slots are taken; give every "
                   "rank {} slots or use the strategy \"linear\"",
                   expert, rank, used[rank], (layer.experts() + ranks - 1) / ranks);
    out.expert_of_slot[first[rank] + used[rank]++] = expert;
  }
  fill_rest(layer, first, used, out);
  return out;
}

}  // namespace

Result<Placement> place_round_robin(const PlacementProblem& problem) {
  return placement::place_each_layer(problem, round_robin_layer);
}

}  // namespace moe
