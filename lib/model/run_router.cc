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

}  // namespace

Status route(LayerForward& f, const LayerBlock& block) {
  StageTimer timer(f.services.clock(), f.report.route_ns);
  const Routing out{f.hidden.shape[0], f.top_k, f.work.ids.data(), f.work.weights.data()};
  if (f.options.routing_in) return replay(f, out);
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

}  // namespace moe
