// What the benchmarks of the CPU's expert backends share: published shapes, this machine's limits
// (FMA peak, DRAM read), memory for cold weights, and random batches.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <span>
#include <string_view>
#include <vector>

#include <immintrin.h>
#include <sys/mman.h>

#include "moe/expert_gemm.h"
#include "quant/half.h"

namespace moe::bench {

struct Shape {
  const char* name;
  int32_t experts, top_k;
  int64_t hidden, intermediate;
};
inline constexpr Shape kShapes[] = {{"olmoe", 64, 8, 2048, 1024},
                                    {"qwen3", 128, 8, 2048, 768},
                                    {"dsv2l", 64, 6, 2048, 1408},
                                    {"mixtral", 8, 2, 4096, 14336}};

// Null: no shape has this name.
inline const Shape* find_shape(std::string_view name) {
  const auto* found = std::find_if(std::begin(kShapes), std::end(kShapes),
                                   [&](const Shape& s) { return name == s.name; });
  return found == std::end(kShapes) ? nullptr : found;
}

// "int4", or else bf16.
inline ExpertSpec expert_spec(const Shape& shape, std::string_view format) {
  return {.hidden = shape.hidden,
          .intermediate = shape.intermediate,
          .format = format == "int4" ? Format{FormatKind::int4, 32, DType::bf16}
                                     : Format{FormatKind::bf16}};
}
inline constexpr size_t kColdBytes = size_t{1} << 30;

inline double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Chains of FMAs, enough of them to fill every unit; the loops must unroll so that no accumulator
// leaves its register.
__attribute__((target("avx512f"))) inline float fma_chains(int64_t rounds) {
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

__attribute__((target("avx2,fma"))) inline float fma_chains_avx2(int64_t rounds) {
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

__attribute__((target("avx2"))) inline int64_t read_all(const std::byte* data, int64_t bytes) {
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

inline volatile float sink;

inline double fma_gflops(Executor& executor, bool avx512) {
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

// Small numbers in every format.
inline void fill_small(const Mapping& memory) {
  std::byte part[4096];
  for (size_t i = 0; i < sizeof part; i += 2) {
    part[i] = std::byte(i * 7);
    part[i + 1] = std::byte{0x3c};
  }
  for (size_t at = 0; at < memory.size(); at += sizeof part)
    std::memcpy(memory.data() + at, part, std::min(sizeof part, memory.size() - at));
}

// Zeroed and aligned.
class Scratch {
 public:
  explicit Scratch(size_t bytes)
      : bytes_(bytes),
        data_(static_cast<std::byte*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64))) {
    std::memset(data_, 0, bytes);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }
  std::span<std::byte> bytes() const { return {data_, bytes_}; }

 private:
  size_t bytes_;
  std::byte* data_;
};

// Each call reads the next part of `memory`: a last-level cache may hold 300 MiB.
inline double read_gbs(Executor& executor, const Mapping& memory) {
  constexpr int64_t kPart = int64_t{1} << 27;
  static int64_t turn = 0;
  struct Job {
    const std::byte* data;
    int64_t chunk;
  } job{memory.data(), int64_t{1} << 18};
  const int64_t bytes = std::min<int64_t>(memory.size(), kPart), chunks = bytes / job.chunk;
  job.data += turn++ % (static_cast<int64_t>(memory.size()) / bytes) * bytes;
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

inline Batch make_batch(const Shape& shape, int64_t tokens, uint64_t seed, DType rows) {
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

// `batch` of make_batch() with these arguments, as a backend takes it.
inline ExpertBatch job_of(Batch& batch, const Shape& shape, int64_t tokens, DType rows,
                          Executor& executor, const Scratch& scratch) {
  return {.hidden = {batch.hidden.data(), rows, {tokens, shape.hidden}},
          .top_k = shape.top_k,
          .groups = batch.groups,
          .pairs = batch.pairs.data(),
          .out = batch.out.data(),
          .executor = &executor,
          .workspace = scratch.bytes()};
}

}  // namespace moe::bench
