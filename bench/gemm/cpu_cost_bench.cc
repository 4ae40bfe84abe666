// Predicted and measured times of experts on this machine.
//   cpu_cost_bench [f32|f16|bf16|fp8|int8|int4] [threads]
// Rates are measured once (measure_cpu_cost()); then every published shape runs with cold weights.
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "cpu_bench.h"
#include "moe/cpu_cost.h"

using namespace moe;
using namespace moe::bench;

namespace {

constexpr struct {
  std::string_view name;
  Format format;
} kFormats[] = {{"f32", {FormatKind::f32}},
                {"f16", {FormatKind::f16}},
                {"bf16", {FormatKind::bf16}},
                {"fp8", {FormatKind::fp8_block, 128}},
                {"int8", {FormatKind::int8, 0, DType::bf16}},
                {"int4", {FormatKind::int4, 32, DType::bf16}}};

// Median us of a layer's experts.
double measure(const ExpertGemm& gemm, const ExpertSpec& spec, const Shape& shape, int64_t tokens,
               Executor& executor, const Mapping& memory, std::vector<int64_t>* rows) {
  const size_t slot = gemm.layout(spec).bytes;
  const auto layers = memory.size() / (slot * shape.experts);
  std::vector<double> us;
  for (int i = 0; i < 7; ++i) {
    Batch batch = make_batch(shape, tokens, i, DType::f32);
    rows->clear();
    for (ExpertGroup& group : batch.groups) {
      group.slot = memory.data() + (i % layers * shape.experts + group.expert) * slot;
      rows->push_back(group.count);
    }
    const Scratch scratch(gemm.workspace_bytes(spec, batch.pairs.size(), batch.groups.size(),
                                               executor.concurrency()));
    const ExpertBatch job = job_of(batch, shape, tokens, DType::f32, executor, scratch);
    const double begin = seconds();
    if (!gemm.run(spec, job).ok()) std::exit(1);
    us.push_back(1e6 * (seconds() - begin));
  }
  return median(us);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view name = argc > 1 ? argv[1] : "bf16";
  const int threads = argc > 2 ? std::atoi(argv[2]) : 2;
  const auto* row = std::find_if(std::begin(kFormats), std::end(kFormats),
                                 [&](const auto& f) { return f.name == name; });
  auto executor = make_executor(threads);
  if (row == std::end(kFormats) || !executor.ok()) return 2;
  const double begin = seconds();
  const auto cost = measure_cpu_cost(row->format, threads);
  if (!cost.ok()) return 1;
  std::printf("%s, %d threads; rates measured in %.2f s\n", argc > 1 ? argv[1] : "bf16", threads,
              seconds() - begin);
  for (const CpuRates& rates : cost->rates) {
    std::printf("  %2d threads: job %.0f ns, fetch %.4f ns a weight, compute", rates.threads,
                rates.job_ns, rates.read_ns_per_weight);
    for (const auto& point : rates.compute) std::printf(" %.4f", point.ns_per_weight);
    std::printf("\n");
  }
  std::printf("%8s %7s %12s %12s %7s\n", "shape", "tokens", "predicted us", "measured us",
              "factor");
  for (const Shape& shape : kShapes) {
    const ExpertSpec spec{
        .hidden = shape.hidden, .intermediate = shape.intermediate, .format = row->format};
    const auto gemm = make_expert_gemm({}, spec);
    if (!gemm.ok()) return 1;
    const size_t slot = (*gemm)->layout(spec).bytes;
    const auto layers = std::max<size_t>(1, kColdBytes / (slot * shape.experts));
    const Mapping memory(slot * shape.experts * layers, true);
    fill_small(memory);
    for (int64_t tokens : {1, 4, 16, 64, 256}) {
      std::vector<int64_t> rows;
      const double us = measure(**gemm, spec, shape, tokens, **executor, memory, &rows);
      const double predicted = batch_ns(*cost, spec, rows, threads) / 1e3;
      std::printf("%8s %7ld %12.1f %12.1f %7.2f\n", shape.name, tokens, predicted, us,
                  predicted / us);
    }
  }
}
