// The two loops are compiled for every SIMD target and the best one of this machine is taken.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "machine.cc"
#include "machine.h"

#include <hwy/foreach_target.h>  // must come first
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace moe::cli {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Sums `count` floats, a multiple of 8 vectors.
float sum(const float* values, size_t count) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0;
  for (size_t i = 0; i + 8 * lanes <= count; i += 8 * lanes) {
    s0 = hn::Add(s0, hn::LoadU(d, values + i));
    s1 = hn::Add(s1, hn::LoadU(d, values + i + lanes));
    s2 = hn::Add(s2, hn::LoadU(d, values + i + 2 * lanes));
    s3 = hn::Add(s3, hn::LoadU(d, values + i + 3 * lanes));
    s4 = hn::Add(s4, hn::LoadU(d, values + i + 4 * lanes));
    s5 = hn::Add(s5, hn::LoadU(d, values + i + 5 * lanes));
    s6 = hn::Add(s6, hn::LoadU(d, values + i + 6 * lanes));
    s7 = hn::Add(s7, hn::LoadU(d, values + i + 7 * lanes));
  }
  s0 =
      hn::Add(hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)), hn::Add(hn::Add(s4, s5), hn::Add(s6, s7)));
  return hn::GetLane(hn::SumOfLanes(d, s0));
}

// `steps` times twelve independent multiply-adds of a vector. Stores the floats of one vector in
// `lanes`; the result only keeps the loop alive.
float multiply_add(size_t steps, size_t* lanes) {
  const hn::ScalableTag<float> d;
  *lanes = hn::Lanes(d);
  const auto x = hn::Set(d, 0.999f), y = hn::Set(d, 1e-3f);
  auto a0 = hn::Iota(d, 0.f), a1 = hn::Iota(d, 1.f), a2 = hn::Iota(d, 2.f), a3 = hn::Iota(d, 3.f);
  auto a4 = hn::Iota(d, 4.f), a5 = hn::Iota(d, 5.f), a6 = hn::Iota(d, 6.f), a7 = hn::Iota(d, 7.f);
  auto a8 = hn::Iota(d, 8.f), a9 = hn::Iota(d, 9.f), b0 = hn::Iota(d, 10.f), b1 = hn::Iota(d, 11.f);
  for (size_t i = 0; i < steps; ++i) {
    a0 = hn::MulAdd(a0, x, y), a1 = hn::MulAdd(a1, x, y), a2 = hn::MulAdd(a2, x, y);
    a3 = hn::MulAdd(a3, x, y), a4 = hn::MulAdd(a4, x, y), a5 = hn::MulAdd(a5, x, y);
    a6 = hn::MulAdd(a6, x, y), a7 = hn::MulAdd(a7, x, y), a8 = hn::MulAdd(a8, x, y);
    a9 = hn::MulAdd(a9, x, y), b0 = hn::MulAdd(b0, x, y), b1 = hn::MulAdd(b1, x, y);
  }
  a0 =
      hn::Add(hn::Add(hn::Add(a0, a1), hn::Add(a2, a3)), hn::Add(hn::Add(a4, a5), hn::Add(a6, a7)));
  a8 = hn::Add(hn::Add(a8, a9), hn::Add(b0, b1));
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(a0, a8)));
}

}  // namespace HWY_NAMESPACE
}  // namespace moe::cli
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <string>

#include <unistd.h>

#include "machine_dot.h"

namespace moe::cli {
namespace {

HWY_EXPORT(sum);
HWY_EXPORT(multiply_add);

constexpr size_t kFmaSteps = 2'000'000;  // some milliseconds
constexpr size_t kFmaChains = 12;
constexpr int64_t kDotRounds = 500'000;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::atomic<float> sink;  // keeps results alive

}  // namespace

size_t available_memory() {
  std::ifstream file("/proc/meminfo");
  size_t kib = 0;
  for (std::string word; file >> word;)
    if (word == "MemAvailable:" && file >> kib) return kib << 10;
  return size_t{1} << 30;
}

size_t last_level_cache() {
  const long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return bytes > 0 ? static_cast<size_t>(bytes) : size_t{32} << 20;
}

Limits::Limits(Executor& executor)
    : executor_(executor),
      buffer_(std::clamp(8 * last_level_cache(), size_t{256} << 20, size_t{1} << 30) /
              sizeof(float)) {
  std::fill(buffer_.begin(), buffer_.end(), 1.f);
}

double Limits::dram_read_gbs() {
  constexpr int64_t kChunk = 1 << 18;  // floats
  const auto chunks = static_cast<int64_t>(buffer_.size()) / kChunk;
  const auto read = [](void* self, int64_t chunk, int) {
    const float* values = static_cast<Limits*>(self)->buffer_.data() + chunk * kChunk;
    sink.store(HWY_DYNAMIC_DISPATCH(sum)(values, kChunk), std::memory_order_relaxed);
  };
  const auto start = std::chrono::steady_clock::now();
  executor_.run(chunks, read, this);
  return static_cast<double>(chunks * kChunk) * sizeof(float) / seconds_since(start) / 1e9;
}

double Limits::fma_gflops() {
  size_t lanes = 0;
  HWY_DYNAMIC_DISPATCH(multiply_add)(1, &lanes);
  const auto multiply = [](void*, int64_t, int) {
    size_t unused;
    sink.store(HWY_DYNAMIC_DISPATCH(multiply_add)(kFmaSteps, &unused), std::memory_order_relaxed);
  };
  const int64_t threads = executor_.concurrency();
  const auto start = std::chrono::steady_clock::now();
  executor_.run(threads, multiply, nullptr);
  const double flops =
      2.0 * static_cast<double>(lanes * kFmaChains * kFmaSteps) * static_cast<double>(threads);
  return flops / seconds_since(start) / 1e9;
}

double Limits::gops(double (*loop)(int64_t rounds), int64_t rounds) {
  struct Job {
    double (*loop)(int64_t rounds);
    int64_t rounds;
  } job{loop, rounds};
  const int64_t threads = executor_.concurrency();
  const auto start = std::chrono::steady_clock::now();
  executor_.run(
      threads,
      [](void* argument, int64_t, int) {
        const Job& j = *static_cast<Job*>(argument);
        j.loop(j.rounds);
      },
      &job);
  return loop(1) * static_cast<double>(rounds * threads) / seconds_since(start) / 1e9;
}

double Limits::int8_dot_gops() { return gops(dot_int8, kDotRounds); }
double Limits::int4_dot_gops() { return gops(dot_int4, kDotRounds); }

}  // namespace moe::cli
#endif  // HWY_ONCE
