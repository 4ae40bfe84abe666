// int8 and int4 experts on the CPU beside this machine's limits, interleaved with them: FMA peak
// and DRAM read. Medians of nine runs.
//   cpu_quant_bench [shape] [format] [threads] [instruction set] [rows]
// Formats: int8 (rows), int4 (groups of 32), int4g128 (with zero points); f32, f16, bf16 to
// compare. Rows: automatic or exact.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string_view>
#include <vector>

#include <immintrin.h>

#include "gemm/cpu_gemm.h"
#include "gemm/quant_gemm.h"
#include "moe/expert_gemm.h"

namespace {

using namespace moe;

struct Shape {
  const char* name;
  int32_t experts, top_k;
  int64_t hidden, intermediate;
};
constexpr Shape kShapes[] = {{"olmoe", 64, 8, 2048, 1024},
                             {"qwen3", 128, 8, 2048, 768},
                             {"dsv2l", 64, 6, 2048, 1408},
                             {"mixtral", 8, 2, 4096, 14336}};
constexpr size_t kColdBytes = size_t{1} << 30;

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Chains of FMAs, enough of them to fill every unit; the loops must unroll so that no accumulator
// leaves its register.
__attribute__((target("avx512f"))) float fma_chains(int64_t rounds) {
  constexpr int kChains = 24;
  __m512 acc[kChains];
  const __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(1e-3f);
#pragma GCC unroll 24
  for (int j = 0; j < kChains; ++j) acc[j] = _mm512_set1_ps(static_cast<float>(rounds + j));
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 24
    for (int j = 0; j < kChains; ++j) acc[j] = _mm512_fmadd_ps(acc[j], x, y);
  }
#pragma GCC unroll 24
  for (int j = 1; j < kChains; ++j) acc[0] = _mm512_add_ps(acc[0], acc[j]);
  return _mm512_reduce_add_ps(acc[0]);
}

__attribute__((target("avx2,fma"))) float fma_chains_avx2(int64_t rounds) {
  constexpr int kChains = 12;
  __m256 acc[kChains];
  const __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(1e-3f);
#pragma GCC unroll 12
  for (int j = 0; j < kChains; ++j) acc[j] = _mm256_set1_ps(static_cast<float>(rounds + j));
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) acc[j] = _mm256_fmadd_ps(acc[j], x, y);
  }
#pragma GCC unroll 12
  for (int j = 1; j < kChains; ++j) acc[0] = _mm256_add_ps(acc[0], acc[j]);
  return acc[0][0] + acc[0][3];
}

__attribute__((target("avx2"))) int64_t read_all(const std::byte* data, int64_t bytes) {
  const auto* words = reinterpret_cast<const __m256i*>(data);
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
  for (int64_t i = 0; i < bytes / 32; i += 4) {
    a = _mm256_xor_si256(a, _mm256_loadu_si256(words + i));
    b = _mm256_xor_si256(b, _mm256_loadu_si256(words + i + 1));
    c = _mm256_xor_si256(c, _mm256_loadu_si256(words + i + 2));
    d = _mm256_xor_si256(d, _mm256_loadu_si256(words + i + 3));
  }
  return _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d))[0];
}

volatile float sink;

double fma_gflops(Executor& executor, bool avx512) {
  constexpr int64_t kRounds = 1 << 18;
  const int threads = executor.concurrency();
  const double begin = seconds();
  executor.run(
      threads,
      [](void* wide, int64_t, int) {
        sink = wide ? fma_chains(kRounds) : fma_chains_avx2(2 * kRounds);
      },
      avx512 ? &executor : nullptr);
  return threads * 2.0 * 24 * (avx512 ? 16 : 8) * kRounds / (seconds() - begin) / 1e9;
}

double read_gbs(Executor& executor, std::vector<std::byte>& memory) {
  struct Job {
    const std::byte* data;
    int64_t chunk;
  } job{memory.data(), int64_t{1} << 18};
  const int64_t chunks = std::min<int64_t>(memory.size(), int64_t{1} << 28) / job.chunk;
  const double begin = seconds();
  executor.run(
      chunks,
      [](void* argument, int64_t index, int) {
        const auto& j = *static_cast<Job*>(argument);
        sink = static_cast<float>(read_all(j.data + index * j.chunk, j.chunk));
      },
      &job);
  return chunks * job.chunk / (seconds() - begin) / 1e9;
}

struct Batch {
  std::vector<float> hidden, out;
  std::vector<int64_t> pairs;
  std::vector<ExpertGroup> groups;
};

