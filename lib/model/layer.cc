// The path of a batch through one layer:
//
//   hidden (tokens, hidden)
//     -> route            expert ids and weights (tokens, top_k)
//     -> experts          grouped by slot: gate and up, activation, down     (pairs, hidden)
//        shared experts   every row, in the same pass                       (tokens, hidden)
//     -> weighted sum     ascending in expert index -> out                  (tokens, hidden)
//
// What serves an expert is read from one table, pinned while it is used. A layer with fewer slots
// than experts goes through waves, each with what it could lease.
#include "model/layer.h"

#include <algorithm>

#include "core/error.h"
#include "core/rows.h"
#include "model/combine.h"
#include "model/stages.h"

namespace moe {
namespace {

Status check_deadline(const LayerForward& f, Phase phase) {
  if (f.services.clock().now_ns() <= f.deadline_at_ns) return {};
  return Status(StatusCode::deadline_exceeded, "the forward's deadline passed",
                {.layer = f.layer.spec.layer, .phase = phase});
}

void run_combine(LayerForward& f, Chunk chunk, bool with_shared) {
  StageTimer timer(f.services.clock(), f.report.combine_ns);
  const LayerSpec& spec = f.layer.spec;
  const int64_t first_pair = chunk.first * f.top_k;
  CombineArgs args;
  args.hidden = rows_of(f.hidden, chunk.first, chunk.count);
  args.out = rows_of(f.out, chunk.first, chunk.count);
  args.accumulate = f.options.accumulate;
  args.top_k = f.top_k;
  args.num_experts = spec.router.num_experts;
  args.ids = f.work.ids.data() + first_pair;
  args.weights = f.work.weights.data() + first_pair;
  args.weights_on_input = spec.router.weight_on_input;
  args.rows = f.work.rows.data();
  if (spec.shared) args.routed_scale = spec.shared->routed_scale;
  if (with_shared) {
    args.shared = f.work.shared_rows.data();
    args.shared_gate = spec.shared->sigmoid_gate ? f.work.shared_gate.data() : nullptr;
    args.shared_scale = spec.shared->shared_scale;
  }
  args.executor = &f.services.executor();
  args.order = f.work.order;
  combine(args);
}

// Runs `experts(chunk, shared)`, the shared expert and the weighted sum, chunk after chunk.
template <class Experts>
Status compute(LayerForward& f, Experts experts) {
  const bool with_shared = f.layer.shared.gemm && !f.options.skip_shared;
  const int64_t rows = f.hidden.shape[0];
  const int64_t step = chunk_tokens(f.layer.spec, {rows, f.top_k, 1});
  for (int64_t first = 0; first < rows; first += step) {
    const Chunk chunk{first, std::min(step, rows - first)};
    MOE_RETURN_IF_ERROR(check_deadline(f, Phase::compute));
    SharedExpert shared = with_shared ? SharedExpert(f, chunk) : SharedExpert();
    MOE_RETURN_IF_ERROR(experts(chunk, shared));
    MOE_RETURN_IF_ERROR(shared.run(f));
    run_combine(f, chunk, with_shared);
  }
  return {};
}

// Which versions serve which rows.
void choose_versions(LayerForward& f, const ExpertTable& table) {
  f.versions.of[0] = table.versions.get();
  int64_t tried = 0;
  const int64_t rows = f.hidden.shape[0];
  for (int64_t t = 0; t < rows && table.share > 0 && f.options.request_ids; ++t) {
    const bool side = share_point(f.options.request_ids[t]) < table.share;
    f.work.side[static_cast<size_t>(t)] = side;
    tried += side;
  }
  f.report.candidate_rows = tried;
  f.versions.split = tried > 0;
  if (tried > 0) f.versions.of[1] = table.candidate.versions.get();
}

}  // namespace

Status forward_layer(LayerForward& f) {
  VersionsHold held[2];  // one choice for all waves
  {
    const EpochPin pin(f.reader, f.store.schedule);
    const ExpertTable& table = ExpertStore::Impl::table(f.layer);
    f.report.epoch = table.epoch;
    f.report.rows = f.hidden.shape[0];
    choose_versions(f, table);
    MOE_RETURN_IF_ERROR(route(f));
    if (f.store.schedule) f.store.schedule->point("compute");
    if (table.resident)
      return compute(f, [&](Chunk chunk, SharedExpert& shared) {
        return run_resident(f, table, chunk, shared);
      });
    held[0].hold(table.versions);
    held[1].hold(table.candidate.versions);
  }
  tell_eviction_policy(f);
  return compute(f, [&](Chunk chunk, SharedExpert& shared) { return run_paged(f, chunk, shared); });
}

}  // namespace moe
