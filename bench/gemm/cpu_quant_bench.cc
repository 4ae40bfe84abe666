// int8 and int4 experts on the CPU beside this machine's limits, interleaved with them: FMA peak
// and DRAM read. Medians of nine runs.
//   cpu_quant_bench [shape] [format] [threads] [sets] [rows] [huge|small] [tokens ...]
// Formats: int8 (rows), int4 (groups of 32), int4g128 (with zero points); f32, f16, bf16 to
// compare. Rows: automatic or exact. Sets: one instruction set or several, with commas between;
// they take turns.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "cpu_bench.h"
#include "gemm/cpu_gemm.h"
#include "gemm/quant_gemm.h"

using namespace moe;
using namespace moe::bench;

namespace {

Format format_called(std::string_view name) {
  if (name == "f32") return {FormatKind::f32};
  if (name == "f16") return {FormatKind::f16};
  if (name == "int8") return {FormatKind::int8, 0, DType::bf16};
  if (name == "int4") return {FormatKind::int4, 32, DType::bf16};
  if (name == "int4g128") return {FormatKind::int4, 128, DType::f16, true};
  return {FormatKind::bf16};
}

template <class K>
const K* called(std::span<const K> all, std::string_view name) {
  for (const K& kernels : all)
    if (name == kernels.name && kernels.available()) return &kernels;
  return nullptr;
}

// The backend of `format` with the instruction set `set`, or null.
std::unique_ptr<ExpertGemm> backend(const Format& format, std::string_view set, RowPrecision rows) {
  const cpu::Kernels* floats =
      called(cpu::all_kernels(), set.substr(0, 6) == "avx512" ? std::string_view("avx512") : set);
  const bool integers = format.kind == FormatKind::int8 || format.kind == FormatKind::int4;
  const cpu::QuantKernels* quant = called(cpu::all_quant_kernels(), set);
  if (!floats || (integers && !quant)) return nullptr;
  if (integers) return cpu::make_quant_gemm(*quant, *floats, rows);
  return cpu::make_gemm(*floats);
}

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // what was read counts though the rest takes too long
  const std::string_view only = argc > 1 ? argv[1] : "olmoe";
  const std::string_view format = argc > 2 ? argv[2] : "bf16";
  const int threads = argc > 3 ? std::atoi(argv[3]) : 0;
  const Format packed = format_called(format);
  const bool integers = packed.kind == FormatKind::int8 || packed.kind == FormatKind::int4;
  const std::string sets = argc > 4   ? argv[4]
                           : integers ? cpu::best_quant_kernels().name
                                      : cpu::best_kernels().name;
  const bool huge = argc > 6 && std::string_view(argv[6]) == "huge";
  std::vector<int64_t> all_tokens = {1, 4, 16, 64, 256};
  if (argc > 7) all_tokens.clear();
  for (int i = 7; i < argc; ++i) all_tokens.push_back(std::atoll(argv[i]));
  const bool exact = argc > 5 && std::string_view(argv[5]) == "exact";
  const Shape* shape = std::find_if(std::begin(kShapes), std::end(kShapes),
                                    [&](const Shape& s) { return only == s.name; });
  std::vector<std::string> names;
  std::vector<std::unique_ptr<ExpertGemm>> gemms;
  std::istringstream list(sets);
  for (std::string name; std::getline(list, name, ',');) {
    auto gemm = backend(packed, name, exact ? RowPrecision::exact : RowPrecision::automatic);
    if (!gemm) continue;  // this machine does not have it
    names.push_back(name);
    gemms.push_back(std::move(gemm));
  }
  auto executor = make_executor(threads);
  if (shape == std::end(kShapes) || gemms.empty() || !executor.ok()) return 2;
  const ExpertSpec spec{
      .hidden = shape->hidden, .intermediate = shape->intermediate, .format = packed};
  const size_t slot = gemms[0]->layout(spec).bytes;
  const int64_t layers =
      std::max<int64_t>(1, static_cast<int64_t>(kColdBytes / (slot * shape->experts)));
  const Mapping memory(slot * shape->experts * layers, huge);
  fill_small(memory);
  const bool avx512 = __builtin_cpu_supports("avx512f") && sets != "avx2";
  std::printf("%s %s, %s rows, %d threads%s\n%7s %-10s %10s %8s %8s | %8s %8s %8s %8s\n",
              shape->name, format.data(), exact ? "exact" : "automatic", (*executor)->concurrency(),
              huge ? ", huge pages" : "", "tokens", "set", "us", "GFLOP/s", "GB/s", "fp32", "DRAM",
              "of fp32", "of DRAM");
  for (int64_t tokens : all_tokens) {
    std::vector<std::vector<double>> times(gemms.size());
    std::vector<double> peaks, reads;
    Batch batch;
    int64_t turn = 0;
    for (int round = 0; round < 9; ++round)
      for (size_t c = 0; c < gemms.size(); ++c, ++turn) {
        batch = make_batch(*shape, tokens, round, DType::f32);
        for (ExpertGroup& group : batch.groups)
          group.slot = memory.data() + (turn % layers * shape->experts + group.expert) * slot;
        const size_t bytes = gemms[c]->workspace_bytes(
            spec, batch.pairs.size(), batch.groups.size(), (*executor)->concurrency());
        const Scratch scratch(bytes);
        peaks.push_back(fma_gflops(**executor, avx512));
        reads.push_back(read_gbs(**executor, memory));
        const ExpertBatch job = job_of(batch, *shape, tokens, DType::f32, **executor, scratch);
        const double begin = seconds();
        if (!gemms[c]->run(spec, job).ok()) return 1;
        times[c].push_back(seconds() - begin);
      }
    const double peak = median(peaks), read = median(reads);
    const double flops = 6.0 * shape->hidden * shape->intermediate * batch.pairs.size();
    const double weights = static_cast<double>(slot) * batch.groups.size();
    for (size_t c = 0; c < gemms.size(); ++c) {
      const double time = median(times[c]);
      std::printf("%7lld %-10s %10.1f %8.1f %8.1f | %8.1f %8.1f %8.2f %8.2f\n",
                  static_cast<long long>(tokens), names[c].c_str(), time * 1e6, flops / time / 1e9,
                  weights / time / 1e9, peak, read, flops / time / 1e9 / peak,
                  weights / time / 1e9 / read);
    }
  }
}
