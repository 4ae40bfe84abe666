// What batching is worth: the experts of a whole batch in one run, and in one run per token.
//   cpu_batching_bench [shape] [bf16|int4] [threads]
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "cpu_bench.h"

using namespace moe;
using namespace moe::bench;

namespace {

// Seconds of `batch`, whose hidden rows are those of `tokens` tokens.
double run(const ExpertGemm& gemm, const ExpertSpec& spec, const Shape& shape, Batch& batch,
           int64_t tokens, Executor& executor, const Mapping& memory, int64_t layer) {
  const size_t slot = gemm.layout(spec).bytes;
  for (ExpertGroup& group : batch.groups)
    group.slot = memory.data() + (layer * shape.experts + group.expert) * slot;
  const Scratch scratch(
      gemm.workspace_bytes(spec, batch.pairs.size(), batch.groups.size(), executor.concurrency()));
  const ExpertBatch job = job_of(batch, shape, tokens, DType::f32, executor, scratch);
  const double begin = seconds();
  if (!gemm.run(spec, job).ok()) std::exit(1);
  return seconds() - begin;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view only = argc > 1 ? argv[1] : "olmoe";
  const std::string_view format = argc > 2 ? argv[2] : "bf16";
  const int threads = argc > 3 ? std::atoi(argv[3]) : 2;
  const Shape* shape = find_shape(only);
  auto executor = make_executor(threads);
  if (!shape || !executor.ok()) return 2;
  const ExpertSpec spec = expert_spec(*shape, format);
  const auto gemm = make_expert_gemm({}, spec);
  if (!gemm.ok()) return 1;
  const size_t slot = (*gemm)->layout(spec).bytes;
  const auto layers =
      static_cast<int64_t>(std::max<size_t>(1, kColdBytes / (slot * shape->experts)));
  const Mapping memory(slot * shape->experts * layers, true);
  fill_small(memory);
  std::printf("%s %s, %d threads\n%7s %16s %16s %7s\n", shape->name, format.data(), threads,
              "tokens", "batch tokens/s", "loop tokens/s", "times");
  for (int64_t tokens : {1, 4, 16, 64, 256}) {
    std::vector<double> batched, looped;
    for (int i = 0; i < 5; ++i) {
      Batch all = make_batch(*shape, tokens, i, DType::f32);
      batched.push_back(run(**gemm, spec, *shape, all, tokens, **executor, memory, 2 * i % layers));
      double sum = 0;
      for (int64_t t = 0; t < tokens; ++t) {
        Batch one = make_batch(*shape, 1, i * tokens + t, DType::f32);
        sum += run(**gemm, spec, *shape, one, 1, **executor, memory, (2 * i + 1 + t) % layers);
      }
      looped.push_back(sum);
    }
    const double batch = static_cast<double>(tokens) / median(batched);
    const double loop = static_cast<double>(tokens) / median(looped);
    std::printf("%7ld %16.1f %16.1f %7.2f\n", tokens, batch, loop, batch / loop);
  }
}
