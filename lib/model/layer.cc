#include "model/layer.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/rows.h"
#include "model/combine.h"
#include "quant/half.h"
#include "router/cpu_router.h"
#include "router/permute.h"

namespace moe {
namespace {

// Rows [first, first + count) of a batch.
struct Chunk {
  int64_t first = 0;
  int64_t count = 0;
};

// Adds the time since construction to a counter.
class StageTimer {
 public:
  StageTimer(const Clock& clock, int64_t& total)
      : clock_(clock), total_(total), start_(clock.now_ns()) {}
  ~StageTimer() { total_ += clock_.now_ns() - start_; }

 private:
  const Clock& clock_;
  int64_t& total_;
  int64_t start_;
};

Status check_deadline(const LayerForward& f, Phase phase) {
  if (f.services.clock().now_ns() <= f.deadline_at_ns) return {};
  return Status(StatusCode::deadline_exceeded, "the forward's deadline passed",
                {.layer = f.layer.spec.layer, .phase = phase});
}

// ---- route

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

// ---- experts

// Runs `batch`, all groups at once or one after the other.
Status run_groups(const LayerForward& f, const ExpertGemm& gemm, const ExpertSpec& spec,
                  ExpertBatch batch) {
  batch.executor = &f.services.executor();
  batch.workspace = f.work.scratch;
  if (f.execution == Execution::grouped) return gemm.run(spec, batch);
  const std::span<const ExpertGroup> groups = batch.groups;
  for (size_t g = 0; g < groups.size(); ++g) {
    batch.groups = groups.subspan(g, 1);
    MOE_RETURN_IF_ERROR(gemm.run(spec, batch));
  }
  return {};
}

// The chunk's pairs by expert, ascending. Slots are filled in by the wave.
std::span<ExpertGroup> make_groups(LayerForward& f, Chunk chunk) {
  const int32_t experts = f.layer.spec.router.num_experts;
  const std::span<int64_t> first = f.work.first_pair;
  group_pairs(f.work.ids.data() + chunk.first * f.top_k, chunk.count * f.top_k, experts,
              first.data(), f.work.pairs.data());
  size_t groups = 0;
  for (int32_t e = 0; e < experts; ++e) {
    const int64_t begin = first[static_cast<size_t>(e)], end = first[static_cast<size_t>(e) + 1];
    if (end > begin) f.work.groups[groups++] = {nullptr, e, begin, end - begin};
  }
  return f.work.groups.first(groups);
}

Status run_wave(LayerForward& f, Chunk chunk, std::span<const ExpertGroup> groups) {
  const LayerSpec& spec = f.layer.spec;
  ExpertBatch batch;
  batch.hidden = rows_of(f.hidden, chunk.first, chunk.count);
  batch.top_k = f.top_k;
  batch.groups = groups;
  batch.pairs = f.work.pairs.data();
  if (spec.router.weight_on_input)
    batch.input_weights = f.work.weights.data() + chunk.first * f.top_k;
  batch.out = f.work.rows.data();
  return run_groups(f, *f.layer.routed.gemm, spec.expert, batch);
}

// Every expert is resident: the table that is pinned serves them all.
Status run_resident(LayerForward& f, const ExpertTable& table, Chunk chunk) {
  StageTimer timer(f.services.clock(), f.report.experts_ns);
  const std::span<ExpertGroup> groups = make_groups(f, chunk);
  for (ExpertGroup& group : groups)
    group.slot = table.experts[static_cast<size_t>(group.expert)].slot;
  return run_wave(f, chunk, groups);
}

// ---- experts of a paged layer

// Tells the eviction policy which experts the batch uses, in the order of first use.
void tell_policy(LayerForward& f) {
  const int32_t experts = f.layer.spec.router.num_experts;
  std::fill(f.work.seen.begin(), f.work.seen.end(), uint8_t{0});
  size_t count = 0;
  for (int32_t id : f.work.ids) {
    if (id < 0 || id >= experts || f.work.seen[static_cast<size_t>(id)]) continue;
    f.work.seen[static_cast<size_t>(id)] = 1;
    f.work.needed[count++] = id;
  }
  f.store.accessed(f.layer, f.work.needed.first(count));
}

// Takes the wave's groups out of `groups`, whose rest stays in order. Both ascend in expert.
std::span<ExpertGroup> take_wave(LayerForward& f, std::span<ExpertGroup>* groups) {
  size_t taken = 0, left = 0;
  for (ExpertGroup& group : *groups) {
    if (taken < f.wave.members.size() && f.wave.members[taken].expert == group.expert) {
      f.work.wave_groups[taken] = group;
      f.work.wave_groups[taken].slot = f.wave.members[taken].slot;
      ++taken;
    } else {
      (*groups)[left++] = group;
    }
  }
  *groups = groups->first(left);
  return f.work.wave_groups.first(taken);
}

// As many waves as the slots demand; between two of them nothing is held.
Status run_paged(LayerForward& f, Chunk chunk) {
  StageTimer timer(f.services.clock(), f.report.experts_ns);
  std::span<ExpertGroup> groups = make_groups(f, chunk);
  while (!groups.empty()) {
    for (size_t g = 0; g < groups.size(); ++g) f.work.needed[g] = groups[g].expert;
    MOE_RETURN_IF_ERROR(
        f.store.acquire(f.layer, f.work.needed.first(groups.size()), f.deadline_at_ns, &f.wave));
    const Status status = run_wave(f, chunk, take_wave(f, &groups));
    f.store.release(f.layer, &f.wave);
    MOE_RETURN_IF_ERROR(status);
  }
  return {};
}

// ---- shared experts

// gate[t] = sigmoid(w . hidden[t])
void shared_gates(const TensorView& hidden, const TensorView& weight, float* gate) {
  constexpr int64_t kBlock = 256;
  float x[kBlock], w[kBlock];
  for (int64_t t = 0; t < hidden.shape[0]; ++t) {
    double dot = 0;
    for (int64_t h = 0; h < hidden.shape[1]; h += kBlock) {
      const int64_t n = std::min(kBlock, hidden.shape[1] - h);
      load_row(hidden.dtype, element(hidden, t, h), 1, n, x);
      load_row(weight.dtype, element(weight, 0, h), 1, n, w);
      for (int64_t i = 0; i < n; ++i) dot += static_cast<double>(x[i]) * w[i];
    }
    gate[t] = static_cast<float>(1.0 / (1.0 + std::exp(-dot)));
  }
}

Status run_shared(LayerForward& f, const LayerBlock& block, Chunk chunk) {
  StageTimer timer(f.services.clock(), f.report.shared_ns);
  const SharedSpec& spec = *f.layer.spec.shared;
  for (int64_t t = 0; t < chunk.count; ++t) f.work.shared_pairs[static_cast<size_t>(t)] = t;
  const ExpertGroup group{block.shared, kSharedExpert, 0, chunk.count};
  ExpertBatch batch;
  batch.hidden = rows_of(f.hidden, chunk.first, chunk.count);
  batch.top_k = 1;
  batch.groups = {&group, 1};
  batch.pairs = f.work.shared_pairs.data();
  batch.out = f.work.shared_rows.data();
  if (spec.sigmoid_gate) shared_gates(batch.hidden, block.shared_gate, f.work.shared_gate.data());
  return run_groups(f, *f.layer.shared.gemm, spec.expert, batch);
}

// ---- weighted sum

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

// Runs `experts(chunk)`, the shared expert and the weighted sum, chunk after chunk.
template <class Experts>
Status compute(LayerForward& f, const LayerBlock& block, Experts experts) {
  const bool with_shared = f.layer.shared.gemm && !f.options.skip_shared;
  const int64_t rows = f.hidden.shape[0];
  const int64_t step = chunk_tokens(f.layer.spec, {rows, f.top_k, 1});
  for (int64_t first = 0; first < rows; first += step) {
    const Chunk chunk{first, std::min(step, rows - first)};
    MOE_RETURN_IF_ERROR(check_deadline(f, Phase::compute));
    MOE_RETURN_IF_ERROR(experts(chunk));
    if (with_shared) MOE_RETURN_IF_ERROR(run_shared(f, block, chunk));
    run_combine(f, chunk, with_shared);
  }
  return {};
}

}  // namespace

Status forward_layer(LayerForward& f) {
  std::shared_ptr<const LayerBlock> block;
  {
    const EpochPin pin(f.reader);
    const ExpertTable& table = ExpertStore::Impl::table(f.layer);
    f.report.epoch = table.epoch;
    f.report.rows = f.hidden.shape[0];
    MOE_RETURN_IF_ERROR(route(f, *table.block));
    if (!f.layer.paged)
      return compute(f, *table.block, [&](Chunk chunk) { return run_resident(f, table, chunk); });
    block = table.block;  // router and shared expert of one version, whatever the waves bring
  }
  tell_policy(f);
  return compute(f, *block, [&](Chunk chunk) { return run_paged(f, chunk); });
}

}  // namespace moe
