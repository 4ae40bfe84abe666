// Who computes which row: replayed, asked of the host's router, or decided by the built-in rule.
#include <algorithm>

#include "core/error.h"
#include "model/stages.h"
#include "router/cpu_router.h"

namespace moe {
namespace {

Status replay(LayerForward& f, const Routing& out) {
  const Routing& in = *f.options.routing_in;
  const int32_t candidates = f.layer.spec.router.candidates();
  const int64_t pairs = out.tokens * out.top_k;
  for (int64_t p = 0; p < pairs; ++p)
    if (in.ids[p] < -1 || in.ids[p] >= candidates)
      return invalid_argument(
          {.layer = f.layer.spec.layer, .phase = Phase::route},
          "routing_in.ids[{}] is {}; layer {} has candidates 0 to {} (-1: none)", p, in.ids[p],
          f.layer.spec.layer, candidates - 1);
  std::copy_n(in.ids, pairs, out.ids);
  std::copy_n(in.weights, pairs, out.weights);
  return {};
}

// Every row by the rule, with the router weights of `block`.
Status route_by(LayerForward& f, const LayerBlock& block, const Routing& out) {
  RouteInput input;
  input.layer = f.layer.spec.layer;
  input.hidden = f.options.router_input.data ? f.options.router_input : f.hidden;
  input.hidden.shape[0] = out.tokens;
  input.logits = f.options.router_logits;
  if (input.logits.data) input.logits.shape[0] = out.tokens;
  input.token_ids = f.options.token_ids;
  input.top_k = f.top_k;
  input.expert_mask = f.options.expert_mask;
  input.executor = &f.services.executor();
  input.workspace = f.work.scratch;
  RouteCounts counts;
  const Status status = f.own_router
                            ? f.own_router->route(input, out, &counts)
                            : route_cpu(f.layer.spec.router, block.router, input, out, &counts);
  f.report.nonfinite_rows = counts.nonfinite_rows;
  f.report.short_rows = counts.short_rows;
  f.report.dropped = counts.dropped;
  return status.at({.layer = f.layer.spec.layer, .phase = Phase::route});
}

}  // namespace

Status route(LayerForward& f) {
  StageTimer timer(f.services.clock(), f.report.route_ns);
  const Routing out{f.hidden.shape[0], f.top_k, f.work.ids.data(), f.work.weights.data()};
  if (f.options.routing_in) return replay(f, out);
  const LayerBlock& block = *f.versions.of[0]->block;
  if (!f.versions.split || f.own_router || f.versions.of[1]->block == f.versions.of[0]->block)
    return route_by(f, block, out);
  // Each row as if the whole batch were served by its version.
  const Routing tried{out.tokens, out.top_k, f.work.side_ids.data(), f.work.side_weights.data()};
  MOE_RETURN_IF_ERROR(route_by(f, *f.versions.of[1]->block, tried));
  MOE_RETURN_IF_ERROR(route_by(f, block, out));
  for (int64_t t = 0; t < out.tokens; ++t) {
    if (!f.work.side[static_cast<size_t>(t)]) continue;
    std::copy_n(tried.ids + t * f.top_k, f.top_k, out.ids + t * f.top_k);
    std::copy_n(tried.weights + t * f.top_k, f.top_k, out.weights + t * f.top_k);
  }
  return {};
}

}  // namespace moe
