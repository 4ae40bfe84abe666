// The chosen experts of a chunk of rows, from one table or in waves.
#include <algorithm>

#include "core/error.h"
#include "core/rows.h"
#include "gemm/cpu_pass.h"
#include "model/stages.h"
#include "router/permute.h"

namespace moe {
namespace {

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

// All groups at once, with the shared expert if it still waits; or one by one.
Status run_groups(const LayerForward& f, ExpertBatch batch, SharedExpert& shared) {
  const ExpertGemm& gemm = *f.layer.routed.gemm;
  const LayerSpec& spec = f.layer.spec;
  if (f.execution == Execution::grouped) {
    const ExpertBatch* beside = batch.groups.empty() ? nullptr : shared.take();
    if (!beside) return gemm.run(spec.expert, batch);
    return run_together({gemm, spec.expert, batch},
                        {*f.layer.shared.gemm, spec.shared->expert, *beside});
  }
  const std::span<const ExpertGroup> groups = batch.groups;
  for (size_t g = 0; g < groups.size(); ++g) {
    batch.groups = groups.subspan(g, 1);
    MOE_RETURN_IF_ERROR(gemm.run(spec.expert, batch));
  }
  return {};
}

Status run_wave(LayerForward& f, Chunk chunk, std::span<const ExpertGroup> groups,
                SharedExpert& shared) {
  const LayerSpec& spec = f.layer.spec;
  ExpertBatch batch;
  batch.hidden = rows_of(f.hidden, chunk.first, chunk.count);
  batch.top_k = f.top_k;
  batch.groups = groups;
  batch.pairs = f.work.pairs.data();
  if (spec.router.weight_on_input)
    batch.input_weights = f.work.weights.data() + chunk.first * f.top_k;
  batch.out = f.work.rows.data();
  batch.executor = &f.services.executor();
  batch.workspace = f.work.scratch;
  return run_groups(f, batch, shared);
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

// The groups' experts as the policy was told of them: a wave takes those first that were used
// first.
std::span<const int32_t> in_order_of_use(LayerForward& f, std::span<const ExpertGroup> groups) {
  size_t count = 0;
  for (const int32_t expert : f.experts.distinct()) {
    const auto group =
        std::lower_bound(groups.begin(), groups.end(), expert,
                         [](const ExpertGroup& g, int32_t e) { return g.expert < e; });
    if (group != groups.end() && group->expert == expert) f.work.needed[count++] = expert;
  }
  return f.work.needed.first(count);
}

}  // namespace

Status run_resident(LayerForward& f, const ExpertTable& table, Chunk chunk, SharedExpert& shared) {
  StageTimer timer(f.services.clock(), f.report.experts_ns);
  const std::span<ExpertGroup> groups = make_groups(f, chunk);
  for (ExpertGroup& group : groups)
    group.slot = table.experts[static_cast<size_t>(group.expert)].slot;
  return run_wave(f, chunk, groups, shared);
}

void tell_eviction_policy(LayerForward& f) {
  f.experts.gather(f.work.ids.data(), f.work.weights.data(), f.hidden.shape[0], f.top_k,
                   f.layer.spec.router.num_experts);
  f.store.accessed(f.layer, f.experts.distinct(), f.experts.mean_weights());
}

Status run_paged(LayerForward& f, Chunk chunk, SharedExpert& shared) {
  StageTimer timer(f.services.clock(), f.report.experts_ns);
  std::span<ExpertGroup> groups = make_groups(f, chunk);
  while (!groups.empty()) {
    MOE_RETURN_IF_ERROR(
        f.store.acquire(f.layer, in_order_of_use(f, groups), f.deadline_at_ns, &f.wave));
    const Status status = run_wave(f, chunk, take_wave(f, &groups), shared);
    f.store.release(f.layer, &f.wave);
    MOE_RETURN_IF_ERROR(status);
  }
  return {};
}

}  // namespace moe
