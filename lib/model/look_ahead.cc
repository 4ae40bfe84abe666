// Guesses whom the next layer will need, for the store to load meanwhile.
#include <algorithm>

#include "core/error.h"
#include "core/rows.h"
#include "model/stages.h"
#include "router/cpu_router.h"

namespace moe {
namespace {

constexpr int64_t kMostRows = 32;  // that are routed; a guess need not see all

// The next layer's gate on this layer's rows. Anything it cannot do is no guess.
Status ask_next_gate(LayerForward& f, StoreLayer& next) {
  const RouterSpec& spec = next.spec.router;
  if (next.spec.hidden() != f.layer.spec.hidden()) return {};
  VersionsHold held;
  std::shared_ptr<const LayerVersions> versions;
  {
    auto lock = f.store.locked();
    versions = next.serving;
    held.hold(versions);
  }
  const int64_t start = f.services.clock().now_ns();
  const int64_t rows = std::min(kMostRows, f.hidden.shape[0]);
  const size_t pairs = static_cast<size_t>(rows * spec.top_k);
  LookAhead& ahead = f.look_ahead;
  ahead.ids.resize(pairs);
  ahead.weights.resize(pairs);
  const size_t scratch =
      route_workspace_bytes(spec, next.spec.hidden(), rows, f.services.executor().concurrency());
  if (ahead.scratch.size() < scratch) {
    MOE_ASSIGN_OR_RETURN(
        ahead.scratch, Buffer::allocate(f.services.memory(), scratch, "a guess at the next layer"));
  }
  RouteInput input;
  input.layer = next.spec.layer;
  input.hidden = rows_of(f.options.router_input.data ? f.options.router_input : f.hidden, 0, rows);
  input.top_k = spec.top_k;
  input.executor = &f.services.executor();
  input.workspace = ahead.scratch.span();
  RouteCounts counts;
  MOE_RETURN_IF_ERROR(route_cpu(spec, versions->block->router, input,
                                {rows, spec.top_k, ahead.ids.data(), ahead.weights.data()},
                                &counts));
  ahead.experts.gather(ahead.ids.data(), nullptr, rows, spec.top_k, spec.num_experts);
  const auto chosen = ahead.experts.distinct();
  f.store.prefetch(next, chosen.first(std::min(chosen.size(), static_cast<size_t>(spec.top_k))),
                   f.services.clock().now_ns() - start);
  return {};
}

}  // namespace

void look_ahead(LayerForward& f) {
  f.store.prefetch_predicted(f.layer);
  StoreLayer* next = f.store.layer_to_prefetch(f.layer, PrefetchKind::next_gate);
  if (next) (void)guarded({}, [&] { return ask_next_gate(f, *next); });
}

}  // namespace moe
