#include "core/error.h"
#include "moe/replica_choice.h"

namespace moe {

const char* to_string(ReplicaChoice choice) {
  constexpr const char* kNames[] = {"fixed",        "nearest",  "round-robin", "position-hash",
                                    "least-loaded", "matching", "lp-split"};
  return kNames[static_cast<int>(choice)];
}

Result<ReplicaTable> replica_table(const LayerPlacement& placement, const Cluster& cluster,
                                   int32_t experts) {
  return guarded({.layer = placement.layer, .phase = Phase::plan}, [&]() -> Result<ReplicaTable> {
    MOE_RETURN_IF_ERROR(validate(cluster));
    const std::vector<int32_t> rank_of_slot = cluster.rank_of_slot();
    const std::vector<int32_t>& expert_of_slot = placement.expert_of_slot;
    if (experts < 1 || expert_of_slot.size() != rank_of_slot.size())
      return invalid_argument({}, "{} experts, {} slots; the cluster has {}", experts,
                              expert_of_slot.size(), rank_of_slot.size());
    ReplicaTable table{
        cluster.ranks(), std::vector<int32_t>(experts + 1, 0), {}, {}, cluster.node_of_rank};
    for (int32_t expert : expert_of_slot) {
      if (expert < -1 || expert >= experts)
        return invalid_argument({.expert = expert}, "wanted -1 to {}", experts - 1);
      if (expert >= 0) ++table.first[expert + 1];
    }
    for (int32_t e = 0; e < experts; ++e) table.first[e + 1] += table.first[e];
    table.slot.resize(table.first[experts]);
    table.rank.resize(table.first[experts]);
    std::vector<int32_t> next(table.first.begin(), table.first.end() - 1);
    for (size_t slot = 0; slot < expert_of_slot.size(); ++slot) {
      if (expert_of_slot[slot] < 0) continue;
      const int32_t copy = next[expert_of_slot[slot]]++;
      table.slot[copy] = static_cast<int32_t>(slot);
      table.rank[copy] = rank_of_slot[slot];
    }
    return table;
  });
}

}  // namespace moe
