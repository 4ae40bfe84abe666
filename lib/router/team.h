// 32 lanes that work on one row together. A CPU thread plays all of them in turn, a warp one per
// thread; both combine them by the same tree, so that sums have the same bits everywhere.
//
//   double partial[Team::kLanes];                        // of the lanes this thread plays
//   for (int j = 0; j < Team::kLanes; ++j) {
//     partial[j] = 0;
//     for (int i = team.lane(j); i < n; i += kTeamLanes) partial[j] += value(i);
//   }
//   double total = team.sum(partial);                    // equal in every thread
#pragma once

#include "core/host_device.h"

#if defined(__CUDACC__)
#define MOE_RULE MOE_HOST_DEVICE __forceinline__
#else
// Always inlined, so that a caller compiled for a newer instruction set takes it along.
#define MOE_RULE inline __attribute__((always_inline))
#endif

namespace moe::rule {

inline constexpr int kTeamLanes = 32;

// A candidate for "the best": the larger key, then the lower index. index < 0: there is none.
struct Best {
  float key = 0;
  int index = -1;
};
MOE_RULE bool better(const Best& a, const Best& b) {
  if (a.index < 0 || b.index < 0) return b.index < 0 && a.index >= 0;
  return a.key > b.key || (a.key == b.key && a.index < b.index);
}

// All lanes in one thread.
struct ThreadTeam {
  static constexpr int kLanes = kTeamLanes;

  MOE_RULE int lane(int j) const { return j; }
  MOE_RULE bool leads() const { return true; }
  MOE_RULE void sync() const {}

  // Pairs lanes 16 apart, then 8, 4, 2, 1. Overwrites `lanes`.
  MOE_RULE double sum(double* lanes) const {
    for (int step = kLanes / 2; step > 0; step /= 2)
      for (int j = 0; j < step; ++j) lanes[j] += lanes[j + step];
    return lanes[0];
  }
  MOE_RULE Best best(const Best* lanes) const {
    Best winner = lanes[0];
    for (int j = 1; j < kLanes; ++j)
      if (better(lanes[j], winner)) winner = lanes[j];
    return winner;
  }
  MOE_RULE bool any(const bool* lanes) const {
    bool found = false;
    for (int j = 0; j < kLanes; ++j) found |= lanes[j];
    return found;
  }
};

#if defined(__CUDACC__)
// One lane in each thread of a full warp; every call is made by all of its threads.
struct WarpTeam {
  static constexpr int kLanes = 1;
  static constexpr unsigned kAll = 0xffffffffu;

  __device__ int lane(int) const { return static_cast<int>(threadIdx.x % kTeamLanes); }
  __device__ bool leads() const { return lane(0) == 0; }
  __device__ void sync() const { __syncwarp(); }

  __device__ double sum(double* lanes) const {
    double value = lanes[0];
    for (int step = kTeamLanes / 2; step > 0; step /= 2)
      value += __shfl_xor_sync(kAll, value, step);
    return value;
  }
  // Floats as unsigned numbers in the same order, above 0 and with -0 as +0.
  __device__ Best best(const Best* lanes) const {
    const unsigned bits = __float_as_uint(lanes[0].key + 0.f);
    unsigned key = bits >> 31 ? ~bits : bits | 0x80000000u;
    if (lanes[0].index < 0) key = 0;
    const unsigned largest = __reduce_max_sync(kAll, key);
    if (largest == 0) return {};
    const unsigned index =
        __reduce_min_sync(kAll, key == largest ? static_cast<unsigned>(lanes[0].index) : kAll);
    return {__uint_as_float(largest >> 31 ? largest & 0x7fffffffu : ~largest),
            static_cast<int>(index)};
  }
  __device__ bool any(const bool* lanes) const { return __any_sync(kAll, lanes[0]); }
};
#endif

}  // namespace moe::rule
