// Usage and yardsticks for planning with sets of experts, shared by tests and bench.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "moe/placement.h"
#include "placement/random.h"
#include "placement/subset.h"

namespace moe::test {

inline UsageTrace with_sets(ExpertSets sets, int32_t experts, int32_t top_k = 0) {
  LayerUsage layer{0, std::vector<double>(experts, 0.0)};
  for (int64_t i = 0; i < sets.size(); ++i)
    for (int32_t e : sets[i]) layer.tokens[e] += sets.counts[i];
  layer.sets = std::move(sets);
  return {top_k, {std::move(layer)}};
}

// Made up, of DBRX's shape: all 1,820 subsets of 4 of 16 experts. A subset's weight is the product
// of its experts' popularity and e^(spread x normal): few subsets hold most of it.
inline UsageTrace dbrx_like(uint64_t seed, double spread = 2) {
  placement::Random random(seed);
  const auto normal = [&] {  // Box and Muller
    const double u = 1 - random.uniform();
    return std::sqrt(-2 * std::log(u)) * std::cos(2 * M_PI * random.uniform());
  };
  std::vector<double> popularity(16);
  for (double& p : popularity) p = std::exp(0.5 * normal());
  ExpertSets sets;
  for (int32_t a = 0; a < 16; ++a)
    for (int32_t b = a + 1; b < 16; ++b)
      for (int32_t c = b + 1; c < 16; ++c)
        for (int32_t d = c + 1; d < 16; ++d)
          sets.add(std::vector<int32_t>{a, b, c, d}, popularity[a] * popularity[b] * popularity[c] *
                                                         popularity[d] *
                                                         std::exp(spread * normal()));
  return with_sets(std::move(sets), 16, 4);
}

// Every count to a power: above 1 the frequent sets dominate more, 0 makes all equal.
inline UsageTrace sharpened(UsageTrace usage, double power) {
  for (LayerUsage& layer : usage.layers) {
    ExpertSets sets = layer.sets;
    for (double& count : sets.counts) count = std::pow(count, power);
    const int32_t index = layer.layer;
    layer = with_sets(std::move(sets), layer.experts()).layers[0];
    layer.layer = index;
  }
  return usage;
}

// Expected time of a token in experts, the mean over the layers.
inline double mean_time(const UsageTrace& usage, const Cluster& cluster,
                        const Placement& placement) {
  double sum = 0;
  for (size_t l = 0; l < usage.layers.size(); ++l)
    sum += expected_set_time(usage.layers[l], cluster, placement.layers[l]).value();
  return sum / static_cast<double>(usage.layers.size());
}

// Experts shuffled into the slots, then random further copies: one placement of many.
inline Placement random_placement(const UsageTrace& usage, const Cluster& cluster,
                                  placement::Random& random) {
  const std::vector<int32_t> rank = cluster.rank_of_slot();
  const auto slots = static_cast<int64_t>(rank.size());
  Placement out;
  for (const LayerUsage& layer : usage.layers) {
    std::vector<int64_t> order(slots);
    std::iota(order.begin(), order.end(), 0);
    for (int64_t i = slots - 1; i > 0; --i) std::swap(order[i], order[random.below(i + 1)]);
    std::vector<int32_t> expert(slots, -1);
    std::vector<uint8_t> holds(static_cast<size_t>(layer.experts()) * cluster.ranks(), 0);
    for (int64_t i = 0; i < slots; ++i) {
      const int32_t r = rank[order[i]];
      int32_t e = i < layer.experts() ? static_cast<int32_t>(i)
                                      : static_cast<int32_t>(random.below(layer.experts()));
      for (int32_t tries = 0; tries < layer.experts() && holds[e * cluster.ranks() + r]; ++tries)
        e = (e + 1) % layer.experts();
      if (std::exchange(holds[e * cluster.ranks() + r], 1) == 0) expert[order[i]] = e;
    }
    out.layers.push_back({layer.layer, std::move(expert)});
  }
  return out;
}

// Marchal's greedy alone, without the search that follows it in place_subset().
inline Placement greedy_placement(const UsageTrace& usage, const Cluster& cluster) {
  Placement out;
  for (const LayerUsage& layer : usage.layers) {
    placement::SetPlan plan(cluster, layer.sets, layer.experts());
    place_greedily(plan);
    out.layers.push_back({layer.layer, plan.expert_of_slot()});
  }
  return out;
}

// place_subset() as for decoding, one token a step.
inline Result<Placement> subset_placement(const UsageTrace& usage, const Cluster& cluster) {
  PlacementProblem problem{usage, cluster};
  problem.workload.tokens_per_step = 1;
  return place_subset(problem);
}

}  // namespace moe::test
