// The CPU expert backend beside this machine's limits, interleaved with it: FMA peak and DRAM read.
//   cpu_gemm_bench [shape] [format] [threads] [instruction sets] [huge|small] [tokens ...]
// Sets (avx512,amx) take turns within each point; rows are bf16 where a set has units for them.
// Every point rotates over enough copies of the layer that weights come from DRAM.
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
#include <sys/mman.h>

#include "gemm/cpu_gemm.h"
#include "moe/expert_gemm.h"
#include "quant/half.h"

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
    __builtin_prefetch(words + i + 256);  // 8 KiB: raises it by a tenth where pages are small
    __builtin_prefetch(words + i + 258);
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

// Zeroed pages, 2 MiB ones where asked for and possible.
class Mapping {
 public:
  Mapping(size_t bytes, bool huge) : bytes_(bytes) {
    constexpr size_t kHuge = size_t{2} << 20;
    map_ = mmap(nullptr, bytes + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map_ == MAP_FAILED) std::exit(1);
    madvise(map_, bytes + kHuge, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    data_ = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(map_) + kHuge - 1) / kHuge *
                                         kHuge);
  }
  ~Mapping() { munmap(map_, bytes_ + (size_t{2} << 20)); }
  std::byte* data() const { return data_; }
  size_t size() const { return bytes_; }

 private:
  size_t bytes_;
  void* map_;
  std::byte* data_;
};

double read_gbs(Executor& executor, const Mapping& memory) {
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
  std::vector<std::byte> hidden;
  std::vector<float> out;
  std::vector<int64_t> pairs;
  std::vector<ExpertGroup> groups;
};

Batch make_batch(const Shape& shape, int64_t tokens, uint64_t seed, DType rows) {
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
  const auto elements = static_cast<size_t>(tokens * shape.hidden);
  batch.hidden.resize(elements * bits_of(rows) / 8);
  for (size_t i = 0; i < elements; ++i)
    store_float(rows, batch.hidden.data(), static_cast<int64_t>(i), 0.5f);
  batch.out.resize(tokens * shape.top_k * shape.hidden);
  return batch;
}

}  // namespace

int main(int argc, char** argv) {
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
  for (size_t i = 0; i < memory.size(); i += 2) {  // small numbers in every format
    memory.data()[i] = std::byte(i * 7);
    memory.data()[i + 1] = std::byte{0x3c};
  }
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
        const auto gemm = cpu::make_gemm(*chosen[c]);
        const DType rows = chosen[c]->bf16.multiply ? DType::bf16 : DType::f32;
        batch = make_batch(*shape, tokens, round, rows);
        for (ExpertGroup& group : batch.groups)
          group.slot = memory.data() + (turn % layers * shape->experts + group.expert) * slot;
        const size_t bytes =
            gemm->workspace_bytes(spec, batch.pairs.size(), batch.groups.size(), 1);
        const std::unique_ptr<std::byte, void (*)(void*)> workspace(
            static_cast<std::byte*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)), std::free);
        std::memset(workspace.get(), 0, bytes);
        peaks.push_back(fma_gflops(**executor, avx512));
        reads.push_back(read_gbs(**executor, memory));
        const ExpertBatch job{.hidden = {batch.hidden.data(), rows, {tokens, shape->hidden}},
                              .top_k = shape->top_k,
                              .groups = batch.groups,
                              .pairs = batch.pairs.data(),
                              .out = batch.out.data(),
                              .executor = executor->get(),
                              .workspace = {workspace.get(), bytes}};
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
