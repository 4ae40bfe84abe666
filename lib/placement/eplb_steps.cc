#include <algorithm>

#include "placement/eplb.h"
#include "placement/layer.h"

namespace moe {
namespace placement {
namespace {

// One node's experts: their load in each step, and the copies that follow.
class StepReplicas {
 public:
  // `steps` is (steps, experts of the layer); `members` are the node's.
  StepReplicas(const std::vector<float>& steps, int32_t experts, std::span<const int32_t> members,
               int32_t first)
      : load_(steps.size() / experts), count_(members.size(), 1) {
    for (size_t t = 0; t < load_.size(); ++t)
      for (int32_t e : members) load_[t].push_back(steps[t * experts + e]);
    tie_.resize(members.size());
    for (size_t i = 0; i < members.size(); ++i)
      tie_[i] = static_cast<float>(first + static_cast<int32_t>(i)) * 1e-4f;
  }

  const std::vector<int32_t>& count() const { return count_; }

  // The expert whose next copy makes the sum over steps of the heaviest load smallest.
  int32_t add_copy() {
    std::vector<float> sum(count_.size(), 0.0f);
    for (const std::vector<float>& load : load_) {
      size_t heaviest = 0;
      float first = -1, second = -1;
      for (size_t i = 0; i < load.size(); ++i) {
        const float score = (load[i] + tie_[i]) / static_cast<float>(count_[i]);
        if (score > first)
          second = first, first = score, heaviest = i;
        else
          second = std::max(second, score);
      }
      for (float& total : sum) total += first;
      const float shared = load[heaviest] / static_cast<float>(count_[heaviest] + 1);
      sum[heaviest] += std::max(second, shared) - first;
    }
    const auto best = std::min_element(sum.begin(), sum.end()) - sum.begin();
    ++count_[best];
    return static_cast<int32_t>(best);
  }

 private:
  std::vector<std::vector<float>> load_;  // (steps, members)
  std::vector<int32_t> count_;            // (members)
  std::vector<float> tie_;                // published: scores must differ
};

// Descending shares dealt to the ranks to and fro.
std::vector<int32_t> deal(std::span<const float> share, int32_t ranks) {
  const std::vector<int32_t> order = descending(share);
  const auto per_rank = static_cast<int32_t>(order.size()) / ranks;
  std::vector<int32_t> out(order.size());
  for (int32_t row = 0; row < per_rank; ++row)
    for (int32_t i = 0; i < ranks; ++i)
      out[(row % 2 == 0 ? i : ranks - 1 - i) * per_rank + row] = order[row * ranks + i];
  return out;
}

Result<LayerPlacement> eplb_steps_layer(const LayerProblem& layer) {
  const Cluster& cluster = layer.cluster;
  const int32_t experts = layer.experts();
  const bool by_node = layer.workload.groups % cluster.nodes() == 0;
  MOE_RETURN_IF_ERROR(eplb_applies(cluster, by_node));
  const int32_t nodes = by_node ? cluster.nodes() : 1;
  const int32_t groups = by_node ? layer.workload.groups : 1;
  const std::vector<float> total(layer.usage.tokens.begin(), layer.usage.tokens.end());
  const std::vector<float>& steps = layer.usage.steps.empty() ? total : layer.usage.steps;
  const auto node_slots = static_cast<int32_t>(cluster.total_slots()) / nodes;
  const int32_t node_experts = experts / nodes;
  const std::vector<int32_t> order = order_by_node(total, groups, nodes, sorted_packing);

  LayerPlacement out;
  for (int32_t n = 0; n < nodes; ++n) {
    const std::span<const int32_t> members(order.data() + n * node_experts,
                                           static_cast<size_t>(node_experts));
    StepReplicas replicas(steps, experts, members, n * node_experts);
    std::vector<int32_t> slots(node_experts);  // indices into members
    for (int32_t i = 0; i < node_experts; ++i) slots[i] = i;
    while (static_cast<int32_t>(slots.size()) < node_slots) slots.push_back(replicas.add_copy());
    std::vector<float> share;
    for (int32_t i : slots)
      share.push_back(total[members[i]] / static_cast<float>(replicas.count()[i]));
    const int32_t ranks = cluster.ranks() / nodes;
    if (node_slots == ranks)  // as published: one slot a rank is not dealt
      for (int32_t i : slots) out.expert_of_slot.push_back(members[i]);
    else
      for (int32_t s : deal(share, ranks)) out.expert_of_slot.push_back(members[slots[s]]);
  }
  return out;
}

}  // namespace
}  // namespace placement

Result<Placement> place_eplb_steps(const PlacementProblem& problem) {
  return placement::place_each_layer(problem, placement::eplb_steps_layer);
}

}  // namespace moe
