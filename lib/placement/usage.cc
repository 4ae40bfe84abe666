#include "moe/usage.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"

namespace moe {

void ExpertSets::add(std::span<const int32_t> set, double count) {
  experts.insert(experts.end(), set.begin(), set.end());
  first.push_back(static_cast<int64_t>(experts.size()));
  counts.push_back(count);
}

double ExpertSets::total() const { return std::accumulate(counts.begin(), counts.end(), 0.0); }

ExpertSets prune(const ExpertSets& sets, double coverage) {
  std::vector<int64_t> order(sets.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return sets.counts[a] > sets.counts[b]; });
  const double wanted = coverage * sets.total() * (1 - 1e-12);
  ExpertSets kept;
  double sum = 0;
  for (int64_t set : order) {
    if (sum >= wanted) break;
    kept.add(sets[set], sets.counts[set]);
    sum += sets.counts[set];
  }
  return kept;
}

namespace {
bool count_ok(double count) { return count >= 0 && std::isfinite(count); }

Status validate_sets(const ExpertSets& sets, int32_t experts) {
  const size_t size = sets.counts.size();
  if (sets.first.size() != size + 1 || sets.first.front() != 0 ||
      sets.first.back() != static_cast<int64_t>(sets.experts.size()) ||
      !std::is_sorted(sets.first.begin(), sets.first.end()))
    return invalid_argument({}, "the sets' index does not fit: {} counts, {} bounds, {} experts",
                            size, sets.first.size(), sets.experts.size());
  for (int64_t i = 0; i < sets.size(); ++i) {
    int32_t last = -1;
    for (int32_t expert : sets[i]) {
      if (expert <= last || expert >= experts)
        return invalid_argument({}, "set {} holds expert {} after {}; wanted ascending below {}", i,
                                expert, last, experts);
      last = expert;
    }
    if (!count_ok(sets.counts[i]))
      return invalid_argument({}, "set {} was counted {} times", i, sets.counts[i]);
  }
  return {};
}

Status validate_layer(const LayerUsage& layer) {
  if (layer.tokens.empty()) return invalid_argument({}, "has no experts");
  for (int32_t e = 0; e < layer.experts(); ++e)
    if (!count_ok(layer.tokens[e]))
      return invalid_argument({.expert = e}, "was counted {} times", layer.tokens[e]);
  if (layer.steps.size() % layer.tokens.size() != 0)
    return invalid_argument({}, "steps has {} entries; wanted a multiple of {} experts",
                            layer.steps.size(), layer.tokens.size());
  for (size_t i = 0; i < layer.steps.size(); ++i)
    if (!count_ok(layer.steps[i]))
      return invalid_argument({}, "entry {} of steps is {}", i, layer.steps[i]);
  return validate_sets(layer.sets, layer.experts());
}
}  // namespace

Status validate(const UsageTrace& usage) {
  if (usage.layers.empty())
    return invalid_argument({.phase = Phase::plan}, "the usage has no layers");
  if (usage.top_k < 0)
    return invalid_argument({.phase = Phase::plan}, "the usage's top_k is {}", usage.top_k);
  for (size_t i = 0; i < usage.layers.size(); ++i) {
    const int32_t index = usage.layers[i].layer;
    const Place place{.layer = index, .phase = Phase::plan};
    if (i > 0 && index <= usage.layers[i - 1].layer)
      return invalid_argument(place, "comes after layer {}; wanted ascending layers",
                              usage.layers[i - 1].layer);
    if (Status status = validate_layer(usage.layers[i]); !status.ok()) return status.at(place);
  }
  return {};
}

}  // namespace moe
