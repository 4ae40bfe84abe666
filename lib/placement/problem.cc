#include <algorithm>

#include "placement/layer.h"

namespace moe::placement {
namespace {
// So many tokens of all ranks together that compute is the limit: every expert gets a multiple of
// the rows whose arithmetic takes as long as reading its weights.
int64_t many_tokens(const Workload& w, const Cluster& cluster, int32_t experts) {
  constexpr double kPerRank = 4096, kBeyondCrossover = 4;
  const DeviceRates& device = cluster.device;
  const double crossover = w.flops_per_row > 0 ? device.flops_per_second * w.expert_bytes /
                                                     (device.bytes_per_second * w.flops_per_row)
                                               : 0;
  const double tokens = std::max(kPerRank * cluster.ranks(),
                                 kBeyondCrossover * crossover * experts / std::max(w.top_k, 1));
  return static_cast<int64_t>(std::min(tokens, 1e15));
}

Status validate_workload(const Workload& w, const LayerUsage& usage) {
  const Place place{.layer = usage.layer, .phase = Phase::plan};
  if (w.tokens_per_step < 0)
    return invalid_argument(place, "tokens_per_step is {}; wanted 0 or more", w.tokens_per_step);
  if (w.top_k < 0 || w.top_k > usage.experts())
    return invalid_argument(place, "top_k is {}, but the layer has {} experts", w.top_k,
                            usage.experts());
  if (w.groups < 1 || usage.experts() % w.groups != 0)
    return invalid_argument(place, "{} experts do not divide into {} groups", usage.experts(),
                            w.groups);
  if (w.groups_per_token < 0 || w.groups_per_token > w.groups)
    return invalid_argument(place, "groups_per_token is {}, but there are {} groups",
                            w.groups_per_token, w.groups);
  for (double value : {w.expert_bytes, w.flops_per_row, w.dispatch_bytes, w.combine_bytes})
    if (!(value >= 0 && value < 1e18))
      return invalid_argument(place, "a workload size is {}; wanted 0 <= size < 1e18", value);
  return {};
}
}  // namespace

Status validate(const PlacementProblem& problem) {
  MOE_RETURN_IF_ERROR(moe::validate(problem.cluster));
  MOE_RETURN_IF_ERROR(moe::validate(problem.usage));
  const int64_t slots = problem.cluster.total_slots();
  for (const LayerUsage& layer : problem.usage.layers) {
    MOE_RETURN_IF_ERROR(validate_workload(problem.workload, layer));
    if (slots < layer.experts())
      return error(StatusCode::failed_precondition, {.layer = layer.layer, .phase = Phase::plan},
                   "the cluster has {} slots per layer for {} experts; add slots or ranks", slots,
                   layer.experts());
  }
  if (problem.previous)
    return moe::validate(*problem.previous, problem.cluster, problem.usage, true);
  return {};
}

Workload resolved(const PlacementProblem& problem) {
  Workload w = problem.workload;
  int32_t experts = INT32_MAX, most = 0;
  for (const LayerUsage& layer : problem.usage.layers) {
    experts = std::min(experts, layer.experts());
    most = std::max(most, layer.experts());
  }
  if (w.top_k == 0) w.top_k = problem.usage.top_k > 0 ? problem.usage.top_k : 8;
  w.top_k = std::min(w.top_k, experts);
  if (w.tokens_per_step == 0) w.tokens_per_step = many_tokens(w, problem.cluster, most);
  if (w.groups_per_token == 0) w.groups_per_token = (w.groups + 1) / 2;
  // Too few groups for top_k distinct experts would leave tokens short.
  while (w.groups_per_token < w.groups && w.groups_per_token * (experts / w.groups) < w.top_k)
    ++w.groups_per_token;
  return w;
}

LayerProblem layer_problem(const PlacementProblem& problem, const Workload& workload,
                           size_t layer) {
  return {problem.usage.layers[layer], problem.cluster, workload,
          problem.previous ? &problem.previous->layers[layer] : nullptr};
}

}  // namespace moe::placement
