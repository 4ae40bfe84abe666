// How even a load is, in the field's different ways of saying so.
#pragma once

#include <cstdint>
#include <span>

#include "moe/export.h"

namespace moe {

// A verdict on a load. CV: standard deviation over mean.
enum class Balance : int32_t {
  too_few,   // less than the minimum count: nothing is called imbalance yet
  well,      // CV < 0.5 and max/min <= 3
  moderate,  // CV <= 1, or max/min > 3
  severe,    // CV > 1
};
MOE_API const char* to_string(Balance balance);  // "severe"

// Of one load.
struct LoadStatistics {
  double total = 0;                    // rows of all parts
  double mean = 0;                     // over the parts
  double max = 0;                      // of the busiest part
  double min = 0;                      // of the idlest part
  double cv = 0;                       // standard deviation over mean; 0 for an empty load
  double max_over_mean = 0;            // 1 is ideal; 0 for an empty load
  double max_over_min = 0;             // infinite if something got nothing
  Balance balance = Balance::too_few;  // the verdict
};

// `load` is tokens per rank or per expert. Fewer than `minimum` tokens per entry, on average, are
// not judged.
MOE_API LoadStatistics load_statistics(std::span<const double> load, double minimum = 16);

// `load` is (layers, ranks). vLLM's balancedness: sum over layers of the mean over the sum of the
// maxima; 0 if there is no load.
MOE_API double balancedness_vllm(std::span<const double> load, int32_t ranks);
// SGLang's: mean over layers of (mean + 1e-5) / (max + 1e-5).
MOE_API double balancedness_sglang(std::span<const double> load, int32_t ranks);

// Share of a request's time spent waiting for a busy expert; above 0.10 is a hotspot.
MOE_API double wait_share(double wait_seconds, double total_seconds);
inline constexpr double kMaxWaitShare =
    0.10;  // of a forward spent waiting for experts; above it something is wrong

}  // namespace moe
