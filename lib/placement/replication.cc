#include <cmath>
#include <utility>

#include "core/error.h"
#include "moe/rebalance.h"

namespace moe {

ReplicationController::ReplicationController(int32_t experts, const ReplicationOptions& options)
    : options_(options),
      replicas_(experts, options.min_replicas),
      above_(experts, 0),
      below_(experts, 0),
      quiet_(experts, options.hold) {}

Result<ReplicationController> ReplicationController::create(int32_t experts,
                                                            const ReplicationOptions& o) {
  return guarded({}, [&]() -> Result<ReplicationController> {
    if (experts < 1) return invalid_argument({}, "{} experts; wanted 1 or more", experts);
    if (!(o.remove_below >= 0 && o.remove_below < o.add_above))
      return invalid_argument({}, "remove_below {} must be below add_above {}", o.remove_below,
                              o.add_above);
    if (o.min_replicas < 1 || o.max_replicas < o.min_replicas || o.hold < 1)
      return invalid_argument({}, "{} to {} replicas, hold {}", o.min_replicas, o.max_replicas,
                              o.hold);
    return ReplicationController(experts, o);
  });
}

Result<std::vector<ReplicaChange>> ReplicationController::observe(std::span<const double> load) {
  return guarded({}, [&]() -> Result<std::vector<ReplicaChange>> {
    if (load.size() != replicas_.size())
      return invalid_argument({}, "{} loads for {} experts", load.size(), replicas_.size());
    for (double x : load)
      if (!(x >= 0) || !std::isfinite(x)) return invalid_argument({}, "a load is {}", x);
    std::vector<ReplicaChange> changes;
    changes.reserve(load.size());
    for (int32_t e = 0; e < static_cast<int32_t>(load.size()); ++e) {
      int32_t& copies = replicas_[e];
      const double utilisation = load[e] / copies;
      const bool removable =
          copies > options_.min_replicas && load[e] / (copies - 1) <= options_.add_above;
      above_[e] = utilisation > options_.add_above ? above_[e] + 1 : 0;
      below_[e] = utilisation < options_.remove_below && removable ? below_[e] + 1 : 0;
      ++quiet_[e];
      int32_t change = 0;
      if (quiet_[e] <= options_.hold) continue;
      if (above_[e] >= options_.hold && copies < options_.max_replicas) change = 1;
      if (below_[e] >= options_.hold) change = -1;
      if (change == 0) continue;
      copies += change;
      above_[e] = below_[e] = quiet_[e] = 0;
      changes.push_back({e, change});
    }
    return changes;
  });
}

bool OverloadGate::observe(double utilisation) {
  if (utilisation > open_above_) open_ = true;
  if (utilisation < close_below_) open_ = false;
  return open_;
}

Result<Placement> primaries(const Placement& placement, const Cluster& cluster) {
  return guarded({.phase = Phase::plan}, [&]() -> Result<Placement> {
    MOE_RETURN_IF_ERROR(validate(cluster));
    Placement out = placement;
    for (LayerPlacement& layer : out.layers) {
      if (layer.expert_of_slot.size() != static_cast<size_t>(cluster.total_slots()))
        return invalid_argument({.layer = layer.layer}, "{} slots; the cluster has {}",
                                layer.expert_of_slot.size(), cluster.total_slots());
      std::vector<uint8_t> seen;
      for (int32_t& expert : layer.expert_of_slot) {
        if (expert < 0) continue;
        if (seen.size() <= static_cast<size_t>(expert)) seen.resize(expert + 1, 0);
        if (std::exchange(seen[expert], 1)) expert = -1;
      }
    }
    return out;
  });
}

}  // namespace moe
