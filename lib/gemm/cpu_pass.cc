#include "gemm/cpu_pass.h"

#include <algorithm>

#include "core/error.h"
#include "core/parallel.h"

namespace moe::cpu {

Pass::~Pass() = default;

void compute(Executor* executor, std::span<Pass* const> passes) {
  for (int step = 0;; ++step) {
    int64_t tasks = 0;
    bool more = false, large = false;
    for (const Pass* pass : passes) {
      if (!pass || step >= pass->steps()) continue;
      more = true;
      tasks += pass->tasks(step);
      large |= pass->large(step);
    }
    if (!more) return;
    parallel_for(large ? executor : nullptr, tasks, [=](int64_t task, int worker) {
      for (Pass* pass : passes) {
        if (!pass || step >= pass->steps()) continue;
        if (task < pass->tasks(step)) return pass->run(step, task, worker);
        task -= pass->tasks(step);
      }
    });
  }
}

Status PassGemm::run(const ExpertSpec& spec, const ExpertBatch& batch) const {
  PassSpace space;
  MOE_RETURN_IF_ERROR(plan(spec, batch, &space));
  Pass* const pass = space.get();
  compute(batch.executor, {&pass, 1});
  return {};
}

}  // namespace moe::cpu

namespace moe {

Status run_together(const GemmCall& first, const GemmCall& second) {
  const auto* a = dynamic_cast<const cpu::PassGemm*>(&first.gemm);
  const auto* b = dynamic_cast<const cpu::PassGemm*>(&second.gemm);
  if (!a || !b) {
    MOE_RETURN_IF_ERROR(first.gemm.run(first.spec, first.batch));
    return second.gemm.run(second.spec, second.batch);
  }
  cpu::PassSpace one, other;
  MOE_RETURN_IF_ERROR(a->plan(first.spec, first.batch, &one));
  MOE_RETURN_IF_ERROR(b->plan(second.spec, second.batch, &other));
  cpu::Pass* const passes[] = {one.get(), other.get()};
  cpu::compute(first.batch.executor, passes);
  return {};
}

}  // namespace moe
