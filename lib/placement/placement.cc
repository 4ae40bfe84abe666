#include "moe/placement.h"

#include <algorithm>

#include "core/error.h"

namespace moe {
namespace {

Status validate_layer(const LayerPlacement& layer, const std::vector<int32_t>& rank_of_slot,
                      int32_t experts, bool allow_twins) {
  if (layer.expert_of_slot.size() != rank_of_slot.size())
    return invalid_argument({}, "the placement has {} slots, the cluster {}",
                            layer.expert_of_slot.size(), rank_of_slot.size());
  std::vector<int32_t> last_rank(experts, -1);
  for (size_t slot = 0; slot < rank_of_slot.size(); ++slot) {
    const int32_t expert = layer.expert_of_slot[slot];
    if (expert == -1) continue;
    if (expert < 0 || expert >= experts)
      return invalid_argument({}, "slot {} holds expert {}; wanted -1 to {}", slot, expert,
                              experts - 1);
    if (last_rank[expert] == rank_of_slot[slot] && !allow_twins)
      return invalid_argument({.rank = rank_of_slot[slot], .expert = expert},
                              "held twice by one rank; a second copy there serves nobody");
    last_rank[expert] = rank_of_slot[slot];
  }
  const auto absent = std::find(last_rank.begin(), last_rank.end(), -1);
  if (absent != last_rank.end())
    return invalid_argument({.expert = static_cast<int32_t>(absent - last_rank.begin())},
                            "has no slot");
  return {};
}

}  // namespace

Status validate(const Placement& placement, const Cluster& cluster, const UsageTrace& usage,
                bool allow_twins) {
  return guarded({.phase = Phase::plan}, [&]() -> Status {
    if (placement.layers.size() != usage.layers.size())
      return invalid_argument({}, "the placement has {} layers, the usage {}",
                              placement.layers.size(), usage.layers.size());
    const std::vector<int32_t> rank_of_slot = cluster.rank_of_slot();
    for (size_t i = 0; i < usage.layers.size(); ++i) {
      const Place place{.layer = usage.layers[i].layer, .phase = Phase::plan};
      if (const int32_t layer = placement.layers[i].layer; layer >= 0 && layer != place.layer)
        return invalid_argument(place, "the placement has layer {} where the usage has layer {}",
                                layer, place.layer);
      const Status status =
          validate_layer(placement.layers[i], rank_of_slot, usage.layers[i].experts(), allow_twins);
      if (!status.ok()) return status.at(place);
    }
    return {};
  });
}

Result<std::vector<int32_t>> expert_map(const LayerPlacement& placement, const Cluster& cluster,
                                        int32_t experts, int32_t rank) {
  return guarded({.rank = rank, .phase = Phase::plan}, [&]() -> Result<std::vector<int32_t>> {
    MOE_RETURN_IF_ERROR(validate(cluster));
    if (rank < 0 || rank >= cluster.ranks())
      return invalid_argument({}, "rank {}; the cluster has {}", rank, cluster.ranks());
    if (experts < 1) return invalid_argument({}, "{} experts; wanted 1 or more", experts);
    MOE_RETURN_IF_ERROR(validate_layer(placement, cluster.rank_of_slot(), experts, true));
    int64_t first = 0;
    for (int32_t r = 0; r < rank; ++r) first += cluster.slots[r];
    std::vector<int32_t> map(experts, -1);
    for (int32_t local = cluster.slots[rank] - 1; local >= 0; --local) {
      const int32_t expert = placement.expert_of_slot[first + local];
      if (expert >= 0) map[expert] = local;
    }
    return map;
  });
}

const char* to_string(Objective objective) {
  constexpr const char* kNames[] = {"auto", "tokens", "active", "traffic"};
  return kNames[static_cast<int>(objective)];
}

}  // namespace moe
