#include <algorithm>
#include <map>

#include "core/error.h"
#include "moe/rebalance.h"

namespace moe {
namespace {

// Where one layer's experts were and are wanted, in order of slots.
struct LayerMove {
  const std::vector<int32_t>& rank_of_slot;
  const LayerPlacement& previous;
  const LayerPlacement& next;

  // First slot of each rank that holds `expert` in `placement`, in order of appearance.
  std::vector<int32_t> holders(const LayerPlacement& placement, int32_t expert) const {
    std::vector<int32_t> slots;
    for (size_t s = 0; s < placement.expert_of_slot.size(); ++s)
      if (placement.expert_of_slot[s] == expert &&
          (slots.empty() || rank_of_slot[slots.back()] != rank_of_slot[s]))
        slots.push_back(static_cast<int32_t>(s));
    return slots;
  }
};

// The owner that serves the j-th of `wanted` new ranks: equal blocks, the remainder in turn.
int32_t sender(int32_t j, int32_t owners, int32_t wanted) {
  const int32_t each = wanted / owners;
  return j < each * owners ? j / each : j - each * owners;
}

Status plan_layer(const LayerMove& move, std::vector<Transfer>& transfers) {
  const auto& before = move.previous.expert_of_slot;
  const auto& after = move.next.expert_of_slot;
  std::map<int32_t, std::vector<int32_t>> changed;  // expert: slots to fill
  for (size_t s = 0; s < after.size(); ++s)
    if (after[s] >= 0 && after[s] != before[s])
      changed[after[s]].push_back(static_cast<int32_t>(s));

  std::vector<Transfer> layer;
  for (const auto& [expert, slots] : changed) {
    const std::vector<int32_t> owners = move.holders(move.previous, expert);
    if (owners.empty())
      return error(StatusCode::failed_precondition, {.expert = expert},
                   "has no copy in the previous placement to take it from");
    const auto owned_by = [&](int32_t rank) {
      return std::find_if(owners.begin(), owners.end(),
                          [&](int32_t slot) { return move.rank_of_slot[slot] == rank; });
    };
    std::vector<int32_t> receivers;  // ranks, in order
    for (int32_t slot : slots) {
      const int32_t rank = move.rank_of_slot[slot];
      if (owned_by(rank) == owners.end() && (receivers.empty() || receivers.back() != rank))
        receivers.push_back(rank);
    }
    int32_t received_rank = -1, received_slot = -1;
    for (int32_t slot : slots) {
      const int32_t rank = move.rank_of_slot[slot];
      Transfer transfer{move.next.layer, expert, rank, received_slot, rank, slot};
      if (const auto own = owned_by(rank); own != owners.end()) {
        transfer.from_slot = *own;
      } else if (rank != received_rank) {
        const auto j = std::find(receivers.begin(), receivers.end(), rank) - receivers.begin();
        transfer.from_slot =
            owners[sender(static_cast<int32_t>(j), static_cast<int32_t>(owners.size()),
                          static_cast<int32_t>(receivers.size()))];
        transfer.from_rank = move.rank_of_slot[transfer.from_slot];
        received_rank = rank;
        received_slot = slot;
      }
      layer.push_back(transfer);
    }
  }
  std::sort(layer.begin(), layer.end(),
            [](const Transfer& a, const Transfer& b) { return a.to_slot < b.to_slot; });
  transfers.insert(transfers.end(), layer.begin(), layer.end());
  return {};
}

Status validate_pair(const Placement& previous, const Placement& next, const Cluster& cluster) {
  MOE_RETURN_IF_ERROR(validate(cluster));
  if (previous.layers.size() != next.layers.size())
    return invalid_argument({}, "{} layers before, {} after", previous.layers.size(),
                            next.layers.size());
  for (size_t l = 0; l < next.layers.size(); ++l)
    for (const Placement* placement : {&previous, &next})
      if (placement->layers[l].expert_of_slot.size() != static_cast<size_t>(cluster.total_slots()))
        return invalid_argument({.layer = next.layers[l].layer},
                                "{} slots in a placement; the cluster has {}",
                                placement->layers[l].expert_of_slot.size(), cluster.total_slots());
  return {};
}

// Experts that stay on a rank keep their first old slot; the others fill the rest in order.
LayerPlacement preserve_layer(const LayerPlacement& previous, const LayerPlacement& next,
                              const Cluster& cluster) {
  LayerPlacement out{next.layer, std::vector<int32_t>(next.expert_of_slot.size(), -1)};
  int64_t first = 0;
  for (int32_t slots : cluster.slots) {
    std::vector<int32_t> rest(next.expert_of_slot.begin() + first,
                              next.expert_of_slot.begin() + first + slots);
    std::vector<uint8_t> kept(slots, 0);
    for (int32_t i = 0; i < slots; ++i) {
      const int32_t expert = previous.expert_of_slot[first + i];
      const auto found = std::find(rest.begin(), rest.end(), expert);
      if (found == rest.end()) continue;
      out.expert_of_slot[first + i] = expert;
      kept[i] = 1;
      rest.erase(found);
    }
    auto next_expert = rest.begin();
    for (int32_t i = 0; i < slots; ++i)
      if (!kept[i]) out.expert_of_slot[first + i] = *next_expert++;
    first += slots;
  }
  return out;
}

}  // namespace

Result<std::vector<Transfer>> plan_transfers(const Placement& previous, const Placement& next,
                                             const Cluster& cluster) {
  return guarded({.phase = Phase::plan}, [&]() -> Result<std::vector<Transfer>> {
    MOE_RETURN_IF_ERROR(validate_pair(previous, next, cluster));
    const std::vector<int32_t> rank_of_slot = cluster.rank_of_slot();
    std::vector<Transfer> transfers;
    for (size_t l = 0; l < next.layers.size(); ++l) {
      const Status status =
          plan_layer({rank_of_slot, previous.layers[l], next.layers[l]}, transfers);
      if (!status.ok()) return status.at({.layer = next.layers[l].layer});
    }
    return transfers;
  });
}

int64_t moved_copies(std::span<const Transfer> transfers) {
  return std::count_if(transfers.begin(), transfers.end(),
                       [](const Transfer& t) { return t.from_rank != t.to_rank; });
}

std::vector<size_t> transfer_steps(std::span<const Transfer> transfers, double expert_bytes,
                                   double bytes_per_step) {
  std::vector<size_t> ends;
  double step_bytes = 0;
  for (size_t i = 0; i < transfers.size();) {
    size_t end = i;  // of the layer
    double bytes = 0;
    for (; end < transfers.size() && transfers[end].layer == transfers[i].layer; ++end)
      bytes += transfers[end].from_rank != transfers[end].to_rank ? expert_bytes : 0;
    if (i > 0 && step_bytes + bytes > bytes_per_step) {
      ends.push_back(i);
      step_bytes = 0;
    }
    step_bytes += bytes;
    i = end;
  }
  if (!transfers.empty()) ends.push_back(transfers.size());
  return ends;
}

Result<Placement> preserve_slots(const Placement& previous, const Placement& next,
                                 const Cluster& cluster) {
  return guarded({.phase = Phase::plan}, [&]() -> Result<Placement> {
    MOE_RETURN_IF_ERROR(validate_pair(previous, next, cluster));
    Placement out;
    for (size_t l = 0; l < next.layers.size(); ++l)
      out.layers.push_back(preserve_layer(previous.layers[l], next.layers[l], cluster));
    return out;
  });
}

}  // namespace moe