Batch make_batch(const Shape& shape, int64_t tokens, uint64_t seed) {
  Batch batch;
  std::mt19937_64 random(seed);
  std::vector<std::vector<int64_t>> chosen(shape.experts);
  std::vector<int32_t> order(shape.experts);
  std::iota(order.begin(), order.end(), 0);
  for (int64_t token = 0; token < tokens; ++token) {
    std::shuffle(order.begin(), order.end(), random);
    for (int32_t place = 0; place < shape.top_k; ++place)
      chosen[order[place]].push_back(token * shape.top_k + place);
  }
  for (int32_t e = 0; e < shape.experts; ++e) {
    if (chosen[e].empty()) continue;
    batch.groups.push_back({nullptr, e, static_cast<int64_t>(batch.pairs.size()),
                            static_cast<int64_t>(chosen[e].size())});
    batch.pairs.insert(batch.pairs.end(), chosen[e].begin(), chosen[e].end());
  }
  batch.hidden.assign(tokens * shape.hidden, 0.5f);
  batch.out.resize(tokens * shape.top_k * shape.hidden);
  return batch;
}

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
  const bool avx512 = set.substr(0, 6) == "avx512";
  const cpu::Kernels* floats =
      called(cpu::all_kernels(), avx512 ? "avx512" : std::string_view(set));
  const bool integers = format.kind == FormatKind::int8 || format.kind == FormatKind::int4;
  const cpu::QuantKernels* quant = called(cpu::all_quant_kernels(), set);
  if (!floats || (integers && !quant)) return nullptr;
  if (integers) return cpu::make_quant_gemm(*quant, *floats, rows);
  return cpu::make_gemm(*floats);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view only = argc > 1 ? argv[1] : "olmoe";
  const std::string_view format = argc > 2 ? argv[2] : "bf16";
  const int threads = argc > 3 ? std::atoi(argv[3]) : 0;
  const Format packed = format_called(format);
  const bool integers = packed.kind == FormatKind::int8 || packed.kind == FormatKind::int4;
  const std::string_view set = argc > 4   ? argv[4]
                               : integers ? cpu::best_quant_kernels().name
                                          : cpu::best_kernels().name;
  const bool exact = argc > 5 && std::string_view(argv[5]) == "exact";
  const Shape* shape = std::find_if(std::begin(kShapes), std::end(kShapes),
                                    [&](const Shape& s) { return only == s.name; });
  const auto gemm = backend(packed, set, exact ? RowPrecision::exact : RowPrecision::automatic);
  auto executor = make_executor(threads);
  if (shape == std::end(kShapes) || !gemm || !executor.ok()) return 2;
  const ExpertSpec spec{
      .hidden = shape->hidden, .intermediate = shape->intermediate, .format = packed};
  const size_t slot = gemm->layout(spec).bytes;
  const int64_t layers =
      std::max<int64_t>(1, static_cast<int64_t>(kColdBytes / (slot * shape->experts)));
  std::vector<std::byte> memory(slot * shape->experts * layers + 64);
  for (size_t i = 0; i < memory.size(); i += 2) {  // small numbers in every format
    memory[i] = std::byte(i * 7);
    memory[i + 1] = std::byte{0x3c};
  }
  std::byte* slots = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;

  const bool avx512 = set.substr(0, 6) == "avx512";
  std::printf("%s %s %s %s rows, %d threads\n", shape->name, format.data(), set.data(),
              exact ? "exact" : "automatic", (*executor)->concurrency());
  std::printf("%7s %10s %8s %8s | %8s %8s %8s %8s\n", "tokens", "us", "GFLOP/s", "GB/s", "fp32",
              "DRAM", "of fp32", "of DRAM");
  for (int64_t tokens : {1, 4, 16, 64, 256}) {
    std::vector<double> times, peaks, reads;
    Batch batch;
    for (int round = 0; round < 9; ++round) {
      batch = make_batch(*shape, tokens, round);
      for (ExpertGroup& group : batch.groups)
        group.slot = slots + (round % layers * shape->experts + group.expert) * slot;
      const size_t bytes = gemm->workspace_bytes(spec, batch.pairs.size(), batch.groups.size(),
                                                 (*executor)->concurrency());
      const std::unique_ptr<std::byte, void (*)(void*)> workspace(
          static_cast<std::byte*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)), std::free);
      std::memset(workspace.get(), 0, bytes);
      peaks.push_back(fma_gflops(**executor, avx512));
      reads.push_back(read_gbs(**executor, memory));
      const ExpertBatch job{.hidden = {batch.hidden.data(), DType::f32, {tokens, shape->hidden}},
                            .top_k = shape->top_k,
                            .groups = batch.groups,
                            .pairs = batch.pairs.data(),
                            .out = batch.out.data(),
                            .executor = executor->get(),
                            .workspace = {workspace.get(), bytes}};
      const double begin = seconds();
      if (!gemm->run(spec, job).ok()) return 1;
      times.push_back(seconds() - begin);
    }
    const double time = median(times), peak = median(peaks), read = median(reads);
    const double flops = 6.0 * shape->hidden * shape->intermediate * batch.pairs.size();
    const double weights = static_cast<double>(slot) * batch.groups.size();
    std::printf("%7lld %10.1f %8.1f %8.1f | %8.1f %8.1f %8.2f %8.2f\n",
                static_cast<long long>(tokens), time * 1e6, flops / time / 1e9,
                weights / time / 1e9, peak, read, flops / time / 1e9 / peak,
                weights / time / 1e9 / read);
  }
}
