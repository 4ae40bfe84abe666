// The CPU expert backend beside this machine's limits, interleaved with it: FMA peak and DRAM read.
//   cpu_gemm_bench [shape] [format] [threads] [instruction sets] [huge|small] [tokens ...]
// Sets (avx512,amx) take turns within each point; rows are bf16 where a set has units for them.
// Every point rotates over enough copies of the layer that weights come from DRAM.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cpu_bench.h"
#include "gemm/cpu_gemm.h"

using namespace moe;
using namespace moe::bench;

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // what was read counts though the rest takes too long
  const std::string_view only = argc > 1 ? argv[1] : "olmoe";
  const std::string_view format = argc > 2 ? argv[2] : "bf16";
  const int threads = argc > 3 ? std::atoi(argv[3]) : 0;
  const std::string_view sets = argc > 4 ? argv[4] : cpu::best_kernels().name;
  const bool huge = argc > 5 && std::string_view(argv[5]) == "huge";
  std::vector<int64_t> all_tokens = {1, 4, 16, 64, 256};
  if (argc > 6) all_tokens.clear();
  for (int i = 6; i < argc; ++i) all_tokens.push_back(std::atoll(argv[i]));
  const Shape* shape = std::find_if(std::begin(kShapes), std::end(kShapes),
                                    [&](const Shape& s) { return only == s.name; });
  std::vector<const cpu::Kernels*> chosen;
  for (const cpu::Kernels& kernels : cpu::all_kernels())
    if (("," + std::string(sets) + ",").find("," + std::string(kernels.name) + ",") !=
            std::string::npos &&
        kernels.available())
      chosen.push_back(&kernels);
  auto executor = make_executor(threads);
  if (shape == std::end(kShapes) || chosen.empty() || !executor.ok()) return 2;
  const ExpertSpec spec{.hidden = shape->hidden,
                        .intermediate = shape->intermediate,
                        .format = {format == "f32"   ? FormatKind::f32
                                   : format == "f16" ? FormatKind::f16
                                                     : FormatKind::bf16}};
  const size_t slot = cpu::make_gemm(*chosen[0])->layout(spec).bytes;
  const int64_t layers =
      std::max<int64_t>(1, static_cast<int64_t>(kColdBytes / (slot * shape->experts)));
  const Mapping memory(slot * shape->experts * layers, huge);
  fill_small(memory);
  const bool avx512 = __builtin_cpu_supports("avx512f") && sets != "avx2";
  std::printf("%s %s, %d threads%s\n%7s %-10s %10s %8s %8s | %8s %8s %8s\n", shape->name,
              format.data(), (*executor)->concurrency(), huge ? ", huge pages" : "", "tokens",
              "set", "us", "GFLOP/s", "GB/s", "peak", "DRAM", "roofline");
  for (int64_t tokens : all_tokens) {
    std::vector<std::vector<double>> times(chosen.size());
    std::vector<double> peaks, reads;
    Batch batch;
    int64_t turn = 0;
    for (int round = 0; round < 9; ++round)
      for (size_t c = 0; c < chosen.size(); ++c, ++turn) {
        const auto gemm = cpu::make_gemm(*chosen[c], RowPrecision::fast);
        const DType rows = chosen[c]->bf16.multiply ? DType::bf16 : DType::f32;
        batch = make_batch(*shape, tokens, round, rows);
        for (ExpertGroup& group : batch.groups)
          group.slot = memory.data() + (turn % layers * shape->experts + group.expert) * slot;
        const size_t bytes =
            gemm->workspace_bytes(spec, batch.pairs.size(), batch.groups.size(), 1);
        const Scratch scratch(bytes);
        peaks.push_back(fma_gflops(**executor, avx512));
        reads.push_back(read_gbs(**executor, memory));
        const ExpertBatch job = job_of(batch, *shape, tokens, rows, **executor, scratch);
        const double begin = seconds();
        if (!gemm->run(spec, job).ok()) return 1;
        times[c].push_back(seconds() - begin);
      }
    const double peak = median(peaks), read = median(reads);
    const double flops = 6.0 * shape->hidden * shape->intermediate * batch.pairs.size();
    const double weights = static_cast<double>(slot) * batch.groups.size();
    for (size_t c = 0; c < chosen.size(); ++c) {
      const double time = median(times[c]), limit = std::max(flops / peak, weights / read) / 1e9;
      std::printf("%7lld %-10s %10.1f %8.1f %8.1f | %8.1f %8.1f %8.2f\n",
                  static_cast<long long>(tokens), chosen[c]->name, time * 1e6, flops / time / 1e9,
                  weights / time / 1e9, peak, read, limit / time);
    }
  }
}
