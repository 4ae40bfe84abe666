// The chosen experts of a chunk of rows, from one table or in waves.
#include <algorithm>

#include "core/error.h"
#include "core/rows.h"
#include "gemm/cpu_pass.h"
#include "model/stages.h"
#include "router/permute.h"

namespace moe {
namespace {

// Whether a candidate's rows have an expert of their own.
bool differs(const LayerForward& f, int32_t expert) {
  const auto e = static_cast<size_t>(expert);
  return f.versions.of[1]->experts[e] != f.versions.of[0]->experts[e];
}

// ids, with those of a candidate's own experts moved up by the number of experts.
const int32_t* make_keys(LayerForward& f, Chunk chunk) {
  const int32_t* ids = f.work.ids.data() + chunk.first * f.top_k;
  if (!f.versions.split) return ids;
  const int32_t experts = f.layer.spec.router.num_experts;
  for (int64_t p = 0; p < chunk.count * f.top_k; ++p) {
    const bool side = f.work.side[static_cast<size_t>(chunk.first + p / f.top_k)] != 0;
    const bool own = side && ids[p] >= 0 && ids[p] < experts && differs(f, ids[p]);
    const bool none = ids[p] >= experts;  // a zero expert
    f.work.keys[static_cast<size_t>(p)] = none ? -1 : ids[p] + (own ? experts : 0);
  }
  return f.work.keys.data();
}

// The chunk's pairs by expert and version, and what each group needs. Slots are filled in later.
std::span<ExpertGroup> make_groups(LayerForward& f, Chunk chunk) {
  const int32_t experts = f.layer.spec.router.num_experts;
  const int32_t keys = f.versions.split ? 2 * experts : experts;
  const std::span<int64_t> first = f.work.first_pair;
  group_pairs(make_keys(f, chunk), chunk.count * f.top_k, keys, first.data(), f.work.pairs.data());
  size_t groups = 0;
  for (int32_t key = 0; key < keys; ++key) {
    const int64_t begin = first[static_cast<size_t>(key)],
                  end = first[static_cast<size_t>(key) + 1];
    if (end == begin) continue;
    const int32_t expert = key % experts;
    const LayerVersions& versions = *f.versions.of[key / experts];
    f.work.needs[groups] = {expert, versions.experts[static_cast<size_t>(expert)]};
    f.work.groups[groups++] = {nullptr, expert, begin, end - begin};
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

// Takes the wave's groups out of `groups`, whose rest stays in order, as do work.needs.
std::span<ExpertGroup> take_wave(LayerForward& f, std::span<ExpertGroup>* groups) {
  size_t taken = 0, left = 0;
  for (size_t g = 0; g < groups->size(); ++g) {
    const Need need = f.work.needs[g];
    const auto& members = f.wave.members;
    const auto mine = std::find_if(members.begin(), members.end(),
                                   [&](const Wave::Member& m) { return m.need == need; });
    ExpertGroup group = (*groups)[g];
    if (mine != members.end()) {
      group.slot = mine->slot;
      f.work.wave_groups[taken++] = group;
    } else {
      f.work.needs[left] = need;
      (*groups)[left++] = group;
    }
  }
  *groups = groups->first(left);
  return f.work.wave_groups.first(taken);
}

// The groups' needs as the policy was told of them: a wave takes those first that were used first.
std::span<const Need> in_order_of_use(LayerForward& f, size_t groups) {
  const std::span<const Need> needs = f.work.needs.first(groups);
  const auto falls = [](const Need& a, const Need& b) { return a.expert >= b.expert; };
  const auto last = std::adjacent_find(needs.begin(), needs.end(), falls);
  const auto middle = last == needs.end() ? last : last + 1;  // a candidate's own follow
  size_t count = 0;
  const auto take = [&](auto begin, auto end, int32_t expert) {
    const auto at =
        std::lower_bound(begin, end, expert, [](const Need& n, int32_t e) { return n.expert < e; });
    if (at != end && at->expert == expert) f.work.needed[count++] = *at;
  };
  for (const int32_t expert : f.experts.distinct()) {
    take(needs.begin(), middle, expert);
    take(middle, needs.end(), expert);
  }
  return f.work.needed.first(count);
}

}  // namespace

Status run_resident(LayerForward& f, const ExpertTable& table, Chunk chunk, SharedExpert& shared) {
  StageTimer timer(f.services.clock(), f.report.experts_ns);
  const std::span<ExpertGroup> groups = make_groups(f, chunk);
  for (size_t g = 0; g < groups.size(); ++g) {
    const auto e = static_cast<size_t>(groups[g].expert);
    const TableCopy& own = table.experts[e];
    groups[g].slot =
        own.version == f.work.needs[g].version ? own.slot : table.candidate.experts[e].slot;
  }
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
        f.store.acquire(f.layer, in_order_of_use(f, groups.size()), f.deadline_at_ns, &f.wave));
    if (f.store.schedule) f.store.schedule->point("wave");
    const bool last = f.wave.members.size() == groups.size();
    if (last && chunk.first + chunk.count == f.hidden.shape[0]) look_ahead(f);
    const Status status = run_wave(f, chunk, take_wave(f, &groups), shared);
    f.store.release(f.layer, &f.wave);
    MOE_RETURN_IF_ERROR(status);
  }
  return {};
}

}  // namespace moe
