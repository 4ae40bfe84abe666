#include "placement/eplb.h"

#include <algorithm>
#include <numeric>
#include <queue>
#include <utility>

#include "placement/layer.h"

namespace moe {
namespace placement {
namespace {

// (key, index): smallest key first, then lowest index.
using Queue = std::priority_queue<std::pair<float, int32_t>, std::vector<std::pair<float, int32_t>>,
                                  std::greater<>>;

}  // namespace

std::vector<int32_t> descending(std::span<const float> weight) {
  std::vector<int32_t> order(weight.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return weight[a] > weight[b]; });
  return order;
}

Packing sorted_packing(std::span<const float> weight, int32_t packs) {
  const auto items = static_cast<int32_t>(weight.size());
  const int32_t capacity = items / packs;
  Packing out{std::vector<int32_t>(items), std::vector<int32_t>(items)};
  Queue lightest;
  for (int32_t p = 0; p < packs; ++p) lightest.emplace(0.0f, p);
  std::vector<int32_t> used(packs, 0);
  for (int32_t item : descending(weight)) {
    const auto [load, pack] = lightest.top();
    lightest.pop();
    out.pack[item] = pack;
    out.place[item] = used[pack]++;
    if (used[pack] < capacity) lightest.emplace(load + weight[item], pack);
  }
  return out;
}

Packing balanced_packing(std::span<const float> weight, int32_t packs) {
  if (weight.size() != static_cast<size_t>(packs)) return sorted_packing(weight, packs);
  Packing out{std::vector<int32_t>(packs), std::vector<int32_t>(packs, 0)};
  std::iota(out.pack.begin(), out.pack.end(), 0);
  return out;
}

Replicas replicate(std::span<const float> weight, int32_t slots) {
  const auto experts = static_cast<int32_t>(weight.size());
  Replicas out{std::vector<int32_t>(experts), std::vector<int32_t>(experts, 1)};
  std::iota(out.expert.begin(), out.expert.end(), 0);
  Queue heaviest;  // by negated weight per copy
  for (int32_t e = 0; e < experts; ++e) heaviest.emplace(-weight[e], e);
  for (int32_t slot = experts; slot < slots; ++slot) {
    const int32_t expert = heaviest.top().second;
    heaviest.pop();
    out.expert.push_back(expert);
    heaviest.emplace(-(weight[expert] / static_cast<float>(++out.count[expert])), expert);
  }
  return out;
}

std::vector<int32_t> order_by_node(std::span<const float> weight, int32_t groups, int32_t nodes,
                                   Packing (*pack)(std::span<const float>, int32_t)) {
  const auto experts = static_cast<int32_t>(weight.size());
  const int32_t group_size = experts / groups;
  std::vector<float> group_load(groups, 0.0f);
  for (int32_t e = 0; e < experts; ++e) group_load[e / group_size] += weight[e];
  const Packing by_node = pack(group_load, nodes);
  std::vector<int32_t> order(experts);
  for (int32_t e = 0; e < experts; ++e) {
    const int32_t g = e / group_size;
    order[(by_node.pack[g] * (groups / nodes) + by_node.place[g]) * group_size + e % group_size] =
        e;
  }
  return order;
}

std::vector<int32_t> eplb(std::span<const float> weight, int32_t slots, int32_t groups,
                          int32_t nodes, int32_t ranks) {
  const auto node_experts = static_cast<int32_t>(weight.size()) / nodes;
  // 1. Groups to nodes.
  const std::vector<int32_t> order = order_by_node(weight, groups, nodes, balanced_packing);
  const int32_t node_slots = slots / nodes, node_ranks = ranks / nodes;
  std::vector<int32_t> out(slots);
  std::vector<float> node_weight(node_experts), share(node_slots);
  for (int32_t n = 0; n < nodes; ++n) {
    // 2. Replicas inside the node.
    const int32_t* members = order.data() + static_cast<ptrdiff_t>(n) * node_experts;
    for (int32_t i = 0; i < node_experts; ++i) node_weight[i] = weight[members[i]];
    const Replicas replicas = replicate(node_weight, node_slots);
    // 3. Slots to the node's ranks.
    for (int32_t s = 0; s < node_slots; ++s) {
      const int32_t i = replicas.expert[s];
      share[s] = node_weight[i] / static_cast<float>(replicas.count[i]);
    }
    const Packing by_rank = balanced_packing(share, node_ranks);
    for (int32_t s = 0; s < node_slots; ++s)
      out[n * node_slots + by_rank.pack[s] * (node_slots / node_ranks) + by_rank.place[s]] =
          members[replicas.expert[s]];
  }
  return out;
}

Status eplb_applies(const Cluster& cluster, bool hierarchical) {
  const auto refused = [](const char* what) {
    return error(StatusCode::failed_precondition, {.phase = Phase::plan},
                 "EPLB needs {}; the strategies \"balanced\" and \"auto\" do not", what);
  };
  for (int32_t slots : cluster.slots)
    if (slots != cluster.slots[0]) return refused("equal numbers of slots on all ranks");
  if (!hierarchical) return {};
  std::vector<int32_t> size(cluster.nodes(), 0);
  for (int32_t r = 0; r < cluster.ranks(); ++r) ++size[cluster.node(r)];
  for (int32_t n : size)
    if (n != size[0]) return refused("equal numbers of ranks on all nodes");
  return {};
}

namespace {

Result<Placement> place_with(const PlacementProblem& problem, bool hierarchical) {
  return place_each_layer(problem, [&](const LayerProblem& layer) -> Result<LayerPlacement> {
    const Cluster& cluster = layer.cluster;
    const bool by_node = hierarchical && layer.workload.groups % cluster.nodes() == 0;
    MOE_RETURN_IF_ERROR(eplb_applies(cluster, by_node));
    const int32_t groups = by_node ? layer.workload.groups : 1;
    const int32_t nodes = by_node ? cluster.nodes() : 1;
    const std::vector<float> weight(layer.usage.tokens.begin(), layer.usage.tokens.end());
    const auto slots = static_cast<int32_t>(cluster.total_slots());
    return LayerPlacement{-1, eplb(weight, slots, groups, nodes, cluster.ranks())};
  });
}

}  // namespace
}  // namespace placement

Result<Placement> place_eplb(const PlacementProblem& problem) {
  return placement::place_with(problem, true);
}

Result<Placement> place_eplb_global(const PlacementProblem& problem) {
  return placement::place_with(problem, false);
}

}  // namespace moe
